//! `pull`, `images`, `load`, `tag`, `rmi`, `prune`, `image inspect`.

use std::io::{self, BufRead, IsTerminal};

use registry::{PullOptions, Removed};
use runtime_core::PruneResult;
use serde_json::json;

use crate::cli::{ImageNamesArgs, ImagesArgs, LoadArgs, PruneArgs, PullArgs, RmiArgs, TagArgs};
use crate::failure::{Failure, Result, eprint_line};
use crate::flag_values as values;
use crate::output::{self, Table, decimal_size};
use crate::progress::{self, Show};
use crate::session::Session;

/// `berth pull`
pub async fn pull(session: &Session, args: &PullArgs) -> Result<i32> {
    let show = if session.json || args.quiet { Show::Nothing } else { Show::BarsOrLines };
    let auth = args.creds.as_deref().map(values::credentials).transpose()?;
    let (sender, shown) = progress::pull(show);
    let options = PullOptions { policy: args.policy, auth, platform: args.platform.clone(), progress: Some(sender) };
    let pulled = session.runtime.pull(&args.image, options).await;
    shown.finish().await;
    let image = pulled?;
    if session.json {
        let (reference, digest, size) = (&image.reference, &image.digest, image.size_bytes);
        output::print_json(&json!({"reference": reference, "digest": digest, "id": image.id, "size_bytes": size}))?;
    } else {
        output::print_line(&image.digest)?;
    }
    Ok(0)
}

/// `berth images`
pub async fn images(session: &Session, args: &ImagesArgs) -> Result<i32> {
    let mut images = session.runtime.images().list().await?;
    if let Some(wanted) = &args.repository {
        let wanted_reference = registry::Reference::parse(wanted)?;
        // A name without a tag means all of its tags.
        let tagged = wanted.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
        images.retain(|image| match registry::Reference::parse(&image.reference) {
            Ok(reference) if tagged => reference == wanted_reference,
            Ok(reference) => {
                reference.registry() == wanted_reference.registry()
                    && reference.repository() == wanted_reference.repository()
            }
            Err(_) => false,
        });
    }
    if session.json {
        output::print_json(&images)?;
        return Ok(0);
    }
    if args.quiet {
        let id = |id: &str| if args.no_trunc { id.to_owned() } else { progress::short(id) };
        let mut ids: Vec<String> = images.iter().map(|image| id(&image.id)).collect();
        ids.dedup();
        output::print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>())?;
        return Ok(0);
    }
    let mut table = Table::new(["REPOSITORY", "TAG", "IMAGE ID", "DIGEST", "SIZE", "UNIQUE", "SHARED"]);
    for image in &images {
        let (repository, tag) = match registry::Reference::parse(&image.reference) {
            Ok(name) => (format!("{}/{}", name.registry(), name.repository()), name.tag().map(str::to_owned)),
            Err(_) => (image.reference.clone(), None),
        };
        table.row([
            repository,
            tag.unwrap_or_else(|| "<none>".to_owned()),
            if args.no_trunc { image.id.clone() } else { progress::short(&image.id) },
            image.digest.clone(),
            decimal_size(image.size_bytes),
            decimal_size(image.unique_bytes),
            decimal_size(image.shared_bytes),
        ]);
    }
    output::print(&table.render())?;
    Ok(0)
}

/// `berth load`
pub async fn load(session: &Session, args: &LoadArgs) -> Result<i32> {
    let images = session.runtime.images().load(&args.input).await?;
    if session.json {
        let line = |image: &registry::Image| {
            json!({
                "reference": image.reference,
                "digest": image.digest,
                "id": image.id,
                "size_bytes": image.size_bytes,
            })
        };
        output::print_json(&images.iter().map(line).collect::<Vec<_>>())?;
    } else if !args.quiet {
        let line = |image: &registry::Image| format!("Loaded image: {}\n", image.reference);
        output::print(&images.iter().map(line).collect::<String>())?;
    }
    Ok(0)
}

/// `berth tag`
pub async fn tag(session: &Session, args: &TagArgs) -> Result<i32> {
    session.runtime.images().tag(&args.source, &args.target).await?;
    Ok(0)
}

/// `berth rmi`
pub async fn rmi(session: &Session, args: &RmiArgs) -> Result<i32> {
    let mut all = PruneResult::default();
    let mut status = 0;
    for image in &args.images {
        match session.runtime.remove_image(image, args.force).await {
            Ok(Removed { deleted, space_reclaimed }) => {
                if !session.json {
                    output::print(&deletions(&deleted))?;
                }
                all.deleted.extend(deleted);
                all.space_reclaimed += space_reclaimed;
            }
            Err(error) => {
                Failure::from(error).print(session.json);
                status = 1;
            }
        }
    }
    if session.json {
        output::print_json(&all)?;
    }
    Ok(status)
}

/// `berth prune`
pub async fn prune(session: &Session, args: &PruneArgs) -> Result<i32> {
    if !confirmed(args.force, "This removes all images that no container uses.")? {
        return Ok(0);
    }
    let removed = session.runtime.prune_images().await?;
    print_pruned(session, &PruneResult { deleted: removed.deleted, space_reclaimed: removed.space_reclaimed })?;
    Ok(0)
}

/// `berth image inspect`
pub async fn inspect(session: &Session, args: &ImageNamesArgs) -> Result<i32> {
    let mut found = Vec::new();
    let mut status = 0;
    for name in &args.images {
        match session.runtime.images().find(name).await {
            Ok(Some(image)) => found.push(json!({
                "reference": image.reference,
                "digest": image.digest,
                "id": image.id,
                "size_bytes": image.size_bytes,
                "layers": image.layers,
                "config": image.config,
            })),
            Ok(None) => {
                Failure::from(registry::Error::NotPresent(name.clone())).print(session.json);
                status = 1;
            }
            Err(error) => {
                Failure::from(error).print(session.json);
                status = 1;
            }
        }
    }
    output::print_json(&found)?;
    Ok(status)
}

/// What a prune removed.
pub fn print_pruned(session: &Session, pruned: &PruneResult) -> Result<()> {
    if session.json {
        return output::print_json(pruned);
    }
    let mut text = deletions(&pruned.deleted);
    text.push_str(&format!("Total reclaimed space: {}\n", decimal_size(pruned.space_reclaimed)));
    output::print(&text)
}

/// A line for each thing that is gone: references are taken from images, the rest is deleted.
fn deletions(deleted: &[String]) -> String {
    let verb = |one: &str| if one.contains('/') { "Untagged" } else { "Deleted" };
    deleted.iter().map(|one| format!("{}: {one}\n", verb(one))).collect()
}

/// Asks, where there is somebody to ask, as docker does.
pub fn confirmed(force: bool, warning: &str) -> Result<bool> {
    if force || !io::stdin().is_terminal() {
        return Ok(true);
    }
    eprint_line(&format!("{warning} Continue? [y/N]"));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::io("reading", "standard input", &error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
