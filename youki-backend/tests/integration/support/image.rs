//! Images made of Debian's static busybox, and a push that speaks the distribution protocol.
//!
//! The demo uses this file too.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Times in layers: the same image has the same digest wherever and whenever it is made.
const MTIME: u64 = 1_700_000_000;

/// A compressed layer with the digest of what is in it.
#[derive(Clone)]
pub struct Layer {
    pub gzip: Vec<u8>,
    pub diff_id: String,
}

/// Writes a layer, entry by entry.
pub struct LayerBuilder(tar::Builder<Vec<u8>>);

/// Layers and the config that goes with them.
#[derive(Clone)]
pub struct Image {
    pub layers: Vec<Layer>,
    /// The config's `config`: Entrypoint, Cmd, Env, User, Volumes, WorkingDir, StopSignal.
    pub config: Value,
    /// `os/arch` as Go names it.
    pub architecture: &'static str,
}

impl LayerBuilder {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, tar::EntryType::Directory, mode, (0, 0), b"")
    }

    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.owned_file(path, mode, (0, 0), content)
    }

    pub fn owned_file(self, path: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        self.entry(path, tar::EntryType::Regular, mode, owner, content)
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(path, tar::EntryType::Link, target)
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(path, tar::EntryType::Symlink, target)
    }

    /// Removes what lower layers have at `path`.
    pub fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').map_or(("", path), |(parent, name)| (parent, name));
        let marker = if parent.is_empty() { format!(".wh.{name}") } else { format!("{parent}/.wh.{name}") };
        self.file(&marker, 0o644, b"")
    }

    /// Hides all that lower layers have in the directory `path`.
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), 0o644, b"")
    }

    pub fn finish(self) -> Layer {
        let tar = self.0.into_inner().expect("writing to memory");
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(1));
        std::io::Write::write_all(&mut gzip, &tar).expect("writing to memory");
        Layer { gzip: gzip.finish().expect("writing to memory"), diff_id: digest_of(&tar) }
    }

    fn header(kind: tar::EntryType, mode: u32, (uid, gid): (u64, u64), size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(MTIME);
        header.set_size(size as u64);
        header
    }

    fn entry(mut self, path: &str, kind: tar::EntryType, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        let mut header = Self::header(kind, mode, owner, content.len());
        self.0.append_data(&mut header, path, content).expect("writing to memory");
        self
    }

    fn link(mut self, path: &str, kind: tar::EntryType, target: &str) -> Self {
        let mut header = Self::header(kind, 0o777, (0, 0), 0);
        self.0.append_link(&mut header, path, target).expect("writing to memory");
        self
    }
}

impl Image {
    /// One layer: busybox with all applets, two users, the usual directories. Its command is `sh`.
    pub fn busybox() -> Self {
        static LAYER: OnceLock<Layer> = OnceLock::new();
        let layer = LAYER.get_or_init(|| busybox_layer().expect("a static busybox (Debian: busybox-static)"));
        Self {
            layers: vec![layer.clone()],
            config: json!({
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["sh"],
            }),
            architecture: if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        }
    }

    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets a key of the config (`Entrypoint`, `User`, …).
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// The config and the manifest, as they are pushed.
    pub fn documents(&self) -> (Vec<u8>, Vec<u8>) {
        let config = json!({
            "created": "2024-01-01T00:00:00Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>()},
            "history": self.layers.iter().map(|_| json!({"created_by": "berth"})).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": self.layers.iter()
                .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer.gzip))
                .collect::<Vec<_>>(),
        });
        (config, manifest.to_string().into_bytes())
    }
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest_of(content), "size": content.len()})
}

pub fn digest_of(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Pushes `image` to `http://HOST` as `repository:tag`; returns the manifest's digest.
pub async fn push(
    client: &reqwest::Client,
    host: &str,
    credentials: Option<(&str, &str)>,
    repository: &str,
    tag: &str,
    image: &Image,
) -> Result<String> {
    let (config, manifest) = image.documents();
    for blob in image.layers.iter().map(|layer| &layer.gzip).chain([&config]) {
        push_blob(client, host, credentials, repository, blob).await?;
    }
    push_manifest(client, host, credentials, repository, tag, MANIFEST, &manifest).await
}

/// Puts a manifest or an index; returns its digest.
pub async fn push_manifest(
    client: &reqwest::Client,
    host: &str,
    credentials: Option<(&str, &str)>,
    repository: &str,
    tag: &str,
    media_type: &str,
    content: &[u8],
) -> Result<String> {
    let url = format!("http://{host}/v2/{repository}/manifests/{tag}");
    let request = client.put(&url).header("Content-Type", media_type).body(content.to_vec());
    let answer = with_credentials(request, credentials).send().await.with_context(|| format!("PUT {url}"))?;
    if !answer.status().is_success() {
        bail!("PUT {url}: {} {}", answer.status(), answer.text().await.unwrap_or_default());
    }
    Ok(digest_of(content))
}

pub async fn push_blob(
    client: &reqwest::Client,
    host: &str,
    credentials: Option<(&str, &str)>,
    repository: &str,
    content: &[u8],
) -> Result<()> {
    let digest = digest_of(content);
    let url = format!("http://{host}/v2/{repository}/blobs/{digest}");
    if with_credentials(client.head(&url), credentials).send().await?.status().is_success() {
        return Ok(());
    }
    let url = format!("http://{host}/v2/{repository}/blobs/uploads/");
    let begun = with_credentials(client.post(&url), credentials).send().await?.error_for_status()?;
    let location = begun.headers().get("Location").context("an upload without Location")?.to_str()?;
    let mut target = begun.url().join(location).context("the upload's Location")?;
    target.query_pairs_mut().append_pair("digest", &digest);
    let request = client.put(target).header("Content-Type", "application/octet-stream").body(content.to_vec());
    with_credentials(request, credentials).send().await?.error_for_status().context("finishing an upload")?;
    Ok(())
}

fn with_credentials(request: reqwest::RequestBuilder, credentials: Option<(&str, &str)>) -> reqwest::RequestBuilder {
    match credentials {
        Some((user, password)) => request.basic_auth(user, Some(password)),
        None => request,
    }
}

fn busybox_layer() -> Result<Layer> {
    let path = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let path = path.context("no /bin/busybox")?;
    let program = std::fs::read(path).with_context(|| format!("reading {path}"))?;
    let list = Command::new(path).arg("--list").output().with_context(|| format!("running {path}"))?;
    let applets = String::from_utf8(list.stdout)?;
    let mut layer = LayerBuilder::new();
    for (dir, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("var", 0o755),
    ] {
        layer = layer.dir(dir, mode);
    }
    layer = layer.file("bin/busybox", 0o755, &program);
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
    let group = "root:x:0:\napp:x:1000:\nwheel:x:10:app\naudio:x:29:app\nnogroup:x:65534:\n";
    Ok(layer.file("etc/passwd", 0o644, passwd.as_bytes()).file("etc/group", 0o644, group.as_bytes()).finish())
}
