//! EKS Auth of a test node: the stand-in's process, and a test's hand on it.
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufReader, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    http1,
    netns::Netns,
    process::{Process, binary, eventually},
    sigv4::{self, AccessKey, Signed},
    standin::control::{Association, Counters, Effect, Rule},
    tls::Issued,
    token::{Issuer, random_hex},
};

/// Where it serves, in the node's namespace.
pub const ADDRESS: &str = "127.0.0.1:4430";

/// Where it serves with TLS: as no address of the node itself, because those are never asked for through a proxy.
pub const TLS_ADDRESS: &str = "10.87.0.1:4430";

/// The other name in its certificate. Nothing on the node resolves it: a proxy may.
pub const TLS_NAME: &str = "eks-auth.test";

/// Another, which every node resolves.
pub const LOCAL_NAME: &str = "localhost";

/// The cluster and region that it knows.
pub const CLUSTER: &str = "test";
/// The region that calls are signed for.
pub const REGION: &str = "eu-central-1";

/// For the process to come up, on a machine that compiles something else.
const STARTS: Duration = Duration::from_secs(10);

/// What the stand-in of a node is to be started with.
#[derive(Clone, Debug, Default)]
pub struct EksAuthSpec {
    /// EKS that knows the associations (`http://ADDRESS:PORT` in the node's namespace).
    pub eks: Option<String>,
    /// STS that gives credentials.
    pub sts: Option<String>,
    /// The stand-in's access key at those.
    pub service: Option<AccessKey>,
    /// Life of made-up credentials in seconds; 6 hours without it.
    pub lifetime_seconds: Option<u64>,
    /// Whether it speaks TLS, with a certificate of an authority of its own.
    pub tls: bool,
}

/// The stand-in of one node.
#[derive(Debug)]
pub struct EksAuth {
    process: Process,
    control: PathBuf,
    log: PathBuf,
    node: AccessKey,
    authority: Option<PathBuf>,
}

impl EksAuth {
    /// Starts it in a node's namespace; it verifies what `issuer` signs.
    pub(crate) fn start(netns: &Netns, dir: &Path, issuer: &Issuer, spec: &EksAuthSpec) -> Result<Self> {
        let (control, log, jwks) = (dir.join("eks-auth.sock"), dir.join("eks-auth.log"), dir.join("jwks.json"));
        fs::write(&jwks, issuer.jwks().to_string())?;
        let node = AccessKey { id: format!("AKIA{}", random_hex(8).to_uppercase()), secret: random_hex(20) };
        let mut command = Command::new(binary("pod-exec")?);
        command.arg("--netns").arg(netns.path()).arg("--").arg(binary("eks-auth-standin")?);
        command.args(["--cluster", CLUSTER, "--region", REGION]);
        let authority = if spec.tls {
            let (address, port) = TLS_ADDRESS.rsplit_once(':').context("an address and a port")?;
            netns.ip(&format!("addr add {address}/32 dev lo"))?;
            let Issued { authority, files } = Issued::make(dir, &[address, TLS_NAME, LOCAL_NAME])?;
            command.args(["--listen", &format!("0.0.0.0:{port}")]);
            command.arg("--tls-certificate").arg(files.certificate).arg("--tls-key").arg(files.key);
            Some(authority)
        } else {
            command.args(["--listen", ADDRESS]);
            None
        };
        command.arg("--control").arg(&control).arg("--jwks").arg(&jwks);
        command.args(["--node-access-key", &node.id, "--node-secret", &node.secret]);
        for (flag, url) in [("--eks", &spec.eks), ("--sts", &spec.sts)] {
            if let Some(url) = url {
                command.args([flag, url]);
            }
        }
        if let Some(key) = &spec.service {
            command.env("AWS_ACCESS_KEY_ID", &key.id).env("AWS_SECRET_ACCESS_KEY", &key.secret);
        }
        if let Some(seconds) = spec.lifetime_seconds {
            command.args(["--lifetime-seconds", &seconds.to_string()]);
        }
        let process = Process::start("the EKS Auth stand-in", &mut command, &log)?;
        Ok(Self { process, control, log, node, authority })
    }

    /// Waits until it serves.
    pub(crate) fn wait_until_it_serves(&mut self) -> Result<()> {
        let (process, control, log) = (&mut self.process, &self.control, &self.log);
        eventually("the EKS Auth stand-in to serve", STARTS, || {
            if let Some(status) = process.ended()? {
                anyhow::bail!("it ended with {status}:\n{}", fs::read_to_string(log).unwrap_or_default());
            }
            // The control socket is bound after the other.
            Ok(UnixStream::connect(control).is_ok().then_some(()))
        })
    }

    /// Its URL in the node's namespace.
    #[must_use]
    pub fn url(&self) -> String {
        if self.authority.is_some() { format!("https://{TLS_ADDRESS}") } else { format!("http://{ADDRESS}") }
    }

    /// The same under a name of its certificate.
    pub fn url_of(&self, name: &str) -> Result<String> {
        ensure!(self.authority.is_some(), "this EKS Auth has a name only with TLS");
        let (_, port) = TLS_ADDRESS.rsplit_once(':').context("an address and a port")?;
        Ok(format!("https://{name}:{port}"))
    }

    /// File with the certificate of the authority that issued its own.
    pub fn authority(&self) -> Result<&Path> {
        self.authority.as_deref().context("this EKS Auth speaks no TLS")
    }

    /// The node's access key, by which it knows the node.
    #[must_use]
    pub fn node_key(&self) -> &AccessKey {
        &self.node
    }

    /// The node has another access key from now on, and the one before is refused.
    pub fn replace_node_key(&self, key: &AccessKey) -> Result<()> {
        self.tell("POST", "/node-key", key)
    }

    /// Tokens are signed with the keys of this set from now on, and with those before no more.
    pub fn replace_issuer_keys(&self, key_set: &Value) -> Result<()> {
        self.tell("POST", "/keys", key_set)
    }

    /// Associates a service account with a role of account 123456789012.
    pub fn associate(&self, namespace: &str, service_account: &str, role: &str) -> Result<()> {
        self.tell(
            "POST",
            "/associations",
            &Association {
                namespace: namespace.to_owned(),
                service_account: service_account.to_owned(),
                role_arn: format!("arn:aws:iam::123456789012:role/{role}"),
            },
        )
    }

    /// Adds a misbehaviour.
    pub fn rule(&self, rule: &Rule) -> Result<()> {
        self.tell("POST", "/rules", rule)
    }

    /// Every call from now on has this effect.
    pub fn always(&self, effect: Effect) -> Result<()> {
        self.rule(&Rule { effect: Some(effect), ..Rule::default() })
    }

    /// The next `times` calls have this effect.
    pub fn next(&self, times: u32, effect: Effect) -> Result<()> {
        self.rule(&Rule { times: Some(times), effect: Some(effect), ..Rule::default() })
    }

    /// Every call from now on is answered so much later.
    pub fn delay(&self, by: Duration) -> Result<()> {
        self.rule(&Rule { delay_ms: u64::try_from(by.as_millis())?, ..Rule::default() })
    }

    /// Every call from now on is answered with this error.
    pub fn fail(&self, status: u16, code: &str, message: &str) -> Result<()> {
        self.always(Effect::Error { status, code: code.to_owned(), message: message.to_owned() })
    }

    /// Ends all misbehaviour.
    pub fn behave(&self) -> Result<()> {
        self.tell("DELETE", "/rules", &json!({}))
    }

    /// What it was asked so far.
    pub fn counters(&self) -> Result<Counters> {
        Ok(serde_json::from_slice(&self.ask("GET", "/counters", b"")?.body)?)
    }

    /// Calls made for a pod so far.
    pub fn calls_for(&self, pod_uid: &str) -> Result<u64> {
        Ok(self.counters()?.by_pod_uid.get(pod_uid).copied().unwrap_or_default())
    }

    /// How calls were answered so far: `ok`, or errors' types.
    pub fn outcomes(&self) -> Result<BTreeMap<String, u64>> {
        Ok(self.counters()?.by_outcome)
    }

    /// A call as the agent's SDK makes it, signed by `key`, made where the calling thread is: the node's namespace.
    pub fn assume_role(key: &AccessKey, cluster: &str, token: &str) -> Result<http1::Response> {
        let path = format!("/clusters/{cluster}/assume-role-for-pod-identity");
        let body = json!({"token": token}).to_string();
        let request = Signed { method: "POST", path: &path, query: "", headers: &[], body: body.as_bytes() };
        let mut text = format!("POST {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in sigv4::sign(key, REGION, "eks-auth", ADDRESS, &request) {
            write!(text, "{name}: {value}\r\n")?;
        }
        let mut stream = TcpStream::connect(ADDRESS)?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(format!("{text}\r\n{body}").as_bytes())?;
        http1::read_response(&mut BufReader::new(stream), false)
    }

    fn tell(&self, method: &str, path: &str, what: &impl Serialize) -> Result<()> {
        let response = self.ask(method, path, serde_json::to_string(what)?.as_bytes())?;
        ensure!(response.status == 200, "the stand-in does not take {method} {path}: {}", response.text());
        Ok(())
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<http1::Response> {
        let mut stream = UnixStream::connect(&self.control).context("the EKS Auth stand-in is gone")?;
        stream.set_read_timeout(Some(STARTS))?;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        http1::read_response(&mut BufReader::new(stream), false)
    }
}
