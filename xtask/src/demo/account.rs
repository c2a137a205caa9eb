//! How the demo tells what it does.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use runtime_core::{ContainerStats, DetailedStats};
use runtime_core::{LayerPhase, PullEvent};
use tokio::sync::mpsc::UnboundedReceiver;

/// Numbers the steps and times them.
pub(super) struct Account {
    begin: Instant,
    step: u32,
}

impl Account {
    pub fn new() -> Self {
        Self { begin: Instant::now(), step: 0 }
    }

    /// Begins a step.
    pub fn step(&mut self, what: &str) {
        self.step += 1;
        println!("\n{:>2}. {what}  [{:.1} s]", self.step, self.begin.elapsed().as_secs_f64());
    }

    pub fn elapsed_s(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }
}

/// A line beneath a step.
pub(super) fn note(text: impl AsRef<str>) {
    for line in text.as_ref().lines() {
        println!("    {line}");
    }
}

/// Shows a pull: a bar a layer on a terminal, else a line a layer.
pub(super) async fn show_pull(mut events: UnboundedReceiver<PullEvent>) {
    let bars = std::io::stdout().is_terminal().then(MultiProgress::new);
    let style = ProgressStyle::with_template("    {prefix} {bar:30} {bytes:>9} of {total_bytes:>9} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let mut layers: Vec<(String, u64, Option<ProgressBar>)> = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            PullEvent::Resolved { digest, layers: found } => {
                note(format!("{} with {} layers", short(&digest), found.len()));
                for (digest, bytes) in found {
                    let bar = bars.as_ref().map(|bars| {
                        let bar = bars.add(ProgressBar::new(bytes).with_style(style.clone()));
                        bar.set_prefix(short(&digest));
                        bar
                    });
                    layers.push((digest, bytes, bar));
                }
            }
            PullEvent::Layer { digest, phase, bytes, .. } => {
                let Some((_, size, bar)) = layers.iter().find(|(layer, ..)| *layer == digest) else { continue };
                let (word, over) = match phase {
                    LayerPhase::Exists => ("is here already", true),
                    LayerPhase::Downloading => ("arriving", false),
                    LayerPhase::Unpacked => ("verified and unpacked", true),
                    // Nothing is pushed here.
                    LayerPhase::Uploading | LayerPhase::Uploaded => continue,
                };
                match bar {
                    Some(bar) => {
                        bar.set_position(if over { *size } else { bytes });
                        bar.set_message(word);
                        if over {
                            bar.finish();
                        }
                    }
                    None if over => note(format!("{} {size:>9} bytes {word}", short(&digest))),
                    None => {}
                }
            }
            PullEvent::Done { .. } => {}
        }
    }
}

/// The first digits of a digest, as people read them.
pub(super) fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

/// Two readings as a table.
pub(super) fn stats_table(first: &ContainerStats, second: &ContainerStats, detailed: &DetailedStats) {
    let or_unknown = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let limit = if second.memory_limit == u64::MAX { "none".to_owned() } else { mebibytes(second.memory_limit) };
    note(format!(
        "{:<8} {:>9} {:>9} {:>6} {:>9} {:>11}",
        "CPU %", "MEM MiB", "LIMIT", "PIDS", "PIDS MAX", "THROTTLED us"
    ));
    note(format!(
        "{:<8.1} {:>9} {:>9} {:>6} {:>9} {:>11}",
        ContainerStats::calculate_cpu_percent(first, second),
        mebibytes(second.memory_bytes),
        limit,
        or_unknown(detailed.pids.current),
        or_unknown(detailed.pids.limit),
        or_unknown(detailed.cpu.throttled_usec),
    ));
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}
