//! What every command begins with: configuration, logging, and the opened runtime.

use std::fmt;

use runtime_core::ContainerId;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;
use youki_backend::{Config, Error, YoukiRuntime};

use crate::cli::GlobalArgs;
use crate::failure::{self, Failure, Kind, Result, USAGE_STATUS};

/// Messages of the libraries that the command says itself, in words of its own.
const SAID_ANYWAY: [&str; 3] = ["not synced", "not released yet", "not durable"];

/// Warnings of the S3 client show values of Rust, and come before an error that says the same.
const OTHERS_WARNINGS: &str = "aws_config=error";

/// How those begin that say what a command is at, and warn of nothing.
const WAITING: &str = "waiting for ";

/// An opened root, and how to print.
#[derive(Debug)]
pub struct Session {
    pub runtime: YoukiRuntime,
    pub json: bool,
}

impl Session {
    /// Opens the root of `config`.
    pub async fn open(config: Config, json: bool) -> Result<Self> {
        Ok(Self { runtime: YoukiRuntime::open(config).await?, json })
    }

    /// The same for work with `id` alone, which costs no more where there are a thousand.
    pub async fn open_for(config: Config, json: bool, id: &ContainerId) -> Result<Self> {
        Ok(Self { runtime: YoukiRuntime::open_for(config, id).await?, json })
    }

    /// Does `verb` to each of `names`; what came of it, and the exit code: 1 if any failed, which is said at once, 2 if one
    /// is no name.
    pub async fn each<T, E: Into<Failure>>(
        &self,
        names: &[String],
        verb: impl AsyncFn(&str) -> std::result::Result<T, E>,
    ) -> (Vec<T>, i32) {
        let mut done = Vec::new();
        let mut status = 0;
        for name in names {
            match verb(name).await {
                Ok(value) => done.push(value),
                Err(error) => status = status.max(self.told(error)),
            }
        }
        (done, status)
    }

    /// Prints what failed of several things; the exit code for it.
    pub fn told(&self, error: impl Into<Failure>) -> i32 {
        let failure = error.into();
        failure.print();
        if failure.is_usage() { i32::from(USAGE_STATUS) } else { 1 }
    }
}

/// The configuration: flags, then the environment, then the file. Begins to log.
pub fn configure(global: &GlobalArgs) -> Result<Config> {
    let flag = |variable: &str| match variable {
        "BERTH_ROOT" => global.root.clone(),
        "BERTH_RUN_DIR" => global.run_dir.clone(),
        "BERTH_CGROUP_PARENT" => global.cgroup_parent.clone(),
        "BERTH_BRIDGE" => global.bridge.clone(),
        "BERTH_SUBNET" => global.subnet.clone(),
        "BERTH_S3_BUCKET" => global.s3_bucket.clone(),
        "BERTH_S3_ENDPOINT" => global.s3_endpoint.clone(),
        "BERTH_S3_PREFIX" => global.s3_prefix.clone(),
        "BERTH_S3_REGION" => global.s3_region.clone(),
        "BERTH_LOG" => global.log_level.clone(),
        _ => None,
    };
    // A script's variable that is not set must not mean the root of everybody.
    for (flag, value) in [
        ("--root", &global.root),
        ("--run-dir", &global.run_dir),
        ("--cgroup-parent", &global.cgroup_parent),
        ("--bridge", &global.bridge),
        ("--subnet", &global.subnet),
        ("--log-level", &global.log_level),
    ] {
        if value.as_deref() == Some("") {
            return Err(Failure::usage(format!("{flag} \"\": it is empty: leave it out, or name one")));
        }
    }
    let mut config = Config::load_from(global.config.as_deref(), |variable| match flag(variable) {
        // An empty one takes the place of what the environment has, and is none itself.
        Some(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        None => Config::variable(variable),
    })?;
    // One that follows containers is `berth keeper`, not a command that comes and goes.
    config.keeper = false;
    log_to_stderr(&config.log_level)?;
    Ok(config)
}

fn log_to_stderr(level: &str) -> Result<()> {
    // Whoever asks for more wants to see when, and where from.
    let is_plain = matches!(level, "off" | "error" | "warn");
    let filter = if level == "warn" { format!("{level},{OTHERS_WARNINGS}") } else { level.to_owned() };
    let what = || format!("log level {level:?}");
    let invalid = |error: ParseError| Error::Configuration { what: what(), reason: error.to_string() };
    let filter = EnvFilter::builder().parse(filter).map_err(invalid)?;
    // What standard error does not take is lost; to tell that there, too, would end this process in the middle of its work.
    let subscriber =
        tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter).with_writer(std::io::stderr);
    if is_plain {
        subscriber.event_format(AsWarning).init();
    } else {
        subscriber.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
    Ok(())
}

/// Events in the form of the command's own messages.
struct AsWarning;

impl<S, N> FormatEvent<S, N> for AsWarning
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if SAID_ANYWAY.iter().any(|message| fields.message.starts_with(message)) {
            return Ok(());
        }
        let (kind, others) = match *event.metadata().level() {
            _ if fields.message.starts_with(WAITING) => (Kind::Notice, String::new()),
            Level::ERROR => (Kind::Error, fields.others()),
            _ => (Kind::Warning, fields.others()),
        };
        writeln!(writer, "{}", failure::in_form(kind, &format!("{}{others}", fields.message)))
    }
}

/// The message of an event, and its fields as `name value`, an error as it is.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<String>,
    error: Option<String>,
}

impl Fields {
    /// They follow the message. What the error begins with is said once.
    fn others(&self) -> String {
        let said = |field: &&String| self.error.as_ref().is_none_or(|error| !error.starts_with(&format!("{field}: ")));
        self.others.iter().filter(said).chain(&self.error).map(|text| format!(": {text}")).collect()
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            // What happened speaks for itself.
            "error" => self.error = Some(format!("{value:?}")),
            name => self.others.push(format!("{name} {value:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn events_read_like_messages_and_none_is_said_twice() {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt().event_format(AsWarning).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(volume = "v", error = %"refused", "S3 is away");
            tracing::warn!(volume = "v", "not synced");
            tracing::warn!(volume = "v", error = %"volume v: in use", "not pruned");
            tracing::warn!("waiting for S3 at x");
            tracing::error!("lost");
        });
        let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            text,
            "berth: warning: S3 is away: volume v: refused\nberth: warning: not pruned: volume v: in use\n\
             berth: waiting for S3 at x\nberth: error: lost\n"
        );
    }
}
