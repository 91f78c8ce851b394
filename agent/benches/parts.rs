//! The parts of an answer, one by one: `cargo bench -p pod-identity-agent --bench parts` (root, for the map).
use std::{
    hint::black_box,
    net::{TcpListener, TcpStream},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use criterion::{Criterion, criterion_group, criterion_main};
use pod_identity_agent::{
    attestation::diag::DiagSocket,
    cgroup::path::Driver,
    credentials::{Grant, Issued},
    netns::NetnsSockets,
    steering::{Steering, Targets},
    token::{ServiceAccountToken, TokenDigest},
};
use zeroize::Zeroizing;

const POD: &str = "0c2ad6e1-5d1b-4f5e-9a37-77d0f0a4be01";
const EXPIRES: u64 = 4_000_000_000;

/// As long as the kubelet's, signature included.
fn token() -> String {
    let payload = format!(
        r#"{{"aud":["pods.eks.amazonaws.com"],"exp":{EXPIRES},"iat":1700000000,"nbf":1700000000,
        "iss":"https://oidc.eks.eu-central-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF",
        "jti":"{POD}","kubernetes.io":{{"namespace":"shop","node":{{"name":"ip-10-0-0-1","uid":"{POD}"}},
        "pod":{{"name":"cart-0","uid":"{POD}"}},"serviceaccount":{{"name":"cart","uid":"{POD}"}},"warnafter":1700003607}},
        "sub":"system:serviceaccount:shop:cart"}}"#
    );
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let header = part(br#"{"alg":"RS256","kid":"0123456789abcdef0123456789abcdef01234567"}"#);
    format!("{header}.{}.{}", part(payload.as_bytes()), part(&[7; 256]))
}

fn tokens(criterion: &mut Criterion) {
    let token = token();
    criterion.bench_function("token: digest, for each request", |bencher| {
        bencher.iter(|| TokenDigest::of(black_box(&token)));
    });
    let now = SystemTime::now();
    criterion.bench_function("token: claims, where it is not known", |bencher| {
        bencher.iter(|| ServiceAccountToken::parse(black_box(&token)).unwrap().validate(now).unwrap());
    });
}

fn cgroups(criterion: &mut Criterion) {
    let driver = Driver::of_root("kubepods.slice").unwrap();
    let pod = POD.replace('-', "_");
    let container = "cd".repeat(32);
    let path = format!("/kubepods-burstable.slice/kubepods-burstable-pod{pod}.slice/cri-containerd-{container}.scope");
    criterion.bench_function("cgroup: path to pod", |bencher| bencher.iter(|| driver.place(black_box(&path))));
}

fn attestation(criterion: &mut Criterion) {
    let diag = DiagSocket::open().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _accepted = listener.accept().unwrap();
    let (local, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    criterion.bench_function("netlink: question and answer", |bencher| {
        bencher.iter(|| diag.lookup(black_box(local), peer).unwrap());
    });
}

fn responses(criterion: &mut Criterion) {
    let grant = Grant {
        access_key_id: "ASIAIOSFODNN7EXAMPLE".to_owned(),
        secret_access_key: Zeroizing::new("k".repeat(40)),
        session_token: Zeroizing::new("t".repeat(1000)),
        account_id: "123456789012".to_owned(),
        association_id: "a-0123456789".to_owned(),
        expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(EXPIRES),
    };
    let now = SystemTime::now();
    criterion.bench_function("response: body, for each fetch", |bencher| {
        bencher.iter(|| Issued::new(black_box(&grant), now).unwrap());
    });
}

fn map(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    // Loaded, and attached nowhere.
    let targets = Targets { v4: true, v6: true, port: 80, listener_ports: 706..=737, pace: true };
    let (steering, _events) = Steering::load(&targets, false).expect("loading programs needs root");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let sockets = NetnsSockets { v4: listener, v6: None, diag: DiagSocket::open().unwrap(), cookie: 1 };
    criterion.bench_function("map: a listener in and out", |bencher| {
        bencher.iter(|| {
            steering.insert(&sockets).unwrap();
            steering.remove(sockets.cookie);
        });
    });
}

criterion_group!(parts, tokens, cgroups, attestation, responses, map);
criterion_main!(parts);
