//! How a pull, a push or a restore goes, on standard error: bars on a terminal, a line for each layer where that is wanted.

use std::collections::HashMap;
use std::io::{self, IsTerminal};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use runtime_core::{LayerPhase, Progress, PullEvent};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::failure::eprint_line;
use crate::output::decimal_size;

/// Digits of a digest that tell the layers of an image apart.
const SHORT_DIGEST: usize = 12;
const LAYER_TEMPLATE: &str = "{prefix}: {msg:7} [{wide_bar}] {bytes:>10}/{total_bytes:10} {bytes_per_sec:12}";
const VOLUME_TEMPLATE: &str = "{prefix}: {msg} [{wide_bar}] {bytes:>10}/{total_bytes:10} {bytes_per_sec:12}";

/// How much of a pull is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Nothing.
    Nothing,
    /// Bars on a terminal, else nothing.
    Bars,
    /// Bars on a terminal, else a line for each layer.
    BarsOrLines,
}

/// A pull that is shown.
#[derive(Debug)]
pub struct Shown(JoinHandle<()>);

impl Shown {
    /// Waits until all is shown. The sender must be gone.
    pub async fn finish(self) {
        // A bar that could not be drawn is nothing to end for.
        let _ = self.0.await;
    }
}

/// Takes the events of a pull or a push, whose end is the sender's, and shows them.
pub fn pull(show: Show) -> (UnboundedSender<PullEvent>, Shown) {
    let (sender, mut events) = unbounded_channel();
    let terminal = io::stderr().is_terminal();
    let mut display = match show {
        Show::Bars | Show::BarsOrLines if terminal => Display::Bars(Bars::default()),
        Show::BarsOrLines => Display::Lines,
        _ => Display::Nothing,
    };
    let task = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            display.show(&event);
        }
    });
    (sender, Shown(task))
}

/// A bar for a restore or a verification (`verb`), on a terminal.
pub fn volume(name: &str, verb: &'static str, wanted: bool) -> Progress {
    if !wanted || !io::stderr().is_terminal() {
        return Progress::default();
    }
    let bar = ProgressBar::new(0).with_style(style(VOLUME_TEMPLATE)).with_prefix(name.to_owned());
    bar.set_message(verb);
    Progress::new(move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            bar.finish();
        }
    })
}

enum Display {
    Nothing,
    Lines,
    Bars(Bars),
}

impl Display {
    fn show(&mut self, event: &PullEvent) {
        match (self, event) {
            (Self::Nothing, _) => {}
            (Self::Lines, PullEvent::Layer { digest, phase, total, .. }) => {
                let what = match phase {
                    LayerPhase::Downloading | LayerPhase::Uploading => return,
                    LayerPhase::Exists => "already exists".to_owned(),
                    LayerPhase::Unpacked => format!("pulled ({})", decimal_size(*total)),
                    LayerPhase::Uploaded => format!("pushed ({})", decimal_size(*total)),
                };
                eprint_line(&format!("{}: {what}", short(digest)));
            }
            (Self::Lines, _) => {}
            (Self::Bars(bars), event) => bars.show(event),
        }
    }
}

/// A bar for each layer.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    by_digest: HashMap<String, ProgressBar>,
}

impl Bars {
    fn show(&mut self, event: &PullEvent) {
        match event {
            PullEvent::Resolved { layers, .. } => {
                for (digest, size) in layers {
                    self.bar(digest, *size);
                }
            }
            PullEvent::Layer { digest, phase, bytes, total } => {
                let bar = self.bar(digest, *total);
                bar.set_position(*bytes);
                match phase {
                    LayerPhase::Downloading => bar.set_message("pulling"),
                    LayerPhase::Uploading => bar.set_message("pushing"),
                    LayerPhase::Exists => bar.finish_with_message("exists"),
                    LayerPhase::Unpacked | LayerPhase::Uploaded => bar.finish_with_message("done"),
                }
            }
            PullEvent::Done { .. } => {}
        }
    }

    fn bar(&mut self, digest: &str, size: u64) -> ProgressBar {
        let new = || {
            // Added first: what is drawn before would stay on the screen.
            let bar = self.all.add(ProgressBar::new(size));
            bar.set_style(style(LAYER_TEMPLATE));
            bar.set_prefix(short(digest));
            bar.set_message("waiting");
            bar
        };
        self.by_digest.entry(digest.to_owned()).or_insert_with(new).clone()
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

/// Twelve digits of a digest.
pub fn short(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(SHORT_DIGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [LAYER_TEMPLATE, VOLUME_TEMPLATE] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
