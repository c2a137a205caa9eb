//! Further processes, as a stream of events.

use std::time::{Duration, Instant};

use futures_util::StreamExt;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, within};
use super::{Ability, Check, Workload, check};
use crate::LogStream::{Stderr, Stdout};
use crate::{ContainerId, ExecEvent, ExecEventStream};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("exec_stream.exit_last", "exactly one Exit, and it comes last", exit_last),
        check!("exec_stream.fails", "127 and 126 come as the Exit", fails),
        check!("exec_stream.live", "events come as they are produced", live),
        check!("exec_stream.characters", "multi-byte characters are never split across events", characters),
        check!("exec_stream.dropped", "when the stream is dropped, the exec and what it started are killed", dropped),
        check!("exec_stream.stop", "it ends when the container is stopped", ends_with_container),
    ]
}

async fn open(case: &Case, id: &ContainerId, workload: &Workload) -> Verdict<ExecEventStream> {
    case.runtime().exec_stream(id, &case.command(workload)?).await.or_fail("exec_stream")
}

/// All of an exec: what it wrote to stdout and stderr, and its code. Fails unless Exit comes once, last.
async fn whole(case: &Case, id: &ContainerId, workload: &Workload) -> Verdict<(String, String, i32)> {
    let events: Vec<ExecEvent> = within("the exec", case.soon(), open(case, id, workload).await?.collect()).await?;
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let Some((ExecEvent::Exit(code), output)) = events.split_last() else {
        return Err(Stop::Failed(format!("the last of {} events is {:?}, not Exit", events.len(), events.last())));
    };
    for event in output {
        match event {
            ExecEvent::Stdout(text) => stdout.push_str(text),
            ExecEvent::Stderr(text) => stderr.push_str(text),
            ExecEvent::Exit(code) => return Err(Stop::Failed(format!("Exit({code}) comes before the last event"))),
        }
    }
    Ok((stdout, stderr, *code))
}

async fn exit_last(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let chunks = vec![(Stdout, b"one\n".to_vec()), (Stderr, b"two\n".to_vec()), (Stdout, b"three\n".to_vec())];
    let found = whole(&case, &id, &Workload::Write { chunks, code: 42 }).await?;
    equal("(stdout, stderr, code)", &found, &("one\nthree\n".to_owned(), "two\n".to_owned(), 42))?;
    let silent = whole(&case, &id, &Workload::exit(0)).await?;
    equal("(stdout, stderr, code) of a silent one", &silent, &(String::new(), String::new(), 0))
}

async fn fails(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    equal("the code of a missing program", &whole(&case, &id, &Workload::NotFound).await?.2, &127)?;
    equal("the code of what cannot be executed", &whole(&case, &id, &Workload::NotExecutable).await?.2, &126)
}

/// Opens the stream of an exec that goes on, and reads the line that it begins with.
async fn open_ready(case: &Case, id: &ContainerId, workload: &Workload) -> Verdict<(ExecEventStream, String)> {
    if case.lacks(Ability::LiveExec) {
        return Err(Stop::Unsupported("this backend's exec_stream is buffered".to_owned()));
    }
    let (mut stream, mut text) = (open(case, id, workload).await?, String::new());
    while !text.ends_with('\n') {
        match within("the first line of an exec that goes on", case.soon(), stream.next()).await? {
            Some(ExecEvent::Stdout(more)) => text.push_str(&more),
            other => return Err(Stop::Failed(format!("it began with {text:?} and {other:?}"))),
        }
    }
    Ok((stream, text))
}

async fn live(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let (mut stream, text) = open_ready(&case, &id, &Workload::ExitOn { signal: "TERM", code: 0 }).await?;
    equal("its first line", &text.as_str(), &"ready\n")?;
    let more = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    ensure(more.is_err(), || format!("it runs on, and the stream has {more:?}"))
}

async fn characters(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let half =
        Workload::Script("printf '\\303'; sleep 1; printf '\\251 \\360\\237'; sleep 1; printf '\\230\\200'".to_owned());
    case.command(&half)?;
    equal("a character written in two", &whole(&case, &id, &half).await?.0.as_str(), &"é 😀")?;
    // Three bytes a character never fit a power of two, whatever the buffer's size.
    let script = "s=€; i=0; while [ $i -lt 15 ]; do s=$s$s; i=$((i+1)); done; printf %s \"$s\"".to_owned();
    let (stdout, ..) = whole(&case, &id, &Workload::Script(script)).await?;
    let count = stdout.chars().filter(|c| *c == '€').count();
    ensure(count == 1 << 15 && stdout.len() == 3 << 15, || {
        format!("{} characters came back as {count} and {} bytes", 1 << 15, stdout.len())
    })
}

async fn dropped(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    // A child that ignores TERM: nothing but a kill of the whole tree ends it.
    let script = "trap '' TERM HUP; sleep 86400 & echo $$ $!; wait".to_owned();
    let (stream, pids) = open_ready(&case, &id, &Workload::Script(script)).await?;
    let alive = Workload::Script(
        pids.split_whitespace().map(|pid| format!("kill -0 {pid} || ")).collect::<String>() + "exit 9",
    );
    equal("the code of kill -0 while it runs", &case.exec(&id, &alive).await?.0, &0)?;
    drop(stream);
    let begun = Instant::now();
    while case.exec(&id, &alive).await?.0 != 9 {
        ensure(begun.elapsed() < case.soon(), || {
            format!("of {pids:?} some still run {:?} after the drop", case.soon())
        })?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn ends_with_container(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let (stream, _) = open_ready(&case, &id, &Workload::Ignore { signal: "TERM" }).await?;
    within("stop while an exec runs", case.soon(), case.runtime().stop_container(&id, Duration::from_secs(2)))
        .await?
        .or_fail("stop_container")?;
    let rest: Vec<ExecEvent> = within("the end of the stream", case.soon(), stream.collect()).await?;
    // Killed with the container, or cut off: both are an end, an ordinary exit is not.
    let ended = matches!(rest.as_slice(), [] | [ExecEvent::Exit(137)]);
    ensure(ended, || format!("the stream ended with {rest:?}"))
}
