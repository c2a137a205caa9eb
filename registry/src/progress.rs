//! How a pull or a push goes, as it is told to whoever wants to know.

use tokio::sync::mpsc::UnboundedSender;

use crate::manifest::{Descriptor, Manifest};

/// How a pull, or a push, goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// The manifest is known.
    Resolved {
        /// Its digest.
        digest: String,
        /// Digest and size of each layer's blob, bottom first.
        layers: Vec<(String, u64)>,
    },
    /// One layer.
    Layer {
        /// Digest of its blob.
        digest: String,
        /// What is being done.
        phase: LayerPhase,
        /// Bytes that arrived, or that were sent.
        bytes: u64,
        /// Bytes of the blob.
        total: u64,
    },
    /// The image is there.
    Done {
        /// Digest of its manifest.
        digest: String,
    },
}

/// Where a layer is in a pull, or in a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerPhase {
    /// It was there already, or another pull fetched it.
    Exists,
    /// It arrives and is unpacked meanwhile.
    Downloading,
    /// It is whole, verified and on disk.
    Unpacked,
    /// It is on its way to the registry.
    Uploading,
    /// The registry has it.
    Uploaded,
}

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
