//! Every way to connect that an application may use leads to its own pod's credentials, or nowhere.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::client::{Answer, Client};

use crate::common::{MAPPED, Served, V4, V6, must_be_granted, must_be_refused, must_refuse, refusal, served};

const DIRECT: &str = "127.0.0.1:706";
const DIRECT_V6: &str = "[::1]:706";

/// A mode of `pod-client`, an address, and where to bind first.
type Way = (&'static str, &'static str, Option<&'static str>);

/// All that must lead to credentials.
const WAYS: [Way; 30] = [
    ("plain", V4, None),
    ("nonblock", V4, None),
    ("bound", V4, Some("10.88.1.2:0")),
    ("bound", V4, Some("127.0.0.1:0")),
    ("bound", V4, Some("127.1.0.7:0")),
    ("bound", V4, Some("0.0.0.0:0")),
    ("bound-port", V4, Some("0.0.0.0:45123")),
    ("bound-port", V4, Some("10.88.1.2:45124")),
    ("device-lo", V4, None),
    ("tfo-sendto", V4, None),
    ("tfo-connect", V4, None),
    ("mptcp", V4, None),
    ("reconnect", V4, None),
    ("io-uring", V4, None),
    ("io-uring-async", V4, None),
    ("io-uring-sqpoll", V4, None),
    ("shut-wr", V4, None),
    ("plain", V6, None),
    ("nonblock", V6, None),
    ("v6only", V6, None),
    ("reconnect", V6, None),
    ("io-uring-async", V6, None),
    ("bound", V6, Some("[::1]:0")),
    ("plain", MAPPED, None),
    ("nonblock", MAPPED, None),
    ("mptcp-v6", MAPPED, None),
    ("io-uring", MAPPED, None),
    ("plain", DIRECT, None),
    ("plain", DIRECT_V6, None),
    ("bound", DIRECT, Some("127.1.0.0:0")),
];

fn client(token: &str, (mode, to, bind): Way) -> Client {
    let client = Client::with_token(token).mode(mode).to(to).host("169.254.170.23");
    match bind {
        Some(address) => client.arg("--bind", address),
        None => client,
    }
}

fn ask(served: &Served, token: &str, way: Way) -> Result<Answer> {
    served.pod.ask_once(&client(token, way)).with_context(|| format!("{way:?}"))
}

#[test]
fn every_way_to_connect_leads_to_the_pods_own_credentials() -> Result<()> {
    let served = served()?;
    let key = served.pod.must_get_credentials()?.access_key_id();
    for way in WAYS {
        let answer = ask(&served, served.pod.token(), way)?;
        must_be_granted(&answer).with_context(|| format!("{way:?}"))?;
        ensure!(answer.access_key_id() == key, "{way:?}: {answer:?}");
    }
    Ok(())
}

#[test]
fn no_way_to_connect_makes_another_pods_token_good() -> Result<()> {
    let served = served()?;
    let victim = served.node.pod("victim")?;
    victim.must_get_credentials()?;
    for way in WAYS {
        if way.0 == "reconnect" {
            // Its first connection, given up before a request, counts as that of an unknown socket.
            must_be_refused(&ask(&served, victim.token(), way)?, 403, "belongs to another pod")?;
            continue;
        }
        let expected = refusal(403, "foreign_token", "belongs to another pod");
        must_refuse(&served.agent, expected, || ask(&served, victim.token(), way))
            .with_context(|| format!("{way:?}"))?;
    }
    Ok(())
}

#[test]
fn what_is_not_the_endpoint_is_left_alone() -> Result<()> {
    let served = served()?;
    let token = served.pod.token();
    let udp = ask(&served, token, ("udp", V4, None))?;
    // A rewritten one would leave from the loopback address, whatever getpeername says.
    let from_the_pod = udp.local.as_deref().is_some_and(|local| local.starts_with("10.88."));
    ensure!(udp.error.is_none() && from_the_pod, "a datagram socket was rewritten: {udp:?}");
    for (mode, to) in [
        ("plain", "169.254.170.23:81"),
        ("plain", "169.254.170.22:80"),
        ("plain", "169.254.169.254:80"),
        ("plain", "[fd00:ec2::24]:80"),
        ("device-eth0", V4),
    ] {
        let answer = served.pod.ask_once(&client(token, (mode, to, None)).connect_once().timeout_ms(700))?;
        ensure!(answer.status.is_none() && answer.error.is_some(), "{mode} {to} was answered: {answer:?}");
    }
    // As without the agent: an IPv6-only socket has no way to an IPv4 address.
    let only = served.pod.ask_once(&client(token, ("v6only", MAPPED, None)).connect_once())?;
    ensure!(only.error.as_deref().is_some_and(|error| error.contains("unreachable")), "{only:?}");
    Ok(())
}

#[test]
fn clients_that_leave_early_leave_nothing_behind() -> Result<()> {
    let served = served()?;
    served.pod.must_get_credentials()?;
    served.pod.ask(&client(served.pod.token(), ("close-early", V4, None)).clients(50))?;
    pod_identity_tests::process::eventually("all connections to end", Duration::from_secs(5), || {
        Ok((served.agent.metric("pod_identity_connections")? < 0.5).then_some(()))
    })?;
    served.pod.must_get_credentials().map(|_| ())
}
