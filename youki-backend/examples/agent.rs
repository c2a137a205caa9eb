//! The smallest agent: runs an image under Berth, shows what it writes, and removes it.
//!
//! `cargo run --example agent -- docker.io/library/busybox:latest echo hello` (as root)

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use runtime_core::{ContainerId, LogsOptions, Runtime, ServiceSpec};
use youki_backend::{Config, YoukiRuntime};

fn main() -> anyhow::Result<()> {
    // Lets this one executable be its containers' supervisor too. Before any thread is started.
    youki_backend::supervisor::run_if_invoked();
    agent()
}

#[tokio::main]
async fn agent() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let image = args.next().ok_or_else(|| anyhow::anyhow!("usage: agent IMAGE [COMMAND…]"))?;
    let mut spec = ServiceSpec::new(image);
    spec.command.args = Some(args.collect()).filter(|args: &Vec<String>| !args.is_empty());

    let runtime: Arc<dyn Runtime> = Arc::new(YoukiRuntime::open(Config::load(None)?).await?);
    let id = ContainerId::new("agent-example", 0);
    runtime.create_container(&id, &spec).await?;
    let outcome = run(&*runtime, &id).await;
    runtime.stop_container(&id, Duration::from_secs(10)).await?;
    runtime.remove_container(&id).await?;
    println!("{:?}", outcome?);
    Ok(())
}

async fn run(runtime: &dyn Runtime, id: &ContainerId) -> anyhow::Result<runtime_core::WaitOutcome> {
    runtime.start_container(id).await?;
    let follow = LogsOptions { follow: true, ..LogsOptions::default() };
    let mut log = runtime.logs_stream(id, &follow).await?;
    while let Some(record) = log.next().await {
        let record = record?;
        println!("{:?} {}", record.stream, String::from_utf8_lossy(&record.bytes));
    }
    Ok(runtime.wait_outcome(id).await?)
}
