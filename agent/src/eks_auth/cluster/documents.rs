//! Cluster names in what nodes are configured with. What these texts say is the node administrator's word; whatever else
//! they hold (user data may hold secrets) is neither kept nor shown.
use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use yaml_rust2::{Yaml, YamlLoader};

/// Flags of `aws eks get-token` and `aws-iam-authenticator token` that name the cluster.
const TOKEN_FLAGS: [&str; 3] = ["--cluster-name", "--cluster-id", "-i"];

/// The cluster that the kubelet gets its own tokens for.
pub(super) fn kubeconfig(text: &str) -> Option<String> {
    let documents = YamlLoader::load_from_str(text).ok()?;
    let users = documents.first()?["users"].as_vec()?;
    users.iter().find_map(|user| {
        let arguments: Vec<&str> = user["user"]["exec"]["args"].as_vec()?.iter().filter_map(Yaml::as_str).collect();
        after_flag(&arguments, &TOKEN_FLAGS)
    })
}

fn after_flag(arguments: &[&str], flags: &[&str]) -> Option<String> {
    arguments.iter().enumerate().find_map(|(at, argument)| match argument.split_once('=') {
        Some((flag, value)) if flags.contains(&flag) => Some(value.to_owned()),
        None if flags.contains(argument) => arguments.get(at + 1).map(|&value| value.to_owned()),
        _ => None,
    })
}

/// The cluster that an instance was told to join: by a `NodeConfig` (Amazon Linux 2023), a call of `bootstrap.sh` (Amazon
/// Linux 2) or Bottlerocket's settings, bare or as a part of a MIME message.
pub(super) fn user_data(text: &str) -> Option<String> {
    parts(text).iter().find_map(|part| node_config(part).or_else(|| bootstrap(part)).or_else(|| bottlerocket(part)))
}

/// The bodies of a MIME message's parts; the whole text where it is none.
fn parts(text: &str) -> Vec<Cow<'_, str>> {
    let boundary = text.lines().take_while(|line| !line.trim().is_empty()).find_map(|line| {
        let (_, after) = line.split_once("boundary=")?;
        Some(after.split(';').next()?.trim().trim_matches('"').to_owned())
    });
    let Some(boundary) = boundary.filter(|boundary| !boundary.is_empty()) else { return vec![Cow::Borrowed(text)] };
    text.split(&format!("--{boundary}")).skip(1).filter_map(body).collect()
}

/// What follows a part's headers.
fn body(part: &str) -> Option<Cow<'_, str>> {
    let part = part.trim_start_matches(['\r', '\n']);
    let (headers, body) = part.split_once("\r\n\r\n").or_else(|| part.split_once("\n\n"))?;
    let is_base64 = headers.lines().any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("content-transfer-encoding") && value.trim().eq_ignore_ascii_case("base64")
        })
    });
    if !is_base64 {
        return Some(Cow::Borrowed(body));
    }
    let encoded: String = body.split_whitespace().collect();
    BASE64_STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()).map(Cow::Owned)
}

fn node_config(text: &str) -> Option<String> {
    // A parser of YAML takes a shell script for one long text, or for an error.
    let documents = YamlLoader::load_from_str(text).ok()?;
    documents
        .iter()
        .filter(|document| document["kind"].as_str() == Some("NodeConfig"))
        .find_map(|document| Some(document["spec"]["cluster"]["name"].as_str()?.to_owned()))
}

/// The first argument of `bootstrap.sh` that belongs to no flag. One that a shell would have to work out is no name.
fn bootstrap(text: &str) -> Option<String> {
    let unbroken = text.replace("\\\r\n", " ").replace("\\\n", " ");
    unbroken.lines().filter(|line| !line.trim_start().starts_with('#')).find_map(|line| {
        let (_, arguments) = line.split_once("/etc/eks/bootstrap.sh ")?;
        let mut words = words(arguments).into_iter();
        while let Some(word) = words.next() {
            if !word.starts_with("--") {
                return Some(word);
            }
            if !word.contains('=') {
                words.next();
            }
        }
        None
    })
}

/// Words as a shell tells them apart, quotes taken off.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

fn bottlerocket(text: &str) -> Option<String> {
    let settings: toml::Table = text.parse().ok()?;
    let kubernetes = settings.get("settings")?.get("kubernetes")?;
    Some(kubernetes.get("cluster-name")?.as_str()?.to_owned())
}
