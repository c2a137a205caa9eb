//! Each kind of mount, and the root filesystem itself.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use runtime_core::AgentError;
use runtime_core::spec::StorageSpec;
use serde_json::json;

use crate::support::Case;
use crate::support::image::{Image, LayerBuilder};

crate::tests![
    a_bind_mount_shows_and_changes_the_host,
    a_read_only_bind_mount_cannot_be_written,
    a_bind_mount_of_one_file_and_onto_a_missing_target,
    a_missing_bind_source_is_refused_and_leaves_nothing,
    a_tmpfs_has_its_size_and_mode_and_vanishes,
    an_anonymous_volume_is_filled_from_the_image_and_dies_with_its_container,
    an_image_volume_becomes_an_anonymous_one,
    a_named_volume_is_filled_from_the_image_once_and_outlives_its_container,
    a_named_volume_is_shared_by_containers,
    a_read_only_named_volume_cannot_be_written,
    a_read_only_root_cannot_be_written_and_its_mounts_can,
    two_containers_of_one_image_do_not_see_each_others_writes,
    a_target_through_a_symlink_stays_in_the_container,
    no_link_of_an_image_leads_a_mount_into_proc_sys_or_dev,
    an_s3_mount_is_unsupported_by_name,
    a_relative_target_is_invalid,
    what_a_layer_deletes_is_gone,
];

fn bind(source: &std::path::Path, target: &str, readonly: bool) -> StorageSpec {
    StorageSpec::Bind { source: source.display().to_string(), target: target.into(), readonly }
}

fn named(name: &str, target: &str, readonly: bool) -> StorageSpec {
    StorageSpec::Named { name: name.into(), target: target.into(), readonly, tier: None, size: None, take_over: false }
}

/// A directory of the host for one test.
fn host_dir(case: &Case, name: &str) -> PathBuf {
    let dir = case.suite.dir.path().join("host").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

async fn a_bind_mount_shows_and_changes_the_host(case: Case) {
    let dir = host_dir(&case, "bind");
    std::fs::write(dir.join("in"), "from the host").unwrap();
    let mut spec =
        case.script("cat /mnt/deep/in; echo from the container > /mnt/deep/out; chown 7:8 /mnt/deep/out").await;
    spec.storage = vec![bind(&dir, "/mnt/deep", false)];
    assert_eq!(case.run(&spec).await.succeeded(), ["from the host"]);
    assert_eq!(std::fs::read_to_string(dir.join("out")).unwrap(), "from the container\n");
    let out = std::fs::metadata(dir.join("out")).unwrap();
    assert_eq!((out.uid(), out.gid()), (7, 8));
}

async fn a_read_only_bind_mount_cannot_be_written(case: Case) {
    let dir = host_dir(&case, "bind-ro");
    std::fs::write(dir.join("in"), "x").unwrap();
    let mut spec = case.script("cat /mnt/in; touch /mnt/new || echo refused; echo y > /mnt/in || echo refused").await;
    spec.storage = vec![bind(&dir, "/mnt", true)];
    assert_eq!(case.run(&spec).await.stdout.concat(), "xrefusedrefused");
    assert_eq!(std::fs::read_to_string(dir.join("in")).unwrap(), "x");
    assert!(!dir.join("new").exists());
}

async fn a_bind_mount_of_one_file_and_onto_a_missing_target(case: Case) {
    let file = host_dir(&case, "bind-file").join("one");
    std::fs::write(&file, "one\n").unwrap();
    let mut spec = case.script("cat /etc/deep/one").await;
    spec.storage = vec![bind(&file, "/etc/deep/one", true)];
    assert_eq!(case.run(&spec).await.succeeded(), ["one"]);
}

async fn a_missing_bind_source_is_refused_and_leaves_nothing(case: Case) {
    let mut spec = case.script("true").await;
    spec.storage = vec![bind(std::path::Path::new("/nonexistent/source"), "/mnt", false)];
    let id = case.id();
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    let error = case.runtime.create_container(&id, &spec).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/source"), "{error}");
    assert!(matches!(case.runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
    assert!(!std::path::Path::new("/nonexistent").exists(), "it made the source");
}

async fn a_tmpfs_has_its_size_and_mode_and_vanishes(case: Case) {
    let script = "stat -c %a /scratch; df -k /scratch | tail -1 | awk '{print $2}'; \
                  dd if=/dev/zero of=/scratch/x bs=1M count=5 2>/dev/null || echo full; touch /scratch/y";
    let mut spec = case.script(script).await;
    spec.storage =
        vec![StorageSpec::Tmpfs { target: "/scratch".into(), size: Some("4Mi".parse().unwrap()), mode: Some(0o700) }];
    let id = case.start(&spec).await;
    assert_eq!(case.finish(&id).await.stdout, ["700", "4096", "full"]);
    let mut spec = case.script("stat -c %a /scratch; ls /scratch | wc -l").await;
    spec.storage = vec![StorageSpec::Tmpfs { target: "/scratch".into(), size: None, mode: None }];
    assert_eq!(case.run(&spec).await.succeeded(), ["1777", "0"]);
}

/// An image whose `/data` holds a file of its own.
fn with_data() -> Image {
    let layer = LayerBuilder::new()
        .dir("data", 0o750)
        .owned_file("data/seed", 0o640, (1000, 1000), b"seed\n")
        .symlink("data/link", "seed")
        .finish();
    Image::busybox().layer(layer)
}

async fn an_anonymous_volume_is_filled_from_the_image_and_dies_with_its_container(case: Case) {
    let script =
        "cat /data/link; stat -c '%a %u' /data/seed /data; grep -c ' /data ' /proc/self/mountinfo; echo x > /data/x";
    let mut spec = case.script(script).await;
    spec.image.name = case.push("seeded", &with_data()).await;
    spec.storage = vec![StorageSpec::Anonymous { target: "/data".into() }];
    for _ in 0..2 {
        let id = case.start(&spec).await;
        assert_eq!(case.finish(&id).await.succeeded(), ["seed", "640 1000", "750 0", "1"]);
        case.runtime.remove_container(&id).await.unwrap();
    }
    spec.command.args = Some(crate::support::case::words(&["ls", "/data"]));
    assert_eq!(case.run(&spec).await.succeeded(), ["link", "seed"], "a new container has a new volume");
}

async fn an_image_volume_becomes_an_anonymous_one(case: Case) {
    let image = with_data().with("Volumes", json!({"/data": {}}));
    let mut spec = case.script("grep -c ' /data ' /proc/self/mountinfo; cat /data/seed").await;
    spec.image.name = case.push("volume", &image).await;
    assert_eq!(case.run(&spec).await.succeeded(), ["1", "seed"]);
}

async fn a_named_volume_is_filled_from_the_image_once_and_outlives_its_container(case: Case) {
    let mut spec = case.script("cat /data/seed; echo changed > /data/seed").await;
    spec.image.name = case.push("seeded", &with_data()).await;
    spec.storage = vec![named("filled", "/data", false)];
    let id = case.start(&spec).await;
    assert_eq!(case.finish(&id).await.succeeded(), ["seed"]);
    case.runtime.remove_container(&id).await.unwrap();
    assert_eq!(case.run(&spec).await.succeeded(), ["changed"], "the volume was filled a second time, or lost");
}

async fn a_named_volume_is_shared_by_containers(case: Case) {
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.storage = vec![named("shared", "/data", false)];
    let (a, b) = (case.start(&spec).await, case.start(&spec).await);
    case.exec_ok(&a, "echo hello > /data/from-a").await;
    assert_eq!(case.exec_ok(&b, "cat /data/from-a").await, "hello\n");
}

async fn a_read_only_named_volume_cannot_be_written(case: Case) {
    let mut spec = case.script("echo x > /data/x").await;
    spec.storage = vec![named("readonly", "/data", false)];
    case.run(&spec).await.succeeded();
    let mut spec = case.script("cat /data/x; touch /data/y || echo refused").await;
    spec.storage = vec![named("readonly", "/data", true)];
    assert_eq!(case.run(&spec).await.stdout, ["x", "refused"]);
}

async fn a_read_only_root_cannot_be_written_and_its_mounts_can(case: Case) {
    let script =
        "for file in /x /etc/hosts /etc/hostname /etc/resolv.conf; do ( : >> $file ) 2>/dev/null && echo $file; done
        touch /x || echo refused; touch /tmp/x && echo written; touch /dev/shm/x && echo shm";
    let mut spec = case.script(script).await;
    spec.read_only = true;
    spec.storage = vec![StorageSpec::Tmpfs { target: "/tmp".into(), size: None, mode: None }];
    assert_eq!(case.run(&spec).await.stdout, ["refused", "written", "shm"]);
}

async fn two_containers_of_one_image_do_not_see_each_others_writes(case: Case) {
    let (a, b) = (case.idle().await, case.idle().await);
    case.exec_ok(&a, "echo a > /mark; echo changed >> /etc/passwd; rm /bin/tac").await;
    assert_eq!(
        case.exec_ok(&b, "ls /mark 2>/dev/null; grep -c changed /etc/passwd; ls /bin/tac").await,
        "0\n/bin/tac\n"
    );
}

async fn a_target_through_a_symlink_stays_in_the_container(case: Case) {
    let dir = host_dir(&case, "symlink");
    std::fs::write(dir.join("in"), "x").unwrap();
    let escape = host_dir(&case, "escape");
    let layer = LayerBuilder::new()
        .dir("real", 0o755)
        .symlink("link", "/real")
        .symlink("out", &escape.display().to_string())
        .finish();
    let mut spec = case.script("ls /real/mounted").await;
    spec.image.name = case.push("symlink", &Image::busybox().layer(layer)).await;
    spec.storage = vec![bind(&dir, "/link/mounted", false)];
    assert_eq!(case.run(&spec).await.succeeded(), ["in"], "a link is followed beneath the container's root");
    // One that leads to what only the host has is refused, or made in the container; the host is left alone.
    spec.storage = vec![bind(&dir, "/out/mounted", false)];
    spec.command.args = Some(crate::support::case::words(&["ls", &format!("{}/mounted", escape.display())]));
    let id = case.id();
    if case.try_start(&id, &spec).await.is_ok() {
        assert_eq!(case.finish(&id).await.succeeded(), ["in"]);
    }
    assert_eq!(std::fs::read_dir(&escape).unwrap().count(), 0, "it was followed on the host");
}

async fn no_link_of_an_image_leads_a_mount_into_proc_sys_or_dev(case: Case) {
    let layer = LayerBuilder::new()
        .symlink("p", "/proc")
        .symlink("d", "/dev")
        .symlink("s", "/sys")
        .symlink("shared", "/dev/shm/data")
        .finish();
    let image = case.push("own", &Image::busybox().layer(layer)).await;
    for target in ["/p", "/p/sys", "/p/self/fd", "/d", "/d/pts", "/d/made", "/s", "/s/fs/cgroup", "/dev/fd"] {
        let mut spec = case.script("true").await;
        spec.image.name.clone_from(&image);
        spec.storage = vec![StorageSpec::Anonymous { target: target.into() }];
        let error = case.try_start(&case.id(), &spec).await.expect_err(target);
        assert!(error.to_string().contains("a link leads it into"), "{target}: {error}");
    }
    let mut spec = case.script("grep -q ' /dev/shm/data ' /proc/self/mountinfo").await;
    spec.image.name = image;
    spec.storage = vec![StorageSpec::Anonymous { target: "/shared".into() }];
    case.run(&spec).await.succeeded();
}

async fn an_s3_mount_is_unsupported_by_name(case: Case) {
    let mut spec = case.script("true").await;
    spec.storage = vec![StorageSpec::S3 { bucket: "b".into(), prefix: None, target: "/data".into(), readonly: false }];
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    let error = case.runtime.create_container(&case.id(), &spec).await.unwrap_err();
    assert!(matches!(error, AgentError::Unsupported(_)), "{error:?}");
    assert_eq!(error.code(), "unsupported.here", "{error}");
}

async fn a_relative_target_is_invalid(case: Case) {
    for target in ["data", "", "../data"] {
        let mut spec = case.script("true").await;
        spec.storage = vec![StorageSpec::Anonymous { target: target.into() }];
        case.runtime.pull_image(&spec.image.name).await.unwrap();
        let error = case.runtime.create_container(&case.id(), &spec).await.unwrap_err();
        assert!(matches!(error, AgentError::InvalidSpec(_)), "{target:?}: {error:?}");
    }
}

async fn what_a_layer_deletes_is_gone(case: Case) {
    let first = LayerBuilder::new()
        .dir("a", 0o755)
        .file("a/kept", 0o644, b"1")
        .file("a/deleted", 0o644, b"1")
        .dir("b", 0o755)
        .file("b/old", 0o644, b"1")
        .finish();
    let second = LayerBuilder::new().dir("a", 0o755).whiteout("a/deleted").dir("b", 0o711).opaque("b").finish();
    let third =
        LayerBuilder::new().dir("b", 0o711).file("b/new", 0o600, b"3").file("a/deleted", 0o640, b"back").finish();
    let image = Image::busybox().layer(first).layer(second);
    let mut spec = case.script("ls /a /b; stat -c %a /b").await;
    spec.image.name = case.push("two", &image).await;
    assert_eq!(case.run(&spec).await.succeeded(), ["/a:", "kept", "", "/b:", "711"]);
    spec.image.name = case.push("three", &image.layer(third)).await;
    assert_eq!(case.run(&spec).await.succeeded(), ["/a:", "deleted", "kept", "", "/b:", "new", "711"]);
}
