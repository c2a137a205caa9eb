//! The contract, sentence by sentence: the conformance suite on Berth, and on Berth with a fault.

mod broken;
mod faults;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use runtime_core::Runtime;
use runtime_core::conformance::{self, Backend, ConfiguredImage, EchoImage, Options, User};
use serde_json::json;
use youki_backend::YoukiRuntime;

use broken::{Broken, Spoils};

use crate::support::case::{Case, shortly};
use crate::support::image::{Image, LayerBuilder};
use crate::support::pace::{patience, repetitions};
use crate::support::root::Root;

crate::tests![berth_keeps_the_contract, each_broken_promise_is_found];

struct Berth {
    root: Root,
    runtime: Mutex<Arc<YoukiRuntime>>,
    image: String,
    configured_image: ConfiguredImage,
    echo_images: Vec<EchoImage>,
}

#[async_trait]
impl Backend for Berth {
    fn name(&self) -> String {
        "Berth".to_owned()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.youki()
    }

    fn image(&self) -> String {
        self.image.clone()
    }

    fn user(&self) -> Option<User> {
        Some(User { name: "app".to_owned(), uid: 1000, gid: 1000 })
    }

    fn echo_images(&self) -> Vec<EchoImage> {
        self.echo_images.clone()
    }

    fn configured_image(&self) -> Option<ConfiguredImage> {
        Some(self.configured_image.clone())
    }

    async fn remove_volume(&self, name: &str) -> runtime_core::Result<()> {
        match self.youki().volumes().remove(name, true, true).await {
            Ok(()) | Err(volumes_s3::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(youki_backend::Error::from(error).into()),
        }
    }

    fn may_prune(&self) -> bool {
        true
    }

    /// The former instance lives on until its last user is done: an agent that is replaced while it still works.
    async fn reopen(&self) -> runtime_core::Result<Option<Arc<dyn Runtime>>> {
        let anew = Arc::new(YoukiRuntime::open(self.root.config()).await?);
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = anew.clone();
        Ok(Some(anew))
    }
}

impl Berth {
    fn youki(&self) -> Arc<YoukiRuntime> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// On a root of the test's own, whose volumes go to S3.
    async fn new(case: &Case) -> Self {
        let root = case.root_with_s3("root", "volumes").await;
        let runtime = Mutex::new(Arc::new(YoukiRuntime::open(root.config()).await.unwrap()));
        let image = case.push("conformance", &Image::busybox()).await;
        let (workdir, volume, uid) = ("/srv/work", "/srv/volume", 1000);
        let configured = Image::busybox()
            .layer(LayerBuilder::new().dir("srv", 0o755).dir("srv/work", 0o755).dir("srv/volume", 0o777).finish())
            .with("Env", json!(["PATH=/bin", "SETTING=of the image"]))
            .with("WorkingDir", json!(workdir))
            .with("User", json!("app"))
            .with("StopSignal", json!("SIGUSR1"))
            .with("Volumes", json!({volume: {}}));
        let configured_image = ConfiguredImage {
            reference: case.push("configured", &configured).await,
            env: ("SETTING".to_owned(), "of the image".to_owned()),
            workdir: workdir.to_owned(),
            uid,
            stop_signal: "USR1",
            volume: volume.to_owned(),
        };
        Self { root, runtime, image, configured_image, echo_images: echo_images(case).await }
    }
}

async fn echo_images(case: &Case) -> Vec<EchoImage> {
    let mut echo_images = Vec::new();
    for (tag, entrypoint, cmd) in [
        ("both", vec!["/bin/echo", "from", "entrypoint"], vec!["and", "cmd"]),
        ("cmd", vec![], vec!["/bin/echo", "from", "cmd"]),
        ("neither", vec![], vec![]),
    ] {
        let made = Image::busybox().with("Entrypoint", json!(entrypoint)).with("Cmd", json!(cmd));
        let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect::<Vec<_>>();
        echo_images.push(EchoImage {
            reference: case.push(tag, &made).await,
            entrypoint: owned(entrypoint),
            cmd: owned(cmd),
            program: "/bin/echo".to_owned(),
        });
    }
    echo_images
}

async fn berth_keeps_the_contract(case: Case) {
    let backend = Arc::new(Berth::new(&case).await);
    let usual = Options::default();
    // Beside all other tests.
    let options = Options { check_timeout: patience(2 * usual.check_timeout), patience: shortly(), ..usual };
    let report = conformance::run(backend.clone(), &options).await;
    println!("{report}");
    assert!(report.is_ok(), "{report}");
    for image in backend.runtime().list_images().await.unwrap() {
        backend.runtime().remove_image(&image.reference, true).await.unwrap();
    }
}

/// Each promise is broken in turn by something between Berth and the suite, which must notice.
async fn each_broken_promise_is_found(case: Case) {
    let berth = Arc::new(Berth::new(&case).await);
    let mut judging = tokio::task::JoinSet::new();
    let mut missed = Vec::new();
    let faults = faults::faults();
    let tried = repetitions(faults.len(), 10); // they are the suite's affair, whatever the machine
    for (number, (checks, spoils)) in faults.into_iter().enumerate().take(tried) {
        if judging.len() >= 10 {
            missed.extend(judging.join_next().await.unwrap().unwrap());
        }
        judging.spawn(missed_by(number, checks, Spoilt::new(berth.clone(), spoils)));
    }
    while let Some(more) = judging.join_next().await {
        missed.extend(more.unwrap());
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    for volume in berth.runtime().list_volumes().await.unwrap() {
        berth.remove_volume(&volume.name).await.unwrap();
    }
}

/// The checks that do not find the fault.
async fn missed_by(number: usize, checks: &[&str], spoilt: Spoilt) -> Vec<String> {
    let backend = Arc::new(spoilt);
    let mut missed = Vec::new();
    for check in checks {
        let usual = Options::default();
        let options = Options {
            prefix: format!("fault-{number}"),
            check_timeout: patience(usual.check_timeout),
            patience: patience(Duration::from_secs(2)),
            only: Some((*check).to_owned()),
            ..usual
        };
        let report = conformance::run(backend.clone(), &options).await;
        if !report.failed().any(|found| found.name == *check) {
            missed.push(format!("fault {number} is not found by {check}:\n{report}"));
        }
    }
    missed
}

/// Berth with a fault.
struct Spoilt {
    berth: Arc<Berth>,
    broken: Arc<Broken>,
}

impl Spoilt {
    fn new(berth: Arc<Berth>, spoils: Spoils) -> Self {
        let broken = Broken::new(berth.runtime(), &berth.image, spoils);
        Self { berth, broken: Arc::new(broken) }
    }
}

#[async_trait]
impl Backend for Spoilt {
    fn name(&self) -> String {
        "Berth with a fault".to_owned()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.broken.clone()
    }

    fn image(&self) -> String {
        self.berth.image()
    }

    fn user(&self) -> Option<User> {
        self.berth.user()
    }

    fn echo_images(&self) -> Vec<EchoImage> {
        self.berth.echo_images()
    }

    fn configured_image(&self) -> Option<ConfiguredImage> {
        self.berth.configured_image()
    }

    fn may_prune(&self) -> bool {
        true
    }
}
