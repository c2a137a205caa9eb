//! What tells one place of volumes from another: a random id in the bucket itself, put by whoever comes first.
//!
//! What a tree's record says of a history is worth nothing in another place. The address does not tell places apart: a
//! server may get another name or port, and is the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::config::S3Config;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::object_store::ObjectStore;
use crate::pack::Digest;
use crate::paths::make_directories;
use crate::record::random_id;
use crate::state::{read_json, write_json_unlocked};

/// The key, after the prefix. No volume can have this name.
const KEY: &str = ".berth-place";
/// 128 bits in hex.
const ID_LENGTH: usize = 32;

/// The place at one address. Asked for at first contact, then kept on disk.
#[derive(Debug)]
pub(crate) struct Place {
    id: OnceCell<String>,
    key: String,
    file: PathBuf,
}

/// The file `.places/<digest of the address>.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    address: String,
    id: String,
}

impl Place {
    pub(crate) fn new(root: &Path, config: &S3Config) -> Self {
        let digest = Digest::of(config.address().as_bytes()).to_string();
        Self {
            id: OnceCell::new(),
            key: format!("{}{KEY}", config.key_prefix()),
            file: root.join(".places").join(format!("{}.json", &digest[..32])),
        }
    }

    /// Its id.
    pub(crate) async fn id(&self, store: &Arc<dyn ObjectStore>, config: &S3Config) -> Result<&str> {
        let id = self.id.get_or_try_init(|| async {
            let file = self.file.clone();
            let known = blocking("read the place", move || Ok(read_json::<Known>(&file).ok().flatten())).await?;
            if let Some(known) = known {
                return Ok(known.id);
            }
            let id = self.ask(store).await?;
            let (file, known) = (self.file.clone(), Known { address: config.address(), id: id.clone() });
            blocking("keep the place", move || {
                file.parent().map_or(Ok(()), make_directories)?;
                write_json_unlocked(&file, &known)
            })
            .await?;
            Ok(id)
        });
        id.await.map(String::as_str)
    }

    async fn ask(&self, store: &Arc<dyn ObjectStore>) -> Result<String> {
        let found = match store.get(&self.key, None, ID_LENGTH).await? {
            Some(found) => found,
            None => {
                // Whatever the answer is, or if it is lost: what is there afterwards is the id.
                let put = store.put_if_absent(&self.key, Bytes::from(random_id())).await;
                match store.get(&self.key, None, ID_LENGTH).await? {
                    Some(found) => found,
                    None => {
                        put?;
                        return Err(Error::corrupt(&self.key, "was put, and is gone"));
                    }
                }
            }
        };
        let id = std::str::from_utf8(&found).ok().filter(|id| id.len() == ID_LENGTH);
        let id = id.filter(|id| id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        id.map(str::to_owned).ok_or_else(|| Error::corrupt(&self.key, "is no id"))
    }
}
