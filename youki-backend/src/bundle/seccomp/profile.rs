//! A profile: rules over system calls with conditions, as docker's JSON files have them, and what is left of it for one
//! container.

use serde::Deserialize;

use crate::bundle::capabilities;
use crate::error::{Error, Result};

/// Most rules of a profile, and names within a rule: docker's has 33 and 361. More is no profile but an attack on the
/// compiler's time.
const MAX_RULES: usize = 2_048;
const MAX_NAMES: usize = 2_048;
/// Registers that a system call's arguments are in.
const MAX_ARG_INDEX: u32 = 5;
/// The kernel's largest errno.
const MAX_ERRNO: u32 = 4_095;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    Errno(u32),
    KillProcess,
    KillThread,
    Log,
    Trace(u16),
    Trap,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    NotEqual,
    /// Under this mask.
    MaskedEqual(u64),
}

/// One comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arg {
    pub index: u32,
    pub compare: Compare,
    pub value: u64,
}

/// When a rule holds, or does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Condition {
    /// Capabilities, with `CAP_`.
    pub caps: Vec<String>,
    /// Architectures as Go names them.
    pub arches: Vec<String>,
    /// Major and minor version.
    pub min_kernel: Option<(u32, u32)>,
}

/// What happens to some calls, when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub names: Vec<String>,
    pub action: Action,
    pub args: Vec<Arg>,
    pub includes: Condition,
    pub excludes: Condition,
}

impl Rule {
    pub(super) fn new(names: Vec<String>, action: Action) -> Self {
        Self { names, action, args: Vec::new(), includes: Condition::default(), excludes: Condition::default() }
    }
}

/// An architecture and those it also runs, as libseccomp names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arch {
    pub name: String,
    pub compatible: Vec<String>,
}

/// A whole profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    /// What happens to a call without a rule.
    pub default: Action,
    pub arches: Vec<Arch>,
    pub rules: Vec<Rule>,
}

/// For whom a profile is resolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    /// Capabilities as a mask.
    pub caps: u64,
    /// The architecture as Go names it.
    pub go_arch: &'a str,
    /// The architecture as libseccomp names it.
    pub scmp_arch: &'a str,
    /// Version of the running kernel.
    pub kernel: (u32, u32),
}

impl Profile {
    /// The rules that hold for `target`, in order, without those that say what happens anyway.
    pub(super) fn rules_for(&self, target: Target<'_>) -> Vec<&Rule> {
        self.rules.iter().filter(|rule| rule.holds(target) && rule.action != self.default).collect()
    }

    /// The architectures to filter beside the native one.
    pub(super) fn compatible_arches(&self, target: Target<'_>) -> Vec<&str> {
        let arch = self.arches.iter().find(|arch| arch.name == target.scmp_arch);
        arch.map(|arch| arch.compatible.iter().map(String::as_str).collect()).unwrap_or_default()
    }

    /// Reads docker's JSON. Fields that do not matter here are passed over, as docker does.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for what is not a profile; [`Error::Unsupported`] for notification and load flags.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let json: JsonProfile = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
        if let Some(flag) = json.flags.iter().find(|flag| *flag != "SECCOMP_FILTER_FLAG_TSYNC") {
            return Err(Error::Unsupported { what: format!("seccomp: the flag {flag}") });
        }
        if json.syscalls.len() > MAX_RULES {
            return Err(invalid(format!("more than {MAX_RULES} rules")));
        }
        let default = action(&json.default_action, json.default_errno_ret)?;
        let rules = json.syscalls.into_iter().map(JsonRule::into_rule).collect::<Result<_>>()?;
        let mut arches: Vec<Arch> = json
            .arch_map
            .into_iter()
            .map(|arch| Arch { name: arch.architecture, compatible: arch.sub_architectures.unwrap_or_default() })
            .collect();
        if let (Some(native), true) = (json.architectures.first(), arches.is_empty()) {
            // The older form: one list, the native one within it.
            arches.extend(json.architectures.iter().map(|arch| Arch {
                name: arch.clone(),
                compatible: json.architectures.iter().filter(|other| *other != arch).cloned().collect(),
            }));
            tracing::debug!(%native, "seccomp profile lists architectures without a map");
        }
        Ok(Self { default, arches, rules })
    }
}

impl Rule {
    fn holds(&self, target: Target<'_>) -> bool {
        let has = |cap: &String| capabilities::number(cap).is_some_and(|n| target.caps & capabilities::bit(n) != 0);
        let on = |arches: &[String]| arches.iter().any(|arch| arch == target.go_arch);
        let excluded = self.excludes.caps.iter().any(has)
            || on(&self.excludes.arches)
            || self.excludes.min_kernel.is_some_and(|version| target.kernel >= version);
        let included = self.includes.caps.iter().all(has)
            && (self.includes.arches.is_empty() || on(&self.includes.arches))
            && self.includes.min_kernel.is_none_or(|version| target.kernel >= version);
        included && !excluded
    }
}

/// `6.18.0-5-amd64` as (6, 18).
pub(super) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::invalid("seccomp", reason)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonProfile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<JsonArch>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<JsonRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonArch {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonRule {
    #[serde(default)]
    name: String,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<JsonArg>>,
    includes: Option<JsonCondition>,
    excludes: Option<JsonCondition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonArg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonCondition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl JsonRule {
    fn into_rule(self) -> Result<Rule> {
        let mut names = self.names.unwrap_or_default();
        if !self.name.is_empty() {
            names.push(self.name);
        }
        if names.len() > MAX_NAMES {
            return Err(invalid(format!("more than {MAX_NAMES} names in one rule")));
        }
        Ok(Rule {
            names,
            action: action(&self.action, self.errno_ret)?,
            args: self.args.unwrap_or_default().into_iter().map(JsonArg::into_arg).collect::<Result<_>>()?,
            includes: condition(self.includes)?,
            excludes: condition(self.excludes)?,
        })
    }
}

impl JsonArg {
    fn into_arg(self) -> Result<Arg> {
        if self.index > MAX_ARG_INDEX {
            return Err(invalid(format!("a system call has no argument {}", self.index)));
        }
        let (compare, value) = match self.op.as_str() {
            "SCMP_CMP_NE" => (Compare::NotEqual, self.value),
            "SCMP_CMP_LT" => (Compare::Less, self.value),
            "SCMP_CMP_LE" => (Compare::LessOrEqual, self.value),
            "SCMP_CMP_EQ" => (Compare::Equal, self.value),
            "SCMP_CMP_GE" => (Compare::GreaterOrEqual, self.value),
            "SCMP_CMP_GT" => (Compare::Greater, self.value),
            // The file has the mask first.
            "SCMP_CMP_MASKED_EQ" => (Compare::MaskedEqual(self.value), self.value_two),
            op => return Err(invalid(format!("{op:?} is not a comparison"))),
        };
        Ok(Arg { index: self.index, compare, value })
    }
}

fn condition(json: Option<JsonCondition>) -> Result<Condition> {
    let Some(json) = json else { return Ok(Condition::default()) };
    let version =
        |text: String| kernel_version(&text).ok_or_else(|| invalid(format!("{text:?} is not a kernel version")));
    let caps = json.caps.unwrap_or_default();
    if let Some(cap) = caps.iter().find(|cap| capabilities::number(cap).is_none()) {
        return Err(invalid(format!("{cap:?} is not a capability")));
    }
    Ok(Condition {
        caps,
        arches: json.arches.unwrap_or_default(),
        min_kernel: json.min_kernel.map(version).transpose()?,
    })
}

fn action(name: &str, errno: Option<u32>) -> Result<Action> {
    // Docker's value where a profile names none.
    let errno = errno.unwrap_or(libc::EPERM as u32);
    if errno > MAX_ERRNO {
        return Err(invalid(format!("{errno} is not an errno")));
    }
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_LOG" => Action::Log,
        // Below MAX_ERRNO, so it fits.
        "SCMP_ACT_TRACE" => Action::Trace(errno as u16),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_NOTIFY" => return Err(Error::Unsupported { what: "seccomp: SCMP_ACT_NOTIFY".to_owned() }),
        name => return Err(invalid(format!("{name:?} is not an action"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOSYS", "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                    {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": null}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
            {"name": "bpf", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF", "CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390x"]},
             "args": [{"index": 0, "value": 7, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["old"], "action": "SCMP_ACT_KILL", "excludes": {"minKernel": "4.8"}},
            {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
            {"names": ["same"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["other"], "action": "SCMP_ACT_ERRNO"}
        ]}"#;

    fn held(caps: &[&str], go_arch: &str, kernel: (u32, u32)) -> Vec<String> {
        let caps = caps.iter().map(|cap| capabilities::bit(capabilities::number(cap).unwrap())).sum();
        let target = Target { caps, go_arch, scmp_arch: "SCMP_ARCH_X86_64", kernel };
        Profile::parse(PROFILE).unwrap().rules_for(target).iter().flat_map(|rule| rule.names.clone()).collect()
    }

    #[test]
    fn rules_hold_by_capability_architecture_and_kernel() {
        assert_eq!(held(&[], "amd64", (6, 1)), ["read", "clone", "ptrace", "arch_prctl", "other"]);
        assert_eq!(held(&["BPF"], "amd64", (4, 8)), ["read", "clone", "ptrace", "arch_prctl", "other"]);
        assert_eq!(held(&["BPF", "SYS_ADMIN"], "amd64", (6, 1)), ["read", "bpf", "ptrace", "arch_prctl", "other"]);
        assert_eq!(held(&[], "s390x", (4, 7)), ["read", "old", "other"]);
    }

    #[test]
    fn a_file_reads_as_docker_reads_it() {
        let profile = Profile::parse(PROFILE).unwrap();
        assert_eq!(profile.default, Action::Errno(38));
        assert_eq!(profile.rules[2].args, [Arg { index: 0, compare: Compare::MaskedEqual(7), value: 0 }]);
        assert_eq!(profile.rules[7].action, Action::Errno(1));
        let target = Target { caps: 0, go_arch: "amd64", scmp_arch: "SCMP_ARCH_X86_64", kernel: (6, 1) };
        assert_eq!(profile.compatible_arches(target), ["SCMP_ARCH_X86"]);
        let old = Profile::parse(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X32"]}"#,
        );
        assert_eq!(old.unwrap().compatible_arches(target), ["SCMP_ARCH_X32"]);
    }

    #[test]
    fn what_is_not_a_profile_is_refused() {
        for (text, code) in [
            ("", "spec.invalid"),
            ("{}", "spec.invalid"),
            (r#"{"defaultAction":"SCMP_ACT_DANCE"}"#, "spec.invalid"),
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "unsupported.here"),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}"#, "unsupported.here"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}"#, "spec.invalid"),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_KILL","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
                "spec.invalid",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_KILL","includes":{"caps":["CAP_X"]}}]}"#,
                "spec.invalid",
            ),
        ] {
            assert_eq!(Profile::parse(text).unwrap_err().code(), code, "{text}");
        }
    }

    #[test]
    fn kernel_versions_are_read_from_releases() {
        for (text, version) in [
            ("6.18.0-5-amd64", Some((6, 18))),
            ("4.8", Some((4, 8))),
            ("5.10-rc1", Some((5, 10))),
            ("6", None),
            ("", None),
            ("x.y", None),
        ] {
            assert_eq!(kernel_version(text), version, "{text}");
        }
    }
}
