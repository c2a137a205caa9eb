//! Room on the disk that is kept for removals: on a full one they could not even write down what goes.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use crate::error::Result;
use crate::store::Paths;

/// Enough for an index of some hundred images beside the one that it replaces.
const BYTES: u64 = 64 << 10;

/// Takes the room, or as much of it as there is; blocking. Short where it is taken already.
pub(crate) fn take(paths: &Paths) {
    let missing = BYTES.saturating_sub(fs::metadata(&paths.reserve).map_or(0, |metadata| metadata.len()));
    if missing == 0 {
        return;
    }
    let taken = OpenOptions::new().create(true).append(true).open(&paths.reserve).and_then(|mut file| {
        // In pieces: the last one that fits counts.
        (0..missing.div_ceil(4096)).try_for_each(|_| file.write_all(&[b'r'; 4096]))
    });
    if let Err(error) = taken {
        tracing::debug!(path = %paths.reserve.display(), %error, "no room can be kept for removals");
    }
}

/// Does `write`; if the disk is full for it, gives the room up, does it again, and takes what room there is then. Blocking.
pub(crate) fn with<T>(paths: &Paths, write: impl Fn() -> Result<T>) -> Result<T> {
    let done = write();
    if !done.as_ref().is_err_and(|error| error.code() == "store.disk_full") || fs::remove_file(&paths.reserve).is_err()
    {
        return done;
    }
    let done = write();
    take(paths);
    done
}
