//! Where a tar is written to: a file that appears whole or not at all, or standard output.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::failure::{Failure, Result};
use crate::streams::{self, Patient};

/// One output. What stood at its path stays until [`finish`](Self::finish); dropped before, nothing is left of it.
pub struct TarOutput {
    file: File,
    /// Where the file is, and where it goes; none for what is no file of a directory.
    unfinished: Option<(TempPath, PathBuf)>,
}

impl TarOutput {
    /// A file, else standard output, unless that is a terminal. Only the caller's user may read the file, as docker has it.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            if io::stdout().is_terminal() {
                return Err(Failure::usage("a tar is not for a terminal: redirect the output, or use --output"));
            }
            return Ok(Self { file: streams::own(io::stdout()).map(File::from)?, unfinished: None });
        };
        let failed = |error| Failure::io("creating", path, &error);
        // A device, a pipe, a link to nothing, or a directory, which is refused with its name.
        if !path.is_file() && path.symlink_metadata().is_ok() {
            let file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
            return Ok(Self { file, unfinished: None });
        }
        // What a link leads to is replaced, not the link.
        let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (file, beside) = NamedTempFile::new_in(directory).map_err(failed)?.into_parts();
        Ok(Self { file, unfinished: Some((beside, target)) })
    }

    /// A writer of its own into it.
    pub fn writer(&self) -> Result<BufWriter<Patient>> {
        Ok(BufWriter::new(Patient::own(&self.file)?))
    }

    /// Everything is written: the file takes its place, and is on the disk.
    pub fn finish(self) -> Result<()> {
        let Some((beside, target)) = self.unfinished else { return Ok(()) };
        self.file.sync_all().map_err(|error| Failure::io("syncing", &target, &error))?;
        beside.persist(&target).map_err(|error| Failure::io("creating", &target, &error.error))
    }
}
