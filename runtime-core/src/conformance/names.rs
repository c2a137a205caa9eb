//! How a container finds others: name servers, hosts, names, published ports.

use std::net::IpAddr;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal};
use super::network::{SERVER, client, host_port, idle_in, ip, mapping, needs_networks, serves};
use super::{Check, check};
use crate::spec::NetworkMode;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("network.dns", "the spec's name servers and search domains are those of the container", dns),
        check!("network.extra_hosts", "the spec's hosts are known by name, host-gateway as the host's address", hosts),
        check!("network.own_name", "a container knows its own name, at its own address", own_name),
        check!("network.at_start", "the network is there before the program", at_start),
        check!("network.same_address", "the next attempt has the same address", same_address),
        check!("network.aliases", "inspect_detailed tells the aliases of the container", aliases),
        check!("ports.reached", "what is sent to the host's port reaches the container's", reached),
    ]
}

async fn dns(case: Case) -> Verdict {
    needs_networks(&case)?;
    let mut spec = case.script("while read -r line; do echo $line; done < /etc/resolv.conf; echo end")?;
    spec.dns = vec!["192.0.2.53".to_owned(), "192.0.2.54".to_owned()];
    spec.dns_search = vec!["one.conformance".to_owned(), "other.conformance".to_owned()];
    let id = case.start_spec(&spec).await?;
    case.wait(&id).await?;
    case.line(&id, "end").await?;
    let logs = case.runtime().get_logs(&id).await.or_fail("get_logs")?;
    let values = |key: &str| -> Vec<String> {
        let words = logs.iter().filter_map(|entry| entry.message.strip_prefix(key));
        words.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    equal("its name servers", &values("nameserver "), &spec.dns)?;
    equal("its search domains", &values("search "), &spec.dns_search)
}

/// A script that writes the addresses that `/etc/hosts` has for `names`, on one line.
fn addresses_of(names: &[&str]) -> String {
    let one = |name: &&str| {
        format!(
            "while read -r ip names; do case \" $names \" in *\" {name} \"*) r=\"$r $ip\"; break;; esac; \
             done < /etc/hosts; "
        )
    };
    format!("r=; {} echo $r", names.iter().map(one).collect::<String>())
}

async fn hosts(case: Case) -> Verdict {
    needs_networks(&case)?;
    let mut spec = case.script(addresses_of(&["host.conformance", "gateway.conformance"]))?;
    spec.extra_hosts = vec!["host.conformance:192.0.2.7".to_owned(), "gateway.conformance:host-gateway".to_owned()];
    let line = case.answer(&spec).await?;
    let found: Vec<Option<IpAddr>> = line.split(' ').map(|word| word.parse().ok()).collect();
    let [Some(host), Some(gateway)] = found[..] else {
        return Err(Stop::Failed(format!("the container knows the two hosts as {line:?}")));
    };
    equal("the host's address", &host.to_string().as_str(), &"192.0.2.7")?;
    let is_some_address = !gateway.is_unspecified() && !gateway.is_loopback();
    ensure(is_some_address, || format!("host-gateway is {gateway}"))
}

async fn own_name(case: Case) -> Verdict {
    needs_networks(&case)?;
    let mut spec = idle_in(&case, NetworkMode::Bridge)?;
    spec.hostname = Some("conformance-host".to_owned());
    let id = case.start_spec_ready(&spec).await?;
    let (own, found) = (ip(&case, &id).await?, case.ask(&id, &addresses_of(&["conformance-host"])).await?);
    equal("its own address by its name", &found, &own.to_string())
}

async fn at_start(case: Case) -> Verdict {
    needs_networks(&case)?;
    // The very first thing that the program does, and only what the shell has built in.
    let script = "n=0; while read -r link rest; do case $link in lo:|*'|'*) ;; *) n=$((n+1)); esac; done < /proc/net/dev; \
                  r=0; while read -r line; do r=$((r+1)); done < /proc/net/route; echo $n $((r-1))";
    for _ in 0..3 {
        let spec = crate::ServiceSpec { network: Default::default(), ..case.script(script)? };
        let found = case.answer(&spec).await?;
        let is_there = found.split_once(' ').is_some_and(|(links, routes)| links != "0" && routes != "0");
        // Inter-| is the first of two lines of headings, face the other.
        ensure(is_there, || format!("at its start a program finds \"links routes\" {found:?}"))?;
    }
    Ok(())
}

async fn same_address(case: Case) -> Verdict {
    needs_networks(&case)?;
    let id = case.start_spec_ready(&idle_in(&case, NetworkMode::Bridge)?).await?;
    let first = ip(&case, &id).await?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    // It takes the address that a careless backend would have freed.
    let other = case.start_spec_ready(&idle_in(&case, NetworkMode::Bridge)?).await?;
    ensure(ip(&case, &other).await? != first, || format!("{first} is another's though its container can be started"))?;
    case.runtime().start_container(&id).await.or_fail("start_container of an exited container")?;
    equal("the address of the next attempt", &ip(&case, &id).await?, &first)
}

async fn aliases(case: Case) -> Verdict {
    needs_networks(&case)?;
    let mut spec = idle_in(&case, NetworkMode::Bridge)?;
    spec.network.aliases = vec!["alias-of-conformance".to_owned()];
    let id = case.start_spec_ready(&spec).await?;
    let details = case.runtime().inspect_detailed(&id).await.or_fail("inspect_detailed")?;
    let all: Vec<&String> = details.networks.iter().flat_map(|network| &network.aliases).collect();
    ensure(all.iter().any(|alias| *alias == "alias-of-conformance"), || format!("its aliases are {all:?}"))
}

async fn reached(case: Case) -> Verdict {
    needs_networks(&case)?;
    let mut server = case.script(SERVER)?;
    server.port_mappings = vec![mapping(None)];
    let id = case.start_spec(&server).await?;
    serves(&case, &id).await?;
    let port = host_port(&case, &id).await?;
    // A connection before anybody listens is refused: it is sent until it has come.
    client(&case, format!("while :; do echo reached | nc -w 1 127.0.0.1 {port} > /dev/null 2>&1; sleep 1; done"))
        .await?;
    case.line(&id, "reached").await.map(drop)
}
