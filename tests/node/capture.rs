//! No byte of a token or of credentials leaves the pod's own loopback on its way between pod and agent.
use std::{io::Read as _, net::TcpListener};

use anyhow::{Result, ensure};
use pod_identity_tests::{capture::Capture, client::Client};

use crate::common::{MAPPED, V4, V6, must_be_granted, served};

#[test]
fn only_the_pods_loopback_carries_tokens_and_credentials() -> Result<()> {
    let served = served()?;
    let neighbour = served.node.pod("neighbour")?;
    let in_pod = Capture::start(served.pod.netns()?)?;
    let in_neighbour = Capture::start(neighbour.netns()?)?;
    let on_node = Capture::start(served.node.netns())?;
    let mut secrets = vec![served.pod.token().to_owned()];
    for to in [V4, V6, MAPPED] {
        let answer = served.pod.ask_once(&Client::with_token(served.pod.token()).to(to))?;
        must_be_granted(&answer)?;
        secrets.extend([answer.member("SecretAccessKey"), answer.member("Token")]);
    }
    // Something must have been seen everywhere, else nothing was looked at.
    neighbour.ask(&Client::new().to("10.88.1.2:81").connect_once().timeout_ms(300))?;
    let (in_pod, in_neighbour, on_node) = (in_pod.stop(), in_neighbour.stop(), on_node.stop());
    ensure!(in_pod.packets().contains_key("eth0") && on_node.packets().contains_key("veth1"), "nothing was captured");
    for secret in &secrets {
        ensure!(in_pod.interfaces_that_carried(secret) == ["lo"], "{:?}", in_pod.interfaces_that_carried(secret));
        ensure!(in_neighbour.interfaces_that_carried(secret).is_empty());
        // The node's loopback is the way to EKS Auth here, which is TLS elsewhere.
        let others: Vec<&str> =
            on_node.interfaces_that_carried(secret).into_iter().filter(|name| *name != "lo").collect();
        ensure!(others.is_empty(), "{others:?} carried a secret");
    }
    Ok(())
}

/// The control: an agent on the node's link-local address, reached by a process that is not steered.
#[test]
fn a_link_local_agent_lets_tokens_cross_interfaces() -> Result<()> {
    let served = served()?;
    served.node.netns().ip("addr add 169.254.170.23/32 dev lo")?;
    let listener = served.node.netns().within(|| TcpListener::bind("169.254.170.23:80"))??;
    let unsteered = served.node.top_cgroup().child("unsteered.service")?;
    let (in_pod, on_node) = (Capture::start(served.pod.netns()?)?, Capture::start(served.node.netns())?);
    let answering =
        std::thread::spawn(move || listener.accept().and_then(|(mut stream, _)| stream.read(&mut [0; 4096])));
    let client = Client::with_token(served.pod.token()).hang_up_after_ms(50);
    served.pod.ask_from_cgroup(&unsteered, &client)?;
    answering.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;
    let (in_pod, on_node) = (in_pod.stop(), on_node.stop());
    ensure!(in_pod.interfaces_that_carried(served.pod.token()) == ["eth0"]);
    ensure!(on_node.interfaces_that_carried(served.pod.token()) == ["veth1"]);
    Ok(())
}
