//! Named volumes, whether their containers are there or not.

use std::collections::BTreeSet;

use runtime_core::{PruneResult, VolumeStatus};

use super::{Inner, YoukiRuntime};
use crate::error::{Error, Result};

impl YoukiRuntime {
    /// Syncs and gives back the named volumes of containers that are no more, which nobody else has done yet. The keeper
    /// does so by itself.
    pub async fn give_back_volumes(&self) {
        self.0.give_back_volumes().await;
    }

    /// [`volumes_s3::VolumeStore::sync`], told as an event.
    ///
    /// # Errors
    /// [`Error::Volume`](crate::Error::Volume).
    pub async fn sync_volume(&self, name: &str) -> Result<VolumeStatus> {
        Ok(self.0.sync_volume(name).await?)
    }

    /// Tries again what volumes owe to S3, whether their containers are there or not, within the time that a stop has for
    /// it (`sync_on_stop`). Tells which of them are not durable yet, and why.
    ///
    /// # Errors
    /// Those of reading the root.
    pub async fn retry_volumes(&self) -> Result<Vec<(String, volumes_s3::Error)>> {
        self.0.retry_volumes().await
    }

    /// Removes the local copy of a volume; with `remote` its history in S3 too. Without `force`, what an ended container
    /// would need for its next start stays as well: [`volumes_s3::VolumeStore::remove`] knows those that use it now.
    ///
    /// # Errors
    /// [`Error::Volume`](crate::Error::Volume), [`Error::Io`](crate::Error::Io).
    pub async fn remove_volume(&self, name: &str, remote: bool, force: bool) -> Result<()> {
        self.0.give_back(vec![name.to_owned()]).await;
        if !force {
            let users: Vec<String> =
                self.0.volumes_on_record()?.into_iter().filter(|(_, of)| of == name).map(|(id, _)| id).collect();
            if !users.is_empty() {
                let name = name.to_owned();
                return Err(volumes_s3::Error::InUse { name, operation: "removal", users }.into());
            }
        }
        Ok(self.0.volumes.remove(name, remote, force).await?)
    }

    /// Removes local copies of volumes that no container has, running or not, and S3 holds as they are.
    ///
    /// # Errors
    /// [`Error::Volume`](crate::Error::Volume), [`Error::Io`](crate::Error::Io).
    pub async fn prune_volumes(&self) -> Result<PruneResult> {
        self.give_back_volumes().await;
        let kept: BTreeSet<String> = self.0.volumes_on_record()?.into_iter().map(|(_, name)| name).collect();
        Ok(self.0.volumes.prune_local(&kept).await?)
    }
}

impl Inner {
    /// Each container with each of its named volumes. One whose record cannot be read is an error: nobody knows what it has.
    fn volumes_on_record(&self) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        for id in self.container_ids()? {
            let container = match self.container(&id) {
                Err(Error::NoSuchContainer { .. }) => continue,
                container => container?,
            };
            let names = container.record.named_volumes().into_iter();
            found.extend(names.map(|name| (id.to_string(), name.to_owned())));
        }
        Ok(found)
    }
}
