//! The `berth` command: it parses, calls the library, and prints.
//!
//! | module | holds |
//! |---|---|
//! | `cli`, `run_flags`, `flag_values`, `publish`, `mount_flag`, `log_flags`, `named_flags`, `docker_habits` | the command line and what it means |
//! | `session` | configuration, logging, the opened runtime |
//! | `run`, `attach`, `lifecycle`, `exec`, `copy`, `logs`, `stats`, `listing`, `top`, `image_list`, `images`, `archives`, `volumes`, `networks`, `events`, `doctor`, `root` | the commands |
//! | `streams`, `signals`, `terminal` | what a foreground run passes on |
//! | `output`, `format`, `progress`, `failure` | what is printed, and how it ends |

mod archives;
mod attach;
mod cli;
mod copy;
mod docker_habits;
mod doctor;
mod events;
mod exec;
mod failure;
mod flag_values;
mod format;
mod image_list;
mod images;
mod lifecycle;
mod listing;
mod log_flags;
mod logs;
mod mount_flag;
mod named_flags;
mod networks;
mod output;
mod progress;
mod publish;
mod root;
mod run;
mod run_flags;
mod session;
mod signals;
mod spec_file;
mod stats;
mod streams;
mod tar_output;
mod terminal;
mod top;
mod volumes;

use std::process::exit;

use clap::error::ErrorKind;

use cli::{Cli, Command, GlobalArgs, ImageCommand, NetworkCommand, VolumeCommand};
use failure::{Failure, OWN_STATUS, Result, USAGE_STATUS};
use session::Session;

fn main() {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => exit(report_usage(&error)),
    };
    if cli.global.json {
        failure::speak_json();
    }
    let statuses = Statuses::of(&cli.command);
    let status = match execute(cli) {
        Ok(status) => status,
        Err(failure) => {
            failure.print();
            i32::from(statuses.status(&failure))
        }
    };
    exit(status)
}

/// What a command's own failures end with.
struct Statuses {
    /// What was asked for is not acceptable.
    usage: u8,
    /// What was asked for is not built.
    unsupported: u8,
    /// Any other.
    other: u8,
}

impl Statuses {
    fn of(command: &Command) -> Self {
        let (own, one) = (OWN_STATUS, 1);
        match command {
            Command::Run(_) => Self { usage: own, unsupported: own, other: own },
            Command::Create(_) | Command::Exec(_) => Self { usage: own, unsupported: own, other: one },
            _ => Self { usage: USAGE_STATUS, unsupported: one, other: one },
        }
    }

    fn status(&self, failure: &Failure) -> u8 {
        match (failure.code(), failure.status) {
            _ if failure.is_usage() => self.usage,
            (_, Some(status)) => status,
            ("unsupported" | "unsupported.here" | "volume.unsupported", None) => self.unsupported,
            _ => self.other,
        }
    }
}

fn execute(cli: Cli) -> Result<i32> {
    if let Command::Completion(args) = &cli.command {
        return print_completion(args.shell);
    }
    // What blocks has threads of its own. A second one for futures would be woken at each answer of a supervisor's, which
    // takes longer than all that it does.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("preparing", "to wait for events", &error))?;
    let status = runtime.block_on(dispatch(cli.global, cli.command));
    // Threads may still wait for standard input, and would be waited for.
    runtime.shutdown_background();
    status
}

async fn dispatch(global: GlobalArgs, command: Command) -> Result<i32> {
    let config = session::configure(&global)?;
    let json = global.json;
    // These need no root, or open it in their own way.
    let command = match command {
        Command::Doctor(_) => return doctor::doctor(config, json).await,
        Command::Keeper(_) => return root::keeper(config).await,
        Command::Run(args) => return run::run(config, json, &args).await,
        Command::Create(args) => return run::create(config, json, &args).await,
        Command::Exec(args) => return exec::exec(config, json, &args).await,
        Command::Apply(args) => return run::apply(config, json, &args).await,
        other => other,
    };
    let session = Session::open(config, json).await?;
    match &command {
        Command::Start(args) => lifecycle::start(&session, args).await,
        Command::Stop(args) => lifecycle::stop(&session, args).await,
        Command::Restart(args) => lifecycle::restart(&session, args).await,
        Command::Kill(args) => lifecycle::kill(&session, args).await,
        Command::Pause(args) => lifecycle::pause(&session, args).await,
        Command::Unpause(args) => lifecycle::unpause(&session, args).await,
        Command::Update(args) => lifecycle::update(&session, args).await,
        Command::Rm(args) => lifecycle::rm(&session, args).await,
        Command::Wait(args) => lifecycle::wait(&session, args).await,
        Command::Ps(args) => listing::ps(&session, args).await,
        Command::Inspect(args) => listing::inspect(&session, args).await,
        Command::Top(args) => top::top(&session, args).await,
        Command::Stats(args) => stats::stats(&session, args).await,
        Command::Logs(args) => logs::logs(&session, args).await,
        Command::Attach(args) => attach::attach(&session, args).await,
        Command::Cp(args) => copy::cp(&session, args).await,
        Command::Export(args) => copy::export(&session, args).await,
        Command::Pull(args) => images::pull(&session, args).await,
        Command::Images(args) => image_list::images(&session, args).await,
        Command::Push(args) => images::push(&session, args).await,
        Command::Save(args) => archives::save(&session, args).await,
        Command::Load(args) => archives::load(&session, args).await,
        Command::Tag(args) => images::tag(&session, args).await,
        Command::Rmi(args) => images::rmi(&session, args).await,
        Command::Prune(args) => images::prune(&session, args).await,
        Command::Image(ImageCommand::Inspect(args)) => images::inspect(&session, args).await,
        Command::Image(ImageCommand::History(args)) => images::history(&session, args).await,
        Command::Image(ImageCommand::Verify(args)) => images::verify(&session, args).await,
        Command::Volume(VolumeCommand::Ls(args)) => volumes::ls(&session, args).await,
        Command::Volume(VolumeCommand::Inspect(args)) => volumes::inspect(&session, args).await,
        Command::Volume(VolumeCommand::Sync(args)) => volumes::sync(&session, args).await,
        Command::Volume(VolumeCommand::History(args)) => volumes::history(&session, args).await,
        Command::Volume(VolumeCommand::Restore(args)) => volumes::restore(&session, args).await,
        Command::Volume(VolumeCommand::Rm(args)) => volumes::rm(&session, args).await,
        Command::Volume(VolumeCommand::Prune(args)) => volumes::prune(&session, args).await,
        Command::Volume(VolumeCommand::Claim(args)) => volumes::claim(&session, args).await,
        Command::Volume(VolumeCommand::Diff(args)) => volumes::diff(&session, args).await,
        Command::Volume(VolumeCommand::Verify(args)) => volumes::verify(&session, args).await,
        Command::Network(NetworkCommand::Ls(args)) => networks::ls(&session, args),
        Command::Network(NetworkCommand::Create(args)) => networks::create(&session, args).await,
        Command::Network(NetworkCommand::Rm(args)) => networks::rm(&session, args).await,
        Command::Network(NetworkCommand::Inspect(args)) => networks::inspect(&session, args).await,
        Command::Network(NetworkCommand::Prune(args)) => networks::prune(&session, args).await,
        Command::Network(NetworkCommand::Reload(_)) => networks::reload(&session).await,
        Command::Port(args) => networks::port(&session, args).await,
        Command::Shutdown(args) => lifecycle::shutdown(&session, args).await,
        Command::Events(args) => events::events(&session, args).await,
        Command::Info(_) => root::info(&session).await,
        Command::Doctor(_)
        | Command::Keeper(_)
        | Command::Run(_)
        | Command::Create(_)
        | Command::Exec(_)
        | Command::Apply(_)
        | Command::Completion(_) => unreachable!("dispatched above, without a session"),
    }
}

/// `berth completion`
fn print_completion(shell: clap_complete::Shell) -> Result<i32> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::definition(), "berth", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

/// The command's name among `words`, which is not the value of a flag before it; of one that leads to others with theirs.
fn command_of(words: &[String]) -> Option<String> {
    let known = Cli::definition();
    let takes_value = |word: &str| {
        let flag = word.strip_prefix("--").filter(|name| !name.is_empty());
        let found = flag.and_then(|name| known.get_arguments().find(|arg| arg.get_long() == Some(name)));
        found.is_some_and(|arg| arg.get_action().takes_values())
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if let Some(found) = known.find_subcommand(word) {
            let mut found = found.clone();
            // Its own are defined when it is called.
            found.build();
            let below = words.next().filter(|next| found.find_subcommand(next).is_some());
            return Some(below.map_or_else(|| word.clone(), |below| format!("{word} {below}")));
        }
        if takes_value(word) {
            words.next();
        }
    }
    None
}

/// Prints what clap has to say; the exit code.
fn report_usage(error: &clap::Error) -> i32 {
    // One that is not UTF-8 may be what it has to say.
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if words.iter().any(|word| word == "--json") {
        failure::speak_json();
    }
    let command = command_of(&words);
    let passes_codes = command.as_ref().is_some_and(|name| ["run", "create", "exec"].contains(&name.as_str()));
    let status = i32::from(if passes_codes { OWN_STATUS } else { USAGE_STATUS });
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // To standard output, which may be closed already.
            let _ = error.print();
            0
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            status
        }
        kind => {
            if let Some(flag) = command.as_ref().and_then(|command| docker_habits::not_built(error, command)) {
                Failure::unsupported(flag).print();
                return if passes_codes { status } else { 1 };
            }
            if let Some((name, instead)) = docker_habits::command_not_built(error, command.as_deref()) {
                Failure::unsupported(format_args!("docker's {name}")).with_hint(instead).print();
                return 1;
            }
            let (mut message, tip) = usage_message(&error.to_string());
            // What Rust says of a number.
            for said in ["invalid digit found in string", "cannot parse integer from empty string"] {
                message = message.replace(said, "it is not a whole number");
            }
            if kind == ErrorKind::MissingSubcommand {
                "a command is needed".clone_into(&mut message);
            }
            let named = command.map(|name| format!(" {name}")).unwrap_or_default();
            let see = format!("see `berth{named} --help`");
            let hint = tip.map_or(see.clone(), |tip| format!("{tip}; {see}"));
            Failure::usage(message).with_hint(hint).print();
            status
        }
    }
}

/// The message of clap's report in one line, and its tip where that is about what was meant.
fn usage_message(report: &str) -> (String, Option<String>) {
    let mut message = String::new();
    let mut tip = None;
    for line in report.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("tip: ") {
            if text.contains("similar") {
                tip.get_or_insert(text.to_owned());
            }
        } else if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        } else if !line.is_empty() {
            if !message.is_empty() {
                message.push(' ');
            }
            message.push_str(line.strip_prefix("error: ").unwrap_or(line));
        }
    }
    (message, tip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_acceptable_is_a_usage_error_whoever_says_so() {
        let invalid = || Failure::from("../x".parse::<runtime_core::ContainerId>().unwrap_err());
        let gone = || Failure::from(youki_backend::Error::NoSuchContainer { id: "x-rep-0".into() });
        for (words, failure, status) in [
            (&["create", "img"][..], invalid(), 125),
            (&["run", "img"], invalid(), 125),
            (&["kill", "x"], invalid(), 2),
            (&["exec", "x", "y"], Failure::usage("x"), 125),
            (&["create", "img"], Failure::unsupported("x"), 125),
            (&["start", "x"], Failure::unsupported("x"), 1),
            (&["exec", "x", "y"], gone(), 1),
            (&["run", "img"], gone(), 125),
            (&["exec", "x", "y"], gone().with_status(127), 127),
        ] {
            let command = Cli::read(["berth"].iter().chain(words)).unwrap().command;
            assert_eq!(Statuses::of(&command).status(&failure), status, "{words:?} {}", failure.text());
        }
    }

    #[test]
    fn a_flags_value_is_no_command() {
        for (words, command) in [
            (&["run", "ps"][..], Some("run")),
            (&["--root", "run", "ps"], Some("ps")),
            (&["--root=run", "--json", "exec"], Some("exec")),
            (&["--subnet", "exec", "ps"], Some("ps")),
            (&["--bogus", "run"], Some("run")),
            (&["--root", "run"], None),
            (&["network", "ls"], Some("network ls")),
            (&["network", "bogus"], Some("network")),
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(command_of(&words).as_deref(), command, "{words:?}");
        }
    }

    #[test]
    fn usage_is_told_in_one_line() {
        for (words, message) in [
            (&["berth", "run"][..], "the following required arguments were not provided: <IMAGE> [COMMAND]..."),
            (&["berth", "ps", "--bogus"], "unexpected argument '--bogus' found"),
        ] {
            let error = Cli::read(words).unwrap_err();
            assert_eq!(usage_message(&error.to_string()).0, message);
        }
    }
}
