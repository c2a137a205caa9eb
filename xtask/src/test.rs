//! `cargo xtask test`: every check, in the order in which they are cheapest to fail.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Workspace;
use crate::process::{cargo, display, run};
use crate::system::{self, BUILD, RUN, TEST};
use crate::tools::Tool;
use crate::vm::{self, SLOWNESS_VARIABLE, Scope, TOPICS_VARIABLE};

const TOOLS: &[Tool] = &[Tool::RustComponents, Tool::DockerRegistry, Tool::Weed, Tool::CargoDeny];

/// Whole workspace and all features in every step, so that one set of features is built and not several.
const EVERYTHING: [&str; 2] = ["--workspace", "--all-features"];

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// It cannot be run on this host, which was said.
    NotRun,
}

impl Outcome {
    fn of(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::NotRun => "NOT RUN, the reason is above",
        }
    }
}

/// Installs what is needed, runs every check until one fails, and prints a summary.
pub(crate) fn run_all(workspace: &Workspace) -> Result<ExitCode> {
    let begin = Instant::now();
    system::require_root("test")?;
    system::provide(workspace, &[BUILD, RUN, TEST].concat(), TOOLS)?;
    let mut done = vec![("install", begin.elapsed(), Outcome::Passed)];
    for (name, mut command) in steps(workspace)? {
        println!("\n── {name}: {}", display(&command));
        let begin = Instant::now();
        let outcome = Outcome::of(run(&mut command)?.success());
        done.push((name, begin.elapsed(), outcome));
        if outcome == Outcome::Failed {
            break;
        }
    }
    if done.iter().all(|(_, _, outcome)| *outcome == Outcome::Passed) {
        println!("\n── cgroup v2: a part of the suite in a machine (all of it: cargo xtask vm)");
        let begin = Instant::now();
        let outcome = on_cgroup_v2(workspace);
        done.push(("cgroup v2", begin.elapsed(), outcome));
    }
    let passed = done.iter().all(|(_, _, outcome)| *outcome != Outcome::Failed);
    println!("\nSummary");
    for (name, elapsed, outcome) in done {
        println!("  {:<12} {:>7}  {}", name, seconds(elapsed), outcome.word());
    }
    println!(
        "  {:<12} {:>7}  {}",
        "all",
        seconds(begin.elapsed()),
        if passed { "ok" } else { "FAILED, the rest was not run" }
    );
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where there can be no machine, that is no failure of what is tested; but nobody shall take it for a pass.
fn on_cgroup_v2(workspace: &Workspace) -> Outcome {
    if let Err(error) = vm::provide(workspace) {
        println!("NOT RUN: nothing was tested on cgroup v2, since no machine can be had here: {error:#}");
        return Outcome::NotRun;
    }
    match vm::run_suite(workspace, &Scope::Short) {
        Ok(passed) => Outcome::of(passed),
        Err(error) => {
            println!("{error:#}");
            Outcome::Failed
        }
    }
}

fn steps(workspace: &Workspace) -> Result<Vec<(&'static str, Command)>> {
    let tool = |tool: Tool| tool.find(workspace).with_context(|| format!("{} is missing", tool.name()));
    let in_workspace = |words: &[&str]| {
        let mut command = cargo(workspace);
        command.args(words);
        command
    };

    // All targets but those that `cargo test` leaves out, as it does the root-run suite.
    let mut clippy = in_workspace(&["clippy", "--quiet", "--all-targets", "--test", "integration"]);
    clippy.args(EVERYTHING).args(["--", "-D", "warnings"]);

    let mut docs = in_workspace(&["doc", "--quiet", "--no-deps"]);
    docs.args(EVERYTHING).env("RUSTDOCFLAGS", "-D warnings");

    let mut deny = Command::new(tool(Tool::CargoDeny)?);
    deny.current_dir(&workspace.root).args(["--all-features", "check", "licenses", "bans", "sources"]);

    let mut tests = in_workspace(&["test"]);
    tests.args(EVERYTHING);

    let mut integration = in_workspace(&["test", "--test", "integration"]);
    integration
        .args(EVERYTHING)
        .env("BERTH_TEST_DOCKER_REGISTRY", tool(Tool::DockerRegistry)?)
        .env("BERTH_TEST_WEED", tool(Tool::Weed)?)
        // Who has looked at a part of it before still runs all of it here.
        .env_remove(TOPICS_VARIABLE)
        .env_remove(SLOWNESS_VARIABLE);

    Ok(vec![
        ("format", in_workspace(&["fmt", "--all", "--check"])),
        ("lints", clippy),
        ("docs", docs),
        ("licences", deny),
        ("tests", tests),
        ("integration", integration),
    ])
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}
