//! `run`, `create` and `apply`.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime_core::spec::StorageSpec;
use runtime_core::{ContainerId, ServiceSpec};
use serde_json::json;
use youki_backend::{Config, CreateOptions, Error};

use crate::attach::{self, Left};
use crate::cli::ApplyArgs;
use crate::failure::{Failure, Result, say, warn};
use crate::flag_values::credentials;
use crate::lifecycle::warn_of_volumes;
use crate::output;
use crate::progress::{self, Show};
use crate::run_flags::RunArgs;
use crate::session::Session;
use crate::signals::Signals;
use crate::spec_file;

/// Time that a create has to come to its end and be undone, once a signal asked to end.
const TIME_TO_UNDO: Duration = Duration::from_secs(10);
/// After so long it is said what takes that time.
const UNSAID: Duration = Duration::from_secs(1);

/// `berth create`
pub async fn create(config: Config, as_json: bool, args: &RunArgs) -> Result<i32> {
    if args.detach {
        return Err(Failure::usage("--detach is run's: create starts nothing"));
    }
    let wanted = Wanted::from_flags(args)?;
    let session = Session::open(config, as_json).await?;
    let mut signals = Signals::listen_to_ending()?;
    let created = wanted.create(&session, &mut signals).await;
    if let Some(status) = created.map_err(|failure| args.naming_its_flag(failure))? {
        return Ok(status);
    }
    print_id(&session, &wanted.id)?;
    Ok(0)
}

/// `berth apply`
pub async fn apply(config: Config, as_json: bool, args: &ApplyArgs) -> Result<i32> {
    let id = ContainerId::new(args.name.as_str(), 0);
    id.validate().map_err(|error| Failure::from(error).of_flag("--name"))?;
    let auth = args.creds.as_deref().map(credentials).transpose()?;
    let options = CreateOptions { auth, ..CreateOptions::default() };
    let wanted = Wanted { id, spec: spec_file::read(&args.file)?, options, quiet: false, cidfile: None };
    let session = Session::open(config, as_json).await?;
    let mut signals = Signals::listen_to_ending()?;
    if let Some(status) = wanted.create(&session, &mut signals).await? {
        return Ok(status);
    }
    wanted.start(&session, &mut signals, Failure::from).await
}

/// `berth run`
pub async fn run(config: Config, as_json: bool, args: &RunArgs) -> Result<i32> {
    let wanted = Wanted::from_flags(args)?;
    // Before anything is made.
    if args.tty && args.interactive && !args.detach && !io::stdin().is_terminal() {
        return Err(Failure::usage("standard input is no terminal: leave --tty out"));
    }
    let session = Session::open(config, as_json).await?;
    let mut signals = if args.detach { Signals::listen_to_ending() } else { Signals::listen() }?;
    let created = wanted.create(&session, &mut signals).await;
    if let Some(status) = created.map_err(|failure| args.naming_its_flag(failure))? {
        return Ok(status);
    }
    if args.detach {
        return wanted.start(&session, &mut signals, with_exec_status).await;
    }
    let connected = attach::Wanted { input: wanted.spec.stdin, tty: wanted.spec.tty };
    let mut watched = session.runtime.watch(&wanted.id).await?;
    let start = async { session.runtime.start(&wanted.id).await.map_err(with_exec_status) };
    let ended = match attach::connect(&session.runtime, &wanted.id, &mut watched, connected, &mut signals, start).await
    {
        // It runs on, and what it leaves stays.
        Ok(Left::Detached) => return Ok(0),
        // Whoever starts it may never come to an end.
        Ok(Left::Starting(number)) => return Ok(wanted.left_starting(number)),
        Ok(Left::Ended(code)) => Ok(code),
        // As a program in a pipeline ends.
        Ok(Left::Unread) => {
            let stopped = session.runtime.stop(&wanted.id, None).await.map(warn_of_volumes);
            stopped.map(|()| 128 + libc::SIGPIPE).map_err(Failure::from)
        }
        Err(failure) => Err(failure),
    };
    if args.rm {
        let removed = watched.removed().await.map(warn_of_volumes);
        return ended.and_then(|status| removed.map(|()| status).map_err(Failure::from));
    }
    ended
}

/// What `run` and `create` are to make.
struct Wanted {
    id: ContainerId,
    spec: ServiceSpec,
    options: CreateOptions,
    quiet: bool,
    /// Where its id is written.
    cidfile: Option<IdFile>,
}

/// A file with the id, there from before the create: one that cannot be written costs nothing. It goes with a create that
/// fails.
struct IdFile {
    path: PathBuf,
    is_kept: Cell<bool>,
}

impl IdFile {
    fn make(path: &Path, id: &ContainerId) -> Result<Self> {
        let mut file = File::create_new(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let path = path.display();
                Failure::usage(format!("--cidfile {path}: it exists: another container may run"))
            }
            _ => Failure::io("writing", path, &error),
        })?;
        let made = Self { path: path.to_owned(), is_kept: Cell::new(false) };
        file.write_all(id.to_string().as_bytes()).map_err(|error| Failure::io("writing", path, &error))?;
        Ok(made)
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.is_kept.get() {
            // Nothing more can be done about one that stays.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Wanted {
    fn from_flags(args: &RunArgs) -> Result<Self> {
        let options = CreateOptions { auth: args.auth()?, ..CreateOptions::default() };
        let (id, spec) = (args.id()?, args.spec()?);
        let cidfile = args.cidfile.as_deref().map(|path| IdFile::make(path, &id)).transpose()?;
        Ok(Self { id, spec, options, quiet: args.quiet, cidfile })
    }

    /// What follows a create.
    fn created(&self, session: &Session) {
        self.warn_of_local_volumes(session);
        self.cidfile.iter().for_each(|file| file.is_kept.set(true));
    }

    /// Starts it for nobody who waits for its end.
    async fn start(
        &self,
        session: &Session,
        signals: &mut Signals,
        failed: impl FnOnce(Error) -> Failure,
    ) -> Result<i32> {
        tokio::select! {
            biased;
            // Its program may never come to be executed, as on a mount that hangs.
            number = signals.next_ending() => return Ok(self.left_starting(number)),
            started = session.runtime.start(&self.id) => started.map_err(failed)?,
        }
        print_id(session, &self.id)?;
        Ok(0)
    }

    /// The exit code of who leaves by a signal while it starts.
    fn left_starting(&self, number: i32) -> i32 {
        say(&format!("{}: left while it was starting: see `berth ps -a`", self.id));
        128 + number
    }

    fn show(&self, session: &Session) -> Show {
        if session.json || self.quiet { Show::Nothing } else { Show::Bars }
    }

    /// Whoever forgot the bucket would find an empty volume on the next host. Said once there is a volume to say it of.
    fn warn_of_local_volumes(&self, session: &Session) {
        let named = self.spec.storage.iter().find_map(|storage| match storage {
            StorageSpec::Named { name, .. } => Some(name),
            _ => None,
        });
        if let (Some(name), None) = (named, &session.runtime.config().s3) {
            warn(&format!("volume {name}: no bucket is configured: it stays on this host"));
        }
    }

    /// Creates it, unless a signal asks to end before: then the exit code, and nothing is left, or nothing that the next
    /// command does not undo.
    async fn create(&self, session: &Session, signals: &mut Signals) -> Result<Option<i32>> {
        let (sender, shown) = progress::pull(self.show(session));
        let options = CreateOptions { progress: Some(sender), ..self.options.clone() };
        let mut creating = std::pin::pin!(session.runtime.create(&self.id, &self.spec, options));
        let number = tokio::select! {
            biased;
            number = signals.next_ending() => number,
            created = &mut creating => {
                shown.finish().await;
                created?;
                self.created(session);
                return Ok(None);
            }
        };
        // What is not pulled, or waited for, may be long: a volume is restored. Then the next command undoes what is left here.
        self.options.called_off.cancel();
        let undo = async {
            match creating.await {
                Err(Error::CalledOff { .. }) => {}
                created => {
                    created?;
                    warn_of_volumes(session.runtime.remove(&self.id, true).await?);
                }
            }
            session.runtime.deletions().await;
            Ok::<(), Failure>(())
        };
        let word = async {
            tokio::time::sleep(UNSAID).await;
            say(&format!("{}: undoing what was begun; another signal leaves that to the next command", self.id));
            tokio::time::sleep(TIME_TO_UNDO - UNSAID).await;
        };
        tokio::select! {
            undone = undo => return undone.map(|()| Some(128 + number)),
            () = signals.another_ending() => {}
            () = word => {}
        }
        say(&format!("{}: left before it was undone, which the next command does", self.id));
        Ok(Some(128 + number))
    }
}

fn print_id(session: &Session, id: &ContainerId) -> Result<()> {
    if session.json {
        return output::print_json(&json!({"id": id.to_string()}));
    }
    output::print_line(&id.to_string())
}

/// A program that is not executed is the container's failure, not Berth's: 127 or 126, as a shell's.
pub fn with_exec_status(error: Error) -> Failure {
    let status = error.program_exit_code().and_then(|code| u8::try_from(code).ok());
    let failure = Failure::from(error);
    match status {
        Some(status) => failure.with_status(status),
        None => failure,
    }
}
