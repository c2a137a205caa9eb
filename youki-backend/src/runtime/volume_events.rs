//! Whether volumes are durable, as the journal of events tells it. The last word on a volume is true: a "not durable" is
//! followed by a "durable" once it is, whoever brings that about.

use runtime_core::{Event, EventKind, VolumeStatus};
use tokio::task::JoinHandle;
use volumes_s3::Error as VolumeError;

use super::Inner;
use crate::journal::Journal;

/// What ends a use: what the volume owes after it.
type Ending = JoinHandle<volumes_s3::Result<Option<VolumeError>>>;

impl Inner {
    pub(crate) fn tell_of_volume(&self, name: &str, what: &str) {
        self.tell(of_volume(name, what));
    }

    pub(crate) fn tell_whether_durable(&self, name: &str, owed: Option<&VolumeError>) {
        match owed {
            None if self.config.s3.is_some() => self.tell_of_volume(name, "durable"),
            None => {}
            Some(error) => {
                tracing::warn!(volume = name, %error, "not durable");
                self.tell_of_volume(name, &not_durable(error));
            }
        }
    }

    /// The same of what goes on and was told as late: once it is durable. Of what is owed still, whoever pays tells.
    pub(crate) fn tell_when_durable(&self, name: &str, ending: Ending) {
        if self.config.s3.is_none() {
            return;
        }
        let (journal, name) = (Journal::new(self.layout.events()), name.to_owned());
        tokio::spawn(async move {
            match ending.await {
                Ok(Ok(None)) => journal.put(of_volume(&name, "durable")),
                // Nothing is owed then: nobody else tells.
                Ok(Ok(Some(error @ VolumeError::Fenced { .. }))) => journal.put(of_volume(&name, &not_durable(&error))),
                _ => {}
            }
        });
    }

    /// Tries once what `name` owes to S3, and tells of a debt that is paid, or is none any more since another host has the
    /// volume; also when nobody waits for it any more. What stays owed was told when it came to be.
    pub(crate) async fn pay(&self, name: &str) -> volumes_s3::Result<()> {
        let (volumes, journal, name) = (self.volumes.clone(), Journal::new(self.layout.events()), name.to_owned());
        let paying = tokio::spawn(async move {
            let paid = volumes.retry(&name).await;
            match &paid {
                Ok(true) => journal.put(of_volume(&name, "durable")),
                Err(error @ VolumeError::Fenced { .. }) => journal.put(of_volume(&name, &not_durable(error))),
                Ok(false) | Err(_) => {}
            }
            paid.map(drop)
        });
        paying.await.unwrap_or(Err(VolumeError::Interrupted { operation: "a retry" }))
    }

    /// Syncs the volume, and tells what came of it; also when nobody waits for it any more.
    pub(crate) async fn sync_volume(&self, name: &str) -> volumes_s3::Result<VolumeStatus> {
        let (volumes, journal, name) = (self.volumes.clone(), Journal::new(self.layout.events()), name.to_owned());
        let has_bucket = self.config.s3.is_some();
        let syncing = tokio::spawn(async move {
            let synced = volumes.sync(&name).await;
            match &synced {
                Ok(_) if has_bucket => journal.put(of_volume(&name, "durable")),
                // There is no volume to tell of.
                Ok(_) | Err(VolumeError::NotFound { .. } | VolumeError::InvalidName { .. }) => {}
                Err(error) => journal.put(of_volume(&name, &not_durable(error))),
            }
            synced
        });
        syncing.await.unwrap_or(Err(VolumeError::Interrupted { operation: "a sync" }))
    }
}

fn of_volume(name: &str, what: &str) -> Event {
    Event { volume: Some(name.to_owned()), ..Event::now(EventKind::Volume).saying(what) }
}

fn not_durable(error: &VolumeError) -> String {
    format!("not durable: {error}")
}
