//! The journal of events, appended to by every process of a root: agents, commands and supervisors.
//!
//! ```text
//! <run>/events/
//!   lock             shared by who writes or looks, exclusive for a rotation
//!   current.jsonl    {"first":N}, then one event a line: the line's place is its number
//!   previous.jsonl   what was current before, until the next rotation
//! ```
//! A line is one write at the end of the file, which the kernel does in some order: that order is the events'. So a
//! writer waits for nobody, and one that dies leaves a whole line or none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_core::Stream;
use runtime_core::{Event, EventsOptions};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::dir_watch::DirWatch;
use crate::error::{Error, Result};

/// Size at which a file is followed by the next: some 20,000 events, and at least as many are kept.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Longest text of an event: what an error says may be long.
const MAX_DETAIL_BYTES: usize = 1024;

/// For others to be done with it: they write a line, or begin a file.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);
/// Between two tries.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A root's journal.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    dir: PathBuf,
    max_file_bytes: u64,
}

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// Number of the event in the next line.
    first: u64,
}

impl Journal {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), max_file_bytes: MAX_FILE_BYTES }
    }

    /// Puts `event` down. An event that cannot be is logged: what happened has happened.
    pub fn put(&self, mut event: Event) {
        if let Some(detail) = &mut event.detail {
            detail.truncate(detail.floor_char_boundary(MAX_DETAIL_BYTES));
        }
        if let Err(error) = self.append(&event) {
            tracing::warn!(error = error.chain(), kind = ?event.kind, "an event is not in the journal");
        }
    }

    fn append(&self, event: &Event) -> Result<()> {
        let failed = || Error::io("writing to", self.current());
        let mut line = serde_json::to_vec(event).map_err(|error| failed()(error.into()))?;
        line.push(b'\n');
        loop {
            // Of a file that is there a line is one write, also without it: better that than no event.
            let lock = match self.lock(FlockOperation::NonBlockingLockShared) {
                Err(_) if self.current().exists() => None,
                lock => Some(lock?),
            };
            match OpenOptions::new().append(true).open(self.current()) {
                Ok(mut file) => {
                    file.write_all(&line).map_err(failed())?;
                    if file.metadata().map_err(failed())?.len() <= self.max_file_bytes {
                        return Ok(());
                    }
                    drop(lock);
                    // Whoever reads or writes just now may be stopped: the next event tries again.
                    return match self.try_lock(FlockOperation::NonBlockingLockExclusive)? {
                        Some(lock) => self.rotate(&lock),
                        None => Ok(()),
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    drop(lock);
                    self.rotate(&self.lock(FlockOperation::NonBlockingLockExclusive)?)?;
                }
                Err(error) => return Err(failed()(error)),
            }
        }
    }

    /// Begins the next file, unless somebody has.
    fn rotate(&self, _lock: &File) -> Result<()> {
        let (current, previous) = (self.current(), self.dir.join("previous.jsonl"));
        match fs::metadata(&current) {
            Ok(metadata) if metadata.len() <= self.max_file_bytes => return Ok(()),
            Ok(_) => fs::rename(&current, &previous).map_err(Error::io("renaming", &current))?,
            Err(_) => {}
        }
        // Whoever renamed it may have died before he began the next.
        let first = match fs::read(&previous) {
            Ok(bytes) => head(&bytes).map_or(1, |head| head.first + lines(&bytes).saturating_sub(1)),
            Err(_) => 1,
        };
        let mut line =
            serde_json::to_vec(&Head { first }).map_err(|error| Error::io("writing", &current)(error.into()))?;
        line.push(b'\n');
        crate::record::write_bytes(&current, &line)
    }

    fn current(&self) -> PathBuf {
        self.dir.join("current.jsonl")
    }

    /// Waits for nobody who is stopped while he has it: a supervisor that tells an event has a container to serve.
    fn lock(&self, kind: FlockOperation) -> Result<File> {
        let begin = Instant::now();
        loop {
            if let Some(lock) = self.try_lock(kind)? {
                return Ok(lock);
            }
            if begin.elapsed() > LOCK_PATIENCE {
                let held = io::Error::new(io::ErrorKind::WouldBlock, "somebody else has it, and keeps it");
                return Err(Error::io("locking", self.dir.join("lock"))(held));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// `None` where somebody has it.
    fn try_lock(&self, kind: FlockOperation) -> Result<Option<File>> {
        let path = self.dir.join("lock");
        let open = || OpenOptions::new().create(true).write(true).truncate(false).open(&path);
        let file = open().or_else(|_| fs::create_dir_all(&self.dir).and_then(|()| open()));
        let file = file.map_err(Error::io("opening", &path))?;
        match flock(&file, kind) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(Error::io("locking", &path)(error.into())),
        }
    }

    /// The events that `options` asks for; with `follow` without end, told by inotify.
    pub fn stream(&self, options: &EventsOptions) -> impl Stream<Item = Result<Event>> + Send + use<> {
        let state = Following {
            reader: Reader { journal: self.clone(), files: Vec::new(), begun: false },
            options: options.clone(),
            watch: None,
            ready: Vec::new().into_iter(),
            over: false,
        };
        futures_util::stream::unfold(Some(state), |state| async move {
            let mut state = state?;
            match state.next().await {
                Ok(Some(event)) => Some((Ok(event), Some(state))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

struct Following {
    reader: Reader,
    options: EventsOptions,
    watch: Option<DirWatch>,
    ready: std::vec::IntoIter<Event>,
    over: bool,
}

impl Following {
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.ready.by_ref().find(|event| wanted(event, &self.options)) {
                return Ok(Some(event));
            }
            if self.over {
                return Ok(None);
            }
            if self.options.follow && self.watch.is_none() {
                // Before the first read, so that nothing written after it goes unnoticed.
                let dir = &self.reader.journal.dir;
                fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
                self.watch = Some(DirWatch::new(&self.reader.journal.dir)?);
            } else if let Some(watch) = self.watch.as_ref().filter(|_| self.reader.begun) {
                self.over = !watch.changed(|_| ()).await?;
            }
            let mut reader = std::mem::replace(&mut self.reader, Reader::empty());
            let read = tokio::task::spawn_blocking(move || reader.read().map(|events| (reader, events)));
            let (reader, events) = read.await.map_err(Error::ThreadLost)??;
            (self.reader, self.ready) = (reader, events.into_iter());
            self.over |= !self.options.follow;
        }
    }
}

fn wanted(event: &Event, options: &EventsOptions) -> bool {
    let since: Option<DateTime<Utc>> = options.since;
    options.after.is_none_or(|after| event.number > after) && since.is_none_or(|since| event.time >= since)
}

/// Reads on where it left off.
#[derive(Debug)]
struct Reader {
    journal: Journal,
    /// The oldest first; only the last is still written to.
    files: Vec<Open>,
    begun: bool,
}

/// A file that is read.
#[derive(Debug)]
struct Open {
    file: File,
    /// The number of the next line, once the first was read.
    next: Option<u64>,
    /// The beginning of a line.
    carried: Vec<u8>,
}

impl Reader {
    fn empty() -> Self {
        Self { journal: Journal::new(""), files: Vec::new(), begun: false }
    }

    fn read(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        if !self.begun {
            let _lock = self.journal.lock(FlockOperation::NonBlockingLockShared)?;
            for name in ["previous.jsonl", "current.jsonl"] {
                self.files.extend(open(&self.journal.dir.join(name))?);
            }
            self.begun = true;
        }
        loop {
            for file in &mut self.files {
                file.read(&mut events).map_err(Error::io("reading", &self.journal.dir))?;
            }
            self.files.drain(..self.files.len().saturating_sub(1));
            // Whether it was rotated away is seen at the next change.
            let Ok(lock) = self.journal.lock(FlockOperation::NonBlockingLockShared) else { return Ok(events) };
            let current = open(&self.journal.current())?;
            drop(lock);
            let id = |file: &Open| file.file.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
            match current {
                // It was rotated away: what is left in it, then the next.
                Some(current) if self.files.last().and_then(id) != id(&current) => self.files.push(current),
                _ => return Ok(events),
            }
        }
    }
}

fn open(path: &Path) -> Result<Option<Open>> {
    match File::open(path) {
        Ok(file) => Ok(Some(Open { file, next: None, carried: Vec::new() })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("opening", path)(error)),
    }
}

impl Open {
    fn read(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        self.file.read_to_end(&mut self.carried)?;
        let whole = memchr::memrchr(b'\n', &self.carried).map_or(0, |end| end + 1);
        for line in self.carried[..whole].split_inclusive(|byte| *byte == b'\n') {
            match self.next {
                None => self.next = Some(head(line).map_or(1, |head| head.first)),
                Some(number) => {
                    self.next = Some(number + 1);
                    // One that is no event, as after a full disk, still has its number.
                    events.extend(serde_json::from_slice(line).ok().map(|event| Event { number, ..event }));
                }
            }
        }
        self.carried.drain(..whole);
        Ok(())
    }
}

fn head(bytes: &[u8]) -> Option<Head> {
    serde_json::from_slice(bytes.split(|byte| *byte == b'\n').next()?).ok()
}

fn lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use runtime_core::EventKind;

    use super::*;

    async fn all(journal: &Journal, options: EventsOptions) -> Vec<Event> {
        journal.stream(&options).map(|event| event.unwrap()).collect().await
    }

    #[tokio::test]
    async fn who_is_stopped_as_he_reads_or_writes_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal { dir: dir.path().join("events"), max_file_bytes: 1000 };
        journal.put(Event::now(EventKind::Create));
        let stopped = journal.lock(FlockOperation::NonBlockingLockShared).unwrap();
        let begin = Instant::now();
        (0..100).for_each(|_| journal.put(Event::now(EventKind::Create)));
        assert!(begin.elapsed() < Duration::from_secs(10), "100 events took {:?}", begin.elapsed());
        drop(stopped);
        journal.put(Event::now(EventKind::Create));
        assert!(journal.dir.join("previous.jsonl").exists(), "it is never rotated");
        assert_eq!(all(&journal, EventsOptions::default()).await.last().map(|event| event.number), Some(102));
        let stopped = journal.lock(FlockOperation::NonBlockingLockExclusive).unwrap();
        journal.put(Event::now(EventKind::Create));
        drop(stopped);
        assert_eq!(all(&journal, EventsOptions::default()).await.last().map(|event| event.number), Some(103));
    }

    #[tokio::test]
    async fn events_are_numbered_across_rotation_and_a_cursor_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal { dir: dir.path().join("events"), max_file_bytes: 3000 };
        assert_eq!(all(&journal, EventsOptions::default()).await, []);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let journal = journal.clone();
                std::thread::spawn(move || {
                    (0..25).for_each(|n| journal.put(Event::now(EventKind::Create).of(format!("{thread}-{n}"))));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let kept = all(&journal, EventsOptions::default()).await;
        let numbers: Vec<u64> = kept.iter().map(|event| event.number).collect();
        assert_eq!(numbers.last(), Some(&100));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1) && numbers.len() >= 15, "{numbers:?}");
        let rest = all(&journal, EventsOptions { after: Some(98), ..EventsOptions::default() }).await;
        assert_eq!(rest.iter().map(|event| event.number).collect::<Vec<_>>(), [99, 100]);
        let none = EventsOptions { since: Some(Utc::now()), ..EventsOptions::default() };
        assert_eq!(all(&journal, none).await, []);
    }

    #[tokio::test]
    async fn a_follower_misses_nothing_across_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal { dir: dir.path().join("events"), max_file_bytes: 2000 };
        let stream = journal.stream(&EventsOptions { follow: true, ..EventsOptions::default() });
        let writer = journal.clone();
        let (told, mut read) = tokio::sync::watch::channel(0);
        let writing = tokio::spawn(async move {
            for n in 0..60 {
                writer.put(Event::now(EventKind::Exit).saying(n.to_string()));
                // Who is behind by more than a file misses what was in it.
                read.wait_for(|read| *read + 5 >= n).await.unwrap();
            }
        });
        let seen = stream.take(60).map(|event| event.unwrap()).inspect(|_| told.send_modify(|read| *read += 1));
        let seen: Vec<Event> = seen.collect().await;
        writing.await.unwrap();
        assert_eq!(seen.iter().map(|event| event.number).collect::<Vec<_>>(), (1..=60).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_line_that_is_no_event_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        journal.put(Event::now(EventKind::Create));
        let mut file = OpenOptions::new().append(true).open(journal.current()).unwrap();
        file.write_all(b"\xff{\n{\"number\":1}\n").unwrap();
        journal.put(Event::now(EventKind::Remove).saying("ä".repeat(MAX_DETAIL_BYTES)));
        let kept = all(&journal, EventsOptions::default()).await;
        assert_eq!(kept.iter().map(|event| event.number).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(kept[1].detail.as_ref().unwrap().len(), MAX_DETAIL_BYTES);
    }
}
