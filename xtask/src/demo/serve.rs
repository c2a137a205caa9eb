//! HTTP/1 on a free port of 127.0.0.1.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Answers with `answer` until the process ends. An error of it closes the connection.
pub(super) async fn on_free_port<A, F, B>(answer: A) -> Result<SocketAddr>
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>>> + Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listening on 127.0.0.1")?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            // One that is gone before it is accepted is its own affair.
            let Ok((stream, _)) = listener.accept().await else { continue };
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = answer(request);
                    async move {
                        match answer.await {
                            Ok(response) => Ok(response),
                            Err(error) => {
                                eprintln!("demo: a server's request failed: {error:#}");
                                Err(Failed)
                            }
                        }
                    }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                // Clients close when they like.
                let _closed: Result<(), _> = connection.await;
            });
        }
    });
    Ok(address)
}

/// Why a connection was closed; said already.
#[derive(Debug)]
struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request failed")
    }
}

impl std::error::Error for Failed {}
