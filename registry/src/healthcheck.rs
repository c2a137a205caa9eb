//! HEALTHCHECK: docker's part of an image's configuration, which OCI's does not have.

use serde::{Deserialize, Serialize};

/// How an image wants to be checked. Times are nanoseconds, 0 where it names none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `NONE`; `CMD` and a program with its arguments; `CMD-SHELL` and a line for the shell.
    pub test: Vec<String>,
    /// Time between checks.
    pub interval: i64,
    /// Time a check may take.
    pub timeout: i64,
    /// Time after start in which failures do not count.
    pub start_period: i64,
    /// Failures in a row that make it unhealthy.
    pub retries: i64,
}

#[derive(Deserialize)]
struct Document {
    config: Option<Config>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    healthcheck: Option<Healthcheck>,
}

impl Healthcheck {
    /// That of a configuration. One that cannot be read is none: OCI allows anything there.
    pub(crate) fn parse(configuration: &[u8]) -> Option<Self> {
        let document: Document = serde_json::from_slice(configuration).ok()?;
        document.config?.healthcheck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_docker_writes_it() {
        let text = br#"{"os":"linux","config":{"Cmd":["x"],"Healthcheck":
            {"Test":["CMD-SHELL","curl -f localhost"],"Interval":5000000000,"StartInterval":1,"Retries":2}}}"#;
        let expected = Healthcheck {
            test: vec!["CMD-SHELL".into(), "curl -f localhost".into()],
            interval: 5_000_000_000,
            retries: 2,
            ..Healthcheck::default()
        };
        assert_eq!(Healthcheck::parse(text), Some(expected));
    }

    #[test]
    fn what_is_none_or_not_one_is_none() {
        for text in [
            "{}",
            r#"{"config":null}"#,
            r#"{"config":{}}"#,
            r#"{"config":{"Healthcheck":null}}"#,
            r#"{"config":{"Healthcheck":{"Test":"true"}}}"#,
            r#"{"config":{"Healthcheck":{"Test":["CMD"],"Interval":1e400}}}"#,
            "[",
        ] {
            assert_eq!(Healthcheck::parse(text.as_bytes()), None, "{text}");
        }
    }
}
