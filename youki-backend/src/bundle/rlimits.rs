//! Resource limits of the container's processes.

use std::collections::BTreeMap;

use runtime_core::spec::RlimitSpec;
use serde::{Deserialize, Serialize};

use super::capabilities;
use crate::error::{Error, Result};

/// Names as docker's `--ulimit` and the OCI spec have them, without `RLIMIT_`.
const NAMES: [(&str, libc::__rlimit_resource_t); 16] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// One limit, ready for setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rlimit {
    /// The kernel's number of the resource.
    pub resource: u32,
    /// What is enforced; `u64::MAX` for none.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// The limits of the spec; with them no core dumps, and as many open files as this process may have, unless the spec
/// says otherwise. A hard limit that this process cannot raise is refused here, not at start.
pub(super) fn limits(spec: &BTreeMap<String, RlimitSpec>) -> Result<Vec<Rlimit>> {
    build(spec, current, may_raise())
}

/// The same with the host's limits passed in.
fn build(
    spec: &BTreeMap<String, RlimitSpec>,
    current: impl Fn(u32) -> RlimitSpec,
    may_raise: bool,
) -> Result<Vec<Rlimit>> {
    let nofile = current(libc::RLIMIT_NOFILE);
    let mut limits = BTreeMap::from([
        (libc::RLIMIT_CORE, Rlimit { resource: libc::RLIMIT_CORE, soft: 0, hard: 0 }),
        (libc::RLIMIT_NOFILE, Rlimit { resource: libc::RLIMIT_NOFILE, soft: nofile.soft, hard: nofile.hard }),
    ]);
    for (name, limit) in spec {
        let field = || format!("rlimits.{name}");
        let resource = number(name).ok_or_else(|| {
            let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            Error::invalid(field(), format!("not a resource limit; there are {}", known.join(", ")))
        })?;
        if limit.soft > limit.hard {
            return Err(Error::invalid(
                field(),
                format!("soft limit {} is above hard limit {}", limit.soft, limit.hard),
            ));
        }
        let host = current(resource).hard;
        if limit.hard > host && !may_raise {
            let reason =
                format!("hard limit {} is above this host's {host}, and CAP_SYS_RESOURCE is missing", limit.hard);
            return Err(Error::invalid(field(), reason));
        }
        limits.insert(resource, Rlimit { resource, soft: limit.soft, hard: limit.hard });
    }
    Ok(limits.into_values().collect())
}

/// `nofile`, `NOFILE` or `RLIMIT_NOFILE`.
fn number(text: &str) -> Option<u32> {
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_prefix("rlimit_").unwrap_or(&lower);
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

fn current(resource: u32) -> RlimitSpec {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live rlimit that the kernel fills.
    let result = unsafe { libc::getrlimit(resource, &raw mut limit) };
    // It fails only for a resource that this kernel does not know; then nothing of it can be raised.
    if result == 0 {
        RlimitSpec { soft: limit.rlim_cur, hard: limit.rlim_max }
    } else {
        RlimitSpec { soft: 0, hard: 0 }
    }
}

fn may_raise() -> bool {
    let flag = rustix::thread::CapabilitySet::from_bits_retain(capabilities::bit(capabilities::SYS_RESOURCE));
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(resource: u32) -> RlimitSpec {
        if resource == libc::RLIMIT_NOFILE {
            RlimitSpec { soft: 1024, hard: 4096 }
        } else {
            RlimitSpec { soft: 10, hard: 100 }
        }
    }

    fn spec(limits: &[(&str, u64, u64)]) -> BTreeMap<String, RlimitSpec> {
        limits.iter().map(|(name, soft, hard)| ((*name).to_owned(), RlimitSpec { soft: *soft, hard: *hard })).collect()
    }

    #[test]
    fn without_a_spec_no_core_dumps_and_the_hosts_open_files() {
        let limits = build(&spec(&[]), host, false).unwrap();
        assert_eq!(
            limits,
            [
                Rlimit { resource: libc::RLIMIT_CORE, soft: 0, hard: 0 },
                Rlimit { resource: libc::RLIMIT_NOFILE, soft: 1024, hard: 4096 },
            ]
        );
    }

    #[test]
    fn a_limit_is_raised_only_by_who_may() {
        let raised = spec(&[("nofile", 5000, 5000)]);
        let error = build(&raised, host, false).unwrap_err();
        assert!(matches!(error, Error::InvalidSpec { ref field, .. } if field == "rlimits.nofile"), "{error}");
        let limits = build(&raised, host, true).unwrap();
        assert!(limits.contains(&Rlimit { resource: libc::RLIMIT_NOFILE, soft: 5000, hard: 5000 }));
        let lowered = build(&spec(&[("RLIMIT_NPROC", 5, 50), ("core", 7, 7)]), host, false).unwrap();
        assert!(lowered.contains(&Rlimit { resource: libc::RLIMIT_NPROC, soft: 5, hard: 50 }));
        assert!(lowered.contains(&Rlimit { resource: libc::RLIMIT_CORE, soft: 7, hard: 7 }));
    }

    #[test]
    fn what_no_kernel_accepts_is_refused_by_its_field() {
        for (limit, field) in [(("nofile", 2, 1), "rlimits.nofile"), (("files", 1, 1), "rlimits.files")] {
            let error = build(&spec(&[limit]), host, true).unwrap_err();
            assert!(matches!(error, Error::InvalidSpec { field: ref f, .. } if f == field), "{error}");
        }
    }

    #[test]
    fn this_process_has_limits() {
        assert!(current(libc::RLIMIT_NOFILE).hard > 0);
        assert_eq!(current(9999), RlimitSpec { soft: 0, hard: 0 });
    }
}
