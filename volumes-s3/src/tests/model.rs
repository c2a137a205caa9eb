//! A model of the log: whatever happens to a volume on three hosts, in any order.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use runtime_core::{Progress, RecordKind, RestoreOptions};

use super::whole_trees::{describe, pretty};
use super::{Host, Memory};
use crate::Error;
use crate::log::Log;
use crate::record::Record;

/// What may happen to one volume on three hosts.
#[derive(Debug, Clone, Copy)]
enum Step {
    Acquire(usize),
    TakeOver(usize),
    Write(usize),
    Sync(usize),
    Release(usize),
    Prune(usize),
    /// A prune whose process ends after so many requests.
    PruneCut(usize, usize),
    RestoreOldest(usize),
    Away,
    Back,
    LoseAnswer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3usize).prop_map(Step::Acquire),
        2 => (0..3usize).prop_map(Step::TakeOver),
        4 => (0..3usize).prop_map(Step::Write),
        4 => (0..3usize).prop_map(Step::Sync),
        3 => (0..3usize).prop_map(Step::Release),
        3 => (0..3usize).prop_map(Step::Prune),
        2 => (0..3usize, 5..40usize).prop_map(|(host, requests)| Step::PruneCut(host, requests)),
        1 => (0..3usize).prop_map(Step::RestoreOldest),
        1 => Just(Step::Away),
        2 => Just(Step::Back),
        2 => Just(Step::LoseAnswer),
    ];
    prop::collection::vec(step, 1..30)
}

/// No two owners, no gap, no generation by who is not the owner.
pub(super) fn check_log(records: &[Record]) {
    let mut before: Option<&Record> = None;
    for record in records {
        if before.is_none() && record.record != 1 {
            // What was before a prune is gone.
            assert_eq!((record.kind, record.pruned), (RecordKind::Prune, Some(record.record)));
            before = Some(record);
            continue;
        }
        assert_eq!(record.record, before.map_or(1, |before| before.record + 1));
        assert_eq!(record.previous.as_ref(), before.map(|before| &before.nonce));
        let owner = before.and_then(|before| before.owner.clone());
        let epoch = before.map_or(0, |before| before.epoch);
        match record.kind {
            // One of the same epoch renews.
            RecordKind::Claim if record.epoch == epoch => {
                assert_eq!((&owner, record.owner.as_ref()), (&record.owner, Some(&record.host)));
            }
            RecordKind::Claim => assert_eq!((record.epoch, record.owner.as_ref()), (epoch + 1, Some(&record.host))),
            RecordKind::Data => {
                assert_eq!((owner.as_ref(), record.epoch), (Some(&record.host), epoch));
                assert_eq!(record.tree.as_ref().unwrap().parent, before.unwrap().generation);
                assert_eq!(record.generation, Some(record.record));
            }
            RecordKind::Released => assert_eq!((owner.as_ref(), &record.owner), (Some(&record.host), &None)),
            RecordKind::Prune => {
                assert_eq!((record.epoch, &record.owner), (epoch, &owner));
                assert!(owner.is_none() || owner.as_ref() == Some(&record.host), "pruned by who was not the owner");
            }
            _ => assert_eq!((record.epoch, &record.owner), (epoch, &owner)),
        }
        before = Some(record);
    }
}

async fn run(steps: Vec<Step>) {
    let memory = Arc::new(Memory::default());
    let hosts = [
        Host::keeping("a", &memory, 1).await,
        Host::keeping("b", &memory, 2).await,
        Host::keeping("c", &memory, 3).await,
    ];
    let log = Log::new(memory.clone(), "p/v/".into());
    let mut written = 0;
    for step in steps {
        match step {
            Step::Acquire(host) => drop(hosts[host].acquire().await),
            Step::TakeOver(host) => drop(hosts[host].take_over().await),
            Step::Release(host) => drop(hosts[host].store.release("v", "web").await.unwrap()),
            Step::Write(host) => {
                // Only what uses a volume writes to it.
                if !hosts[host].store.users("v").await.unwrap().is_empty() {
                    written += 1;
                    hosts[host].write(&format!("{written} by {host}")).await;
                }
            }
            Step::Sync(host) => {
                let synced = hosts[host].store.sync("v").await;
                let away = memory.away.swap(false, Ordering::SeqCst);
                let saved = match &synced {
                    Ok(status) => status.generation,
                    Err(Error::Fenced { branch, .. }) => *branch,
                    Err(_) => None,
                };
                if let Some(saved) = saved {
                    let to = hosts[host]._root.path().join(format!("check-{written}-{saved}"));
                    let options =
                        RestoreOptions { generation: Some(saved), to: Some(to.clone()), ..Default::default() };
                    if !to.exists() {
                        hosts[host].store.restore("v", options).await.unwrap();
                    }
                    pretty(&describe(&hosts[host].data().await), &describe(&to));
                }
                memory.away.store(away, Ordering::SeqCst);
            }
            Step::Prune(host) => drop(hosts[host].store.prune("v").await),
            Step::PruneCut(host, requests) => {
                memory.away_after.store(requests, Ordering::SeqCst);
                let cut = hosts[host].store.prune("v").await;
                if memory.away_after.swap(0, Ordering::SeqCst) == 0 && cut.is_err() {
                    memory.away.store(false, Ordering::SeqCst);
                }
            }
            Step::RestoreOldest(host) => {
                let history = hosts[host].store.history("v", false).await;
                let generation = history.ok().and_then(|history| history.first()?.generation);
                let options = RestoreOptions { generation, discard_local: true, ..Default::default() };
                drop(hosts[host].store.restore("v", options).await);
            }
            Step::Away => memory.away.store(true, Ordering::SeqCst),
            Step::Back => memory.away.store(false, Ordering::SeqCst),
            Step::LoseAnswer => memory.lose_answer.store(true, Ordering::SeqCst),
        }
        let away = memory.away.swap(false, Ordering::SeqCst);
        check_log(&log.all().await.unwrap());
        // Whatever the history still tells of can be restored.
        if let Ok(report) = hosts[0].store.verify("v", None, Progress::default()).await {
            assert_eq!(report.damaged, []);
        }
        memory.away.store(away, Ordering::SeqCst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_log_has_one_owner_and_holds_what_was_promised(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        runtime.block_on(run(steps));
    }
}

/// Found by the test above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_what_retention_let_go_is_not_said_to_be_in_s3() {
    use Step::{Acquire, Prune, Release, RestoreOldest, Sync, TakeOver, Write};
    run(vec![Acquire(1), Sync(1), RestoreOldest(2), TakeOver(0), Write(0), Release(0), Prune(0), Sync(2)]).await;
}
