//! The command line: every command and flag, as clap reads it.

mod flags;
mod images;
mod networks;
mod volumes;

use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use runtime_core::PullPolicy;

use crate::docker_habits::switch_with_value;
use crate::run_flags::RunArgs;
use flags::{Flags, NoArgs, with_any_value, with_subnet};
pub use images::*;
pub use networks::*;
pub use volumes::*;

/// Runs containers in Linux namespaces, and keeps their volumes in S3.
#[derive(Debug, Parser)]
#[command(name = "berth", version, arg_required_else_help = true, infer_subcommands = false)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes, before or after its name.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalArgs {
    /// Where everything lies that survives a reboot [env: BERTH_ROOT] [default: /var/lib/berth]
    #[arg(long, global = true, value_name = "DIR", display_order = 900)]
    pub root: Option<String>,
    /// Where everything lies that does not [env: BERTH_RUN_DIR] [default: /run/berth, or the root's own beneath it]
    #[arg(long, global = true, value_name = "DIR", display_order = 900)]
    pub run_dir: Option<String>,
    /// The cgroup beneath which containers live [env: BERTH_CGROUP_PARENT] [default: berth]
    #[arg(long, global = true, value_name = "NAME", display_order = 900)]
    pub cgroup_parent: Option<String>,
    /// Bridge of the default network [env: BERTH_BRIDGE] [default: berth0]
    #[arg(long, global = true, value_name = "NAME", display_order = 900)]
    pub bridge: Option<String>,
    /// Of the flag that [`flags::with_subnet`] adds.
    #[arg(skip)]
    pub subnet: Option<String>,
    /// Bucket that named volumes are synced to [env: BERTH_S3_BUCKET]
    #[arg(long, global = true, value_name = "BUCKET", display_order = 900)]
    pub s3_bucket: Option<String>,
    /// URL of an S3-compatible server [env: BERTH_S3_ENDPOINT]
    #[arg(long, global = true, value_name = "URL", display_order = 900)]
    pub s3_endpoint: Option<String>,
    /// Prepended to every key in the bucket [env: BERTH_S3_PREFIX]
    #[arg(long, global = true, value_name = "PREFIX", display_order = 900)]
    pub s3_prefix: Option<String>,
    /// Region of the bucket [env: BERTH_S3_REGION]
    #[arg(long, global = true, value_name = "REGION", display_order = 900)]
    pub s3_region: Option<String>,
    /// Print JSON
    #[arg(long, global = true, display_order = 901)]
    pub json: bool,
    /// error, warn, info, debug, trace, or a filter such as registry=debug [env: BERTH_LOG] [default: warn]
    #[arg(long, global = true, value_name = "LEVEL", display_order = 901)]
    pub log_level: Option<String>,
    /// Configuration file [default: /etc/berth/config.toml if there is one]
    #[arg(long, global = true, value_name = "FILE", display_order = 901)]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Fetch an image from its registry
    Pull(Flags<PullArgs>),
    /// Create and start a container
    #[command(disable_help_flag = true)]
    Run(Box<Flags<RunArgs>>),
    /// Create a container without starting it
    #[command(disable_help_flag = true)]
    Create(Box<Flags<RunArgs>>),
    /// Create and start a container from a ServiceSpec in YAML or JSON
    Apply(Flags<ApplyArgs>),
    /// Start created or ended containers
    Start(Flags<NamesArgs>),
    /// Stop containers
    Stop(Flags<StopArgs>),
    /// Stop containers, and start them again
    Restart(Flags<StopArgs>),
    /// Send a signal to containers
    Kill(Flags<KillArgs>),
    /// Freeze containers
    Pause(Flags<NamesArgs>),
    /// Let frozen containers go on
    Unpause(Flags<NamesArgs>),
    /// Change the limits of containers
    Update(Flags<UpdateArgs>),
    /// Remove containers
    Rm(Flags<RmArgs>),
    /// Wait until containers end, and print their exit codes
    Wait(Flags<NamesArgs>),
    /// List containers
    Ps(Flags<PsArgs>),
    /// Show everything known of containers
    Inspect(Flags<InspectArgs>),
    /// Show the processes of a container
    Top(Flags<TopArgs>),
    /// Show what containers use
    Stats(Flags<StatsArgs>),
    /// Show what a container wrote
    Logs(Flags<LogsArgs>),
    /// Run a command in a running container
    Exec(Flags<ExecArgs>),
    /// Connect to a running container's streams
    Attach(Flags<AttachArgs>),
    /// Copy files between a container and the host
    Cp(Flags<CpArgs>),
    /// Write a container's root filesystem as a tar
    Export(Flags<ExportArgs>),
    /// Bring an image to its registry
    Push(Flags<PushArgs>),
    /// List images
    Images(Flags<ImagesArgs>),
    /// Write images to an archive
    Save(Flags<SaveArgs>),
    /// Take images from an OCI layout or an archive
    Load(Flags<LoadArgs>),
    /// Give an image another name
    Tag(Flags<TagArgs>),
    /// Remove images
    Rmi(Flags<RmiArgs>),
    /// Remove images that no container uses, and what is left over of others
    Prune(Flags<PruneArgs>),
    /// Show an image
    #[command(subcommand)]
    Image(ImageCommand),
    /// Named volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// List the published ports of a container
    Port(Flags<PortArgs>),
    /// Check whether this host can run containers
    Doctor(Flags<NoArgs>),
    /// Show what happened to containers, images and volumes
    Events(Flags<EventsArgs>),
    /// Show how this root is set up
    Info(Flags<NoArgs>),
    /// Stop all containers and sync their volumes, for the host's own shutdown
    Shutdown(Flags<ShutdownArgs>),
    /// Print a script that completes commands and flags in a shell
    Completion(Flags<CompletionArgs>),
    /// Keep this root's volumes synced until a signal comes, for a host without an agent
    Keeper(Flags<NoArgs>),
}

impl Cli {
    /// The definition of all commands; each command's flags are defined when it is called.
    pub fn definition() -> clap::Command {
        // Those that only lead to others have no flags of their own.
        ["image", "volume", "network"]
            .into_iter()
            .fold(with_subnet(with_any_value(Self::command())), |command, name| {
                command.mut_subcommand(name, with_subnet)
            })
    }

    /// Reads a command line.
    pub fn read(words: impl IntoIterator<Item: Into<std::ffi::OsString> + Clone>) -> Result<Self, clap::Error> {
        let mut words: Vec<std::ffi::OsString> = words.into_iter().map(Into::into).collect();
        let matches = loop {
            let error = match Self::definition().try_get_matches_from(&words) {
                Ok(matches) => break matches,
                Err(error) => error,
            };
            // Each turn takes a value away.
            match switch_with_value(&error, &words) {
                Some((place, true)) => {
                    let switch = words[place].to_string_lossy().split('=').next().unwrap_or_default().to_owned();
                    words[place] = switch.into();
                }
                Some((place, false)) => drop(words.remove(place)),
                None => return Err(error),
            }
        };
        let mut cli = Self::from_arg_matches(&matches)?;
        let mut level = Some(&matches);
        while let Some(matches) = level {
            if let Ok(Some(subnet)) = matches.try_get_one::<String>(DEFAULT_SUBNET) {
                cli.global.subnet = Some(subnet.clone());
            }
            level = matches.subcommand().map(|(_, matches)| matches);
        }
        Ok(cli)
    }
}

/// Id of the flag of the default network's addresses.
const DEFAULT_SUBNET: &str = "default_subnet";

#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The spec; - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Its name
    #[arg(long)]
    pub name: String,
    /// Credentials for the registry
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<String>,
}

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Leave standard input out
    #[arg(long)]
    pub no_stdin: bool,
    /// The container
    pub name: String,
}

#[derive(Debug, Args)]
pub struct CpArgs {
    /// Keep owners
    #[arg(short, long)]
    pub archive: bool,
    /// Copy what a link leads to
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Nothing is said in any case
    #[arg(short, long, hide = true)]
    pub quiet: bool,
    /// NAME:PATH, a path on the host, or - for a tar on standard input
    pub source: String,
    /// The same; - for a tar to standard output
    pub target: String,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Into this file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The container
    pub name: String,
}

#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Print this of each: {{.state}}, {{json .mounts}}
    #[arg(short, long, value_name = "TEMPLATE")]
    pub format: Option<String>,
    /// Containers are what is meant in any case
    #[arg(long = "type", hide = true, value_parser = ["container"])]
    pub kind: Option<String>,
    /// The containers
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
    /// -o COLUMN,…, -ef or aux
    #[arg(value_name = "OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Limit memory: b, k, m, g
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<String>,
    /// Limit CPU time, in CPUs
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<String>,
    /// Relative weight when CPUs are short
    #[arg(short, long, value_name = "WEIGHT")]
    pub cpu_shares: Option<u64>,
    /// CPUs they may run on (0-2,4)
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Limit processes and threads; -1 for no limit
    #[arg(long, value_name = "NUMBER")]
    pub pids_limit: Option<i64>,
    /// Restart them when they end by themselves: no, always, unless-stopped, on-failure, on-failure:N
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// The containers
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on until a signal comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only from this time on: RFC 3339, seconds since 1970, or so long ago (10m)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only from before this time; with --follow, until then
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Print this of each: {{.kind}} {{.container}}, {{json .}}
    #[arg(long, value_name = "TEMPLATE")]
    pub format: Option<String>,
    /// Only those that fit: container, image, volume, event
    #[arg(long, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub filter: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ShutdownArgs {
    /// Seconds after which a container that does not stop is killed, if it has not less by its own time-out; -1 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    pub timeout: i64,
    /// Take down the bridge, the firewall table and the cgroups, too; what a container needs is made again
    #[arg(long)]
    pub dismantle: bool,
}

#[derive(Debug, Args)]
pub struct NamesArgs {
    /// The containers
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// The image
    pub image: String,
    /// When to ask the registry: always, missing or never
    #[arg(long, default_value = "always", value_parser = parse_pull_policy)]
    pub policy: PullPolicy,
    /// What to take from an image for several platforms [default: this host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// Credentials for the registry
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<String>,
    /// Print the digest only
    #[arg(short, long)]
    pub quiet: bool,
}

/// clap wants a function.
pub fn parse_pull_policy(text: &str) -> Result<PullPolicy, String> {
    text.parse()
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// The containers
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Seconds until they are killed; -1 for never [default: the container's, else 10]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS")]
    pub time: Option<i64>,
    /// By this signal [default: the container's]
    #[arg(short, long)]
    pub signal: Option<String>,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// The containers
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// KILL, TERM, INT, HUP, USR1 or USR2
    #[arg(short, long, default_value = "KILL")]
    pub signal: String,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// The containers
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Kill those that run; one that is not there is no error
    #[arg(short, long)]
    pub force: bool,
    /// Anonymous volumes are removed with their container in any case
    #[arg(short, long, hide = true)]
    pub volumes: bool,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// All, not only those that run
    #[arg(short, long)]
    pub all: bool,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten
    #[arg(long)]
    pub no_trunc: bool,
    /// Only those that fit: id, name, status, label, ancestor, exited, network, volume, health
    #[arg(short, long, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub filter: Vec<String>,
    /// Print this of each: {{.ID}} {{.Names}} {{.Status}}; after the word table, with headings
    #[arg(long, value_name = "TEMPLATE")]
    pub format: Option<String>,
    /// Only the last so many that were created
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub last: Option<usize>,
    /// Only the one that was created last
    #[arg(short, long)]
    pub latest: bool,
}

#[derive(Debug, Args)]
pub struct StatsArgs {
    /// The containers [default: all that run]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Print once
    #[arg(long)]
    pub no_stream: bool,
    /// All containers, not only those that run
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The container
    pub name: String,
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Put the time before each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only the last so many lines, or all
    #[arg(short = 'n', long, default_value = "all", value_name = "LINES")]
    pub tail: String,
    /// Only from this time on: RFC 3339, seconds since 1970, or so long ago (10m)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only before this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Leave it to run in the background; what it writes is discarded
    #[arg(short, long)]
    pub detach: bool,
    /// Give it all capabilities and no seccomp filter
    #[arg(long)]
    pub privileged: bool,
    /// Set a variable; with its name alone, from the own environment
    #[arg(short, long, value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    pub env_file: Vec<PathBuf>,
    /// Run as
    #[arg(short, long, value_name = "NAME|UID[:GROUP|GID]")]
    pub user: Option<String>,
    /// Run in this directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Kill it after so many seconds, or 1m30s; the exit code is then 124
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<String>,
    /// The container, and the command with its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["NAME", "COMMAND"])]
    pub name_and_command: Vec<String>,
}

#[cfg(test)]
mod flag_rows;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::read(line.split_whitespace()).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::definition().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        for line in ["berth --json --root /x ps", "berth ps --json --root /x", "berth --json ps --root /x"] {
            let cli = parse(line);
            assert!(cli.global.json && cli.global.root.as_deref() == Some("/x"), "{line}");
        }
    }

    #[test]
    fn a_subnet_is_the_default_networks_but_for_a_new_one() {
        let of_default = |line: &str| parse(line).global.subnet;
        for line in
            ["berth --subnet 10.1.0.0/16 ps", "berth ps --subnet 10.1.0.0/16", "berth volume ls --subnet=10.1.0.0/16"]
        {
            assert_eq!(of_default(line).as_deref(), Some("10.1.0.0/16"), "{line}");
        }
        assert_eq!(of_default("berth network create --subnet 10.2.0.0/24 n"), None);
        let cli = parse("berth --subnet 10.1.0.0/16 network create --subnet 10.2.0.0/24 --subnet fd00::/64 n");
        assert_eq!(cli.global.subnet.as_deref(), Some("10.1.0.0/16"));
        let Command::Network(NetworkCommand::Create(args)) = cli.command else { panic!() };
        assert_eq!(args.subnet, ["10.2.0.0/24", "fd00::/64"]);
    }

    #[test]
    fn a_switch_may_have_a_value_as_dockers() {
        let Command::Run(args) =
            parse("berth run --rm=true --init=false -i --detach=1 --read-only=false img sh --rm=true").command
        else {
            panic!()
        };
        assert!(args.rm && !args.init && args.interactive && args.detach && !args.read_only);
        assert_eq!(args.image_and_command, ["img", "sh", "--rm=true"]);
        assert!(Cli::read(["berth", "run", "--rm=perhaps", "img"]).is_err());
        assert!(Cli::read(["berth", "run", "img", "--rm=perhaps"]).is_ok());
    }

    #[test]
    fn what_follows_the_image_is_the_command_whatever_it_looks_like() {
        for (line, rest) in [
            ("berth run --rm busybox ls --json -l", &["busybox", "ls", "--json", "-l"][..]),
            ("berth run busybox --name x", &["busybox", "--name", "x"]),
            ("berth run -e A=1 busybox sh -c -e -- x", &["busybox", "sh", "-c", "-e", "--", "x"]),
            ("berth run -- busybox -i", &["busybox", "-i"]),
        ] {
            let cli = parse(line);
            let Command::Run(args) = &cli.command else { panic!("{line}") };
            assert_eq!(args.image_and_command, rest, "{line}");
            assert!(!cli.global.json, "{line}");
        }
        let Command::Exec(args) = parse("berth exec -i web ls -i --timeout 3").command else { panic!() };
        assert!(args.interactive && args.timeout.is_none());
        assert_eq!(args.name_and_command, ["web", "ls", "-i", "--timeout", "3"]);
    }

    #[test]
    fn a_flag_that_is_none_is_an_error_not_an_image() {
        for line in ["berth run --bogus busybox", "berth exec web", "berth run", "berth wait", "berth nonsense"] {
            assert!(Cli::read(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
