//! The keeper: one process of those on a root follows containers that end by themselves, whoever started them, so that
//! their volumes are synced and their ports and names given back, checks the health of those that run, syncs volumes while
//! they are used, renews claims on them, retries what S3 refused, and prunes histories. It sleeps while nothing is due and
//! nothing happens.

mod debts;
mod live_sync;
mod records;
mod retention;

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use runtime_core::ContainerId;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::container::{Container, HeldEnded, leave_until};
use crate::dir_watch::DirWatch;
use crate::error::{Error, Result};
use crate::health::Watches;
use crate::lock::{ContainerLock, lock_file};
use crate::runtime::Inner;

/// Containers whose volumes this process gives back at once, in all passes: each sync may hold some ten MiB.
static GIVING_BACK: Semaphore = Semaphore::const_new(4);

/// After an error that keeps the keeper from one of its duties: descriptors, memory or a disk may be short for a while.
pub(crate) const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(60);

/// Becomes the keeper as soon as no other process is, until the runtime is `closed`.
pub(crate) fn start(inner: &Arc<Inner>, mut closed: watch::Receiver<()>) {
    let weak = Arc::downgrade(inner);
    let path = inner.layout.run.join("keeper.lock");
    tokio::spawn(async move {
        // Its sender is dropped, and nothing is ever sent.
        tokio::select! {
            _ = closed.changed() => {}
            () = async {
                let lock = loop {
                    match acquire(&path).await {
                        Ok(lock) => break lock,
                        Err(error) => tracing::error!(error = error.chain(), "this process does not keep for a minute"),
                    }
                    sleep(PAUSE_AFTER_ERROR).await;
                };
                keep(weak, lock).await;
            } => {}
        }
    });
}

/// The lock, once nobody else has it. The wait is a thread of its own: it may last as long as the other process.
async fn acquire(path: &Path) -> Result<File> {
    let failed = Error::io("locking", path);
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(Error::io("opening", path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let (answer, locked) = oneshot::channel();
    let waiter = std::thread::Builder::new().name("berth-keeper".to_owned()).spawn(move || {
        // Nobody waits any more if the runtime is gone; the lock goes with the file.
        let _ = answer.send(lock_file(&file).map(|()| file));
    });
    let locked = match waiter {
        Ok(_) => locked.await.unwrap_or_else(|_| Err(io::Error::other("its thread broke off"))),
        Err(error) => Err(error),
    };
    locked.map_err(failed)
}

/// Follows containers, whoever starts them, and gives back what is left of those that end.
async fn follow_containers(weak: Weak<Inner>) {
    let watches = Watches::default();
    // Each may have a large volume to upload.
    let mut givings_back = JoinSet::new();
    while let Err(error) = follow_all(&weak, &watches, &mut givings_back).await {
        tracing::error!(error = error.chain(), "containers of other processes are not followed for a minute");
        sleep(PAUSE_AFTER_ERROR).await;
    }
}

/// Those that are there, then those that come: each attempt begins with a new socket of its supervisor's, which goes when
/// it is over.
async fn follow_all(weak: &Weak<Inner>, watches: &Watches, givings_back: &mut JoinSet<()>) -> Result<()> {
    let Some(inner) = weak.upgrade() else { return Ok(()) };
    // Before the first look, so that none which comes after it goes unnoticed.
    let watch = DirWatch::with_removals(&inner.layout.sockets());
    inner.follow(watches, |_| true).await?;
    // Of containers that ended while nobody kept.
    givings_back.spawn(async move { inner.give_back_volumes().await });
    let watch = watch?;
    loop {
        let (mut sockets, mut all) = (HashSet::new(), false);
        let changed = watch.changed(|name| match name {
            Some(name) => drop(sockets.insert(name.to_bytes().to_vec())),
            None => all = true,
        });
        if !changed.await? {
            tracing::error!("the run directory is gone: containers of other processes are no longer followed");
            return Ok(());
        }
        let Some(inner) = weak.upgrade() else { return Ok(()) };
        let (layout, arrived) = (inner.layout.clone(), Arc::new(Mutex::new(sockets)));
        let left = arrived.clone();
        let followed = inner.follow(watches, move |id| {
            let socket = layout.container(id).socket;
            let name = socket.file_name().unwrap_or_default().as_bytes();
            arrived.lock().unwrap_or_else(PoisonError::into_inner).remove(name) || all
        });
        followed.await?;
        while givings_back.try_join_next().is_some() {}
        // One that came and went with its end, before it was looked for.
        if all || !left.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            givings_back.spawn(async move { inner.give_back_volumes().await });
        }
    }
}

/// Returns at `due`; without it never.
async fn until(due: Option<tokio::time::Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Whether it is the want of something that may be there in a minute.
fn is_passing(error: &Error) -> bool {
    let passing = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];
    matches!(error, Error::Io { source, .. } if source.raw_os_error().is_some_and(|code| passing.contains(&code)))
}

impl Inner {
    /// Follows those containers that `wanted` picks, and checks their health.
    async fn follow(
        self: &Arc<Self>,
        watches: &Watches,
        wanted: impl Fn(&ContainerId) -> bool + Send + 'static,
    ) -> Result<()> {
        let inner = self.clone();
        let (answer, found) = oneshot::channel();
        // A thread of its own: where many containers are made at once, the runtime's have work for many seconds.
        let thread = std::thread::Builder::new().name("berth-keeper".to_owned()).spawn(move || {
            let look = || {
                let (mut found, mut unread) = (Vec::new(), None);
                for id in inner.container_ids()?.into_iter().filter(|id| wanted(id)) {
                    match inner.container(&id) {
                        Ok(container) => found.push(container),
                        Err(error) if is_passing(&error) => unread = Some(error),
                        // A damaged one, or none, keeps nobody from the others.
                        Err(_) => {}
                    }
                }
                Ok::<_, Error>((found, unread))
            };
            let _ = answer.send(look());
        });
        thread.map_err(Error::io("starting", "a thread"))?;
        let lost = || Error::io("looking at", "all containers")(io::Error::other("its thread broke off"));
        let (found, unread) = found.await.unwrap_or_else(|_| Err(lost()))?;
        for container in found {
            self.keep_watch(&container);
            watches.follow(self, &container);
            self.leave_network_behind(container);
        }
        // It is followed with the next look at all.
        unread.map_or(Ok(()), Err)
    }

    /// Gives ports and name of a container back that has ended; on its own, since it may have to wait.
    fn leave_network_behind(self: &Arc<Self>, container: Container) {
        if !self.exit_record(&container).is_ok_and(|record| record.is_some()) {
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            if let Err(error) = inner.leave_network_if_ended(&container).await {
                tracing::warn!(container = %container.record.id, error = error.chain(), "its ports are not given back");
            }
        });
    }

    /// Gives volumes back that belong to containers which are no more: they were removed with their end, or whoever
    /// removed or created them was killed. Another container may have the name by now. What somebody gives back already
    /// is left to them.
    pub(crate) async fn give_back_volumes(&self) {
        self.give_back(self.volumes.names().await.unwrap_or_default()).await;
    }

    /// The same of `names` alone.
    pub(crate) async fn give_back(&self, names: Vec<String>) {
        let mut used = BTreeMap::<ContainerId, Vec<String>>::new();
        for name in names {
            for user in self.volumes.users(&name).await.unwrap_or_default() {
                if let Ok(id) = user.parse() {
                    used.entry(id).or_default().push(name.clone());
                }
            }
        }
        join_all(used.into_iter().map(|(id, names)| self.give_back_volumes_of(id, names))).await;
    }

    /// Those of `names` that a container `id` which is no more has used.
    async fn give_back_volumes_of(&self, id: ContainerId, mut names: Vec<String>) {
        // What somebody sees to already takes no turn.
        match ContainerLock::try_acquire(&self.layout.container(&id).lock) {
            Ok(Some(_free)) => {}
            _ => return,
        }
        // It is never closed.
        let _turn = GIVING_BACK.acquire().await;
        // One that is being created has its lock, and maybe no record yet.
        let Ok(Some(lock)) = ContainerLock::try_acquire(&self.layout.container(&id).lock) else { return };
        let is_gone = match self.container(&id) {
            Ok(container) => {
                let its_own = container.record.named_volumes();
                names.retain(|name| !its_own.contains(&name.as_str()));
                false
            }
            Err(Error::NoSuchContainer { .. }) => true,
            Err(_) => return,
        };
        let held = HeldEnded::new(lock, is_gone);
        let user = id.to_string();
        let mut owing = Vec::new();
        let patience = self.config.volumes.sync_on_stop;
        let end = tokio::time::Instant::now() + patience;
        for name in names {
            match leave_until(&self.volumes, &name, &user, (end, patience)).await {
                Ok(true) => owing.push(name),
                Ok(false) => {}
                Err(error) => tracing::warn!(volume = name, %error, "cannot be given back"),
            }
        }
        drop(held);
        // Without the lock: nobody who has to do with the container, or the next one of its name, waits for S3.
        for name in owing {
            if let Err(error) = self.pay(&name).await {
                self.tell_whether_durable(&name, Some(&error));
            }
        }
    }
}

/// Keeps for as long as it is polled.
async fn keep(weak: Weak<Inner>, _lock: File) {
    // End with this future.
    let mut tasks = JoinSet::new();
    // First of all: a claim runs out whatever else there is to do.
    if let Some(volumes) = weak.upgrade().map(|inner| inner.volumes.clone()) {
        tasks.spawn(async move { volumes.renew_claims().await });
    }
    tasks.spawn(retention::apply(weak.clone()));
    tasks.spawn(live_sync::apply(weak.clone()));
    tasks.spawn(debts::pay(weak.clone()));
    tasks.spawn(records::sync(weak.clone()));
    follow_containers(weak).await;
    // Whatever of that ends, the rest goes on.
    std::future::pending::<()>().await;
}
