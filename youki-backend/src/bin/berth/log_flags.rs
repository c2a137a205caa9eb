//! `--log-driver` and `--log-opt`: docker's files, as far as they mean what Berth's log is.

use runtime_core::spec::{LogMode, LogsSpec};

use crate::failure::{Failure, Result};
use crate::flag_values::memory;

/// What the flags ask of the log. Docker keeps one file unless `max-file` says more.
pub fn logs(driver: Option<&str>, options: &[String]) -> Result<LogsSpec> {
    // Both are what Berth does: a file on this host, which `logs` reads.
    if let Some(driver) = driver.filter(|driver| !["json-file", "local", ""].contains(driver)) {
        return Err(Failure::unsupported(format!("--log-driver {driver}")));
    }
    let mut spec = LogsSpec::default();
    let (mut size, mut files) = (None, 1);
    for text in options {
        let wrong = |reason: &str| Failure::usage(format!("--log-opt {text:?}: {reason}"));
        match text.split_once('=').ok_or_else(|| wrong("write NAME=VALUE"))? {
            ("max-size", value) => {
                size = Some(memory("--log-opt max-size", value)?.as_u64()).filter(|size| *size > 0);
            }
            ("max-file", value) => {
                let number = value.parse::<u32>().ok().filter(|number| *number > 0);
                files = number.ok_or_else(|| wrong("not a number of files"))?;
            }
            ("mode", "blocking") => spec.mode = Some(LogMode::Blocking),
            ("mode", "non-blocking") => spec.mode = Some(LogMode::NonBlocking),
            ("max-buffer-size", value) => {
                spec.max_buffer_bytes = Some(memory("--log-opt max-buffer-size", value)?.as_u64());
            }
            ("mode", _) => return Err(wrong("a mode is blocking or non-blocking")),
            // What it is in any case.
            ("compress", "false") => {}
            (name, _) => return Err(Failure::unsupported(format!("--log-opt {name}"))),
        }
    }
    spec.max_size_bytes = size.map(|size| size.saturating_mul(files.into()));
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_as_large_as_dockers_files_together() {
        let of = |options: &[&str]| logs(None, &options.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), LogsSpec::default());
        assert_eq!(of(&["max-size=10m"]).unwrap().max_size_bytes, Some(10 << 20));
        assert_eq!(of(&["max-size=10m", "max-file=3"]).unwrap().max_size_bytes, Some(30 << 20));
        assert_eq!(of(&["max-file=3"]).unwrap().max_size_bytes, None);
        assert_eq!(of(&["mode=non-blocking"]).unwrap().mode, Some(LogMode::NonBlocking));
        let spec = of(&["max-buffer-size=4m", "mode=non-blocking"]).unwrap();
        assert_eq!((spec.mode, spec.max_buffer_bytes), (Some(LogMode::NonBlocking), Some(4 << 20)));
        for (text, code) in [
            ("max-size", "usage"),
            ("max-size=big", "usage"),
            ("max-file=0", "usage"),
            ("mode=loud", "usage"),
            ("max-buffer-size=much", "usage"),
            ("tag=x", "unsupported"),
            ("compress=true", "unsupported"),
        ] {
            assert_eq!(of(&[text]).unwrap_err().code(), code, "{text}");
        }
        for (driver, supported) in [("json-file", true), ("local", true), ("none", false), ("syslog", false)] {
            assert_eq!(logs(Some(driver), &[]).is_ok(), supported, "{driver}");
        }
    }
}
