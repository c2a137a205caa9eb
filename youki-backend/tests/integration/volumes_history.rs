//! The `berth volume` commands on a history in S3: compared, verified, claimed by hand.

use aws_sdk_s3::primitives::ByteStream;

use crate::support::Case;
use crate::support::berth::berth;
use crate::support::root::Root;
use crate::support::servers::S3_BUCKET;

crate::tests![
    diff_tells_what_changed,
    verify_finds_what_is_damaged,
    of_a_pack_that_is_cut_short_the_rest_is_damaged_and_who_goes_back_may,
    claim_takes_over_by_hand,
    a_sync_of_an_idle_volume_keeps_no_claim,
    an_older_generation_restored_in_place_is_published,
];

/// A root without a keeper, and a run on it with volume `data` at `/data`.
async fn root(case: &Case, word: &str) -> Root {
    Root { keeper: false, ..case.root_with_s3(word, "p").await }
}

async fn run(case: &Case, root: &Root, script: &str) -> String {
    let image = case.suite.busybox().await;
    let words = ["run", "--rm", "--network", "none", "-v", "data:/data", image, "sh", "-c", script];
    berth(root, &words).await.succeeded()
}

/// The numbers of the generations, oldest first.
async fn generations(root: &Root) -> Vec<String> {
    let history = berth(root, &["volume", "history", "data", "--json"]).await.json();
    history.as_array().unwrap().iter().map(|entry| entry["generation"].to_string()).collect()
}

async fn diff_tells_what_changed(case: Case) {
    let root = root(&case, "root").await;
    run(&case, &root, "cd /data; mkdir d; echo 1 > d/changed; echo 2 > removed; echo 3 > same; echo 4 > mode").await;
    run(&case, &root, "cd /data; echo more >> d/changed; rm removed; echo 5 > added; chmod 600 mode").await;
    let numbers = generations(&root).await;
    let [old, new] = numbers.as_slice() else { panic!("{numbers:?}") };
    let said = berth(&root, &["volume", "diff", "data", old, new]).await.succeeded();
    assert_eq!(said, "A added\nC d/changed\nC mode\nD removed\n");
    let told = berth(&root, &["volume", "diff", "data", old, new, "--json"]).await.json();
    let expected = serde_json::json!([
        {"path": "added", "change": "added", "old_size_bytes": null, "new_size_bytes": 2},
        {"path": "d/changed", "change": "content", "old_size_bytes": 2, "new_size_bytes": 7},
        {"path": "mode", "change": "attributes", "old_size_bytes": 2, "new_size_bytes": 2},
        {"path": "removed", "change": "removed", "old_size_bytes": 2, "new_size_bytes": null},
    ]);
    assert_eq!(told, expected);
    assert_eq!(berth(&root, &["volume", "diff", "data", new, new]).await.succeeded(), "");
    let said = berth(&root, &["volume", "diff", "data", old, "99"]).await;
    assert!(said.code == 1 && said.stderr.contains("no generation 99"), "{said:?}");
}

async fn verify_finds_what_is_damaged(case: Case) {
    let root = root(&case, "root").await;
    run(&case, &root, "echo of the first > /data/first").await;
    run(&case, &root, "echo of the second > /data/second").await;
    let said = berth(&root, &["volume", "verify", "data"]).await.succeeded();
    assert!(said.starts_with("2 generations, ") && said.ends_with(": whole\n"), "{said}");
    // One bit on the server's disk.
    damage(&case, &root, b"of the second", |pack, at| pack[at] ^= 1).await;
    let newest = generations(&root).await.pop().unwrap();
    let said = berth(&root, &["volume", "verify", "data"]).await;
    assert!(said.code == 1 && said.stdout.ends_with(": damaged\n"), "{said:?}");
    let place = format!("berth: volume data: generation {newest}: second: ");
    assert!(said.stderr.starts_with(&place) && said.stderr.lines().count() == 1, "{said:?}");
    let said = berth(&root, &["volume", "verify", "data", "--generation", &newest, "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert!(said.code == 1 && report["damaged"][0]["path"] == "second", "{said:?}");
}

async fn of_a_pack_that_is_cut_short_the_rest_is_damaged_and_who_goes_back_may(case: Case) {
    let root = root(&case, "root").await;
    run(&case, &root, "echo of the first > /data/first").await;
    run(&case, &root, "echo of the second > /data/second").await;
    // A server refuses a range that begins behind the end.
    damage(&case, &root, b"of the second", |pack, _| pack.truncate(1)).await;
    let numbers = generations(&root).await;
    let said = berth(&root, &["volume", "verify", "data"]).await;
    assert!(said.code == 1 && said.stdout.ends_with(": damaged\n"), "{said:?}");
    assert!(said.stderr.contains(&format!("generation {}: ", numbers[1])), "{said:?}");
    let first = berth(&root, &["volume", "verify", "data", "--generation", &numbers[0]]).await.succeeded();
    assert!(first.ends_with(": whole\n"), "{first}");
    berth(&root, &["volume", "restore", "data", "--generation", &numbers[0]]).await.succeeded();
    assert_eq!(run(&case, &root, "ls /data; cat /data/first").await, "first\nof the first\n");
}

/// Does so to the one pack of the volume that holds `text`, which is told with the place of it.
async fn damage(case: &Case, root: &Root, text: &[u8], spoil: impl Fn(&mut Vec<u8>, usize)) {
    let s3 = case.suite.s3().await;
    let prefix = format!("{}/data/packs/", root.s3.as_ref().unwrap().prefix);
    let listed = s3.client.list_objects_v2().bucket(S3_BUCKET).prefix(prefix).send().await.unwrap();
    let mut damaged = 0;
    for key in listed.contents().iter().filter_map(|object| object.key()) {
        let object = s3.client.get_object().bucket(S3_BUCKET).key(key).send().await.unwrap();
        let mut body = object.body.collect().await.unwrap().to_vec();
        if let Some(at) = body.windows(text.len()).position(|window| window == text) {
            spoil(&mut body, at);
            s3.client.put_object().bucket(S3_BUCKET).key(key).body(ByteStream::from(body)).send().await.unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
}

async fn claim_takes_over_by_hand(case: Case) {
    let (a, b) = (root(&case, "a").await, root(&case, "b").await);
    let image = case.suite.busybox().await;
    let idle = "echo from a > /data/file; sleep 300";
    let words = ["run", "-d", "--name", "web", "--network", "none", "-v", "data:/data", image, "sh", "-c", idle];
    berth(&a, &words).await.succeeded();
    while berth(&a, &["exec", "web", "test", "-s", "/data/file"]).await.code != 0 {}
    berth(&a, &["volume", "sync", "data"]).await.succeeded();
    let said = berth(&b, &["volume", "claim", "data"]).await;
    assert!(said.code == 1 && said.stderr.contains("in use on host"), "{said:?}");
    assert!(said.stderr.contains("`berth volume claim data --take-over`"), "{said:?}");
    let claimed = berth(&b, &["volume", "claim", "data", "--take-over", "--json"]).await.json();
    let owner = claimed[0]["owner"].as_str().unwrap().to_owned();
    let held = berth(&a, &["volume", "inspect", "data"]).await.json();
    assert_ne!(held[0]["owner"], owner.as_str(), "both are told that they own it");
    // A keeper leaves it alone, and who creates needs no word any more.
    berth(&b, &["shutdown"]).await.succeeded();
    assert_eq!(berth(&b, &["volume", "inspect", "data"]).await.json()[0]["owner"], owner.as_str());
    assert_eq!(run(&case, &b, "cat /data/file; echo from b > /data/file").await, "from a\n");
    // Who thought that it had it is told, and loses nothing.
    let said = berth(&a, &["rm", "-f", "web"]).await;
    assert!(said.code == 0 && !said.stderr.contains("not durable"), "{said:?}");
    assert_eq!(run(&case, &a, "cat /data/file").await, "from b\n");
}

async fn a_sync_of_an_idle_volume_keeps_no_claim(case: Case) {
    let (a, b) = (root(&case, "a").await, root(&case, "b").await);
    run(&case, &a, "echo from a > /data/file").await;
    std::fs::write(a.dir.join("volumes/data/data/file"), "by hand").unwrap();
    let synced = berth(&a, &["volume", "sync", "data", "--json"]).await.json();
    assert!(synced[0]["owner"].is_null(), "{synced}");
    let history = berth(&a, &["volume", "history", "data", "--all", "--json"]).await.json();
    let kinds: Vec<_> = history.as_array().unwrap().iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["claim", "data", "released", "claim", "data", "released"]);
    assert_eq!(run(&case, &b, "cat /data/file").await, "by hand");
}

async fn an_older_generation_restored_in_place_is_published(case: Case) {
    let (a, b) = (root(&case, "a").await, root(&case, "b").await);
    run(&case, &a, "head -c 3000000 /dev/urandom > /data/big; echo old > /data/file").await;
    run(&case, &a, "echo new > /data/file").await;
    let numbers = generations(&a).await;
    berth(&a, &["volume", "restore", "data", "--generation", &numbers[0]]).await.succeeded();
    let said = berth(&a, &["volume", "rm", "data"]).await;
    let unpublished = format!("generation {} was restored here", numbers[0]);
    assert!(said.code == 1 && said.stderr.contains(&unpublished), "{said:?}");
    let told = berth(&a, &["volume", "inspect", "data"]).await.json();
    assert_eq!(
        (told[0]["generation"].to_string(), &told[0]["bytes_at_risk"]),
        (numbers[0].clone(), &4.into()),
        "{told}"
    );
    assert!(told[0]["durable_at"].is_null(), "{told}");
    assert!(told[0]["last_error"].as_str().unwrap().contains(&unpublished), "{told}");
    assert!(berth(&a, &["volume", "ls"]).await.succeeded().contains(&unpublished));
    let synced = berth(&a, &["volume", "sync", "data", "--json"]).await.json();
    let published = generations(&a).await;
    assert!(synced[0]["durable_at"].is_string() && synced[0]["bytes_at_risk"] == 0, "{synced}");
    assert_eq!((published.len(), synced[0]["generation"].to_string()), (3, published[2].clone()), "{synced}");
    let history = berth(&a, &["volume", "history", "data", "--json"]).await.json();
    assert_eq!(history[2]["new_bytes"], 0, "{history}");
    assert_eq!(berth(&a, &["volume", "diff", "data", &published[0], &published[2]]).await.succeeded(), "");
    assert_eq!(run(&case, &b, "cat /data/file").await, "old\n");
    // The newest is there already.
    berth(&b, &["volume", "restore", "data"]).await.succeeded();
    berth(&b, &["volume", "sync", "data"]).await.succeeded();
    assert_eq!(generations(&b).await.len(), 3);
}
