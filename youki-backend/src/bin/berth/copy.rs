//! `cp` and `export`: files of a container, as they are or as a tar.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use runtime_core::ContainerId;
use youki_backend::{CopyInOptions, Error, Owner, PathKind, pack_path, unpack_into};

use crate::cli::{CpArgs, ExportArgs};
use crate::failure::{Failure, Result};
use crate::lifecycle::container;
use crate::session::Session;
use crate::streams;
use crate::tar_output::TarOutput;

/// Stands for a tar on standard input or output.
const TAR: &str = "-";

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    /// A tar.
    Stream,
    /// A path on the host.
    Host(&'a str),
    /// A path in a container.
    Container(&'a str, &'a str),
}

/// `berth cp`
pub async fn cp(session: &Session, args: &CpArgs) -> Result<i32> {
    match (place(&args.source), place(&args.target)) {
        (Place::Container(name, source), target @ (Place::Host(_) | Place::Stream)) => {
            copy_out(session, args, &container(name)?, source, &target).await?;
        }
        (source @ (Place::Host(_) | Place::Stream), Place::Container(name, target)) => {
            copy_in(session, args, &container(name)?, &source, target).await?;
        }
        (Place::Container(..), Place::Container(..)) => {
            return Err(Failure::usage("copying between containers: copy to the host first"));
        }
        _ => return Err(Failure::usage("one side must be in a container: write NAME:PATH")),
    }
    Ok(0)
}

/// `berth export`
pub async fn export(session: &Session, args: &ExportArgs) -> Result<i32> {
    let id = container(&args.name)?;
    let out = TarOutput::open(args.output.as_deref())?;
    session.runtime.export(&id, out.writer()?).await?;
    out.finish()?;
    Ok(0)
}

/// Docker's rules: `-` is a tar; what begins with `/` or `.` is a path; else what stands before a colon is a container.
fn place(text: &str) -> Place<'_> {
    match text.split_once(':') {
        _ if text == TAR => Place::Stream,
        _ if text.starts_with(['/', '.']) => Place::Host(text),
        Some((name, path)) if !name.is_empty() && !name.contains('/') => Place::Container(name, path),
        _ => Place::Host(text),
    }
}

/// Where a copy goes: a directory that is there, and the name that the source has in it (`.` for what is in the source).
#[derive(Debug, PartialEq, Eq)]
struct Goal {
    dir: PathBuf,
    name: PathBuf,
}

/// Docker's rules. `found` is what is at the target.
fn goal(source: &str, kind: PathKind, target: &str, found: Option<PathKind>) -> Result<Goal> {
    let contents = source == "." || source.ends_with("/.");
    let own = Path::new(source).file_name().map_or_else(|| PathBuf::from("root"), PathBuf::from);
    let path = Path::new(target);
    let beside = || {
        let dir = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().ok_or_else(|| Failure::usage(format!("{target:?} names no file")))?;
        Ok(Goal { dir: dir.to_owned(), name: name.into() })
    };
    match (kind, found) {
        (PathKind::Directory, Some(PathKind::Directory)) if contents => {
            Ok(Goal { dir: path.to_owned(), name: ".".into() })
        }
        (_, Some(PathKind::Directory)) => Ok(Goal { dir: path.to_owned(), name: own }),
        (PathKind::Directory, Some(_)) => {
            Err(Failure::usage(format!("{target} is a file: a directory cannot be copied over it")))
        }
        (_, Some(_)) => beside(),
        (PathKind::Directory, None) => beside(),
        (_, None) if target.ends_with('/') => Err(Failure::usage(format!("{target} does not exist"))),
        (_, None) => beside(),
    }
}

async fn copy_out(session: &Session, args: &CpArgs, id: &ContainerId, source: &str, target: &Place<'_>) -> Result<()> {
    let path = within(source);
    let Place::Host(target) = target else {
        let out = File::from(streams::own(io::stdout())?);
        return Ok(session.runtime.copy_out(id, &path, args.follow_link, io::BufWriter::new(out)).await?);
    };
    let kind = session.runtime.look(id, &path, args.follow_link || source.ends_with('/')).await?;
    let goal = goal(source, kind, target, on_host(target))?;
    // Whoever calls it owns what he gets, as with docker.
    let owner = if args.archive {
        Owner::Kept
    } else {
        Owner::Always { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    };
    let (reader, writer) = streams::pipe()?;
    let follow = args.follow_link || source.ends_with('/');
    let (dir, reader) = (goal.dir.clone(), File::from(reader));
    let unpacking = tokio::task::spawn_blocking(move || unpack_into(&dir, Some(&goal.name), reader, owner));
    let packed = session.runtime.copy_out(id, &path, follow, io::BufWriter::new(File::from(writer))).await;
    both(packed, unpacking.await, "unpacking into", &goal.dir)
}

async fn copy_in(session: &Session, args: &CpArgs, id: &ContainerId, source: &Place<'_>, target: &str) -> Result<()> {
    let path = within(target);
    let owner = if args.archive { Owner::Kept } else { Owner::Always { uid: 0, gid: 0 } };
    let Place::Host(source) = source else {
        let options = CopyInOptions { rename: None, owner: Owner::Kept };
        let tar = File::from(streams::own(io::stdin())?);
        return Ok(session.runtime.copy_in(id, &path, io::BufReader::new(tar), options).await?);
    };
    let follow = args.follow_link || source.ends_with('/');
    let kind = on_host_itself(source, follow).map_err(|error| Failure::io("reading", source, &error))?;
    let found = match session.runtime.look(id, &path, true).await {
        Ok(kind) => Some(kind),
        Err(Error::NoSuchPath { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let absolute = path.display().to_string();
    let trailing = if target.ends_with('/') && absolute != "/" { "/" } else { "" };
    let Goal { dir, name } = goal(source, kind, &format!("{absolute}{trailing}"), found)?;
    let (reader, writer) = streams::pipe()?;
    let from = PathBuf::from(source);
    let out = io::BufWriter::new(File::from(writer));
    let packing = tokio::task::spawn_blocking(move || pack_path(&from, follow, Path::new("tree"), out));
    let options = CopyInOptions { rename: Some(name), owner };
    let unpacked = session.runtime.copy_in(id, &dir, io::BufReader::new(File::from(reader)), options).await;
    both(unpacked, packing.await, "packing", Path::new(source))
}

/// The failure of a copy whose two sides run at once: of the one that did not only lose the other.
fn both(
    there: std::result::Result<(), Error>,
    here: std::result::Result<io::Result<()>, tokio::task::JoinError>,
    action: &str,
    path: &Path,
) -> Result<()> {
    match (there, here) {
        (Err(Error::Io { source, .. }), Ok(Err(error))) if source.kind() == io::ErrorKind::BrokenPipe => {
            Err(Failure::io(action, path, &error))
        }
        (Err(error), _) => Err(error.into()),
        (Ok(()), Ok(Err(error))) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        (Ok(()), Ok(Err(error))) => Err(Failure::io(action, path, &error)),
        (Ok(()), _) => Ok(()),
    }
}

/// A path in a container, from its root where it is relative.
fn within(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

fn on_host(path: &str) -> Option<PathKind> {
    on_host_itself(path, true).ok()
}

fn on_host_itself(path: &str, follow: bool) -> io::Result<PathKind> {
    let metadata = if follow { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) }?;
    Ok(match metadata.file_type() {
        kind if kind.is_dir() => PathKind::Directory,
        kind if kind.is_file() => PathKind::File,
        kind if kind.is_symlink() => PathKind::Symlink,
        _ => PathKind::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart_as_docker_does() {
        for (text, expected) in [
            ("-", Place::Stream),
            ("web:/etc/x", Place::Container("web", "/etc/x")),
            ("web:x", Place::Container("web", "x")),
            ("/a:b", Place::Host("/a:b")),
            ("./a:b", Place::Host("./a:b")),
            ("dir/a:b", Place::Host("dir/a:b")),
            ("file", Place::Host("file")),
        ] {
            assert_eq!(place(text), expected, "{text}");
        }
    }

    #[test]
    fn a_copy_goes_where_dockers_would() {
        use PathKind::{Directory, File};
        let to = |dir: &str, name: &str| Some(Goal { dir: dir.into(), name: name.into() });
        for (source, kind, target, found, expected) in [
            ("/a/f", File, "/t", Some(Directory), to("/t", "f")),
            ("/a/f", File, "/t/g", None, to("/t", "g")),
            ("/a/f", File, "/t/g", Some(File), to("/t", "g")),
            ("/a/f", File, "g", None, to(".", "g")),
            ("/a/f", File, "/t/new/", None, None),
            ("/a/d", Directory, "/t", Some(Directory), to("/t", "d")),
            ("/a/d/.", Directory, "/t", Some(Directory), to("/t", ".")),
            ("/a/d/.", Directory, "/t/new", None, to("/t", "new")),
            ("/a/d", Directory, "/t/new", None, to("/t", "new")),
            ("/a/d", Directory, "/t/f", Some(File), None),
            ("/", Directory, "/t", Some(Directory), to("/t", "root")),
        ] {
            let found = goal(source, kind, target, found).ok();
            assert_eq!(found, expected, "{source} to {target}");
        }
    }
}
