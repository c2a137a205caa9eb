//! The agent that the demo kills: this program in a process of its own.

use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use runtime_core::{ContainerId, Runtime, ServiceSpec};
use serde::{Deserialize, Serialize};

use super::place::Place;

/// The hidden subcommand.
pub(crate) const COMMAND: &str = "demo-agent";
const READY: &str = "ready";

/// What it is told to do: one JSON argument.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Orders {
    pub place: Place,
    pub containers: Vec<(ContainerId, ServiceSpec)>,
}

/// Runs the containers, says so, and holds the runtime until it is killed.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let [orders] = args else { bail!("{COMMAND} takes its orders as one argument") };
    let orders: Orders = serde_json::from_str(orders).context("reading the orders")?;
    let tokio = tokio::runtime::Runtime::new()?;
    tokio.block_on(async {
        let runtime = youki_backend::YoukiRuntime::open(orders.place.config()).await?;
        for (id, spec) in &orders.containers {
            runtime.create_container(id, spec).await?;
            runtime.start_container(id).await?;
        }
        println!("{READY}");
        std::io::stdout().flush()?;
        // Killed long before; should the demo die first, this ends by itself.
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok(ExitCode::FAILURE)
    })
}

/// Starts an agent with `orders` and returns once it has carried them out.
pub(super) fn start(orders: &Orders) -> Result<std::process::Child> {
    use std::io::BufRead;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(COMMAND)
        .arg(serde_json::to_string(orders)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the agent")?;
    let stdout = child.stdout.take().context("the agent's output")?;
    let mut line = String::new();
    std::io::BufReader::new(stdout).read_line(&mut line)?;
    if line.trim_end() != READY {
        let status = child.wait()?;
        bail!("the agent ended with {status} before its containers ran");
    }
    Ok(child)
}
