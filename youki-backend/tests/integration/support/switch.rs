//! A server that can be put out of order: switched off, hanging, slow, or deaf to requests of a kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::Case;
use super::root::Root;

/// As fast as it goes.
const FULL_SPEED: u64 = u64::MAX;
/// All of them.
const NO_LIMIT: usize = usize::MAX;
/// What a slow line takes at once.
const PIECE_BYTES: usize = 8 << 10;
/// As little as the kernel allows to stand between a sender and a slow line.
const SOCKET_BUFFER_BYTES: u32 = 16 << 10;

/// A way to one of the suite's servers, with an address of its own.
pub struct Switch {
    port: u16,
    upstream: String,
    bytes_per_second: Arc<AtomicU64>,
    /// Requests to delete that are still passed on.
    deletions: Arc<AtomicUsize>,
    task: Option<JoinHandle<()>>,
    /// While it is on, or hangs.
    listening: Option<std::net::TcpListener>,
    /// Keeps the port from being given to somebody's connection while nothing listens.
    _bound: TcpSocket,
}

impl Case {
    /// A root whose way to S3 is a switch that is on, and that has no keeper.
    pub async fn root_with_switch(&self, word: &str, prefix: &str) -> (Root, Switch) {
        let mut root = self.root_with_s3(word, prefix).await;
        root.keeper = false;
        let location = root.s3.as_mut().expect("a root with S3");
        let switch = Switch::before(&location.endpoint).await;
        location.endpoint = switch.endpoint();
        (root, switch)
    }
}

impl Switch {
    /// One that is on.
    pub async fn before(endpoint: &str) -> Self {
        let mut switch = Self::off(endpoint);
        switch.turn_on().await;
        switch
    }

    fn off(upstream: &str) -> Self {
        let bound = bound(0);
        let port = bound.local_addr().unwrap().port();
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let (bytes_per_second, deletions) =
            (Arc::new(AtomicU64::new(FULL_SPEED)), Arc::new(AtomicUsize::new(NO_LIMIT)));
        Self { port, upstream, bytes_per_second, deletions, task: None, listening: None, _bound: bound }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub async fn turn_on(&mut self) {
        self.turn_off().await;
        self.bytes_per_second.store(FULL_SPEED, Ordering::Relaxed);
        self.deletions.store(NO_LIMIT, Ordering::Relaxed);
        let (listener, upstream, rate) = (self.listen(), self.upstream.clone(), self.bytes_per_second.clone());
        let deletions = self.deletions.clone();
        self.task = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (upstream, rate, deletions) = (upstream.clone(), rate.clone(), deletions.clone());
                connections.spawn(async move {
                    if let Ok(far) = TcpStream::connect(upstream).await {
                        let (near, far) = (near.into_split(), far.into_split());
                        tokio::join!(pass(near.0, far.1, &rate, Some(&deletions)), pass(far.0, near.1, &rate, None));
                    }
                });
            }
        }));
    }

    /// From now on each connection passes this much, in each direction.
    pub fn slow(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// After so many more requests to delete it has no ear for any.
    pub fn let_delete(&self, requests: usize) {
        self.deletions.store(requests, Ordering::Relaxed);
    }

    /// Takes connections, and answers nothing.
    pub async fn hang(&mut self) {
        self.turn_off().await;
        let listener = self.listen();
        self.task = Some(tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.push(connection);
            }
        }));
    }

    /// Cuts every connection and refuses new ones.
    pub async fn turn_off(&mut self) {
        if let Some(listening) = self.listening.take() {
            // Closed, it would listen on for as long as some process that was just forked has it, too.
            rustix::net::shutdown(&listening, rustix::net::Shutdown::Both).unwrap();
        }
        if let Some(task) = self.task.take() {
            task.abort();
            let _aborted = task.await;
        }
    }

    fn listen(&mut self) -> TcpListener {
        let socket = bound(self.port);
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES).unwrap();
        let listening = socket.listen(128).unwrap().into_std().unwrap();
        self.listening = Some(listening.try_clone().unwrap());
        TcpListener::from_std(listening).unwrap()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn bound(port: u16) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], port).into()).unwrap();
    socket
}

/// Passes on what comes, until either end closes. Of requests, `deletions` to delete.
async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    rate: &AtomicU64,
    deletions: Option<&AtomicUsize>,
) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        // A request begins a piece: the next one is written when the one before it was answered.
        if let Some(deletions) = deletions.filter(|_| piece[..length].starts_with(b"DELETE "))
            && deletions.load(Ordering::Relaxed) != NO_LIMIT
            && deletions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
        {
            return std::future::pending().await;
        }
        let rate = rate.load(Ordering::Relaxed);
        if rate != FULL_SPEED {
            tokio::time::sleep(Duration::from_secs_f64(length as f64 / rate as f64)).await;
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
    let _closed_by_either = to.shutdown().await;
}
