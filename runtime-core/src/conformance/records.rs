//! The log as a stream of records.

use chrono::{DateTime, Utc};
use futures_util::StreamExt;

use super::case::{Case, OrStop, Verdict, ensure, equal, until_told, within};
use super::{Check, Workload, check};
use crate::LogStream::{Stderr, Stdout};
use crate::{ContainerId, LogRecord, LogsOptions};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("logs_stream.records", "the records are the log, and a cursor goes on where it points", logs_stream),
        check!("logs_stream.follow", "followed, it goes on until the container is over", follow),
        check!("logs_stream.tail", "only the last so many lines", tail),
        check!("logs_stream.times", "only records at or after `since`, and before `until`", times),
        check!("logs_stream.partial", "the pieces of a long line are flagged but for the last", partial),
    ]
}

async fn records(case: &Case, id: &ContainerId, options: &LogsOptions) -> Verdict<Vec<LogRecord>> {
    let stream = case.runtime().logs_stream(id, options).await.or_unsupported("logs_stream")?;
    let records = within("the records", case.soon(), stream.collect::<Vec<_>>()).await?;
    records.into_iter().collect::<crate::Result<_>>().or_fail("logs_stream")
}

fn texts(records: &[LogRecord]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8_lossy(&record.bytes).into_owned()).collect()
}

async fn logs_stream(case: Case) -> Verdict {
    let chunks = vec![(Stdout, b"one\n\xff\n".to_vec()), (Stderr, b"three\n".to_vec()), (Stdout, b"end".to_vec())];
    let id = case.start(&Workload::Write { chunks, code: 0 }).await?;
    case.wait(&id).await?;
    let logs = case.logs(&id, 4).await?;
    let all = records(&case, &id, &LogsOptions::default()).await?;
    let lossy = |record: &LogRecord| (record.timestamp, String::from_utf8_lossy(&record.bytes).into_owned());
    let wanted: Vec<_> = logs.iter().map(|entry| (entry.timestamp, entry.message.clone())).collect();
    let mut found: Vec<_> = all.iter().map(lossy).collect();
    found.sort();
    let mut sorted = wanted.clone();
    sorted.sort();
    equal("the records", &found, &sorted)?;
    ensure(all.iter().any(|record| record.bytes == b"\xff"), || "the bytes are not those written".to_owned())?;
    let rest = LogsOptions { cursor: all.get(1).map(|record| record.cursor.clone()), ..LogsOptions::default() };
    equal("the records from the second one's cursor", &records(&case, &id, &rest).await?, &all[2..].to_vec())
}

async fn follow(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "TERM", code: 0 }).await?;
    let options = LogsOptions { follow: true, ..LogsOptions::default() };
    let mut stream = case.runtime().logs_stream(&id, &options).await.or_unsupported("logs_stream")?;
    let first = within("the first record", case.soon(), stream.next()).await?;
    ensure(matches!(&first, Some(Ok(record)) if record.bytes == b"ready"), || format!("it begins with {first:?}"))?;
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), stream.next()).await;
    ensure(early.is_err(), || format!("while the container runs on it has {early:?}"))?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    let end = within("the end of the stream", case.soon(), stream.next()).await?;
    ensure(end.is_none(), || format!("after the container's end it has {end:?}"))
}

async fn tail(case: Case) -> Verdict {
    let text: String = (0..20).map(|n| format!("line {n}\n")).collect();
    let id = case.start(&Workload::print(&text)).await?;
    case.wait(&id).await?;
    let all = texts(&records(&case, &id, &LogsOptions::default()).await?);
    equal("the number of records", &all.len(), &20)?;
    for count in [1, 5, 20, 21] {
        let options = LogsOptions { tail: Some(count), ..LogsOptions::default() };
        let found = texts(&records(&case, &id, &options).await?);
        equal(&format!("the last {count}"), &found, &all[20 - count.min(20)..].to_vec())?;
    }
    Ok(())
}

async fn times(case: Case) -> Verdict {
    let script = format!("echo 1; {}; echo 2; {}; echo 3", until_told(1), until_told(2));
    let id = case.start(&Workload::Script(script)).await?;
    for number in [1, 2] {
        case.line(&id, &number.to_string()).await?;
        case.tell(&id, number).await?;
    }
    case.wait(&id).await?;
    let all = records(&case, &id, &LogsOptions::default()).await?;
    equal("the records", &texts(&all), &["1", "2", "3"].map(str::to_owned).to_vec())?;
    let between = async |since: Option<DateTime<Utc>>, until: Option<DateTime<Utc>>| -> Verdict<String> {
        let options = LogsOptions { since, until, ..LogsOptions::default() };
        Ok(texts(&records(&case, &id, &options).await?).concat())
    };
    let second = all[1].timestamp;
    equal("since the second", &between(Some(second), None).await?.as_str(), &"23")?;
    equal("until the second", &between(None, Some(second)).await?.as_str(), &"1")?;
    equal("since the second until the third", &between(Some(second), Some(all[2].timestamp)).await?.as_str(), &"2")
}

async fn partial(case: Case) -> Verdict {
    let script = "s=x; i=0; while [ $i -lt 18 ]; do s=$s$s; i=$((i+1)); done; echo $s; echo end";
    let id = case.start(&Workload::Script(script.to_owned())).await?;
    case.wait(&id).await?;
    let all = records(&case, &id, &LogsOptions::default()).await?;
    let (end, pieces) = all.split_last().ok_or_else(|| super::Stop::Failed("there are no records".to_owned()))?;
    equal("the last record", &(end.bytes.as_slice(), end.partial), &(b"end".as_slice(), false))?;
    equal("the bytes of the long line", &pieces.iter().map(|piece| piece.bytes.len()).sum(), &(1_usize << 18))?;
    let flags: Vec<bool> = pieces.iter().map(|piece| piece.partial).collect();
    let wanted: Vec<bool> = (1..=pieces.len()).map(|n| n < pieces.len()).collect();
    equal("the flags of its pieces", &flags, &wanted)
}
