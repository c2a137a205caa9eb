//! Environment, user, pid.

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, refused};
use super::{Ability, Check, Workload, check};
use crate::AgentError;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("process.env", "the spec's environment reaches the process as it is", env),
        check!("process.workdir", "it runs in the spec's working directory", workdir),
        check!("process.user_number", "a user and group by number, known to the image or not", user_number),
        check!("process.user_name", "a user by name has the ids the image knows", user_name),
        check!("process.user_unknown", "an unknown user, or a number too large, is an error, never root", user_unknown),
        check!("process.hostname", "it sees the spec's host name", hostname),
        check!("process.read_only", "a read-only root cannot be written", read_only),
        check!("process.pid", "a pid while it runs, None before and after", pid),
    ]
}

async fn env(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::Script("printf '%s\\n' \"$A\" \"$B\" \"$C\"".to_owned()))?;
    for (name, value) in [("A", "x=1 'two' \"three\" $HOME \\"), ("B", ""), ("C", "äöü €")] {
        spec.env.insert(name.to_owned(), value.to_owned());
    }
    let (_, lines) = case.output(&spec, 3).await?;
    equal("what the process sees", &lines, &vec![spec.env["A"].clone(), String::new(), spec.env["C"].clone()])
}

async fn workdir(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::Script("pwd".to_owned()))?;
    spec.command.workdir = Some("/dev".to_owned());
    equal("the working directory", &case.output(&spec, 1).await?.1, &vec!["/dev".to_owned()])
}

async fn ids_as(case: &Case, user: &str) -> Verdict<Vec<String>> {
    let mut spec = case.spec(&Workload::Script("id -u; id -g".to_owned()))?;
    spec.user = Some(user.to_owned());
    Ok(case.output(&spec, 2).await?.1)
}

async fn user_number(case: Case) -> Verdict {
    equal("ids as 12345:23456", &ids_as(&case, "12345:23456").await?, &vec!["12345".to_owned(), "23456".to_owned()])?;
    equal("uid as 12345", &ids_as(&case, "12345").await?.first(), &Some(&"12345".to_owned()))
}

async fn user_name(case: Case) -> Verdict {
    let Some(user) = case.backend().user() else {
        return Err(Stop::Unsupported("the backend names no user of its image".to_owned()));
    };
    equal("ids by name", &ids_as(&case, &user.name).await?, &vec![user.uid.to_string(), user.gid.to_string()])?;
    let found = ids_as(&case, &format!("{}:7", user.name)).await?;
    equal("ids with another group", &found, &vec![user.uid.to_string(), "7".to_owned()])
}

async fn user_unknown(case: Case) -> Verdict {
    for user in ["no-such-user", "4294967296", "-1", "0:no-such-group", "1:4294967296"] {
        let mut spec = case.spec(&Workload::Script("id -u".to_owned()))?;
        spec.user = Some(user.to_owned());
        let id = case.id();
        let ran = match case.runtime().create_container(&id, &spec).await {
            Ok(()) => case.runtime().start_container(&id).await,
            Err(AgentError::Unsupported(reason)) => return Err(Stop::Unsupported(reason)),
            error => error,
        };
        refused(&format!("user {user:?}"), ran, |_| true)?;
    }
    Ok(())
}

async fn hostname(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::Script("uname -n".to_owned()))?;
    spec.hostname = Some("conformance-host".to_owned());
    equal("the host name", &case.output(&spec, 1).await?.1, &vec!["conformance-host".to_owned()])
}

async fn read_only(case: Case) -> Verdict {
    let script = "if (: > /conformance) 2>/dev/null; then echo written; else echo refused; fi".to_owned();
    let mut spec = case.spec(&Workload::Script(script))?;
    equal("writing to an ordinary root", &case.output(&spec, 1).await?.1, &vec!["written".to_owned()])?;
    spec.read_only = true;
    equal("writing to a read-only root", &case.output(&spec, 1).await?.1, &vec!["refused".to_owned()])
}

async fn pid(case: Case) -> Verdict {
    let id = case.create(&Workload::idle()).await?;
    let found = case.runtime().get_container_pid(&id).await;
    if case.lacks(Ability::Pid) {
        return honest("get_container_pid", found);
    }
    equal("the pid before the start", &found.or_fail("get_container_pid")?, &None)?;
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    let pid = async || case.runtime().get_container_pid(&id).await.or_fail("get_container_pid");
    let running = pid().await?;
    ensure(running.is_some_and(|pid| pid > 1), || format!("the pid while it runs is {running:?}"))?;
    case.line(&id, "ready").await?;
    equal("the pid a little later", &pid().await?, &running)?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    equal("the pid after the exit", &pid().await?, &None)
}

/// What a backend without an ability must answer.
pub(super) fn honest<T: std::fmt::Debug>(method: &str, answer: crate::Result<T>) -> Verdict {
    match answer {
        Err(AgentError::Unsupported(reason)) => Err(Stop::Unsupported(format!("{method}: {reason}"))),
        other => Err(Stop::Failed(format!("the backend has no {method}, and answers {other:?}"))),
    }
}
