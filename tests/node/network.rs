//! What breaks an agent on a link-local address must not touch this one.
//!
//! Each test has a control: the same request from the same namespace, made by a process that is not steered, to a
//! listener on the node's own 169.254.170.23. It works first, and fails when the network is broken.
use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    cgroup::Cgroup,
    client::Client,
    netns::Netns,
    node::Node,
    pod::{Network, Pod, PodSpec},
    process::binary,
};

use crate::common::{MAPPED, Served, V4, V6, must_be_granted, served};

/// A plain listener that answers everybody with its name.
struct Answering {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    fn start(netns: &Netns, address: &'static str, name: &'static str) -> Result<Self> {
        let listener =
            netns.within(|| TcpListener::bind(address))?.with_context(|| format!("cannot bind {address}"))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
                let _ = stream.read(&mut [0; 4096]);
                let answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}", name.len());
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An agent on a link-local address of the node, as AWS's is.
struct LinkLocal {
    unsteered: Cgroup,
    _listener: Answering,
}

impl LinkLocal {
    fn start(node: &Node) -> Result<Self> {
        node.netns().ip("addr add 169.254.170.23/32 dev lo")?;
        let listener = Answering::start(node.netns(), "169.254.170.23:80", "link-local")?;
        Ok(Self { unsteered: node.top_cgroup().child("unsteered.service")?, _listener: listener })
    }

    /// What a process in the pod's namespace gets there.
    fn answer(&self, pod: &Pod) -> Result<String> {
        let client = Client::new().connect_once().timeout_ms(700);
        let answers = pod.ask_from_cgroup(&self.unsteered, &client)?;
        let answer = answers.into_iter().next().context("the client printed nothing")?;
        Ok(answer.error.unwrap_or(answer.body))
    }

    fn must_work(&self, pod: &Pod) -> Result<()> {
        let answer = self.answer(pod)?;
        ensure!(answer == "link-local", "the control does not work before anything is broken: {answer}");
        Ok(())
    }

    fn must_be_broken(&self, pod: &Pod) -> Result<()> {
        let answer = self.answer(pod)?;
        ensure!(answer != "link-local", "the control still works: nothing was broken");
        Ok(())
    }
}

fn must_be_served(pod: &Pod) -> Result<()> {
    for to in [V4, V6, MAPPED] {
        must_be_granted(&pod.ask_once(&Client::with_token(pod.token()).to(to))?).context(to)?;
    }
    Ok(())
}

/// Breaks something between pod and node; the control must fail then, and the pod must be served all the same.
fn broken_by(break_it: impl FnOnce(&Served, &LinkLocal) -> Result<()>) -> Result<()> {
    let served = served()?;
    let control = LinkLocal::start(&served.node)?;
    control.must_work(&served.pod)?;
    must_be_served(&served.pod)?;
    break_it(&served, &control)?;
    control.must_be_broken(&served.pod)?;
    must_be_served(&served.pod)
}

const DROP_LINK_LOCAL: &str = "add table inet netpol\n\
     add chain inet netpol o { type filter hook output priority 0; }\n\
     add rule inet netpol o ip daddr 169.254.0.0/16 drop\n\
     add rule inet netpol o ip6 daddr fd00:ec2::/32 drop\n";

#[test]
fn dropped_link_local_addresses_do_not_matter() -> Result<()> {
    broken_by(|served, _| served.pod.netns()?.nft(DROP_LINK_LOCAL))
}

#[test]
fn a_network_policy_that_drops_everything_on_the_pods_interface_does_not_matter() -> Result<()> {
    broken_by(|served, _| {
        served.pod.netns()?.nft(
            "add table inet netpol\nadd chain inet netpol o { type filter hook output priority 0; }\n\
             add rule inet netpol o oif eth0 drop\n\
             add chain inet netpol i { type filter hook input priority 0; }\nadd rule inet netpol i iif eth0 drop\n",
        )?;
        served.node.netns().nft(&format!(
            "add table inet netpol\nadd chain inet netpol p {{ type filter hook prerouting priority -300; }}\n\
             add rule inet netpol p iifname {} drop\n",
            served.pod.node_interface()?
        ))
    })
}

#[test]
fn strict_reverse_path_filtering_does_not_matter() -> Result<()> {
    broken_by(|served, control| {
        // A second link, over which the node's way back to the pod leads: what several interfaces of an instance do.
        let pod = served.pod.netns()?;
        served.node.netns().ip(&format!(
            "link add back type veth peer name eth1 netns {}\nlink set back up\naddr add 10.99.0.1/24 dev back",
            pod.name()
        ))?;
        pod.ip("link set eth1 up\naddr add 10.99.0.2/24 dev eth1")?;
        served.node.netns().ip(&format!("route add {}/32 via 10.99.0.2", served.pod.address()?))?;
        control.must_work(&served.pod)?;
        for (netns, interface) in [(served.node.netns(), served.pod.node_interface()?), (pod, "eth0".to_owned())] {
            netns.sysctl("ipv4/conf/all/rp_filter", "1")?;
            netns.sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "1")?;
        }
        Ok(())
    })
}

#[test]
fn the_default_route_does_not_matter() -> Result<()> {
    broken_by(|served, _| served.pod.netns()?.ip("route del default"))?;
    // Nor does it for a pod that never had one.
    let served = served()?;
    let pod = served.node.pod_with(PodSpec::named("app").network(Network::NO_ROUTE))?;
    must_be_served(&pod)
}

#[test]
fn the_pods_link_does_not_matter() -> Result<()> {
    broken_by(|served, _| served.pod.netns()?.ip("link set eth0 down"))
}

#[test]
fn a_route_for_link_local_addresses_that_leads_nowhere_does_not_matter() -> Result<()> {
    broken_by(|served, _| {
        served.pod.netns()?.ip("route add blackhole 169.254.0.0/16\nroute add blackhole fd00:ec2::/32")
    })
}

#[test]
fn a_mesh_that_redirects_everything_does_not_matter() -> Result<()> {
    let served = served()?;
    let control = LinkLocal::start(&served.node)?;
    control.must_work(&served.pod)?;
    let netns = served.pod.netns()?;
    // As Istio's: everything goes to the sidecar, but what is for the pod's own loopback.
    let _sidecar = Answering::start(netns, "0.0.0.0:15001", "sidecar")?;
    netns.nft(
        "add table ip mesh\nadd chain ip mesh o { type nat hook output priority -100; }\n\
         add rule ip mesh o ip daddr 127.0.0.1/32 return\nadd rule ip mesh o meta l4proto tcp redirect to :15001\n",
    )?;
    ensure!(control.answer(&served.pod)? == "sidecar", "the mesh does not redirect");
    must_be_served(&served.pod)
}

#[test]
fn a_pod_without_ipv6_is_served_over_ipv4() -> Result<()> {
    let served = served()?;
    let pod = served.node.pod_with(PodSpec::named("app").network(Network::NO_IPV6))?;
    for to in [V4, MAPPED] {
        must_be_granted(&pod.ask_once(&Client::with_token(pod.token()).to(to))?).context(to)?;
    }
    let answer = pod.ask_once(&Client::with_token(pod.token()).to(V6).connect_once())?;
    ensure!(answer.error.as_deref().is_some_and(|error| error.contains("refused")), "not refused at once: {answer:?}");
    Ok(())
}

#[test]
fn a_node_without_ipv6_does_not_matter() -> Result<()> {
    let node = Node::new()?;
    node.netns().sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    // The control: the address that an agent on the node would have to bind.
    let bound = node.netns().ip("addr add fd00:ec2::23/128 dev lo");
    ensure!(bound.is_err(), "the node still has IPv6");
    let _agent = node.agent()?;
    let host_pod = node.pod_with(PodSpec::named("app").host_network())?;
    node.eks_auth().associate("default", "app", "app")?;
    host_pod.must_get_credentials().map(|_| ())
}

#[test]
fn applications_find_their_ports_free() -> Result<()> {
    let served = served()?;
    must_be_served(&served.pod)?;
    let client = binary("pod-client")?.to_string_lossy().into_owned();
    for address in ["0.0.0.0:50051", "[::]:50051", "0.0.0.0:80", "[::]:80", "0.0.0.0:30000", "169.254.170.23:0"] {
        // In a process of its own: this one starts others meanwhile, and each holds a copy of its sockets until it execs.
        let bound = served.pod.exec(&client, &["--mode=listen", &format!("--to={address}")])?;
        // The last one is no address of the pod: nothing was added to its interfaces.
        ensure!(bound.status.success() != address.starts_with("169"), "{address}: {bound:?}");
    }
    let listening = String::from_utf8(served.pod.exec("ss", &["-Hltn"])?.stdout)?;
    let ports: Vec<&str> = listening.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    ensure!(ports.len() == 2 && ports.contains(&"127.0.0.1:706") && ports.contains(&"[::1]:706"), "{listening}");
    Ok(())
}

#[test]
fn a_port_that_the_pod_uses_itself_is_left_to_it() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("app")?;
    let own = pod.netns()?.within(|| TcpListener::bind("127.0.0.1:706"))??;
    let _agent = node.agent()?;
    must_be_served(&pod)?;
    let listening = String::from_utf8(pod.exec("ss", &["-Hltn"])?.stdout)?;
    ensure!(listening.contains("127.0.0.1:707"), "{listening}");
    own.set_nonblocking(true)?;
    ensure!(own.accept().is_err(), "a request for credentials reached the application");
    Ok(())
}
