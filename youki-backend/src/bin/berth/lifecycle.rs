//! `start`, `stop`, `restart`, `kill`, `pause`, `unpause`, `update`, `rm`, `wait`, `shutdown`: one verb on several containers. One that
//! fails does not keep it from the rest.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use runtime_core::ContainerId;
use runtime_core::spec::ResourcesSpec;
use serde_json::json;
use youki_backend::{Changes, DEFAULT_STOP_TIMEOUT, Error};

use crate::cli::{KillArgs, NamesArgs, RmArgs, ShutdownArgs, StopArgs, UpdateArgs};
use crate::failure::{Failure, Result, say, warn};
use crate::flag_values::{self, stop_timeout};
use crate::named_flags::naming_its_flag;
use crate::output;
use crate::session::Session;

/// Containers that are worked on at once: more than a host has, but for its descriptors.
const AT_ONCE: usize = 256;

/// `berth start`
pub async fn start(session: &Session, args: &NamesArgs) -> Result<i32> {
    each_named(session, &args.names, async |id| Ok(session.runtime.start(&id).await.map(|()| true)?)).await
}

/// `berth stop`
pub async fn stop(session: &Session, args: &StopArgs) -> Result<i32> {
    each_named(session, &args.names, async |id| stop_one(session, args, &id).await.map(|()| true)).await
}

/// `berth restart`: of one that does not run, or never did, a start.
pub async fn restart(session: &Session, args: &StopArgs) -> Result<i32> {
    let verb = async |id: ContainerId| {
        // The stop would be its end.
        let now = session.runtime.inspect(&id).await?;
        if now.spec.remove_on_exit {
            return Err(Failure::unsupported(format_args!("a restart of {id}, which is removed when it ends")));
        }
        let is_created = now.state == "initializing" && now.outcome.is_none() && now.earlier_attempts.is_empty();
        if !is_created {
            stop_one(session, args, &id).await?;
        }
        Ok(session.runtime.start(&id).await.map(|()| true)?)
    };
    each_named(session, &args.names, verb).await
}

async fn stop_one(session: &Session, args: &StopArgs, id: &ContainerId) -> Result<()> {
    let timeout = args.time.map(stop_timeout);
    let stopped = match &args.signal {
        Some(signal) => session.runtime.stop_by(id, signal, timeout).await,
        None => session.runtime.stop(id, timeout).await,
    };
    warn_of_volumes(stopped.map_err(|error| naming_its_flag(error.into()))?);
    Ok(())
}

/// `berth kill`
pub async fn kill(session: &Session, args: &KillArgs) -> Result<i32> {
    let verb = async |id: ContainerId| {
        let killed = session.runtime.kill(&id, Some(&args.signal)).await;
        killed.map(|()| true).map_err(|error| naming_its_flag(error.into()))
    };
    each_named(session, &args.names, verb).await
}

/// `berth pause`
pub async fn pause(session: &Session, args: &NamesArgs) -> Result<i32> {
    each_named(session, &args.names, async |id| Ok(session.runtime.pause(&id).await.map(|()| true)?)).await
}

/// `berth unpause`
pub async fn unpause(session: &Session, args: &NamesArgs) -> Result<i32> {
    each_named(session, &args.names, async |id| Ok(session.runtime.unpause(&id).await.map(|()| true)?)).await
}

/// `berth update`
pub async fn update(session: &Session, args: &UpdateArgs) -> Result<i32> {
    let resources = ResourcesSpec {
        memory: args.memory.as_deref().map(|text| flag_values::memory("--memory", text)).transpose()?,
        cpu: args.cpus.as_deref().map(flag_values::cpus).transpose()?,
        cpu_shares: args.cpu_shares,
        cpuset: args.cpuset_cpus.clone(),
        pids: args.pids_limit.map(flag_values::pids_limit).transpose()?,
        ..ResourcesSpec::default()
    };
    let restart_policy = args.restart.as_deref().map(flag_values::restart).transpose()?;
    let changes = Changes { resources, restart_policy };
    if changes == Changes::default() {
        return Err(Failure::usage("there is nothing to change: see `berth update --help`"));
    }
    let verb = async |id: ContainerId| {
        let updated = session.runtime.update(&id, changes.clone()).await;
        updated.map(|()| true).map_err(|error| naming_its_flag(error.into()))
    };
    each_named(session, &args.names, verb).await
}

/// `berth shutdown`: stops every container, each in its own time up to a bound for all, and beside that tries again what S3
/// refused; then once more what is owed by then.
pub async fn shutdown(session: &Session, args: &ShutdownArgs) -> Result<i32> {
    let all = session.runtime.container_ids()?.into_iter().map(|id| id.to_string()).collect::<Vec<_>>();
    let longest = stop_timeout(args.timeout);
    // What is not durable after that is tried again, and told then. Whose state cannot be told is stopped all the same.
    let stop = async |id: ContainerId| {
        let (own, is_pending) = match session.runtime.inspect(&id).await {
            Ok(known) if matches!(known.state, "exited" | "failed") => return Ok(false),
            Ok(known) => (known.spec.stop_timeout, known.state == "pending"),
            Err(_) => (None, false),
        };
        let timeout = own.unwrap_or(DEFAULT_STOP_TIMEOUT).min(longest);
        // Its pull may take hours.
        let patience = if is_pending { timeout } else { Duration::MAX };
        match tokio::time::timeout(patience, session.runtime.stop(&id, Some(timeout))).await {
            Err(_) => {
                say(&format!("{id}: left to whoever creates it, which takes longer than {timeout:?}"));
                Ok(false)
            }
            // One with `--rm` has ended by itself meanwhile.
            Ok(Err(Error::NoSuchContainer { .. })) => Ok(false),
            Ok(stopped) => Ok(stopped.map(|_| true)?),
        }
    };
    let mut stopping = std::pin::pin!(each_named(session, &all, stop));
    // Once all are stopped, what is under way is waited for by the try that follows, in its time.
    let mut status = tokio::select! {
        stopped = &mut stopping => stopped?,
        _ = session.runtime.retry_volumes() => stopping.await?,
    };
    let owed = session.runtime.retry_volumes().await?;
    if !owed.is_empty() {
        warn_of_volumes(owed);
        status = 1;
    }
    if args.dismantle {
        session.runtime.dismantle().await?;
    }
    Ok(status)
}

/// `berth rm`
pub async fn rm(session: &Session, args: &RmArgs) -> Result<i32> {
    let verb = async |id: ContainerId| match session.runtime.remove(&id, args.force).await {
        Err(Error::NoSuchContainer { .. }) if args.force => Ok(false),
        other => Ok(other.map(warn_of_volumes).map(|()| true)?),
    };
    let status = each_named(session, &args.names, verb).await;
    session.runtime.deletions().await;
    status
}

/// `berth wait`
pub async fn wait(session: &Session, args: &NamesArgs) -> Result<i32> {
    let mut outcomes = Vec::new();
    let verb = async |id: ContainerId| Ok(session.runtime.wait(&id).await?);
    let status = each(session, &args.names, verb, |name, outcome| {
        if session.json {
            // One that cannot be waited for is not among them: whose each is must be told.
            let mut outcome = json!(outcome);
            outcome["container"] = name.into();
            outcomes.push(outcome);
            return Ok(());
        }
        output::print_line(&outcome.exit_code.to_string())
    })
    .await?;
    if session.json {
        output::print_json(&outcomes)?;
    }
    Ok(status)
}

/// As [`each`], with a `verb` that says whether there was anything to do; prints the names of those where there was.
async fn each_named(
    session: &Session,
    names: &[String],
    verb: impl AsyncFn(ContainerId) -> Result<bool>,
) -> Result<i32> {
    let mut listed = Vec::new();
    let status = each(session, names, verb, |name, done| {
        match (done, session.json) {
            (false, _) => {}
            (true, true) => listed.push(name.to_owned()),
            (true, false) => output::print_line(name)?,
        }
        Ok(())
    })
    .await?;
    // What has failed said so.
    if session.json && (status == 0 || !listed.is_empty()) {
        output::print_json(&listed)?;
    }
    Ok(status)
}

/// Does `verb` to each container, several at once, and tells in the order of the names. The exit code: 1 if any failed, 2
/// if what was asked for is not acceptable.
async fn each<T>(
    session: &Session,
    names: &[String],
    verb: impl AsyncFn(ContainerId) -> Result<T>,
    mut done: impl FnMut(&str, T) -> Result<()>,
) -> Result<i32> {
    let verb = &verb;
    let mut results = stream::iter(names)
        .map(|name| async move {
            let result = match name.parse() {
                Ok(id) => verb(id).await,
                Err(_) => Err(no_such(name)),
            };
            (name, result)
        })
        .buffered(AT_ONCE);
    let mut status = 0;
    while let Some((name, result)) = results.next().await {
        match result {
            Ok(value) => done(name, value)?,
            Err(failure) => status = status.max(session.told(failure)),
        }
    }
    Ok(status)
}

/// A name that cannot be a container's names none.
pub fn no_such(name: &str) -> Failure {
    Error::NoSuchContainer { id: name.to_owned() }.into()
}

/// The container that `name` means.
pub fn container(name: &str) -> Result<ContainerId> {
    name.parse().map_err(|_| no_such(name))
}

/// Says which named volumes of an ended container are not durable yet, and which this host lost: what those held is in
/// S3, but not in their main line.
pub fn warn_of_volumes(owed: Vec<(String, volumes_s3::Error)>) {
    for (volume, error) in owed {
        let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        if matches!(error, volumes_s3::Error::Fenced { .. }) {
            warn(&format!("{error}{hint}"));
        } else {
            // Trouble that passes is the keeper's.
            let hint = if matches!(error, volumes_s3::Error::Damaged { .. }) { hint } else { String::new() };
            let why = Failure::from(error).text();
            let why = why.strip_prefix(&format!("volume {volume}: ")).unwrap_or(&why);
            warn(&format!("volume {volume}: not durable yet: {why}{hint}"));
        }
    }
}
