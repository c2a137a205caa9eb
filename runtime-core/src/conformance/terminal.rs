//! Terminal, standard input and the tiny init.

use std::time::Duration;

use super::case::{Case, OrStop, Verdict, equal};
use super::{Check, check};
use crate::{ContainerState, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("terminal.tty", "a terminal when asked for, and none unless", tty),
        check!("terminal.stdin", "standard input stays open when asked for, and is at its end unless", stdin),
        check!("terminal.init", "with the tiny init orphans are reaped", init),
    ]
}

async fn tty(case: Case) -> Verdict {
    let script = "if [ -t 0 ] && [ -t 1 ] && [ -t 2 ]; then echo terminal; else echo none; fi";
    for (tty, wanted) in [(false, "none"), (true, "terminal")] {
        let spec = ServiceSpec { tty, ..case.script(script)? };
        let found = case.answer(&spec).await?;
        equal(&format!("what there is, asked {tty}"), &found.trim_end(), &wanted)?; // a terminal ends lines with \r\n
    }
    Ok(())
}

async fn stdin(case: Case) -> Verdict {
    let mut spec = case.script("echo ready; read -r line; echo ended")?;
    let closed = case.start_spec_ready(&spec).await?;
    case.line(&closed, "ended").await?;
    spec.stdin = true;
    let open = case.start_spec_ready(&spec).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let state = case.runtime().container_state(&open).await.or_fail("container_state")?;
    equal("the state of what reads from an open input", &state, &ContainerState::Running)
}

/// The number of zombies after an orphan has ended.
async fn zombies(case: &Case, init: bool) -> Verdict<String> {
    // `sleep` reaps nothing, so that an orphan that is its child stays a zombie.
    let spec = ServiceSpec { init, ..case.script("echo ready; (sleep 1 &); exec sleep 86400")? };
    let id = case.start_spec_ready(&spec).await?;
    let count = "n=0; for f in /proc/[0-9]*/stat; do read -r pid name state rest < $f 2>/dev/null; \
                 [ \"$state\" = Z ] && n=$((n+1)); state=; done; echo $n";
    tokio::time::sleep(Duration::from_millis(1500)).await;
    case.ask(&id, count).await
}

async fn init(case: Case) -> Verdict {
    let (without, with) = tokio::join!(zombies(&case, false), zombies(&case, true));
    equal("the number of zombies where nobody reaps", &without?.as_str(), &"1")?;
    equal("the number of zombies with an init", &with?.as_str(), &"0")
}
