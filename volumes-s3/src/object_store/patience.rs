//! How long a request is waited for. What ends one is that nothing moves, not that it takes its time: a large body on a
//! slow line passes, and a server that accepts connections and never answers is found out in seconds.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// A small request is given this long at first: a kept connection that died without a word is not worth more.
const FIRST_ANSWER: Duration = Duration::from_secs(4);
/// And this long when it is repeated.
const LAST_ANSWER: Duration = Duration::from_secs(9);
/// A put that may not be repeated, since its outcome would not be known: a server's first one may be slow (SeaweedFS makes
/// its files then, in 8 s).
pub(super) const ONLY_ANSWER: Duration = Duration::from_secs(15);
/// A large body may stand still this long: a kernel hides what it sends of its buffer, up to some MiB.
const STILL_SENDING: Duration = Duration::from_secs(60);
/// The slowest line that a large body, all of it handed to the kernel, is expected to pass.
const SLOW_LINE_BYTES_PER_SECOND: u64 = 64 << 10;
/// What the kernel holds of it at most (`tcp_wmem`).
const SEND_BUFFER_BYTES: u64 = 4 << 20;
/// A large answer may stand still this long: several share one line.
const STILL_RECEIVING: Duration = Duration::from_secs(20);
/// After this long without a sign of life somebody is told. A line that is slow shows few.
const NOTICE: Duration = Duration::from_secs(3);
const LARGE_NOTICE: Duration = Duration::from_secs(15);
/// For so long after a silence, requests get the first patience only.
const SUSPICION: Duration = Duration::from_secs(30);
/// A large body is handed over in such pieces, each a sign of life.
const PIECE_BYTES: usize = 256 << 10;

/// Nothing moved for too long.
#[derive(Debug)]
pub(super) struct Silence {
    /// How long.
    pub waited: Duration,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {} s", self.waited.as_secs())
    }
}

impl std::error::Error for Silence {}

/// What a server's silence taught.
#[derive(Debug, Default)]
pub(super) struct Experience {
    silent_at: Mutex<Option<Instant>>,
    told: AtomicBool,
}

impl Experience {
    /// How long each try of a small request may take.
    pub(super) fn of_small(&self) -> &'static [Duration] {
        let suspicious = self.silent_at().is_some_and(|at| at.elapsed() < SUSPICION);
        if suspicious { &[FIRST_ANSWER] } else { &[FIRST_ANSWER, LAST_ANSWER] }
    }

    /// Waits for `request` as long as `motion` goes on; calls `tell` when nothing does, and not
    /// again before the server is back.
    pub(super) async fn wait<T>(
        &self,
        motion: &Motion,
        request: impl Future<Output = T>,
        tell: impl Fn(),
    ) -> Result<T, Silence> {
        let mut request = std::pin::pin!(request);
        loop {
            let (moved_at, limit) = motion.state();
            let told = self.told.load(Ordering::Relaxed);
            let notice = if limit > ONLY_ANSWER { LARGE_NOTICE } else { NOTICE };
            let until = if told { limit } else { limit.min(notice) };
            tokio::select! {
                done = &mut request => {
                    if self.silent_at().take().is_some() {
                        self.told.store(false, Ordering::Relaxed);
                    }
                    return Ok(done);
                }
                () = tokio::time::sleep_until(moved_at + until) => {}
            }
            let (moved_at, limit) = motion.state();
            let still = moved_at.elapsed();
            if still >= limit {
                *self.silent_at() = Some(Instant::now());
                return Err(Silence { waited: limit });
            }
            if still >= notice && !self.told.swap(true, Ordering::Relaxed) {
                tell();
            }
        }
    }

    fn silent_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.silent_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a request last showed a sign of life, and how long it may show none.
#[derive(Debug)]
pub(super) struct Motion(Mutex<(Instant, Duration)>);

impl Motion {
    /// Of a request that is to be over in this time: none of its parts counts.
    pub(super) fn within(limit: Duration) -> Self {
        Self(Mutex::new((Instant::now(), limit)))
    }

    /// Of one that receives much.
    pub(super) fn receiving() -> Self {
        Self::within(STILL_RECEIVING)
    }

    /// Of one that sends much.
    pub(super) fn sending() -> Self {
        Self::within(STILL_SENDING)
    }

    /// It showed one.
    pub(super) fn moved(&self) {
        self.lock().0 = Instant::now();
    }

    /// The kernel has the whole body, of `length` bytes: what shows next is the answer.
    fn sent(&self, length: u64) {
        let tail = length.min(SEND_BUFFER_BYTES) / SLOW_LINE_BYTES_PER_SECOND;
        *self.lock() = (Instant::now(), LAST_ANSWER + Duration::from_secs(tail));
    }

    fn state(&self) -> (Instant, Duration) {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, (Instant, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that tells how it is taken.
#[derive(Debug)]
pub(super) struct ToldBody {
    rest: Bytes,
    length: u64,
    motion: Arc<Motion>,
}

impl ToldBody {
    pub(super) fn new(body: Bytes, motion: Arc<Motion>) -> Self {
        Self { length: body.len() as u64, rest: body, motion }
    }
}

impl Body for ToldBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.rest.len().min(PIECE_BYTES);
        if length == 0 {
            return Poll::Ready(None);
        }
        let piece = self.rest.split_to(length);
        if self.rest.is_empty() {
            self.motion.sent(self.length)
        } else {
            self.motion.moved()
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
