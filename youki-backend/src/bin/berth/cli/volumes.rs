//! `volume …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::flags::Flags;

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum VolumeCommand {
    /// List the volumes of this host
    Ls(Flags<VolumeLsArgs>),
    /// Show volumes
    Inspect(Flags<VolumeNamesArgs>),
    /// Bring volumes to S3
    Sync(Flags<VolumeNamesArgs>),
    /// List the generations of a volume
    History(Flags<VolumeHistoryArgs>),
    /// Bring a generation back, in place or into another directory
    Restore(Flags<VolumeRestoreArgs>),
    /// Remove the local copies of volumes
    Rm(Flags<VolumeRmArgs>),
    /// Remove local copies that nobody uses and S3 holds as they are, or of one volume old generations
    Prune(Flags<VolumePruneArgs>),
    /// Make this host the owner of volumes
    Claim(Flags<VolumeClaimArgs>),
    /// Show what changed from one generation of a volume to another
    Diff(Flags<VolumeDiffArgs>),
    /// Read a volume's history in S3 again and compare every digest
    Verify(Flags<VolumeVerifyArgs>),
}

#[derive(Debug, Args)]
pub struct VolumeLsArgs {
    /// Print names only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct VolumeNamesArgs {
    /// The volumes
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct VolumeHistoryArgs {
    /// The volume
    pub name: String,
    /// Claims, releases and prunes too
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct VolumeRestoreArgs {
    /// The volume
    pub name: String,
    /// Which generation [default: the newest]
    #[arg(long, value_name = "NUMBER")]
    pub generation: Option<u64>,
    /// Into this directory, which must not exist or be empty [default: in place]
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// In place, over changes that are nowhere else
    #[arg(long)]
    pub discard_local: bool,
}

#[derive(Debug, Args)]
pub struct VolumeClaimArgs {
    /// The volumes
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// From the host that holds the claim, which is dead: what it did not sync becomes a branch, if it lives
    #[arg(long)]
    pub take_over: bool,
}

#[derive(Debug, Args)]
pub struct VolumeDiffArgs {
    /// The volume
    pub name: String,
    /// The older generation
    pub old: u64,
    /// The newer one
    pub new: u64,
}

#[derive(Debug, Args)]
pub struct VolumeVerifyArgs {
    /// The volume
    pub name: String,
    /// Only this generation [default: all]
    #[arg(long, value_name = "NUMBER")]
    pub generation: Option<u64>,
}

#[derive(Debug, Args)]
pub struct VolumeRmArgs {
    /// The volumes
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// The history in S3 too
    #[arg(long)]
    pub remote: bool,
    /// Even if data is lost by it
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct VolumePruneArgs {
    /// Apply the configured retention ([volumes.keep]) to this volume's history in S3, and leave local copies alone
    pub name: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}
