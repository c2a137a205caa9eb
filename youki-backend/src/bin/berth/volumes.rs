//! `volume …`

use runtime_core::{Change, DiffEntry, HistoryPruned, PruneResult, RestoreOptions, VolumeStatus};
use serde_json::json;

use crate::cli::{
    VolumeClaimArgs, VolumeDiffArgs, VolumeHistoryArgs, VolumeLsArgs, VolumeNamesArgs, VolumePruneArgs,
    VolumeRestoreArgs, VolumeRmArgs, VolumeVerifyArgs,
};
use crate::failure::{Failure, Result, say, warn};
use crate::images::{confirmed, print_pruned};
use crate::output::{self, Table, decimal_size, or_dash};
use crate::progress;
use crate::session::Session;

/// `berth volume ls`
pub async fn ls(session: &Session, args: &VolumeLsArgs) -> Result<i32> {
    let volumes = session.runtime.volumes().list().await?;
    if session.json {
        output::print_json(&volumes)?;
    } else if args.quiet {
        output::print(&volumes.iter().map(|volume| format!("{}\n", volume.name)).collect::<String>())?;
    } else {
        output::print(&table(&volumes))?;
    }
    Ok(0)
}

/// `berth volume inspect`
pub async fn inspect(session: &Session, args: &VolumeNamesArgs) -> Result<i32> {
    let volumes = session.runtime.volumes();
    let (found, status) = session.each(&args.names, async |name| volumes.status(name).await).await;
    output::print_json(&found)?;
    Ok(status)
}

/// `berth volume sync`
pub async fn sync(session: &Session, args: &VolumeNamesArgs) -> Result<i32> {
    let (synced, status) = session.each(&args.names, async |name| session.runtime.sync_volume(name).await).await;
    if session.runtime.config().s3.is_none() && !synced.is_empty() {
        warn("no bucket is configured: the volumes stay on this host");
    }
    if session.json {
        output::print_json(&synced)?;
    } else if !synced.is_empty() {
        output::print(&table(&synced))?;
    }
    Ok(status)
}

/// `berth volume history`
pub async fn history(session: &Session, args: &VolumeHistoryArgs) -> Result<i32> {
    let history = session.runtime.volumes().history(&args.name, args.all).await?;
    if session.json {
        output::print_json(&history)?;
        return Ok(0);
    }
    let mut table = Table::new(["GENERATION", "RECORD", "EPOCH", "KIND", "CREATED", "HOST", "FILES", "SIZE", "NEW"]);
    for entry in history {
        table.row([
            or_dash(entry.generation),
            entry.record.to_string(),
            entry.epoch.to_string(),
            json!(entry.kind).as_str().unwrap_or_default().to_owned(),
            output::time(entry.created_at),
            entry.host,
            or_dash(entry.files),
            or_dash(entry.size_bytes.map(decimal_size)),
            or_dash(entry.new_bytes.map(decimal_size)),
        ]);
    }
    output::print(&table.render())?;
    Ok(0)
}

/// `berth volume restore`
pub async fn restore(session: &Session, args: &VolumeRestoreArgs) -> Result<i32> {
    let to = args.to.as_ref().map(std::path::absolute).transpose();
    let to = to.map_err(|error| Failure::io("resolving", args.to.as_deref().unwrap_or("".as_ref()), &error))?;
    let options = RestoreOptions {
        generation: args.generation,
        to,
        discard_local: args.discard_local,
        progress: progress::volume(&args.name, "restoring", !session.json),
    };
    let report = session.runtime.volumes().restore(&args.name, options).await?;
    if session.json {
        output::print_json(&report)?;
    } else {
        output::print_line(&format!(
            "generation {} in {}: {} files, {}",
            report.generation,
            report.path.display(),
            report.files,
            decimal_size(report.size_bytes)
        ))?;
    }
    Ok(0)
}

/// `berth volume claim`
pub async fn claim(session: &Session, args: &VolumeClaimArgs) -> Result<i32> {
    let volumes = session.runtime.volumes();
    let claim = async |name: &str| {
        let progress = progress::volume(name, "restoring", !session.json);
        volumes.claim(name, args.take_over, progress).await
    };
    let (claimed, status) = session.each(&args.names, claim).await;
    if session.json {
        output::print_json(&claimed)?;
    } else if !claimed.is_empty() {
        output::print(&table(&claimed))?;
    }
    Ok(status)
}

/// `berth volume diff`: a letter and a path, as docker's `diff`.
pub async fn diff(session: &Session, args: &VolumeDiffArgs) -> Result<i32> {
    let changes = session.runtime.volumes().diff(&args.name, args.old, args.new).await?;
    if session.json {
        output::print_json(&changes)?;
        return Ok(0);
    }
    let line = |change: &DiffEntry| {
        let letter = match change.change {
            Change::Added => 'A',
            Change::Removed => 'D',
            // Its data, or only what is said of it.
            _ => 'C',
        };
        format!("{letter} {}\n", change.path)
    };
    output::print(&changes.iter().map(line).collect::<String>())?;
    Ok(0)
}

/// `berth volume verify`: 1 if anything is damaged.
pub async fn verify(session: &Session, args: &VolumeVerifyArgs) -> Result<i32> {
    let progress = progress::volume(&args.name, "verifying", !session.json);
    let report = session.runtime.volumes().verify(&args.name, args.generation, progress).await?;
    if session.json {
        output::print_json(&report)?;
    } else {
        for damage in &report.damaged {
            let path = damage.path.as_deref().unwrap_or("its manifest");
            let text = format!("generation {}: {path}: {}", damage.generation, damage.detail);
            say(&format!("volume {}: {text}", args.name));
        }
        output::print_line(&format!(
            "{} generations, {} chunks, {}: {}",
            report.generations,
            report.chunks,
            decimal_size(report.stored_bytes),
            if report.damaged.is_empty() { "whole" } else { "damaged" }
        ))?;
    }
    Ok(i32::from(!report.damaged.is_empty()))
}

/// `berth volume rm`
pub async fn rm(session: &Session, args: &VolumeRmArgs) -> Result<i32> {
    let runtime = &session.runtime;
    let remove =
        async |name: &str| runtime.remove_volume(name, args.remote, args.force).await.map(|()| name.to_owned());
    let (removed, status) = session.each(&args.names, remove).await;
    if session.json {
        output::print_json(&removed)?;
    } else {
        output::print(&removed.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    }
    Ok(status)
}

/// `berth volume prune`
pub async fn prune(session: &Session, args: &VolumePruneArgs) -> Result<i32> {
    if let Some(name) = &args.name {
        return prune_history(session, name, args.force).await;
    }
    let warning = "This removes the local copies of volumes that no container has and S3 holds as they are.";
    let pruned =
        if confirmed(args.force, warning)? { session.runtime.prune_volumes().await? } else { PruneResult::default() };
    print_pruned(session, &pruned)?;
    Ok(0)
}

/// `berth volume prune NAME`
async fn prune_history(session: &Session, name: &str, force: bool) -> Result<i32> {
    let warning = format!("This removes the generations of volume {name} that the configured retention does not keep.");
    let keeps_all = session.runtime.config().volumes.keep.is_none();
    if keeps_all {
        warn(&format!("no retention is configured ([volumes.keep]): all generations of volume {name} stay"));
    }
    let pruned = if keeps_all || confirmed(force, &warning)? {
        session.runtime.volumes().prune(name).await?
    } else {
        HistoryPruned { name: name.to_owned(), ..HistoryPruned::default() }
    };
    if session.json {
        output::print_json(&pruned)?;
        return Ok(0);
    }
    let mut text: String = pruned.removed.iter().map(|number| format!("Deleted: generation {number}\n")).collect();
    text.push_str(&format!("Total reclaimed space: {}\n", decimal_size(pruned.space_reclaimed)));
    output::print(&text)?;
    Ok(0)
}

fn table(volumes: &[VolumeStatus]) -> String {
    let mut table = Table::new(["NAME", "GENERATION", "DURABLE", "AT RISK", "SIZE", "OWNER", "LAST ERROR"]);
    for volume in volumes {
        table.row([
            volume.name.clone(),
            or_dash(volume.generation),
            or_dash(volume.durable_at.map(output::time)),
            decimal_size(volume.bytes_at_risk),
            or_dash(volume.size_bytes.map(decimal_size)),
            or_dash(volume.owner.as_ref()),
            or_dash(volume.last_error.as_ref()),
        ]);
    }
    table.render()
}
