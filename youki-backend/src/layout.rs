//! Where everything lies.
//!
//! ```text
//! <root>/                             0700; survives a reboot
//!   berth-root.json                   format version and feature flags
//!   images/ layers/                   the registry crate's
//!   volumes/                          the volumes-s3 crate's
//!   containers/<id>/
//!     container.json                  the record: spec, image, network, volumes. Its appearance makes the container
//!     exit.json                       how the last attempt ended; of an earlier one while one is current
//!     attempts.json                   which attempt is current after a restart, and how those before it ended
//!     upper/ work/                    overlay's writable layer
//!     rootfs/                         mount point of the root filesystem, in the supervisor's mount namespace only
//!     etc/{hosts,hostname,resolv.conf}
//!     volumes/<n>/                    anonymous volumes
//!     logs/                           CRI log files
//!     created                         the last init that was built; without it, what there is was abandoned
//!     supervisor.log                  messages of supervisor and helpers, bounded
//!   networks/<name>.json              definitions of networks
//!   trash/                            removed containers, until their files are deleted; locked by whoever does
//! <run>/                              a tmpfs; gone at reboot
//!   containers/<id>/bundle/           config.json for libcontainer; removed once the init has read it
//!   containers/<id>/state/            libcontainer's state
//!   containers/<id>/health.json       what its health checks came to, as the keeper says
//!   containers/<id>/attached          its network namespace is connected; without it, whoever starts it does that
//!   locks/<id>                        one per container, held by whoever changes it
//!   sockets/<16 hex>.sock             the supervisor's
//!   seccomp/<hex>.bpf                 compiled filters
//!   leases/<network>/                 addresses, an empty file each
//!   names/<network>/                  containers that run, and what they are called
//!   ports/<id>                        ports of the host that a container has
//!   events/                           the journal of events
//! ```

use std::path::PathBuf;

use runtime_core::ContainerId;
use sha2::{Digest, Sha256};

/// The directories of one root.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub root: PathBuf,
    pub run: PathBuf,
}

impl Layout {
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// Whether there is a container of that name, or one is being created, which has its lock and maybe no record yet.
    pub fn may_be_container(&self, name: &str) -> bool {
        self.containers().join(name).exists() || self.run.join("locks").join(name).exists()
    }

    pub fn container(&self, id: &ContainerId) -> ContainerPaths {
        let name = id.to_string();
        ContainerPaths {
            dir: self.containers().join(&name),
            run: self.run.join("containers").join(&name),
            lock: self.run.join("locks").join(&name),
            socket: self.sockets().join(format!("{}.sock", &hex(&Sha256::digest(&name))[..16])),
        }
    }

    pub fn sockets(&self) -> PathBuf {
        self.run.join("sockets")
    }

    /// Where removed containers go in one step, before their files are deleted.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub fn seccomp_cache(&self) -> PathBuf {
        self.run.join("seccomp")
    }

    pub fn events(&self) -> PathBuf {
        self.run.join("events")
    }

    /// Definitions of networks.
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }
}

/// The files of one container.
#[derive(Debug, Clone)]
pub(crate) struct ContainerPaths {
    /// `<root>/containers/<id>`.
    pub dir: PathBuf,
    /// `<run>/containers/<id>`.
    pub run: PathBuf,
    /// Its lock.
    pub lock: PathBuf,
    /// Its supervisor's socket: a short hashed name, since `sun_path` holds 108 bytes.
    pub socket: PathBuf,
}

impl ContainerPaths {
    pub fn record(&self) -> PathBuf {
        self.dir.join("container.json")
    }

    pub fn exit_record(&self) -> PathBuf {
        self.dir.join("exit.json")
    }

    pub fn attempts(&self) -> PathBuf {
        self.dir.join("attempts.json")
    }

    pub fn created(&self) -> PathBuf {
        self.dir.join("created")
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Files that are bound over the image's: `hosts`, `hostname`, `resolv.conf`.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.dir.join("etc").join(name)
    }

    pub fn anonymous_volume(&self, index: usize) -> PathBuf {
        self.dir.join("volumes").join(index.to_string())
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub fn supervisor_log(&self) -> PathBuf {
        self.dir.join("supervisor.log")
    }

    pub fn bundle(&self) -> PathBuf {
        self.run.join("bundle")
    }

    pub fn state(&self) -> PathBuf {
        self.run.join("state")
    }

    pub fn health(&self) -> PathBuf {
        self.run.join("health.json")
    }

    pub fn attached(&self) -> PathBuf {
        self.run.join("attached")
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
