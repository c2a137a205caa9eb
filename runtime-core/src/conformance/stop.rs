//! Stopping.

use std::time::{Duration, Instant};

use super::case::{Case, OrStop, Verdict, ensure, equal, within};
use super::outcomes::killed_by;
use super::{Check, Workload, check};
use crate::spec::StorageSpec;
use crate::{AgentError, ContainerState};

/// A stop timeout long enough that a container which reacts is clearly faster.
const PATIENT: Duration = Duration::from_secs(30);

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("stop.handled", "a process that ends on TERM ends by itself, with its own code", handled),
        check!("stop.ignored", "one that ignores TERM is killed after the timeout, not before", ignored),
        check!("stop.outcome", "what stop had to kill is on record as killed by SIGKILL", outcome),
        check!("stop.at_once", "with timeout 0 it is killed at once", at_once),
        check!("stop.idempotent", "stop again is Ok and changes nothing", idempotent),
        check!("stop.together", "two stops at once are both Ok", together),
        check!("stop.dropped", "a dropped stop can be called again and joins or redoes the work", dropped),
        check!("stop.stopping", "the state is Stopping while it is being stopped", stopping),
        check!("stop.children", "when stop returns no process of it is left, whatever ignores the signal", children),
        check!("stop.any_signal", "a stop signal may be any signal", any_signal),
        check!("stop.signal", "the spec's stop signal is sent in place of TERM", signal),
    ]
}

async fn handled(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "TERM", code: 7 }).await?;
    within("stop of a process that reacts", case.soon(), case.runtime().stop_container(&id, PATIENT))
        .await?
        .or_fail("stop_container")?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the state", &state, &ContainerState::Exited { code: 7 })?;
    equal("the exit code", &case.wait(&id).await?, &7)
}

async fn ignored(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::Ignore { signal: "TERM" }).await?;
    let begun = Instant::now();
    let timeout = Duration::from_secs(1);
    within("stop", timeout + case.soon(), case.runtime().stop_container(&id, timeout))
        .await?
        .or_fail("stop_container")?;
    let took = begun.elapsed();
    ensure(took >= timeout.mul_f32(0.9), || format!("it was killed after {took:?}, it had {timeout:?}"))?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the state", &state, &ContainerState::Exited { code: 137 })?;
    equal("the exit code", &case.wait(&id).await?, &137)
}

async fn outcome(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::Ignore { signal: "TERM" }).await?;
    case.runtime().stop_container(&id, Duration::from_millis(100)).await.or_fail("stop_container")?;
    killed_by(&case, &id, "SIGKILL").await
}

async fn at_once(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::Ignore { signal: "TERM" }).await?;
    within("stop with timeout 0", case.soon(), case.runtime().stop_container(&id, Duration::ZERO))
        .await?
        .or_fail("stop_container")?;
    equal("the exit code", &case.wait(&id).await?, &137)
}

async fn idempotent(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "TERM", code: 7 }).await?;
    for call in ["stop_container", "a second stop_container", "a third stop_container"] {
        within(call, case.soon(), case.runtime().stop_container(&id, PATIENT)).await?.or_fail(call)?;
        equal("the exit code", &case.wait(&id).await?, &7)?;
    }
    let exited = case.start(&Workload::exit(42)).await?;
    case.wait(&exited).await?;
    case.runtime().stop_container(&exited, PATIENT).await.or_fail("stop_container of an exited container")?;
    equal("its exit code", &case.wait(&exited).await?, &42)
}

async fn together(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "TERM", code: 7 }).await?;
    let stop = || case.runtime().stop_container(&id, PATIENT);
    let (one, other) = within("two stops", case.soon(), async { tokio::join!(stop(), stop()) }).await?;
    one.or_fail("one stop_container")?;
    other.or_fail("the other stop_container")?;
    equal("the exit code", &case.wait(&id).await?, &7)
}

async fn dropped(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::Ignore { signal: "TERM" }).await?;
    let first = case.runtime().stop_container(&id, PATIENT);
    let first = tokio::time::timeout(Duration::from_millis(200), first).await;
    ensure(first.is_err(), || format!("stop returned {first:?} while the process runs"))?;
    within("the stop called again", case.soon(), case.runtime().stop_container(&id, Duration::from_millis(100)))
        .await?
        .or_fail("stop_container")?;
    equal("the exit code", &case.wait(&id).await?, &137)
}

async fn stopping(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::Ignore { signal: "TERM" }).await?;
    let stop = async { case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container") };
    let look = async {
        let seen = case.until("the state is never Stopping", || async {
            let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
            Ok((state == ContainerState::Stopping).then_some(()))
        });
        seen.await?;
        // Who does not build that ends it when its time is over.
        match case.runtime().kill_container(&id, None).await {
            Err(AgentError::Unsupported(_)) => Ok(()),
            killed => killed.or_fail("kill_container"),
        }
    };
    let (stopped, seen) = tokio::join!(stop, look);
    stopped.and(seen)
}

async fn signal(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::ExitOn { signal: "USR1", code: 11 })?;
    spec.stop_signal = Some("SIGUSR1".to_owned());
    let id = case.start_spec(&spec).await?;
    case.line(&id, "ready").await?;
    within("stop", case.soon(), case.runtime().stop_container(&id, PATIENT)).await?.or_fail("stop_container")?;
    equal("the exit code", &case.wait(&id).await?, &11)
}

async fn children(case: Case) -> Verdict {
    // Orphans of the container's process, which ends at once; they show that they run by what they write.
    let directory = case.directory()?;
    let storage =
        StorageSpec::Bind { source: directory.display().to_string(), target: "/ticks".into(), readonly: false };
    let tick = "trap '' TERM HUP; while :; do echo x >> /ticks/f; sleep 0.05 2>/dev/null || sleep 1; done";
    let exits = Workload::ExitOn { signal: "TERM", code: 3 };
    let mut spec = case.script(format!("(setsid sh -c \"{tick}\" &); {exits}"))?;
    spec.storage = vec![storage];
    let id = case.start_spec_ready(&spec).await?;
    let file = directory.join("f");
    let size = || std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
    case.until("its child never ran", || async { Ok((size() > 0).then_some(())) }).await?;
    case.runtime().stop_container(&id, Duration::from_secs(1)).await.or_fail("stop_container")?;
    let then = size();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    ensure(size() == then, || "a process of it goes on after stop has returned".to_owned())
}

async fn any_signal(case: Case) -> Verdict {
    let mut spec = case.script("trap 'exit 12' QUIT; echo ready; sleep 86400 & while :; do wait $!; done")?;
    for name in ["SIGQUIT", "QUIT"] {
        spec.stop_signal = Some(name.to_owned());
        let id = case.start_spec_ready(&spec).await?;
        within("stop", case.soon(), case.runtime().stop_container(&id, PATIENT)).await?.or_fail("stop_container")?;
        equal(&format!("the exit code after {name}"), &case.wait(&id).await?, &12)?;
    }
    Ok(())
}
