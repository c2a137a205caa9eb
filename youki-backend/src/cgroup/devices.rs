//! Which devices the processes of a cgroup may use: on v1 a list that the kernel keeps, on v2 a program that it runs at
//! each use ([`program`]).

mod program;

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

use super::{CgroupPaths, Dirs};
use crate::error::{Error, Result};

/// Devices that may be used, and how. Whatever no rule allows is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceRule {
    /// `None`: of any kind, and then any device.
    pub kind: Option<DeviceKind>,
    /// `None`: any.
    pub major: Option<u32>,
    /// `None`: any.
    pub minor: Option<u32>,
    /// What is allowed.
    pub access: Access,
}

/// The two kinds of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeviceKind {
    /// As disks are.
    Block,
    /// All others.
    Char,
}

/// A set of what can be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Access {
    /// Opening it for reading.
    pub read: bool,
    /// Opening it for writing.
    pub write: bool,
    /// Making a node of it.
    pub mknod: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true, mknod: true };
    /// Making nodes alone.
    pub const MKNOD: Self = Self { read: false, write: false, mknod: true };
}

impl DeviceRule {
    /// Every device.
    pub const ALL: Self = Self { kind: None, major: None, minor: None, access: Access::ALL };
}

/// As v1's `devices.allow` takes it: `c 1:3 rwm`, `b *:* m`, `a *:* rwm`.
impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let kind = match self.kind {
            None => 'a',
            Some(DeviceKind::Block) => 'b',
            Some(DeviceKind::Char) => 'c',
        };
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        let Access { read, write, mknod } = self.access;
        let letters = [(read, "r"), (write, "w"), (mknod, "m")];
        letters.iter().filter(|(granted, _)| *granted).try_for_each(|(_, letter)| f.write_str(letter))
    }
}

impl CgroupPaths {
    /// Lets its processes use what `rules` allow and no other device. To be called once, before anyone joins.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unsupported`] on v1 without that controller, and on v2 where the kernel knows no such programs,
    /// unless every device may be used.
    pub fn limit_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        match &self.dirs {
            Dirs::V1(dirs) => {
                let Some(dir) = dirs.get("devices") else {
                    return match rules.contains(&DeviceRule::ALL) {
                        true => Ok(()),
                        false => Err(Error::Unsupported {
                            what: "limiting devices on a host whose cgroup v1 has no devices controller".to_owned(),
                        }),
                    };
                };
                let write = |name: &str, rule: &str| {
                    let file = dir.join(name);
                    fs::write(&file, rule).map_err(Error::io("writing", file))
                };
                write("devices.deny", "a")?;
                rules.iter().try_for_each(|rule| write("devices.allow", &rule.to_string()))
            }
            Dirs::V2(_) if rules.contains(&DeviceRule::ALL) => Ok(()),
            Dirs::V2(dir) => program::attach(dir, rules).map_err(|error| match error.raw_os_error() {
                // What a kernel without CONFIG_CGROUP_BPF or CONFIG_BPF_SYSCALL says.
                Some(libc::EINVAL | libc::ENOSYS) => Error::Unsupported {
                    what: "limiting devices on cgroup v2 by a kernel without CONFIG_CGROUP_BPF".to_owned(),
                },
                _ => Error::io("limiting the devices of", dir)(error),
            }),
        }
    }
}
