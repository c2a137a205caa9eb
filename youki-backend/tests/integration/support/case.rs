//! One test: its containers, named after it and removed after it, and the few calls that nearly all tests make.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use libtest_mimic::{Failed, Trial};
use runtime_core::spec::{CommandSpec, NetworkMode, NetworkSpec};
use runtime_core::{AgentError, ContainerId, LogStream, Runtime, ServiceSpec, WaitOutcome};

use super::Suite;
use super::image::Image;
use super::pace::patience;
use super::root::Root;

/// A test that takes longer hangs.
fn time_limit() -> Duration {
    patience(Duration::from_secs(300))
}

/// For a call that the contract wants done at once, on a machine that is busy with other tests.
pub fn shortly() -> Duration {
    patience(Duration::from_secs(20))
}

type BoxedTest = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The functions named, as trials `topic::function`.
#[macro_export]
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        pub fn tests() -> Vec<libtest_mimic::Trial> {
            vec![$($crate::support::case::trial(
                module_path!(), stringify!($name), |case| Box::pin($name(case)),
            )),+]
        }
    };
}

/// What a test is given. Clones share everything.
#[derive(Clone)]
pub struct Case {
    pub suite: &'static Suite,
    pub runtime: Arc<dyn Runtime>,
    name: Arc<str>,
    made: Arc<Mutex<Vec<(Maker, ContainerId)>>>,
    count: Arc<AtomicU32>,
}

/// Who removes a container when its test is over.
enum Maker {
    Runtime(Arc<dyn Runtime>),
    /// Agents made it, and they are dead.
    Root(Box<Root>),
}

/// How a container ended and what it wrote.
#[derive(Debug)]
pub struct Finished {
    pub outcome: WaitOutcome,
    pub stdout: Vec<String>,
    pub stderr: Vec<String>,
}

/// Tests that failed so far: topic and name.
static FAILED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The tests that failed so far.
pub fn failed() -> Vec<String> {
    FAILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
}

/// A trial that runs `test` on the shared root and then removes what it made. Of one that has failed before it is another
/// try, which takes nothing on from that.
pub fn trial(module: &'static str, name: &'static str, test: fn(Case) -> BoxedTest) -> Trial {
    let topic = module.rsplit("::").next().unwrap_or(module);
    let whole = format!("{topic}::{name}");
    Trial::test(whole.clone(), move || {
        let name = if failed().contains(&whole) { format!("{name}_again") } else { name.to_owned() };
        let result = run(name, test);
        if result.is_err() {
            FAILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(whole);
        }
        result
    })
}

fn run(name: String, test: fn(Case) -> BoxedTest) -> Result<(), Failed> {
    let suite = Suite::get();
    suite.tokio.block_on(async {
        let runtime = suite.shared().await.runtime.clone();
        let case = Case { suite, runtime, name: name.into(), made: Arc::default(), count: Arc::default() };
        let run = tokio::time::timeout(time_limit(), test(case.clone()));
        let result = AssertUnwindSafe(run).catch_unwind().await;
        let removed = case.remove_all().await;
        match result {
            Ok(Ok(())) => removed.map_err(Failed::from),
            Ok(Err(_)) => Err(format!("not done after {:?}", time_limit()).into()),
            Err(panic) => Err(panic_text(&*panic).into()),
        }
    })
}

impl Case {
    /// A container name that no other test uses; removed at the end of this one.
    pub fn id(&self) -> ContainerId {
        self.id_on(&self.runtime)
    }

    /// The same on a runtime of the test's own.
    pub fn id_on(&self, runtime: &Arc<dyn Runtime>) -> ContainerId {
        self.new_id(Maker::Runtime(runtime.clone()))
    }

    /// The same for agents on a root of the test's own.
    pub fn id_in(&self, root: &Root) -> ContainerId {
        self.new_id(Maker::Root(Box::new(root.clone())))
    }

    fn new_id(&self, maker: Maker) -> ContainerId {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let id = ContainerId::new(format!("{}-{number}", self.name), 0);
        self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((maker, id.clone()));
        id
    }

    /// A root of this test's own; without S3.
    pub fn root(&self, word: &str) -> Root {
        Root::new(self.suite, &format!("{}-{word}", self.name), None)
    }

    /// A root of this test's own, its volumes at `prefix`.
    pub async fn root_with_s3(&self, word: &str, prefix: &str) -> Root {
        let location = self.suite.s3().await.location(&format!("{}/{prefix}", self.name));
        Root::new(self.suite, &format!("{}-{word}", self.name), Some(location))
    }

    /// Pushes `image` under this test's name; returns its reference.
    pub async fn push(&self, tag: &str, image: &Image) -> String {
        self.suite.registry().await.push(&format!("test/{}", self.name), tag, image).await
    }

    /// Busybox with `args` as its command and no network.
    pub async fn spec(&self, args: &[&str]) -> ServiceSpec {
        let mut spec = ServiceSpec::new(self.suite.busybox().await);
        spec.command = CommandSpec { args: Some(words(args)), ..CommandSpec::default() };
        spec.network = NetworkSpec { mode: NetworkMode::None, ..NetworkSpec::default() };
        spec
    }

    /// The same with a shell script.
    pub async fn script(&self, script: &str) -> ServiceSpec {
        self.spec(&["sh", "-c", script]).await
    }

    /// Pulls, creates and starts.
    pub async fn start(&self, spec: &ServiceSpec) -> ContainerId {
        let id = self.id();
        self.try_start(&id, spec).await.unwrap_or_else(|error| panic!("{id}: {error}"));
        id
    }

    pub async fn try_start(&self, id: &ContainerId, spec: &ServiceSpec) -> Result<(), AgentError> {
        start_on(&*self.runtime, id, spec).await
    }

    /// Runs to the end.
    pub async fn run(&self, spec: &ServiceSpec) -> Finished {
        let id = self.start(spec).await;
        self.finish(&id).await
    }

    /// Runs `script` to the end, which must be exit code 0; returns the lines of its standard output.
    pub async fn lines_of(&self, script: &str) -> Vec<String> {
        self.run(&self.script(script).await).await.succeeded()
    }

    /// Waits for the end.
    pub async fn finish(&self, id: &ContainerId) -> Finished {
        finish_on(&*self.runtime, id).await
    }

    /// A running container that does nothing until it is told to stop, and then does.
    pub async fn idle(&self) -> ContainerId {
        let id = self.start(&self.script(IDLE).await).await;
        self.until_it_idles(&id).await;
        id
    }

    /// Returns once the shell of [`IDLE`] heeds TERM, which the first process of a container ignores until then.
    pub async fn until_it_idles(&self, id: &ContainerId) {
        let shared = &self.suite.shared_if_opened().expect("the shared root is open").root;
        until_it_idles_on(shared, id).await;
    }

    /// exec of a shell script: exit code, stdout, stderr.
    pub async fn exec(&self, id: &ContainerId, script: &str) -> (i32, String, String) {
        let command = words(&["sh", "-c", script]);
        self.runtime.exec(id, &command).await.unwrap_or_else(|error| panic!("exec in {id}: {error}"))
    }

    /// exec that must succeed; its standard output.
    pub async fn exec_ok(&self, id: &ContainerId, script: &str) -> String {
        let (code, stdout, stderr) = self.exec(id, script).await;
        assert_eq!(code, 0, "{script:?} in {id}: {stderr}");
        stdout
    }

    /// Returns once a line of the log is `line`.
    pub async fn until_logged(&self, id: &ContainerId, line: &str) {
        eventually(&format!("{id} writes {line:?}"), || async {
            let entries = self.runtime.get_logs(id).await.unwrap_or_else(|error| panic!("logs of {id}: {error}"));
            entries.iter().any(|entry| entry.message == line)
        })
        .await;
    }

    /// The processes in the container's cgroup, in this process's PID namespace.
    pub fn cgroup_pids(&self, id: &ContainerId) -> Vec<u32> {
        let shared = &self.suite.shared_if_opened().expect("the shared root is open").root;
        let mut pids: Vec<u32> = shared.cgroups_of(id).iter().flat_map(|dir| pids_beneath(dir)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// The same for a container that has some.
    pub async fn host_pids(&self, id: &ContainerId) -> Vec<u32> {
        let pids = self.cgroup_pids(id);
        let init = self.runtime.get_container_pid(id).await.unwrap_or_else(|error| panic!("pid of {id}: {error}"));
        assert!(pids.contains(&init.expect("it runs")), "the init {init:?} is not in the container's cgroup {pids:?}");
        pids
    }

    /// Makes the container's cgroups, as whoever builds it would.
    pub fn make_cgroups(&self, id: &ContainerId) -> Vec<PathBuf> {
        let shared = &self.suite.shared_if_opened().expect("the shared root is open").root;
        let dirs: Vec<_> = shared.cgroup_parents().iter().map(|parent| parent.join(id.to_string())).collect();
        dirs.iter()
            .for_each(|dir| std::fs::create_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())));
        dirs
    }

    /// The first of `names` in the container's cgroup of the v1 `controller`, or of v2.
    pub fn cgroup_file(&self, id: &ContainerId, controller: &str, names: &[&str]) -> String {
        let shared = &self.suite.shared_if_opened().expect("the shared root is open").root;
        let dirs = shared.cgroups_of(id);
        // v1 mounts may be called cpu,cpuacct; on v2 there is one tree.
        let of_controller = |dir: &&PathBuf| {
            let parent = dir.strip_prefix("/sys/fs/cgroup").ok().and_then(|path| path.iter().next());
            parent.is_some_and(|name| name.to_string_lossy().split(',').any(|part| part == controller))
        };
        let in_order = dirs.iter().filter(of_controller).chain(&dirs);
        in_order
            .flat_map(|dir| names.iter().map(move |name| dir.join(name)))
            .find_map(|file| std::fs::read_to_string(file).ok())
            .unwrap_or_else(|| panic!("{id} has none of {names:?} in {dirs:?}"))
    }

    async fn remove_all(&self) -> Result<(), String> {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let mut failures = Vec::new();
        for (maker, id) in made {
            let runtime = match maker {
                Maker::Runtime(runtime) => runtime,
                Maker::Root(root) => match root.open().await {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        failures.push(format!("opening {} to remove {id}: {error}", root.dir.display()));
                        continue;
                    }
                },
            };
            match tokio::time::timeout(time_limit(), runtime.remove_container(&id)).await {
                Ok(Ok(()) | Err(AgentError::NotFound { .. })) => {}
                Ok(Err(error)) => failures.push(format!("removing {id}: {error}")),
                Err(_) => failures.push(format!("removing {id}: not done after {:?}", time_limit())),
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
    }
}

/// The same on any root.
pub async fn until_it_idles_on(root: &Root, id: &ContainerId) {
    // Its trap is set by the time that its sleep is there.
    eventually(&format!("{id} idles"), || async { root.cgroups_of(id).iter().any(|dir| pids_beneath(dir).len() >= 2) })
        .await;
}

/// Where `id`'s root filesystem is seen from here, while its first process runs: what is written there needs no exec, which
/// might be killed with the container whose end it brings about.
pub async fn seen_root(runtime: &dyn Runtime, id: &ContainerId) -> PathBuf {
    let init = runtime.get_container_pid(id).await.unwrap_or_else(|error| panic!("pid of {id}: {error}"));
    format!("/proc/{}/root", init.expect("it runs")).into()
}

/// A script that asks whoever serves at `address` and `port` until it is answered, and prints the answer.
pub fn asked(address: &str, port: u16) -> String {
    format!(
        "i=0; until said=$(nc -w 5 {address} {port} < /dev/null) && [ \"$said\" ]; do i=$((i+1)); \
         [ $i -lt 100 ] || exit 1; sleep 0.2; done; echo \"$said\""
    )
}

/// The processes in a cgroup and in those beneath it: on v2 an exec has one of its own there.
pub fn pids_beneath(dir: &Path) -> Vec<u32> {
    let own = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let beneath = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    pids.extend(beneath.flat_map(|entry| pids_beneath(&entry.path())));
    pids
}

/// Ends at once when told to.
pub const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

impl Finished {
    /// The lines of its standard output, if it ended with 0.
    #[track_caller]
    pub fn succeeded(self) -> Vec<String> {
        assert_eq!(self.outcome.exit_code, 0, "stdout {:?}, stderr {:?}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Pulls, creates and starts on any runtime.
pub async fn start_on(runtime: &dyn Runtime, id: &ContainerId, spec: &ServiceSpec) -> Result<(), AgentError> {
    runtime.pull_image_with_policy(&spec.image.name, spec.image.pull_policy, None).await?;
    runtime.create_container(id, spec).await?;
    runtime.start_container(id).await
}

/// Waits for the end on any runtime.
pub async fn finish_on(runtime: &dyn Runtime, id: &ContainerId) -> Finished {
    let outcome = runtime.wait_outcome(id).await.unwrap_or_else(|error| panic!("waiting for {id}: {error}"));
    let entries = runtime.get_logs(id).await.unwrap_or_else(|error| panic!("logs of {id}: {error}"));
    let of = |stream: LogStream| {
        entries.iter().filter(|entry| entry.stream == stream).map(|entry| entry.message.clone()).collect()
    };
    Finished { outcome, stdout: of(LogStream::Stdout), stderr: of(LogStream::Stderr) }
}

pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Asks again and again until `check` is true, at most [`shortly`]: for what has no event to wait for.
pub async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let begin = std::time::Instant::now();
    while !check().await {
        assert!(begin.elapsed() < shortly(), "not within {:?}: {what}", shortly());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `call` must be done within [`shortly`].
pub async fn soon<T>(what: &str, call: impl Future<Output = T>) -> T {
    tokio::time::timeout(shortly(), call).await.unwrap_or_else(|_| panic!("not within {:?}: {what}", shortly()))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panicked".into())
}
