//! Makes entries of records: a line is joined from its pieces.

use chrono::{DateTime, Utc};
use runtime_core::{LogEntry, LogSource, LogStream};

use super::files::Position;
use super::line;
use super::tail::TailStart;

/// Longest message of one entry; a longer line makes several.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Takes records in the order of the file, gives entries in the order in which they began.
#[derive(Debug)]
pub(super) struct Joiner {
    service: String,
    id: String,
    /// Records of a stream before this belong to a line that is not wanted.
    from: [Option<Position>; 2],
    /// For each stream the line that is still going on: when it began, its place in `entries`, its bytes.
    open: [Option<Open>; 2],
    entries: Vec<LogEntry>,
    /// Lines that were not in the format.
    pub malformed: u64,
}

#[derive(Debug)]
struct Open {
    entry: usize,
    bytes: Vec<u8>,
}

impl Joiner {
    pub fn new(service: &str, id: &str) -> Self {
        let (service, id) = (service.to_owned(), id.to_owned());
        Self { service, id, from: [None; 2], open: [None, None], entries: Vec::new(), malformed: 0 }
    }

    /// Leaves out what lies before the tail.
    pub fn starting_at(service: &str, id: &str, start: TailStart) -> Self {
        Self { from: start.from.map(Some), ..Self::new(service, id) }
    }

    pub fn add(&mut self, here: Position, line: &[u8]) {
        let Some(line) = line::parse(line) else {
            self.malformed += 1;
            return;
        };
        let index = line.stream as usize;
        if self.from[index].is_some_and(|from| here < from) {
            return;
        }
        if line.dropped_bytes > 0 {
            // What follows a gap does not continue what was before it; of which stream it is, the record does not say.
            self.close(0);
            self.close(1);
            return;
        }
        let mut text = line.text;
        loop {
            let room = MAX_MESSAGE_BYTES - self.open[index].as_ref().map_or(0, |open| open.bytes.len());
            // A piece that fits whole is not torn for the sake of a full entry.
            if text.len() > room && self.open[index].is_some() {
                self.close(index);
                continue;
            }
            let now = text.len().min(MAX_MESSAGE_BYTES);
            self.append(index, line.stream, line.timestamp, &text[..now]);
            text = &text[now..];
            if text.is_empty() {
                break;
            }
            self.close(index);
        }
        if !line.partial {
            self.close(index);
        }
    }

    fn append(&mut self, index: usize, stream: LogStream, timestamp: DateTime<Utc>, bytes: &[u8]) {
        if let Some(open) = &mut self.open[index] {
            open.bytes.extend_from_slice(bytes);
            return;
        }
        self.open[index] = Some(Open { entry: self.entries.len(), bytes: bytes.to_vec() });
        self.entries.push(LogEntry {
            timestamp,
            stream,
            message: String::new(),
            source: LogSource::Container(self.id.clone()),
            service: Some(self.service.clone()),
            deployment: None,
        });
    }

    fn close(&mut self, index: usize) {
        let Some(open) = self.open[index].take() else { return };
        self.entries[open.entry].message = match String::from_utf8(open.bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        };
    }

    /// All entries, also of lines that have not ended (a prompt).
    pub fn finish(mut self) -> Vec<LogEntry> {
        self.close(0);
        self.close(1);
        self.entries
    }
}
