//! Pushes to a loopback registry that answers as told.

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use runtime_core::{RegistryAuth, RegistryAuthType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{Endpoint, HttpClients};
use crate::credentials::Credentials;
use crate::manifest::Descriptor;
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

/// The registry is busy, cuts off, and forgets uploads; where it has the blobs sent no credentials go; its token is one that
/// may push.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_begun_anew_where_the_registry_loses_it() {
    let Some(root) = Root::new() else { return };
    let (elsewhere, sent) = registry(|head, before, _| match (head.split(' ').next().unwrap(), before) {
        ("put", 0) => plain("503 Service Unavailable", "retry-after: 0\r\n", ""),
        ("put", 1) => plain("404 Not Found", "", ""),
        ("put", 2) => String::new(),
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
    let (sent, asked) = (sent.lock().unwrap(), asked.lock().unwrap());
    let manifest = asked.iter().find(|(head, _)| head.starts_with("put /v2/x/manifests/latest ")).unwrap();
    assert_eq!(crate::image::digest_of(&manifest.1), digest);
    assert_eq!(sent.len(), 6, "two layers and a configuration, three of them begun anew: {sent:?}");
    for (head, body) in &*sent {
        assert!(head.starts_with("put /up?state=secret&digest=sha256%3a") && !head.contains("authorization"), "{head}");
        let named = head.split("digest=sha256%3a").nth(1).unwrap().split(' ').next().unwrap();
        assert!(crate::image::digest_of(body).ends_with(named), "{head}");
    }
}

/// A large one goes out as it is read; one that stays busy is an error at last.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_one_request_however_large_and_told_as_it_goes() {
    let (address, asked) = registry(|head, before, own| match head.split(' ').next().unwrap() {
        "post" => plain("202 Accepted", &format!("location: http://{own}/up\r\n"), ""),
        "put" if before < 2 => plain("201 Created", "", ""),
        "put" => plain("429 Too Many Requests", "retry-after: 0\r\n", ""),
        _ => plain("404 Not Found", "", ""),
    })
    .await;
    let reference = crate::Reference::parse(&format!("{address}/x")).unwrap();
    let (clients, limits) = (HttpClients::default(), crate::Limits::default());
    let endpoint = Endpoint::new(&clients, Default::default(), limits, &reference, None, Credentials::Anonymous);
    let content: Vec<u8> = (0..3_500_000u32).map(|n| n.to_le_bytes()[0]).collect();
    for content in [&content[..], &[]] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let blob: Descriptor = serde_json::from_value(serde_json::json!({
            "digest": crate::image::digest_of(content), "size": content.len()
        }))
        .unwrap();
        let told = Mutex::new(Vec::new());
        endpoint.send_blob(&blob, file, &|bytes| told.lock().unwrap().push(bytes)).await.unwrap();
        let (head, body) = asked.lock().unwrap().last().unwrap().clone();
        assert!(head.starts_with("put /up?digest=") && body == content, "{head}");
        let told = told.into_inner().unwrap();
        assert!(told.is_sorted() && told.iter().all(|bytes| *bytes <= blob.size), "{told:?}");
        assert_eq!(told.is_empty(), content.is_empty());
    }
    let blob =
        serde_json::from_value(serde_json::json!({ "digest": crate::image::digest_of(b"x"), "size": 1 })).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"x").unwrap();
    let error = endpoint.send_blob(&blob, file, &|_| ()).await.unwrap_err();
    assert!(error.code() == "registry.unexpected_answer" && error.to_string().contains("429"), "{error}");
}
