//! A thousand containers that exit at once: none lost, none hung, no code and no line mixed up.

use std::sync::Arc;
use std::time::Instant;

use runtime_core::WaitReason;
use tokio::sync::Semaphore;

use crate::support::Case;
use crate::support::case::words;
use crate::support::pace::repetitions;

crate::tests![a_thousand_that_exit_at_once_are_each_told_right];

const MANY: usize = 1_000;
/// Created and started at once; each is some processes and mounts for the moment it lives. Fewer where the machine is slow:
/// a supervisor has 30 s to answer, and not more there.
const AT_ONCE: usize = 64;
const AT_ONCE_WHERE_SLOW: usize = 16;

async fn a_thousand_that_exit_at_once_are_each_told_right(case: Case) {
    let spec = case.spec(&[]).await;
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    let containers = repetitions(MANY, 100);
    let (permits, begin) = (Arc::new(Semaphore::new(repetitions(AT_ONCE, AT_ONCE_WHERE_SLOW))), Instant::now());
    let runs: Vec<_> = (0..containers)
        .map(|number| {
            let (case, mut spec, permits, id) = (case.clone(), spec.clone(), permits.clone(), case.id());
            let code = i32::try_from(number % 251).unwrap();
            spec.command.args = Some(words(&["sh", "-c", &format!("echo {number}; exit {code}")]));
            tokio::spawn(async move {
                let _permit = permits.acquire().await.unwrap();
                let run = async {
                    case.runtime.create_container(&id, &spec).await?;
                    case.runtime.start_container(&id).await?;
                    let outcome = case.runtime.wait_outcome(&id).await?;
                    let lines: Vec<String> =
                        case.runtime.get_logs(&id).await?.into_iter().map(|entry| entry.message).collect();
                    case.runtime.remove_container(&id).await?;
                    Ok::<_, runtime_core::AgentError>((outcome, lines))
                };
                let (outcome, lines) = run.await.map_err(|error| format!("{id}: {error}"))?;
                let told = (outcome.exit_code, outcome.reason, lines.as_slice());
                let right = (code, WaitReason::Exited, [number.to_string()].as_slice()) == told;
                if right { Ok(()) } else { Err(format!("{id}: {told:?} in place of code {code}")) }
            })
        })
        .collect();
    let mut failures: Vec<String> = Vec::new();
    for run in runs {
        failures.extend(run.await.unwrap().err());
    }
    let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {containers} went wrong:\n{shown}", failures.len());
    eprintln!("{containers} containers in {:.1} s", begin.elapsed().as_secs_f64());
}
