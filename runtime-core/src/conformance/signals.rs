//! `kill_container`.

use super::case::{Case, OrStop, Verdict, equal, refused, within};
use super::{Check, Workload, check};
use crate::{AgentError, ContainerState};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("kill.names", "TERM INT HUP USR1 USR2, with or without SIG, in any case, reach the process", names),
        check!("kill.kill", "KILL by name ends it as None does", kill),
        check!("kill.invalid", "any other signal is InvalidSpec and is not sent", invalid),
        check!("kill.handled", "a process that ends on a signal has its own exit code", handled),
    ]
}

async fn names(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ReportSignals).await?;
    let spellings = ["TERM", "SIGTERM", "int", "SigInt", "sighup", "HUP", "usr1", "SIGUSR1", "Usr2", "sigusr2"];
    for (sent, spelling) in spellings.into_iter().enumerate() {
        let name = spelling.to_uppercase().trim_start_matches("SIG").to_owned();
        case.runtime()
            .kill_container(&id, Some(spelling))
            .await
            .or_unsupported(&format!("kill_container {spelling}"))?;
        // One at a time: two equal signals that are both pending are one.
        let logs = case.logs(&id, sent + 2).await?;
        let last = logs.last().map(|entry| entry.message.as_str());
        equal(&format!("what the process saw of {spelling}"), &last, &Some(format!("got {name}").as_str()))?;
    }
    equal("the state", &case.runtime().container_state(&id).await.or_fail("container_state")?, &ContainerState::Running)
}

async fn kill(case: Case) -> Verdict {
    for spelling in ["KILL", "sigkill"] {
        let id = case.start_ready(&Workload::Ignore { signal: "TERM" }).await?;
        case.runtime().kill_container(&id, Some(spelling)).await.or_unsupported("kill_container")?;
        equal("the exit code", &within("wait after KILL", case.soon(), case.wait(&id)).await??, &137)?;
    }
    Ok(())
}

async fn invalid(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ReportSignals).await?;
    case.runtime().kill_container(&id, Some("USR1")).await.or_unsupported("kill_container")?;
    for signal in ["", "SIG", "BOGUS", "SIGSIGTERM", "STOP", "SIGSEGV", "9", "-9", "TERM ", "TERM\n"] {
        let killed = case.runtime().kill_container(&id, Some(signal)).await;
        refused(&format!("signal {signal:?}"), killed, |error| matches!(error, AgentError::InvalidSpec(_)))?;
    }
    equal("the state", &case.runtime().container_state(&id).await.or_fail("container_state")?, &ContainerState::Running)
}

async fn handled(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "HUP", code: 21 }).await?;
    case.runtime().kill_container(&id, Some("HUP")).await.or_unsupported("kill_container")?;
    equal("the exit code", &within("wait after HUP", case.soon(), case.wait(&id)).await??, &21)
}
