//! Gives pods their IAM credentials as EKS Pod Identity does, and knows from the kernel which pod is calling.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod admin;
pub mod agent;
pub mod attestation;
pub mod audit;
pub mod cgroup;
pub mod commands;
pub mod config;
pub mod confinement;
pub mod credentials;
pub mod discovery;
pub mod eks_auth;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod health;
mod inotify_events;
pub mod kubelet;
pub mod metrics;
pub mod namespace;
pub mod netns;
pub mod operator;
pub mod pod_uid;
pub mod pods;
pub mod probe;
pub mod refusal;
pub mod self_test;
pub mod server;
pub mod share;
pub mod slow_clock;
pub mod steering;
pub mod sys;
pub mod telemetry;
mod tidying;
pub mod token;
pub mod vouching;
