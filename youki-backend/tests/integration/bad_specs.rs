//! Each field of a spec with a value that no container can have: an error that names the field, and nothing is made. What
//! cannot even be read as a spec is asked in `runtime-core/src/spec/tests.rs`.

use std::collections::BTreeSet;

use runtime_core::{AgentError, ServiceSpec};
use serde_json::{Value, json};

use crate::support::Case;

#[path = "../../../runtime-core/src/spec/tests/maps.rs"]
mod maps;

crate::tests![a_value_that_no_container_can_have_is_refused_by_its_field, each_field_is_tried_or_has_no_bad_value];

/// What is put into a spec, and what the error must say.
fn rows() -> Vec<(Value, &'static str)> {
    let storage = |one: Value| json!({"storage": [{"type": "anonymous", "target": "/first"}, one]});
    let port = |one: Value| json!({"port_mappings": [one], "network": {"mode": "bridge"}});
    let range = |one: Value| json!({"port_ranges": [one], "network": {"mode": "bridge"}});
    let check = |one: Value| json!({"health": {"check": one}});
    let tcp = json!({"type": "tcp", "port": 80});
    vec![
        (json!({"image": {"name": ""}}), "image.name"),
        (json!({"image": {"name": "UPPER/case"}}), "UPPER/case"),
        (json!({"command": {"args": ["a\0b"]}}), "command"),
        (json!({"command": {"args": [""]}}), "command"),
        (json!({"command": {"entrypoint": ["sh", "a\0b"]}}), "command"),
        (json!({"command": {"workdir": "relative"}}), "command.workdir"),
        (json!({"env": {"A=B": "1"}}), "env"),
        (json!({"env": {"A": "x\0y"}}), "env.A"),
        (json!({"env": {"A": "$E:BERTH_TEST_NEVER_SET"}}), "env.A"),
        (json!({"resources": {"cpu": 0.0}}), "resources.cpu"),
        (json!({"resources": {"cpu": 100_000}}), "resources.cpu"),
        (json!({"resources": {"memory": "1Ki"}}), "resources.memory"),
        (json!({"resources": {"pids": 0}}), "resources.pids"),
        (json!({"resources": {"swap": "1Mi"}}), "resources.swap"),
        (json!({"resources": {"cpu_shares": 1}}), "resources.cpu_shares"),
        (json!({"resources": {"cpuset": "first"}}), "resources.cpuset"),
        (json!({"resources": {"io": {"weight": 5}}}), "resources.io.weight"),
        (storage(json!({"type": "bind", "source": "relative", "target": "/b"})), "storage[1].source"),
        (storage(json!({"type": "bind", "source": "/no/such/source", "target": "/b"})), "storage[1].source"),
        (storage(json!({"type": "bind", "source": "/etc", "target": "relative"})), "storage[1].target"),
        (storage(json!({"type": "named", "name": "../x", "target": "/b"})), "../x"),
        (storage(json!({"type": "anonymous", "target": "/"})), "storage[1].target"),
        (storage(json!({"type": "anonymous", "target": "/first"})), "storage[1].target"),
        (storage(json!({"type": "anonymous", "target": "/proc/x"})), "storage[1].target"),
        (storage(json!({"type": "tmpfs", "target": "/b", "mode": 4096})), "storage[1].mode"),
        (storage(json!({"type": "s3", "bucket": "a", "target": "/b"})), "storage[1]"),
        (json!({"devices": [{"path": "relative"}]}), "devices[0]"),
        (json!({"devices": [{"path": "/dev/no-such-device"}]}), "devices[0].path"),
        (json!({"devices": [{"path": "/dev/nu\0ll"}]}), "devices[0].path"),
        (json!({"devices": [{"path": "/dev/null", "read": false, "write": false}]}), "devices[0]"),
        (json!({"capabilities": ["EVERYTHING"]}), "capabilities[0]"),
        (json!({"drop_capabilities": ["EVERYTHING"]}), "drop_capabilities[0]"),
        (json!({"seccomp": {"file": "/no/such/profile"}}), "seccomp"),
        (json!({"network": {"mode": "nosuch"}}), "nosuch"),
        (json!({"network": {"aliases": ["a b"]}}), "network.aliases"),
        (json!({"host_network": true, "network": {"mode": "front"}}), "host_network"),
        (port(json!({"container_port": 0})), "port_mappings[0].container_port"),
        (
            json!({"port_ranges": [{"container_port": 80, "host_port": 90, "host_port_end": 80}]}),
            "port_ranges[0].host_port_end",
        ),
        (
            json!({"network": {"mode": "container:x"}, "port_ranges": [{"container_port": 80, "host_port": 80, "host_port_end": 90}]}),
            "port_ranges",
        ),
        (port(json!({"container_port": 80, "host_ip": "nowhere"})), "port_mappings[0].host_ip"),
        (range(json!({"container_port": 0, "host_port": 80, "host_port_end": 90})), "port_ranges[0].container_port"),
        (range(json!({"container_port": 80, "host_port": 0, "host_port_end": 90})), "port_ranges[0].host_port"),
        (
            range(json!({"container_port": 80, "host_port": 80, "host_port_end": 90, "host_ip": "nowhere"})),
            "port_ranges[0].host_ip",
        ),
        (json!({"hostname": "a b"}), "hostname"),
        (json!({"dns": ["nobody"]}), "dns"),
        (json!({"dns_search": ["a b"]}), "dns_search"),
        (json!({"extra_hosts": ["db"]}), "extra_hosts"),
        (check(json!({"type": "tcp", "port": 0})), "health.check.port"),
        (check(json!({"type": "http", "url": "gopher://a/"})), "health.check.url"),
        (check(json!({"type": "http", "url": "http://localhost/", "expect_status": 7})), "health.check.expect_status"),
        (check(json!({"type": "command", "command": []})), "health.check.command"),
        (check(json!({"type": "command", "command": ["sh", "-c", "a\0b"]})), "health.check.command"),
        (json!({"health": {"check": tcp, "interval": "0s"}}), "health.interval"),
        (json!({"health": {"check": tcp, "timeout": "0s"}}), "health.timeout"),
        (json!({"health": {"check": tcp, "retries": 0}}), "health.retries"),
        (json!({"health": {"check": tcp}, "no_healthcheck": true}), "no_healthcheck"),
        (json!({"restart_policy": {"kind": "on_failure", "max_attempts": 0}}), "restart_policy.max_attempts"),
        (json!({"restart_policy": {"kind": "always"}, "remove_on_exit": true}), "restart_policy"),
        (json!({"logs": {"max_size_bytes": 40_959}}), "logs.max_size_bytes"),
        (json!({"logs": {"max_buffer_bytes": 0, "mode": "non_blocking"}}), "logs.max_buffer_bytes"),
        (json!({"user": "99999999999"}), "user"),
        (json!({"user": "stranger"}), "stranger"),
        (json!({"rlimits": {"nosuch": {"soft": 1, "hard": 1}}}), "rlimits.nosuch"),
        (json!({"rlimits": {"nofile": {"soft": 2, "hard": 1}}}), "rlimits.nofile"),
        (json!({"sysctls": {"kernel.core_pattern": "x"}}), "sysctls.kernel.core_pattern"),
        (json!({"stop_signal": "BOGUS"}), "stop_signal"),
        (json!({"platform": "bogus"}), "bogus"),
        (json!({"shm_size": 0}), "shm_size"),
        (json!({"labels": {"": "x"}}), "labels"),
    ]
}

/// The field that is tried where the error names its value, or a list that it is in.
const NAMED_OTHERWISE: [(&str, &str); 6] = [
    ("UPPER/case", "image.name"),
    ("../x", "storage.name"),
    ("storage[1]", "storage.bucket"),
    ("nosuch", "network.mode"),
    ("bogus", "platform"),
    ("stranger", "user"),
];

/// Fields that take all that can be written of their type, and those that are the agent's business.
const WITHOUT_BAD_VALUES: &[&str] = &[
    "depends",
    "endpoints.name",
    "endpoints.port",
    "endpoints.protocol",
    "errors",
    "init",
    "logs.destination",
    "logs.retention",
    "no_new_privileges",
    "node_mode",
    "node_selector",
    "privileged",
    "publish_all",
    "read_only",
    "remove_on_exit",
    "resources.gpu",
    "scale",
    "schedule",
    "stdin",
    "stop_timeout",
    "tty",
    // Words of a list, of which `runtime-core/src/spec/tests.rs` tries others.
    "image.pull_policy",
    "logs.mode",
    "port_mappings.protocol",
    "port_ranges.protocol",
    "restart_policy.kind",
    // Switches.
    "devices.mknod",
    "devices.read",
    "devices.write",
    "storage.readonly",
    "storage.take_over",
    // Any number or time is one.
    "health.start_grace",
    "port_mappings.host_port",
    "restart_policy.delay",
    // 0 is the kernel's "no limit" of a tmpfs, as with docker; of a named volume it is Unsupported.
    "storage.size",
    // Text that is kept and shown.
    "storage.tier",
    // Of a kind of storage that is Unsupported as a whole.
    "storage.prefix",
    // Tried as the line, and the map, that they belong to.
    "command.args",
    "command.entrypoint",
    "rlimits.hard",
    "rlimits.soft",
];

async fn a_value_that_no_container_can_have_is_refused_by_its_field(case: Case) {
    let plain = case.spec(&["true"]).await;
    // Of its own: other tests make volumes.
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    runtime.pull_image(&plain.image.name).await.unwrap();
    let mut wrong = Vec::new();
    for (change, named) in rows() {
        let mut spec = serde_json::to_value(&plain).unwrap();
        for (field, value) in change.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let spec: ServiceSpec = serde_json::from_value(spec).unwrap_or_else(|error| panic!("{change}: {error}"));
        let id = case.id_in(&root);
        match runtime.create_container(&id, &spec).await {
            Ok(()) => wrong.push(format!("{change} was accepted")),
            Err(error) if !error.to_string().contains(named) => wrong.push(format!("{change}: no {named}: {error}")),
            Err(error) if !error.code().contains('.') => wrong.push(format!("{change}: no code: {error}")),
            Err(_) => {}
        }
        let state = runtime.container_state(&id).await;
        if !matches!(state, Err(AgentError::NotFound { .. })) {
            wrong.push(format!("{change}: it is there: {state:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(runtime.list_volumes().await.unwrap(), Vec::new(), "a volume was made");
}

/// `storage[1].source` and `rlimits.nofile` as `storage.source` and `rlimits`.
fn field(named: &str) -> String {
    if let Some((_, field)) = NAMED_OTHERWISE.iter().find(|(known, _)| *known == named) {
        return (*field).to_owned();
    }
    let keyed = ["env", "rlimits", "sysctls"].into_iter().find(|field| named.starts_with(&format!("{field}.")));
    let parts = keyed.unwrap_or(named).split('.').map(|part| part.split('[').next().unwrap());
    parts.collect::<Vec<_>>().join(".")
}

/// Every field that a spec may have, those of its lists and objects by their path.
fn fields() -> BTreeSet<String> {
    let unknown = |spec: &Value| serde_json::from_value::<ServiceSpec>(spec.clone()).unwrap_err().to_string();
    let mut all = BTreeSet::new();
    for (place, spec) in maps::maps() {
        // Without the place in a list, and the key of a map.
        let begin = place.replace("/0", "").replace("/nofile", "").replace('/', ".");
        all.extend(maps::fields_at(place, &spec, unknown).into_iter().map(|name| format!("{begin}.{name}")));
    }
    all.into_iter().map(|path| path.trim_start_matches('.').to_owned()).collect()
}

async fn each_field_is_tried_or_has_no_bad_value(_case: Case) {
    let there = fields();
    assert!(there.len() > 90, "{there:?}");
    // An object is tried by its fields.
    let is_object = |path: &str| there.iter().any(|other| other.starts_with(&format!("{path}.")));
    let rows = rows();
    let told: BTreeSet<String> = rows
        .iter()
        .map(|(_, named)| field(named))
        .chain(WITHOUT_BAD_VALUES.iter().map(|path| (*path).to_owned()))
        .collect();
    let untried: Vec<_> = there.iter().filter(|path| !told.contains(*path) && !is_object(path)).collect();
    assert!(untried.is_empty(), "never tried: {untried:?}");
    let unknown: Vec<_> = told.iter().filter(|path| !there.contains(*path)).collect();
    assert!(unknown.is_empty(), "no such fields: {unknown:?}");
}
