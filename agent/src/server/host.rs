//! Whether a request is meant for a target address: the defence against DNS rebinding.
use std::net::{IpAddr, Ipv6Addr};

use hyper::{HeaderMap, Uri, header::HOST, http::uri::Scheme};

use crate::{
    config::{TARGET_V4, TARGET_V6},
    refusal::{Ambiguity, Refusal, Shown},
};

/// Checks `Host`, and the scheme and authority of an absolute-form request line, which wins and must agree.
pub(super) fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP) {
        return Err(Refusal::AmbiguousRequest(Ambiguity::AnotherScheme));
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::AmbiguousRequest(Ambiguity::TwoHosts));
    }
    let host = host.map(|value| value.to_str().unwrap_or("�"));
    let named = match (uri.authority(), host) {
        (None, None) => return Err(Refusal::WrongHost(Shown::new(""))),
        (None, Some(host)) => host,
        (Some(authority), host) => {
            if host.is_some_and(|host| address(host) != address(authority.as_str())) {
                return Err(Refusal::AmbiguousRequest(Ambiguity::TargetIsNotHost));
            }
            authority.as_str()
        }
    };
    match address(named) {
        Some(address) if is_target(address) => Ok(()),
        _ => Err(Refusal::WrongHost(Shown::new(named))),
    }
}

/// The IP address of an authority, any port aside.
fn address(authority: &str) -> Option<IpAddr> {
    let host = match authority.rsplit_once(':') {
        // The colon may be one of an IPv6 address without brackets.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            port.bytes().all(|b| b.is_ascii_digit()).then_some(host)?
        }
        _ => authority,
    };
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(|v6| IpAddr::V6(v6).to_canonical()),
        None => host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()),
    }
}

fn is_target(address: IpAddr) -> bool {
    address == IpAddr::V4(TARGET_V4) || address == IpAddr::V6(TARGET_V6)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn check_host(hosts: &[&str]) -> Result<(), Refusal> {
        check(&Uri::from_static("/v1/credentials"), &headers(hosts))
    }

    fn headers(hosts: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_str(host).unwrap());
        }
        headers
    }

    #[test]
    fn every_spelling_of_a_target_address_is_accepted() {
        for host in [
            "169.254.170.23",
            "169.254.170.23:80",
            "169.254.170.23:8080",
            "[fd00:ec2::23]",
            "[fd00:ec2::23]:80",
            "fd00:ec2::23",
            "[FD00:0EC2:0::23]",
            "[fd00:ec2:0:0:0:0:0:23]:1",
            "[::ffff:169.254.170.23]",
            "::ffff:169.254.170.23",
            "[::ffff:a9fe:aa17]:80",
        ] {
            assert_eq!(check_host(&[host]), Ok(()), "{host}");
        }
    }

    #[test]
    fn anything_else_is_a_wrong_host_and_named() {
        for host in [
            "localhost",
            "127.0.0.1:706",
            "169.254.169.254",
            "169.254.170.23.evil.example",
            "169.254.170.23:80:80",
            "169.254.170.23:x",
            "[169.254.170.23]",
            "[fd00:ec2::23",
            "fd00:ec2::24",
            "2852039191",
            "0251.0376.0252.027",
            "169.254.170.23@evil.example",
            "",
        ] {
            let refusal = check_host(&[host]).unwrap_err();
            assert_eq!(refusal, Refusal::WrongHost(Shown::new(host)), "{host}");
        }
    }

    #[test]
    fn no_host_at_all_is_a_wrong_host() {
        assert_eq!(check_host(&[]).unwrap_err().reason(), "wrong_host");
    }

    #[test]
    fn two_hosts_are_ambiguous_even_when_they_agree() {
        let refusal = check_host(&["169.254.170.23", "169.254.170.23"]).unwrap_err();
        assert_eq!(refusal, Refusal::AmbiguousRequest(Ambiguity::TwoHosts));
    }

    #[test]
    fn an_absolute_request_line_wins_and_must_agree() {
        let uri = Uri::from_static("http://169.254.170.23/v1/credentials");
        assert_eq!(check(&uri, &headers(&[])), Ok(()));
        assert_eq!(check(&uri, &headers(&["169.254.170.23:80"])), Ok(()));
        let disagreement = Refusal::AmbiguousRequest(Ambiguity::TargetIsNotHost);
        assert_eq!(check(&uri, &headers(&["[fd00:ec2::23]"])), Err(disagreement.clone()));
        assert_eq!(check(&uri, &headers(&["evil.example"])), Err(disagreement));
        for other in ["ftp://169.254.170.23/v1/credentials", "https://169.254.170.23/v1/credentials"] {
            let refusal = check(&Uri::from_static(other), &headers(&["169.254.170.23"])).unwrap_err();
            assert_eq!(refusal, Refusal::AmbiguousRequest(Ambiguity::AnotherScheme), "{other}");
        }
        let elsewhere = Uri::from_static("http://evil.example/v1/credentials");
        assert_eq!(check(&elsewhere, &headers(&[])).unwrap_err().reason(), "wrong_host");
    }
}
