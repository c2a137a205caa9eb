//! What a container cannot see and cannot do.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use runtime_core::spec::DeviceSpec;
use runtime_core::{ExecEvent, ExecOptions};

use crate::support::Case;
use crate::support::case::{IDLE, eventually, words};
use crate::support::pace::patience;
use crate::support::process::supervisor;

crate::tests![
    the_init_runs_under_the_seccomp_filter,
    unconfined_is_unfiltered,
    dockers_default_capabilities_and_no_more,
    capabilities_can_be_added_and_dropped,
    privileged_is_all_that_this_process_has_itself,
    it_sees_only_its_own_processes,
    masked_and_read_only_paths_are_dockers,
    its_cgroups_cannot_be_written,
    a_block_device_cannot_be_opened,
    a_node_of_a_disk_is_made_and_refused,
    a_device_is_given_as_asked_and_no_further,
    a_device_may_have_another_path_in_it_and_a_directory_gives_all,
    privileged_may_use_every_device,
    the_devices_are_dockers,
    it_inherits_three_descriptors_and_no_ignored_signals,
    no_new_privileges_only_when_asked_for,
    it_cannot_mount_or_unshare_a_user_namespace,
    it_has_mount_points_of_its_own_only,
    a_descriptor_that_the_agent_left_inheritable_reaches_nobody,
    how_its_creator_is_scheduled_and_its_umask_reach_nobody,
    an_exec_cannot_be_looked_into_before_it_is_the_users_program,
    who_may_trace_sees_nothing_of_the_hosts_in_an_exec,
    execs_that_a_pause_meets_hold_up_nobody_and_leave_nothing,
    an_exec_without_streams_has_the_containers_own_null_device,
];

async fn the_init_runs_under_the_seccomp_filter(case: Case) {
    let lines = case.lines_of("grep ^Seccomp: /proc/self/status; grep ^Seccomp: /proc/1/status").await;
    assert_eq!(lines, ["Seccomp:\t2", "Seccomp:\t2"]);
}

async fn unconfined_is_unfiltered(case: Case) {
    let mut spec = case.script("grep ^Seccomp: /proc/self/status").await;
    spec.seccomp = runtime_core::spec::SeccompSpec::Unconfined;
    assert_eq!(case.run(&spec).await.succeeded(), ["Seccomp:\t0"]);
}

/// CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL
/// AUDIT_WRITE.
const DOCKERS_CAPABILITIES: &str = "00000000a80425fb";

async fn dockers_default_capabilities_and_no_more(case: Case) {
    let lines = case
        .lines_of("grep -E '^Cap(Prm|Eff|Bnd):' /proc/self/status | cut -f2; grep ^CapInh: /proc/self/status")
        .await;
    assert_eq!(lines[..3], [DOCKERS_CAPABILITIES; 3]);
    assert_eq!(lines[3], "CapInh:\t0000000000000000", "CVE-2022-24769");
}

async fn capabilities_can_be_added_and_dropped(case: Case) {
    let show = "grep ^CapEff: /proc/self/status | cut -f2";
    let mut spec = case.script(show).await;
    spec.capabilities = vec!["NET_ADMIN".into()];
    spec.drop_capabilities = vec!["CAP_CHOWN".into()];
    assert_eq!(case.run(&spec).await.succeeded(), ["00000000a80435fa"]);
    spec.capabilities = vec!["cap_kill".into()];
    spec.drop_capabilities = vec!["ALL".into()];
    assert_eq!(case.run(&spec).await.succeeded(), ["0000000000000020"]);
    spec.capabilities = vec!["NO_SUCH_CAPABILITY".into()];
    let error = case.try_start(&case.id(), &spec).await.unwrap_err();
    assert!(error.to_string().contains("NO_SUCH_CAPABILITY"), "{error}");
}

async fn privileged_is_all_that_this_process_has_itself(case: Case) {
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let mut spec = case.script("grep -E '^Cap(Bnd|Eff):' /proc/self/status | cut -f2").await;
    spec.privileged = true;
    assert_eq!(case.run(&spec).await.succeeded(), [own; 2]);
    spec.privileged = false;
    spec.capabilities = vec!["ALL".into()];
    assert_eq!(case.run(&spec).await.succeeded(), [own; 2]);
}

async fn it_sees_only_its_own_processes(case: Case) {
    let id = case.idle().await;
    let pids = case
        .exec_ok(
            &id,
            "cd /proc; ls -d [0-9]* | wc -l; readlink /proc/self/ns/pid > /dev/null; echo $(cat /proc/1/comm)",
        )
        .await;
    let mut lines = pids.lines();
    let count: u32 = lines.next().unwrap().trim().parse().unwrap();
    assert!(count <= 6, "{pids}");
    assert_eq!(lines.next(), Some("sh"));
}

async fn masked_and_read_only_paths_are_dockers(case: Case) {
    let script = "
        for f in kcore keys timer_list sched_debug; do [ -e /proc/$f ] && [ \"$(head -c 1 /proc/$f 2>/dev/null | wc -c)\" != 0 ] && echo open /proc/$f; done
        for d in acpi scsi; do [ -d /proc/$d ] && [ \"$(ls -A /proc/$d)\" ] && echo open /proc/$d; done
        [ -d /sys/firmware ] && [ \"$(ls -A /sys/firmware)\" ] && echo open /sys/firmware
        for d in bus fs irq sys; do grep -q \" /proc/$d ro\" /proc/self/mountinfo || echo writable /proc/$d; done
        [ -e /proc/sysrq-trigger ] && (echo h > /proc/sysrq-trigger) 2>/dev/null && echo writable sysrq
        (echo x > /proc/sys/kernel/hostname) 2>/dev/null && echo writable /proc/sys
        mkdir /sys/x 2>/dev/null && echo writable /sys
        grep -q ' /sys ro' /proc/self/mountinfo || echo /sys is not read-only
        echo done";
    assert_eq!(case.run(&case.script(script).await).await.succeeded(), ["done"]);
}

async fn its_cgroups_cannot_be_written(case: Case) {
    let script = "
        for f in $(find /sys/fs/cgroup -name pids.max -o -name memory.max -o -name memory.limit_in_bytes -o -name cgroup.procs -o -name tasks 2>/dev/null); do
            (echo 1 > $f) 2>/dev/null && echo wrote $f
        done
        for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/mine 2>/dev/null && echo made $d/mine; done
        awk '/ - cgroup2? / && $6 !~ /^ro/ {print $5}' /proc/self/mountinfo
        echo done";
    assert_eq!(case.run(&case.script(script).await).await.succeeded(), ["done"]);
}

async fn a_block_device_cannot_be_opened(case: Case) {
    let script = "for d in $(awk 'NR>2 {print $1\":\"$2}' /proc/partitions) 7:0 1:1 10:200; do
            mknod /tmp/d b ${d%:*} ${d#*:} 2>/dev/null && head -c 1 /tmp/d > /dev/null 2>&1 && echo opened b $d; rm -f /tmp/d
            mknod /tmp/d c ${d%:*} ${d#*:} 2>/dev/null && head -c 1 /tmp/d > /dev/null 2>&1 && echo opened c $d; rm -f /tmp/d
        done; echo done";
    assert_eq!(case.run(&case.script(script).await).await.succeeded(), ["done"]);
}

/// A disk of this host, or a loop device, that this process may use itself: name and numbers.
fn disk() -> (String, u32, u32) {
    let table = std::fs::read_to_string("/proc/partitions").unwrap();
    let disks = table.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned);
    let usable = |name: &String| std::fs::File::options().read(true).write(true).open(Path::new("/dev").join(name));
    let (name, file) = disks
        .chain((0..8).map(|number| format!("loop{number}")))
        .find_map(|name| usable(&name).ok().map(|file| (name, file)))
        .expect("a host with a disk, or with loop devices");
    let device = file.metadata().unwrap().rdev();
    (name, rustix::fs::major(device), rustix::fs::minor(device))
}

/// CAP_MKNOD is among Docker's defaults: what keeps a container off the disk is the device cgroup, on v2 its program.
async fn a_node_of_a_disk_is_made_and_refused(case: Case) {
    let (name, major, minor) = disk();
    let script = format!(
        "mknod /{name} b {major} {minor} && echo made; head -c 1 /{name} 2>&1 | grep -o 'Operation not permitted'; \
         (: >> /{name}) 2>&1 | grep -o 'Operation not permitted'"
    );
    let refused = ["made", "Operation not permitted", "Operation not permitted"];
    assert_eq!(case.lines_of(&script).await, refused);
    // An exec is held to it as well.
    let id = case.idle().await;
    assert_eq!(case.exec_ok(&id, &script).await.lines().collect::<Vec<_>>(), refused);
}

async fn a_device_is_given_as_asked_and_no_further(case: Case) {
    let (name, ..) = disk();
    let script = format!(
        "(: < /dev/{name}) && echo read; (: >> /dev/{name}) 2>&1 | grep -o 'Operation not permitted'; echo done"
    );
    let mut spec = case.script(&script).await;
    spec.devices = vec![DeviceSpec { path: format!("/dev/{name}"), read: true, write: false, mknod: false }];
    assert_eq!(case.run(&spec).await.succeeded(), ["read", "Operation not permitted", "done"]);
}

async fn a_device_may_have_another_path_in_it_and_a_directory_gives_all(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let (name, major, minor) = disk();
    let device = format!("/dev/{name}:/dev/sub/disk:r");
    let script =
        format!("stat -c %t:%T /dev/sub/disk; (: < /dev/sub/disk) && echo read; [ -e /dev/{name} ] || echo moved");
    let said = case.berth(&["run", "--rm", "--device", &device, &image, "sh", "-c", &script]).await.succeeded();
    assert_eq!(said.lines().collect::<Vec<_>>(), [&*format!("{major:x}:{minor:x}"), "read", "moved"]);

    // Nodes of the host's, so that there is a directory of them whatever the machine.
    let host = tempfile::Builder::new().prefix("berth-test-").tempdir_in("/dev").unwrap();
    let dir = host.path().to_str().unwrap();
    for name in ["deep", "empty"] {
        std::fs::create_dir(host.path().join(name)).unwrap();
    }
    for (name, minor) in [("full", 7), ("deep/zero", 5)] {
        let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666));
        let number = rustix::fs::makedev(1, minor);
        rustix::fs::mknodat(rustix::fs::CWD, host.path().join(name), kind, mode, number).unwrap();
    }
    let script = "cd /dev/all && find . | sort && head -c 3 deep/zero | wc -c";
    let said = case.berth(&["run", "--rm", "--device", &format!("{dir}:/dev/all"), &image, "sh", "-c", script]).await;
    assert_eq!(said.succeeded().split_whitespace().collect::<Vec<_>>(), [".", "./deep", "./deep/zero", "./full", "3"]);
    for (device, why) in [
        (format!("{dir}/empty"), "holds no device"),
        ("/dev/zero:/etc/zero".to_owned(), "not beneath /dev"),
        ("/dev/zero:/dev/stdin".to_owned(), "the container's own"),
    ] {
        let said = case.berth(&["run", "--rm", "--device", &device, &image, "true"]).await;
        assert!(said.code == 125 && said.stderr.contains(why), "{device}: {said:?}");
    }
}

async fn privileged_may_use_every_device(case: Case) {
    let (name, ..) = disk();
    let mut spec = case.script(&format!("(: < /dev/{name}) && echo read; (: >> /dev/{name}) && echo written")).await;
    spec.privileged = true;
    assert_eq!(case.run(&spec).await.succeeded(), ["read", "written"]);
}

async fn the_devices_are_dockers(case: Case) {
    let lines =
        case.lines_of("ls /dev; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo x > /dev/null").await;
    let names: Vec<&str> = lines.iter().map(String::as_str).collect();
    for device in [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero",
    ] {
        assert!(names.contains(&device), "no /dev/{device} in {names:?}");
    }
    assert_eq!(names[names.len() - 2..], ["4", "4"]);
    assert!(
        !names.iter().any(|name| name.starts_with("sd") || name.starts_with("vd") || *name == "mem" || *name == "kmsg")
    );
}

async fn it_inherits_three_descriptors_and_no_ignored_signals(case: Case) {
    let spec = case.spec(&["ls", "-l", "/proc/self/fd"]).await;
    let lines = case.run(&spec).await.succeeded();
    // But for the directory that ls itself has open.
    let open: Vec<&String> = lines.iter().filter(|line| line.contains("->") && !line.contains("/proc/")).collect();
    assert_eq!(open.len(), 3, "{open:?}");
    let spec = case.spec(&["grep", "-E", "^Sig(Ign|Blk):", "/proc/self/status"]).await;
    assert_eq!(case.run(&spec).await.succeeded(), ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"]);
}

async fn no_new_privileges_only_when_asked_for(case: Case) {
    let mut spec = case.script("grep ^NoNewPrivs: /proc/self/status | cut -f2").await;
    assert_eq!(case.run(&spec).await.succeeded(), ["0"]);
    spec.no_new_privileges = true;
    assert_eq!(case.run(&spec).await.succeeded(), ["1"]);
}

async fn it_cannot_mount_or_unshare_a_user_namespace(case: Case) {
    let script = "mount -t tmpfs none /tmp 2>/dev/null && echo mounted; unshare -U true 2>/dev/null && echo unshared; \
                  chroot / true && echo chroot is allowed; dmesg > /dev/null 2>&1 && echo read dmesg; echo done";
    let lines = case.run(&case.script(script).await).await.succeeded();
    assert_eq!(lines, ["chroot is allowed", "done"]);
}

async fn it_has_mount_points_of_its_own_only(case: Case) {
    let root = &case.suite.shared().await.root;
    let lines = case.lines_of("cut -d' ' -f5 /proc/self/mountinfo").await;
    let host = [root.dir.display().to_string(), root.run_dir.display().to_string()];
    let seen: Vec<&String> = lines.iter().filter(|line| host.iter().any(|path| line.contains(path.as_str()))).collect();
    assert!(seen.is_empty(), "{seen:?}");
}

async fn a_descriptor_that_the_agent_left_inheritable_reaches_nobody(case: Case) {
    let path = case.suite.dir.path().join("of-the-agent");
    std::fs::write(&path, "secret").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let id = case.idle().await;
    let init = case.runtime.get_container_pid(&id).await.unwrap().expect("it runs");
    for pid in [supervisor(&*case.runtime, &id).await, init] {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let target = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
            assert_ne!(target, path, "process {pid} has it");
        }
    }
    let seen = case.exec_ok(&id, "ls -l /proc/self/fd /proc/1/fd").await;
    assert!(!seen.contains("of-the-agent"), "{seen}");
}

/// Looks, from within the container, at every process that still is the supervisor's copy.
const LOOK_INTO: &str = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); for p in /proc/[0-9]*; do
    [ $p = /proc/$$ ] && continue
    tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q ^berth-supervisor || continue
    echo seen
    for link in exe cwd root fd/0 fd/1 fd/2; do readlink $p/$link > /dev/null 2>&1 && echo $link; done
    for file in environ maps mem auxv fd/0; do (: < $p/$file) 2>/dev/null && echo $file; done
    exit 0; done; done";

async fn an_exec_cannot_be_looked_into_before_it_is_the_users_program(case: Case) {
    let id = case.idle().await;
    // The search along such a PATH takes a while, with nothing left to do but execve. Old kernels copy it for each try.
    let env = [("PATH".to_owned(), ":".repeat(30_000))].into();
    let options = ExecOptions { env, ..ExecOptions::default() };
    let looking = {
        let case = case.clone();
        let id = id.clone();
        tokio::spawn(async move { case.exec_ok(&id, LOOK_INTO).await })
    };
    while !looking.is_finished() {
        let events = case.runtime.exec_with(&id, &words(&["no-such-program"]), &options, None).await.unwrap();
        let events: Vec<ExecEvent> = events.collect().await;
        assert_eq!(events.last(), Some(&ExecEvent::Exit(127)), "{events:?}");
    }
    assert_eq!(looking.await.unwrap(), "seen\n", "all that could be read of it");
}

async fn who_may_trace_sees_nothing_of_the_hosts_in_an_exec(case: Case) {
    let mut spec = case.script(IDLE).await;
    spec.capabilities = vec!["SYS_PTRACE".into()];
    let id = case.start(&spec).await;
    // A file of the host's that the container has not.
    let host = case.suite.dir.path().display();
    // Nor more capabilities than the program is to have: Docker's, and that one.
    let look = format!(
        "i=0; while [ $i -lt 600 ]; do i=$((i+1)); for p in /proc/[0-9]*/root{host}; do [ -e $p ] && echo seen && exit; done
        for p in /proc/[0-9]*/status; do while read key value; do
        [ $key = CapEff: ] && [ $value != 00000000a80c25fb ] && echo $value && exit; done < $p; done 2> /dev/null; done; true"
    );
    let looking = {
        let case = case.clone();
        let id = id.clone();
        tokio::spawn(async move { case.exec_ok(&id, &look).await })
    };
    let mut execs = 0;
    while !looking.is_finished() {
        let told = case.runtime.exec(&id, &words(&["sh", "-c", "echo $PPID; exit 3"])).await.unwrap();
        assert_eq!(told, (3, "0\n".to_owned(), String::new()));
        execs += 1;
    }
    assert_eq!(looking.await.unwrap(), "", "of the host's, within {execs} execs");
    let missing = case.runtime.exec(&id, &words(&["no-such-program"])).await.unwrap();
    assert_eq!(missing.0, 127, "{missing:?}");
}

/// Those of who may trace are made in two steps, of which the first joins what may be frozen by then.
async fn execs_that_a_pause_meets_hold_up_nobody_and_leave_nothing(case: Case) {
    let mut spec = case.script(IDLE).await;
    spec.capabilities = vec!["SYS_PTRACE".into()];
    let id = case.start(&spec).await;
    let mut execs = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (case, id) = (case.clone(), id.clone());
        execs.spawn(async move { case.runtime.exec(&id, &words(&["true"])).await });
    }
    execs.join_next().await.unwrap().unwrap().unwrap();
    case.berth(&["pause", &id.to_string()]).await.succeeded();
    let begin = Instant::now();
    case.runtime.container_state(&id).await.unwrap();
    let took = begin.elapsed();
    case.berth(&["unpause", &id.to_string()]).await.succeeded();
    assert!(took < patience(Duration::from_secs(5)), "its supervisor answers after {took:?}");
    while execs.join_next().await.is_some() {}
    assert_eq!(case.exec_ok(&id, "echo on").await, "on\n");
    // The init and what it waits for.
    eventually("what was given up is gone", || async { case.cgroup_pids(&id).len() <= 2 }).await;
}

async fn an_exec_without_streams_has_the_containers_own_null_device(case: Case) {
    let id = case.idle().await;
    let before = std::fs::metadata("/dev/null").unwrap();
    let script = "chown 7:7 /proc/self/fd/0; chmod 640 /proc/self/fd/0; stat -Lc %t:%T:%u:%a /proc/self/fd/0 /dev/null";
    let (status, said, _) = case.runtime.exec(&id, &words(&["sh", "-c", script])).await.unwrap();
    let after = std::fs::metadata("/dev/null").unwrap();
    let changed = (before.uid(), before.mode()) != (after.uid(), after.mode());
    if changed {
        std::fs::set_permissions("/dev/null", before.permissions()).unwrap();
        std::os::unix::fs::chown("/dev/null", Some(before.uid()), Some(before.gid())).unwrap();
    }
    assert!(!changed, "the host's was changed");
    assert_eq!((status, said.as_str()), (0, "1:3:7:640\n1:3:7:640\n"));
    // Who has spoilt his can still be looked into; his file is not written to.
    case.exec_ok(&id, "rm /dev/null; echo kept > /dev/null").await;
    assert_eq!(case.exec_ok(&id, "cat; echo read").await, "read\n");
    let detached = ["exec", "-d", &id.to_string(), "sh", "-c", "echo x; echo done > /tmp/done"];
    case.berth(&detached).await.succeeded();
    eventually("it is done", || async { case.exec_ok(&id, "cat /tmp/done /dev/null").await == "done\nkept\n" }).await;
}

async fn how_its_creator_is_scheduled_and_its_umask_reach_nobody(case: Case) {
    let image = case.suite.busybox().await;
    let script = "grep Cpus_allowed: /proc/self/status; cut -d' ' -f19,41 /proc/self/stat; cat /proc/self/personality; \
        grep -E 'Max (cpu|file size|processes|pending|locked|msgqueue|realtime timeout)' /proc/self/limits; \
        stat -c %a /etc/hosts /etc/resolv.conf /etc/hostname /anonymous";
    let args = ["run", "--rm", "-v", "/anonymous", image, "sh", "-c", script];
    let ordinary = case.berth(&args).await.succeeded();
    assert!(ordinary.ends_with("644\n644\n644\n755\n"), "{ordinary}");
    let mut odd = crate::support::berth::command(&case.suite.shared().await.root);
    let cpu_seconds = crate::support::pace::patience(std::time::Duration::from_secs(5)).as_secs();
    // SAFETY: between fork and exec it makes system calls only, on integers and structs of its own.
    unsafe {
        odd.args(args).pre_exec(move || {
            let limit = |resource, most: u64| {
                let mut limit: libc::rlimit = std::mem::zeroed();
                // Not the hard limit, which not everybody may raise again.
                libc::getrlimit(resource, &raw mut limit);
                limit.rlim_cur = most;
                libc::setrlimit(resource, &raw const limit)
            };
            let mut first: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(0, &mut first);
            let normal: libc::sched_param = std::mem::zeroed();
            libc::umask(0o077);
            let results = [
                limit(libc::RLIMIT_FSIZE, 1_000 << 10),
                limit(libc::RLIMIT_CPU, cpu_seconds),
                limit(libc::RLIMIT_NPROC, 1_000),
                limit(libc::RLIMIT_SIGPENDING, 1_000),
                limit(libc::RLIMIT_MEMLOCK, 32 << 10),
                limit(libc::RLIMIT_MSGQUEUE, 32 << 10),
                limit(libc::RLIMIT_RTTIME, 1 << 40),
                libc::setpriority(libc::PRIO_PROCESS, 0, 7),
                libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const normal),
                libc::sched_setaffinity(0, size_of_val(&first), &raw const first),
                libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong).min(0),
            ];
            if results.contains(&-1) { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    assert_eq!(crate::support::berth::said(odd).await.succeeded(), ordinary);
}
