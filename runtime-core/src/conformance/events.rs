//! What happened.

use std::time::{Duration, Instant};

use futures_util::StreamExt;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, within};
use super::health::well;
use super::pull::create_by;
use super::registry::{Image, Registry};
use super::storage::mounted;
use super::volumes::named;
use super::{Check, Workload, check};
use crate::spec::HealthCheck;
use crate::{ContainerId, Event, EventKind, EventStream, EventsOptions, PullPolicy};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("events.order", "create, start, exit and remove of a container, in this order", order),
        check!("events.attempts", "attempts are numbered from 1", attempts),
        check!("events.after", "a stream goes on exactly after the event that another ended with", after),
        check!("events.follow", "followed, it has what happens from then on", follow),
        check!("events.health", "that its health changed is an event", health),
        check!("events.pull", "that an image was pulled is one, by whichever call", pull),
        check!("events.volume", "that a volume was synced is one", volume),
        check!("events.oom", "a kill for want of memory is an event of its own", oom),
    ]
}

async fn so_far(case: &Case, options: &EventsOptions) -> Verdict<Vec<Event>> {
    let stream = case.runtime().events(options).await.or_unsupported("events")?;
    let all = within("the events so far", case.soon(), stream.collect::<Vec<_>>()).await?;
    all.into_iter().collect::<crate::Result<_>>().or_fail("events")
}

async fn of(case: &Case, id: &ContainerId) -> Verdict<Vec<Event>> {
    let all = so_far(case, &EventsOptions::default()).await?;
    ensure(all.windows(2).all(|pair| pair[0].number < pair[1].number), || "their numbers do not grow".to_owned())?;
    let name = id.to_string();
    Ok(all.into_iter().filter(|event| event.container.as_ref() == Some(&name)).collect())
}

async fn order(case: Case) -> Verdict {
    let id = case.start(&Workload::exit(3)).await?;
    case.wait(&id).await?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    let mine = of(&case, &id).await?;
    let wanted = [EventKind::Create, EventKind::Start, EventKind::Exit, EventKind::Remove];
    let kinds: Vec<EventKind> = mine.iter().map(|event| event.kind).filter(|kind| wanted.contains(kind)).collect();
    equal("what happened to it", &kinds, &wanted.to_vec())?;
    let code = mine.iter().find(|event| event.kind == EventKind::Exit).and_then(|event| event.exit_code);
    equal("the exit code in its event", &code, &Some(3))
}

async fn attempts(case: Case) -> Verdict {
    let id = case.start(&Workload::exit(3)).await?;
    case.wait(&id).await?;
    case.runtime().start_container(&id).await.or_fail("start_container of an exited container")?;
    case.wait(&id).await?;
    // An end is on record a moment before it is an event.
    let mine = case
        .until("there are no two events of its ends", || async {
            let mine = of(&case, &id).await?;
            let ends = mine.iter().filter(|event| event.kind == EventKind::Exit).count();
            Ok((ends >= 2).then_some(mine))
        })
        .await?;
    for kind in [EventKind::Start, EventKind::Exit] {
        let numbers: Vec<_> = mine.iter().filter(|event| event.kind == kind).map(|event| event.attempt).collect();
        equal(&format!("the attempts of its events {kind:?}"), &numbers, &vec![Some(1), Some(2)])?;
    }
    Ok(())
}

async fn after(case: Case) -> Verdict {
    let id = case.create(&Workload::exit(0)).await?;
    let mine = of(&case, &id).await?;
    let created = mine.iter().find(|event| event.kind == EventKind::Create);
    let number = created.map(|event| event.number);
    let number = number.ok_or_else(|| Stop::Failed(format!("there is no event of its creation: {mine:?}")))?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    let options = EventsOptions { after: Some(number), ..EventsOptions::default() };
    let rest = so_far(&case, &options).await?;
    ensure(rest.first().is_some_and(|event| event.number == number + 1), || {
        format!("after {number} comes {:?}", rest.first())
    })?;
    let name = id.to_string();
    let kinds: Vec<_> = rest.iter().filter(|event| event.container.as_ref() == Some(&name)).collect();
    ensure(kinds.iter().any(|event| event.kind == EventKind::Remove), || format!("after its creation came {kinds:?}"))
}

async fn follow(case: Case) -> Verdict {
    let options = EventsOptions { follow: true, since: Some(chrono::Utc::now()), ..EventsOptions::default() };
    let mut stream = case.runtime().events(&options).await.or_unsupported("events")?;
    let id = case.create(&Workload::exit(3)).await?;
    within("its creation", case.soon(), until(&mut stream, &id, EventKind::Create)).await??;
    // What was to be read is read: it goes on, or it ends here.
    let early = tokio::time::timeout(Duration::from_millis(300), until(&mut stream, &id, EventKind::Exit)).await;
    if let Ok(early) = early {
        return early.and_then(|event| Err(Stop::Failed(format!("before its start there is {event:?}"))));
    }
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    let exit = within("its exit", case.soon(), until(&mut stream, &id, EventKind::Exit)).await??;
    equal("the exit code in its event", &exit.exit_code, &Some(3))
}

/// The next event of `kind` that `id` has.
async fn until(stream: &mut EventStream, id: &ContainerId, kind: EventKind) -> Verdict<Event> {
    let name = id.to_string();
    while let Some(event) = stream.next().await {
        let event = event.or_fail("events")?;
        if event.kind == kind && event.container.as_ref() == Some(&name) {
            return Ok(event);
        }
    }
    Err(Stop::Failed("a followed stream has ended".to_owned()))
}

/// Waits for an event that `is_it`.
async fn is_told(case: &Case, what: &str, is_it: impl Fn(&Event) -> bool) -> Verdict {
    let otherwise = format!("there is no event of {what}");
    let begun = Instant::now();
    while !so_far(case, &EventsOptions::default()).await?.iter().any(&is_it) {
        // Who looks after health and volumes may come to these late.
        ensure(begun.elapsed() < case.soon() * 4, || otherwise.clone())?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn health(case: Case) -> Verdict {
    so_far(&case, &EventsOptions::default()).await?;
    let mut spec = case.script("echo ready; exec sleep 3600")?;
    spec.health = Some(well(case.soon(), HealthCheck::Command { command: vec!["true".to_owned()] }));
    let name = case.start_spec_ready(&spec).await?.to_string();
    let is_it = |event: &Event| event.kind == EventKind::Health && event.container.as_ref() == Some(&name);
    is_told(&case, "its becoming healthy", is_it).await
}

async fn pull(case: Case) -> Verdict {
    so_far(&case, &EventsOptions::default()).await?;
    let registry = Registry::start().await?;
    let by_call = registry.push(&case, "by-call", &Image::new("pulled by a call "));
    let by_create = registry.push(&case, "by-create", &Image::new("pulled by a create "));
    registry.pull(&case, &by_call, PullPolicy::IfNotPresent, None).await?;
    create_by(&case, &by_create, PullPolicy::IfNotPresent).await?;
    for image in [by_call, by_create] {
        let is_it = |event: &Event| event.kind == EventKind::Pull && event.image.as_ref() == Some(&image);
        is_told(&case, &format!("the pull of {image}"), is_it).await?;
    }
    Ok(())
}

async fn volume(case: Case) -> Verdict {
    so_far(&case, &EventsOptions::default()).await?;
    if !case.backend().syncs_volumes() {
        return Err(Stop::Unsupported("the backend has no bucket for its volumes".to_owned()));
    }
    let volume = case.volume_name();
    let id = case.start_spec_ready(&mounted(&case, &Workload::idle().to_string(), named(&volume, false))?).await?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    let is_it = |event: &Event| event.kind == EventKind::Volume && event.volume.as_ref() == Some(&volume);
    is_told(&case, &format!("the sync of {volume}"), is_it).await
}

async fn oom(case: Case) -> Verdict {
    so_far(&case, &EventsOptions::default()).await?;
    let mut spec = case.script("s=x; i=0; while [ $i -lt 27 ]; do s=$s$s; i=$((i+1)); done")?;
    spec.resources.memory = Some(crate::spec::ByteSize::new(32 << 20));
    let id = case.start_spec(&spec).await?;
    case.wait(&id).await?;
    case.until("there is no event of a kill for want of memory", || async {
        Ok(of(&case, &id).await?.iter().any(|event| event.kind == EventKind::Oom).then_some(()))
    })
    .await
}
