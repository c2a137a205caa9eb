//! A pull as it goes.

use std::future::ready;

use futures_core::Stream;
use futures_util::stream::{self, StreamExt as _};
use registry::PullOptions;
use runtime_core::PullEvent;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::YoukiRuntime;
use crate::error::{Error, Result};

impl YoukiRuntime {
    /// [`pull`](Self::pull) as it goes, in place of the `progress` of `options`; [`PullEvent::Done`], or the error, comes
    /// last. Dropping it stops the pull.
    pub fn pull_events(
        &self,
        image: &str,
        mut options: PullOptions,
    ) -> impl Stream<Item = Result<PullEvent>> + Send + use<> {
        let (sender, events) = unbounded_channel();
        options.progress = Some(sender);
        let (runtime, image) = (self.clone(), image.to_owned());
        // Dropped with the stream, and the pull with it.
        let mut pulling = JoinSet::new();
        pulling.spawn(async move { runtime.pull(&image, options).await });
        // The store does not say that it is done with an image that was here.
        let layers =
            UnboundedReceiverStream::new(events).filter(|event| ready(!matches!(event, PullEvent::Done { .. })));
        let end = async move {
            let pulled = pulling.join_next().await?;
            let pulled = pulled.map_err(Error::ThreadLost).flatten();
            Some(pulled.map(|image| PullEvent::Done { digest: image.digest }))
        };
        layers.map(Ok).chain(stream::once(end).filter_map(ready))
    }
}
