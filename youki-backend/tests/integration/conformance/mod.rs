//! The contract, sentence by sentence: the conformance suite on Berth, and on Berth with a fault.

mod broken;
mod faults;
mod further;
mod spoils;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use runtime_core::conformance::{self, Backend, ConfiguredImage, EchoImage, Options, Report, User};
use runtime_core::{AgentError, Runtime, Secret, SecretsProvider};
use serde_json::json;
use youki_backend::{Config, YoukiRuntime};

use broken::Broken;
use spoils::Spoils;

use crate::support::case::{Case, shortly};
use crate::support::image::{Image, LayerBuilder};
use crate::support::pace::{is_slow, patience, repetitions};
use crate::support::root::Root;

crate::tests![berth_keeps_the_contract, each_broken_promise_is_found];

/// The checks that Berth passes by saying that it does not do this, and why. Each must be so, and no other may.
fn berth_has_not() -> Vec<(&'static str, &'static str)> {
    let mut known = vec![
        ("storage.s3", "a bucket as files (type s3) is not supported"),
        ("volumes.size", "a size limit of a volume is not supported"),
    ];
    // Where the kernel has no file for it, a limit that was asked for by name cannot be kept.
    if !kernel_has(&["memory.swap.max"], "memory", &["memory.memsw.limit_in_bytes"]) {
        known.push(("limits.swap", "resources.swap"));
    }
    if !kernel_has(&["io.weight"], "blkio", &["blkio.weight", "blkio.bfq.weight"]) {
        known.push(("limits.io_weight", "resources.io.weight"));
    }
    known
}

/// Whether this host's cgroups have one of these files: those of v2, or of the v1 controller. The root of a hierarchy has no
/// limits, so what lies beneath it is asked too.
fn kernel_has(v2: &[&str], controller: &str, v1: &[&str]) -> bool {
    let top = Path::new("/sys/fs/cgroup");
    let has = |dir: &Path, names: &[&str]| {
        let children = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        [dir.to_owned()].into_iter().chain(children).any(|dir| names.iter().any(|name| dir.join(name).exists()))
    };
    has(top, v2) || has(&top.join(controller), v1)
}

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

    fn secret(&self) -> Option<(String, String)> {
        Some((SECRET.0.to_owned(), SECRET.1.to_owned()))
    }

    fn syncs_volumes(&self) -> bool {
        true
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
        let anew = Arc::new(YoukiRuntime::open(config(&self.root)).await?);
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
        let runtime = Mutex::new(Arc::new(YoukiRuntime::open(config(&root)).await.unwrap()));
        let image = case.push("conformance", &Image::busybox()).await;
        let (workdir, volume, uid) = ("/srv/work", "/srv/volume", 1000);
        let configured = Image::busybox()
            .layer(LayerBuilder::new().dir("srv", 0o755).dir("srv/work", 0o755).dir("srv/volume", 0o777).finish())
            .with("Env", json!(["PATH=/bin", "SETTING=of the image"]))
            .with("WorkingDir", json!(workdir))
            .with("User", json!("app"))
            .with("StopSignal", json!("SIGUSR1"))
            .with("Volumes", json!({volume: {}}))
            .with("ExposedPorts", json!({"8080/tcp": {}}))
            .with("Healthcheck", json!({"Test": ["CMD", "true"]}));
        let configured_image = ConfiguredImage {
            reference: case.push("configured", &configured).await,
            env: ("SETTING".to_owned(), "of the image".to_owned()),
            workdir: workdir.to_owned(),
            uid,
            stop_signal: "USR1",
            volume: volume.to_owned(),
            exposed_port: Some(8080),
            has_healthcheck: true,
        };
        Self { root, runtime, image, configured_image, echo_images: echo_images(case).await }
    }
}

/// What [`OneSecret`] knows, by name and value.
const SECRET: (&str, &str) = ("conformance", "open sesame");

struct OneSecret;

#[async_trait]
impl SecretsProvider for OneSecret {
    async fn secret(&self, name: &str) -> runtime_core::Result<Secret> {
        let unknown = || AgentError::Configuration(format!("there is no secret {name}"));
        (name == SECRET.0).then(|| Secret::new(SECRET.1.to_owned())).ok_or_else(unknown)
    }
}

fn config(root: &Root) -> Config {
    Config { secrets: Some(Arc::new(OneSecret)), ..root.config() }
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
    let failed = if is_slow() { failed_again(&backend, &report, &options).await } else { report.failed().count() };
    assert!(failed == 0 && report.passed().count() > 0, "{report}");
    let unlike = report.unsupported_unlike(&berth_has_not());
    assert!(unlike.is_empty(), "{}", unlike.join("\n"));
    for image in backend.runtime().list_images().await.unwrap() {
        backend.runtime().remove_image(&image.reference, true).await.unwrap();
    }
}

/// How many of the checks that failed fail when they are asked alone: where a machine stands still at times, a promise that
/// is not kept is one that is not kept twice.
async fn failed_again(backend: &Arc<Berth>, report: &Report, options: &Options) -> usize {
    let mut failed = 0;
    for check in report.failed() {
        let alone = Options { prefix: "again".to_owned(), only: Some(check.name.clone()), ..options.clone() };
        let again = conformance::run(backend.clone(), &alone).await;
        println!("{} asked again:\n{again}", check.name);
        failed += usize::from(again.failed().any(|found| found.name == check.name));
    }
    failed
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

/// How often a check is asked for a fault before it is said to miss it.
const TRIES: usize = 3;

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
        // A busy machine may hide a fault of a moment; what is never found is what no check sees.
        let mut reports = Vec::new();
        while reports.len() < TRIES {
            let report = conformance::run(backend.clone(), &options).await;
            if report.failed().any(|found| found.name == *check) {
                break;
            }
            reports.push(report.to_string());
        }
        if reports.len() == TRIES {
            missed.push(format!("fault {number} is not found by {check}:\n{}", reports.join("\n")));
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

    fn secret(&self) -> Option<(String, String)> {
        self.berth.secret()
    }

    fn syncs_volumes(&self) -> bool {
        true
    }

    fn may_prune(&self) -> bool {
        true
    }
}
