//! `run`, `create` and `apply`.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use runtime_core::{ContainerId, ServiceSpec, WaitReason};
use serde_json::json;
use tokio::task::JoinHandle;
use youki_backend::{Config, CreateOptions, Error, YoukiRuntime};

use crate::cli::ApplyArgs;
use crate::failure::{Failure, Result, eprint_line};
use crate::flag_values::credentials;
use crate::lifecycle::warn_not_durable;
use crate::output;
use crate::progress::{self, Show};
use crate::run_flags::RunArgs;
use crate::session::Session;
use crate::signals::Signals;
use crate::streams;

/// Longest spec that is read; one of a thousand variables has some 100 KiB.
const MAX_SPEC_BYTES: u64 = 4 << 20;

/// `berth create`
pub async fn create(config: Config, as_json: bool, args: &RunArgs) -> Result<i32> {
    if args.detach {
        return Err(Failure::usage("--detach is run's: create starts nothing"));
    }
    let wanted = Wanted::from_flags(args)?;
    let session = Session::open(config, as_json).await?;
    wanted.create(&session).await?;
    print_id(&session, &wanted.id)?;
    Ok(0)
}

/// `berth apply`
pub async fn apply(config: Config, as_json: bool, args: &ApplyArgs) -> Result<i32> {
    let id = ContainerId::new(args.name.as_str(), 0);
    id.validate()?;
    let auth = args.creds.as_deref().map(credentials).transpose()?;
    let options = CreateOptions { auth, ..CreateOptions::default() };
    let wanted = Wanted { id, spec: read_spec(&args.file)?, options };
    let session = Session::open(config, as_json).await?;
    wanted.create(&session).await?;
    session.runtime.start(&wanted.id).await?;
    print_id(&session, &wanted.id)?;
    Ok(0)
}

/// Reads a spec from a file, or from standard input. JSON is YAML, too.
fn read_spec(path: &Path) -> Result<ServiceSpec> {
    let failed = |error: io::Error| Failure::io("reading", path, &error);
    let mut text = String::new();
    let source: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path).map_err(failed)?) };
    source.take(MAX_SPEC_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    let invalid = |reason: String| Failure::from(Error::InvalidSpec { field: path.display().to_string(), reason });
    if text.len() as u64 > MAX_SPEC_BYTES {
        return Err(invalid("it is larger than 4 MiB".to_owned()));
    }
    serde_yaml_ng::from_str(&text).map_err(|error| invalid(error.to_string()))
}

/// `berth run`
pub async fn run(config: Config, as_json: bool, args: &RunArgs) -> Result<i32> {
    let wanted = Wanted::from_flags(args)?;
    if args.detach && args.rm {
        return Err(Failure::unsupported("--rm with --detach"));
    }
    let session = Session::open(config, as_json).await?;
    if args.detach {
        wanted.create(&session).await?;
        session.runtime.start(&wanted.id).await.map_err(with_exec_status)?;
        print_id(&session, &wanted.id)?;
        return Ok(0);
    }
    let mut signals = Signals::listen()?;
    if let Some(status) = wanted.create_or_give_up(&session, &mut signals).await? {
        return Ok(status);
    }
    let ended = follow(&session.runtime, &wanted, &mut signals).await;
    if args.rm {
        let removed = session.runtime.remove(&wanted.id, true).await;
        return ended.and_then(|status| removed.map(|()| status).map_err(Failure::from));
    }
    ended
}

/// What `run` and `create` are to make.
struct Wanted {
    id: ContainerId,
    spec: ServiceSpec,
    options: CreateOptions,
}

impl Wanted {
    fn from_flags(args: &RunArgs) -> Result<Self> {
        let options = CreateOptions { auth: args.auth()?, progress: None };
        Ok(Self { id: args.id()?, spec: args.spec()?, options })
    }

    async fn create(&self, session: &Session) -> Result<()> {
        let (sender, shown) = progress::pull(show(session));
        let options = CreateOptions { progress: Some(sender), ..self.options.clone() };
        let created = session.runtime.create(&self.id, &self.spec, options).await;
        shown.finish().await;
        Ok(created?)
    }

    /// The same, unless a signal asks to end before: then the exit code, and nothing is left.
    async fn create_or_give_up(&self, session: &Session, signals: &mut Signals) -> Result<Option<i32>> {
        let (sender, mut shown) = progress::pull(show(session));
        let options = CreateOptions { progress: Some(sender), ..self.options.clone() };
        let mut creating = std::pin::pin!(session.runtime.create(&self.id, &self.spec, options));
        let number = tokio::select! {
            created = &mut creating => {
                shown.finish().await;
                created?;
                return Ok(None);
            }
            number = signals.next_ending() => number,
        };
        // A pull may be left at any point, and can be long; what follows it is short, and has to be undone.
        if shown.is_over().await {
            creating.await?;
            session.runtime.remove(&self.id, true).await?;
        }
        Ok(Some(128 + number))
    }
}

fn show(session: &Session) -> Show {
    if session.json { Show::Nothing } else { Show::Bars }
}

fn print_id(session: &Session, id: &ContainerId) -> Result<()> {
    if session.json {
        return output::print_json(&json!({"id": id.to_string()}));
    }
    output::print_line(&id.to_string())
}

/// Starts a created container, passes its streams and signals through, and gives its exit code once its output has
/// come to its end and its volumes are settled.
async fn follow(runtime: &YoukiRuntime, wanted: &Wanted, signals: &mut Signals) -> Result<i32> {
    let id = &wanted.id;
    let output = Output::attach(runtime, wanted).await?;
    runtime.start(id).await.map_err(with_exec_status)?;
    let mut waiting = std::pin::pin!(runtime.wait(id));
    let outcome = loop {
        tokio::select! {
            outcome = &mut waiting => break outcome?,
            number = signals.next() => match runtime.forward_signal(id, number).await {
                // It ended meanwhile: the wait tells.
                Ok(()) | Err(Error::NotRunning { .. } | Error::NoSuchContainer { .. }) => {}
                Err(error) => tracing::warn!(container = %id, error = error.chain(), "a signal was not passed on"),
            },
        }
    };
    let copied = output.finish().await;
    for (volume, error) in runtime.settle_volumes(id).await? {
        warn_not_durable(&volume, &Failure::from(error).text());
    }
    if outcome.reason == WaitReason::RuntimeError {
        eprint_line(&format!("berth: {id}: how it ended is not known; its supervisor was lost"));
    }
    copied?;
    Ok(outcome.exit_code)
}

/// The container's output on its way to the command's.
struct Output([JoinHandle<io::Result<()>>; 2]);

impl Output {
    async fn attach(runtime: &YoukiRuntime, wanted: &Wanted) -> Result<Self> {
        let ((stdout, out), (stderr, err)) = (streams::pipe()?, streams::pipe()?);
        let (own_out, own_err) = (streams::own(io::stdout())?, streams::own(io::stderr())?);
        let stdin = runtime.attach(&wanted.id, out, err).await?;
        if let Some(stdin) = stdin.filter(|_| wanted.spec.stdin) {
            feed(stdin)?;
        }
        Ok(Self([streams::copy(stdout, own_out), streams::copy(stderr, own_err)]))
    }

    async fn finish(self) -> Result<()> {
        let [stdout, stderr] = self.0;
        let (stdout, stderr) = (streams::finish(stdout).await, streams::finish(stderr).await);
        stdout.and(stderr)
    }
}

/// Copies standard input, whose end ends the container's. Goes on beside everything else; the command's end ends it.
fn feed(stdin: OwnedFd) -> Result<()> {
    drop(streams::copy(streams::own(io::stdin())?, stdin));
    Ok(())
}

/// A program that cannot be executed is the container's failure, not Berth's: 127 or 126, as a shell's.
pub fn with_exec_status(error: Error) -> Failure {
    let failure = Failure::from(error);
    match failure.code() {
        "exec.not_found" => failure.with_status(127),
        "exec.not_executable" | "exec.workdir" => failure.with_status(126),
        _ => failure,
    }
}
