//! Fields of the spec that the process itself can see.

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, refused, within};
use super::limits::{cgroup_files, found};
use super::{Check, Workload, check};
use crate::spec::RlimitSpec;
use crate::{AgentError, ContainerState, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("settings.rlimits", "the spec's resource limits, soft and hard, are the process's", rlimits),
        check!("settings.sysctls", "a kernel parameter of its own namespaces has the spec's value", sysctls),
        check!("settings.capabilities", "ALL can be dropped, and what is added then is all it has", capabilities),
        check!("settings.no_new_privileges", "off until asked for, and then on", no_new_privileges),
        check!("settings.pids", "it cannot have more processes than its limit", pids),
        check!("settings.pids_default", "where no limit of processes is set there is one", pids_default),
        check!("settings.stop_signal_number", "a stop signal by number is sent", stop_signal_number),
        check!("settings.labels", "a container's labels are kept, and the list has them", labels),
        check!("settings.agents_fields", "what is the agent's business is taken and not acted on", agents_fields),
        check!("settings.agents_env", "$E:VAR is the agent's variable; one that it has not is an error", agents_env),
        check!(
            "settings.secrets",
            "$S:name without a provider, or unknown to it, fails and is never passed on",
            secrets
        ),
        check!("settings.secret", "$S:name is the provider's value in the process's environment", secret),
    ]
}

async fn rlimits(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::Script("ulimit -Sn; ulimit -Hn".to_owned()))?;
    spec.rlimits.insert("nofile".to_owned(), RlimitSpec { soft: 100, hard: 200 });
    let (_, lines) = case.output(&spec, 2).await?;
    equal("the soft and hard limit of open files", &lines, &vec!["100".to_owned(), "200".to_owned()])
}

async fn sysctls(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::Script("cat /proc/sys/kernel/msgmax".to_owned()))?;
    spec.sysctls.insert("kernel.msgmax".to_owned(), "1234".to_owned());
    equal("kernel.msgmax", &case.output(&spec, 1).await?.1, &vec!["1234".to_owned()])
}

/// What the kernel says of a shell's own `field`.
fn status_of(field: &str) -> Workload {
    Workload::Script(format!("while read -r key value; do [ $key = {field}: ] && echo $value; done < /proc/$$/status"))
}

async fn capabilities(case: Case) -> Verdict {
    let mut spec = case.spec(&status_of("CapEff"))?;
    spec.drop_capabilities = vec!["ALL".to_owned()];
    for (added, wanted) in [(vec![], "0000000000000000"), (vec!["CAP_CHOWN".to_owned()], "0000000000000001")] {
        spec.capabilities = added;
        let what = format!("the effective set with {:?} added", spec.capabilities);
        equal(&what, &case.output(&spec, 1).await?.1, &vec![wanted.to_owned()])?;
    }
    Ok(())
}

async fn no_new_privileges(case: Case) -> Verdict {
    let mut spec = case.spec(&status_of("NoNewPrivs"))?;
    for (asked, wanted) in [(false, "0"), (true, "1")] {
        spec.no_new_privileges = asked;
        equal(&format!("NoNewPrivs, asked {asked}"), &case.output(&spec, 1).await?.1, &vec![wanted.to_owned()])?;
    }
    Ok(())
}

async fn pids(case: Case) -> Verdict {
    // A shell that cannot fork ends with an error.
    let script = "(i=0; while [ $i -lt 40 ]; do sleep 100 & i=$((i+1)); done; exit 0) 2>/dev/null && echo all || \
                  echo refused";
    let mut spec = case.spec(&Workload::Script(script.to_owned()))?;
    for (limit, wanted) in [(None, "all"), (Some(20), "refused")] {
        spec.resources.pids = limit;
        equal(&format!("40 processes, limit {limit:?}"), &case.output(&spec, 1).await?.1, &vec![wanted.to_owned()])?;
    }
    Ok(())
}

async fn pids_default(case: Case) -> Verdict {
    let line = case.answer(&case.script(cgroup_files("pids.max", "pids", &["pids.max"]))?).await?;
    let (_, values) = found(&line)?;
    ensure(values.iter().all(|value| value.parse().is_ok_and(|limit: u32| limit > 40)), || {
        format!("the kernel's limit where none is set is {values:?}")
    })
}

async fn stop_signal_number(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::ExitOn { signal: "HUP", code: 11 })?;
    spec.stop_signal = Some("1".to_owned()); // HUP on every architecture
    let id = case.start_spec(&spec).await?;
    case.line(&id, "ready").await?;
    within("stop", case.soon(), case.runtime().stop_container(&id, case.soon())).await?.or_fail("stop_container")?;
    let code = case.wait(&id).await?;
    ensure(code == 11, || format!("it ended with {code}, not by its own reaction to HUP"))
}

async fn labels(case: Case) -> Verdict {
    let (id, mut spec) = (case.id(), case.spec(&Workload::exit(0))?);
    spec.labels = [("tier", "front"), ("empty", "")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    case.runtime().create_container(&id, &spec).await.or_unsupported("create_container")?;
    let all = case.runtime().list_containers().await.or_unsupported("list_containers")?;
    let mine: Vec<_> = all.iter().filter(|one| one.id == id).map(|one| &one.labels).collect();
    equal("its labels in the list", &mine, &vec![&spec.labels])
}

async fn agents_fields(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::exit(42))?;
    spec.schedule = Some("0 0 1 1 *".into());
    spec.scale = Some(serde_json::json!({"min": 0, "max": 3}));
    spec.depends = Some(serde_json::json!([{"service": "conformance-no-such-service"}]));
    spec.errors = Some(serde_json::json!({"on_init": "restart"}));
    spec.node_mode = Some("dedicated".into());
    spec.node_selector = Some(serde_json::json!({"labels": {"no": "such node"}}));
    let id = case.start_spec(&spec).await?;
    equal("the exit code", &case.wait(&id).await?, &42)?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the state", &state, &ContainerState::Exited { code: 42 })
}

/// That a container made from `spec` does not come to run.
async fn is_refused(case: &Case, what: &str, spec: &ServiceSpec) -> Verdict {
    let id = case.id();
    let ran = match case.runtime().create_container(&id, spec).await {
        Ok(()) => case.runtime().start_container(&id).await,
        error => error,
    };
    if let Err(AgentError::Unsupported(_)) = ran {
        return ran.or_unsupported(what);
    }
    refused(what, ran, |_| true)
}

async fn agents_env(case: Case) -> Verdict {
    // The suite runs in the agent.
    let Ok(path) = std::env::var("PATH") else {
        return Err(Stop::Unsupported("this process has no PATH".to_owned()));
    };
    let mut spec = case.script("echo \"$CONFORMANCE\"")?;
    spec.env.insert("CONFORMANCE".to_owned(), "$E:PATH".to_owned());
    equal("the agent's PATH in the container", &case.answer(&spec).await?, &path)?;
    spec.env.insert("CONFORMANCE".to_owned(), "$E:CONFORMANCE_NO_SUCH_VARIABLE".to_owned());
    is_refused(&case, "a variable that the agent has not", &spec).await
}

async fn secrets(case: Case) -> Verdict {
    let mut spec = case.script("echo \"$CONFORMANCE\"")?;
    spec.env.insert("CONFORMANCE".to_owned(), "$S:conformance-no-such-secret".to_owned());
    is_refused(&case, "a secret that nobody supplies", &spec).await
}

async fn secret(case: Case) -> Verdict {
    let Some((name, value)) = case.backend().secret() else {
        return Err(Stop::Unsupported("the backend names no secret that its provider knows".to_owned()));
    };
    let mut spec = case.script("echo \"$CONFORMANCE\"")?;
    spec.env.insert("CONFORMANCE".to_owned(), format!("$S:{name}"));
    equal("the secret in the container", &case.answer(&spec).await?, &value)
}
