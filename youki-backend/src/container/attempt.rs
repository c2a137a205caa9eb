//! Launching an attempt: what a create and a second start have in common.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tokio::task::JoinHandle;

use super::Container;
use super::network::PORT_VARIABLE;
use crate::bundle::{self, BundleInput, EtcFiles, VolumeMount, resources::CgroupLimits, seccomp};
use crate::cgroup::Hierarchy;
use crate::error::{Error, Result};
use crate::layout::ContainerPaths;
use crate::network;
use crate::record::{self, ContainerRecord, NetworkRecord};
use crate::runtime::Inner;
use crate::supervisor::client::Connection;
use crate::supervisor::failure::Failure;
use crate::supervisor::hang::Builder;
use crate::supervisor::wire::{Reply, Request};
use crate::supervisor::{CreatePlan, FillPlan, MAX_SUPERVISOR_LOG_BYTES, RemovalPlan, ResidentConfig};

/// Files that a container's log is kept in.
const LOG_FILES: u64 = 10;
/// The least that a log may be given: a page for each of its files.
pub(crate) const MIN_LOG_BYTES: u64 = LOG_FILES * 4096;

/// Mode of a container's `/etc/hosts` and the like, whatever the agent's umask: its users read them.
const ETC_MODE: u32 = 0o644;

/// A supervisor that is being executed, and its process id.
#[derive(Debug)]
pub(super) struct StartedSupervisor(JoinHandle<Result<(Connection, u32)>>);

/// What an attempt is launched with.
#[derive(Debug)]
pub(super) struct Launch {
    /// What [`resolve_env`](Inner::resolve_env) told.
    pub env: BTreeMap<String, String>,
    /// New volumes to be filled from the image.
    pub fill: Vec<FillPlan>,
    /// Sockets that the supervisor holds as long as the container runs.
    pub held: Vec<OwnedFd>,
    pub supervisor: StartedSupervisor,
}

impl Inner {
    /// Starts a supervisor, which waits for its plan: while it is executed there is time to make that. One that gets
    /// none ends by itself. The container's directory must be there.
    pub(super) fn start_supervisor(&self, paths: &ContainerPaths) -> Result<StartedSupervisor> {
        let (spawner, log) = (self.spawner.clone(), supervisor_log(paths)?);
        Ok(StartedSupervisor(tokio::task::spawn_blocking(move || spawner.spawn(log))))
    }

    /// Lets the supervisor build the container up to an init that waits. The record must be written; it gets what only
    /// the bundle knows. On an error the supervisor is gone or going.
    pub(super) async fn launch(&self, container: &mut Container, launch: Launch) -> Result<Connection> {
        let Launch { mut env, fill, held, supervisor } = launch;
        env.extend(container.record.port_override.map(|port| (PORT_VARIABLE.to_owned(), port.to_string())));
        let held = match &container.record.network {
            NetworkRecord::Container(joined) => vec![self.open_network(joined).await?],
            _ => held,
        };
        let plan = self.plan(container, &env, fill)?;
        let payload = serde_json::to_vec(&plan)
            .map_err(|error| Error::Corrupt { path: plan.bundle.clone(), reason: error.to_string() })?;
        let (mut connection, supervisor_pid) = supervisor.0.await.map_err(Error::ThreadLost)??;
        let id = container.record.id.to_string();
        // What an earlier supervisor has left.
        let _ = fs::remove_file(&container.paths.socket);
        let run_dir = fs::File::open(&container.paths.run).map_err(Error::io("opening", &container.paths.run))?;
        // A stage that failed early has said why before it closed.
        let _ = connection.send_plan(&payload, &run_dir.into(), &held).await;
        drop(held);

        let mut attaching = None;
        let mut builder = Builder::new(supervisor_pid);
        let outcome = loop {
            match builder.receive(&mut connection, &id).await? {
                Some(Reply::NamespacesReady) => {
                    attaching = self.connect(container, supervisor_pid)?;
                }
                Some(Reply::Created { .. }) => break Ok(()),
                Some(Reply::Error(text)) => break Err(Failure::from(text.as_str()).into_error(id)),
                Some(Reply::Failed(failure)) => break Err(failure.into_error(id)),
                Some(_) => {}
                None => break Err(Error::supervisor_ended(&id, "before the container was made ready")),
            }
        };
        let attached = match attaching {
            Some(task) => task.await.map_err(Error::ThreadLost).and_then(|attached| attached),
            None => Ok(()),
        };
        if let Err(error) = outcome.and(attached) {
            let _ = connection.ask(&Request::Stop { signal: libc::SIGKILL, timeout_ms: 0 }).await;
            return Err(error);
        }
        Ok(connection)
    }

    /// What the supervisor is to build; the record gets what only the bundle knows.
    pub(super) fn plan(
        &self,
        container: &mut Container,
        env: &BTreeMap<String, String>,
        fill: Vec<FillPlan>,
    ) -> Result<CreatePlan> {
        let etc = self.etc_files(container);
        let Container { paths, record } = container;
        write_etc(&etc, record)?;
        let hostname = record.hostname()?;
        let mounts: Vec<VolumeMount> = record
            .mounts
            .iter()
            .map(|mount| VolumeMount {
                source: mount.source.clone(),
                target: mount.target.clone(),
                readonly: mount.readonly,
            })
            .collect();
        let cgroup_v2 = matches!(self.hierarchy, Hierarchy::V2 { .. });
        let rootfs = paths.rootfs();
        let bundle = bundle::build(&BundleInput {
            hostname: &hostname,
            spec: &record.spec,
            image: &record.image.config,
            env,
            rootfs: &rootfs,
            cgroup_path: &record.cgroup_path,
            mounts: &mounts,
            etc: EtcFiles { hosts: &etc[0], hostname: &etc[1], resolv_conf: &etc[2] },
            cgroup_v2,
        })?;
        let filter = match &bundle.process.seccomp {
            Some(plan) => {
                Some(seccomp::filter(&self.layout.seccomp_cache(), plan, bundle.process.capabilities.bounding)?)
            }
            None => None,
        };
        record.args = bundle.args;
        record.stop_signal = bundle.stop_signal;
        record.process = Some(bundle.process.clone());
        record::write(&paths.record(), record)?;
        for dir in [&paths.run, &paths.state()] {
            fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
        }
        let max_log_bytes = record.spec.logs.max_size_bytes.unwrap_or(self.config.logs.max_size_bytes);
        let plan = CreatePlan {
            resident: ResidentConfig {
                container_dir: paths.dir.clone(),
                state_dir: paths.state().join(crate::supervisor::LIBCONTAINER_ID),
                socket: paths.socket.clone(),
                cgroup_path: record.cgroup_path.clone(),
                attempt: record.attempt,
                helper_pid: 0,
                // A terminal is its own input.
                stdin: record.spec.stdin && !record.spec.tty,
                terminal: record.spec.tty,
                events: Some(self.layout.events()),
                restart: record.spec.restart_policy.clone(),
                stop_signal: record.stop_signal,
                own_network: record.network.is_own(),
                held_sockets: 0,
                log_file_max_bytes: max_log_bytes.max(MIN_LOG_BYTES) / LOG_FILES,
                log_files: LOG_FILES as usize,
                may_trace: bundle.process.capabilities.may_trace(),
                log_buffer_bytes: super::log_mode::buffer_bytes(&record.spec.logs, self.config.logs.mode),
                resolved_env: record.spec.env.values().any(|value| super::environment::is_resolved(value)),
                removal: record.spec.remove_on_exit.then(|| self.removal(paths, record)),
            },
            resident_executable: self.spawner.resident().to_owned(),
            bundle: paths.bundle(),
            rootfs,
            layers: record.image.layers.clone(),
            upper: paths.upper(),
            work: paths.work(),
            volatile: record.spec.remove_on_exit,
            init: record.spec.init,
            own_network: matches!(record.network, NetworkRecord::Bridge(_) | NetworkRecord::None),
            joins_network: matches!(record.network, NetworkRecord::Container(_)),
            hierarchy: self.hierarchy.clone(),
            supervisors_cgroup_path: format!("/{}/supervisors", self.config.cgroup_parent),
            limits: CgroupLimits::new(&record.spec.resources, cgroup_v2)?,
            device_rules: bundle::device_rules(&record.spec)?,
            oci: bundle.oci,
            root: bundle.root,
            process: bundle.process,
            filter,
            fill,
        };
        Ok(plan)
    }

    /// What the supervisor must know to remove its container with its end.
    fn removal(&self, paths: &ContainerPaths, record: &ContainerRecord) -> RemovalPlan {
        let id = record.id.to_string();
        let network = match &record.network {
            NetworkRecord::Bridge(lease) => Some(self.networks.departure(&id, Some(lease))),
            NetworkRecord::Host => record.port_override.map(|_| self.networks.departure(&id, None)),
            NetworkRecord::None | NetworkRecord::Container(_) => None,
        };
        RemovalPlan { lock: paths.lock.clone(), run_dir: paths.run.clone(), trash: self.layout.trash(), network }
    }

    /// The spec's environment with `$E:VAR` and `$S:name` replaced.
    pub(super) async fn resolve_env(&self, record: &ContainerRecord) -> Result<BTreeMap<String, String>> {
        let mut env = BTreeMap::new();
        for (name, value) in &record.spec.env {
            let value = if let Some(variable) = value.strip_prefix("$E:") {
                std::env::var(variable)
                    .map_err(|error| Error::invalid(format!("env.{name}"), format!("{variable}: {error}")))?
            } else if let Some(secret) = value.strip_prefix("$S:") {
                let provider = self.config.secrets.clone();
                let provider = provider.ok_or_else(|| Error::NoSecretsProvider { name: secret.to_owned() })?;
                let secret = secret.to_owned();
                // It is the agent's code: a panic in it must not keep this attempt from being undone.
                let asked = tokio::spawn(async move { provider.secret(&secret).await });
                let secret = asked
                    .await
                    .map_err(Error::ThreadLost)?
                    .map_err(|error| Error::invalid(format!("env.{name}"), error.to_string()))?;
                secret.expose().to_owned()
            } else {
                value.clone()
            };
            env.insert(name.clone(), value);
        }
        Ok(env)
    }
}

fn write_etc([hosts, hostname, resolv_conf]: &[std::path::PathBuf; 3], record: &ContainerRecord) -> Result<()> {
    let name = record.hostname()?;
    let lease = match &record.network {
        NetworkRecord::Bridge(lease) => Some(lease),
        NetworkRecord::Host | NetworkRecord::None => None,
        // They are the other's.
        NetworkRecord::Container(_) => return Ok(()),
    };
    let write = |path: &Path, text: String| {
        let mode = fs::Permissions::from_mode(ETC_MODE);
        let mut options = fs::OpenOptions::new();
        options.create(true).write(true).truncate(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let opened = match options.open(path) {
            // A container that shares them holds a lease on it: it keeps what it has.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                fs::remove_file(path).and_then(|()| options.open(path))
            }
            opened => opened,
        };
        let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
        written.and_then(|()| fs::set_permissions(path, mode)).map_err(Error::io("writing", path))
    };
    write(hosts, network::hosts_file(&record.id, &record.spec, &name, lease)?)?;
    write(hostname, format!("{name}\n"))?;
    write(resolv_conf, network::resolv_conf(&record.spec, lease)?)
}

/// Appended to by the supervisor and its helpers; begun anew once it is full.
fn supervisor_log(paths: &ContainerPaths) -> Result<fs::File> {
    let path = paths.supervisor_log();
    let full = fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_SUPERVISOR_LOG_BYTES);
    if full {
        let _ = fs::remove_file(&path);
    }
    fs::OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("opening", path))
}
