//! Several processes on one root: agents, and commands beside them. No update is lost, each is told the truth, and when
//! the keeper dies another process keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use runtime_core::{ContainerId, ContainerState, EventKind, EventsOptions, Runtime, WaitReason};
use youki_backend::YoukiRuntime;

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::berth::berth;
use crate::support::case::{IDLE, eventually, shortly, start_on, words};
use crate::support::image::{Image, LayerBuilder};
use crate::support::lanes::{self, Commands, Limit, NETWORK, Plan, Tally, VOLUME};
use crate::support::leftovers;
use crate::support::pace::repetitions;
use crate::support::root::Root;
use crate::support::share::Share;
use crate::volumes::spec;

crate::tests![a_thousand_operations_of_eight_processes_lose_nothing, another_process_keeps_when_the_keeper_is_killed];

/// Agents, each a process; beside each of the other lanes' operations a command comes and goes.
const AGENTS: u32 = 6;
const COMMAND_LANES: u32 = 2;
const OPERATIONS_PER_LANE: usize = 125;

async fn a_thousand_operations_of_eight_processes_lose_nothing(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await.to_owned();
    let layer = LayerBuilder::new().file("other", 0o644, b"other").finish();
    let other = case.push("other", &Image::busybox().layer(layer)).await;
    let runtime = YoukiRuntime::open(root.config()).await.unwrap();
    let steady = case.id_in(&root);
    start_on(&runtime, &steady, &case.script(IDLE).await).await.unwrap();
    runtime.pull_image(&other).await.unwrap();
    let archive = root.dir.join("archive.tar");
    let out = Box::new(std::fs::File::create(&archive).unwrap());
    runtime.save_images(std::slice::from_ref(&other), out).await.unwrap();
    let shared: Vec<_> = (0..3).map(|_| case.id_in(&root)).collect();
    let further = Share::further_subnet(&root.subnet, 0);
    let subnets = further.rsplit_once('.').unwrap().0;
    let seed = chrono::Utc::now().timestamp_micros().unsigned_abs();
    let per_lane = repetitions(OPERATIONS_PER_LANE, 25) as u32;
    let plan = |lane| Plan {
        lane,
        seed,
        operations: per_lane,
        image: image.clone(),
        other: other.clone(),
        archive: archive.clone(),
        subnet: format!("{subnets}.{}/28", lane * 16),
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
    let runtime = YoukiRuntime::open(root.config()).await.unwrap();
    let lines = runtime.exec(&steady, &words(&["sh", "-c", "wc -l < /lines"])).await.unwrap().1;
    assert_eq!(lines.trim().parse(), Ok(sum(|tally| tally.lines)), "lines of all execs");
    let listed = runtime.list_containers().await.unwrap();
    let there: BTreeSet<_> = listed.iter().map(|one| one.id.clone()).collect();
    assert!(there.iter().all(|id| *id == steady || shared.contains(id)), "{there:?} were left");
    let alive = there.len() as u64 - 1;
    assert_eq!(sum(|tally| tally.created) - sum(|tally| tally.removed), alive, "creates that won less removals");
    let tags: BTreeSet<_> = tallies.iter().flat_map(|tally| tally.tags.iter().cloned()).collect();
    let listed = runtime.list_images().await.unwrap();
    let found = listed.into_iter().map(|image| image.reference).filter(|name| *name != image && *name != other);
    assert_eq!(found.collect::<BTreeSet<_>>(), tags, "the tags that were made and not removed");
    let events = Runtime::events(&runtime, &EventsOptions::default()).await.unwrap();
    let events: Vec<_> = futures_util::StreamExt::collect::<Vec<_>>(events).await;
    let told = |kind| events.iter().filter(|event| event.as_ref().unwrap().kind == kind).count() as u64;
    // Its own, beside the lanes'.
    assert_eq!(told(EventKind::Create), sum(|tally| tally.created) + 1, "creates that were told of");
    assert_eq!(told(EventKind::Remove), sum(|tally| tally.removed), "removals that were told of");
    let wrote: BTreeSet<_> = tallies.iter().flat_map(|tally| tally.wrote.iter().cloned()).collect();
    let lines = std::fs::read_to_string(root.dir.join("volumes").join(VOLUME).join("data/lines")).unwrap_or_default();
    assert_eq!(lines.lines().map(str::to_owned).collect::<BTreeSet<_>>(), wrote, "lines in the volume");
    let resources = runtime.inspect(&steady).await.unwrap().spec.resources;
    for (kind, found) in [
        (Limit::Memory, resources.memory.map(|bytes| bytes.as_u64())),
        (Limit::Pids, resources.pids.map(|count| count as u64)),
    ] {
        let limits = tallies.iter().filter_map(|tally| tally.limit);
        let last: Vec<u64> = limits.filter(|(limit, _)| *limit == kind).map(|(_, value)| value).collect();
        assert!(
            found.map_or(last.is_empty(), |found| last.contains(&found)),
            "{kind:?}: {found:?}, set last: {last:?}"
        );
    }
    let answers = sum(|tally| tally.answers);
    assert!(answers > 0 && !wrote.is_empty());
    what_they_have_is_what_is_there(&root, &runtime, &there).await;
    let took = begin.elapsed();
    eprintln!(
        "{operations} operations of {} processes in {:.1} s, {answers} answers through ports",
        AGENTS + COMMAND_LANES,
        took.as_secs_f64()
    );
    for agent in agents {
        agent.kill().await;
    }
    assert_eq!(runtime.container_state(&steady).await.unwrap(), ContainerState::Running);
}

/// Addresses, ports, names and the volume are those of the containers that are there, and none is two's; so are the
/// interfaces at the bridge and what the firewall leads to them.
async fn what_they_have_is_what_is_there(root: &Root, runtime: &YoukiRuntime, there: &BTreeSet<ContainerId>) {
    let (mut leases, mut names, mut ports, mut users) =
        (BTreeSet::new(), BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
    let mut addresses = BTreeSet::new();
    for id in there {
        let one = runtime.inspect(id).await.unwrap();
        let lives = one.exit_code.is_none();
        if lives && one.mounts.iter().any(|mount| mount.name.as_deref() == Some(VOLUME)) {
            users.insert(id.to_string());
        }
        let Some(ip) = one.networks.first().and_then(|network| network.ipv4.clone()) else { continue };
        assert!(addresses.insert(ip.clone()), "{ip} is {id}'s and another's");
        leases.insert(format!("{NETWORK}/{ip}@{id}"));
        if lives {
            names.insert(format!("{NETWORK}/{ip}@{id}"));
            let port = one.ports[0].host_port.unwrap();
            let before = ports.insert(port, (id.to_string(), format!("{port} : {ip} . 80")));
            assert!(before.is_none(), "{port} is {id}'s and {before:?}'s");
        }
    }
    let holders: BTreeSet<String> = ports.values().map(|(id, _)| id.clone()).collect();
    let files = |dir: &Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|n| !n.starts_with('.')).collect()
    };
    let of_all_networks = |dir: &str| -> BTreeSet<String> {
        let dir = root.run_dir.join(dir);
        let networks = files(&dir).into_iter();
        let held = networks.flat_map(|net| files(&dir.join(&net)).into_iter().map(move |name| format!("{net}/{name}")));
        held.filter(|name| name.contains('@')).collect()
    };
    let led_to = || {
        let table = leftovers::table(root);
        let map = Command::new("nft").args(["list", "map", "inet", &table, "tcp4"]).output().unwrap();
        String::from_utf8_lossy(&map.stdout).into_owned()
    };
    let state = root.dir.join("volumes").join(VOLUME).join("state.json");
    // Who ended by himself loses what he has when a keeper sees that.
    let is_true = || async {
        let map = led_to();
        let leads =
            ports.values().all(|(_, element)| map.contains(element)) && map.matches(" . 80").count() == ports.len();
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
        let using = record["users"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        of_all_networks("leases") == leases
            && of_all_networks("names") == names
            && files(&root.run_dir.join("ports")) == holders
            && files(&Path::new("/sys/class/net").join(&root.bridge).join("brif")).len() == names.len()
            && using == users
            && leads
    };
    let begin = Instant::now();
    while !is_true().await {
        assert!(
            begin.elapsed() < shortly(),
            "leases {:?} in place of {leases:?}; names {:?} in place of {names:?}; ports {:?} in place of {ports:?}; the \
             volume is {users:?}'s: {}; {}",
            of_all_networks("leases"),
            of_all_networks("names"),
            files(&root.run_dir.join("ports")),
            std::fs::read_to_string(&state).unwrap(),
            led_to(),
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let networks: Vec<_> = runtime.networks().unwrap().into_iter().map(|network| network.name).collect();
    assert_eq!(networks, [NETWORK], "each lane removes its own");
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
