//! Layers: from a compressed stream to an overlayfs lower directory.

pub(crate) mod below;
pub(crate) mod dir;
pub(crate) mod finalise;
pub(crate) mod stream;
pub(crate) mod tar;
pub(crate) mod unpack;

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// What a layer's media type says; one that is no layer's is an error.
    pub(crate) fn of_media_type(media_type: &str) -> Result<Self, String> {
        let layer = media_type
            .strip_prefix("application/vnd.oci.image.layer.v1.tar")
            .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar"))
            .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"))
            .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.tar"));
        match layer {
            Some("") => Ok(Self::None),
            Some("+gzip" | ".gzip") => Ok(Self::Gzip),
            Some("+zstd" | ".zstd") => Ok(Self::Zstd),
            _ => Err(format!("{media_type:.100?} is no media type of a layer that can be unpacked")),
        }
    }

    /// What the content says. Builders are known to label wrongly, and docker goes by the content too.
    pub(crate) fn of_magic(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable one, as zstd:chunked may begin.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}
