//! Stacks of layers through a real overlay mount, against a model that knows nothing of overlayfs.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::Mode;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

use super::super::below::Below;
use super::super::finalise::{depends_on, finalise, is_self_contained};
use super::super::tar::tests::{header, pax, with_data};
use super::{Limits, Over, TarReader, dir, unpack};

/// What a test archive is made of.
#[derive(Debug, Clone)]
enum Item {
    Dir(String, u32),
    File(String, u32),
    Symlink(String, String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

/// What is seen of a file: kind and content, mode, owner, mtime, the attribute `user.k`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    content: String,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    xattr: Option<String>,
}

fn attributes(n: u32) -> Seen {
    Seen {
        content: String::new(),
        mode: [0o644, 0o755, 0o4755, 0o2750, 0o1777, 0o600][n as usize % 6],
        owner: ([0, 1000, u32::MAX - 1][n as usize % 3], [0, 7][n as usize % 2]),
        mtime: (i64::from(n) * 1000 - 5000, if n.is_multiple_of(2) { 0 } else { 123_456_789 }),
        xattr: n.is_multiple_of(4).then(|| n.to_string()),
    }
}

fn implied() -> Seen {
    Seen { content: "dir".into(), mode: 0o755, owner: (0, 0), mtime: (0, 0), xattr: None }
}

fn archive(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut add = |path: &str, flag: u8, link: &str, data: &[u8], n: Option<u32>| {
        let seen = n.map(attributes);
        let mut records: Vec<(&str, Vec<u8>)> = vec![("path", path.as_bytes().to_vec())];
        if let Some(seen) = &seen {
            let time = (seen.mtime.0 * 1_000_000_000 + seen.mtime.1).unsigned_abs();
            let sign = if seen.mtime.0 < 0 { "-" } else { "" };
            records.push(("mtime", format!("{sign}{}.{:09}", time / 1_000_000_000, time % 1_000_000_000).into_bytes()));
            records.push(("uid", seen.owner.0.to_string().into_bytes()));
            records.push(("gid", seen.owner.1.to_string().into_bytes()));
            records.extend(seen.xattr.iter().map(|x| ("SCHILY.xattr.user.k", x.clone().into_bytes())));
        }
        let records: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (*k, v.as_slice())).collect();
        out.extend(pax(&records, b'x'));
        out.extend(with_data(
            header(b"x", flag, data.len() as u64, |b| {
                b[157..157 + link.len()].copy_from_slice(link.as_bytes());
                if let Some(seen) = &seen {
                    b[100..108].copy_from_slice(format!("{:07o}\0", seen.mode).as_bytes());
                }
            }),
            data,
        ));
    };
    for item in items {
        match item {
            Item::Dir(path, n) => add(path, b'5', "", b"", Some(*n)),
            Item::File(path, n) => add(path, b'0', "", n.to_string().as_bytes(), Some(*n)),
            Item::Symlink(path, to) => add(path, b'2', to, b"", None),
            Item::Link(path, to) => add(path, b'1', to, b"", None),
            Item::Whiteout(path) => {
                let (parent, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(p, n)| (p, n));
                add(&format!("{parent}/.wh.{name}"), b'0', "", b"", None);
            }
            Item::Opaque(path) => add(&format!("{path}/.wh..wh..opq"), b'0', "", b"", None),
        }
    }
    out
}

/// Why a stack cannot be applied.
#[derive(Debug)]
enum Impossible {
    Always,
    /// A hard link to nothing; harmless if a later entry takes its name.
    UnlessReplaced,
}

/// The tree after some layers: path → inode number, inode → what is seen.
#[derive(Debug, Clone, Default)]
struct Model {
    names: BTreeMap<String, u64>,
    inodes: BTreeMap<u64, Seen>,
    next: u64,
    /// What hard links of the layer at hand lead to.
    linked: Vec<String>,
    /// Appliers differ in what they make of it, and most refuse it: a file that the layer links becomes a directory, a
    /// link takes the place of the directory that its file is in, or a file that of the one that a link leads into.
    disputed: bool,
}

impl Model {
    fn get(&self, path: &str) -> Option<&Seen> {
        self.names.get(path).map(|inode| &self.inodes[inode])
    }

    fn put(&mut self, path: &str, seen: Seen) {
        self.next += 1;
        self.names.insert(path.into(), self.next);
        self.inodes.insert(self.next, seen);
    }

    fn remove(&mut self, path: &str) {
        self.names.retain(|name, _| name != path && !name.starts_with(&format!("{path}/")));
    }

    /// The real path of a directory path, made where it is missing; `Err` if something new of this layer is in the way.
    fn directory(&mut self, path: &str, new: &mut Vec<String>, make: bool) -> Result<String, Impossible> {
        let mut todo: Vec<String> = path.split('/').filter(|p| !p.is_empty()).rev().map(String::from).collect();
        let (mut real, mut links) = (String::new(), 0);
        while let Some(part) = todo.pop() {
            if part == ".." {
                real = real.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
                continue;
            }
            let next = if real.is_empty() { part } else { format!("{real}/{part}") };
            match self.get(&next).map(|seen| seen.content.clone()) {
                Some(content) if content == "dir" => real = next,
                Some(content) if content.starts_with("->") => {
                    links += 1;
                    if links > 40 {
                        return Err(Impossible::Always);
                    }
                    if content.starts_with("->/") {
                        real.clear();
                    }
                    todo.extend(content[2..].split('/').filter(|p| !p.is_empty() && *p != ".").rev().map(String::from));
                }
                Some(_) if new.contains(&next) => return Err(Impossible::Always),
                _ => {
                    if make {
                        self.disputed |= self.linked.contains(&next);
                        self.remove(&next);
                        self.put(&next, implied());
                        new.push(next.clone());
                    }
                    real = next;
                }
            }
        }
        Ok(real)
    }

    fn apply(&mut self, items: &[Item]) -> Result<(), Impossible> {
        let before = self.clone();
        self.linked.clear();
        let mut new: Vec<String> = Vec::new();
        let mut removals: Vec<(&str, bool)> = Vec::new();
        for item in items {
            match item {
                Item::Whiteout(path) => removals.push((path, false)),
                Item::Opaque(path) => removals.push((path, true)),
                _ => {}
            }
        }
        // What is removed is removed from the layers below, wherever it stands; paths follow what is left of them.
        removals.sort_unstable();
        for (path, emptied) in removals {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let directory = self.directory(if emptied { path } else { parent }, &mut new, false)?;
            match (emptied, directory.is_empty()) {
                (true, _) => self.names.retain(|name, _| !name.starts_with(&format!("{directory}/"))),
                (false, true) => self.remove(name),
                (false, false) => self.remove(&format!("{directory}/{name}")),
            }
        }
        for item in items {
            let (Item::Dir(path, _)
            | Item::File(path, _)
            | Item::Symlink(path, _)
            | Item::Link(path, _)
            | Item::Whiteout(path)) = item
            else {
                let Item::Opaque(path) = item else { unreachable!() };
                self.directory(path, &mut new, true)?;
                continue;
            };
            let (parent, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(p, n)| (p, n));
            let parent = self.directory(parent, &mut new, true)?;
            let real = if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
            match item {
                Item::Whiteout(_) => continue,
                Item::Dir(_, n) => {
                    if self.get(&real).is_none_or(|seen| seen.content != "dir") {
                        self.remove(&real);
                    }
                    self.put(&real, Seen { content: "dir".into(), ..attributes(*n) });
                }
                Item::File(_, n) => {
                    self.remove(&real);
                    self.put(&real, Seen { content: n.to_string(), ..attributes(*n) });
                }
                Item::Symlink(_, to) => {
                    self.remove(&real);
                    let mode = 0o777;
                    self.put(&real, Seen { content: format!("->{to}"), mode, ..implied() });
                }
                Item::Link(_, to) => {
                    let (to_parent, to_name) = to.rsplit_once('/').map_or(("", to.as_str()), |(p, n)| (p, n));
                    // What is in the way may have taken the place of what was linked.
                    let to_parent = self.directory(to_parent, &mut new, false);
                    self.disputed |= to_parent.is_err();
                    let to_parent = to_parent?;
                    let to = if to_parent.is_empty() { to_name.to_owned() } else { format!("{to_parent}/{to_name}") };
                    if to == real {
                        continue;
                    }
                    self.disputed |= dir::is_beneath(to.as_bytes(), real.as_bytes());
                    self.linked.push(to.clone());
                    let target = self.names.get(&to).copied();
                    match target.map(|inode| (inode, self.inodes[&inode].content == "dir")) {
                        Some((_, true)) => return Err(Impossible::UnlessReplaced),
                        Some((inode, false)) => {
                            self.remove(&real);
                            self.names.insert(real.clone(), inode);
                        }
                        None => {
                            // Removed by this very layer: still there to be linked, as a file of its own.
                            let seen = before
                                .get(&to)
                                .filter(|seen| seen.content != "dir")
                                .cloned()
                                .ok_or(Impossible::UnlessReplaced)?;
                            self.remove(&real);
                            self.put(&real, seen);
                        }
                    }
                }
                Item::Opaque(_) => {}
            }
            new.push(real);
        }
        Ok(())
    }
}

/// Unpacks archives as a pull does; lower directories, bottom first.
pub(crate) fn stack(base: &Path, archives: &[Vec<u8>]) -> Result<Vec<PathBuf>, String> {
    rustix::process::umask(Mode::empty());
    let mut layers: Vec<(PathBuf, bool)> = Vec::new();
    for (i, archive) in archives.iter().enumerate() {
        let mut root = base.join(i.to_string());
        fs::create_dir(&root).unwrap();
        let below = || {
            let hidden = layers.iter().rposition(|(_, opaque)| *opaque).unwrap_or(0);
            Below::new(layers[hidden..].iter().rev().map(|(path, _)| dir::open_root(path).unwrap()).collect())
        };
        let unpack_into = |root: &Path, over: Option<&Over>| {
            let mut reader = TarReader::new(archive.as_slice());
            unpack(&mut reader, dir::open_root(root).unwrap(), &Limits::default(), over).map_err(|e| e.to_string())
        };
        let mut unpacked = unpack_into(&root, None)?;
        if depends_on(&unpacked, &below()).unwrap() {
            root = base.join(format!("{i}-over"));
            fs::create_dir(&root).unwrap();
            let hides_all = unpacked.removals.contains(&(Vec::new(), true));
            let below = if hides_all { Below::default() } else { below() };
            unpacked = unpack_into(&root, Some(&Over { below, removals: unpacked.removals }))?;
        }
        if !is_self_contained(&unpacked) || !unpacked.whiteouts.is_empty() {
            unpacked = finalise(dir::open_root(&root).unwrap(), unpacked, &below()).unwrap();
        }
        if unpacked.root_opaque {
            layers.clear();
        }
        layers.push((root, unpacked.root_opaque));
    }
    Ok(layers.into_iter().map(|(path, _)| path).collect())
}

/// Runs in a thread with a mount namespace of its own, so that no mount outlives it.
fn in_namespace<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        // SAFETY: this thread holds no relative paths; the namespaces are its own and end with it.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
        rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
        work()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn mounted<T>(base: &Path, layers: &[PathBuf], look: impl FnOnce(&Path) -> T) -> T {
    let merged = base.join("merged");
    let bottom = base.join("bottom");
    fs::create_dir(&merged).unwrap();
    fs::create_dir(&bottom).unwrap();
    // A mount without an upper directory needs two lower ones.
    let lower: Vec<&str> = layers.iter().rev().chain([&bottom]).map(|path| path.to_str().unwrap()).collect();
    let options = format!("lowerdir={},redirect_dir=nofollow,metacopy=off,index=off", lower.join(":"));
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount("overlay", &merged, "overlay", MountFlags::RDONLY, Some(options.as_c_str())).unwrap();
    let result = look(&merged);
    rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH).unwrap();
    result
}

fn look(root: &Path) -> BTreeMap<String, (u64, Seen)> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata =
                fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: listed, but {e}", path.display()));
            let mut value = [0; 64];
            let xattr = rustix::fs::lgetxattr(&path, c"user.k", &mut value[..]).ok();
            let xattr = xattr.map(|length| String::from_utf8(value[..length].to_vec()).unwrap());
            let content = if metadata.is_dir() {
                todo.push(path.clone());
                "dir".into()
            } else if metadata.is_symlink() {
                format!("->{}", fs::read_link(&path).unwrap().display())
            } else {
                fs::read_to_string(&path).unwrap()
            };
            let owner = (metadata.uid(), metadata.gid());
            let mtime = (metadata.mtime(), metadata.mtime_nsec());
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            seen.insert(name, (metadata.ino(), Seen { content, mode: metadata.mode() & 0o7777, owner, mtime, xattr }));
        }
    }
    seen
}

/// Which names are one file: each name with the first of its file.
fn groups(names: impl Iterator<Item = (String, u64)>) -> BTreeMap<String, String> {
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    names.map(|(name, inode)| (name.clone(), first.entry(inode).or_insert(name).clone())).collect()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not root: skipped");
    }
    root
}

fn compare(stack_of: Vec<Vec<Item>>) -> Result<(), TestCaseError> {
    let mut model = Model::default();
    let expected = stack_of.iter().try_for_each(|items| model.apply(items));
    let found = in_namespace(move || {
        let base = tempfile::tempdir().unwrap();
        let archives: Vec<Vec<u8>> = stack_of.iter().map(|items| archive(items)).collect();
        stack(base.path(), &archives).map(|layers| mounted(base.path(), &layers, look))
    });
    match (expected, found) {
        _ if model.disputed => Ok(()),
        (Err(_), Err(_)) | (Err(Impossible::UnlessReplaced), Ok(_)) => Ok(()),
        (Err(Impossible::Always), Ok(found)) => {
            Err(TestCaseError::fail(format!("an impossible stack was taken: {found:?}")))
        }
        (Ok(()), Err(error)) => Err(TestCaseError::fail(format!("a good stack was refused: {error}"))),
        (Ok(()), Ok(found)) => {
            let wanted: BTreeMap<String, Seen> =
                model.names.iter().map(|(name, inode)| (name.clone(), model.inodes[inode].clone())).collect();
            let seen: BTreeMap<String, Seen> = found.iter().map(|(n, (_, s))| (n.clone(), s.clone())).collect();
            prop_assert_eq!(seen, wanted);
            let files = |name: &String| model.get(name).is_some_and(|seen| seen.content != "dir");
            let found = groups(found.iter().filter(|(n, _)| files(n)).map(|(n, (inode, _))| (n.clone(), *inode)));
            let wanted = groups(model.names.iter().filter(|(n, _)| files(n)).map(|(n, inode)| (n.clone(), *inode)));
            prop_assert_eq!(found, wanted);
            Ok(())
        }
    }
}

/// One layer's entries. What lies in `t` is reached directly and through links of this layer and of the ones below.
fn items() -> impl Strategy<Value = Vec<Item>> {
    // Nothing says what a whiteout through a link of its own layer removes: the model does not either.
    proptest::collection::vec(item(), 1..7).prop_map(|mut items: Vec<Item>| {
        let has_links = items.iter().any(|item| matches!(item, Item::Symlink(..)));
        let through = |path: &str| ["l/", "t/", "a/m/"].iter().any(|way| path.starts_with(way));
        items.retain(|item| match item {
            Item::Whiteout(path) | Item::Opaque(path) => !has_links || !through(path),
            _ => true,
        });
        items
    })
}

fn item() -> impl Strategy<Value = Item> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c")];
    let plain = proptest::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"));
    let way = prop_oneof![6 => Just(""), 1 => Just("l/"), 1 => Just("t/"), 1 => Just("t/u/"), 1 => Just("a/m/")];
    let any = (way, plain).prop_map(|(way, path)| format!("{way}{path}"));
    let target = prop_oneof![Just("/t"), Just("/t/u"), Just("/t/./u/../u"), Just("b"), Just("../t/c")];
    prop_oneof![
        4 => (any.clone(), 0..12u32).prop_map(|(path, n)| Item::Dir(path, n)),
        4 => (any.clone(), 0..12u32).prop_map(|(path, n)| Item::File(path, n)),
        2 => (prop_oneof![Just("l"), Just("a/m"), Just("t/a")], target)
            .prop_map(|(path, to)| Item::Symlink(path.into(), to.into())),
        2 => (any.clone(), any.clone()).prop_map(|(path, to)| Item::Link(path, to)),
        2 => any.clone().prop_map(Item::Whiteout),
        1 => Just(Item::Whiteout("l".into())),
        1 => any.prop_map(Item::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_merged_root_is_the_sequential_application_of_its_layers(
        layers in proptest::collection::vec(items(), 1..5)
    ) {
        if is_root() {
            compare(layers)?;
        }
    }
}

/// Few bytes of an archive, many of memory: names of PAX headers compress to nothing.
#[test]
fn paths_that_are_held_are_bounded() {
    let base = tempfile::tempdir().unwrap();
    rustix::process::umask(Mode::empty());
    let deep = vec!["d".repeat(250); 15].join("/");
    let items: Vec<Item> = (0..200).map(|number| Item::Whiteout(format!("{deep}/{number}"))).collect();
    let archive = archive(&items);
    let limits = Limits { layer_entries: 1_000, ..Limits::default() };
    let root = dir::open_root(base.path()).unwrap();
    let error = unpack(&mut TarReader::new(archive.as_slice()), root, &limits, None).unwrap_err();
    assert_eq!(error.to_string(), "the paths of its directories and whiteouts exceed 1048576 bytes");
}

#[test]
fn facts_that_layers_take_from_below() {
    use Item::{Dir, File, Link, Symlink, Whiteout};
    let s = String::from;
    if !is_root() {
        return;
    }
    for layers in [
        // A directory that is implied keeps what it is below.
        vec![vec![Dir(s("a"), 4)], vec![File(s("a/b"), 1)]],
        // A directory that is a link below is not hidden.
        vec![vec![Dir(s("b"), 3), Symlink(s("l"), s("b"))], vec![File(s("l/x/y"), 1), Whiteout(s("c"))]],
        // A hard link to a file below shares it, with the names it has there.
        vec![vec![File(s("a"), 2), Link(s("b"), s("a"))], vec![Link(s("c"), s("b"))]],
        // Removed and back as another type; a file where a directory was, and the other way round.
        vec![vec![Dir(s("a"), 1), File(s("a/b"), 1)], vec![Whiteout(s("a"))], vec![File(s("a/c"), 2)]],
        vec![vec![File(s("a/b"), 1)], vec![File(s("a"), 1), Dir(s("a"), 2)]],
        // Reached directly and through a link below: the last entry wins, whichever way it came.
        vec![vec![Dir(s("t"), 4), Symlink(s("l"), s("t"))], vec![File(s("l/x"), 1), File(s("t/x"), 2)]],
        vec![vec![Dir(s("t"), 4), Symlink(s("l"), s("t"))], vec![File(s("t/x"), 2), File(s("l/x"), 1)]],
        // What stands in a link's place does not take along what went through the link before.
        vec![vec![Dir(s("t"), 4), Symlink(s("l"), s("t"))], vec![File(s("l/x"), 1), Dir(s("l"), 2), File(s("l/y"), 3)]],
        // A hard link names what is there when it is listed, not what comes later.
        vec![vec![File(s("a"), 1)], vec![Link(s("c"), s("a")), File(s("a"), 2)]],
        // A whiteout where nothing is below would be seen in listings.
        vec![vec![File(s("x"), 1)], vec![Dir(s("d"), 1), Whiteout(s("d/gone"))]],
    ] {
        compare(layers).unwrap();
    }
}

#[test]
fn hostile_archives_touch_nothing_outside_and_are_errors_or_harmless() {
    if !is_root() {
        return;
    }
    let entry = |path: &str, flag: u8, link: &str, data: &[u8]| {
        let head = header(b"x", flag, data.len() as u64, |b| b[157..157 + link.len()].copy_from_slice(link.as_bytes()));
        [pax(&[("path", path.as_bytes())], b'x'), with_data(head, data)].concat()
    };
    let device = |path: &str| {
        let head = header(b"x", b'3', 0, |b| {
            b[329..337].copy_from_slice(b"0000000\0");
            b[337..345].copy_from_slice(b"0000000\0");
        });
        [pax(&[("path", path.as_bytes())], b'x'), head].concat()
    };
    let xattrs = |names: &[&str]| {
        let keys: Vec<String> = names.iter().map(|name| format!("SCHILY.xattr.{name}")).collect();
        let mut records: Vec<(&str, &[u8])> = vec![("path", b"d")];
        records.extend(keys.iter().map(|key| (key.as_str(), &b"y"[..])));
        [pax(&records, b'x'), header(b"x", b'5', 0, |_| {})].concat()
    };
    let deep = vec!["d"; 300].join("/");
    for (what, parts, good) in [
        ("..", vec![entry("../../evil", b'0', "", b"x")], false),
        (".. in the middle", vec![entry("a/../../evil", b'0', "", b"x")], false),
        ("absolute", vec![entry("/evil", b'0', "", b"x")], true),
        ("through a link out", vec![entry("l", b'2', "../..", b""), entry("l/evil", b'0', "", b"x")], true),
        ("through an absolute link", vec![entry("l", b'2', "/tmp", b""), entry("l/evil", b'0', "", b"x")], true),
        ("onto a link", vec![entry("l", b'2', "../evil", b""), entry("l", b'0', "", b"x")], true),
        (
            "link swapped in for a directory",
            vec![entry("d/a", b'0', "", b"1"), entry("d", b'2', "/", b""), entry("d/evil", b'0', "", b"x")],
            true,
        ),
        ("hard link out", vec![entry("h", b'1', "../../evil", b"")], false),
        ("hard link to an absolute path", vec![entry("h", b'1', "/etc/passwd", b"")], false),
        (
            "hard link through a link",
            vec![entry("l", b'2', "../../../../etc", b""), entry("h", b'1', "l/passwd", b"")],
            false,
        ),
        ("link loop", vec![entry("l", b'2', "l", b""), entry("l/x", b'0', "", b"x")], false),
        ("beneath a file", vec![entry("f", b'0', "", b"x"), entry("f/x", b'0', "", b"x")], false),
        ("too deep", vec![entry(&deep, b'0', "", b"x")], false),
        ("root as a file", vec![entry("./", b'0', "", b"x")], false),
        ("whiteout of ..", vec![entry(".wh...", b'0', "", b"")], false),
        ("0/0 device", vec![device("dev")], true),
        (
            "overlay attributes",
            vec![xattrs(&[
                "trusted.overlay.opaque",
                "trusted.overlay.redirect",
                "user.overlay.opaque",
                "security.selinux",
            ])],
            true,
        ),
    ] {
        let outcome = std::thread::spawn(move || {
            // SAFETY: this thread holds no relative paths and ends with this.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.unwrap();
            let base = tempfile::tempdir().unwrap();
            fs::write(base.path().join("evil"), b"untouched").unwrap();
            let result = stack(base.path(), &[parts.concat()]);
            assert_eq!(fs::read(base.path().join("evil")).unwrap(), b"untouched", "{what}");
            assert!(!Path::new("/tmp/evil").exists() && !Path::new("/evil").exists(), "{what}");
            let root = base.path().join("0");
            assert!(fs::symlink_metadata(root.join("dev")).is_err(), "{what}");
            if let Ok(directory) = fs::File::open(root.join("d")) {
                let names = dir::xattrs(directory.as_fd()).unwrap();
                assert!(names.iter().all(|(name, _)| name.to_bytes() == b"security.selinux"), "{what}: {names:?}");
            }
            result.map(|_| ())
        })
        .join()
        .unwrap();
        assert_eq!(outcome.is_ok(), good, "{what}: {outcome:?}");
    }
}
