//! The flag that an error of the library is about: the library knows fields of a spec, and who typed a flag looks for that.

use crate::failure::Failure;
use crate::run_flags::RunArgs;

/// Fields of a spec, or of an exec's options, and the flags that make them.
const FLAGS: [(&str, &str); 31] = [
    ("capabilities", "--cap-add"),
    ("command.workdir", "--workdir"),
    ("devices", "--device"),
    ("dns", "--dns"),
    ("dns_search", "--dns-search"),
    ("drop_capabilities", "--cap-drop"),
    ("env", "--env"),
    ("extra_hosts", "--add-host"),
    ("health", "--health-cmd"),
    ("health.interval", "--health-interval"),
    ("health.timeout", "--health-timeout"),
    ("hostname", "--hostname"),
    ("network", "--network"),
    ("network.aliases", "--network-alias"),
    ("port_mappings", "--publish"),
    ("port_ranges", "--publish"),
    ("resources.cpu", "--cpus"),
    ("resources.cpu_shares", "--cpu-shares"),
    ("resources.cpuset", "--cpuset-cpus"),
    ("resources.memory", "--memory"),
    ("resources.pids", "--pids-limit"),
    ("resources.swap", "--memory-swap"),
    ("restart_policy", "--restart"),
    ("rlimits", "--ulimit"),
    ("seccomp", "--security-opt"),
    ("shm_size", "--shm-size"),
    ("signal", "--signal"),
    ("stop_signal", "--stop-signal"),
    ("sysctls", "--sysctl"),
    ("user", "--user"),
    ("workdir", "--workdir"),
];

/// The flag that makes `field`, or the field that it is a part of.
fn flag_of_field(field: &str) -> Option<&'static str> {
    let is_of =
        |known: &str| field.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    let found = FLAGS.iter().filter(|(known, _)| is_of(known)).max_by_key(|(known, _)| known.len());
    found.map(|(_, flag)| *flag)
}

/// The field that a failure begins with.
fn field_of(failure: &Failure) -> Option<&str> {
    match failure.code() {
        "spec.invalid" => failure.message().split(':').next(),
        "user.not_found" => Some("user"),
        "exec.workdir" => Some("workdir"),
        "network.not_found" => Some("network"),
        "port.taken" => Some("port_mappings"),
        _ => None,
    }
}

/// `failure`, with the flag first that makes what it is about.
pub fn naming_its_flag(failure: Failure) -> Failure {
    let flag = match failure.code() {
        "image.invalid_platform" => Some("--platform"),
        _ => field_of(&failure).and_then(flag_of_field),
    };
    match flag {
        Some(flag) => failure.of_flag(flag),
        None => failure,
    }
}

impl RunArgs {
    /// The same for `run` and `create`, where what is wrong may come from the image, and storage from several flags.
    pub fn naming_its_flag(&self, failure: Failure) -> Failure {
        let field = field_of(&failure);
        let of_the_image = match field {
            Some("user") => self.user.is_none(),
            Some("command.workdir") => self.workdir.is_none(),
            Some("network") => self.network.is_none(),
            _ => false,
        };
        let index = field.and_then(|field| field.strip_prefix("storage[")?.split(']').next()?.parse::<usize>().ok());
        match index {
            _ if of_the_image => failure,
            Some(index) if index < self.volume.len() => failure.of_flag("--volume"),
            Some(index) if index < self.volume.len() + self.mount.len() => failure.of_flag("--mount"),
            Some(_) => failure.of_flag("--tmpfs"),
            None if failure.code() == "volume.invalid_name" => {
                failure.of_flag(if self.volume.is_empty() { "--mount" } else { "--volume" })
            }
            None => naming_its_flag(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_has_the_flag_of_the_longest_name_that_it_begins_with() {
        for (field, flag) in [
            ("resources.cpu", Some("--cpus")),
            ("resources.cpu_shares", Some("--cpu-shares")),
            ("network.aliases", Some("--network-alias")),
            ("network.mode", Some("--network")),
            ("devices[1].path", Some("--device")),
            ("rlimits.nofile", Some("--ulimit")),
            ("image.config.WorkingDir", None),
            ("resources", None),
        ] {
            assert_eq!(flag_of_field(field), flag, "{field}");
        }
    }
}
