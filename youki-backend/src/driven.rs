//! Calls in tasks of their own.
//!
//! A future that is alive and not polled, such as one that a `select!` has by reference while another branch's handler
//! awaits, keeps what it holds, or is the next to have, from everybody ("futurelock", Oxide's RFD 609). So nothing that
//! may come to have a container's lock is driven by its caller.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use tokio::task::JoinSet;

use crate::error::{Error, Result};

/// Drives `call` for as long as its caller waits for it.
pub(crate) async fn while_waited_for<T: Send + 'static>(
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let mut task = JoinSet::new(); // aborts it when dropped
    task.spawn(call);
    match task.join_next().await {
        Some(done) => done.map_err(Error::ThreadLost)?,
        None => std::future::pending().await, // one was put there
    }
}

/// Drives `call` to its end, also when its caller has gone.
pub(crate) async fn to_the_end<T, F>(call: impl FnOnce(Caller) -> F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let waits = Arc::new(());
    let done = tokio::spawn(call(Caller::who_holds(&waits))).await;
    drop(waits);
    done.map_err(Error::ThreadLost)?
}

/// Who waits for a call. Once he is gone he may have called for the contrary: what has not begun by then must not.
#[derive(Debug)]
pub(crate) struct Caller {
    waits: Weak<()>,
    has_begun: AtomicBool,
}

impl Caller {
    /// One who waits as long as `waits` is held.
    pub fn who_holds(waits: &Arc<()>) -> Self {
        Self { waits: Arc::downgrade(waits), has_begun: AtomicBool::new(false) }
    }

    /// Whether nothing is to be begun for him any more.
    pub fn is_gone(&self) -> bool {
        !self.has_begun.load(Ordering::Relaxed) && self.waits.strong_count() == 0
    }

    /// From here on the call goes on to its end, whether he is there or not.
    pub fn begin(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }
}
