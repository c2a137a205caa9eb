//! What an image or a registry may cost before it is refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bytes of one manifest or index; the distribution specification lets registries refuse larger ones.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Bytes of an image configuration. The largest seen in the wild is under 1 MiB (long histories).
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Bytes of a token endpoint's answer, or of an error body that is quoted.
pub const MAX_TOKEN_BYTES: u64 = 1 << 20;
/// Layers of one image: overlayfs takes 500 lower directories.
pub const MAX_LAYERS: usize = 500;
/// Indexes within indexes that are followed. Two are seen in practice.
pub const MAX_INDEX_DEPTH: usize = 4;
/// Redirects of one request that are followed; registries use one.
pub const MAX_REDIRECTS: usize = 5;
/// Bytes of one layer as it is transferred.
pub const MAX_BLOB_BYTES: u64 = 64 << 30;
/// Bytes of data of one layer as it is unpacked.
pub const MAX_LAYER_BYTES: u64 = 256 << 30;
/// Entries of one layer; the largest real ones (package trees) hold about a million.
pub const MAX_LAYER_ENTRIES: u64 = 10_000_000;
/// Bytes of paths that are held while a layer is unpacked, for each entry that it may have; real ones have as many on average.
pub const MEAN_PATH_BYTES: u64 = 64;
/// Bytes of such paths that any layer may have.
pub const LEAST_NOTED_BYTES: u64 = 1 << 20;
/// Unpacked bytes for each transferred byte. DEFLATE cannot exceed 1,032, and files of zeros reach it.
pub const MAX_RATIO: u64 = 1_100;
/// Bytes of output below which [`MAX_RATIO`] is not looked at: small files of zeros compress without bound in zstd.
pub const RATIO_FREE_BYTES: u64 = 256 << 20;
/// Bytes of one entry's path or link target: the kernel's `PATH_MAX`.
pub const MAX_PATH_BYTES: usize = 4_096;
/// Directories within directories. Real trees stay under 100; removal keeps one descriptor open for each.
pub const MAX_PATH_DEPTH: usize = 256;
/// Bytes of one entry's extended (PAX or GNU) headers.
pub const MAX_EXTENDED_HEADER_BYTES: u64 = 4 << 20;
/// Segments of one sparse file: a map of a million takes 16 MiB while the file is written.
pub const MAX_SPARSE_SEGMENTS: usize = 1_000_000;
/// Time without a byte after which a transfer is given up.
pub const NO_PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Layers of one pull that are worked on at once: more does not help two to eight cores, and costs memory.
pub const CONCURRENT_LAYERS: usize = 3;
/// Times a request is repeated after a cut, a 429 or a 5xx, while no byte arrives in between.
pub const MAX_RETRIES: u32 = 4;

/// The limits of one store. Every field has a constant of this module as its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// See `MAX_MANIFEST_BYTES`.
    pub manifest_bytes: u64,
    /// See `MAX_CONFIG_BYTES`.
    pub config_bytes: u64,
    /// See `MAX_LAYERS`.
    pub layers: usize,
    /// See `MAX_BLOB_BYTES`.
    pub blob_bytes: u64,
    /// See `MAX_LAYER_BYTES`.
    pub layer_bytes: u64,
    /// See `MAX_LAYER_ENTRIES`.
    pub layer_entries: u64,
    /// See `MAX_RATIO`.
    pub ratio: u64,
    /// See `MAX_PATH_DEPTH`.
    pub path_depth: usize,
    /// See `NO_PROGRESS_TIMEOUT`; in whole seconds.
    pub no_progress_seconds: u64,
    /// See `CONCURRENT_LAYERS`.
    pub concurrent_layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: MAX_MANIFEST_BYTES,
            config_bytes: MAX_CONFIG_BYTES,
            layers: MAX_LAYERS,
            blob_bytes: MAX_BLOB_BYTES,
            layer_bytes: MAX_LAYER_BYTES,
            layer_entries: MAX_LAYER_ENTRIES,
            ratio: MAX_RATIO,
            path_depth: MAX_PATH_DEPTH,
            no_progress_seconds: NO_PROGRESS_TIMEOUT.as_secs(),
            concurrent_layers: CONCURRENT_LAYERS,
        }
    }
}

impl Limits {
    /// Time without a byte after which a transfer is given up.
    #[must_use]
    pub fn no_progress(&self) -> Duration {
        Duration::from_secs(self.no_progress_seconds.max(1))
    }

    /// Bytes of the paths that are held while a layer is unpacked.
    pub(crate) fn noted_bytes(&self) -> u64 {
        self.layer_entries.saturating_mul(MEAN_PATH_BYTES).max(LEAST_NOTED_BYTES)
    }
}
