//! Pruning, where a backend allows it.

use std::time::Duration;

use super::case::{Case, OrStop, Stop, Verdict, ensure, refused};
use super::pull::is_whole;
use super::registry::{Image, Registry, container_of};
use super::{Check, check};
use crate::{PruneResult, PullPolicy};

pub(super) fn checks() -> Vec<Check> {
    let checks = vec![
        check!("prune.unused", "unused images go, and are told; those that containers use stay", unused),
        check!("prune.beside_pull", "a prune beside a pull in flight takes nothing of it", beside_pull),
    ];
    // It takes what other checks have just untagged, or are about to use.
    checks.into_iter().map(|check| Check { alone: true, ..check }).collect()
}

/// Makes a container of every image that the backend has named, so that none of them is unused.
async fn keep_the_backends_own(case: &Case) -> Verdict {
    if !case.backend().may_prune() {
        return Err(Stop::Unsupported("the backend does not allow the suite to prune".to_owned()));
    }
    let echo = case.backend().echo_images().into_iter().map(|image| image.reference);
    let configured = case.backend().configured_image().map(|image| image.reference);
    for reference in echo.chain(configured).chain([case.backend().image()]) {
        let mut spec = container_of(&reference);
        spec.image.pull_policy = PullPolicy::IfNotPresent;
        case.runtime().create_container(&case.id(), &spec).await.or_fail(&format!("a container of {reference}"))?;
    }
    Ok(())
}

async fn prune(case: &Case) -> Verdict<PruneResult> {
    case.runtime().prune_images().await.or_unsupported("prune_images")
}

async fn unused(case: Case) -> Verdict {
    keep_the_backends_own(&case).await?;
    let used = case.image_name("used");
    case.runtime().tag_image(&case.backend().image(), &used).await.or_unsupported("tag_image")?;
    case.runtime().create_container(&case.id(), &container_of(&used)).await.or_fail("create_container")?;
    let registry = Registry::start().await?;
    let unused = registry.push(&case, "unused", &Image::new("unused "));
    let unused = match registry.pull(&case, &unused, PullPolicy::IfNotPresent, None).await {
        Ok(()) => unused,
        // Another name of an image is an image without users too, as far as such a backend knows.
        Err(Stop::Unsupported(_)) => {
            let name = case.image_name("unused");
            case.runtime().tag_image(&case.backend().image(), &name).await.or_unsupported("tag_image")?;
            name
        }
        Err(failed) => return Err(failed),
    };
    let pruned = prune(&case).await?;
    let pulled = case.runtime().pull_image_with_policy(&unused, PullPolicy::Never, None).await;
    refused("an unused image, pruned,", pulled, |_| true)?;
    ensure(!pruned.deleted.is_empty(), || format!("{unused} is gone, and it is told that nothing is"))?;
    for reference in [&case.backend().image(), &used] {
        let kept = case.runtime().pull_image_with_policy(reference, PullPolicy::Never, None).await;
        kept.or_fail(&format!("{reference}, which a container uses,"))?;
    }
    is_whole(&case, &used).await
}

async fn beside_pull(case: Case) -> Verdict {
    keep_the_backends_own(&case).await?;
    let registry = Registry::start().await?;
    let known = registry.push(&case, "known", &Image::new("beside a pull, known "));
    registry.pull(&case, &known, PullPolicy::IfNotPresent, None).await?;
    let reference = registry.push(&case, "1", &Image::new("beside a pull "));
    registry.hold_back(true);
    let pull = async {
        let pulled = registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await;
        // Used before anybody can find it unused.
        let created = case.runtime().create_container(&case.id(), &container_of(&reference)).await;
        (pulled, created)
    };
    let pruning = async {
        let begun =
            case.until("no layer was asked for", || async { Ok((registry.held_back() > 0).then_some(())) }).await;
        let prune = prune(&case);
        let release = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            registry.hold_back(false); // it may have to wait for the pull
        };
        let (pruned, ()) = tokio::join!(prune, release);
        begun.and(pruned)
    };
    let ((pulled, created), pruned) = tokio::join!(pull, pruning);
    pulled?;
    let pruned = pruned?;
    // A prune that waited for the pull may have found it unused before the create did: then that says so, and
    // nothing of it is left behind by half.
    if created.is_err() && pruned.deleted.contains(&reference) {
        registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
        return is_whole(&case, &reference).await;
    }
    created.or_fail("a container of what was pulled beside a prune")
}
