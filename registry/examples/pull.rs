//! Pulls an image into a store and shows what came of it: `pull ROOT REFERENCE`.

use std::time::Instant;

use registry::{ImageStore, PullOptions, StoreConfig};
use runtime_core::{LayerPhase, PullEvent};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, reference] = arguments.as_slice() else {
        eprintln!("usage: pull ROOT REFERENCE");
        return 2.into();
    };
    match pull(root, reference).await {
        Ok(()) => 0.into(),
        Err(error) => {
            eprintln!("pull: {error} [{}]", error.code());
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            if let Some(hint) = error.hint() {
                eprintln!("  hint: {hint}");
            }
            1.into()
        }
    }
}

async fn pull(root: &str, reference: &str) -> registry::Result<()> {
    let store = ImageStore::open(StoreConfig::new(root.into()))?;
    let (progress, mut events) = tokio::sync::mpsc::unbounded_channel();
    let shown = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                PullEvent::Layer { phase: LayerPhase::Downloading, .. } => {}
                event => println!("{event:?}"),
            }
        }
    });
    let begun = Instant::now();
    let policy = runtime_core::PullPolicy::Always;
    let image =
        store.pull(reference, PullOptions { policy, progress: Some(progress), ..PullOptions::default() }).await?;
    let seconds = begun.elapsed().as_secs_f64();
    // It ends by itself once the pull has dropped its sender; a panic in it shows no event.
    let _ = shown.await;
    println!(
        "{} ({}) in {seconds:.3} s, {:.0} MB/s",
        image.reference,
        image.id,
        image.size_bytes as f64 / 1e6 / seconds
    );
    for layer in &image.layers {
        println!("  {}", layer.display());
    }
    Ok(())
}
