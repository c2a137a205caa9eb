//! The distribution protocol, write side: a blob is sent in pieces, and begun anew where the registry lost them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};

use super::{Call, Endpoint, location};
use crate::error::{Error, Result};
use crate::limits::MAX_RETRIES;
use crate::manifest::Descriptor;

/// Bytes of a blob that are sent in one request, unless the registry wants more: GitHub's takes no more.
const CHUNK_BYTES: u64 = 4 << 20;
/// Most that a registry can ask for: one of them is in memory for each blob on its way.
const MAX_CHUNK_BYTES: u64 = 32 << 20;
/// Where an upload begins, beneath the repository.
pub(super) const UPLOADS: &str = "/blobs/uploads/";

impl Endpoint<'_> {
    /// Whether the registry has a blob.
    pub(crate) async fn has_blob(&self, digest: &str) -> Result<bool> {
        let path = self.path(&format!("/blobs/{digest}"));
        let taken = |status: StatusCode| status.is_success() || status == StatusCode::NOT_FOUND;
        let answer = self.perform(&self.call(Method::HEAD, self.url(&path)?, &path, taken)).await?;
        Ok(answer.status().is_success())
    }

    /// Sends a blob's content, which `file` must be; `arrived` is told how many bytes of it the registry has.
    pub(crate) async fn send_blob(&self, blob: &Descriptor, file: File, arrived: impl Fn(u64)) -> Result<()> {
        let file = Arc::new(file);
        for _ in 0..=MAX_RETRIES {
            // An end whose answer was lost is found by the second question.
            if self.send_whole(blob, &file, &arrived).await? || self.has_blob(&blob.digest).await? {
                return Ok(());
            }
        }
        Err(Error::Registry {
            registry: self.registry().to_owned(),
            request: format!("upload of {}", blob.digest),
            answer: "it does not know of what it took, again and again".to_owned(),
        })
    }

    /// The same, once; false if the registry no longer knows of the upload, or of its latest piece.
    async fn send_whole(&self, blob: &Descriptor, file: &Arc<File>, arrived: impl Fn(u64)) -> Result<bool> {
        let path = self.path(UPLOADS);
        let begun = self.perform(&self.call(Method::POST, self.url(&path)?, &path, |s| s.is_success())).await?;
        let wanted = begun.headers().get("oci-chunk-min-length").and_then(|value| value.to_str().ok()?.parse().ok());
        let chunk_bytes = wanted.unwrap_or(0).clamp(CHUNK_BYTES, MAX_CHUNK_BYTES);
        let mut url = self.upload_at(&begun)?;
        let taken = |status: StatusCode| {
            status.is_success() || matches!(status, StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE)
        };
        let mut sent = 0;
        while sent < blob.size {
            let chunk = read(file, &blob.digest, sent, chunk_bytes.min(blob.size - sent)).await?;
            let end = sent + chunk.len() as u64;
            let mut call = self.call(Method::PATCH, url, &path, taken);
            call.headers = HeaderMap::from_iter([
                (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
                (CONTENT_LENGTH, HeaderValue::from(chunk.len())),
            ]);
            call.headers
                .extend(HeaderValue::from_str(&format!("{sent}-{}", end - 1)).map(|range| (CONTENT_RANGE, range)));
            call.body = chunk;
            let answer = self.perform(&call).await?;
            if !answer.status().is_success() {
                return Ok(false);
            }
            url = self.upload_at(&answer)?;
            sent = end;
            arrived(sent);
        }
        url.query_pairs_mut().append_pair("digest", &blob.digest);
        Ok(self.perform(&self.call(Method::PUT, url, &path, taken)).await?.status().is_success())
    }

    /// Gives the reference's tag a manifest, whose blobs must be there.
    pub(crate) async fn send_manifest(&self, media_type: HeaderValue, document: Vec<u8>) -> Result<()> {
        let path = self.path(&format!("/manifests/{}", self.reference.manifest_key()));
        let mut call = self.call(Method::PUT, self.url(&path)?, &path, |status| status.is_success());
        call.headers =
            HeaderMap::from_iter([(CONTENT_TYPE, media_type), (CONTENT_LENGTH, HeaderValue::from(document.len()))]);
        call.body = document.into();
        self.perform(&call).await.map(drop)
    }

    fn path(&self, rest: &str) -> String {
        format!("/v2/{}{rest}", self.reference.repository())
    }

    fn call<'c>(&self, method: Method, url: Url, path: &'c str, taken: fn(StatusCode) -> bool) -> Call<'c> {
        // Some registries want it to be said also where there is nothing.
        let length = (method != Method::HEAD).then_some((CONTENT_LENGTH, HeaderValue::from(0)));
        Call { method, url, headers: length.into_iter().collect(), body: Bytes::new(), path, taken }
    }

    /// Where an upload goes on. It may lead to another host, which gets no credentials.
    fn upload_at(&self, answer: &Response) -> Result<Url> {
        location(answer, answer.url()).ok_or_else(|| Error::Registry {
            registry: self.registry().to_owned(),
            request: format!("upload to {}", self.reference.repository()),
            answer: "it does not say where an upload goes on".to_owned(),
        })
    }
}

/// A piece of a file, read on a thread that may block.
async fn read(file: &Arc<File>, digest: &str, offset: u64, bytes: u64) -> Result<Bytes> {
    let (file, digest) = (Arc::clone(file), digest.to_owned());
    let work = move || {
        // At most 32 MiB.
        let mut piece = vec![0; usize::try_from(bytes).unwrap_or_default()];
        file.read_exact_at(&mut piece, offset).map_err(|e| Error::io("reading", &digest, e))?;
        Ok(piece.into())
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Interrupted("reading a blob"))?
}
