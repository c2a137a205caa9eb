//! Logs as the supervisor writes them, and as crashes leave them.

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::{FutureExt, StreamExt};
use proptest::prelude::*;
use runtime_core::{LogStream, LogsOptions};

use super::*;
use crate::error::Error;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

fn line(seconds: i64, kind: &str, text: &str) -> String {
    format!("{} {kind} {text}\n", runtime_core::time::format(&at(seconds)))
}

struct Log(tempfile::TempDir);

impl Log {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn append(&self, number: u64, text: &str) {
        let path = files::path(self.0.path(), number);
        fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn messages(&self, tail: usize) -> Vec<String> {
        let entries = read(self.0.path(), "web", "web-rep-0", tail).unwrap();
        entries.into_iter().map(|entry| entry.message).collect()
    }

    fn stream(&self, options: LogsOptions, over: impl Future<Output = ()> + Send + 'static) -> RecordStream {
        stream(self.0.path(), &options, over.map(Ok))
    }

    async fn texts(&self, options: LogsOptions) -> Vec<String> {
        let records = self.stream(options, std::future::pending());
        records.map(|record| String::from_utf8(record.unwrap().bytes).unwrap()).collect().await
    }
}

#[test]
fn lines_of_both_streams_and_all_files_come_in_the_order_they_began() {
    let log = Log::new();
    assert_eq!(log.messages(0), Vec::<String>::new());
    log.append(9, &(line(1, "stdout F", "a") + &line(4, "stderr F", "d")));
    log.append(10, &(line(2, "stdout F", "b") + &line(2, "stderr F", "c") + &line(5, "stdout F", "e")));
    fs::write(log.0.path().join("other.log"), "x").unwrap();
    fs::write(log.0.path().join("011.log"), line(9, "stdout F", "x")).unwrap();
    assert_eq!(log.messages(0), ["a", "b", "c", "d", "e"]);
    assert_eq!(log.messages(2), ["d", "e"]);
    assert_eq!(log.messages(usize::MAX), ["a", "b", "c", "d", "e"]);
    let entry = read(log.0.path(), "web", "web-rep-0", 1).unwrap().remove(0);
    assert_eq!((entry.timestamp, entry.stream), (at(5), LogStream::Stdout));
    assert_eq!(entry.source, runtime_core::LogSource::Container("web-rep-0".into()));
    assert_eq!(entry.service.as_deref(), Some("web"));
}

#[test]
fn pieces_are_joined_across_files_and_the_other_stream_and_keep_the_time_of_the_first() {
    let log = Log::new();
    log.append(0, &(line(1, "stdout P", "one ") + &line(2, "stderr F", "between") + &line(3, "stdout P", "and ")));
    log.append(1, &(line(4, "stdout F", "the same") + &line(5, "stdout P", "prompt> ")));
    assert_eq!(log.messages(0), ["one and the same", "between", "prompt> "]);
    assert_eq!(log.messages(2), ["between", "prompt> "]);
    assert_eq!(read(log.0.path(), "web", "web", 0).unwrap()[0].timestamp, at(1));
}

#[test]
fn a_line_longer_than_64_kib_is_several_entries() {
    let log = Log::new();
    let piece = "x".repeat(40 << 10);
    log.append(0, &(line(1, "stdout P", &piece) + &line(1, "stdout P", &piece) + &line(1, "stdout F", "end")));
    log.append(0, &line(2, "stdout F", &"y".repeat(200 << 10)));
    let lengths: Vec<usize> = log.messages(0).iter().map(String::len).collect();
    assert_eq!(lengths, [40 << 10, (40 << 10) + 3, 64 << 10, 64 << 10, 64 << 10, 8 << 10]);
    assert_eq!(log.messages(1), ["y".repeat(8 << 10)]);
}

#[test]
fn torn_lines_nonsense_and_bytes_that_are_no_utf8_do_no_harm() {
    let log = Log::new();
    log.append(0, &(line(1, "stdout F", "a") + "nonsense\n\n" + &line(1, "stdin F", "x") + "2026-11-25T03:21"));
    log.append(1, &(line(2, "stdout F", "b") + "2026-11-25T03:21:40.000000000Z stdout F tor"));
    assert_eq!(log.messages(0), ["a", "b"]);
    assert_eq!(log.messages(1), ["b"]);
    log.append(1, "n\n");
    assert_eq!(log.messages(0), ["torn", "a", "b"], "it is completed later");
    let path = files::path(log.0.path(), 2);
    fs::write(&path, [line(3, "stdout F", "").trim_end().as_bytes(), b" \xff\xfe", b"\n"].concat()).unwrap();
    assert_eq!(log.messages(1), ["\u{fffd}\u{fffd}"]);
    fs::write(&path, vec![b'x'; 9 << 20]).unwrap();
    log.append(2, &format!("\n{}", line(4, "stdout F", "after")));
    assert_eq!(log.messages(1), ["after"]);
    assert_eq!(log.messages(0).last().unwrap(), "after");
}

#[test]
fn what_was_dropped_ends_the_lines_of_both_streams() {
    let log = Log::new();
    log.append(
        0,
        &(line(1, "stderr P", "half ") + &line(2, "stdout F:dropped=10", "") + &line(3, "stderr F", "next line")),
    );
    assert_eq!(log.messages(0), ["half ", "next line"]);
    assert_eq!(log.messages(1), ["next line"]);
}

#[test]
fn what_was_dropped_ends_a_line_and_is_no_entry() {
    let log = Log::new();
    log.append(
        0,
        &(line(1, "stdout P", "before ") + &line(2, "stdout F:dropped=10", "") + &line(3, "stdout F", "after")),
    );
    assert_eq!(log.messages(0), ["before ", "after"]);
}

#[test]
fn a_tail_does_not_read_the_whole() {
    let log = Log::new();
    let mut text = line(0, "stderr F", "early");
    while text.len() < 32 << 20 {
        text += &line(1, "stdout F", &"x".repeat(1000));
    }
    log.append(0, &text);
    log.append(0, &line(2, "stdout F", "last"));
    let found = tail::locate(log.0.path(), 10).unwrap();
    assert!(found.start.offset > text.len() as u64 - 20_000, "{found:?}");
    assert_eq!(log.messages(1), ["last"]);
    // The lone record of a stream near the end is in the tail although what was before it lies far back.
    log.append(0, &line(2, "stderr F", "lone"));
    assert_eq!(log.messages(2), ["last", "lone"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_tail_is_the_end_of_the_whole(
        records in proptest::collection::vec((any::<bool>(), 0u8..4, 0usize..3000, 0u8..20), 0..300),
        tail in 1usize..400,
    ) {
        let log = Log::new();
        let mut number = 0;
        let mut text = String::new();
        for (n, (stderr, partial, len, rotate)) in records.iter().enumerate() {
            let kind = format!("{} {}", if *stderr { "stderr" } else { "stdout" }, if *partial == 0 { "P" } else { "F" });
            text += &line(n as i64, &kind, &format!("{n} {}", "z".repeat(*len)));
            if *rotate == 0 {
                log.append(number, &std::mem::take(&mut text));
                number += 1;
            }
        }
        log.append(number, &text);
        let all = log.messages(0);
        prop_assert_eq!(log.messages(tail), &all[all.len().saturating_sub(tail)..]);
    }
}

#[tokio::test]
async fn a_stream_chooses_by_time_tail_and_cursor() {
    let log = Log::new();
    for n in 0..10 {
        log.append(n / 4, &line(n as i64 * 60, if n % 3 == 0 { "stderr F" } else { "stdout F" }, &n.to_string()));
    }
    let none = LogsOptions::default;
    assert_eq!(log.texts(none()).await.len(), 10);
    assert_eq!(log.texts(LogsOptions { tail: Some(0), ..none() }).await, Vec::<String>::new());
    assert_eq!(log.texts(LogsOptions { tail: Some(3), ..none() }).await, ["7", "8", "9"]);
    let (since, until) = (Some(at(420)), Some(at(540)));
    assert_eq!(log.texts(LogsOptions { since, until, ..none() }).await, ["7", "8"]);
    assert_eq!(log.texts(LogsOptions { since, tail: Some(1), ..none() }).await, ["9"]);

    let mut records = log.stream(none(), std::future::pending());
    let cursor = loop {
        let record = records.next().await.unwrap().unwrap();
        if record.bytes == b"3" {
            break Some(record.cursor);
        }
    };
    assert_eq!(log.texts(LogsOptions { cursor: cursor.clone(), ..none() }).await, ["4", "5", "6", "7", "8", "9"]);
    fs::remove_file(files::path(log.0.path(), 0)).unwrap();
    fs::remove_file(files::path(log.0.path(), 1)).unwrap();
    // First, that something is missing.
    assert_eq!(log.texts(LogsOptions { cursor, ..none() }).await, ["", "8", "9"]);
    let mut wrong = log.stream(LogsOptions { cursor: Some("x".into()), ..none() }, std::future::pending());
    assert_eq!(wrong.next().await.unwrap().unwrap_err().code(), "spec.invalid");
    assert!(wrong.next().await.is_none());
}

#[tokio::test]
async fn who_does_not_follow_ends_where_the_log_ended_when_he_came() {
    let log = Log::new();
    for number in 0..20_000 {
        log.append(0, &line(number, "stdout F", "a line of some length, so that it is read in several pieces"));
    }
    let mut stream = log.stream(LogsOptions::default(), std::future::pending());
    stream.next().await.unwrap().unwrap();
    log.append(0, &line(20_000, "stdout F", "later"));
    log.append(1, &line(20_001, "stdout F", "later"));
    assert_eq!(stream.count().await, 19_999);
}

#[tokio::test]
async fn following_sees_each_line_once_across_rotation_and_ends_after_the_writer() {
    const LINES: u64 = 20_000;
    let log = Log::new();
    log.append(0, &line(0, "stdout F", "0"));
    let (over, done) = tokio::sync::oneshot::channel::<()>();
    let read = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (dir, read_so_far) = (log.0.path().to_owned(), read.clone());
    let writer = std::thread::spawn(move || {
        let mut file = fs::OpenOptions::new().append(true).open(files::path(&dir, 0)).unwrap();
        for n in 1..LINES {
            if n % 1000 == 0 {
                file = fs::File::create(files::path(&dir, n / 1000)).unwrap();
            }
            if n % 5000 == 0 {
                // What is removed was read: who reads too late is told so, which is another test.
                let old = n / 1000 - 5;
                while read_so_far.load(std::sync::atomic::Ordering::Relaxed) < (old + 1) * 1000 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                fs::remove_file(files::path(&dir, old)).unwrap();
            }
            let text = line(n as i64, "stdout F", &n.to_string());
            // In two writes now and then: a reader sees a torn line for a moment.
            let (head, rest) = text.split_at(if n % 7 == 0 { 20 } else { 0 });
            file.write_all(head.as_bytes()).unwrap();
            file.write_all(rest.as_bytes()).unwrap();
        }
        over.send(()).unwrap();
    });
    let options = LogsOptions { follow: true, ..LogsOptions::default() };
    let records: Vec<String> = log
        .stream(options, async { done.await.unwrap() })
        .map(|record| String::from_utf8(record.unwrap().bytes).unwrap())
        .inspect(|_| {
            read.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        })
        .collect()
        .await;
    writer.join().unwrap();
    assert_eq!(records, (0..LINES).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_follows_is_told_that_the_end_cannot_be_waited_for() {
    let log = Log::new();
    log.append(0, &line(1, "stdout F", "there"));
    let lost = std::future::ready(Err(Error::NoSuchContainer { id: "web".into() }));
    let options = LogsOptions { follow: true, ..LogsOptions::default() };
    let records: Vec<_> = stream(log.0.path(), &options, lost).collect().await;
    assert!(matches!(&records[..], [Ok(_), Err(Error::NoSuchContainer { .. })]), "{records:?}");
}

#[tokio::test]
async fn what_is_rotated_away_before_it_is_read_is_told() {
    let log = Log::new();
    log.append(0, &line(1, "stdout F", "first"));
    let mut records = log.stream(LogsOptions { follow: true, ..LogsOptions::default() }, std::future::pending());
    let first = records.next().await.unwrap().unwrap();
    assert_eq!((first.bytes.as_slice(), first.dropped_bytes), (&b"first"[..], 0));
    for number in 1..=4 {
        log.append(number, &line(2, "stderr F", "unread"));
    }
    for number in 0..=2 {
        fs::remove_file(files::path(log.0.path(), number)).unwrap();
    }
    let gap = records.next().await.unwrap().unwrap();
    assert_eq!((gap.bytes.len(), gap.dropped_bytes), (0, 2 * line(2, "stderr F", "unread").len() as u64));
    assert_eq!(records.next().await.unwrap().unwrap().bytes, b"unread");
    let old = LogsOptions { cursor: Some(first.cursor), ..LogsOptions::default() };
    let again: Vec<_> = log.stream(old, std::future::pending()).map(Result::unwrap).collect().await;
    assert!(again[0].dropped_bytes > 0 && again[1..].iter().all(|record| record.dropped_bytes == 0), "{again:?}");
    let rest = LogsOptions { cursor: Some(gap.cursor), ..LogsOptions::default() };
    assert_eq!(log.texts(rest).await, ["unread", "unread"]);
}

#[tokio::test]
async fn a_follower_is_told_at_once_and_ends_when_the_log_is_removed_or_its_time_is_up() {
    let log = Log::new();
    let options = LogsOptions { follow: true, tail: Some(0), ..LogsOptions::default() };
    log.append(0, &line(0, "stdout F", "old"));
    let mut records = log.stream(options.clone(), std::future::pending());
    let waiting = tokio::time::timeout(Duration::from_millis(50), records.next()).await;
    assert!(waiting.is_err(), "nothing is written, so nothing comes");
    log.append(0, &line(1, "stderr F", "new"));
    let soon = Duration::from_secs(5);
    let record = tokio::time::timeout(soon, records.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((record.bytes.as_slice(), record.stream), (&b"new"[..], LogStream::Stderr));
    fs::remove_dir_all(log.0.path()).unwrap();
    assert!(tokio::time::timeout(soon, records.next()).await.unwrap().is_none());

    let log = Log::new();
    let until = Some(Utc::now() + chrono::TimeDelta::milliseconds(100));
    let mut records = log.stream(LogsOptions { until, ..options }, std::future::pending());
    assert!(tokio::time::timeout(soon, records.next()).await.unwrap().is_none());
}
