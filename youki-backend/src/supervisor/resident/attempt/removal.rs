//! A container that goes with its end: its supervisor removes it, so that nobody else need be there.
//!
//! What is owed for its named volumes stands in the volumes' own journal, under its name, and is the keeper's to settle.
//! A supervisor that is killed on the way leaves a container that has ended: whoever finds it removes it.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use runtime_core::{Event, EventKind};
use rustix::mount::{UnmountFlags, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::super::config::RemovalPlan;
use super::{Attempt, inode};
use crate::container::remove_dir;
use crate::error::{Error, Result};
use crate::lock::ContainerLock;
use crate::network::Departure;
use crate::trash::{self, Discarded};

/// Longest pause between two tries for a lock that somebody else has.
const LONGEST_LOCK_PAUSE: Duration = Duration::from_millis(200);

impl Attempt {
    /// Frees all that the container has, and takes its directory away: its end. What is returned is its files, to be
    /// deleted when everybody has been told; `None` if they are somebody else's to delete.
    pub(super) fn remove_container(&mut self, plan: &RemovalPlan) -> Option<Discarded> {
        let lock = self.lock(&plan.lock)?;
        self.remove_socket();
        if let Some(departure) = &plan.network {
            self.note(self.leave_networks(departure));
        }
        self.note(remove_dir(&plan.run_dir));
        let taken = match trash::take(&plan.trash, &self.config.container_dir) {
            // Without its record it is gone as well.
            Err(error) if trash::is_no_place(&error) => {
                unmount_root(&self.config.container_dir);
                let _ = fs::remove_file(self.config.container_dir.join("container.json"));
                self.note(remove_dir(&self.config.container_dir));
                None
            }
            Err(error) => {
                self.note(Err(Error::io("removing", &self.config.container_dir)(error)));
                None
            }
            Ok(taken) => taken,
        };
        if !self.config.container_dir.join("container.json").exists() {
            self.tell(Event::now(EventKind::Remove));
        }
        lock.remove();
        // Who connected before the socket was gone: taken in, then answered.
        for _ in 0..2 {
            let _ = self.turn(Some(Instant::now()));
        }
        taken
    }

    /// Deletes the files of the container, once its root is unmounted.
    pub(super) fn delete(&self, files: Discarded) {
        unmount_root(files.path());
        self.note(files.delete().map_err(Error::io("deleting", "the container's files")));
    }

    /// The container's lock. Whoever has it may be waiting for our word; `None` if it was to remove the container.
    fn lock(&mut self, path: &Path) -> Option<ContainerLock> {
        let mut pause = Duration::from_millis(1);
        loop {
            let lock = match ContainerLock::try_acquire(path) {
                Ok(lock) => lock,
                Err(error) => {
                    self.note(Err(error));
                    return None;
                }
            };
            if inode(&self.config.container_dir) != self.container_inode {
                // A lock that was made by asking for it.
                if let Some(lock) = lock.filter(|_| !self.config.container_dir.exists()) {
                    lock.remove();
                }
                return None;
            }
            if lock.is_some() {
                return lock;
            }
            self.tell_waiting();
            let next = Instant::now() + pause;
            while Instant::now() < next && self.turn(Some(next)).is_ok() {}
            pause = (pause * 2).min(LONGEST_LOCK_PAUSE);
        }
    }

    /// From here on this process is in the host's network namespace; the container's goes with it.
    fn leave_networks(&self, departure: &Departure) -> Result<()> {
        if let Some(namespace) = &self.host_network {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| Error::io("entering", "the host's network")(error.into()))?;
        }
        departure.carry_out()
    }

    /// Goes on after an error: what is left is for the next who opens the root.
    fn note(&self, result: Result<()>) {
        if let Err(error) = result {
            say!("removing the container: {}", error.chain());
        }
    }
}

/// In this process's mount namespace; all that was in the container's is gone with it.
fn unmount_root(container_dir: &Path) {
    if let Err(error) = unmount(container_dir.join("rootfs"), UnmountFlags::DETACH) {
        say!("unmounting the root: {error}");
    }
}
