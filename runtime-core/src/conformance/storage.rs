//! Mounts that a backend can make by itself.

use std::path::Path;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, of_host, refused, texts};
use super::{Check, check};
use crate::spec::{ByteSize, StorageSpec};
use crate::{AgentError, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("storage.tmpfs", "a tmpfs can be written under a read-only root, up to its size", tmpfs),
        check!("storage.tmpfs_mode", "a tmpfs has the mode asked for, 1777 unless", tmpfs_mode),
        check!("storage.bind", "a bind is the host's directory itself, in both directions", bind),
        check!(
            "storage.bind_read_only",
            "a read-only bind shows the host's files and cannot be written",
            bind_read_only
        ),
        check!("storage.bind_missing", "a bind whose source is not there is refused and leaves nothing", bind_missing),
        check!("storage.anonymous", "an anonymous volume can be written, and stays for the next attempt", anonymous),
        check!("storage.anonymous_dies", "an anonymous volume dies with its container", anonymous_dies),
        check!("storage.filled", "a new anonymous volume is filled from the image's directory", filled),
        check!("storage.s3", "a bucket prefix is there as files, or refused by name; it is never left out", s3),
    ]
}

pub(super) const TARGET: &str = "/conformance-mount";

pub(super) fn mounted(case: &Case, script: &str, storage: StorageSpec) -> Verdict<ServiceSpec> {
    let mut spec = case.script(script.replace("TARGET", TARGET))?;
    spec.read_only = true;
    spec.storage = vec![storage];
    Ok(spec)
}

async fn tmpfs(case: Case) -> Verdict {
    let storage = StorageSpec::Tmpfs { target: TARGET.to_owned(), size: Some(ByteSize::new(1 << 20)), mode: None };
    let script = "echo small > TARGET/f && cat TARGET/f; s=x; i=0; while [ $i -lt 21 ]; do s=$s$s; i=$((i+1)); done; \
                  if (echo $s > TARGET/g) 2>/dev/null; then echo fits; else echo full; fi";
    let (_, lines) = case.output(&mounted(&case, script, storage)?, 2).await?;
    equal("what can be written", &lines, &vec!["small".to_owned(), "full".to_owned()])
}

async fn tmpfs_mode(case: Case) -> Verdict {
    for (mode, wanted) in [(None, "drwxrwxrwt"), (Some(0o750), "drwxr-x---")] {
        let storage = StorageSpec::Tmpfs { target: TARGET.to_owned(), size: None, mode };
        let found = case.answer(&mounted(&case, "set -- $(ls -ld TARGET); echo $1", storage)?).await?;
        ensure(found.starts_with(wanted), || format!("asked for {mode:?} it has {found}, not {wanted}"))?;
    }
    Ok(())
}

fn bound(source: &Path, readonly: bool) -> StorageSpec {
    StorageSpec::Bind { source: source.display().to_string(), target: TARGET.to_owned(), readonly }
}

async fn bind(case: Case) -> Verdict {
    let directory = case.directory()?;
    let (inward, outward) = (directory.join("inward"), directory.join("outward"));
    of_host(&inward, std::fs::write(&inward, "from the host\n"))?;
    let script = "cat TARGET/inward; echo from inside > TARGET/outward";
    let found = case.answer(&mounted(&case, script, bound(&directory, false))?).await?;
    equal("what the container reads", &found.as_str(), &"from the host")?;
    let found = of_host(&outward, std::fs::read_to_string(&outward))?;
    equal("what the host reads", &found.as_str(), &"from inside\n")
}

async fn bind_read_only(case: Case) -> Verdict {
    let directory = case.directory()?;
    let file = directory.join("file");
    of_host(&file, std::fs::write(&file, "from the host\n"))?;
    let script = "cat TARGET/file; if (: > TARGET/other) 2>/dev/null; then echo written; else echo refused; fi; \
                  if (echo x >> TARGET/file) 2>/dev/null; then echo written; else echo refused; fi";
    let (_, lines) = case.output(&mounted(&case, script, bound(&directory, true))?, 3).await?;
    equal("reading and writing", &lines, &["from the host", "refused", "refused"].map(str::to_owned).to_vec())?;
    let found = of_host(&file, std::fs::read_to_string(&file))?;
    equal("the host's file", &found.as_str(), &"from the host\n")
}

async fn bind_missing(case: Case) -> Verdict {
    let source = case.directory()?.join("no-such-directory");
    let (id, spec) = (case.id(), mounted(&case, "echo ran", bound(&source, false))?);
    let created = case.runtime().create_container(&id, &spec).await;
    if let Err(AgentError::Unsupported(_)) = created {
        return created.or_unsupported("create_container");
    }
    let named = |error: &AgentError| error.to_string().contains("no-such-directory");
    refused("a source that is not there", created, named)?;
    ensure(!source.exists(), || format!("{} was made", source.display()))?;
    let state = case.runtime().container_state(&id).await;
    refused("container_state after it", state, |error| matches!(error, AgentError::NotFound { .. }))
}

async fn anonymous(case: Case) -> Verdict {
    let storage = StorageSpec::Anonymous { target: TARGET.to_owned() };
    let script = "echo written >> TARGET/f; wc -l < TARGET/f | tr -d ' '";
    let id = case.start_spec(&mounted(&case, script, storage)?).await?;
    case.wait(&id).await?;
    case.logs(&id, 1).await?;
    case.runtime().start_container(&id).await.or_fail("start_container of an exited container")?;
    case.wait(&id).await?;
    let logs = case.logs(&id, 2).await?;
    let lines: Vec<&str> = logs.iter().map(|entry| entry.message.as_str()).collect();
    equal(&format!("the log of two attempts, {}", texts(&logs)), &lines, &vec!["1", "2"])
}

async fn anonymous_dies(case: Case) -> Verdict {
    let storage = StorageSpec::Anonymous { target: TARGET.to_owned() };
    let spec = mounted(&case, "echo written >> TARGET/f; wc -l < TARGET/f | tr -d ' '", storage)?;
    let id = case.id();
    for run in ["the first container", "the next one of that name"] {
        case.runtime().create_container(&id, &spec).await.or_unsupported("create_container")?;
        case.runtime().start_container(&id).await.or_fail("start_container")?;
        case.wait(&id).await?;
        let logs = case.logs(&id, 1).await?;
        let lines: Vec<&str> = logs.iter().map(|entry| entry.message.as_str()).collect();
        equal(&format!("the number of lines that {run} finds in its volume"), &lines, &vec!["1"])?;
        case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    }
    Ok(())
}

pub(super) async fn directory_of_the_shell(case: &Case) -> Verdict<String> {
    let script = "IFS=:; for d in $PATH; do [ -x $d/sh ] && cd $d && pwd -P && exit; done";
    case.answer(&case.script(script)?).await
}

/// The volume takes the place of the directory that has the shell: unless filled, nothing runs.
async fn filled(case: Case) -> Verdict {
    let directory = directory_of_the_shell(&case).await?;
    let script = format!("(: > {directory}/conformance) && echo filled and writable");
    let storage = StorageSpec::Anonymous { target: directory.clone() };
    let found = case.answer(&mounted(&case, &script, storage)?).await?;
    equal(&format!("a volume at {directory}"), &found.as_str(), &"filled and writable")
}

async fn s3(case: Case) -> Verdict {
    let (bucket, target) = ("conformance-no-such-bucket".to_owned(), TARGET.to_owned());
    let storage = StorageSpec::S3 { bucket, prefix: None, target, readonly: true };
    let spec = mounted(&case, "grep -c ' TARGET ' /proc/mounts", storage)?;
    let id = case.id();
    match case.runtime().create_container(&id, &spec).await {
        Err(AgentError::Unsupported(reason)) => return Err(Stop::Unsupported(reason)),
        Err(_) => return Ok(()), // a bucket that is not there
        Ok(()) => {}
    }
    if case.runtime().start_container(&id).await.is_err() {
        return Ok(());
    }
    equal("the number of mounts at the target, less one", &case.wait(&id).await?, &0)
}
