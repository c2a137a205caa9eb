//! The helper of a restart: executed by the resident in its own namespaces, it builds the container as the first one
//! did, by the plan that the resident has kept.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::Pid;

use super::build::{self, Streams, Which};
use super::plan::CreatePlan;
use crate::bundle::resources::CgroupLimits;
use crate::cgroup::Hierarchy;
use crate::container::remove_dir;
use crate::error::{Error, Result};
use crate::record::{self, ContainerRecord};
use crate::supervisor::failure::Failure;
use crate::supervisor::wire::MAX_FRAME_BYTES;

/// Tells a process that it is to be that helper. The supervisor's process id follows.
pub(crate) const AGAIN_ARGUMENT: &CStr = c"--berth-create-again";

/// The plan. Whoever else has it shares the file's position.
pub(crate) const PLAN_FD: i32 = 0;
/// Where it says how it goes.
pub(crate) const RESULT_FD: i32 = 3;
/// Write end of the pipe that tells of a failed `execve`.
pub(crate) const ERRNO_FD: i32 = 4;
/// The container's.
pub(crate) const STDIN_FD: i32 = 5;
/// The container's.
pub(crate) const STDOUT_FD: i32 = 6;
/// The container's.
pub(crate) const STDERR_FD: i32 = 7;

/// Builds, reports, and ends.
pub(crate) fn main(supervisor: Option<&str>) -> i32 {
    let supervisor = supervisor.and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    let mut ours = Vec::new();
    for place in [RESULT_FD, ERRNO_FD, STDIN_FD, STDOUT_FD, STDERR_FD] {
        // SAFETY: the resident left these descriptors to us alone, under these numbers.
        let fd = unsafe { OwnedFd::from_raw_fd(place) };
        if rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).is_err() {
            eprintln!("berth-create: it is started by Berth");
            // They are nobody's to close.
            ours.push(fd);
            std::mem::forget(ours);
            return 1;
        }
        ours.push(fd);
    }
    let Ok([result, errno, stdin, stdout, stderr]) = <[OwnedFd; 5]>::try_from(ours) else { return 1 };
    let ready = prepare().and_then(|plan| Ok((open_resident(&plan, supervisor)?, plan)));
    match ready {
        Ok((resident, plan)) => {
            let which = Which::Next { resident };
            build::main(plan, Streams { stdin, stdout, stderr, errno }, result, supervisor, which)
        }
        Err(error) => {
            let _ = writeln!(File::from(result), "error {}", Failure::of(&error).to_line());
            1
        }
    }
}

/// The plan, with the limits that the container has by now, and nothing left of the last attempt.
fn prepare() -> Result<CreatePlan> {
    let mut plan = read_plan().map_err(|error| Error::io("reading", "the plan")(error))?;
    plan.limits = limits_on_record(&plan)?;
    for dir in [&plan.resident.state_dir, &plan.bundle] {
        remove_dir(dir)?;
    }
    Ok(plan)
}

/// The limits that the container has by now.
pub(super) fn limits_on_record(plan: &CreatePlan) -> Result<CgroupLimits> {
    let path = plan.resident.container_dir.join("container.json");
    let record: ContainerRecord =
        record::read(&path)?.ok_or_else(|| Error::io("reading", &path)(io::Error::from(io::ErrorKind::NotFound)))?;
    CgroupLimits::new(&record.spec.resources, matches!(plan.hierarchy, Hierarchy::V2 { .. }))
}

/// What the supervisor is, for the tiny init: at its path may be another version by now, or nothing.
fn open_resident(plan: &CreatePlan, supervisor: Option<Pid>) -> Result<Option<OwnedFd>> {
    let Some(pid) = supervisor.filter(|_| plan.init) else { return Ok(None) };
    let path = format!("/proc/{}/exe", pid.as_raw_nonzero());
    let opened = openat(CWD, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    opened.map(Some).map_err(|error| Error::io("opening", path)(error.into()))
}

fn read_plan() -> io::Result<CreatePlan> {
    // SAFETY: open for as long as this process lives.
    let file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(PLAN_FD) });
    let length = file.metadata()?.len();
    if length > MAX_FRAME_BYTES as u64 {
        return Err(io::Error::other("it is too long"));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(serde_json::from_slice(&bytes)?)
}
