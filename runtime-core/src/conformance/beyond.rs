//! The provided methods that go beyond the contract's 24: Unsupported is an answer to each.

use std::time::Duration;

use super::case::{Case, OrStop, Verdict, ensure, equal, refused, within};
use super::{Check, Workload, check};
use crate::spec::{ByteSize, ResourcesSpec};
use crate::{AgentError, ContainerState};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("pause.repeats", "pause and unpause are Ok at once where there is nothing to do; state Running", pause),
        check!("pause.freezes", "a paused container does nothing, and goes on when unpaused", freezes),
        check!("pause.exec", "an exec in a paused container is an error, and runs nothing", pause_exec),
        check!("top.pids", "its init is among its processes, and each has its command", top),
        check!("update.memory", "a running container has its new limit when update returns", update),
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

async fn freezes(case: Case) -> Verdict {
    // Times go to a file: a log might be read while what writes it is frozen.
    let script = "echo ready; while :; do read -r up idle < /proc/uptime; echo $up >> /ticks; \
                  sleep 0.05 2>/dev/null || sleep 1; done";
    let id = case.start_ready(&Workload::Script(script.to_owned())).await?;
    let ticks = async || -> Verdict<Vec<f64>> {
        let text = case.ask(&id, "cat /ticks").await?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    };
    case.until("it never ticks", || async { Ok((!ticks().await?.is_empty()).then_some(())) }).await?;
    case.runtime().pause(&id).await.or_unsupported("pause")?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    case.runtime().unpause(&id).await.or_fail("unpause")?;
    let count = ticks().await?.len();
    case.until("it does not go on", || async { Ok((ticks().await?.len() > count).then_some(())) }).await?;
    let longest = ticks().await?.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    ensure(longest > 2.5, || format!("paused for 3 s it has done nothing for {longest} s"))
}

async fn pause_exec(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    case.runtime().pause(&id).await.or_unsupported("pause")?;
    let touch = case.command(&Workload::Script("echo > /execed".to_owned()))?;
    let answer = within("an exec in it", case.soon(), case.runtime().exec(&id, &touch)).await?;
    case.runtime().unpause(&id).await.or_fail("unpause")?;
    refused("an exec in a paused container", answer, |error| !matches!(error, AgentError::NotFound { .. }))?;
    equal("what it left", &case.ask(&id, "ls /execed 2>/dev/null").await?.as_str(), &"")
}

async fn top(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let entries = case.runtime().top(&id).await.or_unsupported("top")?;
    let init = case.runtime().get_container_pid(&id).await.or_unsupported("get_container_pid")?;
    ensure(entries.iter().any(|entry| Some(entry.pid) == init), || format!("{init:?} is not among {entries:?}"))?;
    ensure(entries.iter().all(|entry| !entry.command.is_empty()), || format!("some have no command: {entries:?}"))
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
