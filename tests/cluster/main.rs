//! The agent on a real cluster: Kubernetes' own API server, controllers, scheduler and kubelet, the chart as helm
//! installs it, and pods as their users write them. `cargo xtask cluster-test` builds what this needs and runs it.
mod grants;
mod helm_test;
mod installation;
mod leftovers;
mod operator;
mod uninstallation;
mod upgrade;
mod world;
