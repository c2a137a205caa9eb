//! The history of named volumes, where they are synced to a bucket: Unsupported is an answer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, of_host, refused};
use super::storage::{TARGET, mounted};
use super::volumes::{named, with_volume};
use super::{Check, Workload, check};
use crate::{AgentError, Change, ContainerId, Progress, RecordKind, RestoreOptions, Result};

pub(super) fn checks() -> Vec<Check> {
    let checks = vec![
        check!("volumes.history", "each sync of something new is a record, oldest first; claims with all", history),
        check!("volumes.unchanged", "what has not changed is not sent again", unchanged),
        check!("volumes.diff", "what changed from one generation to another, in the order of the tree", diff),
        check!("volumes.verify", "a history that is whole has no damage; all of it is read, or one generation", verify),
        check!(
            "volumes.restore_beside",
            "a generation is restored beside, into a directory that is empty or new",
            beside
        ),
        check!("volumes.restore", "one is restored in place, and never over what is nowhere else", restore),
        check!("volumes.claim", "a volume that nobody has is claimed by hand, and restored where it lacks", claim),
        check!("volumes.prune_history", "a prune of the history leaves the newest, and tells what went", prune_history),
        check!("volumes.absent", "a volume that is not there is NotFound to each of these", absent),
    ];
    let prune = check!(
        "volumes.prune",
        "local copies go that no container has and the bucket holds as they are, and no others",
        prune
    );
    // It takes the copies of every volume.
    checks.into_iter().chain([Check { alone: true, ..prune }]).collect()
}

/// Runs a script in the volume, and syncs it.
async fn written(case: &Case, id: &ContainerId, script: &str) -> Verdict {
    case.ask(id, &format!("cd {TARGET}; {script}")).await?;
    case.runtime().sync_container_volumes(id).await.or_unsupported("sync_container_volumes")
}

/// The generations of the history, oldest first.
async fn generations(case: &Case, volume: &str) -> Verdict<Vec<u64>> {
    let history = case.runtime().volume_history(volume, false).await.or_unsupported("volume_history")?;
    let of = |entry: &crate::HistoryEntry| {
        entry.generation.ok_or_else(|| Stop::Failed(format!("it holds no tree: {entry:?}")))
    };
    history.iter().map(of).collect()
}

/// A volume of two generations whose container is gone; their numbers.
pub(super) async fn two_generations(case: &Case) -> Verdict<(String, [u64; 2])> {
    let (volume, id) = with_volume(case).await?;
    written(case, &id, "echo old > file; echo 1 > gone; echo 2 > mode; mkdir dir; echo 3 > dir/same").await?;
    let old = generations(case, &volume).await?.last().copied();
    written(case, &id, "echo newer > file; rm gone; chmod 600 mode; echo 3 > added").await?;
    let new = generations(case, &volume).await?.last().copied();
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    match (old, new) {
        (Some(old), Some(new)) if old < new => Ok((volume, [old, new])),
        _ => Err(Stop::Failed(format!("the newest generation is {old:?}, and after another sync {new:?}"))),
    }
}

/// One that counts, and what it has been told.
fn counting() -> (Progress, Arc<AtomicU64>) {
    let told = Arc::new(AtomicU64::new(0));
    let most = told.clone();
    let progress = Progress::new(move |done, _| {
        most.fetch_max(done, Ordering::Relaxed);
    });
    (progress, told)
}

fn is_other(error: &AgentError) -> bool {
    !matches!(error, AgentError::NotFound { .. } | AgentError::Unsupported(_))
}

async fn history(case: Case) -> Verdict {
    let (volume, [old, new]) = two_generations(&case).await?;
    let all = case.runtime().volume_history(&volume, true).await.or_unsupported("volume_history")?;
    ensure(all.is_sorted_by_key(|entry| entry.record), || format!("not the oldest first: {all:?}"))?;
    ensure(all.iter().any(|entry| entry.kind == RecordKind::Claim), || format!("nobody ever claimed it: {all:?}"))?;
    let data = case.runtime().volume_history(&volume, false).await.or_unsupported("volume_history")?;
    ensure(data.iter().all(|entry| entry.kind == RecordKind::Data), || format!("not data alone: {data:?}"))?;
    let of = |number| data.iter().find(|entry| entry.generation == Some(number));
    for (number, files, bytes) in [(old, 4, 10), (new, 4, 12)] {
        let Some(entry) = of(number) else { return Err(Stop::Failed(format!("{number} is not among {data:?}"))) };
        let has_count =
            entry.files.is_none_or(|count| count == files) && entry.size_bytes.is_none_or(|count| count == bytes);
        ensure(has_count, || format!("a tree of {files} files and {bytes} bytes is told as {entry:?}"))?;
        ensure(!entry.host.is_empty(), || format!("nobody wrote it: {entry:?}"))?;
    }
    Ok(())
}

async fn unchanged(case: Case) -> Verdict {
    let (volume, id) = with_volume(&case).await?;
    const BIG: u64 = 1_000_000;
    written(&case, &id, &format!("head -c {BIG} /dev/urandom > big; echo 1 > small")).await?;
    let before = generations(&case, &volume).await?;
    written(&case, &id, "cat big > /dev/null").await?;
    let status = case.runtime().volume_status(&volume).await.or_unsupported("volume_status")?;
    equal("the bytes at risk", &status.bytes_at_risk, &0)?;
    written(&case, &id, "echo 2 > small; touch big").await?;
    let history = case.runtime().volume_history(&volume, false).await.or_unsupported("volume_history")?;
    let later = history.iter().filter(|entry| entry.generation > before.last().copied());
    let sent: Vec<u64> = later.filter_map(|entry| entry.new_bytes).collect();
    ensure(sent.iter().sum::<u64>() < BIG / 10, || format!("after a change of two bytes were sent {sent:?}"))?;
    // The first sync sent all of it, or these numbers say nothing.
    let first = history.iter().filter(|entry| entry.generation <= before.last().copied());
    let sent: Vec<u64> = first.filter_map(|entry| entry.new_bytes).collect();
    ensure(sent.is_empty() || sent.iter().sum::<u64>() >= BIG, || format!("of {BIG} bytes of noise were sent {sent:?}"))
}

async fn diff(case: Case) -> Verdict {
    let (volume, [old, new]) = two_generations(&case).await?;
    let changes = case.runtime().diff_volume(&volume, old, new).await.or_unsupported("diff_volume")?;
    let told: Vec<_> =
        changes.iter().map(|one| (one.path.as_str(), one.change, one.old_size_bytes, one.new_size_bytes)).collect();
    let wanted = vec![
        ("added", Change::Added, None, Some(2)),
        ("file", Change::Content, Some(4), Some(6)),
        ("gone", Change::Removed, Some(2), None),
        ("mode", Change::Attributes, Some(2), Some(2)),
    ];
    equal("what changed", &told, &wanted)?;
    let none = case.runtime().diff_volume(&volume, new, new).await.or_fail("diff_volume of one with itself")?;
    equal("what differs from itself", &none, &Vec::new())?;
    let absent = case.runtime().diff_volume(&volume, old, new + 1_000_000).await;
    refused("a comparison with a generation that is not there", absent, is_other)
}

async fn verify(case: Case) -> Verdict {
    let (volume, [old, _]) = two_generations(&case).await?;
    let all = generations(&case, &volume).await?.len() as u64;
    let (progress, told) = counting();
    let report = case.runtime().verify_volume(&volume, None, progress).await.or_unsupported("verify_volume")?;
    equal("the generations that were read", &report.generations, &all)?;
    equal("the damage", &report.damaged, &Vec::new())?;
    ensure(report.stored_bytes > 0 && report.chunks > 0, || format!("nothing was read: {report:?}"))?;
    ensure(told.load(Ordering::Relaxed) > 0, || "nothing was told of its progress".to_owned())?;
    let one =
        case.runtime().verify_volume(&volume, Some(old), Progress::default()).await.or_fail("verify_volume of one")?;
    equal("the generations that were read of one", &one.generations, &1)?;
    let absent = case.runtime().verify_volume(&volume, Some(old + 1_000_000), Progress::default()).await;
    refused("a generation that is not there", absent, is_other)
}

fn file_of(directory: &Path) -> Verdict<String> {
    let file = directory.join("file");
    of_host(&file, std::fs::read_to_string(&file))
}

async fn beside(case: Case) -> Verdict {
    let (volume, [old, _]) = two_generations(&case).await?;
    let to = case.directory()?.join("beside");
    let (progress, told) = counting();
    let options = RestoreOptions { generation: Some(old), to: Some(to.clone()), progress, ..RestoreOptions::default() };
    let report = case.runtime().restore_volume(&volume, &options).await.or_unsupported("restore_volume")?;
    equal("what was restored", &(report.generation, &report.path, report.files), &(old, &to, 4))?;
    equal("its file", &file_of(&to)?.as_str(), &"old\n")?;
    equal("the bytes that were told of", &told.load(Ordering::Relaxed), &report.size_bytes)?;
    refused("a restore over it", case.runtime().restore_volume(&volume, &options).await, is_other)?;
    let options = RestoreOptions { generation: Some(old + 1_000_000), to: Some(to.with_extension("other")), ..options };
    refused("a generation that is not there", case.runtime().restore_volume(&volume, &options).await, is_other)?;
    equal("what is still there", &file_of(&to)?.as_str(), &"old\n")
}

/// What the next container finds in the volume.
async fn found_in(case: &Case, volume: &str) -> Verdict<String> {
    case.answer(&mounted(case, "cat TARGET/file", named(volume, false))?).await
}

async fn restore(case: Case) -> Verdict {
    let (volume, [old, new]) = two_generations(&case).await?;
    let older = RestoreOptions { generation: Some(old), ..RestoreOptions::default() };
    case.runtime().restore_volume(&volume, &older).await.or_unsupported("restore_volume")?;
    let spec = mounted(&case, &Workload::idle().to_string(), named(&volume, false))?;
    let id = case.start_spec_ready(&spec).await?;
    equal("what is there then", &case.ask(&id, &format!("cat {TARGET}/file")).await?.as_str(), &"old")?;
    // A change made here, which the next sync publishes as the newest.
    case.runtime().sync_container_volumes(&id).await.or_fail("sync_container_volumes")?;
    let newest = generations(&case, &volume).await?.last().copied();
    ensure(newest > Some(new), || format!("after generation {new} the newest is {newest:?}"))?;
    refused("a restore beneath a container", case.runtime().restore_volume(&volume, &older).await, is_other)?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;

    let here = case.runtime().volume_status(&volume).await.or_unsupported("volume_status")?.mountpoint;
    if case.backend().shared_directory().is_none() || !here.is_dir() {
        return Err(Stop::Unsupported("the suite does not see the volume's directory".to_owned()));
    }
    let file = here.join("file");
    of_host(&file, std::fs::write(&file, "by hand\n"))?;
    refused("a restore over what is nowhere else", case.runtime().restore_volume(&volume, &older).await, is_other)?;
    equal("what was changed by hand", &file_of(&here)?.as_str(), &"by hand\n")?;
    let discard = RestoreOptions { discard_local: true, generation: Some(new), ..RestoreOptions::default() };
    case.runtime().restore_volume(&volume, &discard).await.or_fail("restore_volume with discard_local")?;
    equal("what the next one finds", &found_in(&case, &volume).await?.as_str(), &"newer")
}

async fn claim(case: Case) -> Verdict {
    let (volume, [_, new]) = two_generations(&case).await?;
    let claimed =
        case.runtime().claim_volume(&volume, false, Progress::default()).await.or_unsupported("claim_volume")?;
    equal("its name", &claimed.name, &volume)?;
    ensure(claimed.owner.as_ref().is_some_and(|owner| !owner.is_empty()), || format!("nobody owns it: {claimed:?}"))?;
    ensure(claimed.generation >= Some(new), || format!("generation {new} is the newest, and here is {claimed:?}"))?;
    let status = case.runtime().volume_status(&volume).await.or_unsupported("volume_status")?;
    equal("its owner", &status.owner, &claimed.owner)?;
    // Its own is claimed again, and used.
    case.runtime().claim_volume(&volume, false, Progress::default()).await.or_fail("claim_volume again")?;
    equal("what a container finds", &found_in(&case, &volume).await?.as_str(), &"newer")
}

async fn prune_history(case: Case) -> Verdict {
    let (volume, [_, new]) = two_generations(&case).await?;
    let before = generations(&case, &volume).await?;
    let pruned = case.runtime().prune_volume_history(&volume).await.or_unsupported("prune_volume_history")?;
    equal("the volume", &pruned.name, &volume)?;
    let mut all = [pruned.removed.clone(), pruned.kept.clone()].concat();
    all.sort_unstable();
    equal("what went and what stayed", &all, &before)?;
    ensure(pruned.kept.contains(&new), || format!("the newest is {new}, and it kept {:?}", pruned.kept))?;
    equal("the history then", &generations(&case, &volume).await?, &pruned.kept)?;
    equal("what a container finds", &found_in(&case, &volume).await?.as_str(), &"newer")
}

async fn prune(case: Case) -> Verdict {
    if !case.backend().may_prune() {
        return Err(Stop::Unsupported("the backend does not allow the suite to prune".to_owned()));
    }
    let (durable, _) = two_generations(&case).await?;
    let (used, id) = with_volume(&case).await?;
    written(&case, &id, "echo used > file").await?;
    // Changed since its last sync.
    let (changed, _) = two_generations(&case).await?;
    let here = case.runtime().volume_status(&changed).await.or_unsupported("volume_status")?.mountpoint;
    let can_change = here.is_dir() && case.backend().shared_directory().is_some();
    if can_change {
        let file = here.join("file");
        of_host(&file, std::fs::write(&file, "by hand\n"))?;
    }
    let pruned = case.runtime().prune_volumes().await.or_unsupported("prune_volumes")?;
    ensure(pruned.deleted.contains(&durable), || format!("{durable} is durable, and gone are {:?}", pruned.deleted))?;
    ensure(!pruned.deleted.contains(&used), || format!("{used}, which a container has, is gone"))?;
    ensure(!can_change || !pruned.deleted.contains(&changed), || format!("{changed}, changed here alone, is gone"))?;
    let listed = case.runtime().list_volumes().await.or_unsupported("list_volumes")?;
    ensure(listed.iter().all(|one| one.name != durable), || format!("{durable} is still listed"))?;
    equal("what is in the one that is used", &case.ask(&id, &format!("cat {TARGET}/file")).await?.as_str(), &"used")?;
    // It comes back.
    equal("what a container finds", &found_in(&case, &durable).await?.as_str(), &"newer")
}

async fn absent(case: Case) -> Verdict {
    let (runtime, name) = (case.runtime(), case.volume_name());
    let mut wrong = Vec::new();
    let mut asked = 0;
    let mut add = |method: &str, answer: Result<()>| match answer {
        Err(AgentError::Unsupported(_)) => {}
        Err(error @ AgentError::NotFound { .. }) if error.to_string().contains(&name) => asked += 1,
        answer => wrong.push(format!("{method} answers {answer:?}")),
    };
    add("volume_status", runtime.volume_status(&name).await.map(drop));
    // Without a bucket there is nothing to ask the others.
    if case.backend().syncs_volumes() {
        let beside = RestoreOptions::default();
        add("volume_history", runtime.volume_history(&name, true).await.map(drop));
        add("restore_volume", runtime.restore_volume(&name, &beside).await.map(drop));
        add("verify_volume", runtime.verify_volume(&name, None, Progress::default()).await.map(drop));
        add("prune_volume_history", runtime.prune_volume_history(&name).await.map(drop));
        add("claim_volume", runtime.claim_volume(&name, false, Progress::default()).await.map(drop));
    }
    ensure(wrong.is_empty(), || wrong.join("; "))?;
    match asked {
        0 => Err(Stop::Unsupported("the backend has none of the methods that take a volume".to_owned())),
        _ => Ok(()),
    }
}
