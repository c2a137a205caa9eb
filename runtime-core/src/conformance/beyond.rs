//! The provided methods that go beyond the contract's 24: Unsupported is an answer to each.

use futures_util::StreamExt;

use super::case::{Case, OrStop, Verdict, ensure, equal, within};
use super::{Check, Workload, check};
use crate::LogStream::{Stderr, Stdout};
use crate::spec::{ByteSize, ResourcesSpec};
use crate::{
    ContainerId, ContainerState, Event, EventKind, EventsOptions, ExecEvent, ExecInput, ExecOptions, LogRecord,
    LogsOptions,
};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("pause.repeats", "pause and unpause are Ok at once where there is nothing to do; state Running", pause),
        check!("top.pids", "its init is among its processes", top),
        check!("events.order", "create, start, exit and remove of a container, in this order", events),
        check!("exec_with.options", "environment, user, directory and input of an exec's own", exec_with),
        check!("logs_stream.records", "the records are the log, and a cursor goes on where it points", logs_stream),
        check!("logs_stream.follow", "followed, it goes on until the container is over", follow),
        check!("update.memory", "a running container has its new limit when update returns", update),
        check!("stats_detailed.limits", "what is used is told; a limit that is not set is None", stats_detailed),
    ]
}

async fn pause(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "TERM", code: 7 }).await?;
    let runtime = case.runtime();
    runtime.unpause(&id).await.or_unsupported("unpause of one that is not paused")?;
    runtime.pause(&id).await.or_unsupported("pause")?;
    runtime.pause(&id).await.or_fail("a second pause")?;
    let state = runtime.container_state(&id).await.or_fail("container_state")?;
    equal("the state of a paused container", &state, &ContainerState::Running)?;
    runtime.unpause(&id).await.or_fail("unpause")?;
    within("stop", case.soon(), runtime.stop_container(&id, case.soon())).await?.or_fail("stop_container")?;
    equal("the exit code", &case.wait(&id).await?, &7)
}

async fn top(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let entries = case.runtime().top(&id).await.or_unsupported("top")?;
    let init = case.runtime().get_container_pid(&id).await.or_unsupported("get_container_pid")?;
    ensure(entries.iter().any(|entry| Some(entry.pid) == init), || format!("{init:?} is not among {entries:?}"))
}

async fn events(case: Case) -> Verdict {
    let id = case.start(&Workload::exit(3)).await?;
    case.wait(&id).await?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    let stream = case.runtime().events(&EventsOptions::default()).await.or_unsupported("events")?;
    let all: Vec<Event> = within("the events so far", case.soon(), stream.collect::<Vec<_>>())
        .await?
        .into_iter()
        .collect::<crate::Result<_>>()
        .or_fail("events")?;
    ensure(all.windows(2).all(|pair| pair[0].number < pair[1].number), || "their numbers do not grow".to_owned())?;
    let name = id.to_string();
    let mine: Vec<&Event> = all.iter().filter(|event| event.container.as_ref() == Some(&name)).collect();
    let wanted = [EventKind::Create, EventKind::Start, EventKind::Exit, EventKind::Remove];
    let kinds: Vec<EventKind> = mine.iter().map(|event| event.kind).filter(|kind| wanted.contains(kind)).collect();
    equal("what happened to it", &kinds, &wanted.to_vec())?;
    let code = mine.iter().find(|event| event.kind == EventKind::Exit).and_then(|event| event.exit_code);
    equal("the exit code in its event", &code, &Some(3))
}

async fn exec_with(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let script = "echo \"$CONFORMANCE\"; id -u; pwd; cat".to_owned();
    let command = case.command(&Workload::Script(script))?;
    let options = ExecOptions {
        env: [("CONFORMANCE".to_owned(), "a b".to_owned())].into(),
        user: Some("12345".to_owned()),
        workdir: Some("/dev".to_owned()),
        ..ExecOptions::default()
    };
    let input: ExecInput = Box::pin(futures_util::stream::iter([b"from ".to_vec(), b"outside".to_vec()]));
    let stream = case.runtime().exec_with(&id, &command, &options, Some(input)).await.or_unsupported("exec_with")?;
    let events: Vec<ExecEvent> = within("the exec", case.soon(), stream.collect()).await?;
    let text = |event: &ExecEvent| if let ExecEvent::Stdout(text) = event { text.clone() } else { String::new() };
    let stdout: String = events.iter().map(text).collect();
    equal("what it wrote", &stdout.as_str(), &"a b\n12345\n/dev\nfrom outside")?;
    equal("its last event", &events.last(), &Some(&ExecEvent::Exit(0)))
}

async fn records(case: &Case, id: &ContainerId, options: &LogsOptions) -> Verdict<Vec<LogRecord>> {
    let stream = case.runtime().logs_stream(id, options).await.or_unsupported("logs_stream")?;
    let records = within("the records", case.soon(), stream.collect::<Vec<_>>()).await?;
    records.into_iter().collect::<crate::Result<_>>().or_fail("logs_stream")
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

async fn update(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::idle())?;
    spec.resources.memory = Some(ByteSize::new(64 << 20));
    let id = case.start_spec(&spec).await?;
    let changes = ResourcesSpec { memory: Some(ByteSize::new(128 << 20)), ..ResourcesSpec::default() };
    case.runtime().update_resources(&id, &changes).await.or_unsupported("update_resources")?;
    let stats = case.runtime().get_container_stats(&id).await.or_unsupported("get_container_stats")?;
    equal("the limit", &stats.memory_limit, &(128 << 20))
}

async fn stats_detailed(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let stats = case.runtime().stats_detailed(&id).await.or_unsupported("stats_detailed")?;
    equal("the memory limit where none is set", &stats.memory.limit_bytes, &None)?;
    ensure(stats.memory.usage_bytes.is_none_or(|bytes| bytes >= 4096), || format!("it uses {:?}", stats.memory))?;
    ensure(stats.cpu.usage_usec.is_none_or(|usec| usec > 0), || format!("it used {:?}", stats.cpu))?;
    ensure(stats.pids.current.is_none_or(|count| count >= 1), || format!("it has {:?}", stats.pids))
}
