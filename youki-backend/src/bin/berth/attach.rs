//! A container's streams connected to the command's: a foreground `run`, and `attach`.

use std::future::Future;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use runtime_core::{ContainerId, WaitReason};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use youki_backend::{Error, Watched, YoukiRuntime};

use crate::cli::AttachArgs;
use crate::failure::{Failure, Result, say};
use crate::lifecycle::{container, warn_of_volumes};
use crate::session::Session;
use crate::signals::{self, Signals};
use crate::streams;
use crate::terminal::{Lent, Typed};

/// What ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The container, with its exit code.
    Ended(i32),
    /// The user, by the keys for that: it runs on.
    Detached,
    /// Whoever read the command's output: it runs on.
    Unread,
    /// The user, by a second signal of that number that asks to end, while it was still starting.
    Starting(i32),
}

/// What is connected.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Standard input too.
    pub input: bool,
    /// The container has a terminal.
    pub tty: bool,
}

impl Wanted {
    /// Whether a terminal is to be typed into from what is none.
    fn is_without_terminal(self) -> bool {
        self.tty && self.input && !io::stdin().is_terminal()
    }
}

/// `berth attach`
pub async fn attach(session: &Session, args: &AttachArgs) -> Result<i32> {
    let id = container(&args.name)?;
    let one = session.runtime.inspect(&id).await?;
    if !matches!(one.state, "running" | "stopping") {
        return Err(Error::NotRunning { id: one.id, state: one.state }.into());
    }
    let wanted = Wanted { input: !args.no_stdin, tty: one.spec.tty };
    if wanted.is_without_terminal() {
        return Err(Failure::usage("standard input is no terminal, as the container's is: leave it out by --no-stdin"));
    }
    let mut watched = session.runtime.watch(&id).await?;
    let mut signals = Signals::listen()?;
    let started = std::future::ready(Ok(()));
    match connect(&session.runtime, &id, &mut watched, wanted, &mut signals, started).await? {
        Left::Ended(code) => Ok(code),
        Left::Starting(number) => Ok(128 + number),
        Left::Detached | Left::Unread => Ok(0),
    }
}

/// Connects to `id`, lets `start` start it, passes signals through, and returns once its output has come to its end and
/// its volumes are settled, or the user has left.
pub async fn connect(
    runtime: &YoukiRuntime,
    id: &ContainerId,
    watched: &mut Watched,
    wanted: Wanted,
    signals: &mut Signals,
    start: impl Future<Output = Result<()>>,
) -> Result<Left> {
    if wanted.is_without_terminal() {
        return Err(Failure::usage("standard input is no terminal: leave --tty out"));
    }
    let mut attached = Attached::begin(runtime, id, wanted).await?;
    let early = match started(start, signals).await? {
        Ok(early) => early,
        Err(number) => return Ok(Left::Starting(number)),
    };
    for number in early {
        pass_on(runtime, id, number).await;
    }
    let unread = attached.unread.clone();
    let outcome = loop {
        tokio::select! {
            outcome = watched.wait() => break outcome?,
            () = attached.left() => return Ok(Left::Detached),
            () = unread.notified() => return Ok(Left::Unread),
            number = signals.next() => pass_on(runtime, id, number).await,
        }
    };
    let copied = attached.finish().await;
    warn_of_volumes(watched.settle().await?);
    if outcome.reason == WaitReason::RuntimeError {
        say(&format!("{id}: how it ended is not known; its supervisor was lost"));
    }
    copied?;
    Ok(Left::Ended(outcome.exit_code))
}

/// Waits for `start`; the signals that came meanwhile, in their order, or the second one that asks to end.
async fn started(
    start: impl Future<Output = Result<()>>,
    signals: &mut Signals,
) -> Result<std::result::Result<Vec<i32>, i32>> {
    let mut start = std::pin::pin!(start);
    let mut early = Vec::new();
    let mut asked: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            started = &mut start => return started.map(|()| Ok(early)),
            number = signals.next() => {
                if signals::asks_to_end(number) {
                    if asked.is_some_and(|asked| asked.elapsed() > signals::TWO_FOR_ONE) {
                        return Ok(Err(number));
                    }
                    asked = asked.or_else(|| Some(Instant::now()));
                }
                early.push(number);
            }
        }
    }
}

async fn pass_on(runtime: &YoukiRuntime, id: &ContainerId, number: i32) {
    match runtime.forward_signal(id, number).await {
        // It ended meanwhile: the wait tells.
        Ok(()) | Err(Error::NotRunning { .. } | Error::NoSuchContainer { .. }) => {}
        Err(error) => tracing::warn!(container = %id, error = error.chain(), "a signal was not passed on"),
    }
}

/// The container's output on its way to the command's, and the other way round.
struct Attached {
    output: [JoinHandle<io::Result<()>>; 2],
    /// Told when nobody reads standard output any more.
    unread: Arc<Notify>,
    terminal: Option<Lent>,
}

impl Attached {
    async fn begin(runtime: &YoukiRuntime, id: &ContainerId, wanted: Wanted) -> Result<Self> {
        let ((stdout, out), (stderr, err)) = (streams::pipe()?, streams::pipe()?);
        let (own_out, own_err) = (streams::own(io::stdout())?, streams::own(io::stderr())?);
        let stdin = runtime.attach(id, out, err, wanted.input).await?;
        let terminal = match stdin {
            Some(there) if wanted.tty => {
                let typed = if wanted.input { Typed::PassedOnUntilLeft } else { Typed::Kept };
                Some(Lent::to(there, typed)?)
            }
            Some(stdin) if wanted.input => {
                // Its end ends the container's; it goes on beside everything else.
                drop(streams::copy(streams::own(io::stdin())?, stdin));
                None
            }
            _ => None,
        };
        let unread = Arc::new(Notify::new());
        let output = [copy_or_tell(stdout, own_out, unread.clone()), streams::copy(stderr, own_err)];
        Ok(Self { output, unread, terminal })
    }

    /// Returns when the user leaves. Cancel-safe.
    async fn left(&mut self) {
        match &mut self.terminal {
            Some(terminal) => terminal.detached().await,
            None => std::future::pending().await,
        }
    }

    async fn finish(self) -> Result<()> {
        let [stdout, stderr] = self.output;
        let (stdout, stderr) = (streams::finish(stdout).await, streams::finish(stderr).await);
        stdout.and(stderr)
    }
}

/// Copies until the end of `from`; tells when `to` has lost its reader before.
fn copy_or_tell(from: OwnedFd, to: OwnedFd, unread: Arc<Notify>) -> JoinHandle<io::Result<()>> {
    let copy = streams::copy(from, to);
    tokio::spawn(async move {
        let copied = copy.await.map_err(io::Error::other)?;
        if copied.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            unread.notify_one();
        }
        copied
    })
}
