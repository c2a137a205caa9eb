//! The suite itself: it passes a backend that keeps the contract, and finds the one promise that another breaks.

mod faulty;
mod table;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Ability, Backend, EchoImage, Options, Report, Workload, run};
use crate::memory::{Behaviour, Invocation, Launch, MemoryImage, MemoryRuntime, Reaction};
use crate::{LogStream, Runtime};
use faulty::{Fault, Faulty};

const IMAGE: &str = "conformance-app:1";
const SIGNALS: [&str; 5] = ["TERM", "INT", "HUP", "USR1", "USR2"];

/// The in-memory backend as the suite sees it: no shell, but an image that does the simple workloads.
struct InMemory {
    runtime: Arc<dyn Runtime>,
    reopened: Option<Arc<dyn Runtime>>,
}

#[async_trait::async_trait]
impl Backend for InMemory {
    fn name(&self) -> String {
        "in-memory".to_owned()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    fn image(&self) -> String {
        IMAGE.to_owned()
    }

    fn command(&self, workload: &Workload) -> Option<Vec<String>> {
        let words: Vec<String> = match workload {
            Workload::Write { chunks, code } => {
                let chunks = serde_json::to_string(chunks).unwrap();
                vec!["write".into(), code.to_string(), chunks]
            }
            Workload::ExitOn { signal, code } => vec!["exit-on".into(), (*signal).into(), code.to_string()],
            Workload::Ignore { signal } => vec!["ignore".into(), (*signal).into()],
            Workload::ReportSignals => vec!["report".into()],
            Workload::NotFound => vec!["nowhere".into()],
            Workload::NotExecutable => vec!["directory".into()],
            Workload::Script(_) => return None,
        };
        Some(words)
    }

    fn lacks(&self) -> &[Ability] {
        &[Ability::Pid, Ability::Stats, Ability::Network]
    }

    fn echo_images(&self) -> Vec<EchoImage> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
        let image = |name: &str, entrypoint: &[&str], cmd: &[&str]| EchoImage {
            reference: name.to_owned(),
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            program: "echo".to_owned(),
        };
        vec![
            image("both:1", &["echo", "entry"], &["cmd"]),
            image("cmd:1", &[], &["echo", "cmd"]),
            image("entrypoint:1", &["echo", "entry"], &[]),
            image("neither:1", &[], &[]),
        ]
    }

    fn may_prune(&self) -> bool {
        true
    }

    async fn reopen(&self) -> crate::Result<Option<Arc<dyn Runtime>>> {
        Ok(self.reopened.clone())
    }
}

fn program(invocation: &Invocation) -> Launch {
    let words: Vec<&str> = invocation.command.iter().map(String::as_str).collect();
    let ready = Behaviour::runs().writes(LogStream::Stdout, "ready\n");
    Launch::Runs(match words.as_slice() {
        ["write", code, chunks] => {
            let chunks: Vec<(LogStream, Vec<u8>)> = serde_json::from_str(chunks).unwrap();
            let exits = Behaviour::exits(code.parse().unwrap());
            chunks.into_iter().fold(exits, |behaviour, (stream, bytes)| behaviour.writes(stream, bytes))
        }
        ["exit-on", signal, code] => ready.on(signal, Reaction::Exit(code.parse().unwrap())),
        ["ignore", signal] => ready.on(signal, Reaction::Ignore),
        ["report"] => SIGNALS.iter().fold(ready, |behaviour, signal| {
            behaviour.on(signal, Reaction::Write(LogStream::Stdout, format!("got {signal}\n").into_bytes()))
        }),
        ["echo", words @ ..] => Behaviour::exits(0).writes(LogStream::Stdout, words.join(" ") + "\n"),
        ["directory", ..] => return Launch::NotExecutable,
        _ => return Launch::NotFound,
    })
}

fn in_memory() -> MemoryRuntime {
    let runtime = MemoryRuntime::new();
    runtime.add_image(IMAGE, MemoryImage::new(program));
    runtime.add_image("both:1", MemoryImage::new(program).entrypoint(&["echo", "entry"]).cmd(&["cmd"]));
    runtime.add_image("cmd:1", MemoryImage::new(program).cmd(&["echo", "cmd"]));
    runtime.add_image("entrypoint:1", MemoryImage::new(program).entrypoint(&["echo", "entry"]));
    runtime.add_image("neither:1", MemoryImage::new(program));
    runtime
}

/// What a backend without processes, networks and a registry can be asked, and keeps. All else is Unsupported to it,
/// and must not pass: it would be made up.
const KEPT_IN_MEMORY: &str = "
    attach.ended attach.output
    cancel.create cancel.images cancel.kill cancel.remove cancel.start
    command.matrix
    create.no_image create.race create.twice create.waits
    errors.names errors.text
    exec.codes exec.empty exec.leaves_init exec.not_executable exec.not_found exec.not_running exec.not_utf8
    exec.output exec.parallel
    exec_stream.exit_last exec_stream.fails exec_stream.live exec_stream.stop
    health.none
    ids.hostile ids.invalid ids.unknown
    images.list images.pull_never images.pull_present images.remove images.remove_used images.tag
    images.tag_invalid images.unknown
    kill.handled kill.invalid kill.kill kill.names
    list.containers
    logs.after_exit logs.no_newline logs.not_utf8 logs.source logs.streams logs.tail logs.timestamps
    network.none
    outcome.exit_codes outcome.finished_at outcome.inspect outcome.killed
    prune.unused
    remove.frees_id remove.running
    settings.agents_fields settings.labels settings.stop_signal_number
    start.again start.failed_again start.not_executable start.not_found start.twice
    state.transitions
    stop.at_once stop.dropped stop.handled stop.idempotent stop.ignored stop.outcome stop.signal stop.stopping
    stop.together
    volumes.sync_without
    wait.after_exit wait.attempts wait.before_start wait.blocks wait.fast wait.many
";

async fn judge(fault: Fault, only: &str) -> Report {
    let runtime: Arc<dyn Runtime> = Arc::new(Faulty::new(in_memory(), fault));
    let options = Options {
        concurrency: 16,
        check_timeout: Duration::from_secs(5),
        patience: Duration::from_secs(2),
        only: Some(only.to_owned()),
        ..Options::default()
    };
    run(Arc::new(InMemory { runtime, reopened: None }), &options).await
}

fn failed(report: &Report) -> BTreeSet<&str> {
    report.failed().map(|check| check.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_keeps_the_contract_fails_nothing_and_leaves_nothing() {
    let runtime = in_memory();
    let backend = InMemory { runtime: Arc::new(runtime.clone()), reopened: None };
    let report = run(Arc::new(backend), &Options { concurrency: 16, ..Options::default() }).await;
    assert!(report.is_ok(), "{report}");
    let passed: BTreeSet<&str> = report.passed().map(|check| check.name.as_str()).collect();
    assert_eq!(passed, KEPT_IN_MEMORY.split_whitespace().collect());
    assert_eq!(runtime.list_containers().await.unwrap(), []);
    assert_eq!(runtime.list_images().await.unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_broken_promise_is_found_by_its_check() {
    let faults: [(Fault, &[&str]); 45] = [
        (
            Fault::InventsExitCodeZero,
            &["outcome.exit_codes", "wait.after_exit", "start.not_found", "stop.handled", "wait.fast", "wait.many"],
        ),
        (Fault::WaitReturnsEarly, &["wait.before_start", "wait.blocks", "wait.attempts"]),
        (Fault::NamesNoSignal, &["outcome.killed", "stop.outcome"]),
        (Fault::ReadsLogTimesAtRead, &["logs.timestamps"]),
        (Fault::SwapsLogStreams, &["logs.streams"]),
        (Fault::CountsTailFromTheStart, &["logs.tail"]),
        (Fault::ReplacesOnCreate, &["create.twice", "create.race"]),
        (Fault::StopsUnknownContainers, &["ids.unknown"]),
        (Fault::KillsWithoutPatience, &["stop.handled", "stop.ignored"]),
        (Fault::InventsStats, &["stats.running"]),
        (Fault::LeavesContainers, &["remove.running"]),
        (Fault::ExecAlwaysSucceeds, &["exec.codes", "exec.not_found", "exec.not_executable", "exec.not_running"]),
        (Fault::TakesAnySignal, &["kill.invalid"]),
        (Fault::RemovesUsedImages, &["images.remove_used"]),
        (Fault::ForgetsFailedStarts, &["start.not_found", "start.not_executable"]),
        (Fault::SaysExitTwice, &["exec_stream.exit_last"]),
        (Fault::CreatesByHalf, &["cancel.create"]),
        (Fault::RemovesByHalf, &["cancel.remove"]),
        (Fault::StartsWhatRuns, &["cancel.start", "start.twice"]),
        (Fault::StartsBetterTheSecondTime, &["start.failed_again"]),
        (Fault::ForgetsLabels, &["settings.labels"]),
        (Fault::ActsOnSchedules, &["settings.agents_fields"]),
        (Fault::HasNothingToSync, &["volumes.sync_without"]),
        (Fault::InventsHealth, &["health.none"]),
        (Fault::NamesNothing, &["errors.names"]),
        (Fault::SaysNothing, &["errors.text"]),
        (Fault::HasSomeCodes, &["errors.code"]),
        (Fault::PrunesNothing, &["prune.unused"]),
        (Fault::PrunesWhatIsUsed, &["prune.unused"]),
        (Fault::CreatesWithoutImages, &["create.no_image"]),
        (Fault::StartsWhenCreated, &["create.waits"]),
        (Fault::TakesAnyName, &["ids.invalid"]),
        (Fault::RunsNothingInExec, &["exec.empty"]),
        (Fault::PullsInName, &["images.pull_never"]),
        (Fault::NeverPulls, &["images.pull_present"]),
        (Fault::RemovesNoImages, &["images.remove", "images.unknown"]),
        (Fault::TagsNothing, &["images.tag", "cancel.images"]),
        (Fault::TagsAnything, &["images.tag_invalid"]),
        (Fault::KillsWithKill, &["kill.names", "kill.handled", "cancel.kill"]),
        (Fault::KillsNothing, &["kill.kill"]),
        (Fault::ListsNothing, &["list.containers"]),
        (Fault::AttachesLate, &["attach.output"]),
        (Fault::AttachesToWhatEnded, &["attach.ended"]),
        (Fault::FollowsPaths, &["ids.hostile"]),
        (Fault::StopsNothing, &["stop.at_once", "stop.dropped", "stop.idempotent", "stop.together"]),
    ];
    let all = faults.iter().flat_map(|(fault, checks)| checks.iter().map(move |check| (*fault, *check)));
    let judged =
        futures_util::future::join_all(all.map(async |(fault, check)| (fault, check, judge(fault, check).await)));
    for (fault, check, report) in judged.await {
        assert!(failed(&report).contains(check), "{fault:?} is not found by {check}:\n{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_or_a_hang_fails_its_own_check_and_no_other() {
    let runtime: Arc<dyn Runtime> = Arc::new(Faulty::new(in_memory(), Fault::PanicsInExec));
    let options = Options { concurrency: 16, ..Options::default() };
    let report = run(Arc::new(InMemory { runtime, reopened: None }), &options).await;
    assert!(report.failed().count() > 5, "{report}");
    for check in report.failed() {
        assert!(["exec", "ids."].iter().any(|group| check.name.starts_with(group)), "{check}");
        assert!(check.to_string().contains("panicked: exec is broken"), "{check}");
    }

    let begun = std::time::Instant::now();
    let runtime: Arc<dyn Runtime> = Arc::new(Faulty::new(in_memory(), Fault::HangsInLogs));
    let options = Options { check_timeout: Duration::from_secs(5), concurrency: 16, ..Options::default() };
    let backend = Arc::new(InMemory { runtime, reopened: None });
    let report = run(backend, &Options { only: Some("wait.".into()), ..options }).await;
    let (failed, passed) = (failed(&report), report.passed().count());
    assert!(failed.contains("wait.blocks") && passed >= 3, "{report}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_forgets_is_found() {
    let runtime: Arc<dyn Runtime> = Arc::new(in_memory());
    let options = Options { only: Some("reopen.".into()), ..Options::default() };
    let kept = InMemory { runtime: runtime.clone(), reopened: Some(runtime.clone()) };
    let report = run(Arc::new(kept), &options).await;
    assert!(report.is_ok() && report.passed().count() == 4, "{report}");
    let invents: Arc<dyn Runtime> = Arc::new(Faulty::new(in_memory(), Fault::InventsContainers));
    let invented = InMemory { runtime: runtime.clone(), reopened: Some(invents) };
    let report = run(Arc::new(invented), &options).await;
    assert!(failed(&report).contains("reopen.removed"), "{report}");
    let forgotten = InMemory { runtime, reopened: Some(Arc::new(in_memory())) };
    let report = run(Arc::new(forgotten), &options).await;
    assert_eq!(failed(&report), BTreeSet::from(["reopen.created", "reopen.exited", "reopen.running"]), "{report}");
}
