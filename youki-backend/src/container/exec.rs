//! Running a further process in a container.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use futures_util::StreamExt;
use runtime_core::{ContainerId, ExecEvent, ExecEventStream, ExecInput, ExecOptions};
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Container;
use crate::bundle::{self, seccomp, users};
use crate::error::{Error, Result, TIMEOUT_EXIT_CODE};
use crate::runtime::Inner;
use crate::supervisor::client::Connection;
use crate::supervisor::wire::{self, ExecStep, Reply, Request};

/// What a buffered exec keeps of each stream; the rest is counted and said.
const MAX_BUFFERED_BYTES: usize = 16 << 20;

/// A process to run in a container, with its own ends of the standard streams.
#[derive(Debug)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// How it differs from the container's own process.
    pub options: ExecOptions,
    /// Its standard input, output and error.
    pub stdio: [OwnedFd; 3],
}

/// A running exec. Dropping it kills the process and all that it started.
#[derive(Debug)]
pub struct RunningExec {
    connection: Connection,
    container: String,
    deadline: Option<Instant>,
    pid: u32,
}

impl RunningExec {
    /// Its process id in the agent's PID namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end: its exit code, 128+N after signal N, [`TIMEOUT_EXIT_CODE`] when its time ran out. Cancel-safe
    /// in that dropping the future, and with it the exec, kills it.
    ///
    /// # Errors
    /// [`Error::Supervisor`] when that is gone, and the process with it.
    pub async fn wait(mut self) -> Result<i32> {
        let Some(reply) = receive_until(self.deadline, &mut self.connection).await else {
            return Ok(TIMEOUT_EXIT_CODE);
        };
        match reply.map_err(Error::supervisor(&self.container))? {
            Some(Reply::ExecExited { code }) => Ok(code),
            _ => Err(Error::supervisor_ended(&self.container, "before the exec did")),
        }
    }
}

/// The next reply; `None` when there is none by `deadline`.
async fn receive_until(deadline: Option<Instant>, connection: &mut Connection) -> Option<io::Result<Option<Reply>>> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, connection.receive()).await.ok(),
        None => Some(connection.receive().await),
    }
}

impl Inner {
    /// Starts `request` in `id`; an error if its program could not be executed.
    pub(crate) async fn exec(&self, id: &ContainerId, request: ExecRequest) -> Result<RunningExec> {
        self.begin_exec(id, request, false).await
    }

    /// Starts `command` for the container to keep: nobody waits for it, and nobody reads what it writes.
    pub(crate) async fn exec_detached(
        &self,
        id: &ContainerId,
        command: &[String],
        options: ExecOptions,
    ) -> Result<u32> {
        if options.tty {
            return Err(Error::Unsupported { what: "a detached exec with a terminal".to_owned() });
        }
        if options.timeout.is_some() {
            return Err(Error::invalid("timeout", "nobody waits for a detached exec, to kill it then"));
        }
        let null =
            File::options().read(true).write(true).open("/dev/null").map_err(Error::io("opening", "/dev/null"))?;
        let null = || null.try_clone().map(OwnedFd::from).map_err(Error::io("opening", "/dev/null"));
        let request = ExecRequest { command: command.to_vec(), options, stdio: [null()?, null()?, null()?] };
        Ok(self.begin_exec(id, request, true).await?.pid)
    }

    async fn begin_exec(&self, id: &ContainerId, request: ExecRequest, detached: bool) -> Result<RunningExec> {
        bundle::check_line("command", &request.command)?;
        let container = self.container(id)?;
        let observed = self.observe(&container).await?;
        let not_running = |state| Error::NotRunning { id: id.to_string(), state };
        let Some(init) = observed.pid() else { return Err(not_running(observed.state().word())) };
        // It would be frozen in turn, before it could say anything.
        if self.is_paused(&container) {
            return Err(not_running("paused"));
        }
        if request.options.tty && !rustix::termios::isatty(&request.stdio[0]) {
            return Err(Error::invalid("tty", "its standard input is no terminal"));
        }
        let env = self.exec_env(&container, init, request.options.tty).await?;
        let (mut exec, filter) = self.exec_request(&container, init, env, &request)?;
        exec.detached = detached;
        if request.options.tty {
            // So that its user may open it again by its name.
            rustix::fs::fchown(&request.stdio[0], Some(rustix::fs::Uid::from_raw(exec.uid)), None)
                .map_err(|error| Error::io("giving", "the terminal to its user")(error.into()))?;
        }
        let workdir = String::from_utf8_lossy(&exec.cwd).into_owned();
        let mut connection = self.supervisor(&container).await?.ok_or_else(|| not_running("exited"))?;
        let [stdin, stdout, stderr] = &request.stdio;
        let mut descriptors = vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        descriptors.extend(filter.as_ref().map(AsFd::as_fd));
        connection.send_with(&Request::Exec(Box::new(exec)), &descriptors).await.map_err(Error::supervisor(id))?;
        // Ours must be closed, or their readers never see the end.
        drop(request.stdio);
        let limit = request.options.timeout;
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        // What it is executed from may not answer. With the connection the supervisor kills it.
        let Some(reply) = receive_until(deadline, &mut connection).await else {
            let (program, limit) = (request.command[0].clone(), limit.unwrap_or_default());
            return Err(Error::ExecTimedOut { program, limit });
        };
        let reply = reply.map_err(Error::supervisor(id))?;
        let is_given_up =
            matches!(reply, Some(Reply::Error(_) | Reply::ExecFailed { step: ExecStep::Preparation, .. }));
        // Since it was looked at.
        if is_given_up && self.is_paused(&container) {
            return Err(not_running("paused"));
        }
        match reply {
            Some(Reply::ExecStarted { pid }) => {
                let pid = u32::try_from(pid).unwrap_or(0);
                Ok(RunningExec { connection, container: id.to_string(), deadline, pid })
            }
            Some(Reply::ExecFailed { errno, step }) => {
                let source = io::Error::from_raw_os_error(errno);
                Err(match step {
                    ExecStep::Program => Error::ExecFailed { program: request.command[0].clone(), source },
                    ExecStep::WorkingDirectory => Error::WorkingDirectory { path: workdir, source },
                    ExecStep::Preparation => Error::Supervisor {
                        id: id.to_string(),
                        what: "could not prepare the exec".to_owned(),
                        source: Some(source),
                    },
                })
            }
            Some(Reply::Error(what)) => Err(Error::Supervisor { id: id.to_string(), what, source: None }),
            _ => Err(not_running("exited")),
        }
    }

    fn exec_request(
        &self,
        container: &Container,
        init: u32,
        mut env: Vec<String>,
        request: &ExecRequest,
    ) -> Result<(wire::ExecRequest, Option<File>)> {
        let record = &container.record;
        let corrupt = || Error::Corrupt { path: container.paths.record(), reason: "it has no process".to_owned() };
        let process = record.process.as_ref().ok_or_else(corrupt)?;
        let root = format!("/proc/{init}/root");
        let root = openat(CWD, &root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::io("opening", root)(error.into()))?;
        let own = request.options.user.as_deref().filter(|user| !user.is_empty());
        let user = own.or(process.user.as_deref());
        let identity = users::resolve(root.as_fd(), user)?;
        for (name, value) in &request.options.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(Error::invalid("env", format!("{name:?} is not a variable")));
            }
            env.retain(|entry| entry.split_once('=').is_none_or(|(known, _)| known != name));
            env.push(format!("{name}={value}"));
        }
        if !env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(format!("HOME={}", users::home(&identity)));
        }
        let workdir = match &request.options.workdir {
            Some(workdir) if !workdir.starts_with('/') => {
                return Err(Error::invalid("workdir", format!("{workdir:?} is not absolute")));
            }
            Some(workdir) if workdir.contains('\0') => {
                return Err(Error::invalid("workdir", "it holds a NUL character"));
            }
            Some(workdir) => workdir.clone(),
            None => bundle::working_directory(&record.image.config, &record.spec)?,
        };
        let filter = match &process.seccomp {
            _ if request.options.privileged => None,
            Some(plan) => {
                let path = seccomp::filter(&self.layout.seccomp_cache(), plan, process.capabilities.bounding)?;
                Some(File::open(&path).map_err(Error::io("opening", path))?)
            }
            None => None,
        };
        let container = match request.options.privileged {
            true => bundle::CapabilitySets::all(),
            false => process.capabilities,
        };
        let sets = container.for_uid(identity.uid);
        let bytes = |texts: Vec<String>| texts.into_iter().map(String::into_bytes).collect();
        Ok((
            wire::ExecRequest {
                args: bytes(request.command.clone()),
                env: bytes(env),
                cwd: workdir.into_bytes(),
                uid: identity.uid,
                gid: identity.gid,
                groups: identity.groups,
                capabilities: [sets.bounding, sets.effective, sets.permitted, sets.inheritable, sets.ambient],
                no_new_privileges: process.no_new_privileges && !request.options.privileged,
                has_filter: filter.is_some(),
                rlimits: process.rlimits.iter().map(|limit| (limit.resource, limit.soft, limit.hard)).collect(),
                oom_score_adj: process.oom_score_adj.unwrap_or(0),
                terminal: request.options.tty,
                detached: false,
            },
            filter,
        ))
    }

    /// Runs `command` to its end: exit code and output. What cannot be executed is 127 or 126, as with a shell.
    pub(crate) async fn exec_buffered(&self, id: &ContainerId, command: &[String]) -> Result<(i32, String, String)> {
        let ours = Pipes::new()?;
        let request = ExecRequest { command: command.to_vec(), options: ExecOptions::default(), stdio: ours.stdio };
        let exec = match self.exec(id, request).await {
            Err(error) => return exit_of(error).map(|(code, said)| (code, String::new(), said)),
            Ok(exec) => exec,
        };
        let ended = watch::Sender::new(false);
        let exit = async {
            let code = exec.wait().await;
            ended.send_replace(true);
            code
        };
        let [stdout, stderr] = [ours.stdout, ours.stderr].map(|pipe| buffer(Output::new(pipe, ended.subscribe())));
        let (code, stdout, stderr) = tokio::join!(exit, stdout, stderr);
        Ok((code?, stdout?, stderr?))
    }

    /// Starts `command` and gives what it produces as events. `input` goes to its standard input, whose end is the
    /// input's; nothing at all if `None`.
    pub(crate) async fn exec_events(
        &self,
        id: &ContainerId,
        command: &[String],
        options: &ExecOptions,
        input: Option<ExecInput>,
    ) -> Result<ExecEventStream> {
        if options.tty {
            return self.exec_on_terminal(id, command, options, input).await;
        }
        let mut ours = Pipes::new()?;
        let mut fed = None;
        if let Some(input) = input {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|error| Error::io("making", "a pipe")(error.into()))?;
            ours.stdio[0] = reader;
            fed = Some((input, pipe::Sender::from_owned_fd(writer).map_err(Error::io("making", "a pipe"))?));
        }
        let request = ExecRequest { command: command.to_vec(), options: options.clone(), stdio: ours.stdio };
        let exec = match self.exec(id, request).await {
            Err(error) => {
                let (code, said) = exit_of(error)?;
                return Ok(Box::pin(futures_util::stream::iter([ExecEvent::Stderr(said), ExecEvent::Exit(code)])));
            }
            Ok(exec) => exec,
        };
        let Pipes { stdout, stderr, .. } = ours;
        let feeding = async move {
            if let Some((input, sender)) = fed {
                feed(input, sender).await;
            }
        };
        Ok(events_of(id.clone(), exec, feeding, move |ended, events| async move {
            let stdout = forward(Output::new(stdout, ended.clone()), ExecEvent::Stdout, events.clone());
            tokio::join!(stdout, forward(Output::new(stderr, ended), ExecEvent::Stderr, events));
        }))
    }
}

/// The events of `exec`: what `copying` sends, which is told when the process has ended, and then its exit code. Dropping
/// them kills it. `feeding` is cut off where the process ends first: whoever has the input may never end it.
pub(super) fn events_of<Copying: Future<Output = ()> + Send>(
    id: ContainerId,
    exec: RunningExec,
    feeding: impl Future<Output = ()> + Send + 'static,
    copying: impl FnOnce(watch::Receiver<bool>, mpsc::Sender<ExecEvent>) -> Copying + Send + 'static,
) -> ExecEventStream {
    let (events, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let ended = watch::Sender::new(false);
        let run = async {
            let exit = async {
                let code = beside(feeding, exec.wait()).await;
                ended.send_replace(true);
                code
            };
            match tokio::join!(exit, copying(ended.subscribe(), events.clone())).0 {
                Ok(code) => drop(events.send(ExecEvent::Exit(code)).await),
                Err(error) => tracing::warn!(container = %id, error = error.chain(), "an exec's end is not known"),
            }
        };
        tokio::select! {
            () = run => {}
            () = events.closed() => {}
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))
}

/// `work` to its end, and `other` no longer than that.
async fn beside<T>(other: impl Future<Output = ()>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = other => {}
    }
    work.await
}

/// The process's ends of its streams, and ours of its output.
struct Pipes {
    stdio: [OwnedFd; 3],
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

impl Pipes {
    fn new() -> Result<Self> {
        let ((out, stdout), (err, stderr)) = (output_pipe()?, output_pipe()?);
        let null = File::open("/dev/null").map_err(Error::io("opening", "/dev/null"))?;
        Ok(Self { stdio: [null.into(), out, err], stdout, stderr })
    }
}

/// A pipe for the output of a process: its end, and ours.
pub(super) fn output_pipe() -> Result<(OwnedFd, pipe::Receiver)> {
    let failed = || Error::io("making", "a pipe");
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| failed()(error.into()))?;
    Ok((writer, pipe::Receiver::from_owned_fd(reader).map_err(failed())?))
}

/// What a process writes. What it left running may hold the pipe open for ever, or write on, and says nothing more that
/// belongs to it.
struct Output {
    pipe: pipe::Receiver,
    ended: watch::Receiver<bool>,
    /// What was there when the process had ended.
    left: Option<usize>,
}

impl Output {
    fn new(pipe: pipe::Receiver, ended: watch::Receiver<bool>) -> Self {
        Self { pipe, ended, left: None }
    }

    /// Reads what there is, waiting for it until the process has ended. 0 at the end.
    async fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let left = match &mut self.left {
            Some(left) => left,
            none => tokio::select! {
                biased;
                _ = self.ended.wait_for(|ended| *ended) => {
                    let there = rustix::io::ioctl_fionread(&self.pipe)?;
                    none.insert(usize::try_from(there).unwrap_or(usize::MAX))
                }
                count = self.pipe.read(chunk) => return count,
            },
        };
        let most = chunk.len().min(*left);
        // Of the kernel, not of tokio, which may not have heard yet that there is something.
        match rustix::io::read(&self.pipe, &mut chunk[..most]) {
            Err(rustix::io::Errno::AGAIN) => Ok(0),
            count => {
                let count = count?;
                *left -= count;
                Ok(count)
            }
        }
    }
}

async fn buffer(mut output: Output) -> Result<String> {
    let mut bytes = Vec::new();
    let mut surplus = 0usize;
    let mut chunk = vec![0; 64 << 10];
    loop {
        let count = output.read(&mut chunk).await.map_err(Error::io("reading", "an exec's output"))?;
        if count == 0 {
            break;
        }
        let taken = count.min(MAX_BUFFERED_BYTES - bytes.len());
        bytes.extend_from_slice(&chunk[..taken]);
        surplus += count - taken;
    }
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if surplus > 0 {
        text.push_str(&format!("\n[{surplus} bytes more were cut off]\n"));
    }
    Ok(text)
}

/// Sends what comes as text. A character whose bytes have not all come waits for them.
async fn forward(mut output: Output, event: fn(String) -> ExecEvent, events: mpsc::Sender<ExecEvent>) {
    let mut chunk = vec![0; 32 << 10];
    let mut held = 0;
    loop {
        let count = match output.read(&mut chunk[held..]).await {
            Ok(count) if count > 0 => held + count,
            _ => break,
        };
        let whole = count - unfinished(&chunk[..count]);
        if whole > 0 && events.send(event(String::from_utf8_lossy(&chunk[..whole]).into_owned())).await.is_err() {
            return;
        }
        chunk.copy_within(whole..count, 0);
        held = count - whole;
    }
    if held > 0 {
        drop(events.send(event(String::from_utf8_lossy(&chunk[..held]).into_owned())).await);
    }
}

/// How many bytes at the end are the beginning of a character.
pub(super) fn unfinished(bytes: &[u8]) -> usize {
    match std::str::from_utf8(&bytes[bytes.len().saturating_sub(4)..]) {
        Ok(_) => 0,
        Err(_) => (1..=bytes.len().min(3))
            .find(|back| match bytes[bytes.len() - back] {
                0xc2..=0xdf => *back < 2,
                0xe0..=0xef => *back < 3,
                0xf0..=0xf4 => *back < 4,
                _ => false,
            })
            .unwrap_or(0),
    }
}

async fn feed(mut input: ExecInput, mut pipe: pipe::Sender) {
    while let Some(bytes) = input.next().await {
        // A process that no longer reads is no error.
        if pipe.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// What a shell would end with, and say, for a program that was not executed.
pub(super) fn exit_of(error: Error) -> Result<(i32, String)> {
    match error.program_exit_code() {
        Some(code) => Ok((code, format!("{error}\n"))),
        None => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Who writes on without a pause would hold it for ever.
    #[tokio::test]
    async fn no_more_is_read_than_was_there_at_the_end() {
        let (writer, reader) = output_pipe().unwrap();
        let mut writer = File::from(writer);
        let ended = watch::Sender::new(true);
        let mut output = Output::new(reader, ended.subscribe());
        writer.write_all(b"before").unwrap();
        let mut chunk = [0; 4];
        assert_eq!(output.read(&mut chunk).await.unwrap(), 4);
        writer.write_all(b"after").unwrap();
        assert_eq!(output.read(&mut chunk).await.unwrap(), 2);
        assert_eq!(output.read(&mut chunk).await.unwrap(), 0);
    }

    #[test]
    fn only_the_beginning_of_a_character_is_held_back() {
        for (bytes, held) in [
            (&b""[..], 0),
            (b"abc", 0),
            ("aé".as_bytes(), 0),
            (b"a\xc3", 1),
            (b"\xe2\x82", 2),
            (b"\xf0\x9f\x98", 3),
            ("😀".as_bytes(), 0),
            (b"\xff\xfe", 0),
            (b"a\x80\x80\x80", 0),
        ] {
            assert_eq!(unfinished(bytes), held, "{bytes:?}");
        }
    }
}
