//! The agent itself in a container, from an image of its program alone, with what the chart's restricted mode gives it.
use std::fs;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    client::Client,
    containers::{AgentPod, Containerd},
};

use crate::common::{must_be_granted, must_be_refused, node};

/// `NET_BIND_SERVICE`, `SYS_PTRACE`, `SYS_ADMIN`, `DAC_READ_SEARCH` as bits of include/uapi/linux/capability.h.
const RESTRICTED: u64 = 1 << 10 | 1 << 19 | 1 << 21 | 1 << 2;

fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    let found = status.lines().find_map(|line| line.strip_prefix(name));
    Ok(found.with_context(|| format!("/proc shows no {name}"))?.trim())
}

#[test]
fn it_finds_the_pods_cgroups_by_itself_and_serves() -> Result<()> {
    let node = node()?;
    let runtime = Containerd::start(&node)?;
    let early = runtime.pod(&node, "early")?;
    let agent = AgentPod::start(&runtime, &node)?;
    agent.probe()?;

    // The chart's restricted mode, and not what this machine gives to root. What the agent has given up by itself is
    // still in the set that bounds it: to take from that needs a right that it does not have.
    let of_process = |file: &str| Ok::<_, anyhow::Error>(fs::read_to_string(format!("/proc/{}/{file}", agent.pid()?))?);
    let status = of_process("status")?;
    let bounding = field(&status, "CapBnd:")?;
    ensure!(u64::from_str_radix(bounding, 16)? == RESTRICTED, "the agent's container has capabilities {bounding}");
    let mounts = of_process("mountinfo")?;
    let root =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields.get(4) == Some(&"/"));
    let options = root.as_ref().and_then(|fields| fields.get(5)).context("no root")?;
    ensure!(options.split(',').any(|option| option == "ro"), "the root can be written to: {options}");

    let late = runtime.pod(&node, "late")?;
    let host = runtime.host_network_pod(&node, "host")?;
    for pod in [&early, &late, &host] {
        let key = must_be_granted(&pod.credentials()?).with_context(|| agent.log_text().unwrap_or_default())?;
        ensure!(pod.sdk_credentials()? == key);
        ensure!(node.eks_auth().calls_for(pod.kubelet_part().uid())? == 1);
    }
    must_be_refused(&late.ask(&Client::with_token(early.kubelet_part().token()))?, 403)?;
    early.remove()?;
    late.remove()?;
    host.remove()?;
    agent.remove()?;

    // The runtime's default filter lies below those that an agent sets for itself anywhere.
    let filters = |status: &str| Ok::<u32, anyhow::Error>(field(status, "Seccomp_filters:")?.parse()?);
    let plain = node.agent()?;
    let elsewhere = fs::read_to_string(format!("/proc/{}/status", plain.pid()))?;
    ensure!(filters(&status)? == filters(&elsewhere)? + 1, "the container has no filter of the runtime's");
    Ok(())
}
