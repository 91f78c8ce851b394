//! Where secrets are, and where they are not: in memory while they are needed, and nowhere else, and not for longer.
use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    agent::{Agent, AgentSpec},
    client::{Answer, Client},
    eks_auth::{EksAuthSpec, LOCAL_NAME},
    memory::{Found, Image},
    node::{Node, NodeSpec},
    pod::Pod,
    process::eventually,
};

use crate::common::must_be_granted;

/// By then nothing of an ended pod is left. Buffers of connections to EKS Auth hold the last call until they are written
/// over or closed: idle ones after 10 to 20 s, busy ones after 30.
const FORGOTTEN: Duration = Duration::from_mins(1);

/// Between two looks: the agent stands still for each.
const LOOK: Duration = Duration::from_secs(1);

/// A node with EKS Auth over TLS, under a name that has to be resolved.
struct Secured {
    agent: Agent,
    node: Node,
}

fn secured(eks_auth: EksAuthSpec, flags: &[&str]) -> Result<Secured> {
    let eks_auth = EksAuthSpec { tls: true, ..eks_auth };
    let node = Node::with(NodeSpec { eks_auth, ..NodeSpec::default() })?;
    let mut spec = AgentSpec::flags(&["--endpoint", &node.eks_auth().url_of(LOCAL_NAME)?]);
    spec.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
    spec.env = vec![("AWS_CA_BUNDLE".to_owned(), node.eks_auth().authority()?.display().to_string())];
    let agent = node.agent_with(&spec)?;
    Ok(Secured { agent, node })
}

/// What nobody but a pod and AWS may know.
struct Secrets {
    token: String,
    granted: Answer,
}

impl Secrets {
    fn of(pod: &Pod, granted: Answer) -> Self {
        Self { token: pod.token().to_owned(), granted }
    }

    fn credentials_in(&self, image: &Image) -> Vec<Found> {
        let mut found = image.pieces_of("the secret access key", &self.granted.member("SecretAccessKey"));
        // All session tokens begin alike.
        let session = self.granted.member("Token");
        found.extend(image.pieces_of("the session token", session.get(16..).unwrap_or_default()));
        found
    }

    /// Without its signature it is no token; header and claims are much the same in all of them.
    fn token_in(&self, image: &Image) -> Vec<Found> {
        image.pieces_of("the service account token", self.token.rsplit('.').next().unwrap_or_default())
    }
}

/// Credentials, after more than one try where a handshake on a busy machine takes longer than a pod is kept waiting.
fn granted(pod: &Pod) -> Result<Answer> {
    eventually("credentials over TLS", Duration::from_secs(20), || {
        Ok(Some(pod.credentials()?).filter(|answer| answer.status == Some(200)))
    })
}

/// Waits until nothing of this pod is left, and returns the image that shows it.
fn wait_until_forgotten(agent: &Agent, secrets: &Secrets) -> Result<Image> {
    let (mut left, started) = (Vec::new(), Instant::now());
    let forgotten = eventually("a pod's secrets to be gone from memory", FORGOTTEN, || {
        let image = agent.image()?;
        left = [secrets.credentials_in(&image), secrets.token_in(&image)].concat();
        if left.is_empty() {
            println!("nothing is left in {} bytes after {:?}", image.len(), started.elapsed());
            return Ok(Some(image));
        }
        thread::sleep(LOOK);
        Ok(None)
    });
    forgotten.with_context(|| shown(&left))
}

fn shown(found: &[Found]) -> String {
    found.iter().map(Found::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_pod_that_has_ended_leaves_none_of_its_secrets_in_memory() -> Result<()> {
    let Secured { agent, node, .. } = &secured(EksAuthSpec::default(), &[])?;
    let (pod, other) = (node.pod("app")?, node.pod("other")?);
    let others = Secrets::of(&other, granted(&other)?);
    // Long enough to look at what it takes to fetch, and with the connection made no longer than a client waits.
    node.eks_auth().delay(Duration::from_millis(500))?;
    let client = Client::with_token(pod.token());
    let granted = thread::scope(|scope| -> Result<Answer> {
        let asking = scope.spawn(|| pod.ask_once(&client));
        agent.wait_for_metric("pod_identity_connections", 1.0, Duration::from_secs(5))?;
        thread::sleep(Duration::from_millis(300));
        let image = agent.image()?;
        ensure!(!Secrets::of(&pod, Answer::default()).token_in(&image).is_empty(), "the scan does not find a token");
        asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    })?;
    must_be_granted(&granted)?;
    let secrets = Secrets::of(&pod, granted);
    let image = agent.image()?;
    ensure!(!secrets.credentials_in(&image).is_empty(), "the scan does not find credentials that are served");
    pod.remove()?;
    let last = wait_until_forgotten(agent, &secrets)?;
    ensure!(!others.credentials_in(&last).is_empty(), "the scan finds nothing any more");
    other.must_get_credentials().map(|_| ())
}

#[test]
fn credentials_that_were_replaced_are_gone_from_memory() -> Result<()> {
    // Renewed at half of it, less jitter.
    let eks_auth = EksAuthSpec { lifetime_seconds: Some(24), ..EksAuthSpec::default() };
    let Secured { agent, node, .. } = &secured(eks_auth, &[])?;
    let pod = node.pod("app")?;
    let first = Secrets::of(&pod, granted(&pod)?);
    ensure!(!first.credentials_in(&agent.image()?).is_empty(), "the scan does not find credentials that are served");
    let second = eventually("a renewal", Duration::from_secs(20), || {
        let answer = pod.credentials()?;
        Ok((answer.status == Some(200) && answer.body != first.granted.body).then_some(answer))
    })?;
    let second = Secrets::of(&pod, second);
    ensure!(!second.credentials_in(&agent.image()?).is_empty(), "the scan does not find credentials that are served");
    wait_until_forgotten(agent, &first).map(|_| ())
}

#[test]
fn secrets_are_in_memory_only() -> Result<()> {
    let Secured { agent, node, .. } = &secured(EksAuthSpec::default(), &["-v", "trace", "--prefetch=true"])?;
    let (pod, thief) = (node.pod("app")?, node.pod("thief")?);
    let secrets = Secrets::of(&pod, granted(&pod)?);
    thief.ask_once(&Client::with_token(pod.token()))?;
    pod.ask_once(&Client::with_token(pod.token()).path(&format!("/{}", pod.token())))?;
    node.eks_auth().fail(400, "InvalidTokenException", &format!("{} is no good", thief.token()))?;
    thief.credentials()?;
    agent.wait_for_log(&["DEBUG"], Duration::from_secs(5))?;
    let mut told = vec![("the log".to_owned(), agent.log_text().into_bytes())];
    for path in ["/metrics", "/healthz", "/readyz", "/", "/status"] {
        told.push((path.to_owned(), agent.admin(path)?.body));
    }
    for file in ["environ", "cmdline", "comm", "status", "mountinfo"] {
        told.push((file.to_owned(), fs::read(format!("/proc/{}/{file}", agent.pid()))?));
    }
    // Nothing else can be written to: see `confinement::the_file_system_is_read_only`.
    for entry in fs::read_dir(agent.run_dir())? {
        let path = entry?.path();
        if path.is_file() {
            told.push((path.display().to_string(), fs::read(path)?));
        }
    }
    ensure!(told.iter().any(|(_, said)| !said.is_empty()));
    let said: Vec<_> = told.iter().map(|(place, bytes)| Image::of(place, bytes)).collect();
    for image in &said {
        let found = [secrets.credentials_in(image), secrets.token_in(image)].concat();
        ensure!(found.is_empty(), "{}", shown(&found));
        let thiefs = Secrets { token: thief.token().to_owned(), granted: Answer::default() }.token_in(image);
        ensure!(thiefs.is_empty(), "{}", shown(&thiefs));
    }
    // The same search does find what is said: the node's own key, which the operator put into the environment.
    let node_key = &node.eks_auth().node_key().secret;
    let said_by_environ = said.iter().flat_map(|image| image.pieces_of("the node's key", node_key)).collect::<Vec<_>>();
    ensure!(said_by_environ.iter().all(|found| found.region == "environ") && !said_by_environ.is_empty());
    Ok(())
}
