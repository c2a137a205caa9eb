//! Fields of the spec that the process itself can see.

use super::case::{Case, OrStop, Verdict, ensure, equal, within};
use super::{Check, Workload, check};
use crate::spec::RlimitSpec;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("settings.rlimits", "the spec's resource limits, soft and hard, are the process's", rlimits),
        check!("settings.sysctls", "a kernel parameter of its own namespaces has the spec's value", sysctls),
        check!("settings.capabilities", "ALL can be dropped, and what is added then is all it has", capabilities),
        check!("settings.no_new_privileges", "off until asked for, and then on", no_new_privileges),
        check!("settings.pids", "it cannot have more processes than its limit", pids),
        check!("settings.stop_signal_number", "a stop signal by number is sent", stop_signal_number),
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

async fn stop_signal_number(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::ExitOn { signal: "HUP", code: 11 })?;
    spec.stop_signal = Some("1".to_owned()); // HUP on every architecture
    let id = case.start_spec(&spec).await?;
    case.line(&id, "ready").await?;
    within("stop", case.soon(), case.runtime().stop_container(&id, case.soon())).await?.or_fail("stop_container")?;
    let code = case.wait(&id).await?;
    ensure(code == 11, || format!("it ended with {code}, not by its own reaction to HUP"))
}
