//! From flags to a configuration that is right as a whole.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU32};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;

use super::LogConfig;
use super::args::{HostNetworkPods, ServerArgs};
use crate::{
    confinement::{Confinement, Seccomp},
    telemetry::Verbosity,
};

/// The address that SDKs aim at in IPv4 clusters, as the programs know it.
pub const TARGET_V4: Ipv4Addr = Ipv4Addr::from_bits(agent_ebpf::TARGET_V4);

/// The address that SDKs aim at in IPv6 clusters, as the programs know it.
pub const TARGET_V6: Ipv6Addr = {
    let [a, b, c, d] = agent_ebpf::TARGET_V6;
    Ipv6Addr::from_bits((a as u128) << 96 | (b as u128) << 64 | (c as u128) << 32 | d as u128)
};

/// From here on ports are given away by others: `NodePort` has 30000-32767, the kernel 32768-60999 (and operators who
/// widen its range go up to the end).
const FIRST_PORT_OF_OTHERS: u16 = 30_000;

/// Renewals are as far apart as this at least.
const SHORTEST_RETENTION: Duration = Duration::from_mins(1);

/// Renewals per second if 0 is asked for, as in AWS's agent.
const DEFAULT_QPS: NonZeroU32 = NonZeroU32::MIN.saturating_add(2);

/// What `server` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Name of the EKS cluster, as EKS allows one, if it was given.
    pub cluster_name: Option<String>,
    /// Port of the target addresses.
    pub target_port: u16,
    /// Which target addresses are steered.
    pub steer: Steer,
    /// Where `/healthz` and `/readyz` are served.
    pub probe_addr: SocketAddr,
    /// Where `/metrics` is served, if anywhere.
    pub metrics_addr: Option<SocketAddr>,
    /// The ports of which the first free one is listened on in each namespace.
    pub listener_ports: RangeInclusive<u16>,
    /// The cgroup below which all pods are, if it need not be found.
    pub kubepods_cgroup: Option<PathBuf>,
    /// The kubelet's root directory.
    pub kubelet_root: PathBuf,
    /// Directory of the admin socket.
    pub run_dir: PathBuf,
    /// File for grants and refusals, if there is to be one.
    pub audit_log: Option<PathBuf>,
    /// Size of that file at most.
    pub audit_log_max_bytes: u64,
    /// Address of EKS Auth, if not the region's.
    pub endpoint: Option<String>,
    /// Longest time before credentials are renewed; zero keeps none.
    pub max_retention: Duration,
    /// Pods whose credentials are kept at most; zero keeps none.
    pub max_cache_size: usize,
    /// Renewals and prefetches per second at most.
    pub max_service_qps: NonZeroU32,
    /// Calls to EKS Auth under way at once.
    pub max_upstream_concurrency: NonZeroU32,
    /// What one pod may take of the serving thread, in percent.
    pub max_share_per_pod: NonZeroU8,
    /// Whether the node's credentials file is read again and again.
    pub rotate_credentials: bool,
    /// Whether credentials are fetched before a pod asks.
    pub prefetch: bool,
    /// Whether pods in the node's own namespace are served.
    pub host_network_pods: HostNetworkPods,
    /// What becomes of system calls that a thread has no use for.
    pub seccomp: Seccomp,
    /// How to log.
    pub log: LogConfig,
    /// What the operator should know about this configuration, to be logged as warnings.
    pub notices: Vec<String>,
}

/// Which target addresses are steered; at least one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steer {
    /// 169.254.170.23.
    pub v4: bool,
    /// `fd00:ec2::23`.
    pub v6: bool,
}

/// What has to be changed about the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misconfigured {
    /// A name that EKS would not allow.
    #[error(
        "--cluster-name '{0}' is no EKS cluster name: use 1 to 100 letters, digits, - and _, the first a letter or digit"
    )]
    ClusterName(String),
    /// Another address than the two.
    #[error("--bind-hosts '{0}' cannot be steered: use 169.254.170.23, [fd00:ec2::23] or both")]
    BindHost(String),
    /// Not an address.
    #[error("--metrics-address '{0}' is no IP address: use one, for example 127.0.0.1")]
    MetricsAddress(String),
    /// Not a range.
    #[error("--listener-ports '{0}' is no range of ports: use FIRST-LAST, for example 706-737")]
    ListenerPorts(String),
    /// A range that others use.
    #[error(
        "--listener-ports {0} must end below 30000: NodePorts are 30000-32767 and the kernel gives 32768-60999 to \
         outgoing connections, so that an application could find its port taken at random"
    )]
    PortsOfOthers(String),
    /// A relative path.
    #[error("{flag} '{}' is relative: use an absolute path", path.display())]
    Relative {
        /// The flag.
        flag: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// Renewals would never end.
    #[error("--max-credential-retention-before-renewal {}s would ask EKS Auth all the time: use 0 (keep none) or 1m at least", .0.as_secs_f64())]
    Retention(Duration),
    /// Not a URL.
    #[error("--endpoint '{0}' is no address of EKS Auth: use https://HOST[:PORT]")]
    Endpoint(String),
}

impl ServerConfig {
    pub(super) fn new(args: ServerArgs, verbosity: Verbosity) -> Result<Self, Misconfigured> {
        let mut notices = Vec::new();
        if let Some(left_over) = args.left_over.iter().find(|argument| *argument != "true") {
            notices.push(format!(
                "the argument '{left_over}' belongs to no flag and is ignored; a switch is turned off by --flag=false"
            ));
        }
        Ok(Self {
            cluster_name: given(args.place.cluster_name.as_deref()).map(cluster_name).transpose()?,
            target_port: args.port,
            steer: steer(&args.bind_hosts)?,
            probe_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, args.probe_port)),
            metrics_addr: metrics_addr(given(args.metrics_address.as_deref()), args.metrics_port)?,
            listener_ports: listener_ports(&args.place.listener_ports)?,
            kubepods_cgroup: args.place.kubepods_cgroup.map(|path| absolute("--kubepods-cgroup", path)).transpose()?,
            kubelet_root: absolute("--kubelet-root", args.kubelet_root)?,
            run_dir: absolute("--run-dir", args.run_dir)?,
            audit_log: args.audit_log.map(|path| absolute("--audit-log", path)).transpose()?,
            audit_log_max_bytes: u64::from(args.audit_log_max_mib.get()) * 1024 * 1024,
            endpoint: given(args.place.endpoint.as_deref()).map(|url| endpoint(url, &mut notices)).transpose()?,
            max_retention: retention(args.max_credential_retention_before_renewal)?,
            max_cache_size: args.max_cache_size,
            max_service_qps: NonZeroU32::new(args.max_service_qps).unwrap_or(DEFAULT_QPS),
            max_upstream_concurrency: args.max_upstream_concurrency,
            max_share_per_pod: args.max_share_per_pod,
            rotate_credentials: args.rotate_credentials,
            prefetch: args.prefetch,
            host_network_pods: args.host_network_pods,
            seccomp: args.seccomp,
            log: LogConfig { format: args.log_format, verbosity },
            notices,
        })
    }

    /// How this configuration lets threads be confined.
    #[must_use]
    pub fn confinement(&self) -> Confinement {
        let mut bound = [Some(self.probe_addr), self.metrics_addr].into_iter().flatten();
        Confinement { seccomp: self.seccomp, main_binds_low_ports: bound.any(|address| address.port() < 1024) }
    }
}

/// An empty value is none: charts set variables to nothing where a value is left out.
fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn cluster_name(name: &str) -> Result<String, Misconfigured> {
    if is_cluster_name(name) { Ok(name.to_owned()) } else { Err(Misconfigured::ClusterName(name.to_owned())) }
}

/// Whether EKS allows a cluster of this name.
#[must_use]
pub fn is_cluster_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    starts && name.len() <= 100 && name.bytes().all(allowed)
}

fn steer(hosts: &[String]) -> Result<Steer, Misconfigured> {
    if hosts.is_empty() {
        return Ok(Steer { v4: true, v6: true });
    }
    let mut steer = Steer { v4: false, v6: false };
    for host in hosts {
        match address(host) {
            Some(IpAddr::V4(TARGET_V4)) => steer.v4 = true,
            Some(IpAddr::V6(TARGET_V6)) => steer.v6 = true,
            _ => return Err(Misconfigured::BindHost(host.clone())),
        }
    }
    Ok(steer)
}

/// An address with or without brackets; a v4-mapped one is the IPv4 address that it stands for.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().map(|address: IpAddr| address.to_canonical())
}

fn metrics_addr(text: Option<&str>, port: Option<u16>) -> Result<Option<SocketAddr>, Misconfigured> {
    let ip = match text {
        None if port.is_none() => return Ok(None),
        None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(text) => address(text).ok_or_else(|| Misconfigured::MetricsAddress(text.to_owned()))?,
    };
    Ok(Some(SocketAddr::from((ip, port.unwrap_or(2705)))))
}

fn retention(longest: Duration) -> Result<Duration, Misconfigured> {
    if longest.is_zero() || longest >= SHORTEST_RETENTION {
        Ok(longest)
    } else {
        Err(Misconfigured::Retention(longest))
    }
}

pub(super) fn listener_ports(text: &str) -> Result<RangeInclusive<u16>, Misconfigured> {
    let range = text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    match range {
        Some(range) if *range.end() >= FIRST_PORT_OF_OTHERS => Err(Misconfigured::PortsOfOthers(text.to_owned())),
        Some(range) if *range.start() > 0 && !range.is_empty() => Ok(range),
        _ => Err(Misconfigured::ListenerPorts(text.to_owned())),
    }
}

fn absolute(flag: &'static str, path: PathBuf) -> Result<PathBuf, Misconfigured> {
    if Path::is_absolute(&path) { Ok(path) } else { Err(Misconfigured::Relative { flag, path }) }
}

/// Service account tokens go there, so a way that others can read is pointed out. It is allowed: tests and private
/// links use it.
fn endpoint(url: &str, notices: &mut Vec<String>) -> Result<String, Misconfigured> {
    let parsed: Option<Uri> = url.parse().ok();
    let (scheme, host) = match parsed.as_ref().map(|uri| (uri.scheme_str(), uri.host())) {
        Some((Some(scheme @ ("http" | "https")), Some(host))) if !host.is_empty() => (scheme, host),
        _ => return Err(Misconfigured::Endpoint(url.to_owned())),
    };
    let loopback = host == "localhost" || address(host).is_some_and(|ip| ip.is_loopback());
    if scheme == "http" && !loopback {
        notices.push(format!(
            "--endpoint {url} is not https: service account tokens and credentials cross the network in the clear"
        ));
    }
    Ok(url.to_owned())
}
