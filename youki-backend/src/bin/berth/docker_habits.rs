//! What of docker's command line clap does not take by itself.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flags of `docker run` that Berth has not: they are known, so they are refused as what they are.
const NOT_BUILT: [&str; 50] = [
    "--annotation",
    "--attach",
    "-a",
    "--blkio-weight",
    "--blkio-weight-device",
    "--cgroupns",
    "--cpu-period",
    "--cpu-quota",
    "--cpu-rt-period",
    "--cpu-rt-runtime",
    "--cpuset-mems",
    "--detach-keys",
    "--device-cgroup-rule",
    "--device-read-bps",
    "--device-read-iops",
    "--device-write-bps",
    "--device-write-iops",
    "--disable-content-trust",
    "--dns-opt",
    "--dns-option",
    "--domainname",
    "--gpus",
    "--group-add",
    "--health-start-interval",
    "--ip",
    "--ip6",
    "--ipc",
    "--isolation",
    "--kernel-memory",
    "--label-file",
    "--link",
    "--link-local-ip",
    "--mac-address",
    "--memory-reservation",
    "--memory-swappiness",
    "--oom-kill-disable",
    "--oom-score-adj",
    "--pid",
    "--runtime",
    "--sig-proxy",
    "--storage-opt",
    "--use-api-socket",
    "--userns",
    "--uts",
    "--volume-driver",
    "--volumes-from",
    "--io-maxbandwidth",
    "--io-maxiops",
    "--cpu-count",
    "--cpu-percent",
];

/// The flag of docker's that `error`, of `run` or `create`, is about, if Berth has none such.
pub fn not_built(error: &clap::Error) -> Option<&'static str> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return None };
    NOT_BUILT.into_iter().find(|flag| flag == unknown)
}

/// Where a switch was given a value, `--rm=true` or `--init=false`, which docker's have: the place of that word in
/// `words`, and whether the switch is on.
pub fn switch_with_value(error: &clap::Error, words: &[std::ffi::OsString]) -> Option<(usize, bool)> {
    if error.kind() != ErrorKind::TooManyValues {
        return None;
    }
    let (Some(ContextValue::String(flag)), Some(ContextValue::String(value))) =
        (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue))
    else {
        return None;
    };
    let on = match value.as_str() {
        "true" | "1" | "t" | "T" | "TRUE" | "True" => true,
        "false" | "0" | "f" | "F" | "FALSE" | "False" => false,
        _ => return None,
    };
    // What clap read first is what it complains of.
    let place = words.iter().position(|word| word.to_str() == Some(&format!("{flag}={value}")))?;
    Some((place, on))
}
