//! The node tier: real namespaces, cgroups, programs and sockets on this machine's kernel. Needs root.
mod attestation;
mod capture;
mod client_modes;
mod common;
mod confinement;
mod contract;
mod contract_eks_auth;
mod contract_tokens;
mod credentials;
mod discovery;
mod harness;
mod inspection;
mod lifecycle;
mod memory;
mod network;
mod prefetch;
