//! What a container wrote.

use std::time::Duration;

use chrono::{TimeDelta, Utc};

use super::case::{Case, OrStop, Verdict, ensure, equal, texts, until_told};
use super::{Check, Workload, check};
use crate::LogStream::{Stderr, Stdout};
use crate::spec::LogMode;
use crate::{LogEntry, LogSource, LogStream};

/// Longest message of one entry; a longer line becomes several.
const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// How far the container's clock reading may lie off ours; both are the host's.
const CLOCK_SLACK: TimeDelta = TimeDelta::milliseconds(50);

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("logs.streams", "each line comes from its stream, in its stream's order", streams),
        check!("logs.source", "each line names its container", source),
        check!("logs.tail", "the last `tail` entries in time order over both streams; 0 = all", tail),
        check!("logs.not_utf8", "a byte that is not UTF-8 is replaced, its line is kept", not_utf8),
        check!("logs.no_newline", "a last line without a newline is kept; empty lines are lines", no_newline),
        check!("logs.timestamps", "time order, and the time is that of the writing, not of the reading", timestamps),
        check!("logs.apart", "lines written apart have times apart", apart),
        check!("logs.many", "nothing is lost when much is written", many),
        check!("logs.long_line", "a line of any length is kept, in pieces of up to 64 KiB", long_line),
        check!("logs.joined", "a line of up to 64 KiB is one entry, in however many pieces it was kept", joined),
        check!("logs.first_byte", "a line has the time at which its first byte arrived", first_byte),
        check!("logs.max_size", "all that is kept stays within its size, and it is the newest", max_size),
        check!(
            "logs.non_blocking",
            "a writer that is not held back loses nothing that can be kept up with",
            non_blocking
        ),
        check!("logs.after_exit", "the logs outlive the process", after_exit),
    ]
}

/// Runs what writes `chunks`, and returns its log of `count` entries.
async fn written(case: &Case, chunks: &[(LogStream, &[u8])], count: usize) -> Verdict<Vec<LogEntry>> {
    let chunks = chunks.iter().map(|(stream, bytes)| (*stream, bytes.to_vec())).collect();
    let id = case.start(&Workload::Write { chunks, code: 0 }).await?;
    equal("the exit code", &case.wait(&id).await?, &0)?;
    let logs = case.logs(&id, count).await?;
    ensure(logs.len() == count, || format!("the log has {}, not {count} entries", texts(&logs)))?;
    Ok(logs)
}

fn messages(logs: &[LogEntry], stream: LogStream) -> Vec<&str> {
    logs.iter().filter(|entry| entry.stream == stream).map(|entry| entry.message.as_str()).collect()
}

async fn streams(case: Case) -> Verdict {
    let chunks: [(LogStream, &[u8]); 5] =
        [(Stdout, b"o1\n"), (Stderr, b"e1\n"), (Stdout, b"o2\no"), (Stderr, b"e2\n"), (Stdout, b"3\n")];
    let logs = written(&case, &chunks, 5).await?;
    equal("stdout", &messages(&logs, Stdout), &vec!["o1", "o2", "o3"])?;
    equal("stderr", &messages(&logs, Stderr), &vec!["e1", "e2"])
}

async fn source(case: Case) -> Verdict {
    let id = case.start(&Workload::print("x\n")).await?;
    case.wait(&id).await?;
    for entry in case.logs(&id, 1).await? {
        equal("the source", &entry.source, &LogSource::Container(id.to_string()))?;
        let service = entry.service.as_deref();
        ensure(service.is_none_or(|service| service == id.service), || format!("the service is {service:?}"))?;
    }
    Ok(())
}

async fn tail(case: Case) -> Verdict {
    let text: String = (0..20).map(|n| format!("line {n}\n")).collect();
    let chunks = vec![(Stdout, text.into_bytes()), (Stderr, b"error 0\nerror 1\n".to_vec())];
    let id = case.start(&Workload::Write { chunks, code: 0 }).await?;
    case.wait(&id).await?;
    let all = case.logs(&id, 22).await?;
    equal("the number of entries", &all.len(), &22)?;
    for tail in [0, 1, 5, 21, 22, 23, 1000] {
        let found = case.runtime().container_logs(&id, tail).await.or_fail("container_logs")?;
        let wanted = if tail == 0 { &all[..] } else { &all[all.len().saturating_sub(tail)..] };
        ensure(found == wanted, || format!("tail {tail} is {}, the last of {}", texts(&found), texts(&all)))?;
    }
    Ok(())
}

async fn not_utf8(case: Case) -> Verdict {
    let chunks: [(LogStream, &[u8]); 1] = [(Stdout, b"a\xffb\n\xc3\xa9\n\xe2\x82\nend\n")];
    let logs = written(&case, &chunks, 4).await?;
    equal("the lines", &messages(&logs, Stdout), &vec!["a\u{fffd}b", "é", "\u{fffd}", "end"])
}

async fn no_newline(case: Case) -> Verdict {
    let chunks: [(LogStream, &[u8]); 2] = [(Stdout, b"first\n\n\nlast"), (Stderr, b"error")];
    let logs = written(&case, &chunks, 5).await?;
    equal("stdout", &messages(&logs, Stdout), &vec!["first", "", "", "last"])?;
    equal("stderr", &messages(&logs, Stderr), &vec!["error"])
}

async fn timestamps(case: Case) -> Verdict {
    let before = Utc::now();
    let id = case.start_ready(&Workload::ReportSignals).await?;
    let seen = Utc::now();
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..2 {
        let time = case.line(&id, "ready").await?.timestamp;
        ensure(before - CLOCK_SLACK <= time && time <= seen + CLOCK_SLACK, || {
            format!("a line written between {before} and {seen} has the time {time}")
        })?;
    }
    Ok(())
}

async fn apart(case: Case) -> Verdict {
    let script = format!("echo one; {}; echo two >&2; {}; echo three", until_told(1), until_told(2));
    let id = case.start(&Workload::Script(script)).await?;
    for (number, line) in [(1, "one"), (2, "two")] {
        case.line(&id, line).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        case.tell(&id, number).await?;
    }
    case.wait(&id).await?;
    let logs = case.logs(&id, 3).await?;
    let found: Vec<&str> = logs.iter().map(|entry| entry.message.as_str()).collect();
    equal("the lines of both streams in time order", &found, &vec!["one", "two", "three"])?;
    for pair in logs.windows(2) {
        let gap = pair[1].timestamp - pair[0].timestamp;
        ensure(gap >= TimeDelta::seconds(1), || format!("lines written a second apart have times {gap} apart"))?;
    }
    Ok(())
}

async fn many(case: Case) -> Verdict {
    let script = "i=0; while [ $i -lt 3000 ]; do echo $i; echo e$i >&2; i=$((i+1)); done".to_owned();
    let id = case.start(&Workload::Script(script)).await?;
    case.wait(&id).await?;
    let logs = case.logs(&id, 6000).await?;
    let is_numbered = |stream, prefix: &str| {
        let lines = messages(&logs, stream);
        lines.len() == 3000 && lines.iter().enumerate().all(|(n, line)| *line == format!("{prefix}{n}"))
    };
    ensure(is_numbered(Stdout, "") && is_numbered(Stderr, "e"), || format!("the log has {}", texts(&logs)))?;
    let ordered = logs.windows(2).all(|pair| pair[0].timestamp <= pair[1].timestamp);
    ensure(ordered, || "the entries are not in time order".to_owned())
}

async fn long_line(case: Case) -> Verdict {
    let script = "s=x; i=0; while [ $i -lt 18 ]; do s=$s$s; i=$((i+1)); done; echo $s; echo end".to_owned();
    let id = case.start(&Workload::Script(script)).await?;
    case.wait(&id).await?;
    case.line(&id, "end").await?;
    let logs = case.runtime().get_logs(&id).await.or_fail("get_logs")?;
    let (end, pieces) = logs.split_last().ok_or_else(|| super::Stop::Failed("the log is empty".to_owned()))?;
    equal("the last line", &end.message.as_str(), &"end")?;
    let longest = pieces.iter().map(|piece| piece.message.len()).max().unwrap_or(0);
    ensure(longest <= MAX_MESSAGE_BYTES, || format!("an entry has {longest} bytes"))?;
    let text: String = pieces.iter().map(|piece| piece.message.as_str()).collect();
    let intact = text.len() == 1 << 18 && text.bytes().all(|byte| byte == b'x');
    ensure(intact, || format!("a line of {} bytes came back as {} bytes", 1 << 18, text.len()))
}

async fn joined(case: Case) -> Verdict {
    let script = "s=abcdefgh; i=0; while [ $i -lt 12 ]; do s=$s$s; i=$((i+1)); done; echo $s; echo ${s}y; echo end";
    let id = case.start(&Workload::Script(script.to_owned())).await?;
    case.wait(&id).await?;
    case.line(&id, "end").await?;
    let logs = case.runtime().get_logs(&id).await.or_fail("get_logs")?;
    let line = "abcdefgh".repeat(1 << 12);
    let wanted = [line.clone(), line + "y", "end".to_owned()];
    let found: Vec<&String> = logs.iter().map(|entry| &entry.message).collect();
    ensure(found == wanted.iter().collect::<Vec<_>>(), || {
        let lengths: Vec<usize> = found.iter().map(|line| line.len()).collect();
        format!("lines of 32,768, 32,769 and 3 bytes came back as entries of {lengths:?}")
    })
}

async fn first_byte(case: Case) -> Verdict {
    let script = format!("echo before; printf begun; {}; echo ' and ended'; echo after", until_told(1));
    let id = case.start(&Workload::Script(script)).await?;
    case.line(&id, "before").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = Utc::now();
    case.tell(&id, 1).await?;
    case.wait(&id).await?;
    let logs = case.logs(&id, 3).await?;
    let found: Vec<&str> = logs.iter().map(|entry| entry.message.as_str()).collect();
    equal("the lines", &found, &vec!["before", "begun and ended", "after"])?;
    let begun = logs[1].timestamp;
    ensure(begun < told, || format!("begun at once and ended after {told} it has the time {begun}"))
}

async fn max_size(case: Case) -> Verdict {
    const KEPT: usize = 1 << 20;
    let script = "s=x; i=0; while [ $i -lt 10 ]; do s=$s$s; i=$((i+1)); done; i=0; \
                  while [ $i -lt 4000 ]; do echo $s; i=$((i+1)); done; echo end";
    let mut spec = case.script(script)?;
    spec.logs.max_size_bytes = Some(KEPT as u64);
    let id = case.start_spec(&spec).await?;
    case.wait(&id).await?;
    case.line(&id, "end").await?;
    let logs = case.runtime().get_logs(&id).await.or_fail("get_logs")?;
    let kept: usize = logs.iter().map(|entry| entry.message.len() + 1).sum();
    // One of its files may be about to go.
    ensure((KEPT / 4..KEPT * 5 / 4).contains(&kept), || {
        format!("of 4 MiB {kept} bytes are kept, and {KEPT} are allowed")
    })
}

async fn non_blocking(case: Case) -> Verdict {
    let mut spec = case.script("i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); done; printf unended")?;
    spec.logs.mode = Some(LogMode::NonBlocking);
    let id = case.start_spec(&spec).await?;
    case.wait(&id).await?;
    let logs = case.logs(&id, 101).await?;
    let wanted: Vec<String> = (0..100).map(|n| n.to_string()).chain(["unended".to_owned()]).collect();
    equal("the lines", &messages(&logs, Stdout), &wanted.iter().map(String::as_str).collect())
}

async fn after_exit(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    let logs = case.logs(&id, 1).await?;
    equal("the lines", &messages(&logs, Stdout), &vec!["ready"])
}
