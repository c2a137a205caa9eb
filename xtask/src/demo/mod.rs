//! `cargo xtask demo`, second stage: the main job from end to end, through the public API, each step checked.

mod account;
pub(crate) mod agent;
#[path = "../../../youki-backend/tests/integration/support/image.rs"]
#[allow(dead_code)] // the integration suite uses more of it
mod image;
mod place;
mod registry;
mod s3;
mod serve;
mod steps;

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use self::account::{Account, note};
use self::image::{Image, LayerBuilder};
use self::place::Place;

const S3_BUCKET: &str = "demo";

/// What the user gave.
#[derive(Debug, Default)]
struct Options {
    image: Option<String>,
    s3_endpoint: Option<String>,
    s3_bucket: Option<String>,
}

/// Runs it.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let options = Options::parse(args)?;
    let tokio = tokio::runtime::Runtime::new()?;
    tokio.block_on(demo(options))?;
    Ok(ExitCode::SUCCESS)
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let (flag, value) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let field = match flag {
                "--image" => &mut options.image,
                "--s3-endpoint" => &mut options.s3_endpoint,
                "--s3-bucket" => &mut options.s3_bucket,
                _ => bail!("demo takes no {word:?}; see cargo xtask --help"),
            };
            *field = Some(value.or_else(|| words.next().cloned()).with_context(|| format!("{flag} wants a value"))?);
        }
        if options.s3_endpoint.is_some() && options.s3_bucket.is_none() {
            bail!("--s3-endpoint wants --s3-bucket, too");
        }
        Ok(options)
    }
}

async fn demo(options: Options) -> Result<()> {
    let mut account = Account::new();
    let dir = TempDir::with_prefix("berth-demo-").context("making a directory")?;
    account.step("Servers in this process, on 127.0.0.1");
    let image = match options.image {
        Some(image) => {
            note(format!("image: yours, {image}; it must have a /bin/sh"));
            image
        }
        None => push_image().await?,
    };
    let (endpoint, bucket) = match options.s3_bucket {
        Some(bucket) => {
            note(format!("S3: yours, bucket {bucket}; what is kept there stays"));
            (options.s3_endpoint, bucket)
        }
        None => {
            let files = dir.path().join("s3");
            std::fs::create_dir_all(files.join(S3_BUCKET))?;
            let address = s3::start(&files, crate::DEMO_S3_CREDENTIALS).await?;
            note(format!("S3: http://{address}, bucket {S3_BUCKET}"));
            (Some(format!("http://{address}")), S3_BUCKET.to_owned())
        }
    };
    let place = Place::new(dir.path(), endpoint, bucket);
    // An interrupted one cleans up, too.
    let mut terminated = signal(SignalKind::terminate()).context("listening for signals")?;
    let result = tokio::select! {
        result = steps::all(&mut account, &place, &image) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("it was interrupted")),
        _ = terminated.recv() => Err(anyhow!("it was told to end")),
    };
    account.step("Cleaning up");
    // Which may wait for what does not answer.
    let cleaned = tokio::select! {
        cleaned = steps::clean_up(&place) => cleaned,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("the cleaning up was interrupted")),
        _ = terminated.recv() => Err(anyhow!("the cleaning up was told to end")),
    };
    let left = place.remove();
    // The first failure is the one that tells.
    result?;
    cleaned?;
    if !left.is_empty() {
        bail!("left behind: {}", left.join("; "));
    }
    note("no container, mount, cgroup, bridge, nft rule or file is left");
    println!("\nEverything was as it should be, in {:.1} s.", account.elapsed_s());
    Ok(())
}

/// A registry with an image of four layers made of Debian's busybox; the third deletes what the second has.
async fn push_image() -> Result<String> {
    let address = registry::start().await?;
    let second = LayerBuilder::new()
        .dir("app", 0o755)
        .file("app/greeting", 0o644, b"hello from the second layer\n")
        .file("app/deleted-later", 0o644, b"the third layer deletes this\n")
        .finish();
    let third = LayerBuilder::new().dir("app", 0o755).whiteout("app/deleted-later").finish();
    let fourth =
        LayerBuilder::new().dir("app", 0o755).file("app/greeting", 0o644, b"hello from the fourth layer\n").finish();
    let image = Image::busybox().layer(second).layer(third).layer(fourth);
    let bytes: usize = image.layers.iter().map(|layer| layer.gzip.len()).sum();
    let client = reqwest::Client::builder().no_proxy().build()?;
    let host = address.to_string();
    let digest = image::push(&client, &host, None, "demo/app", "v1", &image).await?;
    note(format!("registry: http://{host}"));
    note(format!(
        "image: {host}/demo/app:v1, {} layers, {bytes} bytes, {}",
        image.layers.len(),
        account::short(&digest)
    ));
    Ok(format!("{host}/demo/app:v1"))
}
