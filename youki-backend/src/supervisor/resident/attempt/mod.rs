//! The attempts of one supervisor, one after another: each from the helper that builds the container to its exit record.

mod building;
mod clients;
mod ending;
mod execs;
mod reader;
mod removal;
mod restart;
mod schedule;
mod streams;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::config::{
    CONTROL_FD, ERRNO_FD, FIRST_HELD_FD, HOST_NETWORK_FD, LISTENER_FD, OUTPUT_FDS, PLAN_FD, RESULT_FD, ResidentConfig,
    STAGE_FD, STDIN_FD,
};
use super::connection::Connection;
use super::events::{self, Events, Source};
use super::exec::{self, Exec};
use super::log::{Log, LogSettings};
use super::output::{Output, Scratch};
use crate::cgroup::{CgroupPaths, Hierarchy};
use crate::supervisor::launch;
use crate::supervisor::wire::{Phase, Reply};
use ending::Ended;
use restart::Restarts;
use streams::Attachment;

/// Time for libcontainer to build a container: it takes milliseconds, but blocks for ever on a frozen cgroup or a dead
/// mount. What comes before, filling volumes, has no limit.
const BUILD_DEADLINE: Duration = Duration::from_secs(60);
/// Time for a process to end after SIGKILL before those who stop it are told that it does not.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A stop that is under way.
#[derive(Debug)]
struct Stopping {
    connections: Vec<usize>,
    kill_at: Instant,
    killed_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Attempt {
    config: ResidentConfig,
    events: Events,
    children: OwnedFd,
    listener: Option<OwnedFd>,
    /// Until when nobody new is accepted: as many are connected as can be.
    deaf_until: Option<Instant>,
    /// Which file our socket is: at its path may be a later supervisor's.
    socket_inode: u64,
    /// Which directory is our container's: at its path may be a later one's.
    container_inode: u64,
    /// The host's network namespace, if the container is to be taken off a network by us.
    host_network: Option<OwnedFd>,
    /// What the container is built by, with its environment.
    plan: Option<OwnedFd>,
    cgroup: CgroupPaths,
    connections: Vec<Option<Connection>>,
    phase: Phase,
    /// 0 before there is one, and once it is reaped: its number may be a stranger's by then.
    init_pid: i32,
    /// The helper, until it is reaped.
    helper_pid: Option<i32>,
    result: Option<OwnedFd>,
    result_text: Vec<u8>,
    /// The helper has done all of its work.
    built: bool,
    build_by: Option<Instant>,
    errno: Option<OwnedFd>,
    exec_errno: Option<i32>,
    starters: Vec<usize>,
    started_at_nanos: i64,
    stopping: Option<Stopping>,
    killed_by_us: bool,
    /// Why a restart could not build the container.
    build_failure: Option<String>,
    outputs: [Output; 2],
    scratch: Scratch,
    log: Log,
    /// The disk did not take all of the log in the time that the end of an attempt has for it.
    log_gave_up: bool,
    hot_until: Option<Instant>,
    attachments: Vec<Option<Attachment>>,
    stdin: Option<OwnedFd>,
    /// At the published ports: nobody else's as long as these are open.
    held: Vec<OwnedFd>,
    /// Our end of the container's terminal, once its init has sent it; its output comes from a copy of this.
    terminal: Option<OwnedFd>,
    /// The container's end of that, open up to the end of its init.
    terminal_peer: Option<OwnedFd>,
    execs: Vec<Option<Exec>>,
    exec_count: u64,
    /// Cgroups of ended execs that were not empty yet; tried again with the next exec.
    left_cgroups: Vec<PathBuf>,
    /// The init's wait status, once it ended.
    ended: Option<i32>,
    /// How the last attempt that is over ended.
    last: Option<Ended>,
    restarts: Restarts,
}

impl Attempt {
    pub fn take_over(config: ResidentConfig) -> io::Result<Self> {
        // A forked exec is for a moment in the container's PID namespace: what it still holds must not be looked at or
        // traced from inside. The program's own execve sets it back.
        launch::prctl(libc::PR_SET_DUMPABLE, 0, 0)?;
        let events = Events::new()?;
        let children = events::children()?;
        // SAFETY: as below.
        let plan = config.keeps_plan().then(|| unsafe { OwnedFd::from_raw_fd(PLAN_FD) });
        // SAFETY: as below.
        let stage = config.may_restart().then(|| unsafe { OwnedFd::from_raw_fd(STAGE_FD) });
        // SAFETY: the stage left these descriptors to us alone, under these numbers.
        let (control, listener, result, errno, stdin, [stdout, stderr], host_network) = unsafe {
            (
                OwnedFd::from_raw_fd(CONTROL_FD),
                OwnedFd::from_raw_fd(LISTENER_FD),
                OwnedFd::from_raw_fd(RESULT_FD),
                OwnedFd::from_raw_fd(ERRNO_FD),
                config.stdin.then(|| OwnedFd::from_raw_fd(STDIN_FD)),
                OUTPUT_FDS.map(|fd| OwnedFd::from_raw_fd(fd)),
                config.needs_host_network().then(|| OwnedFd::from_raw_fd(HOST_NETWORK_FD)),
            )
        };
        // SAFETY: so are these.
        let held: Vec<OwnedFd> =
            (0..config.held_sockets).map(|index| unsafe { OwnedFd::from_raw_fd(FIRST_HELD_FD + index) }).collect();
        for fd in [&control, &listener, &result, &errno, &stdout, &stderr].into_iter().chain(&stdin).chain(&held) {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        for fd in plan.iter().chain(&stage).chain(&host_network) {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
        }
        events.add(&children, Source::Children)?;
        events.add(&listener, Source::Listener)?;
        events.add(&result, Source::Result)?;
        events.add(&stdout, Source::Output(0))?;
        events.add(&stderr, Source::Output(1))?;
        events.add(&control, Source::Connection(0))?;
        let log = open_log(&config)?;
        if let Some(notices) = log.notices() {
            events.add(notices, Source::Log)?;
        }
        let hierarchy = Hierarchy::detect().map_err(|error| io::Error::other(error.chain()))?;
        Ok(Self {
            cgroup: hierarchy.container_dirs(&config.cgroup_path),
            socket_inode: inode(&config.socket),
            container_inode: inode(&config.container_dir),
            host_network,
            plan,
            log,
            log_gave_up: false,
            helper_pid: Some(config.helper_pid),
            restarts: Restarts::new(&config.restart, stage),
            config,
            events,
            children,
            listener: Some(listener),
            deaf_until: None,
            connections: vec![Some(Connection::new(control))],
            phase: Phase::Creating,
            init_pid: 0,
            result: Some(result),
            result_text: Vec::new(),
            built: false,
            build_by: None,
            errno: Some(errno),
            exec_errno: None,
            starters: Vec::new(),
            started_at_nanos: 0,
            stopping: None,
            killed_by_us: false,
            build_failure: None,
            outputs: [Output::new(stdout, "stdout")?, Output::new(stderr, "stderr")?],
            scratch: Scratch::new()?,
            hot_until: None,
            attachments: Vec::new(),
            stdin,
            held,
            terminal: None,
            terminal_peer: None,
            execs: Vec::new(),
            exec_count: 0,
            left_cgroups: Vec::new(),
            ended: None,
            last: None,
        })
    }

    /// Until the init has ended, the record is written and everybody told; and again while the policy says so.
    pub fn run(mut self: Box<Self>) -> i32 {
        // The end of the helper, or an agent's word, may have come before anybody listened.
        self.reap();
        self.serve(0);
        loop {
            while self.ended.is_none() {
                if let Err(error) = self.turn(self.next_deadline()) {
                    say!("waiting for events failed: {error}");
                    let _ = self.cgroup.signal_all();
                }
            }
            self.end();
            if !self.await_restart() {
                return self.finish();
            }
            self.begin_again();
        }
    }

    fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        for source in self.events.wait(timeout)? {
            match source {
                Source::Children => {
                    events::drain(&self.children);
                    self.reap();
                }
                Source::Listener => self.accept(),
                Source::Result => self.read_result(),
                Source::Errno => self.read_errno(),
                Source::Output(stream) => self.read_output(stream),
                Source::Connection(slot) => self.serve(slot),
                Source::Attachment(index) => self.flush_attachment(index / 2, index % 2),
                Source::ExecErrno(slot) => self.read_exec_errno(slot),
                Source::Log => self.log.attend(),
            }
        }
        self.pass_deadlines();
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let stop =
            self.stopping.as_ref().map(|stop| stop.killed_at.map_or(stop.kill_at, |killed| killed + KILL_PATIENCE));
        [self.build_by, stop, self.hot_until, self.deaf_until].into_iter().flatten().min()
    }

    fn pass_deadlines(&mut self) {
        let now = Instant::now();
        if self.hot_until.is_some_and(|until| until <= now) {
            self.hot_until = None;
            self.outputs.iter_mut().for_each(Output::release);
            self.scratch.release();
            self.log.release();
        }
        if self.deaf_until.is_some_and(|until| until <= now) {
            self.listen_again();
        }
        if self.build_by.is_some_and(|by| by <= now) {
            self.build_by = None;
            self.abandon(&format!("building it took longer than {BUILD_DEADLINE:?}"));
        }
        let Some(stop) = &mut self.stopping else { return };
        match stop.killed_at {
            None if stop.kill_at <= now => self.kill_all(),
            Some(killed) if killed + KILL_PATIENCE <= now => {
                let pids = self.cgroup.pids().unwrap_or_default();
                if pids.is_empty() {
                    // It is us who are late: that they have ended is the next that we hear.
                    stop.killed_at = Some(now);
                    return;
                }
                let connections = std::mem::take(&mut stop.connections);
                // Asked again, it is killed again.
                self.stopping = None;
                let text = format!("processes {pids:?} survived SIGKILL for {KILL_PATIENCE:?}");
                connections.iter().for_each(|slot| self.reply(*slot, &Reply::Error(text.clone())));
            }
            _ => {}
        }
    }

    fn kill_all(&mut self) {
        self.killed_by_us = true;
        if let Some(stop) = &mut self.stopping {
            stop.killed_at = Some(Instant::now());
        }
        let _ = self.signal_init(libc::SIGKILL);
        if let Err(error) = self.cgroup.signal_all() {
            say!("killing the cgroup: {}", error.chain());
        }
    }

    fn remove_socket(&self) {
        if self.socket_inode != 0 && inode(&self.config.socket) == self.socket_inode {
            let _ = std::fs::remove_file(&self.config.socket);
        }
    }

    fn signal_init(&self, signal: i32) -> io::Result<()> {
        if self.init_pid <= 0 {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // SAFETY: our child, and not reaped, so the number is its own.
        exec::check(unsafe { libc::kill(self.init_pid, signal) }).map(drop)
    }
}

fn open_log(config: &ResidentConfig) -> io::Result<Log> {
    let files = LogSettings {
        dir: config.container_dir.join("logs"),
        max_bytes: config.log_file_max_bytes,
        max_files: config.log_files,
    };
    match config.log_buffer_bytes {
        None => Ok(Log::blocking(files)),
        Some(bytes) => Log::non_blocking(files, bytes),
    }
}

/// 0 of what is not there.
fn inode(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.ino())
}

/// Puts `value` into the first free slot, and tells which.
fn place<T>(slots: &mut Vec<Option<T>>, value: T) -> usize {
    match slots.iter().position(Option::is_none) {
        Some(free) => {
            slots[free] = Some(value);
            free
        }
        None => {
            slots.push(Some(value));
            slots.len() - 1
        }
    }
}
