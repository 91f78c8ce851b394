//! The flags as clap reads them, and the texts of `--help`.
use std::ffi::OsString;
use std::num::{NonZeroU8, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Parser, Subcommand, ValueEnum};

use super::values;
use crate::{
    commands::Form,
    confinement::Seccomp,
    share,
    telemetry::{LogFormat, Verbosity},
};

/// Gives the pods of this node their IAM credentials, as EKS Pod Identity does.
#[derive(Debug, Parser)]
#[command(name = "pod-identity-agent", version, args_override_self = true, max_term_width = 120)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: CommandArgs,

    /// From which level on to log: panic, fatal, error, warn, info, debug, trace
    #[arg(
        short,
        long,
        global = true,
        value_name = "LEVEL",
        env = "POD_IDENTITY_AGENT_VERBOSITY",
        default_value = "info"
    )]
    pub(super) verbosity: Verbosity,
}

#[derive(Debug, Subcommand)]
pub(super) enum CommandArgs {
    /// Serve credentials to the pods of this node
    Server(Box<ServerArgs>),
    /// Do nothing and succeed: there is no link-local interface to make
    Initialize(Ignored),
    /// Print the version
    Version,
    /// Ask the agent in this container whether it lives or is ready
    Probe(ProbeArgs),
    /// Show the node's pods and their credentials
    Status(StatusArgs),
    /// Tell why a pod has no credentials, step by step, and what to do; exit 1 if something is wrong
    Explain(ExplainArgs),
    /// Test whether this node lets the agent work, with or without a running agent; exit 1 if it does not
    Doctor(DoctorArgs),
    /// Show what was granted and refused, as lines of JSON
    Audit(AuditArgs),
    /// Have credentials fetched anew, after a role or an association was changed
    Flush(FlushArgs),
    /// Print what a shell needs to complete this command line
    Completions(CompletionsArgs),
}

/// What AWS's agent would take.
#[derive(Debug, clap::Args)]
pub(super) struct Ignored {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _ignored: Vec<OsString>,
}

/// Whether pods in the node's own network namespace are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HostNetworkPods {
    /// They are, as every other pod.
    #[default]
    Serve,
    /// They are answered 403.
    Refuse,
}

#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub(super) struct ServerArgs {
    #[command(flatten)]
    pub(super) place: PlaceArgs,

    // The variables of ports do not end in _PORT: Kubernetes sets NAME_PORT=tcp://… for a Service called "name".
    /// Port of the addresses that pods aim at
    #[arg(short, long, value_name = "PORT", env = "POD_IDENTITY_AGENT_PORT_TARGET", default_value = "80", value_parser = values::port)]
    pub(super) port: u16,

    #[arg(
        help = "Which of the addresses that pods aim at to steer (repeatable): 169.254.170.23, [fd00:ec2::23]; both if not given",short, long, value_name = "ADDRESS", env = "POD_IDENTITY_AGENT_BIND_HOSTS", value_delimiter = ',', action = ArgAction::Append)]
    pub(super) bind_hosts: Vec<String>,

    /// Port on 127.0.0.1 for /healthz and /readyz
    #[arg(long, value_name = "PORT", env = "POD_IDENTITY_AGENT_PORT_PROBE", default_value = "2703", value_parser = values::port)]
    pub(super) probe_port: u16,

    /// Address for /metrics: served only if this or --metrics-port is given [default: 0.0.0.0]
    #[arg(long, value_name = "ADDRESS", env = "POD_IDENTITY_AGENT_METRICS_ADDRESS")]
    pub(super) metrics_address: Option<String>,

    /// Port for /metrics: served only if this or --metrics-address is given [default: 2705]
    #[arg(long, value_name = "PORT", env = "POD_IDENTITY_AGENT_PORT_METRICS", value_parser = values::port)]
    pub(super) metrics_port: Option<u16>,

    /// Longest time to keep credentials before they are renewed, as 3h or 1h30m; 0 keeps none
    #[arg(long, value_name = "DURATION", env = "POD_IDENTITY_AGENT_MAX_CREDENTIAL_RETENTION_BEFORE_RENEWAL", default_value = "3h", value_parser = values::duration)]
    pub(super) max_credential_retention_before_renewal: Duration,

    /// Pods whose credentials are kept at most; 0 keeps none
    #[arg(long, value_name = "N", env = "POD_IDENTITY_AGENT_MAX_CACHE_SIZE", default_value = "2000", value_parser = values::count::<usize>)]
    pub(super) max_cache_size: usize,

    /// Renewals and prefetches per second at most; 0 means 3
    #[arg(long, value_name = "N", env = "POD_IDENTITY_AGENT_MAX_SERVICE_QPS", default_value = "3", value_parser = values::count::<u32>)]
    pub(super) max_service_qps: u32,

    /// Calls to EKS Auth under way at once
    #[arg(long, value_name = "N", env = "POD_IDENTITY_AGENT_MAX_UPSTREAM_CONCURRENCY", default_value = "64", value_parser = values::count::<NonZeroU32>)]
    pub(super) max_upstream_concurrency: NonZeroU32,

    /// Percent of the serving thread's time that one pod may take; what it asks for beyond is served later, 100 is no limit
    #[arg(long, value_name = "PERCENT", env = "POD_IDENTITY_AGENT_MAX_SHARE_PER_POD", default_value_t = share::DEFAULT_PERCENT, value_parser = values::percent)]
    pub(super) max_share_per_pod: NonZeroU8,

    /// Read the node's credentials file again and again (hybrid nodes)
    #[arg(long, value_name = "BOOL", env = "POD_IDENTITY_AGENT_ROTATE_CREDENTIALS", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", value_parser = values::boolean, action = ArgAction::Set)]
    pub(super) rotate_credentials: bool,

    /// The kubelet's root directory
    #[arg(long, value_name = "DIR", env = "POD_IDENTITY_AGENT_KUBELET_ROOT", default_value = "/var/lib/kubelet")]
    pub(super) kubelet_root: PathBuf,

    /// Directory for the admin socket
    #[arg(long, value_name = "DIR", env = "POD_IDENTITY_AGENT_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    pub(super) run_dir: PathBuf,

    /// File to which grants and refusals are appended, as lines of JSON; when it is full it becomes FILE.1
    #[arg(long, value_name = "FILE", env = "POD_IDENTITY_AGENT_AUDIT_LOG")]
    pub(super) audit_log: Option<PathBuf>,

    /// Size of that file at most
    #[arg(long, value_name = "MIB", env = "POD_IDENTITY_AGENT_AUDIT_LOG_MAX_MIB", default_value = "16", value_parser = values::count::<NonZeroU32>)]
    pub(super) audit_log_max_mib: NonZeroU32,

    /// Whether pods in the node's own network namespace are served
    #[arg(long, value_enum, value_name = "WHETHER", env = "POD_IDENTITY_AGENT_HOST_NETWORK_PODS", default_value_t)]
    pub(super) host_network_pods: HostNetworkPods,

    /// Fetch credentials as soon as a pod's token is there, before the pod asks
    #[arg(long, value_name = "BOOL", env = "POD_IDENTITY_AGENT_PREFETCH", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", value_parser = values::boolean, action = ArgAction::Set)]
    pub(super) prefetch: bool,

    /// What becomes of system calls that a thread has no use for: they fail, are logged by the kernel, or nothing
    #[arg(long, value_enum, value_name = "WHAT", env = "POD_IDENTITY_AGENT_SECCOMP", default_value_t)]
    pub(super) seccomp: Seccomp,

    /// What a log line looks like
    #[arg(long, value_enum, value_name = "FORMAT", env = "POD_IDENTITY_AGENT_LOG_FORMAT", default_value_t)]
    pub(super) log_format: LogFormat,

    /// Charts render a flag and its value as two arguments, and `true` after a switch is left over
    #[arg(hide = true)]
    pub(super) left_over: Vec<String>,
}

/// Where the agent is: for the agent, and for whoever examines that place.
#[derive(Debug, clap::Args)]
pub(super) struct PlaceArgs {
    /// Name of the EKS cluster that this node belongs to; EKS nodes know it themselves
    #[arg(short, long, value_name = "NAME", env = "POD_IDENTITY_AGENT_CLUSTER_NAME")]
    pub(super) cluster_name: Option<String>,

    /// Address of EKS Auth, instead of the region's
    #[arg(long, value_name = "URL", env = "POD_IDENTITY_AGENT_ENDPOINT")]
    pub(super) endpoint: Option<String>,

    /// Ports of which the first free one is listened on in each pod's namespace
    #[arg(long, value_name = "FIRST-LAST", env = "POD_IDENTITY_AGENT_LISTENER_PORTS", default_value = "706-737")]
    pub(super) listener_ports: String,

    /// The cgroup below which all pods are; found by itself if not given
    #[arg(long, value_name = "PATH", env = "POD_IDENTITY_AGENT_KUBEPODS_CGROUP")]
    pub(super) kubepods_cgroup: Option<PathBuf>,
}

const DEFAULT_RUN_DIR: &str = "/run/pod-identity-agent";

#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(group(ArgGroup::new("question").required(true).args(["live", "ready"])))]
pub(super) struct ProbeArgs {
    /// Does it live?
    #[arg(long)]
    pub(super) live: bool,

    /// May it serve?
    #[arg(long)]
    pub(super) ready: bool,

    /// Directory of the admin socket
    #[arg(long, value_name = "DIR", env = "POD_IDENTITY_AGENT_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    pub(super) run_dir: PathBuf,
}

/// Whom to ask, and how to show the answer.
#[derive(Debug, clap::Args)]
pub(super) struct AnswerArgs {
    /// How to print the answer
    #[arg(short, long, value_enum, value_name = "FORM", default_value_t)]
    pub(super) output: Form,

    /// Directory of the admin socket
    #[arg(long, value_name = "DIR", env = "POD_IDENTITY_AGENT_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    pub(super) run_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Show it again and again, every 2 s or as often as this says
    #[arg(short, long, value_name = "PAUSE", num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_parser = values::pause)]
    pub(super) watch: Option<Duration>,

    #[command(flatten)]
    pub(super) answer: AnswerArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// The pod: its UID, NAMESPACE/NAME, NAME, or the id of one of its processes as the node numbers them
    pub(super) pod: String,

    #[command(flatten)]
    pub(super) answer: AnswerArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct AuditArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub(super) follow: bool,

    /// Directory of the admin socket
    #[arg(long, value_name = "DIR", env = "POD_IDENTITY_AGENT_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    pub(super) run_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Which shell's
    pub(super) shell: clap_complete::Shell,
}

// What is not given is asked of the running agent; so its root directory has no default here.
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    pub(super) place: PlaceArgs,

    /// The kubelet's root directory
    #[arg(long, value_name = "DIR", env = "POD_IDENTITY_AGENT_KUBELET_ROOT")]
    pub(super) kubelet_root: Option<PathBuf>,

    #[command(flatten)]
    pub(super) answer: AnswerArgs,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(group(ArgGroup::new("selection").required(true).args(["pod", "service_account", "all"])))]
pub(super) struct FlushArgs {
    /// The pod with this UID or NAMESPACE/NAME
    #[arg(long, value_name = "POD")]
    pub(super) pod: Option<String>,

    /// All pods of this service account, NAMESPACE/NAME
    #[arg(long, value_name = "ACCOUNT")]
    pub(super) service_account: Option<String>,

    /// All pods of this node
    #[arg(long)]
    pub(super) all: bool,

    #[command(flatten)]
    pub(super) answer: AnswerArgs,
}
