//! Whole volumes over an object store in this process, which can be away, and lose answers. The suite against a real
//! server is youki-backend's.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::log::Log;
use crate::object_store::{Listed, ObjectStore, Put};
use crate::record::{Record, RecordKind};
use crate::{AcquireOptions, RestoreOptions, S3Config, VolumeStore, VolumesConfig};

mod copies;
mod damaged;
mod deep;
mod folds;
mod foreign;
mod going_back;
mod histories;
mod pruned_while_read;
mod prunes;
mod readers;
mod refusals;
mod removals;
mod renewals;
mod statuses;
mod trouble;
mod unused;

/// Objects in memory.
#[derive(Debug, Default)]
struct Memory {
    objects: std::sync::Mutex<BTreeMap<String, Bytes>>,
    away: AtomicBool,
    /// The next put-if-absent happens, and its answer is lost.
    lose_answer: AtomicBool,
    /// Every put-if-absent is told that it won.
    racy: AtomicBool,
    /// Somebody else takes each number of a log a moment before.
    others_first: AtomicBool,
    /// No request is answered.
    hang: AtomicBool,
    /// Nor one for a pack.
    hang_at_packs: AtomicBool,
    /// After so many requests it is away; 0: never.
    away_after: AtomicUsize,
    /// After so many requests the objects are these: what others did in that moment.
    turn: std::sync::Mutex<Option<(usize, BTreeMap<String, Bytes>)>>,
    /// A put-if-absent of a record waits here before it happens, if somebody bars the way.
    before_record: tokio::sync::RwLock<()>,
    /// A get of a pack waits here.
    before_pack: tokio::sync::RwLock<()>,
    asked: AtomicUsize,
    puts: AtomicUsize,
    put_bytes: AtomicUsize,
}

impl Memory {
    async fn reach(&self) -> Result<()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.hang.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let left = self.away_after.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left == Ok(1) {
            self.away.store(true, Ordering::SeqCst);
        }
        let mut turn = self.turn.lock().unwrap();
        match turn.as_mut() {
            Some((0, _)) => *self.objects.lock().unwrap() = turn.take().map(|(_, objects)| objects).unwrap_or_default(),
            Some((left, _)) => *left -= 1,
            None => {}
        }
        drop(turn);
        if self.away.load(Ordering::SeqCst) { Err(unreachable_error()) } else { Ok(()) }
    }

    fn keys(&self, part: &str) -> Vec<String> {
        self.objects.lock().unwrap().keys().filter(|key| key.contains(part)).cloned().collect()
    }

    fn count(&self, body: &Bytes) {
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.put_bytes.fetch_add(body.len(), Ordering::SeqCst);
    }
}

fn unreachable_error() -> Error {
    Error::S3Unreachable {
        operation: "test".into(),
        location: "memory".into(),
        source: Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
    }
}

#[async_trait]
impl ObjectStore for Memory {
    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.reach().await?;
        self.count(&body);
        self.objects.lock().unwrap().insert(key.into(), body);
        Ok(())
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<Put> {
        self.reach().await?;
        if key.contains("/log/") {
            drop(self.before_record.read().await);
        }
        let mut objects = self.objects.lock().unwrap();
        if self.others_first.load(Ordering::SeqCst)
            && let Ok(mut record) = serde_json::from_slice::<Record>(&body)
        {
            (record.kind, record.owner, record.nonce) = (RecordKind::Released, None, "another's".into());
            objects.insert(key.into(), record.encode()?.into());
        }
        if objects.contains_key(key) && !self.racy.load(Ordering::SeqCst) {
            return Ok(Put::Exists);
        }
        self.count(&body);
        objects.insert(key.into(), body);
        if self.lose_answer.swap(false, Ordering::SeqCst) { Err(unreachable_error()) } else { Ok(Put::Created) }
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>, _limit: usize) -> Result<Option<Bytes>> {
        self.reach().await?;
        if key.contains("/packs/") {
            if self.hang_at_packs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            drop(self.before_pack.read().await);
        }
        let object = self.objects.lock().unwrap().get(key).cloned();
        Ok(object.map(|object| match range {
            Some(range) => {
                let end = (range.end as usize).min(object.len());
                object.slice((range.start as usize).min(end)..end)
            }
            None => object,
        }))
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        self.reach().await?;
        Ok(self.objects.lock().unwrap().get(key).map(|object| object.len() as u64))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>> {
        self.reach().await?;
        let objects = self.objects.lock().unwrap();
        let wanted = |key: &str| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        let found = objects.iter().filter(|(key, _)| wanted(key)).take(1000);
        Ok(found.map(|(key, body)| Listed { key: key.clone(), size: body.len() as u64 }).collect())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.reach().await?;
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }

    async fn check_bucket(&self) -> Result<()> {
        self.reach().await
    }
}

/// A data root with a runtime of its own name.
struct Host {
    store: VolumeStore,
    _root: TempDir,
}

impl Host {
    async fn new(name: &str, memory: &Arc<Memory>) -> Self {
        Self::with(name, memory, |s3| s3).await
    }

    async fn with(name: &str, memory: &Arc<Memory>, change: impl FnOnce(S3Config) -> S3Config) -> Self {
        // In memory: every sync also syncs the filesystem, and a busy disk makes that slow.
        let root = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        Self { store: open(root.path(), name, memory, change).await, _root: root }
    }

    /// One whose prunes keep the newest `last`.
    async fn keeping(name: &str, memory: &Arc<Memory>, last: u32) -> Self {
        let root = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let keep = Some(crate::Keep { last, ..crate::Keep::default() });
        let config = VolumesConfig { keep, ..config(root.path(), name) };
        Self { store: VolumeStore::open_with(config, memory.clone()).await.unwrap(), _root: root }
    }

    /// Another process on the same root.
    async fn again(&self, name: &str, memory: &Arc<Memory>, change: impl FnOnce(S3Config) -> S3Config) -> VolumeStore {
        open(self._root.path(), name, memory, change).await
    }

    /// A process on the same root that has no bucket.
    async fn without_bucket(&self, name: &str) -> VolumeStore {
        VolumeStore::open(VolumesConfig { s3: None, ..config(self._root.path(), name) }).await.unwrap()
    }

    async fn acquire(&self) -> Result<crate::Acquired> {
        self.store.acquire("v", "web", AcquireOptions::default()).await
    }

    async fn take_over(&self) -> Result<crate::Acquired> {
        self.store.acquire("v", "web", AcquireOptions { take_over: true, ..Default::default() }).await
    }

    async fn data(&self) -> std::path::PathBuf {
        self.store.status("v").await.unwrap().mountpoint
    }

    async fn write(&self, text: &str) {
        fs::write(self.data().await.join("file"), text).unwrap();
    }

    async fn read(&self) -> String {
        fs::read_to_string(self.data().await.join("file")).unwrap()
    }
}

async fn open(root: &Path, name: &str, memory: &Arc<Memory>, change: impl FnOnce(S3Config) -> S3Config) -> VolumeStore {
    let config = config(root, name);
    let config = VolumesConfig { s3: config.s3.map(change), ..config };
    VolumeStore::open_with(config, memory.clone()).await.unwrap()
}

fn config(root: &Path, name: &str) -> VolumesConfig {
    let s3 = S3Config { bucket: "test".into(), prefix: Some("p".into()), ..S3Config::default() };
    VolumesConfig {
        root: root.join("volumes"),
        run_dir: root.join("run"),
        host: name.into(),
        s3: Some(s3),
        keep: None,
        take_over_after: None,
        prune_grace: std::time::Duration::ZERO,
        mounted_by: None,
    }
}

fn readonly() -> AcquireOptions {
    AcquireOptions { readonly: true, ..AcquireOptions::default() }
}

fn code<T>(result: Result<T>) -> &'static str {
    result.err().map_or("ok", |error| error.code())
}

/// Everything about a tree that a restore must bring back.
fn describe(root: &Path) -> BTreeMap<std::path::PathBuf, String> {
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

fn fill(root: &Path) {
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

fn pretty(before: &BTreeMap<std::path::PathBuf, String>, after: &BTreeMap<std::path::PathBuf, String>) {
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
async fn one_host_at_a_time_and_the_loser_keeps_a_branch() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.sync("v").await.unwrap();
    assert_eq!(code(two.acquire().await), "volume.in_use_elsewhere");
    one.write("never published").await;
    two.take_over().await.unwrap();
    assert_eq!(two.read().await, "first");
    two.write("second").await;
    two.store.sync("v").await.unwrap();
    let Err(Error::Fenced { owner, branch: Some(branch), .. }) = one.store.sync("v").await else {
        panic!("not fenced")
    };
    assert_eq!(owner.as_deref(), Some("two"));
    let to = one._root.path().join("beside");
    let options = RestoreOptions { generation: Some(branch), to: Some(to.clone()), ..Default::default() };
    one.store.restore("v", options).await.unwrap();
    assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "never published");
    // Nothing is owed for what is in a branch.
    assert!(one.store.owing().await.unwrap().is_empty());
    // The owner is not disturbed by the branch.
    two.write("third").await;
    two.store.sync("v").await.unwrap();
    two.store.release("v", "web").await.unwrap();
    one.store.release("v", "web").await.unwrap();
    one.acquire().await.unwrap();
    assert_eq!(one.read().await, "third");
}

#[tokio::test]
async fn with_s3_away_what_is_here_starts_and_what_is_not_is_refused() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.release("v", "web").await.unwrap();
    memory.away.store(true, Ordering::SeqCst);
    assert_eq!(code(two.acquire().await), "volume.s3_unreachable");
    assert!(!one.acquire().await.unwrap().claimed);
    one.write("second").await;
    assert_eq!(code(one.store.sync("v").await), "volume.s3_unreachable");
    let status = one.store.status("v").await.unwrap();
    assert_eq!((status.bytes_at_risk, status.last_error.is_some()), (6, true));
    one.store.release("v", "web").await.unwrap();
    assert_eq!(code(one.store.remove("v", false, false).await), "volume.s3_unreachable");
    memory.away.store(false, Ordering::SeqCst);
    assert_eq!(one.store.owing().await.unwrap(), ["v"]);
    one.store.retry("v").await.unwrap();
    assert_eq!(one.store.status("v").await.unwrap().bytes_at_risk, 0);
    assert!(one.store.owing().await.unwrap().is_empty());
    two.acquire().await.unwrap();
    assert_eq!(two.read().await, "second");
}

#[tokio::test]
async fn a_lost_answer_is_no_defeat() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    memory.lose_answer.store(true, Ordering::SeqCst);
    // The race of the server check loses an answer, which it must see through; then the claim does.
    assert_eq!(host.store.check_server().await.unwrap().winners, 1);
    memory.lose_answer.store(true, Ordering::SeqCst);
    assert!(host.acquire().await.unwrap().claimed);
    host.write("first").await;
    memory.lose_answer.store(true, Ordering::SeqCst);
    assert_eq!(host.store.sync("v").await.unwrap().generation, Some(2));
    memory.lose_answer.store(true, Ordering::SeqCst);
    host.store.release("v", "web").await.unwrap();
    let kinds: Vec<_> = host.store.history("v", true).await.unwrap().into_iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [RecordKind::Claim, RecordKind::Data, RecordKind::Released]);
}

#[tokio::test]
async fn two_changes_of_one_generation_are_a_conflict() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.release("v", "web").await.unwrap();
    two.acquire().await.unwrap();
    two.write("second").await;
    two.store.release("v", "web").await.unwrap();
    one.write("by hand").await;
    assert_eq!(code(one.acquire().await), "volume.conflict");
    assert_eq!(code(one.store.restore("v", RestoreOptions::default()).await), "volume.unsynced");
    assert_eq!(one.read().await, "by hand");
    let options = RestoreOptions { discard_local: true, ..Default::default() };
    one.store.restore("v", options).await.unwrap();
    one.acquire().await.unwrap();
    assert_eq!(one.read().await, "second");
}

#[tokio::test]
async fn an_older_generation_is_restored_and_published_anew() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    host.acquire().await.unwrap();
    host.write("old").await;
    let old = host.store.sync("v").await.unwrap().generation;
    host.write("new").await;
    host.store.release("v", "web").await.unwrap();
    let options = RestoreOptions { generation: old, ..Default::default() };
    host.store.restore("v", options).await.unwrap();
    host.acquire().await.unwrap();
    assert_eq!(host.read().await, "old");
    let generation = host.store.sync("v").await.unwrap().generation;
    assert!(generation > old);
    assert_eq!(code(host.store.remove("v", false, true).await), "volume.in_use");
    host.store.release("v", "web").await.unwrap();
    assert_eq!(host.store.prune_local().await.unwrap().deleted, ["v"]);
    host.acquire().await.unwrap();
    assert_eq!(host.read().await, "old");
    host.store.release("v", "web").await.unwrap();
    host.store.remove("v", true, false).await.unwrap();
    assert!(!memory.objects.lock().unwrap().keys().any(|key| key.starts_with("p/v/")));
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

/// What may happen to one volume on three hosts.
#[derive(Debug, Clone, Copy)]
enum Step {
    Acquire(usize),
    TakeOver(usize),
    Write(usize),
    Sync(usize),
    Release(usize),
    Prune(usize),
    /// A prune whose process ends after so many requests.
    PruneCut(usize, usize),
    RestoreOldest(usize),
    Away,
    Back,
    LoseAnswer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3usize).prop_map(Step::Acquire),
        2 => (0..3usize).prop_map(Step::TakeOver),
        4 => (0..3usize).prop_map(Step::Write),
        4 => (0..3usize).prop_map(Step::Sync),
        3 => (0..3usize).prop_map(Step::Release),
        3 => (0..3usize).prop_map(Step::Prune),
        2 => (0..3usize, 5..40usize).prop_map(|(host, requests)| Step::PruneCut(host, requests)),
        1 => (0..3usize).prop_map(Step::RestoreOldest),
        1 => Just(Step::Away),
        2 => Just(Step::Back),
        2 => Just(Step::LoseAnswer),
    ];
    prop::collection::vec(step, 1..30)
}

/// No two owners, no gap, no generation by who is not the owner.
fn check_log(records: &[Record]) {
    let mut before: Option<&Record> = None;
    for record in records {
        if before.is_none() && record.record != 1 {
            // What was before a prune is gone.
            assert_eq!((record.kind, record.pruned), (RecordKind::Prune, Some(record.record)));
            before = Some(record);
            continue;
        }
        assert_eq!(record.record, before.map_or(1, |before| before.record + 1));
        assert_eq!(record.previous.as_ref(), before.map(|before| &before.nonce));
        let owner = before.and_then(|before| before.owner.clone());
        let epoch = before.map_or(0, |before| before.epoch);
        match record.kind {
            // One of the same epoch renews.
            RecordKind::Claim if record.epoch == epoch => {
                assert_eq!((&owner, record.owner.as_ref()), (&record.owner, Some(&record.host)));
            }
            RecordKind::Claim => assert_eq!((record.epoch, record.owner.as_ref()), (epoch + 1, Some(&record.host))),
            RecordKind::Data => {
                assert_eq!((owner.as_ref(), record.epoch), (Some(&record.host), epoch));
                assert_eq!(record.tree.as_ref().unwrap().parent, before.unwrap().generation);
                assert_eq!(record.generation, Some(record.record));
            }
            RecordKind::Released => assert_eq!((owner.as_ref(), &record.owner), (Some(&record.host), &None)),
            RecordKind::Prune => {
                assert_eq!((record.epoch, &record.owner), (epoch, &owner));
                assert!(owner.is_none() || owner.as_ref() == Some(&record.host), "pruned by who was not the owner");
            }
            _ => assert_eq!((record.epoch, &record.owner), (epoch, &owner)),
        }
        before = Some(record);
    }
}

async fn run(steps: Vec<Step>) {
    let memory = Arc::new(Memory::default());
    let hosts = [
        Host::keeping("a", &memory, 1).await,
        Host::keeping("b", &memory, 2).await,
        Host::keeping("c", &memory, 3).await,
    ];
    let log = Log::new(memory.clone(), "p/v/".into());
    let mut written = 0;
    for step in steps {
        match step {
            Step::Acquire(host) => drop(hosts[host].acquire().await),
            Step::TakeOver(host) => drop(hosts[host].take_over().await),
            Step::Release(host) => drop(hosts[host].store.release("v", "web").await.unwrap()),
            Step::Write(host) => {
                // Only what uses a volume writes to it.
                if !hosts[host].store.users("v").await.unwrap().is_empty() {
                    written += 1;
                    hosts[host].write(&format!("{written} by {host}")).await;
                }
            }
            Step::Sync(host) => {
                let synced = hosts[host].store.sync("v").await;
                let away = memory.away.swap(false, Ordering::SeqCst);
                let saved = match &synced {
                    Ok(status) => status.generation,
                    Err(Error::Fenced { branch, .. }) => *branch,
                    Err(_) => None,
                };
                if let Some(saved) = saved {
                    let to = hosts[host]._root.path().join(format!("check-{written}-{saved}"));
                    let options =
                        RestoreOptions { generation: Some(saved), to: Some(to.clone()), ..Default::default() };
                    if !to.exists() {
                        hosts[host].store.restore("v", options).await.unwrap();
                    }
                    pretty(&describe(&hosts[host].data().await), &describe(&to));
                }
                memory.away.store(away, Ordering::SeqCst);
            }
            Step::Prune(host) => drop(hosts[host].store.prune("v").await),
            Step::PruneCut(host, requests) => {
                memory.away_after.store(requests, Ordering::SeqCst);
                let cut = hosts[host].store.prune("v").await;
                if memory.away_after.swap(0, Ordering::SeqCst) == 0 && cut.is_err() {
                    memory.away.store(false, Ordering::SeqCst);
                }
            }
            Step::RestoreOldest(host) => {
                let history = hosts[host].store.history("v", false).await;
                let generation = history.ok().and_then(|history| history.first()?.generation);
                let options = RestoreOptions { generation, discard_local: true, ..Default::default() };
                drop(hosts[host].store.restore("v", options).await);
            }
            Step::Away => memory.away.store(true, Ordering::SeqCst),
            Step::Back => memory.away.store(false, Ordering::SeqCst),
            Step::LoseAnswer => memory.lose_answer.store(true, Ordering::SeqCst),
        }
        let away = memory.away.swap(false, Ordering::SeqCst);
        check_log(&log.all().await.unwrap());
        // Whatever the history still tells of can be restored.
        if let Ok(report) = hosts[0].store.verify("v", None, crate::Progress::default()).await {
            assert_eq!(report.damaged, []);
        }
        memory.away.store(away, Ordering::SeqCst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_log_has_one_owner_and_holds_what_was_promised(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        runtime.block_on(run(steps));
    }
}

/// Found by the test above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_what_retention_let_go_is_not_said_to_be_in_s3() {
    use Step::{Acquire, Prune, Release, RestoreOldest, Sync, TakeOver, Write};
    run(vec![Acquire(1), Sync(1), RestoreOldest(2), TakeOver(0), Write(0), Release(0), Prune(0), Sync(2)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn several_first_users_of_a_server_do_not_get_in_each_others_way() {
    let host = Host::new("one", &Arc::new(Memory::default())).await;
    let checks = (0..64).map(|_| {
        let store = host.store.clone();
        tokio::spawn(async move { store.check_server().await })
    });
    for check in futures_util::future::join_all(checks).await {
        assert_eq!(check.unwrap().unwrap().winners, 1);
    }
}
