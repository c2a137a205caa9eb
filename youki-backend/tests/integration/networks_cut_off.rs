//! Agents that are killed between two steps of an attach: what the next one finds is whole or gone.
//!
//! A lock that the test holds keeps the agent from the step after. So each kill comes where it is meant to, however fast the
//! machine is.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use runtime_core::{ContainerId, Runtime};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use sha2::{Digest, Sha256};
use youki_backend::NetworkOptions;

use crate::networks::published;
use crate::networks_named::Place;
use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::case::{IDLE, eventually, shortly};
use crate::support::leftovers;
use crate::support::root::Root;
use crate::volumes::named;

crate::tests![killed_after_any_step_of_an_attach_it_leaves_no_lease_link_port_or_name];

const NETWORK: &str = "cut";
const VOLUME: &str = "cut";

/// What an attach has done last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// It has an address.
    Leased,
    /// It has a port of the host.
    Reserved,
    /// The port leads to it.
    Opened,
    /// It is called something.
    Named,
    /// There is an interface for it; that it is attached stands nowhere yet.
    Linked,
}

impl Step {
    /// The lock without which an agent does not come to the next one; nor, of the last but one, to the last.
    fn lock(self, root: &Root) -> PathBuf {
        match self {
            Self::Leased => root.run_dir.join("ports/.lock"),
            // Its volumes come between the two.
            Self::Reserved => root.dir.join("volumes/.locks").join(VOLUME),
            Self::Opened => root.run_dir.join("names/cut/.lock"),
            Self::Named | Self::Linked => root.run_dir.join("leases/cut/bridge.lock"),
        }
    }
}

/// What the host has of one container.
struct Traces<'a> {
    root: &'a Root,
    id: &'a ContainerId,
}

impl Traces<'_> {
    fn run_dir(&self) -> PathBuf {
        self.root.run_dir.join("containers").join(self.id.to_string())
    }

    /// The address of a file `ADDRESS@ID`.
    fn address_in(&self, dir: &str) -> Option<String> {
        let mut entries = std::fs::read_dir(self.root.run_dir.join(dir)).ok()?.flatten();
        let address = |name: &str| Some(name.strip_suffix(&format!("@{}", self.id))?.to_owned());
        entries.find_map(|entry| address(entry.file_name().to_str()?))
    }

    fn leased(&self) -> Option<String> {
        self.address_in("leases/cut")
    }

    fn is_reserved(&self) -> bool {
        self.root.run_dir.join("ports").join(self.id.to_string()).exists()
    }

    /// Whether a port leads to `address`.
    fn is_led_to(&self, address: &str) -> bool {
        let table = leftovers::table(self.root);
        let map = Command::new("nft").args(["list", "map", "inet", &table, "tcp4"]).output().unwrap();
        String::from_utf8_lossy(&map.stdout).contains(&format!(": {address} . 80"))
    }

    fn is_named(&self) -> bool {
        self.address_in("names/cut").is_some()
    }

    fn is_linked(&self) -> bool {
        let id = self.id.to_string();
        let digest =
            Sha256::new().chain_update(leftovers::table(self.root)).chain_update([0]).chain_update(id).finalize();
        let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Path::new("/sys/class/net").join(format!("bv{hex}")).exists()
    }

    /// The steps that are done, and not undone.
    fn steps(&self) -> Vec<Step> {
        let done = [
            (Step::Leased, self.leased().is_some()),
            (Step::Reserved, self.is_reserved()),
            (Step::Opened, self.leased().is_some_and(|address| self.is_led_to(&address))),
            (Step::Named, self.is_named()),
            (Step::Linked, self.is_linked()),
        ];
        done.into_iter().filter(|(_, done)| *done).map(|(step, _)| step).collect()
    }
}

fn taken(path: &Path) -> File {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    file.lock().unwrap();
    file
}

async fn killed_after_any_step_of_an_attach_it_leaves_no_lease_link_port_or_name(case: Case) {
    let place = Place::new(&case).await;
    place.network(NETWORK, NetworkOptions { subnets: vec![place.subnet(1)], ..NetworkOptions::default() }).await;
    place.runtime.pull_image(case.suite.busybox().await).await.unwrap();
    for step in [Step::Leased, Step::Reserved, Step::Opened, Step::Named, Step::Linked] {
        // The bridge is to be made, and is there; the supervisor is still building, or has built.
        for (is_new, is_built) in [(true, false), (false, true)] {
            if is_new {
                let _none_there = Command::new("ip").args(["link", "delete", &place.bridge(NETWORK)]).output();
            }
            kill_after(&case, &place, step, is_built && step >= Step::Opened).await;
        }
    }
    place.close(&[NETWORK]).await;
}

async fn kill_after(case: &Case, place: &Place, step: Step, is_built: bool) {
    let mut spec = place.spec(NETWORK, IDLE).await;
    spec.port_mappings = vec![published(None, 80, None)];
    spec.storage = vec![named(VOLUME, "/data")];
    let id = case.id_in(&place.root);
    let traces = Traces { root: &place.root, id: &id };
    let mut agent = Agent::start(&place.root, &[]).await;
    let lock = taken(&step.lock(&place.root));
    agent.send(&Request::CreateOnly { id: id.clone(), spec: Box::new(spec) }).await;
    let said = traces.run_dir().join("attached");
    let held = match step {
        Step::Linked => {
            eventually("it waits for the bridge", || async { traces.is_named() }).await;
            // Whoever is to write down that it is attached waits for a reader.
            mknodat(CWD, &said, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            drop(lock);
            None
        }
        _ => Some(lock),
    };
    eventually(&format!("{step:?}"), || async { traces.steps().contains(&step) }).await;
    if is_built {
        let created = place.root.dir.join("containers").join(id.to_string()).join("created");
        eventually("it is built", || async { created.exists() }).await;
    }
    // Its supervisor begins to tidy up as soon as the agent is gone.
    let (steps, address) = (traces.steps(), traces.leased().unwrap());
    agent.kill().await;
    assert_eq!(steps.last(), Some(&step), "killed elsewhere");
    if step == Step::Linked {
        assert!(std::fs::metadata(&said).is_ok_and(|metadata| !metadata.is_file()), "it says that it is attached");
        std::fs::remove_file(&said).unwrap();
    }
    drop(held);

    drop(place.root.open().await.unwrap());
    let begin = std::time::Instant::now();
    let is_there = loop {
        match place.runtime.start(&id).await {
            Ok(()) => break true,
            Err(youki_backend::Error::NoSuchContainer { .. }) => break false,
            // Its supervisor, which lost its agent while it was building, is still ending.
            Err(error) => assert!(begin.elapsed() < shortly(), "after {step:?}: {error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(is_there || !is_built, "what was built is gone after {step:?}");
    assert!(!is_there || step >= Step::Opened, "what had no record is there");
    if is_there {
        place.exec_ok(&id, "ip route | grep ^default").await;
        assert_eq!(traces.steps().last(), Some(&Step::Linked));
        assert_eq!(traces.steps().len(), 5, "{:?}", traces.steps());
        place.runtime.remove(&id, true).await.unwrap();
    }
    let nothing_is_left = || async { traces.steps().is_empty() && !traces.is_led_to(&address) };
    eventually(&format!("nothing is left of it after {step:?}"), nothing_is_left).await;
}
