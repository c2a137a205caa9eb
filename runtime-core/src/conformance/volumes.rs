//! Named volumes.

use chrono::{TimeDelta, Utc};

use super::case::{Case, OrStop, Verdict, ensure, equal, refused};
use super::storage::{TARGET, directory_of_the_shell, mounted};
use super::{Check, Workload, check};
use crate::spec::StorageSpec;
use crate::{AgentError, VolumeStatus};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("volumes.stays", "a named volume outlives its container, synced or not, and the next one has it", stays),
        check!("volumes.shared", "two containers that name one volume share it", shared),
        check!("volumes.read_only", "a read-only named volume cannot be written", read_only),
        check!("volumes.filled", "a new named volume is filled from the image's directory", filled),
        check!("volumes.sync", "sync is Ok only when durable; with nowhere to sync to Ok, and durable_at null", sync),
        check!("volumes.sync_without", "sync without named volumes is Ok and has no effect", sync_without),
        check!("volumes.status", "what is held here is listed with its size; an unknown one is NotFound", status),
    ]
}

fn named(name: &str, readonly: bool) -> StorageSpec {
    let (name, target) = (name.to_owned(), TARGET.to_owned());
    StorageSpec::Named { name, target, readonly, tier: None, size: None, take_over: false }
}

async fn stays(case: Case) -> Verdict {
    let volume = case.volume_name();
    let spec = mounted(&case, "echo written >> TARGET/f; wc -l < TARGET/f | tr -d ' '", named(&volume, false))?;
    for lines in 1..=2 {
        let id = case.start_spec(&spec).await?;
        case.wait(&id).await?;
        let logs = case.logs(&id, 1).await?;
        let found: Vec<&str> = logs.iter().map(|entry| entry.message.as_str()).collect();
        equal(&format!("what container {lines} finds"), &found, &vec![lines.to_string().as_str()])?;
        case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    }
    Ok(())
}

async fn shared(case: Case) -> Verdict {
    let volume = case.volume_name();
    let spec = mounted(&case, &Workload::idle().to_string(), named(&volume, false))?;
    let (one, other) = (case.start_spec_ready(&spec).await?, case.start_spec_ready(&spec).await?);
    case.ask(&one, &format!("echo shared > {TARGET}/f")).await?;
    let found = case.ask(&other, &format!("cat {TARGET}/f")).await?;
    equal("what the other reads", &found.as_str(), &"shared")
}

async fn read_only(case: Case) -> Verdict {
    let volume = case.volume_name();
    case.answer(&mounted(&case, "echo kept > TARGET/f; echo done", named(&volume, false))?).await?;
    let script = "cat TARGET/f; if (: > TARGET/g) 2>/dev/null; then echo written; else echo refused; fi";
    let (_, lines) = case.output(&mounted(&case, script, named(&volume, true))?, 2).await?;
    equal("reading and writing", &lines, &vec!["kept".to_owned(), "refused".to_owned()])
}

/// As for an anonymous one: unless filled, nothing runs.
async fn filled(case: Case) -> Verdict {
    let directory = directory_of_the_shell(&case).await?;
    let (name, readonly) = (case.volume_name(), false);
    let storage =
        StorageSpec::Named { name, target: directory.clone(), readonly, tier: None, size: None, take_over: false };
    let found = case.answer(&mounted(&case, "echo filled", storage)?).await?;
    equal(&format!("a volume at {directory}"), &found.as_str(), &"filled")
}

async fn status_of(case: &Case, volume: &str) -> Verdict<VolumeStatus> {
    case.runtime().volume_status(volume).await.or_unsupported("volume_status")
}

async fn sync(case: Case) -> Verdict {
    let volume = case.volume_name();
    let spec = mounted(&case, &format!("echo kept > TARGET/f; {}", Workload::idle()), named(&volume, false))?;
    let id = case.start_spec_ready(&spec).await?;
    let before = Utc::now();
    case.runtime().sync_container_volumes(&id).await.or_unsupported("sync_container_volumes")?;
    let status = status_of(&case, &volume).await?;
    let slack = TimeDelta::seconds(1);
    let is_told = status.durable_at.is_none_or(|durable| before - slack <= durable && durable <= Utc::now() + slack);
    ensure(is_told, || format!("synced after {before} it is durable at {:?}", status.durable_at))?;
    ensure(status.durable_at.is_none() || status.bytes_at_risk == 0, || {
        format!("it is synced, and {} bytes are at risk", status.bytes_at_risk)
    })?;
    // Not durable for want of a bucket, it is not after a stop either.
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    let stopped = status_of(&case, &volume).await?;
    ensure(status.durable_at.is_some() || stopped.durable_at.is_none(), || {
        format!("durable at {:?} by a stop, and before by no sync", stopped.durable_at)
    })
}

async fn sync_without(case: Case) -> Verdict {
    let running = case.start_ready(&Workload::idle()).await?;
    let exited = case.start(&Workload::exit(0)).await?;
    case.wait(&exited).await?;
    for id in [running, exited] {
        case.runtime().sync_container_volumes(&id).await.or_unsupported("sync_container_volumes")?;
    }
    Ok(())
}

async fn status(case: Case) -> Verdict {
    let volume = case.volume_name();
    let unknown = case.runtime().volume_status(&volume).await;
    if let Err(AgentError::Unsupported(_)) = unknown {
        return unknown.map(drop).or_unsupported("volume_status");
    }
    refused("the status of a volume that is not there", unknown, |error| matches!(error, AgentError::NotFound { .. }))?;
    let script = "head -c 100000 /dev/zero > TARGET/f; echo done";
    case.answer(&mounted(&case, script, named(&volume, false))?).await?;
    let status = status_of(&case, &volume).await?;
    equal("its name", &status.name, &volume)?;
    ensure(status.size_bytes.is_none_or(|bytes| (100_000..10_000_000).contains(&bytes)), || {
        format!("with a file of 100,000 bytes it has {:?}", status.size_bytes)
    })?;
    ensure(status.mountpoint.is_absolute(), || format!("it is at {:?}", status.mountpoint))?;
    let listed = case.runtime().list_volumes().await.or_unsupported("list_volumes")?;
    let mine: Vec<_> = listed.iter().filter(|one| one.name == volume).map(|one| &one.mountpoint).collect();
    equal("its entries in the list", &mine, &vec![&status.mountpoint])
}
