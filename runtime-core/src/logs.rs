//! What a container wrote.

use std::pin::Pin;

use chrono::{DateTime, Utc};
use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Which of the two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // each variant is its name
pub enum LogStream {
    Stdout,
    Stderr,
}

/// Who wrote a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// A container, by its id.
    Container(String),
    /// A job, by its id.
    Job(String),
    /// An image build, by its id.
    Build(String),
    /// The runtime itself.
    Daemon,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When its first byte arrived.
    #[serde(with = "crate::time")]
    pub timestamp: DateTime<Utc>,
    /// Which stream it was written to.
    pub stream: LogStream,
    /// The line without its newline; bytes that are not UTF-8 are replaced. Longer than 64 KiB: several entries.
    pub message: String,
    /// Who wrote it.
    pub source: LogSource,
    /// The service, when known.
    pub service: Option<String>,
    /// The deployment, when known.
    pub deployment: Option<String>,
}

/// One record of the log as it is kept: a line, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// When its first byte arrived.
    #[serde(with = "crate::time")]
    pub timestamp: DateTime<Utc>,
    /// Which stream it was written to.
    pub stream: LogStream,
    /// The bytes as they were written, without the newline.
    pub bytes: Vec<u8>,
    /// The line goes on in the stream's next record.
    pub partial: bool,
    /// Bytes that are missing here: dropped when a writer could not be held back, or, about so many, rotated away before
    /// they were read.
    pub dropped_bytes: u64,
    /// Where the next record begins; give it to [`LogsOptions::cursor`] to go on from here.
    pub cursor: String,
}

/// Records as they come. It ends when the log is read to its end and, with `follow`, the container is over.
pub type LogRecordStream = Pin<Box<dyn Stream<Item = Result<LogRecord>> + Send>>;

/// Which part of a log to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogsOptions {
    /// Only records at or after this time.
    pub since: Option<DateTime<Utc>>,
    /// Only records before this time.
    pub until: Option<DateTime<Utc>>,
    /// Only the last so many lines; `None` for all.
    pub tail: Option<usize>,
    /// Go on as the container writes, until it is over.
    pub follow: bool,
    /// Begin at this cursor of an earlier [`LogRecord`].
    pub cursor: Option<String>,
}
