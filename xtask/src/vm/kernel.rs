//! Debian's kernel: its image, and its modules in the order in which they can be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;

/// What finds the disk and mounts it; ext4 asks for crc32c by the name of what it does, not of a module.
const FIRST_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];
/// What containers and the suite need; the machine loads them before it starts, so that nothing is loaded on demand.
const GUEST_MODULES: &[&str] = &[
    "virtio_rng",
    "overlay",
    "loop",
    "fuse",
    "bridge",
    "veth",
    "dummy",
    "macvlan",
    "tun",
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_reject_inet",
    "nft_limit",
    "nft_log",
];

/// Run by the kernel; mounts the disk and goes over to it.
const EARLY_INIT: &str = include_str!("early-init.sh");

/// A kernel as its package holds it.
#[derive(Debug)]
pub(super) struct Kernel {
    /// `6.1.0-56-amd64`.
    pub version: String,
    /// vmlinuz.
    pub image: PathBuf,
    modules: BTreeMap<String, PathBuf>,
    built_in: Vec<String>,
}

impl Kernel {
    /// The one whose image is `boot/vmlinuz-VERSION`, with its modules in `lib/modules/VERSION` beside.
    pub fn of(image: &Path) -> Result<Self> {
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        let version = name.strip_prefix("vmlinuz-").context("a kernel is called vmlinuz-VERSION")?.to_owned();
        let root = image.parent().and_then(Path::parent).context("a kernel lies in boot/")?;
        let dir = root.join("lib/modules").join(&version);
        let mut modules = BTreeMap::new();
        find_modules(&dir.join("kernel"), &mut modules)?;
        let list = fs::read_to_string(dir.join("modules.builtin")).context("reading modules.builtin")?;
        let built_in = list.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { version, image: image.to_owned(), modules, built_in })
    }

    /// Writes the initramfs: busybox, the modules that find the disk, and the script that uses them.
    pub fn initrd(&self, dir: &Path) -> Result<PathBuf> {
        let busybox = fs::read("/bin/busybox").context("reading /bin/busybox (Debian: busybox-static)")?;
        let mut archive = Archive::default();
        for directory in ["bin", "dev", "disk", "modules", "proc"] {
            archive.directory(directory);
        }
        archive.program("bin/busybox", &busybox);
        archive.program("init", EARLY_INIT.as_bytes());
        for (name, path) in numbered(&self.in_order(FIRST_MODULES)?) {
            let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            archive.program(&format!("modules/{name}"), &content);
        }
        let path = dir.join("initrd");
        fs::write(&path, archive.finish()).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// The files of all other modules, named so that their order is that of loading.
    pub fn guest_modules(&self) -> Result<Vec<(String, PathBuf)>> {
        let first = self.in_order(FIRST_MODULES)?;
        let rest: Vec<&Path> = self.in_order(GUEST_MODULES)?.into_iter().filter(|path| !first.contains(path)).collect();
        Ok(numbered(&rest).into_iter().map(|(name, path)| (name, path.to_owned())).collect())
    }

    /// The files of `names` and of what they depend on, dependencies first.
    fn in_order(&self, names: &[&str]) -> Result<Vec<&Path>> {
        let mut order = Vec::new();
        names.iter().try_for_each(|name| self.add(name, &mut order))?;
        Ok(order)
    }

    fn add<'a>(&'a self, name: &str, order: &mut Vec<&'a Path>) -> Result<()> {
        let name = name.replace('-', "_");
        let Some(path) = self.modules.get(&name) else {
            if self.built_in.contains(&name) {
                return Ok(());
            }
            bail!("Linux {} has no module {name}", self.version);
        };
        if order.contains(&path.as_path()) {
            return Ok(());
        }
        for dependency in dependencies(&fs::read(path).with_context(|| format!("reading {}", path.display()))?) {
            self.add(&dependency, order)?;
        }
        order.push(path);
        Ok(())
    }
}

fn find_modules(dir: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find_modules(&path, found)?;
        } else if let Some(name) = module_name(&path) {
            found.insert(name, path);
        }
    }
    Ok(())
}

/// `nf_tables` of `…/nf-tables.ko`. What is compressed is none to us: Debian 12's are not.
fn module_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.strip_suffix(".ko")?.replace('-', "_"))
}

/// What a module says of itself: `depends=a,b` among the strings of its `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let rest = &module[at + KEY.len()..];
    let value = &rest[..rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len())];
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn numbered<'a>(paths: &[&'a Path]) -> Vec<(String, &'a Path)> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    paths.iter().enumerate().map(|(number, path)| (format!("{number:03}-{}", name(path)), *path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_dependencies_are_read_from_the_module() {
        assert_eq!(dependencies(b"x\0license=GPL\0depends=nf_tables,x\0y"), ["nf_tables", "x"]);
        assert_eq!(dependencies(b"\0depends=\0"), Vec::<String>::new());
        assert_eq!(dependencies(b"nothing"), Vec::<String>::new());
    }
}
