//! Which promise each fault breaks, and the checks that must find it.

use std::time::Duration;

use chrono::TimeDelta;
use runtime_core::spec::{
    ByteSize, HealthCheck, HealthSpec, NetworkMode, RestartKind, RlimitSpec, SeccompSpec, StorageSpec,
};
use runtime_core::{
    AgentError, ContainerInspectDetails, EventKind, EventsOptions, ExecEvent, ExecOptions, HealthDetail, LogSource,
    LogStream, LogsOptions, PullPolicy, ServiceSpec,
};

use super::broken::{Act, Spoils};

/// Checks, and what breaks their promise.
pub fn faults() -> Vec<(&'static [&'static str], Spoils)> {
    [
        of_processes(),
        of_limits(),
        of_storage(),
        of_networks(),
        of_images(),
        of_logs(),
        of_execs(),
        of_supervision(),
        of_the_rest(),
    ]
    .concat()
}

fn spec(spoil: fn(&mut ServiceSpec)) -> Spoils {
    Spoils { spec: Some(spoil), ..Spoils::default() }
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
        (&["settings.secrets"], spec(|spec| spec.env.clear())),
        (&["isolation.devices"], spec(|spec| spec.devices.clear())),
        (&["isolation.devices"], spec(|spec| spec.devices.iter_mut().for_each(|device| device.write = true))),
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
        (&["configured.volume"], spec(|spec| spec.storage.push(kept("/srv/volume")))),
        (&["command.matrix"], spec(|spec| spec.command.args = None)),
        (&["process.pid"], act(Act::TellsItsOwnPid)),
    ]
}

/// A volume that outlives its container.
fn kept(target: &str) -> StorageSpec {
    let (name, target) = ("conformance-fault".to_owned(), target.to_owned());
    StorageSpec::Named { name, target, readonly: false, tier: None, size: None, take_over: false }
}

fn of_limits() -> Faults {
    let mut faults: Faults = vec![
        (&["limits.cpu"], spec(|spec| spec.resources.cpu = None)),
        (&["limits.cpu_shares"], spec(|spec| spec.resources.cpu_shares = None)),
        (
            &["limits.memory", "stats.limit", "stats_detailed.oom_kills", "outcome.oom"],
            spec(|spec| spec.resources.memory = None),
        ),
        (&["limits.swap"], spec(|spec| spec.resources.swap = None)),
        (&["limits.shm"], spec(|spec| spec.shm_size = None)),
        (
            &["limits.core"],
            spec(|spec| {
                spec.rlimits.insert("core".to_owned(), RlimitSpec { soft: 512, hard: 512 });
            }),
        ),
        (&["settings.pids"], spec(|spec| spec.resources.pids = None)),
        (
            &["limits.update_rest"],
            Spoils { changes: Some(|changes| changes.memory = Some(ByteSize::new(128 << 20))), ..Spoils::default() },
        ),
        (&["update.memory"], Spoils { changes: Some(|changes| changes.memory = None), ..Spoils::default() }),
        // Nanoseconds.
        (&["stats.cpu_percent"], Spoils { stats: Some(|stats| stats.cpu_usage_usec *= 1000), ..Spoils::default() }),
        (
            &["stats.cpu", "stats.running"],
            Spoils { stats: Some(|stats| stats.cpu_usage_usec = 0), ..Spoils::default() },
        ),
        (&["stats.memory"], Spoils { stats: Some(|stats| stats.memory_bytes = 1 << 20), ..Spoils::default() }),
        (
            &["stats_detailed.oom_kills"],
            Spoils { detailed: Some(|stats| stats.memory.oom_kills = Some(0)), ..Spoils::default() },
        ),
        (
            &["stats_detailed.disk"],
            Spoils { detailed: Some(|stats| stats.disk.writable_bytes = Some(0)), ..Spoils::default() },
        ),
        (
            &["stats_detailed.limits"],
            Spoils { detailed: Some(|stats| stats.memory.limit_bytes = Some(0)), ..Spoils::default() },
        ),
        (
            &["stats_detailed.after_exit"],
            Spoils {
                detailed: Some(|stats| {
                    if stats.pids.current == Some(0) || stats.pids.current.is_none() {
                        stats.cpu.usage_usec = None
                    }
                }),
                ..Spoils::default()
            },
        ),
        (
            &["outcome.oom"],
            Spoils { outcome: Some(|outcome| outcome.reason = runtime_core::WaitReason::Signal), ..Spoils::default() },
        ),
        (
            &["outcome.oom_of_child"],
            Spoils {
                outcome: Some(|outcome| outcome.reason = runtime_core::WaitReason::OomKilled),
                ..Spoils::default()
            },
        ),
        (
            &["outcome.finished_at"],
            Spoils { outcome: Some(|outcome| outcome.finished_at = Some(chrono::Utc::now())), ..Spoils::default() },
        ),
        (&["outcome.inspect"], Spoils { details: Some(|details| details.exit_code = None), ..Spoils::default() }),
        // It goes down.
        (
            &["stats.after_exit"],
            Spoils {
                stats: Some(|stats| stats.cpu_usage_usec = u64::MAX - stats.timestamp.timestamp_micros() as u64),
                ..Spoils::default()
            },
        ),
    ];
    // Of one CPU nobody can be kept off the others.
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) {
        faults.push((&["limits.cpuset"], spec(|spec| spec.resources.cpuset = None)));
    }
    faults
}

fn each_storage(spec: &mut ServiceSpec, instead: fn(&StorageSpec) -> Option<StorageSpec>) {
    spec.storage = spec.storage.iter().filter_map(instead).collect();
}

fn anonymous(storage: &StorageSpec) -> Option<StorageSpec> {
    Some(StorageSpec::Anonymous { target: storage.target().to_owned() })
}

fn tmpfs(storage: &StorageSpec) -> Option<StorageSpec> {
    Some(StorageSpec::Tmpfs { target: storage.target().to_owned(), size: None, mode: None })
}

fn writable(storage: &StorageSpec) -> Option<StorageSpec> {
    let mut storage = storage.clone();
    if let StorageSpec::Bind { readonly, .. } | StorageSpec::Named { readonly, .. } = &mut storage {
        *readonly = false;
    }
    Some(storage)
}

fn of_storage() -> Faults {
    vec![
        (&["storage.tmpfs", "storage.tmpfs_mode"], spec(|spec| each_storage(spec, tmpfs))),
        (&["storage.bind", "storage.bind_missing"], spec(|spec| each_storage(spec, anonymous))),
        (&["storage.bind_read_only", "volumes.read_only"], spec(|spec| each_storage(spec, writable))),
        (&["storage.anonymous", "storage.filled", "volumes.filled"], spec(|spec| each_storage(spec, tmpfs))),
        (&["storage.anonymous_dies"], spec(|spec| each_storage(spec, |storage| Some(kept(storage.target()))))),
        (&["storage.s3"], spec(|spec| each_storage(spec, |_| None))),
        (
            &["volumes.stays", "volumes.shared", "volumes.sync", "volumes.status"],
            spec(|spec| each_storage(spec, anonymous)),
        ),
        (&["volumes.sync"], act(Act::SyncsNothing)),
        (&["volumes.status"], Spoils { volume: Some(|status| status.size_bytes = Some(0)), ..Spoils::default() }),
    ]
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
        (&["network.distinct"], act(Act::SharesAddresses)),
    ]
}

fn of_images() -> Faults {
    let policy = |policy| Spoils { policy: Some(policy), ..Spoils::default() };
    vec![
        (&["pull.if_not_present", "pull.never"], policy(PullPolicy::Always)),
        (&["pull.if_not_present"], act(Act::AsksAgain)),
        (&["pull.never", "pull.always"], policy(PullPolicy::IfNotPresent)),
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
        (&["images.list"], Spoils { image: Some(|image| image.reference.clear()), ..Spoils::default() }),
    ]
}

fn of_logs() -> Faults {
    let logs = |spoil| Spoils { logs: Some(spoil), ..Spoils::default() };
    let options = |spoil: fn(&mut LogsOptions)| Spoils { logs_options: Some(spoil), ..Spoils::default() };
    vec![
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
                    let late = |entry: &&mut runtime_core::LogEntry| entry.message.starts_with("begun");
                    logs.iter_mut().filter(late).for_each(|entry| entry.timestamp += TimeDelta::seconds(2));
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
    let options = |spoil: fn(&mut EventsOptions)| Spoils { events_options: Some(spoil), ..Spoils::default() };
    vec![
        (&["pause.freezes"], act(Act::PausesNothing)),
        (&["pause.freezes"], act(Act::UnpausesNothing)),
        (&["top.pids"], Spoils { top: Some(|entry| entry.command.clear()), ..Spoils::default() }),
        (&["top.pids"], Spoils { top: Some(|entry| entry.pid = 1), ..Spoils::default() }),
        (
            &["events.order"],
            Spoils {
                event: Some(|event| Some(event).filter(|event| event.kind != EventKind::Start)),
                ..Spoils::default()
            },
        ),
        (
            &["events.oom"],
            Spoils {
                event: Some(|event| Some(event).filter(|event| event.kind != EventKind::Oom)),
                ..Spoils::default()
            },
        ),
        (
            &["events.attempts"],
            Spoils {
                event: Some(|event| Some(runtime_core::Event { attempt: Some(1), ..event })),
                ..Spoils::default()
            },
        ),
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
            &["stop.stopping", "state.transitions"],
            Spoils { state: Some(|state| *state = runtime_core::ContainerState::Running), ..Spoils::default() },
        ),
        (&["pause.repeats"], act(Act::PausesOnce)),
    ]
}
