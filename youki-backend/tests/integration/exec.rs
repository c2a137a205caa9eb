//! Further processes in a running container.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use nix::libc;
use runtime_core::spec::StorageSpec;
use runtime_core::{AgentError, ExecEvent, ExecEventStream, ExecOptions, ServiceSpec};

use crate::support::Case;
use crate::support::case::{eventually, soon, words};
use crate::support::image::Image;
use crate::support::pace::patience;
use crate::support::process::{private_dirty_bytes, status_line, supervisor};

crate::tests![
    code_stdout_and_stderr_come_back_apart,
    not_found_is_127_and_not_executable_126,
    a_missing_working_directory_is_126_and_named,
    a_time_limit_beyond_all_time_is_none,
    a_command_that_no_kernel_executes_is_invalid,
    binary_output_comes_back_lossy_and_whole,
    it_has_the_identity_of_the_container_and_its_filter,
    it_runs_as_the_containers_user_with_its_groups_and_capabilities,
    it_is_in_the_containers_cgroup_and_namespaces,
    events_come_as_they_are_produced_and_exit_once_last,
    a_multi_byte_character_is_never_split,
    a_dropped_stream_kills_the_exec_and_what_it_started,
    options_override_environment_user_and_directory,
    variables_that_the_program_wrote_over_are_there,
    a_terminal_is_the_containers_own_and_its_users,
    a_privileged_exec_has_all_that_this_process_has_itself,
    input_is_passed_and_its_end_closes_it,
    input_without_an_end_is_let_go_of_with_the_exec,
    a_timeout_kills_and_says_so,
    a_program_that_is_not_executed_in_time_is_given_up,
    a_signalled_exec_is_128_plus_n,
    exec_in_a_stopped_container_is_an_error,
    sixty_four_at_once_do_not_mix,
    ten_mebibytes_are_bounded_or_whole_and_never_hang,
    what_is_beyond_the_bound_is_cut_off_and_counted,
    a_child_that_holds_the_output_open_does_not_hold_the_exec,
    a_large_one_leaves_no_memory_with_the_supervisor,
    a_long_name_in_a_long_path_costs_the_supervisor_no_memory,
    a_detached_one_goes_on_until_it_or_the_container_ends,
];

async fn collect(mut events: ExecEventStream) -> Vec<ExecEvent> {
    let mut all = Vec::new();
    while let Some(event) = soon("an event", events.next()).await {
        all.push(event);
    }
    all
}

async fn code_stdout_and_stderr_come_back_apart(case: Case) {
    let id = case.idle().await;
    let (code, stdout, stderr) = case.exec(&id, "echo out; echo err >&2; printf x; exit 42").await;
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (42, "out\nx", "err\n"));
}

async fn not_found_is_127_and_not_executable_126(case: Case) {
    let id = case.idle().await;
    let programs = [("/no/such", 127), ("nosuch", 127), ("/etc/passwd/x", 127), ("/etc/passwd", 126), ("/etc", 126)];
    for (program, code) in programs {
        let (got, _, stderr) = case.runtime.exec(&id, &words(&[program])).await.unwrap();
        assert_eq!(got, code, "{program}");
        assert!(stderr.contains(program), "{program}: {stderr:?}");
    }
    assert_eq!(case.exec_ok(&id, "echo alive").await, "alive\n");
}

async fn a_missing_working_directory_is_126_and_named(case: Case) {
    let id = case.idle().await;
    for workdir in ["/no/such/dir", "/etc/passwd"] {
        let options = ExecOptions { workdir: Some(workdir.into()), ..ExecOptions::default() };
        let events = collect(case.runtime.exec_with(&id, &words(&["true"]), &options, None).await.unwrap()).await;
        let [ExecEvent::Stderr(said), ExecEvent::Exit(126)] = &events[..] else { panic!("{events:?}") };
        assert!(said.contains(workdir), "{said}");
    }
}

async fn a_time_limit_beyond_all_time_is_none(case: Case) {
    let id = case.idle().await;
    let options = ExecOptions { timeout: Some(std::time::Duration::MAX), ..ExecOptions::default() };
    let events = collect(case.runtime.exec_with(&id, &words(&["true"]), &options, None).await.unwrap()).await;
    assert!(matches!(&events[..], [ExecEvent::Exit(0)]), "{events:?}");
}

async fn a_command_that_no_kernel_executes_is_invalid(case: Case) {
    let id = case.idle().await;
    for command in [&[][..], &["", "x"], &["echo", "a\0b"]] {
        let command = words(command);
        let error = case.runtime.exec(&id, &command).await.unwrap_err();
        assert!(matches!(&error, AgentError::InvalidSpec(text) if text.starts_with("command: ")), "{error}");
        assert!(matches!(case.runtime.exec_stream(&id, &command).await.err(), Some(AgentError::InvalidSpec(_))));
    }
    let options = ExecOptions { workdir: Some("/a\0b".into()), ..ExecOptions::default() };
    let error = case.runtime.exec_with(&id, &words(&["true"]), &options, None).await.err().expect("no such directory");
    assert!(matches!(&error, AgentError::InvalidSpec(text) if text.starts_with("workdir: ")), "{error}");
}

async fn binary_output_comes_back_lossy_and_whole(case: Case) {
    let id = case.idle().await;
    let stdout = case.exec_ok(&id, r"printf 'a\377\376b\000c'").await;
    assert_eq!(stdout, "a\u{fffd}\u{fffd}b\0c");
    let stdout = case
        .exec_ok(&id, "i=0; while [ $i -lt 256 ]; do printf \"\\\\$(printf %o $i)\"; i=$((i+1)); done | head -c 128")
        .await;
    assert_eq!(stdout.as_bytes(), (0..128).collect::<Vec<u8>>());
}

/// Asked directly: a shell may ignore signals of its own in what it executes.
const IDENTITY: [&str; 4] =
    ["grep", "-E", "^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|SigIgn|SigBlk):", "/proc/self/status"];

async fn it_has_the_identity_of_the_container_and_its_filter(case: Case) {
    let mut spec = case.spec(&IDENTITY).await;
    spec.no_new_privileges = true;
    let from_init = case.run(&spec).await.succeeded();
    spec.command.args = Some(words(&["sh", "-c", crate::support::case::IDLE]));
    let id = case.start(&spec).await;
    let (code, from_exec, _) = case.runtime.exec(&id, &words(&IDENTITY)).await.unwrap();
    assert_eq!(code, 0);
    assert!(from_exec.lines().any(|line| line == "Seccomp:\t2"), "{from_exec}");
    assert_eq!(from_exec.lines().collect::<Vec<_>>(), from_init);
}

async fn it_runs_as_the_containers_user_with_its_groups_and_capabilities(case: Case) {
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.user = Some("app".into());
    spec.drop_capabilities = vec!["NET_RAW".into()];
    let id = case.start(&spec).await;
    assert_eq!(case.exec_ok(&id, "id -u; id -g; id -G").await, "1000\n1000\n1000 10 29\n");
    let caps = case.exec_ok(&id, "grep -E '^Cap(Eff|Bnd)' /proc/self/status | cut -f2").await;
    assert_eq!(caps, "0000000000000000\n00000000a80405fb\n");
    // The filter really stands: what Docker's profile forbids fails here too.
    assert_ne!(case.exec(&id, "unshare -U true").await.0, 0);
}

async fn it_is_in_the_containers_cgroup_and_namespaces(case: Case) {
    let id = case.idle().await;
    let namespaces = "for n in cgroup ipc mnt net pid uts user; do readlink /proc/PID/ns/$n; done";
    let own = case.exec_ok(&id, &namespaces.replace("PID", "self")).await;
    assert_eq!(own, case.exec_ok(&id, &namespaces.replace("PID", "1")).await);
    let events = case.runtime.exec_stream(&id, &words(&["sleep", "3600"])).await.unwrap();
    eventually("the exec is in the container's cgroup", || async {
        case.cgroup_pids(&id).iter().any(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| command == b"sleep\x003600\0")
                && std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
                    .is_ok_and(|groups| groups.lines().filter(|line| line.contains(&id.to_string())).count() > 0)
        })
    })
    .await;
    drop(events);
}

async fn events_come_as_they_are_produced_and_exit_once_last(case: Case) {
    let id = case.idle().await;
    // Each of its events is had before the next is produced.
    let script = "until_there() { until [ -e $1 ]; do sleep 0.05; done; }
        echo one; until_there /two; echo two >&2; until_there /end; exit 6";
    let mut events = case.runtime.exec_stream(&id, &words(&["sh", "-c", script])).await.unwrap();
    assert_eq!(soon("the first event", events.next()).await, Some(ExecEvent::Stdout("one\n".into())));
    case.exec_ok(&id, "touch /two").await;
    assert_eq!(soon("the second event", events.next()).await, Some(ExecEvent::Stderr("two\n".into())));
    case.exec_ok(&id, "touch /end").await;
    assert_eq!(collect(events).await, [ExecEvent::Exit(6)]);
}

async fn a_multi_byte_character_is_never_split(case: Case) {
    let id = case.idle().await;
    let script = r"printf '\342'; sleep 0.3; printf '\202'; sleep 0.3; printf '\254'; sleep 0.3; printf 'x\360\237'";
    let events = collect(case.runtime.exec_stream(&id, &words(&["sh", "-c", script])).await.unwrap()).await;
    let text: String = events
        .iter()
        .filter_map(|event| if let ExecEvent::Stdout(text) = event { Some(text.as_str()) } else { None })
        .collect();
    // What is never completed is replaced at the end.
    assert!(text.starts_with("€x\u{fffd}"), "{events:?}");
    assert_eq!(events.last(), Some(&ExecEvent::Exit(0)));
}

async fn a_dropped_stream_kills_the_exec_and_what_it_started(case: Case) {
    let id = case.idle().await;
    let before = 2; // the shell and its sleep
    eventually("the container is idle", || async { case.cgroup_pids(&id).len() == before }).await;
    let script = "(trap '' TERM HUP; sleep 3601) & setsid sleep 3602 & sleep 3603";
    let mut events =
        case.runtime.exec_stream(&id, &words(&["sh", "-c", &format!("{script} & echo up; wait")])).await.unwrap();
    assert_eq!(soon("it runs", events.next()).await, Some(ExecEvent::Stdout("up\n".into())));
    assert!(case.cgroup_pids(&id).len() > before + 1);
    drop(events);
    eventually("all that the exec started is gone", || async { case.cgroup_pids(&id).len() == before }).await;
    assert_eq!(case.exec_ok(&id, "echo alive").await, "alive\n");
}

async fn options_override_environment_user_and_directory(case: Case) {
    let image = Image::busybox().with("WorkingDir", "/tmp".into());
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.image.name = case.push("workdir", &image).await;
    spec.env.insert("A".into(), "container".into());
    spec.env.insert("B".into(), "container".into());
    let id = case.start(&spec).await;
    let show = "id -u; id -G; pwd; echo $A $B";
    assert_eq!(case.exec_ok(&id, show).await, "0\n0\n/tmp\ncontainer container\n");
    let options = ExecOptions {
        env: [("B".to_owned(), "exec".to_owned())].into(),
        user: Some("app".into()),
        workdir: Some("/etc".into()),
        timeout: None,
        privileged: false,
        tty: false,
    };
    let events = case.runtime.exec_with(&id, &words(&["sh", "-c", show]), &options, None).await.unwrap();
    let text = text_of(&collect(events).await);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[2], lines[3]), ("1000", "/etc", "container exec"));
    assert!(lines[1].split(' ').any(|group| group == "10"), "supplementary groups: {}", lines[1]);
    let unknown = ExecOptions { user: Some("nosuch".into()), ..ExecOptions::default() };
    let failed = match case.runtime.exec_with(&id, &words(&["id"]), &unknown, None).await {
        Err(_) => true,
        Ok(events) => !collect(events).await.contains(&ExecEvent::Exit(0)),
    };
    assert!(failed, "an unknown user ran");
}

async fn variables_that_the_program_wrote_over_are_there(case: Case) {
    // As programs do that show a title of their own. The kernel says from where to where the environment lies.
    let script = r#"
        read -r stat < /proc/self/stat; set -- $stat; shift 49
        exec 3<>/proc/self/mem
        /bin/head -c $(($2 - $1)) /dev/zero | /bin/dd bs=1 seek=$1 conv=notrunc >&3 && echo written
        while :; do /bin/sleep 3600; done"#;
    for remove_on_exit in [false, true] {
        let mut spec = ServiceSpec { remove_on_exit, ..case.script(script).await };
        spec.env.insert("AGENT".into(), "$E:BERTH_TEST_FROM_THE_AGENT".into());
        let id = case.start(&spec).await;
        case.until_logged(&id, "written").await;
        assert_eq!(case.exec_ok(&id, "tr -d '\\0' < /proc/1/environ; echo $AGENT").await, "seen\n");
    }
}

async fn a_terminal_is_the_containers_own_and_its_users(case: Case) {
    let id = case.idle().await;
    let options = ExecOptions { tty: true, user: Some("app".into()), ..ExecOptions::default() };
    let script = "tty; stat -c %u $(tty); echo $TERM; echo error >&2; read line; echo got $line; exit 3";
    let input = Box::pin(stream::iter([b"typed\n".to_vec()]));
    let command = words(&["sh", "-c", script]);
    let events = collect(case.runtime.exec_with(&id, &command, &options, Some(input)).await.unwrap()).await;
    assert_eq!(events.last(), Some(&ExecEvent::Exit(3)), "{events:?}");
    let text = text_of(&events).replace('\r', "");
    let mut lines: Vec<&str> = text.lines().collect();
    // The terminal shows what is typed, whenever that comes.
    lines.retain(|line| *line != "typed");
    assert_eq!(lines, ["/dev/pts/0", "1000", "xterm", "error", "got typed"]);
    let missing = collect(case.runtime.exec_with(&id, &words(&["no-such"]), &options, None).await.unwrap()).await;
    assert_eq!(missing.last(), Some(&ExecEvent::Exit(127)));
}

async fn a_privileged_exec_has_all_that_this_process_has_itself(case: Case) {
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap().to_owned();
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.drop_capabilities = vec!["ALL".into()];
    spec.no_new_privileges = true;
    let id = case.start(&spec).await;
    let show = words(&["sh", "-c", "grep -E '^(Cap(Bnd|Eff)|Seccomp|NoNewPrivs):' /proc/self/status | cut -f2"]);
    let none = "0000000000000000".to_owned();
    for (privileged, expected) in [
        (true, [own.clone(), own, "0".to_owned(), "0".to_owned()]),
        (false, [none.clone(), none, "1".to_owned(), "2".to_owned()]),
    ] {
        let options = ExecOptions { privileged, ..ExecOptions::default() };
        let text = text_of(&collect(case.runtime.exec_with(&id, &show, &options, None).await.unwrap()).await);
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(lines, expected, "privileged {privileged}");
    }
}

async fn input_is_passed_and_its_end_closes_it(case: Case) {
    let id = case.idle().await;
    let pieces = vec![b"one\n".to_vec(), vec![0xff, b'\n'], vec![b'x'; 300_000]];
    let input = Box::pin(stream::iter(pieces));
    let events =
        case.runtime.exec_with(&id, &words(&["wc", "-c"]), &ExecOptions::default(), Some(input)).await.unwrap();
    assert_eq!(text_of(&collect(events).await).trim(), "300006");
    // Without input there is an end at once.
    assert_eq!(soon("cat", case.runtime.exec(&id, &words(&["cat"]))).await.unwrap(), (0, String::new(), String::new()));
}

async fn input_without_an_end_is_let_go_of_with_the_exec(case: Case) {
    let id = case.idle().await;
    for (tty, program) in [(false, "true"), (true, "true"), (false, "/no/such"), (true, "/no/such")] {
        let (ours, theirs) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
        let options = ExecOptions { tty, ..ExecOptions::default() };
        let input = Box::pin(tokio_stream::wrappers::ReceiverStream::new(theirs));
        let events = case.runtime.exec_with(&id, &words(&[program]), &options, Some(input)).await.unwrap();
        assert!(matches!(collect(events).await.last(), Some(ExecEvent::Exit(_))));
        soon(&format!("the input of {program} is let go of (on a terminal: {tty})"), ours.closed()).await;
    }
    // What has closed its output reads on.
    let input = stream::iter([b"one\n".to_vec()]).chain(stream::once(async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        b"two\n".to_vec()
    }));
    let script = words(&["sh", "-c", "exec > /read 2>&-; cat"]);
    let events = case.runtime.exec_with(&id, &script, &ExecOptions::default(), Some(Box::pin(input))).await.unwrap();
    assert_eq!(collect(events).await, [ExecEvent::Exit(0)]);
    assert_eq!(case.exec_ok(&id, "cat /read").await, "one\ntwo\n");
}

async fn a_timeout_kills_and_says_so(case: Case) {
    let id = case.idle().await;
    let before = 2; // the shell and its sleep
    eventually("the container is idle", || async { case.cgroup_pids(&id).len() == before }).await;
    let options = ExecOptions { timeout: Some(Duration::from_millis(300)), ..ExecOptions::default() };
    let script = words(&["sh", "-c", "trap '' TERM; echo up; sleep 3600 & sleep 3600"]);
    let begin = Instant::now();
    let events = case.runtime.exec_with(&id, &script, &options, None).await.unwrap();
    let events = collect(events).await;
    assert!(begin.elapsed() < patience(Duration::from_secs(10)));
    assert_ne!(events.last(), Some(&ExecEvent::Exit(0)), "{events:?}");
    eventually("all that it started is gone", || async { case.cgroup_pids(&id).len() == before }).await;
}

/// Who has a lease on it (fcntl(2), `F_SETLEASE`) holds its execution up, as the server of a mount can for ever.
async fn a_program_that_is_not_executed_in_time_is_given_up(case: Case) {
    let dir = case.suite.dir.path().join("leased");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("program"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(dir.join("program"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = case.script(crate::support::case::IDLE).await;
    let source = dir.display().to_string();
    spec.storage = vec![StorageSpec::Bind { source, target: "/leased".into(), readonly: false }];
    let id = case.start(&spec).await;
    case.until_it_idles(&id).await;
    let before = case.cgroup_pids(&id).len();
    let file = std::fs::File::open(dir.join("program")).unwrap();
    const F_SETSIG: libc::c_int = 10;
    // SAFETY: both take integers. The signal that tells of who waits is one that is ignored.
    eventually("nobody else has it open", || async {
        unsafe {
            libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG);
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
        }
    })
    .await;
    let options = ExecOptions { timeout: Some(Duration::from_millis(300)), ..ExecOptions::default() };
    let program = words(&["/leased/program"]);
    let events = case.runtime.exec_with(&id, &program, &options, None);
    let events = collect(soon("it is given up", events).await.unwrap()).await;
    let [ExecEvent::Stderr(said), ExecEvent::Exit(124)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(said, "/leased/program: not executed within 300ms\n");
    let args = ["--json", "exec", "--timeout", "0.3", &id.to_string(), "/leased/program"];
    let (code, message) = soon("the command", case.berth(&args)).await.refused(124);
    assert!(code == "exec.timed_out" && message.contains("/leased/program"), "{code}: {message}");
    eventually("it is killed", || async { case.cgroup_pids(&id).len() == before }).await;
    drop(file);
    assert_eq!(case.runtime.exec(&id, &program).await.unwrap().0, 0);
}

async fn a_signalled_exec_is_128_plus_n(case: Case) {
    let id = case.idle().await;
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("INT", 130)] {
        assert_eq!(case.exec(&id, &format!("kill -{signal} $$")).await.0, code, "{signal}");
    }
}

async fn exec_in_a_stopped_container_is_an_error(case: Case) {
    let id = case.start(&case.script("exit 0").await).await;
    case.finish(&id).await.succeeded();
    assert!(case.runtime.exec(&id, &words(&["true"])).await.is_err());
    assert!(case.runtime.exec_stream(&id, &words(&["true"])).await.is_err());
}

/// As an image's HEALTHCHECK may have it: the supervisor is the last that the kernel kills for want of memory.
async fn a_long_name_in_a_long_path_costs_the_supervisor_no_memory(case: Case) {
    let id = case.idle().await;
    let supervisor = supervisor(&*case.runtime, &id).await;
    let env = [("PATH".to_owned(), ":".repeat(1000))].into();
    let options = ExecOptions { env, ..ExecOptions::default() };
    let command = ["x".repeat(100_000)];
    let events = collect(case.runtime.exec_with(&id, &command, &options, None).await.unwrap()).await;
    let [ExecEvent::Stderr(said), ExecEvent::Exit(126)] = &events[..] else { panic!("{:?}", events.len()) };
    assert!(said.contains("too long"), "{}", said.len());
    let peak = status_line(supervisor, "VmHWM:");
    let kib: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 16 << 10, "{peak}");
}

async fn a_detached_one_goes_on_until_it_or_the_container_ends(case: Case) {
    let id = case.idle().await;
    let name = id.to_string();
    let script = "echo lost; until [ -e /go ]; do sleep 0.05; done; id -u > /done; [ -t 0 ] || cat >> /done; exit 3";
    let said = soon("exec", case.berth(&["exec", "-d", "-u", "1000", "-e", "X=1", &name, "sh", "-c", script])).await;
    // It is not written to where an unprivileged user may not.
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "", ""));
    let said = case.berth(&["exec", "--detach", &name, "sh", "-c", script]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, ""));
    // A loop that is about to start its `sleep` is two processes of one command line for a moment.
    let running = async || case.exec_ok(&id, "ps | grep -c '[u]ntil' || :").await.trim().to_owned();
    eventually("both outlive the command", || async { running().await == "2" }).await;
    case.exec_ok(&id, "touch /go").await;
    eventually("both have ended", || async { running().await == "0" }).await;
    assert_eq!(case.exec_ok(&id, "cat /done").await, "0\n", "its input is empty");
    let logged = case.runtime.get_logs(&id).await.unwrap();
    assert!(logged.iter().all(|entry| entry.message != "lost"), "what it writes is discarded");

    for (args, code) in [
        (&["exec", "-d", &name, "/no/such"][..], 127),
        (&["exec", "-d", &name, "/etc/passwd"], 126),
        (&["exec", "-d", "-w", "/no/such", &name, "true"], 126),
        (&["exec", "-d", "-t", &name, "true"], 125),
        (&["exec", "-d", "--timeout", "3", &name, "true"], 125),
    ] {
        assert_eq!(case.berth(args).await.code, code, "{args:?}");
    }
    case.berth(&["exec", "-d", &name, "sh", "-c", "trap '' TERM; sleep 3600; sleep 3600"]).await.succeeded();
    soon("stop", case.runtime.stop_container(&id, Duration::from_secs(5))).await.unwrap();
    assert!(case.cgroup_pids(&id).is_empty());
}

async fn sixty_four_at_once_do_not_mix(case: Case) {
    let id = case.idle().await;
    let runs: Vec<_> = (0..64)
        .map(|number| {
            let (case, id) = (case.clone(), id.clone());
            tokio::spawn(async move { (number, case.exec(&id, &format!("echo {number}; exit {number}")).await) })
        })
        .collect();
    for run in runs {
        let (number, (code, stdout, stderr)) = run.await.unwrap();
        assert_eq!((code, stdout, stderr), (number, format!("{number}\n"), String::new()));
    }
}

async fn ten_mebibytes_are_bounded_or_whole_and_never_hang(case: Case) {
    let id = case.idle().await;
    let script = "head -c 10485760 /dev/zero | tr '\\0' x; echo end >&2";
    let (code, stdout, stderr) = soon("a large output", case.exec(&id, script)).await;
    assert_eq!((code, stderr.as_str()), (0, "end\n"));
    let kept = stdout.bytes().take_while(|byte| *byte == b'x').count();
    assert!(kept >= 64 << 10, "only {kept} bytes are kept");
    if kept < 10 << 20 {
        assert!(stdout.len() > kept, "truncated without a mark");
    }
    // The stream has no bound: every byte comes.
    let events = case.runtime.exec_stream(&id, &words(&["head", "-c", "10485760", "/dev/zero"])).await.unwrap();
    assert_eq!(text_of(&collect(events).await).len(), 10 << 20);
}

async fn what_is_beyond_the_bound_is_cut_off_and_counted(case: Case) {
    const BOUND: usize = 16 << 20;
    let id = case.idle().await;
    let script = "head -c 17825792 /dev/zero | tr '\\0' x; echo end >&2";
    let (code, stdout, stderr) = soon("a larger output", case.exec(&id, script)).await;
    assert_eq!((code, stderr.as_str()), (0, "end\n"));
    let kept = stdout.bytes().take_while(|byte| *byte == b'x').count();
    assert_eq!((kept, &stdout[kept..]), (BOUND, "\n[1048576 bytes more were cut off]\n"));
}

async fn a_child_that_holds_the_output_open_does_not_hold_the_exec(case: Case) {
    let id = case.idle().await;
    let (code, stdout, _) = soon("exec", case.exec(&id, "sleep 3600 & echo done; exit 2")).await;
    assert_eq!((code, stdout.as_str()), (2, "done\n"));
}

fn text_of(events: &[ExecEvent]) -> String {
    let stdout = events.iter().filter_map(|event| match event {
        ExecEvent::Stdout(text) => Some(text.as_str()),
        _ => None,
    });
    stdout.collect()
}

async fn a_large_one_leaves_no_memory_with_the_supervisor(case: Case) {
    let id = case.idle().await;
    let supervisor = supervisor(&*case.runtime, &id).await;
    case.exec_ok(&id, "true").await;
    let before = private_dirty_bytes(supervisor).unwrap();
    for (count, length) in [(18, 100_000), (60_000, 20)] {
        let mut command = words(&["true"]);
        command.extend((0..count).map(|_| "x".repeat(length)));
        assert_eq!(case.runtime.exec(&id, &command).await.unwrap().0, 0);
        // Its end is told before what it took is given back.
        let kept = || private_dirty_bytes(supervisor).unwrap().saturating_sub(before);
        let what = format!("the memory of {count} arguments of {length} bytes is given back");
        eventually(&what, || async { kept() <= 128 << 10 }).await;
    }
}
