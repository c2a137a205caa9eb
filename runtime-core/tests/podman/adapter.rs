//! [`Runtime`] over the `podman` command: each call is one or two commands, nothing is kept but how a start failed.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use runtime_core::spec::{PortMapping, PortProtocol, ResourcesSpec};
use runtime_core::{
    AgentError, ContainerId, ContainerInspectDetails, ContainerState, ContainerStats, ContainerSummary, CopyInOptions,
    ExecEventStream, ExecInput, ExecOptions, ImageInfo, LogEntry, NetworkAttachmentDetail, PruneResult, PullPolicy,
    RegistryAuth, RegistryAuthType, Result, Runtime, ServiceSpec, TopEntry, VolumeStatus, WaitOutcome, WaitReason,
};
use serde_json::Value;

use crate::create::create_args;
use crate::exec;
use crate::files;
use crate::host::{Host, podman, podman_in_the_hosts_network};
use crate::logs;

/// podman loses names when two processes name one image at once.
static NAMING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub struct Podman {
    directory: PathBuf,
    failed_starts: Mutex<HashMap<ContainerId, (i32, String)>>,
}

impl Podman {
    pub fn new(host: &Host) -> Self {
        Self { directory: host.directory().to_owned(), failed_starts: Mutex::default() }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command that ends with its caller.
    pub fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::from(podman(&self.directory));
        command.args(args).kill_on_drop(true);
        command
    }

    /// Runs podman: its output, or its message. It goes on without a caller: killed in the middle of a start, it would
    /// know nothing of the network namespace that it has made.
    pub async fn podman(&self, args: &[&str]) -> std::result::Result<Vec<u8>, String> {
        let output = self.command(args).kill_on_drop(false).output().await.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(format!("podman {}: {}", args[0], String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Runs podman on a container.
    pub async fn on(&self, id: &ContainerId, args: &[&str]) -> Result<Vec<u8>> {
        self.podman(args).await.map_err(|message| error(id, message))
    }

    pub async fn inspect(&self, id: &ContainerId) -> Result<Value> {
        if let Err(invalid) = id.validate() {
            return Err(AgentError::NotFound { container: id.to_string(), reason: invalid.to_string() });
        }
        let output = self.on(id, &["container", "inspect", "--", &id.to_string()]).await?;
        let mut list: Vec<Value> = serde_json::from_slice(&output).map_err(|e| AgentError::Internal(e.to_string()))?;
        list.pop().ok_or_else(|| AgentError::Internal("podman inspect printed nothing".to_owned()))
    }

    pub async fn image_exists(&self, image: &str) -> Result<()> {
        let absent =
            |_| AgentError::NotFound { container: image.to_owned(), reason: format!("there is no image {image}") };
        self.podman(&["image", "exists", image]).await.map(drop).map_err(absent)
    }

    async fn images(&self) -> Result<Vec<Value>> {
        let output = self.podman(&["images", "--format", "json"]).await.map_err(AgentError::Internal)?;
        serde_json::from_slice(&output).map_err(|error| AgentError::Internal(error.to_string()))
    }

    async fn pull(
        &self,
        image: &str,
        policy: PullPolicy,
        auth: Option<&RegistryAuth>,
        platform: Option<&str>,
    ) -> Result<()> {
        let failed = |reason| AgentError::PullFailed { image: image.to_owned(), reason };
        let exists = self.podman(&["image", "exists", image]).await;
        if policy == PullPolicy::Never || policy == PullPolicy::IfNotPresent && exists.is_ok() {
            return exists.map(drop).map_err(failed);
        }
        let mut pull = podman_in_the_hosts_network(&self.directory);
        // An empty file keeps it from the credentials of whoever runs this.
        pull.args(["pull", "--quiet", "--tls-verify=false", "--authfile"]).arg(self.directory.join("auth.json"));
        pull.args(platform.map(|platform| format!("--platform={platform}")));
        match auth {
            Some(auth) if auth.auth_type == RegistryAuthType::Basic => {
                pull.arg(format!("--creds={}:{}", auth.username, auth.password));
            }
            Some(_) => return Err(AgentError::Unsupported("podman pull takes no token".to_owned())),
            None => {}
        }
        let mut pull = tokio::process::Command::from(pull);
        let output = pull.arg(image).kill_on_drop(true).output().await.map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    pub async fn is_paused(&self, id: &ContainerId) -> Result<bool> {
        Ok(self.inspect(id).await?["State"]["Status"] == "paused")
    }

    fn failed_start(&self, id: &ContainerId) -> Option<(i32, String)> {
        self.failed_starts.lock().unwrap().get(id).cloned()
    }
}

fn error(id: &ContainerId, message: String) -> AgentError {
    if message.contains("no such container") {
        return AgentError::NotFound { container: id.to_string(), reason: message };
    }
    AgentError::Internal(message)
}

fn image_error(image: &str, message: String) -> AgentError {
    if message.contains("image not known") {
        return AgentError::NotFound { container: image.to_owned(), reason: message };
    }
    AgentError::Internal(message)
}

#[async_trait]
impl Runtime for Podman {
    async fn pull_image(&self, image: &str) -> Result<()> {
        self.pull_image_with_policy(image, PullPolicy::IfNotPresent, None).await
    }

    async fn pull_image_with_policy(&self, image: &str, policy: PullPolicy, auth: Option<&RegistryAuth>) -> Result<()> {
        self.pull(image, policy, auth, None).await
    }

    async fn create_container(&self, id: &ContainerId, spec: &ServiceSpec) -> Result<()> {
        id.validate().map_err(|invalid| AgentError::InvalidSpec(invalid.to_string()))?;
        let args = create_args(id, spec)?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        // The registry is the suite's, which podman's own network does not reach.
        let policy = spec.image.pull_policy;
        if policy != PullPolicy::Never {
            self.pull(&spec.image.name, policy, None, spec.platform.as_deref()).await?;
        }
        match self.podman(&args).await {
            Ok(_) => Ok(()),
            Err(message) if message.contains("no command or entrypoint") => Err(AgentError::InvalidSpec(message)),
            Err(reason) => Err(AgentError::CreateFailed { id: id.to_string(), reason }),
        }
    }

    async fn start_container(&self, id: &ContainerId) -> Result<()> {
        self.failed_starts.lock().unwrap().remove(id);
        let reason = match self.podman(&["start", &id.to_string()]).await {
            Ok(_) => return Ok(()),
            Err(message) if message.contains("no such container") => return Err(error(id, message)),
            Err(message) => message,
        };
        let code = if reason.contains("not found") { 127 } else { 126 };
        self.failed_starts.lock().unwrap().insert(id.clone(), (code, reason.clone()));
        Err(AgentError::StartFailed { id: id.to_string(), reason })
    }

    async fn stop_container(&self, id: &ContainerId, timeout: Duration) -> Result<()> {
        let seconds = timeout.as_secs_f64().ceil().to_string();
        self.on(id, &["stop", "--time", &seconds, &id.to_string()]).await.map(drop)
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        // `rm --force` of an unknown one is no error for podman.
        self.inspect(id).await?;
        self.on(id, &["rm", "--force", "--time", "0", &id.to_string()]).await.map(drop)
    }

    async fn container_state(&self, id: &ContainerId) -> Result<ContainerState> {
        let inspect = self.inspect(id).await?;
        if let Some((_, reason)) = self.failed_start(id) {
            return Ok(ContainerState::Failed { reason });
        }
        let state = &inspect["State"];
        Ok(match state["Status"].as_str().unwrap_or_default() {
            "created" | "configured" | "initialized" => ContainerState::Initializing,
            "running" | "paused" => ContainerState::Running,
            "stopping" => ContainerState::Stopping,
            "exited" | "stopped" => ContainerState::Exited { code: exit_code(state)? },
            other => ContainerState::Failed { reason: format!("podman says {other:?}") },
        })
    }

    async fn container_logs(&self, id: &ContainerId, tail: usize) -> Result<Vec<LogEntry>> {
        let mut logs = self.get_logs(id).await?;
        let skip = if tail == 0 { 0 } else { logs.len().saturating_sub(tail) };
        Ok(logs.split_off(skip))
    }

    async fn get_logs(&self, id: &ContainerId) -> Result<Vec<LogEntry>> {
        let inspect = self.inspect(id).await?;
        let path = inspect["HostConfig"]["LogConfig"]["Path"].as_str().unwrap_or_default();
        match tokio::fs::read(path).await {
            Ok(text) => Ok(logs::entries(id, &text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(AgentError::Internal(format!("{path}: {error}"))),
        }
    }

    async fn exec(&self, id: &ContainerId, command: &[String]) -> Result<(i32, String, String)> {
        exec::buffered(self, id, command).await
    }

    async fn exec_stream(&self, id: &ContainerId, command: &[String]) -> Result<ExecEventStream> {
        exec::stream(self, id, command).await
    }

    async fn get_container_stats(&self, id: &ContainerId) -> Result<ContainerStats> {
        let limited = self.inspect(id).await?["HostConfig"]["Memory"].as_u64().filter(|limit| *limit > 0);
        let format = "{{.ContainerStats.CPUNano}} {{.ContainerStats.MemUsage}}";
        let output = self.on(id, &["stats", "--no-stream", "--format", format, &id.to_string()]).await?;
        let text = String::from_utf8_lossy(&output);
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [cpu_nanos, memory_bytes] = numbers[..] else {
            return Err(AgentError::Internal(format!("podman stats printed {text:?}")));
        };
        Ok(ContainerStats {
            cpu_usage_usec: cpu_nanos / 1000,
            memory_bytes,
            memory_limit: limited.unwrap_or(u64::MAX),
            timestamp: Utc::now(),
        })
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<i32> {
        if let Some((code, _)) = self.failed_start(id) {
            return Ok(code);
        }
        let output = self.on(id, &["wait", &id.to_string()]).await?;
        let text = String::from_utf8_lossy(&output);
        text.trim().parse().map_err(|_| AgentError::Internal(format!("podman wait printed {text:?}")))
    }

    /// podman's record has the code, the time, and whether the kernel killed anything; no signal.
    async fn wait_outcome(&self, id: &ContainerId) -> Result<WaitOutcome> {
        let exit_code = self.wait_container(id).await?;
        let state = &self.inspect(id).await?["State"];
        let oom = exit_code == 137 && state["OOMKilled"] == true;
        Ok(WaitOutcome {
            exit_code,
            reason: if oom { WaitReason::OomKilled } else { WaitReason::Exited },
            signal: oom.then(|| "SIGKILL".to_owned()),
            finished_at: state["FinishedAt"].as_str().and_then(|time| time.parse().ok()),
        })
    }

    async fn inspect_detailed(&self, id: &ContainerId) -> Result<ContainerInspectDetails> {
        let exit_code = match self.container_state(id).await? {
            ContainerState::Exited { code } => Some(code),
            _ => None,
        };
        let settings = &self.inspect(id).await?["NetworkSettings"];
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let networks = settings["Networks"].as_object().into_iter().flatten();
        let networks: Vec<_> = networks
            .map(|(name, network)| NetworkAttachmentDetail {
                network: name.clone(),
                aliases: network["Aliases"].as_array().into_iter().flatten().filter_map(text).collect(),
                ipv4: text(&network["IPAddress"]),
            })
            .collect();
        Ok(ContainerInspectDetails {
            ports: ports(&settings["Ports"]),
            ipv4: networks.iter().find_map(|network| network.ipv4.clone()),
            networks,
            exit_code,
            ..ContainerInspectDetails::default()
        })
    }

    async fn get_container_pid(&self, id: &ContainerId) -> Result<Option<u32>> {
        let pid = self.inspect(id).await?["State"]["Pid"].as_u64();
        Ok(pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0))
    }

    async fn get_container_ip(&self, id: &ContainerId) -> Result<Option<IpAddr>> {
        let inspect = self.inspect(id).await?;
        Ok(inspect["NetworkSettings"]["IPAddress"].as_str().and_then(|address| address.parse().ok()))
    }

    async fn list_images(&self) -> Result<Vec<ImageInfo>> {
        let images = self.images().await?;
        let named = images.iter().flat_map(|image| {
            let names = image["Names"].as_array().into_iter().flatten().filter_map(Value::as_str);
            names.map(|name| ImageInfo {
                reference: name.to_owned(),
                digest: image["Digest"].as_str().map(str::to_owned),
                size_bytes: None, // podman's is that of the unpacked layers
            })
        });
        Ok(named.collect())
    }

    async fn remove_image(&self, image: &str, force: bool) -> Result<()> {
        // `rmi --force` of an unknown one is no error for podman, and removes the containers that use it.
        let args: &[&str] = if force { &["untag", image, image] } else { &["rmi", image] };
        let _alone = NAMING.lock().await;
        self.podman(args).await.map(drop).map_err(|message| image_error(image, message))
    }

    async fn kill_container(&self, id: &ContainerId, signal: Option<&str>) -> Result<()> {
        let signal = signal.unwrap_or("KILL");
        let name = signal.to_uppercase();
        if !["KILL", "TERM", "INT", "HUP", "USR1", "USR2"].contains(&name.strip_prefix("SIG").unwrap_or(&name)) {
            return Err(AgentError::InvalidSpec(format!("no signal {signal:?}")));
        }
        self.on(id, &["kill", "--signal", &name, &id.to_string()]).await.map(drop)
    }

    async fn prune_images(&self) -> Result<PruneResult> {
        let _alone = NAMING.lock().await;
        let images = self.images().await?;
        let output = self.podman(&["image", "prune", "--all", "--force"]).await.map_err(AgentError::Internal)?;
        let deleted: Vec<String> = String::from_utf8_lossy(&output).lines().map(str::to_owned).collect();
        // It prints ids and no sizes.
        let is_deleted = |image: &&Value| deleted.iter().any(|id| image["Id"] == id.as_str());
        let sizes = images.iter().filter(is_deleted).filter_map(|image| image["Size"].as_u64());
        Ok(PruneResult { space_reclaimed: sizes.sum(), deleted })
    }

    async fn list_containers(&self) -> Result<Vec<ContainerSummary>> {
        let output = self.podman(&["ps", "--all", "--format", "{{.Names}}"]).await.map_err(AgentError::Internal)?;
        let mut all = Vec::new();
        for name in String::from_utf8_lossy(&output).lines() {
            let Ok(id) = name.parse::<ContainerId>() else { continue };
            // Others are removed meanwhile.
            let (Ok(state), Ok(inspect)) = (self.container_state(&id).await, self.inspect(&id).await) else { continue };
            let labels = inspect["Config"]["Labels"].as_object().into_iter().flatten();
            all.push(ContainerSummary {
                labels: labels.map(|(name, value)| (name.clone(), value.as_str().unwrap_or("").to_owned())).collect(),
                image: inspect["ImageName"].as_str().unwrap_or_default().to_owned(),
                pid: None,
                created_at: inspect["Created"].as_str().and_then(|time| time.parse().ok()).unwrap_or_default(),
                id,
                state,
            });
        }
        Ok(all)
    }

    async fn exec_with(
        &self,
        id: &ContainerId,
        command: &[String],
        options: &ExecOptions,
        input: Option<ExecInput>,
    ) -> Result<ExecEventStream> {
        if options.timeout.is_some() {
            return Err(AgentError::Unsupported("podman exec has no time limit".to_owned()));
        }
        exec::with(self, id, command, options, input).await
    }

    async fn pause(&self, id: &ContainerId) -> Result<()> {
        match self.is_paused(id).await? {
            true => Ok(()),
            false => self.on(id, &["pause", &id.to_string()]).await.map(drop),
        }
    }

    async fn unpause(&self, id: &ContainerId) -> Result<()> {
        match self.is_paused(id).await? {
            true => self.on(id, &["unpause", &id.to_string()]).await.map(drop),
            false => Ok(()),
        }
    }

    async fn update_resources(&self, id: &ContainerId, changes: &ResourcesSpec) -> Result<()> {
        let Some(memory) = changes.memory.filter(|_| changes.pids.is_none()) else {
            self.inspect(id).await?;
            return Err(AgentError::Unsupported("podman update knows no limit of processes".to_owned()));
        };
        self.on(id, &["update", "--memory", &memory.as_u64().to_string(), &id.to_string()]).await.map(drop)
    }

    async fn top(&self, id: &ContainerId) -> Result<Vec<TopEntry>> {
        let output = self.on(id, &["top", &id.to_string(), "hpid", "ppid", "huser", "args"]).await?;
        let text = String::from_utf8_lossy(&output);
        let entry = |line: &str| -> Option<TopEntry> {
            let mut words = line.split_whitespace();
            Some(TopEntry {
                pid: words.next()?.parse().ok()?,
                ppid: words.next()?.parse().ok()?,
                user: words.next()?.to_owned(),
                command: words.collect::<Vec<_>>().join(" "),
            })
        };
        Ok(text.lines().skip(1).filter_map(entry).collect())
    }

    async fn list_volumes(&self) -> Result<Vec<VolumeStatus>> {
        let output = self.podman(&["volume", "ls", "--format", "{{.Name}}"]).await.map_err(AgentError::Internal)?;
        let mut all = Vec::new();
        for name in String::from_utf8_lossy(&output).lines() {
            all.extend(self.volume_status(name).await); // others are removed meanwhile
        }
        Ok(all)
    }

    async fn volume_status(&self, name: &str) -> Result<VolumeStatus> {
        let mountpoint = self.podman(&["volume", "inspect", "--format", "{{.Mountpoint}}", name]).await;
        let mountpoint = mountpoint.map_err(|reason| AgentError::NotFound { container: name.to_owned(), reason })?;
        Ok(VolumeStatus {
            name: name.to_owned(),
            mountpoint: String::from_utf8_lossy(&mountpoint).trim().into(),
            generation: None,
            durable_at: None,
            bytes_at_risk: 0,
            owner: None,
            last_error: None,
            size_bytes: None,
        })
    }

    async fn copy_out(&self, id: &ContainerId, path: &Path, follow: bool, out: Box<dyn Write + Send>) -> Result<()> {
        files::copy_out(self, id, path, follow, out).await
    }

    async fn copy_in(
        &self,
        id: &ContainerId,
        dir: &Path,
        tar: Box<dyn Read + Send>,
        options: &CopyInOptions,
    ) -> Result<()> {
        files::copy_in(self, id, dir, tar, options).await
    }

    async fn export(&self, id: &ContainerId, out: Box<dyn Write + Send>) -> Result<()> {
        files::export(self, id, out).await
    }

    async fn save_images(&self, images: &[String], out: Box<dyn Write + Send>) -> Result<()> {
        files::save(self, images, out).await
    }

    async fn load_images(&self, path: &Path) -> Result<Vec<ImageInfo>> {
        let _alone = NAMING.lock().await;
        files::load(self, path).await
    }

    async fn push_image(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<String> {
        files::push(self, reference, auth).await
    }

    async fn tag_image(&self, source: &str, target: &str) -> Result<()> {
        let _alone = NAMING.lock().await;
        self.podman(&["tag", source, target]).await.map(drop).map_err(|message| image_error(source, message))
    }
}

/// `{"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}`
fn ports(published: &Value) -> Vec<PortMapping> {
    let mut ports = Vec::new();
    for (key, bindings) in published.as_object().into_iter().flatten() {
        let container_port = key.split('/').next().and_then(|port| port.parse().ok()).unwrap_or(0);
        ports.extend(bindings.as_array().into_iter().flatten().map(|binding| PortMapping {
            host_port: binding["HostPort"].as_str().and_then(|port| port.parse().ok()),
            container_port,
            protocol: if key.ends_with("udp") { PortProtocol::Udp } else { PortProtocol::Tcp },
            host_ip: binding["HostIp"].as_str().map(str::to_owned),
        }));
    }
    ports
}

fn exit_code(state: &Value) -> Result<i32> {
    let code = state["ExitCode"].as_i64().and_then(|code| i32::try_from(code).ok());
    code.ok_or_else(|| AgentError::Internal(format!("podman inspect has no exit code: {state}")))
}
