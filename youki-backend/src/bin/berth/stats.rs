//! `stats`: what containers use, once or again each second.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use runtime_core::{ContainerId, ContainerStats, DetailedStats, StatsSnapshot};
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
    let mut before = basics(&read(session, args, &named).await?);
    tokio::time::sleep(FIRST_INTERVAL).await;
    if args.no_stream {
        let again = match named[..] {
            // Whoever did not answer the first time is not waited for, and told, a second time.
            [] => of_those_that_have_stats(session, before.keys()).await?,
            _ => read(session, args, &named).await?,
        };
        let lines = lines(again, &before);
        match session.json {
            true => output::print_json(&lines)?,
            false => output::print(&table(&lines))?,
        }
        return Ok(0);
    }
    let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let again = read(session, args, &named).await?;
        let basics = basics(&again);
        let lines = lines(again, &before);
        match session.json {
            true => lines.iter().try_for_each(output::print_json_line)?,
            false => output::print(&format!("{clear}{}", table(&lines)))?,
        }
        before = basics;
    }
}

/// A reading of each container that is wanted. One that was not named and is gone meanwhile is left out.
async fn read(session: &Session, args: &StatsArgs, named: &[ContainerId]) -> Result<Vec<StatsSnapshot>> {
    Ok(match (named, args.all) {
        ([], false) => session.runtime.stats_all().await?,
        ([], true) => {
            let all = session.runtime.inspect_all().await?;
            let ids: Vec<ContainerId> = all.into_iter().filter_map(|one| one.id.parse().ok()).collect();
            of_those_that_have_stats(session, &ids).await?
        }
        _ => try_join_all(named.iter().map(|id| session.runtime.stats_snapshot(id))).await?,
    })
}

/// Ended ones too.
async fn of_those_that_have_stats(
    session: &Session,
    ids: impl IntoIterator<Item = &ContainerId>,
) -> Result<Vec<StatsSnapshot>> {
    let mut read = Vec::new();
    for snapshot in join_all(ids.into_iter().map(|id| session.runtime.stats_snapshot(id))).await {
        match snapshot {
            Err(Error::NoSuchContainer { .. } | Error::NotRunning { .. }) => {}
            other => read.push(other?),
        }
    }
    Ok(read)
}

/// What the next reading is compared with.
fn basics(readings: &[StatsSnapshot]) -> BTreeMap<ContainerId, ContainerStats> {
    readings.iter().map(|reading| (reading.id.clone(), reading.basic.clone())).collect()
}

fn lines(snapshots: Vec<StatsSnapshot>, before: &BTreeMap<ContainerId, ContainerStats>) -> Vec<Line> {
    snapshots.into_iter().map(|snapshot| line(snapshot, before)).collect()
}

fn line(snapshot: StatsSnapshot, before: &BTreeMap<ContainerId, ContainerStats>) -> Line {
    let StatsSnapshot { id, basic, detailed } = snapshot;
    // The numbers of an ended container are its last ones: their time stands still.
    let previous = before.get(&id).filter(|previous| previous.timestamp < basic.timestamp);
    let cpu_percent = previous.map(|previous| ContainerStats::calculate_cpu_percent(previous, &basic));
    let id = id.to_string();
    Line { id, memory_percent: basic.memory_percent(), cpu_percent, basic, detailed }
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
