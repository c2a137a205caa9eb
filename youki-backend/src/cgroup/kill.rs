//! Freezing, thawing and killing all of a cgroup.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{CgroupPaths, Dirs, gone};
use crate::error::{Error, Result};

/// How long one round of killing waits for a freeze before it signals what runs: a member may be in an
/// uninterruptible sleep and hold the freeze up, and the next round catches what was forked meanwhile.
const FREEZE_FOR_KILL: Duration = Duration::from_millis(200);

/// How often an exec's cgroup is looked at again for what was forked while it was being killed.
const MAX_KILL_ROUNDS: usize = 100;

/// Longest pause between two looks at a v1 freezer, which tells nobody when it is done.
const MAX_FREEZER_PAUSE: Duration = Duration::from_millis(20);

pub(super) fn kill_all(cgroup: &CgroupPaths, patience: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let pids = cgroup.pids()?;
        if pids.is_empty() {
            return Ok(());
        }
        if start.elapsed() > patience {
            let id = cgroup.path.rsplit('/').next().unwrap_or_default().to_owned();
            return Err(Error::StopTimedOut { id, pids, waited: start.elapsed() });
        }
        let dying = open_all(&pids);
        signal_all(cgroup)?;
        wait_for_exit(&dying, start + patience)?;
    }
}

pub(super) fn signal_all(cgroup: &CgroupPaths) -> Result<()> {
    if let Dirs::V2(dir) = &cgroup.dirs
        // Not before Linux 5.14, nor for a threaded one.
        && fs::write(dir.join("cgroup.kill"), "1").is_ok()
    {
        return Ok(());
    }
    freeze_and_signal(cgroup)
}

/// The same for one directory of a hierarchy alone, in rounds without a freeze: for an exec within a container.
pub(crate) fn kill_dir(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // What is forked between two looks is caught by the next; pids limits bound the number of looks.
    for _ in 0..MAX_KILL_ROUNDS {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if pids.is_empty() {
            return;
        }
        for process in open_all(&pids) {
            // It fails for one that is dead already, which is what is wanted.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

/// Signals all while none can fork.
fn freeze_and_signal(cgroup: &CgroupPaths) -> Result<()> {
    // Whether to thaw, and whether every member is held where it is.
    let (frozen, held) = match set_frozen(cgroup, true, FREEZE_FOR_KILL) {
        Ok(()) => (true, true),
        // Without a freezer, rounds of signals have to do; pids limits bound a fork bomb.
        Err(Error::Unsupported { .. }) => (false, false),
        Err(Error::Io { source, .. }) if gone(&source) => (false, false),
        Err(Error::Io { source, .. })
            if matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) =>
        {
            (true, false)
        }
        Err(error) => return Err(error),
    };
    let signalled = cgroup.pids().and_then(|pids| {
        let processes = open_each(&pids);
        // One that was not held may have ended, and its number been given to a stranger, before it was opened. Who
        // is still listed after that is a member, whichever.
        let still = if held { pids } else { cgroup.pids()? };
        for (_, process) in processes.iter().filter(|(pid, _)| still.contains(pid)) {
            // It fails for one that is dead already, which is what is wanted.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        Ok(())
    });
    if frozen {
        // SIGKILL is acted on only once thawed.
        thaw(cgroup)?;
    }
    signalled
}

fn open_all(pids: &[u32]) -> Vec<OwnedFd> {
    open_each(pids).into_iter().map(|(_, process)| process).collect()
}

fn open_each(pids: &[u32]) -> Vec<(u32, OwnedFd)> {
    let open = |pid| pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok();
    pids.iter().filter_map(|pid| Some((*pid, open(*pid)?))).collect()
}

fn wait_for_exit(processes: &[OwnedFd], deadline: Instant) -> Result<()> {
    if processes.is_empty() {
        // Listed, but no longer to be opened: between exit and leaving the cgroup.
        thread::sleep(Duration::from_micros(200));
    }
    for process in processes {
        wait_for(process, PollFlags::IN, deadline).map_err(Error::io("waiting for", "a killed process"))?;
    }
    Ok(())
}

/// Waits for an event on `fd`, or until `deadline`; true if there was one.
fn wait_for(fd: impl AsFd, flags: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, flags)], Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn freeze(cgroup: &CgroupPaths, patience: Duration) -> Result<()> {
    let done = set_frozen(cgroup, true, patience);
    if matches!(&done, Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::TimedOut) {
        // Half frozen is neither paused nor running; its own failure adds nothing.
        let _ = thaw(cgroup);
    }
    done
}

pub(super) fn thaw(cgroup: &CgroupPaths) -> Result<()> {
    match set_frozen(cgroup, false, Duration::from_secs(1)) {
        // Who was killed while frozen dies as soon as it is let go, and the cgroup may go with it, before its state is read.
        Err(Error::Io { source, .. }) if gone(&source) => Ok(()),
        other => other,
    }
}

fn set_frozen(cgroup: &CgroupPaths, frozen: bool, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    match &cgroup.dirs {
        Dirs::V2(dir) => set_frozen_v2(dir, frozen, deadline),
        Dirs::V1(dirs) => {
            let dir = dirs
                .get("freezer")
                .ok_or_else(|| Error::Unsupported { what: "pausing without the freezer controller".to_owned() })?;
            set_frozen_v1(&dir.join("freezer.state"), frozen, deadline)
        }
    }
}

fn set_frozen_v1(file: &Path, frozen: bool, deadline: Instant) -> Result<()> {
    const THAWED: &str = "THAWED";
    let want = if frozen { "FROZEN" } else { THAWED };
    let read = || fs::read_to_string(file).map_err(Error::io("reading", file));
    let mut pause = Duration::from_micros(100);
    loop {
        // Written again each time: a task that entered a freezing cgroup may have been missed by the first.
        fs::write(file, want).map_err(Error::io("writing", file))?;
        if read()?.trim_end() == want {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(cut_short(io::ErrorKind::TimedOut, file.to_owned()));
        }
        thread::sleep(pause);
        if frozen && read()?.trim_end() == THAWED {
            return Err(cut_short(io::ErrorKind::Interrupted, file.to_owned()));
        }
        pause = (pause * 2).min(MAX_FREEZER_PAUSE);
    }
}

fn set_frozen_v2(dir: &Path, frozen: bool, deadline: Instant) -> Result<()> {
    let (file, events) = (dir.join("cgroup.freeze"), dir.join("cgroup.events"));
    let watch = fs::File::open(&events).map_err(Error::io("opening", &events))?;
    fs::write(&file, if frozen { "1" } else { "0" }).map_err(Error::io("writing", &file))?;
    loop {
        let text = fs::read_to_string(&events).map_err(Error::io("reading", &events))?;
        match crate::stats::parse::keyed(&text, "frozen") {
            Some(now) if (now == 1) == frozen => return Ok(()),
            Some(_) => {}
            None => return Err(Error::Unsupported { what: "pausing before Linux 5.2".to_owned() }),
        }
        if Instant::now() >= deadline {
            return Err(cut_short(io::ErrorKind::TimedOut, file));
        }
        // The first poll after open reports at once, which costs one more look.
        let next_look = deadline.min(Instant::now() + MAX_FREEZER_PAUSE);
        wait_for(&watch, PollFlags::PRI, next_look).map_err(Error::io("watching", &events))?;
        if frozen && fs::read_to_string(&file).map_err(Error::io("reading", &file))?.trim_end() == "0" {
            return Err(cut_short(io::ErrorKind::Interrupted, file));
        }
        // Reading rearms the notification (kernfs compares with what this descriptor last read).
        let mut text = String::new();
        let _ = io::Seek::rewind(&mut &watch);
        io::Read::read_to_string(&mut &watch, &mut text).map_err(Error::io("reading", &events))?;
    }
}

/// A freeze takes too long, or somebody lets the cgroup go meanwhile (`Interrupted`): a stop does.
fn cut_short(kind: io::ErrorKind, path: PathBuf) -> Error {
    Error::Io { action: "freezing", path, source: io::Error::from(kind) }
}
