//! Makes the tree of a generation: in parallel, every chunk verified, whole or not at all.

use std::collections::HashMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use runtime_core::Progress;

use crate::attributes;
use crate::entry::{Entry, Node, Part};
use crate::error::{Error, Result};
use crate::fetch::{Packs, blocking};
use crate::generation::{expand, leaves};
use crate::manifest::{LeafRef, decode_leaf};
use crate::pack::{ChunkRef, Digest};
use crate::record::TreeSummary;
use crate::scan::record_restored;
use crate::scan_record::{RecordReader, RecordWriter, Seen, Subject};
use crate::tree::Tree;

/// Leaves taken at once: their entries and the chunks of their files are what a restore keeps in memory.
const LEAVES_AT_ONCE: usize = 128;

/// What is to be restored, and where.
#[derive(Debug)]
pub(crate) struct Job {
    pub packs: Packs,
    pub volume: String,
    pub summary: TreeSummary,
    pub lineage: Digest,
    /// An empty directory nobody else has.
    pub directory: PathBuf,
    /// Where the scan record goes.
    pub record: PathBuf,
    pub progress: Progress,
}

impl Job {
    /// Fills the directory. It and the record are on disk when this returns; after an error what is there is no tree.
    pub(crate) async fn run(self) -> Result<()> {
        let leaves = leaves(&self.packs, self.summary.root).await?;
        let tree = self.directory.clone();
        let tree = Arc::new(blocking("restore", move || Tree::open(&tree)).await?);
        let listing = self.record.with_extension("entries");
        let mut ends =
            Ends { directories: Vec::new(), links: Vec::new(), listing: Some(RecordWriter::create(&listing)?) };
        let done = Arc::new(AtomicU64::new(0));
        for batch in leaves.chunks(LEAVES_AT_ONCE) {
            ends = self.batch(batch, &tree, ends, &done).await?;
        }
        let Self { volume, summary, lineage, record, directory, .. } = self;
        let subject = Subject { root: summary.root.digest, lineage };
        let manifest: Vec<_> = std::iter::once(summary.root).chain(leaves.iter().map(|leaf| leaf.chunk)).collect();
        blocking("restore", move || {
            ends.finish(&tree, subject, &manifest)?;
            tree.settle();
            attributes::mark(tree.root(), &volume).map_err(|error| Error::io("mark", &directory, error))?;
            write_record(&tree, &listing, &record, subject, &manifest)?;
            // What is not on disk yet must not be taken for the tree after a power cut.
            rustix::fs::syncfs(tree.root()).map_err(|error| Error::io("sync", &directory, error))
        })
        .await
    }

    async fn batch(&self, leaves: &[LeafRef], tree: &Arc<Tree>, ends: Ends, done: &Arc<AtomicU64>) -> Result<Ends> {
        let chunks: Vec<_> = leaves.iter().map(|leaf| leaf.chunk).collect();
        let leaves = self.packs.collect(&chunks).await?;
        let mut entries = blocking("read the manifest", move || {
            let entries: Result<Vec<_>> = leaves.iter().map(|leaf| decode_leaf(leaf)).collect();
            Ok(entries?.into_iter().flatten().collect::<Vec<_>>())
        })
        .await?;
        for entry in &mut entries {
            expand(&self.packs, entry).await?;
        }
        let at = tree.clone();
        let (plan, ends) = blocking("restore", move || Plan::make(entries, &at, ends)).await?;
        let (plan, tree, done) = (Arc::new(plan), tree.clone(), done.clone());
        let (progress, total) = (self.progress.clone(), self.summary.size_bytes);
        let wanted = plan.targets.keys().copied().collect();
        self.packs
            .chunks(wanted, move |chunk, bytes| {
                plan.write(&tree, chunk, &bytes)?;
                let done = done.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
                progress.report(done, total);
                Ok(())
            })
            .await?;
        Ok(ends)
    }
}

/// What is done when all files are there.
#[derive(Debug)]
struct Ends {
    directories: Vec<Entry>,
    links: Vec<(Vec<u8>, Vec<u8>)>,
    /// The entries, for the scan record.
    listing: Option<RecordWriter>,
}

impl Ends {
    fn finish(self, tree: &Tree, subject: Subject, manifest: &[ChunkRef]) -> Result<()> {
        for (path, target) in &self.links {
            tree.link(path, target)?;
        }
        for directory in self.directories.iter().rev() {
            tree.finish_directory(directory)?;
        }
        self.listing.map_or(Ok(()), |listing| listing.finish(0, subject, manifest))
    }
}

fn write_record(tree: &Tree, listing: &Path, record: &Path, subject: Subject, manifest: &[ChunkRef]) -> Result<()> {
    let gone = || Error::corrupt(listing.display().to_string(), "is gone");
    let mut entries = RecordReader::open(listing)?.ok_or_else(gone)?;
    let next = || Ok(entries.next()?.map(|seen| seen.entry));
    record_restored(tree.root(), next, record, subject, manifest)?;
    std::fs::remove_file(listing).map_err(|error| Error::io("remove", listing, error))
}

/// The files of a batch and where their chunks go.
#[derive(Debug)]
struct Plan {
    files: Vec<PlannedFile>,
    targets: HashMap<ChunkRef, Vec<(usize, u64)>>,
}

#[derive(Debug)]
struct PlannedFile {
    entry: Entry,
    /// Chunks that are not written yet.
    left: AtomicUsize,
    /// Made when its only chunk comes.
    single: bool,
}

impl Plan {
    /// Makes all but the data of files.
    fn make(entries: Vec<Entry>, tree: &Tree, mut ends: Ends) -> Result<(Self, Ends)> {
        let mut plan = Self { files: Vec::new(), targets: HashMap::new() };
        for entry in entries {
            if let Some(listing) = &mut ends.listing {
                listing.add(&Seen { entry: entry.clone(), inode: 0, ctime: entry.mtime, racy: false })?;
            }
            match &entry.node {
                Node::File { .. } => plan.file(entry, tree)?,
                Node::HardLink(target) => ends.links.push((entry.path.clone(), target.clone())),
                Node::Directory => {
                    tree.make(&entry)?;
                    ends.directories.push(entry);
                }
                _ => tree.make(&entry)?,
            }
        }
        Ok((plan, ends))
    }

    fn file(&mut self, entry: Entry, tree: &Tree) -> Result<()> {
        let Node::File { size, parts, .. } = &entry.node else { return Ok(()) };
        let mut chunks = Vec::new();
        place(parts, &mut 0, &mut chunks);
        let single = matches!(chunks.as_slice(), [(chunk, 0)] if u64::from(chunk.length) == *size);
        if !single {
            let file = tree.create_file(&entry.path)?;
            let failed = |error| Error::io("resize", crate::walk::display(&entry.path), error);
            rustix::fs::ftruncate(&file, *size).map_err(failed)?;
            if chunks.is_empty() {
                return tree.finish_file(&file, &entry);
            }
        }
        for (chunk, offset) in &chunks {
            self.targets.entry(*chunk).or_default().push((self.files.len(), *offset));
        }
        self.files.push(PlannedFile { entry, left: AtomicUsize::new(chunks.len()), single });
        Ok(())
    }

    fn write(&self, tree: &Tree, chunk: ChunkRef, bytes: &[u8]) -> Result<()> {
        for (number, offset) in self.targets.get(&chunk).into_iter().flatten() {
            let planned = &self.files[*number];
            let path = &planned.entry.path;
            let file = if planned.single { tree.create_file(path)? } else { tree.reopen_file(path)? };
            let written = file.write_all_at(bytes, *offset);
            written.map_err(|error| Error::io("write", crate::walk::display(path), error))?;
            if planned.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                tree.finish_file(&file, &planned.entry)?;
            }
        }
        Ok(())
    }
}

/// Lists the chunks of `parts` with their offsets in the file.
fn place(parts: &[Part], offset: &mut u64, chunks: &mut Vec<(ChunkRef, u64)>) {
    for part in parts {
        match part {
            Part::List { parts, .. } => place(parts, offset, chunks),
            Part::Hole(length) => *offset += length,
            Part::Chunk(chunk) => {
                chunks.push((*chunk, *offset));
                *offset += u64::from(chunk.length);
            }
        }
    }
}
