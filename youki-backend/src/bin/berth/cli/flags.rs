//! Flags of one command, with what all commands share; clap defines them when the command is called, and not before.

use std::ops::Deref;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::DEFAULT_SUBNET;

/// The flags `T` of a command, with the rules that hold for every command's.
#[derive(Debug)]
pub struct Flags<T>(T);

/// A command without flags of its own.
#[derive(Debug, Args)]
pub struct NoArgs {}

impl<T> Deref for Flags<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Args> Args for Flags<T> {
    fn augment_args(command: Command) -> Command {
        with_subnet(with_any_value(T::augment_args(command)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        with_subnet(with_any_value(T::augment_args_for_update(command)))
    }
}

impl<T: FromArgMatches> FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

/// What follows a flag that has a value is its value, whatever it looks like, as docker has it: `-m -5` is a bad size and
/// not an unknown flag.
pub fn with_any_value(command: Command) -> Command {
    command.mut_args(|arg| {
        let has_value = !arg.is_positional() && arg.get_action().takes_values();
        if has_value { arg.allow_hyphen_values(true) } else { arg }
    })
}

/// Adds the flag of the default network's addresses. It is global but for where it means another network's, which clap's
/// own global flags cannot be.
pub fn with_subnet(command: Command) -> Command {
    if command.get_arguments().any(|arg| arg.get_long() == Some("subnet")) {
        return command;
    }
    let flag = Arg::new(DEFAULT_SUBNET)
        .long("subnet")
        .value_name("CIDR")
        .help("Addresses of the default network [env: BERTH_SUBNET] [default: 10.97.0.0/16]")
        .display_order(900);
    command.arg(flag.allow_hyphen_values(true))
}
