//! `save` and `load`: images as archives.

use std::io::BufWriter;

use serde_json::json;

use crate::cli::{LoadArgs, SaveArgs};
use crate::failure::Result;
use crate::output;
use crate::session::Session;
use crate::streams;

/// `berth save`
pub async fn save(session: &Session, args: &SaveArgs) -> Result<i32> {
    let images = session.runtime.images();
    // Who is asked for what is not there leaves no file behind.
    for image in &args.images {
        images.history(image).await?;
    }
    let out = streams::tar_output(args.output.as_deref())?;
    let saved = images.save(&args.images, BufWriter::new(out)).await;
    if let (Err(_), Some(path)) = (&saved, &args.output) {
        // Half an archive is of no use; a device stays.
        if path.is_file() {
            let _ = std::fs::remove_file(path);
        }
    }
    saved?;
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
