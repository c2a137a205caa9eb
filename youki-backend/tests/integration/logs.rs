//! Logs: both streams, whole, in order, dated when written.

use std::time::Duration;

use runtime_core::{LogSource, LogStream};

use crate::support::Case;
use crate::support::case::{seen_root, shortly};

crate::tests![
    both_streams_are_kept_apart_and_each_in_order,
    tail_gives_the_last_entries_over_both_streams,
    a_line_is_dated_when_it_was_written,
    bytes_that_are_no_utf8_are_replaced_and_lose_nothing_else,
    the_last_line_needs_no_newline,
    a_long_line_is_joined_up_to_64_kib,
    a_hundred_thousand_lines_are_all_there,
    lines_are_there_while_the_container_runs,
    old_lines_go_when_the_limit_is_reached_and_the_newest_stay,
    empty_lines_are_lines,
];

async fn both_streams_are_kept_apart_and_each_in_order(case: Case) {
    let script = "i=0; while [ $i -lt 50 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let id = case.start(&case.script(script).await).await;
    let finished = case.finish(&id).await;
    let expected = |word: &str| (0..50).map(|i| format!("{word} {i}")).collect::<Vec<_>>();
    assert_eq!(finished.stdout, expected("out"));
    assert_eq!(finished.stderr, expected("err"));
    let entries = case.runtime.get_logs(&id).await.unwrap();
    assert!(entries.is_sorted_by_key(|entry| entry.timestamp), "entries are not in time order");
    for entry in &entries {
        assert_eq!(entry.source, LogSource::Container(id.to_string()));
        assert_eq!(entry.service.as_deref(), Some(id.service.as_str()));
    }
}

async fn tail_gives_the_last_entries_over_both_streams(case: Case) {
    // Each is read before the next is written: of two streams there is no other order.
    let script = "until_there() { until [ -e /$1 ]; do sleep 0.02; done; }
        for i in 1 2 3; do echo out $i; until_there out$i; echo err $i >&2; until_there err$i; done";
    let id = case.start(&case.script(script).await).await;
    let root = seen_root(&*case.runtime, &id).await;
    for i in 1..=3 {
        for stream in ["out", "err"] {
            case.until_logged(&id, &format!("{stream} {i}")).await;
            std::fs::write(root.join(format!("{stream}{i}")), "").unwrap();
        }
    }
    case.finish(&id).await.succeeded();
    let tail = |n: usize| {
        let (case, id) = (case.clone(), id.clone());
        async move {
            let entries = case.runtime.container_logs(&id, n).await.unwrap();
            entries.into_iter().map(|entry| entry.message).collect::<Vec<_>>()
        }
    };
    let all = ["out 1", "err 1", "out 2", "err 2", "out 3", "err 3"];
    assert_eq!(tail(1).await, all[5..]);
    assert_eq!(tail(3).await, all[3..]);
    assert_eq!(tail(6).await, all);
    assert_eq!(tail(100).await, all);
    assert_eq!(tail(0).await, all, "0 means all");
}

async fn a_line_is_dated_when_it_was_written(case: Case) {
    let begin = chrono::Utc::now();
    let id = case.start(&case.script("echo first; sleep 1; echo second").await).await;
    case.finish(&id).await.succeeded();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let entries = case.runtime.get_logs(&id).await.unwrap();
    let apart = (entries[1].timestamp - entries[0].timestamp).num_milliseconds();
    assert!((900..shortly().as_millis() as i64).contains(&apart), "{apart} ms apart");
    assert!(entries[0].timestamp >= begin);
    let outcome = case.runtime.wait_outcome(&id).await.unwrap();
    assert!(entries[1].timestamp <= outcome.finished_at.unwrap(), "dated when read, not when written");
}

async fn bytes_that_are_no_utf8_are_replaced_and_lose_nothing_else(case: Case) {
    let lines = case.lines_of(r"printf 'a\377b\nsch\303\266n\n\000nul\nend\n'").await;
    assert_eq!(lines, ["a\u{fffd}b", "schön", "\0nul", "end"]);
}

async fn the_last_line_needs_no_newline(case: Case) {
    assert_eq!(case.lines_of("printf 'one\\ntwo'").await, ["one", "two"]);
}

async fn a_long_line_is_joined_up_to_64_kib(case: Case) {
    // 60,000 bytes in one line, then 200,000.
    let script = "head -c 60000 /dev/zero | tr '\\0' a; echo; head -c 200000 /dev/zero | tr '\\0' b; echo; echo end";
    let lines = case.lines_of(script).await;
    assert_eq!(lines[0], "a".repeat(60_000), "{} bytes", lines[0].len());
    let long = &lines[1..lines.len() - 1];
    assert!(long.iter().all(|piece| piece.len() <= 64 << 10), "a piece is longer than 64 KiB");
    assert!(long.len() <= 5, "{} pieces of a line of 200,000 bytes", long.len());
    assert_eq!(long.concat(), "b".repeat(200_000));
    assert_eq!(lines.last().unwrap(), "end");
}

async fn a_hundred_thousand_lines_are_all_there(case: Case) {
    let lines = case.lines_of("seq 1 100000").await;
    assert_eq!(lines.len(), 100_000);
    assert!(lines.iter().zip(1..).all(|(line, number)| *line == number.to_string()), "a line is lost or out of order");
}

async fn lines_are_there_while_the_container_runs(case: Case) {
    let id = case.start(&case.script("echo now; echo then >&2; exec sleep 3600").await).await;
    case.until_logged(&id, "now").await;
    case.until_logged(&id, "then").await;
    let entries = case.runtime.get_logs(&id).await.unwrap();
    assert_eq!(entries.iter().filter(|entry| entry.stream == LogStream::Stderr).count(), 1);
}

async fn old_lines_go_when_the_limit_is_reached_and_the_newest_stay(case: Case) {
    let mut spec = case.script("seq 1 200000").await;
    spec.logs.max_size_bytes = Some(1 << 20);
    let id = case.start(&spec).await;
    let lines = case.finish(&id).await.succeeded();
    assert_eq!(lines.last().unwrap(), "200000");
    assert!(lines.len() < 200_000, "nothing went");
    let first: u32 = lines[0].parse().unwrap();
    assert!(lines.iter().zip(first..).all(|(line, number)| *line == number.to_string()), "a gap within what is kept");
    // What is kept is about the limit, of which at most one of ten files is missing.
    let kept = case.runtime.stats_detailed(&id).await.unwrap().disk.log_bytes.expect("bytes of logs");
    assert!((800 << 10..=(1 << 20) + (64 << 10)).contains(&kept), "{kept} bytes are kept");
}

async fn empty_lines_are_lines(case: Case) {
    assert_eq!(case.lines_of("echo; echo a; echo; echo").await, ["", "a", "", ""]);
}
