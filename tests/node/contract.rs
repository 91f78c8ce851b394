//! The credential endpoint's contract: what is served, to which requests, and in which form.
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{client::Client, time};

use crate::common::{MAPPED, V4, V6, must_be_granted, must_be_refused, must_refuse, refusal, served};

#[test]
fn credentials_have_the_form_that_every_sdk_reads() -> Result<()> {
    let served = served()?;
    let answer = served.pod.must_get_credentials()?;
    ensure!(answer.header("content-type") == Some("application/json"));
    ensure!(answer.header("cache-control") == Some("no-store"));
    ensure!(answer.header("transfer-encoding").is_none(), "credentials are never chunked");
    ensure!(answer.header("content-length") == Some(answer.body.len().to_string().as_str()));
    ensure!(!answer.body.contains(['\n', ' ']));
    let mut at = 0;
    for member in [
        "{\"AccessKeyId\":\"",
        "\",\"SecretAccessKey\":\"",
        "\",\"Token\":\"",
        "\",\"AccountId\":\"",
        "\",\"Expiration\":\"",
    ] {
        let found = answer.body.get(at..).and_then(|rest| rest.find(member));
        at += found.with_context(|| format!("{member} is not there, or not in its place"))? + member.len();
    }
    ensure!(answer.json().as_object().is_some_and(|members| members.len() == 5));
    ensure!(answer.member("AccountId") == "123456789012");
    let expiration = answer.member("Expiration");
    let expires = time::parse_rfc3339(&expiration).with_context(|| format!("{expiration} is not RFC 3339 in UTC"))?;
    let left = expires.duration_since(SystemTime::now())?;
    ensure!(left > Duration::from_mins(350) && left <= Duration::from_hours(6), "{left:?}");
    Ok(())
}

#[test]
fn both_addresses_are_served_from_both_families_of_sockets() -> Result<()> {
    let served = served()?;
    for to in [V4, V6, MAPPED] {
        let answer = served.pod.ask_once(&Client::with_token(served.pod.token()).to(to))?;
        must_be_granted(&answer)?;
        ensure!(answer.peer.as_deref() == Some(to), "the client does not see the address that it dialled: {answer:?}");
    }
    Ok(())
}

#[test]
fn every_spelling_of_the_addresses_is_a_right_host() -> Result<()> {
    let served = served()?;
    for host in [
        "169.254.170.23",
        "169.254.170.23:80",
        "169.254.170.23:8080",
        "[fd00:ec2::23]",
        "[fd00:ec2::23]:80",
        "[FD00:EC2:0:0:0:0:0:23]",
        "[fd00:0ec2::0023]:1",
        "[::ffff:169.254.170.23]",
        "[::ffff:a9fe:aa17]:80",
    ] {
        for to in [V4, V6] {
            let client = Client::with_token(served.pod.token()).to(to).host(host);
            must_be_granted(&served.pod.ask_once(&client)?).context(host)?;
        }
    }
    Ok(())
}

#[test]
fn other_hosts_are_refused_in_the_official_words() -> Result<()> {
    let served = served()?;
    for host in [
        "localhost",
        "example.com",
        "169.254.170.23.example.com",
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23@example.com",
        "0xa9.254.170.23",
        "[fd00:ec2::24]",
        "",
    ] {
        let words = format!(
            "Access Denied. Called agent through invalid address, please use either [169.254.170.23 fd00:ec2::23] \
             address not {host}"
        );
        let client = Client::with_token(served.pod.token()).host(host);
        must_refuse(&served.agent, refusal(403, "wrong_host", &words), || served.pod.ask_once(&client))
            .context(host)?;
    }
    for none in
        [Client::with_token(served.pod.token()).no_host().http10(), Client::with_token(served.pod.token()).no_host()]
    {
        must_refuse(&served.agent, refusal(403, "wrong_host", "Access Denied."), || served.pod.ask_once(&none))?;
    }
    Ok(())
}

#[test]
fn http_1_0_keep_alive_and_one_shot_are_served() -> Result<()> {
    let served = served()?;
    let ask = |client: Client| served.pod.ask(&client);
    let old = ask(Client::with_token(served.pod.token()).http10())?;
    ensure!(old.len() == 1 && old.iter().all(|answer| answer.status == Some(200)), "{old:?}");
    let kept = ask(Client::with_token(served.pod.token()).requests(20))?;
    ensure!(kept.len() == 20 && kept.iter().all(|answer| answer.status == Some(200)), "{kept:?}");
    let closed = ask(Client::with_token(served.pod.token()).header("Connection", "close").requests(2))?;
    let [first, second] = closed.as_slice() else { anyhow::bail!("{closed:?}") };
    ensure!(first.status == Some(200) && second.error.is_some(), "one shot is one request: {closed:?}");
    Ok(())
}

#[test]
fn a_query_is_ignored_and_other_paths_are_not_there() -> Result<()> {
    let served = served()?;
    for path in ["/v1/credentials?x=1", "/v1/credentials?"] {
        must_be_granted(&served.pod.ask_once(&Client::with_token(served.pod.token()).path(path))?).context(path)?;
    }
    // The official agent's own probe asks for / and takes 404 for health.
    for path in [
        "/",
        "/v1/credentials/",
        "/v1/Credentials",
        "/v1/credentials/x",
        "/v2/credentials",
        "//v1/credentials",
        "/healthz",
        "/metrics",
    ] {
        let client = Client::with_token(served.pod.token()).path(path);
        must_refuse(&served.agent, refusal(404, "unknown_path", "Not Found"), || served.pod.ask_once(&client))
            .context(path)?;
    }
    Ok(())
}

#[test]
fn head_is_get_without_a_body_and_other_methods_are_refused() -> Result<()> {
    let served = served()?;
    let get = served.pod.must_get_credentials()?;
    let head = served.pod.ask_once(&Client::with_token(served.pod.token()).method("HEAD"))?;
    ensure!(head.status == Some(200) && head.body.is_empty(), "{head:?}");
    ensure!(head.header("content-length") == get.header("content-length"), "{head:?}");
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "FROB"] {
        let client = Client::with_token(served.pod.token()).method(method);
        let expected = refusal(405, "method_not_allowed", "Method Not Allowed");
        let answer = must_refuse(&served.agent, expected, || served.pod.ask_once(&client)).context(method)?;
        ensure!(answer.header("allow") == Some("GET, HEAD"), "{answer:?}");
    }
    Ok(())
}

#[test]
fn forwarded_requests_are_refused() -> Result<()> {
    let served = served()?;
    for name in ["X-Forwarded-For", "x-forwarded-for"] {
        let client = Client::with_token(served.pod.token()).header(name, "10.0.0.1");
        must_refuse(&served.agent, refusal(403, "forwarded", "X-Forwarded-For"), || served.pod.ask_once(&client))?;
    }
    Ok(())
}

#[test]
fn requests_that_two_readers_could_read_differently_are_refused() -> Result<()> {
    let served = served()?;
    let token = served.pod.token();
    let ambiguous = refusal(400, "ambiguous_request", "The request is ambiguous");
    for client in [
        Client::with_token(token).header("Authorization", token),
        Client::with_token(token).header("Authorization", "another"),
        Client::with_token(token).header("Host", "169.254.170.23"),
        Client::with_token(token).header("Host", "example.com"),
        Client::with_token(token).path("http://169.254.170.23/v1/credentials").host("example.com"),
        Client::with_token(token).path("http://example.com/v1/credentials"),
    ] {
        must_refuse(&served.agent, ambiguous, || served.pod.ask_once(&client)).context(format!("{client:?}"))?;
    }
    // The control: an absolute form that agrees.
    let agrees = Client::with_token(token).path("http://169.254.170.23/v1/credentials");
    must_be_granted(&served.pod.ask_once(&agrees)?)?;
    let alone = Client::with_token(token).path("http://example.com/v1/credentials").no_host();
    must_refuse(&served.agent, refusal(403, "wrong_host", "not example.com"), || served.pod.ask_once(&alone))?;
    Ok(())
}

#[test]
fn checks_come_in_the_contracts_order() -> Result<()> {
    let served = served()?;
    let (path, method) = (|c: Client| c.path("/x"), |c: Client| c.method("POST"));
    let (forwarded, host) = (|c: Client| c.header("X-Forwarded-For", "x"), |c: Client| c.host("x"));
    let none = Client::new();
    let all = path(method(forwarded(host(none.clone()))));
    let four = method(forwarded(host(none.clone())));
    let three = forwarded(host(none.clone()));
    let two = host(none.clone());
    for (client, status, reason) in [
        (all, 404, "unknown_path"),
        (four, 405, "method_not_allowed"),
        (three, 403, "forwarded"),
        (two, 403, "wrong_host"),
        (none, 400, "no_token"),
    ] {
        must_refuse(&served.agent, refusal(status, reason, ""), || served.pod.ask_once(&client))?;
    }
    Ok(())
}

#[test]
fn pipelined_requests_each_pass_all_checks() -> Result<()> {
    let served = served()?;
    let token = served.pod.token();
    let host = "Host: 169.254.170.23\r\n";
    let requests = format!(
        "GET /v1/credentials HTTP/1.1\r\n{host}Authorization: {token}\r\n\r\n\
         GET /v1/credentials HTTP/1.1\r\n{host}\r\n\
         GET /x HTTP/1.1\r\n{host}Authorization: {token}\r\n\r\n\
         GET /v1/credentials HTTP/1.1\r\n{host}Authorization: {token}\r\n\r\n"
    );
    let answers = served.pod.ask(&Client::new().raw(requests.as_bytes(), 4))?;
    let [first, second, third, fourth] = answers.as_slice() else { anyhow::bail!("{answers:?}") };
    must_be_granted(first)?;
    must_be_refused(second, 400, "Service account token cannot be empty")?;
    must_be_refused(third, 404, "Not Found")?;
    must_be_granted(fourth)
}

#[test]
fn half_closed_clients_are_answered() -> Result<()> {
    let served = served()?;
    must_be_granted(&served.pod.ask_once(&Client::with_token(served.pod.token()).half_close())?)
}

#[test]
fn what_is_not_http_1_is_refused() -> Result<()> {
    let served = served()?;
    let long = format!("GET /v1/credentials HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    for bytes in ["hello\r\n\r\n", "GET /v1/credentials\r\n\r\n", "GET / HTTP/3.0\r\n\r\n", long.as_str()] {
        let before = served.agent.refusals("malformed_request")?;
        let answer = served.pod.ask_once(&Client::new().raw(bytes.as_bytes(), 1))?;
        let shown = bytes.get(..20).unwrap_or(bytes);
        ensure!(matches!(answer.status, Some(400 | 431)), "{shown}: {answer:?}");
        served.agent.wait_for_metric(
            "pod_identity_refusals_total{reason=\"malformed_request\"}",
            before + 1.0,
            Duration::from_secs(2),
        )?;
    }
    // The preface of HTTP/2 gets no credentials either, whatever it is called.
    let preface = served.pod.ask_once(&Client::new().raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1))?;
    ensure!(preface.status != Some(200), "{preface:?}");
    Ok(())
}

#[test]
fn a_pod_with_too_many_connections_is_told_so_and_other_pods_do_not_notice() -> Result<()> {
    let served = served()?;
    let other = served.node.pod("other")?;
    let crowd = Client::with_token(served.pod.token()).clients(512).requests(2).pause_ms(2500).timeout_ms(10_000);
    std::thread::scope(|scope| {
        let crowd = scope.spawn(|| served.pod.ask(&crowd));
        served.agent.wait_for_metric("pod_identity_connections", 512.0, Duration::from_secs(10))?;
        let expected = refusal(503, "pod_limit", "too many connections");
        must_refuse(&served.agent, expected, || served.pod.credentials())?;
        other.must_get_credentials()?;
        let answers = crowd.join().map_err(|_| anyhow::anyhow!("the crowd panicked"))??;
        let granted = answers.iter().filter(|answer| answer.status == Some(200)).count();
        ensure!(granted == 1024, "{granted} of 1024 were granted");
        Ok(())
    })?;
    served.pod.must_get_credentials().map(|_| ())
}
