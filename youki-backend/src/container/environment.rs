//! The environment of an exec: the container's own. Values from the agent's environment and its secrets are on no record;
//! the supervisor keeps them in memory, with the plan that it builds the container by.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;

use super::Container;
use super::network::PORT_VARIABLE;
use crate::bundle;
use crate::error::{Error, Result};
use crate::runtime::Inner;
use crate::supervisor::wire::{MAX_FRAME_BYTES, Reply, Request};

/// Longest environment block of an init that is read.
const MAX_ENVIRON_BYTES: u64 = 4 << 20;

/// Of a supervisor's plan, which may be another version's: the variables, as `NAME=value`.
#[derive(Deserialize)]
struct Plan {
    oci: Oci,
}

#[derive(Deserialize)]
struct Oci {
    process: Process,
}

#[derive(Deserialize)]
struct Process {
    env: Vec<String>,
}

/// Whether a value of a spec's environment stands for another, which is on no record.
pub(super) fn is_resolved(value: &str) -> bool {
    value.starts_with("$E:") || value.starts_with("$S:")
}

impl Inner {
    /// The container's environment, as `NAME=value`.
    pub(super) async fn exec_env(&self, container: &Container, init: u32, tty: bool) -> Result<Vec<String>> {
        let record = &container.record;
        let mut env: BTreeMap<String, String> = record.spec.env.clone();
        if env.values().any(|value| is_resolved(value)) {
            let current = match self.kept_environment(container).await? {
                Some(kept) => kept,
                None => read_environ(init)?,
            };
            env.retain(|name, value| {
                if is_resolved(value) {
                    match current.get(name) {
                        Some(own) => value.clone_from(own),
                        None => {
                            tracing::warn!(container = %record.id, name, "its init has written over this variable");
                            return false;
                        }
                    }
                }
                true
            });
        }
        if let Some(port) = record.port_override {
            env.insert(PORT_VARIABLE.to_owned(), port.to_string());
        }
        let hostname = record.hostname()?;
        bundle::environment(&record.image.config, &env, &hostname, tty || record.spec.tty)
    }

    /// What the supervisor has kept; `None` from one that is older than this request, or is gone.
    async fn kept_environment(&self, container: &Container) -> Result<Option<BTreeMap<String, String>>> {
        let id = &container.record.id;
        let Some(mut connection) = self.supervisor(container).await? else { return Ok(None) };
        match connection.ask(&Request::Plan).await.map_err(Error::supervisor(id))? {
            Some(Reply::Ok) => {}
            _ => return Ok(None),
        }
        let plan = connection.take_descriptor().ok_or_else(|| io::Error::other("no plan came with its answer"));
        plan.and_then(read_plan).map(Some).map_err(Error::supervisor(id))
    }
}

/// The variables of a plan.
fn read_plan(plan: OwnedFd) -> io::Result<BTreeMap<String, String>> {
    let plan = File::from(plan);
    let length = plan.metadata()?.len();
    if length > MAX_FRAME_BYTES as u64 {
        return Err(io::Error::other("its plan is too long"));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    // The position is shared with all who have it.
    plan.read_exact_at(&mut bytes, 0)?;
    // The error's own text could quote a secret.
    let plan: Plan = serde_json::from_slice(&bytes).map_err(|_| io::Error::other("its plan cannot be read"))?;
    Ok(plan.oci.process.env.iter().filter_map(|entry| entry.split_once('=')).map(owned).collect())
}

fn read_environ(pid: u32) -> Result<BTreeMap<String, String>> {
    let path = Path::new("/proc").join(pid.to_string()).join("environ");
    let file = File::open(&path).map_err(Error::io("opening", &path))?;
    let mut bytes = Vec::new();
    file.take(MAX_ENVIRON_BYTES).read_to_end(&mut bytes).map_err(Error::io("reading", &path))?;
    let entries = bytes.split(|byte| *byte == 0);
    Ok(entries.filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('=')).map(owned).collect())
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}
