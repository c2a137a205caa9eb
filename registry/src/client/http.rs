//! HTTP clients, and whom they trust.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::error::{Error, Result};

/// Time to a TCP connection and a TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest file of certificates: a system's bundle has a quarter of a megabyte.
const MAX_CA_BYTES: u64 = 4 << 20;

/// HTTP clients of one process, made when first needed: loading the system's CA certificates takes tens of
/// milliseconds, which a loopback registry should not cost.
#[derive(Debug, Default)]
pub(crate) struct HttpClients(Mutex<HashMap<ClientKind, reqwest::Client>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClientKind {
    pub tls: bool,
    pub proxied: bool,
    pub ca: Option<PathBuf>,
}

impl HttpClients {
    pub(super) fn get(&self, kind: ClientKind) -> Result<reqwest::Client> {
        let mut clients = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(client) = clients.get(&kind) {
            return Ok(client.clone());
        }
        let client = kind.build()?;
        clients.insert(kind, client.clone());
        Ok(client)
    }
}

/// The certificates of a PEM file.
fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>> {
    let mut pem = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_CA_BYTES + 1).read_to_end(&mut pem));
    read.map_err(|e| Error::io("reading CA certificates from", path, e))?;
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
    if pem.len() as u64 > MAX_CA_BYTES {
        return Err(damaged(format!("it is longer than {MAX_CA_BYTES} bytes")));
    }
    let found =
        reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| damaged(format!("no PEM certificates: {e}")))?;
    if found.is_empty() {
        return Err(damaged("there is no PEM certificate in it".to_owned()));
    }
    Ok(found)
}

impl ClientKind {
    fn build(&self) -> Result<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT);
        if !self.proxied {
            // Loopback: no proxy, and the name means this machine whatever a resolver says.
            let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            builder =
                builder.no_proxy().resolve_to_addrs("localhost", &loopback.map(|address| SocketAddr::new(address, 0)));
        }
        if !self.tls {
            builder = builder.tls_certs_only([]);
        } else if let Some(path) = &self.ca {
            builder = builder.tls_certs_merge(certificates(path)?);
        }
        builder.build().map_err(|e| Error::Unreachable { registry: "(HTTP client)".into(), source: e.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_or_without_an_end_is_damaged() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        for (path, said) in [(Path::new("/dev/zero"), "longer than"), (empty.path(), "no PEM certificate")] {
            let error = certificates(path).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains(said), "{error}");
        }
    }
}
