//! How a pull or a push goes, as it is told to whoever wants to know.

use runtime_core::{LayerPhase, PullEvent};
use tokio::sync::mpsc::UnboundedSender;

use crate::manifest::{Descriptor, Manifest};

/// Where a pull or a push tells how it goes.
pub(crate) struct Events(pub(crate) Option<UnboundedSender<PullEvent>>);

impl Events {
    fn send(&self, event: PullEvent) {
        if let Some(sender) = &self.0 {
            // Nobody listens any more: the pull goes on.
            let _ = sender.send(event);
        }
    }

    pub(crate) fn resolved(&self, digest: &str, manifest: &Manifest) {
        let layers = manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect();
        self.send(PullEvent::Resolved { digest: digest.to_owned(), layers });
    }

    pub(crate) fn layer(&self, blob: &Descriptor, phase: LayerPhase, bytes: u64) {
        self.send(PullEvent::Layer { digest: blob.digest.clone(), phase, bytes, total: blob.size });
    }

    pub(crate) fn done(&self, digest: &str) {
        self.send(PullEvent::Done { digest: digest.to_owned() });
    }
}
