//! Records as they come.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use chrono::Utc;
use futures_core::Stream;
use runtime_core::{LogRecord, LogStream, LogsOptions};

use super::files::{self, Position};
use super::line;
use super::reader::LineReader;
use super::tail;
use crate::dir_watch::DirWatch;
use crate::error::{Error, Result};

/// What [`stream`] gives.
pub(crate) type RecordStream = Pin<Box<dyn Stream<Item = Result<LogRecord>> + Send>>;

/// The records that `options` asks for, in the order of the file. With `follow` it goes on, told by inotify, until
/// `over` (the writer is done) or `until` is reached, and then to the end of what was written; else it ends at once
/// there. Nothing polls; files are read off the runtime's workers. Without `cursor`, `tail` counts lines from the end
/// as it is at the start, before `since` and `until` choose among them.
///
/// Dropping the stream ends it; the cursor of the last record goes on exactly there. What was rotated away before it was
/// read, behind a slow reader or an old cursor, is a record of about so many dropped bytes.
///
/// # Errors
/// As items, after which it ends: [`Error::InvalidSpec`] for a cursor that is none, [`Error::Io`], and that of `over`.
pub(crate) fn stream(
    dir: &Path,
    options: &LogsOptions,
    over: impl Future<Output = Result<()>> + Send + 'static,
) -> RecordStream {
    let state = State {
        dir: dir.to_owned(),
        options: options.clone(),
        over: Box::pin(over),
        last_round: !options.follow,
        watch: None,
        filter: None,
        ready: VecDeque::new(),
    };
    Box::pin(futures_util::stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        match state.next().await {
            Ok(Some(record)) => Some((Ok(record), Some(state))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    }))
}

struct State {
    dir: PathBuf,
    options: LogsOptions,
    over: Pin<Box<dyn Future<Output = Result<()>> + Send>>,
    /// Nothing will be written any more: the end of the file is the end.
    last_round: bool,
    watch: Option<DirWatch>,
    /// `None` until begun, and while a read is under way.
    filter: Option<Filter>,
    ready: VecDeque<LogRecord>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("dir", &self.dir).field("options", &self.options).finish_non_exhaustive()
    }
}

impl State {
    async fn next(&mut self) -> Result<Option<LogRecord>> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Ok(Some(record));
            }
            if self.options.follow && self.watch.is_none() {
                // Before the first read, so that nothing written after it goes unnoticed.
                self.watch = Some(DirWatch::new(&self.dir)?);
            }
            if self.read_on().await? || !self.ready.is_empty() {
                continue;
            }
            if self.last_round {
                return Ok(None);
            }
            self.wait().await?;
        }
    }

    /// Reads some more; false at the end of what is there.
    async fn read_on(&mut self) -> Result<bool> {
        let (dir, options, filter) = (self.dir.clone(), self.options.clone(), self.filter.take());
        let read = tokio::task::spawn_blocking(move || {
            let mut filter = match filter {
                Some(filter) => filter,
                None => Filter::begin(&dir, options)?,
            };
            let mut records = VecDeque::new();
            let more = filter.read(&mut records)?;
            Ok::<_, Error>((filter, records, more))
        });
        let (filter, records, more) = read.await.map_err(Error::ThreadLost)??;
        self.filter = Some(filter);
        self.ready = records;
        Ok(more)
    }

    /// Until there may be more, or there will be no more.
    async fn wait(&mut self) -> Result<()> {
        let Some(watch) = &self.watch else { return Ok(()) };
        let left = self.options.until.map(|until| (until - Utc::now()).to_std().unwrap_or_default());
        let until = async move {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = watch.changed(|_| ()) => self.last_round = !changed?,
            over = &mut self.over => {
                over?;
                self.last_round = true;
            }
            () = until => self.last_round = true,
        }
        Ok(())
    }
}

/// Reads records and keeps those that are asked for.
#[derive(Debug)]
struct Filter {
    options: LogsOptions,
    reader: LineReader,
    /// Records of a stream (stdout, stderr) before this are not wanted.
    from: [Option<Position>; 2],
}

impl Filter {
    fn begin(dir: &Path, options: LogsOptions) -> Result<Self> {
        let (start, from) = match (&options.cursor, options.tail, options.since) {
            (Some(cursor), ..) => (cursor.parse()?, [None; 2]),
            (None, Some(tail), _) => {
                let found = tail::locate(dir, tail)?;
                (found.start, found.from.map(Some))
            }
            (None, None, Some(since)) => (files::before(dir, since)?, [None; 2]),
            (None, None, None) => (files::oldest(dir)?, [None; 2]),
        };
        let reader = LineReader::new(dir, start);
        let reader = if options.follow { reader } else { reader.ending_at(files::end(dir)?) };
        Ok(Self { reader, options, from })
    }

    fn read(&mut self, into: &mut VecDeque<LogRecord>) -> Result<bool> {
        let (mut malformed, options, from) = (0, &self.options, &self.from);
        let more = self.reader.advance(|here, next, bytes| {
            let Some(line) = line::parse(bytes) else {
                malformed += 1;
                return;
            };
            if from[line.stream as usize].is_some_and(|from| here < from)
                || options.since.is_some_and(|since| line.timestamp < since)
                || options.until.is_some_and(|until| line.timestamp >= until)
            {
                return;
            }
            into.push_back(LogRecord {
                timestamp: line.timestamp,
                stream: line.stream,
                bytes: line.text.to_vec(),
                partial: line.partial,
                dropped_bytes: line.dropped_bytes,
                cursor: next.to_string(),
            });
        })?;
        self.reader.report_malformed(malformed);
        if let Some((dropped_bytes, at)) = self.reader.take_lost() {
            into.push_front(LogRecord {
                timestamp: into.front().map_or_else(Utc::now, |next| next.timestamp),
                stream: LogStream::Stdout,
                bytes: Vec::new(),
                partial: false,
                dropped_bytes,
                cursor: at.to_string(),
            });
        }
        Ok(more)
    }
}
