//! Several processes on one root: agents, and commands beside them. No update is lost, each is told the truth, and when
//! the keeper dies another process keeps.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use runtime_core::{ContainerId, ContainerState, EventKind, EventsOptions, WaitReason};

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::berth::berth;
use crate::support::case::{IDLE, eventually, start_on, words};
use crate::support::lanes::{self, Commands, Plan, Tally};
use crate::support::pace::repetitions;
use crate::support::root::Root;
use crate::volumes::spec;

crate::tests![a_thousand_operations_of_eight_processes_lose_nothing, another_process_keeps_when_the_keeper_is_killed];

/// Agents, each a process; beside each of the other lanes' operations a command comes and goes.
const AGENTS: u32 = 6;
const COMMAND_LANES: u32 = 2;
const OPERATIONS_PER_LANE: usize = 125;

async fn a_thousand_operations_of_eight_processes_lose_nothing(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await.to_owned();
    let runtime = root.open().await.unwrap();
    let steady = case.id_on(&runtime);
    start_on(&*runtime, &steady, &case.script(IDLE).await).await.unwrap();
    let shared: Vec<_> = (0..3).map(|_| case.id_on(&runtime)).collect();
    let seed = chrono::Utc::now().timestamp_micros().unsigned_abs();
    let per_lane = repetitions(OPERATIONS_PER_LANE, 25) as u32;
    let plan = |lane| Plan {
        lane,
        seed,
        operations: per_lane,
        image: image.clone(),
        steady: steady.clone(),
        shared: shared.clone(),
    };

    eprintln!("seed {seed}");
    let begin = Instant::now();
    let mut agents = Vec::new();
    for lane in 0..AGENTS {
        let mut agent = Agent::start(&root, &[]).await;
        agent.send(&Request::Lane { plan: Box::new(plan(lane)) }).await;
        agents.push(agent);
    }
    let commands = (AGENTS..AGENTS + COMMAND_LANES).map(|lane| {
        let (root, plan) = (root.clone(), plan(lane));
        tokio::spawn(async move { lanes::work(&Commands { root }, &plan).await })
    });
    let commands = futures_util::future::join_all(commands.collect::<Vec<_>>()).await;
    let mut tallies: Vec<Result<Tally, String>> = commands.into_iter().map(Result::unwrap).collect();
    for agent in &mut agents {
        tallies.push(agent.answer_as().await);
    }
    let tallies: Vec<Tally> =
        tallies.into_iter().map(|tally| tally.unwrap_or_else(|wrong| panic!("{wrong}"))).collect();
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let operations = sum(|tally| tally.operations);
    assert!(operations >= u64::from(per_lane * (AGENTS + COMMAND_LANES)), "{operations} operations");

    // What all of them did, added up, is what there is; to a process that saw nothing of it.
    drop(runtime);
    let runtime = root.open().await.unwrap();
    let lines = runtime.exec(&steady, &words(&["sh", "-c", "wc -l < /lines"])).await.unwrap().1;
    assert_eq!(lines.trim().parse(), Ok(sum(|tally| tally.lines)), "lines of all execs");
    let listed = runtime.list_containers().await.unwrap();
    let there: BTreeSet<_> = listed.iter().map(|one| one.id.clone()).collect();
    assert!(there.iter().all(|id| *id == steady || shared.contains(id)), "{there:?} were left");
    let alive = there.len() as u64 - 1;
    assert_eq!(sum(|tally| tally.created) - sum(|tally| tally.removed), alive, "creates that won less removals");
    let tags: BTreeSet<_> = tallies.iter().flat_map(|tally| tally.tags.iter().cloned()).collect();
    let listed = runtime.list_images().await.unwrap();
    let found: BTreeSet<_> = listed.into_iter().map(|image| image.reference).filter(|name| *name != image).collect();
    assert_eq!(found, tags, "the tags that were made and not removed");
    let events = runtime.events(&EventsOptions::default()).await.unwrap();
    let events: Vec<_> = futures_util::StreamExt::collect::<Vec<_>>(events).await;
    let told = |kind| events.iter().filter(|event| event.as_ref().unwrap().kind == kind).count() as u64;
    // Its own, beside the lanes'.
    assert_eq!(told(EventKind::Create), sum(|tally| tally.created) + 1, "creates that were told of");
    assert_eq!(told(EventKind::Remove), sum(|tally| tally.removed), "removals that were told of");
    let took = begin.elapsed();
    eprintln!("{operations} operations of {} processes in {:.1} s", AGENTS + COMMAND_LANES, took.as_secs_f64());
    for agent in agents {
        agent.kill().await;
    }
    assert_eq!(runtime.container_state(&steady).await.unwrap(), ContainerState::Running);
}

/// The process that holds the lock on `file`.
fn holder(file: &Path) -> Option<u32> {
    let inode = std::fs::metadata(file).ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    // `1: FLOCK ADVISORY WRITE 123 08:01:456 0 EOF`; who waits has `->` after the number.
    let of = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let held = fields.get(1) == Some(&"FLOCK") && fields.get(5)?.rsplit(':').next() == Some(inode.as_str());
        held.then(|| fields[4].parse().ok())?
    };
    locks.lines().find_map(of)
}

async fn another_process_keeps_when_the_keeper_is_killed(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let lock = root.run_dir.join("keeper.lock");
    let mut agents = Vec::new();
    for _ in 0..3 {
        agents.push(Agent::start(&root, &[]).await);
    }
    let image = case.suite.busybox().await;
    // A process that follows nothing, as the command does, starts what ends by itself.
    let observer = Root { keeper: false, ..root.clone() };
    let runtime = observer.open().await.unwrap();
    runtime.pull_image(image).await.unwrap();
    let mut before = None;
    while agents.len() > 1 {
        eventually("one of them keeps", || async { holder(&lock).is_some_and(|pid| Some(pid) != before) }).await;
        let keeper = holder(&lock).unwrap();
        let index = agents.iter().position(|agent| agent.pid() == keeper).expect("one of the agents keeps");
        agents.remove(index).kill().await;
        before = Some(keeper);
        let id = case.id_in(&root);
        let script = format!("echo {keeper} > /data/file");
        let words =
            ["run", "-d", "--network", "none", "-v", "data:/data", "--name", &id.service, image, "sh", "-c", &script];
        berth(&observer, &words).await.succeeded();
        assert_eq!(runtime.wait_outcome(&id).await.unwrap().reason, WaitReason::Exited);
        eventually("who keeps now has synced it", || async {
            let status = runtime.volume_status("data").await.unwrap();
            status.owner.is_none() && status.last_error.is_none() && status.durable_at.is_some()
        })
        .await;
        runtime.remove_container(&id).await.unwrap();
    }
    // What it synced is what was written.
    let (id, spec): (ContainerId, _) = (case.id_on(&runtime), spec(&case, "cat /data/file").await);
    drop(agents);
    runtime.create_container(&id, &spec).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let lines = crate::support::case::finish_on(&*runtime, &id).await.succeeded();
    assert_eq!(lines, [before.unwrap().to_string()]);
}
