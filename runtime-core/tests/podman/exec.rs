//! `podman exec`.

use std::process::Stdio;

use futures_util::{StreamExt, stream};
use runtime_core::{
    AgentError, ContainerId, ContainerState, ExecEvent, ExecEventStream, ExecInput, ExecOptions, Result, Runtime,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::adapter::Podman;

/// Kept of each stream of a buffered exec; podman itself passes all of it on.
const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// podman's own message for a program that could not be run goes to stderr, like a shell's; its code is 126 or 127.
fn command(podman: &Podman, id: &ContainerId, command: &[String]) -> tokio::process::Command {
    let mut exec = podman.command(&["exec", &id.to_string()]);
    exec.args(command).stdout(Stdio::piped()).stderr(Stdio::piped());
    exec
}

/// podman tells an error of its own from the command's exit code by nothing but its text.
async fn check(podman: &Podman, id: &ContainerId, command: &[String]) -> Result<()> {
    if command.is_empty() {
        return Err(AgentError::InvalidSpec("the command is empty".to_owned()));
    }
    match podman.container_state(id).await? {
        // What podman exec says of a paused one looks like an exit code of the command's.
        ContainerState::Running if podman.is_paused(id).await? => Err(AgentError::Internal(format!("{id} is paused"))),
        ContainerState::Running => Ok(()),
        state => Err(AgentError::Internal(format!("{id} does not run: {state:?}"))),
    }
}

pub async fn buffered(podman: &Podman, id: &ContainerId, words: &[String]) -> Result<(i32, String, String)> {
    check(podman, id, words).await?;
    let output = command(podman, id, words).output().await.map_err(|error| AgentError::Internal(error.to_string()))?;
    let code = output.status.code().ok_or_else(|| AgentError::Internal(format!("podman exec: {}", output.status)))?;
    let text = |bytes: &[u8]| match bytes.get(..MAX_OUTPUT_BYTES) {
        Some(kept) => format!("{}\n[truncated]\n", String::from_utf8_lossy(kept)),
        None => String::from_utf8_lossy(bytes).into_owned(),
    };
    Ok((code, text(&output.stdout), text(&output.stderr)))
}

pub async fn stream(podman: &Podman, id: &ContainerId, words: &[String]) -> Result<ExecEventStream> {
    with(podman, id, words, &ExecOptions::default(), None).await
}

pub async fn with(
    podman: &Podman,
    id: &ContainerId,
    words: &[String],
    options: &ExecOptions,
    input: Option<ExecInput>,
) -> Result<ExecEventStream> {
    check(podman, id, words).await?;
    let internal = |error: std::io::Error| AgentError::Internal(error.to_string());
    let mut exec = podman.command(&["exec"]);
    exec.args(options.env.iter().map(|(name, value)| format!("--env={name}={value}")));
    exec.args(options.user.iter().map(|user| format!("--user={user}")));
    exec.args(options.workdir.iter().map(|path| format!("--workdir={path}")));
    exec.arg(format!("--interactive={}", input.is_some())).arg(format!("--tty={}", options.tty));
    exec.arg(id.to_string()).args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
    exec.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = exec.spawn().map_err(internal)?;
    let (events, received) = mpsc::channel(16);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let task = tokio::spawn(async move {
        let feed = async {
            let (Some(mut stdin), Some(mut input)) = (stdin, input) else { return };
            while let Some(bytes) = input.next().await {
                if stdin.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        let (stdout, stderr) =
            (forward(stdout, &events, ExecEvent::Stdout), forward(stderr, &events, ExecEvent::Stderr));
        tokio::join!(feed, stdout, stderr);
        if let Some(code) = child.wait().await.ok().and_then(|status| status.code()) {
            let _ = events.send(ExecEvent::Exit(code)).await;
        }
    });
    let state = (received, AbortOnDrop(task));
    Ok(stream::unfold(state, |mut state| async move { state.0.recv().await.map(|event| (event, state)) }).boxed())
}

/// With the task goes the `podman exec`, killed on drop.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn forward(
    output: Option<impl AsyncRead + Unpin>,
    events: &mpsc::Sender<ExecEvent>,
    event: fn(String) -> ExecEvent,
) {
    let Some(mut output) = output else { return };
    let mut bytes = Vec::new();
    while let Ok(read) = output.read_buf(&mut bytes).await {
        // A character cut off at the end waits for its rest.
        let whole = match std::str::from_utf8(&bytes) {
            Err(error) if read > 0 && error.error_len().is_none() => error.valid_up_to(),
            _ => bytes.len(),
        };
        let text = String::from_utf8_lossy(&bytes.drain(..whole).collect::<Vec<u8>>()).into_owned();
        if !text.is_empty() && events.send(event(text)).await.is_err() || read == 0 {
            return;
        }
    }
}
