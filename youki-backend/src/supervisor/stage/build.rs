//! The helper: makes the cgroup, finishes the bundle, and lets libcontainer build the container as its sibling, so
//! that the init becomes the supervisor's child. It blocks, can be killed, and ends when that is done.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::CreatePlan;
use super::again;
use super::executor::Init;
use super::fill;
use super::mounts::RootMounts;
use crate::bundle::cgroup_view::CgroupView;
use crate::bundle::resources::{CONTROLLERS, CgroupLimits, CgroupWrite, write_all};
use crate::bundle::users;
use crate::cgroup::{CgroupPaths, Dirs};
use crate::error::{Error, Result, chain};
use crate::supervisor::failure::{CREATE_FAILED, Failure};
use crate::supervisor::launch::{Launch, Program};

/// libcontainer's name for the container, in a directory that is its alone.
pub(crate) const LIBCONTAINER_ID: &str = "c";

pub(super) const CGROUP_MOUNT: &str = "/sys/fs/cgroup";

/// Which attempt is built.
#[derive(Debug)]
pub(super) enum Which {
    /// The first, under the lock of its container.
    First,
    /// One that follows. Its limits may be changed meanwhile.
    Next {
        /// For a tiny init, the executable that the supervisor is already.
        resident: Option<OwnedFd>,
    },
}

/// Builds, reports, and ends. Nobody waits for it once `supervisor`, its parent, is gone.
pub(super) fn main(plan: CreatePlan, streams: Streams, report: OwnedFd, supervisor: Option<Pid>, which: Which) -> ! {
    let bound = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if bound.is_err() || rustix::process::getppid() != supervisor {
        // SAFETY: ends this process without running anything of its parent's.
        unsafe { libc::_exit(1) }
    }
    let mut report = fs::File::from(report);
    let code = match build(plan, streams, which, &mut report) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(report, "error {}", Failure::of(&error).to_line());
            1
        }
    };
    // SAFETY: ends this process without running anything of its parent's.
    unsafe { libc::_exit(code) }
}

/// The container's streams, and the pipe that tells of a failed `execve`: the init's ends of them.
#[derive(Debug)]
pub(super) struct Streams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub errno: OwnedFd,
}

fn build(mut plan: CreatePlan, streams: Streams, which: Which, report: &mut fs::File) -> Result<()> {
    let say = |report: &mut fs::File, line: &str| {
        writeln!(report, "{line}").map_err(Error::io("answering", "the supervisor"))
    };
    crate::bundle::apply_sysctls(&plan.process.net_sysctls)?;
    let root = openat(CWD, &plan.rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::io("opening", &plan.rootfs)(error.into()))?;
    for volume in &plan.fill {
        fill::fill(&root, &volume.target, &volume.source)?;
    }
    let (launch, identity) = finish_bundle(&mut plan, &root)?;
    drop(root);
    let mounts = RootMounts::prepare(plan.root.clone())?;
    say(report, "build")?;

    let cgroup = plan.cgroup();
    cgroup.create()?;
    cgroup.limit_devices(&plan.device_rules)?;
    let view = cgroup_view(&cgroup, plan.process.cgroup_view_writable)?;
    let controllers = open_controllers(&cgroup, &plan.limits, &which)?;
    cgroup.join()?;
    fs::write("/proc/self/oom_score_adj", plan.process.oom_score_adj.unwrap_or(0).to_string())
        .or_else(|error| if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) })
        .map_err(Error::io("writing", "/proc/self/oom_score_adj"))?;
    hide_cgroups()?;

    let init = match plan.init {
        true => Some(Rc::new(match &which {
            Which::Next { resident: Some(resident) } => {
                resident.try_clone().map_err(Error::io("opening", &plan.resident_executable))?
            }
            _ => crate::supervisor::sealed::open(&plan.resident_executable)?,
        })),
        false => None,
    };
    let executor = Init {
        init,
        launch: Rc::new(launch),
        mounts: Rc::new(mounts),
        owner: (identity.uid, identity.gid),
        cgroup_view: view.map(Rc::new),
        terminal: plan.resident.terminal,
        report: report.as_raw_fd(),
        errno: streams.errno.as_raw_fd(),
    };
    let state_root = plan.resident.state_dir.parent().unwrap_or(Path::new("/")).to_owned();
    let failed = |error: libcontainer::error::LibcontainerError| Error::CreateFailed {
        id: LIBCONTAINER_ID.to_owned(),
        code: CREATE_FAILED,
        reason: chain(&error),
    };
    let container = ContainerBuilder::new(LIBCONTAINER_ID.to_owned(), SyscallType::default())
        .with_executor(executor)
        .with_root_path(state_root)
        .map_err(failed)?
        .with_stdin(streams.stdin)
        .with_stdout(streams.stdout)
        .with_stderr(streams.stderr)
        .as_init(&plan.bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(failed)?;
    let pid = container.pid().map_or(0, |pid| pid.as_raw());
    say(report, &format!("pid {pid}"))?;
    drop(streams.errno);
    // Its environment may hold secrets.
    fs::remove_dir_all(&plan.bundle).map_err(Error::io("removing", &plan.bundle))?;
    write_limits(&controllers, &plan.limits)?;
    if matches!(which, Which::Next { .. }) {
        // Whoever changes them has written the record before the cgroup for the last time.
        loop {
            let limits = again::limits_on_record(&plan)?;
            if limits == plan.limits {
                break;
            }
            write_limits(&controllers, &limits)?;
            plan.limits = limits;
        }
    }
    say(report, "done")
}

/// Resolves the user in the merged root, writes config.json, and prepares what the init does last.
fn finish_bundle(plan: &mut CreatePlan, root: &OwnedFd) -> Result<(Launch, users::Identity)> {
    use std::os::fd::AsFd;
    let identity = users::resolve(root.as_fd(), plan.process.user.as_deref())?;
    let process = plan.oci.process_mut().get_or_insert_default();
    let user = process.user_mut();
    user.set_uid(identity.uid);
    user.set_gid(identity.gid);
    user.set_additional_gids(Some(identity.groups.clone()));
    let env = process.env_mut().get_or_insert_default();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", users::home(&identity)));
    }
    let bytes = |texts: &[String]| texts.iter().map(|text| text.clone().into_bytes()).collect::<Vec<_>>();
    let filter = plan.filter.as_ref().map(|path| fs::read(path).map_err(Error::io("reading", path))).transpose()?;
    let launch = Launch::prepare(Program {
        args: &bytes(process.args().as_deref().unwrap_or_default()),
        env: &bytes(process.env().as_deref().unwrap_or_default()),
        capabilities: plan.process.capabilities.for_uid(identity.uid),
        no_new_privileges: plan.process.no_new_privileges,
        filter,
        rlimits: plan.process.rlimits.clone(),
    })
    .map_err(|error| Error::invalid("command", error.to_string()))?;
    fs::create_dir_all(&plan.bundle).map_err(Error::io("creating", &plan.bundle))?;
    let path = plan.bundle.join("config.json");
    let config = serde_json::to_vec(&plan.oci).map_err(|error| Error::io("writing", &path)(error.into()))?;
    fs::write(&path, config).map_err(Error::io("writing", &path))?;
    Ok((launch, identity))
}

fn cgroup_view(cgroup: &CgroupPaths, writable: bool) -> Result<Option<CgroupView>> {
    let Dirs::V1(dirs) = &cgroup.dirs else { return Ok(None) };
    let named: Vec<(&str, &Path)> = dirs.iter().map(|(name, dir)| (name.as_str(), dir.as_path())).collect();
    CgroupView::prepare(&named, writable).map(Some).map_err(Error::io("preparing the view of", CGROUP_MOUNT))
}

/// So that libcontainer finds no cgroup: it would join by `cgroup.procs` again, which waits for a grace period.
fn hide_cgroups() -> Result<()> {
    // SAFETY: this process is single-threaded and holds nothing that depends on its mount namespace.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(|error| Error::io("leaving", "the supervisor's mount table")(error.into()))?;
    unmount(CGROUP_MOUNT, UnmountFlags::DETACH).map_err(|error| Error::io("detaching", CGROUP_MOUNT)(error.into()))?;
    mount("tmpfs", CGROUP_MOUNT, "tmpfs", MountFlags::empty(), None)
        .map_err(|error| Error::io("hiding", CGROUP_MOUNT)(error.into()))
}

/// The directories that limits are written to, opened while they can be seen.
fn open_controllers(cgroup: &CgroupPaths, limits: &CgroupLimits, which: &Which) -> Result<BTreeMap<String, OwnedFd>> {
    let mut controllers = BTreeMap::new();
    let later = if matches!(which, Which::Next { .. }) { &CONTROLLERS[..] } else { &[] };
    for name in limits.writes.iter().map(|write| write.controller.as_str()).chain(later.iter().copied()) {
        if let (Some(dir), false) = (cgroup.dir(name), controllers.contains_key(name)) {
            let fd = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| Error::io("opening", dir)(error.into()))?;
            controllers.insert(name.to_owned(), fd);
        }
    }
    Ok(controllers)
}

fn write_limits(controllers: &BTreeMap<String, OwnedFd>, limits: &CgroupLimits) -> Result<()> {
    write_all(&limits.writes, |CgroupWrite { controller, files, value, field, optional }| {
        let open = |name: &String| {
            let dir = controllers.get(controller)?;
            openat(dir, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        match files.iter().find_map(open) {
            Some(file) => fs::File::from(file)
                .write_all(value.as_bytes())
                .map_err(|error| Error::invalid(field, format!("{value} was refused by {controller}: {error}"))),
            None if *optional => Ok(()),
            None => Err(Error::Unsupported { what: format!("{field} (this host has no {controller} controller)") }),
        }
    })
}
