//! The protocol between agents and a supervisor: version 1.
//!
//! A frame is a `u32` length (little endian, of what follows, at most [`MAX_FRAME_BYTES`]), a version byte, a kind byte
//! and the payload. Payloads are integers (little endian) and byte strings (`u32` length, bytes) in a fixed order. A
//! reader ignores what follows the fields it knows, so fields can be added at the end; a kind it does not know is
//! answered by [`Reply::Error`]. File descriptors travel beside the first byte of a frame (`SCM_RIGHTS`).
//!
//! Everything here is plain data on byte slices; nothing allocates more than the frame is long.

mod encoding;

use std::fmt;

use runtime_core::spec::RestartPolicy;

use self::encoding::{Reader, Writer};
use super::failure::Failure;

/// The version written by this side; a supervisor answers any request that has it.
pub const VERSION: u8 = 1;

/// Longest frame: an exec's arguments and environment are at most `ARG_MAX`-sized, 2 MiB on Linux.
pub const MAX_FRAME_BYTES: usize = 4 << 20;

/// The attempt that is current when the request arrives.
pub const CURRENT_ATTEMPT: u32 = 0;
/// The one that no other follows, whichever that will be.
pub const LAST_ATTEMPT: u32 = u32::MAX;

/// What an agent asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// How is it? → [`Reply::Status`].
    Status,
    /// Let the init execute its program. → `Ok`, `ExecFailed` or `Error`.
    Start,
    /// Send a signal to the init. → `Ok` or `Error`.
    Signal(i32),
    /// Stop signal, time-out, kill. → `Exited` once the exit record is written, or cannot be.
    Stop {
        /// The first signal.
        signal: i32,
        /// Time until SIGKILL.
        timeout_ms: u64,
    },
    /// → `Exited` when that attempt is over; at once if it is. [`CURRENT_ATTEMPT`] and [`LAST_ATTEMPT`] are no numbers.
    Wait {
        /// Which attempt.
        attempt: u32,
    },
    /// → `Status` once that attempt runs, or a later one; `Exited` if none will.
    WaitForStart {
        /// Which attempt.
        attempt: u32,
    },
    /// Run a process in the container. Comes with descriptors: stdin, stdout, stderr and, where a system call filter
    /// is to be loaded, one it can be read from. → `ExecStarted` then `ExecExited`; or `ExecFailed`, `Error`.
    Exec(Box<ExecRequest>),
    /// Copy output, as it comes, to two descriptors that come along. → `Ok`, with the terminal's other end, or with the
    /// write end of the standard input where that is wanted and open.
    Attach {
        /// The standard input is wanted, to type into and to end.
        input: bool,
    },
    /// What is to be done when the container ends by itself, from now on. → `Ok` or `Error`.
    SetRestart(RestartPolicy),
    /// The plan that the container is built by, with its environment. → `Ok` with a descriptor it can be read from, or
    /// `Error`. Only to be read at positions: all who have it share the file's own.
    Plan,
}

/// A process to run beside the init.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub args: Vec<Vec<u8>>,
    /// `NAME=value` each.
    pub env: Vec<Vec<u8>>,
    /// Working directory in the container.
    pub cwd: Vec<u8>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Bounding, effective, permitted, inheritable and ambient capabilities.
    pub capabilities: [u64; 5],
    /// Set `no_new_privs`.
    pub no_new_privileges: bool,
    /// A filter's descriptor comes along.
    pub has_filter: bool,
    /// Resource limits: kernel number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Value for `oom_score_adj`.
    pub oom_score_adj: i32,
    /// Its standard input is a terminal that is to be its controlling one.
    pub terminal: bool,
    /// It belongs to the container: it goes on when the connection is closed.
    pub detached: bool,
}

/// What a supervisor answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Ok,
    /// It could not be done.
    Error(String),
    /// The same, and which error it is: an [`Reply::Error`] with further fields.
    Failed(Failure),
    /// The namespaces exist: the network may be attached.
    NamespacesReady,
    /// The init waits to be started.
    Created {
        /// Its process id.
        pid: i32,
    },
    /// See [`Status`].
    Status(Status),
    /// The attempt is over and on record, or brings its record along.
    Exited(Exit),
    /// The exec runs.
    ExecStarted {
        /// Its process id.
        pid: i32,
    },
    /// The program could not be executed.
    ExecFailed {
        /// The kernel's reason.
        errno: i32,
        /// What it was that failed.
        step: ExecStep,
    },
    /// The exec is over.
    ExecExited {
        /// Exit code, or 128+N after signal N.
        code: i32,
    },
}

/// What an exec was at when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ExecStep {
    /// Executing the program.
    #[default]
    Program = 0,
    /// Entering its working directory.
    WorkingDirectory = 1,
    /// Anything else before the program.
    Preparation = 2,
}

impl ExecStep {
    /// The step of a number; one that is not known, a newer supervisor's, is some preparation.
    pub fn from_number(number: u8) -> Self {
        [Self::Program, Self::WorkingDirectory]
            .into_iter()
            .find(|step| *step as u8 == number)
            .unwrap_or(Self::Preparation)
    }
}

/// What the container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The helper builds it.
    Creating = 0,
    /// The init waits to be started.
    Created = 1,
    /// The program runs.
    Running = 2,
    /// It was told to stop.
    Stopping = 3,
    /// It is over; the record is being written.
    Exited = 4,
    /// An attempt is over, and its restart policy will begin the next one, or is beginning it.
    Restarting = 5,
}

/// Answer to [`Request::Status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// The init, 0 if there is none.
    pub pid: i32,
    /// The supervisor.
    pub supervisor_pid: i32,
    /// When the program was started, nanoseconds since the epoch; 0 before.
    pub started_at_nanos: i64,
    /// The current attempt, from 1; 0 from a supervisor older than this.
    pub attempt: u32,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, 128+N after signal N.
    pub code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// The kernel killed the init for want of memory.
    pub oom_killed: bool,
    /// When, nanoseconds since the epoch.
    pub finished_at_nanos: i64,
    /// The exit record as JSON while the disk does not take it, or where that of a later attempt may have taken its place
    /// by the time it is looked for; else empty.
    pub record: Vec<u8>,
}

/// Bytes that are not a frame of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed frame: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// The length of the frame at the start of `bytes`, prefix included, once the prefix is there.
pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(prefix) = bytes.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_le_bytes(*prefix) as usize;
    if !(2..=MAX_FRAME_BYTES).contains(&len) {
        return Err(Malformed("length out of bounds"));
    }
    Ok(Some(4 + len))
}

impl Request {
    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Status => Writer::new(1).finish(),
            Self::Start => Writer::new(2).finish(),
            Self::Signal(signal) => Writer::new(3).i32(*signal).finish(),
            Self::Stop { signal, timeout_ms } => Writer::new(4).i32(*signal).u64(*timeout_ms).finish(),
            Self::Wait { attempt } => Writer::new(5).u32(*attempt).finish(),
            Self::Exec(exec) => exec.encode(),
            Self::Attach { input: true } => Writer::new(7).finish(),
            Self::Attach { input: false } => Writer::new(7).u8(0).finish(),
            Self::WaitForStart { attempt } => Writer::new(8).u32(*attempt).finish(),
            Self::SetRestart(policy) => Writer::new(9).restart_policy(policy).finish(),
            Self::Plan => Writer::new(11).finish(),
        }
    }

    /// Reads a whole frame.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let (kind, mut reader) = Reader::open(frame)?;
        Ok(match kind {
            1 => Self::Status,
            2 => Self::Start,
            3 => Self::Signal(reader.i32()?),
            4 => Self::Stop { signal: reader.i32()?, timeout_ms: reader.u64()? },
            // The first agents of this version did not say which.
            5 => Self::Wait { attempt: if reader.is_at_end() { CURRENT_ATTEMPT } else { reader.u32()? } },
            6 => Self::Exec(Box::new(ExecRequest::decode(&mut reader, false)?)),
            10 => Self::Exec(Box::new(ExecRequest::decode(&mut reader, true)?)),
            // The first agents of this version always wanted it.
            7 => Self::Attach { input: reader.is_at_end() || reader.u8()? != 0 },
            8 => Self::WaitForStart { attempt: reader.u32()? },
            9 => Self::SetRestart(reader.restart_policy()?),
            11 => Self::Plan,
            _ => return Err(Malformed("unknown request")),
        })
    }
}

impl ExecRequest {
    fn encode(&self) -> Vec<u8> {
        // A supervisor that would kill it with the connection must not know the request.
        let kind = if self.detached { 10 } else { 6 };
        let mut writer =
            Writer::new(kind).list(&self.args).list(&self.env).bytes(&self.cwd).u32(self.uid).u32(self.gid);
        writer = writer.u32(self.groups.len() as u32);
        for group in &self.groups {
            writer = writer.u32(*group);
        }
        for set in self.capabilities {
            writer = writer.u64(set);
        }
        writer = writer.u8(self.no_new_privileges.into()).u8(self.has_filter.into());
        writer = writer.u32(self.rlimits.len() as u32);
        for (resource, soft, hard) in &self.rlimits {
            writer = writer.u32(*resource).u64(*soft).u64(*hard);
        }
        writer.i32(self.oom_score_adj).u8(self.terminal.into()).finish()
    }

    fn decode(reader: &mut Reader<'_>, detached: bool) -> Result<Self, Malformed> {
        let (args, env, cwd) = (reader.list()?, reader.list()?, reader.bytes()?.to_vec());
        let (uid, gid) = (reader.u32()?, reader.u32()?);
        let groups = (0..reader.count(4)?).map(|_| reader.u32()).collect::<Result<_, _>>()?;
        let mut capabilities = [0; 5];
        for set in &mut capabilities {
            *set = reader.u64()?;
        }
        let (no_new_privileges, has_filter) = (reader.u8()? != 0, reader.u8()? != 0);
        let rlimits = (0..reader.count(20)?)
            .map(|_| Ok((reader.u32()?, reader.u64()?, reader.u64()?)))
            .collect::<Result<_, Malformed>>()?;
        let oom_score_adj = reader.i32()?;
        // Not sent by the first agents of this version.
        let terminal = !reader.is_at_end() && reader.u8()? != 0;
        Ok(Self {
            args,
            env,
            cwd,
            uid,
            gid,
            groups,
            capabilities,
            no_new_privileges,
            has_filter,
            rlimits,
            oom_score_adj,
            terminal,
            detached,
        })
    }
}

impl Reply {
    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ok => Writer::new(1).finish(),
            Self::Error(text) => Writer::new(2).bytes(text.as_bytes()).finish(),
            Self::Failed(failure) => Writer::new(2)
                .bytes(failure.text.as_bytes())
                .bytes(failure.code.as_bytes())
                .bytes(failure.subject.as_bytes())
                .finish(),
            Self::NamespacesReady => Writer::new(3).finish(),
            Self::Created { pid } => Writer::new(4).i32(*pid).finish(),
            Self::Status(status) => Writer::new(5)
                .u8(status.phase as u8)
                .i32(status.pid)
                .i32(status.supervisor_pid)
                .u64(status.started_at_nanos as u64)
                .u32(status.attempt)
                .finish(),
            Self::Exited(exit) => Writer::new(6)
                .i32(exit.code)
                .i32(exit.signal)
                .u8(exit.oom_killed.into())
                .u64(exit.finished_at_nanos as u64)
                .bytes(&exit.record)
                .finish(),
            Self::ExecStarted { pid } => Writer::new(7).i32(*pid).finish(),
            Self::ExecFailed { errno, step } => Writer::new(8).i32(*errno).u8(*step as u8).finish(),
            Self::ExecExited { code } => Writer::new(9).i32(*code).finish(),
        }
    }

    /// Reads a whole frame.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let (kind, mut reader) = Reader::open(frame)?;
        Ok(match kind {
            1 => Self::Ok,
            2 => {
                let text = reader.text()?;
                if reader.is_at_end() {
                    Self::Error(text)
                } else {
                    Self::Failed(Failure { text, code: reader.text()?, subject: reader.text()? })
                }
            }
            3 => Self::NamespacesReady,
            4 => Self::Created { pid: reader.i32()? },
            5 => Self::Status(Status {
                phase: Phase::from_number(reader.u8()?)?,
                pid: reader.i32()?,
                supervisor_pid: reader.i32()?,
                started_at_nanos: reader.u64()? as i64,
                attempt: if reader.is_at_end() { 0 } else { reader.u32()? },
            }),
            6 => Self::Exited(Exit {
                code: reader.i32()?,
                signal: reader.i32()?,
                oom_killed: reader.u8()? != 0,
                finished_at_nanos: reader.u64()? as i64,
                record: if reader.is_at_end() { Vec::new() } else { reader.bytes()?.to_vec() },
            }),
            7 => Self::ExecStarted { pid: reader.i32()? },
            8 => {
                let errno = reader.i32()?;
                // Not told by the first supervisors of this version.
                let step = if reader.is_at_end() { ExecStep::Program } else { ExecStep::from_number(reader.u8()?) };
                Self::ExecFailed { errno, step }
            }
            9 => Self::ExecExited { code: reader.i32()? },
            _ => return Err(Malformed("unknown reply")),
        })
    }
}

impl Phase {
    fn from_number(number: u8) -> Result<Self, Malformed> {
        [Self::Creating, Self::Created, Self::Running, Self::Stopping, Self::Exited, Self::Restarting]
            .into_iter()
            .find(|phase| *phase as u8 == number)
            .ok_or(Malformed("unknown phase"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtime_core::spec::RestartKind;

    use super::*;

    fn exec(detached: bool) -> Request {
        Request::Exec(Box::new(ExecRequest {
            args: vec![b"sh".to_vec(), b"-c".to_vec(), vec![0xff, 0xfe]],
            env: vec![b"A=b".to_vec()],
            cwd: b"/".to_vec(),
            uid: 4_294_967_294,
            gid: 7,
            groups: vec![1, 2, 3],
            capabilities: [1, 2, 3, 4, u64::MAX],
            no_new_privileges: true,
            has_filter: true,
            rlimits: vec![(7, 1024, u64::MAX)],
            oom_score_adj: -5,
            terminal: true,
            detached,
        }))
    }

    fn requests() -> Vec<Request> {
        let stop = Request::Stop { signal: 15, timeout_ms: u64::MAX };
        vec![
            Request::Status,
            Request::Start,
            Request::Signal(9),
            stop,
            Request::Wait { attempt: 7 },
            exec(false),
            exec(true),
            Request::Attach { input: true },
            Request::Attach { input: false },
            Request::WaitForStart { attempt: 2 },
            Request::SetRestart(RestartPolicy {
                kind: RestartKind::OnFailure,
                max_attempts: Some(3),
                delay: Some(Duration::from_millis(1_500)),
            }),
            Request::SetRestart(RestartPolicy::default()),
            Request::Plan,
        ]
    }

    fn replies() -> Vec<Reply> {
        let status = Status { phase: Phase::Running, pid: 12, supervisor_pid: 11, started_at_nanos: -1, attempt: 3 };
        let exit = Exit { code: 137, signal: 9, oom_killed: true, finished_at_nanos: i64::MAX, record: b"{}".to_vec() };
        vec![
            Reply::Ok,
            Reply::Error("why".into()),
            Reply::NamespacesReady,
            Reply::Created { pid: 1 },
            Reply::Status(status),
            Reply::Exited(exit),
            Reply::ExecStarted { pid: 5 },
            Reply::Failed(Failure { code: "spec.invalid".into(), subject: "user".into(), text: "why".into() }),
            Reply::ExecFailed { errno: 2, step: ExecStep::WorkingDirectory },
            Reply::ExecExited { code: -1 },
        ]
    }

    #[test]
    fn what_is_written_is_read_back() {
        for request in requests() {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        for reply in replies() {
            assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
        }
    }

    #[test]
    fn version_1_stays_readable_byte_for_byte() {
        assert_eq!(
            Request::Stop { signal: 15, timeout_ms: 10_000 }.encode(),
            [14, 0, 0, 0, 1, 4, 15, 0, 0, 0, 16, 39, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(Reply::Created { pid: 258 }.encode(), [6, 0, 0, 0, 1, 4, 2, 1, 0, 0]);
        // As the first supervisors wrote them, without what was added at the end.
        let failed = Reply::ExecFailed { errno: 2, step: ExecStep::Program };
        assert_eq!(Reply::decode(&[6, 0, 0, 0, 1, 8, 2, 0, 0, 0]), Ok(failed));
        assert_eq!(Reply::decode(&[7, 0, 0, 0, 1, 2, 1, 0, 0, 0, b'x']), Ok(Reply::Error("x".into())));
        assert_eq!(Request::decode(&[2, 0, 0, 0, 1, 5]), Ok(Request::Wait { attempt: CURRENT_ATTEMPT }));
    }

    #[test]
    fn an_end_told_by_an_older_supervisor_brings_no_record() {
        let exit = Exit { code: 1, signal: 0, oom_killed: false, finished_at_nanos: 2, record: Vec::new() };
        let mut frame = Reply::Exited(exit.clone()).encode();
        frame.truncate(frame.len() - 4);
        let len = (frame.len() - 4) as u32;
        frame[..4].copy_from_slice(&len.to_le_bytes());
        assert_eq!(Reply::decode(&frame), Ok(Reply::Exited(exit)));
    }

    #[test]
    fn fields_added_at_the_end_are_ignored() {
        let mut frame = Reply::Created { pid: 3 }.encode();
        frame.extend_from_slice(b"new");
        let len = (frame.len() - 4) as u32;
        frame[..4].copy_from_slice(&len.to_le_bytes());
        assert_eq!(Reply::decode(&frame), Ok(Reply::Created { pid: 3 }));
    }

    #[test]
    fn a_failure_reads_as_an_error_to_who_knows_no_codes() {
        let frame = Reply::Failed(Failure { code: "a.b".into(), subject: "s".into(), text: "why".into() }).encode();
        assert_eq!(frame[5..13], *b"\x02\x03\0\0\0why");
    }

    #[test]
    fn cut_or_changed_frames_are_errors_never_panics() {
        let frames =
            requests().iter().map(Request::encode).chain(replies().iter().map(Reply::encode)).collect::<Vec<_>>();
        for frame in frames {
            for end in 0..frame.len() {
                assert!(Request::decode(&frame[..end]).is_err() && Reply::decode(&frame[..end]).is_err());
                let mut short = frame[..end].to_vec();
                if end >= 6 {
                    short[..4].copy_from_slice(&((end - 4) as u32).to_le_bytes());
                    let _ = (Request::decode(&short), Reply::decode(&short));
                }
            }
            for at in 0..frame.len() {
                let mut changed = frame.clone();
                changed[at] ^= 0xff;
                let _ = (Request::decode(&changed), Reply::decode(&changed));
            }
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        assert!(frame_len(&[255, 255, 255, 255]).is_err());
        assert!(frame_len(&[0, 0, 0, 0]).is_err());
        assert_eq!(frame_len(&[2, 0, 0]), Ok(None));
    }
}
