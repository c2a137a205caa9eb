//! Whether what runs is well.

use std::time::{Duration, Instant};

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal};
use super::{Check, Workload, check};
use crate::spec::{HealthCheck, HealthSpec};
use crate::{ContainerId, ContainerState, HealthDetail};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("health.command", "a command makes it healthy, or unhealthy after so many failures", command),
        check!("health.output", "what the last check said is told", output),
        check!("health.grace", "while it may start failures do not count", grace),
        check!("health.tcp", "a connection to a port of the container makes it healthy", tcp),
        check!("health.http", "an answer with the expected status makes it healthy", http),
        check!("health.timeout", "a check that takes longer than it may has failed", timeout),
        check!("health.none", "without a check there is no health", none),
    ]
}

pub(super) fn well(patience: Duration, check: HealthCheck) -> HealthSpec {
    let interval = Duration::from_millis(100);
    HealthSpec { check, start_grace: Duration::ZERO, interval, timeout: patience, retries: 2 }
}

fn listing(path: &str) -> HealthCheck {
    HealthCheck::Command { command: vec!["ls".to_owned(), path.to_owned()] }
}

async fn command(case: Case) -> Verdict {
    let mut spec = case.script("echo ready; exec sleep 3600")?;
    spec.health = Some(well(case.soon(), listing("/well")));
    let id = case.start_spec(&spec).await?;
    let detail = until_health(&case, &id, "unhealthy").await?;
    ensure(detail.failing_streak.is_none_or(|streak| streak >= 2), || format!("unhealthy after {detail:?}"))?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the state of an unhealthy container", &state, &ContainerState::Running)?;
    let script = Workload::Script("touch /well".to_owned());
    equal("the exit code of touch", &case.exec(&id, &script).await?.0, &0)?;
    let detail = until_health(&case, &id, "healthy").await?;
    ensure(detail.failing_streak.is_none_or(|streak| streak == 0), || format!("healthy, and {detail:?}"))
}

async fn output(case: Case) -> Verdict {
    let mut spec = case.script("echo ready; exec sleep 3600")?;
    let said = vec!["sh".to_owned(), "-c".to_owned(), "echo all is well".to_owned()];
    spec.health = Some(well(case.soon(), HealthCheck::Command { command: said }));
    let id = case.start_spec(&spec).await?;
    let detail = until_health(&case, &id, "healthy").await?;
    ensure(detail.last_output.as_ref().is_none_or(|text| text.contains("all is well")), || {
        format!("it said \"all is well\", and there is {detail:?}")
    })
}

async fn grace(case: Case) -> Verdict {
    let mut spec = case.script("echo ready; exec sleep 3600")?;
    spec.health = Some(HealthSpec { start_grace: Duration::from_secs(3600), ..well(case.soon(), listing("/well")) });
    let id = case.start_spec(&spec).await?;
    until_health(&case, &id, "starting").await?;
    tokio::time::sleep(Duration::from_secs(2)).await; // many checks, all of which fail
    equal("the health after failures", &health(&case, &id).await?.status.as_str(), &"starting")?;
    case.ask(&id, "touch /well").await?;
    until_health(&case, &id, "healthy").await.map(drop)
}

/// A container in its own network that answers one connection after another with `answer`, once `/go` is there.
async fn server(case: &Case, answer: &str, check: HealthCheck) -> Verdict<ContainerId> {
    let script = format!(
        "command -v nc > /dev/null || {{ echo no nc; exit; }}; echo ready; while [ ! -e /go ]; do sleep 1; done; \
         while :; do printf '{answer}' | nc -l -p 8080 > /dev/null; done"
    );
    let mut spec = case.script(script)?;
    spec.health = Some(well(case.soon(), check));
    let id = case.start_spec(&spec).await?;
    let logs = case.logs(&id, 1).await?;
    if logs.iter().any(|entry| entry.message == "no nc") {
        return Err(Stop::Unsupported("the image has no nc".to_owned()));
    }
    Ok(id)
}

async fn comes_up(case: &Case, answer: &str, check: HealthCheck) -> Verdict {
    let id = server(case, answer, check).await?;
    until_health(case, &id, "unhealthy").await?;
    case.ask(&id, "touch /go").await?;
    until_health(case, &id, "healthy").await.map(drop)
}

async fn tcp(case: Case) -> Verdict {
    comes_up(&case, "", HealthCheck::Tcp { port: 8080 }).await
}

async fn http(case: Case) -> Verdict {
    let answer = "HTTP/1.1 418 Short and stout\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n";
    let url = "http://127.0.0.1:8080/";
    comes_up(&case, answer, HealthCheck::Http { url: url.to_owned(), expect_status: Some(418) }).await?;
    let other = HealthCheck::Http { url: url.to_owned(), expect_status: None };
    let id = server(&case, answer, other).await?;
    case.ask(&id, "touch /go").await?;
    until_health(&case, &id, "unhealthy").await.map(drop)
}

async fn timeout(case: Case) -> Verdict {
    let mut spec = case.script("echo ready; exec sleep 3600")?;
    let slow = vec!["sleep".to_owned(), "3600".to_owned()];
    let check = well(Duration::from_millis(200), HealthCheck::Command { command: slow });
    spec.health = Some(check);
    let id = case.start_spec(&spec).await?;
    until_health(&case, &id, "unhealthy").await.map(drop)
}

async fn none(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let details = case.runtime().inspect_detailed(&id).await.or_unsupported("inspect_detailed")?;
    let status = details.health.as_ref().map(|health| health.status.as_str());
    ensure(matches!(status, None | Some("none")), || format!("without a check its health is {status:?}"))
}

async fn health(case: &Case, id: &ContainerId) -> Verdict<HealthDetail> {
    let details = case.runtime().inspect_detailed(id).await.or_unsupported("inspect_detailed")?;
    details.health.ok_or_else(|| Stop::Failed("a container with a check has no health".to_owned()))
}

async fn until_health(case: &Case, id: &ContainerId, wanted: &str) -> Verdict<HealthDetail> {
    let begun = Instant::now();
    loop {
        let health = health(case, id).await?;
        // A backend that is busy with other containers may come to it late.
        if health.status == wanted || begun.elapsed() > case.soon() * 4 {
            equal("the health", &health.status.as_str(), &wanted)?;
            return Ok(health);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
