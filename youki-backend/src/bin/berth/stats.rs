//! `stats`: what containers use, once or again each second.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use futures_util::future::join_all;
use runtime_core::{ContainerId, ContainerStats, DetailedStats};
use serde::Serialize;
use youki_backend::Error;

use crate::cli::StatsArgs;
use crate::failure::Result;
use crate::lifecycle::container;
use crate::output::{self, Table, binary_size, decimal_size};
use crate::session::Session;

/// Between two tables.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between the two readings that the first table's CPU shares are made from.
const FIRST_INTERVAL: Duration = Duration::from_millis(500);
/// Cursor to the top left, and what is on the terminal gone.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// One container's, as JSON has it.
#[derive(Debug, Serialize)]
struct Line {
    id: String,
    #[serde(flatten)]
    basic: ContainerStats,
    /// Of one CPU, since the reading before; not known for an ended container.
    cpu_percent: Option<f64>,
    memory_percent: f64,
    detailed: DetailedStats,
}

/// `berth stats`
pub async fn stats(session: &Session, args: &StatsArgs) -> Result<i32> {
    let named = args.names.iter().map(|name| container(name)).collect::<Result<Vec<_>>>()?;
    let mut before = HashMap::new();
    for reading in read(session, args, &named, &before).await? {
        before.insert(reading.id, reading.basic);
    }
    tokio::time::sleep(FIRST_INTERVAL).await;
    let redraw = !args.no_stream && io::stdout().is_terminal();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let lines = read(session, args, &named, &before).await?;
        match (session.json, args.no_stream) {
            (true, true) => output::print_json(&lines)?,
            (true, false) => lines.iter().try_for_each(output::print_json_line)?,
            (false, _) => {
                let clear = if redraw { CLEAR } else { "" };
                output::print(&format!("{clear}{}", table(&lines)))?;
            }
        }
        if args.no_stream {
            return Ok(0);
        }
        before = lines.into_iter().map(|line| (line.id, line.basic)).collect();
    }
}

/// A reading of each container that is wanted. One that was not named and is gone meanwhile is left out.
async fn read(
    session: &Session,
    args: &StatsArgs,
    named: &[ContainerId],
    before: &HashMap<String, ContainerStats>,
) -> Result<Vec<Line>> {
    let wanted = if named.is_empty() { all(session, args.all).await? } else { named.to_vec() };
    let lines = join_all(wanted.iter().map(|id| read_one(session, id, before))).await;
    let mut read = Vec::new();
    for line in lines {
        match line {
            Err(Error::NoSuchContainer { .. } | Error::NotRunning { .. }) if named.is_empty() => {}
            other => read.push(other?),
        }
    }
    Ok(read)
}

async fn all(session: &Session, ended_too: bool) -> Result<Vec<ContainerId>> {
    let all = session.runtime.inspect_all().await?;
    let wanted = all.into_iter().filter(|one| ended_too || matches!(one.state, "running" | "paused" | "stopping"));
    Ok(wanted.filter_map(|one| one.id.parse().ok()).collect())
}

async fn read_one(
    session: &Session,
    id: &ContainerId,
    before: &HashMap<String, ContainerStats>,
) -> std::result::Result<Line, Error> {
    let basic = session.runtime.stats(id).await?;
    let detailed = session.runtime.detailed_stats(id).await?;
    let id = id.to_string();
    // The numbers of an ended container are its last ones: their time stands still.
    let previous = before.get(&id).filter(|previous| previous.timestamp < basic.timestamp);
    let cpu_percent = previous.map(|previous| ContainerStats::calculate_cpu_percent(previous, &basic));
    Ok(Line { id, memory_percent: basic.memory_percent(), cpu_percent, basic, detailed })
}

fn table(lines: &[Line]) -> String {
    let mut table = Table::new(["CONTAINER", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"]);
    for line in lines {
        let limit = match line.basic.memory_limit {
            u64::MAX => "none".to_owned(),
            limit => binary_size(limit),
        };
        let both = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (None, None) => "-".to_owned(),
            (one, other) => {
                format!("{} / {}", output::or_dash(one.map(decimal_size)), output::or_dash(other.map(decimal_size)))
            }
        };
        let network = line.detailed.network.as_ref();
        let sum = |count: fn(&runtime_core::stats::InterfaceStats) -> u64| {
            network.map(|all| all.iter().filter(|(name, _)| *name != "lo").map(|(_, one)| count(one)).sum())
        };
        table.row([
            line.id.clone(),
            line.cpu_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.2}%")),
            format!("{} / {limit}", binary_size(line.basic.memory_bytes)),
            format!("{:.2}%", line.memory_percent),
            both(sum(|one| one.rx_bytes), sum(|one| one.tx_bytes)),
            both(line.detailed.io.read_bytes, line.detailed.io.write_bytes),
            output::or_dash(line.detailed.pids.current),
        ]);
    }
    table.render()
}
