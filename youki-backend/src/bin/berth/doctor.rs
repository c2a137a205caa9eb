//! `doctor`: whether this host can run containers, one line for each thing that must be so.

mod host;

use serde::Serialize;
use youki_backend::{Config, YoukiRuntime};

use crate::failure::{Failure, Result};
use crate::output::{self, Table};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Containers run, but not all of Berth works.
    Warn,
    /// Containers do not run.
    Fail,
}

/// One check.
#[derive(Debug, Serialize)]
pub struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { name, verdict, detail: detail.into() }
    }

    /// Ok with what was found, or `otherwise` with what went wrong.
    fn from(name: &'static str, otherwise: Verdict, found: std::result::Result<String, String>) -> Self {
        match found {
            Ok(detail) => Self::new(name, Verdict::Ok, detail),
            Err(detail) => Self::new(name, otherwise, detail),
        }
    }
}

/// `berth doctor`
pub async fn doctor(config: Config, json: bool) -> Result<i32> {
    let of_host = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || host::checks(&config)).await
    };
    let mut checks = of_host.map_err(|error| Failure::io("checking", "the host", &std::io::Error::other(error)))?;
    checks.extend(of_root(config).await);
    if json {
        output::print_json(&checks)?;
    } else {
        let mut table = Table::new(["CHECK", "RESULT", "DETAIL"]);
        for check in &checks {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "fail",
            };
            table.row([check.name.to_owned(), verdict.to_owned(), check.detail.clone()]);
        }
        output::print(&table.render())?;
    }
    Ok(i32::from(checks.iter().any(|check| check.verdict == Verdict::Fail)))
}

/// What needs the root opened: that it opens, and that S3 is to be trusted.
async fn of_root(config: Config) -> Vec<Check> {
    let s3 = config.s3.clone();
    let runtime = match YoukiRuntime::open(config).await {
        Ok(runtime) => runtime,
        Err(error) => return vec![Check::new("open", Verdict::Fail, error.chain())],
    };
    let opened = match runtime.inspect_all().await {
        Ok(all) => Check::new("open", Verdict::Ok, format!("{} containers", all.len())),
        Err(error) => Check::new("open", Verdict::Fail, error.chain()),
    };
    let Some(s3) = s3 else {
        return vec![
            opened,
            Check::new("s3", Verdict::Warn, "no bucket is configured: named volumes stay on this host"),
        ];
    };
    let checked = match runtime.volumes().check_server().await {
        Ok(check) if check.winners == 1 => {
            let found = format!("{}: one of {} writers won a put-if-absent", check.location, check.writers);
            Check::new("s3", Verdict::Ok, found)
        }
        Ok(check) => {
            let found =
                format!("{}: {} of {} writers won one put-if-absent", check.location, check.winners, check.writers);
            let (verdict, permitted) =
                if s3.allow_racy_put { (Verdict::Warn, ", which allow_racy_put permits") } else { (Verdict::Fail, "") };
            Check::new("s3", verdict, format!("{found}{permitted}"))
        }
        Err(error) => Check::new("s3", Verdict::Fail, Failure::from(error).text()),
    };
    vec![opened, checked]
}
