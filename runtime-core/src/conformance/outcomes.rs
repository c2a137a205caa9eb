//! Exit codes, signals, waiting.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use futures_util::future::{join_all, try_join_all};

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, within};
use super::{Check, Workload, check};
use crate::spec::ByteSize;
use crate::{AgentError, ContainerId, ContainerState, WaitOutcome, WaitReason};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("outcome.exit_codes", "the exit code is the process's own, by every way of asking", exit_codes),
        check!("outcome.killed", "128+N for a signal, with reason Signal and its name", killed),
        check!("outcome.finished_at", "finished_at is the time of the end", finished_at),
        check!("outcome.oom", "OomKilled when the kernel killed its init for want of memory", oom),
        check!("outcome.oom_of_child", "not OomKilled when that was another of its processes", oom_of_child),
        check!(
            "outcome.killed_after_oom",
            "nor when a SIGKILL of ours ended it, whatever was killed in it before",
            killed_after_oom
        ),
        check!("outcome.inspect", "inspect_detailed tells the exit code once there is one", inspect),
        check!("wait.before_start", "before the first start, wait is for the end of the first attempt", before_start),
        check!("wait.blocks", "wait does not return while the container runs, and may be dropped", blocks),
        check!("wait.many", "any number of waiters are told", many),
        check!("wait.after_exit", "exited earlier: at once, and again", after_exit),
        check!("wait.attempts", "wait is for the attempt that is current at the call, whatever follows", attempts),
        check!("wait.fast", "containers that exit at once are all accounted for, each with its own code", fast),
    ]
}

async fn exit_codes(case: Case) -> Verdict {
    let codes = [0, 1, 42, 126, 127, 255];
    join_all(codes.map(|code| exit_code(&case, code))).await.into_iter().collect()
}

async fn exit_code(case: &Case, code: u8) -> Verdict {
    let id = case.start(&Workload::exit(code)).await?;
    let code = i32::from(code);
    equal("wait_container", &case.wait(&id).await?, &code)?;
    let outcome = case.runtime().wait_outcome(&id).await.or_fail("wait_outcome")?;
    equal("wait_outcome", &WaitOutcome { finished_at: None, ..outcome }, &WaitOutcome::exited(code))?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the state", &state, &ContainerState::Exited { code })
}

async fn killed(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::Ignore { signal: "TERM" }).await?;
    case.runtime().kill_container(&id, None).await.or_unsupported("kill_container")?;
    equal("the exit code", &within("wait after KILL", case.soon(), case.wait(&id)).await??, &137)?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the state", &state, &ContainerState::Exited { code: 137 })?;
    killed_by(&case, &id, "SIGKILL").await
}

/// Checks that `id` is on record as killed by `signal`.
pub(super) async fn killed_by(case: &Case, id: &ContainerId, signal: &str) -> Verdict {
    let outcome = case.runtime().wait_outcome(id).await.or_fail("wait_outcome")?;
    if outcome == WaitOutcome::exited(outcome.exit_code) {
        return Err(Stop::Unsupported("wait_outcome is the trait's default, which knows no reason".to_owned()));
    }
    equal("the reason", &outcome.reason, &WaitReason::Signal)?;
    equal("the signal", &outcome.signal.as_deref(), &Some(signal))
}

async fn finished_at(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let before = Utc::now();
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    let after = Utc::now();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let outcome = case.runtime().wait_outcome(&id).await.or_fail("wait_outcome")?;
    let Some(finished_at) = outcome.finished_at else {
        return Err(Stop::Unsupported("this backend does not record when a container ended".to_owned()));
    };
    let slack = TimeDelta::milliseconds(50);
    ensure(before - slack <= finished_at && finished_at <= after + slack, || {
        format!("it ended between {before} and {after}, not at {finished_at}")
    })
}

/// A script that needs far more than [`OOM_LIMIT`], and still ends where no limit is kept.
const TOO_MUCH: &str = "s=x; i=0; while [ $i -lt 27 ]; do s=$s$s; i=$((i+1)); done";
const OOM_LIMIT: ByteSize = ByteSize::new(32 << 20);

async fn outcome_in_little_memory(case: &Case, script: String) -> Verdict<WaitOutcome> {
    let mut spec = case.spec(&Workload::Script(script))?;
    spec.resources.memory = Some(OOM_LIMIT);
    let id = case.start_spec(&spec).await?;
    let code = case.wait(&id).await?;
    let outcome = case.runtime().wait_outcome(&id).await.or_fail("wait_outcome")?;
    equal("wait_outcome's exit code", &outcome.exit_code, &code)?;
    Ok(outcome)
}

async fn oom(case: Case) -> Verdict {
    let outcome = outcome_in_little_memory(&case, format!("{TOO_MUCH}; exit 3")).await?;
    equal("the exit code", &outcome.exit_code, &137)?;
    if outcome == WaitOutcome::exited(137) {
        return Err(Stop::Unsupported("wait_outcome is the trait's default, which knows no reason".to_owned()));
    }
    equal("the reason", &outcome.reason, &WaitReason::OomKilled)?;
    equal("the signal", &outcome.signal.as_deref(), &Some("SIGKILL"))
}

async fn oom_of_child(case: Case) -> Verdict {
    let outcome = outcome_in_little_memory(&case, format!("({TOO_MUCH}; exit 3); [ $? -gt 128 ] && exit 5")).await?;
    equal("the exit code", &outcome.exit_code, &5)?;
    equal("the reason", &outcome.reason, &WaitReason::Exited)
}

/// The first attempt of its container is killed by the kernel, as is a process of the second, and we kill that.
async fn killed_after_oom(case: Case) -> Verdict {
    let mut spec = case.script(format!(
        "if [ -e /conformance ]; then ({TOO_MUCH}; exit 3); [ $? -gt 128 ] && echo ready; sleep 86400 & wait; \
         else : > /conformance; {TOO_MUCH}; exit 3; fi"
    ))?;
    spec.resources.memory = Some(OOM_LIMIT);
    let id = case.start_spec(&spec).await?;
    equal("the exit code of what had too little memory", &case.wait(&id).await?, &137)?;
    case.runtime().start_container(&id).await.or_fail("start_container of an exited container")?;
    case.line(&id, "ready").await?;
    let count = || async {
        match case.runtime().stats_detailed(&id).await {
            Ok(stats) => Ok(stats.memory.oom_kills),
            Err(AgentError::Unsupported(_)) => Ok(None),
            Err(error) => Err(error).or_fail("stats_detailed"),
        }
    };
    let before = count().await?;
    ensure(before.is_none_or(|count| count > 0), || "the kernel killed a process, and none is counted".to_owned())?;
    case.runtime().kill_container(&id, None).await.or_unsupported("kill_container")?;
    equal("the exit code of what was killed", &case.wait(&id).await?, &137)?;
    killed_by(&case, &id, "SIGKILL").await?;
    let after = count().await?;
    ensure(after >= before, || format!("{before:?} OOM kills are on record, and after the end {after:?}"))
}

async fn inspect(case: Case) -> Verdict {
    let id = case.start(&Workload::exit(42)).await?;
    case.wait(&id).await?;
    match case.runtime().inspect_detailed(&id).await.or_unsupported("inspect_detailed")? {
        details if details == Default::default() => {
            Err(Stop::Unsupported("inspect_detailed is the trait's default, which knows nothing".to_owned()))
        }
        details => equal("the exit code", &details.exit_code, &Some(42)),
    }
}

async fn before_start(case: Case) -> Verdict {
    let id = case.create(&Workload::exit(42)).await?;
    let waiter = tokio::spawn({
        let (case, id) = (case.clone(), id.clone());
        async move { case.wait(&id).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure(!waiter.is_finished(), || "wait returned before the container was started".to_owned())?;
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    let code = within("wait", case.soon(), waiter).await?.map_err(|error| Stop::Failed(error.to_string()))??;
    equal("the exit code", &code, &42)
}

async fn blocks(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "TERM", code: 3 }).await?;
    let early = tokio::time::timeout(Duration::from_millis(500), case.wait(&id)).await;
    ensure(early.is_err(), || format!("wait returned {early:?} while the container runs"))?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    equal("the exit code", &case.wait(&id).await?, &3)
}

async fn many(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "TERM", code: 9 }).await?;
    let waiters = async { try_join_all((0..100).map(|_| case.wait(&id))).await };
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")
    };
    let (codes, stopped) = within("100 waiters", case.soon(), async { tokio::join!(waiters, stop) }).await?;
    stopped?;
    equal("what 100 waiters were told", &codes?, &vec![9; 100])
}

async fn after_exit(case: Case) -> Verdict {
    let id = case.start(&Workload::exit(42)).await?;
    case.wait(&id).await?;
    for _ in 0..3 {
        let code = within("wait after the exit", case.soon() / 5, case.wait(&id)).await??;
        equal("the exit code", &code, &42)?;
    }
    Ok(())
}

async fn attempts(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "TERM", code: 7 }).await?;
    let begin = || {
        let (case, id) = (case.clone(), id.clone());
        tokio::spawn(async move { case.wait(&id).await })
    };
    let called = || tokio::time::sleep(Duration::from_millis(500));
    let first = begin();
    called().await;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    case.until("the second attempt writes nothing", || async {
        let logs = case.logs(&id, 2).await?;
        Ok((logs.iter().filter(|entry| entry.message == "ready").count() == 2).then_some(()))
    })
    .await?;
    let second = begin();
    called().await;
    ensure(!second.is_finished(), || "wait returned while the second attempt runs".to_owned())?;
    let told = |told: std::result::Result<Verdict<i32>, tokio::task::JoinError>| match told {
        Ok(code) => code,
        Err(error) => Err(Stop::Failed(format!("{error}"))),
    };
    let code = within("the wait of the first attempt", case.soon(), first).await?;
    equal("the exit code of the first attempt", &told(code)?, &7)?;
    case.runtime().kill_container(&id, None).await.or_unsupported("kill_container")?;
    let code = within("the wait of the second attempt", case.soon(), second).await?;
    equal("the exit code of the second attempt", &told(code)?, &137)?;
    equal("what a later wait answers", &case.wait(&id).await?, &137)
}

async fn fast(case: Case) -> Verdict {
    let one = async |code: u8| -> Verdict<(u8, i32)> {
        let id = case.start(&Workload::exit(code)).await?;
        let told = case.wait(&id).await?;
        case.runtime().remove_container(&id).await.or_fail("remove_container")?;
        Ok((code, told))
    };
    for round in 0..4 {
        let told = try_join_all((0..8).map(|n| one(round * 8 + n))).await?;
        ensure(told.iter().all(|(code, told)| i32::from(*code) == *told), || format!("own and told codes: {told:?}"))?;
    }
    Ok(())
}
