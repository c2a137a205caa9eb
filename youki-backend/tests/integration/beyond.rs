//! What the trait has beyond its 24 methods for those who hold no more than a `dyn Runtime`: attaching, tars, stats as they
//! come, images and the history of volumes.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::Utc;
use futures_util::{StreamExt, stream};
use runtime_core::spec::RestartKind;
use runtime_core::{
    AgentError, AttachEvent, AttachStream, Change, ContainerId, ContainerState, CopyInOptions, ExecInput, LayerPhase,
    Owner, Progress, PullEvent, PullPolicy, RecordKind, RestoreOptions, Runtime, StatsSnapshot, StatsStream,
};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::restarts::policy;
use crate::support::case::{IDLE, eventually, seen_root, soon};
use crate::support::image::{Image, LayerBuilder};
use crate::support::root::Root;
use crate::support::{Case, right_credentials};
use crate::volumes::{exec_ok, with_volume};

crate::tests![
    attach_gives_what_is_written_and_takes_what_is_typed,
    an_attach_that_is_dropped_ends_its_input_and_nothing_else,
    a_terminal_is_typed_into_by_whoever_is_attached,
    tars_go_in_and_out,
    what_is_not_there_is_not_found,
    stats_of_all_are_of_those_that_run,
    stats_come_at_once_then_at_intervals_until_the_end,
    stats_go_on_after_a_restart,
    a_pull_is_told_as_it_goes,
    a_pull_that_nobody_hears_of_is_stopped,
    an_image_is_pushed_saved_and_loaded,
    a_volumes_history_is_told_compared_verified_and_restored,
    a_volume_is_claimed_and_pruned,
];

/// No test waits for a reading.
const OFTEN: Duration = Duration::from_millis(50);

/// What is written to it can be read by who made it.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn taken(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Names, owners and contents of a tar's members.
fn members(tar: &[u8]) -> Vec<(String, u64, String)> {
    let mut archive = tar::Archive::new(tar);
    let member = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let name = entry.path().unwrap().display().to_string().trim_end_matches('/').to_owned();
        (name, entry.header().uid().unwrap(), String::from_utf8_lossy(&content).into_owned())
    };
    archive.entries().unwrap().map(member).collect()
}

/// A tar of one file of user 1000.
fn tar_of(name: &str, content: &str) -> Box<dyn Read + Send> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    header.set_uid(1000);
    header.set_gid(1000);
    header.set_mtime(1);
    builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    Box::new(std::io::Cursor::new(builder.into_inner().unwrap()))
}

fn is_not_found<T>(told: Result<T, AgentError>) -> bool {
    matches!(told, Err(AgentError::NotFound { .. }))
}

/// The code of what must have failed.
fn code<T>(told: Result<T, AgentError>) -> String {
    told.err().expect("it fails").code().to_owned()
}

/// Reads until all that was written to standard output ends with `text`, or the end.
async fn read_until(attached: &mut AttachStream, text: &str) -> (Vec<u8>, Vec<u8>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while !stdout.ends_with(text.as_bytes()) || text.is_empty() {
        match soon("output", attached.next()).await {
            Some(Ok(AttachEvent::Stdout(bytes))) => stdout.extend(bytes),
            Some(Ok(AttachEvent::Stderr(bytes))) => stderr.extend(bytes),
            Some(Err(error)) => panic!("{error}"),
            None => break,
        }
    }
    (stdout, stderr)
}

async fn attach_gives_what_is_written_and_takes_what_is_typed(case: Case) {
    let mut spec = case.script("echo out; read line; echo \"got $line\"; echo err >&2; cat; exit 3").await;
    spec.stdin = true;
    let id = case.id();
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    case.runtime.create_container(&id, &spec).await.unwrap();
    let (keys, input) = mpsc::channel::<Vec<u8>>(4);
    // Before it starts, so that nothing is missed.
    let mut attached = case.runtime.attach(&id, Some(Box::pin(ReceiverStream::new(input)))).await.unwrap();
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(read_until(&mut attached, "out\n").await.0, b"out\n");
    keys.send(b"typed\n".to_vec()).await.unwrap();
    let (stdout, mut errors) = read_until(&mut attached, "got typed\n").await;
    assert_eq!(stdout, b"got typed\n");
    // Bytes, whatever they are; the end of the input is the container's.
    keys.send(b"\xff\x00raw".to_vec()).await.unwrap();
    drop(keys);
    let (stdout, stderr) = read_until(&mut attached, "").await;
    errors.extend(stderr);
    assert_eq!((&stdout[..], &errors[..]), (&b"\xff\x00raw"[..], &b"err\n"[..]));
    assert_eq!(case.runtime.wait_container(&id).await.unwrap(), 3);
    let ended = case.runtime.attach(&id, None).await;
    assert_eq!(code(ended), "container.not_running");
}

async fn an_attach_that_is_dropped_ends_its_input_and_nothing_else(case: Case) {
    let mut spec = case.script(&format!("cat; echo no input; {IDLE}")).await;
    spec.stdin = true;
    let id = case.start(&spec).await;
    // Who only looks on leaves the input to those who type.
    drop(case.runtime.attach(&id, None).await.unwrap());
    let (keys, input) = mpsc::channel::<Vec<u8>>(4);
    let mut attached = case.runtime.attach(&id, Some(Box::pin(ReceiverStream::new(input)))).await.unwrap();
    drop(case.runtime.attach(&id, None).await.unwrap());
    keys.send(b"still open\n".to_vec()).await.unwrap();
    assert_eq!(read_until(&mut attached, "still open\n").await.0, b"still open\n");
    drop(attached);
    case.until_logged(&id, "no input").await;
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Running);
}

async fn a_terminal_is_typed_into_by_whoever_is_attached(case: Case) {
    let mut spec = case.script("stty -echo -onlcr; echo ready; read a; echo \"1 $a\"; read b; echo \"2 $b\"").await;
    (spec.tty, spec.stdin) = (true, true);
    let id = case.start(&spec).await;
    case.until_logged(&id, "ready").await;
    let typed = |text: &'static [u8]| -> Option<ExecInput> { Some(Box::pin(stream::iter([text.to_vec()]))) };
    let mut first = case.runtime.attach(&id, typed(b"one\n")).await.unwrap();
    let (stdout, _) = read_until(&mut first, "1 one\n").await;
    assert!(stdout.ends_with(b"1 one\n"), "{stdout:?}");
    // Its input has ended, and the terminal's has not.
    let mut second = case.runtime.attach(&id, typed(b"two\n")).await.unwrap();
    for attached in [&mut first, &mut second] {
        let (stdout, stderr) = read_until(attached, "").await;
        assert_eq!((&stdout[..], &stderr[..]), (&b"2 two\n"[..], &b""[..]));
    }
    case.finish(&id).await;
}

async fn tars_go_in_and_out(case: Case) {
    let runtime = &case.runtime;
    let id = case.start(&case.script(&format!("echo new > /tmp/new; {IDLE}")).await).await;
    case.until_it_idles(&id).await;
    runtime.copy_in(&id, Path::new("/tmp"), tar_of("kept", "as it was"), &CopyInOptions::default()).await.unwrap();
    let options = CopyInOptions { rename: Some("given".into()), owner: Owner::Always { uid: 7, gid: 8 } };
    runtime.copy_in(&id, Path::new("/tmp"), tar_of("kept", "to 7"), &options).await.unwrap();
    let script = "cd /tmp; stat -c '%n %u:%g %a' kept given; cat kept given; ln -s kept link";
    assert_eq!(case.exec_ok(&id, script).await, "kept 1000:1000 640\ngiven 7:8 640\nas it wasto 7");
    runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    // Of one that has ended, too.
    let sink = Sink::default();
    let link = Path::new("/tmp/link");
    runtime.copy_out(&id, link, true, Box::new(sink.clone())).await.unwrap();
    assert_eq!(members(&sink.taken()), [("link".into(), 1000, "as it was".into())]);
    runtime.copy_out(&id, link, false, Box::new(sink.clone())).await.unwrap();
    assert_eq!(members(&sink.taken()), [("link".into(), 0, String::new())]);
    runtime.export(&id, Box::new(sink.clone())).await.unwrap();
    let exported = members(&sink.taken());
    assert!(exported.contains(&("tmp/new".into(), 0, "new\n".into())), "{} members", exported.len());
    assert!(exported.iter().any(|(name, ..)| name == "bin/busybox"));
    let no_such = Path::new("/no/such");
    assert!(is_not_found(runtime.copy_out(&id, no_such, false, Box::new(sink.clone())).await));
    let options = CopyInOptions::default();
    assert!(is_not_found(runtime.copy_in(&id, no_such, tar_of("kept", ""), &options).await));
}

async fn what_is_not_there_is_not_found(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let runtime = root.open().await.unwrap();
    let (id, image) = (ContainerId::new("nosuch", 0), "127.0.0.1:1/no/such:1");
    assert!(is_not_found(runtime.attach(&id, None).await));
    assert!(is_not_found(runtime.copy_out(&id, Path::new("/"), false, Box::new(Sink::default())).await));
    let options = CopyInOptions::default();
    assert!(is_not_found(runtime.copy_in(&id, Path::new("/"), tar_of("x", ""), &options).await));
    assert!(is_not_found(runtime.export(&id, Box::new(Sink::default())).await));
    assert!(is_not_found(runtime.stats_stream(&id, OFTEN).await));
    assert!(is_not_found(runtime.push_image(image, None).await));
    assert!(is_not_found(runtime.save_images(&[image.to_owned()], Box::new(Sink::default())).await));
    assert!(is_not_found(runtime.image_history(image).await));
    assert!(is_not_found(runtime.inspect_image(image).await));
    assert!(is_not_found(runtime.volume_history("nosuch", true).await));
    assert!(is_not_found(runtime.restore_volume("nosuch", &RestoreOptions::default()).await));
    assert!(is_not_found(runtime.verify_volume("nosuch", None, Progress::default()).await));
    assert!(is_not_found(runtime.prune_volume_history("nosuch").await));
    assert!(is_not_found(runtime.claim_volume("nosuch", false, Progress::default()).await));
    assert_eq!(code(runtime.diff_volume("nosuch", 1, 2).await), "volume.generation_not_found");
}

async fn stats_of_all_are_of_those_that_run(case: Case) {
    let runtime = &case.runtime;
    let (idle, paused, ended, created) = (case.idle().await, case.idle().await, case.id(), case.id());
    runtime.pause(&paused).await.unwrap();
    case.try_start(&ended, &case.spec(&["true"]).await).await.unwrap();
    runtime.wait_container(&ended).await.unwrap();
    runtime.create_container(&created, &case.spec(&["true"]).await).await.unwrap();
    // Others' containers come and go meanwhile.
    let all = runtime.stats_all().await.unwrap();
    let of = |id: &ContainerId| all.iter().find(|one| one.id == *id);
    assert!(of(&ended).is_none() && of(&created).is_none(), "{all:?}");
    for id in [&idle, &paused] {
        let one = of(id).unwrap_or_else(|| panic!("{id} is not among {all:?}"));
        assert!(one.basic.memory_bytes > 0 && one.detailed.pids.current >= Some(2), "{one:?}");
    }
    assert!(all.is_sorted_by(|one, other| one.id <= other.id), "{all:?}");
}

async fn reading(stats: &mut StatsStream) -> StatsSnapshot {
    soon("a reading", stats.next()).await.expect("it runs").unwrap_or_else(|error| panic!("{error}"))
}

async fn stats_come_at_once_then_at_intervals_until_the_end(case: Case) {
    let id = case.idle().await;
    let mut often = case.runtime.stats_stream(&id, OFTEN).await.unwrap();
    let mut seldom = case.runtime.stats_stream(&id, Duration::MAX).await.unwrap();
    let (first, second) = (reading(&mut often).await, reading(&mut often).await);
    assert!((second.basic.timestamp - first.basic.timestamp).to_std().unwrap() >= OFTEN, "{first:?} {second:?}");
    assert!(first.id == id && first.basic.memory_bytes > 0 && second.detailed.pids.current >= Some(2), "{second:?}");
    reading(&mut seldom).await;
    case.runtime.stop_container(&id, Duration::from_secs(5)).await.unwrap();
    // Its end is the streams', however long the interval is.
    assert_eq!(soon("the end", seldom.next()).await, None);
    let rest: Vec<_> = soon("the end", often.collect()).await;
    assert!(rest.iter().all(Result::is_ok), "{rest:?}");
    // Of one that has ended, its last.
    let last: Vec<_> = soon("the last", case.runtime.stats_stream(&id, OFTEN).await.unwrap().collect()).await;
    let [Ok(last)] = &last[..] else { panic!("{last:?}") };
    assert!(last.basic.cpu_usage_usec >= second.basic.cpu_usage_usec, "{last:?}");
    let none = case.runtime.stats_stream(&id, Duration::ZERO).await;
    assert!(matches!(none, Err(AgentError::InvalidSpec(_))));
}

async fn stats_go_on_after_a_restart(case: Case) {
    let script = format!("if mkdir /once; then until [ -e /go ]; do sleep 0.1; done; exit 1; fi; {IDLE}");
    let mut spec = case.script(&script).await;
    spec.restart_policy = policy(RestartKind::OnFailure, Some(3), 10);
    let id = case.start(&spec).await;
    let mut stats = case.runtime.stats_stream(&id, OFTEN).await.unwrap();
    reading(&mut stats).await;
    let mut rare = case.runtime.stats_stream(&id, Duration::MAX).await.unwrap();
    reading(&mut rare).await;
    let first = case.runtime.get_container_pid(&id).await.unwrap().unwrap();
    std::fs::write(seen_root(&*case.runtime, &id).await.join("go"), "").unwrap();
    eventually("it is restarted", || async {
        case.runtime.get_container_pid(&id).await.unwrap().is_some_and(|pid| pid != first)
    })
    .await;
    let restarted = Utc::now();
    let later = async { while reading(&mut stats).await.basic.timestamp <= restarted {} };
    soon("a reading of the second attempt", later).await;
    case.until_it_idles(&id).await;
    case.runtime.stop_container(&id, Duration::from_secs(5)).await.unwrap();
    let rest: Vec<_> = soon("the end", stats.collect()).await;
    assert!(rest.iter().all(Result::is_ok), "{rest:?}");
    assert_eq!(soon("the end of the other", rare.collect::<Vec<_>>()).await, []);
}

/// An image whose second layer is nobody else's.
fn image(text: &str) -> Image {
    let layer = LayerBuilder::new().file("text", 0o644, text.as_bytes()).finish();
    Image::busybox().layer(layer).with("Cmd", json!(["cat", "/text"]))
}

async fn pulled(runtime: &dyn Runtime, image: &str) -> Vec<Result<PullEvent, AgentError>> {
    runtime.pull_image_stream(image, PullPolicy::IfNotPresent, None).await.unwrap().collect().await
}

async fn a_pull_is_told_as_it_goes(case: Case) {
    let reference = case.push("told", &image("told as it goes")).await;
    let events = pulled(&*case.runtime, &reference).await;
    let Some(Ok(PullEvent::Resolved { digest, layers })) = events.first() else { panic!("{events:?}") };
    assert_eq!(layers.len(), 2, "{events:?}");
    let done = Ok(PullEvent::Done { digest: digest.clone() });
    assert_eq!(events.iter().filter(|event| **event == done).count(), 1, "{events:?}");
    assert_eq!(events.last(), Some(&done));
    let (top, total) = layers[1].clone();
    let unpacked = PullEvent::Layer { digest: top, phase: LayerPhase::Unpacked, bytes: total, total };
    assert!(events.contains(&Ok(unpacked)), "{events:?}");
    // It is here now.
    assert_eq!(pulled(&*case.runtime, &reference).await, [done]);
    let absent = pulled(&*case.runtime, &format!("{reference}-absent")).await;
    let [Err(error @ AgentError::PullFailed { .. })] = &absent[..] else { panic!("{absent:?}") };
    assert_eq!(error.code(), "image.not_found");
}

/// A server that takes the request and never answers sees that it is given up.
async fn a_pull_that_nobody_hears_of_is_stopped(case: Case) {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reference = format!("{}/never:1", server.local_addr().unwrap());
    let pull = case.runtime.pull_image_stream(&reference, PullPolicy::Always, None).await.unwrap();
    let (mut connection, _) = soon("a connection", server.accept()).await.unwrap();
    let mut first = [0];
    assert_eq!(soon("a request", connection.read(&mut first)).await.unwrap(), 1);
    drop(pull);
    let mut rest = Vec::new();
    // A reset is an end, too. A pull that went on would give up after a minute.
    let end = tokio::time::timeout(Duration::from_secs(40), connection.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "it went on");
}

async fn an_image_is_pushed_saved_and_loaded(case: Case) {
    let runtime = &case.runtime;
    let reference = case.push("tosave", &image("saved by the trait")).await;
    runtime.pull_image(&reference).await.unwrap();
    let inspected = runtime.inspect_image(&reference).await.unwrap();
    assert_eq!((&inspected.reference, inspected.layers.len()), (&reference, 2));
    assert_eq!(inspected.config["config"]["Cmd"], json!(["cat", "/text"]));
    let text = inspected.layers[1].join("text");
    assert_eq!(std::fs::read_to_string(&text).unwrap(), "saved by the trait", "{}", text.display());
    let steps = runtime.image_history(&reference).await.unwrap();
    assert!(steps.len() == 2 && steps.iter().all(|step| step.created_by.as_deref() == Some("berth")), "{steps:?}");
    assert_eq!(steps.iter().map(|step| step.size_bytes).min(), Some(steps[0].size_bytes), "the newest is not first");

    let registry = &case.suite.registry_auth().await.host;
    let target = format!("{registry}/private/beyond:1");
    runtime.tag_image(&reference, &target).await.unwrap();
    assert!(runtime.push_image(&target, None).await.is_err(), "without credentials");
    let digest = runtime.push_image(&target, Some(&right_credentials())).await.unwrap();
    assert_eq!(digest, inspected.digest);

    let sink = Sink::default();
    runtime.save_images(std::slice::from_ref(&target), Box::new(sink.clone())).await.unwrap();
    let file = case.suite.dir.path().join("beyond.tar");
    std::fs::write(&file, sink.taken()).unwrap();
    let other = case.root("loads").open().await.unwrap();
    let loaded = other.load_images(&file).await.unwrap();
    let [one] = &loaded[..] else { panic!("{loaded:?}") };
    assert_eq!(
        (&one.reference, one.digest.as_ref(), one.size_bytes),
        (&target, Some(&digest), Some(inspected.size_bytes))
    );
    assert_eq!(other.inspect_image(&target).await.unwrap().config, inspected.config);
    // And what was pushed is what another pulls.
    other.remove_image(&target, false).await.unwrap();
    other.pull_image_with_policy(&target, PullPolicy::Always, Some(&right_credentials())).await.unwrap();
    assert_eq!(other.inspect_image(&target).await.unwrap().digest, digest);
}

/// A runtime on a root with two generations of volume `data`, whose container is gone; their numbers.
async fn two_generations(case: &Case, root: &Root) -> (Arc<dyn Runtime>, [u64; 2]) {
    let runtime = root.open().await.unwrap();
    let id = with_volume(case, &runtime).await;
    exec_ok(&runtime, &id, "cd /data; echo old > file; echo 1 > gone; echo 2 > mode").await;
    runtime.sync_container_volumes(&id).await.unwrap();
    exec_ok(&runtime, &id, "cd /data; echo newer > file; rm gone; chmod 600 mode; echo 3 > added").await;
    runtime.stop_container(&id, Duration::from_secs(5)).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    let history = runtime.volume_history("data", false).await.unwrap();
    let numbers: Vec<u64> = history.iter().map(|entry| entry.generation.expect("it holds a tree")).collect();
    (runtime, numbers.try_into().unwrap_or_else(|_| panic!("{history:?}")))
}

/// One that counts, and what it has been told.
fn counting() -> (Progress, Arc<AtomicU64>) {
    let told = Arc::new(AtomicU64::new(0));
    let most = told.clone();
    let progress = Progress::new(move |done, _| {
        most.fetch_max(done, Ordering::Relaxed);
    });
    (progress, told)
}

async fn a_volumes_history_is_told_compared_verified_and_restored(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let (runtime, [old, new]) = two_generations(&case, &root).await;
    let all = runtime.volume_history("data", true).await.unwrap();
    let kinds: Vec<RecordKind> = all.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [RecordKind::Claim, RecordKind::Data, RecordKind::Data, RecordKind::Released]);

    let changes = runtime.diff_volume("data", old, new).await.unwrap();
    let changes: Vec<(&str, Change)> = changes.iter().map(|one| (one.path.as_str(), one.change)).collect();
    let expected =
        [("added", Change::Added), ("file", Change::Content), ("gone", Change::Removed), ("mode", Change::Attributes)];
    assert_eq!(changes, expected);
    assert_eq!(code(runtime.diff_volume("data", old, 99).await), "volume.generation_not_found");

    let (progress, told) = counting();
    let report = runtime.verify_volume("data", None, progress).await.unwrap();
    assert!(report.generations == 2 && report.damaged.is_empty() && report.stored_bytes > 0, "{report:?}");
    assert!(told.load(Ordering::Relaxed) > 0, "nothing was told of the verification");
    assert_eq!(runtime.verify_volume("data", Some(old), Progress::default()).await.unwrap().generations, 1);

    let beside = case.suite.dir.path().join("beyond-beside");
    let (progress, told) = counting();
    let options = RestoreOptions { generation: Some(old), to: Some(beside.clone()), progress, ..Default::default() };
    let report = runtime.restore_volume("data", &options).await.unwrap();
    assert_eq!((report.generation, &report.path, report.files), (old, &beside, 3));
    assert_eq!(std::fs::read_to_string(beside.join("file")).unwrap(), "old\n");
    assert_eq!(told.load(Ordering::Relaxed), report.size_bytes);
    assert_eq!(code(runtime.restore_volume("data", &options).await), "volume.target_exists");
    std::fs::remove_dir_all(&beside).unwrap();

    // In place, but not over what is nowhere else.
    let here = runtime.volume_status("data").await.unwrap().mountpoint;
    std::fs::write(here.join("file"), "by hand").unwrap();
    let mut options = RestoreOptions { generation: Some(old), ..Default::default() };
    assert_eq!(code(runtime.restore_volume("data", &options).await), "volume.unsynced");
    assert_eq!(std::fs::read_to_string(here.join("file")).unwrap(), "by hand");
    options.discard_local = true;
    assert_eq!(runtime.restore_volume("data", &options).await.unwrap().path, here);
    assert_eq!(std::fs::read_to_string(here.join("file")).unwrap(), "old\n");
}

async fn a_volume_is_claimed_and_pruned(case: Case) {
    let a = Root { keeper: false, ..case.root_with_s3("a", "p").await };
    let b = Root { keeper: false, ..case.root_with_s3("b", "p").await };
    let (at_a, [old, new]) = two_generations(&case, &a).await;
    assert_eq!(at_a.prune_volumes().await.unwrap().deleted, ["data"]);
    assert_eq!(at_a.list_volumes().await.unwrap(), []);
    let at_b = b.open().await.unwrap();
    let (progress, told) = counting();
    let claimed = at_b.claim_volume("data", false, progress).await.unwrap();
    let host = claimed.owner.clone().expect("it has an owner");
    assert_eq!(std::fs::read_to_string(claimed.mountpoint.join("file")).unwrap(), "newer\n");
    assert_eq!(Some(told.load(Ordering::Relaxed)), claimed.size_bytes);
    assert_eq!(code(at_a.claim_volume("data", false, Progress::default()).await), "volume.in_use_elsewhere");
    assert_eq!(code(at_a.prune_volume_history("data").await), "volume.in_use_elsewhere");
    let taken = at_a.claim_volume("data", true, Progress::default()).await.unwrap();
    assert!(taken.owner.is_some_and(|owner| owner != host));

    // Without a retention all stay; with one, the newest.
    let pruned = at_a.prune_volume_history("data").await.unwrap();
    assert_eq!((pruned.removed, pruned.kept), (vec![], vec![old, new]));
    let mut config = a.config();
    config.volumes.keep = Some(volumes_s3::Keep { last: 1, ..Default::default() });
    let keeping: Arc<dyn Runtime> = Arc::new(youki_backend::YoukiRuntime::open(config).await.unwrap());
    let pruned = keeping.prune_volume_history("data").await.unwrap();
    assert_eq!((pruned.name.as_str(), pruned.removed, pruned.kept), ("data", vec![old], vec![new]));
    assert_eq!(keeping.volume_history("data", false).await.unwrap().len(), 1);

    // What is held by hand stays.
    assert_eq!(keeping.prune_volumes().await.unwrap().deleted, Vec::<String>::new());
}
