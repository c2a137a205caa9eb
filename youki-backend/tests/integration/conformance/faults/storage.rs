//! Faults of mounts and of named volumes.

use runtime_core::spec::StorageSpec;
use runtime_core::{AgentError, ServiceSpec, VolumeStatus};

use super::{Faults, act, refuses, spec};
use crate::conformance::spoils::{Act, Spoils};

/// A volume that outlives its container.
pub(super) fn kept(target: &str) -> StorageSpec {
    let (name, target) = ("conformance-fault".to_owned(), target.to_owned());
    StorageSpec::Named { name, target, readonly: false, tier: None, size: None, take_over: false }
}

fn each_storage(spec: &mut ServiceSpec, instead: fn(&StorageSpec) -> Option<StorageSpec>) {
    spec.storage = spec.storage.iter().filter_map(instead).collect();
}

fn anonymous(storage: &StorageSpec) -> Option<StorageSpec> {
    Some(StorageSpec::Anonymous { target: storage.target().to_owned() })
}

fn tmpfs(storage: &StorageSpec) -> Option<StorageSpec> {
    Some(StorageSpec::Tmpfs { target: storage.target().to_owned(), size: None, mode: None })
}

fn writable(storage: &StorageSpec) -> Option<StorageSpec> {
    let mut storage = storage.clone();
    if let StorageSpec::Bind { readonly, .. } | StorageSpec::Named { readonly, .. } = &mut storage {
        *readonly = false;
    }
    Some(storage)
}

fn unlimited(storage: &StorageSpec) -> Option<StorageSpec> {
    let mut storage = storage.clone();
    if let StorageSpec::Named { size, .. } = &mut storage {
        *size = None;
    }
    Some(storage)
}

fn takes_over(storage: &StorageSpec) -> bool {
    matches!(storage, StorageSpec::Named { take_over: true, .. })
}

/// What is Unsupported does not say what.
fn refuses_by_no_name() -> Spoils {
    Spoils { error: Some(|_| AgentError::Unsupported("not that".to_owned())), ..Spoils::default() }
}

pub(super) fn of_mounts() -> Faults {
    vec![
        (&["storage.tmpfs", "storage.tmpfs_mode"], spec(|spec| each_storage(spec, tmpfs))),
        (&["storage.bind", "storage.bind_missing"], spec(|spec| each_storage(spec, anonymous))),
        (&["storage.bind_read_only", "volumes.read_only"], spec(|spec| each_storage(spec, writable))),
        (&["storage.anonymous", "storage.filled", "volumes.filled"], spec(|spec| each_storage(spec, tmpfs))),
        (&["storage.anonymous_dies"], spec(|spec| each_storage(spec, |storage| Some(kept(storage.target()))))),
        (&["storage.s3"], spec(|spec| each_storage(spec, |_| None))),
        (
            &["volumes.stays", "volumes.shared", "volumes.sync", "volumes.status"],
            spec(|spec| each_storage(spec, anonymous)),
        ),
    ]
}

pub(super) fn of_volumes() -> Faults {
    let volume = |spoil: fn(&mut VolumeStatus)| Spoils { volume: Some(spoil), ..Spoils::default() };
    vec![
        (&["volumes.sync", "volumes.durable"], act(Act::SyncsNothing)),
        (&["volumes.durable"], volume(|status| status.durable_at = None)),
        (&["volumes.durable"], volume(|status| status.generation = Some(1))),
        (&["volumes.durable"], volume(|status| status.owner = None)),
        (&["volumes.durable"], volume(|status| status.bytes_at_risk = 1)),
        (&["volumes.durable"], volume(|status| status.last_error = Some("it failed".to_owned()))),
        (
            &["volumes.tier"],
            refuses(|spec| {
                let has_tier = |storage: &StorageSpec| matches!(storage, StorageSpec::Named { tier: Some(_), .. });
                spec.storage.iter().any(has_tier)
            }),
        ),
        (&["volumes.status"], volume(|status| status.size_bytes = Some(0))),
        (&["volumes.sync_own"], act(Act::SyncsAll)),
        (&["volumes.sync_own"], act(Act::SyncsNothing)),
        (&["volumes.stopped"], act(Act::StopsUnsynced)),
        (&["volumes.stopped", "volumes.exited"], volume(|status| status.generation = Some(1))),
        (&["volumes.stopped", "volumes.exited"], volume(|status| status.bytes_at_risk = 1)),
        (&["volumes.exited"], act(Act::ExitsUnsynced)),
        (&["volumes.size"], spec(|spec| each_storage(spec, unlimited))),
        (&["volumes.size"], refuses_by_no_name()),
        (&["volumes.take_over"], refuses(|spec| spec.storage.iter().any(takes_over))),
        (
            &["volumes.take_over"],
            spec(|spec| each_storage(spec, |one| if takes_over(one) { anonymous(one) } else { Some(one.clone()) })),
        ),
    ]
}
