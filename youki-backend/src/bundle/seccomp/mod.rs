//! The system call filter: which profile, compiled for whom, cached where.

mod compile;
mod docker;
pub(crate) mod load;
mod profile;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use runtime_core::ServiceSpec;
use runtime_core::spec::SeccompSpec;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::layout::hex;
use profile::{Profile, Target};

/// Largest profile file; docker's has 16 KiB.
const MAX_PROFILE_BYTES: u64 = 1 << 20;
/// Raised when the same inputs compile to another filter: filters of an earlier version are then not used.
const CACHE_VERSION: u32 = 1;

/// Which profile a container has. A container without a plan is not filtered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SeccompPlan {
    /// Docker's default.
    Default,
    /// The text of a file in docker's format: later runs and execs have the same, whatever becomes of the file.
    Profile(String),
}

/// The plan that a spec asks for, its file read and checked. Blocks on the filesystem.
pub(super) fn plan(spec: &ServiceSpec) -> Result<Option<SeccompPlan>> {
    match &spec.seccomp {
        _ if spec.privileged => Ok(None),
        SeccompSpec::Unconfined => Ok(None),
        SeccompSpec::Default => Ok(Some(SeccompPlan::Default)),
        SeccompSpec::File(path) => {
            let text = read(Path::new(path))?;
            Profile::parse(&text).map_err(|error| match error {
                Error::InvalidSpec { reason, .. } => Error::invalid("seccomp.file", format!("{path}: {reason}")),
                other => other,
            })?;
            Ok(Some(SeccompPlan::Profile(text)))
        }
    }
}

/// The file of the compiled filter for `plan` and a container's bounding set `caps`; compiled if `cache_dir` does not
/// hold it yet (some ten milliseconds of CPU), else one stat(2). Blocks: not for a tokio worker.
///
/// The file holds raw BPF for [`load::load`]. `cache_dir` must be writable by root alone: what lies in it is trusted.
///
/// # Errors
/// [`Error::Seccomp`] when libseccomp refuses a rule; [`Error::InvalidSpec`] for a profile that is none;
/// [`Error::Io`] for the cache.
pub(crate) fn filter(cache_dir: &Path, plan: &SeccompPlan, caps: u64) -> Result<PathBuf> {
    let path = cache_dir.join(format!("{}.bpf", key(plan, caps)));
    let cached = fs::symlink_metadata(&path).is_ok_and(|file| file.is_file() && load::is_filter_size(file.len()));
    if cached {
        return Ok(path);
    }
    let (go_arch, scmp_arch) = native();
    let target = Target { caps, go_arch, scmp_arch, kernel: kernel() };
    let profile = match plan {
        SeccompPlan::Default => docker::profile(),
        SeccompPlan::Profile(text) => Profile::parse(text)?,
    };
    store(&path, &compile::compile(&profile, target)?)?;
    Ok(path)
}

/// Writes a filter so that it appears whole; losing a race against another process that compiled the same is as good.
fn store(path: &Path, filter: &[u8]) -> Result<()> {
    static ATTEMPT: AtomicU64 = AtomicU64::new(0);
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("making", dir))?;
    }
    let attempt = ATTEMPT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{attempt}.tmp", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(filter))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        Error::io("writing", path)(error)
    })
}

/// Names a filter by everything it depends on.
fn key(plan: &SeccompPlan, caps: u64) -> String {
    let mut hash = Sha256::new();
    let (go_arch, _) = native();
    let library = libseccomp::ScmpVersion::current().ok().map(|v| (v.major, v.minor, v.micro));
    hash.update(format!("{CACHE_VERSION} {caps:x} {go_arch} {:?} {library:?} ", kernel()));
    match plan {
        SeccompPlan::Default => hash.update("docker"),
        SeccompPlan::Profile(text) => {
            hash.update("file ");
            hash.update(text);
        }
    }
    hex(&hash.finalize())
}

/// This architecture as Go's tools and as libseccomp name it.
fn native() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", "SCMP_ARCH_X86_64"),
        "x86" => ("x86", "SCMP_ARCH_X86"),
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        "arm" => ("arm", "SCMP_ARCH_ARM"),
        "powerpc64" => ("ppc64le", "SCMP_ARCH_PPC64LE"),
        "s390x" => ("s390x", "SCMP_ARCH_S390X"),
        "riscv64" => ("riscv64", "SCMP_ARCH_RISCV64"),
        "loongarch64" => ("loong64", "SCMP_ARCH_LOONGARCH64"),
        other => (other, ""),
    }
}

/// Version of the running kernel; what cannot be read counts as old.
fn kernel() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let uname = rustix::system::uname();
        uname.release().to_str().ok().and_then(profile::kernel_version).unwrap_or((0, 0))
    })
}

fn read(path: &Path) -> Result<String> {
    let invalid = |reason: String| Error::invalid("seccomp.file", format!("{}: {reason}", path.display()));
    if !path.is_absolute() {
        return Err(invalid("not an absolute path".to_owned()));
    }
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_PROFILE_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| invalid(error.to_string()))?;
    if text.len() as u64 > MAX_PROFILE_BYTES {
        return Err(invalid(format!("larger than {MAX_PROFILE_BYTES} bytes")));
    }
    Ok(text)
}
