//! `podman cp`, `export`, `save`, `load` and `push`.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;

use runtime_core::{AgentError, ContainerId, CopyInOptions, ImageInfo, Owner, RegistryAuth, RegistryAuthType, Result};
use tokio::io::AsyncWriteExt;

use crate::adapter::Podman;
use crate::host::podman_in_the_hosts_network;

fn internal(error: impl ToString) -> AgentError {
    AgentError::Internal(error.to_string())
}

fn give(mut out: Box<dyn Write + Send>, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(internal)
}

/// podman says in words what is not there.
fn path_error(id: &ContainerId, error: AgentError) -> AgentError {
    let words = ["could not be found", "no such file", "destination must be a directory"];
    match error {
        AgentError::Internal(reason) if words.iter().any(|words| reason.contains(words)) => {
            AgentError::NotFound { container: id.to_string(), reason }
        }
        error => error,
    }
}

pub async fn copy_out(
    podman: &Podman,
    id: &ContainerId,
    path: &Path,
    follow: bool,
    out: Box<dyn Write + Send>,
) -> Result<()> {
    podman.inspect(id).await?;
    if follow {
        return Err(AgentError::Unsupported("podman cp has no say in whether links are followed".to_owned()));
    }
    let tar = podman.on(id, &["cp", "--archive=false", &format!("{id}:{}", path.display()), "-"]).await;
    give(out, &tar.map_err(|error| path_error(id, error))?)
}

pub async fn copy_in(
    podman: &Podman,
    id: &ContainerId,
    dir: &Path,
    mut tar: Box<dyn Read + Send>,
    options: &CopyInOptions,
) -> Result<()> {
    podman.inspect(id).await?;
    if options.rename.is_some() || options.owner != Owner::Kept {
        return Err(AgentError::Unsupported("podman cp of a tar gives no other name or owner".to_owned()));
    }
    let mut bytes = Vec::new();
    tar.read_to_end(&mut bytes).map_err(internal)?;
    let mut copy = podman.command(&["cp", "--archive=false", "-", &format!("{id}:{}", dir.display())]);
    let mut child = copy.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(internal)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&bytes).await; // it may hang up, and then says why
        }
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output.map_err(internal)?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(path_error(id, AgentError::Internal(said))) }
}

pub async fn export(podman: &Podman, id: &ContainerId, out: Box<dyn Write + Send>) -> Result<()> {
    podman.inspect(id).await?;
    // Not to its standard output: it opens that anew, for reading too, and waits for ever if nobody else does.
    let file = tempfile_in(podman);
    let exported = podman.on(id, &["export", "--output", &file, &id.to_string()]).await;
    let bytes = std::fs::read(&file);
    let _ = std::fs::remove_file(&file);
    exported?;
    give(out, &bytes.map_err(internal)?)
}

pub async fn save(podman: &Podman, images: &[String], out: Box<dyn Write + Send>) -> Result<()> {
    let [image] = images else {
        return Err(AgentError::Unsupported("an OCI archive of podman's holds one image".to_owned()));
    };
    podman.image_exists(image).await?;
    let file = tempfile_in(podman);
    let saved = podman.podman(&["save", "--quiet", "--format=oci-archive", "--output", &file, image]).await;
    let bytes = std::fs::read(&file);
    let _ = std::fs::remove_file(&file);
    saved.map_err(AgentError::Internal)?;
    give(out, &bytes.map_err(internal)?)
}

/// A path of this test's own.
fn tempfile_in(podman: &Podman) -> String {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    podman.directory().join(format!("saved-{number}")).display().to_string()
}

pub async fn load(podman: &Podman, path: &Path) -> Result<Vec<ImageInfo>> {
    let output = podman.podman(&["load", "--quiet", "--input", &path.display().to_string()]).await;
    let text = String::from_utf8_lossy(&output.map_err(AgentError::Internal)?).into_owned();
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_once(": ")).map(|(_, name)| name).collect();
    let images = runtime_core::Runtime::list_images(podman).await?;
    Ok(images.into_iter().filter(|image| names.contains(&image.reference.as_str())).collect())
}

pub async fn push(podman: &Podman, reference: &str, auth: Option<&RegistryAuth>) -> Result<String> {
    podman.image_exists(reference).await?;
    let file = tempfile_in(podman);
    let mut push = podman_in_the_hosts_network(podman.directory());
    push.args(["push", "--quiet", "--tls-verify=false", "--digestfile", &file, "--authfile"]);
    push.arg(podman.directory().join("auth.json"));
    match auth {
        Some(auth) if auth.auth_type == RegistryAuthType::Basic => {
            push.arg(format!("--creds={}:{}", auth.username, auth.password));
        }
        Some(_) => return Err(AgentError::Unsupported("podman push takes no token".to_owned())),
        None => {}
    }
    let output = tokio::process::Command::from(push).arg(reference).kill_on_drop(true).output().await;
    let output = output.map_err(internal)?;
    let digest = std::fs::read_to_string(&file);
    let _ = std::fs::remove_file(&file);
    if !output.status.success() {
        return Err(internal(String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(digest.map_err(internal)?.trim().to_owned())
}
