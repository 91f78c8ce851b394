//! What the running agent may do, as /proc shows it, against the tables of SECURITY.md and deploy/README.md; and that what
//! it may not do, it need not.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec, CAPABILITIES},
    eks_auth::{EksAuthSpec, TLS_NAME},
    node::{Node, NodeSpec},
    process::{Process, eventually, run},
};

use crate::common::{must_be_granted, served, served_with};

/// For the agent to end.
const ENDS: Duration = Duration::from_secs(10);

/// Bits of include/uapi/linux/capability.h.
const BITS: [(&str, u32); 4] =
    [("DAC_READ_SEARCH", 2), ("NET_BIND_SERVICE", 10), ("SYS_PTRACE", 19), ("SYS_ADMIN", 21)];

fn set_of(names: &[&str]) -> Result<u64> {
    names.iter().try_fold(0, |set, name| {
        let (_, bit) = BITS.iter().find(|(known, _)| known == name).with_context(|| format!("capability {name}"))?;
        Ok(set | 1 << bit)
    })
}

/// A file of the repository.
fn document(name: &str) -> Result<String> {
    Ok(fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name))?)
}

/// Capabilities of each thread, as SECURITY.md says them: rows of `` | `serve` | none | …``.
fn documented() -> Result<BTreeMap<String, u64>> {
    let text = document("SECURITY.md")?;
    let (_, privileges) = text.split_once("## Privileges").context("SECURITY.md has no Privileges")?;
    let mut threads = BTreeMap::new();
    for row in privileges.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (thread, capabilities) = (cells.get(1).context("no thread")?, cells.get(2).context("no capabilities")?);
        let names: Vec<&str> = capabilities.split('`').filter(|name| name.contains("CAP_")).collect();
        let names: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("CAP_")).collect();
        ensure!(!names.is_empty() || *capabilities == "none", "a row that cannot be read: {row}");
        let thread = thread.split('`').nth(1).context("a thread without a name")?;
        threads.insert(thread.to_owned(), set_of(&names)?);
    }
    Ok(threads)
}

/// What /proc says about one thread.
#[derive(Debug)]
struct Thread {
    name: String,
    status: BTreeMap<String, String>,
}

impl Thread {
    fn all_of(pid: u32) -> Result<Vec<Self>> {
        let mut threads = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            // A resolver's thread may end meanwhile.
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            let fields = status.lines().filter_map(|line| line.split_once(":\t"));
            let status: BTreeMap<_, _> = fields.map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect();
            let first = task.file_name().to_string_lossy() == pid.to_string();
            let name = if first { "main" } else { status.get("Name").context("a thread without a name")? };
            threads.push(Self { name: name.to_owned(), status });
        }
        Ok(threads)
    }

    fn says(&self, field: &str) -> &str {
        self.status.get(field).map_or("", String::as_str)
    }

    fn set(&self, field: &str) -> Result<u64> {
        Ok(u64::from_str_radix(self.says(field), 16)?)
    }
}

/// Every thread of the agent is as SECURITY.md says. `bounding` is the container's bounding set.
fn must_be_as_documented(agent: &Agent, bounding: u64) -> Result<BTreeSet<String>> {
    let documented = documented()?;
    let mut seen = BTreeSet::new();
    for thread in Thread::all_of(agent.pid())? {
        let name = thread.name.clone();
        let expected =
            *documented.get(&name).with_context(|| format!("SECURITY.md says nothing of the thread {name}"))?;
        for (field, set) in
            [("CapEff", expected), ("CapPrm", expected), ("CapInh", 0), ("CapAmb", 0), ("CapBnd", bounding)]
        {
            ensure!(thread.set(field)? == set, "{field} of {name} is {:#x}, not {set:#x}", thread.set(field)?);
        }
        ensure!(thread.says("NoNewPrivs") == "1" && thread.says("Seccomp") == "2", "{thread:?}");
        println!("{name:8} CapEff {expected:#9x} Seccomp 2 ({} filters)", thread.says("Seccomp_filters"));
        seen.insert(name);
    }
    Ok(seen)
}

#[test]
fn threads_have_the_capabilities_that_are_documented_and_filters() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    let bounding = set_of(&CAPABILITIES.split(',').collect::<Vec<_>>())?;
    let seen = must_be_as_documented(&served.agent, bounding)?;
    let expected = ["cgroups", "log", "lookup", "main", "netns", "serve"].map(str::to_owned);
    ensure!(seen == expected.into(), "{seen:?}");
    Ok(())
}

#[test]
fn a_privileged_container_has_no_more_and_can_get_nothing_back() -> Result<()> {
    let served = served_with(&AgentSpec { privileged: true, ..AgentSpec::default() })?;
    served.pod.must_get_credentials()?;
    must_be_as_documented(&served.agent, 0).map(|_| ())
}

#[test]
fn the_chart_asks_for_what_the_tests_run_with() -> Result<()> {
    let readme = document("deploy/README.md")?;
    let add = format!("add: [{}]", CAPABILITIES.replace(',', ", "));
    ensure!(readme.contains(&add), "deploy/README.md does not say {add}");
    Ok(())
}

#[test]
fn each_capability_is_needed_and_its_lack_is_said() -> Result<()> {
    let node = Node::new()?;
    for missing in CAPABILITIES.split(',') {
        let others = CAPABILITIES.split(',').filter(|name| *name != missing).collect::<Vec<_>>().join(",");
        let spec = AgentSpec { capabilities: Some(others), ..AgentSpec::default() };
        let mut agent = node.start_agent(&spec)?;
        ensure!(!agent.wait(ENDS)?.success(), "it runs without {missing}");
        agent.wait_for_log(&[&format!("the agent needs CAP_{missing}")], ENDS)?;
    }
    Ok(())
}

/// Answers every question of a resolver with 127.0.0.1, at the address of the machine's name server.
fn name_server(node: &Node) -> Result<()> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server = text.lines().find_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
    let server: Ipv4Addr = server.unwrap_or(Ipv4Addr::LOCALHOST);
    if !server.is_loopback() {
        node.netns().ip(&format!("address add {server}/32 dev lo"))?;
    }
    let socket = node.netns().within(|| UdpSocket::bind((server, 53)))??;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let Some(answer) = question.get(..length).and_then(loopback) else { continue };
            // Whoever asked may have gone.
            let _ = socket.send_to(&answer, from);
        }
    });
    Ok(())
}

/// An answer with an address of IPv4, or with none of IPv6.
fn loopback(question: &[u8]) -> Option<Vec<u8>> {
    let mut name = 12;
    while *question.get(name)? != 0 {
        name += 1 + usize::from(*question.get(name)?);
    }
    let (kind, end) = (question.get(name + 1..name + 3)?, name + 5);
    let is_v4 = kind == [0, 1];
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]);
    answer.extend(question.get(12..end)?);
    if is_v4 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}

#[test]
fn names_are_resolved_by_a_thread_without_capabilities() -> Result<()> {
    let eks_auth = EksAuthSpec { tls: true, ..EksAuthSpec::default() };
    let node = Node::with(NodeSpec { eks_auth, ..NodeSpec::default() })?;
    name_server(&node)?;
    let mut spec = AgentSpec::flags(&["--endpoint", &node.eks_auth().url_of(TLS_NAME)?]);
    spec.env = vec![("AWS_CA_BUNDLE".to_owned(), node.eks_auth().authority()?.display().to_string())];
    let _agent = node.agent_with(&spec)?;
    let pod = node.pod("app")?;
    let answer = eventually("credentials over TLS", Duration::from_secs(20), || {
        Ok(Some(pod.credentials()?).filter(|answer| answer.status == Some(200)))
    })?;
    must_be_granted(&answer)
}

#[test]
fn the_file_system_is_read_only() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", served.agent.pid()))?;
    let mut writable = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (place, options) = (fields.get(4).context("no place")?, fields.get(5).context("no options")?);
        // What others mounted since it started appears in its namespace as in a container's: tests run side by side.
        if options.split(',').any(|option| option == "rw") && !Path::new(place).starts_with("/tmp") {
            writable.push(*place);
        }
    }
    writable.retain(|place| !place.starts_with("/run/netns/"));
    ensure!(writable.is_empty(), "{writable:?} can be written to");
    let own = served.agent.run_dir().to_string_lossy().into_owned();
    ensure!(mounts.lines().any(|line| line.split(' ').nth(4) == Some(&own)), "it has no place for its socket");
    Ok(())
}

#[test]
fn no_core_is_written_and_nobody_without_privilege_reads_its_memory() -> Result<()> {
    let mut served = served()?;
    let pid = served.agent.pid();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit of cores")?;
    ensure!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
    // Root without capabilities, as a process of another container may be.
    let read = |path: &str| {
        let look = ["--bounding-set=-all", "--inh-caps=-all", "--", "head", "-c", "1", path];
        run(Command::new("setpriv").args(look), ENDS)
    };
    // Threads without capabilities are no way in either: only that the process is not dumpable stands before them.
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        for file in ["environ", "maps", "mem", "fd/3", "root/etc/passwd"] {
            let path = task.as_ref().map(|task| task.path().join(file).display().to_string());
            let path = path.map_err(|error| anyhow::anyhow!("a thread is gone: {error}"))?;
            let output = read(&path)?;
            let denied = String::from_utf8_lossy(&output.stderr).contains("Permission denied");
            ensure!(denied && output.stdout.is_empty(), "{path} can be read: {output:?}");
        }
    }
    // The control: a process of the same user, with as few capabilities, that can be dumped.
    let mut sleep = Command::new("setpriv");
    sleep.args(["--bounding-set=-all", "--inh-caps=-all", "--", "sleep", "60"]);
    let sleep = Process::start("a process that sleeps", &mut sleep, &served.node.dir().join("sleeps.log"))?;
    eventually("its environment to be read", ENDS, || {
        let read = read(&format!("/proc/{}/environ", sleep.pid()))?;
        Ok((!read.stdout.is_empty()).then_some(()))
    })?;
    served.agent.signal(rustix::process::Signal::ABORT)?;
    let status = served.agent.wait(ENDS)?;
    let dumped = std::os::unix::process::ExitStatusExt::core_dumped(&status);
    ensure!(!status.success() && !dumped, "{status}");
    must_dump_otherwise(served.node.dir())
}

/// The control: on this machine another process's core is written.
fn must_dump_otherwise(directory: &Path) -> Result<()> {
    let mut command = Command::new("sh");
    command.current_dir(directory).args(["-c", "ulimit -c unlimited && exec sleep 60"]);
    let mut other = Process::start("a process that may dump", &mut command, &directory.join("dumps.log"))?;
    let is_sleep = || Ok((fs::read_to_string(format!("/proc/{}/comm", other.pid()))?.trim() == "sleep").then_some(()));
    eventually("it to run", ENDS, is_sleep)?;
    other.signal(rustix::process::Signal::ABORT)?;
    let status = other.wait(ENDS)?;
    ensure!(std::os::unix::process::ExitStatusExt::core_dumped(&status), "no core is ever written here: {status}");
    Ok(())
}
