//! What a pod's containers share: the network namespace, and the pause process that keeps it.
use std::{fmt::Write as _, fs, net::Ipv4Addr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Result, bail};

use super::container::Way;
use crate::{
    cgroup::Cgroup,
    netns::Netns,
    node::Ground,
    process::{Process, binary, eventually},
    token::random_hex,
};

/// For a process to be where it was sent.
const ARRIVES: Duration = Duration::from_secs(10);

/// A pod's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The node's.
    Host,
    /// A namespace of its own with a link to the node, `eth0`.
    Own {
        /// Whether the namespace has IPv6.
        ipv6: bool,
        /// Whether there is a way out.
        default_route: bool,
        /// Whether it belongs to a user namespace of the pod (`hostUsers: false`).
        user_namespace: bool,
    },
}

impl Default for Network {
    fn default() -> Self {
        Self::Own { ipv6: true, default_route: true, user_namespace: false }
    }
}

impl Network {
    /// Without IPv6.
    pub const NO_IPV6: Self = Self::Own { ipv6: false, default_route: true, user_namespace: false };
    /// Without a default route.
    pub const NO_ROUTE: Self = Self::Own { ipv6: true, default_route: false, user_namespace: false };
    /// In a user namespace of its own.
    pub const OWN_USERS: Self = Self::Own { ipv6: true, default_route: true, user_namespace: true };
}

/// A pod's sandbox.
#[derive(Debug)]
pub(super) struct Sandbox {
    pause: Process,
    cgroup: Cgroup,
    link: Option<Link>,
    userns: Option<PathBuf>,
}

/// A namespace and the link that leads there.
#[derive(Debug)]
struct Link {
    netns: Netns,
    subnet: u16,
}

impl Sandbox {
    pub(super) fn start(ground: &Ground, pod: &Cgroup, network: Network) -> Result<Self> {
        match network {
            Network::Host => Self::start_in(ground, pod, None),
            Network::Own { user_namespace: true, ipv6, default_route } => {
                Self::start_in_own_users(ground, pod, ipv6, default_route)
            }
            Network::Own { ipv6, default_route, .. } => {
                let subnet = ground.next_subnet();
                let netns = Netns::create(&ground.name(&format!("pod{subnet}")))?;
                let link = Link { netns, subnet };
                link.set_up(ground, ipv6, default_route)?;
                Self::start_in(ground, pod, Some(link))
            }
        }
    }

    fn start_in(ground: &Ground, pod: &Cgroup, link: Option<Link>) -> Result<Self> {
        let cgroup = pod.child(&ground.kubepods.container_name(&random_hex(32)))?;
        let netns = link.as_ref().map_or(&ground.netns, |link| &link.netns);
        let way = Way { from: ground.netns.path(), netns: netns.path(), userns: None };
        let pause = start_pause(ground, &mut way.enter(&cgroup)?, &cgroup)?;
        Ok(Self { pause, cgroup, link, userns: None })
    }

    /// The namespace comes from the pod's first process, because it has to belong to the pod's users.
    fn start_in_own_users(ground: &Ground, pod: &Cgroup, ipv6: bool, default_route: bool) -> Result<Self> {
        let cgroup = pod.child(&ground.kubepods.container_name(&random_hex(32)))?;
        let mut command = Command::new(binary("pod-exec")?);
        command.arg("--from").arg(ground.netns.path()).arg("--cgroup").arg(cgroup.dir());
        command.args(["--own-user-and-net", "--"]);
        let pause = start_pause(ground, &mut command, &cgroup)?;
        let subnet = ground.next_subnet();
        let netns = Netns::of_process(&ground.name(&format!("pod{subnet}")), pause.pid())?;
        netns.ip("link set lo up")?;
        let link = Link { netns, subnet };
        link.set_up(ground, ipv6, default_route)?;
        let userns = Some(format!("/proc/{}/ns/user", pause.pid()).into());
        Ok(Self { pause, cgroup, link: Some(link), userns })
    }

    pub(super) fn pause(&self) -> &Process {
        &self.pause
    }

    pub(super) fn netns(&self) -> Option<&Netns> {
        self.link.as_ref().map(|link| &link.netns)
    }

    /// How a process gets into it.
    pub(super) fn way(&self, ground: &Ground) -> Way {
        let netns = self.netns().unwrap_or(&ground.netns).path();
        Way { from: ground.netns.path(), netns, userns: self.userns.clone() }
    }

    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        self.link.as_ref().map(|link| link.address(2))
    }

    pub(super) fn node_interface(&self) -> Option<String> {
        self.link.as_ref().map(Link::node_interface)
    }

    /// Ends it: the process, its cgroup, the namespace.
    pub(super) fn remove(self) -> Result<()> {
        let Self { pause, cgroup, link, .. } = self;
        drop(pause);
        cgroup.kill()?;
        cgroup.remove()?;
        // The name goes; the namespace itself ends with the last socket in it.
        drop(link);
        Ok(())
    }
}

/// Starts the pause process, and waits until it sleeps where it should.
fn start_pause(ground: &Ground, command: &mut Command, cgroup: &Cgroup) -> Result<Process> {
    let log = ground.dir.0.join("pause.log");
    let mut pause = Process::start("a pause process", command.args(["sleep", "infinity"]), &log)?;
    eventually("a pause process to sleep", ARRIVES, || {
        if let Some(status) = pause.ended()? {
            bail!("it ended with {status}: {}", fs::read_to_string(&log).unwrap_or_default());
        }
        // It is what it should become only after it has joined everything.
        let name = fs::read_to_string(format!("/proc/{}/comm", pause.pid()))?;
        Ok((name.trim() == "sleep" && cgroup.processes()?.contains(&pause.pid())).then_some(()))
    })?;
    Ok(pause)
}

impl Link {
    fn node_interface(&self) -> String {
        format!("veth{}", self.subnet)
    }

    /// An address of its subnet: those of the first 255 pods are 10.88.N.0/24, then 10.89 begins.
    fn address(&self, host: u8) -> Ipv4Addr {
        let [above, below] = self.subnet.to_be_bytes();
        Ipv4Addr::new(10, 88 + above, below, host)
    }

    /// What a CNI plugin does: a veth pair, addresses, routes.
    fn set_up(&self, ground: &Ground, ipv6: bool, default_route: bool) -> Result<()> {
        let (n, veth, gateway, address) = (self.subnet, self.node_interface(), self.address(1), self.address(2));
        ground.netns.ip(&format!(
            "link add {veth} type veth peer name eth0 netns {}\nlink set {veth} up\n\
             addr add {gateway}/24 dev {veth}\naddr add fd88:{n}::1/64 dev {veth} nodad",
            self.netns.name()
        ))?;
        if !ipv6 {
            self.netns.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        }
        let mut commands = format!("link set eth0 up\naddr add {address}/24 dev eth0\n");
        if default_route {
            writeln!(commands, "route add default via {gateway}")?;
        }
        if ipv6 {
            writeln!(commands, "addr add fd88:{n}::2/64 dev eth0 nodad")?;
            if default_route {
                writeln!(commands, "route add default via fd88:{n}::1")?;
            }
        }
        self.netns.ip(&commands)
    }
}
