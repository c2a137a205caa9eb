//! Dropped futures of what is beyond a container's life: undone, or completed by its owner, and to be called again.

use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use super::archives::{pulled, save};
use super::case::{Case, OrStop, Verdict, ensure, equal, of_host, within};
use super::histories::two_generations;
use super::pull::is_whole;
use super::storage::{TARGET, mounted};
use super::tar::{Member, Sink, archive, members};
use super::volumes::named;
use super::{Check, Workload, check};
use crate::spec::{ByteSize, ResourcesSpec};
use crate::{AgentError, CopyInOptions, Progress, PullPolicy, RestoreOptions};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("cancel.kill", "a dropped kill can be called again; nothing but its signal comes", kill),
        check!("cancel.pause", "a dropped pause or unpause can be called again, and is whole then", pause),
        check!("cancel.update", "a dropped update can be called again, and the limit is the one asked for", update),
        check!("cancel.images", "a dropped tag or removal of an image can be called again, and is whole then", images),
        check!("cancel.sync", "a dropped sync can be called again, and is durable then", sync),
        check!("cancel.restore", "a dropped restore of a volume can be called again, and is whole then", restore),
        check!("cancel.claim", "a dropped claim of a volume can be called again, and loses nothing", claim),
        check!("cancel.load", "a dropped load can be called again; its images are whole then, or gone", load),
        check!("cancel.copy_in", "a dropped copy into a container can be called again, and comes no more", copy_in),
        check!("cancel.export", "a dropped export leaves a container that can be exported and removed", export),
    ]
}

/// When the futures are dropped: from before they do anything to when they are likely done.
const MOMENTS_MS: [u64; 5] = [0, 1, 4, 16, 64];

/// Drops a call after each of these.
fn moments() -> impl Iterator<Item = Duration> {
    MOMENTS_MS.into_iter().map(Duration::from_millis)
}

/// Calls, and drops it after `moment`; says what was done.
async fn dropped<T>(call: &str, moment: Duration, future: impl Future<Output = crate::Result<T>>) -> Verdict<String> {
    if let Ok(Err(error)) = tokio::time::timeout(moment, future).await {
        return Err(error).or_unsupported(call);
    }
    Ok(format!("a {call} dropped after {moment:?}"))
}

async fn kill(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ReportSignals).await?;
    let runtime = case.runtime();
    for moment in moments() {
        let what = dropped("kill_container", moment, runtime.kill_container(&id, Some("HUP"))).await?;
        let again = within("kill_container again", case.soon(), runtime.kill_container(&id, Some("USR1"))).await?;
        again.or_fail(&format!("kill_container after {what}"))?;
        case.line(&id, "got USR1").await?;
    }
    let logs = runtime.get_logs(&id).await.or_fail("get_logs")?;
    let others = logs.iter().filter(|entry| !["ready", "got HUP", "got USR1"].contains(&entry.message.as_str()));
    equal("what else came", &others.map(|entry| &entry.message).collect::<Vec<_>>(), &Vec::new())
}

async fn pause(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let runtime = case.runtime();
    for moment in moments() {
        let what = dropped("pause", moment, runtime.pause(&id)).await?;
        within("pause again", case.soon(), runtime.pause(&id)).await?.or_fail(&format!("pause after {what}"))?;
        let what = dropped("unpause", moment, runtime.unpause(&id)).await?;
        within("unpause again", case.soon(), runtime.unpause(&id)).await?.or_fail(&format!("unpause after {what}"))?;
        equal(&format!("what it answers after {what}"), &case.ask(&id, "echo runs").await?.as_str(), &"runs")?;
    }
    Ok(())
}

async fn update(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::idle())?;
    spec.resources.memory = Some(ByteSize::new(64 << 20));
    let id = case.start_spec_ready(&spec).await?;
    let runtime = case.runtime();
    let to = |mib: u64| ResourcesSpec { memory: Some(ByteSize::new(mib << 20)), ..ResourcesSpec::default() };
    for moment in moments() {
        let what = dropped("update_resources", moment, runtime.update_resources(&id, &to(128))).await?;
        let smaller = to(96);
        let again = within("update again", case.soon(), runtime.update_resources(&id, &smaller)).await?;
        again.or_fail(&format!("update_resources after {what}"))?;
        let stats = runtime.get_container_stats(&id).await.or_unsupported("get_container_stats")?;
        equal(&format!("the limit after {what}"), &stats.memory_limit, &(96 << 20))?;
    }
    Ok(())
}

async fn images(case: Case) -> Verdict {
    let id = case.create(&Workload::exit(0)).await?; // so that the image is here, and stays
    let (runtime, source, target) = (case.runtime(), case.backend().image(), case.image_name("1"));
    let never = || runtime.pull_image_with_policy(&target, PullPolicy::Never, None);
    for moment in moments() {
        let what = dropped("tag_image", moment, runtime.tag_image(&source, &target)).await?;
        runtime.tag_image(&source, &target).await.or_fail(&format!("tag_image after {what}"))?;
        never().await.or_fail(&format!("the new name after {what}"))?;
        let what = dropped("remove_image", moment, runtime.remove_image(&target, true)).await?;
        match runtime.remove_image(&target, true).await {
            Ok(()) | Err(AgentError::NotFound { .. }) => {}
            Err(error) => return Err(error).or_fail(&format!("remove_image after {what}")),
        }
        ensure(never().await.is_err(), || format!("{target} is removed, and here, after {what}"))?;
    }
    runtime.start_container(&id).await.or_fail("start_container")?;
    equal("the exit code of the first name's", &case.wait(&id).await?, &0)
}

async fn sync(case: Case) -> Verdict {
    let volume = case.volume_name();
    let spec = mounted(&case, &Workload::idle().to_string(), named(&volume, false))?;
    let id = case.start_spec_ready(&spec).await?;
    let runtime = case.runtime();
    for moment in moments() {
        case.ask(&id, &format!("echo {moment:?} > {TARGET}/f")).await?;
        let what = dropped("sync_container_volumes", moment, runtime.sync_container_volumes(&id)).await?;
        let again = within("a sync again", 3 * case.soon(), runtime.sync_container_volumes(&id)).await?;
        again.or_fail(&format!("sync_container_volumes after {what}"))?;
        let status = runtime.volume_status(&volume).await.or_unsupported("volume_status")?;
        equal(&format!("the bytes at risk after {what}"), &status.bytes_at_risk, &0)?;
        let is_durable = status.durable_at.is_some() || !case.backend().syncs_volumes();
        ensure(is_durable, || format!("after {what} and another it is not durable: {status:?}"))?;
    }
    Ok(())
}

/// All that is in the volume, by a container that is gone then.
async fn content(case: &Case, volume: &str) -> Verdict<String> {
    let script = "cd TARGET; cat file dir/same; ls";
    let id = case.start_spec(&mounted(case, script, named(volume, false))?).await?;
    case.wait(&id).await?;
    let logs = case.logs(&id, 6).await?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    Ok(logs.iter().map(|entry| entry.message.as_str()).collect::<Vec<_>>().join(" "))
}

async fn restore(case: Case) -> Verdict {
    let (volume, [old, new]) = two_generations(&case).await?;
    let runtime = case.runtime();
    let to = |generation: u64| RestoreOptions {
        generation: Some(generation),
        discard_local: true,
        ..RestoreOptions::default()
    };
    for moment in moments() {
        let what = dropped("restore_volume", moment, runtime.restore_volume(&volume, &to(old))).await?;
        let again = within("a restore again", 3 * case.soon(), runtime.restore_volume(&volume, &to(new))).await?;
        again.or_fail(&format!("restore_volume after {what}"))?;
        let found = content(&case, &volume).await?;
        equal(&format!("what is restored after {what}"), &found.as_str(), &"newer 3 added dir file mode")?;
    }
    Ok(())
}

async fn claim(case: Case) -> Verdict {
    let (volume, _) = two_generations(&case).await?;
    let runtime = case.runtime();
    let claim = || runtime.claim_volume(&volume, false, Progress::default());
    for moment in moments() {
        let what = dropped("claim_volume", moment, claim()).await?;
        let again = within("a claim again", 3 * case.soon(), claim()).await?;
        let claimed = again.or_fail(&format!("claim_volume after {what}"))?;
        ensure(claimed.owner.as_ref().is_some_and(|owner| !owner.is_empty()), || {
            format!("after {what} and another nobody owns it: {claimed:?}")
        })?;
        // Who has used it gives it back.
        let found = content(&case, &volume).await?;
        equal(&format!("what is there after {what}"), &found.as_str(), &"newer 3 added dir file mode")?;
    }
    Ok(())
}

async fn load(case: Case) -> Verdict {
    let (_registry, reference, image) = pulled(&case, "loaded and dropped").await?;
    let file = case.directory()?.join("saved.tar");
    of_host(&file, std::fs::write(&file, save(&case, std::slice::from_ref(&reference)).await?))?;
    let runtime = case.runtime();
    for moment in moments() {
        runtime.remove_image(&reference, true).await.or_unsupported("remove_image")?;
        let never = runtime.pull_image_with_policy(&reference, PullPolicy::Never, None).await;
        ensure(never.is_err(), || format!("before {moment:?} {reference} is removed, and here"))?;
        let what = dropped("load_images", moment, runtime.load_images(&file)).await?;
        let again = within("a load again", 3 * case.soon(), runtime.load_images(&file)).await?;
        let loaded = again.or_fail(&format!("load_images after {what}"))?;
        let told: Vec<_> = loaded.iter().map(|one| (&one.reference, one.digest.as_ref())).collect();
        equal(&format!("what is loaded after {what}"), &told, &vec![(&reference, Some(&image.digest))])?;
        is_whole(&case, &reference).await?;
    }
    Ok(())
}

async fn copy_in(case: Case) -> Verdict {
    const NAMES: [&str; 3] = ["one", "two", "three"];
    let id = case.start_ready(&Workload::idle()).await?;
    let (runtime, options) = (case.runtime(), CopyInOptions::default());
    let copy = |number: usize, text: &str| {
        let content = text.repeat(20_000);
        let members: Vec<Member> =
            NAMES.iter().map(|name| Member::file(&format!("conformance-{number}-{name}"), content.as_str())).collect();
        runtime.copy_in(&id, Path::new("/"), Box::new(Cursor::new(archive(&members))), &options)
    };
    let sums = |number: usize| {
        format!(
            "cd /; cat conformance-{number}-* | tr -s '\\n' | sort -u | tr '\\n' ' '; \
        cat conformance-{number}-* | wc -c"
        )
    };
    for (number, moment) in moments().enumerate() {
        let what = dropped("copy_in", moment, copy(number, "dropped\n")).await?;
        let again = within("a copy again", 3 * case.soon(), copy(number, "another\n")).await?;
        again.or_fail(&format!("copy_in after {what}"))?;
        let found = case.ask(&id, &sums(number)).await?;
        equal(&format!("what is there after {what}"), &found.as_str(), &"another 480000")?;
    }
    // Nothing came later.
    for number in 0..MOMENTS_MS.len() {
        let found = case.ask(&id, &sums(number)).await?;
        equal("what is there at the end", &found.as_str(), &"another 480000")?;
    }
    Ok(())
}

async fn export(case: Case) -> Verdict {
    let runtime = case.runtime();
    let id = case.start_ready(&Workload::Script(format!("echo here > /exported; {}", Workload::idle()))).await?;
    let nowhere = || Box::new(std::io::sink());
    for moment in moments() {
        let what = dropped("export", moment, runtime.export(&id, nowhere())).await?;
        let sink = Sink::default();
        let again = within("export again", 3 * case.soon(), runtime.export(&id, sink.boxed())).await?;
        again.or_fail(&format!("export after {what}"))?;
        let all = members(&sink.taken())?;
        let found = all.iter().find(|one| one.name == "exported").map(Member::text);
        equal(&format!("what is exported after {what}"), &found.as_deref(), &Some("here\n"))?;
    }
    // One in flight.
    dropped("export", Duration::from_millis(1), runtime.export(&id, nowhere())).await?;
    within("remove_container", 3 * case.soon(), runtime.remove_container(&id)).await?.or_fail("remove_container")
}
