//! A disk that takes nothing for a while: who waits for its log waits, who does not goes on, and the log says what it lacks.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use runtime_core::spec::{LogMode, StorageSpec};
use runtime_core::{ContainerId, LogRecord, LogsOptions, Runtime, ServiceSpec};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};

use crate::full_disk::{small, the_container};
use crate::support::Case;
use crate::support::berth::{berth, command};
use crate::support::case::{eventually, soon, start_on, words};
use crate::support::pace::patience;
use crate::support::process::{gone, kill, signal, supervisor};
use crate::support::root::Root;

crate::tests![
    who_waits_for_a_log_waits_for_its_disk_and_loses_nothing,
    who_does_not_wait_goes_on_and_the_log_says_what_it_lacks,
    what_fits_the_buffer_is_whole_also_after_an_end_while_the_disk_took_nothing,
    a_restart_goes_on_in_the_log,
    the_writer_goes_with_its_supervisor_and_is_replaced_alone,
    the_mode_may_stand_in_the_file_or_a_flag,
    an_end_waits_for_a_log_that_takes_nothing_no_longer_than_its_bound,
    a_writer_that_is_killed_while_the_end_waits_for_it_is_followed_by_another,
    a_reader_that_does_not_read_holds_no_such_container_back,
];

/// Lines that are written while the disk takes nothing: more than all buffers hold.
const LINES: usize = 20_000;
/// Of each of them.
const PAD_BYTES: usize = 1_000;
/// What an end waits for a log at most.
const LOG_BOUND: Duration = Duration::from_secs(5);

/// A file system to which nothing can be written: who tries sleeps in the kernel.
struct Frozen(fs::File);

/// `FIFREEZE` and `FITHAW` of `linux/fs.h`.
const FREEZE: libc::Ioctl = 0xC004_5877_u32 as libc::Ioctl;
const THAW: libc::Ioctl = 0xC004_5878_u32 as libc::Ioctl;

impl Frozen {
    fn freeze(root: &Root) -> Self {
        let dir = fs::File::open(&root.dir).unwrap();
        // SAFETY: the descriptor is open; neither request looks at its argument.
        let frozen = unsafe { libc::ioctl(dir.as_raw_fd(), FREEZE, 0) };
        assert_eq!(frozen, 0, "freezing {}: {}", root.dir.display(), std::io::Error::last_os_error());
        Self(dir)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::ioctl(self.0.as_raw_fd(), THAW, 0) };
    }
}

/// A container that counts what it has written in a file of its memory.
struct Writer {
    runtime: Arc<dyn Runtime>,
    id: ContainerId,
    /// Its `/p`, as seen from here.
    dir: PathBuf,
}

impl Writer {
    /// It writes [`LINES`] lines once there is a file `go`, and a last one once there is `end`.
    async fn start(case: &Case, runtime: &Arc<dyn Runtime>, mode: LogMode) -> Self {
        let mut spec = memory_at_p(case.script(&writer_script()).await);
        spec.logs.mode = Some(mode);
        let id = the_container();
        start_on(&**runtime, &id, &spec).await.unwrap();
        let init = runtime.get_container_pid(&id).await.unwrap().expect("it runs");
        Self { runtime: runtime.clone(), id, dir: format!("/proc/{init}/root/p").into() }
    }

    fn may(&self, what: &str) {
        fs::write(self.dir.join(what), "").unwrap();
    }

    /// Lines that are out of its hands. Asked for while it tells, the last ones known.
    async fn written(&self) -> usize {
        for _ in 0..100 {
            if let Some(count) =
                fs::read_to_string(self.dir.join("written")).ok().and_then(|text| text.trim().parse().ok())
            {
                return count;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        0
    }

    /// As long as it goes on, it may take its time.
    async fn until_all_is_written(&self) {
        let mut before = self.written().await;
        while before < LINES {
            eventually("it writes on", || async { self.written().await > before }).await;
            before = self.written().await;
        }
    }

    async fn ends(&self) -> Vec<LogRecord> {
        self.may("end");
        assert_eq!(soon("its end", self.runtime.wait_container(&self.id)).await, Ok(0));
        records(&*self.runtime, &self.id).await
    }
}

/// Greets once there is a file `greet`.
fn writer_script() -> String {
    format!(
        "pad=$(head -c {PAD_BYTES} /dev/zero | tr '\\0' x); \
         until [ -e /p/go ]; do [ -e /p/greet ] && rm /p/greet && echo hello; sleep 0.05; done; i=0; \
         while [ $i -lt {LINES} ]; do i=$((i+1)); echo $i $pad; echo $i > /p/written; done; \
         until [ -e /p/end ]; do sleep 0.05; done; echo last"
    )
}

fn memory_at_p(mut spec: ServiceSpec) -> ServiceSpec {
    spec.storage.push(StorageSpec::Tmpfs { target: "/p".to_owned(), size: None, mode: None });
    spec
}

async fn records(runtime: &dyn Runtime, id: &ContainerId) -> Vec<LogRecord> {
    runtime.logs_stream(id, &LogsOptions::default()).await.unwrap().try_collect().await.unwrap()
}

fn texts(records: &[LogRecord]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8_lossy(&record.bytes).into_owned()).collect()
}

fn dropped(records: &[LogRecord]) -> u64 {
    records.iter().map(|record| record.dropped_bytes).sum()
}

/// The numbers that the lines begin with.
fn numbers(records: &[LogRecord]) -> Vec<usize> {
    texts(records).iter().filter_map(|text| text.split_once(' ')?.0.parse().ok()).collect()
}

async fn who_waits_for_a_log_waits_for_its_disk_and_loses_nothing(case: Case) {
    let (_disk, root, runtime) = small(&case).await;
    let writer = Writer::start(&case, &runtime, LogMode::Blocking).await;
    let frozen = Frozen::freeze(&root);
    writer.may("go");
    let stands_still = || async {
        let before = writer.written().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        before > 0 && writer.written().await == before
    };
    eventually("it waits", stands_still).await;
    assert!(writer.written().await < LINES, "it did not wait");
    drop(frozen);
    writer.until_all_is_written().await;
    let records = writer.ends().await;
    assert_eq!((numbers(&records).len(), dropped(&records)), (LINES, 0));
    runtime.remove_container(&writer.id).await.unwrap();
}

async fn who_does_not_wait_goes_on_and_the_log_says_what_it_lacks(case: Case) {
    let (_disk, root, runtime) = small(&case).await;
    let writer = Writer::start(&case, &runtime, LogMode::NonBlocking).await;
    let frozen = Frozen::freeze(&root);
    writer.may("go");
    writer.until_all_is_written().await;
    // Nor does its supervisor wait.
    let (code, said, _) = soon("exec", runtime.exec(&writer.id, &words(&["echo", "answered"]))).await.unwrap();
    assert_eq!((code, said.as_str()), (0, "answered\n"));
    drop(frozen);
    eventually("the log says so", || async { dropped(&records(&*runtime, &writer.id).await) > 0 }).await;
    let records = writer.ends().await;
    let (texts, numbers) = (texts(&records), numbers(&records));
    assert_eq!((numbers[0], texts.last().unwrap().as_str()), (1, "last"));
    assert!(numbers.is_sorted() && numbers.len() < LINES, "{} lines", numbers.len());
    // To the byte: what is there and what is said not to be there are what was written.
    let lines = (1..=LINES).map(|number| number.to_string().len() + 1 + PAD_BYTES + 1).sum::<usize>() + "last\n".len();
    let kept = records
        .iter()
        .filter(|record| record.dropped_bytes == 0)
        .map(|record| record.bytes.len() + usize::from(!record.partial));
    assert_eq!(kept.sum::<usize>() as u64 + dropped(&records), lines as u64);
    // About a mebibyte of it was held.
    let held = numbers.len() * PAD_BYTES;
    assert!((900 << 10..3 << 20).contains(&held), "{held} bytes were held");
    runtime.remove_container(&writer.id).await.unwrap();
}

async fn what_fits_the_buffer_is_whole_also_after_an_end_while_the_disk_took_nothing(case: Case) {
    let (_disk, root, runtime) = small(&case).await;
    let id = the_container();
    let mut spec = memory_at_p(case.script("until [ -e /p/go ]; do sleep 0.05; done; seq 1 50000; exit 3").await);
    spec.logs.mode = Some(LogMode::NonBlocking);
    spec.logs.max_buffer_bytes = Some(8 << 20);
    start_on(&*runtime, &id, &spec).await.unwrap();
    let init = runtime.get_container_pid(&id).await.unwrap().expect("it runs");
    let frozen = Frozen::freeze(&root);
    fs::write(format!("/proc/{init}/root/p/go"), "").unwrap();
    eventually("it ends", || async { gone(init) }).await;
    drop(frozen);
    assert_eq!(soon("its end", runtime.wait_container(&id)).await, Ok(3));
    assert_eq!(dropped(&records(&*runtime, &id).await), 0);
    // Joined from their pieces: a line may have come in two.
    let lines = runtime.get_logs(&id).await.unwrap();
    assert_eq!(lines.len(), 50_000);
    assert!(lines.iter().zip(1..).all(|(line, number)| line.message == number.to_string()), "a line is not its own");
    runtime.remove_container(&id).await.unwrap();
}

async fn a_restart_goes_on_in_the_log(case: Case) {
    let mut spec = case.script("echo attempt; exit 1").await;
    spec.logs.mode = Some(LogMode::NonBlocking);
    spec.restart_policy = crate::restarts::policy(runtime_core::spec::RestartKind::OnFailure, Some(3), 1);
    let id = case.start(&spec).await;
    eventually("all its attempts are logged", || async { case.runtime.get_logs(&id).await.unwrap().len() == 4 }).await;
}

async fn the_writer_goes_with_its_supervisor_and_is_replaced_alone(case: Case) {
    let mut spec = case.script("trap 'echo again' USR1; echo up; while :; do sleep 0.1; done").await;
    spec.logs.mode = Some(LogMode::NonBlocking);
    let id = case.start(&spec).await;
    case.until_logged(&id, "up").await;
    let supervisor = supervisor(&*case.runtime, &id).await;
    let first = writer_of(supervisor).expect("a writer");
    kill(first);
    eventually("it is gone", || async { gone(first) }).await;
    case.runtime.kill_container(&id, Some("USR1")).await.unwrap();
    case.until_logged(&id, "again").await;
    let second = writer_of(supervisor).expect("another writer");
    kill(supervisor);
    eventually("both are gone", || async { gone(supervisor) && gone(second) }).await;
    let said: Vec<_> = case.runtime.get_logs(&id).await.unwrap().into_iter().map(|entry| entry.message).collect();
    assert_eq!(said, ["up", "again"]);
}

/// The child that writes the log of this supervisor.
fn writer_of(supervisor: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    let is_writer = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "berth-log\n");
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_writer)
}

async fn the_mode_may_stand_in_the_file_or_a_flag(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let root = case.suite.shared().await.root.clone();
    let file = case.suite.dir.path().join("non-blocking.toml");
    let file = file.to_str().unwrap();
    fs::write(file, "[logs]\nmode = \"non_blocking\"\n").unwrap();
    let by_file = ["--config", file, "run", "-d", "--network", "none"];
    let by_flag =
        ["run", "-d", "--network", "none", "--log-opt", "mode=non-blocking", "--log-opt", "max-buffer-size=2m"];
    for (how, writes) in [(&by_file[..], true), (&by_flag, true), (&["run", "-d", "--network", "none"], false)] {
        let id = case.id();
        let script = "echo up; exec sleep 3600";
        berth(&root, &[how, &["--name", &id.service, &image, "sh", "-c", script]].concat()).await.succeeded();
        case.until_logged(&id, "up").await;
        assert_eq!(writer_of(supervisor(&*case.runtime, &id).await).is_some(), writes, "{how:?}");
    }
    for (wrong, said) in [
        (&["--log-opt", "max-buffer-size=2m"][..], "non_blocking"),
        (&["--log-opt", "mode=non-blocking", "--log-opt", "max-buffer-size=0"], "max_buffer_bytes"),
    ] {
        let told = berth(&root, &[&["create"][..], wrong, &[&image]].concat()).await;
        assert!(told.code == 125 && told.stderr.contains(said), "{wrong:?}: {told:?}");
    }
    fs::write(file, "[logs]\nmode = \"sometimes\"\n").unwrap();
    let told = berth(&root, &["--config", file, "ps"]).await;
    assert!(told.code != 0 && told.stderr.contains("sometimes") && told.stderr.contains("non_blocking"), "{told:?}");
}

/// A container of which one line is logged; it ends with 3 after `last`, which its stopped writer has not taken. All that is
/// told: the container, its supervisor, its writer and its init.
async fn with_a_stopped_writer(case: &Case) -> (ContainerId, u32, u32, u32) {
    let mut spec =
        memory_at_p(case.script("echo up; until [ -e /p/go ]; do sleep 0.05; done; echo last; exit 3").await);
    spec.logs.mode = Some(LogMode::NonBlocking);
    let id = case.start(&spec).await;
    case.until_logged(&id, "up").await;
    let supervisor = supervisor(&*case.runtime, &id).await;
    let writer = writer_of(supervisor).expect("a writer");
    let init = case.runtime.get_container_pid(&id).await.unwrap().expect("it runs");
    // As it is in the kernel when its disk never comes back, but for all else that would wait for that disk.
    signal(writer, rustix::process::Signal::STOP);
    fs::write(format!("/proc/{init}/root/p/go"), "").unwrap();
    (id, supervisor, writer, init)
}

async fn an_end_waits_for_a_log_that_takes_nothing_no_longer_than_its_bound(case: Case) {
    let (id, supervisor, writer, _) = with_a_stopped_writer(&case).await;
    let begin = Instant::now();
    assert_eq!(soon("its end", case.runtime.wait_container(&id)).await, Ok(3));
    let took = begin.elapsed();
    assert!(took > LOG_BOUND - Duration::from_millis(500), "after {took:?}: it was not waited for");
    assert!(took < patience(LOG_BOUND + Duration::from_secs(10)), "after {took:?}");
    eventually("both are gone", || async { gone(supervisor) && gone(writer) }).await;
    let said: Vec<_> = case.runtime.get_logs(&id).await.unwrap().into_iter().map(|entry| entry.message).collect();
    assert_eq!(said, ["up"]);
    let root = case.suite.shared().await.root.clone();
    let own_log = fs::read_to_string(root.dir.join(format!("containers/{id}/supervisor.log"))).unwrap();
    assert!(own_log.contains("the log lacks the container's last 5 bytes"), "{own_log}");
}

async fn a_writer_that_is_killed_while_the_end_waits_for_it_is_followed_by_another(case: Case) {
    let (id, _, writer, init) = with_a_stopped_writer(&case).await;
    eventually("it ends", || async { gone(init) }).await;
    kill(writer);
    assert_eq!(soon("its end", case.runtime.wait_container(&id)).await, Ok(3));
    let said: Vec<_> = case.runtime.get_logs(&id).await.unwrap().into_iter().map(|entry| entry.message).collect();
    assert_eq!(said, ["up", "last"]);
}

async fn a_reader_that_does_not_read_holds_no_such_container_back(case: Case) {
    let mut spec = memory_at_p(case.script(&writer_script()).await);
    spec.logs.mode = Some(LogMode::NonBlocking);
    let id = case.start(&spec).await;
    let init = case.runtime.get_container_pid(&id).await.unwrap().expect("it runs");
    let root = case.suite.shared().await.root.clone();
    let piped = std::process::Stdio::piped;
    let mut reader = command(&root)
        .args(["attach", &id.service])
        .stdout(piped())
        .stderr(piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let writer = Writer { runtime: case.runtime.clone(), id: id.clone(), dir: format!("/proc/{init}/root/p").into() };
    let mut stdout = tokio::io::BufReader::new(reader.stdout.take().unwrap()).lines();
    // It gets what is written once it is attached.
    let attached = async {
        loop {
            writer.may("greet");
            if let Ok(line) = tokio::time::timeout(Duration::from_millis(300), stdout.next_line()).await {
                return line.unwrap();
            }
        }
    };
    assert_eq!(soon("it is attached", attached).await.as_deref(), Some("hello"));
    writer.may("go");
    writer.until_all_is_written().await;
    // It reads again: whole lines, up to the last one, and how much it lacks.
    let mut told = String::new();
    let mut stderr = reader.stderr.take().unwrap();
    let (lines, _, ended) = tokio::join!(
        async {
            let mut lines = Vec::new();
            while let Some(line) = stdout.next_line().await.unwrap() {
                lines.push(line);
            }
            lines
        },
        stderr.read_to_string(&mut told),
        async {
            writer.may("end");
            soon("its end", case.runtime.wait_container(&id)).await
        },
    );
    assert_eq!(ended, Ok(0));
    let lines: Vec<String> = lines.into_iter().filter(|line| line != "hello").collect();
    let is_whole = |line: &String| line == "last" || line.len() > PAD_BYTES && line.ends_with(&"x".repeat(PAD_BYTES));
    assert!(lines.len() > 100 && lines.len() < LINES && lines.iter().all(is_whole), "{} lines", lines.len());
    let gaps = told.lines().filter_map(|line| line.strip_prefix("berth: ")?.split_once(" bytes of output are missing"));
    let missing: usize = gaps.map(|(count, _)| count.parse::<usize>().unwrap()).sum();
    let had = lines.iter().map(|line| line.len() + 1).sum::<usize>();
    let all = (1..=LINES).map(|number| number.to_string().len() + 1 + PAD_BYTES + 1).sum::<usize>() + "last\n".len();
    assert_eq!(had + missing, all, "{told}");
}
