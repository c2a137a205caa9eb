//! Files in memory that have no name.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

/// An empty one, that can be sealed. `name` is for who looks at `/proc`.
pub(crate) fn create(name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // A host may want to be told that nobody executes it (vm.memfd_noexec); a kernel before 6.3 does not know that.
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_executes_it_where_the_kernel_knows_to_say_so() {
        let known = memfd_create(c"probe", MemfdFlags::NOEXEC_SEAL).is_ok();
        let made = File::from(create(c"test").unwrap());
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o111 == 0, known);
    }
}
