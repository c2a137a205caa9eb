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
    let mut command = command(root);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.expect("running berth");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// `berth` with the flags that name `root`.
pub fn command(root: &Root) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.arg("--root").arg(&root.dir).arg("--run-dir").arg(&root.run_dir);
    command.args(["--cgroup-parent", &root.cgroup_parent, "--bridge", &root.bridge, "--subnet", &root.subnet]);
    if let Some(s3) = &root.s3 {
        command.args(["--s3-endpoint", &s3.endpoint, "--s3-bucket", &s3.bucket, "--s3-prefix", &s3.prefix]);
    }
    command
}
