//! Trees come back as they were, and go to the bucket once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::RestoreOptions;

use super::{Host, Memory, code, readonly};

/// Everything about a tree that a restore must bring back.
pub(super) fn describe(root: &Path) -> BTreeMap<std::path::PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut queue = vec![root.to_owned()];
    while let Some(path) = queue.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let content = match stat.file_type() {
            kind if kind.is_file() => blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string(),
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            _ => String::new(),
        };
        let mut value = [0; 100];
        let xattr = rustix::fs::lgetxattr(&path, c"user.test", &mut value[..]).map_or(0, |length| length);
        if stat.is_dir() {
            queue.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let links = if stat.is_dir() { 0 } else { stat.nlink() };
        let size = if stat.is_dir() { 0 } else { stat.size() };
        let line = format!(
            "{:o} {}:{} {} {}.{} dev {} links {links} {content} {:?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            size,
            stat.mtime(),
            stat.mtime_nsec(),
            stat.rdev(),
            &value[..xattr]
        );
        found.insert(path.strip_prefix(root).unwrap().to_owned(), line);
    }
    found
}

pub(super) fn fill(root: &Path) {
    use std::ffi::{CString, OsStr};
    use std::os::unix::ffi::OsStrExt as _;
    fs::create_dir_all(root.join("a/b/empty")).unwrap();
    fs::write(root.join("a/x"), "x").unwrap();
    fs::write(root.join("a-b"), "sorts between").unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not-utf8-\xff\xfe")), "bytes").unwrap();
    fs::hard_link(root.join("a/x"), root.join("z-link")).unwrap();
    symlink("../outside", root.join("a/link")).unwrap();
    let noise: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(root.join("large"), &noise).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 20 << 20).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    fs::set_permissions(root.join("a/x"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
    // Not every filesystem takes it; where it does, it must come back.
    let flags = rustix::fs::XattrFlags::empty();
    let _ = rustix::fs::lsetxattr(root.join("a/x"), c"user.test", b"v\0\xff", flags);
    let _ = rustix::fs::lsetxattr(root.join("a"), c"user.test", b"d", flags);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(root.join("a/link"), Some(1234), Some(70_000)).unwrap();
        std::os::unix::fs::chown(root.join("large"), Some(99), Some(98)).unwrap();
        let path = CString::new(root.join("null").as_os_str().as_bytes()).unwrap();
        let device = rustix::fs::makedev(1, 3);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::RUSR, device).unwrap();
    }
}

#[tokio::test]
async fn every_attribute_comes_back_on_another_host() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    let acquired = one.acquire().await.unwrap();
    assert!(acquired.is_new && acquired.claimed);
    fill(&acquired.path);
    let before = describe(&acquired.path);
    one.store.release("v", "web").await.unwrap();
    let moved = two.acquire().await.unwrap();
    assert!(!moved.is_new && moved.claimed);
    pretty(&before, &describe(&moved.path));
    let blocks = fs::metadata(moved.path.join("sparse")).unwrap().blocks();
    assert!(blocks * 512 < 5 << 20, "{blocks} blocks: the holes were filled");
    assert_eq!(two.store.status("v").await.unwrap().owner.as_deref(), Some("two"));
    // What was restored is known: nothing is read or sent again.
    let puts = memory.puts.load(Ordering::SeqCst);
    let generation = two.store.sync("v").await.unwrap().generation;
    assert_eq!((memory.puts.load(Ordering::SeqCst), generation), (puts, Some(2)));
}

pub(super) fn pretty(before: &BTreeMap<std::path::PathBuf, String>, after: &BTreeMap<std::path::PathBuf, String>) {
    for (path, line) in before {
        assert_eq!(Some(line), after.get(path), "{}", path.display());
    }
    assert_eq!(before.len(), after.len());
}

#[tokio::test]
async fn a_small_change_sends_little_and_a_copy_nothing() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let data = host.acquire().await.unwrap().path;
    fill(&data);
    host.store.sync("v").await.unwrap();
    let first = memory.put_bytes.swap(0, Ordering::SeqCst);
    assert!(first > 10_000_000, "{first}");
    fs::write(data.join("a-b"), "changed").unwrap();
    fs::copy(data.join("large"), data.join("copy")).unwrap();
    host.store.sync("v").await.unwrap();
    let second = memory.put_bytes.swap(0, Ordering::SeqCst);
    assert!(second < 20_000, "{second} bytes for a small change and a copy");
}

#[tokio::test]
async fn a_flipped_bit_in_a_pack_leaves_nothing_restored() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    let data = one.acquire().await.unwrap().path;
    fill(&data);
    one.store.release("v", "web").await.unwrap();
    {
        let mut objects = memory.objects.lock().unwrap();
        let pack = objects.iter_mut().find(|(key, _)| key.contains("/packs/")).unwrap().1;
        let mut bytes = pack.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        *pack = bytes.into();
    }
    assert_eq!(code(two.acquire().await), "volume.corrupt");
    // The claim that was made for it is given back.
    assert!(one.acquire().await.unwrap().claimed);
    assert!(!two.store.inner_root().join("v/data").exists());
    assert!(!two.store.inner_root().join("v").exists(), "half a volume stayed");
    assert!(two.store.list().await.unwrap().is_empty());
    // Nor by who only reads, or restores by hand.
    assert_eq!(code(two.store.acquire("v", "web", readonly()).await), "volume.corrupt");
    assert_eq!(code(two.store.restore("v", RestoreOptions::default()).await), "volume.corrupt");
    assert!(!two.store.inner_root().join("v").exists(), "half a volume stayed");
}
