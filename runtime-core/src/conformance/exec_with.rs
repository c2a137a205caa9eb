//! Further processes with options of their own.

use std::time::Duration;

use futures_util::StreamExt;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, within};
use super::{Check, Workload, check};
use crate::{AgentError, ContainerId, ExecEvent, ExecInput, ExecOptions};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("exec_with.options", "environment, user, directory and input of an exec's own", options),
        check!("exec_with.no_input", "without input it reads an end at once", no_input),
        check!("exec_with.tty", "on a terminal when asked for: what it writes comes as Stdout, errors too", tty),
        check!("exec_with.timeout", "after its time it is killed with all that it started", timeout),
        check!("exec_with.invalid", "an unknown user is an error, never root", invalid),
    ]
}

/// What an exec wrote to stdout and stderr, and its last event.
async fn run(
    case: &Case,
    id: &ContainerId,
    script: &str,
    options: &ExecOptions,
    input: Option<ExecInput>,
) -> Verdict<(String, String, Option<ExecEvent>)> {
    let command = case.command(&Workload::Script(script.to_owned()))?;
    let stream = case.runtime().exec_with(id, &command, options, input).await.or_unsupported("exec_with")?;
    let events: Vec<ExecEvent> = within("the exec", case.soon(), stream.collect()).await?;
    let (mut stdout, mut stderr) = (String::new(), String::new());
    for event in &events {
        match event {
            ExecEvent::Stdout(text) => stdout.push_str(text),
            ExecEvent::Stderr(text) => stderr.push_str(text),
            ExecEvent::Exit(_) => {}
        }
    }
    Ok((stdout, stderr, events.last().cloned()))
}

async fn options(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let options = ExecOptions {
        env: [("CONFORMANCE".to_owned(), "a b".to_owned())].into(),
        user: Some("12345".to_owned()),
        workdir: Some("/dev".to_owned()),
        ..ExecOptions::default()
    };
    let input: ExecInput = Box::pin(futures_util::stream::iter([b"from ".to_vec(), b"outside".to_vec()]));
    let (stdout, _, last) = run(&case, &id, "echo \"$CONFORMANCE\"; id -u; pwd; cat", &options, Some(input)).await?;
    equal("what it wrote", &stdout.as_str(), &"a b\n12345\n/dev\nfrom outside")?;
    equal("its last event", &last, &Some(ExecEvent::Exit(0)))
}

async fn no_input(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let (stdout, _, last) = run(&case, &id, "cat; echo end; exit 3", &ExecOptions::default(), None).await?;
    equal("what it wrote", &stdout.as_str(), &"end\n")?;
    equal("its last event", &last, &Some(ExecEvent::Exit(3)))
}

async fn tty(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let script = "if [ -t 1 ] && [ -t 2 ]; then echo terminal; else echo none; fi; echo error >&2";
    let (stdout, stderr, last) = run(&case, &id, script, &ExecOptions::default(), None).await?;
    equal("what it wrote without one", &(stdout.as_str(), stderr.as_str()), &("none\n", "error\n"))?;
    equal("its last event", &last, &Some(ExecEvent::Exit(0)))?;
    let options = ExecOptions { tty: true, ..ExecOptions::default() };
    let (stdout, stderr, last) = run(&case, &id, script, &options, None).await?;
    equal("what it wrote on one", &(stdout.as_str(), stderr.as_str()), &("terminal\r\nerror\r\n", ""))?;
    equal("its last event", &last, &Some(ExecEvent::Exit(0)))
}

async fn timeout(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    // A child that ignores TERM: nothing but a kill of the whole tree ends it.
    let script = "trap '' TERM HUP; sleep 86400 & echo $$ $!; wait; exit 0";
    // Time to begin; more of it where a busy machine needs that.
    let mut limit = Duration::from_secs(3);
    let (pids, last) = loop {
        let options = ExecOptions { timeout: Some(limit), ..ExecOptions::default() };
        match run(&case, &id, script, &options, None).await {
            Err(Stop::Unsupported(reason)) => return Err(Stop::Unsupported(reason)),
            Ok((pids, _, last)) if pids.split_whitespace().count() == 2 => break (pids, last),
            early if limit * 2 > case.soon() => {
                let (pids, _, last) = early?;
                return Err(Stop::Failed(format!("in {limit:?} it wrote {pids:?}, and ended with {last:?}")));
            }
            _ => limit *= 2,
        }
    };
    ensure(!matches!(last, Some(ExecEvent::Exit(0))), || "killed, it ended with 0".to_owned())?;
    let alive: String =
        pids.split_whitespace().map(|pid| format!("kill -0 {pid} 2>/dev/null && echo {pid};")).collect();
    case.until("some of it runs on", || async { Ok(case.ask(&id, &alive).await?.is_empty().then_some(())) }).await
}

async fn invalid(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let options = ExecOptions { user: Some("no-such-user".to_owned()), ..ExecOptions::default() };
    let command = case.command(&Workload::Script("id -u".to_owned()))?;
    let stream = match case.runtime().exec_with(&id, &command, &options, None).await {
        Ok(stream) => stream,
        Err(AgentError::Unsupported(reason)) => return Err(Stop::Unsupported(format!("exec_with: {reason}"))),
        Err(_) => return Ok(()),
    };
    let events: Vec<ExecEvent> = within("the exec", case.soon(), stream.collect()).await?;
    let ran = events.iter().any(|event| matches!(event, ExecEvent::Stdout(_) | ExecEvent::Exit(0)));
    ensure(!ran, || format!("it ran, and gave {events:?}"))
}
