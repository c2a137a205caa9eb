//! Containers with a tiny init.

use runtime_core::WaitReason;

use crate::support::Case;
use crate::support::case::{eventually, soon, words};

crate::tests![
    it_is_pid_1_and_reaps_orphans,
    it_ends_as_its_program_does,
    it_passes_signals_on,
    a_missing_program_is_127_as_without_it,
    it_has_the_programs_identity_and_cannot_be_written,
];

async fn it_is_pid_1_and_reaps_orphans(case: Case) {
    let mut spec = case.script("sh -c 'sleep 0.2 & sleep 0.3 & exit 0'; echo $$; exec sleep 3600").await;
    spec.init = true;
    let id = case.start(&spec).await;
    assert_eq!(case.exec_ok(&id, "cat /proc/1/cmdline | tr '\\0' ' '").await.split(' ').next(), Some("berth-init"));
    // The init, the program; no zombie of what was left behind.
    eventually("the orphans are reaped", || async {
        let processes = case.runtime.top(&id).await.unwrap();
        processes.len() == 2
    })
    .await;
    assert_eq!(case.exec_ok(&id, "grep -l 'State:.*Z' /proc/[0-9]*/status | wc -l").await.trim(), "0");
}

async fn it_ends_as_its_program_does(case: Case) {
    for (script, code) in [("exit 42", 42), ("kill -TERM $$", 143), ("sleep 60 & exit 0", 0)] {
        let mut spec = case.script(script).await;
        spec.init = true;
        let outcome = soon("the end", case.run(&spec)).await.outcome;
        assert_eq!((outcome.exit_code, outcome.reason), (code, WaitReason::Exited), "{script}");
    }
}

async fn it_passes_signals_on(case: Case) {
    let mut spec = case.script("trap 'echo told; exit 3' USR1; echo ready; while :; do sleep 0.1; done").await;
    spec.init = true;
    let id = case.start(&spec).await;
    case.until_logged(&id, "ready").await;
    case.runtime.kill_container(&id, Some("USR1")).await.unwrap();
    let finished = soon("the end", case.finish(&id)).await;
    assert_eq!((finished.outcome.exit_code, finished.stdout), (3, words(&["ready", "told"])));
}

async fn a_missing_program_is_127_as_without_it(case: Case) {
    for (program, code) in [("/no/such/program", 127), ("/etc/passwd", 126)] {
        let mut spec = case.spec(&[program]).await;
        spec.init = true;
        let id = case.id();
        let error = case.try_start(&id, &spec).await.unwrap_err();
        assert!(error.to_string().contains(program), "{error}");
        assert_eq!(soon("wait", case.runtime.wait_container(&id)).await, Ok(code));
    }
}

async fn it_has_the_programs_identity_and_cannot_be_written(case: Case) {
    let show = "grep -E '^(Uid|Gid|Groups|Cap(Bnd|Eff)|Seccomp|NoNewPrivs):' /proc/PID/status";
    let script = format!("{}; {}; (: > /proc/1/exe) 2>&1", show.replace("PID", "1"), show.replace("PID", "self"));
    let mut spec = case.script(&script).await;
    spec.init = true;
    let lines = case.run(&spec).await.stdout;
    assert_eq!(lines.len(), 15, "{lines:?}");
    assert_eq!(lines[..7], lines[7..14]);
    assert!(lines.contains(&"Seccomp:\t2".to_owned()) && lines[14].contains("Read-only"), "{lines:?}");
    spec.command.args = Some(words(&["sh", "-c", "id -u; grep ^Uid: /proc/1/status"]));
    spec.user = Some("app".into());
    assert_eq!(case.run(&spec).await.succeeded(), ["1000", "Uid:\t1000\t1000\t1000\t1000"]);
}
