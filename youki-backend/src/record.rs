//! What is written down of a container: its record, and how its last attempt ended.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use chrono::{DateTime, Utc};
use oci_spec::image::ImageConfiguration;
use runtime_core::spec::StorageSpec;
use runtime_core::{ContainerId, DetailedStats, Event, EventKind, PortMapping, ServiceSpec, WaitOutcome, WaitReason};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bundle::ProcessPlan;
use crate::error::{Error, Result};
use crate::process::ProcessName;

/// Longest record that is read: a spec of many thousand environment variables is well below.
const MAX_RECORD_BYTES: u64 = 16 << 20;

/// Exit code of a container whose end nobody saw.
pub(crate) const LOST_EXIT_CODE: i32 = 137;

/// `container.json`: all that is needed to start the container again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub id: ContainerId,
    pub spec: ServiceSpec,
    pub image: ImageRecord,
    #[serde(with = "runtime_core::time")]
    pub created_at: DateTime<Utc>,
    /// The current attempt, from 1, or that of the last start by hand: `attempts.json` may tell of a later one. An exit
    /// record of an earlier one is out of date.
    pub attempt: u32,
    /// The boot in which that attempt was begun.
    pub boot_id: String,
    pub cgroup_path: String,
    pub args: Vec<String>,
    pub mounts: Vec<MountRecord>,
    pub stop_signal: i32,
    /// Its own network namespace, with an address where it is attached to a network.
    pub network: NetworkRecord,
    /// Published ports, with the host's port of each.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    /// The port that a container in the host's network was given as `PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_override: Option<u16>,
    /// What an exec takes on; unknown until the bundle is built.
    pub process: Option<ProcessPlan>,
}

/// Tells an attempt from all others of this root, also of an earlier container by the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AttemptKey {
    id: ContainerId,
    created_at: DateTime<Utc>,
    attempt: u32,
}

impl ContainerRecord {
    /// Whether both are of one container, not of two of one name.
    pub fn is_same_container(&self, other: &Self) -> bool {
        self.id == other.id && self.created_at == other.created_at
    }

    pub fn attempt_key(&self) -> AttemptKey {
        AttemptKey { id: self.id.clone(), created_at: self.created_at, attempt: self.attempt }
    }
}

impl ContainerRecord {
    /// The named volumes that its spec asks for, each once, in the order of their names.
    pub fn named_volumes(&self) -> BTreeSet<&str> {
        let storage = self.spec.storage.iter();
        let names = storage.filter_map(|storage| match storage {
            StorageSpec::Named { name, .. } => Some(name.as_str()),
            _ => None,
        });
        names.collect()
    }
}

/// The image a container was created from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub reference: String,
    /// Of its manifest; empty while it is being pulled.
    pub digest: String,
    /// Overlay lower directories, bottom first.
    pub layers: Vec<PathBuf>,
    /// Kept here: the image may be gone when the container is started again.
    pub config: ImageConfiguration,
    /// What of that OCI does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<registry::Healthcheck>,
}

impl ImageRecord {
    /// Of one that is not known yet but by the name it is asked for.
    pub fn to_be_pulled(reference: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            digest: String::new(),
            layers: Vec::new(),
            config: ImageConfiguration::default(),
            healthcheck: None,
        }
    }

    pub fn is_to_be_pulled(&self) -> bool {
        self.digest.is_empty()
    }
}

impl From<registry::Image> for ImageRecord {
    fn from(image: registry::Image) -> Self {
        let registry::Image { reference, digest, layers, config, healthcheck, .. } = image;
        Self { reference, digest, layers, config, healthcheck }
    }
}

/// A volume or bind mount as it was resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountRecord {
    #[serde(rename = "type")]
    pub kind: MountKind,
    pub source: PathBuf,
    pub target: String,
    pub readonly: bool,
    /// The name of a named volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What a mount's source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MountKind {
    Bind,
    Named,
    Anonymous,
}

/// The network as it was set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NetworkRecord {
    Host,
    None,
    Bridge(crate::network::Lease),
    Container(JoinedNetwork),
}

impl NetworkRecord {
    /// Whether its interfaces are its own, or another container's, and not the host's.
    pub fn is_own(&self) -> bool {
        !matches!(self, Self::Host | Self::Container(JoinedNetwork { is_hosts: true, .. }))
    }
}

/// Another container's network, as it was when this one joined it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinedNetwork {
    /// The one that was named.
    pub container: ContainerId,
    /// Whose it is, and whose files of `/etc`: that one, or the one it has joined itself.
    pub owner: ContainerId,
    /// Its host name.
    pub hostname: String,
    /// It is the host's.
    pub is_hosts: bool,
}

/// `exit.json`: how an attempt ended. Written by the supervisor before it tells anyone, or by whoever finds it lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub attempt: u32,
    /// Who wrote it ([`ProcessName`](crate::process::ProcessName)); gone a moment later, with the mounts.
    pub supervisor: Option<String>,
    pub outcome: WaitOutcome,
    /// When the program was started; `None` if it never was.
    #[serde(with = "runtime_core::time::option")]
    pub started_at: Option<DateTime<Utc>>,
    /// Why the container counts as failed, not exited.
    pub failure: Option<String>,
    /// Processes the kernel killed for want of memory during the attempt.
    pub oom_kills: u64,
    /// What it had used at its end.
    pub stats: Option<DetailedStats>,
    /// Another attempt follows: its supervisor waits for the time, and says so.
    #[serde(default)]
    pub restarting: bool,
}

impl ExitRecord {
    /// For an attempt whose end nobody saw.
    pub fn lost(attempt: u32, failure: String) -> Self {
        let outcome = WaitOutcome {
            exit_code: LOST_EXIT_CODE,
            reason: WaitReason::RuntimeError,
            signal: None,
            finished_at: Some(Utc::now()),
        };
        Self {
            attempt,
            supervisor: None,
            outcome,
            started_at: None,
            failure: Some(failure),
            oom_kills: 0,
            stats: None,
            restarting: false,
        }
    }

    /// Who wrote it, if its supervisor did.
    pub fn supervisor(&self) -> Option<ProcessName> {
        self.supervisor.as_deref()?.parse().ok()
    }
}

impl ExitRecord {
    /// The event that it is.
    pub fn event(&self, container: &str) -> Event {
        Event {
            attempt: Some(self.attempt),
            exit_code: Some(self.outcome.exit_code),
            detail: Some(self.failure.clone().unwrap_or_else(|| format!("{:?}", self.outcome.reason))),
            ..Event::now(EventKind::Exit).of(container)
        }
    }
}

/// Reads a record, or `None` if there is no such file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(Error::io("opening", path)(error)),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_RECORD_BYTES), &mut bytes)
        .map_err(Error::io("reading", path))?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::Corrupt { path: path.to_owned(), reason: error.to_string() })
}

/// The same for one among many: a damaged one hides no other, and is as one that is not there.
pub(crate) fn read_intact<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match read(path) {
        Err(error @ Error::Corrupt { .. }) => {
            tracing::warn!(error = error.chain(), "passed over");
            Ok(None)
        }
        other => other,
    }
}

/// Writes a record so that a reader sees the old or the new one, whole. It is not synced: the keeper does that within a
/// second of an attempt's begin and end, and the death of any process loses nothing.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    write_bytes(path, &to_bytes(path, record)?)
}

/// The same for what nothing syncs later: once this returns, a power cut costs neither it nor its name.
pub(crate) fn write_synced<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    let bytes = to_bytes(path, record)?;
    replace(path, |file| file.write_all(&bytes).and_then(|()| file.sync_all()))?;
    sync_names(path.parent().unwrap_or(path))
}

/// The names in `dir` survive a power cut once this returns.
pub(crate) fn sync_names(dir: &Path) -> Result<()> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("syncing", dir))
}

/// The same as [`write`] for bytes as they are.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |file| file.write_all(bytes))
}

fn to_bytes<T: Serialize>(path: &Path, record: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(record)
        .map_err(|error| Error::Corrupt { path: path.to_owned(), reason: error.to_string() })?;
    bytes.push(b'\n');
    if bytes.len() as u64 > MAX_RECORD_BYTES {
        return Err(Error::invalid(
            "spec",
            format!("it takes {} bytes on record, of at most {MAX_RECORD_BYTES}", bytes.len()),
        ));
    }
    Ok(bytes)
}

/// Puts what `fill` writes in the place of `path`.
fn replace(path: &Path, fill: impl FnOnce(&mut fs::File) -> io::Result<()>) -> Result<()> {
    static WRITE: AtomicU32 = AtomicU32::new(0); // several at once in one process
    let number = u64::from(std::process::id()) << 32 | u64::from(WRITE.fetch_add(1, Ordering::Relaxed));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!("{TEMPORARY}{number}"));
    let temporary = PathBuf::from(temporary);
    let written = fs::File::create(&temporary).and_then(|mut file| fill(&mut file));
    let result = written
        .map_err(Error::io("writing", &temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io("renaming to", path)));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Stands between the name of a file being written and the number of the write.
const TEMPORARY: &str = ".tmp";

/// Whether `name` is that of a file being written, or left by a write that was cut off. No container's id is.
pub(crate) fn is_temporary(name: &str) -> bool {
    let number = name.rsplit_once(TEMPORARY).map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Removes what writes to `dir` left that were cut off. The lock must be held under which all writers write there.
pub(crate) fn remove_temporaries(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let entry = entry.map_err(Error::io("listing", dir))?;
        if entry.file_name().to_str().is_some_and(is_temporary) {
            fs::remove_file(entry.path()).map_err(Error::io("removing", entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        assert_eq!(read::<ExitRecord>(&path).unwrap(), None);
        fs::write(&path, b"{\"attempt\":1").unwrap();
        let error = read::<ExitRecord>(&path).unwrap_err();
        assert_eq!(error.code(), "root.corrupt");
        assert!(error.to_string().contains("exit.json"));
    }

    #[test]
    fn what_a_cut_off_write_left_is_told_from_any_container_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        for kept in ["web-rep-0", "a.tmp1-rep-0", ".lock", "x.tmp", "10.0.0.1@b.tmp-rep-7"] {
            assert!(!is_temporary(kept), "{kept}");
            fs::write(dir.path().join(kept), "").unwrap();
        }
        for left in ["web-rep-0.tmp12", "a.tmp1-rep-0.tmp1", "10.0.0.1@web-rep-0.tmp12"] {
            assert!(is_temporary(left), "{left}");
            fs::write(dir.path().join(left), "").unwrap();
        }
        remove_temporaries(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
    }

    #[test]
    fn a_record_that_cannot_be_written_leaves_the_old_one_and_no_rubbish() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        let record = ExitRecord::lost(1, "x".into());
        write(&path, &record).unwrap();
        assert!(write(&dir.path().join("missing/exit.json"), &record).is_err());
        assert_eq!(read::<ExitRecord>(&path).unwrap(), Some(record));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
