//! One connection of an agent: frames in, frames out, descriptors beside them.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::heap;
use crate::supervisor::wire::{self, Malformed, Reply, Request};

/// Descriptors a request may bring: an exec's three and its filter.
const MAX_FDS: usize = 4;

/// What is left of a connection after a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// It goes on.
    Open,
    /// The other side is gone.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub socket: OwnedFd,
    received: Vec<u8>,
    /// Descriptors that came and are not yet taken.
    pub descriptors: VecDeque<OwnedFd>,
    unsent: Vec<u8>,
    /// The attempt whose end it waits for.
    pub waits: Option<u32>,
    /// The attempt whose start it waits for.
    pub waits_for_start: Option<u32>,
}

impl Connection {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            received: Vec::new(),
            descriptors: VecDeque::new(),
            unsent: Vec::new(),
            waits: None,
            waits_for_start: None,
        }
    }

    /// Reads what there is.
    pub fn receive(&mut self) -> io::Result<Incoming> {
        let mut chunk = [0u8; 8 << 10];
        loop {
            match receive_once(self.socket.as_raw_fd(), &mut chunk, &mut self.descriptors) {
                Ok(0) => return Ok(Incoming::Closed),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Incoming::Open),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.received.len() > wire::MAX_FRAME_BYTES + 4 || self.descriptors.len() > 2 * MAX_FDS {
                return Err(io::Error::other("more than one frame at a time"));
            }
        }
    }

    /// Whether a large request is here, or on its way.
    pub fn holds_much(&self) -> bool {
        self.received.len() >= heap::LARGE_REQUEST_BYTES
    }

    /// The next whole request, if there is one.
    pub fn next_request(&mut self) -> Result<Option<Request>, Malformed> {
        match wire::frame_len(&self.received)? {
            Some(len) if self.received.len() >= len => {
                let request = Request::decode(&self.received[..len]);
                self.received.drain(..len);
                if self.received.is_empty() {
                    self.received = Vec::new();
                }
                request.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Sends a reply; what the socket does not take now waits for [`Connection::flush`].
    pub fn send(&mut self, reply: &Reply) {
        self.unsent.extend_from_slice(&reply.encode());
        self.flush();
    }

    /// Sends a reply with a descriptor beside it.
    pub fn send_with(&mut self, reply: &Reply, descriptor: &OwnedFd) {
        let frame = reply.encode();
        match send_descriptor(self.socket.as_raw_fd(), &frame, descriptor.as_raw_fd()) {
            Ok(count) => self.unsent.extend_from_slice(&frame[count..]),
            // The client is gone or does not read: the connection's end is seen by the next receive.
            Err(_) => self.unsent.clear(),
        }
    }

    /// Whether everything is sent.
    pub fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            // SAFETY: the buffer is readable for its length.
            let count = unsafe {
                libc::send(
                    self.socket.as_raw_fd(),
                    self.unsent.as_ptr().cast(),
                    self.unsent.len(),
                    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
                )
            };
            if count < 0 {
                let would_block = io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock;
                if !would_block {
                    self.unsent.clear();
                }
                return !would_block;
            }
            self.unsent.drain(..count as usize);
        }
        self.unsent = Vec::new();
        true
    }
}

/// The descriptor that comes with the next byte of `socket`, if one does.
pub(super) fn receive_descriptor(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut descriptors = VecDeque::new();
    receive_once(socket.as_raw_fd(), &mut [0], &mut descriptors).ok()?;
    descriptors.pop_front()
}

/// Room for the control message that carries up to [`MAX_FDS`] descriptors, aligned as the kernel wants it.
#[repr(C, align(8))]
struct ControlBuffer([u8; 64]);

fn receive_once(socket: RawFd, buffer: &mut [u8], descriptors: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut control = ControlBuffer([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: an all-zero msghdr is a valid one.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = mem::size_of::<ControlBuffer>();
    // SAFETY: all pointers lead to live buffers of the lengths given.
    let count = unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel filled in the control buffer; CMSG_* walk it within msg_controllen.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / mem::size_of::<RawFd>() {
                    // Each is a descriptor that the kernel just installed for us alone.
                    descriptors.push_back(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(count as usize)
}

fn send_descriptor(socket: RawFd, frame: &[u8], descriptor: RawFd) -> io::Result<usize> {
    let mut control = ControlBuffer([0; 64]);
    let mut part = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
    // SAFETY: an all-zero msghdr is a valid one.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: the control buffer holds one header and one descriptor; the first header lies at its start.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(mem::size_of::<RawFd>() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(mem::size_of::<RawFd>() as u32) as usize;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(descriptor);
    }
    // SAFETY: all pointers lead to live buffers of the lengths given.
    let count = unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}
