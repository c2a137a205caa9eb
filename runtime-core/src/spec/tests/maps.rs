//! Every map that a spec may hold, for tests that ask of each of its fields. The integration suite reads this file, too.

use serde_json::{Value, json};

/// Each kind of map in a spec: where it is, and a spec that has it.
pub fn maps() -> Vec<(&'static str, Value)> {
    let with = |more: Value| {
        let mut spec = json!({"image": {"name": "a"}});
        for (name, value) in more.as_object().unwrap() {
            spec[name] = value.clone();
        }
        spec
    };
    let storage = |one: Value| with(json!({"storage": [one]}));
    let check = |one: Value| with(json!({"health": {"check": one}}));
    vec![
        ("", with(json!({}))),
        ("/image", with(json!({}))),
        ("/command", with(json!({"command": {}}))),
        ("/resources", with(json!({"resources": {}}))),
        ("/resources/io", with(json!({"resources": {"io": {}}}))),
        ("/storage/0", storage(json!({"type": "bind", "source": "/a", "target": "/b"}))),
        ("/storage/0", storage(json!({"type": "named", "name": "a", "target": "/b"}))),
        ("/storage/0", storage(json!({"type": "anonymous", "target": "/b"}))),
        ("/storage/0", storage(json!({"type": "tmpfs", "target": "/b"}))),
        ("/storage/0", storage(json!({"type": "s3", "bucket": "a", "target": "/b"}))),
        ("/devices/0", with(json!({"devices": [{"path": "/dev/a"}]}))),
        ("/network", with(json!({"network": {}}))),
        ("/endpoints/0", with(json!({"endpoints": [{"name": "a", "port": 1}]}))),
        ("/port_mappings/0", with(json!({"port_mappings": [{"container_port": 1}]}))),
        ("/port_ranges/0", with(json!({"port_ranges": [{"container_port": 1, "host_port": 1, "host_port_end": 2}]}))),
        ("/health", check(json!({"type": "tcp", "port": 1}))),
        ("/health/check", check(json!({"type": "tcp", "port": 1}))),
        ("/health/check", check(json!({"type": "http", "url": "http://a/"}))),
        ("/health/check", check(json!({"type": "command", "command": ["a"]}))),
        ("/restart_policy", with(json!({"restart_policy": {}}))),
        ("/logs", with(json!({"logs": {}}))),
        ("/rlimits/nofile", with(json!({"rlimits": {"nofile": {"soft": 1, "hard": 1}}}))),
    ]
}

/// What may be in the map at `place`, as the `error` about another field tells.
pub fn fields_at(place: &str, spec: &Value, error: impl Fn(&Value) -> String) -> Vec<String> {
    let mut unknown = spec.clone();
    unknown.pointer_mut(place).unwrap()["nosuch"] = 1.into();
    let error = error(&unknown);
    assert!(error.contains("unknown field `nosuch`"), "{place}: {error}");
    let expected = error.split("expected").nth(1).unwrap_or_default();
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}
