//! Pushes to a loopback registry that answers as told.

use std::sync::{Arc, Mutex};

use runtime_core::{RegistryAuth, RegistryAuthType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::pull::tests::{Manners, Root, serve};
use crate::{ImageStore, PullOptions, PushOptions};

/// What a registry was asked: the head in lower case, and the body.
type Request = (String, Vec<u8>);

/// A registry whose answers are made of the request, the number of requests before it that began alike, and its own address.
async fn registry(
    answer: impl Fn(&str, usize, &str) -> String + Send + Sync + 'static,
) -> (String, Arc<Mutex<Vec<Request>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (seen, own) = (Arc::new(Mutex::new(Vec::<Request>::new())), address.clone());
    let (record, answer) = (Arc::clone(&seen), Arc::new(answer));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (record, answer, own) = (Arc::clone(&record), Arc::clone(&answer), own.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8(head).unwrap().to_lowercase();
                let length = head.split("content-length: ").nth(1).map_or("0", |rest| rest.split('\r').next().unwrap());
                let mut body = vec![0; length.parse().unwrap()];
                socket.read_exact(&mut body).await.unwrap();
                let before = {
                    let mut record = record.lock().unwrap();
                    let method = head.split(' ').next().unwrap();
                    let before = record.iter().filter(|(other, _)| other.starts_with(method)).count();
                    record.push((head.clone(), body));
                    before
                };
                // Whoever has its answer hangs up.
                let _ = socket.write_all(answer(&head, before, &own).as_bytes()).await;
            });
        }
    });
    (address, seen)
}

fn plain(status: &str, more: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn challenge(realm: &str) -> String {
    plain("401 Unauthorized", &format!("www-authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\n"), "")
}

/// A store with an image that is called `x` of the registry at `address`.
async fn store_with(root: &Root, address: &str) -> (ImageStore, String) {
    let (source, store) = (serve(Manners::default()).await, root.store());
    let (pulled, name) = (format!("{}/x", source.address), format!("{address}/x:latest"));
    store.pull(&pulled, PullOptions::default()).await.unwrap();
    store.tag(&pulled, &name).await.unwrap();
    (store, name)
}

fn token(text: &str) -> PushOptions {
    let auth = RegistryAuth { username: String::new(), password: text.to_owned(), auth_type: RegistryAuthType::Token };
    PushOptions { auth: Some(auth), ..PushOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_no_header_can_have_is_refused() {
    let Some(root) = Root::new() else { return };
    let (address, _) = registry(|head, _, own| match head.starts_with("get /token?") {
        true => plain("200 OK", "", r#"{"token":"a\nb"}"#),
        false => challenge(&format!("http://{own}/token")),
    })
    .await;
    let (store, name) = store_with(&root, &address).await;
    for options in [token("a\n"), PushOptions::default()] {
        let error = store.push(&name, options).await.unwrap_err();
        assert_eq!(error.code(), "registry.unauthorized", "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_read_and_not_push_is_told_so_without_the_address_of_an_upload() {
    let Some(root) = Root::new() else { return };
    let (address, _) = registry(|head, _, _| match head.starts_with("head ") {
        true => plain("404 Not Found", "", ""),
        false => plain("403 Forbidden", "", r#"{"errors":[{"code":"DENIED","message":"no right to push"}]}"#),
    })
    .await;
    let (store, name) = store_with(&root, &address).await;
    let error = store.push(&name, PushOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), "registry.unauthorized", "{error}");
    assert!(error.to_string().contains("no right to push") && !error.to_string().contains("uploads"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_go_in_plain_text_to_who_a_registry_names() {
    let Some(root) = Root::new() else { return };
    let (address, seen) = registry(|_, _, _| challenge("http://192.0.2.1/token")).await;
    let (store, name) = store_with(&root, &address).await;
    let (username, password) = ("u".to_owned(), "secret".to_owned());
    let auth = RegistryAuth { username, password, auth_type: RegistryAuthType::Basic };
    let error = store.push(&name, PushOptions { auth: Some(auth), ..PushOptions::default() }).await.unwrap_err();
    assert_eq!(error.code(), "registry.plain_http", "{error}");
    assert!(!seen.lock().unwrap().is_empty());
}

/// The registry is busy, cuts off, and forgets uploads; where it sends the pieces no credentials go; its token is one that
/// may push.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_begun_anew_where_the_registry_loses_it() {
    let Some(root) = Root::new() else { return };
    let (elsewhere, pieces) = registry(|head, before, own| match (head.split(' ').next().unwrap(), before) {
        ("patch", 0) => plain("503 Service Unavailable", "retry-after: 0\r\n", ""),
        ("patch", 1) => plain("404 Not Found", "", ""),
        ("patch", 2) => String::new(),
        ("patch", _) => plain("202 Accepted", &format!("location: http://{own}/up?state=secret\r\n"), ""),
        _ => plain("201 Created", "", ""),
    })
    .await;
    let (address, asked) = registry(move |head, _, own| {
        if head.starts_with("get /token?") {
            assert!(head.contains("scope=repository%3ax%3apull%2cpush"), "{head}");
            return plain("200 OK", "", r#"{"token":"t"}"#);
        }
        if !head.contains("authorization: bearer t\r\n") {
            return challenge(&format!("http://{own}/token"));
        }
        match head.split(' ').next().unwrap() {
            "head" => plain("404 Not Found", "", ""),
            "post" => plain("202 Accepted", &format!("location: http://{elsewhere}/up?state=secret\r\n"), ""),
            _ => plain("201 Created", "", ""),
        }
    })
    .await;
    let (store, name) = store_with(&root, &address).await;
    let digest = store.push(&name, PushOptions::default()).await.unwrap();
    let (pieces, asked) = (pieces.lock().unwrap(), asked.lock().unwrap());
    let manifest = asked.iter().find(|(head, _)| head.starts_with("put /v2/x/manifests/latest ")).unwrap();
    assert_eq!(crate::image::digest_of(&manifest.1), digest);
    assert!(pieces.iter().all(|(head, _)| !head.contains("authorization")), "{pieces:?}");
    let ended: Vec<_> = pieces.iter().filter(|(head, _)| head.starts_with("put ")).collect();
    assert_eq!(ended.len(), 3, "two layers and a configuration: {ended:?}");
    for (head, _) in ended {
        let digest = head.split("digest=sha256%3a").nth(1).unwrap().split(' ').next().unwrap();
        let is_sent = |(head, body): &&Request| {
            let range = format!("content-range: 0-{}\r\n", body.len().saturating_sub(1));
            head.starts_with("patch ") && head.contains(&range) && crate::image::digest_of(body).ends_with(digest)
        };
        assert!(pieces.iter().any(|request| is_sent(&request)), "{head}");
    }
}
