//! `logs`: what a container wrote, each stream where it came from.

use std::io::{self, BufWriter, Write};

use chrono::Utc;
use futures_util::{FutureExt, StreamExt};
use runtime_core::{ContainerId, LogRecord, LogSource, LogStream, LogsOptions};
use serde::Serialize;
use serde_json::json;

use crate::cli::LogsArgs;
use crate::failure::{Failure, Result, say};
use crate::flag_values as values;
use crate::lifecycle::container;
use crate::session::Session;
use crate::streams::Patient;

/// Output that is gathered before it is written.
const BUFFER_BYTES: usize = 64 << 10;

/// `berth logs`
pub async fn logs(session: &Session, args: &LogsArgs) -> Result<i32> {
    let id = container(&args.name)?;
    let now = Utc::now();
    let options = LogsOptions {
        since: args.since.as_deref().map(|text| values::time("--since", text, now)).transpose()?,
        until: args.until.as_deref().map(|text| values::time("--until", text, now)).transpose()?,
        tail: values::tail(&args.tail)?,
        follow: args.follow,
        cursor: None,
    };
    let mut records = session.runtime.log_records(&id, &options).await?;
    let mut printer = Printer::new(args.timestamps)?;
    loop {
        let record = match records.next().now_or_never() {
            Some(record) => record,
            // Nothing more for now: what is gathered is shown.
            None => {
                printer.flush()?;
                records.next().await
            }
        };
        let Some(record) = record else { break };
        let record = record?;
        if session.json {
            printer.json(&id, &record)?;
        } else {
            printer.record(&record)?;
        }
    }
    printer.flush()?;
    Ok(0)
}

/// Writes records to standard output and error.
struct Printer {
    stdout: BufWriter<Patient>,
    stderr: BufWriter<Patient>,
    timestamps: bool,
    /// Of stdout and stderr: the last record was the beginning of a line.
    within: [bool; 2],
}

impl Printer {
    fn new(timestamps: bool) -> Result<Self> {
        Ok(Self {
            stdout: BufWriter::with_capacity(BUFFER_BYTES, Patient::own(io::stdout())?),
            stderr: BufWriter::with_capacity(BUFFER_BYTES, Patient::own(io::stderr())?),
            timestamps,
            within: [false; 2],
        })
    }

    fn record(&mut self, record: &LogRecord) -> Result<()> {
        if record.dropped_bytes > 0 {
            self.flush()?;
            say(&format!("{} bytes that the container wrote here are missing", record.dropped_bytes));
            return Ok(());
        }
        // The order between the two is kept where both go to one place.
        let (out, other, index): (&mut dyn Write, &mut dyn Write, usize) = match record.stream {
            LogStream::Stdout => (&mut self.stdout, &mut self.stderr, 0),
            LogStream::Stderr => (&mut self.stderr, &mut self.stdout, 1),
        };
        let failed = |error: io::Error| Failure::io("writing", "the log", &error);
        other.flush().map_err(failed)?;
        if self.timestamps && !self.within[index] {
            write!(out, "{} ", runtime_core::time::format(&record.timestamp)).map_err(failed)?;
        }
        out.write_all(&record.bytes).map_err(failed)?;
        if !record.partial {
            out.write_all(b"\n").map_err(failed)?;
        }
        self.within[index] = record.partial;
        Ok(())
    }

    /// A record, and whose it is.
    fn json(&mut self, id: &ContainerId, record: &LogRecord) -> Result<()> {
        /// What is known beside the record of whose it is, as a `LogEntry` has it.
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(flatten)]
            record: &'a LogRecord,
            source: LogSource,
            service: &'a str,
            deployment: Option<&'a str>,
        }
        let source = LogSource::Container(id.to_string());
        let line = json!(Line { record, source, service: &id.service, deployment: None });
        writeln!(self.stdout, "{line}").map_err(|error| crate::output::stdout_failed(&error))
    }

    fn flush(&mut self) -> Result<()> {
        let flushed = self.stdout.flush().and_then(|()| self.stderr.flush());
        flushed.map_err(|error| Failure::io("writing", "the log", &error))
    }
}
