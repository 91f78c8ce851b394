//! The SDK tier: unmodified AWS SDKs and the AWS command line in pods, with an STS and an S3 that accept only the
//! credentials which that STS gave out. Needs root and the clients that `cargo xtask setup` installs.
mod accepted;
mod client;
mod connections;
mod demo;
mod helm_test;
mod pictures;
mod refetches;
mod refused;
mod walkthrough;
mod world;
