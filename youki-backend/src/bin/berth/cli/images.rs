//! Flags of the commands about images.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand};

use super::flags::Flags;

#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Only those of this repository
    pub repository: Option<String>,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Only those that fit: reference, dangling
    #[arg(short, long, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub filter: Vec<String>,
    /// Print this of each: {{.Repository}} {{.Tag}} {{.ID}}; after the word table, with headings
    #[arg(long, value_name = "TEMPLATE")]
    pub format: Option<String>,
    /// Digests are shown in any case
    #[arg(long, hide = true)]
    pub digests: bool,
    /// There are none that only others are made of
    #[arg(short, long, hide = true)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct PushArgs {
    /// The image, by a reference with a tag
    pub image: String,
    /// Credentials for the registry
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct SaveArgs {
    /// The images; one that is named by a digest or an id has no name in the archive
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// The archive [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// An archive, or the directory of an OCI layout [default: an archive on standard input]
    #[arg(short, long, value_name = "FILE", default_value = "/dev/stdin", hide_default_value = true)]
    pub input: PathBuf,
    /// Print nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct TagArgs {
    /// The image
    pub source: String,
    /// Its further name
    pub target: String,
}

#[derive(Debug, Args)]
pub struct RmiArgs {
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Those that containers use, too
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// All that no container uses, as docker's: that is what goes anyway
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum ImageCommand {
    /// Show images
    Inspect(Flags<ImageInspectArgs>),
    /// Show how an image was built
    History(Flags<ImageHistoryArgs>),
    /// Hash all that is stored of images again, and name what is damaged
    Verify(Flags<ImageNamesArgs>),
}

#[derive(Debug, Args)]
pub struct ImageHistoryArgs {
    /// The image
    pub image: String,
    /// Do not shorten commands and digests
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Debug, Args)]
pub struct ImageInspectArgs {
    /// Print this of each: {{.id}}, {{json .config}}
    #[arg(short, long, value_name = "TEMPLATE")]
    pub format: Option<String>,
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ImageNamesArgs {
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}
