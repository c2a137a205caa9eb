//! [`Error`]: what a runtime operation failed with, in the words the command prints.

mod agent_error;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use runtime_core::spec::duration;

use crate::recovery::{ROOT_FORMAT, VERSION_FILE};
use crate::supervisor::{CANNOT_EXECUTE, NOT_FOUND, exec_failure_code};

/// Exit code of an exec whose time ran out, as timeout(1)'s.
pub const TIMEOUT_EXIT_CODE: i32 = 124;

/// Result of the inherent methods of [`YoukiRuntime`](crate::YoukiRuntime).
pub type Result<T> = std::result::Result<T, Error>;

/// What failed, on what, and (by [`Error::hint`]) what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An id is not one.
    #[error(transparent)]
    InvalidId(#[from] runtime_core::InvalidId),
    /// No container of that name.
    #[error("{id}: no such container")]
    NoSuchContainer {
        /// The name.
        id: String,
    },
    /// A container of that name exists.
    #[error("{id}: a container of this name exists")]
    ContainerExists {
        /// The name.
        id: String,
    },
    /// Whoever called for it, as for a create, has called that off, and nothing is left of it.
    #[error("{id}: called off")]
    CalledOff {
        /// The name.
        id: String,
    },
    /// The container must run for this.
    #[error("{id}: not running (it is {state})")]
    NotRunning {
        /// The container.
        id: String,
        /// What it is instead.
        state: &'static str,
    },
    /// The container must not run for this, nor be created.
    #[error("{id}: still {state}")]
    StillRunning {
        /// The container.
        id: String,
        /// What it is.
        state: &'static str,
    },
    /// The program could not be executed.
    #[error("{program}: {source}")]
    ExecFailed {
        /// The program as it was named.
        program: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The directory that an exec is to start in cannot be entered.
    #[error("working directory {path}: {source}")]
    WorkingDirectory {
        /// The directory, in the container.
        path: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The time of an exec ran out before its program was executed.
    #[error("{program}: not executed within {}", duration::format(*.limit))]
    ExecTimedOut {
        /// The program as it was named.
        program: String,
        /// The exec's time.
        limit: Duration,
    },
    /// There is nothing at a path in a container.
    #[error("{id}: it has no {path}")]
    NoSuchPath {
        /// The container.
        id: String,
        /// The path.
        path: String,
    },
    /// A user or group is not one of the container's.
    #[error("user {user:?}: {reason}")]
    UnknownUser {
        /// As it was asked for; `:group` where the group is unknown.
        user: String,
        /// Where it was looked for.
        reason: String,
    },
    /// Something could not be mounted in a container.
    #[error("mounting {mount}: {reason}")]
    Mount {
        /// Source, target and options.
        mount: String,
        /// The kernel's reason.
        reason: String,
    },
    /// Something in the spec is not acceptable.
    #[error("{field}: {reason}")]
    InvalidSpec {
        /// The field, as the spec names it.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Not built, or not possible here.
    #[error("{what} is not supported")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// Building the container failed in its helper process.
    #[error("{id}: creating the container failed: {reason}")]
    CreateFailed {
        /// The container.
        id: String,
        /// The code of the helper's own failure, else `container.create_failed`.
        code: &'static str,
        /// The helper's message.
        reason: String,
    },
    /// The supervisor cannot be reached, or answered nonsense.
    #[error("{id}: the supervisor {what}")]
    Supervisor {
        /// The container.
        id: String,
        /// What it did.
        what: String,
        /// Why, where the kernel told.
        #[source]
        source: Option<io::Error>,
    },
    /// Processes survived SIGKILL.
    #[error("{id}: processes {pids:?} survived SIGKILL for {waited:?}")]
    StopTimedOut {
        /// The container.
        id: String,
        /// The processes, in the agent's PID namespace.
        pids: Vec<u32>,
        /// How long they were waited for.
        waited: Duration,
    },
    /// A helper binary is missing.
    #[error("{name} was not found beside {beside}")]
    HelperMissing {
        /// Its file name.
        name: &'static str,
        /// The executable beside which it was looked for.
        beside: PathBuf,
    },
    /// A secret was asked for, and there is nobody to ask.
    #[error("{name}: this process has no secrets provider")]
    NoSecretsProvider {
        /// The secret.
        name: String,
    },
    /// The configuration is wrong.
    #[error("{what}: {reason}")]
    Configuration {
        /// File, key, variable or flag.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This process is somebody else.
    #[error("Berth runs as root")]
    NotRoot,
    /// The root was written by something newer.
    #[error("{root}: has the unknown feature {flag:?}")]
    IncompatibleRoot {
        /// The root.
        root: PathBuf,
        /// The flag.
        flag: String,
    },
    /// A file on disk cannot be read as what it should be.
    #[error("{path} cannot be read: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A network could not be set up, or torn down.
    #[error("network {network}: {what}")]
    Network {
        /// The network, bridge or interface.
        network: String,
        /// What failed.
        what: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// All addresses are leased.
    #[error("network {network}: {subnet} has no free address")]
    SubnetExhausted {
        /// The network.
        network: String,
        /// Its subnet.
        subnet: String,
    },
    /// A network of that name is not defined.
    #[error("{name}: no such network")]
    NoSuchNetwork {
        /// The name.
        name: String,
    },
    /// A network of that name is defined.
    #[error("{name}: a network of this name exists")]
    NetworkExists {
        /// The name.
        name: String,
    },
    /// Containers have addresses of the network.
    #[error("{name}: used by {}", .by.join(", "))]
    NetworkInUse {
        /// The network.
        name: String,
        /// By whom.
        by: Vec<String>,
    },
    /// Two networks would have addresses in common.
    #[error("network {network}: {subnet} overlaps with {with}")]
    SubnetOverlap {
        /// The network.
        network: String,
        /// Its subnet.
        subnet: String,
        /// The other.
        with: String,
    },
    /// A port of the host is somebody's already.
    #[error("port {port} is taken by {owner}")]
    PortTaken {
        /// Address, port and protocol, as `0.0.0.0:80/tcp`.
        port: String,
        /// A container or a process.
        owner: String,
    },
    /// The system call filter could not be compiled or loaded.
    #[error("seccomp: {what}")]
    Seccomp {
        /// What failed.
        what: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A system call on a path failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, as `reading`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Several things failed while tearing down; it was finished all the same.
    #[error("{}", join(.0))]
    Several(Vec<Error>),
    /// The image store.
    #[error(transparent)]
    Image(#[from] registry::Error),
    /// The volume store.
    #[error(transparent)]
    Volume(#[from] volumes_s3::Error),
    /// One volume could not be had, or made durable.
    #[error("volume {name}")]
    OneVolume {
        /// The volume.
        name: String,
        /// What failed.
        source: volumes_s3::Error,
    },
    /// A thread of ours ended before its work.
    #[error("a background thread ended early")]
    ThreadLost(#[source] tokio::task::JoinError),
}

impl Error {
    /// Something went wrong with one volume, which is named once.
    pub(crate) fn of_volume(name: &str, source: volumes_s3::Error) -> Self {
        if source.volume() == Some(name) {
            return Self::Volume(source);
        }
        Self::OneVolume { name: name.to_owned(), source }
    }
}

const FREE_SPACE: &str = "free space on that filesystem: `berth prune`, `berth volume prune`";

fn join(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// An [`Error::Io`], for `map_err`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Whether a supervisor has let its time to answer pass.
    pub(crate) fn is_without_answer(&self) -> bool {
        matches!(self, Self::Supervisor { source: Some(source), .. } if source.kind() == io::ErrorKind::TimedOut)
    }

    /// Whether it is only that the caller called it off.
    pub(crate) fn is_called_off(&self) -> bool {
        use volumes_s3::Error::CalledOff;
        matches!(
            self,
            Self::CalledOff { .. } | Self::Volume(CalledOff { .. }) | Self::OneVolume { source: CalledOff { .. }, .. }
        )
    }

    /// What remains of failures on a connection to the supervisor of `id`, which are all alike to their callers.
    pub(crate) fn supervisor(id: &impl std::fmt::Display) -> impl FnOnce(io::Error) -> Self {
        let id = id.to_string();
        move |source| Self::Supervisor { id, what: "cannot be talked to".to_owned(), source: Some(source) }
    }

    /// The supervisor of `id` is gone, and was not to be yet.
    pub(crate) fn supervisor_ended(id: &impl std::fmt::Display, when: &str) -> Self {
        Self::Supervisor { id: id.to_string(), what: format!("ended {when}"), source: None }
    }

    /// An [`Error::InvalidSpec`].
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidSpec { field: field.into(), reason: reason.into() }
    }

    /// A stable, dotted name of the failure.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidId(_) => "container.invalid_id",
            Self::NoSuchContainer { .. } => "container.not_found",
            Self::ContainerExists { .. } => "container.exists",
            Self::CalledOff { .. } => "container.called_off",
            Self::NotRunning { .. } => "container.not_running",
            Self::StillRunning { .. } => "container.running",
            Self::ExecFailed { .. } if self.program_exit_code() == Some(NOT_FOUND) => "exec.not_found",
            Self::ExecFailed { .. } => "exec.not_executable",
            Self::WorkingDirectory { .. } => "exec.workdir",
            Self::ExecTimedOut { .. } => "exec.timed_out",
            Self::NoSuchPath { .. } => "container.no_such_path",
            Self::UnknownUser { .. } => "user.not_found",
            Self::Mount { .. } => "mount.failed",
            Self::InvalidSpec { .. } => "spec.invalid",
            Self::Unsupported { .. } => "unsupported.here",
            Self::CreateFailed { code, .. } => code,
            Self::Supervisor { .. } => "supervisor.unreachable",
            Self::StopTimedOut { .. } => "container.stop_timed_out",
            Self::HelperMissing { .. } => "install.helper_missing",
            Self::NoSecretsProvider { .. } => "secret.no_provider",
            Self::Configuration { .. } => "config.invalid",
            Self::NotRoot => "host.not_root",
            Self::IncompatibleRoot { .. } => "root.incompatible",
            Self::Corrupt { .. } => "root.corrupt",
            Self::Network { .. } => "network.failed",
            Self::SubnetExhausted { .. } => "network.exhausted",
            Self::NoSuchNetwork { .. } => "network.not_found",
            Self::NetworkExists { .. } => "network.exists",
            Self::NetworkInUse { .. } => "network.in_use",
            Self::SubnetOverlap { .. } => "network.overlap",
            Self::PortTaken { .. } => "port.taken",
            Self::Seccomp { .. } => "seccomp.failed",
            Self::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC) => "disk.full",
            Self::Io { .. } => "io.failed",
            Self::Several(errors) => errors.first().map_or("internal.failed", Self::code),
            Self::Image(error) => error.code(),
            Self::Volume(error) | Self::OneVolume { source: error, .. } => error.code(),
            Self::ThreadLost(_) => "internal.failed",
        }
    }

    /// Where it is that a program was not executed: the exit code that stands for it. A shell's 127 for one that is not there
    /// and 126 for one that cannot be executed, and [`TIMEOUT_EXIT_CODE`].
    #[must_use]
    pub fn program_exit_code(&self) -> Option<i32> {
        match self {
            Self::ExecFailed { source, .. } => Some(exec_failure_code(source.raw_os_error().unwrap_or(0))),
            // The program was not looked for yet.
            Self::WorkingDirectory { .. } => Some(CANNOT_EXECUTE),
            Self::ExecTimedOut { .. } => Some(TIMEOUT_EXIT_CODE),
            Self::Several(errors) => errors.first().and_then(Self::program_exit_code),
            _ => None,
        }
    }

    /// What to do about it: of every failure there is something to say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoSuchContainer { .. } => "`berth ps -a` lists the containers of this root".to_owned(),
            Self::ContainerExists { .. } => "choose another --name, or remove it first: `berth rm`".to_owned(),
            Self::CalledOff { .. } => "call for it again: nothing is left of it".to_owned(),
            Self::NotRunning { state: "paused", .. } => "let it go on first: `berth unpause`".to_owned(),
            Self::NotRunning { .. } => "start it first: `berth start`".to_owned(),
            Self::StillRunning { .. } => "end it first by `berth stop`, or use `berth rm -f`".to_owned(),
            Self::ExecFailed { .. } => "check the command, and that the image has it".to_owned(),
            Self::WorkingDirectory { .. } => "name a directory that the container has".to_owned(),
            Self::ExecTimedOut { .. } => {
                "see whether what it is executed from answers, as the server of a mount; or give it more time"
                    .to_owned()
            }
            Self::Corrupt { path, .. } if path.ends_with(VERSION_FILE) => format!(
                "put the file back; if no newer version than this one has used the root, it holds {{\"format\":{ROOT_FORMAT}}}"
            ),
            Self::Corrupt { .. } => {
                "put the file back, or remove what it belongs to: `berth rm --force`, `berth network rm`".to_owned()
            }
            Self::UnknownUser { .. } => "name one that the image has, or give numbers: UID:GID".to_owned(),
            Self::Mount { .. } => {
                "a directory is mounted on a directory, a file on a file; see that both are there".to_owned()
            }
            Self::Unsupported { .. } => "the README's table says what is built".to_owned(),
            Self::Supervisor { id, .. } => format!(
                "try again; if it was killed, the kernel's log tells of want of memory. As long as the container is there, \
                 its messages are in containers/{id}/supervisor.log beneath the root"
            ),
            Self::CreateFailed { code: "disk.full", .. } => FREE_SPACE.to_owned(),
            Self::CreateFailed { code: "root.corrupt", .. } => {
                "the image is odd: build it anew, or give its user by numbers, UID:GID".to_owned()
            }
            Self::CreateFailed { .. } => "`berth doctor` checks what this host must have".to_owned(),
            Self::HelperMissing { .. } => "install berth-supervisor and berth-create beside the agent, or call \
                 youki_backend::supervisor::run_if_invoked() first thing in its main"
                .to_owned(),
            Self::NoSecretsProvider { .. } => "start the container from the agent that holds the secrets".to_owned(),
            Self::NotRoot => "run it as root, as by sudo: it makes namespaces, mounts and cgroups".to_owned(),
            Self::IncompatibleRoot { .. } => "use the Berth that wrote it, or a newer one".to_owned(),
            Self::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC) => FREE_SPACE.to_owned(),
            Self::Network { .. } => {
                "`berth network reload` puts back what was taken away; `berth doctor` checks what this host must have"
                    .to_owned()
            }
            Self::NoSuchNetwork { .. } => "`berth network ls` lists the networks of this root".to_owned(),
            Self::NetworkExists { .. } => "choose another name, or remove it first: `berth network rm`".to_owned(),
            Self::NetworkInUse { name, .. }
                if [crate::network::DEFAULT_NETWORK, "default"].contains(&name.as_str()) =>
            {
                "it is the default network: `berth shutdown --dismantle` takes it down with the rest".to_owned()
            }
            Self::NetworkInUse { .. } => "remove these containers first".to_owned(),
            Self::SubnetOverlap { .. } => "choose another --subnet".to_owned(),
            Self::PortTaken { .. } => "stop its owner, or publish another port".to_owned(),
            Self::SubnetExhausted { .. } => "remove containers, or configure a larger --subnet".to_owned(),
            Self::Several(errors) => return errors.first().and_then(Self::hint),
            Self::Image(error) => return error.hint().map(str::to_owned),
            Self::Volume(error) | Self::OneVolume { source: error, .. } => return error.hint(),
            Self::InvalidId(_) => {
                "use letters, digits, `_`, `.` and `-`, at most 200, the first a letter or digit; `-rep-N` is added"
                    .to_owned()
            }
            Self::NoSuchPath { .. } => "paths are those of the container, from its root: NAME:/etc/hosts".to_owned(),
            Self::InvalidSpec { .. } => {
                "the README's tables say what the fields of a spec and the flags take".to_owned()
            }
            Self::StopTimedOut { .. } => {
                "they wait for the kernel, as for a disk or server that does not answer: mend that, and stop it again"
                    .to_owned()
            }
            Self::Configuration { .. } => {
                "the README's table lists the flags, variables and keys of the file".to_owned()
            }
            Self::Seccomp { .. } => "check the profile; `--security-opt seccomp=unconfined` does without".to_owned(),
            Self::Io { .. } => "see that it is there; `berth doctor` checks what this host must have".to_owned(),
            Self::ThreadLost(_) => "try again; if it stays, report it as a fault of Berth".to_owned(),
        })
    }

    /// The message and its causes, joined by `: `, each said once.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// The message of `error` and its causes, joined by `: `, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod table;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_named_once() {
        let unsynced = volumes_s3::Error::Unsynced { name: "v".into(), bytes: 3 };
        assert_eq!(Error::of_volume("v", unsynced).chain(), "volume v: 3 bytes here are not in S3 yet");
        let size = volumes_s3::Error::Unsupported { what: "a size".into() };
        assert_eq!(Error::of_volume("v", size).chain(), "volume v: a size is not supported");
    }

    #[test]
    fn trouble_with_a_supervisor_names_its_container_and_what_to_do() {
        let broken = Error::supervisor(&"web-rep-0")(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(broken.chain(), "web-rep-0: the supervisor cannot be talked to: broken pipe");
        let ended = Error::supervisor_ended(&"web-rep-0", "before the container was made ready");
        for error in [broken, ended] {
            assert_eq!(error.code(), "supervisor.unreachable");
            assert!(error.hint().unwrap().contains("containers/web-rep-0/supervisor.log"));
        }
    }

    #[test]
    fn a_program_that_is_not_executed_has_one_code_for_all_who_tell_it() {
        for (errno, code, exit_code) in [
            (libc::ENOENT, "exec.not_found", 127),
            (libc::ENOTDIR, "exec.not_found", 127),
            (libc::EACCES, "exec.not_executable", 126),
        ] {
            let source = io::Error::from_raw_os_error(errno);
            let failed = || Error::ExecFailed { program: "x".into(), source: io::Error::from_raw_os_error(errno) };
            assert_eq!((failed().code(), failed().program_exit_code()), (code, Some(exit_code)), "{source}");
            // As when what was begun cannot be undone, too.
            let several = Error::Several(vec![failed(), Error::NotRoot]);
            assert_eq!((several.code(), several.program_exit_code()), (code, Some(exit_code)), "{source}");
        }
        assert_eq!(Error::NotRoot.program_exit_code(), None);
    }

    #[test]
    fn what_stands_in_the_way_decides_the_hint() {
        let hint = |state| Error::NotRunning { id: "web-rep-0".into(), state }.hint().unwrap();
        assert!(hint("paused").contains("berth unpause"));
        assert!(hint("exited").contains("berth start"));
    }
}
