//! A lane of operations on a root that others work on, too: by the trait, or by the `berth` command. Each outcome is
//! judged at once; what must add up over all lanes is counted.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use runtime_core::spec::{CommandSpec, NetworkMode, NetworkSpec};
use runtime_core::{AgentError, ContainerId, Runtime, ServiceSpec};
use serde::{Deserialize, Serialize};

use super::berth::{Said, berth};
use super::case::{IDLE, words};
use super::root::Root;

/// What a lane is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub lane: u32,
    pub seed: u64,
    pub operations: u32,
    pub image: String,
    /// Runs all the time, and is only executed in.
    pub steady: ContainerId,
    /// All lanes create, start, stop and remove these.
    pub shared: Vec<ContainerId>,
}

/// What it did that counts for all.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    pub operations: u64,
    pub created: u64,
    pub removed: u64,
    /// Lines that its execs wrote in the steady container.
    pub lines: u64,
    /// Tags that it made and left.
    pub tags: BTreeSet<String>,
}

/// What came of an operation: text, or a stable code and a message.
pub type Outcome = Result<String, (String, String)>;

/// Who does them.
#[async_trait]
pub trait Hands: Sync {
    async fn create(&self, id: &ContainerId, image: &str, script: &str) -> Outcome;
    async fn start(&self, id: &ContainerId) -> Outcome;
    async fn stop(&self, id: &ContainerId) -> Outcome;
    async fn remove(&self, id: &ContainerId) -> Outcome;
    /// The exit code.
    async fn wait(&self, id: &ContainerId) -> Outcome;
    async fn logs(&self, id: &ContainerId) -> Outcome;
    /// Exit code, a blank, standard output.
    async fn exec(&self, id: &ContainerId, script: &str) -> Outcome;
    /// The names of all, a line each.
    async fn list(&self) -> Outcome;
    /// The state.
    async fn inspect(&self, id: &ContainerId) -> Outcome;
    async fn tag(&self, source: &str, target: &str) -> Outcome;
    async fn untag(&self, name: &str) -> Outcome;
}

/// Does what `plan` says; the first outcome that cannot be ends it.
pub async fn work(hands: &dyn Hands, plan: &Plan) -> Result<Tally, String> {
    let mut lane =
        Lane { hands, plan, tally: Tally::default(), random: plan.seed.wrapping_add(u64::from(plan.lane)), own: 0 };
    while lane.tally.operations < u64::from(plan.operations) {
        lane.step().await.map_err(|wrong| format!("lane {}, {} done: {wrong}", plan.lane, lane.tally.operations))?;
    }
    Ok(lane.tally)
}

struct Lane<'a> {
    hands: &'a dyn Hands,
    plan: &'a Plan,
    tally: Tally,
    random: u64,
    own: u32,
}

impl Lane<'_> {
    async fn step(&mut self) -> Result<(), String> {
        let (hands, plan) = (self.hands, self.plan);
        let shared = &plan.shared[self.random(plan.shared.len())];
        match self.random(12) {
            0 => self.whole_run().await,
            1 | 2 => {
                let said = self.judge("exec", hands.exec(&plan.steady, "echo x >> /lines; echo said").await, &[])?;
                self.tally.lines += 1;
                expect("exec", &said, "0 said\n")
            }
            3 => {
                let names = self.judge("list", hands.list().await, &[])?;
                let steady = plan.steady.to_string();
                if names.lines().any(|name| name == steady) { Ok(()) } else { Err(format!("{steady} not in {names}")) }
            }
            4 => {
                let state = self.judge("inspect", hands.inspect(&plan.steady).await, &[])?;
                expect("inspect", &state, "running")
            }
            5 => self.judge("inspect", hands.inspect(shared).await, &["container.not_found"]).map(drop),
            6 => {
                self.own += 1;
                let name = format!("{}-{}-{}", plan.image, plan.lane, self.own);
                self.judge("tag", hands.tag(&plan.image, &name).await, &[])?;
                self.tally.tags.insert(name);
                Ok(())
            }
            7 => match self.tally.tags.pop_first() {
                Some(name) => self.judge("rmi", hands.untag(&name).await, &[]).map(drop),
                None => Ok(()),
            },
            8 => {
                let created = hands.create(shared, &plan.image, IDLE).await;
                self.tally.created += u64::from(created.is_ok());
                self.judge("create", created, &["container.exists"]).map(drop)
            }
            9 => self.judge("start", hands.start(shared).await, &["container.not_found"]).map(drop),
            10 => self.judge("stop", hands.stop(shared).await, &["container.not_found"]).map(drop),
            _ => {
                let removed = hands.remove(shared).await;
                self.tally.removed += u64::from(removed.is_ok());
                self.judge("remove", removed, &["container.not_found"]).map(drop)
            }
        }
    }

    /// Of a container that is the lane's own.
    async fn whole_run(&mut self) -> Result<(), String> {
        self.own += 1;
        let (hands, code) = (self.hands, self.own % 250);
        let id = ContainerId::new(format!("own-{}-{}", self.plan.lane, self.own), 0);
        self.judge("create", hands.create(&id, &self.plan.image, &format!("echo {id}; exit {code}")).await, &[])?;
        self.tally.created += 1;
        self.judge("start", hands.start(&id).await, &[])?;
        let ended = self.judge("wait", hands.wait(&id).await, &[])?;
        expect("wait", ended.trim(), &code.to_string())?;
        let logged = self.judge("logs", hands.logs(&id).await, &[])?;
        expect("logs", logged.trim(), &id.to_string())?;
        self.judge("remove", hands.remove(&id).await, &[])?;
        self.tally.removed += 1;
        Ok(())
    }

    /// Ok, or an error that the others' work explains.
    fn judge(&mut self, what: &str, outcome: Outcome, explained: &[&str]) -> Result<String, String> {
        self.tally.operations += 1;
        match outcome {
            Ok(text) => Ok(text),
            Err((code, _)) if explained.contains(&code.as_str()) => Ok(String::new()),
            Err((code, message)) => Err(format!("{what}: {message} [{code}]")),
        }
    }

    /// Less than `below`; Knuth's MMIX generator.
    fn random(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % below
    }
}

fn expect(what: &str, found: &str, wanted: &str) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?} in place of {wanted:?}")) }
}

/// By the trait, in this process.
pub struct Api<'a>(pub &'a dyn Runtime);

fn of_api<T>(result: Result<T, AgentError>, text: impl FnOnce(T) -> String) -> Outcome {
    let code = |error: &AgentError| match error {
        AgentError::NotFound { .. } => "container.not_found".to_owned(),
        other => other.code().to_owned(),
    };
    result.map(text).map_err(|error| (code(&error), error.to_string()))
}

fn nothing(_: ()) -> String {
    String::new()
}

#[async_trait]
impl Hands for Api<'_> {
    async fn create(&self, id: &ContainerId, image: &str, script: &str) -> Outcome {
        let mut spec = ServiceSpec::new(image);
        spec.command = CommandSpec { args: Some(words(&["sh", "-c", script])), ..CommandSpec::default() };
        spec.network = NetworkSpec { mode: NetworkMode::None, ..NetworkSpec::default() };
        of_api(self.0.create_container(id, &spec).await, nothing)
    }

    async fn start(&self, id: &ContainerId) -> Outcome {
        of_api(self.0.start_container(id).await, nothing)
    }

    async fn stop(&self, id: &ContainerId) -> Outcome {
        of_api(self.0.stop_container(id, Duration::from_secs(10)).await, nothing)
    }

    async fn remove(&self, id: &ContainerId) -> Outcome {
        of_api(self.0.remove_container(id).await, nothing)
    }

    async fn wait(&self, id: &ContainerId) -> Outcome {
        of_api(self.0.wait_container(id).await, |code| code.to_string())
    }

    async fn logs(&self, id: &ContainerId) -> Outcome {
        of_api(self.0.get_logs(id).await, |entries| entries.into_iter().map(|entry| entry.message + "\n").collect())
    }

    async fn exec(&self, id: &ContainerId, script: &str) -> Outcome {
        of_api(self.0.exec(id, &words(&["sh", "-c", script])).await, |(code, stdout, _)| format!("{code} {stdout}"))
    }

    async fn list(&self) -> Outcome {
        of_api(self.0.list_containers().await, |all| all.into_iter().map(|one| format!("{}\n", one.id)).collect())
    }

    async fn inspect(&self, id: &ContainerId) -> Outcome {
        of_api(self.0.container_state(id).await, |state| format!("{state:?}").to_lowercase())
    }

    async fn tag(&self, source: &str, target: &str) -> Outcome {
        of_api(self.0.tag_image(source, target).await, nothing)
    }

    async fn untag(&self, name: &str) -> Outcome {
        of_api(self.0.remove_image(name, false).await, nothing)
    }
}

/// By a `berth` command for each.
pub struct Commands {
    pub root: Root,
}

impl Commands {
    async fn run(&self, args: &[&str]) -> Said {
        berth(&self.root, &[&["--json"], args].concat()).await
    }

    async fn outcome(&self, args: &[&str], text: impl FnOnce(serde_json::Value) -> Option<String>) -> Outcome {
        let said = self.run(args).await;
        if said.code == 0 {
            let value = serde_json::from_str(&said.stdout).unwrap_or_default();
            return text(value).ok_or_else(|| (String::new(), format!("{args:?}: {said:?}")));
        }
        let error: serde_json::Value =
            said.stderr.lines().rev().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        let code = error["error"]["code"].as_str().unwrap_or_default().to_owned();
        Err((code, format!("{args:?}: {said:?}")))
    }

    async fn done(&self, args: &[&str]) -> Outcome {
        self.outcome(args, |_| Some(String::new())).await
    }
}

#[async_trait]
impl Hands for Commands {
    async fn create(&self, id: &ContainerId, image: &str, script: &str) -> Outcome {
        self.done(&["create", "--network", "none", "--name", &id.service, image, "sh", "-c", script]).await
    }

    async fn start(&self, id: &ContainerId) -> Outcome {
        self.done(&["start", &id.service]).await
    }

    async fn stop(&self, id: &ContainerId) -> Outcome {
        self.done(&["stop", &id.service]).await
    }

    async fn remove(&self, id: &ContainerId) -> Outcome {
        let args = ["rm", "-f", &id.service];
        let said = self.run(&args).await;
        // One that is not there is no error to `rm -f`: what it prints tells.
        match (said.code, said.stdout.trim()) {
            (0, "" | "[]") => Err(("container.not_found".into(), String::new())),
            (0, _) => Ok(String::new()),
            _ => Err((String::new(), format!("{args:?}: {said:?}"))),
        }
    }

    async fn wait(&self, id: &ContainerId) -> Outcome {
        self.outcome(&["wait", &id.service], |ended| Some(ended[0]["exit_code"].as_i64()?.to_string())).await
    }

    async fn logs(&self, id: &ContainerId) -> Outcome {
        let said = berth(&self.root, &["logs", &id.service]).await;
        if said.code == 0 { Ok(said.stdout) } else { Err((String::new(), format!("logs {id}: {said:?}"))) }
    }

    async fn exec(&self, id: &ContainerId, script: &str) -> Outcome {
        let said = berth(&self.root, &["exec", &id.service, "sh", "-c", script]).await;
        Ok(format!("{} {}", said.code, said.stdout))
    }

    async fn list(&self) -> Outcome {
        let names = |all: serde_json::Value| {
            let names = all.as_array()?.iter().map(|one| Some(format!("{}\n", one["id"].as_str()?)));
            names.collect()
        };
        self.outcome(&["ps", "-a"], names).await
    }

    async fn inspect(&self, id: &ContainerId) -> Outcome {
        self.outcome(&["inspect", &id.service], |all| Some(all[0]["state"].as_str()?.to_owned())).await
    }

    async fn tag(&self, source: &str, target: &str) -> Outcome {
        self.done(&["tag", source, target]).await
    }

    async fn untag(&self, name: &str) -> Outcome {
        self.done(&["rmi", name]).await
    }
}
