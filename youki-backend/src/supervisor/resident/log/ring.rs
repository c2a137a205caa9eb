//! Bytes between two processes: a ring in shared memory, with one who puts in and one who takes out.
//!
//! The memory is mapped twice in a row, so that what wraps around is one slice all the same. One page before it holds the
//! places of both and their flags.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::memfd;
use crate::supervisor::resident::exec::check;

/// What both sides see beside the bytes.
#[derive(Debug)]
struct Shared {
    /// Bytes that were ever put in.
    put: AtomicU64,
    /// Bytes of them that were taken out.
    taken: AtomicU64,
    /// Who takes out sleeps, and wants to be woken.
    asleep: AtomicBool,
    /// Who puts in waits for room.
    wanted: AtomicBool,
}

/// A ring. A fork shares it; each process must keep to one of its two sides.
#[derive(Debug)]
pub(super) struct Ring {
    /// A page of [`Shared`], then the bytes, then the bytes again.
    start: *mut u8,
    page: usize,
    capacity: usize,
}

impl Ring {
    /// Room for `bytes` at least. It takes memory only where it is written to.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let capacity = bytes.max(1).next_multiple_of(page);
        let file = memfd::create(c"berth-log")?;
        // SAFETY: takes integers.
        check(unsafe { libc::ftruncate(file.as_raw_fd(), (page + capacity) as libc::off_t) })?;
        // SAFETY: a mapping at a place of the kernel's choice, which is only a reservation yet.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                page + 2 * capacity,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ring = Self { start: start.cast(), page, capacity };
        for (place, len, offset) in [(0, page + capacity, 0), (page + capacity, capacity, page)] {
            // SAFETY: all of it lies within the reservation, which is ours.
            let mapped = unsafe {
                libc::mmap(
                    ring.start.add(place).cast(),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    file.as_raw_fd(),
                    offset as libc::off_t,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(ring)
    }

    fn shared(&self) -> &Shared {
        // SAFETY: the page is mapped as long as self is, aligned, and all zeros are a valid value; it is only reached by
        // atomic operations.
        unsafe { &*self.start.cast::<Shared>() }
    }

    /// The most that it takes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that are in it.
    pub fn len(&self) -> usize {
        let taken = self.taken();
        (self.shared().put.load(Ordering::SeqCst) - taken) as usize
    }

    /// Bytes that were ever taken out.
    pub fn taken(&self) -> u64 {
        self.shared().taken.load(Ordering::SeqCst)
    }

    /// Puts all of `bytes` in, for which there must be room.
    pub fn put(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.capacity - self.len(), "no room in the ring");
        let put = self.shared().put.load(Ordering::SeqCst);
        let place = self.page + (put % self.capacity as u64) as usize;
        // SAFETY: `place` lies in the first of the two mappings and the bytes are no more than one of them, so all of it
        // is mapped; who takes out does not look there before `put` says that it may.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(place), bytes.len()) };
        self.shared().put.store(put + bytes.len() as u64, Ordering::SeqCst);
    }

    /// All that is in it, for who takes out.
    pub fn contents(&self) -> &[u8] {
        let len = self.len();
        let place = self.page + (self.taken() % self.capacity as u64) as usize;
        // SAFETY: as in `put`; who puts in does not write there before it is taken.
        unsafe { std::slice::from_raw_parts(self.start.add(place), len) }
    }

    /// Takes out the first `count` bytes of [`Ring::contents`].
    pub fn take(&self, count: usize) {
        self.shared().taken.fetch_add(count as u64, Ordering::SeqCst);
    }

    /// Who takes out goes to sleep. It must look once more before it does.
    pub fn fall_asleep(&self) {
        self.shared().asleep.store(true, Ordering::SeqCst);
    }

    /// Whether who takes out sleeps; it is woken by whoever is told so, once.
    pub fn take_sleep(&self) -> bool {
        self.shared().asleep.swap(false, Ordering::SeqCst)
    }

    /// Who puts in wants to be told of room. It must look once more before it waits.
    pub fn want_room(&self) {
        self.shared().wanted.store(true, Ordering::SeqCst);
    }

    /// Whether somebody is to be told of room, once.
    pub fn take_want(&self) -> bool {
        self.shared().wanted.swap(false, Ordering::SeqCst)
    }

    /// Gives the memory of the bytes back, if there are none; for who puts in.
    pub fn release(&self) {
        if self.len() == 0 {
            // SAFETY: the range is the first mapping of the bytes, of which none is needed.
            unsafe { libc::madvise(self.start.add(self.page).cast(), self.capacity, libc::MADV_REMOVE) };
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the range is this ring's, and nothing borrows it any more.
        unsafe { libc::munmap(self.start.cast(), self.page + 2 * self.capacity) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_comes_out_also_around_the_end() {
        let ring = Ring::new(1).unwrap();
        assert_eq!(ring.capacity(), rustix::param::page_size());
        let mut next = (0..=255_u8).cycle();
        let mut expected = (0..=255_u8).cycle();
        for round in 0..1_000 {
            let bytes: Vec<u8> = next.by_ref().take(1 + round * 7 % ring.capacity()).collect();
            ring.put(&bytes);
            let got = ring.contents();
            assert!(got.iter().copied().eq(expected.by_ref().take(bytes.len())), "round {round}");
            let len = got.len();
            ring.take(len);
        }
        assert_eq!(ring.len(), 0);
        ring.release();
        ring.put(b"after that");
        assert_eq!(ring.contents(), b"after that");
    }

    #[test]
    #[should_panic(expected = "no room")]
    fn more_than_there_is_room_for_is_refused() {
        let ring = Ring::new(1).unwrap();
        ring.put(&vec![0; ring.capacity()]);
        ring.put(b"x");
    }
}
