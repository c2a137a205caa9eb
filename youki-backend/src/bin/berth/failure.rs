//! What goes to standard error: [`Failure`], with which the command ends when something went wrong, and what is said beside.

use std::error::Error as StdError;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::streams::Patient;

/// Result of a command or a part of one.
pub type Result<T> = std::result::Result<T, Failure>;

/// Exit code of wrong usage, where the container's exit codes are not the command's.
pub const USAGE_STATUS: u8 = 2;
/// Exit code of Berth's own errors where the container's exit codes are the command's, as docker's.
pub const OWN_STATUS: u8 = 125;
/// Exit code when nobody reads the output any more, as a shell shows a death by SIGPIPE.
const BROKEN_PIPE_STATUS: u8 = 141;

/// Fields of a spec that are maps: which of their entries is meant is to be told.
const KEYED_FIELDS: [&str; 3] = ["env.", "rlimits.", "sysctls."];

const FLAGS_HINT: &str = "`berth COMMAND --help` says what its flags take";

/// Whether what goes to standard error is JSON. The one thing that all who write there have in common.
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// A message with its causes, and what to do.
#[derive(Debug)]
pub struct Failure {
    code: &'static str,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    /// The exit code, where the failure itself decides it.
    pub status: Option<u8>,
}

impl Failure {
    fn new(code: &'static str, error: &(dyn StdError + 'static), hint: Option<String>) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self { code, message: error.to_string(), causes, hint, status: None }
    }

    /// A command line that cannot be understood.
    pub fn usage(message: impl Into<String>) -> Self {
        let hint = Some(FLAGS_HINT.to_owned());
        Self { code: "usage", message: message.into(), causes: Vec::new(), hint, status: Some(USAGE_STATUS) }
    }

    /// Something that was looked at and is not as it should be, or not there at all.
    pub fn found(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hint: Some(hint.into()), status: None }
    }

    /// Something that has a name, and is not built.
    pub fn unsupported(what: impl Display) -> Self {
        Self {
            code: "unsupported",
            message: format!("{what} is not supported yet"),
            causes: Vec::new(),
            hint: Some("the README's table says what is built".to_owned()),
            status: None,
        }
    }

    /// A system call of the command's own that failed. A closed output ends the command without a word.
    pub fn io(action: &str, path: impl AsRef<Path>, error: &io::Error) -> Self {
        let closed = error.kind() == io::ErrorKind::BrokenPipe;
        Self {
            code: "io.failed",
            message: format!("{action} {}", path.as_ref().display()),
            causes: vec![error.to_string()],
            hint: Some("see that it is there, and may be read and written".to_owned()),
            status: closed.then_some(BROKEN_PIPE_STATUS),
        }
    }

    /// The same failure with a hint of its own.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure, which begins with the flag that it is about; the field of a spec that the flag makes is nothing to
    /// who typed it.
    #[must_use]
    pub fn of_flag(mut self, flag: &str) -> Self {
        if self.message.contains(flag) {
            return self;
        }
        self.message = match self.message.split_once(": ") {
            Some((field, reason)) if self.code == "spec.invalid" => {
                self.hint = Some(FLAGS_HINT.to_owned());
                let key = KEYED_FIELDS.iter().find_map(|keyed| field.strip_prefix(keyed));
                key.map_or_else(|| format!("{flag}: {reason}"), |key| format!("{flag} {key}: {reason}"))
            }
            _ => format!("{flag}: {}", self.message),
        };
        self
    }

    /// The same failure with an exit code of its own.
    #[must_use]
    pub fn with_status(mut self, status: u8) -> Self {
        self.status = Some(status);
        self
    }

    /// Its stable name.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// What failed, without the causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether what was asked for cannot be, whoever found that out: the library judges most of it.
    pub fn is_usage(&self) -> bool {
        let codes = [
            "usage",
            "config.invalid",
            "spec.invalid",
            "container.invalid_id",
            "image.invalid_reference",
            "image.invalid_platform",
            "volume.invalid_name",
        ];
        codes.contains(&self.code)
    }

    /// What failed and why, in one line; a cause that the message tells already is left out.
    pub fn text(&self) -> String {
        let mut text = self.message.clone();
        for cause in &self.causes {
            if !text.contains(cause.as_str()) {
                text.push_str(": ");
                text.push_str(cause);
            }
        }
        text
    }

    /// Writes it to standard error, unless it is one that nobody wants to read.
    pub fn print(&self) {
        if self.status == Some(BROKEN_PIPE_STATUS) {
            return;
        }
        let text = if AS_JSON.load(Ordering::Relaxed) {
            let (code, message, causes, hint) = (self.code, &self.message, &self.causes, &self.hint);
            json!({"error": {"code": code, "message": message, "causes": causes, "hint": hint}}).to_string()
        } else {
            let hint = self.hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            format!("berth: {}{hint}", self.text())
        };
        eprint_line(&text);
    }
}

/// From here on all that goes to standard error is JSON, a document a line: `--json`.
pub fn speak_json() {
    AS_JSON.store(true, Ordering::Relaxed);
}

/// What the user should know of, beside the command's result.
pub fn warn(text: &str) {
    eprint_line(&in_form(Kind::Warning, text));
}

/// What the command is at, or how it ends.
pub fn say(text: &str) {
    eprint_line(&in_form(Kind::Notice, text));
}

/// Kinds of what is said beside a command's result.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Something went wrong, but not what was asked for.
    Error,
    /// The user should know of it.
    Warning,
    /// What the command is at.
    Notice,
}

/// A line of the kind, without its end.
pub fn in_form(kind: Kind, text: &str) -> String {
    match (kind, AS_JSON.load(Ordering::Relaxed)) {
        (Kind::Error, false) => format!("berth: error: {text}"),
        (Kind::Warning, false) => format!("berth: warning: {text}"),
        (Kind::Notice, false) => format!("berth: {text}"),
        // An error is what a command ends with.
        (Kind::Error | Kind::Warning, true) => json!({"warning": {"message": text}}).to_string(),
        (Kind::Notice, true) => json!({"notice": {"message": text}}).to_string(),
    }
}

/// A line to standard error; there is nobody to tell that it cannot be written. An image, say, has put characters into it
/// that a terminal would obey.
pub fn eprint_line(text: &str) {
    let harmless = |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() };
    let line = text.chars().map(harmless).collect::<String>() + "\n";
    let _ = match Patient::own(io::stderr()) {
        Ok(mut stderr) => stderr.write_all(line.as_bytes()),
        // No descriptor is free.
        Err(_) => io::stderr().write_all(line.as_bytes()),
    };
}

impl From<youki_backend::Error> for Failure {
    fn from(error: youki_backend::Error) -> Self {
        Self::new(error.code(), &error, error.hint())
    }
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Self {
        youki_backend::Error::from(error).into()
    }
}

impl From<volumes_s3::Error> for Failure {
    fn from(error: volumes_s3::Error) -> Self {
        youki_backend::Error::from(error).into()
    }
}

impl From<runtime_core::InvalidId> for Failure {
    fn from(error: runtime_core::InvalidId) -> Self {
        youki_backend::Error::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let error = io::Error::new(io::ErrorKind::PermissionDenied, "no");
        let failure = Failure::io("writing", "/x", &error);
        assert_eq!(failure.text(), "writing /x: no");
        let repeated = Failure { causes: vec!["no".into(), "no".into()], ..failure };
        assert_eq!(repeated.text(), "writing /x: no");
    }

    #[test]
    fn a_flag_takes_the_place_of_the_field_that_it_makes() {
        for (field, flag, message) in [
            ("storage[0].source", "--volume", "--volume: no such"),
            ("env.PASSWORD", "--env", "--env PASSWORD: no such"),
        ] {
            let error = youki_backend::Error::InvalidSpec { field: field.into(), reason: "no such".into() };
            assert_eq!(Failure::from(error).of_flag(flag).text(), message);
        }
    }

    #[test]
    fn errors_of_the_library_keep_code_and_hint() {
        let failure = Failure::from(youki_backend::Error::NoSuchContainer { id: "web-rep-0".into() });
        assert_eq!(failure.code(), "container.not_found");
        assert!(failure.hint.is_some_and(|hint| hint.contains("berth ps -a")));
    }
}
