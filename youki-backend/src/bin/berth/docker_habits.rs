//! What of docker's command line clap does not take by itself.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flags of `docker run` that Berth has not: they are known, so they are refused as what they are.
const NOT_BUILT_OF_RUN: [&str; 50] = [
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

/// The same of docker's other commands.
const NOT_BUILT: [(&str, &[&str]); 20] = [
    ("attach", &["--detach-keys", "--sig-proxy"]),
    ("exec", &["--detach-keys"]),
    ("image history", &["--format", "--human", "-H", "--quiet", "-q", "--platform"]),
    ("image inspect", &["--platform"]),
    ("images", &["--tree"]),
    ("inspect", &["--size", "-s"]),
    ("load", &["--platform"]),
    ("logs", &["--details"]),
    (
        "network create",
        &[
            "--attachable",
            "--aux-address",
            "--config-from",
            "--config-only",
            "--ingress",
            "--ip-range",
            "--ipam-driver",
            "--ipam-opt",
            "--ipv4",
            "--label",
            "--scope",
        ],
    ),
    ("network inspect", &["--format", "-f", "--verbose", "-v"]),
    ("network ls", &["--filter", "-f", "--no-trunc"]),
    ("ps", &["--size", "-s"]),
    ("pull", &["--all-tags", "-a", "--disable-content-trust"]),
    ("push", &["--all-tags", "-a", "--disable-content-trust", "--platform"]),
    ("rmi", &["--no-prune", "--platform"]),
    ("save", &["--platform"]),
    ("start", &["--attach", "-a", "--checkpoint", "--detach-keys", "--interactive", "-i"]),
    ("stats", &["--format", "--no-trunc"]),
    (
        "update",
        &[
            "--blkio-weight",
            "--cpu-period",
            "--cpu-quota",
            "--cpu-rt-period",
            "--cpu-rt-runtime",
            "--cpuset-mems",
            "--kernel-memory",
            "--memory-reservation",
            "--memory-swap",
        ],
    ),
    ("volume ls", &["--filter", "-f", "--format"]),
];

/// The flag of docker's that `error`, of the command of these words, is about, if Berth has none such.
pub fn not_built(error: &clap::Error, command: &str) -> Option<&'static str> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return None };
    let flags = match command {
        "run" | "create" => &NOT_BUILT_OF_RUN[..],
        _ => NOT_BUILT.iter().find(|(name, _)| *name == command)?.1,
    };
    flags.iter().find(|flag| *flag == unknown).copied()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;

    #[test]
    fn flags_that_are_refused_by_name_are_none_of_the_command() {
        let of_run = ["run", "create"].map(|name| (name, &NOT_BUILT_OF_RUN[..]));
        for (command, flags) in NOT_BUILT.into_iter().chain(of_run) {
            for flag in flags {
                let words = ["berth"].into_iter().chain(command.split(' ')).chain([*flag]);
                let error = Cli::read(words).expect_err(flag);
                assert_eq!(not_built(&error, command), Some(*flag), "{command}: {error}");
            }
        }
    }
}
