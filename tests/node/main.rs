//! The node tier: real namespaces, cgroups, programs and sockets on this machine's kernel. Needs root.
mod attestation;
mod bursts;
mod capture;
mod client_modes;
mod common;
mod contract;
mod contract_eks_auth;
mod contract_tokens;
mod credentials;
mod discovery;
mod harness;
mod inspection;
mod lifecycle;
mod network;
mod operator;
mod outages;
mod prefetch;
