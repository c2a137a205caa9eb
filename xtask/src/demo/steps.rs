//! The steps of the main job, each checked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::registry::PullOptions;
use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use runtime_core::spec::{CommandSpec, StorageSpec};
use runtime_core::{AgentError, ContainerId, ContainerState, ExecEvent, LogStream, Runtime, ServiceSpec};
use youki_backend::YoukiRuntime;

use super::account::{Account, note, show_pull, stats_table};
use super::agent::{self, Orders};
use super::place::Place;

const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the demo waits for a container to write what it should.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
/// Exit code of the service when it is asked to stop.
const ASKED: i32 = 7;
/// Exit code of the container that ends while no agent runs.
const UNSEEN: i32 = 42;
const VOLUME: &str = "demo-data";

/// Counts aloud on both streams until it is asked to stop.
const SERVICE: &str = "trap 'echo asked to stop; exit 7' TERM; echo ready >&2; i=0; \
                       while :; do i=$((i+1)); echo line $i; sleep 0.05; done";

fn id(service: &str) -> ContainerId {
    ContainerId::new(service, 0)
}

fn spec(image: &str, script: &str) -> ServiceSpec {
    let mut spec = ServiceSpec::new(image);
    let words = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    spec.command = CommandSpec { entrypoint: Some(words), args: None, workdir: None };
    spec
}

fn service(image: &str) -> Result<ServiceSpec> {
    let mut spec = spec(image, SERVICE);
    spec.resources.memory = Some("64Mi".parse()?);
    spec.resources.cpu = Some(0.5);
    spec.storage = vec![StorageSpec::Named {
        name: VOLUME.into(),
        target: "/data".into(),
        readonly: false,
        tier: None,
        size: None,
        take_over: false,
    }];
    Ok(spec)
}

/// The whole job.
pub(super) async fn all(account: &mut Account, place: &Place, image: &str) -> Result<()> {
    account.step("Opening a root of the demo's own");
    let embedded = YoukiRuntime::open(place.config()).await.context("opening the runtime")?;
    let runtime: Arc<dyn Runtime> = Arc::new(embedded.clone());
    note(format!("{}, cgroup {}, bridge {}", place.root.display(), place.cgroup_parent, place.bridge));

    account.step("Pull");
    pull(&embedded, image).await?;

    account.step("Run");
    let web = id("web");
    let spec = service(image)?;
    runtime.create_container(&web, &spec).await?;
    runtime.start_container(&web).await?;
    ensure!(runtime.container_state(&web).await? == ContainerState::Running, "{web} does not run");
    let pid = runtime.get_container_pid(&web).await?.context("a running container without a PID")?;
    let ip = runtime.get_container_ip(&web).await?.context("a container on the bridge without an address")?;
    note(format!("{web} runs as process {pid} with address {ip}, volume {VOLUME} at /data, 64 MiB, half a CPU"));

    account.step("Logs");
    logs(&*runtime, &web).await?;

    account.step("Stats and processes");
    stats(&*runtime, &web).await?;

    account.step("Exec");
    exec(&*runtime, &web, image.contains("/demo/app:")).await?;

    account.step("Stop: the volume goes to S3 as a generation");
    runtime.stop_container(&web, STOP_TIMEOUT).await?;
    let code = runtime.wait_container(&web).await?;
    ensure!(code == ASKED, "{web} ended with {code}, not {ASKED}");
    let volume = runtime.volume_status(VOLUME).await?;
    let generation = volume.generation.context("the volume has no generation")?;
    let durable_at = volume.durable_at.context("the volume is not durable")?;
    ensure!(volume.bytes_at_risk == 0, "{} bytes are at risk", volume.bytes_at_risk);
    note(format!(
        "exit code {code}; volume {VOLUME}: generation {generation}, durable since {}",
        durable_at.to_rfc3339()
    ));

    account.step("The data root is wiped, as if this were another machine");
    runtime.remove_container(&web).await?;
    drop((runtime, embedded));
    std::fs::remove_dir_all(&place.root).with_context(|| format!("wiping {}", place.root.display()))?;
    note(format!("{} is gone", place.root.display()));

    account.step("Run again: image pulled, volume restored from S3");
    let runtime: Arc<dyn Runtime> = Arc::new(YoukiRuntime::open(place.config()).await?);
    runtime.create_container(&web, &spec).await?;
    runtime.start_container(&web).await?;
    let (code, restored, stderr) = sh(&*runtime, &web, "cat /data/note; stat -c '%a %u:%g' /data/note").await?;
    ensure!(code == 0 && restored == "written by exec\n640 1000:1000\n", "restored {restored:?} {stderr:?}");
    note(format!("/data/note is back: {}", restored.trim().replace('\n', ", mode and owner ")));
    runtime.stop_container(&web, STOP_TIMEOUT).await?;
    runtime.remove_container(&web).await?;
    drop(runtime);

    account.step("An agent in a process of its own runs two containers, and gets SIGKILL");
    agent_killed(place, image).await
}

async fn pull(runtime: &YoukiRuntime, image: &str) -> Result<()> {
    let (progress, events) = tokio::sync::mpsc::unbounded_channel();
    let shown = tokio::spawn(show_pull(events));
    let options = PullOptions { progress: Some(progress), ..PullOptions::default() };
    runtime.images().pull(image, options).await?;
    shown.await?;
    let images = runtime.list_images().await?;
    let found = images.iter().find(|listed| is_listed_as(image, &listed.reference));
    let found = found.with_context(|| format!("{image} is not in the list of images"))?;
    note(format!(
        "{}  {}  {} bytes",
        found.reference,
        found.digest.as_deref().unwrap_or("-"),
        found.size_bytes.unwrap_or(0)
    ));
    Ok(())
}

/// Whether the list's `listed`, which is complete, is what `image` means, which may be one of docker's short forms.
fn is_listed_as(image: &str, listed: &str) -> bool {
    ::registry::Reference::parse(image).is_ok_and(|wanted| wanted.to_string() == listed)
}

async fn logs(runtime: &dyn Runtime, id: &ContainerId) -> Result<()> {
    let begin = Instant::now();
    let entries = loop {
        let entries = runtime.get_logs(id).await?;
        if entries.len() >= 5 {
            break entries;
        }
        ensure!(begin.elapsed() < WRITTEN_WITHIN, "{id} wrote only {} lines", entries.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for entry in entries.iter().take(4) {
        let stream = if entry.stream == LogStream::Stdout { "stdout" } else { "stderr" };
        note(format!("{} {stream} {}", entry.timestamp.format("%H:%M:%S%.6f"), entry.message));
    }
    ensure!(entries.iter().any(|e| e.stream == LogStream::Stderr && e.message == "ready"), "stderr is not in the log");
    ensure!(entries.iter().any(|e| e.stream == LogStream::Stdout && e.message == "line 1"), "stdout is not in the log");
    let last = runtime.container_logs(id, 1).await?;
    ensure!(last.len() == 1 && last[0].message.starts_with("line "), "tail 1 is {last:?}");
    Ok(())
}

async fn stats(runtime: &dyn Runtime, id: &ContainerId) -> Result<()> {
    let first = runtime.get_container_stats(id).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let second = runtime.get_container_stats(id).await?;
    let detailed = runtime.stats_detailed(id).await?;
    stats_table(&first, &second, &detailed);
    ensure!(second.memory_limit == 64 << 20, "the memory limit is {}", second.memory_limit);
    ensure!(second.memory_bytes > 0 && second.cpu_usage_usec >= first.cpu_usage_usec, "stats are {second:?}");
    let processes = runtime.top(id).await?;
    ensure!(processes.iter().any(|process| process.command.contains("/bin/sh")), "processes are {processes:?}");
    for process in &processes {
        note(format!(
            "{:>8} {:<8} {}",
            process.pid,
            process.user,
            process.command.chars().take(60).collect::<String>()
        ));
    }
    Ok(())
}

async fn exec(runtime: &dyn Runtime, id: &ContainerId, is_own_image: bool) -> Result<()> {
    if is_own_image {
        let (code, text, _) = sh(runtime, id, "cat /app/greeting; ls /app").await?;
        ensure!(code == 0 && text == "hello from the fourth layer\ngreeting\n", "the image's layers gave {text:?}");
        note("/app/greeting is the fourth layer's, and what the third deleted is gone");
    }
    let script = "echo written by exec > /data/note; chown 1000:1000 /data/note; chmod 640 /data/note";
    let (code, _, stderr) = sh(runtime, id, script).await?;
    ensure!(code == 0, "writing to the volume: {stderr}");
    note("wrote /data/note, mode 640, owner 1000:1000");
    let (code, seccomp, _) = sh(runtime, id, "grep ^Seccomp: /proc/self/status; exit 3").await?;
    ensure!(code == 3 && seccomp == "Seccomp:\t2\n", "exit code {code}, {seccomp:?}");
    note("an exec runs under the container's seccomp filter, and its exit code comes through");
    let words = ["/bin/sh", "-c", "echo one; sleep 0.2; echo two >&2"].map(str::to_owned);
    let events: Vec<ExecEvent> = runtime.exec_stream(id, &words).await?.collect().await;
    let expected = [ExecEvent::Stdout("one\n".into()), ExecEvent::Stderr("two\n".into()), ExecEvent::Exit(0)];
    ensure!(events == expected, "the stream gave {events:?}");
    note(format!("streamed: {events:?}"));
    Ok(())
}

/// One container runs on while no agent does, one ends meanwhile; a new agent knows all of both.
async fn agent_killed(place: &Place, image: &str) -> Result<()> {
    let (survivor, unseen) = (id("survivor"), id("unseen"));
    let containers = vec![
        (survivor.clone(), spec(image, SERVICE)),
        (unseen.clone(), spec(image, &format!("sleep 0.5; echo last words; exit {UNSEEN}"))),
    ];
    let orders = Orders { place: place.clone(), containers };
    let mut child = tokio::task::spawn_blocking(move || agent::start(&orders)).await??;
    note(format!("agent {} runs {survivor} and {unseen}", child.id()));
    child.kill()?;
    child.wait()?;
    note("it is dead; the containers are on their own for a second");
    tokio::time::sleep(Duration::from_secs(1)).await;

    let runtime: Arc<dyn Runtime> = Arc::new(YoukiRuntime::open(place.config()).await?);
    let state = runtime.container_state(&survivor).await?;
    ensure!(state == ContainerState::Running, "{survivor} is {state:?}");
    let (code, alive, _) = sh(&*runtime, &survivor, "echo alive").await?;
    ensure!(code == 0 && alive == "alive\n", "exec in {survivor} gave {code} and {alive:?}");
    runtime.stop_container(&survivor, STOP_TIMEOUT).await?;
    let code = runtime.wait_container(&survivor).await?;
    ensure!(code == ASKED, "{survivor} ended with {code}, not {ASKED}");
    let entries = runtime.get_logs(&survivor).await?;
    let lines: Vec<&str> =
        entries.iter().map(|entry| entry.message.as_str()).filter(|message| message.starts_with("line ")).collect();
    let whole = lines.iter().zip(1..).all(|(line, number)| *line == format!("line {number}"));
    ensure!(whole && lines.len() > 15, "the log of {survivor} has gaps: {} lines", lines.len());
    note(format!("a new agent finds {survivor} running, all {} lines of its log, exit code {code}", lines.len()));

    let outcome = runtime.wait_outcome(&unseen).await?;
    ensure!(outcome.exit_code == UNSEEN, "{unseen} ended with {}, not {UNSEEN}", outcome.exit_code);
    let last = runtime.container_logs(&unseen, 1).await?;
    ensure!(last.first().is_some_and(|entry| entry.message == "last words"), "its log is {last:?}");
    note(format!("and that {unseen} ended meanwhile: exit code {}, {:?}", outcome.exit_code, last[0].message));
    Ok(())
}

async fn sh(runtime: &dyn Runtime, id: &ContainerId, script: &str) -> Result<(i32, String, String)> {
    let words = ["/bin/sh", "-c", script].map(str::to_owned);
    Ok(runtime.exec(id, &words).await?)
}

/// Removes every container, after a failure too, and takes the root off the host.
pub(super) async fn clean_up(place: &Place) -> Result<()> {
    let runtime = YoukiRuntime::open(place.config()).await?;
    for container in runtime.list_containers().await? {
        match runtime.remove_container(&container.id).await {
            Ok(()) | Err(AgentError::NotFound { .. }) => {}
            Err(error) => bail!("removing {}: {error}", container.id),
        }
    }
    runtime.dismantle().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_in_the_list_by_its_short_forms() {
        let listed = "docker.io/library/busybox:latest";
        for image in ["busybox", "busybox:latest", "docker.io/busybox", "docker.io/library/busybox", listed] {
            assert!(is_listed_as(image, listed), "{image}");
        }
        for image in ["busybox:1.36", "box", "library/box:latest", "quay.io/library/busybox", "not a name"] {
            assert!(!is_listed_as(image, listed), "{image}");
        }
        let local = "127.0.0.1:5000/web:2";
        assert!(is_listed_as(local, local) && !is_listed_as("web:2", local));
    }
}
