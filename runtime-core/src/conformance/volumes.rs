//! Named volumes.

use chrono::{DateTime, TimeDelta, Utc};

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, refused};
use super::storage::{TARGET, directory_of_the_shell, mounted};
use super::{Check, Workload, check};
use crate::spec::{ByteSize, StorageSpec};
use crate::{AgentError, ContainerId, VolumeStatus};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("volumes.stays", "a named volume outlives its container, synced or not, and the next one has it", stays),
        check!("volumes.shared", "two containers that name one volume share it", shared),
        check!("volumes.read_only", "a read-only named volume cannot be written", read_only),
        check!("volumes.filled", "a new named volume is filled from the image's directory", filled),
        check!("volumes.sync", "sync is Ok only when durable; with nowhere to sync to Ok, and durable_at null", sync),
        check!("volumes.sync_without", "sync without named volumes is Ok and has no effect", sync_without),
        check!("volumes.tier", "the tier is a word that changes nothing", tier),
        check!(
            "volumes.durable",
            "what is synced is told as durable: generation, time, owner, nothing at risk",
            durable
        ),
        check!("volumes.sync_own", "a sync is of this container's volumes alone", sync_own),
        check!("volumes.stopped", "a stop makes durable what was written: a new generation, nothing at risk", stopped),
        check!("volumes.exited", "so does, in its time, an end that nobody asked for", exited),
        check!("volumes.size", "no more can be written than its size, or that is refused by name", size),
        check!("volumes.take_over", "a take-over of what nobody has is no error and loses nothing", take_over),
        check!("volumes.status", "what is held here is listed with its size; an unknown one is NotFound", status),
    ]
}

pub(super) fn named(name: &str, readonly: bool) -> StorageSpec {
    let (name, target) = (name.to_owned(), TARGET.to_owned());
    StorageSpec::Named { name, target, readonly, tier: None, size: None, take_over: false }
}

/// The end of a check that needs a bucket, where there is none.
fn needs_bucket(case: &Case) -> Verdict {
    match case.backend().syncs_volumes() {
        true => Ok(()),
        false => Err(Stop::Unsupported("the backend has no bucket for its volumes".to_owned())),
    }
}

/// A container that runs with a volume of the check's own at [`TARGET`].
pub(super) async fn with_volume(case: &Case) -> Verdict<(String, ContainerId)> {
    needs_bucket(case)?;
    let volume = case.volume_name();
    let spec = mounted(case, &Workload::idle().to_string(), named(&volume, false))?;
    Ok((volume, case.start_spec_ready(&spec).await?))
}

async fn stays(case: Case) -> Verdict {
    let volume = case.volume_name();
    keeps_what_is_written(&case, named(&volume, false)).await
}

/// Whether each container finds what those before it wrote to a volume.
async fn keeps_what_is_written(case: &Case, volume: StorageSpec) -> Verdict {
    let spec = mounted(case, "echo written >> TARGET/f; wc -l < TARGET/f | tr -d ' '", volume)?;
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

async fn tier(case: Case) -> Verdict {
    let volume = case.volume_name();
    let mut fast = named(&volume, false);
    if let StorageSpec::Named { tier, .. } = &mut fast {
        *tier = Some("fast".to_owned());
    }
    case.answer(&mounted(&case, "echo kept > TARGET/f; echo done", fast)?).await?;
    let found = case.answer(&mounted(&case, "cat TARGET/f", named(&volume, false))?).await?;
    equal("what the next one finds, without a tier", &found.as_str(), &"kept")
}

async fn durable(case: Case) -> Verdict {
    let (volume, id) = with_volume(&case).await?;
    let mut last = None;
    for text in ["first", "second"] {
        case.ask(&id, &format!("echo {text} > {TARGET}/f")).await?;
        let before = Utc::now();
        case.runtime().sync_container_volumes(&id).await.or_unsupported("sync_container_volumes")?;
        let status = status_of(&case, &volume).await?;
        ensure(status.generation > last, || format!("after generation {last:?} comes {:?}", status.generation))?;
        let slack = TimeDelta::seconds(1);
        ensure(status.durable_at.is_some_and(|durable| before - slack <= durable), || {
            format!("synced after {before} it is durable at {:?}", status.durable_at)
        })?;
        equal("the bytes at risk", &status.bytes_at_risk, &0)?;
        equal("what the last sync failed with", &status.last_error, &None)?;
        ensure(status.owner.as_ref().is_some_and(|owner| !owner.is_empty()), || {
            format!("it is owned by nobody: {status:?}")
        })?;
        last = status.generation;
    }
    Ok(())
}

async fn sync_own(case: Case) -> Verdict {
    // Who syncs now and then what runs may come to the other one meanwhile, but not each time.
    const TIMES: usize = 3;
    let ((own, id), (other, other_id)) = (with_volume(&case).await?, with_volume(&case).await?);
    let mut seen = Vec::new();
    for time in 1..=TIMES {
        for id in [&id, &other_id] {
            case.ask(id, &format!("echo {time} > {TARGET}/f")).await?;
        }
        let before = status_of(&case, &other).await?;
        case.runtime().sync_container_volumes(&id).await.or_unsupported("sync_container_volumes")?;
        let after = status_of(&case, &other).await?;
        equal("the bytes at risk of its own", &status_of(&case, &own).await?.bytes_at_risk, &0)?;
        let told = |status: VolumeStatus| (status.generation, status.durable_at, status.bytes_at_risk);
        let (before, after) = (told(before), told(after));
        if before.2 > 0 && before == after {
            return Ok(());
        }
        seen.push((before, after));
    }
    Err(Stop::Failed(format!("another container's volume before and after: {seen:?}")))
}

/// Whether what was written after `before`, when the volume was at `generation`, is durable.
fn published(status: &VolumeStatus, before: DateTime<Utc>, generation: Option<u64>) -> bool {
    let is_late = status.durable_at.is_some_and(|durable| before - TimeDelta::seconds(1) <= durable);
    is_late && status.generation > generation && status.bytes_at_risk == 0
}

async fn stopped(case: Case) -> Verdict {
    let (volume, id) = with_volume(&case).await?;
    for attempt in 1..=2 {
        if attempt > 1 {
            case.runtime().start_container(&id).await.or_fail("start_container of a stopped container")?;
        }
        let (before, old) = (Utc::now(), status_of(&case, &volume).await?);
        case.ask(&id, &format!("echo {attempt} > {TARGET}/f")).await?;
        case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
        let status = status_of(&case, &volume).await?;
        ensure(published(&status, before, old.generation), || {
            format!("written after {before}, and stopped, {old:?} has become {status:?}")
        })?;
    }
    Ok(())
}

async fn exited(case: Case) -> Verdict {
    needs_bucket(&case)?;
    let (id, volume) = (case.id(), case.volume_name());
    let spec = mounted(&case, "echo kept > TARGET/f; exit 3", named(&volume, false))?;
    case.runtime().create_container(&id, &spec).await.or_unsupported("create_container")?;
    let (before, old) = (Utc::now(), status_of(&case, &volume).await?);
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    equal("the exit code", &case.wait(&id).await?, &3)?;
    // As with health: a backend that is busy with other containers may come to it late.
    case.until_within(4 * case.soon(), "what it wrote to its volume is not durable", || async {
        let status = status_of(&case, &volume).await?;
        Ok(published(&status, before, old.generation).then_some(()))
    })
    .await
}

async fn size(case: Case) -> Verdict {
    let (id, volume) = (case.id(), case.volume_name());
    let script = "echo small > TARGET/f && cat TARGET/f; \
                  if head -c 4194304 /dev/zero 2>/dev/null > TARGET/g; then echo fits; else echo full; fi";
    let mut small = named(&volume, false);
    if let StorageSpec::Named { size, .. } = &mut small {
        *size = Some(ByteSize::new(1 << 20));
    }
    let spec = mounted(&case, script, small)?;
    match case.runtime().create_container(&id, &spec).await {
        Err(AgentError::Unsupported(reason)) if reason.contains("size") => return Err(Stop::Unsupported(reason)),
        Err(AgentError::Unsupported(reason)) => {
            return Err(Stop::Failed(format!("a size is Unsupported, and not named: {reason}")));
        }
        created => created.or_fail("create_container")?,
    }
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    case.wait(&id).await?;
    let logs = case.logs(&id, 2).await?;
    let lines: Vec<&str> = logs.iter().map(|entry| entry.message.as_str()).collect();
    equal("what can be written into 1 MiB", &lines, &vec!["small", "full"])
}

async fn take_over(case: Case) -> Verdict {
    let volume = case.volume_name();
    let mut taken = named(&volume, false);
    if let StorageSpec::Named { take_over, .. } = &mut taken {
        *take_over = true;
    }
    keeps_what_is_written(&case, taken).await
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
