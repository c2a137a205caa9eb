//! `run`, `create` and `apply`.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime_core::spec::StorageSpec;
use runtime_core::{ContainerId, ServiceSpec};
use serde_json::json;
use serde_yaml_ng::with::singleton_map_recursive;
use youki_backend::{Config, CreateOptions, Error};

use crate::attach::{self, Left};
use crate::cli::ApplyArgs;
use crate::failure::{Failure, Result, eprint_line};
use crate::flag_values::credentials;
use crate::lifecycle::warn_of_volumes;
use crate::output;
use crate::progress::{self, Show};
use crate::run_flags::RunArgs;
use crate::session::Session;
use crate::signals::Signals;

/// Longest spec that is read; one of a thousand variables has some 100 KiB.
const MAX_SPEC_BYTES: u64 = 4 << 20;
/// Time that a create has to come to its end and be undone, once a signal asked to end.
const TIME_TO_UNDO: Duration = Duration::from_secs(10);

/// `berth create`
pub async fn create(config: Config, as_json: bool, args: &RunArgs) -> Result<i32> {
    if args.detach {
        return Err(Failure::usage("--detach is run's: create starts nothing"));
    }
    let wanted = Wanted::from_flags(args)?;
    let session = Session::open(config, as_json).await?;
    wanted.create(&session).await.map_err(|failure| args.naming_its_flag(failure))?;
    print_id(&session, &wanted.id)?;
    Ok(0)
}

/// `berth apply`
pub async fn apply(config: Config, as_json: bool, args: &ApplyArgs) -> Result<i32> {
    let id = ContainerId::new(args.name.as_str(), 0);
    id.validate().map_err(|error| Failure::from(error).of_flag("--name"))?;
    let auth = args.creds.as_deref().map(credentials).transpose()?;
    let options = CreateOptions { auth, ..CreateOptions::default() };
    let wanted = Wanted { id, spec: read_spec(&args.file)?, options, quiet: false, cidfile: None };
    let session = Session::open(config, as_json).await?;
    wanted.create(&session).await?;
    session.runtime.start(&wanted.id).await?;
    print_id(&session, &wanted.id)?;
    Ok(0)
}

/// Reads a spec from a file, or from standard input. JSON is YAML, too, in which a variant with a value is a map.
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
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if text.starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
        // YAML would take a null where a text is due for the word.
        return serde_json::from_str(text).map_err(|error| invalid(error.to_string()));
    }
    let spec: ServiceSpec = singleton_map_recursive::deserialize(serde_yaml_ng::Deserializer::from_str(text))
        .map_err(|error| invalid(error.to_string()))?;
    let written = serde_yaml_ng::from_str(text).map_err(|error| invalid(error.to_string()))?;
    match null_as_text(&written, &json!(spec)) {
        Some(field) => Err(Error::InvalidSpec { field, reason: "a null is not a text".to_owned() }.into()),
        None => Ok(spec),
    }
}

/// Where YAML took a null, which a template writes for what it lacks, for a word.
fn null_as_text(written: &serde_yaml_ng::Value, read: &serde_json::Value) -> Option<String> {
    use serde_json::Value as Json;
    use serde_yaml_ng::Value as Yaml;
    let within = |name: String, written, read| {
        let deeper = null_as_text(written, read)?;
        Some(if deeper.is_empty() { name } else { format!("{name}.{deeper}") })
    };
    match (written, read) {
        (Yaml::Null, Json::String(_)) => Some(String::new()),
        (Yaml::Mapping(written), Json::Object(read)) => written.iter().find_map(|(key, value)| {
            let key = key.as_str()?;
            within(key.to_owned(), value, read.get(key)?)
        }),
        (Yaml::Sequence(written), Json::Array(read)) => written
            .iter()
            .zip(read)
            .enumerate()
            .find_map(|(index, (written, read))| within(index.to_string(), written, read)),
        _ => None,
    }
}

/// `berth run`
pub async fn run(config: Config, as_json: bool, args: &RunArgs) -> Result<i32> {
    let wanted = Wanted::from_flags(args)?;
    // Before anything is made.
    if args.tty && args.interactive && !args.detach && !io::stdin().is_terminal() {
        return Err(Failure::usage("standard input is no terminal: leave --tty out"));
    }
    let session = Session::open(config, as_json).await?;
    if args.detach {
        wanted.create(&session).await.map_err(|failure| args.naming_its_flag(failure))?;
        session.runtime.start(&wanted.id).await.map_err(with_exec_status)?;
        print_id(&session, &wanted.id)?;
        return Ok(0);
    }
    let mut signals = Signals::listen()?;
    let made = wanted.create_or_give_up(&session, &mut signals).await;
    if let Some(status) = made.map_err(|failure| args.naming_its_flag(failure))? {
        return Ok(status);
    }
    let connected = attach::Wanted { input: wanted.spec.stdin, tty: wanted.spec.tty };
    let mut watched = session.runtime.watch(&wanted.id).await?;
    let start = async { session.runtime.start(&wanted.id).await.map_err(with_exec_status) };
    let ended = match attach::connect(&session.runtime, &wanted.id, &mut watched, connected, &mut signals, start).await
    {
        // It runs on, and what it leaves stays.
        Ok(Left::Detached) => return Ok(0),
        // Whoever starts it may never come to an end.
        Ok(Left::Starting(number)) => {
            eprint_line(&format!("berth: {}: left while it was starting: see `berth ps -a`", wanted.id));
            return Ok(128 + number);
        }
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
        let options = CreateOptions { auth: args.auth()?, progress: None };
        let (id, spec) = (args.id()?, args.spec()?);
        let cidfile = args.cidfile.as_deref().map(|path| IdFile::make(path, &id)).transpose()?;
        Ok(Self { id, spec, options, quiet: args.quiet, cidfile })
    }

    /// What follows a create.
    fn created(&self, session: &Session) {
        self.warn_of_local_volumes(session);
        self.cidfile.iter().for_each(|file| file.is_kept.set(true));
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
            eprint_line(&format!("berth: warning: volume {name}: no bucket is configured: it stays on this host"));
        }
    }

    async fn create(&self, session: &Session) -> Result<()> {
        let (sender, shown) = progress::pull(self.show(session));
        let options = CreateOptions { progress: Some(sender), ..self.options.clone() };
        let created = session.runtime.create(&self.id, &self.spec, options).await;
        shown.finish().await;
        created?;
        self.created(session);
        Ok(())
    }

    /// The same, unless a signal asks to end before: then the exit code, and nothing is left, or nothing that the next
    /// command does not undo.
    async fn create_or_give_up(&self, session: &Session, signals: &mut Signals) -> Result<Option<i32>> {
        let (sender, mut shown) = progress::pull(self.show(session));
        let options = CreateOptions { progress: Some(sender), ..self.options.clone() };
        let mut creating = std::pin::pin!(session.runtime.create(&self.id, &self.spec, options));
        let number = tokio::select! {
            created = &mut creating => {
                shown.finish().await;
                created?;
                self.created(session);
                return Ok(None);
            }
            number = signals.next_ending() => number,
        };
        // A pull may be left at any point, and can be long; what follows it has to be undone.
        if !shown.is_over().await {
            return Ok(Some(128 + number));
        }
        // It may be long, too: a volume is restored, or waited for. Then the next command undoes what is left here.
        tokio::select! {
            created = &mut creating => created?,
            () = signals.another_ending() => return Ok(Some(self.left(number))),
            () = tokio::time::sleep(TIME_TO_UNDO) => return Ok(Some(self.left(number))),
        };
        warn_of_volumes(session.runtime.remove(&self.id, true).await?);
        session.runtime.deletions().await;
        Ok(Some(128 + number))
    }

    fn left(&self, number: i32) -> i32 {
        eprint_line(&format!("berth: {}: left before it was undone, which the next command does", self.id));
        128 + number
    }
}

fn print_id(session: &Session, id: &ContainerId) -> Result<()> {
    if session.json {
        return output::print_json(&json!({"id": id.to_string()}));
    }
    output::print_line(&id.to_string())
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
