//! `save` and `load`: images as archives.

use serde_json::json;

use crate::cli::{LoadArgs, SaveArgs};
use crate::failure::Result;
use crate::output;
use crate::session::Session;
use crate::signals::Signals;
use crate::tar_output::TarOutput;

/// `berth save`
pub async fn save(session: &Session, args: &SaveArgs) -> Result<i32> {
    let out = TarOutput::open(args.output.as_deref())?;
    let mut signals = Signals::listen_to_ending()?;
    let writer = out.writer()?;
    tokio::select! {
        saved = session.runtime.images().save(&args.images, writer) => saved?,
        // What is written so far goes with `out`.
        number = signals.next_ending() => return Ok(128 + number),
    }
    out.finish()?;
    Ok(0)
}

/// `berth load`
pub async fn load(session: &Session, args: &LoadArgs) -> Result<i32> {
    let images = session.runtime.load(&args.input).await?;
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
