//! Every flag with a value that cannot be: refused by its name, and nothing is made or changed.

mod table;

use std::collections::BTreeSet;

use crate::support::Case;
use crate::support::berth::{berth, command_but_for, said};
use crate::support::case::eventually;
use crate::support::root::Root;
use table::{ROWS, Value};

crate::tests![each_flag_refuses_what_it_cannot_mean_by_its_name];

/// What follows the flags, so that nothing else is wrong.
fn operands<'a>(command: &str, image: &'a str, container: &'a str) -> Vec<&'a str> {
    match command {
        "" => vec!["ps"],
        "run" | "create" => vec![image, "true"],
        "exec" => vec![container, "true"],
        "stop" | "restart" | "kill" | "update" | "inspect" | "logs" | "export" => vec![container],
        "pull" | "push" | "save" | "image inspect" => vec![image],
        "volume restore" | "volume verify" => vec!["data"],
        "network create" => vec!["never"],
        _ => vec![],
    }
}

/// Flags without which a command, or the flag that is tried, is refused for want of them.
fn company(command: &str, flag: &str) -> &'static [&'static str] {
    match (command, flag) {
        ("apply", "--file") => &["--name", "never"],
        ("apply", "--name") => &["--file", "/dev/null"],
        ("apply", "--creds") => &["--file", "/dev/null", "--name", "never"],
        ("" | "run" | "create", flag) if flag.starts_with("--health-") => &["--health-cmd", "true"],
        ("", "--s3-endpoint" | "--s3-prefix" | "--s3-region") => &["--s3-bucket", "b"],
        _ => &[],
    }
}

/// What a root holds, as its commands tell.
async fn held(root: &Root) -> Vec<String> {
    let mut all = Vec::new();
    for args in [
        &["ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.State}}"][..],
        &["volume", "ls", "-q"],
        &["network", "ls", "-q"],
        &["images", "-q"],
    ] {
        all.push(berth(root, args).await.succeeded());
    }
    for dir in ["containers", "trash", "volumes"] {
        let entries = std::fs::read_dir(root.dir.join(dir)).unwrap();
        let names: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        all.push(format!("{dir}: {names:?}"));
    }
    all
}

async fn each_flag_refuses_what_it_cannot_mean_by_its_name(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let image = case.suite.busybox().await.to_owned();
    let run = ["run", "--network", "none", "-v", "data:/data", "--name"];
    berth(&root, &[&run[..], &["held", &image, "true"]].concat()).await.succeeded();
    berth(&root, &["rm", "held"]).await.succeeded();
    let idle = ["run", "-d", "--network", "none", "--name", "held", &image, "sleep", "1000"];
    berth(&root, &idle).await.succeeded();
    eventually("what was removed is deleted", || async {
        std::fs::read_dir(root.dir.join("trash")).unwrap().count() == 0
    })
    .await;
    let before = held(&root).await;
    let commands = |command: &'static str| if command == "run" { vec!["run", "create"] } else { vec![command] };
    let mut wrong = Vec::new();
    for (rows, values) in ROWS {
        for command in commands(rows) {
            for (flag, value) in *values {
                let (text, words, is_usage) = match *value {
                    Value::Bad(text) => (text, *flag, true),
                    Value::BadSetting(text, words) => (text, words, true),
                    Value::Refused(text) => (text, text, false),
                    Value::Any(reason) => {
                        assert!(!reason.is_empty(), "{command} {flag}");
                        continue;
                    }
                };
                let mut args = vec!["--json"];
                args.extend(command.split_whitespace());
                args.extend(company(command, flag));
                args.extend([flag, text]);
                args.extend(operands(command, &image, "held"));
                // No flag can be given twice, and those of S3 come together.
                let left_out = if flag.starts_with("--s3-") { "--s3-" } else { flag };
                let mut berth = command_but_for(&root, if command.is_empty() { left_out } else { "" });
                berth.args(&args);
                let said = said(berth).await;
                let usage = if ["run", "create", "exec"].contains(&command) { 125 } else { 2 };
                let statuses = if is_usage { vec![usage] } else { vec![1, 125] };
                let told: serde_json::Value = serde_json::from_str(&said.stderr).unwrap_or_default();
                let message = told["error"]["message"].as_str().unwrap_or_default();
                let is_told = message.contains(words) || (!is_usage && message.contains(flag));
                let has_rest = told["error"]["code"].is_string() && told["error"]["hint"].is_string();
                if !statuses.contains(&said.code) || !is_told || !has_rest || !said.stdout.is_empty() {
                    wrong.push(format!("{args:?}: {said:?}"));
                }
            }
        }
    }
    let after = held(&root).await;
    // Whatever there is: a failure leaves nothing to the other tests.
    let names = berth(&root, &["ps", "-aq", "--no-trunc"]).await.succeeded();
    berth(&root, &[&["rm", "-f"], &names.lines().collect::<Vec<_>>()[..]].concat()).await.succeeded();
    assert!(wrong.is_empty(), "{} are not refused by name:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(after, before, "something was made or changed");
}
