//! The conformance suite: whether a backend keeps the promises of the [`Runtime`](crate::Runtime) trait.
//!
//! Describe the backend by implementing [`Backend`], run [`run`], look at the [`Report`]:
//!
//! ```
//! use std::sync::Arc;
//! use runtime_core::conformance::{self, Backend, Options};
//! use runtime_core::memory::{Behaviour, Launch, MemoryImage, MemoryRuntime};
//! use runtime_core::Runtime;
//!
//! struct Mine(Arc<MemoryRuntime>);
//!
//! impl Backend for Mine {
//!     fn name(&self) -> String { "mine".into() }
//!     fn runtime(&self) -> Arc<dyn Runtime> { self.0.clone() }
//!     fn image(&self) -> String { "busybox:latest".into() }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let runtime = MemoryRuntime::new();
//! runtime.add_image("busybox:latest", MemoryImage::new(|_| Launch::Runs(Behaviour::exits(0))));
//! let options = Options { only: Some("wait.after_exit".into()), ..Options::default() };
//! let report = conformance::run(Arc::new(Mine(Arc::new(runtime))), &options).await;
//! assert!(!report.is_ok(), "that image has no shell: every program exits with 0");
//! println!("{report}");
//! # }
//! ```
//!
//! `Display` of the report is for people: a line for each check, with the reason beneath where it did not pass, those
//! that failed last, and the sum at the end. Its JSON is for programs; the names of checks are stable, and
//! the workspace's SPECIFICATION.md says which sentence of the contract each of
//! them asks:
//!
//! ```
//! # use std::time::Duration;
//! # use runtime_core::conformance::{CheckReport, Outcome, Report};
//! # let check = CheckReport {
//! #     name: "wait.after_exit".into(),
//! #     promise: "exited earlier: at once, and again".into(),
//! #     outcome: Outcome::Failed("the exit code is 0, not 42".into()),
//! #     duration: Duration::from_millis(12),
//! # };
//! # let report = Report { backend: "mine".into(), checks: vec![check], duration: Duration::from_millis(12) };
//! assert_eq!(report.to_string(), "\
//! FAIL wait.after_exit            0.012 s  exited earlier: at once, and again
//!      the exit code is 0, not 42
//! mine: 0 passed, 1 failed, 0 unsupported in 0.0 s");
//! let json = serde_json::to_value(&report).unwrap();
//! assert_eq!(json["checks"][0]["outcome"], "failed"); // or "passed", or "unsupported"
//! assert_eq!(json["checks"][0]["reason"], "the exit code is 0, not 42");
//! let back: Report = serde_json::from_value(json).unwrap();
//! assert_eq!(back.failed().next().unwrap().name, "wait.after_exit");
//! ```
//!
//! Berth's own run is `youki-backend/examples/conformance.rs`.
//!
//! Each check uses containers and image names of its own (they begin with [`Options::prefix`]), removes them, and runs
//! in a task of its own with a time limit: a check that panics or hangs has failed, and the others go on. The suite
//! touches no container or image that it did not make, and prunes only where [`Backend::may_prune`] says so.
//!
//! Where the trait's own default is Unsupported, or a spec asks for something that not every backend has,
//! [`AgentError::Unsupported`](crate::AgentError::Unsupported) is an answer, and reported as such; anywhere else it is a
//! failure.
//!
//! | file | promises about |
//! |---|---|
//! | `ids` | names of containers, unknown ones |
//! | `lifecycle` | create, start, state, remove |
//! | `outcomes` | exit codes, signals, waiting |
//! | `stop`, `signals` | stopping, and kill by signal |
//! | `logs` | what a container wrote |
//! | `exec`, `exec_stream` | further processes |
//! | `records` | the log as records, in part or followed |
//! | `exec_with` | further processes with options of their own |
//! | `process` | environment, user, pid |
//! | `stats`, `detailed`, `snapshots` | what a container uses, and all of them, as it goes |
//! | `settings` | resource limits of processes, capabilities and other fields of the spec |
//! | `limits` | CPU, memory, swap, shared memory, open files |
//! | `isolation` | filter, privileges, devices |
//! | `terminal` | terminal, standard input, the tiny init |
//! | `network`, `names` | addresses, networks, names, published ports |
//! | `storage`, `volumes`, `histories` | mounts, named volumes and their history |
//! | `command`, `configured` | Docker's rules for ENTRYPOINT and CMD, and the other settings of an image |
//! | `images`, `pull`, `prune` | list, tag, remove; pulls from a registry that the suite serves on the loopback |
//! | `progress`, `archives`, `layers` | pulls as they go; inspect, save, load, push; what becomes of layers |
//! | `supervision`, `health` | restart policies, health checks |
//! | `cancel`, `cancel_beyond` | dropped futures |
//! | `errors` | what an error tells |
//! | `beyond`, `events` | pause, top, update; what happened |
//! | `attached`, `tars` | the streams of a running container; files in and out |
//! | `fields` | fields of the spec that a backend may not have |
//! | `reopen` | what a restart of the agent must not lose |

mod archives;
mod attached;
mod backend;
mod beyond;
mod cancel;
mod cancel_beyond;
mod case;
mod command;
mod configured;
mod detailed;
mod errors;
mod events;
mod exec;
mod exec_stream;
mod exec_with;
mod fields;
mod health;
mod histories;
mod ids;
mod images;
mod isolation;
mod layers;
mod lifecycle;
mod limits;
mod logs;
mod names;
mod network;
mod outcomes;
mod process;
mod progress;
mod prune;
mod pull;
mod records;
mod registry;
mod reopen;
mod report;
mod settings;
mod signals;
mod snapshots;
mod stats;
mod stop;
mod storage;
mod supervision;
mod tar;
mod tars;
mod terminal;
#[cfg(test)]
mod tests;
mod volumes;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::task::JoinSet;

pub use backend::{Ability, Backend, ConfiguredImage, EchoImage, User, Workload};
use case::{Case, Stop, Verdict};
pub use report::{CheckReport, Outcome, Report};

/// How to run the suite.
#[derive(Debug, Clone)]
pub struct Options {
    /// Begins the name of every container and image that the suite makes; a valid service name, different for two runs
    /// at once on one root.
    pub prefix: String,
    /// Time that one check may take, and again to clean up after it.
    pub check_timeout: Duration,
    /// Time in which a call that does not wait for anything must be done, and what happens by itself have happened. To be
    /// raised where a machine is very slow.
    pub patience: Duration,
    /// Checks that run at once. Those that reopen the backend always run alone, at the end.
    pub concurrency: usize,
    /// Run only checks whose name contains this.
    pub only: Option<String>,
}

impl Default for Options {
    /// Prefix `conformance`, 60 s a check, a patience of 10 s, 4 at once, all of them.
    fn default() -> Self {
        Self {
            prefix: "conformance".to_owned(),
            check_timeout: Duration::from_secs(60),
            patience: Duration::from_secs(10),
            concurrency: 4,
            only: None,
        }
    }
}

/// Runs the suite on `backend`, in a tokio runtime with time enabled (several threads, if the backend may block one).
///
/// Returns when every check has been run and cleaned up after. Dropping the future aborts the checks in flight and
/// leaves their containers.
pub async fn run(backend: Arc<dyn Backend>, options: &Options) -> Report {
    let begun = Instant::now();
    let wanted = |check: &Check| options.only.as_ref().is_none_or(|part| check.name.contains(part.as_str()));
    let (alone, together): (Vec<_>, Vec<_>) = all_checks().into_iter().filter(wanted).partition(|check| check.alone);
    let run = |check: Check| run_check(backend.clone(), check, options);
    let numbered =
        together.into_iter().enumerate().map(|(number, check)| run(check).map(move |report| (number, report)));
    let mut reports: Vec<(usize, CheckReport)> =
        futures_util::stream::iter(numbered).buffer_unordered(options.concurrency.max(1)).collect().await;
    reports.sort_by_key(|(number, _)| *number);
    let mut checks: Vec<CheckReport> = reports.into_iter().map(|(_, report)| report).collect();
    for check in alone {
        checks.push(run(check).await);
    }
    Report { backend: backend.name(), checks, duration: begun.elapsed() }
}

/// A promise, and how it is checked.
struct Check {
    name: &'static str,
    promise: &'static str,
    run: fn(Case) -> BoxFuture<'static, Verdict>,
    /// It changes the backend under the others' feet.
    alone: bool,
}

/// `check!("name", "promise", function)`.
macro_rules! check {
    ($name:literal, $promise:literal, $function:path) => {
        $crate::conformance::Check {
            name: $name,
            promise: $promise,
            run: |case| Box::pin($function(case)),
            alone: false,
        }
    };
}
use check;

fn all_checks() -> Vec<Check> {
    let mut checks = Vec::new();
    checks.extend(ids::checks());
    checks.extend(lifecycle::checks());
    checks.extend(outcomes::checks());
    checks.extend(stop::checks());
    checks.extend(signals::checks());
    checks.extend(logs::checks());
    checks.extend(records::checks());
    checks.extend(exec::checks());
    checks.extend(exec_stream::checks());
    checks.extend(exec_with::checks());
    checks.extend(process::checks());
    checks.extend(stats::checks());
    checks.extend(detailed::checks());
    checks.extend(settings::checks());
    checks.extend(limits::checks());
    checks.extend(isolation::checks());
    checks.extend(terminal::checks());
    checks.extend(network::checks());
    checks.extend(names::checks());
    checks.extend(storage::checks());
    checks.extend(volumes::checks());
    checks.extend(command::checks());
    checks.extend(configured::checks());
    checks.extend(images::checks());
    checks.extend(pull::checks());
    checks.extend(supervision::checks());
    checks.extend(health::checks());
    checks.extend(cancel::checks());
    checks.extend(errors::checks());
    checks.extend(beyond::checks());
    checks.extend(events::checks());
    checks.extend(attached::checks());
    checks.extend(tars::checks());
    checks.extend(snapshots::checks());
    checks.extend(progress::checks());
    checks.extend(archives::checks());
    checks.extend(layers::checks());
    checks.extend(fields::checks());
    checks.extend(cancel_beyond::checks());
    checks.extend(histories::checks());
    checks.extend(prune::checks());
    checks.extend(reopen::checks());
    checks
}

async fn run_check(backend: Arc<dyn Backend>, check: Check, options: &Options) -> CheckReport {
    let begun = Instant::now();
    let case = Case::new(backend, format!("{}-{}", options.prefix, check.name.replace('_', "-")), options.patience);
    let verdict = in_task(options.check_timeout, (check.run)(case.clone())).await.and_then(|verdict| verdict);
    let cleaned = in_task(options.check_timeout, async move { case.clean_up().await }).await;
    let left = match cleaned {
        Ok(errors) => errors.join("; "),
        Err(Stop::Failed(reason) | Stop::Unsupported(reason)) => reason,
    };
    let outcome = match (verdict, left.is_empty()) {
        (Ok(()), true) => Outcome::Passed,
        (Err(Stop::Unsupported(reason)), true) => Outcome::Unsupported(reason),
        (Err(Stop::Failed(reason)), true) => Outcome::Failed(reason),
        (Err(Stop::Failed(reason)), false) => Outcome::Failed(format!("{reason}; cleaning up: {left}")),
        (_, false) => Outcome::Failed(format!("cleaning up: {left}")),
    };
    CheckReport { name: check.name.to_owned(), promise: check.promise.to_owned(), outcome, duration: begun.elapsed() }
}

/// Runs `future` in a task of its own, so that its panic or hang is an answer and not ours.
async fn in_task<T: Send + 'static>(limit: Duration, future: impl Future<Output = T> + Send + 'static) -> Verdict<T> {
    let mut task = JoinSet::new(); // aborts the task when dropped
    task.spawn(future);
    match tokio::time::timeout(limit, task.join_next()).await {
        Ok(Some(Ok(value))) => Ok(value),
        Ok(Some(Err(error))) if error.is_panic() => {
            Err(Stop::Failed(format!("panicked: {}", panic_text(error.into_panic().as_ref()))))
        }
        Ok(_) => Err(Stop::Failed("was cancelled".to_owned())),
        Err(_) => Err(Stop::Failed(format!("not done within {limit:?}"))),
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
