//! A token service, and before a real registry a door that lets in who has one of its tokens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What is given for an identity token.
const TOKEN: &str = "a.bought.token";
const SERVICE: &str = "berth-test";
/// Of a request, head and form.
const MOST_BYTES: usize = 64 << 10;

pub struct TokenService {
    address: String,
    sold: Arc<Mutex<Sold>>,
    serving: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Sold {
    tokens: usize,
    /// Requests that were not as they should be.
    refused: Vec<String>,
}

/// What it expects.
struct Door {
    address: String,
    registry: String,
    /// The form that a token is given for.
    form: BTreeMap<String, String>,
    scope: String,
    sold: Arc<Mutex<Sold>>,
}

impl TokenService {
    /// Before `registry`, for who has `identity` and wants to pull `repository`.
    pub async fn before(registry: &str, identity: &str, repository: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let scope = format!("repository:{repository}:pull");
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", "berth"),
            ("service", SERVICE),
            ("scope", &scope),
            ("refresh_token", identity),
        ];
        let form = form.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let sold = Arc::new(Mutex::new(Sold::default()));
        let door = Door { address: address.clone(), registry: registry.to_owned(), form, scope, sold: sold.clone() };
        let door = Arc::new(door);
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let door = door.clone();
                tokio::spawn(async move { door.serve(client).await });
            }
        });
        Self { address, sold, serving }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many tokens were given, and what was refused.
    pub fn sold(&self) -> (usize, Vec<String>) {
        let sold = self.sold.lock().unwrap_or_else(PoisonError::into_inner);
        (sold.tokens, sold.refused.clone())
    }
}

impl Drop for TokenService {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Door {
    /// One request of a connection, which then ends.
    async fn serve(&self, mut client: TcpStream) {
        let Some((head, body)) = read(&mut client).await else { return };
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let answer = if path == "/token" {
            self.token(method, &head, &body)
        } else if has(&head, "authorization", &format!("Bearer {TOKEN}")) {
            return self.pass_on(client, &head).await;
        } else {
            let challenge = format!(
                r#"WWW-Authenticate: Bearer realm="http://{}/token",service="{SERVICE}",scope="{}""#,
                self.address, self.scope
            );
            response("401 Unauthorized", &challenge, "")
        };
        // Who has gone needs no answer.
        let _ = client.write_all(answer.as_bytes()).await;
    }

    fn token(&self, method: &str, head: &str, body: &str) -> String {
        let form = Url::parse(&format!("http://form/?{body}")).expect("a form");
        let pairs: Vec<(String, String)> = form.query_pairs().into_owned().collect();
        let is_form = has(head, "content-type", "application/x-www-form-urlencoded");
        let is_right =
            method == "POST" && is_form && pairs.len() == self.form.len() && self.form == pairs.into_iter().collect();
        let mut sold = self.sold.lock().unwrap_or_else(PoisonError::into_inner);
        if is_right {
            sold.tokens += 1;
            return response("200 OK", "Content-Type: application/json", &format!(r#"{{"access_token":"{TOKEN}"}}"#));
        }
        sold.refused.push(format!("{head}{body}"));
        response("400 Bad Request", "Content-Type: text/plain", "")
    }

    /// To the registry, which asks for nothing, and back.
    async fn pass_on(&self, mut client: TcpStream, head: &str) {
        let mut registry = TcpStream::connect(&self.registry).await.expect("the registry answers");
        let lines = head.trim_end().lines().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let request: String = lines.chain(["Connection: close", ""]).flat_map(|line| [line, "\r\n"]).collect();
        registry.write_all(request.as_bytes()).await.expect("asking the registry");
        let _ = tokio::io::copy(&mut registry, &mut client).await;
    }
}

/// A request's head, and its body as text.
async fn read(client: &mut TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end + 4]).into_owned();
            let length = value(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return Some((head, String::from_utf8_lossy(&bytes[end + 4..end + 4 + length]).into_owned()));
            }
        }
        let read = client.read_buf(&mut bytes).await.ok()?;
        if read == 0 || bytes.len() > MOST_BYTES {
            return None;
        }
    }
}

fn value<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn has(head: &str, name: &str, wanted: &str) -> bool {
    value(head, name) == Some(wanted)
}

fn response(status: &str, field: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{field}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}
