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
const NOT_BUILT: [(&str, &[&str]); 26] = [
    ("attach", &["--detach-keys", "--sig-proxy"]),
    ("exec", &["--detach-keys"]),
    ("image history", &["--format", "--human", "-H", "--quiet", "-q", "--platform"]),
    ("image inspect", &["--platform"]),
    ("images", &["--tree"]),
    ("info", &["--format", "-f"]),
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
    ("network prune", &["--filter"]),
    ("prune", &["--filter"]),
    ("ps", &["--size", "-s"]),
    ("pull", &["--all-tags", "-a", "--disable-content-trust"]),
    ("push", &["--all-tags", "-a", "--disable-content-trust", "--platform"]),
    ("rm", &["--link", "-l"]),
    ("rmi", &["--no-prune", "--platform"]),
    ("save", &["--platform"]),
    ("start", &["--attach", "-a", "--checkpoint", "--checkpoint-dir", "--detach-keys", "--interactive", "-i"]),
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
    ("volume inspect", &["--format", "-f"]),
    ("volume ls", &["--filter", "-f", "--format"]),
    ("volume prune", &["--all", "-a", "--filter"]),
];

const BUILT_ELSEWHERE: &str = "build it with another tool, and bring it here: `berth load`, or `berth pull`";
const BY_CREDS: &str = "name credentials by --creds, or log in with another tool: docker's config.json is read";
const NETWORKS_OF_A_CREATE: &str = "a container has its network from its create on: `berth run --network`";
const NO_CLUSTER: &str = "Berth knows one host; what is beyond that is its agent's business";

/// Commands of docker's that Berth has not, and what to do instead.
const COMMANDS_NOT_BUILT: [(&str, &str); 40] = [
    ("build", BUILT_ELSEWHERE),
    ("builder", BUILT_ELSEWHERE),
    ("buildx", BUILT_ELSEWHERE),
    ("checkpoint", "there is none: `berth pause` freezes a container"),
    ("commit", "`berth export` writes a container's files; an image of them is built with another tool"),
    ("compose", "write a ServiceSpec of each service: `berth apply -f SPEC.yaml --name NAME`"),
    ("config", NO_CLUSTER),
    ("container", "what is about containers stands without that word: `berth ps`, `berth rm`, …"),
    ("context", "name the root by --root"),
    ("diff", "`berth export` writes all that a container has"),
    ("history", "it is `berth image history`"),
    ("image build", BUILT_ELSEWHERE),
    ("image import", BUILT_ELSEWHERE),
    ("image load", "it is `berth load`"),
    ("image ls", "it is `berth images`"),
    ("image prune", "it is `berth prune`"),
    ("image pull", "it is `berth pull`"),
    ("image push", "it is `berth push`"),
    ("image rm", "it is `berth rmi`"),
    ("image save", "it is `berth save`"),
    ("image tag", "it is `berth tag`"),
    ("import", "`berth load` takes what `docker save` writes, and OCI layouts"),
    ("login", BY_CREDS),
    ("logout", BY_CREDS),
    ("manifest", BUILT_ELSEWHERE),
    ("network connect", NETWORKS_OF_A_CREATE),
    ("network disconnect", NETWORKS_OF_A_CREATE),
    ("node", NO_CLUSTER),
    ("plugin", "what docker has in plugins is built in: networks, volumes, logs"),
    ("rename", "a container keeps its name: create another one"),
    ("search", "ask the registry for its images"),
    ("secret", "secrets are an agent's: `$S:name` in a ServiceSpec"),
    ("service", NO_CLUSTER),
    ("stack", NO_CLUSTER),
    ("swarm", NO_CLUSTER),
    ("system", "there are `berth info`, `berth events` and `berth prune`"),
    ("trust", "images are named by digest, and each is verified"),
    ("version", "it is `berth --version`"),
    ("volume create", "a volume is made with the first container that has it: `berth run -v NAME:/path`"),
    ("volume update", NO_CLUSTER),
];

/// The command of docker's that `error` is about, if Berth has none such, and what to do instead. `group`: the command that
/// leads to it, if any does.
pub fn command_not_built(error: &clap::Error, group: Option<&str>) -> Option<(&'static str, &'static str)> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let in_group = group.map(|group| format!("{group} {unknown}"));
    let find = |name: &str| COMMANDS_NOT_BUILT.into_iter().find(|(known, _)| *known == name);
    in_group.as_deref().and_then(find).or_else(|| find(unknown))
}

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
    fn commands_that_are_refused_by_name_are_none_of_berths() {
        for (command, instead) in COMMANDS_NOT_BUILT {
            let error = Cli::read(["berth"].into_iter().chain(command.split(' '))).expect_err(command);
            let group = command.split_once(' ').map(|(group, _)| group);
            assert_eq!(command_not_built(&error, group), Some((command, instead)), "{error}");
            // What is to be done instead can be.
            let named = instead.split('`').nth(1).and_then(|line| line.strip_prefix("berth "));
            let Some(words) = named else { continue };
            let known = Cli::definition();
            let found = words.split(' ').next().and_then(|word| known.find_subcommand(word));
            assert!(found.is_some() || words == "--version", "{command}: {instead}");
        }
    }

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
