//! What podman's monitor keeps of a container's output.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use runtime_core::{ContainerId, LogEntry, LogSource, LogStream};

/// conmon's k8s-file: `time stream P|F text`, a line of which is complete at `F`.
pub fn entries(id: &ContainerId, log: &[u8]) -> Vec<LogEntry> {
    const MAX_MESSAGE_BYTES: usize = 64 << 10;
    let mut entries = Vec::new();
    let mut unfinished: HashMap<bool, (DateTime<Utc>, Vec<u8>)> = HashMap::new();
    let entry = |is_stdout: bool, timestamp, text: &[u8]| LogEntry {
        timestamp,
        stream: if is_stdout { LogStream::Stdout } else { LogStream::Stderr },
        message: String::from_utf8_lossy(text).into_owned(),
        source: LogSource::Container(id.to_string()),
        service: Some(id.service.clone()),
        deployment: None,
    };
    for line in log.split(|byte| *byte == b'\n') {
        let [time, stream, tag, text] = &line.splitn(4, |byte| *byte == b' ').collect::<Vec<_>>()[..] else { continue };
        let Ok(time) = String::from_utf8_lossy(time).parse::<DateTime<Utc>>() else { continue };
        let is_stdout = *stream == b"stdout";
        let (began, mut whole) = unfinished.remove(&is_stdout).unwrap_or((time, Vec::new()));
        whole.extend_from_slice(text);
        if *tag == b"F" || whole.len() > MAX_MESSAGE_BYTES - (8 << 10) {
            entries.push(entry(is_stdout, began, &whole));
        } else {
            unfinished.insert(is_stdout, (began, whole));
        }
    }
    entries.extend(unfinished.into_iter().map(|(is_stdout, (began, text))| entry(is_stdout, began, &text)));
    entries.sort_by_key(|entry| entry.timestamp);
    entries
}
