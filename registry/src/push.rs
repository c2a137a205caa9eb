//! Pushing: blobs that the registry lacks, then the manifest that names them. The protocol is `oci-client`'s.

use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth as ClientAuth;
use oci_client::{Client, RegistryOperation};
use reqwest::StatusCode;
use reqwest::header::HeaderValue;
use runtime_core::RegistryAuth;
use tokio::sync::mpsc::{UnboundedSender, channel};

use crate::client::{CONNECT_TIMEOUT, certificates, speaks_plain_http};
use crate::credentials::{self, Credentials};
use crate::dropped;
use crate::error::{Error, Result};
use crate::image::{Parts, read_blob};
use crate::index::Index;
use crate::locks::StoreHold;
use crate::manifest::Descriptor;
use crate::progress::{Events, LayerPhase, PullEvent};
use crate::reference::Reference;
use crate::store::{Inner, blocking};

/// Bytes of a blob that are sent in one request.
const CHUNK_BYTES: usize = 8 << 20;
/// Chunks that are read ahead of the network.
const CHUNKS_AHEAD: usize = 1;

/// How an image is pushed.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Credentials; without them docker's configuration is looked at.
    pub auth: Option<RegistryAuth>,
    /// Where to tell how it goes. A receiver that has gone is no error.
    pub progress: Option<UnboundedSender<PullEvent>>,
}

/// See [`ImageStore::push`](crate::ImageStore::push).
pub(crate) async fn push(store: &Arc<Inner>, text: &str, options: PushOptions) -> Result<String> {
    let reference = Reference::parse(text)?;
    if reference.digest().is_some() {
        let reason = "a tag is needed, and no digest: a push gives the registry's tag its content".to_owned();
        return Err(Error::InvalidReference { reference: text.to_owned(), reason });
    }
    let events = Events(options.progress);
    let wanted = reference.clone();
    let (hold, digest, document, parts) = blocking(store, move |store| {
        let hold = StoreHold::shared(&store.paths.store_lock)?;
        let not_present = || Error::NotPresent(wanted.to_string());
        let digest = Index::read(&store.paths)?.of_reference(&wanted).ok_or_else(not_present)?.digest.clone();
        let document = read_blob(&store.paths, &digest)?.ok_or_else(not_present)?;
        let parts = Parts::read(&store.paths, &digest)?.ok_or_else(not_present)?;
        Ok((hold, digest, document, parts))
    })
    .await?;
    events.resolved(&digest, &parts.manifest);
    let target = Target::new(store, &reference, &digest, options.auth.as_ref()).await?;
    let mut blobs = parts.manifest.layers.clone();
    blobs.push(parts.manifest.config.clone());
    blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
    blobs.dedup_by(|a, b| a.digest == b.digest);
    // Collected: a lazy iterator of futures that borrow is not seen to be Send for every lifetime (rust-lang/rust#89976).
    let work: Vec<_> = blobs.iter().map(|blob| target.blob(store, blob, &events)).collect();
    stream::iter(work).buffer_unordered(target.at_once).try_collect::<Vec<()>>().await?;
    let media_type = HeaderValue::from_str(&parts.manifest.media_type)
        .map_err(|e| Error::InvalidManifest { what: digest.clone(), reason: e.to_string() })?;
    let pushed = target.client.push_manifest_raw(&target.image, document, media_type).await;
    pushed.map_err(|error| target.failed("the manifest", error))?;
    drop(hold);
    blocking(store, |store| dropped::drop_layers(store)).await?;
    events.done(&digest);
    Ok(digest)
}

/// A repository that is pushed to.
struct Target {
    client: Client,
    image: oci_client::Reference,
    registry: String,
    repository: String,
    /// Of the image's manifest.
    digest: String,
    at_once: usize,
}

impl Target {
    async fn new(store: &Inner, reference: &Reference, digest: &str, auth: Option<&RegistryAuth>) -> Result<Self> {
        let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
        let config = store.config.registries.get(&registry).cloned().unwrap_or_default();
        let limits = &store.config.limits;
        let image = oci_client::Reference::from(reference);
        let plain = speaks_plain_http(&config, reference.endpoint());
        let protocol = if plain {
            ClientProtocol::HttpsExcept(vec![image.resolve_registry().to_owned()])
        } else {
            ClientProtocol::Https
        };
        let mut roots = Vec::new();
        if let Some(path) = &config.ca {
            let (data, _) = certificates(path)?;
            roots.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
        let client = Client::try_from(ClientConfig {
            protocol,
            extra_root_certificates: roots,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(limits.no_progress()),
            user_agent: concat!("berth/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let at_once = config.max_connections.unwrap_or(limits.concurrent_layers).max(1);
        let auth = match credentials::find(auth, &registry, &repository).await? {
            Credentials::Anonymous => ClientAuth::Anonymous,
            Credentials::Basic { username, password } => ClientAuth::Basic(username, password.expose().to_owned()),
            Credentials::Bearer(token) => ClientAuth::Bearer(token.expose().to_owned()),
            Credentials::Identity(_) => {
                return Err(Error::Unsupported(format!("a push to {registry} with an identity token")));
            }
        };
        let unreachable = |error| Self::error(&registry, &repository, "the registry", error);
        let client = client.map_err(unreachable)?;
        client.auth(&image, &auth, RegistryOperation::Push).await.map_err(unreachable)?;
        Ok(Self { client, image, registry, repository, digest: digest.to_owned(), at_once })
    }

    /// Sends one blob, if it is not there.
    async fn blob(&self, store: &Arc<Inner>, blob: &Descriptor, events: &Events) -> Result<()> {
        let failed = |error| self.failed(&blob.digest, error);
        if self.client.blob_exists(&self.image, &blob.digest).await.map_err(failed)? {
            events.layer(blob, LayerPhase::Exists, blob.size);
            return Ok(());
        }
        events.layer(blob, LayerPhase::Uploading, 0);
        dropped::fetch_again(store, &self.digest, std::slice::from_ref(blob)).await?;
        let chunks = chunks(store, blob).await?;
        let mut sent = 0;
        let (digest, size) = (blob.digest.clone(), blob.size);
        let (tell, mut told) = tokio::sync::watch::channel(0u64);
        let chunks = chunks.inspect_ok(move |chunk: &Bytes| {
            // A chunk that is asked for means that the one before has arrived.
            let _ = tell.send(sent);
            sent += chunk.len() as u64;
        });
        let sending = self.client.push_blob_stream(&self.image, chunks, &digest, Some(size));
        let mut sending = std::pin::pin!(sending);
        loop {
            tokio::select! {
                result = &mut sending => {
                    result.map_err(failed)?;
                    events.layer(blob, LayerPhase::Uploaded, size);
                    return Ok(());
                }
                Ok(()) = told.changed() => {
                    let arrived = *told.borrow_and_update();
                    events.layer(blob, LayerPhase::Uploading, arrived);
                }
            }
        }
    }

    fn failed(&self, what: &str, error: OciDistributionError) -> Error {
        Self::error(&self.registry, &self.repository, what, error)
    }

    fn error(registry: &str, repository: &str, what: &str, error: OciDistributionError) -> Error {
        let registry = registry.to_owned();
        let unauthorized = |registry, reason: &str| Error::Unauthorized {
            registry,
            what: repository.to_owned(),
            reason: excerpt(reason),
        };
        match error {
            OciDistributionError::UnauthorizedError { .. } => {
                unauthorized(registry, "it does not let these credentials push")
            }
            OciDistributionError::AuthenticationFailure(reason) => unauthorized(registry, &reason),
            OciDistributionError::RequestError(error) => match error.status() {
                Some(status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) => {
                    unauthorized(registry, &status.to_string())
                }
                Some(status) => Error::Registry {
                    registry,
                    request: format!("push of {what} to {repository}"),
                    answer: status.to_string(),
                },
                None => Error::Unreachable { registry, source: error.without_url().into() },
            },
            error => Error::Registry {
                registry,
                request: format!("push of {what} to {repository}"),
                answer: excerpt(&error.to_string()),
            },
        }
    }
}

/// A registry's words in one line.
fn excerpt(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// A blob of the store, read on a thread that may block.
async fn chunks(
    store: &Arc<Inner>,
    blob: &Descriptor,
) -> Result<impl stream::Stream<Item = std::result::Result<Bytes, OciDistributionError>> + Send + 'static> {
    let (path, digest, size) = (store.paths.blob(blob.hex()), blob.digest.clone(), blob.size);
    let mut file = blocking(store, move |_| match File::open(&path) {
        Ok(file) => {
            let found = file.metadata().map_err(|e| Error::io("looking at", &path, e))?.len();
            if found == size { Ok(file) } else { Err(Error::SizeMismatch { what: digest, expected: size, found }) }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::NotPresent(digest)),
        Err(error) => Err(Error::io("opening", &path, error)),
    })
    .await?;
    let (sender, receiver) = channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let read = file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
            let item = match read {
                Ok(0) => return,
                Ok(_) => Ok(Bytes::from(chunk)),
                Err(error) => Err(error.into()),
            };
            // Nobody takes it any more: the push has failed or was dropped.
            if sender.blocking_send(item).is_err() {
                return;
            }
        }
    });
    Ok(stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) }))
}
