//! One volume and two roots: moved, wanted by both, taken over. Each root is a host to the other.

use std::time::Duration;

use runtime_core::spec::StorageSpec;
use runtime_core::{AgentError, ContainerState, ServiceSpec};

use crate::support::Case;
use crate::support::case::{IDLE, start_on};
use crate::volumes::{exec_ok, spec, with_volume};

crate::tests![
    a_volume_follows_its_service_to_a_second_root_and_back,
    two_roots_cannot_both_have_one_volume,
    of_two_roots_at_once_one_wins,
    who_is_taken_over_is_fenced_and_loses_nothing,
    a_start_takes_no_volume_over_again,
    a_spec_that_cannot_be_takes_no_volume_over,
];

const STOP: Duration = Duration::from_secs(10);

async fn a_volume_follows_its_service_to_a_second_root_and_back(case: Case) {
    let (a, b) = (case.root_with_s3("a", "p").await, case.root_with_s3("b", "p").await);
    let (a, b) = (a.open().await.unwrap(), b.open().await.unwrap());
    let here = with_volume(&case, &a).await;
    exec_ok(&a, &here, "echo from a > /data/file; mkdir /data/d; chown 12:34 /data/d").await;
    a.stop_container(&here, STOP).await.unwrap();
    let there = with_volume(&case, &b).await;
    assert_eq!(
        exec_ok(&b, &there, "cat /data/file; stat -c '%u %g' /data/d; echo from b >> /data/file").await,
        "from a\n12 34\n"
    );
    b.stop_container(&there, STOP).await.unwrap();
    // Back: the first root still holds the old tree, and must not show it.
    a.remove_container(&here).await.unwrap();
    let here = with_volume(&case, &a).await;
    assert_eq!(exec_ok(&a, &here, "cat /data/file").await, "from a\nfrom b\n");
}

async fn two_roots_cannot_both_have_one_volume(case: Case) {
    let (a, b) = (case.root_with_s3("a", "p").await, case.root_with_s3("b", "p").await);
    let (a, b) = (a.open().await.unwrap(), b.open().await.unwrap());
    let here = with_volume(&case, &a).await;
    exec_ok(&a, &here, "echo mine > /data/file").await;
    let spec = spec(&case, IDLE).await;
    b.pull_image(&spec.image.name).await.unwrap();
    let there = case.id_on(&b);
    let error = b.create_container(&there, &spec).await.unwrap_err();
    assert!(error.code().starts_with("volume."), "{} of {error}", error.code());
    assert!(error.to_string().contains("data"), "{error}");
    assert!(matches!(b.container_state(&there).await, Err(AgentError::NotFound { .. })));
    assert_eq!(exec_ok(&a, &here, "cat /data/file").await, "mine\n");
    a.stop_container(&here, STOP).await.unwrap();
    b.create_container(&there, &spec).await.unwrap();
    b.start_container(&there).await.unwrap();
    assert_eq!(exec_ok(&b, &there, "cat /data/file").await, "mine\n");
}

async fn of_two_roots_at_once_one_wins(case: Case) {
    let (a, b) = (case.root_with_s3("a", "p").await, case.root_with_s3("b", "p").await);
    let (a, b) = (a.open().await.unwrap(), b.open().await.unwrap());
    let spec = spec(&case, IDLE).await;
    a.pull_image(&spec.image.name).await.unwrap();
    b.pull_image(&spec.image.name).await.unwrap();
    let (on_a, on_b) = (case.id_on(&a), case.id_on(&b));
    let (first, second) = tokio::join!(a.create_container(&on_a, &spec), b.create_container(&on_b, &spec));
    let winners = [&first, &second].iter().filter(|result| result.is_ok()).count();
    assert_eq!(winners, 1, "{first:?} and {second:?}");
    let error = first.err().or(second.err()).unwrap();
    assert!(error.code().starts_with("volume."), "{error}");
}

async fn who_is_taken_over_is_fenced_and_loses_nothing(case: Case) {
    let (a, b) = (case.root_with_s3("a", "p").await, case.root_with_s3("b", "p").await);
    let (a, b) = (a.open().await.unwrap(), b.open().await.unwrap());
    let here = with_volume(&case, &a).await;
    exec_ok(&a, &here, "echo synced > /data/file").await;
    a.sync_container_volumes(&here).await.unwrap();
    exec_ok(&a, &here, "echo unsynced > /data/other").await;
    let there = case.id_on(&b);
    start_on(&*b, &there, &taking_over(&case).await).await.unwrap();
    assert_eq!(exec_ok(&b, &there, "ls /data; cat /data/file").await, "file\nsynced\n");
    exec_ok(&b, &there, "echo from b > /data/file").await;
    b.sync_container_volumes(&there).await.unwrap();
    // The former owner may no longer publish, and is told so by name.
    let error = a.sync_container_volumes(&here).await.unwrap_err();
    assert_eq!(error.code(), "volume.fenced", "{error}");
    a.stop_container(&here, STOP).await.unwrap();
    assert!(matches!(a.container_state(&here).await.unwrap(), ContainerState::Exited { .. }));
    let kept = a.volume_status("data").await.unwrap().mountpoint.join("other");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "unsynced\n");
    // The main line is the new owner's.
    b.stop_container(&there, STOP).await.unwrap();
    b.remove_container(&there).await.unwrap();
    let again = with_volume(&case, &b).await;
    assert_eq!(exec_ok(&b, &again, "ls /data; cat /data/file").await, "file\nfrom b\n");
}

async fn a_start_takes_no_volume_over_again(case: Case) {
    let (a, b) = (case.root_with_s3("a", "p").await, case.root_with_s3("b", "p").await);
    let (a, b) = (a.open().await.unwrap(), b.open().await.unwrap());
    let taking_over = taking_over(&case).await;
    let (here, there) = (case.id_on(&a), case.id_on(&b));
    start_on(&*a, &here, &taking_over).await.unwrap();
    a.stop_container(&here, Duration::ZERO).await.unwrap();
    start_on(&*b, &there, &taking_over).await.unwrap();
    // What was said of another owner, once.
    let error = a.start_container(&here).await.unwrap_err();
    assert_eq!(error.code(), "volume.in_use_elsewhere", "{error}");
    exec_ok(&b, &there, "echo published > /data/file").await;
    b.sync_container_volumes(&there).await.unwrap();
}

async fn a_spec_that_cannot_be_takes_no_volume_over(case: Case) {
    let (a, b) = (case.root_with_s3("a", "p").await, case.root_with_s3("b", "p").await);
    let (a, b) = (a.open().await.unwrap(), b.open().await.unwrap());
    let here = with_volume(&case, &a).await;
    let there = case.id_on(&b);
    let wrong: [fn(&mut ServiceSpec); 5] = [
        |spec| {
            let (source, target) = ("/no/such".into(), "/other".into());
            spec.storage.push(StorageSpec::Bind { source, target, readonly: true });
        },
        |spec| spec.capabilities = vec!["CAP_NO_SUCH".into()],
        |spec| drop(spec.env.insert("TOKEN".into(), "$E:BERTH_IT_NOT_SET".into())),
        |spec| spec.stop_signal = Some("SIGNOSUCH".into()),
        |spec| drop(spec.sysctls.insert("kernel.no_such".into(), "1".into())),
    ];
    for spoil in wrong {
        let mut spec = taking_over(&case).await;
        spoil(&mut spec);
        b.pull_image(&spec.image.name).await.unwrap();
        let error = b.create_container(&there, &spec).await.unwrap_err();
        assert!(matches!(error, AgentError::InvalidSpec(_)), "{error}");
    }
    exec_ok(&a, &here, "echo published > /data/file").await;
    a.sync_container_volumes(&here).await.unwrap();
}

/// A service that takes its volume from whoever has it.
async fn taking_over(case: &Case) -> ServiceSpec {
    let mut spec = spec(case, IDLE).await;
    let StorageSpec::Named { take_over, .. } = &mut spec.storage[0] else { unreachable!("a named volume") };
    *take_over = true;
    spec
}
