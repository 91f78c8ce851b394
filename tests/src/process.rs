//! Processes that end with their owner, commands that end in time, and waiting that ends too.
use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal},
};

/// For commands that do one thing on this machine.
pub const QUICK: Duration = Duration::from_secs(20);

/// Between two looks at whether something has happened.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A process that runs beside the test, and is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
}

impl Process {
    /// Starts it with its output going to `log`.
    pub fn start(what: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {what}: {command:?}"))?;
        Ok(Self { child, what: what.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no such pid")?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.what))
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.what);
        eventually(&what, timeout, || Ok(self.child.try_wait()?))
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end, or kills it and fails.
pub fn run(command: &mut Command, timeout: Duration) -> Result<Output> {
    run_with_input(command, &[], timeout)
}

/// Runs a command with this on its standard input to its end, or kills it and fails.
pub fn run_with_input(command: &mut Command, input: &[u8], timeout: Duration) -> Result<Output> {
    let deadline = Instant::now() + timeout;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not want its input may close it.
        let _ = stdin.write_all(input);
    }
    let status = if ends_by(&child, deadline)? {
        Some(child.wait()?)
    } else {
        let _ = child.kill();
        let _ = child.wait();
        None
    };
    // A grandchild may hold the pipes open: what has come by then is what there is.
    let text = |output: mpsc::Receiver<Vec<u8>>| output.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    match status {
        Some(status) => Ok(Output { status, stdout, stderr }),
        None => bail!(
            "{command:?} did not end within {timeout:?}\n{}{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        ),
    }
}

/// Waits for a child's end, asleep: hundreds may run at once, and must have the machine for themselves.
fn ends_by(child: &Child, deadline: Instant) -> Result<bool> {
    let pid = Pid::from_child(child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ended => return Ok(ended? > 0),
        }
    }
}

/// Runs a command that must succeed, and returns what it printed.
pub fn must(command: &mut Command) -> Result<String> {
    must_with_input(command, &[])
}

/// Runs a command that must succeed with this on its standard input, and returns what it printed.
pub fn must_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let output = run_with_input(command, input, QUICK)?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

/// Asks again and again until there is an answer. Fails when an attempt fails, and when the time is up.
pub fn eventually<T>(what: &str, timeout: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(answer) = ask().with_context(|| format!("while waiting for {what}"))? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            return Err(anyhow!("waited {timeout:?} for {what}"));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Processor time that this process has used, in user and kernel mode.
#[must_use]
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Where a binary of this workspace is: beside the test binary, or where `POD_IDENTITY_AGENT_BIN` says for the agent.
pub fn binary(name: &str) -> Result<PathBuf> {
    if name == "pod-identity-agent"
        && let Some(path) = std::env::var_os("POD_IDENTITY_AGENT_BIN")
    {
        return Ok(path.into());
    }
    let current = std::env::current_exe()?;
    let dir = current.ancestors().skip(1).find(|dir| dir.file_name() != Some(OsStr::new("deps")));
    let path = dir.context("this test binary lies nowhere")?.join(name);
    let package = if name == "pod-identity-agent" { name } else { env!("CARGO_PKG_NAME") };
    ensure!(path.is_file(), "{} is not there: run `cargo build -p {package}` first", path.display());
    Ok(path)
}
