//! `pull`, `push`, `tag`, `rmi`, `prune`, and `image`.

use std::io::{self, BufRead, Read};

use registry::{PullOptions, PushOptions, Removed, Verified};
use runtime_core::{ImageDetails, PruneResult};
use serde_json::{Value, json};

use crate::cli::{ImageHistoryArgs, ImageInspectArgs, ImageNamesArgs, PruneArgs, PullArgs, PushArgs, RmiArgs, TagArgs};
use crate::failure::{Failure, Result, say};
use crate::flag_values as values;
use crate::format::Template;
use crate::named_flags::naming_its_flag;
use crate::output::{self, Table, decimal_size};
use crate::progress::{self, Show};
use crate::session::Session;

/// Characters of a step's command that are shown.
const SHOWN_COMMAND: usize = 60;
/// Longest answer that is read: a yes is shorter.
const MAX_ANSWER_BYTES: u64 = 1 << 10;

/// `berth pull`
pub async fn pull(session: &Session, args: &PullArgs) -> Result<i32> {
    let show = if session.json || args.quiet { Show::Nothing } else { Show::BarsOrLines };
    let auth = args.creds.as_deref().map(values::credentials).transpose()?;
    let (sender, shown) = progress::pull(show);
    let options = PullOptions { policy: args.policy, auth, platform: args.platform.clone(), progress: Some(sender) };
    let pulled = session.runtime.pull(&args.image, options).await;
    shown.finish().await;
    let image = pulled.map_err(|error| naming_its_flag(error.into()))?;
    if session.json {
        let (reference, digest, size) = (&image.reference, &image.digest, image.size_bytes);
        output::print_json(&json!({"reference": reference, "digest": digest, "id": image.id, "size_bytes": size}))?;
    } else {
        output::print_line(&image.digest)?;
    }
    Ok(0)
}

/// `berth push`
pub async fn push(session: &Session, args: &PushArgs) -> Result<i32> {
    let show = if session.json || args.quiet { Show::Nothing } else { Show::BarsOrLines };
    let auth = args.creds.as_deref().map(values::credentials).transpose()?;
    let (sender, shown) = progress::pull(show);
    let pushed = session.runtime.images().push(&args.image, PushOptions { auth, progress: Some(sender) }).await;
    shown.finish().await;
    let digest = pushed?;
    if session.json {
        output::print_json(&json!({"reference": args.image, "digest": digest}))?;
    } else {
        output::print_line(&digest)?;
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
            Err(error) => status = status.max(session.told(error)),
        }
    }
    if session.json {
        output::print_json(&all)?;
    }
    Ok(status)
}

/// `berth prune`
pub async fn prune(session: &Session, args: &PruneArgs) -> Result<i32> {
    let mut pruned = PruneResult::default();
    if confirmed(args.force, "This removes all images that no container uses.")? {
        let removed = session.runtime.prune_images().await?;
        pruned = PruneResult { deleted: removed.deleted, space_reclaimed: removed.space_reclaimed };
    }
    print_pruned(session, &pruned)?;
    Ok(0)
}

/// `berth image inspect`
pub async fn inspect(session: &Session, args: &ImageInspectArgs) -> Result<i32> {
    let find = async |name: &str| {
        let found = session.runtime.images().find(name).await?;
        found.map(ImageDetails::from).ok_or_else(|| registry::Error::NotPresent(name.to_owned()))
    };
    let template = args.format.as_deref().map(Template::parse).transpose()?;
    let (found, status) = session.each(&args.images, find).await;
    let shown = found.iter().map(|image| json!(image));
    match template {
        Some(template) => {
            let lines = shown.map(|image| template.render(&image, |path| dockers(&image, path)));
            output::print(&output::lines(None, lines)?)?;
        }
        None => output::print_json(&shown.collect::<Vec<_>>())?,
    }
    Ok(status)
}

/// Docker's names for what stands elsewhere in `image`; its `Config` is the part of OCI's for those who run it.
fn dockers(image: &Value, path: &[String]) -> Option<Value> {
    let (first, rest) = path.split_first()?;
    let config = &image["config"];
    let found = match first.as_str() {
        "Config" => rest.iter().fold(&config["config"], |value, name| &value[name.as_str()]),
        _ if !rest.is_empty() => return None,
        "Architecture" => &config["architecture"],
        "Os" => &config["os"],
        "Created" => &config["created"],
        "Author" => &config["author"],
        "Size" => &image["size_bytes"],
        _ => return None,
    };
    Some(found.clone())
}

/// `berth image history`
pub async fn history(session: &Session, args: &ImageHistoryArgs) -> Result<i32> {
    let steps = session.runtime.images().history(&args.image).await?;
    if session.json {
        output::print_json(&steps)?;
        return Ok(0);
    }
    let mut table = Table::new(["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    for step in steps {
        let by = step.created_by.unwrap_or_default();
        let layer = step.layer.unwrap_or_else(|| "-".to_owned());
        let cut = by.chars().count() > SHOWN_COMMAND && !args.no_trunc;
        table.row([
            if args.no_trunc { layer } else { progress::short(&layer) },
            step.created.unwrap_or_else(|| "-".to_owned()),
            if cut { by.chars().take(SHOWN_COMMAND - 1).chain(['…']).collect() } else { by },
            decimal_size(step.size_bytes),
            step.comment.unwrap_or_default(),
        ]);
    }
    output::print(&table.render())?;
    Ok(0)
}

/// `berth image verify`
pub async fn verify(session: &Session, args: &ImageNamesArgs) -> Result<i32> {
    let mut all = Vec::new();
    let mut status = 0;
    for name in &args.images {
        let verified = match session.runtime.images().verify(name).await {
            Ok(verified) => verified,
            Err(error) => {
                status = status.max(session.told(error));
                continue;
            }
        };
        for damage in &verified.damaged {
            status = status.max(1);
            let damaged = format!("image {name} is damaged: {}: {}", damage.part, damage.reason);
            let hint = "remove it and what uses it (`berth rmi --force`), and pull it again";
            Failure::found("image.damaged", damaged, hint).print();
        }
        if !session.json && verified.damaged.is_empty() {
            output::print(&as_it_should_be(name, &verified))?;
        }
        all.push(verified);
    }
    if session.json {
        output::print_json(&all)?;
    }
    Ok(status)
}

/// What is said of an image without damage.
fn as_it_should_be(name: &str, verified: &Verified) -> String {
    if verified.uncompared.is_empty() {
        return format!("{name}: {} as its digest says\n", decimal_size(verified.size_bytes));
    }
    let mut text = format!("{name}: no damage found\n");
    for part in &verified.uncompared {
        text.push_str(&format!("{name}: {part} cannot be compared: its blob was dropped ([images] drop_blobs)\n"));
    }
    text
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

/// Asks, as docker does whatever standard input is: no answer is a no, and who has none to give says `--force`.
pub fn confirmed(force: bool, warning: &str) -> Result<bool> {
    if force {
        return Ok(true);
    }
    say(&format!("{warning} Continue? [y/N]"));
    let mut answer = Vec::new();
    let read = io::stdin().lock().take(MAX_ANSWER_BYTES).read_until(b'\n', &mut answer);
    read.map_err(|error| Failure::io("reading", "standard input", &error))?;
    let confirmed = matches!(answer.trim_ascii(), b"y" | b"Y" | b"yes");
    if !confirmed {
        say("nothing was removed; with --force it is not asked");
    }
    Ok(confirmed)
}
