//! The filter as a whole: compiled, cached, loaded, and compared with podman's.

use std::collections::BTreeSet;
use std::io;

use super::*;
use crate::bundle::capabilities;

/// Docker's 14.
fn default_caps() -> u64 {
    capabilities::sets(&[], &[], false).unwrap().bounding
}

/// The names that a profile lets a container with `caps` call, with whatever arguments.
fn allowed(profile: &Profile, caps: u64) -> BTreeSet<String> {
    let (go_arch, scmp_arch) = native();
    let rules = profile.rules_for(Target { caps, go_arch, scmp_arch, kernel: (6, 1) });
    let allow = rules.into_iter().filter(|rule| rule.action == profile::Action::Allow);
    allow.flat_map(|rule| rule.names.iter().cloned()).collect()
}

#[test]
fn the_table_grants_by_capability() {
    let docker = docker::profile();
    let plain = allowed(&docker, default_caps());
    for name in ["read", "clone", "chroot", "socket", "ptrace", "personality"] {
        assert!(plain.contains(name), "{name}");
    }
    for name in
        ["mount", "bpf", "unshare", "setns", "keyctl", "add_key", "io_uring_setup", "userfaultfd", "reboot", "clone3"]
    {
        assert!(!plain.contains(name), "{name}");
    }
    for (cap, name) in [("SYS_ADMIN", "mount"), ("SYS_BOOT", "reboot"), ("BPF", "bpf"), ("SYS_NICE", "mbind")] {
        let caps = default_caps() | capabilities::bit(capabilities::number(cap).unwrap());
        assert!(allowed(&docker, caps).contains(name), "{cap}: {name}");
    }
    assert!(!allowed(&docker, 0).contains("chroot"));
}

/// podman's package has a profile by other hands from the same origin: where both differ, it is by intent.
#[test]
fn the_table_agrees_with_podmans_but_for_known_names() {
    let Ok(text) = std::fs::read_to_string("/usr/share/containers/seccomp.json") else {
        eprintln!("skipped: golang-github-containers-common is not installed");
        return;
    };
    let podman = Profile::parse(&text).unwrap();
    let ours = allowed(&docker::profile(), default_caps());
    let theirs = allowed(&podman, default_caps());
    // Docker refuses what podman leaves to the capability check alone, or keeps for old programs.
    let podman_alone = [
        "clone3",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "get_mempolicy",
        "keyctl",
        "mbind",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "pidfd_getfd",
        "pivot_root",
        "readdir",
        "reboot",
        "set_mempolicy",
        "setns",
        "sigaction",
        "signal",
        "sigpending",
        "sigsuspend",
        "syscall",
        "syslog",
        "timerfd",
        "umount",
        "umount2",
        "unshare",
    ];
    let surprising: Vec<_> = theirs.difference(&ours).filter(|name| !podman_alone.contains(&name.as_str())).collect();
    assert!(surprising.is_empty(), "podman alone allows {surprising:?}");
    // Calls newer than Debian 12's podman, and three that it refuses.
    let docker_alone = [
        "cachestat",
        "fchmodat2",
        "futex_requeue",
        "futex_wait",
        "futex_waitv",
        "futex_wake",
        "getxattrat",
        "io_pgetevents",
        "io_pgetevents_time64",
        "listmount",
        "listxattrat",
        "map_shadow_stack",
        "mseal",
        "removexattrat",
        "riscv_hwprobe",
        "setxattrat",
        "statmount",
        "uretprobe",
        "vmsplice",
    ];
    let surprising: Vec<_> = ours.difference(&theirs).filter(|name| !docker_alone.contains(&name.as_str())).collect();
    assert!(surprising.is_empty(), "only ours allows {surprising:?}");
}

#[test]
fn a_filter_is_compiled_once_per_plan_and_capabilities() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("seccomp");
    let path = filter(&cache, &SeccompPlan::Default, default_caps()).unwrap();
    let first = fs::metadata(&path).unwrap();
    assert!(load::is_filter_size(first.len()));
    assert_eq!(filter(&cache, &SeccompPlan::Default, default_caps()).unwrap(), path);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), first.modified().unwrap(), "it was compiled again");
    let other = filter(&cache, &SeccompPlan::Default, 0).unwrap();
    assert_ne!(other, path);
    let profile = SeccompPlan::Profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.into());
    assert_ne!(filter(&cache, &profile, 0).unwrap(), other);

    // Half a filter, as after a full disk, is not used.
    fs::write(&path, [0; 12]).unwrap();
    filter(&cache, &SeccompPlan::Default, default_caps()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), first.len());
    assert!(fs::read_dir(&cache).unwrap().all(|e| e.unwrap().path().extension().is_some_and(|x| x == "bpf")));
}

#[test]
fn every_capability_set_and_podmans_file_compile_to_what_the_kernel_takes() {
    let dir = tempfile::tempdir().unwrap();
    for caps in [0, default_caps(), capabilities::all()] {
        filter(dir.path(), &SeccompPlan::Default, caps).unwrap();
    }
    if let Ok(text) = std::fs::read_to_string("/usr/share/containers/seccomp.json") {
        filter(dir.path(), &SeccompPlan::Profile(text), default_caps()).unwrap();
    }
    let ambiguous = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["personality","no_such_call","mseal"],"action":"SCMP_ACT_ERRNO","errnoRet":7,
         "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#;
    filter(dir.path(), &SeccompPlan::Profile(ambiguous.into()), 0).unwrap();
}

/// What a forked child that has loaded `filter` gets from each system call: 0 or the errno.
fn under(filter: &[u8], calls: &[(libc::c_long, [libc::c_long; 3])]) -> (String, Vec<i32>) {
    let mut pipe = [0; 2];
    // SAFETY: plain system calls with live buffers; the child allocates nothing and leaves by _exit.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if load::load(filter).is_err() {
                libc::_exit(90);
            }
            let mut status = [0u8; 4096];
            let fd = libc::open(c"/proc/self/status".as_ptr(), libc::O_RDONLY);
            let length = libc::read(fd, status.as_mut_ptr().cast(), status.len());
            let mut results = [0i32; 32];
            for (result, (number, args)) in results.iter_mut().zip(calls) {
                if libc::syscall(*number, args[0], args[1], args[2]) < 0 {
                    *result = *libc::__errno_location();
                }
            }
            libc::write(pipe[1], results.as_ptr().cast(), size_of_val(&results));
            libc::write(pipe[1], status.as_ptr().cast(), length.max(0) as usize);
            libc::_exit(0);
        }
        libc::close(pipe[1]);
        let mut reader = <fs::File as std::os::fd::FromRawFd>::from_raw_fd(pipe[0]);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert_eq!(status, 0, "the child failed");
        let results =
            bytes[..calls.len() * 4].chunks_exact(4).map(|b| i32::from_ne_bytes(b.try_into().unwrap())).collect();
        (String::from_utf8_lossy(&bytes[32 * 4..]).into_owned(), results)
    }
}

#[test]
fn a_process_under_dockers_profile_is_held_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(filter(dir.path(), &SeccompPlan::Default, default_caps()).unwrap()).unwrap();
    let newuser = libc::c_long::from(libc::CLONE_NEWUSER);
    let (status, results) = under(
        &bytes,
        &[
            (libc::SYS_keyctl, [0, 0, 0]),
            (libc::SYS_bpf, [0, 0, 0]),
            (libc::SYS_unshare, [newuser, 0, 0]),
            (libc::SYS_mount, [0, 0, 0]),
            (libc::SYS_io_uring_setup, [0, 0, 0]),
            (libc::SYS_clone, [newuser, 0, 0]),
            (libc::SYS_clone3, [0, 0, 0]),
            (libc::SYS_socket, [38, 5, 0]),
            (libc::SYS_socket, [40, 1, 0]),
            (libc::SYS_socket, [1, 1, 0]),
            (libc::SYS_getpid, [0, 0, 0]),
            (libc::SYS_chdir, [c"/".as_ptr() as libc::c_long, 0, 0]),
            (libc::SYS_personality, [0xffff_ffff, 0, 0]),
            (libc::SYS_personality, [0x0004_0000, 0, 0]),
            // fchmodat2, newer than Debian 12's libseccomp, with a bad descriptor: the kernel itself refuses.
            (452, [-1, c"x".as_ptr() as libc::c_long, 0]),
            // open_tree_attr: known, and not allowed.
            (467, [-1, 0, 0]),
            // Newer than anything known: programs fall back after ENOSYS.
            (1000, [0, 0, 0]),
        ],
    );
    assert!(status.contains("Seccomp:\t2"), "{status}");
    let (perm, nosys) = (libc::EPERM, libc::ENOSYS);
    let fchmodat2 = results[14];
    assert!(![0, perm].contains(&fchmodat2), "fchmodat2: {fchmodat2}");
    let expected = [perm, perm, perm, perm, perm, perm, nosys, perm, perm, 0, 0, 0, 0, perm, fchmodat2, perm, nosys];
    assert_eq!(results, expected);
}

#[test]
fn a_profile_of_refusals_refuses_what_it_names_and_nothing_else() {
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdirat","mkdir","cachestat"],"action":"SCMP_ACT_ERRNO","errnoRet":71}]}"#;
    let dir = tempfile::tempdir().unwrap();
    let path = filter(dir.path(), &SeccompPlan::Profile(text.into()), 0).unwrap();
    let nowhere = c"/nonexistent/x".as_ptr() as libc::c_long;
    let calls = [(libc::SYS_mkdirat, [-100, nowhere, 0]), (451, [-1, 0, 0]), (libc::SYS_unlinkat, [-100, nowhere, 0])];
    let (_, results) = under(&fs::read(path).unwrap(), &calls);
    assert_eq!(results, [71, 71, libc::ENOENT]);
}

#[test]
fn what_is_not_a_filter_is_not_loaded() {
    let too_long = vec![0; (load::MAX_INSTRUCTIONS + 1) * load::INSTRUCTION_BYTES];
    for bytes in [&[][..], &[0; 7], &[0; 12], &too_long] {
        let error: io::Error = load::load(bytes).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
