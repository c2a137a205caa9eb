//! Trees in a volume's directory that are not known to be the volume's: without its mark, as a backup is that was put back
//! by a copy without extended attributes. What is in one is nobody's to delete.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use runtime_core::VolumeStatus;

use crate::attributes;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::paths::Paths;
use crate::scan::changes;
use crate::volume::Volume;
use crate::walk::open_root;

/// Begins the name of a tree that was moved aside.
pub(crate) const ASIDE: &str = "foreign-";

/// Such trees, if there are any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub paths: Vec<PathBuf>,
    /// Bytes of their files.
    pub bytes: u64,
}

impl Foreign {
    /// Those of volume `name`: what was moved aside, and what is in the place of its tree and would be by its next use. One
    /// that holds nothing does not count. Blocks.
    pub(crate) fn find(name: &str, paths: &Paths) -> Result<Option<Self>> {
        let failed = |error| Error::io("read", &paths.directory, error);
        let entries = match std::fs::read_dir(&paths.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let (path, aside) = (entry.path(), entry.file_name().to_string_lossy().starts_with(ASIDE));
            if (aside || path == paths.data() && !is_own(name, &path)) && holds_something(&path)? {
                found.push(path);
            }
        }
        found.sort_unstable();
        let bytes = found.iter().map(|path| size(path)).sum::<Result<u64>>()?;
        Ok((!found.is_empty()).then_some(Self { paths: found, bytes }))
    }

    /// Adds to `status` what there is of them: nobody knows whether it is anywhere else. Blocks.
    pub(crate) fn tell(status: &mut VolumeStatus, paths: &Paths) {
        let error = match Self::find(&status.name, paths) {
            Ok(None) => return,
            Ok(Some(foreign)) => {
                status.bytes_at_risk += foreign.bytes;
                foreign.error(&status.name)
            }
            Err(error) => error,
        };
        status.last_error = Some(match status.last_error.take() {
            Some(before) => format!("{before}; {error}"),
            None => error.to_string(),
        });
    }

    /// The error that tells of them.
    pub(crate) fn error(self, name: &str) -> Error {
        Error::Foreign { name: name.to_owned(), bytes: self.bytes, paths: self.paths }
    }
}

/// Refuses to go on while there are any.
pub(crate) async fn refuse_foreign(volume: &Volume) -> Result<()> {
    let (name, paths, hold) = (volume.name.clone(), volume.paths.clone(), volume.hold());
    blocking("look for trees that are not the volume's", move || {
        let found = Foreign::find(&name, &paths);
        drop(hold);
        found?.map_or(Ok(()), |foreign| Err(foreign.error(&name)))
    })
    .await
}

/// Whether the tree at `path` bears the mark of volume `name`.
pub(crate) fn is_own(name: &str, path: &Path) -> bool {
    open_root(path).is_ok_and(|root| attributes::is_marked(root, name))
}

fn holds_something(path: &Path) -> Result<bool> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        // A file, or a link to somewhere else.
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(path.is_symlink()),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

fn size(path: &Path) -> Result<u64> {
    let stat = std::fs::symlink_metadata(path).map_err(|error| Error::io("read", path, error))?;
    if stat.is_dir() { changes(path, None).map(|found| found.size_bytes) } else { Ok(stat.size()) }
}
