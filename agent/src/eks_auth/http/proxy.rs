//! The operator's proxies, from the variables that AWS's agent reads.
use std::ffi::OsString;

use aws_smithy_http_client::proxy::ProxyConfig;
use hyper::Uri;

/// A proxy for each scheme of URLs. `NO_PROXY` is part of them.
#[derive(Default)]
pub(super) struct Proxies {
    pub(super) http: Option<ProxyConfig>,
    pub(super) https: Option<ProxyConfig>,
}

/// A variable does not hold a proxy. Its value is not shown: it may hold a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{variable} is no HTTP proxy: use http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, \
     special characters in the password written as %XX"
)]
pub struct ProxyError {
    /// The variable's name.
    variable: &'static str,
}

impl Proxies {
    /// Reads `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, each in capitals or else in small letters.
    pub(super) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ProxyError> {
        let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, variable(name)?)));
        let exceptions = match first(["NO_PROXY", "no_proxy"]) {
            Some((name, value)) => value.into_string().map_err(|_| ProxyError { variable: name })?,
            None => String::new(),
        };
        let read = |names, for_scheme: fn(String) -> Option<ProxyConfig>| {
            let Some((name, value)) = first(names) else { return Ok(None) };
            let (config, address) = proxy(value, for_scheme).ok_or(ProxyError { variable: name })?;
            tracing::info!(variable = name, proxy = address, except = exceptions, "EKS Auth is called through a proxy");
            Ok(Some(config.no_proxy(&exceptions)))
        };
        Ok(Self {
            http: read(["HTTP_PROXY", "http_proxy"], |url| ProxyConfig::http(url).ok())?,
            https: read(["HTTPS_PROXY", "https_proxy"], |url| ProxyConfig::https(url).ok())?,
        })
    }
}

/// The proxy at a URL, and where it is, without user and password.
fn proxy(url: OsString, for_scheme: fn(String) -> Option<ProxyConfig>) -> Option<(ProxyConfig, String)> {
    let url = url.into_string().ok()?;
    let url = if url.contains("://") { url } else { format!("http://{url}") };
    // A parser would end the address there: what is left of a password would be taken for a host, and shown.
    if url.contains(['#', '?']) {
        return None;
    }
    let uri: Uri = url.parse().ok()?;
    let host = uri.host().filter(|host| !host.is_empty())?;
    let address = uri.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Some((for_scheme(url)?, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<(bool, bool), ProxyError> {
        let proxies = Proxies::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })?;
        Ok((proxies.http.is_some(), proxies.https.is_some()))
    }

    #[test]
    fn each_scheme_has_its_own_variable_in_either_case() {
        assert_eq!(read(&[]), Ok((false, false)));
        assert_eq!(read(&[("HTTPS_PROXY", "http://proxy:3128")]), Ok((false, true)));
        assert_eq!(read(&[("http_proxy", "proxy:3128")]), Ok((true, false)));
        assert_eq!(read(&[("NO_PROXY", "a,b")]), Ok((false, false)));
    }

    #[test]
    fn a_mistake_is_named_without_the_password() {
        for value in ["socks5://user:hunter2@proxy:1080", "http://user:hunter2#3@proxy", "http://", "http://a b"] {
            let error = read(&[("https_proxy", value)]).unwrap_err().to_string();
            assert!(error.starts_with("https_proxy is no HTTP proxy"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_is_logged_about_a_proxy_is_its_address_alone() {
        let (_, address) =
            proxy("http://user:hunter2@proxy.example:3128/".into(), |url| ProxyConfig::https(url).ok()).unwrap();
        assert_eq!(address, "proxy.example:3128");
    }
}
