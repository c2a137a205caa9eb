//! Who is connected to a supervisor: more than it can serve, and clients that have left.

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use runtime_core::{ContainerState, Runtime};
use rustix::process::{Pid, Resource, Rlimit};
use youki_backend::YoukiRuntime;

use crate::support::Case;
use crate::support::case::{IDLE, eventually, start_on};
use crate::support::process::{cpu_time, supervisor};

crate::tests![who_finds_no_room_waits_and_the_container_lives, clients_that_left_are_forgotten];

fn open_descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

async fn who_finds_no_room_waits_and_the_container_lives(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &case.script(IDLE).await).await.unwrap();
    let pid = supervisor(&*runtime, &id).await;
    let room = open_descriptors(pid) as u64 + 20;
    let limit = Rlimit { current: Some(room), maximum: Some(room) };
    rustix::process::prlimit(Pid::from_raw(pid.cast_signed()), Resource::Nofile, limit).unwrap();
    // By a descriptor: the path may be longer than a socket's address holds.
    let dir = std::fs::File::open(root.run_dir.join("sockets")).unwrap();
    let sockets = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
    let path = std::fs::read_dir(&sockets).unwrap().next().expect("the only container's").unwrap().path();
    let connections: Vec<UnixStream> = (0..60).map(|_| UnixStream::connect(&path).unwrap()).collect();
    eventually("it has no descriptor left", || async { open_descriptors(pid) as u64 >= room }).await;
    let before = cpu_time(pid);
    // It is not heard, which says nothing of the container.
    let error = runtime.container_state(&id).await.unwrap_err();
    assert!(error.to_string().contains("has not answered within"), "{error}");
    assert!(cpu_time(pid) - before < Duration::from_secs(2), "it spins: {:?}", cpu_time(pid) - before);
    drop(connections);
    eventually("it is heard", || async { runtime.container_state(&id).await == Ok(ContainerState::Running) }).await;
    assert_eq!(supervisor(&*runtime, &id).await, pid);
    runtime.remove_container(&id).await.unwrap();
}

async fn clients_that_left_are_forgotten(case: Case) {
    let root = case.root("root");
    let runtime = std::sync::Arc::new(YoukiRuntime::open(root.config()).await.unwrap());
    let shared: std::sync::Arc<dyn Runtime> = runtime.clone();
    let id = case.id_on(&shared);
    start_on(
        &*runtime,
        &id,
        &case.script("until [ -e /go ]; do sleep 0.05; done; echo gone on; exec sleep 3600").await,
    )
    .await
    .unwrap();
    let pid = supervisor(&*runtime, &id).await;
    let before = open_descriptors(pid);
    // More than can be attached at a time.
    for _ in 0..100 {
        let (_, stdout) = rustix::pipe::pipe().unwrap();
        let (_, stderr) = rustix::pipe::pipe().unwrap();
        runtime.attach(&id, stdout, stderr, false).await.unwrap();
    }
    let (read, stdout) = rustix::pipe::pipe().unwrap();
    let (_errors, stderr) = rustix::pipe::pipe().unwrap();
    runtime.attach(&id, stdout, stderr, false).await.unwrap();
    assert!(open_descriptors(pid) <= before + 6, "{before} descriptors are {}", open_descriptors(pid));
    runtime.exec(&id, &crate::support::case::words(&["touch", "/go"])).await.unwrap();
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(std::fs::File::from(read)).read_line(&mut line).map(|_| line)
    });
    assert_eq!(crate::support::case::soon("it is written to", line).await.unwrap().unwrap(), "gone on\n");
    runtime.remove_container(&id).await.unwrap();
}
