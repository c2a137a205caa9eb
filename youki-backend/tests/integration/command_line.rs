//! The `berth` command: exit codes, errors, and what it prints.

use crate::support::Case;
use crate::support::terminal::Terminal;

crate::tests![
    a_name_or_a_command_that_cannot_be_is_a_usage_error,
    a_missing_working_directory_of_an_exec_is_126_and_named,
    an_exec_on_a_terminal_is_one_to_both_sides,
    ps_shows_the_images_own_command,
    non_blocking_logs_and_mirrors_of_the_file_are_refused_by_name,
];

async fn a_name_or_a_command_that_cannot_be_is_a_usage_error(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let id = case.idle().await.to_string();
    for (args, code, named) in [
        (&["create", "--name", "../x", &image][..], 125, "../x"),
        (&["run", "--name", "../x", &image], 125, "../x"),
        (&["exec", &id, ""], 125, "command"),
        (&["create", "--cpus", "1000", &image], 125, "between 0.01 and"),
        (&["create", "--platform", "bogus", &image], 125, "bogus"),
        (&["pull", "--platform", "bogus", &image], 2, "bogus"),
        (&["kill", "-s", "BOGUS", &id], 2, "BOGUS"),
        (&["apply", "-f", "/dev/null", "--name", "../x"], 2, "../x"),
    ] {
        let said = case.berth(args).await;
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        assert!(said.stderr.contains(named), "{args:?}: {said:?}");
    }
}

async fn a_missing_working_directory_of_an_exec_is_126_and_named(case: Case) {
    let id = case.idle().await.to_string();
    let said = case.berth(&["exec", "-w", "/no/such/dir", &id, "true"]).await;
    assert_eq!(said.code, 126, "{said:?}");
    assert!(said.stderr.contains("/no/such/dir") && !said.stderr.contains("true"), "{said:?}");
    let said = case.berth(&["--json", "exec", "-w", "/etc/passwd", &id, "true"]).await;
    assert!(said.code == 126 && said.stderr.contains("\"exec.workdir\""), "{said:?}");
    assert_eq!(case.berth(&["exec", &id, "no-such-program"]).await.code, 127);
}

async fn ps_shows_the_images_own_command(case: Case) {
    let mut spec = case.spec(&[]).await;
    spec.command.args = None;
    let cmd = serde_json::json!(["sleep", "3599"]);
    spec.image.name = case.push("cmd", &crate::support::image::Image::busybox().with("Cmd", cmd)).await;
    let id = case.start(&spec).await.to_string();
    let listed = case.berth(&["ps", "--no-trunc"]).await.succeeded();
    let line = listed.lines().find(|line| line.contains(&id)).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("\"sleep 3599\""), "{line}");
    let inspected = case.berth(&["inspect", &id]).await.json();
    assert_eq!(inspected[0]["args"], serde_json::json!(["sleep", "3599"]));
}

async fn non_blocking_logs_and_mirrors_of_the_file_are_refused_by_name(case: Case) {
    let file = case.suite.dir.path().join("unsupported.toml");
    let image = case.suite.busybox().await.to_owned();
    for (config, named) in [
        ("[logs]\nmode = \"non_blocking\"\n", "non_blocking"),
        ("[registry.\"127.0.0.1:1\"]\nmirrors = [\"x\"]\n", "mirrors"),
    ] {
        std::fs::write(&file, config).unwrap();
        let image = if named == "mirrors" { "127.0.0.1:1/a:b" } else { &image };
        let said = case.berth(&["--config", file.to_str().unwrap(), "create", "--name", "never", image]).await;
        assert_eq!(said.code, 125, "{said:?}");
        assert!(said.stderr.contains(named), "{said:?}");
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
    terminal.type_in("stty size; tty; cat\n");
    terminal.until("33 111").await;
    terminal.until("/dev/pts/").await;
    assert_ne!(terminal.mode(), before, "the terminal is not raw");
    // An interrupt is the container's affair.
    terminal.type_in("\x03");
    terminal.type_in("echo interr''upted; stty size\n");
    terminal.until("interrupted").await;
    terminal.resize(20, 50);
    // The size is passed on by a signal.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    terminal.type_in("stty size; exit 7\n");
    terminal.until("20 50").await;
    assert_eq!(crate::support::case::soon("the exec's end", child.wait()).await.unwrap().code(), Some(7));
    assert_eq!(terminal.mode(), before, "the terminal is left raw");
    let said = case.berth(&["exec", "-it", &id, "true"]).await;
    assert!(said.code == 125 && said.stderr.contains("no terminal"), "{said:?}");
}
