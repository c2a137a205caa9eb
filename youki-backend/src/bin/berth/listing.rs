//! `ps` and `inspect`.

use chrono::{DateTime, Utc};
use registry::Reference;
use runtime_core::spec::NetworkMode;
use serde_json::{Value, json};
use youki_backend::Inspect;

use crate::cli::{InspectArgs, PsArgs};
use crate::failure::{Failure, Result};
use crate::format::Template;
use crate::lifecycle::container;
use crate::networks;
use crate::output::{self, Table};
use crate::session::Session;

/// Width of a command in the table, as docker's.
const COMMAND_WIDTH: usize = 20;
/// Fewer digits of a digest name no image.
const SHORTEST_DIGEST: usize = 4;

/// `berth ps`: 1 if some of them could not be read.
pub async fn ps(session: &Session, args: &PsArgs) -> Result<i32> {
    let mut filters = args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>>>()?;
    for filter in &mut filters {
        filter.look_up(session).await;
    }
    let template = args.format.as_deref().map(Template::parse).transpose()?;
    let (mut containers, are_all) = session.runtime.inspect_readable().await?;
    let status = i32::from(!are_all);
    let last = args.last.or(args.latest.then_some(1));
    // Who asks for a state asks for those that have it, as with docker.
    let all = args.all || last.is_some() || filters.iter().any(|filter| filter.is_about_states());
    containers.retain(|one| all || is_up(one) || restarts(one));
    containers.retain(|one| Filter::all_hold(&filters, one));
    // The newest first, as docker.
    containers.sort_by_key(|one| std::cmp::Reverse(one.created_at));
    containers.truncate(last.unwrap_or(usize::MAX));
    if session.json {
        output::print_json(&containers)?;
        return Ok(status);
    }
    if args.quiet {
        let ids: String = containers.iter().map(|one| format!("{}\n", one.id)).collect();
        output::print(&ids)?;
        return Ok(status);
    }
    let now = Utc::now();
    let rows: Vec<Row> = containers.iter().map(|one| Row::of(one, now, args.no_trunc)).collect();
    if let Some(template) = template {
        let lines = containers.iter().zip(&rows).map(|(one, row)| row.render(one, &template));
        output::print(&output::lines(template.is_table.then(|| template.headings()), lines)?)?;
        return Ok(status);
    }
    let mut table = Table::new(["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
    for row in rows {
        table.row([row.id, row.image, row.command, row.running_for, row.status, row.ports, row.names]);
    }
    output::print(&table.render())?;
    Ok(status)
}

/// `berth inspect`
pub async fn inspect(session: &Session, args: &InspectArgs) -> Result<i32> {
    let template = args.format.as_deref().map(Template::parse).transpose()?;
    let inspect = async |name: &str| -> Result<Inspect> { Ok(session.runtime.inspect(&container(name)?).await?) };
    let (found, status) = session.each(&args.names, inspect).await;
    match template {
        Some(template) => {
            let lines = found.iter().map(|one| template.render(&json!(one), |path| dockers(one, path)));
            output::print(&output::lines(None, lines)?)?;
        }
        None => output::print_json(&found)?,
    }
    Ok(status)
}

/// A line of `ps`, in docker's names for a template.
struct Row {
    id: String,
    image: String,
    command: String,
    running_for: String,
    status: String,
    ports: String,
    names: String,
}

impl Row {
    fn of(one: &Inspect, now: DateTime<Utc>, whole: bool) -> Self {
        let command = command(one);
        Self {
            id: one.id.clone(),
            image: one.image.clone(),
            command: if whole { command } else { output::shorten(&command, COMMAND_WIDTH) },
            running_for: format!("{} ago", output::age(one.created_at, now)),
            status: status(one, now),
            // One that ended has none.
            ports: if is_up(one) { networks::shown(one) } else { String::new() },
            names: one.name.clone(),
        }
    }

    fn render(&self, one: &Inspect, template: &Template) -> Result<String> {
        let joined = |words: Vec<String>| Value::from(words.join(","));
        let lookup = |path: &[String]| {
            let (name, key) = (path.first()?, path.get(1));
            Some(match (name.as_str(), key) {
                ("ID", None) => self.id.as_str().into(),
                ("Image", None) => self.image.as_str().into(),
                ("Command", None) => self.command.as_str().into(),
                ("RunningFor", None) => self.running_for.as_str().into(),
                ("CreatedAt", None) => output::time(one.created_at).into(),
                ("Status", None) => self.status.as_str().into(),
                ("State", None) => one.state.into(),
                ("Ports", None) => self.ports.as_str().into(),
                ("Names", None) => self.names.as_str().into(),
                ("Networks", None) => network_name(one).unwrap_or_default().into(),
                ("Mounts", None) => joined(one.mounts.iter().map(mount_name).collect()),
                ("Labels", None) => {
                    joined(one.spec.labels.iter().map(|(name, value)| format!("{name}={value}")).collect())
                }
                ("Label", Some(key)) => one.spec.labels.get(key).map_or(Value::Null, |value| value.as_str().into()),
                _ => return None,
            })
        };
        template.render(&json!(one), lookup)
    }
}

/// The network that it is in, or is to be in; as docker has it, also where that is the host's or none.
fn network_name(one: &Inspect) -> Option<&str> {
    match one.spec.network_mode() {
        NetworkMode::Host => Some("host"),
        NetworkMode::None => Some("none"),
        NetworkMode::Bridge => Some("bridge"),
        mode @ NetworkMode::Named(name) if mode.container().is_none() => {
            Some(one.networks.first().map_or(name, |network| network.network.as_str()))
        }
        NetworkMode::Named(_) => None,
    }
}

/// The commonest of docker's names for what `inspect` shows, so that scripts go on.
fn dockers(one: &Inspect, path: &[String]) -> Option<Value> {
    let network = || one.networks.first();
    Some(match path.join(".").as_str() {
        "Id" => json!(one.id),
        "Created" => json!(output::time(one.created_at)),
        "State.Status" => json!(one.state),
        "State.Running" => json!(is_up(one)),
        "State.Paused" => json!(one.state == "paused"),
        "State.Pid" => json!(one.pid.unwrap_or(0)),
        "State.ExitCode" => json!(one.exit_code.unwrap_or(0)),
        "State.Error" => json!(one.reason),
        "State.StartedAt" => json!(one.started_at.map(output::time)),
        "State.FinishedAt" => json!(one.finished_at.map(output::time)),
        "State.OOMKilled" => {
            json!(one.outcome.as_ref().is_some_and(|end| end.reason == runtime_core::WaitReason::OomKilled))
        }
        "State.Health.Status" => json!(one.health.as_ref().map(|health| &health.status)),
        "Config.Image" => json!(one.image),
        "Config.Cmd" | "Args" => json!(one.args),
        "Config.Env" => json!(one.spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()),
        "Config.Labels" => json!(one.spec.labels),
        "Config.User" => json!(one.spec.user.as_deref().unwrap_or_default()),
        "Config.Tty" => json!(one.spec.tty),
        "Config.Hostname" => json!(one.spec.hostname),
        "HostConfig.Privileged" => json!(one.spec.privileged),
        "HostConfig.Memory" => json!(one.spec.resources.memory.map_or(0, |memory| memory.as_u64())),
        "NetworkSettings.IPAddress" => json!(network().and_then(|network| network.ipv4.as_ref())),
        "NetworkSettings.Ports" => ports(one),
        "NetworkSettings.MacAddress" => json!(network().and_then(|network| network.mac.as_ref())),
        text => {
            let labels = path.strip_prefix(&["Config".to_owned(), "Labels".to_owned()])?;
            let [key] = labels else { return None };
            debug_assert!(text.ends_with(key));
            json!(one.spec.labels.get(key))
        }
    })
}

/// What `--filter status=` takes: the states, then docker's words.
const STATUSES: [&str; 10] =
    ["pending", "initializing", "running", "paused", "stopping", "exited", "failed", "created", "restarting", "dead"];

/// Of docker's regular expressions those that are used: a part of a name, tied to its begin or end.
struct NamePattern {
    text: String,
    from_start: bool,
    to_end: bool,
}

impl NamePattern {
    fn parse(pattern: &str) -> Option<Self> {
        let (text, from_start) = pattern.strip_prefix('^').map_or((pattern, false), |text| (text, true));
        let (text, to_end) = text.strip_suffix('$').map_or((text, false), |text| (text, true));
        // Docker's names begin with it.
        let text = text.strip_prefix('/').unwrap_or(text);
        let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        is_plain.then(|| Self { text: text.to_owned(), from_start, to_end })
    }

    fn holds(&self, name: &str) -> bool {
        match (self.from_start, self.to_end) {
            (true, true) => name == self.text,
            (true, false) => name.starts_with(&self.text),
            (false, true) => name.ends_with(&self.text),
            (false, false) => name.contains(&self.text),
        }
    }
}

/// A `--filter`.
enum Filter {
    Id(String),
    Name(NamePattern),
    Status(String),
    Label(String, Option<String>),
    Ancestor(Ancestor),
    Exited(i32),
    Network(String),
    Volume(String),
    Health(String),
}

impl Filter {
    fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: &str| Failure::usage(format!("--filter {text:?}: {reason}"));
        let (key, value) = text.split_once('=').ok_or_else(|| wrong("write KEY=VALUE"))?;
        let value = value.to_owned();
        Ok(match key {
            "id" => Self::Id(value),
            "name" => {
                Self::Name(NamePattern::parse(&value).ok_or_else(|| wrong("a name, with ^ before or $ behind it"))?)
            }
            "status" => {
                if !STATUSES.contains(&value.as_str()) {
                    return Err(wrong(&format!("a status is one of {}", STATUSES.join(", "))));
                }
                Self::Status(value)
            }
            "label" => match value.split_once('=') {
                Some((name, value)) => Self::Label(name.to_owned(), Some(value.to_owned())),
                None => Self::Label(value, None),
            },
            "ancestor" => Self::Ancestor(Ancestor::parse(value).map_err(|reason| wrong(&reason))?),
            "exited" => Self::Exited(value.parse().map_err(|_| wrong("not an exit code"))?),
            "network" => Self::Network(value),
            "volume" => Self::Volume(value),
            "health" => Self::Health(value),
            _ => {
                return Err(wrong(
                    "a key is one of id, name, status, label, ancestor, exited, network, volume and health",
                ));
            }
        })
    }

    /// Asks this root for what the filter cannot tell by itself.
    async fn look_up(&mut self, session: &Session) {
        if let Self::Ancestor(ancestor) = self
            && let Ok(Some(image)) = session.runtime.images().find(&ancestor.text).await
        {
            ancestor.digest = Some(image.digest);
        }
    }

    fn is_about_states(&self) -> bool {
        matches!(self, Self::Status(_) | Self::Exited(_))
    }

    /// Docker's rule: of several filters of one key one must hold, but all labels must.
    fn all_hold(filters: &[Self], one: &Inspect) -> bool {
        let same = |a: &Self, b: &Self| std::mem::discriminant(a) == std::mem::discriminant(b);
        filters.iter().all(|filter| match filter {
            Self::Label(..) => filter.holds(one),
            _ => filters.iter().any(|other| same(filter, other) && other.holds(one)),
        })
    }

    fn holds(&self, one: &Inspect) -> bool {
        match self {
            Self::Id(text) => one.id.starts_with(text),
            Self::Name(pattern) => pattern.holds(&one.name) || one.id == pattern.text,
            Self::Status(status) => match status.as_str() {
                "created" => one.state == "initializing" && !restarts(one),
                "restarting" => restarts(one),
                "dead" => one.state == "failed",
                status => one.state == status,
            },
            Self::Label(name, value) => {
                one.spec.labels.get(name).is_some_and(|own| value.as_ref().is_none_or(|value| own == value))
            }
            Self::Ancestor(ancestor) => ancestor.is_of(one),
            // Another attempt may follow or run: then the code is the last one's.
            Self::Exited(code) => one.exit_code == Some(*code) && matches!(one.state, "exited" | "failed"),
            Self::Network(name) => network_name(one) == Some(name),
            Self::Volume(name) => one.mounts.iter().any(|mount| mount_name(mount) == *name || mount.target == *name),
            Self::Health(status) => {
                one.health.as_ref().map_or("none", |health| health.status.as_str()) == status.as_str()
            }
        }
    }
}

/// The image of `--filter ancestor=`: its name in any spelling, or the begin of its digest or id.
struct Ancestor {
    text: String,
    /// Of the image that is so called here now.
    digest: Option<String>,
}

impl Ancestor {
    fn parse(text: String) -> std::result::Result<Self, String> {
        let ancestor = Self { text, digest: None };
        match Reference::parse(&ancestor.text) {
            Err(error) if ancestor.digits().is_none() => Err(error.to_string()),
            _ => Ok(ancestor),
        }
    }

    /// It as the begin of a digest, if it can be one.
    fn digits(&self) -> Option<&str> {
        let digits = self.text.strip_prefix("sha256:").unwrap_or(&self.text);
        let is_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (is_hex && digits.len() >= SHORTEST_DIGEST).then_some(digits)
    }

    fn is_of(&self, one: &Inspect) -> bool {
        let digest = one.image_digest.as_deref();
        let hex = digest.and_then(|digest| digest.strip_prefix("sha256:"));
        let begins = |digits| hex.is_some_and(|hex| hex.starts_with(digits));
        (digest.is_some() && self.digest.as_deref() == digest)
            || self.digits().is_some_and(begins)
            || Reference::parse(&one.image).is_ok_and(|image| image.is_meant_by(&self.text))
    }
}

fn mount_name(mount: &youki_backend::InspectMount) -> String {
    mount.name.clone().unwrap_or_else(|| mount.source.display().to_string())
}

/// What it runs, in quotes as docker shows it; a dash while it is being created.
fn command(one: &Inspect) -> String {
    let line = one.args.join(" ");
    if line.is_empty() { "-".to_owned() } else { format!("\"{line}\"") }
}

fn is_up(one: &Inspect) -> bool {
    matches!(one.state, "running" | "paused" | "stopping")
}

/// `NetworkSettings.Ports` of docker's `inspect`.
fn ports(one: &Inspect) -> Value {
    let mut ports = serde_json::Map::new();
    for port in &one.ports {
        let key = format!("{}/{}", port.container_port, networks::word(port.protocol));
        let host_port = port.host_port.map(|port| port.to_string()).unwrap_or_default();
        let bindings = networks::addresses(one, port)
            .into_iter()
            .map(|ip| json!({"HostIp": ip.trim_matches(['[', ']']), "HostPort": host_port}));
        if let Value::Array(all) = ports.entry(key).or_insert_with(|| json!([])) {
            all.extend(bindings);
        }
    }
    Value::Object(ports)
}

/// Whether it waits for its next attempt, or that is being built.
fn restarts(one: &Inspect) -> bool {
    one.state == "initializing" && (one.outcome.is_some() || !one.earlier_attempts.is_empty())
}

/// Docker's words.
fn health(one: &Inspect) -> &'static str {
    match one.health.as_ref().map(|health| health.status.as_str()) {
        Some("starting") => " (health: starting)",
        Some("healthy") => " (healthy)",
        Some("unhealthy") => " (unhealthy)",
        _ => "",
    }
}

/// Docker's words.
fn status(one: &Inspect, now: DateTime<Utc>) -> String {
    let since = |time: Option<_>| time.map_or_else(|| "?".to_owned(), |time| output::age(time, now));
    match one.state {
        "pending" => "Creating".to_owned(),
        "initializing" if restarts(one) => {
            let last = one.outcome.as_ref().or(one.earlier_attempts.last().map(|last| &last.outcome));
            let (code, finished_at) = (last.map(|last| last.exit_code), last.and_then(|last| last.finished_at));
            format!("Restarting ({}) {} ago", output::or_dash(code), since(finished_at))
        }
        "initializing" => "Created".to_owned(),
        "running" => format!("Up {}{}", since(one.started_at), health(one)),
        "paused" => format!("Up {} (Paused)", since(one.started_at)),
        "stopping" => "Stopping".to_owned(),
        "exited" => format!("Exited ({}) {} ago", output::or_dash(one.exit_code), since(one.finished_at)),
        _ => format!("Failed: {}", one.reason.as_deref().unwrap_or("unknown")),
    }
}
