//! The distribution protocol, write side: a blob is sent by one request, as containerd does, and begun anew where the
//! registry lost it. It is not sent in pieces: of those one registry takes none, another only small or only large ones.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Body, Method, Response, StatusCode, Url};
use tokio::sync::watch;

use super::{Call, Content, Endpoint, FIRST_BACKOFF, is_busy, is_passing, location, retry_after};
use crate::error::{Error, Result};
use crate::limits::MAX_RETRIES;
use crate::manifest::Descriptor;

/// Bytes that are read at once: so much of each blob that is on its way is in memory.
const READ_BYTES: u64 = 1 << 20;
/// How slowly, in bytes per second, a registry may look through a blob that it has before it answers, or a proxy hand on what
/// it has taken.
const SLOWEST_CHECK: u64 = 1 << 20;
/// Where an upload begins, beneath the repository.
pub(super) const UPLOADS: &str = "/blobs/uploads/";

/// A blob that is sent, and its file.
pub(super) struct Blob<'c> {
    descriptor: &'c Descriptor,
    file: Arc<File>,
    /// What reading it failed with: the client tells of its own part alone.
    failed: Arc<Mutex<Option<io::Error>>>,
    /// Told how many of its bytes are on their way.
    arrived: &'c (dyn Fn(u64) + Sync),
}

impl Endpoint<'_> {
    /// Whether the registry has a blob.
    pub(crate) async fn has_blob(&self, digest: &str) -> Result<bool> {
        let path = self.path(&format!("/blobs/{digest}"));
        let taken = |status: StatusCode| status.is_success() || status == StatusCode::NOT_FOUND;
        let answer = self.perform(&self.call(Method::HEAD, self.url(&path)?, &path, taken)).await?;
        Ok(answer.status().is_success())
    }

    /// Sends a blob's content, which `file` must be; `arrived` is told how many bytes of it were sent.
    pub(crate) async fn send_blob(
        &self,
        descriptor: &Descriptor,
        file: File,
        arrived: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let blob = Blob { descriptor, file: Arc::new(file), failed: Arc::default(), arrived };
        let mut attempt = 0;
        loop {
            let Some((error, wait)) = self.send_once(&blob).await? else { return Ok(()) };
            // An end whose answer was lost is found by the question.
            if self.has_blob(&descriptor.digest).await? {
                return Ok(());
            }
            if attempt == MAX_RETRIES {
                return Err(error);
            }
            tracing::debug!(digest = descriptor.digest, attempt, %error, "an upload is begun anew");
            tokio::time::sleep(wait.unwrap_or(FIRST_BACKOFF * 2u32.pow(attempt))).await;
            attempt += 1;
        }
    }

    /// The same, once. What it answers is why it is to be begun anew, and after what time if the registry says that.
    async fn send_once(&self, blob: &Blob<'_>) -> Result<Option<(Error, Option<Duration>)>> {
        let path = self.path(UPLOADS);
        let begun = self.perform(&self.call(Method::POST, self.url(&path)?, &path, |s| s.is_success())).await?;
        let mut url = self.upload_at(&begun)?;
        url.query_pairs_mut().append_pair("digest", &blob.descriptor.digest);
        let path = self.path(&format!("/blobs/{}", blob.descriptor.digest));
        let mut call = self.call(Method::PUT, url, &path, |status| {
            // What the registry no longer knows of, or knows the beginning of from a request that was cut.
            let lost = matches!(status, StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE);
            status.is_success() || lost || is_busy(status)
        });
        call.headers = headers(HeaderValue::from_static("application/octet-stream"), blob.descriptor.size);
        call.content = Content::Blob(blob);
        match self.perform(&call).await {
            Ok(answer) if answer.status().is_success() => Ok(None),
            Ok(answer) => {
                let wait = retry_after(&answer);
                Ok(Some((self.refusal(&call.method, &path, answer).await, wait)))
            }
            Err(error) if is_passing(&error) || matches!(error, Error::NoProgress { .. }) => Ok(Some((error, None))),
            Err(error) => Err(error),
        }
    }

    /// Sends `request`, whose body is `blob` and has `sent` so many bytes of it. It is given up when none goes on.
    pub(super) async fn in_time_for(
        &self,
        blob: &Blob<'_>,
        mut sent: watch::Receiver<u64>,
        request: impl Future<Output = reqwest::Result<Response>>,
    ) -> Result<Response> {
        let stalled = |patience: Duration| Error::NoProgress {
            registry: self.registry().to_owned(),
            what: format!("an answer to {}", blob.descriptor.digest),
            seconds: patience.as_secs(),
        };
        let checks = Duration::from_secs(blob.descriptor.size / SLOWEST_CHECK);
        let mut request = std::pin::pin!(request);
        loop {
            let is_whole = *sent.borrow_and_update() == blob.descriptor.size;
            let patience = self.limits.no_progress() + if is_whole { checks } else { Duration::ZERO };
            tokio::select! {
                answer = self.or_tell(&mut request) => return answer.map_err(|error| match blob.failure() {
                    Some(failure) => Error::io("reading", &blob.descriptor.digest, failure),
                    None => self.unreachable(error),
                }),
                Ok(()) = sent.changed() => (blob.arrived)(*sent.borrow()),
                () = tokio::time::sleep(patience) => return Err(stalled(patience)),
            }
        }
    }

    /// Gives the reference's tag a manifest, whose blobs must be there.
    pub(crate) async fn send_manifest(&self, media_type: HeaderValue, document: Vec<u8>) -> Result<()> {
        let path = self.path(&format!("/manifests/{}", self.reference.manifest_key()));
        let mut call = self.call(Method::PUT, self.url(&path)?, &path, |status| status.is_success());
        call.headers = headers(media_type, document.len() as u64);
        call.content = Content::Bytes(document.into());
        self.perform(&call).await.map(drop)
    }

    fn path(&self, rest: &str) -> String {
        format!("/v2/{}{rest}", self.reference.repository())
    }

    fn call<'c>(&self, method: Method, url: Url, path: &'c str, taken: fn(StatusCode) -> bool) -> Call<'c> {
        // Some registries want it to be said also where there is nothing.
        let length = (method != Method::HEAD).then_some((CONTENT_LENGTH, HeaderValue::from(0)));
        Call { method, url, headers: length.into_iter().collect(), content: Content::Bytes(Bytes::new()), path, taken }
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

impl Blob<'_> {
    /// All of it as a body, read as it is taken, and how many bytes of it were.
    pub(super) fn body(&self) -> (Body, watch::Receiver<u64>) {
        let (sent, told) = watch::channel(0);
        let (file, failed, size) = (Arc::clone(&self.file), Arc::clone(&self.failed), self.descriptor.size);
        let pieces = stream::try_unfold((0, sent), move |(offset, sent)| {
            let (file, failed) = (Arc::clone(&file), Arc::clone(&failed));
            async move {
                let bytes = READ_BYTES.min(size - offset);
                if bytes == 0 {
                    return Ok(None);
                }
                let piece = read(file, offset, bytes).await.map_err(|error| {
                    let kind = error.kind();
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    io::Error::from(kind)
                })?;
                // Who asked may have gone.
                let _ = sent.send(offset + bytes);
                Ok::<_, io::Error>(Some((piece, (offset + bytes, sent))))
            }
        });
        (Body::wrap_stream(pieces), told)
    }

    fn failure(&self) -> Option<io::Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn headers(media_type: HeaderValue, length: u64) -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, media_type), (CONTENT_LENGTH, HeaderValue::from(length))])
}

/// A piece of a file, read on a thread that may block.
async fn read(file: Arc<File>, offset: u64, bytes: u64) -> io::Result<Bytes> {
    let work = move || {
        // READ_BYTES at most.
        let mut piece = vec![0; usize::try_from(bytes).unwrap_or_default()];
        file.read_exact_at(&mut piece, offset)?;
        Ok(piece.into())
    };
    tokio::task::spawn_blocking(work).await?
}
