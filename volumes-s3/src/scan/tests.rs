use std::cell::Cell;

use rustix::fs::Mode;

use super::*;
use crate::pack::Digest;

thread_local! {
    /// Is called once, when all was brought to the disk and nothing is looked at yet.
    pub(super) static CLEANED: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
    /// Is called once, when a regular file was seen and is not opened yet.
    pub(super) static FOUND: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
    /// By so many seconds.
    pub(super) static SET_BACK: Cell<i64> = const { Cell::new(0) };
}

/// Only root makes devices.
#[test]
fn what_is_a_device_by_the_time_it_is_read_is_not_opened() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, record) = (base.path().join("tree"), base.path().join("record"));
    std::fs::create_dir(&tree).unwrap();
    let file = tree.join("file");
    std::fs::write(&file, "text").unwrap();
    // Whoever opens it fails: no driver has this number.
    FOUND.set(Some(Box::new(move || {
        std::fs::remove_file(&file).unwrap();
        let device = rustix::fs::makedev(511, 1);
        rustix::fs::mknodat(rustix::fs::CWD, &file, FileType::CharacterDevice, Mode::RUSR, device).unwrap();
        std::fs::File::open(&file).unwrap_err();
    })));
    let scanned = scan(&tree, None, Packer::new(1, |_| Ok(())).unwrap(), &record, Digest::of(b"")).unwrap();
    assert_eq!((scanned.entries, scanned.files), (1, 0));
}

#[test]
fn what_is_written_while_the_disk_is_still_written_to_is_read_again() {
    let base = tempfile::tempdir().unwrap();
    let (tree, record) = (base.path().join("tree"), base.path().join("record"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), "first").unwrap();
    let scan = |old: Option<RecordReader>, to: &Path| {
        let subject = Digest::of(b"");
        scan(&tree, old, Packer::new(1, |_| Ok(())).unwrap(), to, subject).unwrap()
    };
    // Its page is clean by now, and dirty again before the scan reads it, some time later.
    let file = tree.join("file");
    CLEANED.set(Some(Box::new(move || {
        std::fs::write(file, "second").unwrap();
        std::thread::sleep(3 * TICK);
    })));
    assert_eq!(scan(None, &record).read_bytes, 6);
    // What a mapping writes to the dirty page shows by nothing.
    let again = base.path().join("again");
    let read = scan(RecordReader::open(&record).unwrap(), &again).read_bytes;
    assert_eq!(read, 6, "taken for unchanged by its times");
    assert_eq!(scan(RecordReader::open(&again).unwrap(), &record).read_bytes, 0);
}

/// Bytes that are read after a restore during which the clock was set back.
fn read_after_a_restore(set_back: i64) -> Option<u64> {
    let (done, read) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let base = tempfile::tempdir().unwrap();
        let (tree, record) = (base.path().join("tree"), base.path().join("record"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "text").unwrap();
        let root = open_root(&tree).unwrap();
        let mut entries = Vec::new();
        walk(&root, |found| {
            let node = match found.is_directory() {
                true => Node::Directory,
                false => Node::File { size: 4, parts: vec![Part::Hole(4)], torn: false },
            };
            entries.push(entry_of(found.path, &found.stat, Vec::new(), node));
            Ok(())
        })
        .unwrap();
        let mut entries = entries.into_iter();
        let subject = Subject { root: Digest::of(b""), lineage: Digest::of(b"") };
        SET_BACK.set(set_back);
        record_restored(&root, || Ok(entries.next()), &record, subject, &[]).unwrap();
        let again = base.path().join("again");
        let old = RecordReader::open(&record).unwrap();
        let scanned = scan(&tree, old, Packer::new(1, |_| Ok(())).unwrap(), &again, subject.lineage);
        done.send(scanned.unwrap().read_bytes).unwrap();
    });
    read.recv_timeout(Duration::from_secs(10)).ok()
}

#[test]
fn a_clock_that_is_set_back_holds_no_restore_up() {
    assert_eq!(read_after_a_restore(0), Some(0));
    assert_eq!(read_after_a_restore(3600), Some(4), "a change may bear the same time in an hour");
}
