//! Which mount failed, and why. libcontainer's error says neither ("failed to prepare rootfs"); the events that it emits
//! in the init do. They are kept in a memory file that the helper and the init share, and read when the build failed.

use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;

use oci_spec::runtime::Mount;
use rustix::fs::{MemfdFlags, memfd_create};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::LIBCONTAINER_ID;
use crate::error::Error;
use crate::supervisor::failure::CREATE_FAILED;

/// Longest event that is kept: a mount's holds two paths of up to 4 KiB each.
const MAX_EVENT_BYTES: usize = 16 << 10;
/// All that is read: a handful of events.
const MAX_READ_BYTES: usize = 256 << 10;

/// What mount(2) and its newer relatives answer, by the names that libcontainer prints.
const ERRNOS: [(&str, i32); 19] = [
    ("EPERM", libc::EPERM),
    ("ENOENT", libc::ENOENT),
    ("EIO", libc::EIO),
    ("ENXIO", libc::ENXIO),
    ("ENOMEM", libc::ENOMEM),
    ("EACCES", libc::EACCES),
    ("ENOTBLK", libc::ENOTBLK),
    ("EBUSY", libc::EBUSY),
    ("EEXIST", libc::EEXIST),
    ("EXDEV", libc::EXDEV),
    ("ENODEV", libc::ENODEV),
    ("ENOTDIR", libc::ENOTDIR),
    ("EISDIR", libc::EISDIR),
    ("EINVAL", libc::EINVAL),
    ("ENOSPC", libc::ENOSPC),
    ("EROFS", libc::EROFS),
    ("ENAMETOOLONG", libc::ENAMETOOLONG),
    ("ELOOP", libc::ELOOP),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
];

/// The errors that libcontainer tells of, one a line.
#[derive(Debug)]
pub(super) struct MountErrors(fs::File);

impl MountErrors {
    /// Keeps what is emitted from now on, in this process and those that it forks.
    pub fn listen() -> io::Result<Self> {
        let file = fs::File::from(memfd_create("berth-errors", MemfdFlags::CLOEXEC)?);
        // There is no other: this process was forked to do one thing.
        let _ = tracing::subscriber::set_global_default(Keep(file.try_clone()?));
        Ok(Self(file))
    }

    /// The error of a build that failed with `text`: the mount's, where one of `mounts` was what failed.
    pub fn explain(&self, mounts: Option<&[Mount]>, text: String) -> Error {
        let said = self.said();
        for line in said.lines() {
            eprintln!("berth-create: libcontainer: {line}");
        }
        explain(&said, mounts.unwrap_or_default()).unwrap_or_else(|| Error::CreateFailed {
            id: LIBCONTAINER_ID.to_owned(),
            code: CREATE_FAILED,
            reason: text,
        })
    }

    fn said(&self) -> String {
        let mut bytes = vec![0; MAX_READ_BYTES];
        let count = self.0.read_at(&mut bytes, 0).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }
}

fn explain(said: &str, mounts: &[Mount]) -> Option<Error> {
    let lines: Vec<&str> = said.lines().collect();
    let (at, mount, told) = lines.iter().enumerate().find_map(|(at, line)| {
        let rest = line.strip_prefix("failed to mount ")?;
        let found = mounts.iter().find_map(|mount| {
            let told = rest.strip_prefix(&one_line(&format!("{mount:?}")))?;
            Some((mount, told))
        });
        let (mount, told) = found.or_else(|| {
            let dev = mounts.iter().find(|mount| mount.destination() == "/dev")?;
            Some((dev, rest.strip_prefix("/dev")?))
        })?;
        Some((at, mount, told.trim_start_matches([':', ' '])))
    })?;
    // It is told by name only further up.
    let reason = lines[at..].iter().find_map(|line| os_reason(line)).unwrap_or_else(|| told.to_owned());
    Some(Error::Mount { mount: describe(mount), reason })
}

fn describe(mount: &Mount) -> String {
    let source = mount.source().as_ref().map(|source| source.display().to_string()).unwrap_or_default();
    let options = mount.options().as_deref().unwrap_or_default().join(",");
    format!("{source} at {} ({options})", mount.destination().display())
}

/// The kernel's reason, from an error's `Debug`: `Nix(ENOTDIR)`, or an [`io::Error`]'s `code: 20`.
fn os_reason(line: &str) -> Option<String> {
    let word = |after: &str| {
        let rest = &line[line.find(after)? + after.len()..];
        Some(&rest[..rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len())])
    };
    let by_name =
        word("Nix(").and_then(|name| ERRNOS.iter().find(|(known, _)| *known == name)).map(|(_, errno)| *errno);
    let errno = by_name.or_else(|| word("code: ")?.parse().ok())?;
    Some(io::Error::from_raw_os_error(errno).to_string())
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// Writes errors to the file, and nothing else anywhere.
struct Keep(fs::File);

impl Subscriber for Keep {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::ERROR)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        let mut text = one_line(&line.0);
        text.truncate(text.floor_char_boundary(MAX_EVENT_BYTES));
        text.push('\n');
        // Who cannot write has nobody to tell.
        let _ = (&self.0).write_all(text.as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message, then ` name=value` for each field.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => {
                self.0.insert_str(0, &format!("{value:?}"));
                Ok(())
            }
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn mount(source: &str, target: &str) -> Mount {
        let options = vec!["rbind".to_owned(), "ro".to_owned()];
        MountBuilder::default().source(source).destination(target).typ("bind").options(options).build().unwrap()
    }

    #[test]
    fn the_mount_and_the_kernels_reason_are_found() {
        let mounts = [mount("/a", "/etc"), mount("/b\nc", "/etc/passwd")];
        let first = one_line(&format!("{:?}", mounts[1]));
        for (said, reason) in [
            (
                format!(
                    "x\nfailed to mount {first}: syscall\nfailed to prepare rootfs err=Mount(Syscall(Nix(ENOTDIR)))"
                ),
                "Not a directory (os error 20)",
            ),
            (
                format!("failed to mount {first}: io error\ny err=Io(Os {{ code: 2, kind: NotFound }})"),
                "No such file or directory (os error 2)",
            ),
            (format!("failed to mount {first}: too many links"), "too many links"),
        ] {
            let Some(Error::Mount { mount, reason: found }) = explain(&said, &mounts) else { panic!("{said}") };
            assert_eq!((mount.as_str(), found.as_str()), ("/b\nc at /etc/passwd (rbind,ro)", reason));
        }
        assert!(explain("failed to mount nothing: why\n", &mounts).is_none());
    }
}
