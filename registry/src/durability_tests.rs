//! What a power cut leaves of a store.

use std::process::Command;

use super::*;
use crate::ImageStore;
use crate::config::StoreConfig;
use crate::index::Index;
use crate::load::tests::{archive_of, is_root, store};

/// A small ext4 of its own that, as XFS, has no rule for files that are replaced by a rename. It goes with this value.
struct Disk {
    place: PathBuf,
    image: PathBuf,
}

impl Disk {
    fn new(beside: &Path) -> Self {
        let disk = Self { place: beside.join("disk"), image: beside.join("disk.ext4") };
        fs::create_dir(&disk.place).unwrap();
        fs::File::create(&disk.image).unwrap().set_len(64 << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image).status().unwrap();
        assert!(made.success() && disk.mount(), "no disk of ext4 can be made and mounted");
        disk
    }

    fn mount(&self) -> bool {
        let options = ["-o", "loop,noauto_da_alloc"];
        Command::new("mount").args(options).args([&self.image, &self.place]).status().unwrap().success()
    }

    /// What a power cut now would leave of it: whatever else is here, names are on the disk.
    fn after_a_power_cut(&self, place: &Path) -> Self {
        // The names of all files, and of their data what had to be there.
        fs::File::create(self.place.join("other")).and_then(|file| file.sync_all()).unwrap();
        fs::create_dir_all(place).unwrap();
        let cut = Self { place: place.to_owned(), image: place.with_extension("ext4") };
        // A copy beside which something was written cannot always be mounted.
        let is_whole = (0..5).any(|_| fs::copy(&self.image, &cut.image).is_ok() && cut.mount());
        assert!(is_whole, "no copy of the disk can be mounted");
        cut
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
        let _ = fs::remove_file(&self.image);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_the_index_is_what_it_was_or_what_it_is() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let disk = Disk::new(base.path());
    let names = |what: &str| -> Vec<String> {
        let cut = disk.after_a_power_cut(&base.path().join(what));
        let store = ImageStore::open(StoreConfig::new(cut.place.clone()));
        let index =
            store.and_then(|store| Index::read(&store.0.paths)).unwrap_or_else(|error| panic!("{what}: {error}"));
        index.entries().iter().map(|entry| entry.reference().to_owned()).collect()
    };
    let store = ImageStore::open(StoreConfig::new(disk.place.clone())).unwrap();
    assert_eq!(names("opened"), Vec::<String>::new());
    let archive = base.path().join("archive");
    fs::write(&archive, archive_of("example.org/a:1", &[])).unwrap();
    store.load(&archive).await.unwrap();
    // A load has all synced in the background; what follows has nobody who does.
    let marked = store.0.paths.unsynced.join(&store.0.boot_id);
    let begun = std::time::Instant::now();
    while fs::read_dir(&marked).unwrap().count() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is not synced");
        std::thread::sleep(Duration::from_millis(10));
    }
    Index::update(&store.0.paths, |index| {
        let mut entry = index.entries()[0].clone();
        entry.set_reference("example.org/b:1");
        index.put(entry);
        Ok(())
    })
    .unwrap();
    assert_eq!(names("tagged"), ["example.org/a:1", "example.org/b:1"]);
    store.remove("example.org/a:1", false, Arc::new(|| Ok(Vec::new()))).await.unwrap();
    assert_eq!(names("removed"), ["example.org/b:1"]);
    store.prune(Arc::new(|| Ok(Vec::new()))).await.unwrap();
    assert_eq!(names("pruned"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_began_before_a_layer_came_again_does_not_clear_it() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    let place = Place::parse(&format!("diff-{}", "0".repeat(64))).unwrap();
    let comes = || {
        mark(&store.0, &place).unwrap();
        fs::create_dir(place.path(&store.0.paths)).unwrap();
    };
    comes();
    // What a sync that begins now will take for covered.
    let listed = marks(&store.0);
    assert_eq!(listed.len(), 1);
    TmpDir::remove(&place.discard(&store.0.paths, None).unwrap());
    comes();
    sync_marks(&store.0.paths.layers, listed);
    assert!(unsynced(&store.0).unwrap().contains(&place), "what came meanwhile is taken for synced");
    sync(&store.0);
    assert!(unsynced(&store.0).unwrap().is_empty());
}
