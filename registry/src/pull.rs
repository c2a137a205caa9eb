//! Pulling: what is missing is fetched, what is here is not; layers come concurrently and are settled in order.

use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use runtime_core::{PullEvent, PullPolicy, RegistryAuth};
use tokio::sync::mpsc::UnboundedSender;

use crate::client::Endpoint;
use crate::credentials;
use crate::dropped;
use crate::durability;
use crate::error::{Error, Result};
use crate::image::{self, Image, Parts, digest_of};
use crate::index::{Entry, Index};
use crate::layers::{Origin, layers};
use crate::limits::MAX_INDEX_DEPTH;
use crate::locks::StoreHold;
use crate::manifest::{self, Document, Manifest};
use crate::place::{self, About, Place};
use crate::platform::Platform;
use crate::progress::Events;
use crate::reference::Reference;
use crate::session::Session;
use crate::store::{Inner, blocking, write_whole};

/// How an image is pulled.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// When the registry is asked.
    pub policy: PullPolicy,
    /// Credentials; without them docker's configuration is looked at.
    pub auth: Option<RegistryAuth>,
    /// `OS/ARCH[/VARIANT]` instead of this machine's.
    pub platform: Option<String>,
    /// Where to tell how it goes. A receiver that has gone is no error.
    pub progress: Option<UnboundedSender<PullEvent>>,
}

/// See [`ImageStore::find`](crate::ImageStore::find).
pub(crate) async fn find(store: &Arc<Inner>, name: &str) -> Result<Option<Image>> {
    let name = name.to_owned();
    let entry = blocking(store, move |store| Ok(Index::read(&store.paths)?.find(&name)?.cloned())).await?;
    match entry {
        Some(entry) => complete(store, entry.reference().to_owned(), entry.digest).await,
        None => Ok(None),
    }
}

/// The image of that digest, its layers unpacked from local blobs where they are missing; `None` if that cannot be.
pub(crate) async fn complete(store: &Arc<Inner>, reference: String, digest: String) -> Result<Option<Image>> {
    let of_image = digest.clone();
    let read = blocking(store, move |store| {
        let Some(parts) = Parts::read(&store.paths, &of_image)? else { return Ok(None) };
        let standing = image::all_standing(&store.paths, &parts.ids)?;
        Ok(Some((parts, standing)))
    });
    let Some((parts, standing)) = read.await? else { return Ok(None) };
    let settled = match standing {
        Some(settled) => settled,
        None => {
            let hold_store = Arc::clone(store);
            let _hold = blocking(&hold_store, |store| StoreHold::shared(&store.paths.store_lock)).await?;
            match layers(store, &parts, Origin { session: None, events: None, enters: false }).await {
                Ok(settled) => settled,
                Err(error @ (Error::NotPresent(_) | Error::DigestMismatch { .. })) => {
                    tracing::info!(image = reference, %error, "a local image is not whole any more");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    };
    assemble(store, reference, digest, parts, settled).await.map(Some)
}

pub(crate) async fn assemble(
    store: &Arc<Inner>,
    reference: String,
    digest: String,
    parts: Parts,
    settled: Vec<(Place, About)>,
) -> Result<Image> {
    let layers = blocking(store, move |store| place::lower_directories(&store.paths, &settled)).await?;
    let size_bytes = parts.size_bytes();
    let Parts { manifest, config, healthcheck, .. } = parts;
    let (id, from_registry) = (manifest.config.digest, false);
    Ok(Image { reference, digest, id, config, healthcheck, layers, size_bytes, from_registry })
}

/// See [`ImageStore::pull`](crate::ImageStore::pull).
pub(crate) async fn pull(store: &Arc<Inner>, text: &str, options: PullOptions) -> Result<Image> {
    let reference = Reference::parse(text)?;
    let wanted = options.platform.as_deref().map(Platform::parse).transpose()?;
    let named = |error: Error| error.of_room_for(&reference, &store.config.root);
    if options.policy != PullPolicy::Always {
        let local = local(store, &reference, text, wanted.as_ref(), options.policy).await.map_err(named)?;
        match (local, options.policy) {
            (Some(image), _) => return Ok(image),
            (None, PullPolicy::Never) => return Err(Error::NotPresent(reference.to_string())),
            (None, _) => {}
        }
    }
    let hold = blocking(store, |store| StoreHold::shared(&store.paths.store_lock)).await?;
    let session = session(store, &reference, options.auth.clone()).await?;
    let (hold, events) = (Arc::new(hold), Events(options.progress));
    let asked = Asked { reference: &reference, wanted, session: &session, events: &events, hold };
    let image = match fetch(store, &asked).await {
        // What a mirror made of it.
        Err(
            Error::DigestMismatch { .. }
            | Error::SizeMismatch { .. }
            | Error::NoProgress { .. }
            | Error::InvalidManifest { .. }
            | Error::NoPlatform { .. },
        ) if session.give_up_mirrors() => fetch(store, &asked).await,
        other => other,
    };
    let image = image.map_err(|error| named(error.of_image(&reference)))?;
    drop(asked.hold);
    blocking(store, |store| dropped::drop_layers(store)).await?;
    events.done(&image.digest);
    Ok(Image { from_registry: true, ..image })
}

/// What is pulled, from where, and who hears of it.
struct Asked<'a> {
    reference: &'a Reference,
    wanted: Option<Platform>,
    session: &'a Session<'a>,
    events: &'a Events,
    /// For work that goes on when the pull is dropped.
    hold: Arc<StoreHold>,
}

/// Fetches what is missing of an image, and enters it.
async fn fetch(store: &Arc<Inner>, asked: &Asked<'_>) -> Result<Image> {
    let Asked { reference, wanted, session, events, hold } = asked;
    if let Some(image) = unchanged(store, session, reference, wanted.as_ref()).await? {
        return Ok(image);
    }
    let platform = wanted.clone().unwrap_or_else(Platform::host);
    let resolved = resolve(store, session, reference, &platform).await?;
    events.resolved(&resolved.digest, &resolved.manifest);
    let config = config(store, session, &resolved.manifest).await?;
    if !fits(&config.image, wanted.as_ref()) {
        return Err(other_platform(&reference.to_string(), &config.image, wanted.as_ref()));
    }
    let parts = Parts::new(resolved.manifest.clone(), config);
    let origin = Origin { session: Some(session), events: Some(events), enters: true };
    let settled = layers(store, &parts, origin).await?;
    let entry = Entry::new(
        &reference.to_string(),
        &resolved.digest,
        resolved.size,
        &resolved.manifest,
        resolved.index_digest.as_deref(),
    );
    let hold = Arc::clone(hold);
    blocking(store, move |store| {
        let _hold = hold;
        Index::update(&store.paths, |index| {
            index.put(entry);
            Ok(())
        })?;
        durability::sync_in_background(store);
        Ok(())
    })
    .await?;
    assemble(store, reference.to_string(), resolved.digest, parts, settled).await
}

/// The local image of a reference, if it is whole and of the platform asked for. One of another platform is an error
/// where a registry is not to be asked, or cannot be expected to have another.
async fn local(
    store: &Arc<Inner>,
    reference: &Reference,
    text: &str,
    wanted: Option<&Platform>,
    policy: PullPolicy,
) -> Result<Option<Image>> {
    let (known, name) = (reference.clone(), text.to_owned());
    let found = blocking(store, move |store| {
        let index = Index::read(&store.paths)?;
        if let Some(entry) = index.of_reference(&known) {
            return Ok(Some((entry.clone(), false)));
        }
        // What `run` is given may be an id, too; a registry is only asked if it is none.
        match index.find(&name) {
            Err(error @ Error::Ambiguous { .. }) => Err(error),
            found => Ok(found.ok().flatten().map(|entry| (entry.clone(), true))),
        }
    });
    let Some((entry, by_id)) = found.await? else { return Ok(None) };
    let one_of_several = entry.chosen_from().is_some();
    let Some(image) = complete(store, entry.reference().to_owned(), entry.digest).await? else { return Ok(None) };
    if fits(&image.config, wanted) {
        return Ok(Some(image));
    }
    if policy == PullPolicy::Never || by_id || (wanted.is_none() && !one_of_several) {
        return Err(other_platform(text, &image.config, wanted));
    }
    Ok(None)
}

/// Whether an image is of the platform asked for, or can run on this host if none was.
fn fits(config: &ImageConfiguration, wanted: Option<&Platform>) -> bool {
    let runs_on = manifest::config_platform(config);
    match wanted {
        Some(wanted) => wanted.rank(&runs_on).is_some(),
        None => Platform::host().runs(&runs_on),
    }
}

fn other_platform(reference: &str, config: &ImageConfiguration, wanted: Option<&Platform>) -> Error {
    Error::NoPlatform {
        reference: reference.to_owned(),
        platform: wanted.map_or_else(|| Platform::host().to_string(), Platform::to_string),
        available: vec![manifest::config_platform(config).to_string()],
    }
}

pub(crate) async fn session<'a>(
    store: &'a Arc<Inner>,
    reference: &Reference,
    auth: Option<RegistryAuth>,
) -> Result<Session<'a>> {
    let (registry, repository) = (reference.registry(), reference.repository());
    let config_of = |host: &str| store.config.registries.get(host).cloned().unwrap_or_default();
    let (config, limits) = (config_of(registry), &store.config.limits);
    let mut mirrors = Vec::with_capacity(config.mirrors.len());
    for mirror in &config.mirrors {
        let credentials = match credentials::find(None, mirror, repository).await {
            Ok(credentials) => credentials,
            // The registry has it all, too.
            Err(error) => {
                tracing::warn!(mirror, %error, "a mirror is passed over");
                continue;
            }
        };
        let (config, limits) = (config_of(mirror), limits.clone());
        mirrors.push(Endpoint::new(&store.clients, config, limits, reference, Some(mirror), credentials));
    }
    let credentials = credentials::find(auth.as_ref(), registry, repository).await?;
    let registry = Endpoint::new(&store.clients, config, limits.clone(), reference, None, credentials);
    Ok(Session::new(mirrors, registry))
}

/// The local image, if a HEAD request says that the registry has the same.
async fn unchanged(
    store: &Arc<Inner>,
    session: &Session<'_>,
    reference: &Reference,
    wanted: Option<&Platform>,
) -> Result<Option<Image>> {
    let name = reference.clone();
    let entry = blocking(store, move |store| Ok(Index::read(&store.paths)?.of_reference(&name).cloned())).await?;
    let Some(entry) = entry else { return Ok(None) };
    let head = match session.head_manifest(reference.manifest_key()).await {
        Ok(head) => head,
        // Some registries answer HEAD wrongly; what GET says counts.
        Err(Error::Registry { .. } | Error::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let same = head.is_some_and(|head| head == entry.digest || entry.chosen_from() == Some(&head));
    if !same || entry.reference() != reference.to_string() {
        return Ok(None);
    }
    // What was chosen for another platform by name is not this host's choice, though it may run it.
    let host = entry.chosen_from().map(|_| Platform::host());
    let wanted = wanted.or(host.as_ref());
    let digest = entry.digest.clone();
    let image = complete(store, entry.reference().to_owned(), entry.digest).await?;
    let lacks_blobs = blocking(store, move |store| {
        let parts = Parts::read(&store.paths, &digest)?;
        Ok(parts.is_some_and(|parts| parts.manifest.layers.iter().any(|blob| dropped::is_lost(&store.paths, blob))))
    });
    let is_whole = !lacks_blobs.await?;
    Ok(image.filter(|image| is_whole && fits(&image.config, wanted)))
}

/// A manifest, fetched and verified.
struct Resolved {
    digest: String,
    size: u64,
    manifest: Manifest,
    index_digest: Option<String>,
}

async fn resolve(
    store: &Arc<Inner>,
    session: &Session<'_>,
    reference: &Reference,
    wanted: &Platform,
) -> Result<Resolved> {
    let mut key = reference.manifest_key().to_owned();
    let mut expected = reference.digest().map(str::to_owned);
    let mut index_digest = None;
    for _ in 0..=MAX_INDEX_DEPTH {
        let (bytes, content_type) = session.manifest(&key).await?;
        let digest = digest_of(&bytes);
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(Error::DigestMismatch {
                what: format!("the manifest of {reference}"),
                expected,
                found: digest,
            });
        }
        let what = reference.to_string();
        let document = Document::parse(&bytes, content_type.as_deref(), &what, &store.config.limits)?;
        let size = bytes.len() as u64;
        keep_blob(store, &digest, bytes).await?;
        match document {
            Document::Manifest(manifest) => return Ok(Resolved { digest, size, manifest, index_digest }),
            Document::Index(manifests) => {
                key.clone_from(&manifest::choose(&manifests, wanted, &what)?.digest);
                expected = Some(key.clone());
                index_digest.get_or_insert(digest);
            }
        }
    }
    let limit = MAX_INDEX_DEPTH as u64;
    Err(Error::TooLarge { what: format!("the nesting of indexes of {reference}"), limit, unit: "levels" })
}

async fn config(store: &Arc<Inner>, session: &Session<'_>, manifest: &Manifest) -> Result<manifest::Config> {
    let digest = manifest.config.digest.clone();
    let stored = blocking(store, {
        let digest = digest.clone();
        move |store| image::read_blob(&store.paths, &digest)
    });
    if let Some(bytes) = stored.await? {
        return manifest::parse_config(&bytes, manifest);
    }
    let bytes = session.small_blob(&digest, store.config.limits.config_bytes).await?;
    let found = digest_of(&bytes);
    if found != digest {
        return Err(Error::DigestMismatch { what: "the configuration".into(), expected: digest, found });
    }
    let size = bytes.len() as u64;
    if size != manifest.config.size {
        let what = "the configuration".to_owned();
        return Err(Error::SizeMismatch { what, expected: manifest.config.size, found: size });
    }
    let config = manifest::parse_config(&bytes, manifest)?;
    keep_blob(store, &digest, bytes).await?;
    Ok(config)
}

async fn keep_blob(store: &Arc<Inner>, digest: &str, bytes: Vec<u8>) -> Result<()> {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest).to_owned();
    blocking(store, move |store| write_whole(&store.paths.blob(&hex), &bytes)).await
}

#[cfg(test)]
#[path = "pull_tests.rs"]
pub(crate) mod tests;
