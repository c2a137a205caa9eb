//! Runs the conformance suite on Berth, and prints its report as text or JSON.
//!
//! `cargo run --example conformance -- [--json] IMAGE [CHECK]` (as root); the image needs a shell, as busybox has, and
//! CHECK is a part of the names of the checks to run. Ends with 1 when a promise is not kept.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use runtime_core::Runtime;
use runtime_core::conformance::{self, Backend, Options};
use youki_backend::{Config, YoukiRuntime};

fn main() -> anyhow::Result<ExitCode> {
    // Lets this one executable be its containers' supervisor too. Before any thread is started.
    youki_backend::supervisor::run_if_invoked();
    judge()
}

#[tokio::main]
async fn judge() -> anyhow::Result<ExitCode> {
    let (flags, mut args): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg == "--json");
    anyhow::ensure!((1..=2).contains(&args.len()), "usage: conformance [--json] IMAGE [CHECK]");
    let options = Options { only: args.drain(1..).next(), ..Options::default() };
    let config = Config::load(None)?;
    let runtime = Mutex::new(Arc::new(YoukiRuntime::open(config.clone()).await?));
    let berth = Berth { config, runtime, image: args.remove(0) };

    let report = conformance::run(Arc::new(berth), &options).await;
    if flags.is_empty() {
        println!("{report}");
    } else {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the suite has to know. [`Backend`] has more to tell: a user of the image, images with settings, a secret,
/// whether unused images may be pruned; what is left out is reported as unsupported.
struct Berth {
    config: Config,
    runtime: Mutex<Arc<YoukiRuntime>>,
    image: String,
}

#[async_trait]
impl Backend for Berth {
    fn name(&self) -> String {
        "Berth".to_owned()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn image(&self) -> String {
        self.image.clone()
    }

    fn syncs_volumes(&self) -> bool {
        self.config.s3.is_some()
    }

    async fn remove_volume(&self, name: &str) -> runtime_core::Result<()> {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match runtime.volumes().remove(name, true, true).await {
            Ok(()) | Err(volumes_s3::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(youki_backend::Error::from(error).into()),
        }
    }

    async fn reopen(&self) -> runtime_core::Result<Option<Arc<dyn Runtime>>> {
        let anew = Arc::new(YoukiRuntime::open(self.config.clone()).await?);
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = anew.clone();
        Ok(Some(anew))
    }
}
