//! The containers tier: pods that containerd and runc make over the CRI, as on a node, instead of the harness. Needs root.
mod agent;
mod applications;
mod common;
mod ends;
mod leftovers;
mod starts;
