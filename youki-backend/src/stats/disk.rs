//! Disk that a directory tree takes.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes allocated to all files beneath `dir`, a file with several names counted once. `None` if it cannot be
/// listed; files that vanish meanwhile do not count. Symlinks are not followed, other file systems not entered.
/// Blocks, for as long as a walk over the tree takes.
pub(crate) fn disk_usage(dir: &Path) -> Option<u64> {
    let device = fs::symlink_metadata(dir).ok()?.dev();
    fs::read_dir(dir).ok()?;
    let mut linked = HashSet::new();
    let mut bytes = 0u64;
    // One directory is open at a time: a container may have nested them deeper than there are descriptors.
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.map_while(std::io::Result::ok) {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != device {
                continue;
            }
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.nlink() > 1 && !linked.insert(metadata.ino()) {
                continue;
            }
            // st_blocks counts 512-byte units whatever the file system's block size.
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hard_link_and_a_hole_take_no_space() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/data"), vec![1; 1 << 20]).unwrap();
        let one = disk_usage(dir.path()).unwrap();
        assert!((1 << 20..1 << 21).contains(&one), "{one}");
        fs::hard_link(dir.path().join("sub/data"), dir.path().join("again")).unwrap();
        fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        assert!(disk_usage(dir.path()).unwrap() < one + (64 << 10));
        assert_eq!(disk_usage(&dir.path().join("none")), None);
    }
}
