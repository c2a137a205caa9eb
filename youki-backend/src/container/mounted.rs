//! Who has a volume mounted, by the records of the containers: the volume's own account may be damaged.

use std::fs;

use runtime_core::ContainerId;
use volumes_s3::MountedBy;

use crate::layout::Layout;
use crate::record::{self, ContainerRecord};

/// Looks at all containers each time that it is asked.
pub(crate) fn mounted_by(layout: &Layout) -> MountedBy {
    let layout = layout.clone();
    MountedBy::new(move |volume| {
        let entries = fs::read_dir(layout.containers()).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<ContainerId>().ok());
        let mounts = |id: &ContainerId| {
            let record: Option<ContainerRecord> = record::read(&layout.container(id).record()).ok().flatten();
            record.is_some_and(|record| record.named_volumes().contains(volume))
        };
        let mut users: Vec<String> = ids.filter(mounts).map(|id| id.to_string()).collect();
        users.sort_unstable();
        users
    })
}
