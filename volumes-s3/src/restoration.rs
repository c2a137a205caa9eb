//! Restores a generation in place of the local tree, or beside it.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::pack::Digest;
use crate::progress::Progress;
use crate::record::{Record, RecordKind, TreeSummary, random_id};
use crate::removal::{empty_trash, move_to_trash, refuse_in_use, remove_leftovers, remove_unfinished};
use crate::restore::Job;
use crate::state::{TreeMark, sync_parent};
use crate::store::{RestoreOptions, RestoreReport, VolumeStore};
use crate::tree::spread;
use crate::volume::{Remote, Volume, make_directories, set_aside_foreign};
use crate::walk::open_root;

impl VolumeStore {
    pub(crate) async fn restore_in_place(&self, name: &str, options: &RestoreOptions) -> Result<RestoreReport> {
        let mut volume = self.lock(name).await?;
        refuse_in_use(&volume, "a restore in place")?;
        let head = volume.head().await?.ok_or_else(|| Error::NotFound { name: name.to_owned() })?;
        let Some(generation) = options.generation.or(head.generation) else {
            return Err(Error::NotFound { name: name.to_owned() });
        };
        let record = self.tree_record(&volume, generation).await?;
        if !options.discard_local && volume.is_here()? && volume.has_changes().await? {
            let bytes = volume.difference().await?.bytes;
            return Err(Error::Unsynced { name: name.to_owned(), bytes });
        }
        if let Err(error) = self.restore_into_place(&mut volume, &record, &options.progress).await {
            self.give_up(&mut volume).await;
            return Err(error);
        }
        // Going back is a change like any other: the next sync publishes it after the newest generation.
        volume.state.parent = head.generation;
        if let Some(tree) = &mut volume.state.tree {
            tree.branch = false;
        }
        (volume.state.pending.sync, volume.state.bytes_at_risk, volume.state.last_error) = (false, None, None);
        volume.save().await?;
        report(&record, volume.paths.data())
    }

    pub(crate) async fn restore_beside(
        &self,
        name: &str,
        to: PathBuf,
        options: &RestoreOptions,
    ) -> Result<RestoreReport> {
        let remote = self.remote(name, "a restore").await?;
        let head = remote.log.head(None).await?.ok_or_else(|| Error::NotFound { name: name.to_owned() })?;
        let Some(generation) = options.generation.or(head.generation) else {
            return Err(Error::NotFound { name: name.to_owned() });
        };
        let missing = || Error::GenerationNotFound { name: name.to_owned(), generation };
        let record = remote.tree(generation).await?.ok_or_else(missing)?;
        let to = std::path::absolute(&to).map_err(|error| Error::io("resolve", &to, error))?;
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
        let done = or_gone(&remote, name, generation, restored).await;
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
    pub(crate) async fn restore_into_place(
        &self,
        volume: &mut Volume,
        record: &Record,
        progress: &Progress,
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
        let replaced = or_gone(&remote, &volume.name, record.record, replaced).await;
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
        take_for(volume, record, &summary);
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
        take_for(volume, &record, summary(&record)?);
        let is_it = volume.scan_record()?.is_some() && !volume.has_changes().await?;
        if !is_it {
            volume.state = before;
        }
        Ok(is_it)
    }

    pub(crate) async fn tree_record(&self, volume: &Volume, generation: u64) -> Result<Record> {
        let missing = || Error::GenerationNotFound { name: volume.name.clone(), generation };
        let Some(remote) = &volume.remote else { return Err(missing()) };
        remote.tree(generation).await?.ok_or_else(missing)
    }
}

/// `restored`; a tree that went while it was read is not damaged but gone.
async fn or_gone<T>(remote: &Remote, name: &str, generation: u64, restored: Result<T>) -> Result<T> {
    match restored {
        Err(Error::Corrupt { .. }) if remote.tree(generation).await.is_ok_and(|record| record.is_none()) => {
            Err(Error::GenerationNotFound { name: name.to_owned(), generation })
        }
        restored => restored,
    }
}

/// Notes that the tree here is that of `record`.
fn take_for(volume: &mut Volume, record: &Record, summary: &TreeSummary) {
    volume.state.tree = Some(TreeMark {
        record: record.record,
        root: summary.root.digest.to_string(),
        branch: record.kind == RecordKind::Branch,
        size_bytes: summary.size_bytes,
    });
    volume.state.parent = Some(record.record);
    volume.state.durable_at = Some(record.created_at);
}

pub(crate) fn summary(record: &Record) -> Result<&TreeSummary> {
    record.tree.as_ref().ok_or_else(|| Error::corrupt(format!("record {}", record.record), "holds no tree"))
}

fn report(record: &Record, path: PathBuf) -> Result<RestoreReport> {
    let summary = summary(record)?;
    Ok(RestoreReport { generation: record.record, path, files: summary.files, size_bytes: summary.size_bytes })
}
