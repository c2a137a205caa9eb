//! Dropped futures: the work is undone or completed by its owner, never half; calling again joins or redoes it.

use std::time::Duration;

use super::case::{Case, OrStop, Verdict, equal, within};
use super::{Check, Workload, check};
use crate::{AgentError, ContainerId, ContainerState, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("cancel.create", "a dropped create leaves a whole container or none", create),
        check!("cancel.start", "a dropped start can be called again, and nothing is started twice", start),
        check!("cancel.remove", "a dropped remove can be called again, and the id is free then", remove),
        check!("cancel.exec", "a dropped exec is killed", exec),
    ]
}

/// When the futures are dropped: from before they do anything to when they are likely done.
const MOMENTS_MS: [u64; 8] = [0, 1, 2, 4, 8, 16, 32, 64];

async fn create(case: Case) -> Verdict {
    let spec = case.spec(&Workload::exit(42))?;
    for moment in MOMENTS_MS.map(Duration::from_millis) {
        let id = case.id();
        let dropped = tokio::time::timeout(moment, case.runtime().create_container(&id, &spec)).await;
        if let Ok(Err(error)) = dropped {
            return Err(error).or_fail("create_container");
        }
        let what = format!("create_container dropped after {moment:?}");
        whole(&case, &id, &spec, &what).await?;
        case.runtime().start_container(&id).await.or_fail(&format!("start_container after a {what}"))?;
        equal(&format!("the exit code after a {what}"), &case.wait(&id).await?, &42)?;
    }
    Ok(())
}

/// Creates `id` again, unless the owner of the first call completes it.
async fn whole(case: &Case, id: &ContainerId, spec: &ServiceSpec, what: &str) -> Verdict {
    match case.runtime().create_container(id, spec).await {
        Ok(()) => Ok(()),
        Err(AgentError::CreateFailed { .. }) => {
            case.until(&format!("after a {what} the id is taken, and the container is not there"), || async {
                match case.runtime().container_state(id).await {
                    Ok(ContainerState::Initializing) => Ok(Some(())),
                    // Undone by its owner only now: then it can be had.
                    Err(AgentError::NotFound { .. }) => {
                        Ok(case.runtime().create_container(id, spec).await.is_ok().then_some(()))
                    }
                    Ok(ContainerState::Pending) => Ok(None),
                    state => Err(super::Stop::Failed(format!("after a {what} its state is {state:?}"))),
                }
            })
            .await
        }
        Err(error) => Err(error).or_fail(&format!("create_container after a {what}")),
    }
}

async fn start(case: Case) -> Verdict {
    for moment in MOMENTS_MS.map(Duration::from_millis) {
        let id = case.create(&Workload::ExitOn { signal: "TERM", code: 6 }).await?;
        let dropped = tokio::time::timeout(moment, case.runtime().start_container(&id)).await;
        if let Ok(Err(error)) = dropped {
            return Err(error).or_fail("start_container");
        }
        let what = format!("a start_container dropped after {moment:?}");
        let again = within("start_container again", case.soon(), case.runtime().start_container(&id)).await?;
        again.or_fail(&format!("start_container after {what}"))?;
        case.line(&id, "ready").await?;
        case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
        equal(&format!("the exit code after {what}"), &case.wait(&id).await?, &6)?;
        let logs = case.runtime().get_logs(&id).await.or_fail("get_logs")?;
        equal(&format!("how often the program has run after {what}"), &logs.len(), &1)?;
    }
    Ok(())
}

async fn remove(case: Case) -> Verdict {
    let spec = case.spec(&Workload::exit(42))?;
    for moment in MOMENTS_MS.map(Duration::from_millis) {
        let id = case.start_ready(&Workload::Ignore { signal: "TERM" }).await?;
        let dropped = tokio::time::timeout(moment, case.runtime().remove_container(&id)).await;
        if let Ok(Err(error)) = dropped {
            return Err(error).or_fail("remove_container");
        }
        let what = format!("a remove_container dropped after {moment:?}");
        match within("remove_container again", case.soon(), case.runtime().remove_container(&id)).await? {
            Ok(()) | Err(AgentError::NotFound { .. }) => {}
            Err(error) => return Err(error).or_fail(&format!("remove_container after {what}")),
        }
        case.until(&format!("after {what} and another it is still there"), || async {
            let state = case.runtime().container_state(&id).await;
            Ok(matches!(state, Err(AgentError::NotFound { .. })).then_some(()))
        })
        .await?;
        case.runtime().create_container(&id, &spec).await.or_fail(&format!("create_container after {what}"))?;
        case.runtime().start_container(&id).await.or_fail("start_container")?;
        equal(&format!("the exit code of the next one after {what}"), &case.wait(&id).await?, &42)?;
    }
    Ok(())
}

async fn exec(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let script = Workload::Script("trap '' TERM HUP; sleep 86400 & echo $$ $! > /conformance-pids; wait".to_owned());
    let command = case.command(&script)?;
    // It is dropped once it runs, which another exec sees.
    let running = case.until("the exec never ran", || async {
        let pids = case.ask(&id, "cat /conformance-pids 2>/dev/null").await?;
        Ok((pids.split_whitespace().count() == 2).then_some(pids))
    });
    let pids = tokio::select! {
        answer = case.runtime().exec(&id, &command) => {
            return Err(super::Stop::Failed(format!("the exec runs on, and answers {answer:?}")));
        }
        pids = running => pids?,
    };
    let alive: String =
        pids.split_whitespace().map(|pid| format!("kill -0 {pid} 2>/dev/null && echo {pid};")).collect();
    case.until(&format!("of {pids} some run on"), || async {
        Ok(case.ask(&id, &alive).await?.is_empty().then_some(()))
    })
    .await
}
