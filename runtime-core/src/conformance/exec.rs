//! Further processes, buffered.

use futures_util::future::try_join_all;

use super::case::{Case, OrStop, Verdict, ensure, equal, refused, within};
use super::{Check, Workload, check};
use crate::AgentError;
use crate::LogStream::{Stderr, Stdout};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("exec.output", "exit code, stdout and stderr, each as it was", output),
        check!("exec.codes", "the exit code is the process's own", codes),
        check!("exec.signal", "128+N for a signal", signal),
        check!("exec.empty", "an empty command is InvalidSpec", empty),
        check!("exec.not_found", "127 when the program does not exist", not_found),
        check!("exec.not_executable", "126 when it cannot be executed", not_executable),
        check!("exec.not_utf8", "output that is not UTF-8 is replaced, not lost", not_utf8),
        check!("exec.not_running", "exec in a container that does not run is an error", not_running),
        check!("exec.parallel", "many at once, each with its own answer", parallel),
        check!("exec.large", "output larger than a pipe holds, on both streams, wedges nothing", large),
        check!("exec.bounded", "what is kept of its output is bounded, and says so where it was cut", bounded),
        check!("exec.environment", "it has the container's environment and working directory", environment),
        check!("exec.leaves_init", "it does not disturb the container's own process", leaves_init),
    ]
}

async fn output(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let chunks = vec![(Stdout, b"out 1\n".to_vec()), (Stderr, b"err\n\n".to_vec()), (Stdout, b"out 2".to_vec())];
    let found = case.exec(&id, &Workload::Write { chunks, code: 3 }).await?;
    equal("(code, stdout, stderr)", &found, &(3, "out 1\nout 2".to_owned(), "err\n\n".to_owned()))?;
    let silent = case.exec(&id, &Workload::exit(0)).await?;
    equal("(code, stdout, stderr) of a silent one", &silent, &(0, String::new(), String::new()))
}

async fn codes(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    for code in [0, 1, 42, 126, 127, 255] {
        equal("the exit code", &case.exec(&id, &Workload::exit(code)).await?.0, &i32::from(code))?;
    }
    Ok(())
}

async fn signal(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    // These two have the same number on every architecture.
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        let (found, ..) = case.exec(&id, &Workload::Script(format!("kill -{signal} $$"))).await?;
        equal(&format!("the exit code after {signal}"), &found, &code)?;
    }
    Ok(())
}

async fn empty(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let invalid = |error: &AgentError| matches!(error, AgentError::InvalidSpec(_));
    refused("exec of nothing", case.runtime().exec(&id, &[]).await, invalid)?;
    let stream = case.runtime().exec_stream(&id, &[]).await.map(|_| "a stream");
    refused("exec_stream of nothing", stream, invalid)
}

async fn not_found(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    equal("the exit code", &case.exec(&id, &Workload::NotFound).await?.0, &127)
}

async fn not_executable(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    equal("the exit code", &case.exec(&id, &Workload::NotExecutable).await?.0, &126)
}

async fn not_utf8(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let chunks = vec![(Stdout, b"a\xffb \xc3".to_vec()), (Stdout, b"\xa9\n".to_vec())];
    let (_, stdout, _) = case.exec(&id, &Workload::Write { chunks, code: 0 }).await?;
    equal("stdout", &stdout.as_str(), &"a\u{fffd}b é\n")
}

async fn not_running(case: Case) -> Verdict {
    let command = case.command(&Workload::exit(0))?;
    let known = |error: &AgentError| !matches!(error, AgentError::NotFound { .. });
    let created = case.create(&Workload::idle()).await?;
    refused("exec before the start", case.runtime().exec(&created, &command).await, known)?;
    let exited = case.start(&Workload::exit(0)).await?;
    case.wait(&exited).await?;
    refused("exec after the exit", case.runtime().exec(&exited, &command).await, known)?;
    let stream = case.runtime().exec_stream(&exited, &command).await.map(|_| "a stream");
    refused("exec_stream after the exit", stream, known)
}

async fn parallel(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let one = async |n: u8| {
        let chunks = vec![(Stdout, format!("{n}\n").into_bytes())];
        case.exec(&id, &Workload::Write { chunks, code: n }).await
    };
    let answers = within("16 execs", case.soon(), try_join_all((0..16).map(one))).await??;
    for (n, answer) in (0..16).zip(answers) {
        equal("(code, stdout, stderr)", &answer, &(n, format!("{n}\n"), String::new()))?;
    }
    Ok(())
}

async fn large(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let script = "s=x; i=0; while [ $i -lt 18 ]; do s=$s$s; i=$((i+1)); done; echo $s >&2; echo $s; exit 5".to_owned();
    let (code, stdout, stderr) = within("the exec", case.soon(), case.exec(&id, &Workload::Script(script))).await??;
    equal("the exit code", &code, &5)?;
    // A backend may bound what it keeps, but then it marks that.
    for (stream, text) in [("stdout", stdout), ("stderr", stderr)] {
        let kept = text.bytes().take_while(|byte| *byte == b'x').count();
        let whole = kept == 1 << 18 && text.ends_with('\n');
        let marked = kept > 0 && kept < 1 << 18 && text.len() > kept;
        ensure(whole || marked, || format!("{stream} has {} bytes, {kept} of them as written", text.len()))?;
    }
    Ok(())
}

/// More than anybody should keep in memory of one stream.
const UNBOUNDED: usize = 64 << 20;

async fn bounded(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let script = format!("head -c {UNBOUNDED} /dev/zero | tr '\\0' x; exit 5");
    let script = Workload::Script(script);
    let (code, stdout, _) = within("the exec", case.soon() * 2, case.exec(&id, &script)).await??;
    equal("the exit code", &code, &5)?;
    let kept = stdout.bytes().take_while(|byte| *byte == b'x').count();
    ensure(kept < UNBOUNDED, || format!("all of {UNBOUNDED} bytes are kept"))?;
    ensure(kept > 0 && stdout.len() > kept, || format!("{kept} of {UNBOUNDED} bytes are kept, and nothing says so"))
}

async fn environment(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::idle())?;
    spec.env.insert("CONFORMANCE".to_owned(), "a b=c".to_owned());
    spec.command.workdir = Some("/dev".to_owned());
    let script = Workload::Script("printf '%s\\n' \"$CONFORMANCE\"; pwd".to_owned());
    case.command(&script)?;
    let id = case.start_spec(&spec).await?;
    case.line(&id, "ready").await?;
    let (_, stdout, stderr) = case.exec(&id, &script).await?;
    ensure(stdout == "a b=c\n/dev\n", || format!("it sees {stdout:?}, and {stderr:?}"))
}

async fn leaves_init(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::ExitOn { signal: "TERM", code: 17 }).await?;
    case.exec(&id, &Workload::print("from the exec\n")).await?;
    case.exec(&id, &Workload::exit(3)).await?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    equal("the container's exit code", &case.wait(&id).await?, &17)?;
    let logs = case.runtime().get_logs(&id).await.or_fail("get_logs")?;
    let leaked = logs.iter().any(|entry| entry.message.contains("from the exec"));
    ensure(!leaked, || "the exec's output is in the container's log".to_owned())
}
