//! The CRI log line: `2026-11-25T03:21:40.000000000Z stdout F text`.
//!
//! The third field holds tags, separated by colons. The first is `F` for a whole line or the last piece of one, `P` for
//! a piece that goes on in the stream's next record. Ours beyond CRI's: `dropped=<bytes>`, on an empty line where
//! output was dropped; a reader that does not know it sees an empty line.

use chrono::{DateTime, NaiveDate, Utc};
use memchr::memchr;
use runtime_core::LogStream;

/// One record, its text borrowed from the file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// When its first byte arrived.
    pub timestamp: DateTime<Utc>,
    /// Which stream it was written to.
    pub stream: LogStream,
    /// It goes on in the stream's next record.
    pub partial: bool,
    /// Bytes that were dropped here.
    pub dropped_bytes: u64,
    /// The bytes as they were written.
    pub text: &'a [u8],
}

/// Reads one line, without its newline. `None` if it is not in the format.
pub(crate) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let (time, rest) = word(line);
    let head = parse_head(rest?)?;
    Some(Line {
        timestamp: timestamp(time)?,
        stream: head.stream,
        partial: head.partial,
        dropped_bytes: head.dropped_bytes,
        text: head.text,
    })
}

/// What there is to know of a line without reading its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub stream: LogStream,
    /// Its stream's next line goes on with it.
    pub partial: bool,
    /// It stands for bytes of either stream that were dropped.
    pub is_gap: bool,
}

pub(super) fn parse_kind(line: &[u8]) -> Option<Kind> {
    let head = parse_head(word(line).1?)?;
    Some(Kind { stream: head.stream, partial: head.partial, is_gap: head.dropped_bytes > 0 })
}

struct Head<'a> {
    stream: LogStream,
    partial: bool,
    dropped_bytes: u64,
    text: &'a [u8],
}

fn parse_head(line: &[u8]) -> Option<Head<'_>> {
    let (stream, rest) = word(line);
    let stream = match stream {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    let (tags, text) = word(rest?);
    let mut tags = tags.split(|byte| *byte == b':');
    let partial = match tags.next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    // Tags of later versions are not ours to refuse.
    let dropped_bytes = tags
        .find_map(|tag| tag.strip_prefix(b"dropped="))
        .and_then(|number| std::str::from_utf8(number).ok()?.parse().ok())
        .unwrap_or(0);
    Some(Head { stream, partial, dropped_bytes, text: text.unwrap_or_default() })
}

/// Up to the next space, and what follows it.
fn word(bytes: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr(b' ', bytes) {
        Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
        None => (bytes, None),
    }
}

fn timestamp(text: &[u8]) -> Option<DateTime<Utc>> {
    nanosecond_utc(text).or_else(|| {
        let text = std::str::from_utf8(text).ok()?;
        DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc())
    })
}

/// The one form our writer uses, `YYYY-MM-DDTHH:MM:SS.nnnnnnnnnZ`, without chrono's general parser: it would be most
/// of the cost of a line.
fn nanosecond_utc(text: &[u8]) -> Option<DateTime<Utc>> {
    const SHAPE: &[u8; 30] = b"dddd-dd-ddTdd:dd:dd.dddddddddZ";
    let text: &[u8; 30] = text.try_into().ok()?;
    let fits = |(byte, shape): (&u8, &u8)| if *shape == b'd' { byte.is_ascii_digit() } else { byte == shape };
    if !text.iter().zip(SHAPE).all(fits) {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].iter().fold(0u32, |n, digit| n * 10 + u32::from(digit - b'0'));
    let date = NaiveDate::from_ymd_opt(i32::try_from(number(0, 4)).ok()?, number(5, 7), number(8, 10))?;
    let time = date.and_hms_nano_opt(number(11, 13), number(14, 16), number(17, 19), number(20, 29))?;
    Some(time.and_utc())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn the_format_is_read_as_cri_writes_it() {
        let at = "2026-11-25T03:21:40.000000001Z";
        for (line, want) in [
            ("stdout F hello  world ", Some((LogStream::Stdout, false, 0, "hello  world "))),
            ("stderr P part", Some((LogStream::Stderr, true, 0, "part"))),
            ("stdout F ", Some((LogStream::Stdout, false, 0, ""))),
            ("stdout F", Some((LogStream::Stdout, false, 0, ""))),
            ("stdout F:dropped=4096 ", Some((LogStream::Stdout, false, 4096, ""))),
            ("stdout F:later=x:dropped=7 a", Some((LogStream::Stdout, false, 7, "a"))),
            ("stdout F:dropped=x ", Some((LogStream::Stdout, false, 0, ""))),
            ("stdout X text", None),
            ("stdin F text", None),
            ("stdout", None),
            ("", None),
        ] {
            let whole = format!("{at} {line}");
            let parsed = parse(whole.as_bytes());
            let want = want.map(|(stream, partial, dropped_bytes, text)| Line {
                timestamp: time(at),
                stream,
                partial,
                dropped_bytes,
                text: text.as_bytes(),
            });
            assert_eq!(parsed, want, "{line}");
        }
        assert_eq!(parse(b"x stdout F a"), None);
        assert_eq!(parse(b"2026-13-25T03:21:40.000000001Z stdout F a"), None);
    }

    #[test]
    fn times_of_other_writers_are_understood() {
        for (text, same) in [
            ("2026-11-25T03:21:40.5Z", "2026-11-25T03:21:40.500000000Z"),
            ("2026-11-25T04:21:40.123456789+01:00", "2026-11-25T03:21:40.123456789Z"),
        ] {
            let line = format!("{text} stdout F a");
            assert_eq!(parse(line.as_bytes()).unwrap().timestamp, time(same), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_line_or_not_but_never_a_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let kind = parse_kind(&line);
            if let Some(line) = parse(&line) {
                let Line { stream, partial, dropped_bytes, .. } = line;
                prop_assert_eq!(kind, Some(Kind { stream, partial, is_gap: dropped_bytes > 0 }));
            }
        }

        #[test]
        fn what_is_written_is_read(
            seconds in 0i64..4_000_000_000, nanos in 0u32..1_000_000_000, stderr: bool, partial: bool,
            text in proptest::collection::vec(any::<u8>().prop_filter("a newline ends it", |b| *b != b'\n'), 0..300),
        ) {
            let timestamp = DateTime::from_timestamp(seconds, nanos).unwrap();
            let stream = if stderr { LogStream::Stderr } else { LogStream::Stdout };
            let name = if stderr { "stderr" } else { "stdout" };
            let tag = if partial { "P" } else { "F" };
            let mut line = format!("{} {name} {tag} ", runtime_core::time::format(&timestamp)).into_bytes();
            line.extend(&text);
            prop_assert_eq!(parse(&line), Some(Line { timestamp, stream, partial, dropped_bytes: 0, text: &text }));
        }
    }
}
