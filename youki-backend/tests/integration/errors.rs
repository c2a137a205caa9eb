//! Bad input: an error that names what failed and on what, and nothing half-made.

use runtime_core::spec::StorageSpec;
use runtime_core::{AgentError, ContainerId, PullPolicy, RegistryAuth, RegistryAuthType, ServiceSpec};

use crate::support::Case;
use crate::support::berth::command;
use crate::support::case::soon;
use crate::support::image::{Image, LayerBuilder, digest_of};

crate::tests![
    a_wrong_password_is_said_to_be_one_and_is_not_shown,
    an_unknown_image_or_tag_is_named,
    an_unreachable_registry_is_named,
    a_registry_that_does_not_answer_is_waited_for_aloud,
    a_reference_that_is_none_is_refused,
    a_damaged_layer_is_named_and_not_kept,
    a_truncated_layer_is_an_error_and_a_later_pull_works,
    a_wrong_diff_id_is_an_error,
    an_id_that_leaves_its_directory_is_refused_everywhere,
    an_unknown_field_in_a_spec_is_named,
    impossible_limits_are_refused_and_leave_nothing,
    a_mount_that_cannot_be_made_is_named_with_the_kernels_reason,
    an_image_without_a_directory_where_proc_and_dev_belong_is_told_so,
    a_size_of_a_volume_is_unsupported_and_not_a_failed_create,
    more_cpus_than_the_host_has_are_refused_with_the_range,
    a_bogus_platform_is_invalid,
    who_is_not_root_is_told_so_and_nothing_is_made,
    a_missing_bucket_is_named,
    credentials_that_s3_refuses_or_that_are_missing_are_said_to_be,
];

async fn a_wrong_password_is_said_to_be_one_and_is_not_shown(case: Case) {
    let registry = case.suite.registry_auth().await;
    let reference = registry.push("private/wrong", "latest", &Image::busybox()).await;
    let auth = RegistryAuth {
        username: "berth".into(),
        password: "not-the-p4ssword".into(),
        auth_type: RegistryAuthType::Basic,
    };
    let error = case.runtime.pull_image_with_policy(&reference, PullPolicy::Always, Some(&auth)).await.unwrap_err();
    assert!(matches!(error, AgentError::PullFailed { .. }), "{error:?}");
    assert!(error.code().starts_with("registry.") || error.code().starts_with("image."), "{}", error.code());
    let text = error.to_string();
    assert!(text.contains(&registry.host) && !text.contains("not-the-p4ssword"), "{text}");
}

async fn an_unknown_image_or_tag_is_named(case: Case) {
    let known = case.suite.busybox().await.to_owned();
    let host = case.suite.registry().await.host.clone();
    let other_tag = format!("{}:nosuch", known.rsplit_once(':').unwrap().0);
    for reference in [format!("{host}/no/such:latest"), other_tag] {
        let error = case.runtime.pull_image(&reference).await.unwrap_err();
        assert!(matches!(&error, AgentError::PullFailed { image, .. } if *image == reference), "{error:?}");
        assert_eq!(error.code(), "image.not_found", "{error}");
    }
    let mut spec = case.spec(&["true"]).await;
    spec.image.name = format!("{host}/no/such:latest");
    let id = case.id();
    assert!(case.runtime.create_container(&id, &spec).await.is_err());
    assert!(matches!(case.runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
}

async fn an_unreachable_registry_is_named(case: Case) {
    // Nothing listens there.
    let port = case.suite.share.port();
    let reference = format!("127.0.0.1:{port}/a/b:latest");
    let error = soon("a refused connection", case.runtime.pull_image(&reference)).await.unwrap_err();
    assert!(matches!(error, AgentError::PullFailed { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
}

async fn a_registry_that_does_not_answer_is_waited_for_aloud(case: Case) {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mut berth = command(&case.suite.shared().await.root);
    berth.args(["pull", &format!("{address}/x")]).stderr(std::process::Stdio::piped()).kill_on_drop(true);
    let mut pull = berth.spawn().unwrap();
    let mut said = String::new();
    let mut lines = tokio::io::BufReader::new(pull.stderr.take().unwrap());
    soon("a word", tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut said)).await.unwrap();
    assert_eq!(said, format!("berth: waiting for the registry {address}\n"));
    pull.kill().await.unwrap();
}

async fn a_reference_that_is_none_is_refused(case: Case) {
    for reference in ["", "UPPER/case:x", "a b", "127.0.0.1/a:", "x@sha256:123", "../../etc/passwd"] {
        let result = soon(reference, case.runtime.pull_image_with_policy(reference, PullPolicy::Always, None)).await;
        assert!(result.is_err(), "{reference:?} was accepted");
    }
}

/// An image of one layer that nothing else shares.
fn unique(text: &str) -> Image {
    Image {
        layers: vec![LayerBuilder::new().file("only", 0o644, text.repeat(5_000).as_bytes()).finish()],
        ..Image::busybox()
    }
}

async fn a_damaged_layer_is_named_and_not_kept(case: Case) {
    let image = unique("damaged");
    let digest = digest_of(&image.layers[0].gzip);
    let reference = case.push("damaged", &image).await;
    let file = case.suite.registry().await.blob_file(case.suite, &digest);
    let whole = std::fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&file, &damaged).unwrap();
    let error = case.runtime.pull_image(&reference).await.unwrap_err();
    assert!(error.to_string().contains(&digest[..19]), "the layer is not named: {error}");
    assert!(!case.runtime.list_images().await.unwrap().iter().any(|image| image.reference == reference));
    std::fs::write(&file, &whole).unwrap();
    case.runtime.pull_image(&reference).await.unwrap();
}

async fn a_truncated_layer_is_an_error_and_a_later_pull_works(case: Case) {
    let image = unique("truncated");
    let digest = digest_of(&image.layers[0].gzip);
    let reference = case.push("truncated", &image).await;
    let file = case.suite.registry().await.blob_file(case.suite, &digest);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let error = soon("a truncated layer", case.runtime.pull_image(&reference)).await.unwrap_err();
    assert!(matches!(error, AgentError::PullFailed { .. }), "{error:?}");
    std::fs::write(&file, &whole).unwrap();
    case.runtime.pull_image(&reference).await.unwrap();
}

async fn a_wrong_diff_id_is_an_error(case: Case) {
    let mut image = unique("diff id");
    image.layers[0].diff_id = digest_of(b"something else");
    let reference = case.push("diffid", &image).await;
    let error = case.runtime.pull_image(&reference).await.unwrap_err();
    assert!(matches!(error, AgentError::PullFailed { .. }), "{error:?}");
    assert!(!case.runtime.list_images().await.unwrap().iter().any(|image| image.reference == reference));
}

async fn an_id_that_leaves_its_directory_is_refused_everywhere(case: Case) {
    let spec = case.spec(&["true"]).await;
    for service in ["../x", "..", "a/b", "", ".hidden", "a\0b", "web-rep-1", &"x".repeat(201)] {
        let id = ContainerId::new(service, 0);
        let error = case.runtime.create_container(&id, &spec).await.unwrap_err();
        assert!(matches!(error, AgentError::InvalidSpec(_)), "{service:?}: {error:?}");
        assert_eq!(error.code(), "container.invalid_id", "{service:?}: {error}");
        assert!(case.runtime.start_container(&id).await.is_err(), "{service:?}");
        assert!(case.runtime.remove_container(&id).await.is_err(), "{service:?}");
        assert!(case.runtime.get_logs(&id).await.is_err(), "{service:?}");
    }
    assert!(!case.suite.shared().await.root.dir.parent().unwrap().join("x-rep-0").exists());
}

async fn an_unknown_field_in_a_spec_is_named(_case: Case) {
    let text = r#"{"image": {"name": "a"}, "resources": {"memroy": "1Gi"}}"#;
    let error = serde_json::from_str::<ServiceSpec>(text).unwrap_err().to_string();
    assert!(error.contains("memroy"), "{error}");
}

async fn impossible_limits_are_refused_and_leave_nothing(case: Case) {
    let mut specs = Vec::new();
    for cpu in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut spec = case.spec(&["true"]).await;
        spec.resources.cpu = Some(cpu);
        specs.push((format!("{cpu} CPUs"), spec));
    }
    let mut spec = case.spec(&["true"]).await;
    spec.resources.pids = Some(0);
    specs.push(("no process".into(), spec));
    let mut spec = case.spec(&["true"]).await;
    spec.resources.cpuset = Some("no cpus".into());
    specs.push(("a cpuset of words".into(), spec));
    let mut spec = case.spec(&["true"]).await;
    spec.rlimits.insert("nosuchlimit".into(), runtime_core::spec::RlimitSpec { soft: 1, hard: 1 });
    specs.push(("an unknown rlimit".into(), spec));
    let mut spec = case.spec(&["true"]).await;
    spec.rlimits.insert("nofile".into(), runtime_core::spec::RlimitSpec { soft: 20, hard: 10 });
    specs.push(("a soft limit above the hard one".into(), spec));
    case.runtime.pull_image(case.suite.busybox().await).await.unwrap();
    for (what, spec) in specs {
        let id = case.id();
        assert!(case.runtime.create_container(&id, &spec).await.is_err(), "{what} was accepted");
        assert!(matches!(case.runtime.container_state(&id).await, Err(AgentError::NotFound { .. })), "{what}");
    }
}

async fn a_mount_that_cannot_be_made_is_named_with_the_kernels_reason(case: Case) {
    let file = case.suite.dir.path().join("a-file-to-mount");
    std::fs::write(&file, "x").unwrap();
    let dir = case.suite.dir.path().join("a-directory-to-mount");
    std::fs::create_dir_all(&dir).unwrap();
    for (source, target, reason) in [(&file, "/etc", "Is a directory"), (&dir, "/etc/passwd", "Not a directory")] {
        let mut spec = case.spec(&["true"]).await;
        let source = source.display().to_string();
        spec.storage = vec![StorageSpec::Bind { source: source.clone(), target: target.into(), readonly: true }];
        let error = case.try_start(&case.id(), &spec).await.unwrap_err();
        assert!(matches!(error, AgentError::CreateFailed { .. }), "{error:?}");
        assert_eq!(error.code(), "mount.failed", "{error}");
        let text = error.to_string();
        let expected = format!("mounting {source} at {target} (ro): {reason} (os error ");
        assert!(text.contains(&expected), "{text}");
        assert_eq!(text.matches("failed").count(), 2, "said twice: {text}");
    }
}

async fn an_image_without_a_directory_where_proc_and_dev_belong_is_told_so(case: Case) {
    let layers = [
        ("link", "/proc", LayerBuilder::new().symlink("proc", "/tmp"), "a symbolic link"),
        ("file", "/proc", LayerBuilder::new().whiteout("proc").file("proc", 0o644, b""), "a file"),
        ("device-link", "/dev", LayerBuilder::new().whiteout("dev").symlink("dev", "bin"), "a symbolic link"),
        ("devices", "/dev", LayerBuilder::new().file("dev", 0o644, b""), "a file"),
    ];
    for (tag, path, layer, what) in layers {
        let mut spec = case.spec(&["true"]).await;
        spec.image.name = case.push(tag, &Image::busybox().layer(layer.finish())).await;
        let error = case.try_start(&case.id(), &spec).await.unwrap_err();
        assert_eq!(error.code(), "mount.failed", "{tag}: {error}");
        let text = error.to_string();
        let expected = format!("mounting {path}: the image has {what} there");
        assert!(text.contains(&expected), "{tag}: {text}");
    }
}

async fn a_size_of_a_volume_is_unsupported_and_not_a_failed_create(case: Case) {
    let mut sized = case.spec(&["true"]).await;
    sized.storage = vec![StorageSpec::Named {
        name: "sized".into(),
        target: "/data".into(),
        readonly: false,
        tier: None,
        size: Some("1Mi".parse().unwrap()),
        take_over: false,
    }];
    let error = case.try_start(&case.id(), &sized).await.unwrap_err();
    assert!(matches!(error, AgentError::Unsupported(_)), "{error:?}");
    assert_eq!(error.code(), "volume.unsupported", "{error}");
}

async fn more_cpus_than_the_host_has_are_refused_with_the_range(case: Case) {
    let mut spec = case.spec(&["true"]).await;
    spec.resources.cpu = Some(1000.0);
    let error = case.try_start(&case.id(), &spec).await.unwrap_err();
    assert!(matches!(error, AgentError::InvalidSpec(_)), "{error:?}");
    assert!(error.to_string().contains("between 0.01 and "), "{error}");
}

async fn a_bogus_platform_is_invalid(case: Case) {
    let mut spec = case.spec(&["true"]).await;
    spec.platform = Some("bogus".into());
    let error = case.try_start(&case.id(), &spec).await.unwrap_err();
    assert!(matches!(error, AgentError::InvalidSpec(_)), "{error:?}");
    assert_eq!(error.code(), "image.invalid_platform");
}

/// In a user namespace without any user this process is nobody, and could make directories all the same.
async fn who_is_not_root_is_told_so_and_nothing_is_made(case: Case) {
    let root = case.root("nobodys");
    let berth = command(&root);
    let berth = berth.as_std();
    let mut nobody = tokio::process::Command::new("unshare");
    nobody.arg("--user").arg(berth.get_program()).args(berth.get_args()).arg("--json");
    let said = nobody.args(["run", "--rm", "x", "true"]).output().await.unwrap();
    let told: serde_json::Value = serde_json::from_slice(&said.stderr).unwrap_or_else(|_| panic!("{said:?}"));
    assert_eq!((said.status.code(), &told["error"]["code"]), (Some(125), &"host.not_root".into()), "{told}");
    assert_eq!(told["error"]["message"], "Berth runs as root");
    assert!(told["error"]["hint"].as_str().unwrap().contains("root"), "{told}");
    assert!(!root.dir.exists() && !root.run_dir.exists(), "something was made");
}

async fn a_missing_bucket_is_named(case: Case) {
    let mut root = case.root_with_s3("bucket", "x").await;
    root.s3.as_mut().unwrap().bucket = "no-such-bucket".into();
    // Refused when a volume first needs it, by name; never begun empty.
    let runtime = root.open().await.unwrap();
    let mut spec = case.spec(&["true"]).await;
    spec.storage = vec![crate::volumes::named("needs-bucket", "/data")];
    runtime.pull_image(&spec.image.name).await.unwrap();
    let id = case.id_on(&runtime);
    let error = runtime.create_container(&id, &spec).await.unwrap_err();
    assert_eq!(error.code(), "volume.bucket_missing", "{error}");
    assert!(error.to_string().contains("no-such-bucket"), "{error}");
    assert!(matches!(runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
}

/// Who has a wrong secret, a key that nobody knows, or none at all: told in words, with endpoint and bucket.
async fn credentials_that_s3_refuses_or_that_are_missing_are_said_to_be(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let endpoint = root.s3.as_ref().unwrap().endpoint.clone();
    let image = case.suite.busybox().await;
    let commands = [
        &["volume", "history", "data"][..],
        &["doctor"],
        &["run", "--rm", "--network", "none", "-v", "data:/data", image, "true"],
    ];
    let (key, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
    let refused = format!("the credentials were refused for bucket berth at {endpoint}");
    let missing = format!("no credentials were found for bucket berth at {endpoint}");
    for (variables, words, code) in [
        (&[(secret, Some("wrong"))][..], format!("{refused} (SignatureDoesNotMatch)"), "volume.s3_credentials_refused"),
        (&[(key, Some("nobody"))], format!("{refused} (InvalidAccessKeyId)"), "volume.s3_credentials_refused"),
        (&[(key, None), (secret, None)], missing, "volume.s3_credentials"),
    ] {
        for args in commands {
            for json in [false, true] {
                let mut berth = command(&root);
                for (name, value) in variables {
                    match value {
                        Some(value) => berth.env(name, value),
                        None => berth.env_remove(name),
                    };
                }
                berth.env("HOME", case.suite.dir.path()).args(json.then_some("--json")).args(args);
                let output = berth.output().await.unwrap();
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
                assert!(!output.status.success() && said.contains(&words), "{args:?}: {said}");
                assert!(!said.contains("Error {") && !said.contains("ProviderError"), "Rust's own words: {said}");
                if args[0] == "doctor" {
                    continue;
                }
                assert!(!said.contains("warning"), "said before it is: {said}");
                let hint = "hint: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned();
                let expected = if json { format!("\"{code}\"") } else { hint };
                assert!(said.contains(&expected), "{args:?}: {said}");
                assert_eq!(said.trim_end().lines().count(), if json { 1 } else { 2 }, "{said}");
            }
        }
    }
}
