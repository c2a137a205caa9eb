//! `berth network …`, `berth port`, and the flags of `run` that are about networks.

use serde_json::json;

use crate::networks::{curl, web};
use crate::support::Case;
use crate::support::case::eventually;
use crate::support::image::Image;
use crate::support::root::Root;
use crate::support::share::Share;

crate::tests![
    networks_are_created_listed_inspected_and_removed,
    a_published_port_is_shown_by_ps_port_and_inspect,
    mistakes_about_networks_are_told_with_code_hint_and_exit_code,
    what_the_image_exposes_is_published_by_a_flag,
    a_reload_mends_the_firewall,
];

/// The same suite, on a root of the test's own.
fn elsewhere(case: &Case) -> Root {
    Root { keeper: false, ..case.root("root") }
}

fn subnet(root: &Root) -> String {
    Share::further_subnet(&root.subnet, 0)
}

async fn networks_are_created_listed_inspected_and_removed(case: Case) {
    let root = elsewhere(&case);
    let subnet = subnet(&root);
    let gateway = subnet.replace(".0/26", ".9");
    let args = ["network", "create", "--subnet", &subnet, "--gateway", &gateway, "--mtu", "1400", "--ipv6", "front"];
    assert_eq!(case.berth_on(&root, &args).await.succeeded(), "front\n");
    let made = case.berth_on(&root, &["network", "create", "--internal", "--json", "back"]).await.json();
    assert_eq!((&made["name"], &made["internal"], &made["containers"]), (&json!("back"), &json!(true), &json!([])));

    let all = case.berth_on(&root, &["network", "ls", "--json"]).await.json();
    let names: Vec<&str> = all.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bridge", "back", "front"]);
    assert_eq!(all[0]["subnet"], json!(root.subnet), "the default network's is still the root's");
    let table = case.berth_on(&root, &["network", "ls"]).await.succeeded();
    assert!(table.starts_with("NAME ") && table.contains(&subnet), "{table}");
    assert_eq!(case.berth_on(&root, &["network", "ls", "-q"]).await.succeeded(), "bridge\nback\nfront\n");
    let format = "{{.Name}} {{.Driver}} {{.Scope}} {{.IPv6}} {{.internal}}";
    let formatted = case.berth_on(&root, &["network", "ls", "--format", format]).await.succeeded();
    assert_eq!(formatted.lines().next(), Some("bridge bridge local false false"), "{formatted}");
    assert_eq!(formatted.lines().count(), 3, "{formatted}");

    let image = case.suite.busybox().await.to_owned();
    let args = ["run", "-d", "--name", "web", "--network", "front", "--network-alias", "db", &image, "sleep", "1000"];
    case.berth_on(&root, &args).await.succeeded();
    let shown = case.berth_on(&root, &["network", "inspect", "front"]).await.json();
    let (network, member) = (&shown[0], &shown[0]["containers"][0]);
    assert_eq!(
        (&network["gateway"], &network["mtu"], &member["id"]),
        (&json!(gateway), &json!(1400), &json!("web-rep-0"))
    );
    let inspected = case.berth_on(&root, &["inspect", "web"]).await.json();
    let attached = &inspected[0]["networks"][0];
    assert_eq!((&attached["network"], &attached["aliases"]), (&json!("front"), &json!(["db"])));
    for name in ["ipv4", "ipv6", "mac"] {
        assert_eq!(attached[name], member[name]);
        assert!(attached[name].is_string(), "{name}: {attached}");
    }
    assert!(case.berth_on(&root, &["ps", "--filter", "network=front", "-q"]).await.succeeded().contains("web-rep-0"));
    assert_eq!(case.berth_on(&root, &["ps", "--filter", "network=back", "-q"]).await.succeeded(), "");

    let refused = case.berth_on(&root, &["network", "rm", "front", "--json"]).await;
    assert_eq!(refused.code, 1);
    let error: serde_json::Value = serde_json::from_str(&refused.stderr).unwrap();
    assert_eq!(error["error"]["code"], "network.in_use");
    // The one that is used stays, the others go.
    assert_eq!(case.berth_on(&root, &["network", "prune", "-f"]).await.succeeded(), "back\n");
    case.berth_on(&root, &["rm", "-f", "web"]).await.succeeded();
    eventually("front is removed", || async {
        case.berth_on(&root, &["network", "rm", "front"]).await.stdout == "front\n"
    })
    .await;
    assert_eq!(case.berth_on(&root, &["network", "rm", "-f", "front"]).await.succeeded(), "");
    assert_eq!(case.berth_on(&root, &["network", "ls", "-q"]).await.succeeded(), "bridge\n");
}

async fn a_published_port_is_shown_by_ps_port_and_inspect(case: Case) {
    let id = case.id();
    let image = case.suite.busybox().await.to_owned();
    let script = web("shown");
    let first = case.suite.share.ports(2);
    let last = first + 1;
    let range = format!("{first}-{last}:90-91/udp");
    let args = ["run", "-d", "--name", &id.service, "-p", "127.0.0.1::80", "-p", &range, &image, "sh", "-c", &script];
    case.berth(&args).await.succeeded();
    let inspected = case.berth(&["inspect", &id.service]).await.json();
    let ports = inspected[0]["ports"].as_array().unwrap();
    let port = ports[0]["host_port"].as_u64().unwrap();
    assert_eq!(ports[0], json!({"container_port": 80, "host_port": port, "host_ip": "127.0.0.1", "protocol": "tcp"}));
    assert_eq!(ports[2], json!({"container_port": 91, "host_port": last, "host_ip": null, "protocol": "udp"}));
    assert_eq!(curl(&format!("http://127.0.0.1:{port}/")).await, "shown");

    let listed = case.berth(&["port", &id.service]).await.succeeded();
    assert_eq!(listed, format!("80/tcp -> 127.0.0.1:{port}\n90/udp -> 0.0.0.0:{first}\n91/udp -> 0.0.0.0:{last}\n"));
    assert_eq!(case.berth(&["port", &id.service, "80"]).await.succeeded(), format!("127.0.0.1:{port}\n"));
    assert_eq!(case.berth(&["port", &id.service, "91/udp", "--json"]).await.json()[0], ports[2]);
    let (code, message) = case.berth(&["--json", "port", &id.service, "91"]).await.refused(1);
    assert!(code == "port.not_published" && message.contains("91/tcp"), "{code}: {message}");

    let filter = format!("name={}", id.service);
    let format = ["ps", "--filter", &filter, "--format", "{{.Ports}}"];
    let row = case.berth(&format).await.succeeded();
    assert_eq!(row, format!("127.0.0.1:{port}->80/tcp, 0.0.0.0:{first}-{last}->90-91/udp\n"));
    let dockers = ["inspect", "-f", "{{json .NetworkSettings.Ports}}", &id.service];
    let dockers = case.berth(&dockers).await.json();
    assert_eq!(dockers["80/tcp"], json!([{"HostIp": "127.0.0.1", "HostPort": port.to_string()}]));
    // Ended it has none.
    case.berth(&["stop", "-t", "0", &id.service]).await.succeeded();
    assert_eq!(case.berth(&["ps", "-a", "--filter", &filter, "--format", "{{.Ports}}"]).await.succeeded(), "\n");
}

async fn mistakes_about_networks_are_told_with_code_hint_and_exit_code(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let holder = case.id();
    let (held, free) = (case.suite.share.port(), case.suite.share.port());
    let on_loopback = format!("127.0.0.1:{held}:80");
    let args = ["run", "-d", "--name", &holder.service, "-p", &on_loopback, &image, "sleep", "1000"];
    case.berth(&args).await.succeeded();
    let run = |flags: &[&str]| {
        let words = ["run", "--rm"].iter().chain(flags).copied().chain([image.as_str(), "true"]);
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    for (args, status, code) in [
        (run(&["-p", "nonsense"]), 125, "usage"),
        (run(&["-p", "80/sctp"]), 125, "unsupported"),
        (run(&["-p", &format!("10.254.254.254:{free}:80")]), 125, "spec.invalid"),
        (run(&["-p", &format!("[fd00::9]:{free}:80")]), 125, "spec.invalid"),
        (run(&["-p", &format!("[::1]:{free}:80")]), 125, "unsupported.here"),
        (run(&["-p", &format!("{held}:80")]), 125, "port.taken"),
        (run(&["-p", &format!("{free}:80"), "-p", &format!("{free}:81")]), 125, "spec.invalid"),
        (run(&["--network", "nosuch"]), 125, "network.not_found"),
        (run(&["--network", "container:x"]), 125, "container.not_found"),
        (run(&["--network", "container:"]), 125, "usage"),
        (run(&["--network-alias", "a b"]), 125, "spec.invalid"),
        (words(&["network", "create"]), 2, "usage"),
        (words(&["network", "create", "--subnet", "10.0.0.0", "x"]), 2, "spec.invalid"),
        (words(&["network", "create", "--gateway", "x", "x"]), 2, "usage"),
        (words(&["network", "create", "--mtu", "1", "x"]), 2, "spec.invalid"),
        (words(&["network", "create", "-d", "overlay", "x"]), 1, "unsupported"),
        (words(&["network", "create", "-o", "parent=eth0", "x"]), 1, "unsupported"),
        (words(&["network", "create", "bridge"]), 2, "spec.invalid"),
        (words(&["network", "rm", "bridge"]), 1, "network.in_use"),
        (words(&["network", "rm", "nosuch"]), 1, "network.not_found"),
        (words(&["network", "inspect", "nosuch"]), 1, "network.not_found"),
        (words(&["network", "connect", "a", "b"]), 1, "unsupported"),
        (words(&["port", "nosuch"]), 1, "container.not_found"),
        (words(&["port", &holder.service, "x"]), 2, "usage"),
    ] {
        let with_json: Vec<&str> = ["--json"].into_iter().chain(args.iter().map(String::as_str)).collect();
        let (told, message) = case.berth(&with_json).await.refused(status);
        assert_eq!(told, code, "{args:?}: {message}");
    }
    let said = case.berth(&["network", "rm", "bridge"]).await;
    assert!(said.stderr.contains("default network") && said.stderr.contains("--dismantle"), "{said:?}");
    let said = case.berth(&["run", "--rm", "-p", &format!("{held}:80"), &image, "true"]).await;
    assert!(said.stderr.contains(&holder.to_string()), "its owner is named: {}", said.stderr);
    assert!(said.stderr.contains("\nhint: "), "{}", said.stderr);
}

async fn what_the_image_exposes_is_published_by_a_flag(case: Case) {
    let image = Image::busybox().with("ExposedPorts", json!({"80/tcp": {}}));
    let image = case.push("exposing", &image).await;
    let id = case.id();
    let args = ["run", "-d", "--name", &id.service, "-P", "--expose", "70/udp", &image, "sleep", "1000"];
    case.berth(&args).await.succeeded();
    let listed = case.berth(&["port", &id.service]).await.succeeded();
    let lines: Vec<&str> = listed.lines().map(|line| line.split(" -> ").next().unwrap()).collect();
    assert_eq!(lines, ["70/udp", "80/tcp"], "{listed}");
}

async fn a_reload_mends_the_firewall(case: Case) {
    let root = elsewhere(&case);
    let image = case.suite.busybox().await.to_owned();
    let address = format!("127.0.0.1:{}", case.suite.share.port());
    let mapping = format!("{address}:80");
    let args = ["run", "-d", "--name", "web", "-p", &mapping, &image, "sh", "-c", &web("again")];
    case.berth_on(&root, &args).await.succeeded();
    let url = format!("http://{address}/");
    assert_eq!(curl(&url).await, "again");
    let table = crate::support::leftovers::table(&root);
    assert!(std::process::Command::new("nft").args(["delete", "table", "inet", &table]).status().unwrap().success());
    assert_eq!(case.berth_on(&root, &["network", "reload"]).await.succeeded(), "");
    assert_eq!(curl(&url).await, "again");
    case.berth_on(&root, &["rm", "-f", "web"]).await.succeeded();
}
