//! Volumes of which this host cannot read what it knows: told of, and removed by force.

use std::path::Path;

use runtime_core::VolumeStatus;

use crate::config::MountedBy;
use crate::error::{Error, Result};
use crate::foreign::{Foreign, is_own};
use crate::paths::Paths;
use crate::scan::changes;
use crate::state::{State, User};
use crate::status::status;

/// The state at `path`, of volume `name`; one that tells nothing but its users if it is damaged, as far as `mounted_by` knows
/// them. Blocks.
pub(crate) fn state_or_users(path: &Path, name: &str, mounted_by: Option<&MountedBy>) -> Result<Option<State>> {
    match State::load(path) {
        Err(error @ Error::Damaged { .. }) => {
            tracing::warn!(%error, "what it tells of users and claims is not heeded");
            let users = mounted_by.map(|mounted_by| mounted_by.ask(name)).unwrap_or_default();
            let users = users.into_iter().map(|user| (user, User { readonly: false })).collect();
            Ok(Some(State { users, ..State::default() }))
        }
        loaded => loaded,
    }
}

/// The status of a volume whose state cannot be read, for `error`: nobody knows what of it is anywhere else. Blocks.
pub(crate) fn status_without_state(name: &str, paths: &Paths, error: &Error) -> VolumeStatus {
    let mut status = VolumeStatus { last_error: Some(error.to_string()), ..status(name, paths, &State::default()) };
    if is_own(name, &paths.data()) {
        match changes(&paths.data(), None) {
            Ok(found) => (status.bytes_at_risk, status.size_bytes) = (found.size_bytes, Some(found.size_bytes)),
            Err(error) => tracing::debug!(volume = name, %error, "not counted"),
        }
    }
    Foreign::tell(&mut status, paths);
    status
}
