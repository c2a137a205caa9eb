//! What commands show, and what their flags change of it: `stats`, `info`, `completion`, `logs`, `ps`, `doctor`, `images`,
//! `pull`, `volume restore`; and what a foreground `run` passes on.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use runtime_core::ContainerId;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::support::Case;
use crate::support::berth::{berth, command};
use crate::support::case::{IDLE, eventually, soon, until_it_idles_on};
use crate::support::image::{Image, LayerBuilder};
use crate::support::pace::patience;
use crate::support::root::Root;

crate::tests![
    stats_tell_what_each_container_uses_once_or_again_and_again,
    info_tells_how_the_root_is_set_up_and_what_it_has,
    a_completion_knows_every_command_and_its_flags,
    logs_come_where_they_came_from_and_as_many_as_asked_for,
    followed_logs_come_as_they_are_written_and_end_with_the_container,
    ps_shows_the_last_that_were_created,
    doctor_finds_nothing_wrong_with_this_host,
    images_tell_what_they_share,
    a_pull_asks_the_registry_as_its_policy_says,
    a_restore_discards_what_is_not_synced_only_if_told_to,
    a_foreground_run_passes_signals_on,
];

async fn stats_tell_what_each_container_uses_once_or_again_and_again(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await.to_owned();
    let run = async |name: &str, script: &str| {
        let words = ["run", "-d", "--network", "none", "-m", "64m", "--name", name, &image, "sh", "-c", script];
        berth(&root, &words).await.succeeded();
    };
    run("busy", "while :; do :; done").await;
    run("idle", IDLE).await;
    run("over", "true").await;
    berth(&root, &["wait", "over"]).await.succeeded();
    until_it_idles_on(&root, &ContainerId::new("idle", 0)).await;
    let once = async |more: &[&str]| {
        let lines = berth(&root, &[&["stats", "--no-stream", "--json"], more].concat()).await.json();
        let of_one = |line: &Value| (line["id"].as_str().unwrap().to_owned(), line.clone());
        lines.as_array().unwrap().iter().map(of_one).collect::<BTreeMap<_, _>>()
    };
    let running = once(&[]).await;
    assert_eq!(running.keys().collect::<Vec<_>>(), ["busy-rep-0", "idle-rep-0"]);
    let percent = |line: &Value| line["cpu_percent"].as_f64().unwrap();
    let (busy, idle) = (&running["busy-rep-0"], &running["idle-rep-0"]);
    assert!(percent(busy) > percent(idle), "{busy} {idle}");
    assert_eq!(idle["memory_limit"], 64 << 20);
    assert_eq!(idle["detailed"]["pids"]["current"], 2, "{idle}");
    let all = once(&["-a"]).await;
    assert_eq!(all.len(), 3);
    assert!(all["over-rep-0"]["cpu_percent"].is_null(), "{all:?}");
    assert_eq!(once(&["over", "idle"]).await.keys().collect::<Vec<_>>(), ["idle-rep-0", "over-rep-0"]);

    let table = berth(&root, &["stats", "--no-stream"]).await.succeeded();
    let mut lines = table.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("CONTAINER ") && line.contains("CPU %")), "{table}");
    let busy = lines.next().unwrap();
    assert!(busy.starts_with("busy-rep-0 ") && busy.contains("%") && busy.contains("/ 64MiB"), "{table}");
    assert_eq!(lines.count(), 1, "{table}");
    let (code, _) = berth(&root, &["--json", "stats", "--no-stream", "nobody"]).await.refused(1);
    assert_eq!(code, "container.not_found");

    let streaming = command(&root).args(["stats", "--json"]).stdout(Stdio::piped()).kill_on_drop(true).spawn();
    let mut streaming = streaming.unwrap();
    let mut lines = BufReader::new(streaming.stdout.take().unwrap()).lines();
    let mut ids = Vec::new();
    for _ in 0..4 {
        let line = soon("a line", lines.next_line()).await.unwrap().expect("it goes on");
        ids.push(serde_json::from_str::<Value>(&line).unwrap()["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids, ["busy-rep-0", "idle-rep-0", "busy-rep-0", "idle-rep-0"]);
    streaming.kill().await.unwrap();
    berth(&root, &["rm", "-f", "busy", "idle", "over"]).await.succeeded();
}

async fn info_tells_how_the_root_is_set_up_and_what_it_has(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let image = case.suite.busybox().await.to_owned();
    berth(&root, &["run", "-d", "--network", "none", "--name", "on", &image, "sh", "-c", IDLE]).await.succeeded();
    berth(&root, &["create", "--network", "none", "--name", "new", "-v", "data:/data", &image]).await.succeeded();
    let told = berth(&root, &["info", "--json"]).await.json();
    let s3 = root.s3.clone().unwrap();
    for (name, value) in [
        ("root", json!(root.dir)),
        ("run_dir", json!(root.run_dir)),
        ("cgroup_parent", json!(root.cgroup_parent)),
        ("bridge", json!(root.bridge)),
        ("subnet", json!(root.subnet)),
        ("s3_bucket", json!(s3.bucket)),
        ("s3_endpoint", json!(s3.endpoint)),
        ("s3_prefix", json!(s3.prefix)),
        ("containers", json!(2)),
        ("containers_running", json!(1)),
        ("images", json!(1)),
        ("volumes", json!(1)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
    let text = berth(&root, &["info"]).await.succeeded();
    let line = format!("root: {}\n", root.dir.display());
    assert!(text.contains(&line) && text.contains("\ncontainers_running: 1\n"), "{text}");
    berth(&root, &["rm", "-f", "on", "new"]).await.succeeded();
}

async fn a_completion_knows_every_command_and_its_flags(case: Case) {
    // It needs no root.
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = case.berth(&["completion", shell]).await.succeeded();
        for word in ["restart", "stats", "no-stream", "health-cmd", "history", "take-over", "s3-bucket"] {
            assert!(script.contains(word), "{shell} knows no {word}");
        }
    }
    assert_eq!(case.berth(&["completion", "tcsh"]).await.code, 2);
}

/// Writes three lines, one of them to standard error, and one that has no end.
/// Lines of two streams, so far apart that the order in which they are read is theirs.
fn four() -> String {
    let pause = patience(Duration::from_millis(200)).as_secs_f64();
    format!("echo one; sleep {pause}; echo two >&2; sleep {pause}; echo three; sleep {pause}; printf four")
}

async fn logs_come_where_they_came_from_and_as_many_as_asked_for(case: Case) {
    let id = case.start(&case.script(&four()).await).await;
    let name = id.to_string();
    case.finish(&id).await;
    let logs = async |flags: &[&str]| {
        let said = case.berth(&[&["logs"], flags, &[&name]].concat()).await;
        assert_eq!(said.code, 0, "{flags:?}: {said:?}");
        (said.stdout, said.stderr)
    };
    let both = |out: &str, err: &str| (out.to_owned(), err.to_owned());
    assert_eq!(logs(&[]).await, both("one\nthree\nfour", "two\n"));
    for (flags, out, err) in [
        (&["-n", "0"][..], "", ""),
        (&["-n", "1"], "four", ""),
        (&["--tail", "3"], "three\nfour", "two\n"),
        (&["--tail=all"], "one\nthree\nfour", "two\n"),
        (&["--since", "1h"], "one\nthree\nfour", "two\n"),
        (&["--since", "2099-01-01"], "", ""),
        (&["--until", "1h"], "", ""),
    ] {
        assert_eq!(logs(flags).await, both(out, err), "{flags:?}");
    }
    let (json, _) = logs(&["--json"]).await;
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let messages: Vec<_> = lines.iter().map(|line| (line["stream"].as_str(), line["message"].as_str())).collect();
    let of = |stream, message| (Some(stream), Some(message));
    assert_eq!(messages, [of("stdout", "one"), of("stderr", "two"), of("stdout", "three"), of("stdout", "four")]);
    let time = |index: usize| lines[index]["timestamp"].as_str().unwrap().to_owned();
    assert_eq!(logs(&["--since", &time(1), "--until", &time(3)]).await, both("three\n", "two\n"));
    // Each line has its own time in front, once.
    let stamped = |index: usize, text: &str| format!("{} {text}", time(index));
    let out = stamped(0, "one\n") + &stamped(2, "three\n") + &stamped(3, "four");
    assert_eq!(logs(&["-t"]).await, (out, stamped(1, "two\n")));
}

async fn followed_logs_come_as_they_are_written_and_end_with_the_container(case: Case) {
    let id = case.start(&case.script("echo early; until [ -e /go ]; do sleep 0.05; done; echo late").await).await;
    case.until_logged(&id, "early").await;
    let root = case.suite.shared().await.root.clone();
    let words = ["logs", "--follow", "-n", "1", &id.to_string()];
    let mut followed = command(&root).args(words).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(followed.stdout.take().unwrap()).lines();
    assert_eq!(soon("what is there", lines.next_line()).await.unwrap().as_deref(), Some("early"));
    case.exec_ok(&id, ": > /go").await;
    assert_eq!(soon("what comes", lines.next_line()).await.unwrap().as_deref(), Some("late"));
    assert_eq!(soon("its end", lines.next_line()).await.unwrap(), None);
    assert!(soon("its end", followed.wait()).await.unwrap().success());
}

async fn ps_shows_the_last_that_were_created(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await.to_owned();
    for name in ["c", "a", "b"] {
        berth(&root, &["create", "--network", "none", "--name", name, &image, "true"]).await.succeeded();
    }
    for (flags, ids) in [
        (&["-l"][..], &["b-rep-0"][..]),
        (&["-n", "1"], &["b-rep-0"]),
        (&["--last=2"], &["a-rep-0", "b-rep-0"]),
        (&["-n", "9"], &["a-rep-0", "b-rep-0", "c-rep-0"]),
    ] {
        let listed = berth(&root, &[&["ps", "-q"], flags].concat()).await.succeeded();
        let mut listed: Vec<&str> = listed.lines().collect();
        listed.sort_unstable();
        assert_eq!(listed, ids, "{flags:?}");
    }
    berth(&root, &["rm", "a", "b", "c"]).await.succeeded();
}

async fn doctor_finds_nothing_wrong_with_this_host(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let said = berth(&root, &["doctor", "--json"]).await;
    let checks = said.json();
    let verdicts: BTreeMap<&str, &str> = checks
        .as_array()
        .unwrap()
        .iter()
        .map(|check| (check["name"].as_str().unwrap(), check["verdict"].as_str().unwrap()))
        .collect();
    assert!(verdicts.len() > 8 && !verdicts.values().any(|verdict| *verdict == "fail"), "{checks}");
    // What all other tests need of this host is there.
    for name in ["kernel", "cgroup", "overlay", "seccomp", "helpers", "nft", "open", "s3"] {
        assert_eq!(verdicts.get(name), Some(&"ok"), "{name}: {checks}");
    }
    let table = berth(&root, &["doctor"]).await.succeeded();
    assert!(table.starts_with("CHECK ") && table.lines().count() == verdicts.len() + 1, "{table}");
}

async fn images_tell_what_they_share(case: Case) {
    let root = case.root("root");
    let own = |text: &str| Image::busybox().layer(LayerBuilder::new().file(text, 0o644, text.as_bytes()).finish());
    let images = [("one", own("one")), ("other", own("another"))];
    for (tag, image) in &images {
        let reference = case.push(tag, image).await;
        berth(&root, &["pull", "-q", &reference]).await.succeeded();
    }
    let listed = berth(&root, &["images", "--json"]).await.json();
    let sizes = |tag: &str| {
        let of_tag = |one: &&Value| one["reference"].as_str().unwrap().ends_with(&format!(":{tag}"));
        let one = listed.as_array().unwrap().iter().find(of_tag).unwrap_or_else(|| panic!("no {tag}: {listed}"));
        ["size_bytes", "unique_bytes", "shared_bytes"].map(|name| one[name].as_u64().unwrap() as usize)
    };
    for (tag, image) in &images {
        let (shared, own, config) = (image.layers[0].gzip.len(), image.layers[1].gzip.len(), image.documents().0.len());
        assert_eq!(sizes(tag), [shared + own + config, own + config, shared], "{tag}: {listed}");
    }
    let format = ["images", "--format", "{{.Tag}} {{.Size}} {{.SharedSize}} {{.UniqueSize}}"];
    let text = berth(&root, &format).await.succeeded();
    assert!(text.lines().count() == 2 && text.lines().all(|line| line.matches('B').count() == 3), "{text}");
    // The other gone, nothing is shared.
    let (gone, left) = (&images[0], &images[1]);
    let all = berth(&root, &["images", "--json"]).await.json();
    let name =
        all.as_array().unwrap().iter().find_map(|one| one["reference"].as_str().filter(|name| name.ends_with(gone.0)));
    berth(&root, &["rmi", name.unwrap()]).await.succeeded();
    let listed = berth(&root, &["images", "--json"]).await.json();
    let size: usize = left.1.layers.iter().map(|layer| layer.gzip.len()).sum::<usize>() + left.1.documents().0.len();
    assert_eq!((&listed[0]["unique_bytes"], &listed[0]["shared_bytes"]), (&json!(size), &json!(0)), "{listed}");
}

async fn a_pull_asks_the_registry_as_its_policy_says(case: Case) {
    let root = case.root("root");
    let printing = |text: &str| Image::busybox().with("Labels", json!({"is": text}));
    let image = case.push("moving", &printing("old")).await;
    let pull = async |flags: &[&str]| berth(&root, &[&["pull", "--json"], flags, &[&image]].concat()).await;
    let (code, _) = pull(&["--policy", "never"]).await.refused(1);
    assert_eq!(code, "image.not_present");
    let digest = async |flags: &[&str]| pull(flags).await.json()["digest"].as_str().unwrap().to_owned();
    let old = digest(&["--policy", "missing"]).await;
    case.push("moving", &printing("new")).await;
    assert_eq!(digest(&["--policy", "never"]).await, old);
    assert_eq!(digest(&["--policy=missing"]).await, old);
    let new = digest(&[]).await;
    assert_ne!(new, old, "always is what it does");
    assert_eq!(digest(&["--policy", "always"]).await, new);
}

async fn a_restore_discards_what_is_not_synced_only_if_told_to(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let image = case.suite.busybox().await.to_owned();
    let run = async |script: &str| {
        let words = ["run", "--rm", "--network", "none", "-v", "data:/data", &image, "sh", "-c", script];
        berth(&root, &words).await.succeeded()
    };
    run("echo synced > /data/file").await;
    switch.turn_off().await;
    run("echo not synced > /data/file").await;
    switch.turn_on().await;
    let (code, message) = berth(&root, &["--json", "volume", "restore", "data"]).await.refused(1);
    assert!(code.starts_with("volume.") && message.contains("data"), "{code}: {message}");
    assert_eq!(run("cat /data/file").await, "not synced\n");
    switch.turn_off().await;
    run("echo never > /data/file").await;
    switch.turn_on().await;
    let history = berth(&root, &["--json", "volume", "history", "data"]).await.json();
    let first =
        history.as_array().unwrap().iter().filter_map(|one| one["generation"].as_u64()).min().unwrap().to_string();
    let restore = ["volume", "restore", "--generation", &first, "data"];
    assert_eq!(berth(&root, &restore).await.code, 1, "what was not synced is gone");
    berth(&root, &[&restore[..], &["--discard-local"]].concat()).await.succeeded();
    assert_eq!(run("cat /data/file").await, "synced\n");
}

async fn a_foreground_run_passes_signals_on(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await.to_owned();
    let script =
        "trap 'echo usr1' USR1; trap 'echo term; exit 7' TERM; echo on; while :; do sleep 3600 & wait $!; done";
    let words = ["run", "--rm", "--network", "none", "--name", "web", &image, "sh", "-c", script];
    let mut run = command(&root)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    let pid = rustix::process::Pid::from_raw(run.id().unwrap().cast_signed()).unwrap();
    let next = async |lines: &mut tokio::io::Lines<_>| soon("a line", lines.next_line()).await.unwrap();
    assert_eq!(next(&mut lines).await.as_deref(), Some("on"));
    for (signal, line) in [(rustix::process::Signal::USR1, "usr1"), (rustix::process::Signal::TERM, "term")] {
        rustix::process::kill_process(pid, signal).unwrap();
        assert_eq!(next(&mut lines).await.as_deref(), Some(line));
    }
    assert_eq!(next(&mut lines).await, None);
    let ended = soon("its end", run.wait()).await.unwrap();
    let mut stderr = String::new();
    run.stderr.take().unwrap().read_to_string(&mut stderr).await.unwrap();
    assert_eq!((ended.code(), stderr.as_str()), (Some(7), ""));
    eventually("it is removed", || async { berth(&root, &["ps", "-aq"]).await.succeeded().is_empty() }).await;
}
