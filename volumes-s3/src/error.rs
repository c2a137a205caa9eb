//! What can go wrong with a volume.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The cause below an error of the object store.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error of a volume: what was tried, on what, and ([`Error::hint`]) what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name breaks the grammar.
    #[error("{name:?} is not a name for a volume")]
    InvalidName {
        /// The name, cut to the longest allowed.
        name: String,
    },
    /// The configuration cannot be meant.
    #[error("{what}: {reason}")]
    Configuration {
        /// What of it.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No such volume here, nor in S3 as far as it was asked.
    #[error("volume {name}: not found")]
    NotFound {
        /// The volume.
        name: String,
    },
    /// The history has no such generation.
    #[error("volume {name}: no generation {generation}")]
    GenerationNotFound {
        /// The volume.
        name: String,
        /// The number asked for.
        generation: u64,
    },
    /// The history had it, and has it no more: it went while it was read.
    #[error("volume {name}: generation {generation} was pruned while it was read")]
    GenerationPruned {
        /// The volume.
        name: String,
        /// Its number.
        generation: u64,
    },
    /// Containers of this host use it.
    #[error("volume {name}: {operation} while in use by {}", users.join(", "))]
    InUse {
        /// The volume.
        name: String,
        /// What was refused.
        operation: &'static str,
        /// The containers.
        users: Vec<String>,
    },
    /// A create of this host has made it, and fills it.
    #[error("volume {name}: still being filled from the image of {}", users.join(", "))]
    BeingFilled {
        /// The volume.
        name: String,
        /// The containers being created.
        users: Vec<String>,
    },
    /// Another host holds the claim.
    #[error("volume {name}: in use on host {host} (record {record})")]
    InUseElsewhere {
        /// The volume.
        name: String,
        /// The host that holds the claim.
        host: String,
        /// The newest record of its log.
        record: u64,
    },
    /// The claim was lost to another host: nothing more may be published from here.
    #[error(
        "volume {name}: this host no longer owns it{}{}",
        owner.as_ref().map_or_else(|| " as it was".to_owned(), |owner| format!(", host {owner} does")),
        branch.map_or_else(String::new, |number| format!("; what was here is kept as generation {number}, a branch"))
    )]
    Fenced {
        /// The volume.
        name: String,
        /// Who else holds the claim now; nobody when it was released since.
        owner: Option<String>,
        /// The generation beside the main line that holds what this host could not publish.
        branch: Option<u64>,
    },
    /// The time given to a sync was over before it was. What is owed is journaled.
    #[error("volume {name}: not in S3 within {patience:?}")]
    SyncTimedOut {
        /// The volume.
        name: String,
        /// The time it was given.
        patience: std::time::Duration,
    },
    /// The tree here and the newest generation both changed.
    #[error("volume {name}: changed here since generation {}, and generation {remote} in S3 is newer",
        local.map_or_else(|| "none".to_owned(), |number| number.to_string()))]
    Conflict {
        /// The volume.
        name: String,
        /// The generation the local tree descends from.
        local: Option<u64>,
        /// The newest generation.
        remote: u64,
    },
    /// It would lose data that is nowhere else.
    #[error("volume {name}: {bytes} bytes here are not in S3 yet")]
    Unsynced {
        /// The volume.
        name: String,
        /// Bytes of the files that changed.
        bytes: u64,
    },
    /// It would be forgotten that an older generation was restored here, in place.
    #[error("volume {name}: generation {generation} was restored here and is not published as the newest yet")]
    Unpublished {
        /// The volume.
        name: String,
        /// The generation.
        generation: u64,
    },
    /// It would lose what lies in the volume's directory and is not known to be the volume's: it bears no mark, as what a copy
    /// without extended attributes has put there.
    #[error("volume {name}: {bytes} bytes of a tree without the volume's mark lie in {}", list(paths))]
    Foreign {
        /// The volume.
        name: String,
        /// Bytes of its files.
        bytes: u64,
        /// Where it lies; several if several were put there, one after the other.
        paths: Vec<PathBuf>,
    },
    /// It would be forgotten that the volume owes something to a bucket that this process does not have.
    #[error("volume {name}: it owes a sync or its claim to a bucket that is not configured here")]
    Owing {
        /// The volume.
        name: String,
    },
    /// S3 did not answer, or not in time.
    #[error("{operation} at {location}: S3 is not reachable")]
    S3Unreachable {
        /// What was asked.
        operation: String,
        /// Endpoint and bucket.
        location: String,
        /// Why.
        source: Source,
    },
    /// S3 answered no.
    #[error("{operation} at {location}: refused with status {status} ({s3_code})")]
    S3Refused {
        /// What was asked.
        operation: String,
        /// Endpoint and bucket.
        location: String,
        /// HTTP status, 0 if the request was never sent.
        status: u16,
        /// S3's own code.
        s3_code: String,
        /// The client's error.
        source: Source,
    },
    /// No credentials were found for S3.
    #[error("{operation}: no credentials were found for {target}")]
    S3Credentials {
        /// What was to be asked.
        operation: String,
        /// Bucket and endpoint, as `bucket B at URL`.
        target: String,
        /// What the chain of providers said.
        source: Source,
    },
    /// S3 does not accept the credentials that it was shown.
    #[error("{operation}: the credentials were refused for {target} ({s3_code})")]
    S3CredentialsRefused {
        /// What was asked.
        operation: String,
        /// Bucket and endpoint, as `bucket B at URL`.
        target: String,
        /// S3's own code.
        s3_code: String,
        /// What S3 said.
        source: Source,
    },
    /// The bucket does not exist.
    #[error("bucket {bucket} does not exist at {endpoint}")]
    BucketMissing {
        /// The bucket.
        bucket: String,
        /// The endpoint.
        endpoint: String,
    },
    /// The server let several writers win one put-if-absent.
    #[error(
        "{location}: {winners} of {writers} writers won one put-if-absent; such a server cannot keep two hosts apart"
    )]
    RacyServer {
        /// Endpoint and bucket.
        location: String,
        /// How many were told they had won.
        winners: u32,
        /// How many raced.
        writers: u32,
    },
    /// No bucket is configured.
    #[error("volume {name}: {operation} needs a bucket, and none is configured")]
    NoBucket {
        /// The volume.
        name: String,
        /// What was asked.
        operation: &'static str,
    },
    /// Bytes from S3 or the disk are not what they were when written.
    #[error("{what}: {detail}")]
    Corrupt {
        /// The object or file.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A file that this host keeps of the volume is not what it was when written.
    #[error("volume {name}: {} cannot be read: {detail}", path.display())]
    Damaged {
        /// The volume.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Written by a newer version.
    #[error("{what} has format {found}; this version reads up to {supported}")]
    UnsupportedFormat {
        /// The object or file.
        what: String,
        /// Its version.
        found: u32,
        /// The newest this one reads.
        supported: u32,
    },
    /// The target of a restore exists.
    #[error("restore to {}: it exists and is not an empty directory", path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("{operation} {}: no space left", path.display())]
    DiskFull {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system refused something.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Not built, or not in this build.
    #[error("{what} is not supported")]
    Unsupported {
        /// The option or method.
        what: String,
    },
    /// Who asked for it has called it off while it was waited for.
    #[error("volume {name}: no longer waited for: it was called off")]
    CalledOff {
        /// The volume.
        name: String,
    },
    /// It was broken off before its end, as by the end of a thread.
    #[error("{operation} was broken off")]
    Interrupted {
        /// What it was doing.
        operation: &'static str,
    },
}

impl Error {
    /// A stable name, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "volume.invalid_name",
            Self::Configuration { .. } => "config.invalid",
            Self::NotFound { .. } => "volume.not_found",
            Self::GenerationNotFound { .. } => "volume.generation_not_found",
            Self::GenerationPruned { .. } => "volume.generation_pruned",
            Self::InUse { .. } => "volume.in_use",
            Self::BeingFilled { .. } => "volume.being_filled",
            Self::InUseElsewhere { .. } => "volume.in_use_elsewhere",
            Self::Fenced { .. } => "volume.fenced",
            Self::SyncTimedOut { .. } => "volume.sync_timed_out",
            Self::Conflict { .. } => "volume.conflict",
            Self::Unsynced { .. } => "volume.unsynced",
            Self::Unpublished { .. } => "volume.unpublished",
            Self::Foreign { .. } => "volume.foreign",
            Self::Owing { .. } => "volume.owing",
            Self::S3Unreachable { .. } => "volume.s3_unreachable",
            Self::S3Refused { .. } => "volume.s3_refused",
            Self::S3Credentials { .. } => "volume.s3_credentials",
            Self::S3CredentialsRefused { .. } => "volume.s3_credentials_refused",
            Self::BucketMissing { .. } => "volume.bucket_missing",
            Self::RacyServer { .. } => "volume.racy_server",
            Self::NoBucket { .. } => "volume.no_bucket",
            Self::Corrupt { .. } | Self::Damaged { .. } => "volume.corrupt",
            Self::UnsupportedFormat { .. } => "volume.unsupported_format",
            Self::TargetExists { .. } => "volume.target_exists",
            Self::DiskFull { .. } => "volume.disk_full",
            Self::Io { .. } => "volume.io",
            Self::Unsupported { .. } => "volume.unsupported",
            Self::CalledOff { .. } => "volume.called_off",
            Self::Interrupted { .. } => "volume.interrupted",
        }
    }

    /// The volume that its text begins with (`volume NAME: …`), for who would say that again.
    #[must_use]
    pub fn volume(&self) -> Option<&str> {
        match self {
            Self::NotFound { name }
            | Self::GenerationNotFound { name, .. }
            | Self::GenerationPruned { name, .. }
            | Self::InUse { name, .. }
            | Self::BeingFilled { name, .. }
            | Self::InUseElsewhere { name, .. }
            | Self::CalledOff { name }
            | Self::Fenced { name, .. }
            | Self::SyncTimedOut { name, .. }
            | Self::Conflict { name, .. }
            | Self::Unsynced { name, .. }
            | Self::Unpublished { name, .. }
            | Self::Foreign { name, .. }
            | Self::Owing { name }
            | Self::Damaged { name, .. }
            | Self::NoBucket { name, .. } => Some(name),
            _ => None,
        }
    }

    /// What to do about it: of every failure there is something to say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::InvalidName { .. } => {
                "use letters, digits, `_`, `.` and `-`, at most 200, the first a letter or digit".into()
            }
            Self::Configuration { what, .. } if what.starts_with("S3 bucket") || what.starts_with("S3 endpoint") => {
                "name a bucket, and an endpoint as http://HOST[:PORT] or https://HOST[:PORT]".into()
            }
            Self::Configuration { .. } => "the README's table lists the keys of the file, and what they take".into(),
            Self::NotFound { .. } => "`berth volume ls` lists the volumes of this host".into(),
            Self::GenerationNotFound { name, .. } => format!("`berth volume history {name}` lists them"),
            Self::GenerationPruned { name, .. } => {
                format!("try again with one that is kept: `berth volume history {name}` lists them")
            }
            Self::InUse { .. } => "stop and remove those containers first".into(),
            Self::BeingFilled { .. } => "wait until that container is created".into(),
            Self::InUseElsewhere { name, host, .. } => {
                format!(
                    "stop its container on {host}; if none is left there, run `berth keeper` there; if that host is dead, take \
                     it over: `berth volume claim {name} --take-over`, or `take_over` in the spec"
                )
            }
            Self::Fenced { name, branch: Some(branch), .. } => {
                format!("`berth volume restore {name} --generation {branch} --to DIR` brings the branch back")
            }
            Self::Fenced { owner: Some(_), .. } => "nothing was lost; use the volume on the host that owns it".into(),
            Self::Fenced { .. } => "nothing was lost; its next use here claims it again".into(),
            Self::SyncTimedOut { name, .. } => {
                format!("check the endpoint; the keeper tries again, and so does `berth volume sync {name}`")
            }
            Self::Conflict { name, .. } => format!(
                "`berth volume restore {name} --discard-local` takes the newer generation; copy what you need from here first"
            ),
            Self::Unsynced { name, .. } => format!(
                "`berth volume sync {name}` first, with its bucket; or say that it may be lost: `rm -f`, `restore --discard-local`"
            ),
            Self::Unpublished { name, .. } => {
                format!(
                    "`berth volume sync {name}` publishes it; `rm -f` forgets it: the newest generation stays as it is"
                )
            }
            Self::Foreign { .. } => {
                "move it away, or copy what you need of it into the volume; `rm -f` removes it, too".into()
            }
            Self::Owing { name } => format!(
                "`berth volume sync {name}` with its own `--s3-bucket`; `rm -f` removes it here, and its claim may stay"
            ),
            Self::S3Unreachable { .. } => {
                "check the endpoint, its server and the network; the keeper tries again what is owed to it".into()
            }
            Self::S3Refused { status: 403, .. } => {
                "see that the bucket's policy permits this to the AWS credentials that are set".into()
            }
            Self::S3Refused { .. } => "see the server's own message".into(),
            Self::S3Credentials { .. } => "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile".into(),
            Self::S3CredentialsRefused { .. } => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile, to what this server knows".into()
            }
            Self::BucketMissing { bucket, .. } => format!("create the bucket {bucket}, or name another one"),
            Self::RacyServer { .. } => "use another server, or permit this one with `allow_racy_put`".into(),
            Self::NoBucket { .. } => "configure one: `--s3-bucket`".into(),
            Self::Corrupt { .. } => "restore an older generation".into(),
            Self::Damaged { name, path, .. } => format!(
                "copy what you need from {}; `berth volume rm -f {name}` removes it here, and its next use restores what S3 has",
                path.with_file_name("data").display()
            ),
            Self::UnsupportedFormat { .. } => "use a newer version".into(),
            Self::TargetExists { .. } => "name a directory that does not exist yet".into(),
            Self::DiskFull { .. } => "free some space and try again".into(),
            Self::Io { .. } => "see that the path is there, and that it may be read and written".into(),
            Self::Unsupported { .. } => "the README's table says what is built".into(),
            Self::CalledOff { .. } => "ask again; nothing was changed".into(),
            Self::Interrupted { .. } => "try again; nothing was lost".into(),
        })
    }

    /// Whether trying again later may help without anyone doing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::S3Unreachable { .. } | Self::SyncTimedOut { .. } | Self::Interrupted { .. })
    }

    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.as_ref().to_owned(), source.into());
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::DiskFull { operation, path, source },
            _ => Self::Io { operation, path, source },
        }
    }

    /// The same failure; a path within a tree becomes that of `tree`.
    pub(crate) fn beneath(mut self, tree: &Path) -> Self {
        if let Self::DiskFull { path, .. } | Self::Io { path, .. } = &mut self {
            // An absolute one stays as it is.
            *path = tree.join(&*path);
        }
        self
    }

    pub(crate) fn corrupt(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into(), detail: detail.into() }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_the_volume_says_so() {
        let name = || "v".to_owned();
        let named = [
            Error::NotFound { name: name() },
            Error::GenerationNotFound { name: name(), generation: 1 },
            Error::GenerationPruned { name: name(), generation: 1 },
            Error::InUse { name: name(), operation: "removal", users: Vec::new() },
            Error::BeingFilled { name: name(), users: Vec::new() },
            Error::InUseElsewhere { name: name(), host: "h".into(), record: 1 },
            Error::CalledOff { name: name() },
            Error::Fenced { name: name(), owner: Some("h".into()), branch: None },
            Error::SyncTimedOut { name: name(), patience: std::time::Duration::from_secs(1) },
            Error::Conflict { name: name(), local: None, remote: 1 },
            Error::Unsynced { name: name(), bytes: 1 },
            Error::Unpublished { name: name(), generation: 1 },
            Error::Foreign { name: name(), bytes: 1, paths: Vec::new() },
            Error::Owing { name: name() },
            Error::Damaged { name: name(), path: "/v/state.json".into(), detail: "x".into() },
            Error::NoBucket { name: name(), operation: "x" },
        ];
        for error in named {
            assert!(error.to_string().starts_with("volume v: ") && error.volume() == Some("v"), "{error}");
        }
        let unnamed = [
            Error::corrupt("v/packs/1", "is gone"),
            Error::Unsupported { what: "x".into() },
            Error::Interrupted { operation: "x" },
        ];
        for error in unnamed {
            assert!(!error.to_string().starts_with("volume ") && error.volume().is_none(), "{error}");
        }
    }
}
