//! The standard streams of a running container: Unsupported is an answer.

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, refused, within};
use super::{Check, Workload, check};
use crate::{AgentError, AttachEvent, AttachStream, ContainerId, ContainerState, ExecInput, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("attach.output", "whoever attaches hears what is written from then on, up to its end", output),
        check!("attach.bytes", "bytes come as they are written, each stream in its order", bytes),
        check!("attach.input", "what is typed into it it reads, and the end of the input too", input),
        check!("attach.dropped", "a dropped attach ends its input, and not the container", dropped),
        check!(
            "attach.terminal",
            "a terminal is typed into by whoever is attached, and its input stays open",
            terminal
        ),
        check!("attach.ended", "one that does not run cannot be attached to", ended),
    ]
}

async fn attach(case: &Case, id: &ContainerId, input: Option<ExecInput>) -> Verdict<AttachStream> {
    case.runtime().attach(id, input).await.or_unsupported("attach")
}

/// An input that lasts until its sender is dropped.
fn keys() -> (mpsc::UnboundedSender<Vec<u8>>, Option<ExecInput>) {
    let (keys, typed) = mpsc::unbounded_channel::<Vec<u8>>();
    let next = |mut typed: mpsc::UnboundedReceiver<Vec<u8>>| async { typed.recv().await.map(|key| (key, typed)) };
    (keys, Some(futures_util::stream::unfold(typed, next).boxed()))
}

fn press(keys: &mpsc::UnboundedSender<Vec<u8>>, bytes: &[u8]) -> Verdict {
    keys.send(bytes.to_vec()).map_err(|_| Stop::Failed("the input is dropped, and nothing of it was read".to_owned()))
}

/// What comes on both streams until that of standard output ends with `text`, or until the end where that is empty.
async fn read(case: &Case, attached: &mut AttachStream, text: &str) -> Verdict<(Vec<u8>, Vec<u8>)> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while text.is_empty() || !stdout.ends_with(text.as_bytes()) {
        let what = format!("what follows on {:?}", String::from_utf8_lossy(&stdout));
        match within(&what, case.soon(), attached.next()).await? {
            Some(Ok(AttachEvent::Stdout(bytes))) => stdout.extend(bytes),
            Some(Ok(AttachEvent::Stderr(bytes))) => stderr.extend(bytes),
            Some(Err(error)) => return Err(error).or_fail("what is read"),
            None if text.is_empty() => break,
            None => return Err(Stop::Failed(format!("it ends after {:?}", String::from_utf8_lossy(&stdout)))),
        }
    }
    Ok((stdout, stderr))
}

async fn output(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ReportSignals).await?;
    let (mut one, mut other) = (attach(&case, &id, None).await?, attach(&case, &id, None).await?);
    for signal in ["HUP", "USR1"] {
        let line = format!("got {signal}\n");
        case.runtime().kill_container(&id, Some(signal)).await.or_unsupported("kill_container")?;
        for attached in [&mut one, &mut other] {
            let (stdout, _) = read(&case, attached, &line).await?;
            equal(
                "what is heard, and nothing from before",
                &String::from_utf8_lossy(&stdout).as_ref(),
                &line.as_str(),
            )?;
        }
    }
    drop(one);
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the state after one has gone", &state, &ContainerState::Running)?;
    case.runtime().kill_container(&id, None).await.or_fail("kill_container")?;
    equal("what the other hears at the end", &read(&case, &mut other, "").await?, &(Vec::new(), Vec::new()))
}

/// Runs once it is told to by an exec, so that nothing is missed.
fn when_told(script: &str) -> String {
    format!("echo ready; until [ -e /conformance-go ]; do sleep 0.1 2>/dev/null || sleep 1; done; {script}")
}

async fn bytes(case: Case) -> Verdict {
    let id =
        case.start_ready(&Workload::Script(when_told(r"printf '\377\000raw\r\nno end'; echo err >&2; exit 3"))).await?;
    let mut attached = attach(&case, &id, None).await?;
    case.ask(&id, "echo > /conformance-go").await?;
    let (stdout, stderr) = read(&case, &mut attached, "").await?;
    equal("what was written", &(stdout, stderr), &(b"\xff\x00raw\r\nno end".to_vec(), b"err\n".to_vec()))?;
    equal("the exit code", &case.wait(&id).await?, &3)
}

async fn input(case: Case) -> Verdict {
    let spec = ServiceSpec { stdin: true, ..case.script("echo ready; read -r line; echo \"got $line\"; cat; exit 3")? };
    let id = case.start_spec_ready(&spec).await?;
    let (keys, typed) = keys();
    let mut attached = attach(&case, &id, typed).await?;
    press(&keys, b"typed\n")?;
    let (stdout, _) = read(&case, &mut attached, "got typed\n").await?;
    equal("what it wrote", &stdout, &b"got typed\n".to_vec())?;
    press(&keys, b"\xff\x00raw")?;
    drop(keys);
    let (stdout, _) = read(&case, &mut attached, "").await?;
    equal("what it passed on", &stdout, &b"\xff\x00raw".to_vec())?;
    equal("the exit code", &case.wait(&id).await?, &3)
}

async fn dropped(case: Case) -> Verdict {
    let script = format!("echo up; cat; {}", Workload::idle());
    let id = case.start_spec(&ServiceSpec { stdin: true, ..case.script(script)? }).await?;
    case.line(&id, "up").await?;
    let (keys, typed) = keys();
    let mut attached = attach(&case, &id, typed).await?;
    press(&keys, b"still open\n")?;
    read(&case, &mut attached, "still open\n").await?;
    drop(attached);
    // What follows on the `cat` says so.
    case.line(&id, "ready").await?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("its state", &state, &ContainerState::Running)
}

async fn terminal(case: Case) -> Verdict {
    let script = "stty -echo -onlcr; echo ready; read -r a; echo \"1 $a\"; read -r b; echo \"2 $b\"; read -r c; exit 4";
    let id = case.start_spec(&ServiceSpec { stdin: true, tty: true, ..case.script(script)? }).await?;
    case.line(&id, "ready").await?;
    let (first_keys, typed) = keys();
    let mut first = attach(&case, &id, typed).await?;
    press(&first_keys, b"one\n")?;
    read(&case, &mut first, "1 one\n").await?;
    // The end of one's input is not the terminal's.
    drop(first_keys);
    let (second_keys, typed) = keys();
    let mut second = attach(&case, &id, typed).await?;
    press(&second_keys, b"two\n")?;
    for attached in [&mut first, &mut second] {
        read(&case, attached, "2 two\n").await?;
    }
    press(&second_keys, b"three\n")?;
    equal("the exit code", &within("its end", case.soon(), case.wait(&id)).await??, &4)
}

async fn ended(case: Case) -> Verdict {
    let id = case.start(&Workload::exit(0)).await?;
    case.wait(&id).await?;
    let attached = case.runtime().attach(&id, None).await.map(drop);
    if let Err(AgentError::Unsupported(_)) = attached {
        return attached.or_unsupported("attach");
    }
    let is_other = |error: &AgentError| !matches!(error, AgentError::NotFound { .. });
    refused("an attach to one that has ended", attached, is_other)?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    ensure(state == (ContainerState::Exited { code: 0 }), || format!("then its state is {state:?}"))
}
