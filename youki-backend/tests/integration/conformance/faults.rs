//! Which promise each fault breaks, and the checks that must find it.

mod further;
mod storage;
mod usage;

use std::time::Duration;

use runtime_core::spec::{HealthCheck, HealthSpec, NetworkMode, PortMapping, PortProtocol, RestartKind, SeccompSpec};
use runtime_core::{
    AgentError, ContainerInspectDetails, Event, EventKind, EventsOptions, ExecEvent, ExecOptions, HealthDetail,
    LogSource, LogStream, LogsOptions, PullPolicy, RegistryAuth, RegistryAuthType, ServiceSpec,
};

use super::spoils::{Act, Spoils};

/// Checks, and what breaks their promise.
pub fn faults() -> Vec<(&'static [&'static str], Spoils)> {
    [
        // First: in a machine that is emulated, which is where some of them can be tried, the others come only in part.
        usage::of_cgroups(),
        of_processes(),
        usage::of_limits(),
        usage::of_detailed_stats(),
        storage::of_mounts(),
        storage::of_volumes(),
        of_networks(),
        of_images(),
        of_logs(),
        of_execs(),
        of_supervision(),
        further::of_streams(),
        further::of_files(),
        further::of_images(),
        further::of_fields(),
        further::of_histories(),
        of_the_rest(),
    ]
    .concat()
}

fn spec(spoil: fn(&mut ServiceSpec)) -> Spoils {
    Spoils { spec: Some(spoil), ..Spoils::default() }
}

fn refuses(what: fn(&ServiceSpec) -> bool) -> Spoils {
    Spoils { refuses: Some(what), ..Spoils::default() }
}

fn act(act: Act) -> Spoils {
    Spoils { act: Some(act), ..Spoils::default() }
}

type Faults = Vec<(&'static [&'static str], Spoils)>;

fn of_processes() -> Faults {
    vec![
        (&["process.env"], spec(|spec| spec.env.clear())),
        (&["process.workdir", "exec.environment"], spec(|spec| spec.command.workdir = None)),
        (
            &["process.user_number", "process.user_name", "process.user_unknown", "isolation.groups"],
            spec(|spec| spec.user = None),
        ),
        (&["process.hostname", "network.own_name"], spec(|spec| spec.hostname = None)),
        (&["process.read_only"], spec(|spec| spec.read_only = false)),
        (&["isolation.seccomp"], spec(|spec| spec.seccomp = SeccompSpec::Unconfined)),
        (&["isolation.seccomp"], spec(|spec| spec.seccomp = SeccompSpec::Default)),
        (&["isolation.privileged"], spec(|spec| spec.privileged = false)),
        (&["isolation.capabilities", "settings.capabilities"], spec(|spec| spec.capabilities.clear())),
        (&["settings.capabilities"], spec(|spec| spec.drop_capabilities.clear())),
        (&["settings.no_new_privileges"], spec(|spec| spec.no_new_privileges = true)),
        (&["settings.rlimits"], spec(|spec| spec.rlimits.clear())),
        (&["settings.sysctls"], spec(|spec| spec.sysctls.clear())),
        (
            &["settings.agents_env"],
            spec(|spec| spec.env.values_mut().for_each(|value| *value = value.replace("$E:", "$E"))),
        ),
        (&["settings.secrets", "settings.secret"], spec(|spec| spec.env.clear())),
        (&["settings.secret"], refuses(|spec| spec.env.values().any(|value| value.starts_with("$S:")))),
        (&["isolation.devices"], spec(|spec| spec.devices.clear())),
        (&["isolation.devices"], spec(|spec| spec.devices.iter_mut().for_each(|device| device.write = true))),
        (&["isolation.device_read"], spec(|spec| spec.devices.clear())),
        (&["isolation.device_read"], spec(|spec| spec.devices.iter_mut().for_each(|device| device.read = true))),
        (&["isolation.exec"], act(Act::ExecsAsRoot)),
        (&["terminal.tty"], spec(|spec| spec.tty = false)),
        (&["terminal.stdin"], spec(|spec| spec.stdin = false)),
        (&["terminal.init"], spec(|spec| spec.init = false)),
        (&["stop.any_signal", "stop.signal", "settings.stop_signal_number"], spec(|spec| spec.stop_signal = None)),
        (&["stop.children"], act(Act::StopsWithASignal)),
        (&["start.executed"], act(Act::StartsLater)),
        (&["start.same_root"], act(Act::StartsAfresh)),
        (
            &["configured.env"],
            spec(|spec| {
                spec.env.entry("SETTING".to_owned()).or_insert_with(String::new);
            }),
        ),
        (&["configured.env"], spec(|spec| spec.env.clear())),
        (&["configured.workdir"], spec(|spec| spec.command.workdir = Some("/".to_owned()))),
        (&["configured.user"], spec(|spec| spec.user = Some("0".to_owned()))),
        (&["configured.stop_signal"], spec(|spec| spec.stop_signal = Some("TERM".to_owned()))),
        (&["configured.volume"], spec(|spec| spec.storage.push(storage::kept("/srv/volume")))),
        (&["command.matrix"], spec(|spec| spec.command.args = None)),
        (&["process.pid"], act(Act::TellsItsOwnPid)),
    ]
}

fn each_port(spec: &mut ServiceSpec, spoil: fn(&mut PortMapping)) {
    spec.port_mappings.iter_mut().for_each(spoil);
}

fn of_networks() -> Faults {
    vec![
        (&["network.dns"], spec(|spec| spec.dns.clear())),
        (&["network.dns"], spec(|spec| spec.dns_search.clear())),
        (
            &["network.extra_hosts"],
            spec(|spec| {
                spec.extra_hosts.pop();
            }),
        ),
        (&["network.at_start", "network.address"], spec(|spec| spec.network.mode = NetworkMode::None)),
        (&["network.same_address"], act(Act::ForgetsAddresses)),
        (&["network.aliases"], spec(|spec| spec.network.aliases.clear())),
        (&["network.none", "network.unknown"], spec(|spec| spec.network.mode = NetworkMode::Bridge)),
        (&["network.host"], spec(|spec| spec.host_network = false)),
        (
            &["ports.reached"],
            Spoils {
                spec: Some(|spec| spec.port_mappings.iter_mut().for_each(|port| port.container_port = 81)),
                details: Some(|details| details.ports.iter_mut().for_each(|port| port.container_port = 80)),
                ..Spoils::default()
            },
        ),
        (&["ports.ephemeral", "ports.freed", "ports.conflict"], spec(|spec| spec.port_mappings.clear())),
        (&["ports.udp"], spec(|spec| each_port(spec, |port| port.protocol = PortProtocol::Tcp))),
        (
            &["ports.udp"],
            Spoils {
                spec: Some(|spec| each_port(spec, |port| port.protocol = PortProtocol::Tcp)),
                details: Some(|details| details.ports.iter_mut().for_each(|port| port.protocol = PortProtocol::Udp)),
                ..Spoils::default()
            },
        ),
        (&["ports.host_ip"], spec(|spec| each_port(spec, |port| port.host_ip = None))),
        (&["ports.host_ip"], spec(|spec| each_port(spec, |port| port.host_ip = Some("127.0.0.1".to_owned())))),
        (&["network.distinct"], act(Act::SharesAddresses)),
    ]
}

fn stranger() -> RegistryAuth {
    let (username, password) = ("x".to_owned(), "y".to_owned());
    RegistryAuth { username, password, auth_type: RegistryAuthType::Basic }
}

fn of_images() -> Faults {
    let policy = |policy| Spoils { policy: Some(policy), ..Spoils::default() };
    vec![
        (&["pull.if_not_present", "pull.never"], policy(PullPolicy::Always)),
        (&["pull.if_not_present"], act(Act::AsksAgain)),
        (&["pull.never", "pull.always", "pull.at_create"], policy(PullPolicy::IfNotPresent)),
        (
            &["pull.at_create"],
            spec(|spec| {
                if spec.image.pull_policy == PullPolicy::IfNotPresent {
                    spec.image.pull_policy = PullPolicy::Never;
                }
            }),
        ),
        (&["pull.platform"], spec(|spec| spec.platform = None)),
        // What no store has.
        (
            &["pull.anonymous"],
            Spoils { auth: Some(|auth| *auth = auth.take().or_else(|| Some(stranger()))), ..Spoils::default() },
        ),
        (&["pull.credentials", "pull.token"], Spoils { auth: Some(|auth| *auth = None), ..Spoils::default() }),
        (&["pull.listed"], Spoils { image: Some(|image| image.digest = None), ..Spoils::default() }),
        (
            &["pull.listed"],
            Spoils {
                image: Some(|image| image.size_bytes = image.size_bytes.map(|bytes| bytes / 2)),
                ..Spoils::default()
            },
        ),
        (
            &["pull.unknown"],
            Spoils { error: Some(|_| AgentError::Internal("it did not work".to_owned())), ..Spoils::default() },
        ),
        (
            &["pull.redacted"],
            Spoils {
                error: Some(|error| AgentError::Internal(format!("{error}: do-not-show-me"))),
                ..Spoils::default()
            },
        ),
        (&["pull.dropped"], act(Act::BelievesInBegunPulls)),
        (&["pull.by_digest"], act(Act::IgnoresDigests)),
        (&["pull.together"], act(Act::PullsOneAtATime)),
        (&["images.remove_digest"], act(Act::RemovesOneName)),
        (&["images.shared_layer"], act(Act::RemovesTheRepository)),
        (&["prune.beside_pull"], act(Act::AbortsPulls)),
        (
            &["prune.unused"],
            Spoils { pruned: Some(|pruned| pruned.deleted = vec!["?".to_owned()]), ..Spoils::default() },
        ),
        (&["prune.unused"], Spoils { pruned: Some(|pruned| pruned.space_reclaimed = 0), ..Spoils::default() }),
        (&["images.list"], Spoils { image: Some(|image| image.reference.clear()), ..Spoils::default() }),
    ]
}

fn of_logs() -> Faults {
    let logs = |spoil| Spoils { logs: Some(spoil), ..Spoils::default() };
    let options = |spoil: fn(&mut LogsOptions)| Spoils { logs_options: Some(spoil), ..Spoils::default() };
    vec![
        (&["logs.non_blocking"], refuses(|spec| spec.logs.mode.is_some())),
        (
            &["logs.non_blocking"],
            logs(|mut logs| {
                logs.pop();
                logs
            }),
        ),
        (&["logs.max_size"], spec(|spec| spec.logs.max_size_bytes = None)),
        (
            &["logs.joined"],
            Spoils {
                logs: Some(|logs| {
                    let pieces = logs.into_iter().flat_map(|entry| {
                        let pieces: Vec<_> = entry
                            .message
                            .as_bytes()
                            .chunks(16 << 10)
                            .map(|piece| String::from_utf8_lossy(piece).into_owned())
                            .collect();
                        pieces.into_iter().map(move |message| runtime_core::LogEntry { message, ..entry.clone() })
                    });
                    pieces.collect()
                }),
                ..Spoils::default()
            },
        ),
        // The time of the newline.
        (
            &["logs.first_byte"],
            Spoils {
                logs: Some(|mut logs| {
                    let begun = logs.iter().position(|entry| entry.message.starts_with("begun"));
                    if let Some(newline) = begun.and_then(|index| logs.get(index + 1)).map(|next| next.timestamp) {
                        logs.iter_mut().filter(|e| e.message.starts_with("begun")).for_each(|e| e.timestamp = newline);
                    }
                    logs
                }),
                ..Spoils::default()
            },
        ),
        (&["logs_stream.tail"], options(|options| options.tail = None)),
        (&["logs_stream.times"], options(|options| options.since = None)),
        (&["logs_stream.times"], options(|options| options.until = None)),
        (&["logs_stream.records"], options(|options| options.cursor = None)),
        (&["logs_stream.follow"], options(|options| options.follow = false)),
        (&["logs_stream.partial"], Spoils { record: Some(|record| record.partial = false), ..Spoils::default() }),
        (&["logs.after_exit", "logs.many"], logs(|_| Vec::new())),
        (&["start.again", "logs.no_newline"], logs(|mut logs| logs.split_off(logs.len().saturating_sub(1)))),
        (&["remove.frees_id"], logs(|logs| [logs.clone(), logs].concat())),
        (
            &["logs.not_utf8"],
            logs(|logs| logs.into_iter().filter(|entry| !entry.message.contains('\u{fffd}')).collect()),
        ),
        (
            &["logs.source"],
            logs(|mut logs| {
                logs.iter_mut().for_each(|entry| entry.source = LogSource::Daemon);
                logs
            }),
        ),
        (
            &["logs.long_line"],
            logs(|mut logs| {
                logs.iter_mut().for_each(|entry| entry.message.truncate(16 << 10));
                logs
            }),
        ),
        (
            &["logs.apart"],
            logs(|mut logs| {
                logs.sort_by_key(|entry| entry.stream == LogStream::Stdout);
                logs
            }),
        ),
    ]
}

fn of_execs() -> Faults {
    let output = |spoil| Spoils { output: Some(spoil), ..Spoils::default() };
    let event = |spoil| Spoils { exec_event: Some(spoil), ..Spoils::default() };
    let options = |spoil: fn(&mut ExecOptions)| Spoils { exec: Some(spoil), ..Spoils::default() };
    vec![
        (&["exec.bounded"], Spoils { output: Some(|text| text.truncate(1000)), ..Spoils::default() }),
        (
            &["exec.bounded"],
            Spoils {
                output: Some(|text| {
                    if text.len() > 1 << 20 {
                        *text = "x".repeat(64 << 20)
                    }
                }),
                ..Spoils::default()
            },
        ),
        (&["exec_with.options"], options(|options| options.env.clear())),
        (&["exec_with.options", "exec_with.invalid"], options(|options| options.user = None)),
        (&["exec_with.options"], options(|options| options.workdir = None)),
        (&["exec_with.no_input"], options(|_| ())),
        (&["exec_with.tty"], options(|options| options.tty = false)),
        (&["exec_with.timeout"], options(|options| options.timeout = None)),
        (&["cancel.exec"], act(Act::LeavesExecs)),
        (&["exec.large"], output(|text| text.truncate(1000))),
        (&["exec.output"], output(|text| text.retain(|c| c != '\n'))),
        (&["exec.parallel"], output(|text| "0\n".clone_into(text))),
        (&["exec.not_utf8"], output(|text| text.retain(|c| c != '\u{fffd}'))),
        (&["exec.signal"], act(Act::ExecsWithoutSignals)),
        (
            &["exec.leaves_init"],
            Spoils {
                logs: Some(|mut logs| {
                    logs.iter_mut().for_each(|entry| entry.message.push_str("from the exec"));
                    logs
                }),
                ..Spoils::default()
            },
        ),
        (&["exec_stream.live"], act(Act::BuffersExecs)),
        (&["exec_stream.dropped"], act(Act::LeavesExecs)),
        (
            &["exec_stream.fails", "exec_stream.stop"],
            event(|event| match event {
                ExecEvent::Exit(_) => ExecEvent::Exit(0),
                event => event,
            }),
        ),
        (
            &["exec_stream.characters"],
            event(|event| match event {
                ExecEvent::Stdout(text) => ExecEvent::Stdout(text.replace('€', "\u{fffd}")),
                event => event,
            }),
        ),
    ]
}

fn each_health(spec: &mut ServiceSpec, spoil: fn(&mut HealthSpec)) {
    spec.health.iter_mut().for_each(spoil);
}

fn said(details: &mut ContainerInspectDetails) {
    details.health.iter_mut().for_each(|health| health.last_output = Some("?".to_owned()));
}

fn of_supervision() -> Faults {
    vec![
        (
            &["restart.always", "restart.pause", "restart.on_failure"],
            spec(|spec| spec.restart_policy.kind = RestartKind::No),
        ),
        (&["restart.pause"], spec(|spec| spec.restart_policy.delay = None)),
        (&["restart.success"], spec(|spec| spec.restart_policy.kind = RestartKind::Always)),
        (&["health.command"], spec(|spec| spec.health = None)),
        (&["health.output"], Spoils { details: Some(said), ..Spoils::default() }),
        (&["health.grace"], spec(|spec| each_health(spec, |health| health.start_grace = Duration::ZERO))),
        (&["health.tcp"], spec(|spec| each_health(spec, |health| health.check = HealthCheck::Tcp { port: 1 }))),
        (
            &["health.http"],
            spec(|spec| {
                each_health(spec, |health| {
                    if let HealthCheck::Http { expect_status, .. } = &mut health.check {
                        *expect_status = None;
                    }
                })
            }),
        ),
        (&["health.timeout"], spec(|spec| each_health(spec, |health| health.timeout = Duration::from_secs(3600)))),
        (
            &["health.none"],
            Spoils {
                details: Some(|details| {
                    details.health = Some(HealthDetail { status: "healthy".to_owned(), ..HealthDetail::default() })
                }),
                ..Spoils::default()
            },
        ),
        (&["restart.stopped"], act(Act::RestartsWhatWasStopped)),
    ]
}

fn of_the_rest() -> Faults {
    let events = |spoil: fn(Event) -> Option<Event>| Spoils { event: Some(spoil), ..Spoils::default() };
    let options = |spoil: fn(&mut EventsOptions)| Spoils { events_options: Some(spoil), ..Spoils::default() };
    vec![
        (&["pause.freezes"], act(Act::PausesNothing)),
        (&["pause.freezes"], act(Act::UnpausesNothing)),
        (&["pause.exec"], act(Act::UnpausesForExecs)),
        (&["top.pids"], Spoils { top: Some(|entry| entry.command.clear()), ..Spoils::default() }),
        (&["top.pids"], Spoils { top: Some(|entry| entry.pid = 1), ..Spoils::default() }),
        (&["events.order"], events(|event| Some(event).filter(|event| event.kind != EventKind::Start))),
        (&["events.oom"], events(|event| Some(event).filter(|event| event.kind != EventKind::Oom))),
        (&["events.health"], events(|event| Some(event).filter(|event| event.kind != EventKind::Health))),
        (&["events.pull"], events(|event| Some(event).filter(|event| event.kind != EventKind::Pull))),
        (&["events.volume"], events(|event| Some(event).filter(|event| event.kind != EventKind::Volume))),
        (&["events.attempts"], events(|event| Some(Event { attempt: Some(1), ..event }))),
        (&["events.after"], options(|options| options.after = None)),
        (&["events.follow"], options(|options| options.follow = false)),
        (
            &["errors.names", "errors.text"],
            Spoils { error: Some(|_| AgentError::Internal("no\nno".to_owned())), ..Spoils::default() },
        ),
        (
            &["errors.code"],
            Spoils {
                error: Some(|error| match error {
                    AgentError::StartFailed { id, .. } => {
                        AgentError::StartFailed { id, reason: "no [Start Failed]".to_owned() }
                    }
                    error => error,
                }),
                ..Spoils::default()
            },
        ),
        (
            &["stop.stopping", "state.transitions", "state.pending"],
            Spoils { state: Some(|state| *state = runtime_core::ContainerState::Running), ..Spoils::default() },
        ),
        (&["pause.repeats"], act(Act::PausesOnce)),
    ]
}
