//! What a container wrote.

use std::pin::Pin;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
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

/// One record of the log as it is kept: a line, or a piece of one. Whose it is is known to who asks for a container's.
///
/// As JSON it has a `message`, as a [`LogEntry`] has, and only where that is not all that was written (bytes that are not
/// UTF-8) the `bytes` beside it, in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub struct LogRecord {
    /// When its first byte arrived.
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

/// A [`LogRecord`] as JSON.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(with = "crate::time")]
    timestamp: DateTime<Utc>,
    stream: LogStream,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<String>,
    partial: bool,
    dropped_bytes: u64,
    cursor: String,
}

impl From<LogRecord> for Written {
    fn from(record: LogRecord) -> Self {
        let LogRecord { timestamp, stream, bytes, partial, dropped_bytes, cursor } = record;
        let (message, bytes) = match String::from_utf8(bytes) {
            Ok(message) => (message, None),
            Err(error) => {
                (String::from_utf8_lossy(error.as_bytes()).into_owned(), Some(BASE64.encode(error.as_bytes())))
            }
        };
        Self { timestamp, stream, message, bytes, partial, dropped_bytes, cursor }
    }
}

impl TryFrom<Written> for LogRecord {
    type Error = base64::DecodeError;

    fn try_from(written: Written) -> std::result::Result<Self, Self::Error> {
        let Written { timestamp, stream, message, bytes, partial, dropped_bytes, cursor } = written;
        let bytes = bytes.map_or_else(|| Ok(message.into_bytes()), |bytes| BASE64.decode(bytes))?;
        Ok(Self { timestamp, stream, bytes, partial, dropped_bytes, cursor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_as_json_has_its_message_and_loses_no_byte() {
        for (bytes, message, encoded) in
            [(&b"caf\xc3\xa9"[..], "caf\u{e9}", None), (b"\xff\0a", "\u{fffd}\0a", Some("/wBh"))]
        {
            let record = LogRecord {
                timestamp: "2026-01-02T03:04:05.678901Z".parse().unwrap(),
                stream: LogStream::Stderr,
                bytes: bytes.to_vec(),
                partial: true,
                dropped_bytes: 0,
                cursor: "0:1".into(),
            };
            let json = serde_json::to_value(&record).unwrap();
            assert_eq!((json["message"].as_str(), json["bytes"].as_str()), (Some(message), encoded));
            assert_eq!(serde_json::from_value::<LogRecord>(json).unwrap(), record);
        }
    }
}
