//! An agent in a process of its own, which a test can kill: this same program, told to serve.
//!
//! It reads one JSON request a line and writes one JSON answer a line, in order.

use std::io::{BufRead, Write};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use runtime_core::{ContainerId, RegistryAuth, Runtime, ServiceSpec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use youki_backend::YoukiRuntime;

use super::case::start_on;
use super::lanes::{self, Api, Plan};
use super::root::Root;

/// Holds the root as JSON in an agent's environment.
const ROOT_VARIABLE: &str = "BERTH_TEST_AGENT_ROOT";

/// What an agent can be asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Pull {
        image: String,
        auth: Option<(String, String)>,
    },
    Run {
        id: ContainerId,
        spec: Box<ServiceSpec>,
    },
    Create {
        id: ContainerId,
        spec: Box<ServiceSpec>,
    },
    /// Of an image that is there.
    CreateOnly {
        id: ContainerId,
        spec: Box<ServiceSpec>,
    },
    Start {
        id: ContainerId,
    },
    Wait {
        id: ContainerId,
    },
    Remove {
        id: ContainerId,
    },
    Stop {
        id: ContainerId,
        timeout: Duration,
    },
    Exec {
        id: ContainerId,
        command: Vec<String>,
    },
    /// Answers with a [`Tally`](super::lanes::Tally).
    Lane {
        plan: Box<Plan>,
    },
}

/// What it says.
type Answer = Result<Value, String>;

/// Whether this process is one.
pub fn is_asked_for() -> bool {
    std::env::var_os(ROOT_VARIABLE).is_some()
}

/// Opens the root and serves until its input ends.
pub fn serve() -> ExitCode {
    let root = std::env::var(ROOT_VARIABLE).unwrap_or_default();
    let root: Root = serde_json::from_str(&root).expect("a root as JSON");
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("tokio");
    let opened = tokio.block_on(YoukiRuntime::open(root.config()));
    let mut answers = std::io::stdout();
    let mut answer = |text: &Answer| {
        writeln!(answers, "{}", serde_json::to_string(text).expect("a result as JSON")).expect("writing an answer");
        answers.flush().expect("writing an answer");
    };
    let runtime = match opened {
        Ok(runtime) => runtime,
        Err(error) => {
            answer(&Err(format!("opening {}: {error}", root.dir.display())));
            return ExitCode::FAILURE;
        }
    };
    answer(&Ok(Value::Null));
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line.expect("reading a request")).expect("a request as JSON");
        answer(&tokio.block_on(respond(&runtime, request)));
    }
    ExitCode::SUCCESS
}

async fn respond(runtime: &YoukiRuntime, request: Request) -> Answer {
    match request {
        Request::Lane { plan } => {
            let tally = lanes::work(&Api(runtime), &plan).await?;
            Ok(serde_json::to_value(tally).expect("a tally as JSON"))
        }
        request => perform(runtime, request).await.map(|()| Value::Null).map_err(|error| error.to_string()),
    }
}

async fn perform(runtime: &dyn Runtime, request: Request) -> runtime_core::Result<()> {
    match request {
        Request::Pull { image, auth } => {
            let auth = auth.map(|(username, password)| RegistryAuth {
                username,
                password,
                auth_type: runtime_core::RegistryAuthType::Basic,
            });
            runtime.pull_image_with_policy(&image, runtime_core::PullPolicy::Always, auth.as_ref()).await
        }
        Request::Run { id, spec } => start_on(runtime, &id, &spec).await,
        Request::Create { id, spec } => {
            runtime.pull_image(&spec.image.name).await?;
            runtime.create_container(&id, &spec).await
        }
        Request::CreateOnly { id, spec } => runtime.create_container(&id, &spec).await,
        Request::Start { id } => runtime.start_container(&id).await,
        Request::Stop { id, timeout } => runtime.stop_container(&id, timeout).await,
        Request::Wait { id } => runtime.wait_container(&id).await.map(|_| ()),
        Request::Remove { id } => runtime.remove_container(&id).await,
        Request::Exec { id, command } => runtime.exec(&id, &command).await.map(|_| ()),
        Request::Lane { .. } => unreachable!("answered before"),
    }
}

/// The test's end of one.
pub struct Agent {
    child: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Agent {
    /// Starts one on `root`, with `environment` added to this process's.
    pub async fn start(root: &Root, environment: &[(&str, &str)]) -> Self {
        let program = std::env::current_exe().expect("this program's path");
        let mut child = tokio::process::Command::new(program)
            .env(ROOT_VARIABLE, serde_json::to_string(root).expect("a root as JSON"))
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starting an agent");
        let requests = child.stdin.take().expect("a piped stdin");
        let answers = BufReader::new(child.stdout.take().expect("a piped stdout")).lines();
        let mut agent = Self { child, requests, answers };
        agent.answer().await.expect("the agent opens its root");
        agent
    }

    /// The same, with its process id.
    pub async fn start_with_pid(root: &Root) -> (Self, u32) {
        let agent = Self::start(root, &[]).await;
        let pid = agent.child.id().expect("it has just answered");
        (agent, pid)
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&mut self, request: &Request) -> Result<(), String> {
        self.send(request).await;
        self.answer().await
    }

    /// Asks without waiting.
    pub async fn send(&mut self, request: &Request) {
        let line = serde_json::to_string(request).expect("a request as JSON") + "\n";
        self.requests.write_all(line.as_bytes()).await.expect("asking the agent");
        self.requests.flush().await.expect("asking the agent");
    }

    /// SIGKILL, and gone when this returns.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("killing the agent");
    }

    /// The answer to what was sent before.
    pub async fn answer(&mut self) -> Result<(), String> {
        self.answer_as().await
    }

    /// The same for a request that is answered with something.
    pub async fn answer_as<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        let line = self.answers.next_line().await.expect("reading the agent's answer");
        let answer: Answer = serde_json::from_str(&line.expect("the agent lives")).expect("an answer as JSON");
        answer.map(|value| serde_json::from_value(value).expect("what was asked for"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("the agent was not waited for")
    }
}
