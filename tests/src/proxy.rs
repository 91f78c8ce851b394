//! An HTTP proxy that makes tunnels (`CONNECT`), as operators put between their nodes and AWS.
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netns::Netns;

/// A proxy in a network namespace; it takes no more connections once this is dropped.
#[derive(Debug)]
pub struct Proxy {
    listener: TcpListener,
    asked_for: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts one. Whatever it is asked for it finds at `server`: it is its own name server.
    pub fn start(netns: &Netns, server: SocketAddr) -> Result<Self> {
        let listener = netns.within(|| TcpListener::bind("127.0.0.1:0"))?.context("cannot bind a proxy")?;
        let proxy = Self { listener, asked_for: Arc::default() };
        let (listener, asked_for) = (proxy.listener.try_clone()?, Arc::clone(&proxy.asked_for));
        let netns = File::open(netns.path())?;
        thread::spawn(move || -> Result<()> {
            // The threads that this one starts are in the namespace from their beginning.
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            loop {
                // Fails when the proxy is dropped.
                let (client, _) = listener.accept()?;
                let asked_for = Arc::clone(&asked_for);
                thread::spawn(move || tunnel(client, server, &asked_for));
            }
        });
        Ok(proxy)
    }

    /// What `HTTPS_PROXY` is to be.
    pub fn url(&self) -> Result<String> {
        Ok(format!("http://{}", self.listener.local_addr()?))
    }

    /// The hosts and ports that tunnels were asked for, in that order.
    #[must_use]
    pub fn asked_for(&self) -> Vec<String> {
        self.asked_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Wakes the thread that accepts.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn tunnel(mut client: TcpStream, server: SocketAddr, asked_for: &Mutex<Vec<String>>) -> Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(reader.read_line(&mut head)? > 0, "the client hung up");
    }
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let target = target.context("not a request for a tunnel")?.to_owned();
    asked_for.lock().unwrap_or_else(PoisonError::into_inner).push(target);
    let mut upstream = TcpStream::connect(server)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let mut back = (upstream.try_clone()?, client.try_clone()?);
    let returning = thread::spawn(move || {
        let _ = io::copy(&mut back.0, &mut back.1);
        let _ = back.1.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut reader, &mut upstream);
    let _ = upstream.shutdown(Shutdown::Write);
    let _ = returning.join();
    Ok(())
}
