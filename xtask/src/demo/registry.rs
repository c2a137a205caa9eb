//! An OCI distribution registry in memory, of as much as a push and a pull need.
//!
//! The demo's own: `container-registry` 0.3 would serve, but brings axum and a dozen more crates for these few routes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, StatusCode};

use super::image::digest_of;
use super::serve;

/// What has been pushed.
#[derive(Default)]
struct Store {
    blobs: Mutex<HashMap<String, Bytes>>,
    /// By `repository@reference`, under tag and digest.
    manifests: Mutex<HashMap<String, (HeaderValue, Bytes)>>,
}

/// Serves on a free port of 127.0.0.1 until the process ends.
pub(super) async fn start() -> Result<SocketAddr> {
    let store = Arc::new(Store::default());
    serve::on_free_port(move |request| {
        let store = store.clone();
        async move { answer(&store, request).await }
    })
    .await
}

async fn answer(store: &Store, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let Some(path) = path.strip_prefix("/v2/") else { return status(StatusCode::NOT_FOUND) };
    if path.is_empty() {
        return status(StatusCode::OK);
    }
    let is_head = parts.method == Method::HEAD;
    if let Some((repository, digest)) = path.rsplit_once("/blobs/") {
        return match (&parts.method, digest) {
            (&Method::POST, "uploads/") => {
                let location = format!("/v2/{repository}/blobs/uploads/all-in-one");
                Ok(Response::builder().status(StatusCode::ACCEPTED).header(LOCATION, location).body(Full::default())?)
            }
            (&Method::PUT, _) => {
                let content = body.collect().await?.to_bytes();
                let digest = digest_of(&content);
                let asked = parts.uri.query().unwrap_or_default().replace("%3A", ":");
                if !asked.ends_with(&digest) {
                    return status(StatusCode::BAD_REQUEST);
                }
                lock(&store.blobs).insert(digest, content);
                status(StatusCode::CREATED)
            }
            (&Method::GET | &Method::HEAD, digest) => {
                let blob = lock(&store.blobs).get(digest).cloned();
                let kind = HeaderValue::from_static("application/octet-stream");
                blob.map_or_else(|| status(StatusCode::NOT_FOUND), |blob| document(&kind, &blob, is_head))
            }
            _ => status(StatusCode::METHOD_NOT_ALLOWED),
        };
    }
    let Some((repository, reference)) = path.rsplit_once("/manifests/") else { return status(StatusCode::NOT_FOUND) };
    match parts.method {
        Method::PUT => {
            let content = body.collect().await?.to_bytes();
            let kind = parts.headers.get(CONTENT_TYPE).cloned();
            let kind = kind.unwrap_or_else(|| HeaderValue::from_static(super::image::MANIFEST));
            let mut manifests = lock(&store.manifests);
            for name in [reference, &digest_of(&content)] {
                manifests.insert(format!("{repository}@{name}"), (kind.clone(), content.clone()));
            }
            status(StatusCode::CREATED)
        }
        Method::GET | Method::HEAD => {
            let found = lock(&store.manifests).get(&format!("{repository}@{reference}")).cloned();
            found.map_or_else(|| status(StatusCode::NOT_FOUND), |(kind, content)| document(&kind, &content, is_head))
        }
        _ => status(StatusCode::METHOD_NOT_ALLOWED),
    }
}

fn document(kind: &HeaderValue, content: &Bytes, is_head: bool) -> Result<Response<Full<Bytes>>> {
    let answer = Response::builder()
        .header(CONTENT_TYPE, kind)
        .header(CONTENT_LENGTH, content.len())
        .header("Docker-Content-Digest", digest_of(content));
    Ok(answer.body(if is_head { Full::default() } else { Full::new(content.clone()) })?)
}

fn status(status: StatusCode) -> Result<Response<Full<Bytes>>> {
    Ok(Response::builder().status(status).body(Full::default())?)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
