//! Trees deeper than a path may be long: made, and looked at, from directory to directory.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::{Progress, RestoreOptions};
use rustix::fs::{AtFlags, Mode, OFlags, linkat, mkdirat, openat, readlinkat, statat, symlinkat};

use super::{Host, Memory, code};

/// Levels of the test's tree: 300 times 201 bytes are some 60 KiB.
const LEVELS: usize = 300;
/// Files of the deepest directory.
const FILES: usize = 200;

fn name() -> String {
    "n".repeat(200)
}

fn enter(directory: &OwnedFd, name: &str) -> OwnedFd {
    openat(directory, name, OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).unwrap()
}

fn write(directory: &OwnedFd, name: &str, text: &str) {
    let file = openat(directory, name, OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC, Mode::from(0o640)).unwrap();
    File::from(file).write_all(text.as_bytes()).unwrap();
}

fn read(directory: &OwnedFd, name: &str) -> String {
    let mut text = String::new();
    File::from(openat(directory, name, OFlags::RDONLY, Mode::empty()).unwrap()).read_to_string(&mut text).unwrap();
    text
}

/// A chain of `levels` directories with a file in each; the deepest.
fn make(root: &Path, levels: usize) -> OwnedFd {
    let mut directory: OwnedFd = File::open(root).unwrap().into();
    for level in 0..levels {
        mkdirat(&directory, name(), Mode::from(0o755)).unwrap();
        directory = enter(&directory, &name());
        write(&directory, "file", &level.to_string());
    }
    directory
}

/// Goes down, comparing each file; the deepest.
fn check(root: &Path, levels: usize) -> OwnedFd {
    let mut directory: OwnedFd = File::open(root).unwrap().into();
    for level in 0..levels {
        directory = enter(&directory, &name());
        assert_eq!(read(&directory, "file"), level.to_string());
        assert_eq!(statat(&directory, "file", AtFlags::empty()).unwrap().st_mode & 0o7777, 0o640);
    }
    directory
}

#[tokio::test]
async fn a_tree_deeper_than_a_path_may_be_long_comes_back_whole() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let data = host.acquire().await.unwrap().path;
    let deepest = make(&data, LEVELS);
    for number in 0..FILES {
        write(&deepest, &format!("of many {number}"), &number.to_string());
    }
    linkat(&deepest, "file", &deepest, "second name", AtFlags::empty()).unwrap();
    symlinkat("../file", &deepest, "link").unwrap();
    // What comes after the chain in its order: the directories above are closed by then, and opened again.
    write(&enter(&File::open(&data).unwrap().into(), &name()), "zuletzt", "last");
    host.store.sync("v").await.unwrap();
    let before = memory.put_bytes.load(Ordering::SeqCst);
    assert_eq!(host.store.status("v").await.unwrap().bytes_at_risk, 0);
    write(&deepest, "file", "changed");
    host.store.sync("v").await.unwrap();
    let sent = memory.put_bytes.load(Ordering::SeqCst) - before;
    assert!(sent < 64 << 10, "{sent} bytes for one small change");
    write(&deepest, "file", &(LEVELS - 1).to_string());
    assert_eq!(host.store.release("v", "web").await.unwrap().map(|error| error.code()), None);

    let two = Host::new("two", &memory).await;
    let restored = two.acquire().await.unwrap().path;
    let deepest = check(&restored, LEVELS);
    for number in 0..FILES {
        assert_eq!(read(&deepest, &format!("of many {number}")), number.to_string());
    }
    let [one, other] = ["file", "second name"].map(|name| statat(&deepest, name, AtFlags::empty()).unwrap());
    assert_eq!((one.st_ino, one.st_nlink), (other.st_ino, 2));
    assert_eq!(readlinkat(&deepest, "link", Vec::new()).unwrap().as_bytes(), b"../file");
    assert_eq!(read(&enter(&File::open(&restored).unwrap().into(), &name()), "zuletzt"), "last");
    let report = two.store.verify("v", None, Progress::default()).await.unwrap();
    assert!(report.damaged.is_empty(), "{report:?}");
    let beside = two._root.path().join("beside");
    two.store.restore("v", RestoreOptions { to: Some(beside.clone()), ..Default::default() }).await.unwrap();
    check(&beside, LEVELS);
    two.store.release("v", "web").await.unwrap();
    two.store.remove("v", true, true).await.unwrap();
    assert!(!restored.exists());
}

#[tokio::test]
async fn a_path_beyond_the_limit_is_named_by_its_beginning_and_the_rest_is_kept_here() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let data = host.acquire().await.unwrap().path;
    make(&data, 330);
    let error = host.store.sync("v").await.unwrap_err();
    assert_eq!(error.code(), "volume.unsupported");
    let text = error.to_string();
    assert!(text.contains("65536 bytes") && text.contains(&name()) && text.len() < 1000, "{text}");
    for status in [host.store.status("v").await.unwrap(), host.store.list().await.unwrap().remove(0)] {
        assert!(status.last_error.is_some_and(|error| error.contains("65536 bytes")));
    }
    check(&data, 330);
    // Only by name: it is nowhere else.
    host.store.release("v", "web").await.unwrap();
    assert_eq!(code(host.store.remove("v", false, false).await), "volume.unsupported");
    host.store.remove("v", false, true).await.unwrap();
    assert!(!data.exists() && host.store.list().await.unwrap().is_empty());
}

/// Who restores, or looks for further names of a file, holds their paths.
#[tokio::test]
async fn long_paths_of_many_linked_files_are_refused_and_kept_here() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let data = host.acquire().await.unwrap().path;
    let deepest = make(&data, LEVELS);
    for number in 0..4_500 {
        let (file, other) = (format!("a{number}"), format!("b{number}"));
        write(&deepest, &file, "");
        linkat(&deepest, &file, &deepest, &other, AtFlags::empty()).unwrap();
    }
    let error = host.store.sync("v").await.unwrap_err();
    assert!(error.code() == "volume.unsupported" && error.to_string().contains("268435456 bytes"), "{error}");
    check(&data, LEVELS);
    host.store.remove("v", false, true).await.unwrap_err(); // it is in use
    host.store.release("v", "web").await.unwrap();
    host.store.remove("v", false, true).await.unwrap();
}
