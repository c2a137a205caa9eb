//! A registry of the suite's own on the loopback: it counts who asks, wants credentials, and can hold a blob back.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::case::{Case, OrStop, Stop, Verdict};
use crate::spec::CommandSpec;
use crate::{AgentError, PullPolicy, RegistryAuth, ServiceSpec};

/// Bytes in the one file of an image, enough for a transfer to be in the middle of it.
const FILE_BYTES: usize = 200_000;
/// How a client begins that speaks TLS: it is hung up on at once, and comes again without.
const TLS_HANDSHAKE: u8 = 22;
/// Longest request that is read.
const MAX_REQUEST_BYTES: usize = 16 << 10;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Serves until it is dropped.
pub(super) struct Registry {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Whether blobs are sent whole.
    flows: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    connections: usize,
    /// What was said in `Authorization`, request by request.
    credentials: Vec<Option<String>>,
    /// What must be said there.
    wanted: Option<String>,
    /// By tag and by digest, of all repositories.
    manifests: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    /// How often a blob was begun and held back.
    held_back: usize,
}

/// An image of one layer with one file: nothing in it can be executed.
pub(super) struct Image {
    /// Of its manifest.
    pub(super) digest: String,
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Registry {
    pub(super) async fn start() -> Verdict<Self> {
        let failed = |error: std::io::Error| Stop::Failed(format!("the suite's registry: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared { state: Mutex::default(), flows: watch::Sender::new(true) });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, shared.clone()));
        Ok(Self { address, shared, _server: server })
    }

    /// Makes `image` what `tag` stands for; returns its reference, which is untagged when the check is over.
    pub(super) fn push(&self, case: &Case, tag: &str, image: &Image) -> String {
        let mut state = self.shared.state();
        for blob in [&image.config, &image.layer] {
            state.blobs.insert(digest_of(blob), blob.clone());
        }
        for name in [tag, &image.digest] {
            state.manifests.insert(name.to_owned(), image.manifest.clone());
        }
        let reference = format!("{}:{tag}", self.repository());
        case.made_image(&reference);
        reference
    }

    /// Its one repository.
    pub(super) fn repository(&self) -> String {
        format!("{}/conformance/image", self.address)
    }

    /// Refuses every request without this `Authorization` from now on.
    pub(super) fn want(&self, authorization: Option<&str>) {
        let mut state = self.shared.state();
        state.wanted = authorization.map(str::to_owned);
        state.credentials.clear();
    }

    /// Whether any request since then had this `Authorization`.
    pub(super) fn was_told(&self, authorization: Option<&str>) -> bool {
        self.shared.state().credentials.iter().any(|told| told.as_deref() == authorization)
    }

    /// How often it was connected to.
    pub(super) fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Holds the second half of every blob back, or lets all go on.
    pub(super) fn hold_back(&self, hold: bool) {
        self.shared.flows.send_replace(!hold);
    }

    /// How often a blob was begun and held back.
    pub(super) fn held_back(&self) -> usize {
        self.shared.state().held_back
    }

    /// Pulls `reference`; a backend that does not come here cannot be asked.
    pub(super) async fn pull(
        &self,
        case: &Case,
        reference: &str,
        policy: PullPolicy,
        auth: Option<&RegistryAuth>,
    ) -> Verdict {
        let pulled = case.runtime().pull_image_with_policy(reference, policy, auth).await;
        let is_refused = matches!(pulled, Err(AgentError::Unsupported(_)));
        if pulled.is_err() && !is_refused && self.connections() == 0 {
            return Err(Stop::Unsupported(
                "the backend does not come to a registry on the suite's loopback".to_owned(),
            ));
        }
        pulled.or_unsupported(&format!("a pull of {reference}"))
    }
}

impl Image {
    /// One that differs from another by `text`.
    pub(super) fn new(text: &str) -> Self {
        Self::with_layer_of(text, text)
    }

    /// One whose layer is that of all that have the same `file`.
    pub(super) fn with_layer_of(file: &str, text: &str) -> Self {
        let layer = tar(file.repeat(FILE_BYTES.div_ceil(file.len().max(1))).as_bytes());
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/conformance"], "Labels": {"text": text}},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let descriptor = |kind: &str, content: &[u8]| {
            serde_json::json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": digest_of(content),
                "size": content.len(),
            })
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor("config.v1+json", &config),
            "layers": [descriptor("layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        Self { digest: digest_of(&manifest), manifest, config, layer }
    }

    /// Of its layer and config.
    pub(super) fn size_bytes(&self) -> u64 {
        (self.layer.len() + self.config.len()) as u64
    }
}

/// A spec that makes a container of such an image, which cannot be started, without asking the registry.
pub(super) fn container_of(reference: &str) -> ServiceSpec {
    let mut spec = ServiceSpec::new(reference);
    spec.image.pull_policy = PullPolicy::Never;
    spec.command = CommandSpec { entrypoint: Some(vec!["/conformance".to_owned()]), ..CommandSpec::default() };
    spec
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest_of(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An archive of one file.
fn tar(content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, "conformance");
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "14524741400\0"); // one time for all, so that equal images have equal digests
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new(); // aborts them when dropped
    while let Ok((stream, _)) = listener.accept().await {
        shared.state().connections += 1;
        let shared = shared.clone();
        connections.spawn(async move {
            let _ = answer(stream, &shared).await; // whoever hangs up is not answered
        });
        while connections.try_join_next().is_some() {}
    }
}

/// One request a connection.
async fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST_BYTES || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
        if request.first() == Some(&TLS_HANDSHAKE) {
            return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nthis is plain HTTP\n").await;
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let told = request.lines().filter_map(|line| line.split_once(": "));
    let mut told =
        told.filter(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, value)| value.to_owned());
    let (status, kind, body) = find(&mut shared.state(), path, told.next());
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\
         {}Connection: close\r\n\r\n",
        body.len(),
        digest_of(&body),
        if status.starts_with("401") { "WWW-Authenticate: Basic realm=\"conformance\"\r\n" } else { "" },
    );
    stream.write_all(head.as_bytes()).await?;
    if method == "HEAD" {
        return stream.shutdown().await;
    }
    let mut flows = shared.flows.subscribe();
    let at_once = if *flows.borrow() || !path.contains("/blobs/") { body.len() } else { body.len() / 2 };
    stream.write_all(&body[..at_once]).await?;
    if at_once < body.len() {
        stream.flush().await?;
        shared.state().held_back += 1;
        let _ = flows.wait_for(|flows| *flows).await; // it fails only with the registry
        stream.write_all(&body[at_once..]).await?;
    }
    stream.shutdown().await
}

/// What is answered: status, content type, body.
fn find(state: &mut State, path: &str, told: Option<String>) -> (&'static str, &'static str, Vec<u8>) {
    const JSON: &str = "application/json";
    let refused = state.wanted.is_some() && state.wanted != told;
    state.credentials.push(told);
    if refused {
        return ("401 Unauthorized", JSON, br#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#.to_vec());
    }
    let last = path.rsplit('/').next().unwrap_or_default();
    let found = match path {
        "/v2/" => Some((JSON, b"{}".to_vec())),
        _ if path.contains("/manifests/") => state.manifests.get(last).map(|found| (MANIFEST_TYPE, found.clone())),
        _ if path.contains("/blobs/") => state.blobs.get(last).map(|found| ("application/octet-stream", found.clone())),
        _ => None,
    };
    match found {
        Some((kind, body)) => ("200 OK", kind, body),
        None => ("404 Not Found", JSON, br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#.to_vec()),
    }
}
