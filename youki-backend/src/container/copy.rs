//! Copying files in and out, as tar.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime_core::{ContainerId, CopyInOptions};

use super::rootfs::View;
use crate::driven::Caller;
use crate::error::{Error, Result};
use crate::files::{self, PathKind, pack, unpack};
use crate::lock;
use crate::runtime::Inner;

impl Inner {
    /// What is at `path` in `id`.
    pub(crate) async fn look(&self, id: &ContainerId, path: &Path, follow: bool) -> Result<PathKind> {
        let container = self.container(id)?;
        let (missing, path) = (no_such(id, path), path.to_owned());
        self.in_root(&container, View::Whole, move |root| {
            files::look(root, &path, follow).map(|(_, kind)| kind).map_err(missing)
        })
        .await
    }

    /// Where links at the end of `path` in `id` lead.
    pub(crate) async fn copy_target(&self, id: &ContainerId, path: &Path) -> Result<PathBuf> {
        let container = self.container(id)?;
        let (missing, path) = (no_such(id, path), path.to_owned());
        self.in_root(&container, View::Whole, move |root| files::follow(root, &path).map_err(missing)).await
    }

    /// Writes what is at `path` in `id` as a tar, under its own name.
    pub(crate) async fn copy_out(
        &self,
        id: &ContainerId,
        path: &Path,
        follow: bool,
        out: impl Write + Send + 'static,
    ) -> Result<()> {
        let container = self.container(id)?;
        let (missing, path) = (no_such(id, path), path.to_owned());
        self.in_root(&container, View::Whole, move |root| {
            let (source, _) = files::look(root, &path, follow).map_err(missing)?;
            let name = path.file_name().map_or_else(|| PathBuf::from("root"), PathBuf::from);
            pack::pack(rustix::fd::AsFd::as_fd(&source), Some(&name), out).map_err(Error::io("copying", path))
        })
        .await
    }

    /// Puts what is in `tar` into the directory `dir` of `id`. One whose caller has gone ends with the next that it reads, and
    /// before another copy of this process into the container begins.
    pub(crate) async fn copy_in(
        &self,
        id: &ContainerId,
        dir: &Path,
        tar: impl Read + Send + 'static,
        options: CopyInOptions,
    ) -> Result<()> {
        let container = self.container(id)?;
        let (missing, dir) = (no_such(id, dir), dir.to_owned());
        let (id, copies) = (id.to_string(), container.paths.upper());
        let waits = Arc::new(());
        let caller = Caller::who_holds(&waits);
        let copied = self.in_root(&container, View::Whole, move |root| {
            let _turn = lock::blocking_turn(&copies);
            if caller.is_gone() {
                return Err(Error::CalledOff { id });
            }
            files::look(root, &dir, true).map_err(missing)?;
            let CopyInOptions { rename, owner } = options;
            let tar = WaitedFor { tar, caller };
            unpack::unpack(root, &dir, rename.as_deref(), tar, owner).map_err(Error::io("copying to", dir))
        });
        let copied = copied.await;
        drop(waits);
        copied
    }

    /// Writes the root filesystem of `id` as a tar, without what is mounted in it.
    pub(crate) async fn export(&self, id: &ContainerId, out: impl Write + Send + 'static) -> Result<()> {
        let container = self.container(id)?;
        let name = id.to_string();
        self.in_root(&container, View::RootAlone, move |root| {
            pack::pack(root, None, out).map_err(Error::io("exporting", name))
        })
        .await
    }
}

/// A tar that is at its end when nobody waits any more for what is done with it.
struct WaitedFor<R> {
    tar: R,
    caller: Caller,
}

impl<R: Read> Read for WaitedFor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.caller.is_gone() {
            true => Err(std::io::Error::other("whoever copies has given it up")),
            false => self.tar.read(buffer),
        }
    }
}

fn no_such(id: &ContainerId, path: &Path) -> impl FnOnce(std::io::Error) -> Error + Send + 'static {
    let (id, path) = (id.to_string(), path.display().to_string());
    move |source| match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Error::NoSuchPath { id, path },
        _ => Error::io("opening", path)(source),
    }
}
