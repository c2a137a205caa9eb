//! Live syncs: volumes that containers here write to are synced while they are used.

use std::collections::HashMap;
use std::sync::Weak;

use futures_util::{StreamExt, stream};

use crate::runtime::Inner;

/// Volumes synced at once: each sync may hold some ten MiB.
const AT_ONCE: usize = 4;

/// Syncs for as long as it is polled. Ends where there is nothing to do: no bucket, or no interval.
///
/// The interval is the pause between the end of one round and the next: no volume is synced twice at once.
pub(super) async fn apply(weak: Weak<Inner>) {
    let configured =
        weak.upgrade().and_then(|inner| inner.config.volumes.live_sync.filter(|_| inner.config.s3.is_some()));
    let Some(interval) = configured else { return };
    let mut told = HashMap::new();
    loop {
        tokio::time::sleep(interval).await;
        let Some(inner) = weak.upgrade() else { return };
        inner.sync_used_volumes(&mut told).await;
    }
}

impl Inner {
    /// Syncs once what is used; `told` are the generations that events told of.
    async fn sync_used_volumes(&self, told: &mut HashMap<String, Option<u64>>) {
        let names = match self.volumes.written().await {
            Ok(names) => names,
            Err(error) => {
                tracing::error!(%error, "volumes are not synced while they are used");
                return;
            }
        };
        told.retain(|name, _| names.contains(name));
        let syncs = names.into_iter().map(|name| async move {
            let before = self.volumes.status(&name).await.ok().and_then(|status| status.generation);
            (self.volumes.sync(&name).await, before, name)
        });
        let mut syncs = stream::iter(syncs).buffer_unordered(AT_ONCE);
        while let Some((synced, before, name)) = syncs.next().await {
            match synced {
                Ok(status) => {
                    let last = told.insert(name.clone(), status.generation);
                    if last.unwrap_or(before) != status.generation {
                        self.tell_of_volume(&name, "durable");
                    }
                }
                // What is owed now is retried, and told with the end of its use.
                Err(error) => tracing::debug!(volume = name, %error, "not synced while it is used"),
            }
        }
    }
}
