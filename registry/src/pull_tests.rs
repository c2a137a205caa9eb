//! Pulls from a loopback registry that misbehaves as told.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::Mutex;

use runtime_core::{PullPolicy, RegistryAuth, RegistryAuthType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::image::digest_of;
use crate::layer::tar::tests::{header, with_data};
use crate::{Error, ImageStore, InUse, PullOptions, StoreConfig, Users};

#[path = "refusal_tests.rs"]
mod refusals;

/// What the registry does besides answering.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manners {
    /// Layer bodies end after so many bytes of each answer, though more are announced.
    cut_after: Option<usize>,
    ignore_range: bool,
    /// Layer bodies come in chunks, and no last chunk ends them.
    endless: bool,
    /// An answer of the network's own to every request, as from a proxy.
    page: Option<&'static str>,
    /// Layers are somebody else's: a redirect there.
    redirect_to: Option<String>,
    wants_basic: bool,
    /// Layers are given to who has a token from there.
    token_service: Option<String>,
    /// Tokens from the registry's own `/token`, each good for so many requests.
    token_uses: Option<usize>,
    /// Other bytes than the digest says.
    lie: bool,
    /// The image's configuration has other diff IDs than its layers.
    other_diff_ids: bool,
    /// The upper layer is another than the one its configuration names.
    other_top: bool,
    /// Documents are followed by so many spaces.
    padding: usize,
    /// An answer stops after so many bytes, and its connection stays open.
    silent_after: Option<usize>,
    /// Answers with this status, whatever it is asked.
    status: Option<&'static str>,
    /// Layer bodies go on after the size that the manifest has.
    too_long: bool,
    /// The upper layer is no archive.
    no_archive: bool,
    /// The upper layer is 300 MiB of zeros, in some 30 KiB.
    zeros: bool,
}

impl Manners {
    pub(crate) fn lying() -> Self {
        Self { lie: true, ..Self::default() }
    }
}

/// Tokens given out, and requests that the last one was used for.
#[derive(Debug, Default)]
struct Tokens(Mutex<(usize, usize)>);

pub(crate) struct Registry {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Registry {
    pub(crate) fn count(&self, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|request| request.contains(part)).count()
    }

    /// From now on nobody answers.
    pub(crate) async fn close(self) {
        self.serving.abort();
        let _ = self.serving.await;
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer with a file of so many MiB of zeros.
fn zeros(mebibytes: u64) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&header(b"zeros", b'0', mebibytes << 20, |_| {})).unwrap();
    for _ in 0..mebibytes {
        encoder.write_all(&[0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap()
}

/// Two layers: one that lists all it has, one that needs the one below.
fn image(manners: &Manners) -> (HashMap<String, Vec<u8>>, Vec<String>) {
    let mut state = 1u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let data: Vec<u8> = (0..200_000).map(|_| random()).collect();
    let bottom = [
        header(b"./", b'5', 0, |_| {}),
        header(b"d/", b'5', 0, |_| {}),
        with_data(header(b"d/f", b'0', data.len() as u64, |_| {}), &data),
    ];
    let top = [header(b"d/.wh.f", b'0', 0, |_| {}), with_data(header(b"d/g", b'0', 1, |_| {}), b"g")];
    let top = if manners.no_archive { vec![b'x'; 2000] } else { top.concat() };
    let tars = [bottom.concat(), top];
    let mut blobs: Vec<Vec<u8>> = tars.iter().map(|tar| gzip(tar)).collect();
    if manners.zeros {
        blobs[1] = zeros(300);
    }
    if manners.other_top {
        blobs[1] = gzip(&with_data(header(b"junk", b'0', 1, |_| {}), b"j"));
    }
    let of_diff = |tar: &Vec<u8>| digest_of(if manners.other_diff_ids { b"other" } else { tar });
    let diff_ids: Vec<String> = tars.iter().map(|tar| format!("\"{}\"", of_diff(tar))).collect();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        crate::platform::Platform::host().architecture,
        diff_ids.join(",")
    );
    let descriptor = |kind: &str, blob: &[u8]| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{}","size":{}}}"#,
            digest_of(blob),
            blob.len()
        )
    };
    let layers: Vec<String> = blobs.iter().map(|blob| descriptor("layer.v1.tar+gzip", blob)).collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
        crate::manifest::OCI_MANIFEST,
        descriptor("config.v1+json", config.as_bytes()),
        layers.join(",")
    );
    let layer_digests = blobs.iter().map(|blob| digest_of(blob)).collect();
    let mut content: HashMap<String, Vec<u8>> = blobs
        .into_iter()
        .chain([config.into_bytes()])
        .map(|blob| (format!("/v2/x/blobs/{}", digest_of(&blob)), blob))
        .collect();
    content.insert("/v2/x/manifests/latest".into(), manifest.into_bytes());
    (content, layer_digests)
}

pub(crate) async fn serve(manners: Manners) -> Registry {
    let (content, layers) = image(&manners);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let tokens = Arc::new(Tokens::default());
    let serving = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (content, layers, manners) = (content.clone(), layers.clone(), manners.clone());
            let (record, tokens) = (Arc::clone(&record), Arc::clone(&tokens));
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => return,
                    }
                }
                let request = String::from_utf8(request).unwrap().to_lowercase();
                record.lock().unwrap().push(request.clone());
                let answer = answer(&request, &content, &layers, &manners, &tokens);
                let heard = manners.silent_after.map_or(answer.len(), |most| most.min(answer.len()));
                let _ = socket.write_all(&answer[..heard]).await;
                if heard < answer.len() {
                    // Until the other side gives up.
                    let _ = socket.read_u8().await;
                }
            });
        }
    });
    Registry { address, seen, serving }
}

fn answer(
    request: &str,
    content: &HashMap<String, Vec<u8>>,
    layers: &[String],
    manners: &Manners,
    tokens: &Tokens,
) -> Vec<u8> {
    let path = request.split(' ').nth(1).unwrap_or_default();
    let plain = |status: &str, more: &str| {
        format!("HTTP/1.1 {status}\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n").into_bytes()
    };
    if let Some(status) = manners.status {
        return plain(status, "");
    }
    if let Some(page) = manners.page {
        let length = page.len();
        return format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{page}").into();
    }
    if manners.wants_basic && !request.contains("authorization: basic yjpz") {
        return plain("401 Unauthorized", "www-authenticate: Basic realm=\"x\"\r\n");
    }
    if let Some(uses) = manners.token_uses {
        let mut tokens = tokens.0.lock().unwrap();
        let host = request.split("host: ").nth(1).and_then(|rest| rest.split('\r').next()).unwrap();
        if path.starts_with("/token?") {
            if !request.contains("authorization: basic yjpz") || !path.contains("service=s&scope=repository%3ax%3apull")
            {
                return plain("401 Unauthorized", "");
            }
            *tokens = (tokens.0 + 1, 0);
            let body = format!(r#"{{"token":"t{}.x","expires_in":60}}"#, tokens.0);
            return format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
                .into();
        }
        if tokens.1 >= uses || !request.contains(&format!("authorization: bearer t{}.x", tokens.0)) {
            let challenge = format!(r#"Bearer realm="http://{host}/token",service="s",scope="repository:x:pull""#);
            return plain("401 Unauthorized", &format!("www-authenticate: {challenge}\r\n"));
        }
        tokens.1 += 1;
    }
    let Some(body) = content.get(path) else { return plain("404 Not Found", "") };
    let is_layer = layers.iter().any(|digest| path.ends_with(digest.as_str()));
    if let Some(service) = manners.token_service.as_ref().filter(|_| is_layer) {
        let challenge = format!(r#"Bearer realm="http://{service}/token",service="s",scope="repository:x:pull""#);
        return plain("401 Unauthorized", &format!("www-authenticate: {challenge}\r\n"));
    }
    if let Some(target) = manners.redirect_to.as_ref().filter(|_| is_layer) {
        return plain("307 Temporary Redirect", &format!("location: http://{target}{path}\r\n"));
    }
    let mut body = body.clone();
    if !is_layer {
        body.resize(body.len() + manners.padding, b' ');
    }
    if manners.too_long && is_layer {
        body.extend([0; 100_000]);
    }
    if manners.lie && is_layer {
        let middle = body.len() / 2;
        body[middle] ^= 1;
    }
    let start = request.split("range: bytes=").nth(1).and_then(|rest| rest.split('-').next()?.parse::<usize>().ok());
    let start = start.filter(|_| !manners.ignore_range);
    let body = &body[start.unwrap_or(0)..];
    let status = match start {
        Some(start) => format!("206 Partial Content\r\ncontent-range: bytes {start}-{}/*", start + body.len()),
        None => "200 OK".into(),
    };
    let digest = match path.contains("/manifests/") {
        true => format!("docker-content-digest: {}\r\n", digest_of(body)),
        false => String::new(),
    };
    if manners.endless && is_layer {
        let head = format!("HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n");
        return [format!("{head}{:x}\r\n", body.len()).as_bytes(), body, b"\r\n"].concat();
    }
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{digest}connection: close\r\n\r\n", body.len());
    let mut answer = head.into_bytes();
    if !request.starts_with("head") {
        let length = manners.cut_after.filter(|_| is_layer).map_or(body.len(), |most| most.min(body.len()));
        answer.extend_from_slice(&body[..length]);
    }
    answer
}

pub(crate) struct Root(pub(crate) tempfile::TempDir);

impl Root {
    pub(crate) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: skipped");
            return None;
        }
        Some(Self(tempfile::tempdir().unwrap()))
    }

    pub(crate) fn store(&self) -> ImageStore {
        ImageStore::open(StoreConfig::new(self.0.path().into())).unwrap()
    }

    /// Waits for the threads of other layers of a pull that failed, which may still be ending.
    pub(crate) async fn settled(&self) {
        let begun = std::time::Instant::now();
        while self.left().iter().any(|path| path.contains("tmp-")) {
            assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", self.left());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Everything in the store but its fixed directories and locks.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for directory in [
            "images/blobs/sha256",
            "layers/diff",
            "layers/chain",
            "layers/root",
            "layers/about",
            "layers/dropped",
            "layers",
        ] {
            for entry in std::fs::read_dir(self.0.path().join(directory)).unwrap() {
                left.push(format!("{directory}/{}", entry.unwrap().file_name().to_string_lossy()));
            }
        }
        left.retain(|path| {
            !["diff", "chain", "root", "about", "dropped", "unsynced", "locks", "reserve", "store.lock", "store.gate"]
                .iter()
                .any(|fixed| *path == format!("layers/{fixed}"))
        });
        left
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_once_found_shared_and_removed_whole() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners::default()).await;
    let store = root.store();
    let reference = format!("{}/x", registry.address);
    let never = PullOptions { policy: PullPolicy::Never, ..PullOptions::default() };
    assert_eq!(store.pull(&reference, never.clone()).await.unwrap_err().code(), "image.not_present");
    assert_eq!(registry.count(""), 0, "`never` made a network call");

    let other = root.store();
    let (one, two) =
        tokio::join!(store.pull(&reference, PullOptions::default()), other.pull(&reference, PullOptions::default()));
    let (image, two) = (one.unwrap(), two.unwrap());
    assert_eq!((&image.layers, &image.digest), (&two.layers, &two.digest));
    for layer in image.config.rootfs().diff_ids() {
        assert!(!layer.is_empty());
    }
    let fetched = registry.count("/blobs/");
    assert!(fetched <= 4, "layers were fetched twice: {fetched} blob requests for two layers and a config by two");
    assert_eq!(std::fs::read(image.layers[1].join("d/g")).unwrap(), b"g");

    let before = registry.count("");
    assert_eq!(store.pull(&reference, never).await.unwrap().digest, image.digest);
    assert_eq!(store.find(&image.id[7..19]).await.unwrap().unwrap().digest, image.digest);
    assert_eq!(registry.count(""), before);

    store.tag(&reference, "localhost/y:z").await.unwrap();
    assert_eq!(store.list().await.unwrap().len(), 2);
    let used_by = |reference: &str| -> Arc<Users> {
        let (digest, layers, reference) = (image.digest.clone(), image.layers.clone(), reference.to_owned());
        Arc::new(move || {
            Ok(vec![InUse {
                user: "c".into(),
                reference: reference.clone(),
                digest: digest.clone(),
                layers: layers.clone(),
            }])
        })
    };
    let refused = store.remove(&reference, false, used_by(&image.reference)).await;
    assert_eq!(refused.unwrap_err().code(), "image.in_use", "the name it was created from");
    store.remove(&reference, false, used_by("localhost/y:z")).await.unwrap();
    let refused = store.remove("localhost/y:z", false, used_by(&image.reference)).await;
    assert!(matches!(&refused, Err(Error::InUse { users, .. }) if users == &["c"]), "the last name: {refused:?}");
    store.remove("localhost/y:z", true, used_by("localhost/y:z")).await.unwrap();
    assert!(image.layers.iter().all(|layer| layer.is_dir()), "layers of a running container were removed");
    let blobs = root.left().iter().filter(|path| path.contains("blobs/")).count();
    assert_eq!(blobs, 4, "manifest, config and layers of a container's image stay");
    let removed = store.prune(Arc::new(|| Ok(Vec::new()))).await.unwrap();
    assert!(removed.space_reclaimed > 200_000);
    assert_eq!(root.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_transfer_goes_on_where_it_stopped() {
    let Some(root) = Root::new() else { return };
    for ignore_range in [false, true] {
        let cut_after = Some(if ignore_range { 150_000 } else { 50_000 });
        let registry = serve(Manners { cut_after, ignore_range, ..Manners::default() }).await;
        let result = root.store().pull(&format!("{}/x", registry.address), PullOptions::default()).await;
        if ignore_range {
            // Each answer ends at the same place: no progress, and nothing left behind.
            assert!(result.is_err());
        } else {
            assert!(registry.count("range: bytes=") >= 3, "{result:?}");
            result.unwrap();
        }
        root.settled().await;
        root.store().prune(Arc::new(|| Ok(Vec::new()))).await.unwrap();
        assert_eq!(root.left(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_cut_after_its_last_byte_is_whole() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners { endless: true, ..Manners::default() }).await;
    root.store().pull(&format!("{}/x", registry.address), PullOptions::default()).await.unwrap();
    assert_eq!(registry.count("range: bytes="), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_is_a_digest_mismatch_and_leaves_nothing() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners { lie: true, ..Manners::default() }).await;
    let store = root.store();
    let reference = format!("{}/x", registry.address);
    let error = store.pull(&reference, PullOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), "image.digest_mismatch", "{error}");
    assert!(error.to_string().contains(&reference), "{error}");
    assert!(store.list().await.unwrap().is_empty());
    assert!(!root.left().iter().any(|path| path.starts_with("layers/diff") || path.starts_with("layers/chain")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_wrong_diff_ids_takes_no_layer_from_others() {
    let Some(root) = Root::new() else { return };
    let good = serve(Manners::default()).await;
    let image = root.store().pull(&format!("{}/x", good.address), PullOptions::default()).await.unwrap();
    let of_nobody = Manners { other_diff_ids: true, ..Manners::default() };
    // What it names is no secret, and stands here for another image.
    let of_another = Manners { other_top: true, ..Manners::default() };
    for wrong in [of_nobody, of_another] {
        let wrong = serve(wrong).await;
        for drop_blobs in [false, true] {
            let store = ImageStore::open(StoreConfig { drop_blobs, ..StoreConfig::new(root.0.path().into()) }).unwrap();
            let error = store.pull(&format!("{}/x", wrong.address), PullOptions::default()).await.unwrap_err();
            assert_eq!(error.code(), "image.digest_mismatch", "{error}");
            assert_eq!(store.list().await.unwrap().len(), 1);
            assert_eq!(store.verify(&image.reference).await.unwrap().damaged, [], "a blob of another image is gone");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_follow_a_redirect_to_another_origin() {
    let Some(root) = Root::new() else { return };
    let elsewhere = serve(Manners::default()).await;
    let registry =
        serve(Manners { wants_basic: true, redirect_to: Some(elsewhere.address.clone()), ..Manners::default() }).await;
    let reference = format!("{}/x", registry.address);
    let auth = |password: &str| {
        Some(RegistryAuth { username: "b".into(), password: password.into(), auth_type: RegistryAuthType::Basic })
    };
    let wrong = PullOptions { auth: auth("x"), ..PullOptions::default() };
    assert_eq!(root.store().pull(&reference, wrong).await.unwrap_err().code(), "registry.unauthorized");
    let right = PullOptions { auth: auth("s3cret"), ..PullOptions::default() };
    root.store().pull(&reference, right).await.unwrap();
    assert_eq!(elsewhere.count("/blobs/"), 2);
    assert_eq!(elsewhere.count("authorization"), 0, "the redirect's target was shown the credentials");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_a_redirect_leads_to_cannot_ask_for_the_registrys_credentials() {
    let Some(root) = Root::new() else { return };
    let thief = serve(Manners::default()).await;
    let elsewhere = serve(Manners { token_service: Some(thief.address.clone()), ..Manners::default() }).await;
    let redirect_to = Some(elsewhere.address.clone());
    let registry = serve(Manners { wants_basic: true, redirect_to, ..Manners::default() }).await;
    let error = root.store().pull(&format!("{}/x", registry.address), with_password()).await.unwrap_err();
    assert_eq!(error.code(), "registry.unexpected_answer", "{error}");
    assert!(error.to_string().contains(&elsewhere.address) && error.to_string().contains("401"), "{error}");
    assert_eq!((elsewhere.count("authorization"), thief.count("")), (0, 0), "it was sent the password");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_no_sync_covered_before_a_reboot_is_unpacked_again() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners::default()).await;
    let reference = format!("{}/x", registry.address);
    let image = root.store().pull(&reference, PullOptions::default()).await.unwrap();
    // As after a power cut: the mark of another boot, and a layer whose data never reached the disk.
    let hex = image.layers[0].file_name().unwrap().to_str().unwrap().to_owned();
    let marks = root.0.path().join("layers/unsynced/00000000-0000-0000-0000-000000000000");
    std::fs::create_dir_all(&marks).unwrap();
    std::fs::write(marks.join(format!("diff-{hex}")), b"").unwrap();
    std::fs::write(image.layers[0].join("d/f"), b"").unwrap();
    let before = registry.count("");
    let found = root.store().find(&reference).await.unwrap().unwrap();
    assert_eq!(std::fs::metadata(found.layers[0].join("d/f")).unwrap().len(), 200_000);
    assert_eq!(registry.count(""), before, "the blob was here");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_sees_to_it_that_what_was_pulled_long_ago_is_synced() {
    let Some(root) = Root::new() else { return };
    drop(root.store());
    let boot = crate::durability::boot_id().unwrap();
    let marks = root.0.path().join("layers/unsynced").join(boot);
    std::fs::create_dir_all(&marks).unwrap();
    let marked = |digit: &str| marks.join(format!("diff-{}", digit.repeat(64)));
    let (mark, of_none_yet) = (marked("0"), marked("1"));
    std::fs::create_dir(root.0.path().join("layers/diff").join("0".repeat(64))).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
    for mark in [&mark, &of_none_yet] {
        std::fs::File::create(mark).unwrap().set_modified(old).unwrap();
    }
    // Commands end as soon as they are done, and with them what they do in the background.
    let store = root.store();
    // It waits half a second for that at most.
    let begin = std::time::Instant::now();
    while mark.exists() {
        assert!(begin.elapsed() < std::time::Duration::from_secs(60), "it is not synced");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // The layer of this one may appear any moment, and that sync has not covered it.
    assert!(of_none_yet.exists());
    drop(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containers_layers_are_made_again_where_they_were_or_the_image_is_named() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners::default()).await;
    let store = root.store();
    let image = store.pull(&format!("{}/x", registry.address), PullOptions::default()).await.unwrap();
    assert_eq!(store.layers_of(&image.digest, &image.layers).await.unwrap(), image.layers);
    for layer in &image.layers {
        std::fs::remove_dir_all(layer).unwrap();
    }
    assert_eq!(store.layers_of(&image.digest, &image.layers).await.unwrap(), image.layers);
    assert!(image.layers.iter().all(|layer| layer.is_dir()));
    // Of a loaded image, or one whose tag has another one by now, there may be no blobs either.
    store.remove(&image.reference, false, Arc::new(|| Ok(Vec::new()))).await.unwrap();
    let error = store.layers_of(&image.digest, &image.layers).await.unwrap_err();
    assert!(error.code() == "image.not_present" && error.to_string().contains(&image.digest), "{error}");
}

fn with_password() -> PullOptions {
    let auth = RegistryAuth { username: "b".into(), password: "s3cret".into(), auth_type: RegistryAuthType::Basic };
    PullOptions { auth: Some(auth), ..PullOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_in_the_middle_of_a_pull_is_renewed() {
    let Some(root) = Root::new() else { return };
    // Cuts make for more requests: the token of one is not good for the next.
    let manners = Manners { token_uses: Some(1), cut_after: Some(50_000), ..Manners::default() };
    let registry = serve(manners).await;
    let reference = format!("{}/x", registry.address);
    let refused = root.store().pull(&reference, PullOptions::default()).await.unwrap_err();
    assert_eq!(refused.code(), "registry.unauthorized");
    let mut config = StoreConfig::new(root.0.path().into());
    // One request at a time: a token that another request used up is no expiry.
    config.limits.concurrent_layers = 1;
    ImageStore::open(config).unwrap().pull(&reference, with_password()).await.unwrap();
    assert!(registry.count("get /token?") >= 5, "{} tokens", registry.count("get /token?"));
    let shown = registry.seen.lock().unwrap().iter().filter(|r| r.contains("/v2/") && r.contains("basic")).count();
    assert_eq!(shown, 0, "the registry was shown the password that only its token service wants");
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_come_first_and_one_that_fails_is_passed_over() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners { wants_basic: true, ..Manners::default() }).await;
    let good = serve(Manners::default()).await;
    let lying = serve(Manners { lie: true, ..Manners::default() }).await;
    let reference = format!("{}/x", registry.address);
    let pull = async |mirrors: Vec<String>| {
        let fresh = tempfile::tempdir_in(root.0.path()).unwrap();
        let mut config = StoreConfig::new(fresh.path().into());
        let own = crate::RegistryConfig { mirrors, ..crate::RegistryConfig::default() };
        config.registries.insert(registry.address.clone(), own);
        let pulled = ImageStore::open(config).unwrap().pull(&reference, with_password()).await.unwrap();
        assert_eq!(pulled.reference, format!("{reference}:latest"), "it is named after the registry");
    };
    pull(vec!["127.0.0.1:1".into(), good.address.clone()]).await;
    assert_eq!(registry.count(""), 0, "the mirror had all");
    assert!(good.count("/blobs/") >= 3);
    pull(vec!["127.0.0.1:1".into()]).await;
    assert!(registry.count("/blobs/") >= 3);
    let before = registry.count("/blobs/");
    pull(vec![lying.address.clone()]).await;
    assert!(lying.count("/blobs/") > 0 && registry.count("/blobs/") > before);
    // One that always cuts at the same byte, and one that is no registry at all.
    for manners in [
        Manners { cut_after: Some(1000), ignore_range: true, ..Manners::default() },
        Manners { page: Some("<html>log in to the network</html>"), ..Manners::default() },
    ] {
        let bad = serve(manners).await;
        let before = registry.count("/blobs/");
        pull(vec![bad.address.clone()]).await;
        assert!(bad.count("") > 0 && registry.count("/blobs/") > before);
    }
    assert_eq!(
        good.count("authorization") + lying.count("authorization"),
        0,
        "the registry's password went to a mirror"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_larger_than_allowed_are_refused_and_leave_nothing() {
    let Some(root) = Root::new() else { return };
    let limit = usize::try_from(crate::limits::MAX_MANIFEST_BYTES).unwrap();
    let registry = serve(Manners { padding: limit, ..Manners::default() }).await;
    let error = root.store().pull(&format!("{}/x", registry.address), PullOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), "image.too_large", "{error}");
    assert_eq!(root.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_beyond_the_limits_are_refused_and_leave_nothing() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners::default()).await;
    let reference = format!("{}/x", registry.address);
    let limits = |change: fn(&mut crate::Limits)| {
        let mut limits = crate::Limits::default();
        change(&mut limits);
        limits
    };
    for (what, limits) in [
        ("layers", limits(|l| l.layers = 1)),
        ("blob", limits(|l| l.blob_bytes = 100_000)),
        ("bytes", limits(|l| l.layer_bytes = 100_000)),
        ("entries", limits(|l| l.layer_entries = 2)),
        ("config", limits(|l| l.config_bytes = 10)),
        ("manifest", limits(|l| l.manifest_bytes = 10)),
        ("depth", limits(|l| l.path_depth = 1)),
    ] {
        let fresh = tempfile::tempdir_in(root.0.path()).unwrap();
        let mut config = StoreConfig::new(fresh.path().into());
        config.limits = limits;
        let store = ImageStore::open(config).unwrap();
        let error = store.pull(&reference, PullOptions::default()).await.unwrap_err();
        assert_eq!(error.code(), "image.too_large", "{what}: {error}");
        let fresh = Root(fresh);
        fresh.settled().await;
        store.prune(Arc::new(|| Ok(Vec::new()))).await.unwrap();
        assert_eq!(fresh.left(), Vec::<String>::new(), "{what}");
    }
}
