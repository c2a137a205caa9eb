//! Where one pull asks: the mirrors in their order, then the registry itself.

use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Response;

use crate::client::Endpoint;
use crate::error::{Error, Result};

/// A registry with its mirrors. A mirror that fails, in whatever way, is passed over; the registry's own answer counts.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    mirrors: Vec<Mirror<'a>>,
    registry: Endpoint<'a>,
}

#[derive(Debug)]
struct Mirror<'a> {
    endpoint: Endpoint<'a>,
    /// It is not asked again by this pull.
    given_up: AtomicBool,
}

impl Mirror<'_> {
    fn failed(&self, error: &Error) {
        tracing::info!(mirror = self.endpoint.registry(), %error, "a mirror is passed over");
        if matches!(error, Error::Unreachable { .. } | Error::NoProgress { .. }) {
            self.given_up.store(true, Ordering::Relaxed);
        }
    }
}

impl<'a> Session<'a> {
    pub(crate) fn new(mirrors: Vec<Endpoint<'a>>, registry: Endpoint<'a>) -> Self {
        let mirror = |endpoint| Mirror { endpoint, given_up: AtomicBool::new(false) };
        Self { mirrors: mirrors.into_iter().map(mirror).collect(), registry }
    }

    /// How many layers may be fetched at once, where that is configured.
    pub(crate) fn max_connections(&self) -> Option<usize> {
        self.registry.max_connections()
    }

    fn mirrors(&self) -> impl Iterator<Item = &Mirror<'a>> {
        self.mirrors.iter().filter(|mirror| !mirror.given_up.load(Ordering::Relaxed))
    }

    /// Asks the registry alone from now on; whether that makes a difference.
    pub(crate) fn give_up_mirrors(&self) -> bool {
        let mut any = false;
        for mirror in self.mirrors() {
            any |= !mirror.given_up.swap(true, Ordering::Relaxed);
        }
        any
    }

    /// Asks `endpoint` no more, if it is a mirror; `cut` is what it does again and again.
    pub(crate) fn give_up(&self, endpoint: &Endpoint<'_>, cut: &Error) {
        for mirror in self.mirrors().filter(|mirror| std::ptr::eq(&raw const mirror.endpoint, endpoint)) {
            mirror.failed(cut);
            mirror.given_up.store(true, Ordering::Relaxed);
        }
    }

    /// See [`Endpoint::head_manifest`].
    pub(crate) async fn head_manifest(&self, key: &str) -> Result<Option<String>> {
        for mirror in self.mirrors() {
            match mirror.endpoint.head_manifest(key).await {
                Ok(digest) => return Ok(digest),
                Err(error) => mirror.failed(&error),
            }
        }
        self.registry.head_manifest(key).await
    }

    /// See [`Endpoint::manifest`].
    pub(crate) async fn manifest(&self, key: &str) -> Result<(Vec<u8>, Option<String>)> {
        for mirror in self.mirrors() {
            match mirror.endpoint.manifest(key).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => mirror.failed(&error),
            }
        }
        self.registry.manifest(key).await
    }

    /// See [`Endpoint::small_blob`].
    pub(crate) async fn small_blob(&self, digest: &str, limit: u64) -> Result<Vec<u8>> {
        for mirror in self.mirrors() {
            match mirror.endpoint.small_blob(digest, limit).await {
                Ok(blob) => return Ok(blob),
                Err(error) => mirror.failed(&error),
            }
        }
        self.registry.small_blob(digest, limit).await
    }

    /// See [`Endpoint::blob`]; the response is to be read from the endpoint that is given with it.
    pub(crate) async fn blob(&self, digest: &str, offset: u64) -> Result<(&Endpoint<'a>, Response, u64)> {
        for mirror in self.mirrors() {
            match mirror.endpoint.blob(digest, offset).await {
                Ok((response, begins)) => return Ok((&mirror.endpoint, response, begins)),
                Err(error) => mirror.failed(&error),
            }
        }
        let (response, begins) = self.registry.blob(digest, offset).await?;
        Ok((&self.registry, response, begins))
    }
}
