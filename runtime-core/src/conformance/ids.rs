//! Names of containers, and unknown ones.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use super::case::{Case, OrStop, Verdict, ensure, equal, refused};
use super::{Ability, Check, Workload, check};
use crate::{AgentError, ContainerId, Result};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("ids.invalid", "an id that is not a valid name is refused and creates nothing", invalid),
        check!("ids.hostile", "an id that is a path is refused by what removes, reads and executes", hostile),
        check!("ids.unknown", "every method with an id: an unknown one is NotFound", unknown),
    ]
}

async fn invalid(case: Case) -> Verdict {
    let spec = case.spec(&Workload::exit(0))?;
    let long = "a".repeat(201);
    for service in ["", ".", "..", "../x", "a/b", "/a", "-a", "_a", "a b", "a\n", "a\0", "ä", "a-rep-1", &long] {
        let id = ContainerId::new(service, 0);
        let created = case.runtime().create_container(&id, &spec).await;
        if created.is_ok() {
            // It is no valid id, so the clean-up does not know it; what can be removed is.
            let _ = case.runtime().remove_container(&id).await;
        }
        let wanted = |error: &AgentError| matches!(error, AgentError::InvalidSpec(_) | AgentError::CreateFailed { .. });
        refused(&format!("create_container with service {service:?}"), created, wanted)?;
        let wanted = |error: &AgentError| matches!(error, AgentError::InvalidSpec(_) | AgentError::NotFound { .. });
        let state = case.runtime().container_state(&id).await;
        refused(&format!("container_state with service {service:?}"), state, wanted)?;
    }
    Ok(())
}

/// By no method a name becomes a path: what is there under that path stays.
async fn hostile(case: Case) -> Verdict {
    let (runtime, there) = (case.runtime(), case.create(&Workload::exit(7)).await?);
    let command = case.command(&Workload::exit(0))?;
    let mut wrong = Vec::new();
    // As a path the last one leads to the one that is there.
    for service in ["../x".to_owned(), "..".to_owned(), "a/b".to_owned(), format!("./{}", there.service)] {
        let id = ContainerId::new(&service, there.replica);
        let mut add = |method: &str, answer: Result<()>| match answer {
            Err(AgentError::NotFound { .. } | AgentError::InvalidSpec(_)) => {}
            Err(AgentError::Unsupported(_)) if method.starts_with("get_container") => {}
            answer => wrong.push(format!("{method} with service {service:?} answers {answer:?}")),
        };
        add("remove_container", runtime.remove_container(&id).await);
        add("exec", runtime.exec(&id, &command).await.map(drop));
        add("container_logs", runtime.container_logs(&id, 1).await.map(drop));
        add("get_logs", runtime.get_logs(&id).await.map(drop));
        add("get_container_stats", runtime.get_container_stats(&id).await.map(drop));
        add("get_container_ip", runtime.get_container_ip(&id).await.map(drop));
    }
    ensure(wrong.is_empty(), || wrong.join("; "))?;
    runtime.start_container(&there).await.or_fail("start_container of the one that is there")?;
    equal("its exit code", &case.wait(&there).await?, &7)
}

async fn unknown(case: Case) -> Verdict {
    let runtime = case.runtime();
    let id = case.id();
    let command = case.command(&Workload::exit(0)).unwrap_or_else(|_| vec!["true".to_owned()]);
    let mut wrong = Vec::new();

    let mut required = Answers { wrong: &mut wrong, or_default: false };
    required.add("start_container", runtime.start_container(&id).await, |()| false);
    required.add("stop_container", runtime.stop_container(&id, Duration::from_secs(1)).await, |()| false);
    required.add("remove_container", runtime.remove_container(&id).await, |()| false);
    required.add("container_state", runtime.container_state(&id).await, |_| false);
    required.add("container_logs", runtime.container_logs(&id, 1).await, |_| false);
    required.add("get_logs", runtime.get_logs(&id).await, |_| false);
    required.add("exec", runtime.exec(&id, &command).await, |_| false);
    required.add("exec_stream", runtime.exec_stream(&id, &command).await.map(|_| "a stream"), |_| false);
    required.add("wait_container", runtime.wait_container(&id).await, |_| false);
    required.add("wait_outcome", runtime.wait_outcome(&id).await, |_| false);
    required.add("get_container_ip", runtime.get_container_ip(&id).await, |_| false);
    required.or_default = case.lacks(Ability::Stats);
    required.add("get_container_stats", runtime.get_container_stats(&id).await, |_| false);
    required.or_default = case.lacks(Ability::Pid);
    required.add("get_container_pid", runtime.get_container_pid(&id).await, |_| false);

    // The defaults of these know no ids, and a backend may leave them as they are.
    let mut provided = Answers { wrong: &mut wrong, or_default: true };
    provided.add("get_container_port_override", runtime.get_container_port_override(&id).await, Option::is_none);
    provided.add("sync_container_volumes", runtime.sync_container_volumes(&id).await, |()| true);
    provided.add("inspect_detailed", runtime.inspect_detailed(&id).await, |details| *details == Default::default());
    provided.add("kill_container", runtime.kill_container(&id, None).await, |()| false);
    provided.add("logs_stream", runtime.logs_stream(&id, &Default::default()).await.map(|_| "a stream"), |_| false);
    provided.add("stats_detailed", runtime.stats_detailed(&id).await, |_| false);
    provided.add("pause", runtime.pause(&id).await, |()| false);
    provided.add("unpause", runtime.unpause(&id).await, |()| false);
    provided.add("update_resources", runtime.update_resources(&id, &Default::default()).await, |()| false);
    provided.add("top", runtime.top(&id).await, |_| false);
    let exec = runtime.exec_with(&id, &command, &Default::default(), None).await;
    provided.add("exec_with", exec.map(|_| "a stream"), |_| false);
    provided.add("attach", runtime.attach(&id, None).await.map(|_| "a stream"), |_| false);
    let (path, sink) = (Path::new("/"), || Box::new(std::io::sink()));
    provided.add("copy_out", runtime.copy_out(&id, path, false, sink()).await, |()| false);
    let copied = runtime.copy_in(&id, path, Box::new(std::io::empty()), &Default::default()).await;
    provided.add("copy_in", copied, |()| false);
    provided.add("export", runtime.export(&id, sink()).await, |()| false);
    let stats = runtime.stats_stream(&id, Duration::from_secs(1)).await;
    provided.add("stats_stream", stats.map(|_| "a stream"), |_| false);

    ensure(wrong.is_empty(), || wrong.join("; "))
}

/// Collects the methods that do not answer NotFound.
struct Answers<'a> {
    wrong: &'a mut Vec<String>,
    /// Unsupported, and whatever the caller takes for the default's answer, will do too.
    or_default: bool,
}

impl Answers<'_> {
    fn add<T: Debug>(&mut self, method: &str, answer: Result<T>, is_default: impl FnOnce(&T) -> bool) {
        match &answer {
            Err(AgentError::NotFound { .. }) => {}
            Err(AgentError::Unsupported(_)) if self.or_default => {}
            Ok(value) if self.or_default && is_default(value) => {}
            _ => self.wrong.push(format!("{method} answers {answer:?}")),
        }
    }
}
