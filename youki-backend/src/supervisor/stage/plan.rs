//! What the agent asks the stage to make. It may hold secrets (the environment): it travels on a socket, never on disk.

use std::ffi::CStr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rootfs::Overlay;
use crate::bundle::resources::CgroupLimits;
use crate::bundle::{ProcessPlan, RootPlan};
use crate::cgroup::{CgroupPaths, DeviceRule, Hierarchy};
use crate::supervisor::resident::ResidentConfig;

/// Tells a process that it is to be the resident supervisor.
pub(crate) const RESIDENT_ARGUMENT: &CStr = c"--berth-supervisor";

/// A container to be created.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CreatePlan {
    /// For the resident.
    pub resident: ResidentConfig,
    /// The executable to become.
    pub resident_executable: PathBuf,
    /// Where config.json goes; removed once the init has read it.
    pub bundle: PathBuf,
    /// Mount point of the root filesystem.
    pub rootfs: PathBuf,
    /// Overlay lower directories, bottom first.
    pub layers: Vec<PathBuf>,
    /// Overlay's writable layer.
    pub upper: PathBuf,
    /// Overlay's work directory.
    pub work: PathBuf,
    /// The writable layer need not survive a power cut.
    pub volatile: bool,
    /// A tiny init starts the program.
    pub init: bool,
    /// A network namespace of its own.
    pub own_network: bool,
    /// Another container's, which comes beside the plan.
    pub joins_network: bool,
    /// Where cgroups are.
    pub hierarchy: Hierarchy,
    /// `/berth/supervisors`.
    pub supervisors_cgroup_path: String,
    /// Written once the container is built.
    pub limits: CgroupLimits,
    /// The devices that it may use.
    pub device_rules: Vec<DeviceRule>,
    /// For libcontainer; the user is resolved here.
    pub oci: oci_spec::runtime::Spec,
    /// What the init does in its root.
    pub root: RootPlan,
    /// What is applied by ourselves.
    pub process: ProcessPlan,
    /// The compiled system call filter.
    pub filter: Option<PathBuf>,
    /// New volumes to be filled from the image.
    pub fill: Vec<FillPlan>,
}

/// A new volume: it takes on what the image has at its target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FillPlan {
    /// The empty directory on the host.
    pub source: PathBuf,
    /// The directory in the image.
    pub target: String,
}

impl CreatePlan {
    pub fn overlay(&self) -> Overlay<'_> {
        let Self { layers, upper, work, rootfs, volatile, .. } = self;
        Overlay { layers, upper, work, rootfs, volatile: *volatile }
    }

    pub fn supervisors_cgroup(&self) -> CgroupPaths {
        self.hierarchy.container_dirs(&self.supervisors_cgroup_path)
    }

    pub fn cgroup(&self) -> CgroupPaths {
        self.hierarchy.container_dirs(&self.resident.cgroup_path)
    }
}
