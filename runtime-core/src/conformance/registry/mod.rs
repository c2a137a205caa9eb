//! A registry of the suite's own on the loopback: it counts who asks, wants credentials, can hold a blob
//! back, and takes what is pushed.

mod answer;
mod image;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::case::{Case, OrStop, Stop, Verdict};
use crate::{AgentError, PullPolicy, RegistryAuth};
use image::digest_of;
pub(super) use image::{Image, container_of, own_architecture};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

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
    /// What was asked for, request by request.
    paths: Vec<String>,
    /// What was said in `Authorization`, request by request.
    credentials: Vec<Option<String>>,
    /// What must be said there.
    wanted: Option<String>,
    /// Media type and content, by tag and by digest, of all repositories.
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    blobs: BTreeMap<String, Vec<u8>>,
    /// How often a blob was begun and held back.
    held_back: usize,
    /// How often who was held back hung up.
    given_up: usize,
    /// What is being pushed, by number.
    uploads: BTreeMap<usize, Vec<u8>>,
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
        self.keep(image);
        self.name(case, tag, MANIFEST_TYPE, image.manifest.clone())
    }

    /// Makes `tag` stand for `images`, which differ in their platforms.
    pub(super) fn push_index(&self, case: &Case, tag: &str, images: &[&Image]) -> String {
        images.iter().for_each(|image| self.keep(image));
        let manifests: Vec<_> = images.iter().map(|image| image.descriptor()).collect();
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests});
        self.name(case, tag, INDEX_TYPE, index.to_string().into_bytes())
    }

    fn keep(&self, image: &Image) {
        let mut state = self.shared.state();
        for blob in image.layers.iter().chain([&image.config]) {
            state.blobs.insert(digest_of(blob), blob.clone());
        }
        state.manifests.insert(image.digest.clone(), (MANIFEST_TYPE.to_owned(), image.manifest.clone()));
    }

    fn name(&self, case: &Case, tag: &str, kind: &str, manifest: Vec<u8>) -> String {
        let mut state = self.shared.state();
        for name in [tag, &digest_of(&manifest)] {
            state.manifests.insert(name.to_owned(), (kind.to_owned(), manifest.clone()));
        }
        self.reference(case, tag)
    }

    /// Of an image of this registry, which need not have it; untagged when the check is over.
    pub(super) fn reference(&self, case: &Case, tag: &str) -> String {
        let reference = format!("{}:{tag}", self.repository());
        case.made_image(&reference);
        reference
    }

    /// The digest of what `tag` stands for, if the blobs of `image` are there, too.
    pub(super) fn has(&self, tag: &str, image: &Image) -> Option<String> {
        let state = self.shared.state();
        let blobs = image.layers.iter().chain([&image.config]);
        let is_whole = blobs.map(|blob| digest_of(blob)).all(|digest| state.blobs.contains_key(&digest));
        state.manifests.get(tag).filter(|_| is_whole).map(|(_, manifest)| digest_of(manifest))
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

    /// What requests since then had as `Authorization`.
    pub(super) fn told(&self) -> Vec<String> {
        self.shared.state().credentials.iter().flatten().cloned().collect()
    }

    /// Whether a layer of `image` was asked for.
    pub(super) fn gave_layer_of(&self, image: &Image) -> bool {
        let layers = image.layer_digests();
        self.shared.state().paths.iter().any(|path| layers.iter().any(|layer| path.ends_with(layer)))
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

    /// How often who was held back hung up.
    pub(super) fn given_up(&self) -> usize {
        self.shared.state().given_up
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

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new(); // aborts them when dropped
    while let Ok((stream, _)) = listener.accept().await {
        shared.state().connections += 1;
        let shared = shared.clone();
        connections.spawn(async move {
            let _ = answer::answer(stream, &shared).await; // whoever hangs up is not answered
        });
        while connections.try_join_next().is_some() {}
    }
}
