//! Named volumes while S3 refuses, hangs, crawls, or is somewhere else: each is told as it is and in time, and what was
//! written meanwhile ends up in S3, on the main line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime_core::{ContainerState, Runtime};

use crate::events::told_of_volume;
use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::berth::{berth, command};
use crate::support::case::{eventually, start_on, words};
use crate::support::pace::patience;
use crate::support::process::times_woken;
use crate::support::root::Root;
use crate::volumes::{after_a_wipe, exec_ok, spec, with_volume};
use crate::volumes_trouble::{full_spec, half_filled};

crate::tests![
    with_s3_away_stop_succeeds_says_not_durable_and_is_made_good,
    with_s3_away_a_volume_not_held_here_is_not_begun_empty,
    a_stop_while_s3_hangs_ends_in_time_says_so_and_is_made_good,
    a_sync_that_is_not_done_in_time_is_told_so,
    a_sync_that_is_done_late_is_told_then,
    a_stop_waits_for_the_sync_that_the_keeper_began,
    a_removal_waits_for_no_upload_that_goes_on,
    the_name_of_one_that_is_gone_is_free_while_s3_hangs,
    a_run_with_s3_down_asks_once_and_says_it_once,
    who_asks_an_s3_that_hangs_learns_it_in_seconds,
    an_open_does_not_wait_for_an_s3_that_hangs,
    what_is_slow_and_goes_on_is_waited_for,
    a_shutdown_while_s3_hangs_ends_in_time,
    a_volume_used_with_another_endpoint_ends_on_its_main_line,
    a_volume_used_while_its_server_was_down_ends_on_its_main_line,
    a_keeper_with_nothing_to_do_sleeps,
    s3_by_another_address_is_no_other_owner,
];

const STOP: Duration = Duration::from_secs(10);

async fn with_s3_away_stop_succeeds_says_not_durable_and_is_made_good(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let root = Root { keeper: true, ..root };
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo first > /data/file").await;
    runtime.sync_container_volumes(&id).await.unwrap();
    exec_ok(&runtime, &id, "echo second > /data/file").await;
    switch.turn_off().await;
    runtime.sync_container_volumes(&id).await.expect_err("nothing can be durable now");
    runtime.stop_container(&id, STOP).await.unwrap();
    let state = runtime.container_state(&id).await.unwrap();
    assert!(matches!(state, ContainerState::Exited { code: 0 }), "{state:?}");
    let status = runtime.volume_status("data").await.unwrap();
    assert!(status.bytes_at_risk > 0 && status.last_error.is_some(), "{status:?}");
    runtime.remove_container(&id).await.unwrap();
    switch.turn_on().await;
    // The keeper tries again by itself, though the container is gone.
    let begin = Instant::now();
    loop {
        let status = runtime.volume_status("data").await.unwrap();
        if status.bytes_at_risk == 0 && status.last_error.is_none() {
            break;
        }
        assert!(begin.elapsed() < patience(Duration::from_secs(120)), "not made good: {status:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // By the sync, by the one that failed and by the stop; the last word is the keeper's.
    eventually("it is told as durable", || async { ends_durable(&*runtime).await }).await;
    let told = told_of_volume(&*runtime, "data").await;
    let failed = told[1..told.len() - 1].iter().filter(|text| text.starts_with("not durable: ")).count();
    assert!(told[0] == "durable" && failed >= 2 && failed == told.len() - 2, "{told:?}");
    assert_eq!(after_a_wipe(&case, &root, runtime, "cat /data/file").await, "second\n");
}

async fn with_s3_away_a_volume_not_held_here_is_not_begun_empty(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    switch.turn_off().await;
    let Ok(runtime) = root.open().await else { panic!("a root must open while S3 is away") };
    let spec = spec(&case, "true").await;
    runtime.pull_image(&spec.image.name).await.unwrap();
    let id = case.id_on(&runtime);
    let error = runtime.create_container(&id, &spec).await.expect_err("it began an empty volume");
    assert!(error.to_string().contains("data"), "{error}");
    assert!(runtime.container_state(&id).await.is_err());
}

async fn a_stop_while_s3_hangs_ends_in_time_says_so_and_is_made_good(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo precious > /data/file").await;
    switch.hang().await;
    let begin = Instant::now();
    let said = berth(&root, &["--config", &two_seconds(&case, &root), "stop", &id.to_string()]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stderr.contains("not durable"), "{said:?}");
    assert!(begin.elapsed() < patience(Duration::from_secs(12)), "{:?} for a time of 2 s", begin.elapsed());
    let status = runtime.volume_status("data").await.unwrap();
    assert!(status.last_error.is_some() && status.durable_at.is_none(), "{status:?}");
    assert_eq!(status.bytes_at_risk, 9, "{status:?}");
    switch.turn_on().await;
    // The process that tried is gone. The next chance is anybody's: the container is not needed for it.
    runtime.remove_container(&id).await.unwrap();
    berth(&root, &["volume", "sync", "data"]).await.succeeded();
    let status = runtime.volume_status("data").await.unwrap();
    assert_eq!((status.last_error, status.owner), (None, None), "not made good, or not given back");
    assert!(ends_durable(&*runtime).await, "{:?}", told_of_volume(&*runtime, "data").await);
    assert_eq!(after_a_wipe(&case, &root, runtime, "cat /data/file").await, "precious\n");
}

async fn a_sync_that_is_not_done_in_time_is_told_so(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let root = Root { keeper: false, ..root };
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo precious > /data/file").await;
    let mut config = root.config();
    config.volumes.sync_on_stop = Duration::from_secs(1);
    let hurried = youki_backend::YoukiRuntime::open(config).await.unwrap();
    switch.hang().await;
    let owed = hurried.stop(&id, Some(STOP)).await.unwrap();
    let [(volume, error)] = owed.as_slice() else { panic!("{owed:?}") };
    assert_eq!((volume.as_str(), error.code()), ("data", "volume.sync_timed_out"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("volume sync data")), "{error}");
    switch.turn_on().await;
    runtime.remove_container(&id).await.unwrap();
}

async fn a_sync_that_is_done_late_is_told_then(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let mut config = root.config();
    config.volumes.sync_on_stop = Duration::from_secs(2);
    let hurried = Arc::new(youki_backend::YoukiRuntime::open(config).await.unwrap());
    let runtime: Arc<dyn Runtime> = hurried.clone();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "dd if=/dev/urandom of=/data/file bs=1M count=3 2>/dev/null").await;
    switch.slow(400 << 10);
    let owed = hurried.stop(&id, Some(STOP)).await.unwrap();
    assert!(owed.len() == 1 && owed[0].1.code() == "volume.sync_timed_out", "{owed:?}");
    assert!(!ends_durable(&*runtime).await, "{:?}", told_of_volume(&*runtime, "data").await);
    switch.slow(u64::MAX);
    // Nobody keeps, and nobody asks again: it is the sync that went on.
    eventually("it is told", || async { ends_durable(&*runtime).await }).await;
    let status = runtime.volume_status("data").await.unwrap();
    assert!(status.durable_at.is_some() && status.last_error.is_none(), "{status:?}");
    runtime.remove_container(&id).await.unwrap();
    switch.turn_off().await;
}

/// Whether the last that was told of the volume is that it is durable.
async fn ends_durable(runtime: &dyn Runtime) -> bool {
    told_of_volume(runtime, "data").await.last().is_some_and(|text| text == "durable")
}

async fn a_stop_waits_for_the_sync_that_the_keeper_began(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let root = Root { keeper: true, ..root };
    let runtime = root.open().await.unwrap();
    let spec = spec(&case, "until test -e /data/end; do sleep 0.05; done").await;
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &spec).await.unwrap();
    switch.hang().await;
    exec_ok(&runtime, &id, "echo precious > /data/file; : > /data/end").await;
    eventually("the keeper has begun", || async {
        runtime.volume_status("data").await.is_ok_and(|status| status.last_error.is_some())
    })
    .await;
    let stopping = tokio::spawn({
        let (runtime, id) = (runtime.clone(), id.clone());
        async move { runtime.stop_container(&id, STOP).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    switch.turn_on().await;
    stopping.await.unwrap().unwrap();
    let status = runtime.volume_status("data").await.unwrap();
    assert!(status.durable_at.is_some() && status.last_error.is_none(), "stop did not wait: {status:?}");
}

async fn a_removal_waits_for_no_upload_that_goes_on(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let root = Root { keeper: true, ..root };
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo precious > /data/file").await;
    switch.hang().await;
    // The keeper sees the same end.
    berth(&root, &["--config", &two_seconds(&case, &root), "stop", &id.to_string()]).await.succeeded();
    let removal = tokio::time::timeout(patience(Duration::from_secs(6)), runtime.remove_container(&id)).await;
    removal.expect("it waits for the upload").unwrap();
    switch.turn_on().await;
    let owing = async || runtime.volume_status("data").await.is_ok_and(|status| status.last_error.is_some());
    eventually("it is durable", || async { !owing().await }).await;
}

async fn the_name_of_one_that_is_gone_is_free_while_s3_hangs(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let root = Root { keeper: true, ..root };
    let runtime = root.open().await.unwrap();
    let mut with_volume = spec(&case, "until test -e /data/end; do sleep 0.05; done").await;
    with_volume.remove_on_exit = true;
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &with_volume).await.unwrap();
    switch.hang().await;
    exec_ok(&runtime, &id, "echo precious > /data/file; : > /data/end").await;
    let owing = async || runtime.volume_status("data").await.is_ok_and(|status| status.last_error.is_some());
    eventually("the keeper has begun", || async { owing().await && runtime.container_state(&id).await.is_err() }).await;
    let idle = case.script("sleep 300").await;
    let again = start_on(&*runtime, &id, &idle);
    tokio::time::timeout(patience(Duration::from_secs(10)), again).await.expect("its name is not free").unwrap();
    switch.turn_on().await;
    eventually("it is durable", || async { !owing().await }).await;
    runtime.remove_container(&id).await.unwrap();
}

async fn a_run_with_s3_down_asks_once_and_says_it_once(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let image = case.suite.busybox().await.to_owned();
    let words = ["run", "--rm", "--network", "none", "-v", "data:/data", image.as_str(), "sh", "-c"];
    let run = |script: &'static str| words.into_iter().chain([script]).collect::<Vec<_>>();
    let begin = Instant::now();
    let said = berth(&root, &run("echo one > /data/file")).await;
    let usual = begin.elapsed();
    assert_eq!((said.code, said.stderr.contains("not durable")), (0, false), "{said:?}");
    switch.turn_off().await;
    let begin = Instant::now();
    let said = berth(&root, &run("echo two > /data/file")).await;
    let took = begin.elapsed();
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.stderr.matches("not durable").count(), 1, "{said:?}");
    // One try to claim and one to sync: who is refused a connection does not ask twice.
    assert!(took < usual + patience(Duration::from_secs(4)), "{took:?} and {usual:?}");
    let kept = berth(&root, &["volume", "inspect", "data"]).await.json();
    assert!(kept[0]["bytes_at_risk"].as_u64() > Some(0) && kept[0]["last_error"].is_string(), "{kept}");
    switch.turn_on().await;
    berth(&root, &["volume", "sync", "data"]).await.succeeded();
    let kept = berth(&root, &["volume", "inspect", "data"]).await.json();
    assert!(kept[0]["bytes_at_risk"] == 0 && kept[0]["last_error"].is_null(), "{kept}");
}

/// A config file for `berth` with `sync_on_stop` of two seconds.
fn two_seconds(case: &Case, root: &Root) -> String {
    let file = case.suite.dir.path().join(format!("{}-two-seconds.toml", root.name));
    std::fs::write(&file, "[volumes]\nsync_on_stop = \"2s\"\n").unwrap();
    file.to_str().unwrap().to_owned()
}

/// `run --rm` with volume `name` at `/data`.
fn run_rm<'a>(image: &'a str, mount: &'a str, script: &'a str) -> [&'a str; 10] {
    ["run", "--rm", "--network", "none", "-v", mount, image, "sh", "-c", script]
}

async fn who_asks_an_s3_that_hangs_learns_it_in_seconds(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let image = case.suite.busybox().await;
    for mount in ["a:/data", "b:/data", "c:/data"] {
        berth(&root, &run_rm(image, mount, "echo x > /data/file")).await.succeeded();
    }
    switch.hang().await;
    let create = |name, mount| ["create", "--name", name, "--network", "none", "-v", mount, image, "true"];
    let beside = case.suite.dir.path().join("hangs-beside");
    let asked = [
        (words(&["volume", "history", "a"]), 1),
        (words(&["volume", "restore", "b"]), 1),
        (words(&["volume", "restore", "b", "--to", beside.to_str().unwrap()]), 1),
        (words(&["volume", "rm", "b"]), 1),
        (words(&["doctor"]), 1),
        // What is here starts without S3.
        (words(&create("held", "a:/data")), 0),
        (words(&create("not-held", "other:/data")), 1),
        (words(&run_rm(image, "c:/data", "cat /data/file")), 0),
    ];
    let (root, endpoint) = (&root, switch.endpoint());
    let asking = asked.into_iter().map(|(words, code)| async move {
        let begin = Instant::now();
        let said = berth(root, &words.iter().map(String::as_str).collect::<Vec<_>>()).await;
        (words, code, said, begin.elapsed())
    });
    for (words, code, said, took) in futures_util::future::join_all(asking).await {
        assert_eq!(said.code, code, "{words:?}: {said:?}");
        // Two commands ask for `b`, and `run` asks a second time, when it is known that nobody answers.
        let limit = if words.iter().any(|word| word == "b") || words[0] == "run" { 34 } else { 17 };
        assert!(took < patience(Duration::from_secs(limit)), "{words:?} took {took:?}");
        assert_eq!(said.stderr.matches("berth: waiting for S3 at").count(), 1, "{words:?}: {said:?}");
        if code != 0 {
            let told = said.stderr.clone() + &said.stdout;
            assert!(told.contains(&endpoint) && told.contains("no answer within"), "{words:?}: {said:?}");
            assert!(words[0] == "doctor" || said.stderr.contains("\nhint: "), "{words:?}: {said:?}");
        }
    }
    // For programs: standard output is theirs.
    let said = berth(root, &["volume", "history", "a", "--json"]).await;
    let error: serde_json::Value = serde_json::from_str(said.stderr.lines().last().unwrap()).unwrap();
    assert_eq!((said.stdout.as_str(), &error["error"]["code"]), ("", &"volume.s3_unreachable".into()), "{said:?}");
    switch.turn_on().await;
    berth(root, &["rm", "-f", "held"]).await.succeeded();
    berth(root, &["volume", "history", "a"]).await.succeeded();
}

async fn an_open_does_not_wait_for_an_s3_that_hangs(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let spec = full_spec(&case).await;
    let mut agent = Agent::start(&root, &[]).await;
    agent.ask(&Request::Pull { image: spec.image.name.clone(), auth: None }).await.unwrap();
    agent.send(&Request::Create { id: case.id_in(&root), spec: Box::new(spec.clone()) }).await;
    half_filled(&root).await;
    agent.kill().await;
    switch.hang().await;
    // What the killed create had is taken back; that its claim is owed is put down.
    let begin = Instant::now();
    berth(&root, &["ps", "-a"]).await.succeeded();
    assert!(begin.elapsed() < patience(Duration::from_secs(10)), "{:?}", begin.elapsed());
    switch.turn_on().await;
    let keeper = Root { keeper: true, ..root.clone() }.open().await.unwrap();
    let other = case.root_with_s3("other", "p").await.open().await.unwrap();
    other.pull_image(&spec.image.name).await.unwrap();
    let id = case.id_on(&other);
    eventually("the claim is given back", || async { other.create_container(&id, &spec).await.is_ok() }).await;
    drop(keeper);
}

async fn what_is_slow_and_goes_on_is_waited_for(case: Case) {
    let (root, switch) = case.root_with_switch("root", "p").await;
    let image = case.suite.busybox().await;
    let fill = "dd if=/dev/urandom of=/data/file bs=1M count=3 2>/dev/null; md5sum /data/file";
    // Longer than any request without a sign of life may take.
    switch.slow(200 << 10);
    let begin = Instant::now();
    let said = berth(&root, &run_rm(image, "data:/data", fill)).await;
    assert!(!said.stderr.contains("not durable"), "{said:?}");
    let written = said.succeeded();
    let sent = begin.elapsed();
    assert!(sent > Duration::from_secs(12), "the line was not slow: {sent:?}");
    berth(&root, &["volume", "rm", "data"]).await.succeeded();
    let read = berth(&root, &run_rm(image, "data:/data", "md5sum /data/file")).await.succeeded();
    assert_eq!(read, written);
}

async fn a_shutdown_while_s3_hangs_ends_in_time(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo precious > /data/file").await;
    switch.hang().await;
    let begin = Instant::now();
    let said = berth(&root, &["--config", &two_seconds(&case, &root), "shutdown"]).await;
    // Two seconds for the stop, and two for what was owed after it.
    assert!(begin.elapsed() < patience(Duration::from_secs(10)), "{:?}", begin.elapsed());
    assert_eq!((said.code, said.stderr.matches("not durable yet").count()), (1, 1), "{said:?}");
    assert!(!said.stderr.contains("volume data: volume data"), "{said:?}");
    switch.turn_on().await;
    let said = berth(&root, &["shutdown"]).await;
    // A slow machine may say that it waits.
    assert!(said.code == 0 && !said.stderr.contains("not durable yet"), "{said:?}");
    assert_eq!(runtime.volume_status("data").await.unwrap().bytes_at_risk, 0);
}

/// Leaves volume `m` used by a container that runs.
async fn begin_use(case: &Case, root: &Root) {
    let image = case.suite.busybox().await;
    berth(root, &run_rm(image, "m:/data", "echo 1 > /data/file")).await.succeeded();
    let script = "echo 2 > /data/file; sleep 300";
    let words = ["run", "-d", "--name", "mm", "--network", "none", "-v", "m:/data", image, "sh", "-c", script];
    berth(root, &words).await.succeeded();
    while berth(root, &["exec", "mm", "grep", "-q", "2", "/data/file"]).await.code != 0 {}
}

/// Ends that use, and uses it once more, all of it without S3.
async fn use_without_s3(case: &Case, root: &Root) {
    let said = berth(root, &["stop", "-t", "0", "mm"]).await;
    assert!(said.code == 0 && said.stderr.contains("not durable yet"), "{said:?}");
    berth(root, &["rm", "mm"]).await.succeeded();
    let image = case.suite.busybox().await;
    assert_eq!(berth(root, &run_rm(image, "m:/data", "cat /data/file")).await.succeeded(), "2\n");
}

/// With a keeper, that state ends up on the main line, and nobody holds the volume any more.
async fn it_is_made_good(case: &Case, root: &Root) {
    let mut keeper = command(root).arg("keeper").kill_on_drop(true).spawn().unwrap();
    let status = || async { berth(root, &["volume", "inspect", "m"]).await.json()[0].clone() };
    eventually("the keeper has brought it to S3", || async {
        let now = status().await;
        now["last_error"].is_null() && now["owner"].is_null()
    })
    .await;
    keeper.kill().await.unwrap();
    assert_eq!(status().await["bytes_at_risk"], 0);
    let history = berth(root, &["volume", "history", "--all", "m", "--json"]).await.json();
    let kinds: Vec<_> = history.as_array().unwrap().iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert!(!kinds.contains(&"branch") && kinds.last() == Some(&"released"), "{history}");
    // What another host would find.
    let to = case.suite.dir.path().join(format!("{}-newest", root.name));
    berth(root, &["volume", "restore", "m", "--to", to.to_str().unwrap()]).await.succeeded();
    assert_eq!(std::fs::read_to_string(to.join("file")).unwrap(), "2\n");
}

async fn a_volume_used_with_another_endpoint_ends_on_its_main_line(case: Case) {
    let here = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let mut away = here.clone();
    away.s3.as_mut().unwrap().endpoint = "http://127.0.0.1:1".into();
    begin_use(&case, &here).await;
    use_without_s3(&case, &away).await;
    it_is_made_good(&case, &here).await;
}

async fn a_volume_used_while_its_server_was_down_ends_on_its_main_line(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    begin_use(&case, &root).await;
    switch.turn_off().await;
    use_without_s3(&case, &root).await;
    switch.turn_on().await;
    it_is_made_good(&case, &root).await;
}

async fn a_keeper_with_nothing_to_do_sleeps(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let image = case.suite.busybox().await;
    let mut keeper = command(&root).arg("keeper").kill_on_drop(true).spawn().unwrap();
    berth(&root, &run_rm(image, "m:/data", "echo x > /data/file")).await.succeeded();
    let seen = || times_woken(keeper.id().unwrap());
    // What it heard of that run it looks at some seconds later, and threads that did so end after ten more.
    let (begin, mut since, mut before) = (Instant::now(), Instant::now(), seen());
    while since.elapsed() < Duration::from_secs(11) {
        assert!(begin.elapsed() < patience(Duration::from_secs(60)), "it wakes with nothing to do");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = seen();
        if now != before {
            (since, before) = (Instant::now(), now);
        }
    }
    keeper.kill().await.unwrap();
}

async fn s3_by_another_address_is_no_other_owner(case: Case) {
    let mut root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo one > /data/file").await;
    runtime.sync_container_volumes(&id).await.unwrap();
    let before = runtime.volume_status("data").await.unwrap();
    let location = root.s3.as_mut().unwrap();
    location.endpoint = location.endpoint.replace("127.0.0.1", "localhost");
    drop(runtime);
    let runtime = root.open().await.unwrap();
    exec_ok(&runtime, &id, "echo two > /data/file").await;
    runtime.sync_container_volumes(&id).await.expect("the host fenced itself");
    let after = runtime.volume_status("data").await.unwrap();
    assert_eq!((after.generation, &after.owner), (before.generation.map(|number| number + 1), &before.owner));
    runtime.stop_container(&id, STOP).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
}
