//! Files in and out of containers: cp and export, on running and on ended ones.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use runtime_core::{CopyInOptions, Owner};
use youki_backend::YoukiRuntime;

use crate::support::Case;
use crate::support::berth::{command, said};
use crate::support::case::{finish_on, start_on};
use crate::support::image::Image;

crate::tests![
    files_go_in_and_out_by_dockers_rules,
    what_is_mounted_on_is_written_through_and_stays_mounted,
    an_ended_container_is_copied_from_and_to,
    a_volume_that_cannot_be_mounted_is_an_error_and_nothing_goes_beneath_it,
    an_ended_container_is_unmounted_before_the_copy_is_told,
    a_link_in_the_container_leads_nowhere_else,
    export_is_the_root_filesystem_with_its_attributes,
    what_is_not_there_is_named,
    a_file_that_does_not_say_its_size_is_whole,
    what_the_kernel_makes_up_is_left_out_of_a_tree,
];

fn dir(case: &Case, name: &str) -> std::path::PathBuf {
    let dir = case.suite.dir.path().join(format!("copying-{name}"));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

async fn files_go_in_and_out_by_dockers_rules(case: Case) {
    let host = dir(&case, "rules");
    let id = case.idle().await;
    std::fs::create_dir_all(host.join("tree/sub")).unwrap();
    std::fs::write(host.join("tree/sub/file"), "inside").unwrap();
    std::os::unix::fs::chown(host.join("tree/sub/file"), Some(1000), Some(1000)).unwrap();
    let (tree, contents) = (format!("{}/tree", host.display()), format!("{}/tree/.", host.display()));
    let at = |path: &str| format!("{id}:{path}");
    for (args, shown) in [
        (&["cp", &tree, &at("/tmp")][..], "/tmp/tree/sub/file"),
        (&["cp", &tree, &at("/tmp/new")], "/tmp/new/sub/file"),
        (&["cp", &contents, &at("/tmp")], "/tmp/sub/file"),
        (&["cp", &format!("{tree}/sub/file"), &at("/tmp/renamed")], "/tmp/renamed"),
        (&["cp", &format!("{tree}/sub/file"), &at("tmp/renamed")], "/tmp/renamed"),
    ] {
        case.berth(args).await.succeeded();
        assert_eq!(
            case.exec_ok(&id, &format!("cat {shown}; stat -c ' %u:%g' {shown}")).await,
            "inside 0:0\n",
            "{args:?}"
        );
    }
    case.exec_ok(&id, "mkdir /tmp/dot /tmp/up").await;
    let root = &case.suite.shared().await.root;
    for (source, target, shown) in [("./", "/tmp/dot", "/tmp/dot/file"), ("..", "/tmp/up", "/tmp/up/tree/sub/file")] {
        let mut berth = command(root);
        berth.args(["cp", source, &at(target)]).current_dir(host.join("tree/sub"));
        said(berth).await.succeeded();
        assert_eq!(case.exec_ok(&id, &format!("cat {shown}")).await, "inside", "{source}");
    }
    case.berth(&["cp", "-a", &tree, &at("/tmp/kept")]).await.succeeded();
    assert_eq!(case.exec_ok(&id, "stat -c %u:%g /tmp/kept/sub/file").await, "1000:1000\n");

    case.exec_ok(&id, "chown 1000:29 /tmp/renamed; chmod 4750 /tmp/renamed; ln -s renamed /tmp/link").await;
    let out = format!("{}/out", host.display());
    case.berth(&["cp", &at("/tmp/renamed"), &out]).await.succeeded();
    let file = std::fs::metadata(&out).unwrap();
    assert_eq!((file.uid(), file.gid(), std::fs::read_to_string(&out).unwrap().as_str()), (0, 0, "inside"));
    case.berth(&["cp", "-a", &at("/tmp/renamed"), &out]).await.succeeded();
    let file = std::fs::metadata(&out).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (1000, 29, 0o4750));
    case.berth(&["cp", &at("/tmp/link"), host.to_str().unwrap()]).await.succeeded();
    assert_eq!(std::fs::read_link(host.join("link")).unwrap(), Path::new("renamed"));
    case.berth(&["cp", "-L", &at("/tmp/link"), &format!("{}/followed", host.display())]).await.succeeded();
    assert_eq!(std::fs::read_to_string(host.join("followed")).unwrap(), "inside");

    // A link at the target is followed, also one to what is not there yet; what it leads to is no directory by a slash.
    case.exec_ok(&id, "mkdir /tmp/links; ln -s ../renamed /tmp/links/to; ln -s /tmp/links/new /tmp/links/dangling")
        .await;
    std::fs::write(host.join("other"), "other").unwrap();
    let other = format!("{}/other", host.display());
    for (target, shown) in [("/tmp/links/to", "/tmp/renamed"), ("/tmp/links/dangling", "/tmp/links/new")] {
        case.berth(&["cp", &other, &at(target)]).await.succeeded();
        assert_eq!(case.exec_ok(&id, &format!("cat {shown}; readlink {target} | wc -l")).await, "other1\n", "{target}");
    }
    for target in ["/tmp/renamed/", "/tmp/links/to/", "/tmp/not-there/", "/tmp/renamed/below"] {
        let said = case.berth(&["cp", &other, &at(target)]).await;
        assert!(said.code != 0 && said.stderr.contains("/tmp/"), "{target}: {said:?}");
    }

    // A tar through both ends.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    builder.append_data(&mut header, "from-tar", &b"tar!"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    // What is none, or ends before its first file, is an error, and puts nothing there.
    for (what, bytes) in [("text", &b"no archive\n".repeat(200)[..]), ("short", b"x"), ("cut off", &archive[..300])] {
        let (code, _) = case.berth_with(&["--json", "cp", "-", &at("/tmp")], bytes).await.refused(1);
        assert_eq!(code, "io.failed", "{what}");
        assert_eq!(case.exec_ok(&id, "ls /tmp | grep -c from-tar || true").await, "0\n", "{what}");
    }
    case.berth_with(&["cp", "-", &at("/tmp")], &archive).await.succeeded();
    assert_eq!(case.exec_ok(&id, "cat /tmp/from-tar").await, "tar!");
    let tar = case.berth(&["cp", &at("/tmp/from-tar"), "-"]).await.succeeded();
    let mut archive = tar::Archive::new(tar.as_bytes());
    let names: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names, [Path::new("from-tar")]);
}

async fn what_is_mounted_on_is_written_through_and_stays_mounted(case: Case) {
    let host = dir(&case, "mounted");
    let mut spec = case.script(crate::support::case::IDLE).await;
    for (name, readonly) in [("open", false), ("closed", true)] {
        let source = host.join(name);
        std::fs::write(&source, "the host's\n").unwrap();
        let (source, target) = (source.display().to_string(), format!("/etc/{name}"));
        spec.storage.push(runtime_core::spec::StorageSpec::Bind { source, target, readonly });
    }
    let id = case.start(&spec).await;
    let new = host.join("new").display().to_string();
    std::fs::write(&new, "copied\n").unwrap();
    for name in ["hosts", "open"] {
        case.berth(&["cp", &new, &format!("{id}:/etc/{name}")]).await.succeeded();
        let script = format!("cat /etc/{name}; grep -c ' /etc/{name} ' /proc/self/mountinfo");
        assert_eq!(case.exec_ok(&id, &script).await, "copied\n1\n", "{name}");
    }
    assert_eq!(std::fs::read_to_string(host.join("open")).unwrap(), "copied\n");
    let said = case.berth(&["cp", &new, &format!("{id}:/etc/closed")]).await;
    assert!(said.code == 1 && said.stderr.contains("Read-only"), "{said:?}");
    // A link does not take the place of what is mounted either.
    std::os::unix::fs::symlink("/etc/passwd", host.join("link")).unwrap();
    let link = host.join("link").display().to_string();
    let said = case.berth(&["cp", &link, &format!("{id}:/etc/closed")]).await;
    assert!(said.code == 1 && said.stderr.contains("busy"), "{said:?}");
    let script = "cat /etc/closed; grep -c ' /etc/closed ' /proc/self/mountinfo";
    assert_eq!(case.exec_ok(&id, script).await, "the host's\n1\n");
    assert_eq!(std::fs::read_to_string(host.join("closed")).unwrap(), "the host's\n");
    // Nor is it written through once its container has ended.
    case.runtime.stop_container(&id, std::time::Duration::ZERO).await.unwrap();
    let said = case.berth(&["cp", &new, &format!("{id}:/etc/closed")]).await;
    assert!(said.code == 1 && said.stderr.contains("Read-only"), "{said:?}");
    assert_eq!(std::fs::read_to_string(host.join("closed")).unwrap(), "the host's\n");
}

async fn an_ended_container_is_copied_from_and_to(case: Case) {
    let host = dir(&case, "ended");
    let mut spec = case.script("cat /tmp/in 2>/dev/null; echo out > /tmp/out; echo kept > /data/file").await;
    spec.storage = vec![runtime_core::spec::StorageSpec::Anonymous { target: "/data".into() }];
    let id = case.start(&spec).await;
    case.finish(&id).await.succeeded();
    for (path, text) in [("/tmp/out", "out\n"), ("/data/file", "kept\n")] {
        let to = host.join("got");
        case.berth(&["cp", &format!("{id}:{path}"), to.to_str().unwrap()]).await.succeeded();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), text, "{path}");
    }
    std::fs::write(host.join("in"), "read at the next start\n").unwrap();
    case.berth(&["cp", host.join("in").to_str().unwrap(), &format!("{id}:/tmp")]).await.succeeded();
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(case.finish(&id).await.stdout, ["read at the next start"]);
}

async fn a_volume_that_cannot_be_mounted_is_an_error_and_nothing_goes_beneath_it(case: Case) {
    let host = dir(&case, "unmountable");
    let mut spec = case.script("mv /a /b && ln -s a /a").await;
    spec.storage = vec![runtime_core::spec::StorageSpec::Anonymous { target: "/a/data".into() }];
    let id = case.start(&spec).await;
    case.finish(&id).await.succeeded();
    std::fs::write(host.join("new"), "").unwrap();
    for args in [
        ["cp".to_owned(), host.join("new").display().to_string(), format!("{id}:/b/data/")],
        ["cp".to_owned(), format!("{id}:/b/data"), host.join("got").display().to_string()],
    ] {
        let said = case.berth(&args.each_ref().map(String::as_str)).await;
        assert!(said.code == 1 && said.stderr.contains("symbolic link"), "{args:?}: {said:?}");
    }
}

async fn an_ended_container_is_unmounted_before_the_copy_is_told(case: Case) {
    let root = case.root("unmounted");
    let runtime = YoukiRuntime::open(root.config()).await.unwrap();
    let id = case.id_in(&root);
    start_on(&runtime, &id, &case.script("true").await).await.unwrap();
    finish_on(&runtime, &id).await.succeeded();
    // Much, so that the kernel has to write when it unmounts.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(64 << 20);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    builder.append_data(&mut header, "much", &vec![1; 64 << 20][..]).unwrap();
    let tar = std::io::Cursor::new(builder.into_inner().unwrap());
    let options = CopyInOptions { rename: None, owner: Owner::Kept };
    runtime.copy_in(&id, Path::new("/tmp"), tar, options).await.unwrap();
    // With an index the kernel refuses directories that another overlay still has; without, it only warns of it.
    let container = root.dir.join("containers").join(id.to_string());
    let lower = tempfile::tempdir_in(&root.dir).unwrap();
    let (low, at) = (lower.path().display(), container.display());
    let overlay = format!("lowerdir={low},upperdir={at}/upper,workdir={at}/work,index=on");
    let mount = ["-m", "mount", "-t", "overlay", "overlay", "-o", &overlay, &format!("{at}/rootfs")];
    let mounted = std::process::Command::new("unshare").args(mount).output().unwrap();
    assert!(mounted.status.success(), "{mounted:?}");
    runtime.remove(&id, true).await.unwrap();
}

async fn a_link_in_the_container_leads_nowhere_else(case: Case) {
    let host = dir(&case, "links");
    std::fs::write(host.join("secret"), "the host's").unwrap();
    let secret = host.join("secret").display().to_string();
    let id = case.idle().await;
    let dir = host.display();
    case.exec_ok(&id, &format!("ln -s {secret} /tmp/link; ln -s {dir} /tmp/dir; ln -s ../../../../..{dir} /tmp/up"))
        .await;
    for path in ["/tmp/link", "/tmp/dir/secret", "/tmp/up/secret", "/../../../../secret"] {
        let said = case.berth(&["cp", "-L", &format!("{id}:{path}"), &format!("{dir}/stolen")]).await;
        assert_eq!(said.code, 1, "{path}: {said:?}");
    }
    std::fs::write(host.join("mine"), "put").unwrap();
    for target in ["/tmp/link", "/tmp/dir/new", "/tmp/up/new"] {
        // Where no such directory is within the container it fails; elsewhere it must stay inside.
        drop(case.berth(&["cp", &format!("{dir}/mine"), &format!("{id}:{target}")]).await);
    }
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "the host's");
    assert!(!host.join("new").exists() && !host.join("stolen").exists());
}

async fn export_is_the_root_filesystem_with_its_attributes(case: Case) {
    let layer = crate::support::image::LayerBuilder::new().file("opt/set", 0o4755, b"x").finish();
    let mut spec = case.script(&format!("echo new > /tmp/new; rm /etc/group; {}", crate::support::case::IDLE)).await;
    spec.image.name = case.push("export", &Image::busybox().layer(layer)).await;
    spec.storage = vec![runtime_core::spec::StorageSpec::Anonymous { target: "/data".into() }];
    let id = case.start(&spec).await;
    case.exec_ok(&id, "echo volume > /data/file; until [ -e /tmp/new ] && [ ! -e /etc/group ]; do sleep 0.1; done")
        .await;
    let file = dir(&case, "export").join("root.tar");
    for ended in [false, true] {
        if ended {
            case.runtime.stop_container(&id, std::time::Duration::from_secs(5)).await.unwrap();
        }
        case.berth(&["export", "-o", file.to_str().unwrap(), &id.to_string()]).await.succeeded();
        let mut found = std::collections::BTreeMap::new();
        let mut archive = tar::Archive::new(std::fs::File::open(&file).unwrap());
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string().trim_end_matches('/').to_owned();
            found.insert(name, (entry.header().mode().unwrap(), entry.size()));
        }
        assert_eq!(found.get("opt/set"), Some(&(0o4755, 1)), "{found:?}");
        assert_eq!(found.get("tmp/new").map(|(_, size)| *size), Some(4));
        assert_eq!(found.get("tmp").map(|(mode, _)| *mode), Some(0o1777));
        assert!(found.contains_key("data") && !found.contains_key("data/file"), "a volume was exported");
        assert!(!found.contains_key("etc/group") && found.contains_key("bin/busybox"), "{found:?}");
        assert!(!found.keys().any(|name| name.starts_with("proc/")), "{found:?}");
    }
}

async fn what_is_not_there_is_named(case: Case) {
    let id = case.idle().await;
    for (args, named) in [
        (&["cp", &format!("{id}:/no/such"), "/tmp/never"][..], "/no/such"),
        (&["cp", "/no/such/source", &format!("{id}:/tmp")], "/no/such/source"),
        (&["cp", "nosuch:/x", "/tmp/never"], "nosuch"),
        (&["export", "-o", "/tmp/never", "nosuch"], "nosuch"),
        (&["cp", "/etc/hostname", &format!("{id}:/no/such/dir/file")], "/no/such/dir"),
    ] {
        let said = case.berth(args).await;
        assert!(said.code == 1 && said.stderr.contains(named), "{args:?}: {said:?}");
    }
    assert!(!Path::new("/tmp/never").exists());
    assert_eq!(case.berth(&["cp", "a", "b"]).await.code, 2);
}

/// Those of `/proc` say that they are empty, those of `/sys` that they have a page.
async fn a_file_that_does_not_say_its_size_is_whole(case: Case) {
    let id = case.idle().await;
    let out = dir(&case, "unsized").join("file");
    for path in ["/proc/version", "/sys/devices/virtual/net/lo/mtu"] {
        let content = case.exec_ok(&id, &format!("cat {path}")).await;
        assert!(!content.is_empty() && content.len() < 4096, "{path}");
        case.berth(&["cp", &format!("{id}:{path}"), out.to_str().unwrap()]).await.succeeded();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), content, "{path}");
        let tar = case.berth(&["cp", &format!("{id}:{path}"), "-"]).await.succeeded();
        let mut archive = tar::Archive::new(tar.as_bytes());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let mut found = String::new();
        std::io::Read::read_to_string(&mut entry, &mut found).unwrap();
        assert_eq!(found, content, "{path}");
    }
}

/// Docker's copy has none of it either.
async fn what_the_kernel_makes_up_is_left_out_of_a_tree(case: Case) {
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.storage = vec![runtime_core::spec::StorageSpec::Anonymous { target: "/data".into() }];
    let id = case.start(&spec).await;
    case.exec_ok(&id, "echo volume > /data/file; echo memory > /dev/shm/file").await;
    let (out, sys) = (dir(&case, "whole").join("out"), dir(&case, "whole").join("sys"));
    case.berth(&["cp", &format!("{id}:/"), out.to_str().unwrap()]).await.succeeded();
    case.berth(&["cp", &format!("{id}:/sys"), sys.to_str().unwrap()]).await.succeeded();
    for (path, text) in [("data/file", "volume\n"), ("dev/shm/file", "memory\n")] {
        assert_eq!(std::fs::read_to_string(out.join(path)).unwrap(), text, "{path}");
    }
    assert!(out.join("bin/busybox").is_file() && out.join("etc/hosts").is_file());
    for kernels in [out.join("proc"), out.join("sys"), out.join("dev/pts"), out.join("dev/mqueue"), sys] {
        let found: Vec<_> = std::fs::read_dir(&kernels).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(found.is_empty(), "{}: {found:?}", kernels.display());
    }
}
