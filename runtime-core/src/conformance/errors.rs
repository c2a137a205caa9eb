//! What an error tells.

use std::time::Duration;

use super::case::{Case, Stop, Verdict, ensure};
use super::{Check, Workload, check};
use crate::{AgentError, PullPolicy};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("errors.code", "an error's own code is stable: dotted words at the end of its message", code),
        check!("errors.names", "an error names the container or the image that it is about", names),
        check!("errors.text", "an error's text is one line that says something", text),
    ]
}

/// Some errors that every backend has: what was done, what it was about, and what came of it.
async fn some(case: &Case) -> Verdict<Vec<(&'static str, String, AgentError)>> {
    let runtime = case.runtime();
    let mut errors = Vec::new();
    let mut add = |what, about: String, result: crate::Result<()>| match result {
        Err(error) => {
            errors.push((what, about, error));
            Ok(())
        }
        Ok(()) => Err(Stop::Failed(format!("{what} is accepted"))),
    };
    let unknown = case.id();
    add("the state of an unknown container", unknown.to_string(), runtime.container_state(&unknown).await.map(drop))?;
    let stopped = runtime.stop_container(&unknown, Duration::ZERO).await;
    add("a stop of an unknown container", unknown.to_string(), stopped)?;
    let id = case.create(&Workload::NotFound).await?;
    add("a second create", id.to_string(), runtime.create_container(&id, &case.spec(&Workload::exit(0))?).await)?;
    add("a start without a program", id.to_string(), runtime.start_container(&id).await)?;
    let absent = "conformance.invalid/no/such:1";
    let pulled = runtime.pull_image_with_policy(absent, PullPolicy::Never, None).await;
    add("a pull of what is not here", absent.to_owned(), pulled)?;
    let mut spec = case.spec(&Workload::exit(0))?;
    absent.clone_into(&mut spec.image.name);
    spec.image.pull_policy = PullPolicy::Never;
    let other = case.id();
    let created = runtime.create_container(&other, &spec).await;
    add("a create from what is not here", absent.to_owned(), created)?;
    Ok(errors)
}

async fn code(case: Case) -> Verdict {
    let (first, second) = (some(&case).await?, some(&case).await?);
    let mut own = 0;
    for ((what, _, one), (_, _, other)) in first.iter().zip(&second) {
        ensure(one.code() == other.code(), || format!("{what} has the code {}, then {}", one.code(), other.code()))?;
        let text = one.to_string();
        // What looks like a code, and is none, is read by nobody.
        let bracketed = text.strip_suffix(']').and_then(|text| text.rsplit_once(" [")).map(|(_, code)| code);
        ensure(bracketed.is_none_or(|code| code == one.code()), || format!("{what}: {text:?} ends in no code"))?;
        own += usize::from(bracketed.is_some());
    }
    ensure(own == 0 || own == first.len(), || {
        let missing: Vec<&str> = first.iter().filter(|(.., one)| !one.code().contains('.')).map(|one| one.0).collect();
        format!("some errors have a code of their own, and these have none: {missing:?}")
    })?;
    if own == 0 {
        return Err(Stop::Unsupported("this backend's errors have no codes of their own".to_owned()));
    }
    Ok(())
}

async fn names(case: Case) -> Verdict {
    for (what, about, error) in some(&case).await? {
        ensure(error.to_string().contains(&about), || format!("{what} does not name {about}: {error}"))?;
    }
    Ok(())
}

async fn text(case: Case) -> Verdict {
    for (what, about, error) in some(&case).await? {
        let text = error.to_string();
        ensure(!text.trim_end_matches(']').contains(['\n', '\r']), || format!("{what} has several lines: {text:?}"))?;
        // Beyond the names of the call and of what it was about.
        let rest = text.replace(&about, "");
        ensure(rest.split_whitespace().count() >= 3, || format!("{what} says nothing but {text:?}"))?;
    }
    Ok(())
}
