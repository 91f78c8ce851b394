//! What the attacks succeed against: an agent on a link-local address of the node that believes whoever holds a token,
//! as AWS's does. Also what a squatter on that address is: somebody who is sent tokens.
use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::{
    eks_auth::{CLUSTER, EksAuth},
    node::Node,
    sigv4::AccessKey,
};

/// The address and port that pods aim at.
const ADDRESS: &str = "169.254.170.23";

/// A server on the target address in the node's namespace. The address goes with it.
#[derive(Debug)]
pub struct LinkLocal {
    received: Arc<Received>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    remove_address: Vec<String>,
}

/// What came to the address.
#[derive(Debug, Default)]
struct Received {
    connections: AtomicU64,
    tokens: AtomicU64,
}

/// What it does with a token.
enum Trust {
    /// Gives credentials to whoever brings a token that EKS Auth takes, and keeps them for the next one who does.
    Bearer { node: AccessKey, kept: HashMap<String, String> },
    /// Takes the token, and answers nothing of use.
    Squatter,
}

impl LinkLocal {
    /// An agent with the trust of AWS's: the token is all that counts.
    pub fn agent(node: &Node) -> Result<Self> {
        Self::start(node, Trust::Bearer { node: node.eks_auth().node_key().clone(), kept: HashMap::new() })
    }

    /// Somebody with `CAP_NET_ADMIN` on the node who waits for tokens.
    pub fn squatter(node: &Node) -> Result<Self> {
        Self::start(node, Trust::Squatter)
    }

    fn start(node: &Node, mut trust: Trust) -> Result<Self> {
        node.netns().ip(&format!("addr add {ADDRESS}/32 dev lo"))?;
        let remove_address = ["-n", node.netns().name(), "addr", "del", &format!("{ADDRESS}/32"), "dev", "lo"];
        let remove_address = remove_address.map(str::to_owned).to_vec();
        let netns = File::open(node.netns().path())?;
        let (received, stop) = (Arc::new(Received::default()), Arc::new(AtomicBool::new(false)));
        let (books, until) = (Arc::clone(&received), Arc::clone(&stop));
        let (bound, listens) = mpsc::channel();
        // The thread stays in the node's namespace to its end: it calls EKS Auth from there.
        let thread = std::thread::spawn(move || {
            let listener = enter(&netns).and_then(|()| TcpListener::bind((ADDRESS, 80)).map_err(Into::into));
            let listener = match listener.and_then(|it| it.set_nonblocking(true).map(|()| it).map_err(Into::into)) {
                Ok(listener) => listener,
                Err(error) => return drop(bound.send(Err(error))),
            };
            let _ = bound.send(Ok(()));
            while !until.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drop(answer(stream, &mut trust, &books)),
                    Err(_) => std::thread::sleep(Duration::from_micros(200)),
                }
            }
        });
        let started = Self { received, stop, thread: Some(thread), remove_address };
        listens.recv().map_err(|_| anyhow!("the listener's thread panicked"))?.context("cannot bind the address")?;
        Ok(started)
    }

    /// Connections that came.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.received.connections.load(Ordering::Relaxed)
    }

    /// Tokens that came.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.received.tokens.load(Ordering::Relaxed)
    }
}

impl Drop for LinkLocal {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::process::Command::new("ip").args(&self.remove_address).status();
    }
}

fn enter(netns: &File) -> Result<()> {
    Ok(move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// One request of one connection.
fn answer(stream: TcpStream, trust: &mut Trust, received: &Received) -> Result<()> {
    received.connections.fetch_add(1, Ordering::Relaxed);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut reader = BufReader::new(stream);
    let (mut token, mut lines) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => value.trim().clone_into(&mut token),
            None if line.trim_end().is_empty() && lines > 0 => break,
            // Empty lines before a request are none of it.
            None if line.trim_end().is_empty() => continue,
            _ => {}
        }
        lines += 1;
    }
    if !token.is_empty() {
        received.tokens.fetch_add(1, Ordering::Relaxed);
    }
    let (status, body) = match trust {
        Trust::Squatter => (403, "{}".to_owned()),
        Trust::Bearer { node, kept } => match kept.get(&token) {
            Some(credentials) => (200, credentials.clone()),
            None => fetch(node, &token).map_or_else(
                |error| (400, json!({"message": format!("{error:#}")}).to_string()),
                |credentials| {
                    kept.insert(token, credentials.clone());
                    (200, credentials)
                },
            ),
        },
    };
    write_answer(reader.get_mut(), status, &body).map_err(Into::into)
}

fn write_answer(stream: &mut TcpStream, status: u16, body: &str) -> io::Result<()> {
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes())
}

/// EKS Auth's credentials in the endpoint's form.
fn fetch(node: &AccessKey, token: &str) -> Result<String> {
    let response = EksAuth::assume_role(node, CLUSTER, token)?;
    anyhow::ensure!(response.status == 200, "EKS Auth: {}", response.text());
    let answer: Value = serde_json::from_slice(&response.body)?;
    let text = |name: &str| answer.pointer(&format!("/credentials/{name}")).and_then(Value::as_str).unwrap_or_default();
    Ok(json!({
        "AccessKeyId": text("accessKeyId"), "SecretAccessKey": text("secretAccessKey"), "Token": text("sessionToken"),
        "Expiration": answer.pointer("/credentials/expiration"),
    })
    .to_string())
}
