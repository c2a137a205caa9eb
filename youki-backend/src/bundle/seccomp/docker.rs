//! Docker's default profile, as moby's `profiles/seccomp` v0.2.3 (2026, Docker Engine 29) defines it: an allow list.
//!
//! Everything else fails with EPERM. What differs by capability, architecture or argument stands in [`RULES`].

use super::profile::{Action, Arch, Arg, Compare, Condition, Profile, Rule};

/// System calls that every container may make.
const ALWAYS: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 \
    clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create \
    epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 \
    execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir \
    fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork \
    fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex \
    futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area \
    getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
    getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid \
    getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr \
    getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents \
    io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount \
    listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack \
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 \
    mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
    name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal \
    pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 \
    process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv \
    recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat \
    renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max \
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile \
    sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 \
    setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 \
    setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 \
    setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn \
    socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync \
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
    timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat \
    uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Namespace flags of clone(2): NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const CLONE_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Who a rule of the table is for.
enum Who {
    /// Every container.
    All,
    /// Those with a capability.
    With(&'static str),
    /// Those on one of these architectures, named as Go does.
    On(&'static [&'static str]),
    /// Those without a capability, on or off these architectures.
    WithoutOn(&'static str, &'static [&'static str]),
    WithoutOff(&'static str, &'static [&'static str]),
}

/// One rule: for whom, which calls, with which argument.
type Row = (Who, &'static str, Option<(u32, Compare, u64)>);

const RULES: [Row; 31] = [
    (Who::All, "process_vm_readv process_vm_writev ptrace", None),
    // All address families but AF_ALG (38) and AF_VSOCK (40), which are not namespaced.
    (Who::All, "socket", Some((0, Compare::Less, 38))),
    (Who::All, "socket", Some((0, Compare::Equal, 39))),
    (Who::All, "socket", Some((0, Compare::Greater, 40))),
    // PER_LINUX, PER_LINUX32, each also with UNAME26, and the query.
    (Who::All, "personality", Some((0, Compare::Equal, 0))),
    (Who::All, "personality", Some((0, Compare::Equal, 0x8))),
    (Who::All, "personality", Some((0, Compare::Equal, 0x2_0000))),
    (Who::All, "personality", Some((0, Compare::Equal, 0x2_0008))),
    (Who::All, "personality", Some((0, Compare::Equal, 0xffff_ffff))),
    (Who::On(&["ppc64le"]), "swapcontext sync_file_range2", None),
    (
        Who::On(&["arm", "arm64"]),
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
        None,
    ),
    (Who::On(&["amd64", "x32"]), "arch_prctl", None),
    (Who::On(&["amd64", "x32", "x86"]), "modify_ldt", None),
    (Who::On(&["s390", "s390x"]), "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr", None),
    (Who::On(&["riscv64"]), "riscv_flush_icache", None),
    (Who::With("CAP_DAC_READ_SEARCH"), "open_by_handle_at", None),
    (
        Who::With("CAP_SYS_ADMIN"),
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
        None,
    ),
    // Threads and processes, but no namespaces; s390 has clone's arguments in another order.
    (
        Who::WithoutOff("CAP_SYS_ADMIN", &["s390", "s390x"]),
        "clone",
        Some((0, Compare::MaskedEqual(CLONE_NAMESPACES), 0)),
    ),
    (
        Who::WithoutOn("CAP_SYS_ADMIN", &["s390", "s390x"]),
        "clone",
        Some((1, Compare::MaskedEqual(CLONE_NAMESPACES), 0)),
    ),
    (Who::With("CAP_SYS_BOOT"), "reboot", None),
    (Who::With("CAP_SYS_CHROOT"), "chroot", None),
    (Who::With("CAP_SYS_MODULE"), "delete_module finit_module init_module", None),
    (Who::With("CAP_SYS_PACCT"), "acct", None),
    (Who::With("CAP_SYS_PTRACE"), "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace", None),
    (Who::With("CAP_SYS_RAWIO"), "ioperm iopl", None),
    (Who::With("CAP_SYS_TIME"), "clock_settime clock_settime64 settimeofday stime", None),
    (Who::With("CAP_SYS_TTY_CONFIG"), "vhangup", None),
    (Who::With("CAP_SYS_NICE"), "get_mempolicy mbind set_mempolicy set_mempolicy_home_node", None),
    (Who::With("CAP_SYSLOG"), "syslog", None),
    (Who::With("CAP_BPF"), "bpf", None),
    (Who::With("CAP_PERFMON"), "perf_event_open", None),
];

/// Each 64-bit architecture with those whose programs it also runs.
const ARCHES: [(&str, &[&str]); 9] = [
    ("SCMP_ARCH_X86_64", &["SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
    ("SCMP_ARCH_AARCH64", &["SCMP_ARCH_ARM"]),
    ("SCMP_ARCH_MIPS64", &["SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64N32"]),
    ("SCMP_ARCH_MIPS64N32", &["SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64"]),
    ("SCMP_ARCH_MIPSEL64", &["SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64N32"]),
    ("SCMP_ARCH_MIPSEL64N32", &["SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64"]),
    ("SCMP_ARCH_S390X", &["SCMP_ARCH_S390"]),
    ("SCMP_ARCH_RISCV64", &[]),
    ("SCMP_ARCH_LOONGARCH64", &[]),
];

/// The profile in the form that a profile file is read into.
pub(super) fn profile() -> Profile {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let names = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut rules = vec![Rule::new(names(ALWAYS), Action::Allow)];
    for (who, calls, arg) in RULES {
        let mut rule = Rule::new(names(calls), Action::Allow);
        rule.args.extend(arg.map(|(index, compare, value)| Arg { index, compare, value }));
        let caps = |cap: &str| Condition { caps: owned(&[cap]), ..Condition::default() };
        let arches = |arches: &[&str]| Condition { arches: owned(arches), ..Condition::default() };
        match who {
            Who::All => {}
            Who::With(cap) => rule.includes = caps(cap),
            Who::On(on) => rule.includes = arches(on),
            Who::WithoutOn(cap, on) => (rule.includes, rule.excludes) = (arches(on), caps(cap)),
            Who::WithoutOff(cap, off) => rule.excludes = Condition { arches: owned(off), ..caps(cap) },
        }
        rules.push(rule);
    }
    // A C library that meets ENOSYS falls back to clone, whose flags can be filtered.
    let mut clone3 = Rule::new(names("clone3"), Action::Errno(libc::ENOSYS as u32));
    clone3.excludes.caps = owned(&["CAP_SYS_ADMIN"]);
    rules.push(clone3);
    let arches = ARCHES.map(|(name, compatible)| Arch { name: name.to_owned(), compatible: owned(compatible) });
    Profile { default: Action::Errno(libc::EPERM as u32), arches: arches.into(), rules }
}
