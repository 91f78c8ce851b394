//! What the tiers with root run on: nodes, pods and an EKS Auth of the tests' own.
//!
//! A [`node::Node`] is a network namespace, a cgroup sub-tree named as the kubelet names it, a kubelet directory on a
//! tmpfs of its own and an EKS Auth stand-in; an [`agent::Agent`] runs in it as the `DaemonSet`'s container would; a
//! [`pod::Pod`] is a network namespace, cgroups with real processes in them, and a token volume laid out as the kubelet
//! lays it out. A [`containers::Containerd`] has a real runtime make pods instead. Everything ends with its owner, also when a test panics, and no two tests share anything.
pub mod agent;
pub mod aws;
pub mod bpf;
pub mod capture;
pub mod cgroup;
pub mod client;
pub mod cluster;
pub mod containers;
pub mod eks_auth;
pub mod foreign;
pub mod host;
pub mod http1;
pub mod kubelet;
pub mod link_local;
pub mod load;
pub mod memory;
pub mod netns;
pub mod node;
pub mod operator;
pub mod pod;
pub mod process;
pub mod proxy;
pub mod signals;
pub mod sigv4;
pub mod sockets;
pub mod standin;
pub mod starting_line;
pub mod time;
pub mod tls;
pub mod token;
pub mod usage;
pub mod wire;
