//! AWS of a test node: STS, S3 and IAM that accept only credentials they gave out (moto), and EKS with its pod identity
//! associations (ministack). Both are processes in the node's namespace, which has no uplink.
use std::{env, fs, net::TcpStream, path::PathBuf, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    eks_auth::{CLUSTER, EksAuthSpec, REGION},
    node::Ground,
    process::{Process, binary, eventually},
    sigv4::{AccessKey, Signed},
    token::random_hex,
};

pub mod application;
pub mod call;
pub mod clients;

use call::{Caller, form_value, xml_text};
use clients::Clients;

/// The account of everything here.
pub const ACCOUNT: &str = "123456789012";

/// An address of the node that every pod with a default route reaches: where pods find AWS.
pub const ADDRESS: &str = "10.88.0.1";

const MOTO_PORT: u16 = 5000;
const MINISTACK_PORT: u16 = 4566;

const MINISTACK_SETTINGS: [(&str, &str); 6] = [
    ("BIND_HOST", "127.0.0.1"),
    ("MINISTACK_ACCOUNT_ID", ACCOUNT),
    ("MINISTACK_REGION", REGION),
    ("SERVICES", "eks"),
    // It would listen on more ports.
    ("IOT_MTLS_ENABLED", "0"),
    ("SFTP_ENABLED", "0"),
];

/// For the emulators to come up: under a second each, several times that on a machine that compiles something else.
const STARTS: Duration = Duration::from_secs(30);

/// A statement of a policy that allows `action` on `resource`.
fn policy(action: &[&str], resource: &Value) -> String {
    json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": action, "Resource": resource}]})
        .to_string()
}

/// A server that plays a part of AWS.
#[derive(Debug)]
struct Emulator {
    process: Process,
    port: u16,
    log: PathBuf,
}

/// AWS of one node.
#[derive(Debug)]
pub struct Aws {
    moto: Emulator,
    ministack: Emulator,
    /// May do everything, and is what the tests set things up with.
    administrator: AccessKey,
    /// May assume roles, and is what the EKS Auth stand-in is.
    service: AccessKey,
    ground: Arc<Ground>,
}

impl Aws {
    /// Starts both in a node's namespace, makes the access keys, and switches enforcement on.
    pub(crate) fn start(ground: Arc<Ground>) -> Result<Self> {
        let clients = Clients::find()?;
        ground.netns.ip(&format!("addr add {ADDRESS}/32 dev lo"))?;
        let nobody = AccessKey { id: "test".to_owned(), secret: "test".to_owned() };
        let mut aws = Self {
            moto: Emulator::start(&ground, &clients, "moto_server", MOTO_PORT, &["-H", "0.0.0.0"], &[])?,
            ministack: Emulator::start(&ground, &clients, "ministack", MINISTACK_PORT, &[], &MINISTACK_SETTINGS)?,
            administrator: nobody.clone(),
            service: nobody,
            ground,
        };
        aws.moto.wait_until_it_serves(&aws.ground)?;
        aws.ministack.wait_until_it_serves(&aws.ground)?;
        aws.administrator = aws.user("administrator", &policy(&["*"], &json!("*")))?;
        aws.service = aws.user("eks-auth", &policy(&["sts:AssumeRole", "sts:TagSession"], &json!("*")))?;
        aws.enforce()?;
        let cluster = json!({
            "name": CLUSTER, "roleArn": format!("arn:aws:iam::{ACCOUNT}:role/cluster"), "resourcesVpcConfig": {},
        });
        aws.eks("POST", "/clusters", &cluster)?;
        Ok(aws)
    }

    /// From now on moto accepts only what it gave out itself: keys of its users, and sessions of its STS.
    fn enforce(&self) -> Result<()> {
        let answer = self.ground.netns.within(|| {
            call::exchange(
                &format!("127.0.0.1:{MOTO_PORT}"),
                b"POST /moto-api/reset-auth HTTP/1.1\r\nHost: moto\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\
                  Connection: close\r\n\r\n0",
            )
        })??;
        ensure!(answer.status == 200, "moto does not switch enforcement on: {}", answer.text());
        Ok(())
    }

    /// Makes a user with a key.
    fn user(&self, name: &str, policy: &str) -> Result<AccessKey> {
        self.iam(&[("Action", "CreateUser"), ("UserName", name)])?;
        self.iam(&[
            ("Action", "PutUserPolicy"),
            ("UserName", name),
            ("PolicyName", "may"),
            ("PolicyDocument", policy),
        ])?;
        let answer = self.iam(&[("Action", "CreateAccessKey"), ("UserName", name)])?;
        let text = |element: &str| xml_text(&answer, element).with_context(|| format!("IAM gave no {element}"));
        Ok(AccessKey { id: text("AccessKeyId")?, secret: text("SecretAccessKey")? })
    }

    /// Makes a role that pods may be associated with, and that may list one bucket. Returns its ARN.
    pub fn role(&self, name: &str, bucket: &str) -> Result<String> {
        let trust = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow",
            // EKS asks for the service; moto looks at nothing but the key AWS.
            "Principal": {"Service": "pods.eks.amazonaws.com", "AWS": "*"},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
        }]});
        let made = self.iam(&[
            ("Action", "CreateRole"),
            ("RoleName", name),
            ("AssumeRolePolicyDocument", &trust.to_string()),
        ])?;
        self.iam(&[
            ("Action", "PutRolePolicy"),
            ("RoleName", name),
            ("PolicyName", "may"),
            ("PolicyDocument", &policy(&["s3:ListBucket"], &json!(format!("arn:aws:s3:::{bucket}")))),
        ])?;
        xml_text(&made, "Arn").context("IAM made a role without an ARN")
    }

    /// Makes a bucket with one object in it.
    pub fn bucket(&self, name: &str, key: &str) -> Result<()> {
        let place = format!(
            "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
        );
        self.s3(&format!("/{name}"), place.as_bytes())?;
        self.s3(&format!("/{name}/{key}"), random_hex(16).as_bytes())
    }

    /// Associates a service account with a role.
    pub fn associate(&self, namespace: &str, service_account: &str, role_arn: &str) -> Result<()> {
        let association = json!({"namespace": namespace, "serviceAccount": service_account, "roleArn": role_arn});
        self.eks("POST", &format!("/clusters/{CLUSTER}/pod-identity-associations"), &association)
    }

    /// Where pods reach STS and S3.
    #[must_use]
    pub fn url_for_pods(&self) -> String {
        format!("http://{ADDRESS}:{MOTO_PORT}")
    }

    /// The AWS command line in the node's namespace, as somebody who may do everything.
    pub fn command_line(&self) -> Result<Command> {
        let mut command = Command::new(binary("pod-exec")?);
        command.arg("--netns").arg(self.ground.netns.path()).arg("--").arg(Clients::find()?.python_program("aws"));
        // Nothing of this machine's own AWS settings.
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("AWS_REGION", REGION).env("AWS_DEFAULT_REGION", REGION);
        command
            .env("AWS_ACCESS_KEY_ID", &self.administrator.id)
            .env("AWS_SECRET_ACCESS_KEY", &self.administrator.secret);
        command.env("AWS_ENDPOINT_URL_IAM", self.moto.url()).env("AWS_ENDPOINT_URL_EKS", self.ministack.url());
        Ok(command)
    }

    /// How the EKS Auth stand-in uses it.
    pub(crate) fn for_eks_auth(&self) -> EksAuthSpec {
        EksAuthSpec {
            eks: Some(self.ministack.url()),
            sts: Some(self.moto.url()),
            service: Some(self.service.clone()),
            ..EksAuthSpec::default()
        }
    }

    /// What both have logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        [&self.moto, &self.ministack].map(Emulator::log_text).concat()
    }

    fn iam(&self, parameters: &[(&str, &str)]) -> Result<String> {
        let fields = parameters.iter().chain(&[("Version", "2010-05-08")]);
        let body = fields.map(|(name, value)| format!("{name}={}", form_value(value))).collect::<Vec<_>>().join("&");
        let request = Signed { method: "POST", path: "/", query: "", headers: &[], body: body.as_bytes() };
        let answer = self.call(&self.moto.url(), "iam", &request, "application/x-www-form-urlencoded")?;
        Ok(String::from_utf8(answer)?)
    }

    fn s3(&self, path: &str, body: &[u8]) -> Result<()> {
        let request = Signed { method: "PUT", path, query: "", headers: &[], body };
        self.call(&self.moto.url(), "s3", &request, "application/octet-stream").map(drop)
    }

    fn eks(&self, method: &str, path: &str, body: &Value) -> Result<()> {
        let body = body.to_string();
        let request = Signed { method, path, query: "", headers: &[], body: body.as_bytes() };
        self.call(&self.ministack.url(), "eks", &request, "application/json").map(drop)
    }

    fn call(&self, url: &str, service: &str, request: &Signed<'_>, content_type: &str) -> Result<Vec<u8>> {
        let caller = Caller { key: self.administrator.clone(), region: REGION.to_owned() };
        self.ground.netns.within(|| caller.ask(url, service, request, content_type))?
    }
}

impl Emulator {
    fn start(
        ground: &Ground,
        clients: &Clients,
        program: &str,
        port: u16,
        args: &[&str],
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let home = ground.dir.0.join(program);
        fs::create_dir(&home)?;
        let mut command = Command::new(binary("pod-exec")?);
        command.arg("--netns").arg(ground.netns.path()).arg("--").arg(clients.python_program(program)).args(args);
        // Nothing of this machine's own AWS settings, nor of its proxies.
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("HOME", &home);
        command.env("TMPDIR", &home).env("PYTHONDONTWRITEBYTECODE", "1").envs(settings.iter().copied());
        // Each by its own way to say it; neither minds the other's.
        command.env("GATEWAY_PORT", port.to_string()).env("MOTO_PORT", port.to_string());
        let log = home.join("log");
        Ok(Self { process: Process::start(program, &mut command, &log)?, port, log })
    }

    fn wait_until_it_serves(&mut self, ground: &Ground) -> Result<()> {
        let port = self.port;
        eventually(&format!("{} to serve", self.log.display()), STARTS, || {
            if let Some(status) = self.process.ended()? {
                bail!("it ended with {status}:\n{}", self.log_text());
            }
            Ok(ground.netns.within(|| TcpStream::connect(("127.0.0.1", port)))?.is_ok().then_some(()))
        })
    }

    /// Its URL in the node's namespace.
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}
