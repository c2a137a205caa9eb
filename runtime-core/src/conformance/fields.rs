//! Fields of the spec that a backend may not have: Unsupported is an answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, until_told, within};
use super::network::{host_port, idle_in, mapping, needs_networks};
use super::{Check, ConfiguredImage, Workload, check};
use crate::spec::{NetworkMode, PortProtocol, PortRange};
use crate::{AgentError, ContainerId, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("ports.range", "a port of a range is given while there is one, and then none", range),
        check!(
            "ports.exposed",
            "with publish_all the ports are published that the image exposes, and no others unless",
            exposed
        ),
        check!("remove_on_exit.exited", "it goes with its end, and who waits is told the code", exited),
        check!("remove_on_exit.stopped", "it goes with a stop, and its id is free", stopped),
        check!("health.image", "an image's own check is carried out, unless the spec wants none", of_image),
    ]
}

async fn range(case: Case) -> Verdict {
    needs_networks(&case)?;
    // Two ports beside each other that nobody has, as far as can be told.
    let mut spec = idle_in(&case, NetworkMode::Bridge)?;
    let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_micros());
    for round in 0..5 {
        // Beneath those from which kernels take ports by themselves.
        let first = 20_000 + 2 * ((start + round * 997) % 5_000) as u16;
        if of_loopback(first).is_err() || of_loopback(first + 1).is_err() {
            continue;
        }
        let one = mapping(None);
        spec.port_ranges = vec![PortRange {
            host_port: first,
            host_port_end: first + 1,
            container_port: one.container_port,
            protocol: PortProtocol::Tcp,
            host_ip: one.host_ip,
        }];
        let (one, other) = (case.start_spec(&spec).await?, case.start_spec(&spec).await?);
        let mut given = [host_port(&case, &one).await?, host_port(&case, &other).await?];
        given.sort_unstable();
        equal("the ports of two", &given, &[first, first + 1])?;
        let id = case.id();
        let created = case.runtime().create_container(&id, &spec).await;
        ensure(created.is_err(), || "a third has a port of two".to_owned())?;
        case.runtime().remove_container(&one).await.or_fail("remove_container")?;
        return case.start_spec(&spec).await.map(drop);
    }
    Err(Stop::Unsupported("no two ports beside each other are free".to_owned()))
}

fn of_loopback(port: u16) -> std::io::Result<std::net::TcpListener> {
    std::net::TcpListener::bind(("127.0.0.1", port))
}

fn configured(case: &Case) -> Verdict<ConfiguredImage> {
    let image = case.backend().configured_image();
    image.ok_or_else(|| Stop::Unsupported("the backend names no image with settings of its own".to_owned()))
}

async fn exposed(case: Case) -> Verdict {
    needs_networks(&case)?;
    let image = configured(&case)?;
    let port =
        image.exposed_port.ok_or_else(|| Stop::Unsupported("the configured image exposes no port".to_owned()))?;
    let mut spec = idle_in(&case, NetworkMode::Bridge)?;
    spec.image.name = image.reference;
    for (all, wanted) in [(false, vec![]), (true, vec![(port, true)])] {
        spec.publish_all = all;
        let id = case.start_spec(&spec).await?;
        let ports = case.runtime().inspect_detailed(&id).await.or_fail("inspect_detailed")?.ports;
        // Some tell of a port that is exposed and not published: it has none of the host's.
        let has_host = |host_port: Option<u16>| host_port.is_some_and(|port| port != 0);
        let told: Vec<_> =
            ports.iter().filter(|one| has_host(one.host_port)).map(|one| (one.container_port, true)).collect();
        equal(&format!("the ports that are published, asked {all}"), &told, &wanted)?;
    }
    Ok(())
}

async fn is_gone(case: &Case, id: &ContainerId) -> Verdict {
    case.until("it is still there", || async {
        let state = case.runtime().container_state(id).await;
        Ok(matches!(state, Err(AgentError::NotFound { .. })).then_some(()))
    })
    .await
}

async fn exited(case: Case) -> Verdict {
    let script = format!("echo ready; {}; exit 7", until_told(1));
    let id = case.start_spec_ready(&ServiceSpec { remove_on_exit: true, ..case.script(script)? }).await?;
    let tell = async {
        tokio::time::sleep(Duration::from_millis(200)).await; // so that the wait has begun
        case.tell(&id, 1).await
    };
    let (code, told) = tokio::join!(case.wait(&id), tell);
    told?;
    equal("what who waits is told", &code?, &7)?;
    is_gone(&case, &id).await
}

async fn stopped(case: Case) -> Verdict {
    let spec = ServiceSpec { remove_on_exit: true, ..case.spec(&Workload::idle())? };
    let id = case.start_spec_ready(&spec).await?;
    within("stop", 2 * case.soon(), case.runtime().stop_container(&id, case.soon()))
        .await?
        .or_fail("stop_container")?;
    is_gone(&case, &id).await?;
    case.runtime().create_container(&id, &spec).await.or_fail("create_container of the same id")
}

/// Its health, if it has a check.
async fn health(case: &Case, id: &ContainerId) -> Verdict<Option<String>> {
    let health = case.runtime().inspect_detailed(id).await.or_fail("inspect_detailed")?.health;
    Ok(health.map(|health| health.status).filter(|status| status != "none"))
}

async fn of_image(case: Case) -> Verdict {
    let image = configured(&case)?;
    if !image.has_healthcheck {
        return Err(Stop::Unsupported("the configured image has no health check".to_owned()));
    }
    let mut spec = case.spec(&Workload::idle())?;
    spec.image.name = image.reference;
    let checked = case.start_spec_ready(&spec).await?;
    case.until("the image's check is never told", || async { Ok(health(&case, &checked).await?.map(drop)) }).await?;
    spec.no_healthcheck = true;
    let unchecked = case.start_spec_ready(&spec).await?;
    equal("the health of one that wants none", &health(&case, &unchecked).await?, &None)
}
