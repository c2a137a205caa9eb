//! Memory of the stack that deep calls took.

/// How far beneath a caller's frame the stack is given back: a main thread's is at least this long when it begins.
const REACH_BYTES: usize = 128 << 10;
/// Room for the frames of the call that gives back, and for what the ABI lets a leaf use beneath them.
const MARGIN_BYTES: usize = 512;

/// Returns the pages that lie beneath the caller's frame to the kernel: parsing the configuration and receiving requests
/// take some that nothing needs again while the container runs.
#[inline(never)]
pub(super) fn give_back() {
    let here = std::hint::black_box(0_u8);
    let above = ((&raw const here).addr() - MARGIN_BYTES) & !(rustix::param::page_size() - 1);
    // SAFETY: the stack grows downwards on every architecture that Berth runs on, so all from `above` down lies beneath
    // the frames in use, and no address into it is kept. A range that was never mapped is passed over with ENOMEM, and
    // this process has no other thread whose stack could be there.
    unsafe {
        libc::madvise(std::ptr::with_exposed_provenance_mut(above - REACH_BYTES), REACH_BYTES, libc::MADV_DONTNEED)
    };
}
