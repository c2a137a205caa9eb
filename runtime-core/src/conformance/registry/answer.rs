//! What the suite's registry answers: HTTP, one request a connection.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::image::digest_of;
use super::{Shared, State};

/// How a client begins that speaks TLS: it is hung up on at once, and comes again without.
const TLS_HANDSHAKE: u8 = 22;
/// Longest head of a request that is read.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Longest body.
const MAX_BODY_BYTES: usize = 64 << 20;
const JSON: &str = "application/json";
const UPLOADS: &str = "/blobs/uploads/";

struct Request {
    method: String,
    path: String,
    /// What follows the question mark.
    query: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(one, _)| one.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

struct Answer {
    status: &'static str,
    kind: String,
    /// Lines of its head.
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: &'static str, kind: &str, body: Vec<u8>) -> Self {
        Self { status, kind: kind.to_owned(), headers: Vec::new(), body }
    }

    fn error(status: &'static str, code: &str) -> Self {
        Self::new(status, JSON, format!(r#"{{"errors":[{{"code":"{code}","message":"no"}}]}}"#).into_bytes())
    }

    fn with(mut self, header: String) -> Self {
        self.headers.push(header);
        self
    }
}

pub(super) async fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let Some(request) = read(&mut stream).await? else { return Ok(()) };
    let answer = find(&mut shared.state(), &request);
    let mut head = format!(
        "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n",
        answer.status,
        answer.kind,
        answer.body.len(),
    );
    answer.headers.iter().for_each(|line| head += &format!("{line}\r\n"));
    stream.write_all((head + "\r\n").as_bytes()).await?;
    if request.method == "HEAD" {
        return stream.shutdown().await;
    }
    let (body, mut flows) = (answer.body, shared.flows.subscribe());
    let is_blob = request.method == "GET" && request.path.contains("/blobs/");
    let at_once = if *flows.borrow() || !is_blob { body.len() } else { body.len() / 2 };
    stream.write_all(&body[..at_once]).await?;
    if at_once < body.len() {
        stream.flush().await?;
        shared.state().held_back += 1;
        let mut more = [0];
        tokio::select! {
            _ = flows.wait_for(|flows| *flows) => {} // it fails only with the registry
            _ = stream.read(&mut more) => {
                shared.state().given_up += 1;
                return Ok(());
            }
        }
        stream.write_all(&body[at_once..]).await?;
    }
    stream.shutdown().await
}

/// A request; `None` where there is none that is understood.
async fn read(stream: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|bytes: &[u8]| bytes == b"\r\n\r\n") {
            break end;
        }
        if bytes.len() > MAX_HEAD_BYTES || stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
        if bytes.first() == Some(&TLS_HANDSHAKE) {
            stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nthis is plain HTTP\n").await?;
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.replace("%3A", ":").replace("%3a", ":"),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        body: bytes.split_off(end + 4),
    };
    if request.header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let is_chunked = request.header("transfer-encoding").is_some_and(|kind| kind.contains("chunked"));
    let length: usize = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    loop {
        let whole = if is_chunked { unchunked(&request.body) } else { request.body.get(..length).map(<[u8]>::to_vec) };
        if let Some(body) = whole {
            request.body = body;
            return Ok(Some(request));
        }
        if request.body.len() > MAX_BODY_BYTES || stream.read_buf(&mut request.body).await? == 0 {
            return Ok(None);
        }
    }
}

/// What chunks hold, once the last is there.
fn unchunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(end + 2..)?.get(..size)?);
        bytes = bytes.get(end + 2 + size + 2..)?;
    }
}

fn find(state: &mut State, request: &Request) -> Answer {
    let told = request.header("authorization").map(str::to_owned);
    let refused = state.wanted.is_some() && state.wanted != told;
    state.credentials.push(told);
    state.paths.push(request.path.clone());
    if refused {
        let realm = "WWW-Authenticate: Basic realm=\"conformance\"".to_owned();
        return Answer::error("401 Unauthorized", "UNAUTHORIZED").with(realm);
    }
    match request.method.as_str() {
        "POST" | "PATCH" | "PUT" => take(state, request),
        _ => give(state, &request.path),
    }
}

fn give(state: &State, path: &str) -> Answer {
    let last = path.rsplit('/').next().unwrap_or_default();
    let found = match path {
        "/v2/" => Some((JSON.to_owned(), b"{}".to_vec())),
        _ if path.contains("/manifests/") => state.manifests.get(last).cloned(),
        _ if path.contains("/blobs/") => {
            state.blobs.get(last).map(|found| ("application/octet-stream".to_owned(), found.clone()))
        }
        _ => None,
    };
    match found {
        Some((kind, body)) => {
            let digest = format!("Docker-Content-Digest: {}", digest_of(&body));
            Answer::new("200 OK", &kind, body).with(digest)
        }
        None => Answer::error("404 Not Found", "MANIFEST_UNKNOWN"),
    }
}

/// Takes what is pushed: blobs whole or in pieces, and manifests whose blobs are there.
fn take(state: &mut State, request: &Request) -> Answer {
    let (path, body) = (&request.path, &request.body);
    if let Some((_, name)) = path.split_once("/manifests/") {
        let (digest, kind) = (digest_of(body), request.header("content-type").unwrap_or(JSON).to_owned());
        let manifest: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let mut blobs = layers.chain([&manifest["config"]]).filter_map(|one| one["digest"].as_str());
        if !blobs.all(|blob| state.blobs.contains_key(blob)) {
            return Answer::error("400 Bad Request", "MANIFEST_BLOB_UNKNOWN");
        }
        for name in [name, &digest] {
            state.manifests.insert(name.to_owned(), (kind.clone(), body.clone()));
        }
        return Answer::new("201 Created", JSON, Vec::new()).with(format!("Docker-Content-Digest: {digest}"));
    }
    let Some((repository, number)) = path.split_once(UPLOADS) else {
        return Answer::error("404 Not Found", "UNSUPPORTED");
    };
    let number = number.parse().unwrap_or(state.uploads.len());
    let upload = state.uploads.entry(number).or_default();
    upload.extend_from_slice(body);
    let location = format!("Location: {repository}{UPLOADS}{number}");
    let Some(digest) = request.query.split('&').find_map(|part| part.strip_prefix("digest=")) else {
        let range = format!("Range: 0-{}", upload.len().saturating_sub(1));
        return Answer::new("202 Accepted", JSON, Vec::new()).with(location).with(range);
    };
    let blob = std::mem::take(upload);
    if digest_of(&blob) != digest {
        return Answer::error("400 Bad Request", "DIGEST_INVALID");
    }
    state.blobs.insert(digest.to_owned(), blob);
    Answer::new("201 Created", JSON, Vec::new())
        .with(format!("Location: {repository}/blobs/{digest}"))
        .with(format!("Docker-Content-Digest: {digest}"))
}
