//! Pull, list, tag, remove.

use super::case::{Case, OrStop, Verdict, ensure, equal, refused};
use super::{Check, Workload, check};
use crate::{AgentError, ContainerState, ImageInfo, PullPolicy};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("images.pull_present", "what is here is not pulled again, and never needs to be", pull_present),
        check!("images.pull_never", "Never with an image that is not here is an error", pull_never),
        check!("images.list", "list_images knows the image, with its digest if it has one", list),
        check!("images.tag", "a tag is a further name for the same image, and works like the first", tag),
        check!("images.tag_invalid", "the target needs repository and tag; a missing source is NotFound", tag_invalid),
        check!("images.remove", "by reference: that name goes, other names stay; an unknown one is NotFound", remove),
        check!(
            "images.remove_used",
            "one that a container uses is refused unless forced; the container stays",
            remove_used
        ),
    ]
}

async fn pull_present(case: Case) -> Verdict {
    let (runtime, image) = (case.runtime(), case.backend().image());
    let id = case.start(&Workload::exit(0)).await?; // from here on it is certainly here
    case.wait(&id).await?;
    runtime.pull_image(&image).await.or_fail("pull_image")?;
    runtime.pull_image_with_policy(&image, PullPolicy::IfNotPresent, None).await.or_fail("pull if not present")?;
    runtime.pull_image_with_policy(&image, PullPolicy::Never, None).await.or_fail("pull with Never")
}

fn is_absent(error: &AgentError) -> bool {
    matches!(error, AgentError::NotFound { .. } | AgentError::PullFailed { .. })
}

async fn pull_never(case: Case) -> Verdict {
    let pulled = case.runtime().pull_image_with_policy("conformance.invalid/no/such:1", PullPolicy::Never, None).await;
    refused("a pull with Never of what is not here", pulled, is_absent)
}

async fn listed(case: &Case) -> Verdict<Vec<ImageInfo>> {
    case.runtime().list_images().await.or_unsupported("list_images")
}

/// The backend's image in the list, however its reference is written out in full.
fn original<'a>(images: &'a [ImageInfo], reference: &str) -> Option<&'a ImageInfo> {
    images.iter().find(|image| {
        let rest = image
            .reference
            .strip_suffix(reference)
            .or_else(|| image.reference.strip_suffix(":latest")?.strip_suffix(reference));
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
    })
}

async fn list(case: Case) -> Verdict {
    let id = case.create(&Workload::exit(0)).await?;
    let (images, reference) = (listed(&case).await?, case.backend().image());
    let found = original(&images, &reference);
    ensure(found.is_some(), || format!("{reference} is not among {images:?}"))?;
    for image in &images {
        let digest = image.digest.as_deref();
        ensure(digest.is_none_or(|digest| digest.starts_with("sha256:")), || format!("{image:?} has no digest"))?;
    }
    case.runtime().remove_container(&id).await.or_fail("remove_container")
}

async fn tag(case: Case) -> Verdict {
    let id = case.create(&Workload::exit(0)).await?;
    let (source, target) = (case.backend().image(), case.image_name("1"));
    case.runtime().tag_image(&source, &target).await.or_unsupported("tag_image")?;
    case.runtime().tag_image(&source, &target).await.or_fail("the same tag_image again")?;
    let images = listed(&case).await?;
    let tagged = images.iter().find(|image| image.reference == target);
    let digest = |image: Option<&ImageInfo>| image.map(|image| image.digest.clone());
    equal("the digest under the new name", &digest(tagged), &digest(original(&images, &source)))?;
    let mut spec = case.spec(&Workload::exit(42))?;
    spec.image.name = target;
    spec.image.pull_policy = PullPolicy::Never;
    let by_tag = case.start_spec(&spec).await?;
    equal("the exit code of a container made from it", &case.wait(&by_tag).await?, &42)?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")
}

async fn tag_invalid(case: Case) -> Verdict {
    let id = case.create(&Workload::exit(0)).await?;
    let source = case.backend().image();
    for target in ["", "no-tag", "conformance.invalid/no-tag", ":1", "a b:1", "UPPER:1"] {
        let tagged = case.runtime().tag_image(&source, target).await;
        if let Err(AgentError::Unsupported(_)) = tagged {
            tagged.or_unsupported("tag_image")?;
            continue;
        }
        if tagged.is_ok() {
            let _ = case.runtime().remove_image(target, true).await;
        }
        refused(&format!("the target {target:?}"), tagged, |_| true)?;
    }
    let tagged = case.runtime().tag_image("conformance.invalid/no/such:1", &case.image_name("1")).await;
    refused("a source that is not here", tagged, |error| matches!(error, AgentError::NotFound { .. }))?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")
}

async fn remove(case: Case) -> Verdict {
    let id = case.create(&Workload::exit(3)).await?;
    let (source, one, other) = (case.backend().image(), case.image_name("1"), case.image_name("2"));
    for target in [&one, &other] {
        case.runtime().tag_image(&source, target).await.or_unsupported("tag_image")?;
    }
    case.runtime().remove_image(&one, false).await.or_unsupported("remove_image")?;
    let never = |image| case.runtime().pull_image_with_policy(image, PullPolicy::Never, None);
    refused("the removed name", never(&one).await, is_absent)?;
    never(&other).await.or_fail("the other name")?;
    never(&source).await.or_fail("the first name")?;
    let again = case.runtime().remove_image(&one, true).await;
    refused("removing it again", again, |error| matches!(error, AgentError::NotFound { .. }))?;
    case.runtime().start_container(&id).await.or_fail("start of a container made from the first name")?;
    equal("its exit code", &case.wait(&id).await?, &3)
}

async fn remove_used(case: Case) -> Verdict {
    let first = case.create(&Workload::exit(0)).await?;
    let target = case.image_name("1");
    case.runtime().tag_image(&case.backend().image(), &target).await.or_unsupported("tag_image")?;
    let mut spec = case.spec(&Workload::ExitOn { signal: "TERM", code: 5 })?;
    spec.image.name = target.clone();
    spec.image.pull_policy = PullPolicy::Never;
    let id = case.start_spec(&spec).await?;
    case.line(&id, "ready").await?;
    let removed = case.runtime().remove_image(&target, false).await;
    refused("removing what a container uses", removed, |error| !matches!(error, AgentError::NotFound { .. }))?;
    case.runtime().remove_image(&target, true).await.or_unsupported("remove_image with force")?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the container's state", &state, &ContainerState::Running)?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    equal("its exit code", &case.wait(&id).await?, &5)?;
    case.runtime().remove_container(&first).await.or_fail("remove_container")
}
