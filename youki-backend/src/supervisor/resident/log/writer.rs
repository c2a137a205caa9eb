//! The process that writes a non-blocking log.
//!
//! It is forked at the first line, takes from the ring until its supervisor closes the other end of their socket, and dies
//! with it. A byte on the socket wakes it when it sleeps, and tells of room who wants to know. One that was killed is
//! followed by another at the next line: what it had not written is in the ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::files::{LogFiles, Settings, payload_bytes};
use super::queue::Queue;
use super::ring::Ring;
use crate::supervisor::launch;
use crate::supervisor::resident::exec::check;

/// Time for the writer to make room before lines of a read are dropped: a disk that keeps up makes some within
/// microseconds, once the writer is on a CPU. Meanwhile the container's pipe takes what it writes, up to 100 MB/s. A ring
/// from which nothing is taken is waited for once.
const GRACE: Duration = Duration::from_millis(10);
/// After so long without room it is looked whether there still is a writer.
const LOOK: Duration = Duration::from_millis(100);
/// Written at a time, about: room is made in such steps.
const STEP_BYTES: usize = 64 << 10;

/// A log between ring and writer, as the supervisor has it.
#[derive(Debug)]
pub(crate) struct Buffered {
    queue: Queue,
    files: Settings,
    /// Ours, and the writer's.
    sockets: [OwnedFd; 2],
    /// 0 where there is none.
    writer: i32,
    /// The ring was full, and nothing has been taken out since.
    stuck: bool,
    /// The ring's memory is to be given back once it is empty.
    idle: bool,
    patient_until: Option<Instant>,
}

impl Buffered {
    pub fn new(files: Settings, buffer_bytes: u64) -> io::Result<Self> {
        Ok(Self {
            queue: Queue::new(buffer_bytes)?,
            files,
            sockets: socket_pair()?,
            writer: 0,
            stuck: false,
            idle: false,
            patient_until: None,
        })
    }

    pub fn notices(&self) -> BorrowedFd<'_> {
        self.sockets[0].as_fd()
    }

    pub fn write(&mut self, mut lines: &[u8]) {
        self.idle = false;
        self.have_writer();
        let until = match self.patient_until {
            Some(until) => Some(until),
            None => (!self.stuck).then(|| Instant::now() + GRACE),
        };
        loop {
            lines = self.queue.take_in(lines);
            self.wake_writer();
            if lines.is_empty() {
                self.stuck = false;
                return;
            }
            if !until.is_some_and(|until| self.wait_for_room(until)) {
                break;
            }
        }
        self.stuck = true;
        self.queue.drop_lines(lines);
        self.attend();
    }

    /// Does what waits for room, and asks to be told of more if some of it still has to.
    pub fn attend(&mut self) {
        take_notices(&self.sockets[0]);
        loop {
            let taken = self.queue.ring.taken();
            let said = self.queue.say_dropped();
            if said {
                self.stuck = false;
                self.wake_writer();
            }
            if self.idle && self.queue.ring.len() == 0 {
                self.idle = false;
                self.queue.ring.release();
            }
            if said && !self.idle {
                return;
            }
            self.queue.ring.want_room();
            // What was taken before the writer saw that, it does not tell of.
            if self.queue.ring.taken() == taken {
                return;
            }
        }
    }

    pub fn child_ended(&mut self, pid: i32) {
        if pid == self.writer {
            self.writer = 0;
        }
    }

    pub fn may_wait(&mut self, until: Option<Instant>) {
        self.patient_until = until;
    }

    pub fn settle(&mut self) -> bool {
        let until = self.patient_until.unwrap_or_else(Instant::now);
        while !self.queue.is_settled() {
            self.reap_writer();
            self.have_writer();
            self.attend();
            if !self.wait_for_room(until.min(Instant::now() + LOOK)) && Instant::now() >= until {
                return self.queue.is_settled();
            }
        }
        true
    }

    pub fn close(&mut self, until: Instant) {
        self.may_wait(Some(until));
        self.settle();
        let _ = rustix::net::shutdown(&self.sockets[0], rustix::net::Shutdown::Write);
        let mut pause = Duration::from_micros(50);
        while !self.reap_writer() {
            if Instant::now() >= until {
                let left = payload_bytes(self.queue.ring.contents()) + self.queue.dropped();
                if left > 0 {
                    say!("the log lacks the container's last {left} bytes: its disk took none of them in time");
                }
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    pub fn release(&mut self) {
        self.idle = true;
        self.attend();
    }

    fn wake_writer(&self) {
        if self.queue.ring.take_sleep() {
            notify(&self.sockets[0]);
        }
    }

    /// Whether there is no writer any more. Where nobody else reaps, this finds it dead.
    fn reap_writer(&mut self) -> bool {
        // SAFETY: asks of a child of ours, by a number that it has until this reaps it; no status is asked for.
        if self.writer != 0 && unsafe { libc::waitpid(self.writer, std::ptr::null_mut(), libc::WNOHANG) } != 0 {
            self.writer = 0;
        }
        self.writer == 0
    }

    fn have_writer(&mut self) {
        if self.writer == 0 {
            match fork_writer(&self.queue.ring, &self.sockets[1], &self.files) {
                Ok(pid) => self.writer = pid,
                // What the ring has no room for is dropped, and counted.
                Err(error) => say!("starting the writer of the log: {error}"),
            }
        }
    }

    /// Waits until something has been taken out. False if that was not to be by `until`.
    fn wait_for_room(&self, until: Instant) -> bool {
        let before = self.queue.ring.len();
        loop {
            self.queue.ring.want_room();
            let now = self.queue.ring.len();
            if now < before || now == 0 {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait_readable(&self.sockets[0], left) {
                return self.queue.ring.len() < before;
            }
            take_notices(&self.sockets[0]);
        }
    }
}

/// A writer that takes from `ring`, with `socket` for its end.
fn fork_writer(ring: &Ring, socket: &OwnedFd, files: &Settings) -> io::Result<i32> {
    let supervisor = std::process::id();
    // SAFETY: this process is single-threaded, so the child may do whatever it could.
    match unsafe { libc::fork() } {
        0 => {
            if let Ok(socket) = become_writer(socket, supervisor) {
                serve(ring, &socket, LogFiles::open(files.clone()));
            }
            // SAFETY: ends this process without running anything of its parent's.
            unsafe { libc::_exit(0) }
        }
        pid => check(pid),
    }
}

/// In the child: it dies with its parent, and of what that has open it keeps standard error and the socket.
fn become_writer(socket: &OwnedFd, supervisor: u32) -> io::Result<OwnedFd> {
    /// After the three standard ones.
    const SOCKET_FD: i32 = 3;
    launch::die_with_parent()?;
    if std::os::unix::process::parent_id() != supervisor {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: the name is a C string; the others take integers. What is closed is this child's copy, and no value of the
    // parent's that owns one of them is used or dropped here.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"berth-log".as_ptr());
        check(libc::dup2(socket.as_raw_fd(), SOCKET_FD))?;
        libc::close(0);
        libc::close(1);
        check(libc::syscall(libc::SYS_close_range, SOCKET_FD + 1, u32::MAX, 0) as i32)?;
        Ok(OwnedFd::from_raw_fd(SOCKET_FD))
    }
}

/// Writes until the supervisor closes its end, and what is left then.
fn serve(ring: &Ring, socket: &OwnedFd, mut files: LogFiles) {
    let mut over = false;
    loop {
        loop {
            let lines = step(ring.contents());
            if lines.is_empty() {
                break;
            }
            files.write(lines);
            ring.take(lines.len());
            if ring.take_want() {
                notify(socket);
            }
        }
        if over {
            return;
        }
        ring.fall_asleep();
        if ring.len() > 0 {
            continue;
        }
        let mut byte = [0; 64];
        // SAFETY: the buffer is writable for its length.
        let count = unsafe { libc::read(socket.as_raw_fd(), byte.as_mut_ptr().cast(), byte.len()) };
        over = count == 0 || (count < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted);
    }
}

/// As many whole lines as are about a step, and one at least.
fn step(lines: &[u8]) -> &[u8] {
    let some = &lines[..lines.len().min(STEP_BYTES)];
    let end = memchr::memrchr(b'\n', some).or_else(|| memchr::memchr(b'\n', lines));
    &lines[..end.map_or(lines.len(), |end| end + 1)]
}

fn socket_pair() -> io::Result<[OwnedFd; 2]> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (ours, writers) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    Ok([ours, writers])
}

/// A socket that takes no byte holds enough of them.
fn notify(socket: &OwnedFd) {
    let _ = rustix::net::send(socket, &[0], rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL);
}

fn take_notices(socket: &OwnedFd) {
    let mut bytes = [0; 64];
    while rustix::net::recv(socket, &mut bytes, rustix::net::RecvFlags::DONTWAIT).is_ok_and(|(count, _)| count > 0) {}
}

fn wait_readable(socket: &OwnedFd, at_most: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let timeout = rustix::event::Timespec {
        tv_sec: at_most.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: at_most.subsec_nanos().into(),
    };
    poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}
