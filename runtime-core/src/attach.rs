//! The standard streams of a running container.

use std::pin::Pin;

use futures_core::Stream;

use crate::error::Result;

/// What a container writes, as bytes that need be neither whole lines nor whole characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachEvent {
    /// To its standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// To its standard error.
    Stderr(Vec<u8>),
}

/// Output as it is produced, each of the two streams in its order. It ends with the attempt; dropping it leaves the
/// container running.
pub type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachEvent>> + Send>>;
