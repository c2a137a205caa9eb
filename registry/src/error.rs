//! The one error type of this crate.

use std::io;
use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What an operation on images failed with. [`code`](Error::code) is stable, [`hint`](Error::hint) says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not an image reference.
    #[error("{reference:?} is not an image reference: {reason}")]
    InvalidReference {
        /// The text as it was given.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The text is not a platform.
    #[error("{platform:?} is not a platform")]
    InvalidPlatform {
        /// The text as it was given.
        platform: String,
    },
    /// The registry does not have it.
    #[error("{what} does not exist on {registry}")]
    NotFound {
        /// Reference or digest.
        what: String,
        /// Host and port.
        registry: String,
    },
    /// It is not in the local store, and the registry was not to be asked.
    #[error("image {0} is not in the local store")]
    NotPresent(String),
    /// A hex prefix fits more than one image.
    #[error("{prefix:?} is the beginning of several images: {}", matches.join(", "))]
    Ambiguous {
        /// The prefix as it was given.
        prefix: String,
        /// Digests that begin so.
        matches: Vec<String>,
    },
    /// No answer came from the registry.
    #[error("registry {registry} cannot be reached")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry refused the credentials, or wants some.
    #[error("registry {registry} refuses access to {what}: {reason}")]
    Unauthorized {
        /// Host and port.
        registry: String,
        /// Repository.
        what: String,
        /// What it answered.
        reason: String,
    },
    /// The registry answered something else than what the protocol has.
    #[error("registry {registry} answered {answer} to {request}")]
    Registry {
        /// Host and port.
        registry: String,
        /// Method and path.
        request: String,
        /// Status and message.
        answer: String,
    },
    /// Nothing came for too long.
    #[error("no byte of {what} came from {registry} for {seconds} s")]
    NoProgress {
        /// Host and port.
        registry: String,
        /// What was transferred.
        what: String,
        /// The time allowed.
        seconds: u64,
    },
    /// Plain HTTP to a host for which it is not allowed.
    #[error("{url} is plain HTTP, which is allowed only on the loopback interface or where it is configured")]
    PlainHttp {
        /// The address.
        url: String,
    },
    /// The content is not what its digest says.
    #[error("{what} has the digest {found}, expected {expected}")]
    DigestMismatch {
        /// Manifest, config, layer.
        what: String,
        /// The digest asked for.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// The content ended early, or is longer than announced.
    #[error("{what} has {found} bytes, expected {expected}")]
    SizeMismatch {
        /// Digest of the blob.
        what: String,
        /// The size in the manifest.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Manifest, index or configuration are not acceptable.
    #[error("{what} is not acceptable: {reason}")]
    InvalidManifest {
        /// Reference or digest.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The index has nothing for the platform.
    #[error("{reference} has no image for {platform}; it has {}", available.join(", "))]
    NoPlatform {
        /// The reference.
        reference: String,
        /// What was asked for.
        platform: String,
        /// What there is.
        available: Vec<String>,
    },
    /// A layer's archive is malformed, or does what no layer may.
    #[error("layer {layer} is not acceptable: {reason}")]
    InvalidLayer {
        /// Digest of the layer's blob.
        layer: String,
        /// Which entry, and what is wrong with it.
        reason: String,
    },
    /// Something is larger than allowed.
    #[error("{what} exceeds the limit of {limit} {unit}")]
    TooLarge {
        /// What it is.
        what: String,
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The compressed layer was dropped after it was unpacked (`drop_blobs`), and no registry gives it again.
    #[error("layer {layer} of {image} was dropped after it was unpacked, and cannot be fetched again")]
    Dropped {
        /// Digest of the layer's blob.
        layer: String,
        /// Digest of the image's manifest.
        image: String,
        /// Why it did not come.
        #[source]
        source: Box<Error>,
    },
    /// A container uses it.
    #[error("image {digest} is used by {}", users.join(", "))]
    InUse {
        /// Digest of its manifest.
        digest: String,
        /// The containers, as whoever told of them names them.
        users: Vec<String>,
    },
    /// An id that images of several repositories have.
    #[error("{id} is the id of {}", names.join(", "))]
    SeveralNames {
        /// The id, or its beginning.
        id: String,
        /// All its names.
        names: Vec<String>,
    },
    /// The caller could not tell what containers need.
    #[error("what containers use of the images cannot be told")]
    UsersUnknown(#[source] io::Error),
    /// No space or no inode left.
    #[error("no room for {what}: the disk of {} is full", path.display())]
    DiskFull {
        /// What was written: a layer, an image, else a file.
        what: String,
        /// The root of the store; for a file what was to be written.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file system refused something.
    #[error("{action} {} failed", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file of the store cannot be understood.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of credentials cannot be used.
    #[error("credentials in {} cannot be used: {reason}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong; no secret is quoted.
        reason: String,
    },
    /// This crate does not do it.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// A part of the work ended without a result, as after a panic or at shutdown.
    #[error("{0} ended without a result")]
    Interrupted(&'static str),
}

/// Stands for what a full disk has no room for, until somebody says what that is.
const UNNAMED: &str = "a file";

impl Error {
    /// An I/O error with what was tried; a full disk becomes [`Error::DiskFull`].
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.as_ref().to_path_buf(), source.into());
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            Self::DiskFull { what: UNNAMED.to_owned(), path, source }
        } else {
            Self::Io { action, path, source }
        }
    }

    /// The same failure; if it is that the disk is full, it says for what, the part of it first that was named before, and
    /// which root is full.
    pub(crate) fn of_room_for(mut self, whole: &impl std::fmt::Display, root: &Path) -> Self {
        if let Self::DiskFull { what, path, .. } = &mut self {
            *what = if what == UNNAMED { whole.to_string() } else { format!("{what} of {whole}") };
            root.clone_into(path);
        }
        self
    }

    /// The same failure, which says of what image it is.
    pub(crate) fn of_image(mut self, reference: &impl std::fmt::Display) -> Self {
        if let Self::DigestMismatch { what, .. }
        | Self::SizeMismatch { what, .. }
        | Self::InvalidLayer { layer: what, .. }
        | Self::TooLarge { what, .. } = &mut self
        {
            let reference = reference.to_string();
            if !what.contains(&reference) {
                *what = format!("{what} of {reference}");
            }
        }
        self
    }

    /// A stable, dotted name of the failure.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidReference { .. } => "image.invalid_reference",
            Self::InvalidPlatform { .. } => "image.invalid_platform",
            Self::NotFound { .. } => "image.not_found",
            Self::NotPresent(_) => "image.not_present",
            Self::Ambiguous { .. } => "image.ambiguous",
            Self::Unreachable { .. } => "registry.unreachable",
            Self::Unauthorized { .. } => "registry.unauthorized",
            Self::Registry { .. } => "registry.unexpected_answer",
            Self::NoProgress { .. } => "registry.no_progress",
            Self::PlainHttp { .. } => "registry.plain_http",
            Self::DigestMismatch { .. } => "image.digest_mismatch",
            Self::SizeMismatch { .. } => "image.size_mismatch",
            Self::InvalidManifest { .. } => "image.invalid_manifest",
            Self::NoPlatform { .. } => "image.no_platform",
            Self::InvalidLayer { .. } => "image.invalid_layer",
            Self::TooLarge { .. } => "image.too_large",
            Self::Dropped { .. } => "image.layer_dropped",
            Self::InUse { .. } => "image.in_use",
            Self::SeveralNames { .. } => "image.several_names",
            Self::UsersUnknown(_) => "store.users_unknown",
            Self::DiskFull { .. } => "store.disk_full",
            Self::Io { .. } => "store.io",
            Self::Damaged { .. } => "store.damaged",
            Self::Credentials { .. } => "registry.credentials",
            Self::Unsupported(_) => "unsupported",
            Self::Interrupted(_) => "internal",
        }
    }

    /// What the user can do: of every failure there is something to say.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::InvalidReference { .. } => {
                "write it as [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST], the name in lower case"
            }
            Self::InvalidPlatform { .. } => "write it as OS/ARCH[/VARIANT], such as linux/amd64",
            Self::NotFound { .. } => "check name and tag",
            Self::NotPresent(_) => {
                "`berth images` lists what is here; `berth pull`, or the pull policy `missing`, gets more"
            }
            Self::Ambiguous { .. } => "give more digits",
            Self::Unreachable { .. } => "check the host, the network and the proxy variables; nothing was changed",
            Self::Unauthorized { .. } => {
                "check the name, and the credentials: --creds, or `auths` in ~/.docker/config.json"
            }
            Self::Registry { .. } | Self::NoProgress { .. } => "try again later; what arrived whole is kept",
            Self::PlainHttp { .. } => "set plain_http = true for it in [registry.\"host:port\"]",
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => {
                "get it again; if it stays, the image is broken, or what it comes from or through alters content"
            }
            Self::InvalidManifest { .. } | Self::InvalidLayer { .. } => "the image is broken: build it anew",
            Self::NoPlatform { .. } => "choose one of them with --platform, if this host can run it",
            Self::TooLarge { .. } => "raise the limit in [limits] if you trust the image",
            Self::Dropped { .. } => {
                "make the image's registry reachable, or set [images] drop_blobs = false, remove the image and pull it"
            }
            Self::InUse { .. } => "remove the containers that use it, or force",
            Self::SeveralNames { .. } => "remove them by their names, or all by --force",
            Self::UsersUnknown(_) => "mend or remove the container that cannot be read",
            Self::DiskFull { .. } => "free space (`berth prune`) and try again; nothing half-made was left behind",
            Self::Damaged { .. } => "mend the file; one of the store is made again by a pull, if it is moved away",
            Self::Credentials { .. } => "log in again, or give credentials directly",
            Self::Io { .. } => "see that the path is there, and that it may be read and written",
            Self::Unsupported(_) => "the README's table says what is built",
            Self::Interrupted(_) => "try again; if it stays, report it as a fault of Berth",
        })
    }
}
