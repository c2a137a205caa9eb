//! What stands between a container and its host.

use super::case::{Case, OrStop, Verdict, ensure, equal};
use super::{Check, Workload, check};
use crate::ServiceSpec;
use crate::spec::{DeviceSpec, SeccompSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("isolation.seccomp", "a system call filter by default, none when unconfined", seccomp),
        check!("isolation.privileged", "privileged: more capabilities than by default, and no filter", privileged),
        check!("isolation.capabilities", "a capability asked for is added to the default set", capabilities),
        check!("isolation.groups", "the primary group is among the supplementary ones", groups),
        check!("isolation.devices", "a device is there when asked for, and for what was asked", devices),
        check!("isolation.device_read", "a device that may not be read is not, by whomever", device_read),
        check!("isolation.exec", "an exec has the container's identity, capabilities and filter", exec),
    ]
}

/// What the kernel says of a shell's own `fields`, in the kernel's order, on one line.
fn status_of(fields: &str) -> String {
    format!(
        "r=; while read -r key value; do case \" {fields} \" in *\" ${{key%:}} \"*) r=\"$r$key \"$(echo $value)\" \";; \
         esac; done < /proc/$$/status; echo $r"
    )
}

async fn seccomp(case: Case) -> Verdict {
    let mut spec = case.script(status_of("Seccomp"))?;
    equal("by default", &case.answer(&spec).await?.as_str(), &"Seccomp: 2")?;
    spec.seccomp = SeccompSpec::Unconfined;
    equal("unconfined", &case.answer(&spec).await?.as_str(), &"Seccomp: 0")
}

/// The bits of the effective set that a shell in such a container has.
async fn effective(case: &Case, spec: &ServiceSpec) -> Verdict<u64> {
    let line = case.answer(spec).await?;
    let bits = line.strip_prefix("CapEff: ").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    bits.ok_or_else(|| super::Stop::Failed(format!("the kernel says {line:?}")))
}

async fn privileged(case: Case) -> Verdict {
    let mut spec = case.script(status_of("CapEff"))?;
    let usual = effective(&case, &spec).await?;
    spec.privileged = true;
    let all = effective(&case, &spec).await?;
    ensure(all & usual == usual && all != usual, || format!("{usual:x} by default, and {all:x} when privileged"))?;
    let unfiltered = ServiceSpec { privileged: true, ..case.script(status_of("Seccomp"))? };
    equal("the filter", &case.answer(&unfiltered).await?.as_str(), &"Seccomp: 0")
}

async fn capabilities(case: Case) -> Verdict {
    let mut spec = case.script(status_of("CapEff"))?;
    let usual = effective(&case, &spec).await?;
    const NET_ADMIN: u64 = 1 << 12;
    ensure(usual & NET_ADMIN == 0, || format!("NET_ADMIN is in the default set, {usual:x}"))?;
    for name in ["NET_ADMIN", "CAP_NET_ADMIN"] {
        spec.capabilities = vec![name.to_owned()];
        equal(&format!("the set with {name} added"), &effective(&case, &spec).await?, &(usual | NET_ADMIN))?;
    }
    Ok(())
}

async fn groups(case: Case) -> Verdict {
    let script = "id -G | tr ' ' '\\n' | while read -r group; do [ $group = 23456 ] && echo among; done";
    let mut spec = case.script(script)?;
    spec.user = Some("12345:23456".to_owned());
    equal("whether 23456 is among the groups of 12345:23456", &case.answer(&spec).await?.as_str(), &"among")
}

/// A device that every Linux host has and no container by default.
const DEVICE: &str = "/dev/kmsg";

async fn devices(case: Case) -> Verdict {
    let script = "if [ ! -c DEVICE ]; then echo none; elif (: > DEVICE) 2>/dev/null; then echo writable; \
                  else echo not writable; fi";
    let mut spec = case.script(script.replace("DEVICE", DEVICE))?;
    equal("without being asked for", &case.answer(&spec).await?.as_str(), &"none")?;
    for (write, wanted) in [(true, "writable"), (false, "not writable")] {
        spec.devices = vec![DeviceSpec { path: DEVICE.to_owned(), read: true, write, mknod: false }];
        equal(&format!("asked for with write {write}"), &case.answer(&spec).await?.as_str(), &wanted)?;
    }
    Ok(())
}

async fn device_read(case: Case) -> Verdict {
    let script = "if (: < DEVICE) 2>/dev/null; then echo readable; else echo not readable; fi";
    let mut spec = case.script(script.replace("DEVICE", DEVICE))?;
    spec.capabilities = vec!["SYSLOG".to_owned()]; // many hosts let only such read their messages
    for (read, wanted) in [(true, "readable"), (false, "not readable")] {
        spec.devices = vec![DeviceSpec { path: DEVICE.to_owned(), read, write: true, mknod: false }];
        equal(&format!("asked for with read {read}"), &case.answer(&spec).await?.as_str(), &wanted)?;
    }
    Ok(())
}

async fn exec(case: Case) -> Verdict {
    let fields = status_of("Uid Gid Groups CapEff CapBnd NoNewPrivs Seccomp");
    let mut spec = case.script(format!("{fields}; {}", Workload::idle()))?;
    spec.user = Some("12345:23456".to_owned());
    spec.no_new_privileges = true;
    spec.drop_capabilities = vec!["CHOWN".to_owned()];
    let id = case.start_spec_ready(&spec).await?;
    let logs = case.runtime().get_logs(&id).await.or_fail("get_logs")?;
    let own = logs.first().map(|entry| entry.message.clone()).unwrap_or_default();
    ensure(own.contains("12345"), || format!("the container's process says {own:?}"))?;
    equal("the identity of an exec", &case.ask(&id, &fields).await?, &own)
}
