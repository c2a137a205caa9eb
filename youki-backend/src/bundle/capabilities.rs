//! Capabilities by name, Docker's default set, and what a process of one user is given.

use std::fs;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Names without `CAP_`, in the kernel's order: the index is the number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Docker's 14.
const DEFAULTS: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Number of `CAP_SYS_RESOURCE`.
pub(super) const SYS_RESOURCE: u8 = 24;
const SYS_PTRACE: u8 = 19;

/// The five sets of a process, as bit masks over capability numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CapabilitySets {
    /// What no process of the container can ever exceed.
    pub bounding: u64,
    /// What is checked.
    pub effective: u64,
    /// What can be made effective.
    pub permitted: u64,
    /// What survives the execve of a file with inheritable bits; always none (CVE-2022-24769).
    pub inheritable: u64,
    /// What survives every execve; always none, as with docker.
    pub ambient: u64,
}

impl CapabilitySets {
    /// Sets of uid 0 within `mask`.
    fn of(mask: u64) -> Self {
        Self { bounding: mask, effective: mask, permitted: mask, inheritable: 0, ambient: 0 }
    }

    /// All that can be given.
    pub(crate) fn all() -> Self {
        Self::of(available())
    }

    /// Whether who has them may trace processes that keep others from it, but not do all that the host's root may.
    pub(crate) fn may_trace(&self) -> bool {
        self.bounding & bit(SYS_PTRACE) != 0 && self.bounding != available()
    }

    /// The sets of a process of `uid`: another than 0 keeps of the permitted and effective ones only what is ambient,
    /// which is what the kernel's execve leaves it.
    #[must_use]
    pub(crate) fn for_uid(self, uid: u32) -> Self {
        if uid == 0 { self } else { Self { effective: self.ambient, permitted: self.ambient, ..self } }
    }
}

/// Docker's defaults, with `drop` taken away and `add` added (an addition, also of `ALL`, wins over `ALL` dropped, and a
/// drop by name over `ALL` added). Nobody can give what is not in his own bounding set: `ALL` and `privileged` are what is,
/// which is logged where it is less than the kernel has.
pub(super) fn sets(add: &[String], drop: &[String], privileged: bool) -> Result<CapabilitySets> {
    let all = available();
    let added = named(add, "capabilities")?;
    let dropped = named(drop, "drop_capabilities")?;
    if let Some(index) = add.iter().position(|name| number(name).is_some_and(|number| all & bit(number) == 0)) {
        let reason = format!("{} is not in this process's own bounding set", add[index]);
        return Err(Error::invalid(format!("capabilities[{index}]"), reason));
    }
    if privileged || added.all {
        let missing: Vec<&str> = names_of(self::all() & !all);
        if !missing.is_empty() {
            tracing::warn!("all capabilities are given but {}, which this host lacks itself", missing.join(", "));
        }
    }
    let mut mask = match (privileged || added.all, dropped.all) {
        (true, _) => all & !dropped.mask,
        (false, true) => added.mask,
        (false, false) => (default_mask() | added.mask) & !(dropped.mask & !added.mask),
    };
    if privileged {
        mask = all;
    }
    Ok(CapabilitySets::of(mask & all))
}

/// The number of a capability written as `CAP_NET_ADMIN` or `net_admin`.
pub(super) fn number(text: &str) -> Option<u8> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    // There are 41 of them: the index fits.
    NAMES.iter().position(|known| *known == name).map(|index| index as u8)
}

/// The mask of one capability.
pub(super) fn bit(number: u8) -> u64 {
    1 << number
}

/// Those that this process may pass on: its bounding set.
pub(crate) fn available() -> u64 {
    static MASK: OnceLock<u64> = OnceLock::new();
    *MASK.get_or_init(|| {
        let known = (0..64).filter(|number| all() & bit(*number) != 0);
        let held = known.filter(|number| {
            let flag = rustix::thread::CapabilitySet::from_bits_retain(bit(*number));
            rustix::thread::capability_is_in_bounding_set(flag).unwrap_or(false)
        });
        held.map(bit).fold(0, |mask, bit| mask | bit)
    })
}

fn names_of(mask: u64) -> Vec<&'static str> {
    // There are 41 of them: the index fits.
    NAMES.iter().enumerate().filter(|(index, _)| mask & bit(*index as u8) != 0).map(|(_, name)| *name).collect()
}

/// All capabilities that the running kernel has.
pub(crate) fn all() -> u64 {
    static MASK: OnceLock<u64> = OnceLock::new();
    *MASK.get_or_init(|| {
        let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
        mask_up_to(last.unwrap_or(NAMES.len() as u32 - 1))
    })
}

/// Capabilities 0 to `last`.
fn mask_up_to(last: u32) -> u64 {
    u64::MAX >> (63 - last.min(63))
}

/// Docker's default set as a mask.
fn default_mask() -> u64 {
    DEFAULTS.iter().filter_map(|name| number(name)).map(bit).fold(0, |mask, bit| mask | bit)
}

/// Capabilities of a list of names; `ALL` kept apart.
struct Named {
    all: bool,
    mask: u64,
}

fn named(names: &[String], field: &str) -> Result<Named> {
    let mut named = Named { all: false, mask: 0 };
    for (index, name) in names.iter().enumerate() {
        if name.eq_ignore_ascii_case("ALL") {
            named.all = true;
        } else {
            let number = number(name).ok_or_else(|| {
                Error::invalid(
                    format!("{field}[{index}]"),
                    format!("{name:?} is not a capability (as NET_ADMIN, or ALL)"),
                )
            })?;
            named.mask |= bit(number);
        }
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(names: &[&str]) -> u64 {
        names.iter().map(|name| bit(number(name).unwrap())).fold(0, |a, b| a | b)
    }

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn defaults_are_dockers_as_the_kernel_prints_them() {
        let sets = sets(&[], &[], false).unwrap();
        // The mask that `docker run alpine grep Cap /proc/self/status` has shown for years.
        assert_eq!(sets.bounding, 0xa804_25fb);
        assert_eq!((sets.effective, sets.permitted, sets.inheritable, sets.ambient), (0xa804_25fb, 0xa804_25fb, 0, 0));
    }

    #[test]
    fn add_and_drop_follow_dockers_rules() {
        let docker = default_mask();
        for (add, drop, privileged, expected) in [
            (&["net_admin"][..], &[][..], false, docker | mask(&["NET_ADMIN"])),
            (&["CAP_Sys_Time"], &["KILL"], false, (docker | mask(&["SYS_TIME"])) & !mask(&["KILL"])),
            (&[], &["ALL"], false, 0),
            (&["CHOWN"], &["all"], false, mask(&["CHOWN"])),
            (&["ALL"], &[], false, available()),
            (&["ALL"], &["SYS_ADMIN"], false, available() & !mask(&["SYS_ADMIN"])),
            (&["ALL"], &["ALL", "KILL"], false, available() & !mask(&["KILL"])),
            (&["KILL"], &["KILL"], false, docker),
            (&[], &["ALL"], true, available()),
        ] {
            let sets = sets(&owned(add), &owned(drop), privileged).unwrap();
            assert_eq!(sets.bounding, expected, "+{add:?} -{drop:?} privileged {privileged}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_by_its_field() {
        let error = sets(&owned(&["CHOWN", "CAP_FLY"]), &[], false).unwrap_err();
        assert!(matches!(error, Error::InvalidSpec { ref field, .. } if field == "capabilities[1]"), "{error}");
        let error = sets(&[], &owned(&[""]), false).unwrap_err();
        assert!(matches!(error, Error::InvalidSpec { ref field, .. } if field == "drop_capabilities[0]"), "{error}");
    }

    #[test]
    fn another_user_than_root_starts_without_capabilities() {
        let sets = sets(&[], &[], false).unwrap();
        assert_eq!(sets.for_uid(0), sets);
        let user = sets.for_uid(1000);
        assert_eq!((user.bounding, user.effective, user.permitted), (sets.bounding, 0, 0));
    }

    #[test]
    fn numbers_beyond_the_kernels_last_are_masked() {
        assert_eq!(mask_up_to(0), 1);
        assert_eq!(mask_up_to(40), 0x1ff_ffff_ffff);
        assert_eq!(mask_up_to(63), u64::MAX);
        assert_eq!(mask_up_to(4_000_000), u64::MAX);
        assert_eq!(number("CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("SYS_RESOURCE"), Some(SYS_RESOURCE));
    }
}
