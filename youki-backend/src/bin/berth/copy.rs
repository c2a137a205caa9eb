//! `cp` and `export`: files of a container, as they are or as a tar.

use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use runtime_core::{ContainerId, CopyInOptions, Owner};
use tokio::task::JoinError;
use youki_backend::{Error, PathKind, pack_path, unpack_into};

use crate::cli::{CpArgs, ExportArgs};
use crate::failure::{Failure, Result};
use crate::lifecycle::container;
use crate::session::Session;
use crate::signals::Signals;
use crate::streams::{self, Patient};
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
    let mut signals = Signals::listen_to_ending()?;
    let writer = out.writer()?;
    tokio::select! {
        exported = session.runtime.export(&id, writer) => exported?,
        // What is written so far goes with `out`.
        number = signals.next_ending() => return Ok(128 + number),
    }
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

/// Docker's rules. `own` is the name of what `source` leads to, `found` what is at the target.
fn goal(source: &str, own: PathBuf, kind: PathKind, target: &str, found: Option<PathKind>) -> Result<Goal> {
    // `dir/./` too: components leave a dot out.
    let bare = source.trim_end_matches('/');
    let contents = bare == "." || bare.ends_with("/.");
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
        (_, Some(_)) if target.ends_with('/') => Err(Failure::usage(format!("{target} is not a directory"))),
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
        let out = Patient::own(io::stdout())?;
        return Ok(session.runtime.copy_out(id, &path, args.follow_link, io::BufWriter::new(out)).await?);
    };
    let kind = session.runtime.look(id, &path, args.follow_link || source.ends_with('/')).await?;
    let goal = goal(source, own_name(&path), kind, target, on_host(target))?;
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
    both(there(packed), here(unpacking.await, "unpacking into", &goal.dir))
}

async fn copy_in(session: &Session, args: &CpArgs, id: &ContainerId, source: &Place<'_>, target: &str) -> Result<()> {
    let path = session.runtime.copy_target(id, &within(target)).await?;
    let owner = if args.archive { Owner::Kept } else { Owner::Always { uid: 0, gid: 0 } };
    let Place::Host(source) = source else {
        let options = CopyInOptions { rename: None, owner: Owner::Kept };
        let tar = Patient::own(io::stdin())?;
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
    let own = own_name_on_host(source).map_err(|error| Failure::io("reading", source, &error))?;
    let Goal { dir, name } = goal(source, own, kind, &format!("{absolute}{trailing}"), found)?;
    let (reader, writer) = streams::pipe()?;
    let from = PathBuf::from(source);
    let out = io::BufWriter::new(File::from(writer));
    let packing = tokio::task::spawn_blocking(move || pack_path(&from, follow, Path::new("tree"), out));
    let options = CopyInOptions { rename: Some(name), owner };
    let unpacked = session.runtime.copy_in(id, &dir, io::BufReader::new(File::from(reader)), options).await;
    both(here(packing.await, "packing", Path::new(source)), there(unpacked))
}

/// One side of a copy: its failure, and whether that is only that the other one was lost.
type Side = std::result::Result<(), (Failure, bool)>;

fn there(done: std::result::Result<(), Error>) -> Side {
    done.map_err(|error| {
        let is_loss = matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe);
        (error.into(), is_loss)
    })
}

fn here(done: std::result::Result<io::Result<()>, JoinError>, action: &str, path: &Path) -> Side {
    done.map_err(io::Error::other).flatten().map_err(|error| {
        let is_loss = error.kind() == io::ErrorKind::BrokenPipe;
        (Failure::io(action, path, &error), is_loss)
    })
}

/// The failure of a copy whose two sides run at once: of the one that did not only lose the other. What failed to be packed
/// is no archive, and fails to be unpacked for that.
fn both(packed: Side, unpacked: Side) -> Result<()> {
    match (packed, unpacked) {
        (Err((failure, false)), _) => Err(failure),
        (_, Err((failure, _))) => Err(failure),
        // Who has read all that counts may leave before the last zeros of it.
        (Err((_, true)) | Ok(()), Ok(())) => Ok(()),
    }
}

/// The last name of a path, `..` taken out of it; `root` for the root, which has none.
fn own_name(path: &Path) -> PathBuf {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    names.pop().unwrap_or("root".as_ref()).into()
}

/// The same of a path on the host, which may lead out of the working directory.
fn own_name_on_host(path: &str) -> io::Result<PathBuf> {
    match Path::new(path).file_name() {
        Some(name) => Ok(name.into()),
        None => std::fs::canonicalize(path).map(|path| own_name(&path)),
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
            ("/a/f", File, "/t/g/", Some(File), None),
            ("/a/d", Directory, "/t", Some(Directory), to("/t", "d")),
            ("/a/d/.", Directory, "/t", Some(Directory), to("/t", ".")),
            ("/a/d/./", Directory, "/t", Some(Directory), to("/t", ".")),
            (".", Directory, "/t", Some(Directory), to("/t", ".")),
            ("./", Directory, "/t", Some(Directory), to("/t", ".")),
            ("./", Directory, "/t/new", None, to("/t", "new")),
            ("/a/d/..", Directory, "/t", Some(Directory), to("/t", "a")),
            ("/a/..", Directory, "/t", Some(Directory), to("/t", "root")),
            ("/a/d/.", Directory, "/t/new", None, to("/t", "new")),
            ("/a/d", Directory, "/t/new", None, to("/t", "new")),
            ("/a/d", Directory, "/t/f", Some(File), None),
            ("/", Directory, "/t", Some(Directory), to("/t", "root")),
        ] {
            let found = goal(source, own_name(Path::new(source)), kind, target, found).ok();
            assert_eq!(found, expected, "{source} to {target}");
        }
    }

    #[test]
    fn a_directory_has_its_name_however_it_is_written() {
        let own = std::env::current_dir().unwrap();
        let parent = own.parent().and_then(Path::file_name).unwrap();
        for (path, name) in [("src/", "src".as_ref()), ("..", parent), ("./src/..", own.file_name().unwrap())] {
            assert_eq!(own_name_on_host(path).unwrap(), Path::new(name), "{path}");
        }
        assert_eq!(own_name_on_host("/").unwrap(), Path::new("root"));
    }
}
