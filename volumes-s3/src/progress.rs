//! How far a restore has come.

use std::fmt;
use std::sync::Arc;

/// Is told how many bytes of files are done, of how many. Called from several threads.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(u64, u64) + Send + Sync>>);

impl Progress {
    /// Calls `each` with the bytes done and the bytes in all.
    pub fn new(each: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(each)))
    }

    pub(crate) fn report(&self, done: u64, total: u64) {
        if let Some(each) = &self.0 {
            each(done, total);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(..)" } else { "Progress" })
    }
}
