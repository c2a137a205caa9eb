//! Live syncs: volumes that containers here write to are synced while they are used.

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
    loop {
        tokio::time::sleep(interval).await;
        let Some(inner) = weak.upgrade() else { return };
        inner.sync_used_volumes().await;
    }
}

impl Inner {
    /// Syncs once what is used. What fails round after round is told once: the volume says whether the last try of anybody
    /// failed.
    async fn sync_used_volumes(&self) {
        let names = match self.volumes.written().await {
            Ok(names) => names,
            Err(error) => {
                tracing::error!(%error, "volumes are not synced while they are used");
                return;
            }
        };
        let syncs = names.into_iter().map(|name| async move {
            let before = self.volumes.status(&name).await.ok();
            (self.volumes.sync(&name).await, before, name)
        });
        let mut syncs = stream::iter(syncs).buffer_unordered(AT_ONCE);
        while let Some((synced, before, name)) = syncs.next().await {
            let (generation, had_failed) =
                before.map_or((None, false), |before| (before.generation, before.last_error.is_some()));
            match synced {
                Ok(status) if status.generation != generation || had_failed => self.tell_of_volume(&name, "durable"),
                // As it was; or given back and removed since.
                Ok(_) | Err(volumes_s3::Error::NotFound { .. }) => {}
                Err(error) if had_failed => tracing::debug!(volume = name, %error, "not synced while it is used"),
                Err(error) => self.tell_whether_durable(&name, Some(&error)),
            }
        }
    }
}
