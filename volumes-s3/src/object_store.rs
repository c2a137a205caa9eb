//! The few requests that volumes make of an object store, and S3 as one.
//!
//! Everything that is S3 stands in this file; without the feature `s3` there is no way to open one.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::config::S3Config;
use crate::error::Result;

/// How a put-if-absent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
// Without a client nothing is put.
#[cfg_attr(not(feature = "s3"), allow(dead_code))]
pub(crate) enum Put {
    /// The object is ours.
    Created,
    /// Another object has the key, or a race for it is going on: read it back.
    Exists,
}

/// Requests of volumes. Reads and plain puts are repeated a bounded number of times; a put-if-absent never is: its
/// error means that the outcome is unknown.
#[async_trait]
pub(crate) trait ObjectStore: Send + Sync + fmt::Debug {
    /// Puts an object, whatever was there.
    async fn put(&self, key: &str, body: Bytes) -> Result<()>;
    /// Puts an object if the key is free.
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<Put>;
    /// An object or a range of it; more than `limit` bytes are an error. `None` if there is none.
    async fn get(&self, key: &str, range: Option<Range<u64>>, limit: usize) -> Result<Option<Bytes>>;
    /// Its size. `None` if there is none.
    async fn size(&self, key: &str) -> Result<Option<u64>>;
    /// Up to a page of keys that begin with `prefix`, in order, from the first one after `after`.
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>>;
    /// Deletes an object; one that is not there is no error.
    async fn delete(&self, key: &str) -> Result<()>;
    /// Ok if the bucket exists.
    async fn check_bucket(&self) -> Result<()>;
}

/// Opens the bucket of `config`. No request is made.
#[cfg(feature = "s3")]
pub(crate) async fn open(config: &S3Config) -> Result<Arc<dyn ObjectStore>> {
    Ok(Arc::new(s3::S3::open(config).await?))
}

/// Without the feature there is nothing to open.
#[cfg(not(feature = "s3"))]
pub(crate) async fn open(_config: &S3Config) -> Result<Arc<dyn ObjectStore>> {
    Err(crate::error::Error::Unsupported { what: "S3 (this build has no feature `s3`)".into() })
}

#[cfg(feature = "s3")]
mod s3 {
    use std::ops::Range;
    use std::time::Duration;

    use async_trait::async_trait;
    use aws_sdk_s3::config::retry::RetryConfig;
    use aws_sdk_s3::config::timeout::TimeoutConfig;
    use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation};
    use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
    use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
    use aws_sdk_s3::primitives::ByteStream;
    use aws_sdk_s3::types::ServerSideEncryption;
    use bytes::{Bytes, BytesMut};
    use rand::Rng;

    use super::{ObjectStore, Put};
    use crate::config::S3Config;
    use crate::error::{Error, Result};

    /// A server that does not accept a connection in this time is away.
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    /// Longest wait for the first byte of an answer.
    const READ_TIMEOUT: Duration = Duration::from_secs(30);
    /// Longest time of one request: a pack of 16 MiB still passes at 1 Mbit/s.
    const OPERATION_TIMEOUT: Duration = Duration::from_secs(150);
    /// Attempts of a request that may be repeated. With the pauses below they span about three seconds.
    const ATTEMPTS: u32 = 5;
    /// Pause after the first failure; it doubles, with jitter.
    const FIRST_PAUSE: Duration = Duration::from_millis(200);
    /// Region of a server of one's own when none is given: such servers do not care, but the signature needs one.
    const DEFAULT_REGION: &str = "us-east-1";

    /// A bucket.
    #[derive(Debug)]
    pub(super) struct S3 {
        client: aws_sdk_s3::Client,
        bucket: String,
        location: String,
        endpoint: String,
        sse: Option<ServerSideEncryption>,
        /// Over TLS the body is protected already, and digests protect it at rest: its SHA-256 is not computed again.
        unsigned_bodies: bool,
    }

    impl S3 {
        pub(super) async fn open(config: &S3Config) -> Result<Self> {
            let mut loader = aws_config::defaults(BehaviorVersion::latest());
            // A region that is given keeps the chain from asking the instance's metadata service for one.
            let from_env = std::env::var("AWS_REGION").or_else(|_| std::env::var("AWS_DEFAULT_REGION")).ok();
            let default = config.endpoint.as_ref().map(|_| DEFAULT_REGION.to_owned());
            if let Some(region) = config.region.clone().or(from_env).or(default) {
                loader = loader.region(Region::new(region));
            }
            let shared = loader.load().await;
            let timeouts = TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .operation_timeout(OPERATION_TIMEOUT)
                .build();
            let mut builder = aws_sdk_s3::config::Builder::from(&shared)
                .retry_config(RetryConfig::disabled())
                .timeout_config(timeouts)
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
            if let Some(endpoint) = &config.endpoint {
                builder = builder.endpoint_url(endpoint).force_path_style(true);
            }
            Ok(Self {
                client: aws_sdk_s3::Client::from_conf(builder.build()),
                bucket: config.bucket.clone(),
                location: config.location(),
                endpoint: config.endpoint.clone().unwrap_or_else(|| "AWS".into()),
                sse: config.sse.as_deref().map(ServerSideEncryption::from),
                unsigned_bodies: config.endpoint.as_deref().is_none_or(|url| url.starts_with("https:")),
            })
        }

        fn put_request(&self, key: &str, body: Bytes) -> PutObjectFluentBuilder {
            let request = self.client.put_object().bucket(&self.bucket).key(key).body(ByteStream::from(body));
            request.set_server_side_encryption(self.sse.clone())
        }

        fn error<E>(&self, operation: String, error: SdkError<E>) -> Error
        where
            E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        {
            let status = error.raw_response().map(|response| response.status().as_u16());
            let s3_code = error.code().unwrap_or_default().to_owned();
            let location = self.location.clone();
            if s3_code == "NoSuchBucket" {
                return Error::BucketMissing { bucket: self.bucket.clone(), endpoint: self.endpoint.clone() };
            }
            match (status, &error) {
                (Some(500.. | 408 | 429), _) | (None, SdkError::TimeoutError(_)) => {
                    Error::S3Unreachable { operation, location, source: Box::new(error) }
                }
                (_, SdkError::DispatchFailure(_)) if lacks_credentials(&error) => {
                    Error::S3Credentials { operation, location, source: Box::new(error) }
                }
                // The request was cut off, or never left.
                (_, SdkError::DispatchFailure(failure)) if !failure.is_user() => {
                    Error::S3Unreachable { operation, location, source: Box::new(error) }
                }
                (Some(200..300), SdkError::ResponseError(_)) => {
                    Error::S3Unreachable { operation, location, source: Box::new(error) }
                }
                _ => Error::S3Refused {
                    operation,
                    location,
                    status: status.unwrap_or(0),
                    s3_code: if s3_code.is_empty() { "no code".into() } else { s3_code },
                    source: Box::new(error),
                },
            }
        }

        fn body_error(&self, key: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
            Error::S3Unreachable {
                operation: format!("GET {key}"),
                location: self.location.clone(),
                source: Box::new(error),
            }
        }

        async fn get_once(&self, key: &str, range: Option<&Range<u64>>, limit: usize) -> Result<Option<Bytes>> {
            let mut request = self.client.get_object().bucket(&self.bucket).key(key);
            if let Some(range) = range {
                request = request.range(format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) if is_missing(&error) => return Ok(None),
                Err(error) => return Err(self.error(format!("GET {key}"), error)),
            };
            let expected = response.content_length().and_then(|length| usize::try_from(length).ok());
            let mut body = response.body;
            let mut bytes = BytesMut::with_capacity(expected.unwrap_or(0).min(limit));
            while let Some(piece) = body.next().await {
                let piece = piece.map_err(|error| self.body_error(key, error))?;
                if bytes.len() + piece.len() > limit {
                    return Err(Error::corrupt(key, format!("more than {limit} bytes")));
                }
                bytes.extend_from_slice(&piece);
            }
            if expected.is_some_and(|length| length != bytes.len()) {
                return Err(self.body_error(key, std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
            }
            Ok(Some(bytes.freeze()))
        }
    }

    /// 404 for a key; a missing bucket says so in its code. HEAD has no body, hence no code.
    fn is_missing<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
        let status = error.raw_response().map(|response| response.status().as_u16());
        status == Some(404) && error.code() != Some("NoSuchBucket")
    }

    /// The SDK tells a failed credential provider from a broken connection only in the text of the causes.
    fn lacks_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
        let mut cause = error.source();
        while let Some(error) = cause {
            if error.to_string().contains("credential") {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// Repeats `request` while its error may pass.
    async fn repeat<T, F: Future<Output = Result<T>>>(mut request: impl FnMut() -> F) -> Result<T> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..ATTEMPTS {
            match request().await {
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "request failed, trying again");
                    let jitter = rand::rng().random_range(0.75..1.25);
                    tokio::time::sleep(pause.mul_f64(jitter)).await;
                    pause *= 2;
                }
                done => return done,
            }
        }
        request().await
    }

    #[async_trait]
    impl ObjectStore for S3 {
        async fn put(&self, key: &str, body: Bytes) -> Result<()> {
            repeat(|| async {
                let request = self.put_request(key, body.clone()).customize();
                let request = if self.unsigned_bodies { request.disable_payload_signing() } else { request };
                request.send().await.map(drop).map_err(|error| self.error(format!("PUT {key}"), error))
            })
            .await
        }

        async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<Put> {
            match self.put_request(key, body).if_none_match("*").send().await {
                Ok(_) => Ok(Put::Created),
                Err(error) => match error.raw_response().map(|response| response.status().as_u16()) {
                    Some(409 | 412) => Ok(Put::Exists),
                    _ => Err(self.error(format!("PUT {key} if absent"), error)),
                },
            }
        }

        async fn get(&self, key: &str, range: Option<Range<u64>>, limit: usize) -> Result<Option<Bytes>> {
            repeat(|| self.get_once(key, range.as_ref(), limit)).await
        }

        async fn size(&self, key: &str) -> Result<Option<u64>> {
            repeat(|| async {
                match self.client.head_object().bucket(&self.bucket).key(key).send().await {
                    Ok(head) => Ok(Some(head.content_length().and_then(|size| u64::try_from(size).ok()).unwrap_or(0))),
                    Err(error) if is_missing(&error) => Ok(None),
                    Err(error) => Err(self.error(format!("HEAD {key}"), error)),
                }
            })
            .await
        }

        async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>> {
            repeat(|| async {
                let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
                let page = request
                    .set_start_after(after.map(str::to_owned))
                    .send()
                    .await
                    .map_err(|error| self.error(format!("LIST {prefix}"), error))?;
                Ok(page.contents().iter().filter_map(|object| object.key().map(str::to_owned)).collect())
            })
            .await
        }

        async fn delete(&self, key: &str) -> Result<()> {
            repeat(|| async {
                match self.client.delete_object().bucket(&self.bucket).key(key).send().await {
                    Ok(_) => Ok(()),
                    Err(error) if is_missing(&error) => Ok(()),
                    Err(error) => Err(self.error(format!("DELETE {key}"), error)),
                }
            })
            .await
        }

        async fn check_bucket(&self) -> Result<()> {
            repeat(|| async {
                match self.client.head_bucket().bucket(&self.bucket).send().await {
                    Ok(_) => Ok(()),
                    Err(error) if error.raw_response().is_some_and(|raw| raw.status().as_u16() == 404) => {
                        Err(Error::BucketMissing { bucket: self.bucket.clone(), endpoint: self.endpoint.clone() })
                    }
                    Err(error) => Err(self.error(format!("HEAD bucket {}", self.bucket), error)),
                }
            })
            .await
        }
    }
}
