//! `ps`, `inspect`, `top`.

use chrono::Utc;
use runtime_core::spec::PortProtocol;
use youki_backend::Inspect;

use crate::cli::{NameArgs, NamesArgs, PsArgs};
use crate::failure::Result;
use crate::lifecycle::container;
use crate::output::{self, Table};
use crate::session::Session;

/// Width of a command in the table, as docker's.
const COMMAND_WIDTH: usize = 20;

/// `berth ps`
pub async fn ps(session: &Session, args: &PsArgs) -> Result<i32> {
    let mut containers = session.runtime.inspect_all().await?;
    containers.retain(|one| args.all || matches!(one.state, "running" | "paused" | "stopping"));
    // The newest first, as docker.
    containers.sort_by_key(|one| std::cmp::Reverse(one.created_at));
    if session.json {
        output::print_json(&containers)?;
        return Ok(0);
    }
    if args.quiet {
        let ids: String = containers.iter().map(|one| format!("{}\n", one.id)).collect();
        output::print(&ids)?;
        return Ok(0);
    }
    let now = Utc::now();
    let mut table = Table::new(["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
    for one in &containers {
        let mut command = command(one);
        if !args.no_trunc {
            command = output::shorten(&command, COMMAND_WIDTH);
        }
        table.row([
            one.id.clone(),
            one.image.clone(),
            command,
            format!("{} ago", output::age(one.created_at, now)),
            status(one, now),
            ports(one),
            one.name.clone(),
        ]);
    }
    output::print(&table.render())?;
    Ok(0)
}

/// `berth inspect`
pub async fn inspect(session: &Session, args: &NamesArgs) -> Result<i32> {
    let mut found = Vec::new();
    let mut status = 0;
    for name in &args.names {
        let inspected = match container(name) {
            Ok(id) => session.runtime.inspect(&id).await.map_err(Into::into),
            Err(failure) => Err(failure),
        };
        match inspected {
            Ok(one) => found.push(one),
            Err(failure) => {
                failure.print(session.json);
                status = 1;
            }
        }
    }
    output::print_json(&found)?;
    Ok(status)
}

/// `berth top`
pub async fn top(session: &Session, args: &NameArgs) -> Result<i32> {
    let processes = session.runtime.processes(&container(&args.name)?).await?;
    if session.json {
        output::print_json(&processes)?;
        return Ok(0);
    }
    let mut table = Table::new(["PID", "PPID", "USER", "COMMAND"]);
    for process in processes {
        table.row([process.pid.to_string(), process.ppid.to_string(), process.user, process.command]);
    }
    output::print(&table.render())?;
    Ok(0)
}

/// What it runs, in quotes as docker shows it; a dash while it is being created.
fn command(one: &Inspect) -> String {
    let line = one.args.join(" ");
    if line.is_empty() { "-".to_owned() } else { format!("\"{line}\"") }
}

/// `0.0.0.0:8080->80/tcp`, as docker shows them.
fn ports(one: &Inspect) -> String {
    let shown = one.ports.iter().map(|port| {
        let protocol = match port.protocol {
            PortProtocol::Tcp => "tcp",
            PortProtocol::Udp => "udp",
        };
        let host = port.host_ip.as_deref().unwrap_or("0.0.0.0");
        format!("{host}:{}->{}/{protocol}", output::or_dash(port.host_port), port.container_port)
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Docker's words.
fn status(one: &Inspect, now: chrono::DateTime<Utc>) -> String {
    let since = |time: Option<_>| time.map_or_else(|| "?".to_owned(), |time| output::age(time, now));
    match one.state {
        "pending" => "Creating".to_owned(),
        "initializing" => "Created".to_owned(),
        "running" => format!("Up {}", since(one.started_at)),
        "paused" => format!("Up {} (Paused)", since(one.started_at)),
        "stopping" => "Stopping".to_owned(),
        "exited" => format!("Exited ({}) {} ago", output::or_dash(one.exit_code), since(one.finished_at)),
        _ => format!("Failed: {}", one.reason.as_deref().unwrap_or("unknown")),
    }
}
