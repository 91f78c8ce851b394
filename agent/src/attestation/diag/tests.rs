use std::net::{TcpListener, TcpStream};

use proptest::prelude::*;

use super::*;

fn pair(address: &str) -> Option<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(address).ok()?;
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    Some((client, accepted))
}

#[test]
fn finds_the_other_end_of_a_connection_with_its_cgroup() {
    let diag = DiagSocket::open().unwrap();
    let (client, accepted) = pair("127.0.0.1:0").unwrap();
    let (local, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let info = diag.lookup(local, peer).unwrap();
    assert_eq!((info.local, info.peer, info.state), (local, peer, 1));
    let mounts = crate::cgroup::mount::CgroupMount::all().unwrap();
    assert_eq!(info.cgroup, Some(crate::cgroup::mount::own_cgroup_id(&mounts).unwrap()));
    assert_eq!(info.uid, rustix::process::getuid().as_raw());
    drop(accepted);
}

#[test]
fn a_mapped_socket_answers_to_its_ipv4_addresses() {
    let diag = DiagSocket::open().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Ok(client) = TcpStream::connect(format!("[::ffff:127.0.0.1]:{port}")) else {
        panic!("this test needs an IPv6 capable kernel");
    };
    let (_accepted, from) = listener.accept().unwrap();
    let to = listener.local_addr().unwrap();
    let info = diag.lookup(from, to).unwrap();
    assert_eq!((info.local, info.peer), (from, to));
    drop(client);
}

#[test]
fn a_socket_that_does_not_exist_is_not_found() {
    let diag = DiagSocket::open().unwrap();
    let answer = diag.lookup("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
    assert!(matches!(answer, Err(DiagError::NotFound)), "{answer:?}");
}

#[test]
fn a_lookup_that_falls_back_to_a_listener_shows_other_addresses() {
    let diag = DiagSocket::open().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap();
    let info = diag.lookup(local, "127.0.0.1:9".parse().unwrap()).unwrap();
    assert_ne!(info.peer.port(), 9);
    assert_eq!(info.state, 10);
}

fn answer(family: u8, attributes: &[u8]) -> Vec<u8> {
    let mut message = vec![family, 1, 0, 0];
    message.extend(4660_u16.to_be_bytes());
    message.extend(706_u16.to_be_bytes());
    for _ in 0..2 {
        message.extend([127, 0, 0, 1]);
        message.extend([0; 12]);
    }
    message.extend([0; 12]);
    message.extend([0; 12]);
    message.extend(1000_u32.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(attributes);
    let mut bytes = u32::try_from(message.len() + HEADER_BYTES).unwrap().to_ne_bytes().to_vec();
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend([0; 10]);
    bytes.extend(message);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[test]
fn attributes_before_the_cgroup_are_passed_over() {
    let mut attributes = attribute(6, &[7]);
    attributes.extend(attribute(INET_DIAG_CGROUP_ID, &99_u64.to_ne_bytes()));
    let info = parse(&answer(2, &attributes)).unwrap();
    assert_eq!(info.cgroup, Some(CgroupId(99)));
    assert_eq!(info.local, "127.0.0.1:4660".parse().unwrap());
    assert_eq!(info.peer, "127.0.0.1:706".parse().unwrap());
    assert_eq!(info.uid, 1000);
}

#[test]
fn no_cgroup_and_cgroup_zero_are_none() {
    assert_eq!(parse(&answer(2, &[])).unwrap().cgroup, None);
    let zero = attribute(INET_DIAG_CGROUP_ID, &0_u64.to_ne_bytes());
    assert_eq!(parse(&answer(2, &zero)).unwrap().cgroup, None);
    let short = attribute(INET_DIAG_CGROUP_ID, &[1, 2]);
    assert_eq!(parse(&answer(2, &short)).unwrap().cgroup, None);
    // A length of zero must not be walked for ever.
    assert_eq!(parse(&answer(2, &[0, 0, 6, 0, 0, 0, 0, 0])).unwrap().cgroup, None);
}

#[test]
fn other_families_and_other_messages_are_refused() {
    assert!(matches!(parse(&answer(1, &[])), Err(DiagError::Malformed(_))));
    let mut done = answer(2, &[]);
    done[4] = 3;
    assert!(matches!(parse(&done), Err(DiagError::Malformed(_))));
    assert!(matches!(parse(&[]), Err(DiagError::Malformed(_))));
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic(bytes: Vec<u8>) {
        let _ = parse(&bytes);
    }

    #[test]
    fn no_damaged_answer_makes_it_panic(at in 0_usize..120, value: u8, cut in 0_usize..120) {
        let mut bytes = answer(2, &attribute(INET_DIAG_CGROUP_ID, &99_u64.to_ne_bytes()));
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(cut);
        let _ = parse(&bytes);
    }
}
