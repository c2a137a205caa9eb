//! Where volumes live, here and in S3.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Error, Result};
use crate::retention::Keep;

/// What [`S3Config::sse`] may be.
const ENCRYPTIONS: [&str; 2] = ["AES256", "aws:kms"];

/// Configuration of a [`crate::VolumeStore`].
#[derive(Debug, Clone, Default)]
pub struct VolumesConfig {
    /// `<data root>/volumes`.
    pub root: PathBuf,
    /// What this host (with this data root) is called in claims. Stable over reboots, different on every host.
    pub host: String,
    /// The bucket; without one volumes stay on this host.
    pub s3: Option<S3Config>,
    /// What of a history stays when it is pruned; all of it if `None`.
    pub keep: Option<Keep>,
    /// Who holds a claim renews it every third of this time, and says so in it; one that is not renewed for all of it is
    /// taken over by who wants it and has this set, too. `None`: claims last until they are given back.
    pub take_over_after: Option<Duration>,
    /// For so long what [`crate::VolumeStore::retain`] has decided to delete stays in S3, for who reads it.
    pub prune_grace: Duration,
    /// Whom to ask for the users of a volume whose own state cannot be read: it is not removed beneath them.
    pub mounted_by: Option<MountedBy>,
}

/// From the name of a volume to its users.
type Ask = dyn Fn(&str) -> Vec<String> + Send + Sync;

/// Tells who has a volume mounted, by what is known of the containers themselves.
#[derive(Clone)]
pub struct MountedBy(Arc<Ask>);

impl MountedBy {
    /// `ask` gets the name of a volume; it may block, and runs on a thread that may.
    pub fn new(ask: impl Fn(&str) -> Vec<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    pub(crate) fn ask(&self, volume: &str) -> Vec<String> {
        (self.0)(volume)
    }
}

impl std::fmt::Debug for MountedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MountedBy(..)")
    }
}

impl VolumesConfig {
    /// What a claim of this host says of how long it lasts.
    pub(crate) fn lasts_ms(&self) -> Option<u64> {
        self.take_over_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
    }
}

/// The bucket that generations go to. Credentials come from the usual AWS chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// Name of the bucket. It must exist.
    pub bucket: String,
    /// URL of an S3-compatible server. Given, it also means path style.
    pub endpoint: Option<String>,
    /// Prepended to every key, a `/` between.
    pub prefix: Option<String>,
    /// Region; with an endpoint `us-east-1` if not given, else as the AWS chain has it.
    pub region: Option<String>,
    /// Permits a server that lets several writers win a put-if-absent: two hosts may then both believe they own a
    /// volume.
    pub allow_racy_put: bool,
    /// Server-side encryption asked for with each object: `AES256` or `aws:kms`.
    pub sse: Option<String>,
}

impl S3Config {
    /// Refuses what cannot be meant: no bucket, an endpoint that is no URL of a web server, and text that has no place in a
    /// request. Nothing is asked.
    ///
    /// # Errors
    /// [`Error::Configuration`].
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String, reason: String| Err(Error::Configuration { what, reason });
        if self.bucket.is_empty() {
            return wrong("S3 bucket".into(), "none is named".into());
        }
        // What servers permit beyond AWS's own rules differs; these make another request of it.
        if self.bucket.contains(|c: char| c.is_whitespace() || c.is_control() || "/?#".contains(c)) {
            return wrong(format!("S3 bucket {:?}", self.bucket), "no bucket has such a name".into());
        }
        if let Some(prefix) = self.prefix.as_deref().filter(|prefix| prefix.contains(char::is_control)) {
            return wrong(format!("S3 prefix {prefix:?}"), "it holds a control character".into());
        }
        let in_regions = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if let Some(region) = self.region.as_deref().filter(|region| !region.chars().all(in_regions)) {
            return wrong(format!("S3 region {region:?}"), "no region has such a name".into());
        }
        if let Some(sse) = self.sse.as_deref().filter(|sse| !ENCRYPTIONS.contains(sse)) {
            return wrong(format!("S3 sse {sse:?}"), format!("it is one of {}", ENCRYPTIONS.join(", ")));
        }
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        let what = format!("S3 endpoint {endpoint:?}");
        match Url::parse(endpoint) {
            // What has no scheme may still be read as one: `host:9000`.
            _ if !endpoint.contains("://") => wrong(what, "it has no scheme".into()),
            Err(error) => wrong(what, error.to_string()),
            Ok(url) if !["http", "https"].contains(&url.scheme()) => {
                wrong(what, format!("S3 does not speak {}", url.scheme()))
            }
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                wrong(what, "it has more than host, port and path".into())
            }
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                // Not quoted: it holds a secret.
                wrong("S3 endpoint".into(), "credentials do not belong in it".into())
            }
            Ok(_) => Ok(()),
        }
    }

    /// The endpoint and bucket as messages name them.
    pub(crate) fn location(&self) -> String {
        format!("{}/{}", self.endpoint.as_deref().unwrap_or("s3://"), self.bucket)
    }

    /// The way to a place of volumes. Several may lead to one: which place it is, the place itself tells.
    pub(crate) fn address(&self) -> String {
        let endpoint = self.endpoint.as_deref().unwrap_or("aws").trim_end_matches('/');
        format!("{endpoint}|{}|{}", self.bucket, self.key_prefix())
    }

    /// The prefix of every key, with its `/`, or nothing.
    pub(crate) fn key_prefix(&self) -> String {
        match self.prefix.as_deref().map(|prefix| prefix.trim_matches('/')) {
            None | Some("") => String::new(),
            Some(prefix) => format!("{prefix}/"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_is_none_is_refused_and_no_secret_is_quoted() {
        let config = |endpoint: &str| S3Config {
            bucket: "b".into(),
            endpoint: Some(endpoint.to_owned()).filter(|text| text != "none"),
            ..S3Config::default()
        };
        for good in ["none", "http://127.0.0.1:9000", "https://s3.example.net", "HTTPS://h/base/", "http://[::1]:9"] {
            config(good).check().unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in [
            "",
            "ftp://x",
            "s3.example.net",
            "localhost:9000",
            "http://",
            "http://h:port",
            "http://a b",
            "http://h?x=1",
        ] {
            let error = config(bad).check().unwrap_err();
            assert!(error.code() == "config.invalid" && error.hint().is_some(), "{bad}: {error}");
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        let text = config("http://user:geheim@h").check().unwrap_err().to_string();
        assert!(!text.contains("geheim"), "{text}");
        for (bad, named) in [
            (S3Config { bucket: "a b".into(), ..config("http://h") }, "bucket \"a b\""),
            (S3Config { bucket: "a/b".into(), ..config("http://h") }, "bucket \"a/b\""),
            (S3Config { prefix: Some("a\nb".into()), ..config("http://h") }, "prefix \"a\\nb\""),
            (S3Config { region: Some("mars/1".into()), ..config("http://h") }, "region \"mars/1\""),
            (S3Config { sse: Some("rot13".into()), ..config("http://h") }, "sse \"rot13\""),
        ] {
            let error = bad.check().unwrap_err();
            assert!(error.code() == "config.invalid" && error.to_string().contains(named), "{error}");
        }
        let nameless = S3Config { bucket: String::new(), ..config("http://h") };
        assert!(nameless.check().unwrap_err().to_string().contains("bucket"));
    }
}
