//! Terminal, standard input and the tiny init.

use std::time::Duration;

use super::case::{Case, OrStop, Verdict, equal};
use super::{Check, Stop, check};
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

/// Waits until an orphan has become `wanted`: its state in `/proc`, or `gone`.
async fn orphan_becomes(case: &Case, init: bool, wanted: &str) -> Verdict {
    // `sleep` reaps nothing, so that an orphan that is its child stays a zombie.
    let script = "(sh -c 'echo orphan $$; exec sleep 1' &); echo ready; exec sleep 86400";
    let spec = ServiceSpec { init, ..case.script(script)? };
    let id = case.start_spec_ready(&spec).await?;
    let pid =
        case.logs(&id, 2).await?.iter().find_map(|entry| entry.message.strip_prefix("orphan ").map(str::to_owned));
    let pid = pid.ok_or_else(|| Stop::Failed("its child did not say that it runs".to_owned()))?;
    let ask = format!("state=gone; read -r pid name state rest 2>/dev/null < /proc/{pid}/stat; echo $state");
    case.until(&format!("what nobody waits for does not become {wanted:?}, with an init {init},"), || async {
        Ok((case.ask(&id, &ask).await? == wanted).then_some(()))
    })
    .await
}

async fn init(case: Case) -> Verdict {
    let (without, with) = tokio::join!(orphan_becomes(&case, false, "Z"), orphan_becomes(&case, true, "gone"));
    without.and(with)
}
