//! What is done for a container that ends by itself, or is not well.

use std::time::{Duration, Instant};

use super::case::{Case, OrStop, Stop, Verdict, equal};
use super::{Check, Workload, check};
use crate::spec::{HealthCheck, HealthSpec, RestartKind, RestartPolicy};
use crate::{ContainerId, ContainerState, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("restart.on_failure", "what fails is restarted in its root and log, at most so often", on_failure),
        check!("restart.success", "what succeeds is not restarted on_failure", success),
        check!("restart.stopped", "what was stopped is not restarted", stopped),
        check!("health.command", "a command makes it healthy, or unhealthy after so many failures", health),
    ]
}

/// Time in which nothing must happen.
const A_WHILE: Duration = Duration::from_secs(1);

fn restarted(case: &Case, script: &str, kind: RestartKind, max_attempts: Option<u32>) -> Verdict<ServiceSpec> {
    let delay = Some(Duration::from_millis(50));
    let restart_policy = RestartPolicy { kind, max_attempts, delay };
    Ok(ServiceSpec { restart_policy, ..case.spec(&Workload::Script(script.to_owned()))? })
}

async fn until_ended(case: &Case, id: &ContainerId, code: i32) -> Verdict {
    let begun = Instant::now();
    loop {
        let state = case.runtime().container_state(id).await.or_fail("container_state")?;
        if state == (ContainerState::Exited { code }) || begun.elapsed() > case.soon() {
            return equal("the state", &state, &ContainerState::Exited { code });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn on_failure(case: Case) -> Verdict {
    let script = "echo x >> /attempts; n=$(wc -l < /attempts | tr -d ' '); echo $n; exit $((4+n))";
    let id = case.start_spec(&restarted(&case, script, RestartKind::OnFailure, Some(2))?).await?;
    case.line(&id, "3").await?;
    until_ended(&case, &id, 7).await?;
    tokio::time::sleep(A_WHILE).await;
    let logs = case.logs(&id, 3).await?;
    let lines: Vec<&str> = logs.iter().map(|entry| entry.message.as_str()).collect();
    equal("what three attempts wrote", &lines, &vec!["1", "2", "3"])
}

async fn success(case: Case) -> Verdict {
    let id = case.start_spec(&restarted(&case, "echo once", RestartKind::OnFailure, None)?).await?;
    case.line(&id, "once").await?;
    until_ended(&case, &id, 0).await?;
    tokio::time::sleep(A_WHILE).await;
    equal("the number of attempts", &case.logs(&id, 1).await?.len(), &1)
}

async fn stopped(case: Case) -> Verdict {
    let id = case.start_spec(&restarted(&case, "echo up; exec sleep 3600", RestartKind::Always, None)?).await?;
    case.line(&id, "up").await?;
    case.runtime().stop_container(&id, Duration::ZERO).await.or_fail("stop_container")?;
    tokio::time::sleep(A_WHILE).await;
    until_ended(&case, &id, 137).await?;
    equal("the number of attempts", &case.logs(&id, 1).await?.len(), &1)
}

async fn health(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::Script("echo ready; exec sleep 3600".to_owned()))?;
    spec.health = Some(HealthSpec {
        check: HealthCheck::Command { command: vec!["ls".to_owned(), "/well".to_owned()] },
        start_grace: Duration::ZERO,
        interval: Duration::from_millis(100),
        timeout: case.soon(),
        retries: 2,
    });
    let id = case.start_spec(&spec).await?;
    until_health(&case, &id, "unhealthy").await?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the state of an unhealthy container", &state, &ContainerState::Running)?;
    let script = Workload::Script("touch /well".to_owned());
    equal("the exit code of touch", &case.exec(&id, &script).await?.0, &0)?;
    until_health(&case, &id, "healthy").await
}

async fn until_health(case: &Case, id: &ContainerId, wanted: &str) -> Verdict {
    let begun = Instant::now();
    loop {
        let details = case.runtime().inspect_detailed(id).await.or_unsupported("inspect_detailed")?;
        let Some(health) = details.health else {
            return Err(Stop::Failed("a container with a check has no health".to_owned()));
        };
        // A backend that is busy with other containers may come to it late.
        if health.status == wanted || begun.elapsed() > case.soon() * 4 {
            return equal("the health", &health.status.as_str(), &wanted);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
