//! What is done for a container that ends by itself.

use std::time::{Duration, Instant};

use super::case::{Case, OrStop, Verdict, ensure, equal, within};
use super::{Check, Workload, check};
use crate::spec::{RestartKind, RestartPolicy};
use crate::{ContainerId, ContainerState, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("restart.on_failure", "what fails is restarted in its root and log, at most so often", on_failure),
        check!("restart.success", "what succeeds is not restarted on_failure", success),
        check!("restart.stopped", "what was stopped is not restarted", stopped),
        check!("restart.always", "what always restarts is restarted after a success too", always),
        check!("restart.pause", "in the pause the state is Initializing, and wait is for the attempt to come", pause),
    ]
}

/// Time in which nothing must happen.
const A_WHILE: Duration = Duration::from_secs(1);

/// Long beside what an attempt takes on a loaded machine: two that follow each other at once are not taken for a pause.
const PAUSE: Duration = Duration::from_secs(4);

/// By how much the time of a line may be after its writing.
const READ_LATE: Duration = Duration::from_secs(1);

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

async fn always(case: Case) -> Verdict {
    let script = "echo x >> /attempts; n=$(wc -l < /attempts | tr -d ' '); echo $n; [ $n -lt 3 ] || exec sleep 3600";
    for kind in [RestartKind::Always, RestartKind::UnlessStopped] {
        let id = case.start_spec(&restarted(&case, script, kind, None)?).await?;
        case.line(&id, "3").await?;
        let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
        equal("the state of the third attempt", &state, &ContainerState::Running)?;
    }
    Ok(())
}

async fn pause(case: Case) -> Verdict {
    let script = "echo x >> /attempts; n=$(wc -l < /attempts | tr -d ' '); echo $n; exit $((4+n))";
    let mut spec = restarted(&case, script, RestartKind::OnFailure, Some(1))?;
    spec.restart_policy.delay = Some(PAUSE);
    let id = case.start_spec(&spec).await?;
    equal("what the first wait answers", &case.wait(&id).await?, &5)?;
    case.until("the state is never Initializing", || async {
        let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
        Ok((state == ContainerState::Initializing).then_some(()))
    })
    .await?;
    // Of the second attempt, however often it is asked.
    let second = within("the second wait", case.soon(), case.wait(&id)).await??;
    ensure([5, 6].contains(&second), || format!("wait answers {second}"))?;
    until_ended(&case, &id, 6).await?;
    let between = case.line(&id, "2").await?.timestamp - case.line(&id, "1").await?.timestamp;
    ensure(between.as_seconds_f64() >= (PAUSE - READ_LATE).as_secs_f64(), || {
        format!("the second attempt wrote {} ms after the first", between.num_milliseconds())
    })?;
    equal("what the last wait answers", &case.wait(&id).await?, &6)
}
