//! What every command begins with: configuration, logging, and the opened runtime.

use tracing_subscriber::EnvFilter;
use youki_backend::{Config, YoukiRuntime};

use crate::cli::GlobalArgs;
use crate::failure::{Failure, Result};

/// An opened root, and how to print.
#[derive(Debug)]
pub struct Session {
    pub runtime: YoukiRuntime,
    pub json: bool,
}

impl Session {
    /// Opens the root of `config`.
    pub async fn open(config: Config, json: bool) -> Result<Self> {
        Ok(Self { runtime: YoukiRuntime::open(config).await?, json })
    }
}

/// The configuration: flags, then the environment, then the file. Begins to log.
pub fn configure(global: &GlobalArgs) -> Result<Config> {
    let flag = |variable: &str| match variable {
        "BERTH_ROOT" => global.root.clone(),
        "BERTH_RUN_DIR" => global.run_dir.clone(),
        "BERTH_CGROUP_PARENT" => global.cgroup_parent.clone(),
        "BERTH_BRIDGE" => global.bridge.clone(),
        "BERTH_SUBNET" => global.subnet.clone(),
        "BERTH_S3_BUCKET" => global.s3_bucket.clone(),
        "BERTH_S3_ENDPOINT" => global.s3_endpoint.clone(),
        "BERTH_S3_PREFIX" => global.s3_prefix.clone(),
        "BERTH_S3_REGION" => global.s3_region.clone(),
        "BERTH_LOG" => global.log_level.clone(),
        _ => None,
    };
    let set = |text: &String| !text.is_empty();
    let mut config = Config::load_from(global.config.as_deref(), |variable| {
        flag(variable).or_else(|| std::env::var(variable).ok()).filter(set)
    })?;
    // One that follows containers is `berth keeper`, not a command that comes and goes.
    config.keeper = false;
    log_to_stderr(&config.log_level)?;
    Ok(config)
}

fn log_to_stderr(level: &str) -> Result<()> {
    // What is not durable, and what of a crate's own workings is loud, the command says itself.
    let directives = match level {
        "warn" => "warn,youki_backend::container::exit=error",
        other => other,
    };
    let filter = EnvFilter::builder()
        .parse(directives)
        .map_err(|error| Failure::usage(format!("--log-level {level:?}: {error}")))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}
