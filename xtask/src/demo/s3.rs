//! An S3 endpoint in process: s3s-fs, made honest about conditions.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use hyper::Method;
use hyper::header::{IF_MATCH, IF_NONE_MATCH};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::sync::Mutex;

use super::serve;

/// Serves the directory `dir`, one bucket a directory, on a free port of 127.0.0.1 until the process ends.
///
/// s3s-fs looks whether an object exists and then writes it, so of two that put the same key if absent both could
/// win. Conditional puts are therefore let through one at a time.
pub(super) async fn start(dir: &Path, (access_key, secret_key): (&str, &str)) -> Result<SocketAddr> {
    let files = s3s_fs::FileSystem::new(dir).map_err(|error| anyhow!("{error:?}"))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
    let (service, one_at_a_time) = (builder.build(), Arc::new(Mutex::new(())));
    serve::on_free_port(move |request| {
        let (service, one_at_a_time) = (service.clone(), one_at_a_time.clone());
        async move {
            let headers = request.headers();
            let conditional = headers.contains_key(IF_NONE_MATCH) || headers.contains_key(IF_MATCH);
            let _turn =
                if conditional && request.method() == Method::PUT { Some(one_at_a_time.lock().await) } else { None };
            service.call(request.map(s3s::Body::from)).await.map_err(|error| anyhow!("{error:?}"))
        }
    })
    .await
}
