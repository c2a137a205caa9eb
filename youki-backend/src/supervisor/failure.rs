//! An error of a process of the supervisor's side on its way to the agent: enough to make the same error again.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Longest text that travels; what is beyond is cut. A mount's holds two paths of up to 4 KiB each.
const MAX_TEXT_BYTES: usize = 16 << 10;
/// Longest code that is read.
const MAX_CODE_BYTES: usize = 64;

/// Codes that a failed create may have beside its own.
const CODES: [&str; 9] = [
    "io.failed",
    "disk.full",
    "root.corrupt",
    "config.invalid",
    "network.failed",
    "seccomp.failed",
    "install.helper_missing",
    "supervisor.unreachable",
    CREATE_FAILED,
];
/// The code of a failure that has none of its own.
pub(crate) const CREATE_FAILED: &str = "container.create_failed";

/// An error as it travels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// [`Error::code`]; empty where there is none.
    pub code: String,
    /// What the error is about, where its kind has a place for that.
    pub subject: String,
    /// The message with its causes.
    pub text: String,
}

impl Failure {
    /// `error`, ready to travel.
    pub fn of(error: &Error) -> Self {
        let subject = match error {
            Error::InvalidSpec { field: subject, .. }
            | Error::Unsupported { what: subject }
            | Error::UnknownUser { user: subject, .. }
            | Error::Mount { mount: subject, .. } => subject.as_str(),
            _ => "",
        };
        // Whoever makes it an error again says what was being done, and of which container.
        let text = match error {
            Error::CreateFailed { reason, .. } => reason.clone(),
            other => other.chain(),
        };
        Self {
            code: error.code().to_owned(),
            subject: cut(subject, MAX_TEXT_BYTES),
            text: cut(&text.replace('\n', "; "), MAX_TEXT_BYTES),
        }
    }

    /// The line in which a helper tells it to its supervisor, without the end of line.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| self.text.clone())
    }

    /// Reads that line.
    pub fn from_line(line: &str) -> Self {
        serde_json::from_str(line).unwrap_or_else(|_| Self::from(line))
    }

    /// The error again, as one of creating `id`.
    pub fn into_error(self, id: String) -> Error {
        let Self { code, subject, text } = self;
        // The message begins with what it is about.
        let reason = |opening: String| text.strip_prefix(&opening).unwrap_or(&text).to_owned();
        match code.get(..MAX_CODE_BYTES).unwrap_or(&code) {
            "spec.invalid" => Error::InvalidSpec { reason: reason(format!("{subject}: ")), field: subject },
            "user.not_found" => Error::UnknownUser { reason: reason(format!("user {subject:?}: ")), user: subject },
            "mount.failed" => Error::Mount { reason: reason(format!("mounting {subject}: ")), mount: subject },
            "unsupported.here" => Error::Unsupported { what: subject },
            code => {
                let code = CODES.into_iter().find(|known| *known == code).unwrap_or(CREATE_FAILED);
                Error::CreateFailed { id, code, reason: text }
            }
        }
    }
}

/// One that has no code.
impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self { text: cut(text, MAX_TEXT_BYTES), ..Self::default() }
    }
}

fn cut(text: &str, bytes: usize) -> String {
    match text.len() {
        len if len <= bytes => text.to_owned(),
        _ => format!("{}…", &text[..text.floor_char_boundary(bytes)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(error: &Error) -> Error {
        Failure::from_line(&Failure::of(error).to_line()).into_error("web-rep-0".into())
    }

    #[test]
    fn an_error_with_a_kind_comes_back_as_it_was() {
        for error in [
            Error::invalid("resources.io.weight", "12 was refused by blkio: no: really"),
            Error::Unsupported { what: "storage[0]: a bucket as files".into() },
            Error::UnknownUser { user: "no\"body".into(), reason: "it is not there".into() },
            Error::Mount { mount: "/a: b at /c (ro)".into(), reason: "Not a directory (os error 20)".into() },
        ] {
            let back = again(&error);
            assert_eq!((back.code(), back.to_string()), (error.code(), error.to_string()));
            assert_eq!(back.hint(), error.hint());
        }
    }

    #[test]
    fn any_other_keeps_its_code_and_is_told_once() {
        let full = Error::io("writing", "/x")(std::io::Error::from_raw_os_error(libc::ENOSPC));
        let back = again(&full);
        assert_eq!(back.code(), "disk.full");
        let text = back.to_string();
        assert_eq!(text, format!("web-rep-0: creating the container failed: {full}"));
        for line in ["no JSON", r#"{"code":"made.up","subject":"","text":"no JSON"}"#] {
            let back = Failure::from_line(line).into_error("web-rep-0".into());
            assert_eq!(back.code(), CREATE_FAILED);
            assert!(back.to_string().ends_with(": no JSON"), "{back}");
        }
    }

    #[test]
    fn nothing_makes_it_longer_than_its_limit() {
        let long = Failure::of(&Error::invalid("ä".repeat(MAX_TEXT_BYTES), "ö".repeat(1 << 20)));
        assert!(long.text.len() <= MAX_TEXT_BYTES + 3 && long.subject.len() <= MAX_TEXT_BYTES + 3);
        assert!(Failure::from("x".repeat(1 << 20).as_str()).text.len() <= MAX_TEXT_BYTES + 3);
        assert!(!Failure::from("a\nb").to_line().contains('\n'));
    }
}
