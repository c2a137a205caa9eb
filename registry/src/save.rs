//! Images into one archive: an OCI image layout that `docker load` and `podman load` read, too.
//!
//! Blobs are copied as they are, so that an image has the same digest wherever the archive is loaded.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::dropped;
use crate::error::{Error, Result};
use crate::image::{Parts, read_blob};
use crate::index::{Index, LAYOUT, REF_NAME, names_content};
use crate::load::CONTAINERD_NAME;
use crate::locks::StoreHold;
use crate::manifest::{Descriptor, OCI_INDEX};
use crate::reference::Reference;
use crate::store::{Inner, blocking};

/// What is written to, as far as it is known here.
const ARCHIVE: &str = "the archive";
/// Size of a record of the archive format.
const BLOCK: usize = 512;

/// Writes the images `names` to `out`. An error leaves half an archive there.
pub(crate) async fn save(store: &Arc<Inner>, names: Vec<String>, out: impl Write + Send + 'static) -> Result<()> {
    let what = format!("an archive of {}", names.join(" and "));
    let (hold, images) = blocking(store, move |store| {
        let hold = StoreHold::shared(&store.paths.store_lock)?;
        Ok((hold, chosen(store, &names)?))
    })
    .await?;
    for image in &images {
        dropped::fetch_again(store, &image.digest, &image.parts.manifest.layers).await?;
    }
    blocking(store, move |store| {
        write(store, &images, out).map_err(|error| error.of_room_for(&what, Path::new(ARCHIVE)))?;
        drop(hold);
        dropped::drop_layers(store)
    })
    .await
}

fn write(store: &Inner, images: &[Chosen], mut out: impl Write) -> Result<()> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": images.iter().flat_map(Chosen::descriptors).collect::<Vec<_>>(),
    });
    let docker: Vec<Value> = images.iter().map(Chosen::docker_entry).collect();
    member(&mut out, "oci-layout", LAYOUT)?;
    member(&mut out, "index.json", index.to_string().as_bytes())?;
    member(&mut out, "manifest.json", Value::from(docker).to_string().as_bytes())?;
    let mut written = BTreeSet::new();
    for image in images {
        if written.insert(image.digest.as_str()) {
            member(&mut out, &blob_path(&image.digest), &image.document)?;
        }
        for blob in [&image.parts.manifest.config].into_iter().chain(&image.parts.manifest.layers) {
            if written.insert(blob.digest.as_str()) {
                copy_blob(store, blob, &mut out)?;
            }
        }
    }
    out.write_all(&[0; 2 * BLOCK]).and_then(|()| out.flush()).map_err(unwritable)
}

/// An image that is to be saved, and the names it is to have.
struct Chosen {
    digest: String,
    document: Vec<u8>,
    parts: Parts,
    references: Vec<Reference>,
}

/// The images, each once; one that was named by its content gets no name, as with docker.
fn chosen(store: &Inner, names: &[String]) -> Result<Vec<Chosen>> {
    let index = Index::read(&store.paths)?;
    let mut images: Vec<Chosen> = Vec::new();
    for name in names {
        let not_present = || Error::NotPresent(name.clone());
        let entry = index.find(name)?.ok_or_else(not_present)?;
        let reference = Reference::parse(entry.reference()).ok().filter(|_| !names_content(name, entry));
        let at = match images.iter().position(|image| image.digest == entry.digest) {
            Some(at) => at,
            None => {
                let document = read_blob(&store.paths, &entry.digest)?.ok_or_else(not_present)?;
                let parts = Parts::read(&store.paths, &entry.digest)?.ok_or_else(not_present)?;
                images.push(Chosen { digest: entry.digest.clone(), document, parts, references: Vec::new() });
                images.len() - 1
            }
        };
        images[at].references.extend(reference);
    }
    Ok(images)
}

impl Chosen {
    /// Its entries in `index.json`, one for each name.
    fn descriptors(&self) -> Vec<Value> {
        let media_type = &self.parts.manifest.media_type;
        let plain = json!({"mediaType": media_type, "digest": self.digest, "size": self.document.len()});
        let named = |reference: &Reference| {
            let mut entry = plain.clone();
            let tag = reference.tag().or(reference.digest());
            entry["annotations"] = json!({CONTAINERD_NAME: reference.to_string(), REF_NAME: tag});
            entry
        };
        if self.references.is_empty() { vec![plain] } else { self.references.iter().map(named).collect() }
    }

    /// Its entry in `manifest.json`, for docker.
    fn docker_entry(&self) -> Value {
        let manifest = &self.parts.manifest;
        let tags = self.references.iter().filter(|reference| reference.tag().is_some());
        json!({
            "Config": blob_path(&manifest.config.digest),
            "RepoTags": tags.map(Reference::to_string).collect::<Vec<_>>(),
            "Layers": manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect::<Vec<_>>(),
        })
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap_or(digest))
}

/// Copies a blob, and sees on the way whether it is what it is called.
fn copy_blob(store: &Inner, blob: &Descriptor, out: &mut impl Write) -> Result<()> {
    let path = store.paths.blob(blob.hex());
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NotPresent(blob.digest.clone())),
        Err(error) => return Err(Error::io("opening", &path, error)),
    };
    let found = file.metadata().map_err(|e| Error::io("looking at", &path, e))?.len();
    if found != blob.size {
        return Err(Error::SizeMismatch { what: blob.digest.clone(), expected: blob.size, found });
    }
    out.write_all(&header(&blob_path(&blob.digest), blob.size)).map_err(unwritable)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut left = blob.size;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..wanted]).map_err(|e| Error::io("reading", &path, e))?;
        hash.update(&buffer[..wanted]);
        out.write_all(&buffer[..wanted]).map_err(unwritable)?;
        left -= wanted as u64;
    }
    let found = format!("sha256:{:x}", hash.finalize());
    if found != blob.digest {
        return Err(Error::DigestMismatch { what: "a blob of the store".into(), expected: blob.digest.clone(), found });
    }
    pad(out, blob.size)
}

fn member(out: &mut impl Write, name: &str, data: &[u8]) -> Result<()> {
    out.write_all(&header(name, data.len() as u64)).and_then(|()| out.write_all(data)).map_err(unwritable)?;
    pad(out, data.len() as u64)
}

fn pad(out: &mut impl Write, size: u64) -> Result<()> {
    let over = (size % BLOCK as u64) as usize;
    if over == 0 { Ok(()) } else { out.write_all(&[0; BLOCK][over..]).map_err(unwritable) }
}

/// The header of a file that everybody may read, without owner and time: equal images make equal archives.
fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut header = tar::Header::new_gnu();
    // Names are ours and shorter than a header's field.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    *header.as_bytes()
}

fn unwritable(error: io::Error) -> Error {
    Error::io("writing", ARCHIVE, error)
}
