//! S3 as an object store.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, ConfigBag, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::ServerSideEncryption;
use bytes::{Bytes, BytesMut};
use rand::Rng;

use super::patience::{Experience, Motion, ONLY_ANSWER, Silence, ToldBody};
use super::{Listed, ObjectStore, Put};
use crate::config::S3Config;
use crate::error::{Error, Result, Source};

/// A server that does not accept a connection in this time is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What is no longer than this passes any line in the time that a server has to answer.
const SMALL_BYTES: u64 = 64 << 10;
/// Attempts of a request that was cut off, or that a server is too busy for. With the pauses below they span about
/// three seconds. One that is refused a connection is not repeated, one that meets silence once: who waits is a user, and
/// the keeper has more time.
const ATTEMPTS: u32 = 5;
/// Attempts of a large request that meets silence.
const LARGE_ATTEMPTS: usize = 2;
/// Pause after the first failure; it doubles, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Codes of S3 that say who asked is not who they claim to be, or not any more.
const CREDENTIALS_REFUSED: [&str; 5] =
    ["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"];
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
    experience: Experience,
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
            .disable_read_timeout()
            .disable_operation_timeout()
            .build();
        let mut builder = aws_sdk_s3::config::Builder::from(&shared)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            // Motion is watched here, in both directions.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
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
            experience: Experience::default(),
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
        let status = status_of(&error);
        let s3_code = error.code().unwrap_or_default().to_owned();
        let location = self.location.clone();
        let target = format!("bucket {} at {}", self.bucket, self.endpoint);
        if s3_code == "NoSuchBucket" {
            return Error::BucketMissing { bucket: self.bucket.clone(), endpoint: self.endpoint.clone() };
        }
        match (status, &error) {
            (Some(500.. | 408 | 429), SdkError::ServiceError(_)) => {
                Error::S3Unreachable { operation, location, source: Answer::of(&error) }
            }
            (Some(500.. | 408 | 429), _) | (None, SdkError::TimeoutError(_)) => {
                Error::S3Unreachable { operation, location, source: Box::new(error) }
            }
            (_, SdkError::DispatchFailure(_)) if let Some(why) = lacks_credentials(&error) => {
                Error::S3Credentials { operation, target, source: why.into() }
            }
            (status, SdkError::ServiceError(_))
                if status == Some(401) || CREDENTIALS_REFUSED.contains(&s3_code.as_str()) =>
            {
                Error::S3CredentialsRefused { operation, target, s3_code, source: Answer::of(&error) }
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
                source: match &error {
                    SdkError::ServiceError(_) => Answer::of(&error),
                    _ => Box::new(error),
                },
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

    /// One attempt, which ends when nothing moves.
    async fn wait<T>(&self, operation: &str, motion: &Motion, request: impl Future<Output = Result<T>>) -> Result<T> {
        let tell = || tracing::warn!("waiting for S3 at {} ({operation})", self.location);
        self.experience.wait(motion, request, tell).await.unwrap_or_else(|silence| {
            Err(Error::S3Unreachable {
                operation: operation.to_owned(),
                location: self.location.clone(),
                source: Box::new(silence),
            })
        })
    }

    /// Repeats a small request while its error may pass.
    async fn small<T, F: Future<Output = Result<T>>>(
        &self,
        operation: &str,
        mut request: impl FnMut() -> F,
    ) -> Result<T> {
        let patience = self.experience.of_small();
        self.repeat(patience.len(), |silences| {
            let motion = Motion::within(patience[silences.min(patience.len() - 1)]);
            let request = request();
            async move { self.wait(operation, &motion, request).await }
        })
        .await
    }

    /// Repeats `attempt` while its error may pass, and until it met as many `silences`; it is told how many so far.
    async fn repeat<T, F: Future<Output = Result<T>>>(
        &self,
        silences: usize,
        mut attempt: impl FnMut(usize) -> F,
    ) -> Result<T> {
        let (mut pause, mut silent) = (FIRST_PAUSE, 0);
        for _ in 1..ATTEMPTS {
            match attempt(silent).await {
                Err(error) if error.is_transient() => {
                    if is_silence(&error) {
                        silent += 1;
                        if silent == silences {
                            return Err(error);
                        }
                        continue;
                    }
                    if refuses_connections(&error) {
                        return Err(error);
                    }
                    tracing::debug!(%error, "request failed, trying again");
                    let jitter = rand::rng().random_range(0.75..1.25);
                    tokio::time::sleep(pause.mul_f64(jitter)).await;
                    pause *= 2;
                }
                done => return done,
            }
        }
        attempt(silent).await
    }

    async fn get_once(
        &self,
        key: &str,
        range: Option<&Range<u64>>,
        limit: usize,
        motion: Option<&Motion>,
    ) -> Result<Option<Bytes>> {
        let mut request = self.client.get_object().bucket(&self.bucket).key(key);
        if let Some(range) = range {
            request = request.range(format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if is_missing(&error) => return Ok(None),
            // The object has become so short that nothing of the range is there (RFC 9110, 15.5.17).
            Err(error) if status_of(&error) == Some(416) => return Ok(Some(Bytes::new())),
            Err(error) => return Err(self.error(format!("GET {key}"), error)),
        };
        let expected = response.content_length().and_then(|length| usize::try_from(length).ok());
        let mut body = response.body;
        let mut bytes = BytesMut::with_capacity(expected.unwrap_or(0).min(limit));
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| self.body_error(key, error))?;
            if let Some(motion) = motion {
                motion.moved();
            }
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
    status_of(error) == Some(404) && error.code() != Some("NoSuchBucket")
}

fn status_of<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// What S3 answered, in its own words: the SDK's error has them as Rust shows values.
#[derive(Debug, thiserror::Error)]
#[error("{message}{}", request.as_ref().map(|id| format!(" (request {id})")).unwrap_or_default())]
struct Answer {
    message: String,
    request: Option<String>,
}

impl Answer {
    fn of<E: ProvideErrorMetadata>(error: &SdkError<E>) -> Source
    where
        SdkError<E>: RequestId,
    {
        let message = error.message().map_or("it did not say why", str::trim).to_owned();
        Box::new(Self { message, request: error.request_id().map(str::to_owned) })
    }
}

/// Why there are no credentials, in one line, if that is it: the SDK tells a failed credential provider from a broken
/// connection only in the text of the causes.
fn lacks_credentials(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut told: Vec<String> = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.is_empty() || text.contains("credential") {
            told.push(text.lines().map(str::trim).collect::<Vec<_>>().join("; ").replace(":; ", ": "));
        }
        cause = error.source();
    }
    (!told.is_empty()).then(|| told.join(": "))
}

/// Nothing moved for too long.
fn is_silence(error: &Error) -> bool {
    has_cause(error, |cause| cause.is::<Silence>())
}

/// Nobody listens there, or nobody is there: asking again at once gets the same answer.
fn refuses_connections(error: &Error) -> bool {
    use std::io::ErrorKind;
    has_cause(error, |cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            )
        })
    })
}

fn has_cause(error: &Error, wanted: impl Fn(&(dyn std::error::Error + 'static)) -> bool) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if wanted(error) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Puts a body that tells of its motion into a request, after it was signed with the same bytes.
#[derive(Debug)]
struct TellOfBody {
    body: Bytes,
    motion: Arc<Motion>,
}

impl Intercept for TellOfBody {
    fn name(&self) -> &'static str {
        "TellOfBody"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let body = ToldBody::new(self.body.clone(), self.motion.clone());
        *context.request_mut().body_mut() = SdkBody::from_body_1_x(body);
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for S3 {
    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let operation = format!("PUT {key}");
        let large = body.len() as u64 > SMALL_BYTES;
        let put = |motion: Option<Arc<Motion>>| {
            let mut request = self.put_request(key, body.clone()).customize();
            if self.unsigned_bodies {
                request = request.disable_payload_signing();
            }
            if let Some(motion) = motion {
                request = request.interceptor(TellOfBody { body: body.clone(), motion });
            }
            async { request.send().await.map(drop).map_err(|error| self.error(format!("PUT {key}"), error)) }
        };
        if !large {
            return self.small(&operation, || put(None)).await;
        }
        // What a silent server was sent is not sent again at once.
        self.repeat(1, |_| async {
            let motion = Arc::new(Motion::sending());
            self.wait(&operation, &motion, put(Some(motion.clone()))).await
        })
        .await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<Put> {
        let operation = format!("PUT {key} if absent");
        let put = async {
            match self.put_request(key, body).if_none_match("*").send().await {
                Ok(_) => Ok(Put::Created),
                Err(error) => match status_of(&error) {
                    Some(409 | 412) => Ok(Put::Exists),
                    _ => Err(self.error(operation.clone(), error)),
                },
            }
        };
        self.wait(&operation, &Motion::within(ONLY_ANSWER), put).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>, limit: usize) -> Result<Option<Bytes>> {
        let operation = format!("GET {key}");
        let most = range.as_ref().map_or(limit as u64, |range| range.end.saturating_sub(range.start));
        if most <= SMALL_BYTES {
            return self.small(&operation, || self.get_once(key, range.as_ref(), limit, None)).await;
        }
        self.repeat(LARGE_ATTEMPTS, |_| async {
            let motion = Motion::receiving();
            self.wait(&operation, &motion, self.get_once(key, range.as_ref(), limit, Some(&motion))).await
        })
        .await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        self.small(&format!("HEAD {key}"), || async {
            match self.client.head_object().bucket(&self.bucket).key(key).send().await {
                Ok(head) => Ok(Some(head.content_length().and_then(|size| u64::try_from(size).ok()).unwrap_or(0))),
                Err(error) if is_missing(&error) => Ok(None),
                Err(error) => Err(self.error(format!("HEAD {key}"), error)),
            }
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>> {
        self.small(&format!("LIST {prefix}"), || async {
            let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            let page = request
                .set_start_after(after.map(str::to_owned))
                .send()
                .await
                .map_err(|error| self.error(format!("LIST {prefix}"), error))?;
            let listed = page.contents().iter().filter_map(|object| {
                let size = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
                Some(Listed { key: object.key()?.to_owned(), size })
            });
            Ok(listed.collect())
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.small(&format!("DELETE {key}"), || async {
            match self.client.delete_object().bucket(&self.bucket).key(key).send().await {
                Ok(_) => Ok(()),
                Err(error) if is_missing(&error) => Ok(()),
                Err(error) => Err(self.error(format!("DELETE {key}"), error)),
            }
        })
        .await
    }

    async fn check_bucket(&self) -> Result<()> {
        let operation = format!("HEAD bucket {}", self.bucket);
        self.small(&operation, || async {
            match self.client.head_bucket().bucket(&self.bucket).send().await {
                Ok(_) => Ok(()),
                Err(error) if status_of(&error) == Some(404) => {
                    Err(Error::BucketMissing { bucket: self.bucket.clone(), endpoint: self.endpoint.clone() })
                }
                // An answer to HEAD has no body, hence no reason.
                Err(error) if matches!(status_of(&error), Some(401 | 403)) => {
                    let request = self.client.list_objects_v2().bucket(&self.bucket).max_keys(1);
                    request.send().await.map(drop).map_err(|error| self.error(operation.clone(), error))
                }
                Err(error) => Err(self.error(operation.clone(), error)),
            }
        })
        .await
    }
}
