//! Names of the other containers of a network, in each container's `/etc/hosts`.
//!
//! ```text
//! <run>/names/<network>/.lock                  flock'ed by whoever changes hosts files; what they were last made from
//! <run>/names/<network>/10.97.0.2@web-rep-0    container web-rep-0 runs, or is about to, and is called what stands here
//! ```
//! The names stand in a part of the file with a mark at either end; whatever else a container wrote there stays. The
//! file is bound into the container, so it is written in place: first at its former length at least, then cut, so that
//! whoever reads it meanwhile finds the old names or the new ones. Where many containers come at once, the first writes
//! for all that have come.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirEntryExt, FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::definition::{Place, subdirectories};
use super::{Lease, lease};
use crate::error::{Error, Result};
use crate::layout::hex;
use crate::record;

const LOCK: &str = ".lock";
const BEGIN: &str = "# Other containers of this network, kept up to date by Berth:";
const END: &str = "# (until here)";
/// Largest hosts file that is rewritten: nobody's is near it.
const MAX_HOSTS_BYTES: u64 = 1 << 20;

/// A container that can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    ip: Ipv4Addr,
    ip6: Option<Ipv6Addr>,
    names: Vec<String>,
}

/// Tells a network's containers, this one among them, what it is called. An error if its address was given back: who
/// attached it comes too late, and nobody would take the name away again.
pub(super) fn join(place: &Place, lease: &Lease, id: &str, names: &[String]) -> Result<()> {
    let dir = place.names(&lease.network);
    let lock = lease::lock(&dir, LOCK, FlockOperation::LockExclusive)?;
    let path = dir.join(format!("{}@{id}", lease.ip));
    let member = Member { ip: lease.ip, ip6: lease.v6.as_ref().map(|v6| v6.ip), names: names.to_vec() };
    // A file of its own for each attempt: its hosts file was made anew, too.
    record::write(&path, &member)?;
    // Now: whoever gives the address back looks for that file afterwards.
    if !lease::is_held(place, lease, id) {
        let _ = fs::remove_file(&path);
        return Err(Error::Network {
            network: lease.network.clone(),
            what: format!("{id} gave {} back before it was attached", lease.ip),
            source: None,
        });
    }
    spread(place, &lease.network, &lock)
}

/// Tells the others of a network that a container is reached no more.
pub(super) fn leave(place: &Place, lease: &Lease, id: &str) -> Result<()> {
    let dir = place.names(&lease.network);
    let path = dir.join(format!("{}@{id}", lease.ip));
    match fs::remove_file(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("removing", path)(e)),
        Ok(()) => {
            let lock = lease::lock(&dir, LOCK, FlockOperation::LockExclusive)?;
            spread(place, &lease.network, &lock)
        }
    }
}

/// Forgets containers that are not `known`.
pub(super) fn reconcile(place: &Place, known: &dyn Fn(&str) -> bool) -> Result<()> {
    for dir in subdirectories(&place.run.join("names"))? {
        let lock = lease::lock_within(&dir, LOCK, FlockOperation::LockExclusive, lease::OPEN_PATIENCE)?;
        record::remove_temporaries(&dir)?;
        let mut gone = false;
        for (path, holder, _) in list(&dir)? {
            if !known(&holder) {
                gone = true;
                let _ = fs::remove_file(path);
            }
        }
        if gone && let Some(network) = dir.file_name().and_then(|name| name.to_str()) {
            spread(place, network, &lock)?;
        }
    }
    Ok(())
}

/// Writes the hosts files of all members, unless they were made from the same ones. The lock is held.
fn spread(place: &Place, network: &str, lock: &fs::File) -> Result<()> {
    let dir = place.names(network);
    let mut members = list(&dir)?;
    members.sort();
    let digest = members
        .iter()
        .fold(Sha256::new(), |digest, (path, _, inode)| {
            digest.chain_update(path.as_os_str().as_encoded_bytes()).chain_update(inode.to_ne_bytes())
        })
        .finalize();
    let digest = hex(&digest);
    let mut last = vec![0; digest.len()];
    if lock.read_at(&mut last, 0).is_ok_and(|len| len == digest.len()) && last == digest.as_bytes() {
        return Ok(());
    }
    let mut lines = Vec::with_capacity(members.len());
    for (path, holder, _) in members {
        // One that left a moment ago: the next to come here writes again.
        if let Some(member) = record::read_intact::<Member>(&path)? {
            lines.push((holder, line(&member)));
        }
    }
    let mut all_have_it = true;
    // Whoever is killed on the way, or cannot write one of them, leaves it to the next who comes here.
    lock.set_len(0).map_err(Error::io("writing", dir.join(LOCK)))?;
    for (holder, _) in &lines {
        let others: String = lines.iter().filter(|(other, _)| other != holder).map(|(_, line)| line.as_str()).collect();
        let path = place.containers.join(holder).join("etc/hosts");
        match rewrite(&path, &others) {
            // It is being removed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "names of other containers cannot be written");
                // That one is the container's own doing, and stays so.
                all_have_it &= e.kind() == io::ErrorKind::FileTooLarge;
            }
            Ok(()) => {}
        }
    }
    if !all_have_it {
        // The next to come here tries again.
        return Ok(());
    }
    lock.write_at(digest.as_bytes(), 0).map_err(Error::io("writing", dir.join(LOCK)))?;
    Ok(())
}

fn line(member: &Member) -> String {
    let names = member.names.join(" ");
    let mut text = format!("{}\t{names}\n", member.ip);
    if let Some(ip6) = member.ip6 {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{ip6}\t{names}");
    }
    text
}

/// Path, container and inode of each member.
fn list(dir: &Path) -> Result<Vec<(std::path::PathBuf, String, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let entry = entry.map_err(Error::io("listing", dir))?;
        let name = entry.file_name();
        if let Some((ip, holder)) = name.to_str().and_then(|name| name.split_once('@'))
            && ip.parse::<Ipv4Addr>().is_ok()
            && !record::is_temporary(holder)
        {
            found.push((entry.path(), holder.to_owned(), entry.ino()));
        }
    }
    Ok(found)
}

fn rewrite(path: &Path, others: &str) -> io::Result<()> {
    // The container may write to the file but, since it is a mount point there, put nothing in its place. A lease that it
    // holds on the file would keep us for `fs.lease-break-time`, again and again: not waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    (&mut file).take(MAX_HOSTS_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_HOSTS_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    let mut new = replaced(&bytes, others);
    if new == bytes {
        return Ok(());
    }
    let length = new.len();
    if length > bytes.len() {
        // Where there is no room for all, what stands there stays whole: half a mark would leave the names for ever.
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, length as u64) {
            // Not every filesystem can.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    new.resize(length.max(bytes.len()), b'\n');
    file.write_all_at(&new, 0)?;
    file.set_len(length as u64)
}

/// `old` with the marked part replaced, or added at the end.
fn replaced(old: &[u8], others: &str) -> Vec<u8> {
    let (mut kept, mut within) = (Vec::with_capacity(old.len() + others.len()), false);
    for line in old.split_inclusive(|byte| *byte == b'\n') {
        let text = line.trim_ascii_end();
        if text == BEGIN.as_bytes() {
            within = true;
        } else if within && text == END.as_bytes() {
            within = false;
        } else if !within {
            kept.extend_from_slice(line);
        }
    }
    if others.is_empty() {
        return kept;
    }
    if kept.last().is_some_and(|last| *last != b'\n') {
        kept.push(b'\n');
    }
    kept.extend_from_slice(format!("{BEGIN}\n{others}{END}\n").as_bytes());
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marked_part_of_a_hosts_file_changes() {
        let own = "127.0.0.1\tlocalhost\n10.0.0.2\tme\n";
        let one = replaced(own.as_bytes(), "10.0.0.3\tdb\n");
        assert_eq!(String::from_utf8(one.clone()).unwrap(), format!("{own}{BEGIN}\n10.0.0.3\tdb\n{END}\n"));
        let edited = [one.as_slice(), b"1.2.3.4 mine"].concat();
        let two = replaced(&edited, "10.0.0.4\tweb\n");
        assert_eq!(
            String::from_utf8(two.clone()).unwrap(),
            format!("{own}1.2.3.4 mine\n{BEGIN}\n10.0.0.4\tweb\n{END}\n")
        );
        assert_eq!(replaced(&two, ""), format!("{own}1.2.3.4 mine\n").into_bytes());
        assert_eq!(replaced(b"\xff\xfe", ""), b"\xff\xfe", "bytes that are no text stay");
    }

    #[test]
    fn a_hosts_file_is_rewritten_in_place() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        fs::write(&path, "1.1.1.1\tme\n").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        rewrite(&path, "10.0.0.3\ta-rather-long-name\n10.0.0.4\tb\n").unwrap();
        rewrite(&path, "10.0.0.4\tb\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("1.1.1.1\tme\n{BEGIN}\n10.0.0.4\tb\n{END}\n"));
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "a mount of the file would see nothing of another");
    }

    /// In a mount namespace of its own, on a file system with room for two pages.
    #[test]
    fn a_hosts_file_without_room_keeps_what_it_has_and_is_written_later() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: not checked");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let without_room = || {
            use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
            use rustix::thread::UnshareFlags;
            // SAFETY: only this thread's view of mounts and working directory changes, on which nothing else relies.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let place = crate::network::tests::place(&dir, "full", "10.251.23.0/24");
            fs::create_dir(&place.containers).unwrap();
            mount("tmpfs", &place.containers, "tmpfs", MountFlags::empty(), Some(c"size=12k")).unwrap();
            let etc = place.containers.join("a-rep-0/etc");
            fs::create_dir_all(&etc).unwrap();
            let own = "127.0.0.1\tlocalhost\n";
            fs::write(etc.join("hosts"), own).unwrap();
            let lock = lease::lock(&place.names("bridge"), LOCK, FlockOperation::LockExclusive).unwrap();
            let spread_with = |id: &str, ip: [u8; 4], names: Vec<String>| {
                let (ip, dir) = (Ipv4Addr::from(ip), place.names("bridge"));
                record::write(&dir.join(format!("{ip}@{id}")), &Member { ip, ip6: None, names }).unwrap();
                spread(&place, "bridge", &lock).unwrap();
                fs::read_to_string(etc.join("hosts")).unwrap()
            };
            spread_with("a-rep-0", [10, 251, 23, 2], vec!["a".into()]);
            fs::write(place.containers.join("filler"), [0; 8192]).unwrap();
            let longer = (0..200).map(|n| format!("a-name-of-some-length-{n:04}")).collect();
            assert_eq!(spread_with("b-rep-0", [10, 251, 23, 3], longer), own, "cut");
            fs::remove_file(place.containers.join("filler")).unwrap();
            spread(&place, "bridge", &lock).unwrap();
            let written = fs::read_to_string(etc.join("hosts")).unwrap();
            assert!(
                written.contains("a-name-of-some-length-0199") && written.ends_with(&format!("{END}\n")),
                "{written}"
            );
        };
        std::thread::scope(|scope| scope.spawn(without_room).join()).unwrap();
    }

    #[test]
    fn who_holds_a_lease_on_a_hosts_file_keeps_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        fs::write(&path, "1.1.1.1\tme\n").unwrap();
        let leased = crate::files::lease(&path);
        let begun = std::time::Instant::now();
        assert_eq!(rewrite(&path, "10.0.0.3\tdb\n").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "it was waited for");
        drop(leased);
        // What another test forks has the file open, too, until it is executed.
        while let Err(error) = rewrite(&path, "10.0.0.3\tdb\n") {
            assert!(error.kind() == io::ErrorKind::WouldBlock && begun.elapsed().as_secs() < 40, "{error}");
        }
    }
}
