//! The agent as its `DaemonSet` runs it: in the node's namespace, in a container's cgroup of a pod of its own, with
//! mounts of its own, read-only, into which those of the node propagate, and with the capabilities that it needs.
use std::{
    collections::HashMap,
    fs,
    io::{BufReader, Write as _},
    marker::PhantomData,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::{
    ptrace,
    wait::{WaitPidFlag, waitpid},
};
use rustix::process::Signal;

use crate::{
    cgroup::{Cgroup, Qos},
    eks_auth::{CLUSTER, EksAuth, REGION},
    http1,
    memory::Image,
    node::Ground,
    process::{Process, binary, eventually},
    token::{random_hex, random_uid},
};

/// From its start to its readiness: milliseconds, but the programs are verified meanwhile on a machine that may be busy.
const BECOMES_READY: Duration = Duration::from_secs(20);

/// For an answer of its admin socket.
const ANSWERS: Duration = Duration::from_secs(5);

/// What its container is given, and nothing else: `capabilities: {drop: [ALL], add: […]}` of deploy/README.md. The
/// runtime sets no `no_new_privs` where `SYS_ADMIN` is added; the agent does it itself.
pub const CAPABILITIES: &str = "SYS_ADMIN,DAC_READ_SEARCH,SYS_PTRACE,NET_BIND_SERVICE";

/// Changes to how the agent is started.
#[derive(Clone, Debug, Default)]
pub struct AgentSpec {
    /// Flags after the usual ones; the last of two counts.
    pub flags: Vec<String>,
    /// Variables; an empty value removes one of the usual ones.
    pub env: Vec<(String, String)>,
    /// Run it outside of every pod, as `systemd` would.
    pub outside_of_pods: bool,
    /// Run it as a privileged container: with every capability, and a file system that can be written to.
    pub privileged: bool,
    /// A directory that it may write to besides its own, as a volume that is not read-only.
    pub writable: Option<PathBuf>,
    /// Give it these capabilities instead of [`CAPABILITIES`].
    pub capabilities: Option<String>,
    /// Run it under this command, which takes the agent's command line as its last arguments.
    pub under: Vec<String>,
}

impl AgentSpec {
    /// With these flags.
    #[must_use]
    pub fn flags(flags: &[&str]) -> Self {
        Self { flags: flags.iter().map(|&flag| flag.to_owned()).collect(), ..Self::default() }
    }
}

/// A thread of the agent that stands still until this is dropped, by the thread that stopped it.
#[derive(Debug)]
pub struct StoppedThread {
    thread: nix::unistd::Pid,
    _of_one_thread: PhantomData<*const ()>,
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.thread, None);
    }
}

/// These variables of AWS's, and none of the developer's own.
fn set_aws(command: &mut Command, variables: &[(String, String)]) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.envs(variables.iter().map(|(name, value)| (name, value)));
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    run_dir: PathBuf,
    log: PathBuf,
    cgroup: Cgroup,
    /// What it finds of AWS in its environment.
    variables: Vec<(String, String)>,
    ground: Arc<Ground>,
}

impl Agent {
    pub(crate) fn start(ground: Arc<Ground>, eks_auth: &EksAuth, spec: &AgentSpec) -> Result<Self> {
        let run_dir = ground.dir.0.join(format!("agent-{}", random_hex(3)));
        fs::create_dir(&run_dir)?;
        let log = run_dir.join("log");
        let cgroup = if spec.outside_of_pods {
            let above = ground.kubepods.cgroup();
            let top = above.dir().parent().context("kubepods has a parent")?;
            Cgroup::create(top.join(format!("agent-{}.service", random_hex(3))))?
        } else {
            let pod = ground.kubepods.pod(Qos::Burstable, &random_uid());
            pod.child(&ground.kubepods.container_name(&random_hex(32)))?
        };
        let mut command = Command::new(binary("pod-exec")?);
        command.arg("--from").arg(ground.netns.path()).arg("--cgroup").arg(cgroup.dir());
        command.arg("--own-mounts");
        if !spec.privileged {
            let capabilities = spec.capabilities.as_deref().unwrap_or(CAPABILITIES);
            for directory in [Some(&run_dir), spec.writable.as_ref()].into_iter().flatten() {
                command.arg("--writable").arg(directory);
            }
            command.args(["--capabilities", capabilities]);
        }
        command.arg("--").args(&spec.under).arg(binary("pod-identity-agent")?);
        command.args(["server", "--cluster-name", CLUSTER, "--endpoint", &eks_auth.url()]);
        command.arg("--kubelet-root").arg(ground.kubelet.path()).arg("--run-dir").arg(&run_dir);
        // Most tests are about what a pod's own request leads to; those about prefetch turn it on.
        command.args(["--log-format", "json", "--prefetch=false"]).args(&spec.flags);
        let key = eks_auth.node_key();
        let variables =
            [("AWS_REGION", REGION), ("AWS_ACCESS_KEY_ID", &key.id), ("AWS_SECRET_ACCESS_KEY", &key.secret)];
        let variables: Vec<_> = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        set_aws(&mut command, &variables);
        for (name, value) in &spec.env {
            if value.is_empty() {
                command.env_remove(name)
            } else {
                command.env(name, value)
            };
        }
        let process = Process::start("the agent", &mut command, &log)?;
        Ok(Self { process, run_dir, log, cgroup, variables, ground })
    }

    /// Waits until it says that it is ready.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let waited = eventually("the agent to be ready", BECOMES_READY, || {
            if let Some(status) = self.process.ended()? {
                bail!("it ended with {status}");
            }
            Ok(self.admin("/readyz").is_ok_and(|response| response.status == 200).then_some(()))
        });
        waited.with_context(|| format!("the agent's log:\n{}", self.log_text()))
    }

    /// A command of the agent's binary in a container like the agent's, which has these capabilities, as `kubectl exec`
    /// starts one; `before` is a command line that it is appended to. Works when the agent has ended, too.
    pub fn beside(&self, before: &[&str], capabilities: &str, args: &[&str]) -> Result<Command> {
        let pod_exec = binary("pod-exec")?;
        let mut command = match before.split_first() {
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(pod_exec);
                command
            }
            None => Command::new(pod_exec),
        };
        command.arg("--from").arg(self.ground.netns.path()).arg("--cgroup").arg(self.cgroup.dir());
        command.args(["--own-mounts", "--capabilities", capabilities, "--"]).arg(binary("pod-identity-agent")?);
        command.args(args).arg("--run-dir").arg(&self.run_dir);
        set_aws(&mut command, &self.variables);
        Ok(command)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The cgroup that it runs in.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Directory of its admin socket.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Asks its admin socket.
    pub fn admin(&self, path: &str) -> Result<http1::Response> {
        ask_admin(&self.run_dir, path)
    }

    /// Asks an address in the node's namespace, as the kubelet and Prometheus do.
    pub fn http_on_node(&self, address: &str, path: &str) -> Result<http1::Response> {
        let mut stream = self.ground.netns.within(|| std::net::TcpStream::connect(address))??;
        stream.set_read_timeout(Some(ANSWERS))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
        http1::read_response(&mut BufReader::new(stream), false)
    }

    /// All its metrics now, by name and labels as they are in the text.
    pub fn metrics(&self) -> Result<HashMap<String, f64>> {
        let text = self.admin("/metrics")?.text();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Ok(samples
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect())
    }

    /// One metric's value now, as `pod_identity_refusals_total{reason="no_token"}`; a sample that is not there fails.
    pub fn metric(&self, name: &str) -> Result<f64> {
        self.metrics()?.get(name).copied().with_context(|| format!("the agent has no metric {name}"))
    }

    /// Refusals for this reason so far.
    pub fn refusals(&self, reason: &str) -> Result<f64> {
        self.metric(&format!("pod_identity_refusals_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until a metric has at least this value.
    pub fn wait_for_metric(&self, name: &str, at_least: f64, timeout: Duration) -> Result<()> {
        eventually(&format!("{name} to reach {at_least}"), timeout, || {
            Ok((self.metric(name)? >= at_least).then_some(()))
        })
    }

    /// All that it has logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line of its log that contains all of these, and returns it.
    pub fn wait_for_log(&self, parts: &[&str], timeout: Duration) -> Result<String> {
        let found = eventually(&format!("{parts:?} in the agent's log"), timeout, || {
            let log = self.log_text();
            Ok(log.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned))
        });
        found.with_context(|| format!("the agent's log:\n{}", self.log_text()))
    }

    /// Tells it to stop, waits for that, and says how it ended.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.tell_to_stop()?;
        self.process.wait(timeout)
    }

    /// Tells it to stop.
    pub fn tell_to_stop(&self) -> Result<()> {
        self.process.signal(Signal::TERM)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Stops it in its tracks, as a process that is starved of everything. When this returns all of its threads stand.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::STOP)?;
        let tasks = format!("/proc/{}/task", self.pid());
        eventually("the agent to stand still", ANSWERS, || {
            let stat = |entry: std::io::Result<fs::DirEntry>| fs::read_to_string(entry?.path().join("stat"));
            // What follows the name, which is in parentheses, is the state.
            let stands = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
            let all = fs::read_dir(&tasks)?.map(|entry| stat(entry).map(stands)).collect::<Result<Vec<_>, _>>()?;
            Ok(all.into_iter().all(|stands| stands).then_some(()))
        })
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// Stops its main thread, which learns of everything, and lets the one that serves go on.
    pub fn stop_main_thread(&self) -> Result<StoppedThread> {
        let thread = nix::unistd::Pid::from_raw(self.pid().try_into()?);
        ptrace::seize(thread, ptrace::Options::empty()).context("cannot trace the agent")?;
        let stopped = StoppedThread { thread, _of_one_thread: PhantomData };
        ptrace::interrupt(thread)?;
        waitpid(thread, Some(WaitPidFlag::__WALL))?;
        Ok(stopped)
    }

    /// All that it has in memory now. It stands still meanwhile.
    pub fn image(&self) -> Result<Image> {
        self.freeze()?;
        let image = Image::take(self.pid());
        self.thaw()?;
        image
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.ended()
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(ANSWERS).map(|_| ())
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.wait(timeout)
    }
}

/// Asks the admin socket of the agent that has this directory.
pub(crate) fn ask_admin(run_dir: &Path, path: &str) -> Result<http1::Response> {
    let mut stream = UnixStream::connect(run_dir.join("admin.sock")).context("no admin socket")?;
    stream.set_read_timeout(Some(ANSWERS))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
    http1::read_response(&mut BufReader::new(stream), false)
}
