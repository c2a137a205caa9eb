//! Links the two helper executables static and non-PIE: each container's supervisor would pay for a dynamic
//! executable's relocations in memory, and its start in time (`benches/RESULTS.md`).
//!
//! `crt-static` cannot be asked for by one binary, and for all it would not allow proc-macros. So rustc believes it
//! links dynamically, and finds, in a directory that is searched first, archives in place of the shared libraries it
//! names: linker scripts that lead to the compiler's own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Static and non-PIE on release as on debug builds.
const HELPERS: [&str; 2] = ["berth-supervisor", "berth-create"];

/// What rustc, std and our crates link to by name, and the archives that stand for it.
const LIBRARIES: [(&str, &[&str]); 8] = [
    ("gcc_s", &["libgcc_eh.a", "libgcc.a"]),
    ("c", &["libc.a"]),
    ("m", &["libm.a"]),
    ("util", &["libutil.a"]),
    ("rt", &["librt.a"]),
    ("pthread", &["libpthread.a"]),
    ("dl", &["libdl.a"]),
    ("seccomp", &["libseccomp.a"]),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CC");
    let gnu_linux = env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux")
        && env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu");
    if !gnu_linux {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts")).join("static");
    fs::create_dir_all(&out).expect("cargo's OUT_DIR can be written");
    for (name, archives) in LIBRARIES {
        let found: Vec<String> = archives.iter().filter_map(|archive| find(archive)).collect();
        if found.len() == archives.len() {
            let script = format!("GROUP({})\n", found.join(" "));
            fs::write(out.join(format!("lib{name}.a")), script).expect("cargo's OUT_DIR can be written");
        }
    }
    // The command need not be static, but without PIE it has three quarters of a megabyte less to relocate at each start.
    println!("cargo::rustc-link-arg-bin=berth=-no-pie");
    for helper in HELPERS {
        for argument in [format!("-L{}", out.display()), "-static".to_owned(), "-no-pie".to_owned()] {
            println!("cargo::rustc-link-arg-bin={helper}={argument}");
        }
    }
}

/// The path of an archive of the C compiler's, if it has it.
fn find(archive: &str) -> Option<String> {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let output = Command::new(compiler).arg(format!("-print-file-name={archive}")).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    // A name that is not found is printed as it was given.
    Path::new(&path).is_absolute().then_some(path)
}
