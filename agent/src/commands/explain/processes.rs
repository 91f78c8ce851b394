//! What a pod's processes have in their environment that decides where an SDK looks for credentials.
//!
//! Environments hold secrets. Of their values only addresses come out of here, without user, password and query; of all
//! else only whether it is there.
use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use hyper::Uri;
use zeroize::Zeroizing;

/// Processes looked at in one pod: a pod's images decide what is in their environment, not their number.
const MAX_PROCESSES: usize = 64;
/// Cgroups looked at.
const MAX_CGROUPS: usize = 256;
/// Where EKS mounts the token.
const TOKEN_FILE: &str = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount/eks-pod-identity-token";

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// As the kernel names it.
    pub(super) name: String,
    /// Inode of its network namespace.
    pub(super) netns: Option<u64>,
    /// None if it cannot be read.
    pub(super) environment: Option<Environment>,
}

/// What is in an environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Environment {
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub(super) uri: Option<Address>,
    /// The token's variable.
    pub(super) token_file: TokenVariable,
    /// Variables that are set and that SDKs look at first.
    pub(super) preferred: Vec<&'static str>,
    /// A proxy that the address would be asked through: its variable, and its address.
    pub(super) proxy: Option<(&'static str, String)>,
}

/// An address that a variable names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// Without user, password and query.
    pub(super) shown: String,
    pub(super) ip: Option<IpAddr>,
    pub(super) port: u16,
    pub(super) path: String,
}

/// `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`, or a token in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum TokenVariable {
    #[default]
    Unset,
    /// As EKS sets it.
    Injected,
    /// Another file, or `AWS_CONTAINER_AUTHORIZATION_TOKEN`, which is not renewed.
    Other,
}

/// The processes in a cgroup and below; an error if none can be listed.
pub(super) fn of_cgroup(cgroup: &Path) -> io::Result<Vec<Process>> {
    let mut processes = Vec::new();
    let mut pending = vec![cgroup.to_owned()];
    let mut seen = 0;
    while let Some(directory) = pending.pop() {
        seen += 1;
        if seen > MAX_CGROUPS || processes.len() >= MAX_PROCESSES {
            break;
        }
        let listed = fs::read_to_string(directory.join("cgroup.procs"));
        match listed {
            Ok(pids) => processes.extend(pids.lines().filter_map(|pid| pid.parse().ok()).filter_map(look)),
            Err(error) if seen == 1 => return Err(error),
            Err(_) => {}
        }
        pending.extend(children(&directory));
    }
    Ok(processes)
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// None if it is gone, or of another PID namespace.
fn look(pid: u32) -> Option<Process> {
    let of = |file: &str| PathBuf::from(format!("/proc/{pid}/{file}"));
    let name = fs::read_to_string(of("comm")).ok()?.trim_end().escape_default().to_string();
    let netns = fs::metadata(of("ns/net")).ok().map(|metadata| metadata.ino());
    let environment = fs::read(of("environ")).ok().map(Zeroizing::new).map(|block| read(&block));
    Some(Process { pid, name, netns, environment })
}

/// Reads what `/proc/PID/environ` holds: the environment that the program was started with.
pub(super) fn read(block: &[u8]) -> Environment {
    let get = |name: &str| {
        let values = block.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
        // Empty is as good as unset, to SDKs too.
        values.filter_map(|entry| entry.split_once('=')).find(|(key, value)| *key == name && !value.is_empty())
    };
    let value = |name| get(name).map(|(_, value)| value);
    let uri = value("AWS_CONTAINER_CREDENTIALS_FULL_URI").map(address);
    let token_file = match (value("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"), value("AWS_CONTAINER_AUTHORIZATION_TOKEN"))
    {
        (Some(TOKEN_FILE), _) => TokenVariable::Injected,
        (None, None) => TokenVariable::Unset,
        _ => TokenVariable::Other,
    };
    let pairs = [
        ("AWS_ACCESS_KEY_ID", value("AWS_ACCESS_KEY_ID").is_some() && value("AWS_SECRET_ACCESS_KEY").is_some()),
        (
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            value("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && value("AWS_ROLE_ARN").is_some(),
        ),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", value("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some()),
    ];
    let preferred = pairs.into_iter().filter_map(|(name, set)| set.then_some(name)).collect();
    let exceptions = value("NO_PROXY").or(value("no_proxy")).unwrap_or_default();
    let spared = uri.as_ref().is_some_and(|uri| is_excepted(uri, exceptions));
    let proxies = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    let proxy = proxies.into_iter().find_map(|name| Some((name, address(value(name)?).shown))).filter(|_| !spared);
    Environment { uri, token_file, preferred, proxy }
}

fn address(text: &str) -> Address {
    // A proxy may be named without a scheme.
    let uri: Option<Uri> = if text.contains("://") { text.parse().ok() } else { format!("http://{text}").parse().ok() };
    let Some((uri, host)) = uri.as_ref().and_then(|uri| Some((uri, uri.host()?))) else {
        return Address { shown: "(not a URL)".to_owned(), ip: None, port: 0, path: String::new() };
    };
    let scheme = uri.scheme_str().unwrap_or("http");
    let port = uri.port_u16();
    let shown_port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = uri.path().to_owned();
    let shown_path = if path == "/" { "" } else { &path };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    Address {
        shown: format!("{scheme}://{host}{shown_port}{shown_path}"),
        ip: bare.parse().ok().map(|ip: IpAddr| ip.to_canonical()),
        port: port.unwrap_or(if scheme == "https" { 443 } else { 80 }),
        path,
    }
}

/// Whether `NO_PROXY` names the address: by itself, with its port, by a network, or with all others.
fn is_excepted(uri: &Address, exceptions: &str) -> bool {
    let Some(ip) = uri.ip else { return false };
    exceptions.split(',').map(str::trim).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Some((network, bits)) = entry.split_once('/') {
            return network.parse().is_ok_and(|network| in_network(ip, network, bits.parse().unwrap_or(u32::MAX)));
        }
        let plain = entry.strip_prefix('[').map_or(entry, |rest| rest.split(']').next().unwrap_or_default());
        let host = if ip.is_ipv4() { plain.split(':').next().unwrap_or_default() } else { plain };
        host.parse::<IpAddr>().is_ok_and(|host| host.to_canonical() == ip)
    })
}

fn in_network(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) if bits <= 32 => {
            (ip.to_bits() ^ network.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) if bits <= 128 => {
            (ip.to_bits() ^ network.to_bits()).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23/v1/credentials";
    const V6: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://[fd00:ec2::23]/v1/credentials";

    fn environment(entries: &[&str]) -> Environment {
        read(entries.join("\0").as_bytes())
    }

    #[test]
    fn only_addresses_come_out_and_none_with_a_password() {
        let secrets = environment(&[
            "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://me:planted@10.0.0.1:81/x?planted",
            "HTTP_PROXY=http://me:planted@proxy.test:3128/",
            "AWS_ACCESS_KEY_ID=planted",
            "AWS_SECRET_ACCESS_KEY=planted",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN=planted",
        ]);
        assert!(!format!("{secrets:?}").contains("planted"), "{secrets:?}");
        assert_eq!(secrets.uri.unwrap().shown, "http://10.0.0.1:81/x");
        assert_eq!(secrets.proxy.unwrap(), ("HTTP_PROXY", "http://proxy.test:3128".to_owned()));
        assert_eq!((secrets.preferred, secrets.token_file), (vec!["AWS_ACCESS_KEY_ID"], TokenVariable::Other));
        assert_eq!(environment(&["HTTP_PROXY=me:planted@\u{7f}"]).proxy.unwrap().1, "(not a URL)");
    }

    #[test]
    fn what_eks_injects_is_told_from_other_addresses() {
        let found = environment(&[V6, &format!("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE={TOKEN_FILE}"), "HTTP_PROXY="]);
        let uri = found.uri.unwrap();
        assert_eq!((uri.ip, uri.port, &*uri.path), (Some("fd00:ec2::23".parse().unwrap()), 80, "/v1/credentials"));
        assert_eq!((found.token_file, found.proxy), (TokenVariable::Injected, None));
        assert_eq!(environment(&["AWS_ACCESS_KEY_ID=without-its-secret"]), Environment::default());
    }

    #[test]
    fn no_proxy_is_read_as_clients_read_it() {
        for (uri, exceptions, spared) in [
            (V4, "", false),
            (V4, "*", true),
            (V4, "localhost, 169.254.170.23", true),
            (V4, "169.254.170.23:80", true),
            (V4, "169.254.0.0/16", true),
            (V4, "0.0.0.0/0", true),
            (V4, "169.254.170.24", false),
            (V4, "10.0.0.0/8,fd00:ec2::23", false),
            (V6, "fd00:ec2::23", true),
            (V6, "[fd00:ec2::23]", true),
            (V6, "fd00:ec2::/64", true),
            (V6, "169.254.170.23", false),
        ] {
            let found = environment(&[uri, "http_proxy=proxy:3128", &format!("NO_PROXY={exceptions}")]);
            assert_eq!(found.proxy.is_none(), spared, "{uri} {exceptions}");
        }
    }
}
