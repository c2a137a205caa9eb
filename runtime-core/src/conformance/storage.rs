//! Mounts that a backend can make by itself.

use super::case::{Case, OrStop, Verdict, equal, texts};
use super::{Check, Workload, check};
use crate::ServiceSpec;
use crate::spec::{ByteSize, StorageSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("storage.tmpfs", "a tmpfs can be written under a read-only root, up to its size", tmpfs),
        check!("storage.anonymous", "an anonymous volume can be written, and stays for the next attempt", anonymous),
    ]
}

const TARGET: &str = "/conformance-mount";

fn mounted(case: &Case, script: &str, storage: StorageSpec) -> Verdict<ServiceSpec> {
    let mut spec = case.spec(&Workload::Script(script.replace("TARGET", TARGET)))?;
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
