//! Create, start, state, remove.

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, refused, texts, within};
use super::registry::{Image, Registry, container_of};
use super::{Ability, Check, Workload, check};
use crate::{AgentError, ContainerState, PullPolicy, WaitReason};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("create.waits", "created is not started: Initializing, no output, no pid", created_is_not_started),
        check!("create.twice", "an id that exists is CreateFailed, and that container is untouched", create_twice),
        check!("create.race", "of several creates of one id exactly one wins", create_race),
        check!("create.no_image", "an image that is not here, never pulled, is an error that leaves nothing", no_image),
        check!("start.twice", "start of a running container is Ok at once and changes nothing", start_twice),
        check!("start.again", "start of an exited container is a new attempt with the same logs", start_again),
        check!("start.same_root", "what an attempt wrote into its root is there in the next one", same_root),
        check!("start.executed", "when start returns the process is the program that was asked for", executed),
        check!(
            "start.failed_again",
            "start of a Failed container is a new attempt, with an answer of its own",
            failed_again
        ),
        check!("start.not_found", "a missing program fails the start; wait answers 127", start_not_found),
        check!("start.not_executable", "a program that cannot be executed fails the start; 126", start_not_executable),
        check!("state.transitions", "Initializing, Running, then Exited with the code", transitions),
        check!("state.pending", "while its image is pulled a container is there, and Pending", pending),
        check!("remove.running", "remove kills what runs; a second one is NotFound", remove_running),
        check!(
            "remove.frees_id",
            "after remove the id can be used anew, and nothing of the old is left",
            remove_frees_id
        ),
        check!("list.containers", "list_containers knows a container until it is removed", list_containers),
    ]
}

async fn pending(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let (id, mut spec) = (case.id(), container_of(&registry.push(&case, "1", &Image::new("pending "))));
    spec.image.pull_policy = PullPolicy::IfNotPresent;
    registry.hold_back(true);
    let mut create = case.runtime().create_container(&id, &spec);
    let begun = tokio::select! {
        created = &mut create => match created {
            Err(_) if registry.connections() == 0 => {
                return Err(Stop::Unsupported("the backend does not come to a registry on the suite's loopback".to_owned()));
            }
            created => return Err(Stop::Failed(format!("half of a layer is held back, and the create answers {created:?}"))),
        },
        begun = case.until("no layer was asked for", || async { Ok((registry.held_back() > 0).then_some(())) }) => begun,
    };
    let look = async {
        let state = case.runtime().container_state(&id).await;
        let listed = case.runtime().list_containers().await;
        registry.hold_back(false);
        (state, listed)
    };
    let (created, (state, listed)) = tokio::join!(create, look);
    begun?;
    equal("the state while its image is pulled", &state.or_fail("container_state")?, &ContainerState::Pending)?;
    let listed = listed.or_unsupported("list_containers")?;
    let told: Vec<_> = listed.iter().filter(|one| one.id == id).map(|one| one.state.clone()).collect();
    equal("its entries in the list", &told, &vec![ContainerState::Pending])?;
    created.or_fail("create_container")?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the state of the created one", &state, &ContainerState::Initializing)
}

async fn created_is_not_started(case: Case) -> Verdict {
    let id = case.create(&Workload::print("ran\n")).await?;
    equal(
        "the state",
        &case.runtime().container_state(&id).await.or_fail("container_state")?,
        &ContainerState::Initializing,
    )?;
    equal("the log", &case.runtime().get_logs(&id).await.or_fail("get_logs")?, &Vec::new())?;
    if !case.lacks(Ability::Pid) {
        // Its init may exist already and wait; the user's program does not run.
        equal("the pid", &case.runtime().get_container_pid(&id).await.or_fail("get_container_pid")?, &None)?;
    }
    Ok(())
}

async fn create_twice(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let again = case.runtime().create_container(&id, &case.spec(&Workload::exit(1))?).await;
    refused("a second create_container", again, |error| matches!(error, AgentError::CreateFailed { .. }))?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state after the second create")?;
    equal("the first container's state", &state, &ContainerState::Running)?;
    case.line(&id, "ready").await?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    equal("its exit code", &case.wait(&id).await?, &0)
}

async fn create_race(case: Case) -> Verdict {
    let (id, spec) = (case.id(), case.spec(&Workload::exit(5))?);
    let creates = (0..8).map(|_| case.runtime().create_container(&id, &spec));
    let results = futures_util::future::join_all(creates).await;
    let won = results.iter().filter(|result| result.is_ok()).count();
    equal("the number of creates that won", &won, &1)?;
    for error in results.into_iter().filter_map(Result::err) {
        ensure(matches!(error, AgentError::CreateFailed { .. }), || format!("a loser's error is {error:?}"))?;
    }
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    equal("the exit code", &case.wait(&id).await?, &5)
}

async fn no_image(case: Case) -> Verdict {
    let (id, mut spec) = (case.id(), case.spec(&Workload::exit(0))?);
    spec.image.name = "conformance.invalid/no/such/image:1".to_owned();
    spec.image.pull_policy = PullPolicy::Never;
    let wanted = |error: &AgentError| {
        use AgentError::{CreateFailed, NotFound, PullFailed};
        matches!(error, PullFailed { .. } | CreateFailed { .. } | NotFound { .. })
    };
    refused("create_container of an absent image", case.runtime().create_container(&id, &spec).await, wanted)?;
    let state = case.runtime().container_state(&id).await;
    refused("container_state after it", state, |error| matches!(error, AgentError::NotFound { .. }))
}

async fn start_twice(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    within("the second start", case.soon(), case.runtime().start_container(&id)).await?.or_fail("the second start")?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    let logs = case.runtime().get_logs(&id).await.or_fail("get_logs")?;
    equal("the number of lines written", &logs.len(), &1)
}

async fn start_again(case: Case) -> Verdict {
    let id =
        case.start(&Workload::Write { chunks: vec![(crate::LogStream::Stdout, b"ran\n".to_vec())], code: 4 }).await?;
    equal("the first exit code", &case.wait(&id).await?, &4)?;
    let first = case.runtime().wait_outcome(&id).await.or_fail("wait_outcome")?;
    case.logs(&id, 1).await?;
    case.runtime().start_container(&id).await.or_fail("start_container of an exited container")?;
    equal("the second exit code", &case.wait(&id).await?, &4)?;
    let second = case.runtime().wait_outcome(&id).await.or_fail("wait_outcome")?;
    let logs = case.logs(&id, 2).await?;
    ensure(logs.len() == 2 && logs.iter().all(|entry| entry.message == "ran"), || {
        format!("the log has {}", texts(&logs))
    })?;
    if let (Some(first), Some(second)) = (first.finished_at, second.finished_at) {
        ensure(first < second, || format!("the second attempt ended at {second}, the first at {first}"))?;
    }
    Ok(())
}

async fn same_root(case: Case) -> Verdict {
    let id = case.start_spec(&case.script("echo x >> /conformance; wc -l < /conformance | tr -d ' '")?).await?;
    case.wait(&id).await?;
    case.logs(&id, 1).await?;
    case.runtime().start_container(&id).await.or_fail("start_container of an exited container")?;
    case.wait(&id).await?;
    let logs = case.logs(&id, 2).await?;
    let lines: Vec<&str> = logs.iter().map(|entry| entry.message.as_str()).collect();
    equal("what two attempts found", &lines, &vec!["1", "2"])
}

async fn executed(case: Case) -> Verdict {
    let ready = Workload::Script("exec sleep 86397".to_owned());
    for _ in 0..5 {
        let id = case.start(&ready).await?;
        // The exec comes as soon as it can; the shell may not yet have become the sleep. While it becomes that, the kernel
        // shows nothing.
        let look = "until line=$(tr '\\0' ' ' < /proc/1/cmdline); [ \"$line\" ]; do :; done; echo \"$line\"";
        let found = case.ask(&id, look).await?;
        ensure(found.contains("sleep 86397"), || format!("its process is {found:?}"))?;
    }
    Ok(())
}

async fn failed_again(case: Case) -> Verdict {
    let id = case.create(&Workload::NotFound).await?;
    for attempt in ["the first start", "the second start"] {
        let started = case.runtime().start_container(&id).await;
        refused(attempt, started, |error| matches!(error, AgentError::StartFailed { .. }))?;
        equal(attempt, &within("wait_container", case.soon(), case.wait(&id)).await??, &127)?;
    }
    case.runtime().remove_container(&id).await.or_fail("remove_container")
}

async fn start_not_found(case: Case) -> Verdict {
    start_fails(case, &Workload::NotFound, 127).await
}

async fn start_not_executable(case: Case) -> Verdict {
    start_fails(case, &Workload::NotExecutable, 126).await
}

async fn start_fails(case: Case, workload: &Workload, code: i32) -> Verdict {
    let id = case.create(workload).await?;
    let started = case.runtime().start_container(&id).await;
    refused("start_container", started, |error| matches!(error, AgentError::StartFailed { .. }))?;
    let found = within("wait_container after a failed start", case.soon(), case.wait(&id)).await??;
    equal("the exit code", &found, &code)?;
    let outcome = case.runtime().wait_outcome(&id).await.or_fail("wait_outcome")?;
    equal("wait_outcome's exit code", &outcome.exit_code, &code)?;
    ensure(outcome.reason != WaitReason::Signal, || "the reason is Signal; none was sent".to_owned())?;
    match case.runtime().container_state(&id).await.or_fail("container_state")? {
        ContainerState::Failed { reason } => ensure(!reason.is_empty(), || "Failed without a reason".to_owned()),
        state => ensure(false, || format!("the state is {state:?}, not Failed")),
    }
}

async fn transitions(case: Case) -> Verdict {
    let id = case.create(&Workload::ExitOn { signal: "TERM", code: 6 }).await?;
    let state = async || case.runtime().container_state(&id).await.or_fail("container_state");
    equal("the state once created", &state().await?, &ContainerState::Initializing)?;
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    equal("the state once started", &state().await?, &ContainerState::Running)?;
    case.line(&id, "ready").await?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    equal("the state once stopped", &state().await?, &ContainerState::Exited { code: 6 })
}

async fn remove_running(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::Ignore { signal: "TERM" }).await?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    let gone = |error: &AgentError| matches!(error, AgentError::NotFound { .. });
    refused("a second remove_container", case.runtime().remove_container(&id).await, gone)?;
    refused("container_state after remove", case.runtime().container_state(&id).await, gone)?;
    refused("get_logs after remove", case.runtime().get_logs(&id).await, gone)
}

async fn remove_frees_id(case: Case) -> Verdict {
    let id = case.start(&Workload::print("old\n")).await?;
    case.wait(&id).await?;
    case.logs(&id, 1).await?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    let spec = case.spec(&Workload::Write { chunks: vec![(crate::LogStream::Stdout, b"new\n".to_vec())], code: 8 })?;
    case.runtime().create_container(&id, &spec).await.or_fail("create_container with a freed id")?;
    equal(
        "the state",
        &case.runtime().container_state(&id).await.or_fail("container_state")?,
        &ContainerState::Initializing,
    )?;
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    equal("the exit code", &case.wait(&id).await?, &8)?;
    let logs = case.logs(&id, 1).await?;
    ensure(logs.len() == 1 && logs[0].message == "new", || format!("the log has {}", texts(&logs)))
}

async fn list_containers(case: Case) -> Verdict {
    let id = case.create(&Workload::exit(0)).await?;
    let listed = async || -> Verdict<Vec<_>> {
        let all = case.runtime().list_containers().await.or_unsupported("list_containers")?;
        Ok(all.into_iter().filter(|container| container.id == id).collect())
    };
    let mine = listed().await?;
    equal("the number of its entries", &mine.len(), &1)?;
    equal("its state", &mine[0].state, &ContainerState::Initializing)?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    equal("the number of its entries once removed", &listed().await?.len(), &0)
}
