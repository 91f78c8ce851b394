//! The HTTP clients: one for AWS's services, through the operator's proxy, and one for instance metadata, which never
//! leaves the node.
//!
//! Both are built here, once: certificates and proxies are read at the start, when a mistake can still be said in one
//! sentence, and all calls share the connections.
use std::{
    env,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use aws_smithy_http_client::{
    Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::{
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
    },
    orchestrator::HttpRequest,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;
use hyper::Uri;

mod names;
mod proxy;
mod short_lived;
mod trust;

pub use names::Names;
pub use proxy::ProxyError;
pub use trust::{Trust, TrustError};

use super::SetupError;
use proxy::Proxies;
use short_lived::ShortLived;

/// The longest answer that is read: EKS Auth's have 2 to 4 KiB, with a long session token 8.
pub(super) const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Idle connections are closed by this side, and earlier than load balancers do it (60 s by default): a request that
/// meets the other side's close on its way fails, and a failed call costs its pod a back-off. Their buffers hold the last
/// call's token and credentials, which are wiped with them (at twice this time at the latest: the pool looks now and then).
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

const TLS: Provider = Provider::Rustls(CryptoMode::Ring);

/// How long parts of a call may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// TCP, the proxy's tunnel and TLS together.
    pub(super) connect: Duration,
    /// Connecting, and then up to the head of the answer. Shorter than `call`, so that it is the connection that failed and
    /// is given up: an HTTP/2 connection that has died silently would take the next call down too.
    pub(super) head: Duration,
    /// The whole call.
    pub(super) call: Duration,
}

/// The clients of this process.
#[derive(Clone, Debug)]
pub(super) struct HttpClients {
    /// For EKS Auth, and for STS where a shared credentials file asks for a role.
    pub(super) services: SharedHttpClient,
    /// For the instance metadata service: no proxy, whatever its address.
    pub(super) metadata: SharedHttpClient,
}

impl HttpClients {
    /// Builds the clients from the process's environment.
    pub(super) fn from_env(trust: Trust, timeouts: Timeouts, names: Names) -> Result<Self, SetupError> {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let proxies = Proxies::read(variable)?;
        Ok(Self::new(proxies, &trust.context()?, timeouts, names))
    }

    /// Without proxies, trusting nobody.
    #[cfg(test)]
    pub(super) fn without_environment(timeouts: Timeouts) -> Self {
        Self::new(Proxies::default(), &trust::nobody(), timeouts, Names::unconfined())
    }

    fn new(proxies: Proxies, trust: &TlsContext, timeouts: Timeouts, names: Names) -> Self {
        let metadata = aws_smithy_http_client::Builder::new()
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .tls_provider(TLS)
            // Metadata has no TLS; the default would read the node's certificates once more.
            .tls_context(trust::nobody())
            .build_with_resolver(names.clone());
        let trust = trust.clone();
        let routes = move || {
            let connector = |proxy| SharedHttpConnector::new(connector(&trust, timeouts, proxy, names.clone()));
            SharedHttpConnector::new(Routes {
                direct: connector(None),
                http: proxies.http.clone().map(|proxy| connector(Some(proxy))),
                https: proxies.https.clone().map(|proxy| connector(Some(proxy))),
            })
        };
        Self {
            services: SharedHttpClient::new(Services(SharedHttpConnector::new(ShortLived::new(routes)))),
            metadata: SharedHttpClient::new(BoundedClient(metadata)),
        }
    }
}

fn connector(trust: &TlsContext, timeouts: Timeouts, proxy: Option<ProxyConfig>, names: Names) -> Bounded {
    let settings =
        HttpConnectorSettings::builder().connect_timeout(timeouts.connect).read_timeout(timeouts.head).build();
    let mut builder = Connector::builder()
        .connector_settings(settings)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tls_provider(TLS)
        .tls_context(trust.clone());
    builder.set_proxy_config(proxy);
    Bounded(SharedHttpConnector::new(builder.build_with_resolver(names)))
}

/// One connector for all clients of services: the SDK would have one pool of connections for each combination of
/// timeouts otherwise.
#[derive(Debug)]
struct Services(SharedHttpConnector);

impl HttpClient for Services {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        self.0.clone()
    }
}

/// The way to a host: straight, or through the proxy of the URL's scheme.
#[derive(Debug)]
struct Routes {
    direct: SharedHttpConnector,
    http: Option<SharedHttpConnector>,
    https: Option<SharedHttpConnector>,
}

impl HttpConnector for Routes {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        // NO_PROXY is applied by the proxied connectors.
        let uri: Option<Uri> = request.uri().parse().ok();
        let proxied = uri.filter(|uri| !stays_on_the_node(uri)).and_then(|uri| match uri.scheme_str() {
            Some("http") => self.http.as_ref(),
            Some("https") => self.https.as_ref(),
            _ => None,
        });
        proxied.unwrap_or(&self.direct).call(request)
    }
}

/// Whether an address means another thing, or nothing, to a proxy: loopback, and the link-local addresses of the
/// instance metadata service. A proxy that answered for metadata would give this node the role of its own host.
fn stays_on_the_node(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse().map(|address: IpAddr| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_loopback() || address.is_unicast_link_local() || is_ec2_local(address),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// `fd00:ec2::/32`, EC2's services on the link: metadata is `fd00:ec2::254`.
fn is_ec2_local(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [0xfd00, 0x0ec2, ..])
}

/// Reads no more of an answer than [`MAX_ANSWER_BYTES`]: the SDK holds whole answers in memory, and whoever answers
/// (a proxy's error page, an impostor on the link) decides how long they are.
#[derive(Debug)]
struct Bounded(SharedHttpConnector);

impl HttpConnector for Bounded {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let answer = self.0.call(request);
        HttpConnectorFuture::new(async move {
            Ok(answer.await?.map(|body| SdkBody::from_body_1_x(Limited::new(body, MAX_ANSWER_BYTES))))
        })
    }
}

/// [`Bounded`] for a client that has a connector for each combination of timeouts.
#[derive(Debug)]
struct BoundedClient(SharedHttpClient);

impl HttpClient for BoundedClient {
    fn http_connector(&self, settings: &HttpConnectorSettings, parts: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(Bounded(self.0.http_connector(settings, parts)))
    }
}

#[cfg(test)]
mod tests;
