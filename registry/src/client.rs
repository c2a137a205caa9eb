//! The distribution protocol, read side: every answer is bounded, no credential leaves its origin. The write side, which
//! goes by the same rules, is `upload`; `token` is what a request carries to be let in, `http` what it goes out by.

mod http;
mod token;
mod upload;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use self::http::ClientKind;
pub(crate) use self::http::HttpClients;
use self::token::bearer;
use self::upload::Blob;
use crate::RegistryConfig;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::limits::{Limits, MAX_REDIRECTS, MAX_RETRIES, MAX_TOKEN_BYTES};
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;

/// Longest wait that a `Retry-After` can ask for before the request counts as failed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// After so long without an answer, or with a wait ahead, somebody is told: once for each registry that is spoken to.
const NOTICE: Duration = Duration::from_secs(3);
/// First wait before a request is repeated; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);

/// One pull's or push's dealings with one repository on one host, a registry or a mirror of it: scheme, credentials and
/// token are kept between its requests.
#[derive(Debug)]
pub(crate) struct Endpoint<'a> {
    clients: &'a HttpClients,
    config: RegistryConfig,
    limits: Limits,
    reference: Reference,
    /// Host and port that are spoken to.
    address: String,
    /// What it is called: as in references, or as configured.
    name: String,
    credentials: Credentials,
    /// What the registry takes now: a Basic pair or a token, as a header value.
    authorization: tokio::sync::RwLock<Option<HeaderValue>>,
    scheme: &'static str,
    /// Tokens are asked for with the right to push.
    pushes: bool,
    /// Whether somebody was told that it is waited for.
    told: AtomicBool,
}

/// One request, as it is sent, and sent again.
struct Call<'c> {
    method: Method,
    url: Url,
    headers: HeaderMap,
    content: Content<'c>,
    /// What it is called where somebody reads it: an address may carry a secret.
    path: &'c str,
    /// Statuses whose answer is the caller's to judge; others are errors.
    taken: fn(StatusCode) -> bool,
}

/// What a request carries.
enum Content<'c> {
    Bytes(Bytes),
    /// Sent once: what became of it is looked at before it is sent again.
    Blob(&'c Blob<'c>),
}

impl<'a> Endpoint<'a> {
    pub(crate) fn new(
        clients: &'a HttpClients,
        config: RegistryConfig,
        limits: Limits,
        reference: &Reference,
        mirror: Option<&str>,
        credentials: Credentials,
    ) -> Self {
        let address = mirror.unwrap_or(reference.endpoint()).to_owned();
        let plain = speaks_plain_http(&config, &address);
        // A registry's own token needs no challenge: it is what every request carries.
        let authorization = match &credentials {
            Credentials::Bearer(token) => bearer(token.expose()),
            _ => None,
        };
        Self {
            clients,
            config,
            limits,
            reference: reference.clone(),
            address,
            name: mirror.unwrap_or(reference.registry()).to_owned(),
            credentials,
            authorization: authorization.into(),
            scheme: if plain { "http" } else { "https" },
            pushes: false,
            told: AtomicBool::new(false),
        }
    }

    /// The same, for a push.
    pub(crate) fn for_push(self) -> Self {
        Self { pushes: true, ..self }
    }

    /// Its name as written in the reference, or in the configuration.
    pub(crate) fn registry(&self) -> &str {
        &self.name
    }

    /// How many layers may be fetched at once, where that is configured.
    pub(crate) fn max_connections(&self) -> Option<usize> {
        self.config.max_connections
    }

    /// The digest that the registry names for `key` (a tag or digest), by a HEAD request; `None` if it names none.
    pub(crate) async fn head_manifest(&self, key: &str) -> Result<Option<String>> {
        let response = self.request(Method::HEAD, &format!("manifests/{key}"), None).await?;
        Ok(content_digest(&response))
    }

    /// The manifest or index for `key`, whole, with its `Content-Type`. Its digest is the caller's to check.
    pub(crate) async fn manifest(&self, key: &str) -> Result<(Vec<u8>, Option<String>)> {
        let response = self.request(Method::GET, &format!("manifests/{key}"), None).await?;
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let content_type = content_type.map(|text| text.split(';').next().unwrap_or(text).trim().to_owned());
        let what = format!("manifest {key}");
        Ok((self.read_whole(response, &what, self.limits.manifest_bytes).await?, content_type))
    }

    /// A small blob, whole.
    pub(crate) async fn small_blob(&self, digest: &str, limit: u64) -> Result<Vec<u8>> {
        let response = self.request(Method::GET, &format!("blobs/{digest}"), None).await?;
        self.read_whole(response, digest, limit).await
    }

    /// A blob's content from `offset` on, as a response to be read with [`next_chunk`](Self::next_chunk). The second
    /// value says where it really begins: a server may ignore the range and begin at 0.
    pub(crate) async fn blob(&self, digest: &str, offset: u64) -> Result<(Response, u64)> {
        let response = self.request(Method::GET, &format!("blobs/{digest}"), (offset > 0).then_some(offset)).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok((response, 0));
        }
        let begins = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).and_then(range_start);
        match begins {
            Some(begins) if begins <= offset => Ok((response, begins)),
            _ => {
                let answer = "another range than was asked for".to_owned();
                Err(Error::Registry {
                    registry: self.registry().to_owned(),
                    request: format!("GET blob {digest}"),
                    answer,
                })
            }
        }
    }

    /// The next piece of a body; `None` at its end.
    pub(crate) async fn next_chunk(&self, response: &mut Response, what: &str) -> Result<Option<Bytes>> {
        match self.or_tell(tokio::time::timeout(self.limits.no_progress(), response.chunk())).await {
            Ok(chunk) => chunk.map_err(|e| self.unreachable(e)),
            Err(_) => Err(Error::NoProgress {
                registry: self.registry().to_owned(),
                what: what.to_owned(),
                seconds: self.limits.no_progress_seconds,
            }),
        }
    }

    async fn read_whole(&self, mut response: Response, what: &str, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.next_chunk(&mut response, what).await? {
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(Error::TooLarge { what: what.to_owned(), limit, unit: "bytes" });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// One request in the repository that reads.
    async fn request(&self, method: Method, path: &str, range_from: Option<u64>) -> Result<Response> {
        let path = format!("/v2/{}/{path}", self.reference.repository());
        let mut headers = HeaderMap::new();
        for media_type in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX] {
            headers.append(ACCEPT, HeaderValue::from_static(media_type));
        }
        headers.append(ACCEPT, HeaderValue::from_static("*/*;q=0.1"));
        if let Some(range) = range_from.and_then(|n| HeaderValue::from_str(&format!("bytes={n}-")).ok()) {
            headers.insert(RANGE, range);
        }
        let taken = |status| matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
        let (url, content) = (self.url(&path)?, Content::Bytes(Bytes::new()));
        self.perform(&Call { method, url, headers, content, path: &path, taken }).await
    }

    /// Authenticates when asked to, repeats what is worth repeating, and maps statuses.
    async fn perform(&self, call: &Call<'_>) -> Result<Response> {
        let mut authenticated = false;
        let mut attempt = 0;
        let retries = if matches!(call.content, Content::Blob(_)) { 0 } else { MAX_RETRIES };
        loop {
            let response = match self.send(call).await {
                Err(error) if attempt < retries && is_passing(&error) => {
                    attempt += 1;
                    tracing::debug!(path = call.path, attempt, error = %error, "request is repeated");
                    tokio::time::sleep(FIRST_BACKOFF * 2u32.pow(attempt - 1)).await;
                    continue;
                }
                other => other?,
            };
            let status = response.status();
            match status {
                _ if (call.taken)(status) => return Ok(response),
                // Who a redirect, or an upload's address, leads to asks for the registry's credentials, and names who
                // shall get them.
                StatusCode::UNAUTHORIZED if response.url().origin() != self.url("/")?.origin() => {
                    let answer = "401 Unauthorized, where a redirect led";
                    return Err(self.unexpected(&call.method, response.url(), answer));
                }
                StatusCode::UNAUTHORIZED if !authenticated => {
                    authenticated = true;
                    self.authenticate(&response).await?;
                }
                _ if is_busy(status) && attempt < retries => {
                    attempt += 1;
                    let wait = retry_after(&response).unwrap_or(FIRST_BACKOFF * 2u32.pow(attempt));
                    tracing::debug!(path = call.path, %status, attempt, ?wait, "request is repeated");
                    self.or_tell(tokio::time::sleep(wait)).await;
                }
                _ => return Err(self.refusal(&call.method, call.path, response).await),
            }
        }
    }

    fn url(&self, path: &str) -> Result<Url> {
        let text = format!("{}://{}{path}", self.scheme, self.address);
        Url::parse(&text).map_err(|e| Error::InvalidReference {
            reference: self.reference.to_string(),
            reason: format!("it makes no valid address: {e}"),
        })
    }

    /// Sends, following redirects itself: the credentials go to the registry's own origin only.
    async fn send(&self, call: &Call<'_>) -> Result<Response> {
        let origin = self.url("/")?.origin();
        let reads = matches!(call.method, Method::GET | Method::HEAD);
        let mut url = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = call.headers.clone();
            if url.origin() == origin
                && let Some(authorization) = self.authorization.read().await.clone()
            {
                headers.insert(AUTHORIZATION, authorization);
            }
            let mut request = self.client_for(&url)?.request(call.method.clone(), url.clone()).headers(headers);
            let response = match &call.content {
                Content::Bytes(bytes) => {
                    // A request that reads says nothing of a body's length.
                    if !reads {
                        request = request.body(bytes.clone());
                    }
                    self.in_time(request.send()).await?
                }
                Content::Blob(blob) => {
                    let (body, sent) = blob.body();
                    self.in_time_for(blob, sent, request.body(body).send()).await?
                }
            };
            let status = response.status();
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            // The others make another request of one that writes.
            let keeps = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
            let next = location(&response, &url).filter(|_| reads || keeps);
            url = next.ok_or_else(|| self.unexpected(&call.method, &url, "a redirect without a usable location"))?;
        }
        Err(self.unexpected(&call.method, &url, "too many redirects"))
    }

    /// The client for an address; an address that may not be spoken to is an error.
    fn client_for(&self, url: &Url) -> Result<reqwest::Client> {
        let host = url.host_str().unwrap_or_default();
        let loopback = is_loopback(host);
        let own = host_of(&self.address) == host;
        match url.scheme() {
            "https" => {}
            // Elsewhere nobody names services of this machine.
            "http" if loopback && is_loopback(host_of(&self.address)) || own && self.config.plain_http => {}
            _ => return Err(Error::PlainHttp { url: shown(url) }),
        }
        let ca = if own { self.config.ca.clone() } else { None };
        self.clients.get(ClientKind { tls: url.scheme() == "https", proxied: !loopback, ca })
    }

    async fn in_time(&self, request: impl Future<Output = reqwest::Result<Response>>) -> Result<Response> {
        match self.or_tell(tokio::time::timeout(self.limits.no_progress(), request)).await {
            Ok(response) => response.map_err(|e| self.unreachable(e)),
            Err(_) => Err(Error::NoProgress {
                registry: self.registry().to_owned(),
                what: "an answer".into(),
                seconds: self.limits.no_progress_seconds,
            }),
        }
    }

    /// Waits for `work`, and says that it does when it takes its time.
    async fn or_tell<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(NOTICE) => {}
        }
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("waiting for the registry {}", self.registry());
        }
        work.await
    }

    /// The error for a final status.
    async fn refusal(&self, method: &Method, path: &str, response: Response) -> Error {
        let status = response.status();
        let message = self.error_message(response).await;
        let registry = self.registry().to_owned();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Unauthorized {
                registry,
                what: self.reference.repository().to_owned(),
                reason: message.unwrap_or_else(|| status.to_string()),
            },
            StatusCode::NOT_FOUND => {
                let what = match path.rsplit_once("/manifests/") {
                    Some(_) => self.reference.to_string(),
                    None if path.ends_with(upload::UPLOADS) => format!("the repository of {}", self.reference),
                    None => format!("blob {} of {}", path.rsplit('/').next().unwrap_or(path), self.reference),
                };
                Error::NotFound { what, registry }
            }
            _ => Error::Registry {
                registry,
                request: format!("{method} {path}"),
                answer: message.map_or_else(|| status.to_string(), |message| format!("{status}: {message}")),
            },
        }
    }

    /// The first message of an error body, if there is one that can be read.
    async fn error_message(&self, response: Response) -> Option<String> {
        let body = self.read_whole(response, "an error", MAX_TOKEN_BYTES).await.ok()?;
        let answer: ErrorAnswer = serde_json::from_slice(&body).ok()?;
        let error = answer.errors.into_iter().next()?;
        let text = if error.message.is_empty() { error.code } else { error.message };
        Some(text.chars().filter(|c| !c.is_control()).take(300).collect::<String>()).filter(|text| !text.is_empty())
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        // The address may carry a signature in its query: it is not for logs.
        Error::Unreachable { registry: self.registry().to_owned(), source: error.without_url().into() }
    }

    fn unexpected(&self, method: &Method, url: &Url, answer: &str) -> Error {
        Error::Registry {
            registry: self.registry().to_owned(),
            request: format!("{method} {}", shown(url)),
            answer: answer.to_owned(),
        }
    }
}

#[derive(Deserialize)]
struct ErrorAnswer {
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct ErrorItem {
    code: String,
    message: String,
}

/// Whether a failed request may succeed when repeated. A refused connection is an answer; a cut one is not.
pub(crate) fn is_passing(error: &Error) -> bool {
    match error {
        Error::Unreachable { source, .. } => {
            source.downcast_ref::<reqwest::Error>().is_some_and(|e| !e.is_connect() && !e.is_builder())
        }
        _ => false,
    }
}

/// Whether a registry that answers so may answer otherwise when it is asked again.
fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Whether a registry at `address` is spoken to without TLS.
fn speaks_plain_http(config: &RegistryConfig, address: &str) -> bool {
    config.plain_http || is_loopback(host_of(address))
}

/// Whether a host, as in an URL, is this machine.
fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The host of `host[:port]`, brackets kept.
fn host_of(endpoint: &str) -> &str {
    match endpoint.rfind(']') {
        Some(end) => &endpoint[..=end],
        None => endpoint.split(':').next().unwrap_or(endpoint),
    }
}

/// An address without query, user and password.
fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let text = format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path());
    text.chars().take(300).collect()
}

/// Where an answer to a request at `url` leads.
fn location(response: &Response, url: &Url) -> Option<Url> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    url.join(location).ok()
}

fn content_digest(response: &Response) -> Option<String> {
    let value = response.headers().get("docker-content-digest")?.to_str().ok()?;
    crate::reference::is_sha256(value).then(|| value.to_owned())
}

/// Where the range of `bytes 5-9/10` starts.
fn range_start(content_range: &str) -> Option<u64> {
    content_range.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in ["127.0.0.1", "127.8.9.1", "[::1]", "::1", "localhost"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["128.0.0.1", "10.0.0.1", "[::2]", "localhost.example", "127.0.0.1.example", "0.0.0.0", ""] {
            assert!(!is_loopback(host), "{host}");
        }
        assert_eq!((host_of("[::1]:5000"), host_of("a:1"), host_of("a")), ("[::1]", "a", "a"));
    }
}
