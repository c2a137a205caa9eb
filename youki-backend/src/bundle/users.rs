//! `name|uid[:group|gid]` resolved in the container's own `/etc/passwd` and `/etc/group`.
//!
//! What cannot be resolved is an error: nobody becomes root by a typing error or a broken file.

use std::io::{ErrorKind, Read};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::files::{open_regular, open_within};

/// Largest passwd or group file that is read. A million bytes hold some 15,000 users; an image that has more can use
/// numbers.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Time for a process of the container that holds a lease on such a file to give it up. An exec waits that long, on a thread
/// that others need.
const LEASE_PATIENCE: Duration = Duration::from_millis(100);
/// Largest uid and gid, as with docker: the kernel's largest is a marker for "none", and tools read signed numbers.
const MAX_ID: u32 = i32::MAX as u32;
/// The kernel's NGROUPS_MAX.
const MAX_GROUPS: usize = 65_536;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted, each once. The primary one is always among them: a set-group-ID program must not be
    /// able to leave it behind (CVE-2022-36109).
    pub groups: Vec<u32>,
    /// Home directory of the user's passwd line, if it has one.
    pub home: Option<String>,
}

/// Resolves `user` beneath `root`, a directory descriptor of the container's root filesystem. `None` and the empty
/// text are uid 0. A number without a passwd line gets group 0 and no further groups, as with docker; an explicit group
/// stands alone. For numbers alone a file that cannot be used counts as empty. Blocks on the filesystem.
///
/// # Errors
/// [`Error::UnknownUser`] for an unknown name; [`Error::InvalidSpec`] for a group alone, a number that is too large, or a
/// broken line of that user; [`Error::Io`] and [`Error::Corrupt`] when a file cannot be read within its limit.
pub(crate) fn resolve(root: BorrowedFd<'_>, user: Option<&str>) -> Result<Identity> {
    let text = user.unwrap_or_default();
    let (user, group) = parts(text)?;
    let by_number = |text: &str| text.is_empty() || id(text).is_ok_and(|number| number.is_some());
    let needs_files = !by_number(user) || !by_number(group);
    let lines = |path| match read(root, path) {
        // Whoever gives numbers has no use for it.
        Err(Error::Corrupt { .. }) if !needs_files => Ok(String::new()),
        // Nor may a process of the container keep him out by a lease on it.
        Err(Error::Io { source, .. }) if !needs_files && source.kind() == ErrorKind::WouldBlock => Ok(String::new()),
        other => other,
    };
    identity(user, group, &lines("etc/passwd")?, &lines("etc/group")?)
}

/// The home directory for `HOME` of a process that has none: the passwd line's, else `/`.
pub(crate) fn home(identity: &Identity) -> &str {
    identity.home.as_deref().filter(|home| !home.is_empty()).unwrap_or("/")
}

/// User and group of a text. A group alone, or the colon, is nobody: docker takes it for root.
fn parts(text: &str) -> Result<(&str, &str)> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("", _) if !text.is_empty() => Err(Error::invalid("user", format!("{text:?} names no user"))),
        parts => Ok(parts),
    }
}

/// Resolves without touching a file.
fn identity(user: &str, group: &str, passwd: &str, groups: &str) -> Result<Identity> {
    let number = if user.is_empty() { Some(0) } else { id(user)? };
    let line = passwd.lines().find_map(|line| Passwd::parse(line).filter(|line| line.is(user, number)));
    let (uid, primary, home, name) = match (&line, number) {
        (Some(line), _) => {
            let broken = || Error::invalid("user", format!("{user:?} has a broken line in the image's /etc/passwd"));
            let uid = decimal(line.uid).ok_or_else(broken)?;
            let gid = decimal(line.gid).ok_or_else(broken)?;
            (uid, gid, Some(line.home.to_owned()), Some(line.name))
        }
        (None, Some(uid)) => (uid, 0, None, None),
        (None, None) => return Err(unknown(user, "it is not in the image's /etc/passwd")),
    };
    if !group.is_empty() {
        let gid = group_id(group, groups)?;
        return Ok(Identity { uid, gid, groups: vec![gid], home });
    }
    let mut supplementary: Vec<u32> = match name {
        Some(name) => groups
            .lines()
            .filter_map(Group::parse)
            .filter(|group| group.members.split(',').any(|member| member == name))
            // A broken number gives no group; it must not become group 0.
            .filter_map(|group| decimal(group.gid))
            .take(MAX_GROUPS)
            .collect(),
        None => Vec::new(),
    };
    supplementary.push(primary);
    supplementary.sort_unstable();
    supplementary.dedup();
    Ok(Identity { uid, gid: primary, groups: supplementary, home })
}

fn group_id(group: &str, groups: &str) -> Result<u32> {
    let number = id(group)?;
    let line = groups
        .lines()
        .filter_map(Group::parse)
        .find(|line| line.name == group || number.is_some_and(|number| decimal(line.gid) == Some(number)));
    match (line, number) {
        (Some(line), _) => decimal(line.gid).ok_or_else(|| {
            Error::invalid("user", format!("group {group:?} has a broken line in the image's /etc/group"))
        }),
        (None, Some(number)) => Ok(number),
        (None, None) => Err(unknown(&format!(":{group}"), "that group is not in the image's /etc/group")),
    }
}

fn unknown(user: &str, reason: &str) -> Error {
    Error::UnknownUser { user: user.to_owned(), reason: reason.to_owned() }
}

/// A line of passwd: `name:password:uid:gid:comment:home:shell`.
struct Passwd<'a> {
    name: &'a str,
    uid: &'a str,
    gid: &'a str,
    home: &'a str,
}

impl<'a> Passwd<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?;
        Some(Self { name, uid, gid: fields.next()?, home: fields.nth(1).unwrap_or_default() })
    }

    fn is(&self, name: &str, number: Option<u32>) -> bool {
        self.name == name || number.is_some_and(|number| decimal(self.uid) == Some(number))
    }
}

/// A line of group: `name:password:gid:member,member`.
struct Group<'a> {
    name: &'a str,
    gid: &'a str,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }
}

/// The id that a text of only digits is, `None` for a name; an error for a number that no id can be.
fn id(text: &str) -> Result<Option<u32>> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    decimal(text)
        .map(Some)
        .ok_or_else(|| Error::invalid("user", format!("{text:?} is not an id between 0 and {MAX_ID}")))
}

fn decimal(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten().filter(|id| *id <= MAX_ID)
}

/// The text of a file beneath `root`; empty where there is none. Bytes that are not UTF-8 are replaced: names are
/// compared with text.
fn read(root: BorrowedFd<'_>, path: &'static str) -> Result<String> {
    let there = match open_within(root, Path::new(path), OFlags::PATH) {
        Ok(there) => there,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(Error::io("opening the image's", format!("/{path}"))(errno.into())),
    };
    let corrupt = |reason: String| Error::Corrupt { path: format!("/{path}").into(), reason };
    let (file, _) = open_regular(there, OFlags::RDONLY, LEASE_PATIENCE)
        .map_err(|errno| Error::io("opening the image's", format!("/{path}"))(errno.into()))?
        .ok_or_else(|| corrupt("it is not a regular file".to_owned()))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("reading the image's", format!("/{path}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(corrupt(format!("it is larger than {MAX_FILE_BYTES} bytes; give the user by number")));
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use rustix::fs::{FileType, Mode, mknodat};

    use super::*;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
# comment:x:5:5::/:
app:x:1000:1001:App:/home/app:/bin/sh
minimal:x:7:8
bad:x:abc:0::/:
huge:x:4294967296:0::/:
nogid:x:9::::
1234:x:77:78::/odd:
short:x
";
    const GROUP: &str = "\
root:x:0:root
wheel:x:10:root,app
app:x:1001:
data:x:50:app,other
broken:x:x1:app
again:x:10:app
noline
";

    fn who(user: &str) -> Result<(u32, u32, Vec<u32>, Option<String>)> {
        let (user, group) = parts(user)?;
        identity(user, group, PASSWD, GROUP).map(|i| (i.uid, i.gid, i.groups, i.home))
    }

    #[test]
    fn users_and_groups_resolve_as_with_docker() {
        let home = |text: &str| Some(text.to_owned());
        for (user, expected) in [
            ("", (0, 0, vec![0, 10], home("/root"))),
            ("root", (0, 0, vec![0, 10], home("/root"))),
            ("0", (0, 0, vec![0, 10], home("/root"))),
            ("app", (1000, 1001, vec![10, 50, 1001], home("/home/app"))),
            ("1000", (1000, 1001, vec![10, 50, 1001], home("/home/app"))),
            ("app:data", (1000, 50, vec![50], home("/home/app"))),
            ("app:50", (1000, 50, vec![50], home("/home/app"))),
            ("app:4000", (1000, 4000, vec![4000], home("/home/app"))),
            ("app:", (1000, 1001, vec![10, 50, 1001], home("/home/app"))),
            ("minimal", (7, 8, vec![8], home(""))),
            ("4242", (4242, 0, vec![0], None)),
            ("4242:4343", (4242, 4343, vec![4343], None)),
            ("1234", (77, 78, vec![78], home("/odd"))),
            ("2147483647", (2_147_483_647, 0, vec![0], None)),
        ] {
            assert_eq!(who(user).unwrap(), expected, "{user:?}");
        }
    }

    #[test]
    fn what_cannot_be_resolved_is_an_error_and_never_root() {
        for user in [
            "nobody-here",
            "app:nogroup",
            "2147483648",
            "4294967295",
            "4294967296",
            "99999999999999999999999",
            "-1",
            "+0",
            "bad",
            "huge",
            "nogid",
            "short",
            "app:broken",
            ":",
            ":data",
            "0:4294967295",
            "app:-1",
            "# comment",
        ] {
            let error = who(user).unwrap_err();
            let unknown = ["nobody-here", "app:nogroup", "short", "# comment"].contains(&user);
            assert_eq!(error.code(), if unknown { "user.not_found" } else { "spec.invalid" }, "{user:?}: {error}");
        }
    }

    #[test]
    fn home_is_the_passwd_lines_else_the_root() {
        assert_eq!(home(&identity("app", "", PASSWD, GROUP).unwrap()), "/home/app");
        assert_eq!(home(&identity("minimal", "", PASSWD, GROUP).unwrap()), "/");
        assert_eq!(home(&identity("4242", "", PASSWD, GROUP).unwrap()), "/");
    }

    #[test]
    fn files_are_read_beneath_the_root_only_and_within_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        fs::write(dir.path().join("passwd"), "evil:x:666:666::/:\n").unwrap();
        symlink("../../passwd", dir.path().join("root/etc/passwd")).unwrap();
        let root = fs::File::open(dir.path().join("root")).unwrap();
        assert_eq!(resolve(root.as_fd(), Some("evil")).unwrap_err().code(), "user.not_found");
        assert_eq!(resolve(root.as_fd(), None).unwrap().uid, 0);

        fs::write(dir.path().join("root/passwd"), "good:x:5:6::/:\n").unwrap();
        assert_eq!(resolve(root.as_fd(), Some("good")).unwrap().gid, 6);

        fs::remove_file(dir.path().join("root/etc/passwd")).unwrap();
        fs::write(dir.path().join("root/etc/passwd"), vec![b'\n'; MAX_FILE_BYTES as usize + 1]).unwrap();
        assert_eq!(resolve(root.as_fd(), Some("good")).unwrap_err().code(), "root.corrupt");

        fs::remove_file(dir.path().join("root/etc/passwd")).unwrap();
        mknodat(&root, "etc/passwd", FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        only_numbers_resolve(root.as_fd());

        fs::remove_file(dir.path().join("root/etc/passwd")).unwrap();
        fs::write(dir.path().join("root/etc/passwd"), b"caf\xe9:x:1:1::/:\nok:x:2:3::/:\n").unwrap();
        assert_eq!(resolve(root.as_fd(), Some("ok")).unwrap().uid, 2);
    }

    fn only_numbers_resolve(root: BorrowedFd<'_>) {
        for user in ["good", "5:wheel"] {
            assert_eq!(resolve(root, Some(user)).unwrap_err().code(), "root.corrupt", "{user}");
        }
        for (user, ids) in [(None, (0, 0)), (Some("5"), (5, 0)), (Some("5:6"), (5, 6))] {
            let found = resolve(root, user).unwrap();
            assert_eq!((found.uid, found.gid), ids, "{user:?}");
        }
    }

    #[test]
    fn who_holds_a_lease_on_them_keeps_no_number_out() {
        let dir = tempfile::tempdir().unwrap();
        let passwd = dir.path().join("etc/passwd");
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(&passwd, PASSWD).unwrap();
        let _held = crate::files::lease(&passwd);
        let root = fs::File::open(dir.path()).unwrap();
        assert_eq!(resolve(root.as_fd(), Some("app")).unwrap_err().code(), "io.failed");
        assert_eq!(resolve(root.as_fd(), Some("1000")).unwrap().uid, 1000);
    }

    /// One that no driver has: to open it fails, and would be another error.
    #[test]
    fn a_device_in_their_place_is_not_opened() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: not checked");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        for (kind, file) in [(FileType::CharacterDevice, "etc/passwd"), (FileType::BlockDevice, "etc/group")] {
            mknodat(&root, file, kind, Mode::from_raw_mode(0o644), rustix::fs::makedev(120, 7)).unwrap();
            assert!(fs::File::open(dir.path().join(file)).is_err(), "120:7 can be opened: nothing is tested");
        }
        only_numbers_resolve(root.as_fd());
    }
}
