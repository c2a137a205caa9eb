//! The hands of a lane: each operation by the trait in this process, or by a `berth` command of its own.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use runtime_core::spec::{ByteSize, CommandSpec, NetworkMode, ResourcesSpec};
use runtime_core::{AgentError, ContainerId, PortMapping, PullPolicy, Runtime, ServiceSpec};
use youki_backend::{NetworkOptions, YoukiRuntime};

use super::Limit;
use crate::networks::published;
use crate::support::berth::{Said, berth};
use crate::support::case::words;
use crate::support::root::Root;
use crate::volumes::named;

/// What came of an operation: text, or a stable code and a message.
pub type Outcome = Result<String, (String, String)>;

/// Who does them.
#[async_trait]
pub trait Hands: Sync {
    async fn create(&self, id: &ContainerId, wanted: &Wanted) -> Outcome;
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
    /// The port of the host that leads to it.
    async fn port(&self, id: &ContainerId) -> Outcome;
    async fn pull(&self, image: &str) -> Outcome;
    /// Of images.
    async fn prune(&self) -> Outcome;
    async fn tag(&self, source: &str, target: &str) -> Outcome;
    async fn untag(&self, name: &str) -> Outcome;
    async fn make_network(&self, name: &str, subnet: &str) -> Outcome;
    async fn remove_network(&self, name: &str) -> Outcome;
    async fn update(&self, id: &ContainerId, limit: Limit, value: u64) -> Outcome;
    async fn pause(&self, id: &ContainerId) -> Outcome;
    async fn unpause(&self, id: &ContainerId) -> Outcome;
    async fn kill(&self, id: &ContainerId) -> Outcome;
    /// Of images.
    async fn load(&self, archive: &Path) -> Outcome;
}

/// A container as a lane has it made.
#[derive(Debug)]
pub struct Wanted {
    pub image: String,
    pub script: String,
    /// In it, port 80 is published on whichever port of the host is free. Else there is none.
    pub network: Option<String>,
    /// At `/data`.
    pub volume: Option<String>,
}

/// By the trait, in this process.
pub struct Api<'a>(pub &'a YoukiRuntime);

fn of_api<T>(result: Result<T, AgentError>, text: impl FnOnce(T) -> String) -> Outcome {
    let code = |error: &AgentError| match error {
        AgentError::NotFound { .. } => "container.not_found".to_owned(),
        other => other.code().to_owned(),
    };
    result.map(text).map_err(|error| (code(&error), error.to_string()))
}

/// The same of what is the backend's own.
fn of_backend<T>(result: Result<T, youki_backend::Error>) -> Outcome {
    result.map(|_| String::new()).map_err(|error| (error.code().to_owned(), error.to_string()))
}

fn nothing(_: ()) -> String {
    String::new()
}

#[async_trait]
impl Hands for Api<'_> {
    async fn create(&self, id: &ContainerId, wanted: &Wanted) -> Outcome {
        let mut spec = ServiceSpec::new(&wanted.image);
        spec.command = CommandSpec { args: Some(words(&["sh", "-c", &wanted.script])), ..CommandSpec::default() };
        spec.network.mode = wanted.network.clone().map_or(NetworkMode::None, NetworkMode::from);
        spec.port_mappings = wanted.network.iter().map(|_| published(None, 80, None)).collect();
        spec.storage = wanted.volume.iter().map(|name| named(name, "/data")).collect();
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

    async fn port(&self, id: &ContainerId) -> Outcome {
        let port = |ports: &[PortMapping]| ports.first().and_then(|port| port.host_port).unwrap_or_default();
        of_api(self.0.inspect_detailed(id).await, |details| port(&details.ports).to_string())
    }

    async fn pull(&self, image: &str) -> Outcome {
        of_api(self.0.pull_image_with_policy(image, PullPolicy::Always, None).await, nothing)
    }

    async fn prune(&self) -> Outcome {
        of_backend(self.0.prune_images().await)
    }

    async fn tag(&self, source: &str, target: &str) -> Outcome {
        of_api(self.0.tag_image(source, target).await, nothing)
    }

    async fn untag(&self, name: &str) -> Outcome {
        of_api(Runtime::remove_image(self.0, name, false).await, nothing)
    }

    async fn make_network(&self, name: &str, subnet: &str) -> Outcome {
        let options = NetworkOptions { subnets: vec![subnet.to_owned()], ..NetworkOptions::default() };
        of_backend(self.0.create_network(name, &options).await)
    }

    async fn remove_network(&self, name: &str) -> Outcome {
        of_backend(self.0.remove_network(name).await)
    }

    async fn update(&self, id: &ContainerId, limit: Limit, value: u64) -> Outcome {
        let resources = match limit {
            Limit::Memory => ResourcesSpec { memory: Some(ByteSize::new(value)), ..ResourcesSpec::default() },
            Limit::Pids => ResourcesSpec { pids: Some(value as i64), ..ResourcesSpec::default() },
        };
        of_api(self.0.update_resources(id, &resources).await, nothing)
    }

    async fn pause(&self, id: &ContainerId) -> Outcome {
        of_api(Runtime::pause(self.0, id).await, nothing)
    }

    async fn unpause(&self, id: &ContainerId) -> Outcome {
        of_api(Runtime::unpause(self.0, id).await, nothing)
    }

    async fn kill(&self, id: &ContainerId) -> Outcome {
        of_api(self.0.kill_container(id, None).await, nothing)
    }

    async fn load(&self, archive: &Path) -> Outcome {
        of_api(self.0.load_images(archive).await, |_| String::new())
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
    async fn create(&self, id: &ContainerId, wanted: &Wanted) -> Outcome {
        let network = wanted.network.as_deref().unwrap_or("none");
        let volume = wanted.volume.as_ref().map(|name| format!("{name}:/data"));
        let mut words = vec!["create", "--network", network, "--name", &id.service];
        words.extend(wanted.network.iter().flat_map(|_| ["-p", "80"]));
        words.extend(volume.iter().flat_map(|volume| ["-v", volume]));
        words.extend([wanted.image.as_str(), "sh", "-c", &wanted.script]);
        self.done(&words).await
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

    async fn port(&self, id: &ContainerId) -> Outcome {
        let port = |all: serde_json::Value| Some(all[0]["ports"][0]["host_port"].as_u64()?.to_string());
        self.outcome(&["inspect", &id.service], port).await
    }

    async fn pull(&self, image: &str) -> Outcome {
        self.done(&["pull", image]).await
    }

    async fn prune(&self) -> Outcome {
        self.done(&["prune", "--force"]).await
    }

    async fn tag(&self, source: &str, target: &str) -> Outcome {
        self.done(&["tag", source, target]).await
    }

    async fn untag(&self, name: &str) -> Outcome {
        self.done(&["rmi", name]).await
    }

    async fn make_network(&self, name: &str, subnet: &str) -> Outcome {
        self.done(&["network", "create", "--subnet", subnet, name]).await
    }

    async fn remove_network(&self, name: &str) -> Outcome {
        self.done(&["network", "rm", name]).await
    }

    async fn update(&self, id: &ContainerId, limit: Limit, value: u64) -> Outcome {
        let flag = if limit == Limit::Memory { "--memory" } else { "--pids-limit" };
        self.done(&["update", flag, &value.to_string(), &id.service]).await
    }

    async fn pause(&self, id: &ContainerId) -> Outcome {
        self.done(&["pause", &id.service]).await
    }

    async fn unpause(&self, id: &ContainerId) -> Outcome {
        self.done(&["unpause", &id.service]).await
    }

    async fn kill(&self, id: &ContainerId) -> Outcome {
        self.done(&["kill", &id.service]).await
    }

    async fn load(&self, archive: &Path) -> Outcome {
        self.done(&["load", "-i", archive.to_str().expect("a path in UTF-8")]).await
    }
}
