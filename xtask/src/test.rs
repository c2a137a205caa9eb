//! `cargo xtask test`: every check, in the order in which they are cheapest to fail.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Workspace;
use crate::process::{cargo, display, run};
use crate::system::{self, BUILD, RUN, TEST};
use crate::tools::Tool;

const TOOLS: &[Tool] = &[Tool::RustComponents, Tool::DockerRegistry, Tool::Weed, Tool::CargoDeny];

/// Whole workspace and all features in every step, so that one set of features is built and not several.
const EVERYTHING: [&str; 2] = ["--workspace", "--all-features"];

/// Installs what is needed, runs every check until one fails, and prints a summary.
pub(crate) fn run_all(workspace: &Workspace) -> Result<ExitCode> {
    let begin = Instant::now();
    system::require_root("test")?;
    system::provide(workspace, &[BUILD, RUN, TEST].concat(), TOOLS)?;
    let mut done = vec![("install", begin.elapsed(), true)];
    for (name, mut command) in steps(workspace)? {
        println!("\n── {name}: {}", display(&command));
        let begin = Instant::now();
        let passed = run(&mut command)?.success();
        done.push((name, begin.elapsed(), passed));
        if !passed {
            break;
        }
    }
    let passed = done.iter().all(|(_, _, passed)| *passed);
    println!("\nSummary");
    for (name, elapsed, passed) in done {
        println!("  {:<12} {:>7}  {}", name, seconds(elapsed), if passed { "ok" } else { "FAILED" });
    }
    println!(
        "  {:<12} {:>7}  {}",
        "all",
        seconds(begin.elapsed()),
        if passed { "ok" } else { "FAILED, the rest was not run" }
    );
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn steps(workspace: &Workspace) -> Result<Vec<(&'static str, Command)>> {
    let tool = |tool: Tool| tool.find(workspace).with_context(|| format!("{} is missing", tool.name()));
    let in_workspace = |words: &[&str]| {
        let mut command = cargo(workspace);
        command.args(words);
        command
    };

    let mut clippy = in_workspace(&["clippy", "--quiet", "--all-targets"]);
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
        .env("BERTH_TEST_WEED", tool(Tool::Weed)?);

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
