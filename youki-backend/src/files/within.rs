//! Paths that end nowhere but within a root.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, Result};

/// Times that a walk is begun again. On a busy host one in some hundreds is cut off; who renames without a pause cannot
/// hold it up for ever.
const MAX_WALKS: usize = 1000;

/// Opens `path` as who has `root` as its root would: links lead nowhere else. Close-on-exec.
///
/// # Errors
/// The kernel's.
pub(crate) fn open_within(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut walks = 0;
    loop {
        walks += 1;
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Something was renamed or mounted, anywhere on the host, while a `..` was followed.
            Err(Errno::AGAIN) if walks < MAX_WALKS => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn renames_elsewhere_do_not_cut_a_walk_off() {
        let _alone = crate::files::tests::RENAMING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(root.path().join("dir")).unwrap();
        let fd = fs::File::open(root.path()).unwrap();
        let path = Path::new("dir/..").iter().cycle().take(40).collect::<std::path::PathBuf>();
        let (one, two, done) = (elsewhere.path().join("1"), elsewhere.path().join("2"), AtomicBool::new(false));
        fs::write(&one, "").unwrap();
        let mut cut_off = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&one, &two).unwrap();
                    fs::rename(&two, &one).unwrap();
                }
            });
            let deadline = Instant::now() + Duration::from_secs(30);
            let opened = loop {
                let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                let once = openat2(&fd, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
                cut_off += usize::from(once.is_err_and(|error| error == Errno::AGAIN));
                let opened = open_within(&fd, &path, OFlags::PATH);
                if opened.is_err() || cut_off == 100 || Instant::now() > deadline {
                    break opened.map(drop);
                }
            };
            done.store(true, Ordering::Relaxed);
            opened.unwrap();
        });
        assert_eq!(cut_off, 100, "the kernel no longer cuts walks off: nothing was tested");
    }
}
