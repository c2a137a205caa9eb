//! What a restart of the agent must not lose.

use std::sync::Arc;
use std::time::Duration;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, within};
use super::{Ability, Check, Workload, check};
use crate::{ContainerState, Runtime};

pub(super) fn checks() -> Vec<Check> {
    let checks = vec![
        check!("reopen.running", "a running container is found again: state, pid, logs, and its end", running),
        check!("reopen.exited", "an exited one keeps its state, outcome and logs", exited),
        check!("reopen.created", "a created one can still be started", created),
        check!("reopen.removed", "a removed one stays gone", removed),
    ];
    checks.into_iter().map(|check| Check { alone: true, ..check }).collect()
}

async fn reopen(case: &Case) -> Verdict<Arc<dyn Runtime>> {
    let reopened = case.backend().reopen().await.or_fail("reopen")?;
    reopened.ok_or_else(|| Stop::Unsupported("this backend keeps nothing across a restart".to_owned()))
}

async fn running(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "TERM", code: 13 }).await?;
    let logs = case.runtime().get_logs(&id).await.or_fail("get_logs")?;
    let pid = if case.lacks(Ability::Pid) { None } else { Some(case.runtime().get_container_pid(&id).await) };
    let runtime = reopen(&case).await?;
    let state = runtime.container_state(&id).await.or_fail("container_state")?;
    equal("the state", &state, &ContainerState::Running)?;
    if let Some(pid) = pid {
        equal("the pid", &runtime.get_container_pid(&id).await, &pid)?;
    }
    equal("the log", &runtime.get_logs(&id).await.or_fail("get_logs")?, &logs)?;
    equal(
        "the exit code of an exec",
        &runtime.exec(&id, &case.command(&Workload::exit(4))?).await.or_fail("exec")?.0,
        &4,
    )?;
    let early = tokio::time::timeout(Duration::from_millis(300), runtime.wait_container(&id)).await;
    ensure(early.is_err(), || format!("wait returned {early:?} while the container runs"))?;
    within("stop", case.soon(), runtime.stop_container(&id, case.soon())).await?.or_fail("stop_container")?;
    equal("the exit code", &runtime.wait_container(&id).await.or_fail("wait_container")?, &13)
}

async fn exited(case: Case) -> Verdict {
    let chunks = vec![(crate::LogStream::Stderr, b"last words\n".to_vec())];
    let id = case.start(&Workload::Write { chunks, code: 42 }).await?;
    case.wait(&id).await?;
    let logs = case.logs(&id, 1).await?;
    let outcome = case.runtime().wait_outcome(&id).await.or_fail("wait_outcome")?;
    let runtime = reopen(&case).await?;
    let state = runtime.container_state(&id).await.or_fail("container_state")?;
    equal("the state", &state, &ContainerState::Exited { code: 42 })?;
    equal("the outcome", &runtime.wait_outcome(&id).await.or_fail("wait_outcome")?, &outcome)?;
    equal("the log", &runtime.get_logs(&id).await.or_fail("get_logs")?, &logs)
}

async fn created(case: Case) -> Verdict {
    let id = case.create(&Workload::exit(42)).await?;
    let runtime = reopen(&case).await?;
    let state = runtime.container_state(&id).await.or_fail("container_state")?;
    equal("the state", &state, &ContainerState::Initializing)?;
    runtime.start_container(&id).await.or_fail("start_container")?;
    equal("the exit code", &runtime.wait_container(&id).await.or_fail("wait_container")?, &42)
}

async fn removed(case: Case) -> Verdict {
    let id = case.start(&Workload::exit(0)).await?;
    case.wait(&id).await?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    let runtime = reopen(&case).await?;
    let state = runtime.container_state(&id).await;
    super::case::refused("container_state", state, |error| matches!(error, crate::AgentError::NotFound { .. }))
}
