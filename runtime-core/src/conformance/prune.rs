//! Pruning, where a backend allows it.

use std::time::Duration;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, refused};
use super::pull::is_whole;
use super::registry::{Image, Registry, container_of};
use super::{Check, check};
use crate::{PruneResult, PullPolicy};

pub(super) fn checks() -> Vec<Check> {
    let checks = vec![
        check!(
            "prune.unused",
            "unused images go, and are told, with the space they took; those that containers use stay",
            unused
        ),
        check!("prune.dangling", "what a name no longer stands for goes, with the space it took", dangling),
        check!("prune.beside_create", "a prune beside a create in flight takes nothing of its image", beside_create),
        check!("prune.dropped", "a dropped prune can be called again, and takes nothing that is used", dropped),
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
    let image = Image::new("unused ");
    let unused = registry.push(&case, "unused", &image);
    let mut least = image.layer_bytes();
    let unused = match registry.pull(&case, &unused, PullPolicy::IfNotPresent, None).await {
        Ok(()) => unused,
        // Another name of an image is an image without users too, as far as such a backend knows.
        Err(Stop::Unsupported(_)) => {
            let name = case.image_name("unused");
            case.runtime().tag_image(&case.backend().image(), &name).await.or_unsupported("tag_image")?;
            least = 0; // its content is another image's too
            name
        }
        Err(failed) => return Err(failed),
    };
    let pruned = prune(&case).await?;
    let pulled = case.runtime().pull_image_with_policy(&unused, PullPolicy::Never, None).await;
    refused("an unused image, pruned,", pulled, |_| true)?;
    // Backends differ in what they tell: a name, the manifest's digest, or the config's, which is docker's id.
    let names = [&unused, &image.digest, &image.id].map(|name| name.trim_start_matches("sha256:"));
    let is_told = pruned.deleted.iter().any(|told| names.iter().any(|name| told.contains(name)));
    ensure(is_told, || format!("{unused} is gone, and told are {:?}", pruned.deleted))?;
    ensure(pruned.space_reclaimed >= least, || {
        format!("a layer of {least} bytes is gone, and told are {} bytes", pruned.space_reclaimed)
    })?;
    for reference in [&case.backend().image(), &used] {
        let kept = case.runtime().pull_image_with_policy(reference, PullPolicy::Never, None).await;
        kept.or_fail(&format!("{reference}, which a container uses,"))?;
    }
    is_whole(&case, &used).await
}

async fn dangling(case: Case) -> Verdict {
    keep_the_backends_own(&case).await?;
    let registry = Registry::start().await?;
    let (old, new) = (Image::new("dangling old "), Image::new("dangling new "));
    let reference = registry.push(&case, "1", &old);
    registry.pull(&case, &reference, PullPolicy::Always, None).await?;
    prune_others(&case, &reference).await?;
    registry.push(&case, "1", &new);
    registry.pull(&case, &reference, PullPolicy::Always, None).await?;
    case.runtime().create_container(&case.id(), &container_of(&reference)).await.or_fail("create_container")?;
    let pruned = prune(&case).await?;
    let least = old.layer_bytes();
    // It may have been there packed and unpacked.
    ensure((least..4 * least).contains(&pruned.space_reclaimed), || {
        format!("a layer of {least} bytes has no name any more, and told are {} bytes", pruned.space_reclaimed)
    })?;
    is_whole(&case, &reference).await?;
    let again = prune(&case).await?;
    equal("the bytes of another prune", &again.space_reclaimed, &0)
}

/// Takes all that other checks have left, so that what the next prune tells is of this check.
async fn prune_others(case: &Case, reference: &str) -> Verdict {
    let id = case.id();
    case.runtime().create_container(&id, &container_of(reference)).await.or_fail("create_container")?;
    prune(case).await?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")
}

async fn beside_create(case: Case) -> Verdict {
    keep_the_backends_own(&case).await?;
    let registry = Registry::start().await?;
    let known = registry.push(&case, "known", &Image::new("beside a create, known "));
    registry.pull(&case, &known, PullPolicy::IfNotPresent, None).await?;
    let reference = registry.push(&case, "1", &Image::new("beside a create "));
    registry.hold_back(true);
    let (id, mut spec) = (case.id(), container_of(&reference));
    spec.image.pull_policy = PullPolicy::IfNotPresent;
    let pruning = async {
        let begun =
            case.until("no layer was asked for", || async { Ok((registry.held_back() > 0).then_some(())) }).await;
        let release = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            registry.hold_back(false); // it may have to wait for the create
        };
        let (pruned, ()) = tokio::join!(prune(&case), release);
        begun.and(pruned)
    };
    let (created, pruned) = tokio::join!(case.runtime().create_container(&id, &spec), pruning);
    pruned?;
    created.or_fail("create_container beside a prune")?;
    is_whole(&case, &reference).await
}

async fn dropped(case: Case) -> Verdict {
    keep_the_backends_own(&case).await?;
    let registry = Registry::start().await?;
    let used = registry.push(&case, "used", &Image::new("dropped prune, used "));
    registry.pull(&case, &used, PullPolicy::IfNotPresent, None).await?;
    case.runtime().create_container(&case.id(), &container_of(&used)).await.or_fail("create_container")?;
    for moment in [0, 1, 4, 16, 64].map(Duration::from_millis) {
        let unused = registry.push(&case, "unused", &Image::new(&format!("dropped prune after {moment:?} ")));
        registry.pull(&case, &unused, PullPolicy::Always, None).await?;
        if let Ok(Err(error)) = tokio::time::timeout(moment, case.runtime().prune_images()).await {
            return Err(error).or_unsupported("prune_images");
        }
        prune(&case).await?;
        let pulled = case.runtime().pull_image_with_policy(&unused, PullPolicy::Never, None).await;
        refused("an unused image, pruned after a dropped prune,", pulled, |_| true)?;
        is_whole(&case, &used).await?;
        registry.pull(&case, &unused, PullPolicy::IfNotPresent, None).await?;
        is_whole(&case, &unused).await?;
    }
    Ok(())
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
