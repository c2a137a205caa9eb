//! That each flag has a row in the table of what flags refuse, and that switches refuse what is neither true nor false.

use std::collections::BTreeSet;

use super::Cli;

#[path = "../../../../tests/integration/bad_flags/table.rs"]
mod table;

/// The definition, with that of all commands' flags.
fn whole() -> clap::Command {
    let mut definition = Cli::definition().disable_help_subcommand(true);
    definition.build();
    definition
}

/// Each command that does something, by its words.
fn leaves(command: &clap::Command, words: &str) -> Vec<(String, clap::Command)> {
    let below: Vec<_> = command
        .get_subcommands()
        .flat_map(|command| leaves(command, format!("{words} {}", command.get_name()).trim_start()))
        .collect();
    if below.is_empty() { vec![(words.to_owned(), command.clone())] } else { below }
}

/// Flags of a command's own, or those of all commands for `berth` itself: which take a value, and which do not.
fn flags(command: &clap::Command, takes_values: bool) -> impl Iterator<Item = String> {
    let of_one = command.get_name() != "berth";
    let own = move |arg: &&clap::Arg| {
        !(arg.is_positional() || arg.is_global_set() && of_one || arg.get_id() == super::DEFAULT_SUBNET)
    };
    let kind = move |arg: &&clap::Arg| arg.get_action().takes_values() == takes_values;
    let names = command.get_arguments().filter(own).filter(kind).filter_map(clap::Arg::get_long);
    names.map(|name| format!("--{name}")).collect::<Vec<_>>().into_iter()
}

#[test]
fn each_flag_that_takes_a_value_has_a_row_and_no_other() {
    let definition = whole();
    let mut there: BTreeSet<(String, String)> =
        flags(&definition, true).chain(["--subnet".into()]).map(|flag| (String::new(), flag)).collect();
    for (words, command) in leaves(&definition, "").into_iter().filter(|(words, _)| words != "create") {
        there.extend(flags(&command, true).map(|flag| (words.clone(), flag)));
    }
    let mut told = BTreeSet::new();
    for (words, rows) in table::ROWS {
        for (flag, value) in *rows {
            match value {
                table::Value::Any(reason) => assert!(reason.split_whitespace().count() > 3, "{words} {flag}: {reason}"),
                table::Value::Bad(text) | table::Value::Refused(text) => assert!(!text.is_empty(), "{words} {flag}"),
                table::Value::BadSetting(text, told) => assert!(!text.is_empty() && !told.is_empty(), "{words} {flag}"),
            }
            assert!(told.insert(((*words).to_owned(), (*flag).to_owned())), "{words} {flag} comes twice");
        }
    }
    assert_eq!(there.difference(&told).collect::<Vec<_>>(), Vec::<&(String, String)>::new(), "without a row");
    assert_eq!(told.difference(&there).collect::<Vec<_>>(), Vec::<&(String, String)>::new(), "no such flags");
}

#[test]
fn create_has_the_flags_of_run() {
    let definition = whole();
    let of = |name| definition.find_subcommand(name).map(|command| flags(command, true).collect::<Vec<_>>());
    assert_eq!(of("create"), of("run"));
}

#[test]
fn each_switch_refuses_what_is_neither_true_nor_false_by_its_name() {
    let definition = whole();
    let mut tried = 0;
    let global: Vec<String> = flags(&definition, false).collect();
    for (words, command) in leaves(&definition, "") {
        for switch in flags(&command, false).chain(global.clone()).filter(|switch| switch != "--help") {
            let given = format!("{switch}=perhaps");
            let line = ["berth"].into_iter().chain(words.split_whitespace()).chain([given.as_str()]);
            let error = Cli::read(line).expect_err(&given).to_string();
            assert!(error.contains(&switch), "{words} {given}: {error}");
            tried += 1;
        }
    }
    assert!(tried > 80, "only {tried} switches were found");
}
