//! `top`: the processes of a container.

use std::collections::BTreeMap;

use procfs::Current;
use procfs::process::Process;
use runtime_core::TopEntry;

use crate::cli::TopArgs;
use crate::failure::{Failure, Result};
use crate::lifecycle::container;
use crate::output::{self, Table};
use crate::session::Session;

/// What `ps -ef` shows, and `ps aux`.
const PRESETS: [(&[&str], &str); 2] = [
    (&["-ef", "ef", "-f"], "uid,pid,ppid,c,stime,tty,time,cmd"),
    (&["aux", "-aux", "au"], "user,pid,%cpu,vsz,rss,tty,stat,stime,time,command"),
];

/// `berth top`
pub async fn top(session: &Session, args: &TopArgs) -> Result<i32> {
    let columns = columns(&args.options)?;
    let processes = session.runtime.processes(&container(&args.name)?).await?;
    let Some(columns) = columns else {
        if session.json {
            output::print_json(&processes)?;
            return Ok(0);
        }
        let mut table = Table::new(["PID", "PPID", "USER", "COMMAND"]);
        for process in processes {
            table.row([process.pid.to_string(), process.ppid.to_string(), process.user, process.command]);
        }
        output::print(&table.render())?;
        return Ok(0);
    };
    let rows = processes.iter().filter_map(|process| row(process, &columns));
    if session.json {
        let named = |row: Vec<String>| columns.iter().copied().zip(row).collect::<BTreeMap<_, _>>();
        output::print_json(&rows.map(named).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let mut table = Table::of(columns.iter().map(|column| column.to_uppercase()).collect());
    rows.for_each(|row| table.add(row));
    output::print(&table.render())?;
    Ok(0)
}

/// The columns of ps's options; `None` for the usual ones.
fn columns(options: &[String]) -> Result<Option<Vec<&str>>> {
    let words: Vec<&str> = options.iter().map(String::as_str).collect();
    let list = match words.as_slice() {
        [] => return Ok(None),
        ["-o" | "o" | "-eo", list] => list,
        [one] => match PRESETS.iter().find(|(names, _)| names.contains(one)) {
            Some((_, list)) => list,
            None => one.strip_prefix("-o").filter(|list| !list.is_empty()).ok_or_else(|| wrong(&words))?,
        },
        _ => return Err(wrong(&words)),
    };
    let columns: Vec<&str> = list.split(',').map(str::trim).collect();
    match columns.iter().find(|column| !COLUMNS.contains(column)) {
        Some(unknown) => Err(Failure::usage(format!("top -o: {unknown:?} is none of {}", COLUMNS.join(", ")))),
        None => Ok(Some(columns)),
    }
}

fn wrong(words: &[&str]) -> Failure {
    Failure::usage(format!("top {}: write -o COLUMN,…, -ef or aux", words.join(" ")))
}

const COLUMNS: [&str; 25] = [
    "pid", "ppid", "pgid", "sid", "uid", "user", "gid", "ni", "nlwp", "stat", "s", "rss", "vsz", "time", "etime",
    "start", "stime", "tty", "comm", "cmd", "command", "args", "pcpu", "%cpu", "c",
];

/// `None` for one that has ended meanwhile.
fn row(entry: &TopEntry, columns: &[&str]) -> Option<Vec<String>> {
    let process = Process::new(i32::try_from(entry.pid).ok()?).ok()?;
    let (stat, status) = (process.stat().ok()?, process.status().ok()?);
    let ticks = procfs::ticks_per_second();
    let uptime = procfs::Uptime::current().ok()?.uptime_duration().as_secs();
    let age = uptime.saturating_sub(stat.starttime / ticks.max(1));
    let used = (stat.utime + stat.stime) / ticks.max(1);
    let percent = if age == 0 { 0.0 } else { used as f64 * 100.0 / age as f64 };
    let started = chrono::Local::now() - chrono::Duration::seconds(i64::try_from(age).unwrap_or(0));
    let value = |column: &&str| match *column {
        "pid" => entry.pid.to_string(),
        "ppid" => entry.ppid.to_string(),
        "pgid" => stat.pgrp.to_string(),
        "sid" => stat.session.to_string(),
        "uid" => status.euid.to_string(),
        "user" => entry.user.clone(),
        "gid" => status.egid.to_string(),
        "ni" => stat.nice.to_string(),
        "nlwp" => stat.num_threads.to_string(),
        "stat" | "s" => stat.state.to_string(),
        "rss" => (stat.rss * procfs::page_size() / 1024).to_string(),
        "vsz" => (stat.vsize / 1024).to_string(),
        "time" => clock(used),
        "etime" => clock(age),
        "start" | "stime" => started.format("%H:%M").to_string(),
        "tty" => terminal(stat.tty_nr),
        "comm" => stat.comm.clone(),
        "pcpu" | "%cpu" => format!("{percent:.1}"),
        "c" => format!("{percent:.0}"),
        // cmd, command, args.
        _ => entry.command.clone(),
    };
    Some(columns.iter().map(value).collect())
}

/// `[DD-]HH:MM:SS`
fn clock(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let days = if days > 0 { format!("{days}-") } else { String::new() };
    format!("{days}{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60)
}

/// Numbers of `/dev/pts` begin at major 136.
fn terminal(device: i32) -> String {
    let device = u64::from(device.cast_unsigned());
    match rustix::fs::major(device) {
        0 => "?".to_owned(),
        major @ 136..=143 => format!("pts/{}", (major - 136) * 256 + rustix::fs::minor(device)),
        major => format!("{major}:{}", rustix::fs::minor(device)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_ps() {
        let of = |words: &[&str]| {
            let owned: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            columns(&owned).map(|columns| columns.map(|columns| columns.join(","))).map_err(|failure| failure.text())
        };
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["-o", "pid,cmd"]).unwrap().unwrap(), "pid,cmd");
        assert_eq!(of(&["-opid"]).unwrap().unwrap(), "pid");
        assert!(of(&["aux"]).unwrap().unwrap().starts_with("user,pid"));
        assert!(of(&["-ef"]).is_ok() && of(&["-o", "bogus"]).is_err() && of(&["-Z"]).is_err());
        for (_, list) in PRESETS {
            assert!(list.split(',').all(|column| COLUMNS.contains(&column)), "{list}");
        }
    }

    #[test]
    fn every_column_of_a_process_has_a_value() {
        let pid = std::process::id();
        let entry = TopEntry { pid, ppid: 1, user: "0".into(), command: "test".into() };
        let row = row(&entry, &COLUMNS).unwrap();
        assert!(row.iter().all(|value| !value.is_empty()), "{row:?}");
        assert_eq!(clock(90_061), "1-01:01:01");
        assert_eq!(terminal(0), "?");
    }
}
