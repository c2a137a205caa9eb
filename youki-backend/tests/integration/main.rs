//! The root-run integration suite: what `contract.md` promises, seen through the public trait alone.
//!
//! It runs on a root, run directory, cgroup parent and bridge of its own, against CNCF Distribution (Debian's
//! `docker-registry`) and SeaweedFS, both started here. Tests run in parallel; when all are over, a last one checks
//! that nothing is left on the machine. Run it with `cargo xtask test`, or alone, as root:
//!
//! ```text
//! BERTH_TEST_WEED=/path/to/weed cargo test --workspace --all-features --test integration -- [FILTER]
//! ```
// A program of tests, not a library; clippy knows tests by `#[test]`, which this harness does without.
#![allow(missing_docs, missing_debug_implementations, clippy::unwrap_used)]

mod support;

mod agent_killed;
mod bad_flags;
mod bad_specs;
mod beyond;
mod builds_that_hang;
mod cgroup_v2;
mod command_line;
mod commands;
mod conformance;
mod connections;
mod copying;
mod credentials;
mod docker_run_lines;
mod error_codes;
mod errors;
mod events;
mod exec;
mod full_disk;
mod health;
mod images;
mod images_dropped;
mod images_loaded;
mod isolation;
mod json_names;
mod keeper;
mod lifecycle;
mod limits;
mod listings;
mod logs;
mod logs_non_blocking;
mod many;
mod mounts;
mod network_commands;
mod networks;
mod networks_cut_off;
mod networks_held;
mod networks_host;
mod networks_joined;
mod networks_named;
mod outcomes;
mod own_streams;
mod pausing;
mod pending;
mod processes;
mod published_ports;
mod questions;
mod removal;
mod removed_at_end;
mod restarts;
mod restarts_killed;
mod roots;
mod run_given_up;
mod shown;
mod shutdown;
mod supervisor_killed;
mod tiny_init;
mod unit_restarted;
mod users;
mod volumes;
mod volumes_history;
mod volumes_kept;
mod volumes_live;
mod volumes_moved;
mod volumes_retention;
mod volumes_s3_away;
mod volumes_trouble;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use crate::support::{Suite, agent, case};

/// Tests mostly wait, so more of them run at once than there are CPUs.
const PARALLEL_TESTS: usize = 6;
/// Most tests that are tried again, each alone: what fails for the crowd's sake does so here and there.
const MOST_TRIED_AGAIN: usize = 3;
/// Names the topics that are run, parted by commas; unset, all of them are.
const TOPICS_VARIABLE: &str = "BERTH_TEST_TOPICS";

fn main() -> ExitCode {
    support::set_environment();
    if agent::is_asked_for() {
        return agent::serve();
    }
    let mut args = Arguments::from_args();
    args.test_threads.get_or_insert(PARALLEL_TESTS);
    if args.list {
        let listed = trials().into_iter().chain([nothing_is_left()]).collect();
        return libtest_mimic::run(&args, listed).exit_code();
    }
    if let Err(reason) = Suite::start() {
        eprintln!("integration: {reason:#}");
        return ExitCode::FAILURE;
    }
    let tests = libtest_mimic::run(&args, trials());
    // Only now, and whatever was filtered: this one judges all that ran before it.
    let ran = tests.num_passed + tests.num_failed + tests.num_ignored;
    if ran == 0 {
        eprintln!("integration: there is no such test");
    }
    let alone = Arguments { filter: None, skip: Vec::new(), exact: false, test_threads: Some(1), ..args };
    let is_failure = tests.has_failed() && !are_accidents(tests.num_failed, &alone);
    let leftovers = libtest_mimic::run(&alone, vec![nothing_is_left()]);
    Suite::end();
    if tests.has_failed() && !is_failure {
        println!("FLAKY: failed among the others, and passed alone: {}", case::failed().join(", "));
    }
    if ran == 0 || is_failure || leftovers.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Whether the tests that failed, so many, are few and pass when they are tried again: what is broken fails alone as well.
/// That they failed is told, and is a fault to be looked for all the same.
fn are_accidents(number: u64, alone: &Arguments) -> bool {
    let failed = case::failed();
    // Others failed before they began.
    if failed.len() as u64 != number || failed.len() > MOST_TRIED_AGAIN {
        return false;
    }
    println!("Tried again, alone: {}", failed.join(", "));
    let again = trials().into_iter().filter(|trial| failed.iter().any(|name| name == trial.name()));
    let again = libtest_mimic::run(alone, again.collect());
    again.num_passed == number
}

fn trials() -> Vec<Trial> {
    let all = [
        lifecycle::tests(),
        outcomes::tests(),
        own_streams::tests(),
        pausing::tests(),
        pending::tests(),
        limits::tests(),
        users::tests(),
        commands::tests(),
        conformance::tests(),
        mounts::tests(),
        isolation::tests(),
        logs::tests(),
        logs_non_blocking::tests(),
        exec::tests(),
        networks::tests(),
        networks_named::tests(),
        networks_joined::tests(),
        networks_held::tests(),
        networks_host::tests(),
        networks_cut_off::tests(),
        network_commands::tests(),
        images::tests(),
        images_dropped::tests(),
        images_loaded::tests(),
        credentials::tests(),
        errors::tests(),
        error_codes::tests(),
        volumes::tests(),
        volumes_history::tests(),
        volumes_kept::tests(),
        volumes_live::tests(),
        volumes_moved::tests(),
        volumes_retention::tests(),
        volumes_trouble::tests(),
        volumes_s3_away::tests(),
        agent_killed::tests(),
        supervisor_killed::tests(),
        unit_restarted::tests(),
        command_line::tests(),
        events::tests(),
        listings::tests(),
        json_names::tests(),
        shown::tests(),
        questions::tests(),
        run_given_up::tests(),
        shutdown::tests(),
        bad_flags::tests(),
        bad_specs::tests(),
        beyond::tests(),
        builds_that_hang::tests(),
        docker_run_lines::tests(),
        full_disk::tests(),
        removal::tests(),
        removed_at_end::tests(),
        restarts::tests(),
        restarts_killed::tests(),
        roots::tests(),
        keeper::tests(),
        health::tests(),
        connections::tests(),
        copying::tests(),
        tiny_init::tests(),
        cgroup_v2::only_there(cgroup_v2::tests()),
        many::tests(),
        processes::tests(),
        published_ports::tests(),
    ];
    only_those_asked_for(all.into_iter().flatten().collect())
}

fn topic(name: &str) -> &str {
    name.split("::").next().unwrap_or(name)
}

/// A topic that is none would pass as a suite without tests.
fn only_those_asked_for(trials: Vec<Trial>) -> Vec<Trial> {
    let Ok(asked) = std::env::var(TOPICS_VARIABLE) else { return trials };
    let asked: Vec<&str> = asked.split(',').collect();
    for one in &asked {
        assert!(trials.iter().any(|trial| topic(trial.name()) == *one), "{TOPICS_VARIABLE}: there is no topic {one:?}");
    }
    trials.into_iter().filter(|trial| asked.contains(&topic(trial.name()))).collect()
}

fn nothing_is_left() -> Trial {
    Trial::test("no_mount_cgroup_netns_link_nft_rule_process_or_file_is_left", || {
        support::leftovers::check(Suite::get()).map_err(libtest_mimic::Failed::from)
    })
}
