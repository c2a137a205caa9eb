//! A disk that is as small, as full or as slow as a test wants it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `FIFREEZE` and `FITHAW`: `_IOWR('X', 119, int)` and the one after it.
const FREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const THAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

/// An ext4 file system without anything reserved for root, mounted from a file beside its place. It goes with this value.
pub struct Disk {
    place: PathBuf,
    image: PathBuf,
}

impl Disk {
    pub fn mount(place: &Path, bytes: u64) -> Self {
        fs::create_dir_all(place).unwrap();
        let disk = Self { place: place.to_owned(), image: place.with_extension("ext4") };
        File::create(&disk.image).unwrap().set_len(bytes).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&disk.image));
        run(Command::new("mount").args(["-o", "loop"]).args([&disk.image, &disk.place]));
        disk
    }

    /// What a power cut now would leave of it, at another place. None if something was written while it was copied.
    pub fn after_a_power_cut(&self, place: &Path) -> Option<Self> {
        fs::create_dir_all(place).unwrap();
        let disk = Self { place: place.to_owned(), image: place.with_extension("ext4") };
        fs::copy(&self.image, &disk.image).unwrap();
        let mounted = Command::new("mount").args(["-o", "loop"]).args([&disk.image, &disk.place]).status();
        mounted.is_ok_and(|status| status.success()).then_some(disk)
    }

    /// Takes all room there is; returns the file that holds it.
    pub fn fill(&self) -> PathBuf {
        use std::io::Write;
        let path = self.place.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 4 << 10, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {
                file.sync_data().ok();
            }
        }
        path
    }

    /// Who writes from now on waits in the kernel, where no signal reaches.
    pub fn freeze(&self) {
        self.ioctl(FREEZE).unwrap();
    }

    pub fn thaw(&self) {
        self.ioctl(THAW).unwrap();
    }

    fn ioctl(&self, request: libc::Ioctl) -> std::io::Result<()> {
        let place = File::open(&self.place)?;
        // SAFETY: neither request reads or writes memory of ours.
        match unsafe { libc::ioctl(place.as_raw_fd(), request, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It fails where nothing is frozen.
        let _ = self.ioctl(THAW);
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
        let _ = fs::remove_file(&self.image);
    }
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{command:?}: {status:?}");
}
