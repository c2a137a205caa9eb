//! `info` and `keeper`: the root as a whole.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use youki_backend::{Config, YoukiRuntime};

use crate::failure::Result;
use crate::output;
use crate::session::Session;
use crate::signals::Signals;

/// `berth info`
pub async fn info(session: &Session) -> Result<i32> {
    let config = session.runtime.config();
    let containers = session.runtime.inspect_all().await?;
    let running = containers.iter().filter(|one| matches!(one.state, "running" | "paused" | "stopping")).count();
    let images = session.runtime.images().list().await?.len();
    let volumes = session.runtime.volumes().list().await?.len();
    let s3 = config.s3.as_ref();
    let fields = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "root": config.root,
        "run_dir": config.run_dir,
        "cgroup_parent": config.cgroup_parent,
        "bridge": config.network.bridge,
        "subnet": config.network.subnet,
        "s3_bucket": s3.map(|s3| &s3.bucket),
        "s3_endpoint": s3.and_then(|s3| s3.endpoint.as_ref()),
        "s3_prefix": s3.and_then(|s3| s3.prefix.as_ref()),
        "containers": containers.len(),
        "containers_running": running,
        "images": images,
        "volumes": volumes,
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
        "kernel": rustix::system::uname().release().to_string_lossy(),
    });
    if session.json {
        output::print_json(&fields)?;
        return Ok(0);
    }
    let mut text = String::new();
    for (name, value) in fields.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let value = if value == "null" { "-".to_owned() } else { value };
        text.push_str(&format!("{name}: {value}\n"));
    }
    output::print(&text)?;
    Ok(0)
}

/// `berth keeper`
pub async fn keeper(mut config: Config) -> Result<i32> {
    config.keeper = true;
    // It keeps a connection or two to each container that it follows.
    let limit = getrlimit(Resource::Nofile);
    // Without it it follows some hundred containers fewer.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let mut signals = Signals::listen()?;
    let _runtime = YoukiRuntime::open(config).await?;
    signals.next_ending().await;
    Ok(0)
}
