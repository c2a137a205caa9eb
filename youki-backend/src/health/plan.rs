//! Which check a container has: its spec's, else its image's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use runtime_core::ServiceSpec;
use runtime_core::spec::{DEFAULT_INTERVAL, DEFAULT_RETRIES, DEFAULT_TIMEOUT, HealthCheck, HealthSpec};
use url::{Host, Url};

use crate::bundle;
use crate::error::{Error, Result};
use crate::record::ContainerRecord;

/// The least that docker takes.
const LEAST: Duration = Duration::from_millis(1);
/// How often an image may have its check made, at most: the host pays for it, and all events share one journal.
const LEAST_OF_AN_IMAGE: Duration = Duration::from_millis(100);

/// What an answer in HTTP can have.
const STATUSES: std::ops::RangeInclusive<u16> = 100..=999;

/// The check of a container; `None` if it has none.
pub(super) fn plan(record: &ContainerRecord) -> Option<HealthSpec> {
    match &record.spec.health {
        Some(own) => Some(own.clone()),
        None if record.spec.no_healthcheck => None,
        None => record.image.healthcheck.as_ref().and_then(of_image),
    }
}

/// What an image asks for, with docker's values for what it leaves out.
fn of_image(image: &registry::Healthcheck) -> Option<HealthSpec> {
    let (kind, rest) = image.test.split_first()?;
    let command = match kind.as_str() {
        "CMD" if !rest.is_empty() => rest.to_vec(),
        "CMD-SHELL" => vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.first()?.clone()],
        _ => return None,
    };
    let or = |nanos: i64, default| match u64::try_from(nanos) {
        Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos),
        _ => default,
    };
    Some(HealthSpec {
        check: HealthCheck::Command { command },
        start_grace: or(image.start_period, Duration::ZERO),
        interval: or(image.interval, DEFAULT_INTERVAL).max(LEAST_OF_AN_IMAGE),
        timeout: or(image.timeout, DEFAULT_TIMEOUT).max(LEAST),
        retries: u32::try_from(image.retries).ok().filter(|retries| *retries > 0).unwrap_or(DEFAULT_RETRIES),
    })
}

/// Refuses a check that could not be tried.
pub(crate) fn check(spec: &ServiceSpec) -> Result<()> {
    let Some(health) = &spec.health else { return Ok(()) };
    let invalid = |field: &str, reason: &str| Err(Error::invalid(format!("health.{field}"), reason));
    if spec.no_healthcheck {
        return Err(Error::invalid("no_healthcheck", "there is a health check as well"));
    }
    for (field, time) in [("interval", health.interval), ("timeout", health.timeout)] {
        if time < LEAST {
            return invalid(field, "it is less than 1 ms");
        }
    }
    if health.retries == 0 {
        return invalid("retries", "it is 0");
    }
    match &health.check {
        HealthCheck::Command { command } => bundle::check_line("health.check.command", command),
        HealthCheck::Tcp { port: 0 } => invalid("check.port", "it is 0"),
        HealthCheck::Tcp { .. } => Ok(()),
        HealthCheck::Http { expect_status: Some(status), .. } if !STATUSES.contains(status) => {
            invalid("check.expect_status", "a status has three digits, and begins with no 0")
        }
        HealthCheck::Http { url, .. } => target(url).map(drop),
    }
}

/// A URL, and the address that it names within the container's network.
pub(super) fn target(text: &str) -> Result<(Url, SocketAddr)> {
    let invalid = |reason: String| Error::invalid("health.check.url", format!("{text:?}: {reason}"));
    let url = Url::parse(text).map_err(|error| invalid(error.to_string()))?;
    match url.scheme() {
        "http" => {}
        "https" => return Err(Error::Unsupported { what: "health.check.url with https".to_owned() }),
        other => return Err(invalid(format!("its scheme is {other}, not http"))),
    }
    let ip = match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip),
        Some(Host::Domain("localhost")) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        _ => {
            return Err(invalid(
                "write an address or localhost: it is asked within the container's network".to_owned(),
            ));
        }
    };
    let port = url.port_or_known_default().unwrap_or(80);
    Ok((url, SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(test: &[&str]) -> registry::Healthcheck {
        let test = test.iter().map(|word| (*word).to_owned()).collect();
        registry::Healthcheck { test, ..registry::Healthcheck::default() }
    }

    #[test]
    fn an_images_check_is_dockers() {
        let command = |test: &[&str]| match of_image(&image(test))?.check {
            HealthCheck::Command { command } => Some(command.join(" ")),
            other => panic!("{other:?}"),
        };
        assert_eq!(command(&["CMD", "curl", "-f"]).as_deref(), Some("curl -f"));
        assert_eq!(command(&["CMD-SHELL", "exit 1"]).as_deref(), Some("/bin/sh -c exit 1"));
        for none in [&["NONE"][..], &[], &["CMD"], &["CMD-SHELL"], &["curl"]] {
            assert_eq!(command(none), None, "{none:?}");
        }
        let plan = of_image(&registry::Healthcheck { interval: -5, retries: -1, timeout: 7, ..image(&["CMD", "x"]) });
        let plan = plan.unwrap();
        assert_eq!((plan.interval, plan.timeout), (DEFAULT_INTERVAL, LEAST));
        let often = of_image(&registry::Healthcheck { interval: 1, ..image(&["CMD", "x"]) }).unwrap();
        assert_eq!(often.interval, LEAST_OF_AN_IMAGE);
        assert_eq!((plan.retries, plan.start_grace), (DEFAULT_RETRIES, Duration::ZERO));
    }

    #[test]
    fn a_check_that_could_not_be_tried_is_refused_by_its_field() {
        let spec = |check| {
            let (start_grace, interval, timeout) = (Duration::ZERO, Duration::from_secs(1), Duration::from_secs(1));
            let health = HealthSpec { check, start_grace, interval, timeout, retries: 1 };
            ServiceSpec { health: Some(health), ..ServiceSpec::new("x") }
        };
        let http = |url: &str| spec(HealthCheck::Http { url: url.to_owned(), expect_status: None });
        for url in ["http://127.0.0.1:80/", "http://localhost/x?y", "http://[::1]:8080"] {
            check(&http(url)).unwrap_or_else(|error| panic!("{url}: {error}"));
        }
        let mut slow = spec(HealthCheck::Tcp { port: 1 });
        slow.health.as_mut().unwrap().interval = Duration::ZERO;
        for (spec, field) in [
            (spec(HealthCheck::Tcp { port: 0 }), "health.check.port"),
            (spec(HealthCheck::Command { command: vec![] }), "health.check.command"),
            (spec(HealthCheck::Command { command: vec!["sh".into(), "a\0b".into()] }), "health.check.command"),
            (
                spec(HealthCheck::Http { url: "http://localhost".into(), expect_status: Some(7) }),
                "health.check.expect_status",
            ),
            (slow, "health.interval"),
            (http("ftp://127.0.0.1/"), "health.check.url"),
            (http("http://example.org/"), "health.check.url"),
            (http("/x"), "health.check.url"),
        ] {
            let error = check(&spec).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        assert_eq!(check(&http("https://127.0.0.1/")).unwrap_err().code(), "unsupported.here");
    }
}
