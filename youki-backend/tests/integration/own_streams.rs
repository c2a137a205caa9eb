//! The command's own streams, and the container's on their way to them: run, attach, exec, and whatever else writes much.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use rustix::io::ioctl_fionbio;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncBufReadExt, AsyncReadExt};

use crate::support::Case;
use crate::support::berth::command;
use crate::support::case::{eventually, soon};
use crate::support::pace::patience;
use crate::support::terminal::Terminal;

crate::tests![
    an_output_that_does_not_block_gets_all,
    an_exec_on_a_terminal_is_one_to_both_sides,
    a_container_on_a_terminal_is_typed_into_left_and_attached_to_again,
    attach_passes_streams_signals_and_the_exit_code,
    a_run_whose_output_nobody_reads_ends,
    a_container_with_a_terminal_is_not_typed_into_from_a_pipe,
    an_exec_gets_no_file_of_the_host,
    what_an_exec_leaves_running_does_not_hold_the_command,
    a_slow_reader_gets_all_of_an_exec_on_a_terminal,
];

/// Whoever hands out a pipe may have made it non-blocking, and be slow to read it.
async fn an_output_that_does_not_block_gets_all(case: Case) {
    const LINES: usize = 30_000;
    let id =
        case.start(&case.script(&format!("seq 100001 {}; echo idle; sleep 86400 & wait", 100_000 + LINES)).await).await;
    case.until_logged(&id, "idle").await;
    case.exec_ok(&id, "head -c 300000 /dev/zero > /tmp/zeros").await;
    let (id, image) = (id.to_string(), case.suite.busybox().await.to_owned());
    for (args, least) in [
        (vec!["logs".to_owned(), id.clone()], LINES * 7),
        (vec!["--json".to_owned(), "logs".to_owned(), id.clone()], LINES * 7),
        (vec!["cp".to_owned(), format!("{id}:/tmp/zeros"), "-".to_owned()], 300_000),
        (vec!["export".to_owned(), id.clone()], 300_000),
        (vec!["save".to_owned(), image], 300_000),
    ] {
        let (mut reader, writer) =
            pipe_with(PipeFlags::CLOEXEC).map(|(one, two)| (std::fs::File::from(one), two)).unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        let mut berth = command(&case.suite.shared().await.root);
        berth.args(&args).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).kill_on_drop(true);
        let child = berth.spawn().unwrap();
        drop(berth);
        let read = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_secs(1));
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all.len())
        });
        let output = soon("its end", child.wait_with_output()).await.unwrap();
        let length = read.await.unwrap().unwrap();
        assert!(output.status.success() && length >= least, "{args:?}: {length} bytes, {output:?}");
    }
}

/// Through a real pseudo-terminal: raw, as large inside as outside, and as before when it is over.
async fn an_exec_on_a_terminal_is_one_to_both_sides(case: Case) {
    let id = case.idle().await.to_string();
    let terminal = Terminal::open(33, 111);
    let root = case.suite.shared().await.root.clone();
    let before = terminal.mode();
    let mut child = terminal.command(&root, &["exec", "-it", &id, "sh"]);
    terminal.until("# ").await;
    // What says that it has begun has the terminal already: an interrupt of before would be the shell's.
    terminal.type_in("stty size; tty; sh -c 'echo be\"\"gun; exec cat'\n");
    terminal.until("33 111").await;
    terminal.until("/dev/pts/").await;
    terminal.until("begun").await;
    assert_ne!(terminal.mode(), before, "the terminal is not raw");
    // An interrupt is the container's affair.
    terminal.type_in("\x03");
    terminal.until("# ").await;
    terminal.type_in("echo interr''upted; stty size\n");
    terminal.until("interrupted").await;
    // So are the keys that leave a container: an exec belongs to its caller.
    terminal.type_in("\x10\x11");
    terminal.type_in("\x15echo al''ive\n");
    terminal.until("alive").await;
    terminal.resize(20, 50);
    // The size is passed on by a signal. What is typed is shown, too.
    terminal.type_in("until [ \"$(stty size)\" = 20' '50 ]; do sleep 0.1; done; stty size; exit 7\n");
    terminal.until("20 50").await;
    assert_eq!(soon("the exec's end", child.wait()).await.unwrap().code(), Some(7));
    assert_eq!(terminal.mode(), before, "the terminal is left raw");
    let said = case.berth(&["exec", "-it", &id, "true"]).await;
    assert!(said.code == 125 && said.stderr.contains("no terminal"), "{said:?}");
}

async fn a_container_on_a_terminal_is_typed_into_left_and_attached_to_again(case: Case) {
    let root = case.suite.shared().await.root.clone();
    let image = case.suite.busybox().await.to_owned();
    let id = case.id();
    let terminal = Terminal::open(31, 97);
    let before = terminal.mode();
    let args = ["run", "-it", "-u", "app", "--network", "none", "--name", &id.service, &image, "sh"];
    let mut child = terminal.command(&root, &args);
    terminal.until("$ ").await;
    terminal.type_in("stty size; tty; stat -c %u $(tty); ls -l /dev/console\n");
    terminal.until("31 97").await;
    terminal.until("/dev/pts/0").await;
    terminal.until("1000").await;
    terminal.until("136").await;
    // Ctrl-P Ctrl-Q leaves it running.
    terminal.type_in("\x10\x11");
    assert_eq!(soon("leaving", child.wait()).await.unwrap().code(), Some(0));
    assert_eq!(terminal.mode(), before, "the terminal is left raw");
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), runtime_core::ContainerState::Running);

    let terminal = Terminal::open(22, 66);
    let mut child = terminal.command(&root, &["attach", &id.to_string()]);
    terminal.resize(22, 67);
    terminal.type_in("until [ \"$(stty size)\" = 22' '67 ]; do sleep 0.1; done; stty size\n");
    terminal.until("22 67").await;
    terminal.type_in("seq 1 20000; echo all; exit 5\n");
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(5));
    terminal.until("20000").await;
    // What went over the terminal is in the log, to the last line.
    let finished = case.finish(&id).await;
    let lines: Vec<&str> = finished.stdout.iter().map(|line| line.trim_end()).collect();
    assert!(lines.contains(&"20000") && lines.contains(&"all"), "{:?}", lines.last());
    assert_eq!(finished.outcome.exit_code, 5);
}

async fn attach_passes_streams_signals_and_the_exit_code(case: Case) {
    let script = "trap 'echo told; exit 9' USR1; echo begin >&2; while :; do echo tick; sleep 0.1; done";
    let id = case.start(&case.script(script).await).await;
    case.until_logged(&id, "begin").await;
    let root = case.suite.shared().await.root.clone();
    let mut child = crate::support::berth::command(&root)
        .args(["attach", "--no-stdin", &id.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    soon("it is attached", stdout.read_line(&mut line)).await.unwrap();
    assert_eq!(line, "tick\n");
    eventually("berth attach has the signals of its own", || async {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap_or(0))).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap_or("0");
        u64::from_str_radix(caught, 16).unwrap_or(0) & (1 << (nix::libc::SIGUSR1 - 1)) != 0
    })
    .await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().unwrap() as i32), nix::sys::signal::SIGUSR1).unwrap();
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(9));
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(text.lines().find(|line| *line != "tick"), Some("told"));
    assert!(text.ends_with("told\n"), "{text}");
    let said = case.berth(&["attach", &id.to_string()]).await;
    assert!(said.code == 1 && said.stderr.contains("not running"), "{said:?}");
}

async fn a_run_whose_output_nobody_reads_ends(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let shared = &case.suite.shared().await.root;
    let mut child = command(shared)
        .args(["run", "--rm", "--stop-timeout", "1", &image, "yes"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut first = [0; 2];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).await.unwrap();
    drop(stdout);
    let status =
        tokio::time::timeout(patience(Duration::from_secs(60)), child.wait()).await.expect("it runs on").unwrap();
    assert_eq!((&first, status.code()), (b"y\n", Some(141)));
}

async fn a_container_with_a_terminal_is_not_typed_into_from_a_pipe(case: Case) {
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.tty = true;
    let id = case.start(&spec).await.to_string();
    let said = case.berth_with(&["attach", &id], b"typed").await;
    assert!(said.code == 2 && said.stderr.contains("--no-stdin") && !said.stderr.contains("--tty"), "{said:?}");
}

async fn an_exec_gets_no_file_of_the_host(case: Case) {
    let id = case.idle().await.to_string();
    let file = case.suite.dir.path().join("of-the-host");
    std::fs::write(&file, "read\n").unwrap();
    let open = |path: &std::path::Path| std::fs::File::open(path).unwrap();
    let exec = async |script: &str, stdin: std::fs::File, stdout: Stdio| {
        let mut command = command(&case.suite.shared().await.root);
        command.args(["exec", "-i", &id, "sh", "-c", script]).stdin(stdin).stdout(stdout).kill_on_drop(true);
        command.spawn().unwrap().wait_with_output().await.unwrap()
    };
    let output = exec("cat; readlink /proc/self/fd/0; echo pwned > /proc/self/fd/0", open(&file), Stdio::piped()).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("read\npipe:"), "{said}: {output:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "read\n", "the host's file was written to");
    let (reader, mut writer) = pipe_with(PipeFlags::CLOEXEC).map(|(one, two)| (one, std::fs::File::from(two))).unwrap();
    let mut rest = std::fs::File::from(reader.try_clone().unwrap());
    std::io::Write::write_all(&mut writer, b"read\n").unwrap();
    drop(writer);
    let script = "cat; echo forged 2>/dev/null > /proc/self/fd/0; echo end";
    let output = exec(script, reader.into(), Stdio::piped()).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "read\nend\n", "{output:?}");
    let mut left = String::new();
    rest.read_to_string(&mut left).unwrap();
    assert_eq!(left, "", "the host's pipe was written to");
    let output = exec("ls /proc/self/fd/0/", open(std::path::Path::new("/")), Stdio::null()).await;
    assert!(!output.status.success(), "the host's directory is open to the container: {output:?}");
    let output =
        exec("readlink /proc/self/fd/1; echo end", open(&file), Stdio::from(std::fs::File::create(&file).unwrap()))
            .await;
    assert!(output.status.success(), "{output:?}");
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.starts_with("pipe:") && written.ends_with("end\n"), "{written}");
}

async fn what_an_exec_leaves_running_does_not_hold_the_command(case: Case) {
    let id = case.idle().await.to_string();
    let file = case.suite.dir.path().join("output-of-an-exec");
    for left_running in ["sleep 3600", "yes"] {
        let script = format!("echo done; {left_running} & exit 2");
        let root = case.suite.shared().await.root.clone();
        let exec = || {
            let mut command = command(&root);
            command.args(["exec", &id, "sh", "-c", &script]).stdin(Stdio::null()).kill_on_drop(true);
            command
        };
        let mut exec_to_file = exec().stdout(std::fs::File::create(&file).unwrap()).spawn().unwrap();
        let status = soon("the exec's end", exec_to_file.wait()).await.unwrap();
        let written = std::fs::read_to_string(&file).unwrap();
        assert!(status.code() == Some(2) && written.starts_with("done\n"), "{status}: {} bytes", written.len());
        // Nor who reads it: a pipe of the host's is nobody's in the container.
        let read = soon("the end of its output", exec().output()).await.unwrap();
        assert!(read.status.code() == Some(2) && read.stdout.starts_with(b"done\n"), "{}", read.status);
    }
}

/// More than a pipe holds: when the program has ended, what it wrote last is still in the terminal, or in the command.
async fn a_slow_reader_gets_all_of_an_exec_on_a_terminal(case: Case) {
    let id = case.idle().await;
    let mut command = command(&case.suite.shared().await.root);
    command.args(["exec", "-t", &id.to_string(), "sh", "-c", "seq 10001 20000; touch /written"]);
    let mut exec = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut stdout = exec.stdout.take().unwrap();
    eventually("all is written", || async { case.exec(&id, "test -e /written").await.0 == 0 }).await;
    let ended = tokio::time::timeout(Duration::from_secs(2), exec.wait()).await;
    assert!(ended.is_err(), "it ends while its output is not read: {ended:?}");
    let mut text = String::new();
    soon("its output", stdout.read_to_string(&mut text)).await.unwrap();
    assert_eq!((text.lines().count(), text.lines().last()), (10_000, Some("20000")));
    assert_eq!(soon("its end", exec.wait()).await.unwrap().code(), Some(0));
}
