//! What one or all containers use, as it goes: Unsupported is an answer.

use std::time::Duration;

use chrono::Utc;
use futures_util::StreamExt;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, refused, until_told, within};
use super::{Check, Workload, check};
use crate::spec::{RestartKind, RestartPolicy};
use crate::{AgentError, ContainerId, ServiceSpec, StatsSnapshot, StatsStream};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("stats_all.running", "those that run are told, by id, paused ones too, and no others", all),
        check!("stats_all.beside_removals", "one that is removed meanwhile is left out, and no error", beside_removals),
        check!("stats_stream.interval", "one at once, and then one at each interval", interval),
        check!("stats_stream.end", "the end of the container is that of the stream, whatever the interval", end),
        check!("stats_stream.ended", "of one that has ended the last stats come, and no more", ended),
        check!("stats_stream.restarts", "it goes on where the container is restarted by its policy", restarts),
        check!("stats_stream.zero", "an interval of zero is InvalidSpec", zero),
    ]
}

/// No check waits for a reading.
const OFTEN: Duration = Duration::from_millis(50);

async fn stats_all(case: &Case) -> Verdict<Vec<StatsSnapshot>> {
    let all = within("stats_all", case.soon(), case.runtime().stats_all()).await?;
    all.or_unsupported("stats_all")
}

async fn stream(case: &Case, id: &ContainerId, interval: Duration) -> Verdict<StatsStream> {
    case.runtime().stats_stream(id, interval).await.or_unsupported("stats_stream")
}

async fn reading(case: &Case, stats: &mut StatsStream) -> Verdict<StatsSnapshot> {
    let next = within("the next reading", case.soon(), stats.next()).await?;
    next.ok_or_else(|| Stop::Failed("the stream ends while it runs".to_owned()))?.or_fail("a reading")
}

/// What is left of the stream, which must end.
async fn rest(case: &Case, stats: StatsStream) -> Verdict<Vec<StatsSnapshot>> {
    let rest = within("the end of the stream", case.soon(), stats.collect::<Vec<_>>()).await?;
    rest.into_iter().map(|one| one.or_fail("a reading")).collect()
}

fn plausible(one: &StatsSnapshot) -> Verdict {
    let basic = &one.basic;
    let has_both = basic.memory_bytes >= 4096 && basic.cpu_usage_usec > 0;
    ensure(has_both, || format!("a waiting shell uses {} bytes and {} µs", basic.memory_bytes, basic.cpu_usage_usec))?;
    let told = one.detailed.cpu.usage_usec;
    ensure(told.is_none_or(|usec| usec.abs_diff(basic.cpu_usage_usec) < 1_000_000), || {
        format!("it used {} µs, and in detail {told:?}", basic.cpu_usage_usec)
    })
}

async fn all(case: Case) -> Verdict {
    stats_all(&case).await?;
    let idle = case.start_ready(&Workload::idle()).await?;
    let frozen = case.start_ready(&Workload::idle()).await?;
    let ended = case.start(&Workload::exit(0)).await?;
    case.wait(&ended).await?;
    let created = case.create(&Workload::exit(0)).await?;
    case.runtime().pause(&frozen).await.or_unsupported("pause")?;
    let all = stats_all(&case).await;
    case.runtime().unpause(&frozen).await.or_fail("unpause")?;
    let all = all?;
    // Others' containers come and go meanwhile.
    let of = |id: &ContainerId| all.iter().filter(|one| one.id == *id).collect::<Vec<_>>();
    for id in [&idle, &frozen] {
        let [one] = of(id)[..] else { return Err(Stop::Failed(format!("{id} stands {} times there", of(id).len()))) };
        plausible(one)?;
    }
    for id in [&ended, &created] {
        equal(&format!("the entries of {id}, which does not run"), &of(id).len(), &0)?;
    }
    ensure(all.is_sorted_by(|one, other| one.id <= other.id), || {
        format!("not by id: {:?}", all.iter().map(|one| one.id.to_string()).collect::<Vec<_>>())
    })
}

async fn beside_removals(case: Case) -> Verdict {
    stats_all(&case).await?;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(case.start(&Workload::idle()).await?);
    }
    let remove = async {
        for id in &ids {
            case.runtime().remove_container(id).await.or_fail("remove_container")?;
        }
        Ok(())
    };
    let ask = async {
        for _ in 0..20 {
            stats_all(&case).await?;
        }
        Ok(())
    };
    let (removed, asked): (Verdict, Verdict) = tokio::join!(remove, ask);
    removed.and(asked)?;
    let all = stats_all(&case).await?;
    let left: Vec<String> =
        all.iter().map(|one| one.id.to_string()).filter(|id| ids.iter().any(|one| one.to_string() == *id)).collect();
    equal("those that are removed and told", &left, &Vec::new())
}

async fn interval(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let mut seldom = stream(&case, &id, Duration::from_secs(86400)).await?;
    reading(&case, &mut seldom).await?;
    let mut stats = stream(&case, &id, Duration::from_secs(1)).await?;
    let first = reading(&case, &mut stats).await?;
    let second = reading(&case, &mut stats).await?;
    for one in [&first, &second] {
        equal("the container", &one.id, &id)?;
        plausible(one)?;
    }
    let between = second.basic.timestamp - first.basic.timestamp;
    ensure(between.num_milliseconds() >= 950, || {
        format!("asked for one each second the second comes after {} ms", between.num_milliseconds())
    })?;
    ensure(second.basic.cpu_usage_usec >= first.basic.cpu_usage_usec, || "its CPU time goes down".to_owned())
}

async fn end(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let mut often = stream(&case, &id, OFTEN).await?;
    let mut seldom = stream(&case, &id, Duration::from_secs(86400)).await?;
    reading(&case, &mut often).await?;
    reading(&case, &mut seldom).await?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    rest(&case, often).await?;
    rest(&case, seldom).await.map(drop)
}

async fn ended(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let running = reading(&case, &mut stream(&case, &id, OFTEN).await?).await?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    let last = rest(&case, stream(&case, &id, OFTEN).await?).await?;
    equal("the number of readings", &last.len(), &1)?;
    ensure(last[0].basic.cpu_usage_usec >= running.basic.cpu_usage_usec, || {
        format!("of {} µs there are {} at the end", running.basic.cpu_usage_usec, last[0].basic.cpu_usage_usec)
    })
}

async fn restarts(case: Case) -> Verdict {
    let script = format!("if mkdir /once 2>/dev/null; then {}; exit 1; fi; {}", until_told(1), Workload::idle());
    let delay = Some(Duration::from_millis(50));
    let restart_policy = RestartPolicy { kind: RestartKind::OnFailure, max_attempts: Some(2), delay };
    let id = case.start_spec(&ServiceSpec { restart_policy, ..case.script(script)? }).await?;
    let mut stats = stream(&case, &id, OFTEN).await?;
    reading(&case, &mut stats).await?;
    case.tell(&id, 1).await?;
    case.line(&id, "ready").await?;
    let restarted = Utc::now();
    let later = async {
        while reading(&case, &mut stats).await?.basic.timestamp <= restarted {}
        Ok::<(), Stop>(())
    };
    within("a reading of the second attempt", case.soon(), later).await??;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    rest(&case, stats).await.map(drop)
}

async fn zero(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let none = case.runtime().stats_stream(&id, Duration::ZERO).await.map(drop);
    if let Err(AgentError::Unsupported(_)) = none {
        return none.or_unsupported("stats_stream");
    }
    refused("an interval of zero", none, |error| matches!(error, AgentError::InvalidSpec(_)))
}
