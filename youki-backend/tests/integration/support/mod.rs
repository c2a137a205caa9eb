//! What the tests stand on: servers, roots, images, agents, and the check that nothing is left.

pub mod agent;
pub mod berth;
pub mod case;
pub mod disk;
pub mod image;
pub mod lanes;
pub mod leftovers;
pub mod pace;
pub mod process;
pub mod root;
pub mod servers;
pub mod share;
pub mod switch;
pub mod terminal;
pub mod token_service;

use std::sync::{Arc, Mutex, OnceLock};

use anyhow::{Context, Result, bail};
use runtime_core::Runtime;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use self::image::Image;
use self::leftovers::Before;
use self::root::Root;
use self::servers::{REGISTRY_PASSWORD, REGISTRY_USER, Registry, S3, Servers};
use self::share::Share;

pub use self::case::Case;

/// What all tests share.
pub struct Suite {
    pub tokio: tokio::runtime::Runtime,
    /// Holds every root, the servers' data and what tests make on the host.
    pub dir: TempDir,
    /// Holds every run directory; on a tmpfs, as in earnest.
    pub run: TempDir,
    pub share: Share,
    /// What the machine had before.
    pub before: Before,
    /// Every root that was opened, for the last check.
    pub roots: Mutex<Vec<Root>>,
    servers: Servers,
    shared: OnceCell<Shared>,
    busybox: OnceCell<String>,
}

/// The root that all tests use which need none of their own.
pub struct Shared {
    pub root: Root,
    pub runtime: Arc<dyn Runtime>,
}

static SUITE: OnceLock<Suite> = OnceLock::new();

/// Settles what the AWS and docker credential chains of this process and its children find, and what signals do to them.
pub fn set_environment() {
    let settings = [
        ("AWS_ACCESS_KEY_ID", servers::S3_ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", servers::S3_SECRET_KEY),
        ("AWS_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("NO_PROXY", "127.0.0.1"),
        // `$E:` of a spec is taken from here.
        ("BERTH_TEST_FROM_THE_AGENT", "seen"),
    ];
    for (name, value) in settings {
        // SAFETY: first thing in main; no other thread exists that could read the environment.
        unsafe { std::env::set_var(name, value) };
    }
    if !agent::is_asked_for() {
        // SAFETY: as above.
        unsafe { std::env::set_var("DOCKER_CONFIG", "/nonexistent/no-credentials") };
        // SAFETY: as above.
        unsafe { std::env::remove_var("REGISTRY_AUTH_FILE") };
    }
    // Who starts the suite in the background may have it ignore these, and so all that it starts.
    for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

impl Suite {
    /// Starts the servers; they come up while the first tests run.
    pub fn start() -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!("these tests make namespaces, mounts and cgroups: run them as root");
        }
        let dir = tempfile::Builder::new().prefix("berth-integration-").tempdir().context("making a directory")?;
        let run = tempfile::Builder::new().prefix("berth-it-").tempdir_in("/run").context("making a directory")?;
        let share = Share::take()?;
        let before = Before::look();
        let servers = Servers::start(dir.path(), &share)?;
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let suite = Self {
            tokio,
            dir,
            run,
            share,
            before,
            roots: Mutex::new(Vec::new()),
            servers,
            shared: OnceCell::new(),
            busybox: OnceCell::new(),
        };
        if SUITE.set(suite).is_err() {
            bail!("the suite was started twice");
        }
        Ok(())
    }

    pub fn get() -> &'static Self {
        SUITE.get().expect("main starts the suite before any test")
    }

    /// Ends the servers and removes the directory: a static is never dropped.
    pub fn end() {
        let suite = Self::get();
        suite.servers.stop();
        for dir in [&suite.dir, &suite.run] {
            if let Err(error) = std::fs::remove_dir_all(dir.path()) {
                eprintln!("integration: removing {}: {error}", dir.path().display());
            }
        }
    }

    /// The runtime that tests share.
    pub async fn shared(&self) -> &Shared {
        self.shared
            .get_or_init(|| async {
                let root = Root::new(self, "shared", Some(self.s3().await.location("shared")));
                let runtime = root.open().await.unwrap_or_else(|error| panic!("opening the shared root: {error}"));
                Shared { root, runtime }
            })
            .await
    }

    /// The same, if a test used it.
    pub fn shared_if_opened(&self) -> Option<&Shared> {
        self.shared.get()
    }

    pub async fn registry(&self) -> &Registry {
        self.servers.registry().await
    }

    /// The same server, asking for [`REGISTRY_USER`] and [`REGISTRY_PASSWORD`].
    pub async fn registry_auth(&self) -> &Registry {
        self.servers.registry_auth().await
    }

    pub async fn s3(&self) -> &S3 {
        self.servers.s3().await
    }

    /// Reference of an image of busybox alone.
    pub async fn busybox(&self) -> &str {
        self.busybox
            .get_or_init(|| async { self.registry().await.push("test/busybox", "latest", &Image::busybox()).await })
            .await
    }
}

/// Credentials that the second registry accepts.
pub fn right_credentials() -> runtime_core::RegistryAuth {
    runtime_core::RegistryAuth {
        username: REGISTRY_USER.into(),
        password: REGISTRY_PASSWORD.into(),
        auth_type: runtime_core::RegistryAuthType::Basic,
    }
}
