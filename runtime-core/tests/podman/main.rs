//! Proves the conformance suite on a runtime that others wrote: podman, by a thin adapter over its command.
//!
//! Needs root, podman, runc and a static busybox, so it runs only with `--features podman-proof`.

#![allow(clippy::unwrap_used)] // all of this is a test

mod adapter;
mod create;
mod exec;
mod files;
mod host;
mod logs;

use std::sync::Arc;

use async_trait::async_trait;
use runtime_core::Runtime;
use runtime_core::conformance::{self, Backend, CheckReport, ConfiguredImage, EchoImage, Options, Outcome, User};

use adapter::Podman;
use host::Host;

/// Where podman promises something else than the contract. Each of these checks must fail, all others must not: a check
/// that podman passes is no longer a difference, and one that it newly fails is a fault of the suite or of podman.
const PODMAN_DIFFERS: &[(&str, &str)] = &[
    ("outcome.killed", "podman records no signal, only 137"),
    ("outcome.killed_after_oom", "podman records no signal, only 137, and that as an OOM kill where there was one"),
    ("stop.outcome", "podman records no signal, only 137"),
    ("exec_stream.dropped", "what podman exec started lives on when podman exec is killed"),
    ("cancel.exec", "what podman exec started lives on when podman exec is killed"),
    ("isolation.exec", "podman exec leaves the primary group out of the supplementary ones"),
    ("logs.max_size", "podman begins its log anew when it is full, and keeps nothing of the old one"),
    ("network.extra_hosts", "this podman does not know host-gateway"),
    ("network.same_address", "podman gives the address back at the end and another one at the next start"),
    ("restart.pause", "podman restarts at once, and its wait is for the end of the last attempt"),
    ("images.remove_digest", "podman finds an image by its id or repository@digest, not by the digest alone"),
    ("pull.anonymous", "podman sends an empty name and password to who asks for some"),
    ("stats.after_exit", "podman keeps no stats of an exited container"),
    ("update.memory", "podman goes on telling the limit that the container was created with"),
    ("cancel.update", "podman goes on telling the limit that the container was created with"),
    ("copy.out", "podman cp gives to root what it copies out"),
    ("images.push", "podman push compresses the layers, so that the registry has another image"),
    ("state.pending", "podman create pulls before it knows of the container"),
    ("ports.conflict", "podman looks for the port at the start, and does not tell who has it"),
    ("images.tag_invalid", "podman tag adds :latest to a name without a tag"),
    ("images.remove_used", "podman rmi takes one of several names away though a container was made from it"),
];

/// Where podman keeps the promise at one time, or on one host, and not at another.
const PODMAN_RACES: &[(&str, &str)] = &[
    ("wait.before_start", "podman wait returns 0 for a container that never ran, unless it is slow to look"),
    ("wait.attempts", "podman wait looks now and then, and may miss the end of an attempt that another follows"),
    ("cancel.pause", "podman refuses to unpause what the podman of a dropped call has unpaused in the meantime"),
    ("prune.dropped", "podman images fails where the podman of a dropped call removes an image meanwhile"),
    ("limits.nofile", "podman raises the limits to the kernel's, and here to 1024, which some hosts have"),
    ("limits.io_weight", "podman leaves the weight out where the kernel has it as blkio.bfq.weight alone"),
    ("outcome.oom", "conmon has to read the kernel's notice of the OOM kill before that of the exit"),
];

/// What podman is not asked: it has none of it, or tells it in another form, which to translate would be to write it here.
/// Words of each check's reason. Nothing else may be unsupported, and all of this must be.
const PODMAN_HAS_NOT: &[(&str, &str)] = &[
    ("logs_stream.records", "no logs_stream"),
    ("logs_stream.follow", "no logs_stream"),
    ("logs_stream.tail", "no logs_stream"),
    ("logs_stream.times", "no logs_stream"),
    ("logs_stream.partial", "no logs_stream"),
    ("exec_with.timeout", "podman exec has no time limit"),
    ("stats_detailed.limits", "no stats_detailed"),
    ("stats_detailed.cpu", "no stats_detailed"),
    ("stats_detailed.memory", "no stats_detailed"),
    ("stats_detailed.io", "no stats_detailed"),
    ("stats_detailed.network", "no stats_detailed"),
    ("stats_detailed.absent", "no stats_detailed"),
    ("stats_detailed.after_exit", "no stats_detailed"),
    ("stats_detailed.oom_kills", "no stats_detailed"),
    ("stats_detailed.disk", "no stats_detailed"),
    ("settings.agents_env", "looked up elsewhere"),
    ("settings.secrets", "looked up elsewhere"),
    ("settings.secret", "names no secret"),
    ("limits.update_rest", "no limit of processes"),
    ("logs.non_blocking", "do not hold the writer back"),
    ("storage.s3", "conformance-no-such-bucket"),
    ("volumes.durable", "no bucket"),
    ("volumes.sync_own", "no bucket"),
    ("volumes.stopped", "no bucket"),
    ("volumes.exited", "no bucket"),
    ("volumes.size", "on XFS alone"),
    ("cancel.restore", "no bucket"),
    ("cancel.claim", "no bucket"),
    ("pull.token", "takes no token"),
    ("health.command", "timers of systemd"),
    ("health.output", "timers of systemd"),
    ("health.grace", "timers of systemd"),
    ("health.tcp", "timers of systemd"),
    ("health.http", "timers of systemd"),
    ("health.timeout", "timers of systemd"),
    ("errors.code", "no codes"),
    ("events.order", "no events"),
    ("events.attempts", "no events"),
    ("events.after", "no events"),
    ("events.follow", "no events"),
    ("events.health", "no events"),
    ("events.pull", "no events"),
    ("events.volume", "no events"),
    ("events.oom", "no events"),
    ("attach.output", "no attach"),
    ("attach.bytes", "no attach"),
    ("attach.input", "no attach"),
    ("attach.dropped", "no attach"),
    ("attach.terminal", "no attach"),
    ("attach.ended", "no attach"),
    ("copy.options", "no other name or owner"),
    ("stats_all.running", "no stats_all"),
    ("stats_all.beside_removals", "no stats_all"),
    ("stats_stream.interval", "no stats_stream"),
    ("stats_stream.end", "no stats_stream"),
    ("stats_stream.ended", "no stats_stream"),
    ("stats_stream.restarts", "no stats_stream"),
    ("stats_stream.zero", "no stats_stream"),
    ("pull_stream.told", "no pull_image_stream"),
    ("pull_stream.here", "no pull_image_stream"),
    ("pull_stream.fails", "no pull_image_stream"),
    ("pull_stream.dropped", "no pull_image_stream"),
    ("images.inspect", "no inspect_image"),
    ("images.history", "no image_history"),
    ("images.save_load", "holds one image"),
    ("ports.range", "a port of a range"),
    ("health.image", "no health check"),
    ("network.port_override", "is given no port"),
    ("volumes.history", "no bucket"),
    ("volumes.unchanged", "no bucket"),
    ("volumes.diff", "no bucket"),
    ("volumes.verify", "no bucket"),
    ("volumes.restore", "no bucket"),
    ("volumes.restore_beside", "no bucket"),
    ("volumes.claim", "no bucket"),
    ("volumes.prune", "no bucket"),
    ("volumes.prune_history", "no bucket"),
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
            exposed_port: Some(8080),
            has_healthcheck: false, // those of podman are kept by timers of systemd
        })
    }

    fn may_prune(&self) -> bool {
        true
    }

    async fn remove_volume(&self, name: &str) -> runtime_core::Result<()> {
        let removed = self.host.podman().args(["volume", "rm", "--force", name]).output();
        removed.map(drop).map_err(|error| runtime_core::AgentError::Internal(error.to_string()))
    }

    /// Every call is a process of its own, so podman is reopened all the time.
    async fn reopen(&self) -> runtime_core::Result<Option<Arc<dyn Runtime>>> {
        Ok(Some(self.runtime()))
    }
}

/// How often podman is asked before it is said to do otherwise than is known: what it does by chance is not what it
/// promises, and each of its processes is one that others may come between.
const TRIES: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_keeps_the_promises_but_for_those_it_makes_differently() -> Result<(), String> {
    let backend = Arc::new(PodmanBackend { host: Host::new() });
    // Each answer of podman's is a process or two, on machines that do other things beside.
    let usual = Options::default();
    let options = Options { check_timeout: 3 * usual.check_timeout, patience: 4 * usual.patience, ..usual };
    let report = conformance::run(backend.clone(), &options).await;
    println!("{report}");
    let mut unlike: Vec<CheckReport> = report.checks.iter().filter(|check| !is_as_known(check)).cloned().collect();
    for number in 1..TRIES {
        let mut again = Vec::new();
        for check in unlike {
            println!("asked again: {check}");
            let prefix = format!("again-{number}");
            let alone = Options { prefix, only: Some(check.name.clone()), ..options.clone() };
            let checks = conformance::run(backend.clone(), &alone).await.checks;
            again.extend(checks.into_iter().filter(|found| found.name == check.name && !is_as_known(found)));
        }
        unlike = again;
    }
    let is_asked = |name: &str| report.checks.iter().any(|check| check.name == name);
    let known = PODMAN_DIFFERS.iter().chain(PODMAN_RACES).chain(PODMAN_HAS_NOT);
    let unasked: Vec<_> = known.map(|(name, _)| *name).filter(|name| !is_asked(name)).collect();
    assert!(unasked.is_empty(), "there are no such checks: {unasked:?}");
    // Not a panic, whose backtrace would stand where a long output is cut.
    if unlike.is_empty() { Ok(()) } else { Err(unlike.iter().map(|check| format!("{check}; ")).collect()) }
}

/// Whether podman is known to answer so: as it promises, as one of the lists says, or as it does by chance.
fn is_as_known(check: &CheckReport) -> bool {
    let of = |list: &[(&str, &'static str)]| list.iter().find(|(name, _)| *name == check.name).map(|(_, why)| *why);
    match &check.outcome {
        Outcome::Passed => of(PODMAN_DIFFERS).is_none() && of(PODMAN_HAS_NOT).is_none(),
        Outcome::Failed(_) => of(PODMAN_DIFFERS).or(of(PODMAN_RACES)).is_some(),
        Outcome::Unsupported(reason) => of(PODMAN_HAS_NOT).is_some_and(|words| reason.contains(words)),
    }
}
