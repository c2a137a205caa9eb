//! Address leases, one empty file each.
//!
//! ```text
//! <run>/leases/<network>/lock                   flock'ed by whoever changes anything here; the address given out last
//! <run>/leases/<network>/10.97.0.2@web-rep-0    container web-rep-0 has 10.97.0.2
//! ```
//! Making and removing an empty file is atomic, so a crash at any moment leaves leases or none; the lock goes with its
//! holder. Addresses are given out in turn: one just freed is the last to be used again, so that nobody's old
//! connections and neighbour entries meet a new container.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::definition::{DEFAULT_NETWORK, Definition, Place, subdirectories};
use super::names;
use crate::error::{Error, Result};
use crate::layout::hex;
use crate::lock::holder;

/// File that is locked by whoever changes leases.
pub(super) const LOCK: &str = "lock";

/// What a container has in a network. Kept in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// Which network.
    #[serde(default = "default_network")]
    pub network: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Bits of the network's part of it.
    pub prefix_len: u8,
    /// Where its default route goes: the bridge.
    pub gateway: Ipv4Addr,
    /// Its interface's hardware address.
    pub mac: Mac,
    /// The host's end of the veth pair.
    pub host_ifname: String,
    /// In a network with IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Lease6>,
}

/// The IPv6 part of a lease: the address of the same number in its subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease6 {
    /// Its address.
    pub ip: Ipv6Addr,
    /// Bits of the network's part of it.
    pub prefix_len: u8,
    /// Where its default route goes.
    pub gateway: Ipv6Addr,
}

fn default_network() -> String {
    DEFAULT_NETWORK.to_owned()
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Mac(pub [u8; 6]);

impl Mac {
    /// Made from the address: whoever has the address next has the same, so that no neighbour's entry is ever stale.
    /// The first byte says "locally administered, one station".
    pub(super) fn of(ip: Ipv4Addr) -> Self {
        let [a, b, c, d] = ip.octets();
        Self([0x02, 0xbe, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| format!("{text:?} is not a hardware address"))?;
        }
        if parts.next().is_some() {
            return Err(format!("{text:?} is not a hardware address"));
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

/// Leases an address of the network `name`, `wanted` if that is free.
pub(super) fn take(place: &Place, name: &str, id: &str, wanted: Option<Ipv4Addr>) -> Result<Lease> {
    if id.is_empty() || id.contains(['/', '\0']) {
        return Err(Error::invalid("id", format!("{id:?} cannot hold a lease")));
    }
    let name = place.find(name)?.name;
    let dir = place.leases(&name);
    let lock = lock(&dir, LOCK, FlockOperation::LockExclusive)?;
    // Only now: until the lock was had, it might have been removed, or made anew.
    let network = place.find(&name)?;
    let usable = |ip: Ipv4Addr| network.subnet.is_host(ip) && ip != network.gateway;
    let mut taken = HashSet::new();
    for (ip, holder) in list(&dir)? {
        // One outside the subnet, which was configured anew since, is of no use to it.
        if holder == id && usable(ip) {
            return Ok(lease(place, &network, id, ip));
        }
        taken.insert(ip);
    }
    let free = |ip: &Ipv4Addr| usable(*ip) && !taken.contains(ip);
    let ip = match wanted.filter(free) {
        Some(ip) => ip,
        None => {
            let ip = next_free(&network, &dir, &lock, free)?;
            // Only a hint, so it need not be whole after a crash.
            let text = format!("{ip:<15}\n");
            lock.write_at(text.as_bytes(), 0).map_err(Error::io("writing", &dir))?;
            ip
        }
    };
    let path = dir.join(format!("{ip}@{id}"));
    File::create_new(&path).map_err(Error::io("creating", &path))?;
    Ok(lease(place, &network, id, ip))
}

/// Makes a lease again that is gone, for who has its address all the same.
pub(super) fn hold_again(place: &Place, lease: &Lease, id: &str) -> Result<()> {
    let dir = place.leases(&lease.network);
    let _lock = lock(&dir, LOCK, FlockOperation::LockExclusive)?;
    match list(&dir)?.into_iter().find(|(ip, _)| *ip == lease.ip) {
        Some((_, holder)) if holder == id => Ok(()),
        Some((ip, holder)) => Err(Error::Network {
            network: lease.network.clone(),
            what: format!("{ip} is {id}'s and {holder}'s: one of them must be started again"),
            source: None,
        }),
        None => {
            let path = file(place, lease, id);
            File::create_new(&path).map(drop).map_err(Error::io("creating", &path))
        }
    }
}

fn next_free(network: &Definition, dir: &Path, lock: &File, free: impl Fn(&Ipv4Addr) -> bool) -> Result<Ipv4Addr> {
    let mut last = [0; 15];
    let len = lock.read_at(&mut last, 0).map_err(Error::io("reading", dir))?;
    let last = std::str::from_utf8(&last[..len]).unwrap_or_default().trim().parse().ok();
    let mut ip = last.unwrap_or(network.subnet.first());
    for _ in 0..network.subnet.hosts() {
        ip = network.subnet.next_host(ip);
        if free(&ip) {
            return Ok(ip);
        }
    }
    Err(Error::SubnetExhausted { network: network.name.clone(), subnet: network.subnet.to_string() })
}

/// Frees the leases, in every network, whose holder is `unwanted`; tells whose they were.
pub(super) fn free(place: &Place, unwanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut freed = Vec::new();
    for dir in subdirectories(&place.run.join("leases"))? {
        if !dir.is_dir() {
            continue;
        }
        let _lock = lock_within(&dir, LOCK, FlockOperation::LockExclusive, OPEN_PATIENCE)?;
        for (ip, id) in list(&dir)? {
            if unwanted(&id) {
                let path = dir.join(format!("{ip}@{id}"));
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", path)(e)),
                    _ => freed.push(id),
                }
            }
        }
    }
    Ok(freed)
}

/// Frees what `id` has in other networks than `name`. A create that was killed leaves a lease, and as long as there is an
/// `id` again nothing else would tell whose it was.
pub(super) fn free_elsewhere(place: &Place, name: &str, id: &str) -> Result<()> {
    for dir in subdirectories(&place.run.join("leases"))? {
        let Some(network) = dir.file_name().and_then(OsStr::to_str).filter(|network| *network != name) else {
            continue;
        };
        // A network that is removed meanwhile holds nothing.
        let Ok(held) = list(&dir) else { continue };
        for (ip, _) in held.into_iter().filter(|(_, holder)| holder == id) {
            let Ok(definition) = place.find(network) else { continue };
            give_back(place, &lease(place, &definition, id, ip), id)?;
        }
    }
    Ok(())
}

/// Frees one lease, and what an attach that came too late has told of it.
pub(super) fn give_back(place: &Place, lease: &Lease, id: &str) -> Result<()> {
    let path = file(place, lease, id);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", path)(e)),
        _ => names::leave(place, lease, id),
    }
}

/// Whether `id` has the lease still.
pub(super) fn is_held(place: &Place, lease: &Lease, id: &str) -> bool {
    file(place, lease, id).exists()
}

fn file(place: &Place, lease: &Lease, id: &str) -> PathBuf {
    place.leases(&lease.network).join(format!("{}@{id}", lease.ip))
}

pub(super) fn lease(place: &Place, network: &Definition, id: &str, ip: Ipv4Addr) -> Lease {
    let v6 = network.subnet6.zip(network.subnet.index(ip)).map(|(subnet, index)| Lease6 {
        ip: subnet.nth(index),
        prefix_len: subnet.prefix_len(),
        gateway: subnet.gateway(),
    });
    Lease {
        network: network.name.clone(),
        ip,
        prefix_len: network.subnet.prefix_len(),
        gateway: network.gateway,
        mac: Mac::of(ip),
        host_ifname: host_ifname(&place.table, id),
        v6,
    }
}

/// Of table and id, so that no other root, and no other container of this one, has the same. 48 bits of a digest:
/// among a million names two collide with a chance of 0.2 %, and then the second create fails.
pub(super) fn host_ifname(table: &str, id: &str) -> String {
    let digest = Sha256::new().chain_update(table).chain_update([0]).chain_update(id).finalize();
    format!("bv{}", &hex(&digest)[..12])
}

/// How long a lock is waited for: whoever has it needs milliseconds, unless it was stopped meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for who opens the root, and only tidies up after others.
pub(super) const OPEN_PATIENCE: Duration = Duration::from_secs(3);

/// Pauses between two looks at a lock that somebody has: the first one, doubled each time, and the longest.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// Takes the lock `name` in the lease directory; it is held as long as the file is open, or its holder lives. Blocks for a
/// minute at most.
pub(super) fn lock(dir: &Path, name: &str, how: FlockOperation) -> Result<File> {
    lock_within(dir, name, how, PATIENCE)
}

/// The same within `patience`.
pub(super) fn lock_within(dir: &Path, name: &str, how: FlockOperation, patience: Duration) -> Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("creating", dir))?;
    let path = dir.join(name);
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("opening", &path))?;
    let at_once = match how {
        FlockOperation::LockShared => FlockOperation::NonBlockingLockShared,
        _ => FlockOperation::NonBlockingLockExclusive,
    };
    let failed = |error| Error::io("locking", &path)(error);
    match flock(&file, at_once) {
        Ok(()) => return Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        Err(error) => return Err(failed(error.into())),
    }
    // Asked again and again: who waits in the kernel cannot be called off, and would keep its thread and its file for as
    // long as a holder is stopped.
    let begin = Instant::now();
    let mut pause = FIRST_PAUSE;
    while begin.elapsed() < patience {
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
        match flock(&file, at_once) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    Err(Error::Network {
        network: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        what: format!("{} has {}: waited {patience:?} for it", holder(&path), path.display()),
        source: None,
    })
}

/// All leases of a directory. What is not one (the lock) is passed over.
pub(super) fn list(dir: &Path) -> Result<Vec<(Ipv4Addr, String)>> {
    let mut leases = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let name = entry.map_err(Error::io("listing", dir))?.file_name();
        if let Some((ip, id)) = name.to_str().and_then(|name| name.split_once('@'))
            && let Ok(ip) = ip.parse()
        {
            leases.push((ip, id.to_owned()));
        }
    }
    Ok(leases)
}
