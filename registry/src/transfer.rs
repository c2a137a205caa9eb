//! One blob from the network into a layer's stream, going on where a cut interrupted it.

use std::time::Duration;

use tokio::sync::mpsc::Sender;

use crate::client::{Endpoint, is_passing};
use crate::error::{Error, Result};
use crate::layer::stream::Feed;
use crate::limits::MAX_RETRIES;
use crate::manifest::Descriptor;
use crate::session::Session;

/// First wait after a cut; doubled while no byte arrives in between.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// How often it is told how much has arrived: who does not listen keeps all that it is told.
const PROGRESS_STEP_BYTES: u64 = 256 << 10;
/// Passes without a byte after which a mirror is asked no more.
const MAX_MIRROR_PASSES: u32 = 2;

/// Feeds the blob; `progress` hears the bytes fed so far, step by step. Ends early, without an error, if nobody takes it any more:
/// the stream's own answer says why.
pub(crate) async fn transfer(
    session: &Session<'_>,
    blob: &Descriptor,
    feed: Sender<Feed>,
    progress: impl Fn(u64),
) -> Result<()> {
    let mut done = 0u64;
    let mut fruitless = 0;
    loop {
        let before = done;
        let (endpoint, cut) = match pass(session, blob, &feed, &mut done, &progress).await? {
            Passed::Unwanted => return Ok(()),
            // Also where the connection was cut before the answer had ended: there is nothing left to ask for.
            Passed::Ended(_) | Passed::Cut(..) if done == blob.size => {
                // The stream has ended by itself if nobody takes this.
                let _ = feed.send(Feed::End).await;
                return Ok(());
            }
            Passed::Ended(endpoint) => {
                (endpoint, Error::SizeMismatch { what: blob.digest.clone(), expected: blob.size, found: done })
            }
            Passed::Cut(endpoint, error) => (endpoint, error),
        };
        fruitless = if done > before { 1 } else { fruitless + 1 };
        if fruitless > MAX_MIRROR_PASSES {
            session.give_up(endpoint, &cut);
        }
        if fruitless > MAX_RETRIES {
            return Err(cut);
        }
        tracing::debug!(blob = %blob.digest, done, size = blob.size, error = %cut, "a transfer was cut and goes on");
        tokio::time::sleep(FIRST_BACKOFF * 2u32.pow(fruitless - 1)).await;
    }
}

enum Passed<'a> {
    Ended(&'a Endpoint<'a>),
    Cut(&'a Endpoint<'a>, Error),
    Unwanted,
}

/// One request, from `done` on.
async fn pass<'a>(
    session: &'a Session<'_>,
    blob: &Descriptor,
    feed: &Sender<Feed>,
    done: &mut u64,
    progress: &impl Fn(u64),
) -> Result<Passed<'a>> {
    let (endpoint, mut response, begins) = session.blob(&blob.digest, *done).await?;
    let mut skip = done.checked_sub(begins).unwrap_or_default();
    loop {
        let mut chunk = match endpoint.next_chunk(&mut response, &blob.digest).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(Passed::Ended(endpoint)),
            Err(error) if is_passing(&error) => return Ok(Passed::Cut(endpoint, error)),
            Err(error) => return Err(error),
        };
        let known = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= known as u64;
        bytes::Buf::advance(&mut chunk, known);
        if chunk.is_empty() {
            continue;
        }
        let before = *done;
        *done += chunk.len() as u64;
        if *done > blob.size {
            return Err(Error::SizeMismatch { what: blob.digest.clone(), expected: blob.size, found: *done });
        }
        if feed.send(Feed::Data(chunk)).await.is_err() {
            return Ok(Passed::Unwanted);
        }
        if before / PROGRESS_STEP_BYTES != *done / PROGRESS_STEP_BYTES || *done == blob.size {
            progress(*done);
        }
    }
}
