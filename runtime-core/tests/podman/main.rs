//! Proves the conformance suite on a runtime that others wrote: podman, by a thin adapter over its command.
//!
//! Needs root, podman, runc and a static busybox, so it runs only with `--features podman-proof`.

#![allow(clippy::unwrap_used)] // all of this is a test

mod adapter;
mod create;
mod exec;
mod host;
mod logs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use runtime_core::conformance::{self, Backend, ConfiguredImage, EchoImage, Options, User};
use runtime_core::{Result, Runtime};

use adapter::Podman;
use host::Host;

/// Where podman promises something else than the contract. Each of these checks must fail, all others must not: a check
/// that podman passes is no longer a difference, and one that it newly fails is a fault of the suite or of podman.
const PODMAN_DIFFERS: [(&str, &str); 15] = [
    ("outcome.killed", "podman records no signal, only 137"),
    ("stop.outcome", "podman records no signal, only 137"),
    ("exec_stream.dropped", "what podman exec started lives on when podman exec is killed"),
    ("cancel.exec", "what podman exec started lives on when podman exec is killed"),
    ("isolation.exec", "podman exec leaves the primary group out of the supplementary ones"),
    ("logs.max_size", "podman begins its log anew when it is full, and keeps nothing of the old one"),
    ("network.extra_hosts", "this podman does not know host-gateway"),
    ("network.same_address", "podman gives the address back at the end and another one at the next start"),
    ("restart.pause", "podman restarts at once, and its wait is for the end of the last attempt"),
    ("images.remove_digest", "podman finds an image by its id or repository@digest, not by the digest alone"),
    ("stats.after_exit", "podman keeps no stats of an exited container"),
    ("update.memory", "podman goes on telling the limit that the container was created with"),
    ("ports.conflict", "podman looks for the port at the start, and does not tell who has it"),
    ("images.tag_invalid", "podman tag adds :latest to a name without a tag"),
    ("images.remove_used", "podman rmi takes one of several names away though a container was made from it"),
];

/// Where podman keeps the promise at one time and not at another.
const PODMAN_RACES: [(&str, &str); 2] = [
    ("wait.before_start", "podman wait returns 0 for a container that never ran, unless it is slow to look"),
    ("outcome.oom", "conmon has to read the kernel's notice of the OOM kill before that of the exit"),
];

struct PodmanBackend {
    host: Host,
}

#[async_trait]
impl Backend for PodmanBackend {
    fn name(&self) -> String {
        "podman".to_owned()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(Podman::new(&self.host))
    }

    fn image(&self) -> String {
        host::IMAGE.to_owned()
    }

    fn user(&self) -> Option<User> {
        Some(User { name: host::USER.0.to_owned(), uid: host::USER.1, gid: host::USER.2 })
    }

    fn echo_images(&self) -> Vec<EchoImage> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let images = host::ECHO_IMAGES.iter();
        images
            .map(|(reference, entrypoint, cmd)| EchoImage {
                reference: (*reference).to_owned(),
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                program: "/bin/echo".to_owned(),
            })
            .collect()
    }

    fn configured_image(&self) -> Option<ConfiguredImage> {
        Some(ConfiguredImage {
            reference: host::CONFIGURED_IMAGE.to_owned(),
            env: ("SETTING".to_owned(), "of the image".to_owned()),
            workdir: "/tmp".to_owned(),
            uid: host::USER.1,
            stop_signal: "USR1",
            volume: "/volume".to_owned(),
        })
    }

    fn may_prune(&self) -> bool {
        true
    }

    async fn remove_volume(&self, name: &str) -> Result<()> {
        let removed = self.host.podman().args(["volume", "rm", "--force", name]).output();
        removed.map(drop).map_err(|error| runtime_core::AgentError::Internal(error.to_string()))
    }

    /// Every call is a process of its own, so podman is reopened all the time.
    async fn reopen(&self) -> Result<Option<Arc<dyn Runtime>>> {
        Ok(Some(self.runtime()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_keeps_the_promises_but_for_those_it_makes_differently() {
    let backend = Arc::new(PodmanBackend { host: Host::new() });
    // Each answer of podman's is a process or two, on machines that do other things beside.
    let usual = Options::default();
    let options = Options { check_timeout: 3 * usual.check_timeout, patience: 4 * usual.patience, ..usual };
    let report = conformance::run(backend.clone(), &options).await;
    println!("{report}");
    // Its containers are gone by now, but for what a podman whose caller has gone still does.
    let begun = Instant::now();
    let mut left = backend.host.named_namespaces();
    while !left.is_empty() && begun.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        left = backend.host.named_namespaces();
    }
    assert!(left.is_empty(), "network namespaces that no container has: {left:?}");
    let found: BTreeMap<_, _> = report.failed().map(|check| (check.name.as_str(), check.to_string())).collect();
    for (name, text) in &found {
        let known = PODMAN_DIFFERS.iter().chain(&PODMAN_RACES).any(|(differs, _)| differs == name);
        assert!(known, "{text}");
    }
    for (name, why) in PODMAN_DIFFERS {
        assert!(found.contains_key(name), "{name} was to fail, because {why}");
    }
}
