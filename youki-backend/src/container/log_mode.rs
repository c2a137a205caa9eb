//! Whether a container waits for its log, and what is held in memory if it does not.

use runtime_core::spec::{LogMode, LogsSpec};

use crate::error::{Error, Result};

/// Buffer of a non-blocking log whose spec names none: docker's.
const DEFAULT_BUFFER_BYTES: u64 = 1 << 20;
/// The largest: it is memory of the host's, beside what the container may use.
const MAX_BUFFER_BYTES: u64 = 1 << 30;

/// Refuses a buffer that cannot be, or that nothing would be put into.
pub(super) fn check(logs: &LogsSpec, default_mode: LogMode) -> Result<()> {
    let Some(bytes) = logs.max_buffer_bytes else { return Ok(()) };
    let reason = match logs.mode.unwrap_or(default_mode) {
        LogMode::Blocking => "a blocking log has no buffer: set logs.mode to non_blocking".to_owned(),
        LogMode::NonBlocking if !(1..=MAX_BUFFER_BYTES).contains(&bytes) => {
            format!("{bytes} is not between 1 and {MAX_BUFFER_BYTES}")
        }
        LogMode::NonBlocking => return Ok(()),
    };
    Err(Error::invalid("logs.max_buffer_bytes", reason))
}

/// The buffer of a non-blocking log, none of a blocking one.
pub(super) fn buffer_bytes(logs: &LogsSpec, default_mode: LogMode) -> Option<u64> {
    match logs.mode.unwrap_or(default_mode) {
        LogMode::Blocking => None,
        LogMode::NonBlocking => Some(logs.max_buffer_bytes.unwrap_or(DEFAULT_BUFFER_BYTES)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_belongs_to_a_log_that_does_not_block() {
        let logs = |mode, max_buffer_bytes| LogsSpec { mode, max_buffer_bytes, ..LogsSpec::default() };
        for (mode, bytes, default, buffer) in [
            (None, None, LogMode::Blocking, Ok(None)),
            (None, None, LogMode::NonBlocking, Ok(Some(1 << 20))),
            (Some(LogMode::Blocking), None, LogMode::NonBlocking, Ok(None)),
            (Some(LogMode::NonBlocking), Some(4096), LogMode::Blocking, Ok(Some(4096))),
            (None, Some(4096), LogMode::NonBlocking, Ok(Some(4096))),
            (None, Some(4096), LogMode::Blocking, Err("blocking log")),
            (Some(LogMode::NonBlocking), Some(0), LogMode::Blocking, Err("not between")),
            (Some(LogMode::NonBlocking), Some(MAX_BUFFER_BYTES + 1), LogMode::Blocking, Err("not between")),
        ] {
            let logs = logs(mode, bytes);
            match (check(&logs, default), buffer) {
                (Ok(()), Ok(buffer)) => assert_eq!(buffer_bytes(&logs, default), buffer),
                (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
                (got, want) => panic!("{logs:?}: {got:?}, not {want:?}"),
            }
        }
    }
}
