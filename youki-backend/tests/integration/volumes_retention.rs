//! Retention: what of a history is kept, who prunes, and what is left when a prune is killed.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use serde_json::json;

use crate::support::Case;
use crate::support::berth::{Said, berth, command};
use crate::support::case::eventually;
use crate::support::root::Root;
use crate::support::servers::S3_BUCKET;

crate::tests![
    what_is_kept_is_whole_and_the_rest_is_gone,
    a_prune_killed_in_the_middle_is_finished_by_the_next,
    who_does_not_own_it_prunes_nothing,
    the_keeper_prunes_what_has_grown,
    the_keeper_cuts_a_log_of_renewals_off_and_keeps_every_tree,
];

/// A config file for `berth` that keeps the newest `last`.
fn keeping(case: &Case, root: &Root, last: u32) -> String {
    let file = case.suite.dir.path().join(format!("{}-keep-{last}.toml", root.name));
    std::fs::write(&file, format!("[volumes.keep]\nlast = {last}\n")).unwrap();
    file.to_str().unwrap().to_owned()
}

/// One generation more: a megabyte that nobody else has, and a file that says which it is.
async fn generation(case: &Case, root: &Root, text: &str) -> u64 {
    let script = format!("echo {text} > /data/file; head -c 1000000 /dev/urandom > /data/noise");
    let image = case.suite.busybox().await;
    let words = ["run", "--rm", "--network", "none", "-v", "data:/data", image, "sh", "-c", &script];
    let said = berth(root, &words).await;
    assert!(!said.stderr.contains("not durable"), "{said:?}");
    said.succeeded();
    *generations(root).await.last().unwrap()
}

async fn generations(root: &Root) -> Vec<u64> {
    let history = berth(root, &["volume", "history", "data", "--json"]).await.json();
    history.as_array().unwrap().iter().map(|entry| entry["generation"].as_u64().unwrap()).collect()
}

/// The keys of the volume that contain `part`, and the bytes of the objects.
async fn objects(case: &Case, root: &Root, part: &str) -> (BTreeSet<String>, u64) {
    let s3 = case.suite.s3().await;
    let prefix = format!("{}/data/{part}", root.s3.as_ref().unwrap().prefix);
    let listed = s3.client.list_objects_v2().bucket(S3_BUCKET).prefix(prefix).send().await.unwrap();
    let bytes = listed.contents().iter().filter_map(|object| object.size()).sum::<i64>();
    (listed.contents().iter().filter_map(|object| object.key().map(str::to_owned)).collect(), bytes.cast_unsigned())
}

/// What `file` of that generation says.
async fn text_of(case: &Case, root: &Root, generation: u64) -> Result<String, Said> {
    let to = case.suite.dir.path().join(format!("{}-{generation}-beside", root.name));
    let words = ["volume", "restore", "data", "--generation", &generation.to_string(), "--to", to.to_str().unwrap()];
    let said = berth(root, &words).await;
    if said.code != 0 {
        return Err(said);
    }
    let text = std::fs::read_to_string(to.join("file")).unwrap();
    std::fs::remove_dir_all(&to).unwrap();
    Ok(text)
}

async fn is_whole(root: &Root) {
    let said = berth(root, &["volume", "verify", "data"]).await;
    assert!(said.code == 0 && said.stdout.ends_with(": whole\n"), "{said:?}");
}

async fn what_is_kept_is_whole_and_the_rest_is_gone(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let mut numbers = Vec::new();
    for text in ["first", "second", "third", "fourth"] {
        numbers.push(generation(&case, &root, text).await);
    }
    let (packs, bytes) = objects(&case, &root, "").await;
    let said = berth(&root, &["volume", "prune", "-f", "data"]).await;
    assert!(said.code == 0 && said.stderr.contains("no retention is configured"), "{said:?}");
    assert_eq!(objects(&case, &root, "").await.0, packs, "something went");
    let keep_two = keeping(&case, &root, 2);
    let pruned = berth(&root, &["--config", &keep_two, "volume", "prune", "-f", "data", "--json"]).await.json();
    assert_eq!((&pruned["removed"], &pruned["kept"]), (&json!(numbers[..2]), &json!(numbers[2..])), "{pruned}");
    assert!(pruned["space_reclaimed"].as_u64() > Some(2_000_000), "{pruned}");
    let left = objects(&case, &root, "").await.1;
    assert!(left < bytes - 1_990_000, "{left} of {bytes} bytes are left");
    let gone = text_of(&case, &root, numbers[0]).await.unwrap_err();
    assert!(gone.stderr.contains(&format!("no generation {}", numbers[0])), "{gone:?}");
    assert_eq!(text_of(&case, &root, numbers[2]).await.unwrap(), "third\n");
    assert_eq!(generations(&root).await, numbers[2..]);
    is_whole(&root).await;
    // It goes on, here and on another host, which begins with what is left.
    let other = Root { keeper: false, ..case.root_with_s3("other", "p").await };
    numbers.push(generation(&case, &other, "fifth").await);
    let said = berth(&root, &["--config", &keep_two, "volume", "prune", "-f", "data"]).await.succeeded();
    assert!(said.starts_with(&format!("Deleted: generation {}\nTotal reclaimed space: ", numbers[2])), "{said}");
    assert_eq!(text_of(&case, &other, numbers[3]).await.unwrap(), "fourth\n");
    assert_eq!(text_of(&case, &other, numbers[4]).await.unwrap(), "fifth\n");
    is_whole(&other).await;
}

async fn a_prune_killed_in_the_middle_is_finished_by_the_next(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    for text in ["first", "second", "third", "fourth", "fifth"] {
        generation(&case, &root, text).await;
    }
    let keep_one = keeping(&case, &root, 1);
    let (packs, _) = objects(&case, &root, "packs/").await;
    // It comes to the record, and not to the end of what that names.
    switch.let_delete(5);
    let mut prune = command(&root).args(["--config", &keep_one, "volume", "prune", "-f", "data"]).spawn().unwrap();
    eventually("it has decided", || async {
        let (log, _) = objects(&case, &root, "log/").await;
        let (lists, _) = objects(&case, &root, "prunes/").await;
        let number = |key: &String| key.rsplit('/').next().unwrap()[..20].to_owned();
        lists.iter().any(|list| log.iter().any(|record| number(record) == number(list)))
    })
    .await;
    prune.kill().await.unwrap();
    switch.turn_on().await;
    let (left, _) = objects(&case, &root, "packs/").await;
    assert!(left.len() > 1, "it was not caught in the middle: {left:?} of {packs:?}");
    assert_eq!(objects(&case, &root, "prunes/").await.0.len(), 1);
    // What it decided holds already, and what stays is whole.
    let numbers = generations(&root).await;
    assert_eq!(numbers.len(), 1, "{numbers:?}");
    assert_eq!(text_of(&case, &root, numbers[0]).await.unwrap(), "fifth\n");
    is_whole(&root).await;
    let sixth = generation(&case, &root, "sixth").await;
    is_whole(&root).await;
    berth(&root, &["--config", &keep_one, "volume", "prune", "-f", "data"]).await.succeeded();
    assert_eq!(generations(&root).await, [sixth]);
    is_whole(&root).await;
    let (left, bytes) = objects(&case, &root, "packs/").await;
    assert!(left.is_disjoint(&packs) && bytes < 1_100_000, "{left:?}, {bytes} bytes");
    assert!(objects(&case, &root, "prunes/").await.0.is_empty(), "it was not finished");
}

async fn who_does_not_own_it_prunes_nothing(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let other = Root { keeper: false, ..case.root_with_s3("other", "p").await };
    for text in ["first", "second"] {
        generation(&case, &root, text).await;
    }
    let image = case.suite.busybox().await;
    let idle = ["run", "-d", "--name", "web", "--network", "none", "-v", "data:/data", image, "sleep", "300"];
    berth(&root, &idle).await.succeeded();
    let before = objects(&case, &root, "").await;
    let keep_one = keeping(&case, &other, 1);
    let prune = ["--config", &keep_one, "volume", "prune", "-f", "data", "--json"];
    let said = berth(&other, &prune).await;
    let error: serde_json::Value = serde_json::from_str(said.stderr.lines().last().unwrap()).unwrap();
    assert_eq!((said.code, &error["error"]["code"]), (1, &json!("volume.in_use_elsewhere")), "{said:?}");
    assert_eq!(objects(&case, &root, "").await, before);
    // The owner may, while it is used.
    assert_eq!(berth(&root, &prune).await.json()["removed"].as_array().unwrap().len(), 1);
    berth(&root, &["exec", "web", "sh", "-c", "echo third > /data/file"]).await.succeeded();
    let said = berth(&root, &["rm", "-f", "web"]).await;
    assert!(said.code == 0 && !said.stderr.contains("not durable"), "{said:?}");
    is_whole(&root).await;
    // Released, it is anybody's.
    assert_eq!(berth(&other, &prune).await.json()["removed"].as_array().unwrap().len(), 1);
    is_whole(&other).await;
    assert!(berth(&other, &["volume", "ls", "-q"]).await.succeeded().is_empty(), "it has a copy now");
}

async fn the_keeper_prunes_what_has_grown(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let mut first = None;
    for text in ["first", "second", "third"] {
        let number = generation(&case, &root, text).await;
        first.get_or_insert(number);
    }
    let mut config = Root { keeper: true, ..root.clone() }.config();
    config.volumes.keep = Some(volumes_s3::Keep { last: 1, ..volumes_s3::Keep::default() });
    // Who reads has time; a keeper that dies meanwhile leaves that to the next.
    config.volumes.prune_grace = Duration::from_secs(3600);
    let keeper = youki_backend::YoukiRuntime::open(config.clone()).await.unwrap();
    eventually("it is pruned", || async { generations(&root).await.len() == 1 }).await;
    let gone = text_of(&case, &root, first.unwrap()).await.unwrap_err();
    assert!(gone.stderr.contains(&format!("no generation {}", first.unwrap())), "{gone:?}");
    assert!(objects(&case, &root, "packs/").await.1 > 3_000_000, "it did not wait for readers");
    drop(keeper);
    config.volumes.prune_grace = Duration::from_secs(1);
    let keeper = youki_backend::YoukiRuntime::open(config).await.unwrap();
    eventually("all of it is gone", || async { objects(&case, &root, "prunes/").await.0.is_empty() }).await;
    assert!(objects(&case, &root, "packs/").await.1 < 1_100_000);
    is_whole(&root).await;
    assert!(keeper.volumes().status("data").await.unwrap().owner.is_none());
    // Within the hour it is left alone.
    generation(&case, &root, "fourth").await;
    drop(keeper);
    assert_eq!(generations(&root).await.len(), 2);
}

async fn the_keeper_cuts_a_log_of_renewals_off_and_keeps_every_tree(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let mut numbers = Vec::new();
    for text in ["first", "second"] {
        numbers.push(generation(&case, &root, text).await);
    }
    berth(&root, &["volume", "claim", "data"]).await.succeeded();
    // As it is after two days without a change, with `take_over_after` of 15 minutes.
    let s3 = case.suite.s3().await;
    let log = format!("{}/data/log/", root.s3.as_ref().unwrap().prefix);
    let newest = objects(&case, &root, "log/").await.0.pop_last().unwrap();
    let object = s3.client.get_object().bucket(S3_BUCKET).key(&newest).send().await.unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&object.body.collect().await.unwrap().to_vec()).unwrap();
    assert_eq!(record["kind"], "claim", "{record}");
    for renewal in 0..600 {
        let number = record["record"].as_u64().unwrap() + 1;
        record["previous"] = record["nonce"].clone();
        record["nonce"] = format!("{renewal:032x}").into();
        record["record"] = number.into();
        let (key, body) = (format!("{log}{number:020}"), ByteStream::from(record.to_string().into_bytes()));
        s3.client.put_object().bucket(S3_BUCKET).key(key).body(body).send().await.unwrap();
    }
    assert!(objects(&case, &root, "log/").await.0.len() > 600);
    let mut config = Root { keeper: true, ..root.clone() }.config();
    config.volumes.take_over_after = Some(Duration::from_secs(900));
    let keeper = youki_backend::YoukiRuntime::open(config).await.unwrap();
    let left = async || objects(&case, &root, "log/").await.0.len();
    let mut before = usize::MAX;
    // As long as it goes on, it may take its time.
    while before >= 10 {
        eventually("it is cut off", || async { left().await < before }).await;
        before = left().await;
    }
    eventually("and done", || async { objects(&case, &root, "prunes/").await.0.is_empty() }).await;
    assert_eq!(generations(&root).await, numbers);
    assert_eq!(text_of(&case, &root, numbers[0]).await.unwrap(), "first\n");
    is_whole(&root).await;
    let owner = keeper.volumes().status("data").await.unwrap().owner;
    assert_eq!(owner.as_deref(), record["owner"].as_str());
    numbers.push(generation(&case, &root, "third").await);
    assert_eq!(generations(&root).await, numbers);
    let other = Root { keeper: false, ..case.root_with_s3("other", "p").await };
    numbers.push(generation(&case, &other, "fourth").await);
    assert_eq!(generations(&other).await, numbers);
    is_whole(&other).await;
}
