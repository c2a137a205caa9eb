//! Credential helpers: `docker-credential-NAME get` takes a registry on its standard input and answers in JSON.

use std::process::Stdio;
use std::time::Duration;

use runtime_core::Secret;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use super::{Credentials, Hidden, canonical};

/// Time for an answer. Helpers may ask a keyring or a cloud's token service.
const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of an answer; tokens of clouds take some KiB.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// What a helper says, and fails, when it has nothing for the registry.
const NOT_FOUND: &[u8] = b"credentials not found";
/// The user name that stands for an identity token.
const TOKEN_USER: &str = "<token>";
/// Docker Hub's name in credential stores.
const HUB: &str = "https://index.docker.io/v1/";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: Hidden,
}

/// Asks the helper; `None` if it knows nothing of the registry. The reason of a failure quotes no secret.
pub(super) async fn get(name: &str, registry: &str, optional: bool) -> Result<Option<Credentials>, String> {
    // The name is the end of a program's, looked for in PATH.
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(format!("{name:.100?} is no name of a credential helper"));
    }
    ask(&format!("docker-credential-{name}"), registry, optional, DEADLINE).await
}

async fn ask(program: &str, registry: &str, optional: bool, deadline: Duration) -> Result<Option<Credentials>, String> {
    let spawned = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => Group(child),
        Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => {
            tracing::warn!(
                program,
                "a credential helper is configured but not installed; its registries are asked without a user name"
            );
            return Ok(None);
        }
        Err(error) => return Err(format!("{program} cannot be run: {error}")),
    };
    let server = if canonical(registry) == "docker.io" { HUB } else { registry };
    let answered = tokio::time::timeout(deadline, child.talk(server)).await;
    let (answer, succeeded) = match answered {
        Ok(answer) => answer.map_err(|error| format!("{program}: {error}"))?,
        Err(_) => return Err(format!("{program} gave no answer within {} s", deadline.as_secs_f32())),
    };
    if answer.len() as u64 > MAX_ANSWER_BYTES {
        return Err(format!("{program} answers with more than {MAX_ANSWER_BYTES} bytes"));
    }
    if !succeeded {
        if answer.starts_with(NOT_FOUND) {
            return Ok(None);
        }
        return Err(format!("{program} failed"));
    }
    let Answer { username, secret } =
        serde_json::from_slice(&answer).map_err(|_| format!("{program} gave no credentials in JSON"))?;
    let secret = Secret::new(secret.0.to_string());
    let given = match username.as_str() {
        TOKEN_USER => Credentials::Identity(secret),
        _ => Credentials::Basic { username, password: secret },
    };
    Ok(Some(given).filter(|credentials| !credentials.is_empty()))
}

/// A helper and what it started, killed together when it is dropped before its end.
struct Group(Child);

impl Group {
    async fn talk(&mut self, server: &str) -> std::io::Result<(Zeroizing<Vec<u8>>, bool)> {
        if let Some(mut input) = self.0.stdin.take() {
            match input.write_all(server.as_bytes()).await {
                // It may answer without reading.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        let mut answer = Zeroizing::new(Vec::new());
        if let Some(output) = self.0.stdout.take() {
            output.take(MAX_ANSWER_BYTES + 1).read_to_end(&mut answer).await?;
        }
        // One that wrote too much waits for a reader that has gone.
        let succeeded = answer.len() as u64 <= MAX_ANSWER_BYTES && self.0.wait().await?.success();
        Ok((answer, succeeded))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // `id` is gone once the helper was waited for, so that its number cannot be another's.
        if let Some(pid) = pid
            && let Err(error) = kill_process_group(pid, Signal::KILL)
        {
            tracing::debug!(%error, "a credential helper has ended by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;

    async fn answer(script: &str, registry: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker-credential-test");
        // Written elsewhere and moved: a descriptor that a fork of another test inherits would make it "text busy".
        std::fs::write(directory.path().join("x"), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(directory.path().join("x"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(directory.path().join("x"), &path).unwrap();
        let shell = format!("{}", path.display());
        loop {
            match ask(&shell, registry, false, Duration::from_secs(2)).await {
                Err(reason) if reason.contains("Text file busy") => tokio::task::yield_now().await,
                Ok(None) => return "none".into(),
                Ok(Some(Credentials::Basic { username, password })) => {
                    return format!("{username}:{}", password.expose());
                }
                Ok(Some(Credentials::Identity(token))) => return format!("identity {}", token.expose()),
                Ok(Some(other)) => panic!("{other:?}"),
                Err(reason) => return reason.replace(&shell, "it"),
            }
        }
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_registry_and_its_answer_is_bounded() {
        // What it reads comes back as the user name.
        let echo = r#"read -r url; printf '{"ServerURL":"%s","Username":"%s","Secret":"s"}' "$url" "$url""#;
        assert_eq!(answer(echo, "a:5000").await, "a:5000:s");
        assert_eq!(answer(echo, "docker.io").await, format!("{HUB}:s"));
        assert_eq!(answer(r#"echo '{"Username":"<token>","Secret":"t"}'"#, "a").await, "identity t");
        assert_eq!(answer("echo credentials not found in native keychain; exit 1", "a").await, "none");
        assert_eq!(answer(r#"echo '{"Username":"","Secret":""}'"#, "a").await, "none");
        assert_eq!(answer("echo hunter2; exit 1", "a").await, "it failed");
        assert_eq!(answer("echo hunter2", "a").await, "it gave no credentials in JSON");
        assert!(answer("exec cat /dev/zero", "a").await.contains("more than"));
        let begun = Instant::now();
        // The sleep is another process, which holds the output.
        assert!(answer("sleep 60; echo", "a").await.contains("no answer within"));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_an_error_only_where_it_is_wanted() {
        assert!(get("berth-test-none", "a", true).await.unwrap().is_none());
        assert!(get("berth-test-none", "a", false).await.unwrap_err().contains("cannot be run"));
        assert!(get("../sh", "a", true).await.unwrap_err().contains("no name"));
    }
}
