//! Images from files: an OCI layout, as a directory or an archive, or an archive as `docker save` writes it.
//!
//! An archive is taken apart into a temporary directory first, under names of our own: the order of its members and the
//! links among them are the writer's. Blobs are then verified and moved into the store as a pull's are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::dropped;
use crate::durability;
use crate::error::{Error, Result};
use crate::gc;
use crate::image::{Image, Parts, digest_of};
use crate::index::{Entry, Index, NAMELESS, REF_NAME};
use crate::layer::Compression;
use crate::layer::tar::{Kind, TarReader};
use crate::layers::{Origin, layers};
use crate::limits::MAX_INDEX_DEPTH;
use crate::locks::StoreHold;
use crate::manifest::{self, Descriptor, Document, Manifest, OCI_MANIFEST};
use crate::platform::Platform;
use crate::pull::assemble;
use crate::reference::Reference;
use crate::store::{Inner, TmpDir, blocking, write_whole};

/// Members of one archive; real ones hold a few for each layer.
const MAX_MEMBERS: u64 = 100_000;
/// Links that are followed from one member to the next: `docker save` lets equal layers be links to one.
const MAX_MEMBER_LINKS: usize = 4;
/// Where containerd and docker keep the full reference.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Loads all images of `path`; see [`ImageStore::load`](crate::ImageStore::load).
pub(crate) async fn load(store: &Arc<Inner>, path: &Path) -> Result<Vec<Image>> {
    let loaded = load_all(store, path).await;
    let loaded = loaded.map_err(|error| error.of_room_for(&path.display(), &store.config.root))?;
    blocking(store, |store| dropped::drop_layers(store)).await?;
    Ok(loaded)
}

async fn load_all(store: &Arc<Inner>, path: &Path) -> Result<Vec<Image>> {
    let hold = Arc::new(blocking(store, |store| StoreHold::shared(&store.paths.store_lock)).await?);
    let (from, held) = (path.to_path_buf(), Arc::clone(&hold));
    let found = blocking(store, move |store| {
        let _hold = held;
        let source = Source::open(store, &from)?;
        // Of whoever fails from here on, or is killed, blobs and layers stay that nothing refers to.
        gc::owe(&store.paths)?;
        let images = match source.read("index.json", store.config.limits.manifest_bytes)? {
            Some(index) => source.layout_images(store, &index)?,
            None => source.docker_images(store)?,
        };
        if images.is_empty() { Err(source.invalid("it holds no image".to_owned())) } else { Ok(images) }
    })
    .await?;
    let (mut entries, mut settled) = (Vec::new(), Vec::new());
    for Loaded { names, digest, size, parts } in found {
        let origin = Origin { session: None, events: None, enters: true };
        let names = if names.is_empty() { vec![format!("{NAMELESS}{digest}")] } else { names };
        let places = layers(store, &parts, origin).await;
        let places = places.map_err(|error| error.of_image(&format!("{} in {}", names[0], path.display())))?;
        for name in names {
            entries.push(Entry::new(&name, &digest, size, &parts.manifest, None));
            settled.push((name, digest.clone(), parts.clone(), places.clone()));
        }
    }
    let held = Arc::clone(&hold);
    blocking(store, move |store| {
        // It goes on when the load is dropped.
        let _hold = held;
        Index::update(&store.paths, |index| {
            entries.into_iter().for_each(|entry| index.put(entry));
            Ok(())
        })?;
        durability::sync_in_background(store);
        Ok(())
    })
    .await?;
    let mut images = Vec::new();
    for (name, digest, parts, places) in settled {
        images.push(assemble(store, name, digest, parts, places).await?);
    }
    Ok(images)
}

/// An image whose blobs are in the store.
struct Loaded {
    names: Vec<String>,
    digest: String,
    size: u64,
    parts: Parts,
}

/// What is loaded from, by the names that its documents use.
struct Source {
    path: PathBuf,
    members: BTreeMap<String, Member>,
    /// Where an archive was taken apart; files in it may be moved away.
    tmp: Option<Arc<TmpDir>>,
}

/// Members that are in the store: equal layers, of one image or of several, are one member, which is moved away the first time.
type Kept = BTreeMap<PathBuf, (String, u64, Compression)>;

enum Member {
    File(PathBuf),
    Link(String),
}

#[derive(Deserialize)]
struct LayoutIndex {
    manifests: Vec<LayoutEntry>,
}

#[derive(Deserialize)]
struct LayoutEntry {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Source {
    fn open(store: &Inner, path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io("looking at", path, e))?;
        let mut source = Self { path: path.to_path_buf(), members: BTreeMap::new(), tmp: None };
        if metadata.is_dir() {
            source.list(path)?;
        } else {
            let tmp = TmpDir::create(&store.paths)?;
            source.take_apart(file, tmp.path(), store.config.limits.blob_bytes)?;
            source.tmp = Some(tmp);
        }
        Ok(source)
    }

    /// The files of a layout; whatever else lies there is none of ours.
    fn list(&mut self, path: &Path) -> Result<()> {
        for name in ["index.json", "manifest.json"] {
            if path.join(name).is_file() {
                self.members.insert(name.to_owned(), Member::File(path.join(name)));
            }
        }
        let blobs = path.join("blobs/sha256");
        let entries = match fs::read_dir(&blobs) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("listing", &blobs, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("listing", &blobs, e))?;
            let name = format!("blobs/sha256/{}", entry.file_name().to_string_lossy());
            self.members.insert(name, Member::File(entry.path()));
        }
        Ok(())
    }

    fn take_apart(&mut self, file: File, into: &Path, limit: u64) -> Result<()> {
        let mut input = BufReader::with_capacity(256 << 10, file);
        let magic = input.fill_buf().map_err(|e| Error::io("reading", &self.path, e))?;
        for (begins, what) in [(&b"\xfd7zXZ\0"[..], "xz"), (b"BZh", "bzip2"), (b"PK\x03\x04", "zip")] {
            if magic.starts_with(begins) {
                return Err(Error::Unsupported(format!("{}: an archive compressed by {what}", self.path.display())));
            }
        }
        let input: Box<dyn BufRead> = match Compression::of_magic(magic) {
            Compression::None => Box::new(input),
            Compression::Gzip => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(input))),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(input);
                Box::new(BufReader::new(decoder.map_err(|e| Error::io("reading", &self.path, e))?))
            }
        };
        let mut reader = TarReader::new(input);
        for number in 0.. {
            let entry = match reader.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.invalid(error.to_string())),
            };
            if number >= MAX_MEMBERS {
                let what = format!("the number of members of {}", self.path.display());
                return Err(Error::TooLarge { what, limit: MAX_MEMBERS, unit: "members" });
            }
            let Some(name) = member_name("", &entry.path) else { continue };
            let member = match entry.kind {
                Kind::File if entry.size > limit => {
                    return Err(Error::TooLarge { what: format!("{name:.200?} of the archive"), limit, unit: "bytes" });
                }
                Kind::File if entry.sparse.is_none() => {
                    let path = into.join(number.to_string());
                    let mut file = File::create_new(&path).map_err(|e| Error::io("creating", &path, e))?;
                    while reader.data_left() > 0 {
                        let written = reader.data(1 << 20, |piece| file.write_all(piece).map(|()| piece.len()));
                        match written.map_err(|e| self.invalid(e.to_string()))? {
                            Some(written) => _ = written.map_err(|e| Error::io("writing", &path, e))?,
                            None => return Err(self.invalid(format!("{name:.200?} ends early"))),
                        }
                    }
                    Member::File(path)
                }
                Kind::File => return Err(self.invalid(format!("{name:.200?} is sparse"))),
                Kind::Symlink => {
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    let Some(target) = member_name(directory, &entry.link) else { continue };
                    Member::Link(target)
                }
                Kind::Hardlink => {
                    let Some(target) = member_name("", &entry.link) else { continue };
                    Member::Link(target)
                }
                _ => continue,
            };
            // Of those with one name the last counts, as for tar.
            if let Some(Member::File(former)) = self.members.insert(name, member) {
                fs::remove_file(&former).map_err(|e| Error::io("removing", &former, e))?;
            }
        }
        Ok(())
    }

    fn invalid(&self, reason: String) -> Error {
        Error::InvalidManifest { what: self.path.display().to_string(), reason }
    }

    fn file(&self, name: &str) -> Option<&Path> {
        let mut name = name;
        for _ in 0..=MAX_MEMBER_LINKS {
            match self.members.get(name)? {
                Member::File(path) => return Some(path),
                Member::Link(target) => name = target,
            }
        }
        None
    }

    /// A small member's bytes.
    fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.file(name) else { return Ok(None) };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io("reading", path, e))?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { what: format!("{name:.200?}"), limit, unit: "bytes" });
        }
        Ok(Some(bytes))
    }

    fn wanted(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        self.read(name, limit)?.ok_or_else(|| self.invalid(format!("it has no {name:.200?}")))
    }

    /// A document of the layout, verified.
    fn document(&self, digest: &str, limit: u64) -> Result<Vec<u8>> {
        let bytes = self.wanted(&blob_name(digest), limit)?;
        let found = digest_of(&bytes);
        if found == digest {
            return Ok(bytes);
        }
        Err(Error::DigestMismatch { what: "a blob of the layout".into(), expected: digest.to_owned(), found })
    }

    fn layout_images(&self, store: &Inner, index: &[u8]) -> Result<Vec<Loaded>> {
        let index: LayoutIndex = serde_json::from_slice(index).map_err(|e| self.invalid(e.to_string()))?;
        let limits = &store.config.limits;
        let mut images = Vec::new();
        let mut kept = Kept::new();
        for LayoutEntry { descriptor, annotations } in index.manifests {
            let mut digest = descriptor.digest;
            let mut depth = 0;
            let (bytes, manifest) = loop {
                if !crate::reference::is_sha256(&digest) {
                    return Err(self.invalid(format!("{digest:.100?} is no sha256 digest")));
                }
                let bytes = self.document(&digest, limits.manifest_bytes)?;
                match Document::parse(&bytes, None, &digest, limits)? {
                    Document::Manifest(manifest) => break (bytes, manifest),
                    Document::Index(manifests) => {
                        digest = manifest::choose(&manifests, &Platform::host(), &digest)?.digest.clone();
                        depth += 1;
                    }
                }
                if depth > MAX_INDEX_DEPTH {
                    let what = "the nesting of indexes of the layout".to_owned();
                    return Err(Error::TooLarge { what, limit: MAX_INDEX_DEPTH as u64, unit: "levels" });
                }
            };
            for layer in &manifest.layers {
                let found = self.keep(store, &blob_name(&layer.digest), &mut kept)?.0;
                if found != layer.digest {
                    let expected = layer.digest.clone();
                    return Err(Error::DigestMismatch { what: "a layer of the layout".into(), expected, found });
                }
            }
            let config = self.document(&manifest.config.digest, limits.config_bytes)?;
            let names = layout_name(&annotations, &digest).into_iter().collect();
            images.push(enter(store, names, &bytes, manifest, &config)?);
        }
        Ok(images)
    }

    fn docker_images(&self, store: &Inner) -> Result<Vec<Loaded>> {
        let limits = &store.config.limits;
        let list = self.wanted("manifest.json", limits.manifest_bytes)?;
        let list: Vec<DockerImage> = serde_json::from_slice(&list).map_err(|e| self.invalid(e.to_string()))?;
        let mut images = Vec::new();
        let mut kept = Kept::new();
        for DockerImage { config, repo_tags, layers } in list {
            let config = self.wanted(&config, limits.config_bytes)?;
            let mut descriptors = Vec::new();
            for name in layers.unwrap_or_default() {
                let (digest, size, compression) = self.keep(store, &name, &mut kept)?;
                let suffix = match compression {
                    Compression::None => "",
                    Compression::Gzip => "+gzip",
                    Compression::Zstd => "+zstd",
                };
                let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
                descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
            }
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": digest_of(&config),
                    "size": config.len(),
                },
                "layers": descriptors,
            });
            let bytes = manifest.to_string().into_bytes();
            let Document::Manifest(manifest) = Document::parse(&bytes, None, "manifest.json", limits)? else {
                return Err(self.invalid("its manifest is an index".into()));
            };
            let names = repo_tags.unwrap_or_default().iter().map(|name| full_name(name)).collect::<Result<_>>()?;
            images.push(enter(store, names, &bytes, manifest, &config)?);
        }
        Ok(images)
    }

    /// Puts a member into the store as a blob: its digest, size and compression.
    fn keep(&self, store: &Inner, name: &str, kept: &mut Kept) -> Result<(String, u64, Compression)> {
        let from = self.file(name).ok_or_else(|| self.invalid(format!("it has no {name:.200?}")))?;
        if let Some(known) = kept.get(from) {
            return Ok(known.clone());
        }
        let mut input =
            BufReader::with_capacity(256 << 10, File::open(from).map_err(|e| Error::io("opening", from, e))?);
        let reading = |e| Error::io("reading", from, e);
        let compression = Compression::of_magic(input.fill_buf().map_err(reading)?);
        let owned = match &self.tmp {
            Some(_) => None,
            None => Some(TmpDir::create(&store.paths)?),
        };
        let beside = owned.as_ref().map(|tmp| tmp.path().join("blob"));
        let mut copy = match &beside {
            Some(path) => Some(File::create_new(path).map_err(|e| Error::io("creating", path, e))?),
            None => None,
        };
        let (mut hash, mut size) = (Sha256::new(), 0u64);
        loop {
            let piece = input.fill_buf().map_err(reading)?;
            if piece.is_empty() {
                break;
            }
            let length = piece.len();
            hash.update(piece);
            if let Some(copy) = &mut copy {
                copy.write_all(piece).map_err(|e| Error::io("writing a blob to", &store.paths.blobs, e))?;
            }
            size += length as u64;
            input.consume(length);
        }
        let hex = format!("{:x}", hash.finalize());
        let to = store.paths.blob(&hex);
        fs::rename(beside.as_deref().unwrap_or(from), &to).map_err(|e| Error::io("moving a blob to", &to, e))?;
        let blob = (format!("sha256:{hex}"), size, compression);
        kept.insert(from.to_path_buf(), blob.clone());
        Ok(blob)
    }
}

/// Puts manifest and config into the store.
fn enter(store: &Inner, names: Vec<String>, bytes: &[u8], manifest: Manifest, config: &[u8]) -> Result<Loaded> {
    let parsed = manifest::parse_config(config, &manifest)?;
    let (digest, size) = (digest_of(bytes), bytes.len() as u64);
    write_whole(&store.paths.blob(manifest.config.hex()), config)?;
    write_whole(&store.paths.blob(digest.strip_prefix("sha256:").unwrap_or(&digest)), bytes)?;
    Ok(Loaded { names, digest, size, parts: Parts::new(manifest, parsed) })
}

fn blob_name(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap_or(digest))
}

/// The name of an image of a layout; none where no annotation has one, or none that an image can have here. A layout's own
/// kind of name is a tag, such as `RC1`, which no repository can be called; beside containerd's, which is whole, it is that
/// one's tag and no name.
fn layout_name(annotations: &BTreeMap<String, String>, digest: &str) -> Option<String> {
    let said = annotations.get(CONTAINERD_NAME).or_else(|| annotations.get(REF_NAME))?;
    let name = full_name(said).ok();
    if name.is_none() {
        tracing::warn!(
            image = digest,
            "{said:.200?} in the layout is no name here: the image has none until it is tagged"
        );
    }
    name
}

/// The reference that a name stands for. A bare word, as `skopeo copy … oci:DIR:WORD` writes it, is a local name.
fn full_name(name: &str) -> Result<String> {
    let local = !name.contains(['/', ':']);
    let text = if local { format!("localhost/{name}:latest") } else { name.to_owned() };
    Ok(Reference::parse(&text)?.to_string())
}

/// The name of a member as documents write it; `None` if it is no text or leads out of the archive.
fn member_name(directory: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
#[path = "load_tests.rs"]
pub(crate) mod tests;
