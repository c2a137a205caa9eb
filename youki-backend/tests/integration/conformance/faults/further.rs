//! Faults of what goes beyond the contract's 24 methods.

use runtime_core::spec::ByteSize;
use runtime_core::{AttachEvent, Owner, PullEvent, PullPolicy, StatsSnapshot};

use super::{Faults, act, spec};
use crate::conformance::spoils::{Act, Spoils};

pub(super) fn of_streams() -> Faults {
    let attached = |spoil| Spoils { attached: Some(spoil), ..Spoils::default() };
    let snapshot = |spoil: fn(&mut StatsSnapshot)| Spoils { snapshot: Some(spoil), ..Spoils::default() };
    vec![
        (&["attach.output"], attached(|_| None)),
        (
            &["attach.bytes"],
            attached(|event| match event {
                AttachEvent::Stdout(bytes) => {
                    Some(AttachEvent::Stdout(String::from_utf8_lossy(&bytes).into_owned().into_bytes()))
                }
                event => Some(event),
            }),
        ),
        (&["attach.bytes"], attached(|event| matches!(event, AttachEvent::Stdout(_)).then_some(event))),
        (&["attach.input", "attach.dropped", "attach.terminal"], act(Act::AttachesWithoutInput)),
        (&["attach.ended"], act(Act::AttachesToWhatEnded)),
        (&["stats_all.running"], act(Act::StatsOfNone)),
        (&["stats_all.beside_removals"], act(Act::StatsOneByOne)),
        (&["stats_stream.interval", "stats_stream.zero"], act(Act::StatsWithoutPause)),
        (&["stats_stream.interval"], snapshot(|stats| stats.basic.memory_bytes = 0)),
        (&["stats_stream.interval", "stats_stream.restarts"], act(Act::StatsOnce)),
        (&["stats_stream.end", "stats_stream.ended"], act(Act::StatsForEver)),
        (
            &["stats_stream.ended"],
            snapshot(|stats| stats.basic.cpu_usage_usec = u64::MAX - stats.basic.timestamp.timestamp_micros() as u64),
        ),
        (&["cancel.pause"], act(Act::PausesOnce)),
        (
            &["cancel.update"],
            Spoils { changes: Some(|changes| changes.memory = Some(ByteSize::new(128 << 20))), ..Spoils::default() },
        ),
    ]
}

pub(super) fn of_files() -> Faults {
    let tar = |spoil| Spoils { tar: Some(spoil), ..Spoils::default() };
    vec![
        (
            &["copy.in"],
            Spoils {
                copied: Some(|options| {
                    if options.owner == Owner::Kept {
                        options.owner = Owner::Always { uid: 0, gid: 0 };
                    }
                }),
                ..Spoils::default()
            },
        ),
        (&["copy.options"], Spoils { copied: Some(|options| options.rename = None), ..Spoils::default() }),
        (&["copy.options"], Spoils { copied: Some(|options| options.owner = Owner::Kept), ..Spoils::default() }),
        (&["copy.out"], act(Act::FollowsLinksOtherwise)),
        (&["copy.ended"], act(Act::CopiesWhatRuns)),
        (&["cancel.copy_in"], act(Act::CallsOnce)),
        (&["cancel.copy_in"], act(Act::CopiesAfterwards)),
        (&["copy.missing", "copy.links", "cancel.copy_in"], act(Act::CopiesNothing)),
        (&["export.root", "cancel.export"], tar(|_| vec![0; 1024])),
        (&["export.root"], tar(|tar| tar[..tar.len() / 2].to_vec())),
    ]
}

pub(super) fn of_images() -> Faults {
    let pull_event = |spoil| Spoils { pull_event: Some(spoil), ..Spoils::default() };
    let logs = |spoil| Spoils { logs: Some(spoil), ..Spoils::default() };
    vec![
        (
            &["pull_stream.told"],
            pull_event(|event| Some(event).filter(|event| !matches!(event, Ok(PullEvent::Resolved { .. })))),
        ),
        (
            &["pull_stream.told"],
            pull_event(|event| Some(event).filter(|event| !matches!(event, Ok(PullEvent::Layer { .. })))),
        ),
        (&["pull_stream.here"], Spoils { policy: Some(PullPolicy::Always), ..Spoils::default() }),
        (&["pull_stream.fails"], pull_event(|event| event.ok().map(Ok))),
        (&["pull_stream.dropped"], act(Act::PullsOn)),
        (&["images.inspect"], Spoils { inspected: Some(|image| image.size_bytes /= 2), ..Spoils::default() }),
        (&["images.inspect"], Spoils { inspected: Some(|image| image.id = image.digest.clone()), ..Spoils::default() }),
        (&["images.history"], Spoils { steps: Some(|steps| steps.reverse()), ..Spoils::default() }),
        (&["images.save_load"], Spoils { image: Some(|image| image.digest = None), ..Spoils::default() }),
        (&["images.load_invalid"], act(Act::LoadsAnything)),
        (&["cancel.load"], act(Act::CallsOnce)),
        (&["images.push", "images.push_refused", "images.unknown"], act(Act::PushesInName)),
        (
            &["layers.attributes"],
            logs(|mut logs| {
                logs.iter_mut().for_each(|entry| entry.message = entry.message.replace("4751", "751"));
                logs
            }),
        ),
        (
            &["layers.deleted"],
            logs(|mut logs| {
                logs.iter_mut().for_each(|entry| entry.message = entry.message.replace("again dir", "again dir gone"));
                logs
            }),
        ),
        (&["layers.links"], act(Act::WritesThroughLinks)),
        (&["layers.used"], act(Act::RemovesUsers)),
        (&["prune.dangling"], Spoils { pruned: Some(|pruned| pruned.space_reclaimed = 0), ..Spoils::default() }),
        (&["prune.beside_create"], act(Act::AbortsPulls)),
        (&["prune.dropped"], act(Act::PrunesNothing)),
    ]
}

pub(super) fn of_fields() -> Faults {
    vec![
        (&["ports.range"], spec(|spec| spec.port_ranges.clear())),
        (&["ports.range"], spec(|spec| spec.port_ranges.iter_mut().for_each(|range| range.host_port_end += 1))),
        (&["ports.exposed"], spec(|spec| spec.publish_all = false)),
        (&["ports.exposed"], spec(|spec| spec.publish_all = true)),
        (&["remove_on_exit.exited", "remove_on_exit.stopped"], spec(|spec| spec.remove_on_exit = false)),
        (&["health.image"], spec(|spec| spec.no_healthcheck = true)),
        (&["health.image"], spec(|spec| spec.no_healthcheck = false)),
        (&["network.port_override"], act(Act::GivesOnePort)),
    ]
}

pub(super) fn of_histories() -> Faults {
    vec![
        (&["volumes.history"], Spoils { history: Some(|history| history.reverse()), ..Spoils::default() }),
        (
            &["volumes.unchanged"],
            Spoils {
                history: Some(|history| history.iter_mut().for_each(|entry| entry.new_bytes = entry.size_bytes)),
                ..Spoils::default()
            },
        ),
        (
            &["volumes.diff"],
            Spoils { changed: Some(|changes| changes.truncate(changes.len().saturating_sub(1))), ..Spoils::default() },
        ),
        (&["volumes.verify"], Spoils { verified: Some(|report| report.generations = 1), ..Spoils::default() }),
        (
            &["volumes.restore_beside"],
            Spoils { restore: Some(|options| options.generation = None), ..Spoils::default() },
        ),
        (&["volumes.restore"], Spoils { restore: Some(|options| options.discard_local = true), ..Spoils::default() }),
        (&["volumes.claim"], Spoils { volume: Some(|status| status.owner = None), ..Spoils::default() }),
        (
            &["volumes.prune_history"],
            Spoils { history_pruned: Some(|pruned| pruned.kept.clear()), ..Spoils::default() },
        ),
        (
            &["volumes.prune"],
            Spoils { pruned: Some(|pruned| pruned.deleted = vec!["?".to_owned()]), ..Spoils::default() },
        ),
        (&["volumes.absent"], act(Act::VerifiesNothing)),
        (&["cancel.sync"], act(Act::SyncsNothing)),
        (&["cancel.restore", "cancel.claim"], act(Act::CallsOnce)),
        // The first one that holds a tree, whichever is asked for.
        (&["cancel.restore"], Spoils { restore: Some(|options| options.generation = Some(2)), ..Spoils::default() }),
        (&["cancel.claim"], Spoils { volume: Some(|status| status.owner = None), ..Spoils::default() }),
    ]
}
