//! Memory of the heap that a large request took.

/// A request from this size on is followed by [`give_back`]: less is needed again soon, and costs little to keep.
pub(super) const LARGE_REQUEST_BYTES: usize = 64 << 10;

/// Returns what is free to the kernel. glibc keeps it: its threshold for mappings of their own rises with the largest
/// that was freed. musl returns large ones by itself.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
