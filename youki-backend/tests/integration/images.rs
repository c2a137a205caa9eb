//! Images: pulled by tag and digest, with and without credentials, from an index, listed, removed.

use runtime_core::{AgentError, PullPolicy};
use serde_json::json;

use crate::support::agent::{Agent, Request};
use crate::support::berth::{Said, berth_with, command};
use crate::support::case::words;
use crate::support::image::{INDEX, Image, LayerBuilder, MANIFEST, descriptor, digest_of};
use crate::support::pace::patience;
use crate::support::servers::{REGISTRY_PASSWORD, REGISTRY_USER};
use crate::support::switch::Switch;
use crate::support::{Case, right_credentials};

crate::tests![
    a_pull_by_digest_is_that_image,
    a_moved_tag_is_followed_only_when_asked,
    never_makes_no_network_call,
    inline_credentials_are_used,
    the_credential_store_is_used_by_host,
    an_index_gives_the_hosts_platform,
    an_image_of_another_platform_is_neither_pulled_nor_run_unless_asked_for,
    the_list_shows_what_was_pulled,
    a_removed_image_is_gone_and_its_shared_layers_stay,
    an_image_in_use_is_removed_only_by_force_and_its_container_lives,
    an_id_with_names_in_several_repositories_is_removed_only_by_force,
    an_image_without_a_name_is_listed_as_dockers_until_it_has_one,
    a_tag_is_a_further_name,
    a_loaded_archive_runs_without_a_registry,
    a_saved_image_is_loaded_by_others_and_by_us,
    a_push_brings_what_is_missing_and_another_root_pulls_it,
    a_push_without_the_right_to_it_is_refused,
    a_mirror_whose_credentials_cannot_be_had_is_passed_over,
    a_damaged_layer_is_found_by_verify_and_mended_by_a_pull,
    the_history_of_an_image_is_told,
    a_pull_killed_in_the_middle_leaves_nothing_that_is_taken_for_whole,
    pulls_of_one_image_at_once_all_succeed,
    owners_modes_links_and_times_of_a_layer_are_exact,
    a_layer_that_comes_twice_is_applied_twice,
];

/// An image that prints `text`.
fn printing(text: &str) -> Image {
    let layer = LayerBuilder::new().file("text", 0o644, text.as_bytes()).finish();
    Image::busybox().layer(layer).with("Cmd", json!(["cat", "/text"]))
}

async fn output_of(case: &Case, reference: &str, policy: PullPolicy) -> Vec<String> {
    let mut spec = case.spec(&[]).await;
    spec.image.name = reference.into();
    spec.image.pull_policy = policy;
    spec.command.args = None;
    case.run(&spec).await.succeeded()
}

async fn a_pull_by_digest_is_that_image(case: Case) {
    let (old, new) = (printing("old"), printing("new"));
    let reference = case.push("latest", &old).await;
    case.push("latest", &new).await;
    let by_digest = format!("{}@{}", reference.rsplit_once(':').unwrap().0, digest_of(&old.documents().1));
    assert_eq!(output_of(&case, &by_digest, PullPolicy::IfNotPresent).await, ["old"]);
    assert_eq!(output_of(&case, &reference, PullPolicy::IfNotPresent).await, ["new"]);
}

/// No index says so, only its configuration.
async fn an_image_of_another_platform_is_neither_pulled_nor_run_unless_asked_for(case: Case) {
    let root = case.root("foreign");
    let foreign = Image { architecture: "s390x", ..printing("foreign") };
    let reference = case.push("foreign", &foreign).await;
    let ours = format!("linux/{}", Image::busybox().architecture);
    let refused = |said: &Said, name: &str, wanted: &str, status: i32| {
        let told: serde_json::Value = serde_json::from_str(&said.stderr).unwrap_or_else(|_| panic!("{said:?}"));
        assert_eq!((said.code, &told["error"]["code"]), (status, &"image.no_platform".into()), "{said:?}");
        let expected = format!("{name} has no image for {wanted}; it has linux/s390x");
        assert_eq!(told["error"]["message"].as_str(), Some(expected.as_str()));
        assert!(told["error"]["hint"].as_str().unwrap().contains("--platform"), "{told}");
    };
    let berth = async |args: &[&str]| case.berth_on(&root, &[&["--json"], args].concat()).await;
    refused(&berth(&["pull", &reference]).await, &reference, &ours, 1);
    refused(&berth(&["run", "--rm", &reference]).await, &reference, &ours, 125);
    refused(&berth(&["pull", "--platform", "linux/ppc64le", &reference]).await, &reference, "linux/ppc64le", 1);
    assert_eq!(berth(&["images"]).await.json(), json!([]), "it was kept");
    let runtime = root.open().await.unwrap();
    let error = runtime.pull_image(&reference).await.unwrap_err();
    assert!(matches!(&error, AgentError::PullFailed { image, .. } if *image == reference), "{error:?}");
    assert_eq!(error.code(), "image.no_platform");

    // Asked for by name it is pulled, and run: this one's programs are the host's.
    berth(&["pull", "--platform", "linux/s390x", &reference]).await.succeeded();
    let run = ["run", "--rm", "--network", "none"];
    let said = case.berth_on(&root, &[&run[..], &["--platform", "linux/s390x", &reference]].concat()).await;
    assert_eq!(said.succeeded(), "foreign");
    refused(&berth(&["run", "--rm", &reference]).await, &reference, &ours, 125);
    refused(&berth(&["run", "--rm", "--pull", "never", &reference]).await, &reference, &ours, 125);
    let digest = digest_of(&foreign.documents().1);
    let id = &digest["sha256:".len()..][..12];
    refused(&berth(&["run", "--rm", id]).await, id, &ours, 125);

    // A loaded one is kept, to be saved and pushed; to run it is another matter.
    let file = case.suite.dir.path().join("foreign.tar");
    let path = file.to_str().unwrap();
    berth(&["tag", &reference, "example.org/foreign:1"]).await.succeeded();
    case.berth_on(&root, &["save", "-o", path, "example.org/foreign:1"]).await.succeeded();
    berth(&["rmi", "-f", id]).await.succeeded();
    assert_eq!(berth(&["load", "-i", path]).await.json()[0]["digest"], digest.as_str());
    refused(&berth(&["run", "--rm", "example.org/foreign:1"]).await, "example.org/foreign:1", &ours, 125);
}

/// As `docker save` writes it, by skopeo; from a file and from standard input.
async fn a_loaded_archive_runs_without_a_registry(case: Case) {
    let reference = case.push("saved", &printing("loaded")).await;
    let file = case.suite.dir.path().join("saved.tar");
    let target = format!("docker-archive:{}:example.org/loaded:1", file.display());
    let copied = std::process::Command::new("skopeo")
        .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false", &format!("docker://{reference}"), &target])
        .status()
        .expect("skopeo runs");
    assert!(copied.success());
    let said = case.berth(&["load", "-i", file.to_str().unwrap()]).await.succeeded();
    assert_eq!(said, "Loaded image: example.org/loaded:1\n");
    let piped = case.berth_with(&["--json", "load"], &std::fs::read(&file).unwrap()).await.json();
    assert_eq!(piped[0]["reference"], "example.org/loaded:1");
    assert_eq!(output_of(&case, "example.org/loaded:1", PullPolicy::Never).await, ["loaded"]);
    let listed = case.berth(&["images", "--digests", "example.org/loaded"]).await.succeeded();
    let id = piped[0]["id"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    assert!(listed.contains("IMAGE ID") && listed.contains(&id[..12]), "{listed}");
    assert!(listed.contains(piped[0]["digest"].as_str().unwrap()), "{listed}");
}

/// By skopeo and, where it is installed, podman; the digest stays what it was.
async fn a_saved_image_is_loaded_by_others_and_by_us(case: Case) {
    let image = printing("saved");
    let reference = case.push("tosave", &image).await;
    case.berth(&["pull", "-q", &reference]).await.succeeded();
    case.berth(&["tag", &reference, "example.org/saved:1"]).await.succeeded();
    let file = case.suite.dir.path().join("ours.tar");
    let path = file.to_str().unwrap();
    case.berth(&["save", "-o", path, "example.org/saved:1"]).await.succeeded();
    let shared = &case.suite.shared().await.root;
    let piped = command(shared).args(["save", "example.org/saved:1"]).output().await.unwrap().stdout;
    assert_eq!(piped, std::fs::read(&file).unwrap(), "to standard output it is the same archive");
    let inspected = |source: String| {
        let output = std::process::Command::new("skopeo").args(["inspect", "--raw", &source]).output().unwrap();
        assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let digest = case.berth(&["--json", "image", "inspect", "example.org/saved:1"]).await.json()[0]["digest"].clone();
    assert_eq!(digest_of(&inspected(format!("oci-archive:{path}"))), digest, "as an OCI archive");
    inspected(format!("docker-archive:{path}:example.org/saved:1"));
    let other = case.root("loads");
    let output = command(&other).args(["--json", "load", "-i", path]).output().await.unwrap();
    let loaded: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((loaded[0]["reference"].as_str(), &loaded[0]["digest"]), (Some("example.org/saved:1"), &digest));
    let absent = case.suite.dir.path().join("absent.tar");
    let refused = case.berth(&["save", "-o", absent.to_str().unwrap(), "example.org/absent:1"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(!absent.exists(), "an image that is not there left a file");
    // One that fails on its way leaves yesterday's archive as it was, and nothing beside it.
    let dir = case.suite.dir.path().join("archives");
    let kept = dir.join("kept.tar");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(&kept, "yesterday").unwrap();
    let blobs = other.dir.join("images/blobs/sha256");
    std::fs::remove_file(blobs.join(&digest_of(&image.layers[0].gzip)["sha256:".len()..])).unwrap();
    let output =
        command(&other).args(["save", "-o", kept.to_str().unwrap(), "example.org/saved:1"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let entries: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(entries == ["kept.tar"] && std::fs::read(&kept).unwrap() == b"yesterday", "{entries:?}");
}

/// The image is pulled from one registry, tagged for another that wants a password, and pushed there.
async fn a_push_brings_what_is_missing_and_another_root_pulls_it(case: Case) {
    let reference = case.push("topush", &printing("pushed")).await;
    case.berth(&["pull", "-q", &reference]).await.succeeded();
    let registry = case.suite.registry_auth().await;
    let target = format!("{}/private/pushed:1", registry.host);
    case.berth(&["tag", &reference, &target]).await.succeeded();
    let creds = format!("{REGISTRY_USER}:{REGISTRY_PASSWORD}");
    // A loopback registry is no proxy's.
    let proxy = [("http_proxy", "http://127.0.0.1:1"), ("NO_PROXY", ""), ("no_proxy", "")];
    let shared = &case.suite.shared().await.root;
    let pushed = berth_with(shared, &["push", "--creds", &creds, &target], &proxy).await;
    assert!(pushed.stderr.contains("pushed ("), "{pushed:?}");
    let digest = pushed.succeeded();
    let again = case.berth(&["push", "--creds", &creds, &target]).await;
    assert!(again.stderr.contains("already exists") && !again.stderr.contains("pushed ("), "{again:?}");
    assert_eq!(again.succeeded(), digest);
    case.berth(&["rmi", &target]).await.succeeded();
    let pulled = case.berth(&["pull", "--creds", &creds, &target]).await.succeeded();
    assert_eq!(pulled, digest);
    assert_eq!(output_of(&case, &target, PullPolicy::Never).await, ["pushed"]);
}

async fn a_mirror_whose_credentials_cannot_be_had_is_passed_over(case: Case) {
    let root = case.root("mirrored");
    let reference = case.push("mirrored", &printing("mirrored")).await;
    let dir = root.dir.with_extension("config");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.json"), r#"{"credHelpers":{"127.0.0.1:1":"berth-has-none"}}"#).unwrap();
    let config = dir.join("berth.toml");
    let registry = reference.split('/').next().unwrap();
    std::fs::write(&config, format!("[registry.'{registry}']\nmirrors = ['127.0.0.1:1']\n")).unwrap();
    let pull = ["--config", config.to_str().unwrap(), "pull", "-q", &reference];
    let pulled = berth_with(&root, &pull, &[("DOCKER_CONFIG", dir.to_str().unwrap())]).await;
    assert!(pulled.stderr.contains("a mirror is passed over"), "{pulled:?}");
    pulled.succeeded();
}

async fn a_push_without_the_right_to_it_is_refused(case: Case) {
    let reference = case.push("unpushed", &printing("unpushed")).await;
    case.berth(&["pull", "-q", &reference]).await.succeeded();
    let registry = case.suite.registry_auth().await;
    let target = format!("{}/private/unpushed:1", registry.host);
    let nobody = "127.0.0.1:1/a/b:1";
    for name in [&target, nobody] {
        case.berth(&["tag", &reference, name]).await.succeeded();
    }
    for (args, code) in [
        (&["--creds", "berth:wrong", &target][..], "registry.unauthorized"),
        (&[&target], "registry.unauthorized"),
        (&[nobody], "registry.unreachable"),
        (&["example.org/absent:1"], "image.not_present"),
        (
            &["example.org/absent@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
            "image.invalid_reference",
        ),
    ] {
        let refused = case.berth(&[&["--json", "push"], args].concat()).await;
        assert!(refused.code != 0 && refused.stderr.contains(code), "{args:?}: {refused:?}");
    }
}

async fn a_damaged_layer_is_found_by_verify_and_mended_by_a_pull(case: Case) {
    // Elsewhere a pull may hold the store, and a removal then leaves the layer for later.
    let root = case.root("rotten");
    let reference = case.push("rotten", &printing("whole")).await;
    case.berth_on(&root, &["pull", "-q", &reference]).await.succeeded();
    let said = case.berth_on(&root, &["image", "verify", &reference]).await.succeeded();
    assert!(said.contains("as its digest says"), "{said}");
    let inspected = case.berth_on(&root, &["--json", "image", "inspect", &reference]).await.json();
    let top = inspected[0]["layers"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
    let file = std::path::Path::new(&top).join("text");
    std::fs::write(&file, "Whole").unwrap();
    let found = case.berth_on(&root, &["--json", "image", "verify", &reference]).await;
    assert_eq!(found.refused(1).0, "image.damaged", "{found:?}");
    case.berth_on(&root, &["rmi", "--force", &reference]).await.succeeded();
    case.berth_on(&root, &["pull", "-q", &reference]).await.succeeded();
    case.berth_on(&root, &["image", "verify", &reference]).await.succeeded();
    let run = ["run", "--rm", "--network", "none", "--pull", "never", &reference];
    assert_eq!(case.berth_on(&root, &run).await.succeeded(), "whole");
}

async fn the_history_of_an_image_is_told(case: Case) {
    let reference = case.push("told", &printing("told")).await;
    case.berth(&["pull", "-q", &reference]).await.succeeded();
    let steps = case.berth(&["--json", "image", "history", &reference]).await.json();
    let steps = steps.as_array().unwrap();
    let inspected = case.berth(&["--json", "image", "inspect", &reference]).await.json();
    let layers = steps.iter().filter(|step| step["layer"].is_string()).count();
    assert_eq!(layers, inspected[0]["layers"].as_array().unwrap().len());
    let table = case.berth(&["image", "history", &reference]).await.succeeded();
    assert!(table.starts_with("LAYER") && table.contains("CREATED BY"), "{table}");
}

async fn a_moved_tag_is_followed_only_when_asked(case: Case) {
    let reference = case.push("moving", &printing("first")).await;
    assert_eq!(output_of(&case, &reference, PullPolicy::IfNotPresent).await, ["first"]);
    case.push("moving", &printing("second")).await;
    assert_eq!(output_of(&case, &reference, PullPolicy::IfNotPresent).await, ["first"]);
    assert_eq!(output_of(&case, &reference, PullPolicy::Never).await, ["first"]);
    assert_eq!(output_of(&case, &reference, PullPolicy::Always).await, ["second"]);
}

async fn never_makes_no_network_call(case: Case) {
    // It is in the registry and not here.
    let reference = case.push("absent", &printing("absent")).await;
    let error = case.runtime.pull_image_with_policy(&reference, PullPolicy::Never, None).await.unwrap_err();
    assert!(matches!(error, AgentError::PullFailed { .. } | AgentError::NotFound { .. }), "{error:?}");
    let mut spec = case.spec(&["true"]).await;
    spec.image.name = reference.clone();
    spec.image.pull_policy = PullPolicy::Never;
    assert!(case.runtime.create_container(&case.id(), &spec).await.is_err(), "create went to the registry");
    let images = case.runtime.list_images().await.unwrap();
    assert!(!images.iter().any(|image| image.reference == reference));
}

async fn inline_credentials_are_used(case: Case) {
    let registry = case.suite.registry_auth().await;
    let reference = registry.push("private/inline", "latest", &printing("private")).await;
    let error = case.runtime.pull_image(&reference).await.unwrap_err();
    assert!(matches!(error, AgentError::PullFailed { .. }), "without credentials: {error:?}");
    let auth = right_credentials();
    case.runtime.pull_image_with_policy(&reference, PullPolicy::Always, Some(&auth)).await.unwrap();
    assert_eq!(output_of(&case, &reference, PullPolicy::Never).await, ["private"]);
}

async fn the_credential_store_is_used_by_host(case: Case) {
    let registry = case.suite.registry_auth().await;
    let reference = registry.push("private/stored", "latest", &printing("stored")).await;
    let dir = case.suite.dir.path().join("docker-config");
    std::fs::create_dir_all(&dir).unwrap();
    let auth = base64(&format!("{REGISTRY_USER}:{REGISTRY_PASSWORD}"));
    let config = json!({"auths": {&registry.host: {"auth": auth}, "other.example": {"auth": base64("a:b")}}});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let root = case.root("store");
    let mut agent = Agent::start(&root, &[("DOCKER_CONFIG", &dir.display().to_string())]).await;
    agent.ask(&Request::Pull { image: reference.clone(), auth: None }).await.unwrap();
    // Inline credentials come first, even where the store has right ones.
    let wrong = Some(("berth".to_owned(), "wrong".to_owned()));
    agent.ask(&Request::Pull { image: reference, auth: wrong }).await.unwrap_err();
    agent.kill().await;
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let chunks = text.as_bytes().chunks(3).map(|chunk| {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let digit =
            |i: usize| if i <= chunk.len() { DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char } else { '=' };
        (0..4).map(digit).collect::<String>()
    });
    chunks.collect()
}

async fn an_index_gives_the_hosts_platform(case: Case) {
    let registry = case.suite.registry().await;
    let repository = "test/an_index";
    let own = printing("own");
    let other = Image { architecture: "s390x", ..printing("other") };
    let mut manifests = Vec::new();
    let older = if own.architecture == "arm64" { "arm" } else { "386" };
    let older = Image { architecture: older, ..printing("older") };
    for (tag, image) in [("other", &other), ("older", &older), ("own", &own)] {
        registry.push(repository, tag, image).await;
        let mut entry = descriptor(MANIFEST, &image.documents().1);
        entry["platform"] = json!({"os": "linux", "architecture": image.architecture});
        manifests.push(entry);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string();
    let reference = registry.push_document(repository, "latest", INDEX, index.as_bytes()).await;
    // One that was taken from it by name is not what a run without that name means.
    case.berth(&["pull", "--platform", "linux/s390x", &reference]).await.succeeded();
    assert_eq!(output_of(&case, &reference, PullPolicy::IfNotPresent).await, ["own"]);
    // Nor where the host could run that as well.
    let platform = format!("linux/{}", older.architecture);
    case.berth(&["pull", "--platform", &platform, &reference]).await.succeeded();
    case.berth(&["pull", &reference]).await.succeeded();
    assert_eq!(output_of(&case, &reference, PullPolicy::Never).await, ["own"]);
    let foreign = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifests[0]]}).to_string();
    let reference = registry.push_document(repository, "foreign", INDEX, foreign.as_bytes()).await;
    let error = case.runtime.pull_image(&reference).await.unwrap_err();
    assert!(error.to_string().contains("s390x"), "it does not say what there is: {error}");
}

async fn the_list_shows_what_was_pulled(case: Case) {
    let image = printing("listed");
    let reference = case.push("v1", &image).await;
    case.runtime.pull_image(&reference).await.unwrap();
    let images = case.runtime.list_images().await.unwrap();
    let listed = images.iter().find(|listed| listed.reference == reference).expect("it is in the list");
    assert_eq!(listed.digest, Some(digest_of(&image.documents().1)));
    let bytes: usize = image.layers.iter().map(|layer| layer.gzip.len()).sum();
    let size = listed.size_bytes.expect("a size");
    assert!((bytes as u64..bytes as u64 + 4096).contains(&size), "{size} for layers of {bytes}");
}

async fn a_removed_image_is_gone_and_its_shared_layers_stay(case: Case) {
    let (a, b) = (case.push("a", &printing("a")).await, case.push("b", &printing("b")).await);
    case.runtime.pull_image(&a).await.unwrap();
    case.runtime.pull_image(&b).await.unwrap();
    case.runtime.remove_image(&a, false).await.unwrap();
    assert!(!case.runtime.list_images().await.unwrap().iter().any(|image| image.reference == a));
    assert!(matches!(case.runtime.remove_image(&a, false).await, Err(AgentError::NotFound { .. })));
    assert_eq!(output_of(&case, &b, PullPolicy::Never).await, ["b"]);
}

async fn an_image_in_use_is_removed_only_by_force_and_its_container_lives(case: Case) {
    let reference = case.push("used", &printing("used")).await;
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.image.name = reference.clone();
    let id = case.start(&spec).await;
    let error = case.runtime.remove_image(&reference, false).await.unwrap_err();
    assert!(error.code() == "image.in_use" && error.to_string().contains(&format!("used by {id}")), "{error}");
    case.runtime.remove_image(&reference, true).await.unwrap();
    assert_eq!(case.exec_ok(&id, "cat /text").await, "used");
    // It can even start again: its layers are its own until it is removed.
    case.runtime.stop_container(&id, std::time::Duration::from_secs(10)).await.unwrap();
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(case.exec_ok(&id, "cat /text").await, "used");
}

async fn an_id_with_names_in_several_repositories_is_removed_only_by_force(case: Case) {
    let root = case.root("root");
    let reference = case.push("known", &printing("known")).await;
    let berth = async |args: &[&str]| case.berth_on(&root, args).await;
    berth(&["pull", "-q", &reference]).await.succeeded();
    for target in ["example.org/a:1", "example.org/b:1"] {
        berth(&["tag", &reference, target]).await.succeeded();
    }
    let list = async || berth(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]).await.succeeded();
    let before = list().await;
    let id = before.split_whitespace().nth(1).unwrap().to_owned();
    let said = berth(&["--json", "rmi", &id]).await;
    assert!(said.code == 1 && said.stderr.contains("image.several_names"), "{said:?}");
    assert!(said.stderr.contains("example.org/b:1") && list().await == before, "{said:?}");
    berth(&["rmi", "-f", &id]).await.succeeded();
    assert_eq!(list().await, "");
    // Of one repository all go.
    berth(&["pull", "-q", &reference]).await.succeeded();
    let sibling = format!("{}:other", reference.rsplit_once(':').unwrap().0);
    berth(&["tag", &reference, &sibling]).await.succeeded();
    berth(&["rmi", &id]).await.succeeded();
    assert_eq!(list().await, "");
}

async fn an_image_without_a_name_is_listed_as_dockers_until_it_has_one(case: Case) {
    let root = case.root("root");
    let image = printing("nameless");
    let reference = case.push("nameless", &image).await;
    let digest = digest_of(&image.documents().1);
    let file = case.suite.dir.path().join("nameless.tar");
    let path = file.to_str().unwrap();
    let berth = async |args: &[&str]| case.berth_on(&root, args).await;
    berth(&["pull", "-q", &reference]).await.succeeded();
    berth(&["save", "-o", path, &digest]).await.succeeded();
    berth(&["rmi", &reference]).await.succeeded();
    berth(&["load", "-i", path]).await.succeeded();
    let list = async |more: &[&str]| {
        let format = ["images", "--format", "{{.Repository}} {{.Tag}}"];
        berth(&[&format[..], more].concat()).await.succeeded()
    };
    assert_eq!(list(&[]).await, "<none> <none>\n");
    assert_eq!(list(&["--filter", "dangling=true"]).await, "<none> <none>\n");
    berth(&["tag", &digest, "example.org/named:1"]).await.succeeded();
    for _ in 0..2 {
        assert_eq!(list(&[]).await, "example.org/named 1\n");
        assert_eq!(list(&["--filter", "dangling=true"]).await, "");
        assert_eq!(list(&["--filter", "reference=example.org/n*"]).await, "example.org/named 1\n");
        // What has a name needs none.
        berth(&["load", "-i", path]).await.succeeded();
    }
    let told = berth(&["image", "inspect", "-f", "{{.Os}} {{.digest}} {{json .Config.Nothing}}", &digest]).await;
    assert_eq!(told.succeeded(), format!("linux {digest} null\n"));
    let said = berth(&["images", "--filter", "label=x"]).await;
    assert!(said.code == 1 && said.stderr.contains("label=x is not supported"), "{said:?}");
}

async fn a_tag_is_a_further_name(case: Case) {
    let reference = case.push("source", &printing("tagged")).await;
    case.runtime.pull_image(&reference).await.unwrap();
    let target = "registry.example/own/name:v2";
    case.runtime.tag_image(&reference, target).await.unwrap();
    assert_eq!(output_of(&case, target, PullPolicy::Never).await, ["tagged"]);
    case.runtime.remove_image(&reference, false).await.unwrap();
    assert_eq!(output_of(&case, target, PullPolicy::Never).await, ["tagged"]);
    let missing = case.runtime.tag_image("registry.example/no/such:v1", target).await.unwrap_err();
    assert!(matches!(missing, AgentError::NotFound { .. }), "{missing:?}");
    for bad in ["", "UPPER:v1", "registry.example/own/name", "registry.example/own/name:"] {
        assert!(case.runtime.tag_image(target, bad).await.is_err(), "{bad:?}");
    }
}

async fn pulls_of_one_image_at_once_all_succeed(case: Case) {
    let reference = case.push("together", &printing("together")).await;
    let pulls: Vec<_> = (0..8)
        .map(|_| {
            let (runtime, reference) = (case.runtime.clone(), reference.clone());
            tokio::spawn(async move { runtime.pull_image_with_policy(&reference, PullPolicy::Always, None).await })
        })
        .collect();
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(output_of(&case, &reference, PullPolicy::Never).await, ["together"]);
}

async fn owners_modes_links_and_times_of_a_layer_are_exact(case: Case) {
    let layer = LayerBuilder::new()
        .dir("t", 0o2751)
        .owned_file("t/suid", 0o4755, (70_000, 80_000), b"x")
        .owned_file("t/sticky", 0o1600, (1, 2), b"")
        .hard_link("t/hard", "t/suid")
        .symlink("t/soft", "../t/suid")
        .symlink("t/dangling", "/no/such")
        .file("t/na me\u{fc}", 0o644, b"")
        .finish();
    let mut spec = case.spec(&[]).await;
    spec.image.name = case.push("exact", &Image::busybox().layer(layer)).await;
    let script = "cd /t; stat -c '%a' .; stat -c '%n %a %u %g %h %Y' suid sticky hard; readlink soft; readlink dangling; ls | wc -l";
    spec.command.args = Some(words(&["sh", "-c", script]));
    let expected = [
        "2751",
        "suid 4755 70000 80000 2 1700000000",
        "sticky 1600 1 2 1 1700000000",
        "hard 4755 70000 80000 2 1700000000",
        "../t/suid",
        "/no/such",
        "6",
    ];
    assert_eq!(case.run(&spec).await.succeeded(), expected);
}

async fn a_pull_killed_in_the_middle_leaves_nothing_that_is_taken_for_whole(case: Case) {
    let mut state = 1u64;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    })
    .take(40 << 20)
    .collect();
    let image = Image::busybox().layer(LayerBuilder::new().dir("big", 0o755).file("big/f", 0o644, &data).finish());
    let reference = case.push("latest", &image).await;
    let root = case.root("killed");
    // So slow that it is caught in the middle.
    let (host, name) = reference.split_once('/').unwrap();
    let mut switch = Switch::before(host).await;
    switch.slow(4 << 20);
    let image_there = format!("{}/{name}", switch.endpoint().trim_start_matches("http://"));
    let (store, pull) = (root.dir.join("layers"), Request::Pull { image: image_there, auth: None });
    let in_the_making = || -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(&store).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.file_name().unwrap().as_encoded_bytes().starts_with(b"tmp-")).collect()
    };
    let arrived = || {
        let size = |path: &std::path::PathBuf| std::fs::metadata(path.join("blob")).map_or(0, |blob| blob.len());
        in_the_making().iter().map(size).max().unwrap_or(0)
    };
    for least in [1 << 20, 10 << 20] {
        let mut agent = Agent::start(&root, &[]).await;
        assert_eq!(in_the_making(), Vec::<std::path::PathBuf>::new(), "an open leaves what a dead pull began");
        agent.send(&pull).await;
        let begun = std::time::Instant::now();
        while arrived() < least {
            assert!(begun.elapsed() < patience(std::time::Duration::from_secs(60)), "the pull does not get so far");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        agent.kill().await;
        assert!(arrived() >= least, "it was over before the kill");
    }
    // Two processes at once, over what is left.
    switch.turn_on().await;
    let (mut agent, mut other) = (Agent::start(&root, &[]).await, Agent::start(&root, &[]).await);
    let (one, two) = tokio::join!(agent.ask(&pull), other.ask(&pull));
    one.and(two).unwrap();
    assert_eq!(in_the_making(), Vec::<std::path::PathBuf>::new());
    let diff_id = image.layers.last().unwrap().diff_id.strip_prefix("sha256:").unwrap();
    let unpacked = std::fs::read(store.join("diff").join(diff_id).join("big/f")).unwrap();
    assert!(unpacked == data, "a file of a killed pull was taken for whole");
    agent.kill().await;
    other.kill().await;
}

async fn a_layer_that_comes_twice_is_applied_twice(case: Case) {
    let a = || LayerBuilder::new().dir("d", 0o755).file("d/a", 0o644, b"a").finish();
    let empty = || LayerBuilder::new().finish();
    let gone = || LayerBuilder::new().whiteout("d/a").finish();
    let other = || LayerBuilder::new().file("d/b", 0o644, b"b").finish();
    for (tag, layers, expected) in [
        ("empty", vec![empty(), a(), empty(), empty()], "a"),
        ("again", vec![a(), gone(), a()], "a"),
        ("gone-twice", vec![a(), gone(), a(), other(), gone()], "b"),
    ] {
        let image = layers.into_iter().fold(Image::busybox(), Image::layer).with("Cmd", json!(["ls", "/d"]));
        let reference = case.push(tag, &image).await;
        assert_eq!(output_of(&case, &reference, PullPolicy::Always).await, [expected], "{tag}");
    }
}
