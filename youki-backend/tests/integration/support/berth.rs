//! The `berth` command, on the root that tests share.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::case::Case;
use super::root::Root;

/// What a run of it came to.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// Its standard output, if it ended with 0.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Its standard output as JSON, if it ended with 0.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let text = self.succeeded();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The error that it told with `--json`: its code and message. It must have ended with `status`, and say what to do.
    #[track_caller]
    pub fn refused(&self, status: i32) -> (String, String) {
        assert_eq!(self.code, status, "{self:?}");
        // What was logged comes before.
        let last = self.stderr.trim_end().lines().last().unwrap_or_default();
        let told: serde_json::Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        let text = |key: &str| told["error"][key].as_str().unwrap_or_else(|| panic!("no {key}: {self:?}")).to_owned();
        assert!(!text("hint").is_empty(), "{self:?}");
        (text("code"), text("message"))
    }
}

impl Case {
    /// Runs `berth ARGS…` without input.
    pub async fn berth(&self, args: &[&str]) -> Said {
        self.berth_with(args, b"").await
    }

    /// The same with `input` as its standard input.
    pub async fn berth_with(&self, args: &[&str], input: &[u8]) -> Said {
        run(&self.suite.shared().await.root, args, input).await
    }

    /// Runs it on a root of the test's own.
    pub async fn berth_on(&self, root: &Root, args: &[&str]) -> Said {
        run(root, args, b"").await
    }

    /// The same with `input` as its standard input.
    pub async fn berth_on_with(&self, root: &Root, args: &[&str], input: &[u8]) -> Said {
        run(root, args, input).await
    }
}

async fn run(root: &Root, args: &[&str], input: &[u8]) -> Said {
    let mut child = command(root)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("starting berth");
    let mut stdin = child.stdin.take().expect("a piped stdin");
    let input = input.to_vec();
    // It may end without reading.
    tokio::spawn(async move { drop(stdin.write_all(&input).await) });
    let output = child.wait_with_output().await.expect("waiting for berth");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs `berth ARGS…` on `root`, without input.
pub async fn berth(root: &Root, args: &[&str]) -> Said {
    berth_with(root, args, &[]).await
}

/// The same with `environment` added to this process's.
pub async fn berth_with(root: &Root, args: &[&str], environment: &[(&str, &str)]) -> Said {
    let mut command = command(root);
    command.args(args).envs(environment.iter().copied());
    said(command).await
}

/// Runs a `berth` without input.
pub async fn said(mut command: Command) -> Said {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("running berth");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// `berth` with the flags that name `root`.
pub fn command(root: &Root) -> Command {
    command_but_for(root, "")
}

/// The same without those that begin with `left_out`, if that is not empty.
pub fn command_but_for(root: &Root, left_out: &str) -> Command {
    let path = |path: &std::path::Path| path.to_str().expect("a path in UTF-8").to_owned();
    let mut flags = vec![
        ("--root", path(&root.dir)),
        ("--run-dir", path(&root.run_dir)),
        ("--cgroup-parent", root.cgroup_parent.clone()),
        ("--bridge", root.bridge.clone()),
        ("--subnet", root.subnet.clone()),
    ];
    if let Some(s3) = root.s3.clone() {
        flags.extend([("--s3-endpoint", s3.endpoint), ("--s3-bucket", s3.bucket), ("--s3-prefix", s3.prefix)]);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    for (flag, value) in flags {
        if left_out.is_empty() || !flag.starts_with(left_out) {
            command.arg(flag).arg(value);
        }
    }
    command
}
