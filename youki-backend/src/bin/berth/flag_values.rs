//! Values of flags, in docker's grammars. Text in, values out; only what must be looked at on disk is.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::env::VarError;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use runtime_core::spec::{
    ByteSize, DeviceSpec, NetworkMode, RestartKind, RestartPolicy, RlimitSpec, SeccompSpec, StorageSpec, duration,
};
use runtime_core::{RegistryAuth, RegistryAuthType};

use crate::failure::{Failure, Result};

/// Longest file of `--env-file`: what one argument of execve may take would not fit beyond it.
const MAX_ENV_FILE_BYTES: u64 = 2 << 20;
/// Stands for "never" where a time-out is wanted: ten years.
pub const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

fn wrong(flag: &str, text: &str, reason: &str) -> Failure {
    Failure::usage(format!("{flag} {text:?}: {reason}"))
}

/// `512m`: a number and one of b, k, m, g, t in powers of 1024, as docker's `--memory`, `--shm-size`.
pub fn memory(flag: &str, text: &str) -> Result<ByteSize> {
    let invalid = || wrong(flag, text, "not a size: write a number with b, k, m or g behind it");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim_start();
    let unit = unit.strip_suffix('b').unwrap_or(unit);
    let shift = match unit.strip_suffix('i').unwrap_or(unit) {
        "" if !unit.is_empty() => return Err(invalid()),
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(invalid()),
    };
    let scale = 1u64 << shift;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).map(ByteSize::new).ok_or_else(invalid);
    }
    let bytes = number.parse::<f64>().map_err(|_| invalid())? * scale as f64;
    // 2^53: beyond it a float no longer counts single bytes.
    if bytes < 9_007_199_254_740_992.0 { Ok(ByteSize::new(bytes as u64)) } else { Err(invalid()) }
}

/// `--memory-swap 1g`: memory and swap together, so how much of it is swap; `None` for docker's default.
pub fn swap(text: &str, limit: Option<ByteSize>) -> Result<Option<ByteSize>> {
    const FLAG: &str = "--memory-swap";
    if text == "-1" {
        return Err(Failure::unsupported("--memory-swap -1: swap without a limit"));
    }
    let total = memory(FLAG, text)?.as_u64();
    match limit {
        _ if total == 0 => Ok(None),
        None => Err(wrong(FLAG, text, "it needs --memory beside it")),
        Some(limit) => match total.checked_sub(limit.as_u64()) {
            Some(swap) => Ok(Some(ByteSize::new(swap))),
            None => Err(wrong(FLAG, text, "it is less than --memory, which it contains")),
        },
    }
}

/// `--cpus 1.5`.
pub fn cpus(text: &str) -> Result<f64> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| wrong("--cpus", text, "not a number of CPUs above 0"))
}

/// `--pids-limit 100`; 0 and -1 for no limit.
pub fn pids_limit(limit: i64) -> Result<i64> {
    match limit {
        ..=-2 => Err(wrong("--pids-limit", &limit.to_string(), "neither a number of processes nor -1 for no limit")),
        -1 | 0 => Ok(-1),
        limit => Ok(limit),
    }
}

/// `1m30s`.
pub fn time_span(flag: &str, text: &str) -> Result<Duration> {
    duration::parse(text).map_err(|reason| wrong(flag, text, &reason))
}

/// `--restart on-failure:3`.
pub fn restart(text: &str) -> Result<RestartPolicy> {
    let (name, max) = text.split_once(':').map_or((text, None), |(name, max)| (name, Some(max)));
    let kind: RestartKind = name.parse().map_err(|reason: String| wrong("--restart", text, &reason))?;
    let max_attempts = match max {
        None => None,
        Some(_) if kind != RestartKind::OnFailure => {
            return Err(wrong("--restart", text, "only on-failure takes a number of restarts"));
        }
        Some(max) => {
            let max: u32 = max.parse().map_err(|_| wrong("--restart", text, "not a number of restarts"))?;
            // Docker reads 0 as no limit.
            Some(max).filter(|max| *max != 0)
        }
    };
    Ok(RestartPolicy { kind, max_attempts, delay: None })
}

/// `-e NAME=VALUE`, or `-e NAME`, which is taken from `own`, and left out where that lacks it.
pub fn env(text: &str, own: impl Fn(&str) -> Option<String>) -> Result<Option<(String, String)>> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, own(text)),
    };
    if name.is_empty() || text.contains('\0') {
        return Err(wrong("--env", text, "no variable's name"));
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

/// A file of `NAME=VALUE` lines in docker's format: taken as they are, no quotes; `#` begins a comment line, spaces at
/// the beginning are left out, a name alone is taken from `own`. Errors name `path` and the line, and not what may be a
/// secret.
pub fn env_file(path: &Path, text: &str, own: impl Fn(&str) -> Option<String>) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for (number, line) in (1..).zip(text.strip_prefix('\u{feff}').unwrap_or(text).lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        let wrong = |reason| wrong("--env-file", &path.display().to_string(), &format!("line {number}: {reason}"));
        if name.contains(char::is_whitespace) {
            return Err(wrong("a variable's name holds white space"));
        }
        all.extend(env(line, &own).map_err(|_| wrong("no variable's name"))?);
    }
    Ok(all)
}

/// The environment that files and flags make together; flags win, and the later of two.
pub fn environment(files: &[PathBuf], flags: &[String]) -> Result<BTreeMap<String, String>> {
    let unreadable = Cell::new(None);
    let own = |name: &str| match std::env::var(name) {
        Ok(value) => Some(value),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(_)) => {
            unreadable.set(Some(name.to_owned()));
            None
        }
    };
    let mut all = BTreeMap::new();
    for path in files {
        let failed = |error: std::io::Error| Failure::io("reading", path, &error);
        // A pipe or a device does not say its size.
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(MAX_ENV_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        let wrong = |reason| wrong("--env-file", &path.display().to_string(), reason);
        if bytes.len() as u64 > MAX_ENV_FILE_BYTES {
            return Err(wrong("it is larger than 2 MiB"));
        }
        let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8"))?;
        all.extend(env_file(path, &text, own)?);
    }
    for flag in flags {
        all.extend(env(flag, own)?);
    }
    match unreadable.take() {
        Some(name) => Err(wrong("--env", &name, "its value here is not UTF-8")),
        None => Ok(all),
    }
}

/// `-v NAME:/path[:ro]`, `-v /abs:/path[:ro]`, `-v /path`. A source that begins with a dot is made absolute against
/// `cwd`.
pub fn volume(text: &str, cwd: Option<&Path>) -> Result<StorageSpec> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, *target, ""),
        [source, target] => (Some(*source), *target, ""),
        [source, target, options] => (Some(*source), *target, *options),
        _ => return Err(wrong("--volume", text, "write NAME:/path[:ro], /host/path:/path[:ro] or /path")),
    };
    if !target.starts_with('/') {
        return Err(wrong("--volume", text, "the path in the container is not absolute"));
    }
    let mut readonly = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => readonly = true,
            "rw" => readonly = false,
            // Of no meaning on Linux, or what it is in any case.
            "cached" | "delegated" | "consistent" | "default" | "private" | "rprivate" => {}
            "z" | "Z" => return Err(Failure::unsupported(format!("--volume {text}: the SELinux option {option:?}"))),
            _ => return Err(Failure::unsupported(format!("--volume {text}: the option {option:?}"))),
        }
    }
    let target = target.to_owned();
    Ok(match source {
        None => StorageSpec::Anonymous { target },
        Some("") => return Err(wrong("--volume", text, "the source is empty")),
        Some(path) if path.starts_with('/') => StorageSpec::Bind { source: path.to_owned(), target, readonly },
        Some(path) if path.starts_with('.') || path.contains('/') => {
            StorageSpec::Bind { source: host_path("--volume", text, path, cwd)?, target, readonly }
        }
        Some(name) => {
            StorageSpec::Named { name: name.to_owned(), target, readonly, tier: None, size: None, take_over: false }
        }
    })
}

/// A path of the host's: absolute, or of the working directory, which may be gone, if it begins with a dot.
pub fn host_path(flag: &str, text: &str, path: &str, cwd: Option<&Path>) -> Result<String> {
    match path {
        _ if path.starts_with('/') => Ok(path.to_owned()),
        _ if path.starts_with('.') => match cwd {
            Some(cwd) => Ok(cwd.join(path).display().to_string()),
            None => Err(wrong(flag, text, "the working directory is gone")),
        },
        _ => Err(wrong(flag, text, "a path on the host must be absolute or begin with ./")),
    }
}

/// `--tmpfs /path[:size=64m,mode=1777]`.
pub fn tmpfs(text: &str) -> Result<StorageSpec> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    if !target.starts_with('/') {
        return Err(wrong("--tmpfs", text, "the path in the container is not absolute"));
    }
    let (mut size, mut mode) = (None, None);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) => size = Some(memory("--tmpfs", value)?),
            Some(("mode", value)) => {
                let octal = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                mode = Some(octal.ok_or_else(|| wrong("--tmpfs", text, "the mode is not an octal number up to 7777"))?);
            }
            // What it is in any case.
            None if ["rw", "noexec", "nosuid", "nodev"].contains(&option) => {}
            _ => return Err(Failure::unsupported(format!("--tmpfs {text}: the option {option:?}"))),
        }
    }
    Ok(StorageSpec::Tmpfs { target: target.to_owned(), size, mode })
}

/// What one `--security-opt` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecurityOption {
    /// A system call filter.
    Seccomp(SeccompSpec),
    /// Whether processes may gain privileges by exec.
    NoNewPrivileges(bool),
    /// What is so in any case.
    AsItIs,
}

/// `seccomp=unconfined|FILE`, `no-new-privileges[:true]`; a colon may stand for the equals sign.
pub fn security_option(text: &str) -> Result<SecurityOption> {
    let (name, value) = match text.split_once('=').or_else(|| text.split_once(':')) {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    Ok(match (name, value) {
        ("seccomp", Some("unconfined")) => SecurityOption::Seccomp(SeccompSpec::Unconfined),
        ("seccomp", Some("builtin" | "default")) => SecurityOption::Seccomp(SeccompSpec::Default),
        ("seccomp", Some(file)) if !file.is_empty() => {
            let path = std::fs::canonicalize(file).map_err(|error| Failure::io("reading", file, &error))?;
            SecurityOption::Seccomp(SeccompSpec::File(path.display().to_string()))
        }
        ("no-new-privileges", None | Some("true")) => SecurityOption::NoNewPrivileges(true),
        ("no-new-privileges", Some("false")) => SecurityOption::NoNewPrivileges(false),
        // Berth sets no profile and no label: that is what is asked for here.
        ("apparmor", Some("unconfined")) | ("label", Some("disable")) => SecurityOption::AsItIs,
        ("apparmor" | "label" | "systempaths", Some(_)) => {
            return Err(Failure::unsupported(format!("--security-opt {text}")));
        }
        _ => return Err(wrong("--security-opt", text, "write seccomp=unconfined|FILE or no-new-privileges")),
    })
}

/// `--network host|none|bridge|NAME|container:NAME`.
pub fn network(text: &str) -> Result<NetworkMode> {
    match text {
        "" | "container:" => Err(wrong("--network", text, "it is empty")),
        "default" => Ok(NetworkMode::Bridge),
        _ => Ok(NetworkMode::from(text.to_owned())),
    }
}

/// `--device /dev/HOST[:/dev/CONTAINER][:rwm]`.
pub fn device(text: &str) -> Result<DeviceSpec> {
    let is_access = |text: &str| !text.is_empty() && text.bytes().all(|byte| b"rwm".contains(&byte));
    let parts: Vec<&str> = text.split(':').collect();
    let (path, inside, access) = match parts.as_slice() {
        [path] => (*path, *path, "rwm"),
        [path, access] if is_access(access) => (*path, *path, *access),
        [path, inside] => (*path, *inside, "rwm"),
        [path, inside, access] if is_access(access) => (*path, *inside, *access),
        _ => return Err(wrong("--device", text, "write /dev/NAME[:/dev/NAME][:rwm]")),
    };
    if !path.starts_with('/') || !inside.starts_with('/') {
        return Err(wrong("--device", text, "a path is not absolute"));
    }
    let may = |letter| access.contains(letter);
    let path = if path == inside { path.to_owned() } else { format!("{path}:{inside}") };
    Ok(DeviceSpec { path, read: may('r'), write: may('w'), mknod: may('m') })
}

/// `--ulimit NAME=SOFT[:HARD]`; -1 for none.
pub fn ulimit(text: &str) -> Result<(String, RlimitSpec)> {
    let invalid = || wrong("--ulimit", text, "write NAME=SOFT[:HARD], with -1 for no limit");
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        _ => text.parse::<u64>().map_err(|_| invalid()),
    };
    let (name, limits) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(invalid)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(wrong("--ulimit", text, "the soft limit is above the hard one"));
    }
    Ok((name.to_owned(), RlimitSpec { soft, hard }))
}

/// `NAME=VALUE`, as of `--sysctl`.
pub fn assignment(flag: &str, text: &str) -> Result<(String, String)> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| wrong(flag, text, "write NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// `--label NAME[=VALUE]`.
pub fn label(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err(wrong("--label", text, "its name is empty"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// `--add-host HOST:IP`, also with an equals sign.
pub fn extra_host(text: &str) -> Result<String> {
    let first = text.find([':', '=']).filter(|at| *at > 0 && at + 1 < text.len());
    let at = first.ok_or_else(|| wrong("--add-host", text, "write HOST:ADDRESS"))?;
    let address = text[at + 1..].trim_start_matches('[').trim_end_matches(']');
    Ok(format!("{}:{address}", &text[..at]))
}

/// `--creds USER:PASSWORD`.
pub fn credentials(text: &str) -> Result<RegistryAuth> {
    // The text is not quoted: it is a secret.
    let parts = text.split_once(':').filter(|(user, _)| !user.is_empty());
    let (user, password) = parts.ok_or_else(|| Failure::usage("--creds: write USER:PASSWORD"))?;
    let (username, password) = (user.to_owned(), password.to_owned());
    Ok(RegistryAuth { username, password, auth_type: RegistryAuthType::Basic })
}

/// Seconds as `stop -t` takes them; negative for never.
pub fn stop_timeout(seconds: i64) -> Duration {
    u64::try_from(seconds).map_or(FOREVER, Duration::from_secs).min(FOREVER)
}

/// Seconds, or a duration such as `1m30s`.
pub fn timeout(flag: &str, text: &str) -> Result<Duration> {
    let parsed = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => duration::parse(text),
    };
    let time = parsed.map_err(|reason| wrong(flag, text, &reason))?;
    if time.is_zero() { Err(wrong(flag, text, "it must be above 0")) } else { Ok(time.min(FOREVER)) }
}

/// A time: RFC 3339 (a day or a time to the minute alone is UTC), seconds since 1970, or a duration before `now`.
pub fn time(flag: &str, text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let invalid = || wrong(flag, text, "neither a time such as 2026-01-02T03:04:05Z nor a duration such as 10m");
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.with_timezone(&Utc));
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, format) {
            return Ok(time.and_utc());
        }
    }
    if let Ok(day) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return day.and_hms_opt(0, 0, 0).map(|time| time.and_utc()).ok_or_else(invalid);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let nanos = format!("{fraction:0<9}").get(..9).and_then(|digits| digits.parse().ok());
        let time =
            seconds.parse().ok().zip(nanos).and_then(|(seconds, nanos)| DateTime::from_timestamp(seconds, nanos));
        return time.ok_or_else(invalid);
    }
    let before = duration::parse(text.strip_prefix('-').unwrap_or(text)).map_err(|_| invalid())?;
    chrono::Duration::from_std(before).ok().and_then(|before| now.checked_sub_signed(before)).ok_or_else(invalid)
}

/// `--tail N`, `all` or a negative number for all.
pub fn tail(text: &str) -> Result<Option<usize>> {
    if text == "all" || (text.starts_with('-') && text.parse::<i64>().is_ok()) {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| wrong("--tail", text, "neither a number of lines nor all"))
}

#[cfg(test)]
mod tests;
