//! `--network container:NAME`: one network for two containers, which is the first one's.

use std::time::Duration;

use runtime_core::spec::{NetworkMode, RestartKind, RestartPolicy};
use runtime_core::{ContainerId, ContainerState, PortMapping, ServiceSpec};

use crate::support::Case;
use crate::support::case::{IDLE, asked, eventually};

crate::tests![
    it_has_the_others_addresses_names_and_loopback,
    each_goes_without_the_other,
    the_others_restart_is_no_matter_and_its_start_is,
    what_it_joins_may_be_none_the_hosts_or_joined_itself,
    what_cannot_be_joined_is_an_error,
];

impl Case {
    async fn on(&self, mode: NetworkMode, script: &str) -> ContainerId {
        let mut spec = self.script(script).await;
        spec.network.mode = mode;
        self.start(&spec).await
    }

    async fn joining(&self, other: &ContainerId) -> ServiceSpec {
        let mut spec = self.script(IDLE).await;
        spec.network.mode = joined(other);
        spec
    }

    async fn addresses(&self, id: &ContainerId) -> String {
        self.exec_ok(id, "ip -o addr | cut -d' ' -f2-7").await
    }
}

fn joined(other: &ContainerId) -> NetworkMode {
    NetworkMode::from(format!("container:{other}"))
}

async fn it_has_the_others_addresses_names_and_loopback(case: Case) {
    let other = case.on(NetworkMode::Bridge, "while :; do echo served | nc -l -p 7000; done").await;
    let image = case.suite.busybox().await.to_owned();
    let id = case.id();
    let network = format!("container:{}", other.service);
    let line = ["run", "-d", "--name", &id.service, "--network", &network, &image, "sh", "-c", IDLE];
    case.berth(&line).await.succeeded();

    let addresses = case.addresses(&other).await;
    assert!(addresses.contains("eth0"), "{addresses}");
    assert_eq!(case.addresses(&id).await, addresses);
    for script in [
        "hostname",
        "stat -c %d:%i /etc/hosts",
        "cat /etc/hostname",
        "cat /etc/resolv.conf",
        "readlink /proc/self/ns/net",
    ] {
        assert_eq!(case.exec_ok(&id, script).await, case.exec_ok(&other, script).await, "{script}");
    }
    assert_eq!(case.exec_ok(&id, &asked("127.0.0.1", 7000)).await, "served\n");
    // Who comes later is known by its name to both.
    let third = case.on(NetworkMode::Bridge, IDLE).await;
    let known = format!("grep -c -w {} /etc/hosts || :", third.service);
    eventually("its name is spread", || async { case.exec_ok(&id, &known).await == "1\n" }).await;

    // The address is the other's.
    assert_eq!(case.runtime.get_container_ip(&id).await.unwrap(), None);
    let inspected = case.berth(&["inspect", "--json", &id.to_string()]).await.json()[0].take();
    assert_eq!(
        (inspected["networks"].as_array().map(Vec::len), &inspected["spec"]["network"]["mode"]),
        (Some(0), &network.into())
    );
    let detailed = case.runtime.stats_detailed(&id).await.unwrap();
    assert!(detailed.network.unwrap().contains_key("eth0"), "the traffic that it shares");
}

async fn each_goes_without_the_other(case: Case) {
    let other = case.on(NetworkMode::Bridge, IDLE).await;
    let peer = case.on(NetworkMode::Bridge, IDLE).await;
    let ip = case.runtime.get_container_ip(&other).await.unwrap().unwrap();
    let ping = format!("ping -c 1 -W 5 {ip} | grep -c '1 packets received'");
    for _ in 0..2 {
        let id = case.start(&case.joining(&other).await).await;
        case.runtime.remove_container(&id).await.unwrap();
        assert_eq!(case.exec_ok(&peer, &ping).await, "1\n", "nothing of the other's is freed with it");
    }
    let id = case.start(&case.joining(&other).await).await;
    case.runtime.remove_container(&other).await.unwrap();
    let left = case.addresses(&id).await;
    assert!(left.contains("lo") && !left.contains("eth0"), "{left}");
    case.runtime.stop_container(&id, Duration::from_secs(10)).await.unwrap();
    let error = case.runtime.start_container(&id).await.unwrap_err();
    assert!(error.to_string().contains(&other.to_string()), "{error}");
}

async fn the_others_restart_is_no_matter_and_its_start_is(case: Case) {
    let mut spec = case.script("n=$(($(cat /n 2>/dev/null || echo 0)+1)); echo $n > /n; echo up $n; until [ -e /end$n ]; do sleep 0.05; done").await;
    spec.network.mode = NetworkMode::Bridge;
    spec.restart_policy = RestartPolicy { kind: RestartKind::Always, delay: Some(Duration::ZERO), max_attempts: None };
    let other = case.start(&spec).await;
    let id = case.start(&case.joining(&other).await).await;
    let addresses = case.addresses(&id).await;
    case.exec(&other, "touch /end1").await;
    case.until_logged(&other, "up 2").await;
    assert_eq!(case.addresses(&id).await, addresses);

    case.runtime.stop_container(&other, Duration::ZERO).await.unwrap();
    case.runtime.start_container(&other).await.unwrap();
    case.until_logged(&other, "up 3").await;
    assert!(case.addresses(&other).await.contains("eth0"), "what the one that joined it still held is taken over");
    assert!(!case.addresses(&id).await.contains("eth0"), "it has the network of before");
    case.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(case.addresses(&id).await, case.addresses(&other).await);
}

async fn what_it_joins_may_be_none_the_hosts_or_joined_itself(case: Case) {
    let first = case.on(NetworkMode::Bridge, IDLE).await;
    let none = case.on(NetworkMode::None, IDLE).await;
    let hosts = case.on(NetworkMode::Host, IDLE).await;
    let second = case.start(&case.joining(&first).await).await;
    let namespace = "readlink /proc/self/ns/net; hostname; stat -c %d:%i /etc/hosts";
    for other in [&first, &second, &none, &hosts] {
        let id = case.start(&case.joining(other).await).await;
        assert_eq!(case.exec_ok(&id, namespace).await, case.exec_ok(other, namespace).await, "{other}");
    }
    let host = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert!(case.exec_ok(&hosts, namespace).await.starts_with(&host));
}

async fn what_cannot_be_joined_is_an_error(case: Case) {
    let other = case.on(NetworkMode::None, IDLE).await;
    let ended = case.idle().await;
    case.runtime.stop_container(&ended, Duration::ZERO).await.unwrap();
    let created = case.id();
    case.runtime.create_container(&created, &case.script(IDLE).await).await.unwrap();
    let itself = case.id();
    for (name, id, code) in [
        ("container:no-such".to_owned(), case.id(), "container.not_found"),
        (format!("container:{ended}"), case.id(), "container.not_running"),
        (format!("container:{created}"), case.id(), "container.not_running"),
        (format!("container:{itself}"), itself.clone(), "spec.invalid"),
        ("container:../x".to_owned(), case.id(), "spec.invalid"),
    ] {
        let mut spec = case.script(IDLE).await;
        spec.network.mode = NetworkMode::from(name.clone());
        let error = case.runtime.create_container(&id, &spec).await.unwrap_err();
        assert_eq!(error.code(), code, "{name}: {error}");
        assert!(case.runtime.container_state(&id).await.is_err(), "{name}: something is left");
    }

    let port = PortMapping { host_port: None, container_port: 80, protocol: Default::default(), host_ip: None };
    for (field, set) in [
        ("hostname", (|spec, _| spec.hostname = Some("x".into())) as fn(&mut ServiceSpec, PortMapping)),
        ("network.aliases", |spec, _| spec.network.aliases = vec!["x".into()]),
        ("port_mappings", |spec, port| spec.port_mappings = vec![port]),
        ("publish_all", |spec, _| spec.publish_all = true),
        ("dns", |spec, _| spec.dns = vec!["1.1.1.1".into()]),
        ("extra_hosts", |spec, _| spec.extra_hosts = vec!["a:1.2.3.4".into()]),
        ("sysctls.net.core.somaxconn", |spec, _| {
            spec.sysctls.insert("net.core.somaxconn".into(), "9".into());
        }),
    ] {
        let mut spec = case.joining(&other).await;
        set(&mut spec, port.clone());
        let error = case.runtime.create_container(&case.id(), &spec).await.unwrap_err();
        assert!(error.code() == "spec.invalid" && error.to_string().contains(field), "{field}: {error}");
    }
    assert_eq!(case.runtime.container_state(&other).await.unwrap(), ContainerState::Running);
}
