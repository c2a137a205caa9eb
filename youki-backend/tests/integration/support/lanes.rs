//! A lane of operations on a root that others work on, too: by the trait, or by the `berth` command. Each outcome is
//! judged at once; what must add up over all lanes is counted.

mod hands;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use runtime_core::ContainerId;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::case::{IDLE, shortly};
pub use hands::{Api, Commands, Hands, Outcome, Wanted};

/// A volume that containers of all lanes have.
pub const VOLUME: &str = "shared";
/// The network that a third of the containers are on.
pub const NETWORK: &str = "bridge";

/// What a lane is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub lane: u32,
    pub seed: u64,
    pub operations: u32,
    pub image: String,
    /// Pruned wherever no container has it.
    pub other: String,
    /// An archive of that one.
    pub archive: PathBuf,
    /// Of the lane's own network.
    pub subnet: String,
    /// Runs all the time, and is only executed in.
    pub steady: ContainerId,
    /// All lanes create, start, stop and remove these.
    pub shared: Vec<ContainerId>,
}

/// What it did that counts for all.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    pub operations: u64,
    pub created: u64,
    pub removed: u64,
    /// Lines that its execs wrote in the steady container.
    pub lines: u64,
    /// Tags that it made and left.
    pub tags: BTreeSet<String>,
    /// Containers that wrote a line to the shared volume.
    pub wrote: BTreeSet<String>,
    /// Answers that it had through a published port.
    pub answers: u64,
    /// What it has set its limit of the steady container to, last.
    pub limit: Option<(Limit, u64)>,
}

/// A limit that every other lane sets again and again, and none of the rest may take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    Memory,
    Pids,
}

/// Does what `plan` says; the first outcome that cannot be ends it.
pub async fn work(hands: &dyn Hands, plan: &Plan) -> Result<Tally, String> {
    let mut lane =
        Lane { hands, plan, tally: Tally::default(), random: plan.seed.wrapping_add(u64::from(plan.lane)), own: 0 };
    while lane.tally.operations < u64::from(plan.operations) {
        lane.step().await.map_err(|wrong| format!("lane {}, {} done: {wrong}", plan.lane, lane.tally.operations))?;
    }
    Ok(lane.tally)
}

struct Lane<'a> {
    hands: &'a dyn Hands,
    plan: &'a Plan,
    tally: Tally,
    random: u64,
    own: u32,
}

impl Lane<'_> {
    async fn step(&mut self) -> Result<(), String> {
        let (hands, plan) = (self.hands, self.plan);
        let shared = &plan.shared[self.random(plan.shared.len())];
        match self.random(19) {
            0 => {
                let network = (self.random(3) == 0).then_some(NETWORK);
                self.whole_run(network).await
            }
            1 | 2 => {
                let said = self.judge("exec", hands.exec(&plan.steady, "echo x >> /lines; echo said").await, &[])?;
                self.tally.lines += 1;
                expect("exec", &said, "0 said\n")
            }
            3 => {
                let names = self.judge("list", hands.list().await, &[])?;
                let steady = plan.steady.to_string();
                if names.lines().any(|name| name == steady) { Ok(()) } else { Err(format!("{steady} not in {names}")) }
            }
            4 => {
                let state = self.judge("inspect", hands.inspect(&plan.steady).await, &[])?;
                expect("inspect", &state, "running")
            }
            5 => self.judge("inspect", hands.inspect(shared).await, &["container.not_found"]).map(drop),
            6 => {
                self.own += 1;
                let name = format!("{}-{}-{}", plan.image, plan.lane, self.own);
                self.judge("tag", hands.tag(&plan.image, &name).await, &[])?;
                self.tally.tags.insert(name);
                Ok(())
            }
            7 => match self.tally.tags.pop_first() {
                Some(name) => self.judge("rmi", hands.untag(&name).await, &[]).map(drop),
                None => Ok(()),
            },
            8 => {
                let wanted = Wanted {
                    image: plan.image.clone(),
                    script: IDLE.to_owned(),
                    network: (self.random(3) == 0).then(|| NETWORK.to_owned()),
                    volume: (self.random(3) == 0).then(|| VOLUME.to_owned()),
                };
                let created = hands.create(shared, &wanted).await;
                self.tally.created += u64::from(created.is_ok());
                self.judge("create", created, &["container.exists"]).map(drop)
            }
            9 => self.judge("start", hands.start(shared).await, &["container.not_found"]).map(drop),
            10 => self.judge("stop", hands.stop(shared).await, &["container.not_found"]).map(drop),
            11 | 12 => {
                let removed = hands.remove(shared).await;
                self.tally.removed += u64::from(removed.is_ok());
                self.judge("remove", removed, &["container.not_found"]).map(drop)
            }
            13 => {
                let image = if self.random(2) == 0 { &plan.image } else { &plan.other };
                self.judge("pull", hands.pull(image).await, &[]).map(drop)
            }
            14 => self.judge("prune", hands.prune().await, &[]).map(drop),
            15 => {
                self.own += 1;
                let number = u64::from(plan.lane * 1000 + self.own);
                let (limit, value) = match plan.lane % 2 {
                    0 => (Limit::Memory, (1 << 30) + (number << 12)),
                    _ => (Limit::Pids, 1000 + number),
                };
                self.judge("update", hands.update(&plan.steady, limit, value).await, &[])?;
                self.tally.limit = Some((limit, value));
                Ok(())
            }
            16 => self.judge("load", hands.load(&plan.archive).await, &[]).map(drop),
            17 => self.paused_and_killed().await,
            _ => self.on_a_network_of_its_own().await,
        }
    }

    /// A container that is the lane's own does nothing while it is paused, and ends by what kills it.
    async fn paused_and_killed(&mut self) -> Result<(), String> {
        self.own += 1;
        let (hands, plan) = (self.hands, self.plan);
        let id = ContainerId::new(format!("killed-{}-{}", plan.lane, self.own), 0);
        let (network, volume) = (None, None);
        let wanted = Wanted { image: plan.image.clone(), script: IDLE.to_owned(), network, volume };
        self.judge("create", hands.create(&id, &wanted).await, &[])?;
        self.tally.created += 1;
        self.judge("start", hands.start(&id).await, &[])?;
        self.judge("pause", hands.pause(&id).await, &[])?;
        if let Ok(said) = hands.exec(&id, "echo said").await
            && said.starts_with('0')
        {
            return Err(format!("an exec while it is paused: {said}"));
        }
        self.judge("unpause", hands.unpause(&id).await, &[])?;
        self.judge("kill", hands.kill(&id).await, &[])?;
        let ended = self.judge("wait", hands.wait(&id).await, &[])?;
        expect("wait", ended.trim(), "137")?;
        self.judge("remove", hands.remove(&id).await, &[])?;
        self.tally.removed += 1;
        Ok(())
    }

    /// Of a container that is the lane's own. One on a network answers through its port: were that, or its address,
    /// another's as well, another might.
    async fn whole_run(&mut self, network: Option<&str>) -> Result<(), String> {
        self.own += 1;
        let (hands, code) = (self.hands, self.own % 250);
        let id = ContainerId::new(format!("own-{}-{}", self.plan.lane, self.own), 0);
        let image = if self.random(3) == 0 { &self.plan.other } else { &self.plan.image };
        let volume = (self.random(3) == 0).then(|| VOLUME.to_owned());
        let mut script = format!("echo {id}; exit {code}");
        if network.is_some() {
            script = format!("echo {id} | nc -l -p 80; {script}");
        }
        if volume.is_some() {
            script = format!("echo {id} >> /data/lines; {script}");
            self.tally.wrote.insert(id.to_string());
        }
        let wanted = Wanted { image: image.clone(), script, network: network.map(str::to_owned), volume };
        self.judge("create", hands.create(&id, &wanted).await, &[])?;
        self.tally.created += 1;
        self.judge("start", hands.start(&id).await, &[])?;
        if network.is_some() {
            let port = self.judge("port", hands.port(&id).await, &[])?;
            expect("an answer", &answer_at(&port).await?, &format!("{id}\n"))?;
            self.tally.answers += 1;
        }
        let ended = self.judge("wait", hands.wait(&id).await, &[])?;
        expect("wait", ended.trim(), &code.to_string())?;
        let logged = self.judge("logs", hands.logs(&id).await, &[])?;
        expect("logs", logged.trim(), &id.to_string())?;
        self.judge("remove", hands.remove(&id).await, &[])?;
        self.tally.removed += 1;
        Ok(())
    }

    async fn on_a_network_of_its_own(&mut self) -> Result<(), String> {
        let (hands, name) = (self.hands, format!("lane-{}", self.plan.lane));
        self.judge("network create", hands.make_network(&name, &self.plan.subnet).await, &[])?;
        self.whole_run(Some(&name)).await?;
        let begin = Instant::now();
        loop {
            match hands.remove_network(&name).await {
                // The last interface goes with the end of its namespace.
                Err((code, _)) if code == "network.in_use" && begin.elapsed() < shortly() => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                removed => return self.judge("network rm", removed, &[]).map(drop),
            }
        }
    }

    /// Ok, or an error that the others' work explains.
    fn judge(&mut self, what: &str, outcome: Outcome, explained: &[&str]) -> Result<String, String> {
        self.tally.operations += 1;
        match outcome {
            Ok(text) => Ok(text),
            Err((code, _)) if explained.contains(&code.as_str()) => Ok(String::new()),
            Err((code, message)) => Err(format!("{what}: {message} [{code}]")),
        }
    }

    /// Less than `below`; Knuth's MMIX generator.
    fn random(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % below
    }
}

fn expect(what: &str, found: &str, wanted: &str) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?} in place of {wanted:?}")) }
}

/// What whoever listens behind a port of the host has to say, once he does.
async fn answer_at(port: &str) -> Result<String, String> {
    let begin = Instant::now();
    let mut last = String::new();
    while begin.elapsed() < shortly() {
        let mut said = String::new();
        let ask = async { TcpStream::connect(format!("127.0.0.1:{port}")).await?.read_to_string(&mut said).await };
        match tokio::time::timeout(shortly(), ask).await {
            Ok(Ok(1..)) => return Ok(said),
            other => last = format!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("no answer at port {port:?}: {last}"))
}
