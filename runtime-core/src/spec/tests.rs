//! What a spec is read from, and what is no spec.

mod maps;

use super::*;
use maps::maps;

#[test]
fn an_unknown_field_is_an_error_at_every_level() {
    for text in [
        r#"{"image":{"name":"a"},"imagine":1}"#,
        r#"{"image":{"name":"a","tag":"x"}}"#,
        r#"{"image":{"name":"a"},"resources":{"memroy":"1Gi"}}"#,
        r#"{"image":{"name":"a"},"storage":[{"type":"named","name":"a","target":"/a","src":"x"}]}"#,
        r#"{"image":{"name":"a"},"health":{"check":{"type":"tcp","port":1,"host":"x"}}}"#,
    ] {
        let error = serde_json::from_str::<ServiceSpec>(text).unwrap_err().to_string();
        assert!(error.contains("unknown field"), "{text}: {error}");
    }
}

#[test]
fn yaml_and_json_round_trip() {
    let yaml = r"
image: { name: 'reg.example/app:1', pull_policy: if_not_present }
command: { entrypoint: [/app], args: [serve], workdir: /srv }
env: { A: '1', B: $E:HOME }
resources: { cpu: 1.5, memory: 512Mi, pids: 100 }
storage:
  - { type: bind, source: /etc/ssl, target: /etc/ssl, readonly: true }
  - { type: named, name: data, target: /data }
  - { type: anonymous, target: /scratch }
  - { type: tmpfs, target: /tmp, size: 64Mi, mode: 0o1777 }
port_mappings: [{ container_port: 80 }, { host_port: 53, container_port: 53, protocol: udp }]
network: { mode: front, aliases: [web] }
health: { check: { type: http, url: 'http://127.0.0.1:80/' }, interval: 10s }
restart_policy: { kind: on_failure, max_attempts: 3, delay: 500ms }
stop_timeout: 1m30s
scale: { min: 1 }
";
    let spec: ServiceSpec = serde_yaml_ng::from_str(yaml).unwrap();
    assert_eq!(spec.stop_timeout, Some(Duration::from_secs(90)));
    assert_eq!(spec.network.mode, NetworkMode::Named("front".into()));
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<ServiceSpec>(&json).unwrap(), spec);
    let back = serde_yaml_ng::to_string(&spec).unwrap();
    assert_eq!(serde_yaml_ng::from_str::<ServiceSpec>(&back).unwrap(), spec);
}

/// JSON is YAML.
fn read(spec: &Value) -> Result<ServiceSpec, String> {
    serde_yaml_ng::from_str(&spec.to_string()).map_err(|error| error.to_string())
}

/// What may be in the map at `place`.
fn fields_at(place: &str, spec: &Value) -> Vec<String> {
    maps::fields_at(place, spec, |spec| read(spec).unwrap_err())
}

#[test]
fn a_value_of_another_type_is_an_error_that_names_its_field() {
    let of_the_agent = ["schedule", "scale", "depends", "errors", "node_mode", "node_selector", "gpu"];
    let mut tried = 0;
    for (place, spec) in maps() {
        read(&spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
        let fields = fields_at(place, &spec);
        assert!(!fields.is_empty(), "{place}");
        for field in fields.iter().filter(|field| !of_the_agent.contains(&field.as_str())) {
            let mut wrong = spec.clone();
            // Nothing in a spec is a list of lists.
            wrong.pointer_mut(place).unwrap()[field] = serde_json::json!([[1]]);
            let error = read(&wrong).expect_err(field);
            assert!(error.contains(field.as_str()), "{place}/{field}: {error}");
            tried += 1;
        }
    }
    assert!(tried > 90, "only {tried} fields were tried");
}

#[test]
fn a_value_out_of_its_range_is_an_error_that_names_its_field() {
    for (place, field, value) in [
        ("/image", "pull_policy", serde_json::json!("sometimes")),
        ("/resources", "memory", "a lot".into()),
        ("/resources", "memory", (-1).into()),
        ("/resources", "pids", 1.5.into()),
        ("/resources", "swap", "1XB".into()),
        ("/resources", "cpu_shares", (-2).into()),
        ("/resources/io", "weight", 70_000.into()),
        ("/storage/0", "type", "floppy".into()),
        ("/storage/0", "size", "1XB".into()),
        ("/storage/0", "mode", (-1).into()),
        ("/storage/0", "mode", "0o777".into()),
        ("/storage/0", "mode", "+777".into()),
        ("/storage/0", "mode", "888".into()),
        ("/endpoints/0", "protocol", "smtp".into()),
        ("/endpoints/0", "port", 65_536.into()),
        ("/port_mappings/0", "protocol", "sctp".into()),
        ("/port_mappings/0", "container_port", 65_536.into()),
        ("/port_mappings/0", "host_port", (-1).into()),
        ("/health", "interval", "often".into()),
        ("/health", "retries", (-1).into()),
        ("/health/check", "port", 65_536.into()),
        ("/health/check", "expect_status", 65_536.into()),
        ("/restart_policy", "kind", "sometimes".into()),
        ("/restart_policy", "max_attempts", (-1).into()),
        ("/restart_policy", "delay", "soon".into()),
        ("/logs", "mode", "loud".into()),
        ("/logs", "max_size_bytes", (-1).into()),
        ("/rlimits/nofile", "soft", (-1).into()),
        ("", "seccomp", "strict".into()),
        ("", "stop_timeout", "soon".into()),
        ("", "shm_size", (-1).into()),
    ] {
        let has = |(at, spec): &(&str, Value)| *at == place && fields_at(at, spec).iter().any(|known| known == field);
        let of_any_type = |(at, _): &(&str, Value)| *at == place && field == "type";
        let found = maps().into_iter().find(|one| of_any_type(one) || has(one));
        let (_, mut spec) = found.unwrap_or_else(|| panic!("nothing at {place} has {field}"));
        spec.pointer_mut(place).unwrap()[field] = value;
        let error = read(&spec).expect_err(field);
        // Of a list of words all are told.
        assert!(error.contains(field) || error.contains("expected one of"), "{place}/{field}: {error}");
    }
}

#[test]
fn what_a_kind_of_storage_or_check_needs_is_named_and_nothing_is_said_twice() {
    for (spec, named) in [
        (r#"{"image":{"name":"a"},"storage":[{"target":"/b"}]}"#, "missing field `type`"),
        (r#"{"image":{"name":"a"},"storage":[{"type":"bind","target":"/b"}]}"#, "missing field `source`"),
        (r#"{"image":{"name":"a"},"health":{"check":{"type":"http"}}}"#, "missing field `url`"),
        (r#"{"image":{"name":"a"},"storage":[{"type":"anonymous","target":"/b","target":"/c"}]}"#, "duplicate"),
    ] {
        let error = serde_json::from_str::<ServiceSpec>(spec).unwrap_err().to_string();
        assert!(error.contains(named), "{spec}: {error}");
    }
}

#[test]
fn a_mode_that_is_a_text_is_octal() {
    // So YAML 1.2 reads it with a zero in front.
    for (written, mode) in [("0777", 0o777), ("'777'", 0o777), ("0o1777", 0o1777), ("511", 0o777)] {
        let spec = format!("{{image: {{name: a}}, storage: [{{type: tmpfs, target: /b, mode: {written}}}]}}");
        let spec: ServiceSpec = serde_yaml_ng::from_str(&spec).unwrap();
        let StorageSpec::Tmpfs { mode: read, .. } = spec.storage[0] else { panic!("{written}") };
        assert_eq!(read, Some(mode), "{written}");
    }
}
