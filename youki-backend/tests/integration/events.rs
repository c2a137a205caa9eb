//! What `berth events` tells, and of what.

use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use runtime_core::{Event, EventKind, EventsOptions, Runtime};

use crate::support::Case;
use crate::support::berth::command;
use crate::support::case::{IDLE, soon};
use crate::support::image::Image;
use crate::support::pace::patience;
use crate::volumes::named;

crate::tests![
    events_tell_the_life_of_a_container_in_order,
    a_slow_reader_until_a_time_misses_nothing_of_before,
    a_create_tells_of_the_image_that_it_pulls_and_of_none_that_is_here,
];

async fn events_tell_the_life_of_a_container_in_order(case: Case) {
    let mut spec = case.script(IDLE).await;
    spec.storage = vec![named("told", "/data")];
    let id = case.start(&spec).await;
    let name = id.to_string();
    case.until_it_idles(&id).await;
    let root = case.suite.shared().await.root.clone();
    let mut follower = command(&root)
        .args(["--json", "events", "-f", "--filter", &format!("container={}", id.service)])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // The second of each changes nothing.
    for command in ["pause", "pause", "unpause", "unpause"] {
        case.berth(&[command, &name]).await.succeeded();
    }
    case.berth(&["update", "--pids-limit", "99", &name]).await.succeeded();
    case.runtime.kill_container(&id, Some("TERM")).await.unwrap();
    case.finish(&id).await;
    case.runtime.start_container(&id).await.unwrap();
    case.until_it_idles(&id).await;
    case.runtime.stop_container(&id, Duration::from_secs(5)).await.unwrap();
    case.runtime.remove_container(&id).await.unwrap();
    let expected = ["create", "start", "pause", "unpause", "update", "kill", "exit", "start", "exit", "stop", "remove"];
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(follower.stdout.take().unwrap()));
    let mut followed = Vec::new();
    while followed.len() < expected.len() {
        let line = soon("an event", lines.next_line()).await.unwrap().expect("it goes on");
        followed.push(serde_json::from_str::<serde_json::Value>(&line).unwrap());
    }
    let kinds: Vec<&str> = followed.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    // A signal that is sent and the end it brings are told by two processes.
    let sorted = |from: usize, to: usize, kinds: &[&str]| {
        let mut some = kinds[from..to].to_vec();
        some.sort_unstable();
        some.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((&kinds[..5], &kinds[7..]), (&expected[..5], &expected[7..]), "{kinds:?}");
    assert_eq!(sorted(5, 7, &kinds), ["exit", "kill"]);
    let numbers: Vec<u64> = followed.iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert_eq!((&followed[8]["exit_code"], &followed[8]["attempt"]), (&0.into(), &2.into()));
    // Without --follow it ends, and tells the same.
    let text = case.berth(&["--json", "events", "--filter", &format!("container={name}")]).await.succeeded();
    let again: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(again, followed);
    let text = case.berth(&["events", "--filter", "volume=told"]).await.succeeded();
    assert!(text.contains(" volume volume told (durable)"), "{text}");
    let text = case.berth(&["events", "--since", "2099-01-01"]).await.succeeded();
    assert_eq!(text, "");
    assert_eq!(case.berth(&["events", "--filter", "bogus=1"]).await.code, 2);
    let of_it = format!("container={name}");
    let told = async |more: &[&str]| case.berth(&[&["events", "--filter", &of_it][..], more].concat()).await;
    let format = ["--filter", "event=die", "--format", "{{.Type}} {{.Action}} {{.ID}} {{.exit_code}}"];
    let ended = format!("container exit {name} 0\ncontainer exit {name} 0\n");
    assert_eq!(told(&format).await.succeeded(), ended);
    let both = told(&["--filter", "event=destroy", "--filter", "event=create", "--format", "{{.kind}}"]).await;
    assert_eq!(both.succeeded(), "create\nremove\n");
    let said = told(&["--filter", "event=bogus"]).await;
    assert!(said.code == 2 && said.stderr.contains("event=bogus") && said.stderr.contains("die"), "{said:?}");
    assert_eq!(told(&["--until", "2020-01-01"]).await.succeeded(), "");
    let ninth = followed[8]["time"].as_str().unwrap();
    assert_eq!(told(&["--until", ninth]).await.succeeded().lines().count(), 8);
    assert_eq!(told(&["--since", ninth]).await.succeeded().lines().count(), expected.len() - 8);
    // With --follow until then.
    let soon = (chrono::Utc::now() + chrono::Duration::seconds(1)).to_rfc3339();
    assert_eq!(told(&["-f", "--until", &soon]).await.succeeded().lines().count(), expected.len());
}

async fn a_slow_reader_until_a_time_misses_nothing_of_before(case: Case) {
    let root = case.root("root");
    case.berth_on(&root, &["ps"]).await.succeeded();
    let dir = root.run_dir.join("events");
    std::fs::create_dir_all(&dir).unwrap();
    let mut journal = "{\"first\":1}\n".to_owned();
    (0..EVENTS).for_each(|n| {
        let event = Event::now(EventKind::Update).of(format!("web-rep-{n}"));
        journal += &(serde_json::to_string(&event).unwrap() + "\n");
    });
    std::fs::write(dir.join("current.jsonl"), journal).unwrap();
    let time = patience(Duration::from_secs(1));
    let until = (chrono::Utc::now() + time).to_rfc3339();
    let mut follower = command(&root)
        .args(["events", "-f", "--until", &until, "--format", "{{.number}}"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // The pipe is full long before, and still is.
    tokio::time::sleep(time * 2).await;
    let mut said = String::new();
    let mut stdout = follower.stdout.take().unwrap();
    soon("its end", tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut said)).await.unwrap();
    assert!(follower.wait().await.unwrap().success());
    let numbers: Vec<u64> = said.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=EVENTS).collect::<Vec<_>>());
}

/// More than a pipe takes.
const EVENTS: u64 = 15_000;

async fn a_create_tells_of_the_image_that_it_pulls_and_of_none_that_is_here(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let image = case.push("pulled", &Image::busybox()).await;
    let pulls = async || pulls(&*runtime).await;
    let mut spec = case.spec(&["true"]).await;
    spec.image.name.clone_from(&image);
    runtime.create_container(&case.id_on(&runtime), &spec).await.unwrap();
    let [(first, digest)] = &pulls().await[..] else { panic!("{:?}", pulls().await) };
    assert!(*first == image && digest.starts_with("sha256:"), "{first} {digest}");
    runtime.create_container(&case.id_on(&runtime), &spec).await.unwrap();
    assert_eq!(pulls().await.len(), 1, "it was here");
    // The registry is asked, though it has nothing new.
    case.berth_on(&root, &["run", "--rm", "--network", "none", "--pull", "always", &image, "true"]).await.succeeded();
    assert_eq!(pulls().await.len(), 2);
    // Who asks for it by name is told in any case.
    runtime.pull_image(&image).await.unwrap();
    assert_eq!(pulls().await.len(), 3);
    let filter = format!("image={image}");
    let told = ["events", "--filter", "event=pull", "--filter", &filter, "--format", "{{.Type}} {{.ID}}"];
    assert_eq!(case.berth_on(&root, &told).await.succeeded(), format!("image {image}\n").repeat(3));
}

/// The images that were pulled, with what is said of each.
async fn pulls(runtime: &dyn Runtime) -> Vec<(String, String)> {
    let all = told(runtime).await.into_iter().filter(|event| event.kind == EventKind::Pull);
    all.map(|event| (event.image.unwrap(), event.detail.unwrap())).collect()
}

/// All events of the root.
async fn told(runtime: &dyn Runtime) -> Vec<Event> {
    let events = runtime.events(&EventsOptions::default()).await.unwrap();
    events.map(|event| event.unwrap()).collect().await
}

/// What was said of `volume`, in order.
pub async fn told_of_volume(runtime: &dyn Runtime, volume: &str) -> Vec<String> {
    let all = told(runtime).await.into_iter().filter(|event| event.volume.as_deref() == Some(volume));
    all.map(|event| event.detail.unwrap()).collect()
}
