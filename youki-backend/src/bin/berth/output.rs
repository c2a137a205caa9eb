//! What goes to standard output: JSON, tables, sizes and times as text.

use std::io::{self, Write};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::failure::{Failure, Result};
use crate::streams::Patient;

/// Spaces between two columns, as docker's.
const GAP: usize = 3;

/// Writes to standard output at once.
pub fn print(text: &str) -> Result<()> {
    Patient::own(io::stdout())?.write_all(text.as_bytes()).map_err(|error| stdout_failed(&error))
}

/// The same with a newline.
pub fn print_line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

/// A document, indented.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print_line(&to_json(value, true)?)
}

/// One object of a stream, on one line.
pub fn print_json_line(value: &impl Serialize) -> Result<()> {
    print_line(&to_json(value, false)?)
}

fn to_json(value: &impl Serialize, pretty: bool) -> Result<String> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text.map_err(|error| Failure::io("writing", "JSON", &error.into()))
}

/// A failure to write to standard output.
pub fn stdout_failed(error: &io::Error) -> Failure {
    Failure::io("writing to", "standard output", error)
}

/// Lines of cells beneath their headings, each column as wide as its widest cell. The last one is not padded.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// One with these headings.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    /// One whose columns are known only now.
    pub fn of(headings: Vec<String>) -> Self {
        Self { rows: vec![headings] }
    }

    /// Adds a line to such a one.
    pub fn add(&mut self, cells: Vec<String>) {
        self.rows.push(cells.into_iter().map(|cell| cell.replace(char::is_control, " ")).collect());
    }

    /// Adds a line.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| cell.replace(char::is_control, " ")).to_vec());
    }

    /// As text, with a newline after each line.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + GAP));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Lines of a template, each with its newline; with `headings`, as a table whose columns are parted by tabs.
pub fn lines(headings: Option<String>, lines: impl Iterator<Item = Result<String>>) -> Result<String> {
    let cells = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    match headings {
        Some(headings) => {
            let mut table = Table::of(cells(&headings));
            for line in lines {
                table.add(cells(&line?));
            }
            Ok(table.render())
        }
        None => lines.map(|line| Ok(format!("{}\n", line?))).collect(),
    }
}

/// Bytes as docker shows them in tables: `1.21MB`.
pub fn decimal_size(bytes: u64) -> String {
    size(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// Bytes as docker shows memory: `1.15MiB`.
pub fn binary_size(bytes: u64) -> String {
    size(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// Four significant digits, no zeros behind them.
fn size(bytes: u64, base: f64, units: &[&str]) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let decimals = if unit == 0 || value >= 1000.0 {
        0
    } else if value >= 100.0 {
        1
    } else {
        2
    };
    let mut text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text}{}", units[unit])
}

/// How long ago, in docker's words: `5 minutes`.
pub fn age(since: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = (now - since).num_seconds().max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, 2..48) => format!("{hours} hours"),
        (_, _, 48..336) => format!("{} days", hours / 24),
        (_, _, 336..1440) => format!("{} weeks", hours / 24 / 7),
        (_, _, 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// A time, to the second.
pub fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// Text cut to `width` characters, the last of which says so.
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// What is not known.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use chrono::Duration;

    use super::*;

    #[test]
    fn columns_align_and_lines_have_no_trailing_spaces() {
        let mut table = Table::new(["NAME", "SIZE"]);
        table.row(["a-longer-name".into(), "1B".into()]);
        table.row(["b\nc".into(), String::new()]);
        assert_eq!(table.render(), "NAME            SIZE\na-longer-name   1B\nb c\n");
    }

    #[test]
    fn sizes_are_dockers() {
        for (bytes, decimal, binary) in [
            (0, "0B", "0B"),
            (999, "999B", "999B"),
            (1_210_000, "1.21MB", "1.15MiB"),
            (1 << 20, "1.05MB", "1MiB"),
            (512 << 20, "536.9MB", "512MiB"),
            (u64::MAX, "18447PB", "16384PiB"),
        ] {
            assert_eq!((decimal_size(bytes).as_str(), binary_size(bytes).as_str()), (decimal, binary));
        }
    }

    #[test]
    fn ages_are_dockers() {
        let now = Utc::now();
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 21, "3 weeks"),
            (86_400 * 90, "3 months"),
            (86_400 * 800, "2 years"),
        ] {
            assert_eq!(age(now - Duration::seconds(seconds), now), text);
        }
    }

    #[test]
    fn shortened_text_says_so() {
        assert_eq!(shorten("abcdef", 6), "abcdef");
        assert_eq!(shorten("abcdefg", 6), "abcde…");
    }
}
