//! Errors by their causes: each has its code, a hint, and leaves all as it was. SPECIFICATION.md, section 13, tells where
//! those are made that are not made here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use runtime_core::spec::{SeccompSpec, StorageSpec};
use runtime_core::{AgentError, ContainerState, Runtime, Secret, SecretsProvider, ServiceSpec};
use youki_backend::YoukiRuntime;

use crate::support::Case;
use crate::support::berth::{berth, berth_with};
use crate::support::case::{eventually, soon, start_on};
use crate::support::disk::Disk;
use crate::support::root::Root;
use crate::support::servers::{S3_READER_ACCESS_KEY, S3_READER_SECRET_KEY};

crate::tests![
    a_running_container_is_not_removed_without_force,
    what_a_container_has_not_is_named,
    a_process_that_survives_sigkill_is_named,
    a_value_that_the_kernel_refuses_fails_the_create,
    a_missing_helper_is_named,
    a_secret_needs_a_provider,
    a_provider_that_panics_costs_its_create_alone,
    a_root_of_something_newer_is_refused_and_left_as_it_is,
    a_filter_that_no_kernel_takes_is_refused,
    a_file_that_is_not_there_is_named,
    a_file_that_cannot_be_understood_is_named,
    credentials_that_cannot_be_used_are_told_with_their_file,
    while_a_record_cannot_be_read_no_image_is_removed,
    what_s3_does_not_permit_is_said,
    a_restore_without_room_leaves_nothing,
];

async fn a_running_container_is_not_removed_without_force(case: Case) {
    let id = case.idle().await;
    let (code, message) = case.berth(&["--json", "rm", &id.to_string()]).await.refused(1);
    assert!(code == "container.running" && message.contains(&id.to_string()), "{code}: {message}");
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Running);
}

async fn what_a_container_has_not_is_named(case: Case) {
    let id = case.idle().await.to_string();
    let from = format!("{id}:/no/such/file");
    for (args, status, code, named) in [
        (&["cp", &from, "-"][..], 1, "container.no_such_path", "/no/such/file"),
        (&["exec", &id, "/no/such/program"], 127, "exec.not_found", "/no/such/program"),
        (&["exec", &id, "/etc/passwd/x"], 127, "exec.not_found", "/etc/passwd/x"),
        (&["exec", &id, "/etc/passwd"], 126, "exec.not_executable", "/etc/passwd"),
        (&["exec", "-w", "/no/such/dir", &id, "true"], 126, "exec.workdir", "/no/such/dir"),
        (&["exec", "-u", "stranger", &id, "true"], 1, "user.not_found", "stranger"),
    ] {
        let told = case.berth(&[&["--json"], args].concat()).await.refused(status);
        assert!(told.0 == code && told.1.contains(named), "{args:?}: {told:?}");
    }
}

/// It waits for a disk that does not answer.
async fn a_process_that_survives_sigkill_is_named(case: Case) {
    let place = case.suite.dir.path().join("a-disk-that-hangs");
    let disk = Disk::mount(&place, 16 << 20);
    let mut spec = case.script("echo up; while :; do echo x > /disk/file; done").await;
    let source = place.display().to_string();
    spec.storage = vec![StorageSpec::Bind { source, target: "/disk".into(), readonly: false }];
    let id = case.start(&spec).await;
    case.until_logged(&id, "up").await;
    eventually("it writes", || async { place.join("file").exists() }).await;
    disk.freeze();
    let pid = case.runtime.get_container_pid(&id).await.unwrap().unwrap();
    let waits = || async {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('D'))
    };
    eventually("it waits for the disk", waits).await;
    let begin = std::time::Instant::now();
    let error = case.runtime.stop_container(&id, Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, AgentError::Internal(_)), "{error:?}");
    assert_eq!(error.code(), "container.stop_timed_out", "{error}");
    assert!(error.to_string().contains(&format!("[{pid}] survived SIGKILL")), "{error}");
    assert!(begin.elapsed() >= Duration::from_secs(9), "{:?} of 10 s", begin.elapsed());
    assert!(!matches!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Exited { .. }), "it is there");
    disk.thaw();
    soon("its end", case.runtime.stop_container(&id, Duration::ZERO)).await.unwrap();
    assert_eq!(case.runtime.wait_container(&id).await, Ok(137));
    case.runtime.remove_container(&id).await.unwrap();
}

/// What libcontainer does itself: parameters of the IPC namespace.
async fn a_value_that_the_kernel_refuses_fails_the_create(case: Case) {
    let mut spec = case.script("true").await;
    spec.sysctls.insert("kernel.msgmax".into(), "nonsense".into());
    let id = case.id();
    let error = case.try_start(&id, &spec).await.unwrap_err();
    assert_eq!(error.code(), "container.create_failed", "{error}");
    assert!(matches!(case.runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
}

async fn a_missing_helper_is_named(case: Case) {
    let root = case.root("root");
    let empty = case.suite.dir.path().join("no-helpers");
    std::fs::create_dir_all(&empty).unwrap();
    for (there, missing) in [(None, "berth-create"), (Some("berth-create"), "berth-supervisor")] {
        if let Some(there) = there {
            std::fs::write(empty.join(there), "").unwrap();
        }
        let config = youki_backend::Config { helper_dir: Some(empty.clone()), ..root.config() };
        let error = YoukiRuntime::open(config).await.unwrap_err();
        assert_eq!(error.code(), "install.helper_missing", "{error}");
        let told = error.to_string();
        assert!(told.contains(missing) && told.contains(empty.to_str().unwrap()), "{told}");
        assert!(matches!(error.into(), AgentError::Configuration(_)));
    }
}

struct Panicking;

#[async_trait]
impl SecretsProvider for Panicking {
    async fn secret(&self, _name: &str) -> runtime_core::Result<Secret> {
        panic!("of a provider of the agent's")
    }
}

/// A spec whose environment needs a secret.
async fn secretive(case: &Case) -> ServiceSpec {
    let mut spec = case.script("true").await;
    spec.env.insert("PASSWORD".into(), "$S:password".into());
    spec
}

async fn a_secret_needs_a_provider(case: Case) {
    let (id, spec) = (case.id(), secretive(&case).await);
    let error = case.try_start(&id, &spec).await.unwrap_err();
    assert_eq!(error.code(), "secret.no_provider", "{error}");
    assert!(error.to_string().contains("password"), "{error}");
    assert!(matches!(case.runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
}

async fn a_provider_that_panics_costs_its_create_alone(case: Case) {
    let root = case.root("root");
    let config = youki_backend::Config { secrets: Some(Arc::new(Panicking)), ..root.config() };
    let runtime: Arc<dyn Runtime> = Arc::new(YoukiRuntime::open(config).await.unwrap());
    let (id, other) = (case.id_on(&runtime), case.id_on(&runtime));
    let error = soon("a create", start_on(&*runtime, &id, &secretive(&case).await)).await.unwrap_err();
    assert_eq!(error.code(), "internal.failed", "{error}");
    start_on(&*runtime, &other, &case.script("true").await).await.unwrap();
    assert_eq!(runtime.wait_container(&other).await, Ok(0));
    runtime.remove_container(&other).await.unwrap();
    // What there is of it goes with the next one of its name.
    soon("a create", start_on(&*runtime, &id, &case.script("true").await)).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await, Ok(0));
    runtime.remove_container(&id).await.unwrap();
}

async fn a_root_of_something_newer_is_refused_and_left_as_it_is(case: Case) {
    for (name, version, flag) in [
        ("format", r#"{"format":2}"#, "format 2"),
        ("flag", r#"{"format":1,"compatible":[],"incompatible":["encrypted"]}"#, "encrypted"),
    ] {
        let root = case.root(name);
        std::fs::create_dir_all(&root.dir).unwrap();
        let file = root.dir.join("berth-root.json");
        std::fs::write(&file, version).unwrap();
        let (code, message) = berth(&root, &["--json", "ps"]).await.refused(1);
        assert!(code == "root.incompatible" && message.contains(flag), "{code}: {message}");
        assert!(message.contains(root.dir.to_str().unwrap()), "{message}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), version);
        assert_eq!(std::fs::read_dir(&root.dir).unwrap().count(), 1, "something was made");
        assert!(!root.run_dir.exists(), "something was made");
        std::fs::remove_dir_all(&root.dir).unwrap();
    }
    // What is merely new is no reason.
    let root = case.root("compatible");
    std::fs::create_dir_all(&root.dir).unwrap();
    std::fs::write(root.dir.join("berth-root.json"), r#"{"format":1,"compatible":["faster"]}"#).unwrap();
    berth(&root, &["ps"]).await.succeeded();
}

async fn a_filter_that_no_kernel_takes_is_refused(case: Case) {
    let rule = |value: u64| {
        let value = value << 32 | value;
        serde_json::json!({
            "names": ["ioctl"],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}],
        })
    };
    let rules: Vec<_> = (1..2000).map(rule).collect();
    let profile = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
    let file = case.suite.dir.path().join("large-profile.json");
    std::fs::write(&file, profile.to_string()).unwrap();
    let mut spec = case.script("true").await;
    spec.seccomp = SeccompSpec::File(file.display().to_string());
    let id = case.id();
    let error = case.try_start(&id, &spec).await.unwrap_err();
    assert_eq!(error.code(), "seccomp.failed", "{error}");
    assert!(error.to_string().contains("instructions"), "{error}");
    assert!(matches!(case.runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
}

async fn a_file_that_is_not_there_is_named(case: Case) {
    let root = case.root("never-made");
    let image = case.suite.busybox().await.to_owned();
    for (args, status) in [
        (&["--config", "/no/such/file", "ps"][..], 1),
        (&["run", "--env-file", "/no/such/file", &image], 125),
        (&["run", "--security-opt", "seccomp=/no/such/file", &image], 125),
        (&["apply", "-f", "/no/such/file", "--name", "x"], 1),
    ] {
        let (code, message) = berth(&root, &[&["--json"], args].concat()).await.refused(status);
        assert!(code == "io.failed" && message.contains("/no/such/file"), "{args:?}: {code}: {message}");
    }
    assert!(!root.dir.exists() && !root.run_dir.exists(), "something was made");
}

/// Each kind of file that is read, with what is none of its kind in it.
async fn a_file_that_cannot_be_understood_is_named(case: Case) {
    let root = Root { keeper: false, ..case.root("root") };
    let image = case.suite.busybox().await.to_owned();
    berth(&root, &["pull", "-q", &image]).await.succeeded();
    let dir = case.suite.dir.path().join("files");
    std::fs::create_dir_all(&dir).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let text = write("text", b"{ no [ file ] = of: any kind\n\t= x\n");
    let bytes = write("bytes", b"\xff\xfe\x00\x01");
    let empty = write("empty", b"");
    let large = write("large", &b"# a comment\n".repeat(500_000));
    let directory = dir.to_str().unwrap().to_owned();
    let [in_text, in_bytes, in_large] = [&text, &bytes, &large].map(|path| format!("seccomp={path}"));
    let pem = write("ca.toml", format!("[registry.\"registry.invalid:1\"]\nca = {text:?}\n").as_bytes());
    for (args, status, code, named) in [
        (&["--config", &text, "ps"][..], 2, "config.invalid", &text),
        (&["--config", &bytes, "ps"], 2, "config.invalid", &bytes),
        (&["--config", &pem, "pull", "registry.invalid:1/a/b"], 1, "store.damaged", &text),
        (&["run", "--env-file", &bytes, &image], 125, "usage", &bytes),
        (&["run", "--env-file", &text, &image], 125, "usage", &text),
        (&["run", "--security-opt", &in_text, &image], 125, "spec.invalid", &text),
        (&["run", "--security-opt", &in_bytes, &image], 125, "spec.invalid", &bytes),
        (&["apply", "--name", "never", "-f", &text], 2, "spec.invalid", &text),
        (&["apply", "--name", "never", "-f", &empty], 2, "spec.invalid", &empty),
        (&["apply", "--name", "never", "-f", &bytes], 2, "spec.invalid", &bytes),
        (&["--config", &large, "ps"], 2, "config.invalid", &large),
        (&["run", "--security-opt", &in_large, &image], 125, "spec.invalid", &large),
        (&["run", "--env-file", &large, &image], 125, "usage", &large),
        (&["apply", "--name", "never", "-f", &large], 2, "spec.invalid", &large),
        (&["--config", &directory, "ps"], 1, "io.failed", &directory),
        (&["run", "--env-file", &directory, &image], 125, "io.failed", &directory),
        (&["apply", "--name", "never", "-f", &directory], 1, "io.failed", &directory),
        (&["load", "-i", &directory], 1, "image.invalid_manifest", &directory),
        (&["load", "-i", &large], 1, "image.invalid_manifest", &large),
        (&["load", "-i", &text], 1, "image.invalid_manifest", &text),
        (&["load", "-i", &bytes], 1, "image.invalid_manifest", &bytes),
        (&["load", "-i", &empty], 1, "image.invalid_manifest", &empty),
    ] {
        let told = berth(&root, &[&["--json"], args].concat()).await.refused(status);
        assert!(told.0 == code && told.1.contains(named.as_str()), "{args:?}: {told:?}");
    }
    assert_eq!(berth(&root, &["ps", "-aq"]).await.succeeded(), "", "something was made");
    assert_eq!(berth(&root, &["images", "-q"]).await.succeeded().lines().count(), 1, "something was loaded");
}

async fn credentials_that_cannot_be_used_are_told_with_their_file(case: Case) {
    let root = case.root("root");
    let dir = case.suite.dir.path().join("credentials");
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("config.json");
    let path = file.to_str().unwrap();
    let registry = case.suite.registry_auth().await;
    let image = format!("{}/private/credentials:1", registry.host);
    std::fs::write(&file, r#"{"auths": {"x": "s3cret"}}"#).unwrap();
    let said = berth_with(&root, &["--json", "pull", &image], &[("REGISTRY_AUTH_FILE", path)]).await;
    let (code, message) = said.refused(1);
    assert!(code == "registry.credentials" && message.contains(path), "{code}: {message}");
    assert!(!said.stderr.contains("s3cret"), "{said:?}");
    let missing = dir.join("missing.json").display().to_string();
    let said = berth_with(&root, &["--json", "pull", &image], &[("REGISTRY_AUTH_FILE", &missing)]).await;
    let (code, message) = said.refused(1);
    assert!(code == "registry.credentials" && message.contains(&missing), "{code}: {message}");
    // A login that is a token, where a password is wanted.
    berth(&root, &["pull", "-q", case.suite.busybox().await]).await.succeeded();
    berth(&root, &["tag", case.suite.busybox().await, &image]).await.succeeded();
    let login = serde_json::json!({"auths": {&registry.host: {"identitytoken": "s3cret"}}});
    std::fs::write(&file, login.to_string()).unwrap();
    let said = berth_with(&root, &["--json", "push", &image], &[("DOCKER_CONFIG", dir.to_str().unwrap())]).await;
    let (code, message) = said.refused(1);
    assert!(code == "registry.unauthorized" && message.contains("not a token"), "{code}: {message}");
    assert!(!said.stderr.contains("s3cret"), "{said:?}");
}

async fn while_a_record_cannot_be_read_no_image_is_removed(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let (id, spec) = (case.id_on(&runtime), case.script("true").await);
    start_on(&*runtime, &id, &spec).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await, Ok(0));
    let record = root.dir.join("containers").join(id.to_string()).join("container.json");
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, "{").unwrap();
    for args in [&["rmi", "-f", &spec.image.name][..], &["prune", "-f"]] {
        let (code, _) = berth(&root, &[&["--json"], args].concat()).await.refused(1);
        assert_eq!(code, "store.users_unknown", "{args:?}");
    }
    assert_eq!(runtime.list_images().await.unwrap().len(), 1);
    std::fs::write(&record, whole).unwrap();
    runtime.remove_container(&id).await.unwrap();
    runtime.remove_image(&spec.image.name, false).await.unwrap();
}

async fn what_s3_does_not_permit_is_said(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let image = case.suite.busybox().await;
    let run = ["run", "--rm", "--network", "none", "-v", "data:/data", image, "sh", "-c", "echo 1 > /data/f"];
    berth(&root, &run).await.succeeded();
    let reader = [("AWS_ACCESS_KEY_ID", S3_READER_ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", S3_READER_SECRET_KEY)];
    // Reading is permitted.
    berth_with(&root, &["volume", "history", "data"], &reader).await.succeeded();
    let said = berth_with(&root, &["--json", "volume", "claim", "data"], &reader).await;
    let (code, message) = said.refused(1);
    assert!(code == "volume.s3_refused" && message.contains("status 403 (AccessDenied)"), "{code}: {message}");
    assert!(message.contains(&root.s3.as_ref().unwrap().endpoint), "{message}");
    assert!(said.stderr.contains("policy"), "{said:?}");
    berth(&root, &run).await.succeeded();
}

async fn a_restore_without_room_leaves_nothing(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let image = case.suite.busybox().await;
    let write = "head -c 12000000 /dev/urandom > /data/large";
    let run = ["run", "--rm", "--network", "none", "-v", "data:/data", image, "sh", "-c", write];
    berth(&root, &run).await.succeeded();
    let place = case.suite.dir.path().join("a-small-disk");
    let _disk = Disk::mount(&place, 8 << 20);
    let left = |place: &Path| {
        let names = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name != "lost+found").collect::<Vec<_>>()
    };
    let to = place.join("restored");
    let restore = ["--json", "volume", "restore", "data", "--to", to.to_str().unwrap()];
    let (code, message) = berth(&root, &restore).await.refused(1);
    assert!(code == "volume.disk_full" && message.contains(place.to_str().unwrap()), "{code}: {message}");
    assert_eq!(left(&place), Vec::<std::ffi::OsString>::new());
}
