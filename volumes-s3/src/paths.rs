//! Where the files of a volume are, and the bells of who keeps.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The directory of [`Paths::debt`], in that of the volumes.
pub(crate) const DEBTS: &str = ".owed";
/// The directory of [`Paths::grown`], in that of the volumes.
pub(crate) const GROWN: &str = ".grown";
/// The file of [`Paths::restored_scan`]. Its list of entries lies beside it, with another ending.
pub(crate) const RESTORED_SCAN: &str = "scan.restored";

/// Where the files of a volume are.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub directory: PathBuf,
}

impl Paths {
    pub(crate) fn new(root: &Path, name: &str) -> Self {
        Self { directory: root.join(name) }
    }
    /// The tree.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state.json")
    }
    /// The scan record of the tree as it was last published or restored.
    pub(crate) fn scan(&self) -> PathBuf {
        self.directory.join("scan")
    }
    /// The scan record of a sync under way, and of the commit in `commit.json`.
    pub(crate) fn new_scan(&self) -> PathBuf {
        self.directory.join("scan.new")
    }
    /// The scan record of a tree that is being restored.
    pub(crate) fn restored_scan(&self) -> PathBuf {
        self.directory.join(RESTORED_SCAN)
    }
    pub(crate) fn commit(&self) -> PathBuf {
        self.directory.join("commit.json")
    }
    pub(crate) fn uploads(&self) -> PathBuf {
        self.directory.join("uploads")
    }
    /// There, and written again, while S3 is owed something.
    pub(crate) fn debt(&self) -> PathBuf {
        self.bell(DEBTS)
    }
    /// Written when a tree is published, and there until retention was applied.
    pub(crate) fn grown(&self) -> PathBuf {
        self.bell(GROWN)
    }
    fn bell(&self, directory: &str) -> PathBuf {
        let name = self.directory.file_name().unwrap_or_default();
        self.directory.with_file_name(directory).join(name)
    }
}

/// Tells who keeps. Where that is not possible (a full disk), the next keeper looks for itself.
pub(crate) fn ring(bell: &Path) {
    let made = bell.parent().map_or(Ok(()), make_directories);
    if let Err(error) = made.and_then(|()| std::fs::write(bell, "\n").map_err(|error| Error::io("write", bell, error)))
    {
        tracing::debug!(%error, "the keeper is not told");
    }
}

/// Makes a directory and its parents, for root only.
pub(crate) fn make_directories(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| Error::io("create", path, error))
}
