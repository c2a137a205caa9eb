//! Starting supervisors, and reaping those that end while their agent lives.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

use super::client::Connection;
use super::{STAGE_ARGUMENT, sealed};
use crate::error::{Error, Result};

const STAGE_NAME: &str = "berth-create";
const RESIDENT_NAME: &str = "berth-supervisor";

/// Set when the agent's own executable can be its supervisors' too.
pub(super) static SELF_IS_HELPER: AtomicBool = AtomicBool::new(false);

/// Starts supervisors.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    stage: PathBuf,
    resident: PathBuf,
    children: Arc<Children>,
}

/// The supervisors started by this process that have not been reaped.
#[derive(Debug, Default)]
struct Children(Mutex<Vec<Child>>);

impl Spawner {
    /// Finds the executables: in `dir`, else beside the current one (for tests and examples, which cargo puts a folder
    /// deeper, one above), else the current one itself.
    pub fn locate(dir: Option<&Path>) -> Result<Self> {
        let own = std::env::current_exe().map_err(Error::io("reading", "/proc/self/exe"))?;
        let beside = own.parent().unwrap_or(Path::new("/")).to_owned();
        let mut places = vec![dir.map_or(beside.clone(), Path::to_owned)];
        if dir.is_none() && beside.file_name().is_some_and(|name| name == "deps" || name == "examples") {
            places.extend(beside.parent().map(Path::to_owned));
        }
        let find = |name: &'static str| match places.iter().map(|place| place.join(name)).find(|path| path.is_file()) {
            Some(path) => Ok(path),
            None if SELF_IS_HELPER.load(Ordering::Relaxed) => Ok(own.clone()),
            None => Err(Error::HelperMissing { name, beside: places[0].clone() }),
        };
        Ok(Self { stage: find(STAGE_NAME)?, resident: find(RESIDENT_NAME)?, children: Arc::default() })
    }

    /// The executable that a stage becomes.
    pub fn resident(&self) -> &Path {
        &self.resident
    }

    /// Whether that could run in a container that has no dynamic linker of its: as its tiny init.
    pub fn resident_is_static(&self) -> bool {
        is_static(&self.resident).unwrap_or(false)
    }

    /// Begins to reap. Ends with the spawner. Must be called within a tokio runtime.
    pub fn start_reaping(&self) -> Result<()> {
        let mut ended = signal(SignalKind::child()).map_err(Error::io("listening for", "SIGCHLD"))?;
        let children: Weak<Children> = Arc::downgrade(&self.children);
        tokio::spawn(async move {
            while ended.recv().await.is_some() {
                match children.upgrade() {
                    Some(children) => children.reap(),
                    None => return,
                }
            }
        });
        Ok(())
    }

    /// Starts a stage that waits for its plan on the connection. Blocks for the time of a fork. Nothing is inherited
    /// but the connection and `log`; nothing of ours runs between fork and exec.
    pub fn spawn(&self, log: File) -> Result<(Connection, u32)> {
        let executable: OwnedFd = sealed::open(&self.stage)?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(Error::io("making", "a socket pair"))?;
        ours.set_nonblocking(true).map_err(Error::io("making", "a socket pair"))?;
        let stream = UnixStream::from_std(ours).map_err(Error::io("making", "a socket pair"))?;
        let child = Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd()))
            .arg(STAGE_ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(Error::io("starting", &self.stage))?;
        let pid = child.id();
        self.children.0.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        Ok((Connection::from_stream(stream), pid))
    }
}

/// Whether a 64-bit ELF file of this machine's byte order names no interpreter.
fn is_static(path: &Path) -> Option<bool> {
    use std::os::unix::fs::FileExt;
    /// `PT_INTERP`.
    const INTERPRETER: u32 = 3;
    let file = File::open(path).ok()?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    if !header.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let offset = u64::from_ne_bytes(header[32..40].try_into().ok()?);
    let size = u64::from(u16::from_ne_bytes(header[54..56].try_into().ok()?));
    let count = u64::from(u16::from_ne_bytes(header[56..58].try_into().ok()?));
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, offset.checked_add(index * size)?).ok()?;
        if u32::from_ne_bytes(kind) == INTERPRETER {
            return Some(false);
        }
    }
    Some(true)
}

impl Children {
    fn reap(&self) {
        let mut children = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // An error means that somebody else reaped it, which is as well.
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_executable_is_told_from_a_static_one() {
        // Test programs are dynamic.
        assert_eq!(is_static(&std::env::current_exe().unwrap()), Some(false));
        assert_eq!(is_static(Path::new("/etc/passwd")), None);
        assert_eq!(is_static(Path::new("/no/such")), None);
    }
}
