//! Reading what a container wrote. The writer is its supervisor.
//!
//! ```text
//! containers/<id>/logs/
//!   7.log 8.log … 16.log     numbered from 0; the highest is being appended to, by one attempt after the other
//! ```
//! Rotation opens the next number and unlinks the lowest: a file never changes its name or its number its file, so
//! `<number>:<offset>` names a place for good, and a reader that holds a file open loses nothing of it. Lines are in
//! the CRI format ([`mod@line`]). Whole lines are read only: a torn last line is left until its rest comes, and skipped
//! when that can no longer be, because the writer is over or has gone on to the next file.

mod files;
mod follow;
mod join;
pub(crate) mod line;
mod reader;
mod tail;

use std::path::Path;

use runtime_core::LogEntry;

use crate::error::Result;
use join::Joiner;
use reader::LineReader;

pub(crate) use follow::{RecordStream, stream};

/// Lines more than asked for that [`read`] looks at: of two streams, lines lie in the file by the time they were
/// *complete*, are ordered by the time they *began*, and a slow one may so belong before some that lie before it.
const ORDER_SLACK_LINES: usize = 64;

/// The last `tail` entries of container `id`, 0 for all, in time order over both streams; those of one time in the
/// order they were written. A line is one entry, joined from its pieces, cut at 64 KiB. What was dropped is no entry;
/// [`stream`] tells of it. Finds the tail from the end backwards. Blocks.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io). Lines that are not in the format are skipped and counted in a warning.
pub(crate) fn read(dir: &Path, service: &str, id: &str, tail: usize) -> Result<Vec<LogEntry>> {
    let (start, mut joiner) = match tail {
        0 => (files::oldest(dir)?, Joiner::new(service, id)),
        _ => {
            let found = tail::locate(dir, tail.saturating_add(ORDER_SLACK_LINES))?;
            (found.start, Joiner::starting_at(service, id, found))
        }
    };
    let mut reader = LineReader::new(dir, start).ending_at(files::end(dir)?);
    while reader.advance(|here, _next, line| joiner.add(here, line))? {}
    reader.report_malformed(joiner.malformed);
    let mut entries = joiner.finish();
    // Stable: what began at one instant stays as it was written.
    entries.sort_by_key(|entry| entry.timestamp);
    if tail != 0 && entries.len() > tail {
        entries.drain(..entries.len() - tail);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
