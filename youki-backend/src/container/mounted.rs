//! Who has a volume mounted, by the records of the containers: the volume's own account may be damaged.

use std::fs;

use runtime_core::ContainerId;
use volumes_s3::MountedBy;

use crate::error::Error;
use crate::layout::Layout;
use crate::record::{self, ContainerRecord};

/// Looks at all containers each time that it is asked.
pub(crate) fn mounted_by(layout: &Layout) -> MountedBy {
    let layout = layout.clone();
    MountedBy::new(move |volume| {
        let entries = fs::read_dir(layout.containers()).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<ContainerId>().ok());
        let mounts = |id: &ContainerId| {
            match record::read::<ContainerRecord>(&layout.container(id).record()) {
                Ok(record) => record.is_some_and(|record| record.named_volumes().contains(volume)),
                Err(Error::Corrupt { .. }) => false,
                // Short of descriptors, say: it may have it.
                Err(_) => true,
            }
        };
        let mut users: Vec<String> = ids.filter(mounts).map(|id| id.to_string()).collect();
        users.sort_unstable();
        users
    })
}
