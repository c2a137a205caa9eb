//! Restores a generation in place of the local tree, or beside it.

use std::path::PathBuf;

use runtime_core::{DiffEntry, Progress, RecordKind, RestoreOptions, RestoreReport};

use crate::diff::compare;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::lifecycle::AcquireOptions;
use crate::pack::Digest;
use crate::paths::make_directories;
use crate::record::{Record, TreeSummary, random_id};
use crate::removal::{empty_trash, move_to_trash, refuse_in_use, remove_leftovers, remove_unfinished};
use crate::restore::Job;
use crate::state::{TreeMark, sync_parent};
use crate::store::VolumeStore;
use crate::tree::spread;
use crate::volume::{Volume, set_aside_foreign};
use crate::walk::open_root;

/// How often the newest generation is asked for, when each was followed by another and pruned while it was restored.
const NEWEST_ATTEMPTS: u32 = 4;

/// What becomes of a tree that is put in a volume's place.
#[derive(Debug, Clone, Copy)]
enum Descent {
    /// The volume goes on from it.
    Itself,
    /// It is a change made here: the next sync publishes it after `newest`, which lacks so many bytes of its files.
    Newest { newest: Option<u64>, ahead_bytes: u64 },
}

impl VolumeStore {
    /// Restores a generation in place, or beside. In place, an older one is a change made here: the next sync publishes it as
    /// the newest, and sends nothing again.
    ///
    /// # Errors
    /// In place: [`Error::InUse`]; [`Error::Unsynced`] over changes that are nowhere else, without `discard_local`.
    /// Beside: [`Error::TargetExists`]. Both: [`Error::NotFound`], [`Error::GenerationNotFound`], [`Error::Corrupt`];
    /// [`Error::GenerationPruned`] when it went meanwhile, but not where the newest was asked for: that begins again.
    pub async fn restore(&self, name: &str, options: RestoreOptions) -> Result<RestoreReport> {
        self.remote(name, "a restore").await?;
        self.detached(name, move |store, name| async move {
            match options.to.clone() {
                Some(to) => store.restore_beside(&name, to, &options).await,
                None => store.restore_in_place(&name, &options).await,
            }
        })
        .await
    }

    pub(crate) async fn restore_in_place(&self, name: &str, options: &RestoreOptions) -> Result<RestoreReport> {
        let mut volume = self.lock(name).await?;
        refuse_in_use(&volume, "a restore in place")?;
        let mut attempts = 0;
        loop {
            match self.restore_this_in_place(&mut volume, options).await {
                Err(error) if options.generation.is_none() && is_gone(&error) && attempts < NEWEST_ATTEMPTS => {
                    attempts += 1;
                }
                restored => return restored,
            }
        }
    }

    async fn restore_this_in_place(&self, volume: &mut Volume, options: &RestoreOptions) -> Result<RestoreReport> {
        let name = volume.name.clone();
        let head = volume.head().await?.ok_or_else(|| Error::NotFound { name: name.clone() })?;
        let Some(generation) = options.generation.or(head.generation) else {
            return Err(Error::NotFound { name });
        };
        let record = self.tree_record(volume, generation).await?;
        if !options.discard_local && volume.is_here()? && volume.has_changes().await? {
            let bytes = volume.difference().await?.bytes;
            return Err(Error::Unsynced { name, bytes });
        }
        let descent = match head.generation == Some(generation) {
            true => Descent::Itself,
            false => {
                let ahead_bytes = self.ahead_bytes(volume, &record, head.generation).await?;
                Descent::Newest { newest: head.generation, ahead_bytes }
            }
        };
        if let Err(error) = self.restore_into_place(volume, &record, &options.progress, descent).await {
            self.give_up(volume).await;
            return Err(error);
        }
        report(&record, volume.paths.data())
    }

    /// Bytes of the files of `record` that generation `newest` lacks: all, if that cannot be read.
    async fn ahead_bytes(&self, volume: &Volume, record: &Record, newest: Option<u64>) -> Result<u64> {
        let tree = summary(record)?;
        let (Some(remote), Some(newest)) = (&volume.remote, newest) else { return Ok(tree.size_bytes) };
        let newest = match self.tree_record(volume, newest).await {
            Ok(newest) => summary(&newest)?.root,
            // One who goes back may do so because the newest is damaged.
            Err(Error::Corrupt { .. } | Error::GenerationNotFound { .. }) => return Ok(tree.size_bytes),
            Err(error) => return Err(error),
        };
        let mut ahead = 0;
        let add = |entry: DiffEntry| {
            if entry.has_other_data() {
                ahead += entry.new_size_bytes.unwrap_or(0);
            }
        };
        match compare(&remote.packs, newest, tree.root, add).await {
            Ok(()) => Ok(ahead),
            Err(Error::Corrupt { .. }) => Ok(tree.size_bytes),
            Err(error) => Err(error),
        }
    }

    /// Restores `generation`, the newest, in the place of a volume that is about to be used. Who has no claim may see another
    /// follow it, and it pruned, meanwhile: it gets that one.
    pub(crate) async fn restore_newest(
        &self,
        volume: &mut Volume,
        mut generation: u64,
        options: &AcquireOptions,
    ) -> Result<()> {
        let mut attempts = 0;
        loop {
            let restored = match self.tree_record(volume, generation).await {
                Ok(record) => self.restore_into_place(volume, &record, &options.progress, Descent::Itself).await,
                Err(error) => Err(error),
            };
            match restored {
                Err(error) if options.readonly && is_gone(&error) && attempts < NEWEST_ATTEMPTS => {
                    attempts += 1;
                    generation = volume.head().await?.and_then(|head| head.generation).ok_or(error)?;
                }
                restored => return restored,
            }
        }
    }

    pub(crate) async fn restore_beside(
        &self,
        name: &str,
        to: PathBuf,
        options: &RestoreOptions,
    ) -> Result<RestoreReport> {
        let to = std::path::absolute(&to).map_err(|error| Error::io("resolve", &to, error))?;
        let mut attempts = 0;
        loop {
            match self.restore_this_beside(name, to.clone(), options).await {
                Err(error) if options.generation.is_none() && is_gone(&error) && attempts < NEWEST_ATTEMPTS => {
                    attempts += 1;
                }
                restored => return restored,
            }
        }
    }

    async fn restore_this_beside(&self, name: &str, to: PathBuf, options: &RestoreOptions) -> Result<RestoreReport> {
        let remote = self.remote(name, "a restore").await?;
        let head = remote.log.head(None).await?.ok_or_else(|| Error::NotFound { name: name.to_owned() })?;
        let Some(generation) = options.generation.or(head.generation) else {
            return Err(Error::NotFound { name: name.to_owned() });
        };
        let missing = || Error::GenerationNotFound { name: name.to_owned(), generation };
        let record = remote.tree(generation).await?.ok_or_else(missing)?;
        let temporary = to.with_file_name(format!(".restore-{}", random_id()));
        let (target, directory) = (to.clone(), temporary.clone());
        blocking("create", move || {
            let empty = match std::fs::read_dir(&target) {
                Ok(mut entries) => entries.next().is_none(),
                Err(error) => error.kind() == std::io::ErrorKind::NotFound,
            };
            if empty { make_directories(&directory) } else { Err(Error::TargetExists { path: target }) }
        })
        .await?;
        let scan_record = temporary.with_extension("scan");
        let job = Job {
            packs: remote.packs.clone(),
            volume: name.to_owned(),
            summary: summary(&record)?.clone(),
            lineage: Digest::of(b""),
            directory: temporary.clone(),
            record: scan_record.clone(),
            progress: options.progress.clone(),
        };
        let restored = job.run().await.map_err(|error| error.beneath(&to));
        let done = remote.or_pruned(name, generation, restored).await;
        let target = to.clone();
        blocking("put into place", move || {
            let moved = done.and_then(|()| {
                std::fs::rename(&temporary, &target).map_err(|error| Error::io("put into place", &target, error))
            });
            let _ = crate::remove_tree(&temporary);
            let _ = std::fs::remove_file(&scan_record);
            let _ = std::fs::remove_file(scan_record.with_extension("entries"));
            moved
        })
        .await?;
        report(&record, to)
    }

    /// Replaces the tree by that of `record`, whole or not at all.
    async fn restore_into_place(
        &self,
        volume: &mut Volume,
        record: &Record,
        progress: &Progress,
        descent: Descent,
    ) -> Result<()> {
        let Some(remote) = volume.remote.clone() else { return Ok(()) };
        let summary = summary(record)?.clone();
        let fresh = volume.paths.directory.join(format!("restore-{}", random_id()));
        let job = Job {
            packs: remote.packs.clone(),
            volume: volume.name.clone(),
            summary: summary.clone(),
            lineage: volume.state.lineage(),
            directory: fresh,
            record: volume.paths.restored_scan(),
            progress: progress.clone(),
        };
        let replaced = self.replace_tree(volume, job).await;
        let replaced = remote.or_pruned(&volume.name, record.record, replaced).await;
        if replaced.is_err() {
            let (directory, hold) = (volume.paths.directory.clone(), volume.hold());
            blocking("tidy up", move || {
                remove_leftovers(&directory);
                remove_unfinished(&directory);
                drop(hold);
                Ok(())
            })
            .await?;
        }
        replaced?;
        take_for(volume, record, &summary, descent);
        (volume.state.pending.sync, volume.state.bytes_at_risk, volume.state.last_error) = (false, None, None);
        let saved = volume.save().await;
        if saved.is_err() {
            // Without its state it would be taken for a change made here.
            volume.state.tree = None;
            volume.discard_tree().await?;
        }
        saved
    }

    /// Makes the tree of `job` and puts it into place. After an error, leftovers are to be removed.
    async fn replace_tree(&self, volume: &Volume, job: Job) -> Result<()> {
        let (paths, directory) = (volume.paths.clone(), job.directory.clone());
        blocking("create", move || {
            // Who only reads has no claim, and so nothing here yet.
            make_directories(&paths.directory)?;
            remove_leftovers(&paths.directory);
            // The tree that goes, and the one that comes, are not neighbours.
            spread(&open_root(&paths.directory)?, true);
            make_directories(&directory)
        })
        .await?;
        let fresh = job.directory.clone();
        job.run().await.map_err(|error| error.beneath(&volume.paths.data()))?;
        let (paths, hold, was_here) = (volume.paths.clone(), volume.hold(), volume.is_here()?);
        let root = self.inner.config.root.clone();
        blocking("put into place", move || {
            let data = paths.data();
            if was_here {
                move_to_trash(&root, &data)?
            } else {
                set_aside_foreign(&data)?
            }
            // The record first: one that is of another tree is seen by its root and not used.
            let failed = |error| Error::io("put into place", &data, error);
            std::fs::rename(paths.restored_scan(), paths.scan()).map_err(failed)?;
            std::fs::rename(&fresh, &data).map_err(failed)?;
            sync_parent(&data)?;
            empty_trash(&root);
            drop(hold);
            Ok(())
        })
        .await
    }

    /// Whether the tree here, which its state knows as another, is `generation`: put into place by a restore that was killed
    /// before it could say so. If it is, the state says so now.
    pub(crate) async fn is_restored(&self, volume: &mut Volume, generation: u64) -> Result<bool> {
        let record = self.tree_record(volume, generation).await?;
        let before = volume.state.clone();
        take_for(volume, &record, summary(&record)?, Descent::Itself);
        let is_it = match volume.scan_record() {
            Ok(Some(_)) => volume.has_changes().await.map(|changed| !changed),
            other => other.map(|_| false),
        };
        if !matches!(is_it, Ok(true)) {
            volume.state = before;
        }
        is_it
    }

    pub(crate) async fn tree_record(&self, volume: &Volume, generation: u64) -> Result<Record> {
        let missing = || Error::GenerationNotFound { name: volume.name.clone(), generation };
        let Some(remote) = &volume.remote else { return Err(missing()) };
        remote.tree(generation).await?.ok_or_else(missing)
    }
}

/// Whether a generation is not there any more that was there before.
fn is_gone(error: &Error) -> bool {
    matches!(error, Error::GenerationPruned { .. } | Error::GenerationNotFound { .. })
}

/// Notes that the tree here is that of `record`.
fn take_for(volume: &mut Volume, record: &Record, summary: &TreeSummary, descent: Descent) {
    let (parent, ahead_bytes) = match descent {
        Descent::Itself => (Some(record.record), None),
        Descent::Newest { newest, ahead_bytes } => (newest, Some(ahead_bytes)),
    };
    volume.state.tree = Some(TreeMark {
        record: record.record,
        root: summary.root.digest.to_string(),
        // One that is to be the main line's is none any more.
        branch: record.kind == RecordKind::Branch && ahead_bytes.is_none(),
        size_bytes: summary.size_bytes,
        ahead_bytes,
    });
    volume.state.parent = parent;
    volume.state.durable_at = Some(record.created_at);
}

pub(crate) fn summary(record: &Record) -> Result<&TreeSummary> {
    record.tree.as_ref().ok_or_else(|| Error::corrupt(format!("record {}", record.record), "holds no tree"))
}

fn report(record: &Record, path: PathBuf) -> Result<RestoreReport> {
    let summary = summary(record)?;
    Ok(RestoreReport { generation: record.record, path, files: summary.files, size_bytes: summary.size_bytes })
}
