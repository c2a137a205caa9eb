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
//! Each check uses containers and image names of its own (they begin with [`Options::prefix`]), removes them, and runs
//! in a task of its own with a time limit: a check that panics or hangs has failed, and the others go on. The suite
//! prunes nothing and touches no container or image that it did not make.
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
//! | `process` | environment, user, pid, stats |
//! | `settings` | limits, capabilities and other fields of the spec |
//! | `network` | addresses, networks and published ports |
//! | `storage` | mounts |
//! | `command` | Docker's rules for ENTRYPOINT and CMD |
//! | `images` | pull, list, tag, remove |
//! | `supervision` | restart policies, health checks |
//! | `beyond` | pause, top, events, exec and logs with options, update |
//! | `reopen` | what a restart of the agent must not lose |

mod backend;
mod beyond;
mod case;
mod command;
mod exec;
mod exec_stream;
mod ids;
mod images;
mod lifecycle;
mod logs;
mod network;
mod outcomes;
mod process;
mod reopen;
mod report;
mod settings;
mod signals;
mod stop;
mod storage;
mod supervision;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;

pub use backend::{Ability, Backend, EchoImage, User, Workload};
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
    let mut checks: Vec<CheckReport> =
        futures_util::stream::iter(together).map(run).buffered(options.concurrency.max(1)).collect().await;
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
    checks.extend(exec::checks());
    checks.extend(exec_stream::checks());
    checks.extend(process::checks());
    checks.extend(settings::checks());
    checks.extend(network::checks());
    checks.extend(storage::checks());
    checks.extend(command::checks());
    checks.extend(images::checks());
    checks.extend(supervision::checks());
    checks.extend(beyond::checks());
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
