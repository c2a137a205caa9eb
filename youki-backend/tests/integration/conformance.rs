//! The contract, sentence by sentence: the conformance suite on Berth.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use runtime_core::Runtime;
use runtime_core::conformance::{self, Backend, EchoImage, Options, User};
use serde_json::json;

use crate::support::case::Case;
use crate::support::image::Image;
use crate::support::pace::patience;
use crate::support::root::Root;

crate::tests![berth_keeps_the_contract];

struct Berth {
    root: Root,
    runtime: Mutex<Arc<dyn Runtime>>,
    image: String,
    echo_images: Vec<EchoImage>,
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

    fn user(&self) -> Option<User> {
        Some(User { name: "app".to_owned(), uid: 1000, gid: 1000 })
    }

    fn echo_images(&self) -> Vec<EchoImage> {
        self.echo_images.clone()
    }

    /// The former instance lives on until its last user is done: an agent that is replaced while it still works.
    async fn reopen(&self) -> runtime_core::Result<Option<Arc<dyn Runtime>>> {
        let anew = self.root.open().await?;
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = anew.clone();
        Ok(Some(anew))
    }
}

async fn berth_keeps_the_contract(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let image = case.push("conformance", &Image::busybox()).await;
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
    let backend = Arc::new(Berth { root, runtime: Mutex::new(runtime), image, echo_images });
    let usual = Options::default();
    let options = Options { check_timeout: patience(usual.check_timeout), patience: patience(usual.patience), ..usual };
    let report = conformance::run(backend.clone(), &options).await;
    println!("{report}");
    assert!(report.is_ok(), "{report}");
    for image in backend.runtime().list_images().await.unwrap() {
        backend.runtime().remove_image(&image.reference, true).await.unwrap();
    }
}
