//! Whether an image is what its digests say: blobs are hashed again, and each layer is unpacked anew and compared with
//! the directory that containers are given.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;
use serde::Serialize;

use crate::dropped;
use crate::error::{Error, Result};
use crate::image::{self, Parts, read_blob};
use crate::index::Index;
use crate::layer::dir;
use crate::layer::tar::shown;
use crate::layers::{finalise_over, unpack_stored};
use crate::locks::StoreHold;
use crate::manifest::Descriptor;
use crate::place::{About, LayerId, Place};
use crate::store::{Inner, TmpDir};

/// What was found of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Its reference.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Bytes of its compressed layers and config.
    pub size_bytes: u64,
    /// What is not as it should be, bottom first; empty for a good image. Above a damaged layer only blobs are looked at.
    pub damaged: Vec<Damage>,
    /// Layers whose blobs were dropped once they were unpacked: there is nothing to compare them with.
    pub uncompared: Vec<String>,
}

/// A part of an image that is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Which: `layer sha256:…`.
    pub part: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Verifies the image that `name` means; blocking.
pub(crate) fn verify(store: &Arc<Inner>, name: &str) -> Result<Verified> {
    let _hold = StoreHold::shared(&store.paths.store_lock)?;
    let index = Index::read(&store.paths)?;
    let entry = index.find(name)?.ok_or_else(|| Error::NotPresent(name.to_owned()))?;
    let (reference, digest) = (entry.reference().to_owned(), entry.digest.clone());
    let Some(parts) = Parts::read(&store.paths, &digest)? else {
        let part = match read_blob(&store.paths, &digest)? {
            None => format!("manifest {digest}"),
            Some(_) => format!("config {}", entry.id),
        };
        let damaged = vec![Damage { part, reason: "missing, or not what its digest says".to_owned() }];
        return Ok(Verified { reference, digest, size_bytes: 0, damaged, uncompared: Vec::new() });
    };
    let (mut damaged, mut uncompared) = (Vec::new(), Vec::new());
    // The layers below, while all of them are good: what a layer is may depend on them.
    let mut settled = Some(Vec::new());
    for (id, blob) in parts.ids.iter().zip(&parts.manifest.layers) {
        let part = format!("layer {}", blob.digest);
        let (reason, standing) = if dropped::is_dropped(&store.paths, blob) {
            uncompared.push(part.clone());
            unpacked_only(store, id, settled.as_deref())?
        } else {
            layer(store, id, blob, settled.as_deref())?
        };
        settled = settled.zip(standing.filter(|_| reason.is_none())).map(|(mut settled, standing)| {
            settled.push(standing);
            settled
        });
        damaged.extend(reason.map(|reason| Damage { part, reason }));
    }
    Ok(Verified { reference, digest, size_bytes: parts.size_bytes(), damaged, uncompared })
}

type Standing = (Place, About);

/// The same of a layer whose blob was dropped: where it does not stand, there is nothing of it.
fn unpacked_only(
    store: &Inner,
    id: &LayerId,
    settled: Option<&[Standing]>,
) -> Result<(Option<String>, Option<Standing>)> {
    let Some(settled) = settled else { return Ok((None, None)) };
    let standing = image::standing(&store.paths, id, settled)?;
    Ok((standing.is_none().then(|| "its blob was dropped, and it is not unpacked".to_owned()), standing))
}

/// What is wrong with a layer, and where it stands.
fn layer(
    store: &Arc<Inner>,
    id: &LayerId,
    blob: &Descriptor,
    settled: Option<&[Standing]>,
) -> Result<(Option<String>, Option<Standing>)> {
    let standing = settled.map(|settled| image::standing(&store.paths, id, settled)).transpose()?.flatten();
    let tmp = TmpDir::create(&store.paths)?;
    let found = compare(store, id, blob, &tmp, settled.zip(standing.as_ref()));
    tmp.remove_now();
    let reason = match found {
        Ok(difference) => difference,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Some("its blob is missing".to_owned())
        }
        Err(
            error @ (Error::DigestMismatch { .. }
            | Error::SizeMismatch { .. }
            | Error::InvalidLayer { .. }
            | Error::TooLarge { .. }),
        ) => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    Ok((reason, standing))
}

fn compare(
    store: &Inner,
    id: &LayerId,
    blob: &Descriptor,
    tmp: &Arc<TmpDir>,
    stands: Option<(&[Standing], &Standing)>,
) -> Result<Option<String>> {
    let unpacked = unpack_stored(store, id, blob, tmp)?;
    let root_listed = unpacked.root_listed;
    // One that does not stand is unpacked from its blob when it is needed.
    let Some((settled, (place, _))) = stands else { return Ok(None) };
    let fresh = finalise_over(store, id, blob, unpacked, tmp, settled)?.root;
    let path = place.path(&store.paths);
    let open = |path: &std::path::Path| dir::open_root(path).map_err(|e| Error::io("opening", path, e));
    let (fresh, standing) = (open(&fresh)?, open(&path)?);
    let mut trees = Trees { links: HashMap::new() };
    let failed = |error: Errno| Error::io("comparing", &path, error);
    let mut difference = trees.difference(fresh.as_fd(), standing.as_fd(), b"").map_err(failed)?;
    if difference.is_none() && root_listed {
        let stat = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map_err(failed);
        let (one, other) = (stat(fresh.as_fd())?, stat(standing.as_fd())?);
        difference = attributes(&one, &other).map(|what| format!("the root has {what}"));
    }
    Ok(difference.map(|difference| format!("{difference} in {}", path.display())))
}

/// Two trees that should be one.
struct Trees {
    /// Inodes of the fresh tree with several names, and which those are in the other.
    links: HashMap<u64, u64>,
}

impl Trees {
    /// The first difference of two directories, if there is one. Depth is bounded by the limits on paths.
    fn difference(
        &mut self,
        fresh: BorrowedFd<'_>,
        standing: BorrowedFd<'_>,
        path: &[u8],
    ) -> rustix::io::Result<Option<String>> {
        let sorted = |directory| {
            dir::names(directory).map(|mut names| {
                names.sort_unstable();
                names
            })
        };
        let (mine, others) = (sorted(fresh)?, sorted(standing)?);
        if let Some(name) = others.iter().find(|name| mine.binary_search(name).is_err()) {
            return Ok(Some(format!("{} does not belong", shown(&dir::join(path, name)))));
        }
        for name in mine {
            let path = dir::join(path, &name);
            let Some(one) = dir::stat(fresh, &name)? else { continue };
            let Some(other) = dir::stat(standing, &name)? else {
                return Ok(Some(format!("{} is missing", shown(&path))));
            };
            // What was done in a directory says more than the time at which it was.
            if dir::is_dir(&one) && dir::is_dir(&other) {
                let (fresh, standing) = (dir::open_dir(fresh, &name)?, dir::open_dir(standing, &name)?);
                if let Some(difference) = self.difference(fresh.as_fd(), standing.as_fd(), &path)? {
                    return Ok(Some(difference));
                }
            }
            if dir::is_whiteout(&one) && dir::is_whiteout(&other) {
                continue;
            }
            let what = if let Some(what) = attributes(&one, &other) {
                what
            } else if self.links_differ(&one, &other) {
                "other hard links"
            } else if dir::xattrs_at(fresh, &name)? != dir::xattrs_at(standing, &name)? {
                "other extended attributes"
            } else if !content_is_equal(fresh, standing, &name, &one)? {
                "other content"
            } else {
                continue;
            };
            return Ok(Some(format!("{} has {what}", shown(&path))));
        }
        Ok(None)
    }

    fn links_differ(&mut self, one: &Stat, other: &Stat) -> bool {
        if dir::is_dir(one) {
            return false;
        }
        one.st_nlink != other.st_nlink
            || (one.st_nlink > 1 && *self.links.entry(one.st_ino).or_insert(other.st_ino) != other.st_ino)
    }
}

fn attributes(one: &Stat, other: &Stat) -> Option<&'static str> {
    if dir::file_type(one) != dir::file_type(other) || one.st_rdev != other.st_rdev {
        Some("another type")
    } else if one.st_mode != other.st_mode {
        Some("another mode")
    } else if (one.st_uid, one.st_gid) != (other.st_uid, other.st_gid) {
        Some("another owner")
    } else if dir::mtime_of(one) != dir::mtime_of(other) {
        Some("another time")
    } else if !dir::is_dir(one) && one.st_size != other.st_size {
        Some("another size")
    } else {
        None
    }
}

fn content_is_equal(
    fresh: BorrowedFd<'_>,
    standing: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
) -> rustix::io::Result<bool> {
    match dir::file_type(stat) {
        FileType::Symlink => {
            let target = |parent| rustix::fs::readlinkat(parent, dir::c(name)?.as_c_str(), Vec::new());
            Ok(target(fresh)? == target(standing)?)
        }
        FileType::RegularFile => {
            let open = |parent| dir::open(parent, name, OFlags::RDONLY | OFlags::NOFOLLOW).map(File::from);
            bytes_are_equal(open(fresh)?, open(standing)?)
        }
        _ => Ok(true),
    }
}

/// Of two files of one size.
fn bytes_are_equal(mut one: File, mut other: File) -> rustix::io::Result<bool> {
    let os = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let count = one.read(&mut left).map_err(os)?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..count]).map_err(os)?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
