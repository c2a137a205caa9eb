//! The `berth` command: exit codes, errors, and what it prints.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use serde_json::json;

use crate::support::Case;
use crate::support::berth::{command, command_but_for, said};
use crate::support::image::Image;

crate::tests![
    a_name_or_a_command_that_cannot_be_is_a_usage_error,
    a_word_that_is_not_utf_8_is_a_usage_error,
    an_empty_place_is_not_the_default_one,
    what_is_refused_is_refused_alone,
    a_spec_that_cannot_be_applied_ends_in_one_way,
    an_s3_endpoint_that_is_none_is_refused_before_anything_is_tried,
    an_exec_ends_with_the_code_of_its_program_or_of_what_stood_in_its_way,
    a_missing_working_directory_of_an_exec_is_126_and_named,
    a_named_volume_without_a_bucket_is_said_to_stay_here,
    ps_shows_the_images_own_command,
    a_kill_of_a_paused_container_ends_it,
    a_cidfile_that_cannot_be_written_leaves_no_container,
    a_stop_by_a_signal_sends_that,
    ps_filters_and_formats_as_docker_does,
    inspect_prints_what_a_template_asks_for,
    top_has_the_columns_of_ps,
    update_changes_limits_while_it_runs_and_for_the_next_start,
    shutdown_takes_down_what_a_root_has_on_the_host,
    a_restart_is_a_stop_and_a_start,
    a_spec_is_applied_from_json_as_from_yaml,
    a_key_twice_or_a_tag_in_a_spec_is_refused,
    what_an_image_says_moves_no_terminal,
    with_json_all_that_is_said_is_json,
    a_limit_of_the_file_holds,
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
        (&["run", "-m", "-5", &image], 125, "--memory \"-5\""),
        (&["create", "--memory", "-5m", &image], 125, "--memory \"-5m\""),
        (&["run", "--cpus", "-1", &image], 125, "--cpus \"-1\""),
        (&["run", "--pids-limit", "-2", &image], 125, "--pids-limit \"-2\""),
        (&["run", "--shm-size", "-1", &image], 125, "--shm-size \"-1\""),
        (&["run", "--cpu-shares", "-3", &image], 125, "'-3' for '--cpu-shares"),
        (&["update", "-m", "-5", &id], 2, "--memory \"-5\""),
        (&["update", "--cpus", "-1", &id], 2, "--cpus \"-1\""),
        (&["update", "--pids-limit", "-2", &id], 2, "--pids-limit \"-2\""),
        (&["--log-level", "foo", "ps"], 2, "foo"),
        (&["volume", "inspect", "../x"], 2, "../x"),
        (&["volume", "history", "../x"], 2, "../x"),
        (&["rmi", "BAD REF"], 2, "BAD REF"),
        (&["image", "verify", "BAD REF"], 2, "BAD REF"),
        (&["--root", "run", "ps", "--bogus"], 2, "berth ps --help"),
    ] {
        let said = case.berth(args).await;
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        assert!(said.stderr.contains(named), "{args:?}: {said:?}");
    }
}

async fn a_word_that_is_not_utf_8_is_a_usage_error(case: Case) {
    let root = &case.suite.shared().await.root;
    let bad = OsStr::from_bytes(b"caf\xe9");
    let words = |words: &[&'static str]| words.iter().map(|word| OsStr::new(*word)).chain([bad]).collect::<Vec<_>>();
    for (args, code) in [
        (words(&["exec", "web", "cat"]), 125),
        (words(&["run", "image", "sh", "-c"]), 125),
        (words(&["inspect"]), 2),
        (words(&["ps", "--filter"]), 2),
    ] {
        for format in [&[][..], &["--json"]] {
            let mut berth = command(root);
            berth.args(format).args(&args);
            let said = said(berth).await;
            assert!(said.code == code && said.stderr.contains("UTF-8"), "{args:?}: {said:?}");
            assert!(format.is_empty() || said.refused(code).0 == "usage", "{args:?}: {said:?}");
        }
    }
    for variable in ["BERTH_ROOT", "BERTH_LOG"] {
        let mut berth = command_but_for(root, if variable == "BERTH_ROOT" { "--root" } else { "" });
        berth.args(["--json", "ps"]).env(variable, bad);
        let (code, message) = said(berth).await.refused(2);
        assert!(code == "config.invalid" && message.contains(variable), "{message}");
    }
    let image = case.suite.busybox().await;
    let mut berth = command(root);
    berth.args(["create", "-e", "LATIN_1", image, "true"]).env("LATIN_1", bad);
    let said = said(berth).await;
    assert!(said.code == 125 && said.stderr.contains("LATIN_1"), "{said:?}");
}

/// A script's variable may not be set.
async fn an_empty_place_is_not_the_default_one(case: Case) {
    let root = &case.suite.shared().await.root;
    for flag in ["--root", "--run-dir", "--cgroup-parent", "--bridge", "--subnet", "--log-level"] {
        let mut berth = command_but_for(root, flag);
        berth.args([flag, "", "ps"]);
        let said = said(berth).await;
        assert!(said.code == 2 && said.stderr.contains(&format!("{flag} \"\"")), "{flag}: {said:?}");
    }
}

async fn what_is_refused_is_refused_alone(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let root = case.root("refused");
    let refused = async |args: &[&str], named: &str| {
        let said = case.berth_on(&root, args).await;
        let first = said.stderr.lines().next().unwrap_or_default();
        assert!(said.code != 0 && first.contains(named), "{args:?}: {said:?}");
        assert!(!said.stderr.contains("warning"), "{args:?}: {said:?}");
    };
    for (args, named) in [
        (&["run", "-v", "foo:/", &image][..], "--volume: the root itself"),
        (&["create", "-v", "a b:/data", &image], "\"a b\" is not a name"),
        (&["run", "-d", "-v", "foo:/data", "-v", "bar:/data", &image], "--volume: /data is the target of"),
    ] {
        refused(args, named).await;
    }
    assert_eq!(case.berth_on(&root, &["images", "-q"]).await.succeeded(), "", "pulled before it was refused");
    refused(&["run", "-v", "foo:/data", "--network", "nosuch", &image], "nosuch").await;
    refused(&["create", "-v", "foo:/data", "-m", "1k", &image], "--memory: ").await;
}

/// Whether the command, the spec's parser or the volume store finds out.
async fn a_spec_that_cannot_be_applied_ends_in_one_way(case: Case) {
    let image = case.suite.busybox().await;
    for (spec, code, named) in [
        (r#""resources": {"memroy": "1Gi"}"#, "spec.invalid", "memroy"),
        (r#""resources": {"cpu": -1}"#, "spec.invalid", "resources.cpu"),
        (r#""storage": [{"type": "named", "name": "../x", "target": "/d"}]"#, "volume.invalid_name", "../x"),
        (r#""storage": [{"type": "named", "name": "x", "target": "d"}]"#, "spec.invalid", "storage[0].target"),
        (r#""platform": "bogus""#, "image.invalid_platform", "bogus"),
        (r#""env": {"A": null}"#, "spec.invalid", "null"),
    ] {
        let spec = format!(r#"{{"image": {{"name": {image:?}}}, {spec}}}"#);
        let said = case.berth_with(&["--json", "apply", "-f", "-", "--name", "never"], spec.as_bytes()).await;
        let told: serde_json::Value = serde_json::from_str(&said.stderr).unwrap();
        assert_eq!((said.code, told["error"]["code"].as_str()), (2, Some(code)), "{spec}: {said:?}");
        assert!(told["error"]["message"].as_str().unwrap().contains(named), "{told}");
    }
    // As a template writes it for what it lacks, where YAML's parser takes it for a word.
    for (line, field) in [("env: {A: null}", "env.A"), ("command: {args: [echo, ~]}", "command.args.1")] {
        let spec = format!("image: {{name: {image}}}\n{line}\n");
        let said = case.berth_with(&["--json", "apply", "-f", "-", "--name", "never"], spec.as_bytes()).await;
        let (code, message) = said.refused(2);
        assert!(code == "spec.invalid" && message.contains(field), "{line}: {message}");
    }
}

async fn an_s3_endpoint_that_is_none_is_refused_before_anything_is_tried(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let root = case.root("never-made");
    let file = case.suite.dir.path().join("ftp.toml");
    std::fs::write(&file, "[s3]\nbucket = \"b\"\nendpoint = \"ftp://x\"\n").unwrap();
    let from_file = ["--config", file.to_str().unwrap()];
    let flags = |endpoint| ["--s3-bucket", "b", "--s3-endpoint", endpoint];
    for (settings, endpoint) in [
        (&from_file[..], "ftp://x"),
        (&flags("ftp://x"), "ftp://x"),
        (&flags("localhost:9000"), "localhost:9000"),
        (&flags("http://"), "http://"),
    ] {
        for (args, code) in [
            (&["run", "-v", "data:/data", &image, "true"][..], 125),
            (&["create", &image], 125),
            (&["exec", "none", "true"], 125),
            (&["ps"], 2),
            (&["doctor"], 2),
        ] {
            let said = case.berth_on(&root, &[&["--json"], settings, args].concat()).await;
            let told: serde_json::Value = serde_json::from_str(&said.stderr).unwrap();
            assert_eq!((said.code, &told["error"]["code"]), (code, &"config.invalid".into()), "{args:?}: {said:?}");
            let message = told["error"]["message"].as_str().unwrap();
            assert!(message.contains(&format!("S3 endpoint {endpoint:?}")), "{message}");
            assert!(told["error"]["hint"].as_str().unwrap().contains("https://HOST"), "{told}");
        }
    }
    assert!(!root.dir.exists() && !root.run_dir.exists(), "something was made");
    let mut config = root.config();
    config.s3 =
        Some(volumes_s3::S3Config { bucket: "b".into(), endpoint: Some("ftp://x".into()), ..Default::default() });
    let error = youki_backend::YoukiRuntime::open(config).await.unwrap_err();
    assert!(!root.dir.exists() && error.hint().is_some(), "{error}");
    assert!(matches!(error.into(), runtime_core::AgentError::Configuration(_)));
}

async fn an_exec_ends_with_the_code_of_its_program_or_of_what_stood_in_its_way(case: Case) {
    let running = case.idle().await.to_string();
    let ended = case.idle().await;
    case.runtime.stop_container(&ended, Duration::from_secs(10)).await.unwrap();
    let paused = case.idle().await.to_string();
    case.berth(&["pause", &paused]).await.succeeded();
    for (args, code, says) in [
        (&[&running, "sh", "-c", "exit 125"][..], 125, ""),
        (&[&running, "sh", "-c", "exit 1"], 1, ""),
        (&[&running, "no-such-program"], 127, "no-such-program"),
        (&[&running, "/no/such/program"], 127, "/no/such/program"),
        (&[&running, "/etc/passwd/x"], 127, "/etc/passwd/x"),
        (&[&running, "/etc/passwd"], 126, "/etc/passwd"),
        (&[&running, "/etc"], 126, "/etc"),
        (&["--bogus", &running, "true"], 125, "--bogus"),
        (&["-d", "-t", &running, "true"], 125, "terminal"),
        (&["--timeout", "never", &running, "true"], 125, "never"),
        (&["-u", "nobody-of-that-name", &running, "true"], 1, "nobody-of-that-name"),
        (&["no-such-container", "true"], 1, "no-such-container"),
        (&[&ended.to_string(), "true"], 1, "not running"),
        (&[&paused, "true"], 1, "paused"),
    ] {
        let said = case.berth(&[&["exec"], args].concat()).await;
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        assert!(said.stderr.contains(says) && says.is_empty() == said.stderr.is_empty(), "{args:?}: {said:?}");
    }
    case.berth(&["unpause", &paused]).await.succeeded();
    // A run ends with what its container's end is told as.
    let image = case.suite.busybox().await;
    for (program, code) in [("/etc/passwd/x", 127), ("/etc/passwd", 126)] {
        let id = case.id();
        let said = case.berth(&["run", "--name", &id.service, "--network", "none", image, program]).await;
        assert_eq!((said.code, case.runtime.wait_container(&id).await), (code, Ok(code)), "{said:?}");
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

async fn a_named_volume_without_a_bucket_is_said_to_stay_here(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let root = case.root("local-volume");
    let run = ["run", "--rm", "--network", "none", "-v", "here:/data", &image, "true"];
    let output = command(&root).args(run).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("volume here: no bucket is configured"), "{said}");
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

async fn ps_filters_and_formats_as_docker_does(case: Case) {
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.labels.insert("berth.test".into(), "filtered".into());
    let running = case.start(&spec).await.to_string();
    spec.command.args = Some(crate::support::case::words(&["sh", "-c", "exit 3"]));
    let ended = case.start(&spec).await;
    case.finish(&ended).await;
    let ended = ended.to_string();
    let label = "label=berth.test=filtered";
    let service = running.trim_end_matches("-rep-0");
    for (args, expected) in [
        (&["ps", "-q", "--filter", label][..], vec![&running]),
        (&["ps", "-aq", "--filter", label], vec![&ended, &running]),
        (&["ps", "-q", "-f", label, "-f", "status=exited"], vec![&ended]),
        (&["ps", "-q", "-f", label, "-f", "status=exited", "-f", "status=running"], vec![&ended, &running]),
        (&["ps", "-q", "-f", "label=berth.test", "-f", "exited=3"], vec![&ended]),
        (&["ps", "-aq", "-f", &format!("name={running}")], vec![&running]),
        (&["ps", "-aq", "-f", &format!("name=^/{service}$")], vec![&running]),
        (&["ps", "-aq", "-f", &format!("name=^{}", &service[1..])], vec![]),
        (&["ps", "-aq", "-f", label, "-f", "label=other"], vec![]),
    ] {
        let text = case.berth(args).await.succeeded();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{args:?}");
    }
    let format = r#"{{.ID}}|{{.State}}|{{.Label "berth.test"}}|{{.spec.image.name}}"#;
    let text = case.berth(&["ps", "-a", "-f", label, "-f", "status=exited", "--format", format]).await.succeeded();
    assert_eq!(text, format!("{ended}|exited|filtered|{}\n", case.suite.busybox().await));
    let table = case.berth(&["ps", "-f", label, "--format", r"table {{.Names}}\t{{.Status}}"]).await.succeeded();
    let mut lines = table.lines();
    assert!(lines.next().unwrap().starts_with("NAMES  ") && lines.next().unwrap().contains("Up "), "{table}");
    for bad in [
        &["ps", "-f", "bogus=1"][..],
        &["ps", "-f", "status=asleep"],
        &["ps", "-f", "name=a["],
        &["ps", "--format", "{{.ID"],
    ] {
        assert_eq!(case.berth(bad).await.code, 2, "{bad:?}");
    }
}

async fn inspect_prints_what_a_template_asks_for(case: Case) {
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.labels.insert("a.b".into(), "c".into());
    let id = case.start(&spec).await;
    let name = id.to_string();
    let pid = case.runtime.get_container_pid(&id).await.unwrap().unwrap();
    for (template, expected) in [
        ("{{.State.Status}} {{.State.Running}} {{.State.Pid}}", format!("running true {pid}")),
        ("{{.state}} {{.pid}}", format!("running {pid}")),
        (r#"{{index .Config.Labels "a.b"}}{{json .spec.labels}}"#, r#"c{"a.b":"c"}"#.to_owned()),
    ] {
        assert_eq!(case.berth(&["inspect", "-f", template, &name]).await.succeeded(), format!("{expected}\n"));
    }
    let said = case.berth(&["inspect", "--format", "{{.NoSuch.Field}}", &name]).await;
    assert!(said.code == 2 && said.stderr.contains("NoSuch.Field"), "{said:?}");
}

async fn top_has_the_columns_of_ps(case: Case) {
    let id = case.start(&case.spec(&["sleep", "3598"]).await).await;
    let pid = case.runtime.get_container_pid(&id).await.unwrap().unwrap();
    let text = case.berth(&["top", &id.to_string(), "-o", "pid,comm,args,nlwp"]).await.succeeded();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines, [vec!["PID", "COMM", "ARGS", "NLWP"], vec![&pid.to_string(), "sleep", "sleep", "3598", "1"]]);
    let text = case.berth(&["top", &id.to_string(), "-ef"]).await.succeeded();
    assert!(text.starts_with("UID") && text.contains("sleep 3598"), "{text}");
    assert_eq!(case.berth(&["top", &id.to_string(), "-o", "bogus"]).await.code, 2);
}

async fn update_changes_limits_while_it_runs_and_for_the_next_start(case: Case) {
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.resources.memory = Some("64Mi".parse().unwrap());
    let id = case.start(&spec).await;
    let name = id.to_string();
    let limits = |case: &Case| {
        let memory = case.cgroup_file(&id, "memory", &["memory.limit_in_bytes", "memory.max"]);
        let pids = case.cgroup_file(&id, "pids", &["pids.max"]);
        (memory.trim().to_owned(), pids.trim().to_owned())
    };
    // Up and down: the kernel wants the two memory limits in different orders.
    for (memory, pids) in [("256m", "100"), ("32m", "50")] {
        case.berth(&["update", "-m", memory, "--pids-limit", pids, &name]).await.succeeded();
        let bytes: u64 = memory.trim_end_matches('m').parse::<u64>().unwrap() << 20;
        assert_eq!(limits(&case), (bytes.to_string(), pids.to_owned()));
    }
    case.berth(&["update", "--cpus", "0.5", &name]).await.succeeded();
    let quota = case.cgroup_file(&id, "cpu", &["cpu.cfs_quota_us", "cpu.max"]);
    assert!(quota.starts_with("50000"), "{quota}");
    // What is refused changes nothing.
    let said = case.berth(&["update", "--pids-limit", "7", "--cpuset-cpus", "4000", &name]).await;
    assert!(said.code == 2 && said.stderr.contains("cpuset"), "{said:?}");
    assert_eq!(limits(&case), ((32 << 20).to_string(), "50".to_owned()));
    assert_eq!(case.berth(&["update", &name]).await.code, 2);
    assert_eq!(case.berth(&["update", "--cpus", "4000", &name]).await.code, 2);

    case.runtime.stop_container(&id, Duration::from_secs(5)).await.unwrap();
    case.berth(&["update", "--pids-limit", "60", &name]).await.succeeded();
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(limits(&case), ((32 << 20).to_string(), "60".to_owned()));
}

async fn shutdown_takes_down_what_a_root_has_on_the_host(case: Case) {
    let root = case.root("down");
    let runtime = root.open().await.unwrap();
    let id = case.id_on(&runtime);
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.network.mode = runtime_core::spec::NetworkMode::Bridge;
    crate::support::case::start_on(&*runtime, &id, &spec).await.unwrap();
    let bridge = std::path::Path::new("/sys/class/net").join(&root.bridge);
    assert!(bridge.exists() && !root.cgroup_parents().is_empty());
    let output = crate::support::berth::command(&root).args(["shutdown", "--dismantle"]).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!bridge.exists() && root.cgroup_parents().is_empty(), "{:?}", root.cgroup_parents());
    // The container stays, and has all of it again when it is started.
    runtime.start_container(&id).await.unwrap();
    assert!(bridge.exists() && runtime.get_container_ip(&id).await.unwrap().is_some());
}

async fn a_kill_of_a_paused_container_ends_it(case: Case) {
    let spec = case.script("trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done").await;
    for (signal, code) in [("KILL", 137), ("TERM", 3)] {
        let id = case.start(&spec).await;
        case.until_logged(&id, "up").await;
        case.runtime.pause(&id).await.unwrap();
        case.berth(&["kill", "-s", signal, &id.to_string()]).await.succeeded();
        assert_eq!(case.finish(&id).await.outcome.exit_code, code);
    }
    let id = case.start(&spec).await;
    case.runtime.pause(&id).await.unwrap();
    case.berth(&["kill", "-s", "USR1", &id.to_string()]).await.succeeded();
    assert_eq!(case.berth(&["inspect", "--format", "{{.state}}", &id.to_string()]).await.stdout.trim(), "paused");
    case.runtime.remove_container(&id).await.unwrap();
}

async fn a_cidfile_that_cannot_be_written_leaves_no_container(case: Case) {
    let spec = case.script("true").await;
    let name = case.id().service;
    for flags in [&["run", "--rm"][..], &["run", "-d"], &["create"]] {
        let line = [flags, &["--name", &name, "--cidfile", "/nonexistent/dir/cid", &spec.image.name, "true"]].concat();
        let said = case.berth(&line).await;
        assert!(said.code != 0 && said.stderr.contains("/nonexistent/dir/cid"), "{said:?}");
        let listed = case.berth(&["ps", "-a", "--format", "{{.name}}"]).await.succeeded();
        assert!(!listed.lines().any(|line| line == name), "{flags:?} left {name}");
    }
    // Nor does a create that fails leave the file.
    let file = case.suite.dir.path().join("cidfile-of-none");
    let file = file.to_str().unwrap();
    let line = ["create", "--name", &name, "--cidfile", file, "-u", "nobody-of-that-name", &spec.image.name];
    let said = case.berth(&line).await;
    assert!(said.code != 0 && !std::path::Path::new(file).exists(), "{said:?}");
}

async fn a_stop_by_a_signal_sends_that(case: Case) {
    let spec =
        case.script("trap 'exit 5' TERM; trap 'exit 6' USR1; echo on; while :; do sleep 3600 & wait $!; done").await;
    for (flags, code) in [(&["-s", "USR1"][..], "6"), (&["--signal=SIGUSR1", "-t", "60"], "6"), (&[], "5")] {
        let id = case.start(&spec).await;
        crate::support::case::eventually("it heeds signals", || async {
            case.berth(&["logs", &id.to_string()]).await.stdout.contains("on")
        })
        .await;
        case.berth(&[&["stop", &id.to_string()][..], flags].concat()).await.succeeded();
        assert_eq!(case.berth(&["wait", &id.to_string()]).await.succeeded().trim(), code, "{flags:?}");
    }
}

async fn a_restart_is_a_stop_and_a_start(case: Case) {
    let script = "echo x >> /attempts; trap 'exit 6' USR1; trap 'exit 5' TERM; wc -l < /attempts; \
                  while :; do sleep 3600 & wait $!; done";
    let id = case.start(&case.script(script).await).await;
    let name = id.to_string();
    case.until_logged(&id, "1").await;
    let about = async |field: &str| case.berth(&["inspect", "-f", field, &name]).await.succeeded();
    assert_eq!(case.berth(&["restart", "-s", "USR1", "-t", "60", &name]).await.succeeded(), format!("{name}\n"));
    case.until_logged(&id, "2").await;
    assert_eq!(about("{{.state}} {{.attempt}}").await, "running 2\n");
    let ends =
        ["events", "--filter", "event=exit", "--filter", &format!("container={name}"), "--format", "{{.exit_code}}"];
    assert_eq!(case.berth(&ends).await.succeeded(), "6\n");
    // One that does not run is started.
    case.berth(&["stop", &name]).await.succeeded();
    case.berth(&["restart", &name]).await.succeeded();
    case.until_logged(&id, "3").await;
    // One that never ran has no end.
    let created = case.id();
    case.runtime.create_container(&created, &case.script(crate::support::case::IDLE).await).await.unwrap();
    let created = created.to_string();
    case.berth(&["restart", &created]).await.succeeded();
    let seen = ["inspect", "-f", "{{.state}} {{.attempt}}", &created];
    assert_eq!(case.berth(&seen).await.succeeded(), "running 1\n");
    // One that goes with its end is left alone.
    let mut passing = case.script(crate::support::case::IDLE).await;
    passing.remove_on_exit = true;
    let passing = case.start(&passing).await;
    let (code, message) = case.berth(&["--json", "restart", "-t", "0", &passing.to_string()]).await.refused(1);
    assert!(code == "unsupported" && message.contains(&passing.to_string()), "{code}: {message}");
    assert_eq!(case.runtime.container_state(&passing).await.unwrap(), runtime_core::ContainerState::Running);
    assert_eq!(case.berth(&["restart", "no-such"]).await.code, 1);
}

async fn a_spec_is_applied_from_json_as_from_yaml(case: Case) {
    let image = case.suite.busybox().await;
    let profile = case.suite.dir.path().join("allow-all.json");
    std::fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let profile = profile.display();
    for spec in [
        format!(
            r#"{{"image": {{"name": "{image}"}}, "command": {{"args": ["true"]}}, "seccomp": {{"file": "{profile}"}}}}"#
        ),
        // As editors of other systems begin it.
        format!("\u{feff}image:\n  name: {image}\ncommand:\n  args: ['true']\nseccomp:\n  file: {profile}\n"),
    ] {
        let id = case.id().service;
        let said = case.berth_with(&["apply", "-f", "-", "--name", &id], spec.as_bytes()).await;
        assert_eq!(said.code, 0, "{spec}: {said:?}");
        assert_eq!(case.berth(&["wait", &id]).await.succeeded(), "0\n");
        assert_eq!(case.berth(&["rm", "--json", &id]).await.json(), serde_json::json!([id]));
    }
}

async fn a_key_twice_or_a_tag_in_a_spec_is_refused(case: Case) {
    for spec in [
        r#"{"image": {"name": "a"}, "env": {"A": "1", "A": "2"}}"#,
        r#"{"image": {"name": "a"}, "image": {"name": "b"}}"#,
        "image:\n  name: a\nlabels:\n  a: '1'\n  a: '2'\n",
        "image:\n  name: a\nimage:\n  name: b\n",
    ] {
        let said = case.berth_with(&["apply", "-f", "-", "--name", "twice"], spec.as_bytes()).await;
        assert!(said.code == 2 && said.stderr.contains("duplicate"), "{spec}: {said:?}");
    }
    for (spec, field) in [
        ("image: {name: a}\nenv: {A: !vault abc}\n", "env.A"),
        ("image: !foo {name: a}\n", "image"),
        ("image: {name: a}\nprivileged: !bar false\n", "privileged"),
        ("image: {name: a}\ncommand: {args: [a, !reset null]}\n", "command.args.1"),
    ] {
        let said = case.berth_with(&["apply", "-f", "-", "--name", "tagged"], spec.as_bytes()).await;
        assert!(said.code == 2 && said.stderr.contains(&format!("{field}: it has a tag")), "{spec}: {said:?}");
    }
    // To scan them would take minutes.
    let deep = format!("image: {}", "[".repeat(100_000));
    let said = case.berth_with(&["apply", "-f", "-", "--name", "deep"], deep.as_bytes()).await;
    assert!(said.code == 2 && said.stderr.contains("brackets stand open"), "{said:?}");
}

async fn what_an_image_says_moves_no_terminal(case: Case) {
    let image = case.push("hostile", &Image::busybox().with("Entrypoint", json!(["\u{1b}]0;title\u{7}"]))).await;
    let said = case.berth(&["run", "--rm", "--network", "none", &image]).await;
    assert!(said.code == 127 && said.stderr.contains("\\u{1b}]0;title"), "{said:?}");
    assert!(!said.stderr.contains(['\u{1b}', '\u{7}']), "{said:?}");
}

async fn with_json_all_that_is_said_is_json(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await;
    let warnings = |stderr: &str| -> Vec<String> {
        let lines = stderr.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|line| Some(line["warning"]["message"].as_str()?.to_owned())).collect()
    };
    let words = ["create", "--json", "--network", "none", "-v", "data:/data", image];
    let said = case.berth_on(&root, &words).await;
    assert!(warnings(&said.stderr).concat().contains("no bucket is configured"), "{said:?}");
    let id = said.json()["id"].as_str().unwrap().to_owned();
    let record = root.dir.join("containers").join(&id).join("container.json");
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, "{").unwrap();
    let said = case.berth_on(&root, &["--json", "ps", "-a"]).await;
    assert!(warnings(&said.stderr).concat().contains(&id), "{said:?}");
    std::fs::write(&record, whole).unwrap();
    case.berth_on(&root, &["rm", &id]).await.succeeded();
}

async fn a_limit_of_the_file_holds(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let root = case.root("root");
    let file = case.suite.dir.path().join("limits.toml");
    std::fs::write(&file, "[limits]\nlayer_entries = 1\n").unwrap();
    let said = case.berth_on(&root, &["--config", file.to_str().unwrap(), "pull", &image]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains("[limits]"), "{said:?}");
    case.berth_on(&root, &["pull", &image]).await.succeeded();
}
