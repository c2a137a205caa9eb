//! Pulling, from a registry of the suite's own.

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, refused};
use super::registry::{Image, Registry, container_of, own_architecture};
use super::{Check, check};
use crate::{AgentError, ImageInfo, PullPolicy, RegistryAuth, RegistryAuthType};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("pull.if_not_present", "what is here is not asked for again; pull_image is this policy", if_not_present),
        check!("pull.never", "Never makes no network call at all, in a pull and in a create", never),
        check!("pull.always", "Always asks, and takes what the tag stands for now", always),
        check!("pull.at_create", "a create pulls what is not here, and with Always asks anew", at_create),
        check!("pull.platform", "of several platforms this machine's is pulled, or the one asked for", platform),
        check!("pull.by_digest", "an image is pulled and used by digest", by_digest),
        check!("pull.listed", "the list has the digest of the manifest, and the size of layers and config", listed),
        check!("pull.unknown", "what the registry does not have is an error that names it", unknown),
        check!("pull.credentials", "credentials given with the call go first", credentials),
        check!("pull.anonymous", "without credentials none are sent, wanted or not", anonymous),
        check!("pull.token", "a token given with the call is sent as it is", token),
        check!("pull.redacted", "no error shows a password", redacted),
        check!("pull.dropped", "a dropped pull can be called again, and is whole then", dropped),
        check!("pull.together", "several pulls of one image at once are all Ok", together),
        check!("images.remove_digest", "by digest: every name of that image goes", remove_digest),
        check!("images.shared_layer", "layers that another image shares stay", shared_layer),
    ]
}

/// The image under `reference` in the list.
async fn info(case: &Case, reference: &str) -> Verdict<Option<ImageInfo>> {
    let images = case.runtime().list_images().await.or_unsupported("list_images")?;
    Ok(images.into_iter().find(|image| image.reference == reference))
}

async fn digest(case: &Case, reference: &str) -> Verdict<Option<String>> {
    Ok(info(case, reference).await?.and_then(|image| image.digest))
}

/// Creates a container of what is here, and removes it: fails unless the image is whole.
pub(super) async fn is_whole(case: &Case, reference: &str) -> Verdict {
    let id = case.id();
    let created = case.runtime().create_container(&id, &container_of(reference)).await;
    created.or_fail(&format!("create_container of {reference}"))?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")
}

async fn if_not_present(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let reference = registry.push(&case, "1", &Image::new("if not present "));
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    let asked = registry.connections();
    ensure(asked > 0, || "it was pulled, and the registry was not asked".to_owned())?;
    case.runtime().pull_image(&reference).await.or_fail("pull_image of what is here")?;
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    let (id, mut spec) = (case.id(), container_of(&reference));
    spec.image.pull_policy = PullPolicy::IfNotPresent;
    case.runtime().create_container(&id, &spec).await.or_fail("create_container of what is here")?;
    equal("the number of connections to the registry", &registry.connections(), &asked)?;

    let other = registry.push(&case, "2", &Image::new("pull_image "));
    case.runtime().pull_image(&other).await.or_fail("pull_image of what is not here")?;
    is_whole(&case, &other).await
}

async fn never(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let here = registry.push(&case, "here", &Image::new("never "));
    let there = registry.push(&case, "there", &Image::new("never and elsewhere "));
    registry.pull(&case, &here, PullPolicy::IfNotPresent, None).await?;
    let asked = registry.connections();
    ensure(asked > 0, || "it was pulled, and the registry was not asked".to_owned())?;
    registry.pull(&case, &here, PullPolicy::Never, None).await?;
    is_whole(&case, &here).await?;
    let pulled = case.runtime().pull_image_with_policy(&there, PullPolicy::Never, None).await;
    refused("a pull with Never of what is not here", pulled, |_| true)?;
    let created = case.runtime().create_container(&case.id(), &container_of(&there)).await;
    refused("a create with Never of what is not here", created, |_| true)?;
    equal("the number of connections to the registry", &registry.connections(), &asked)
}

async fn always(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let (old, new) = (Image::new("always old "), Image::new("always new "));
    let reference = registry.push(&case, "1", &old);
    registry.pull(&case, &reference, PullPolicy::Always, None).await?;
    equal("the digest", &digest(&case, &reference).await?, &Some(old.digest.clone()))?;
    registry.push(&case, "1", &new);
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    equal("the digest, not asked again", &digest(&case, &reference).await?, &Some(old.digest))?;
    registry.pull(&case, &reference, PullPolicy::Always, None).await?;
    equal("the digest, asked again", &digest(&case, &reference).await?, &Some(new.digest))?;
    is_whole(&case, &reference).await
}

/// Creates a container of `reference` by `policy`.
pub(super) async fn create_by(case: &Case, reference: &str, policy: PullPolicy) -> Verdict {
    let mut spec = container_of(reference);
    spec.image.pull_policy = policy;
    let created = case.runtime().create_container(&case.id(), &spec).await;
    created.or_fail(&format!("create_container of {reference} with {policy:?}"))
}

async fn at_create(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let known = registry.push(&case, "known", &Image::new("at create, known "));
    registry.pull(&case, &known, PullPolicy::IfNotPresent, None).await?;
    let (old, new) = (Image::new("at create old "), Image::new("at create new "));
    let reference = registry.push(&case, "1", &old);
    create_by(&case, &reference, PullPolicy::IfNotPresent).await?;
    equal("the digest", &digest(&case, &reference).await?, &Some(old.digest.clone()))?;
    registry.push(&case, "1", &new);
    create_by(&case, &reference, PullPolicy::IfNotPresent).await?;
    equal("the digest, not asked again", &digest(&case, &reference).await?, &Some(old.digest))?;
    create_by(&case, &reference, PullPolicy::Always).await?;
    equal("the digest, asked again", &digest(&case, &reference).await?, &Some(new.digest))
}

async fn platform(case: Case) -> Verdict {
    let mut foreign = ["s390x", "riscv64", "ppc64le"].into_iter().filter(|name| *name != own_architecture());
    let (Some(other), Some(absent)) = (foreign.next(), foreign.next()) else {
        return Err(Stop::Unsupported("there is no other architecture".to_owned()));
    };
    let registry = Registry::start().await?;
    let images = [Image::new("of this platform "), Image::for_architecture(other, "of another platform ")];
    let both = [&images[1], &images[0]];
    let reference = registry.push_index(&case, "1", &both);
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    let given = || images.each_ref().map(|image| registry.gave_layer_of(image));
    equal("whether this platform's layer was given, and another's", &given(), &[true, false])?;
    is_whole(&case, &reference).await?;

    let of = |tag: &str, architecture: &str| {
        let mut spec = container_of(&registry.push_index(&case, tag, &both));
        spec.image.pull_policy = PullPolicy::IfNotPresent;
        spec.platform = Some(format!("linux/{architecture}"));
        spec
    };
    let created = case.runtime().create_container(&case.id(), &of("2", other)).await;
    created.or_unsupported(&format!("create_container for linux/{other}"))?;
    equal("whether both were given in the end", &given(), &[true, true])?;
    let created = case.runtime().create_container(&case.id(), &of("3", absent)).await;
    refused(&format!("linux/{absent}, which the image has not,"), created, |_| true)
}

async fn by_digest(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let image = Image::new("by digest ");
    registry.push(&case, "1", &image);
    let reference = format!("{}@{}", registry.repository(), image.digest);
    case.made_image(&reference);
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    is_whole(&case, &reference).await?;
    let absent = format!("{}@sha256:{}", registry.repository(), "0".repeat(64));
    let pulled = case.runtime().pull_image_with_policy(&absent, PullPolicy::IfNotPresent, None).await;
    refused("a pull of another digest", pulled, |_| true)
}

async fn listed(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let image = Image::new("listed ");
    let reference = registry.push(&case, "1", &image);
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    let info = info(&case, &reference).await?;
    let info = info.ok_or_else(|| Stop::Failed(format!("{reference} is not listed")))?;
    equal("its digest", &info.digest, &Some(image.digest.clone()))?;
    ensure(info.size_bytes.is_none_or(|bytes| bytes == image.size_bytes()), || {
        format!("layer and config have {} bytes, and it is listed with {:?}", image.size_bytes(), info.size_bytes)
    })
}

async fn unknown(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let known = registry.push(&case, "known", &Image::new("known "));
    registry.pull(&case, &known, PullPolicy::IfNotPresent, None).await?;
    let reference = format!("{}:unknown", registry.repository());
    for policy in [PullPolicy::IfNotPresent, PullPolicy::Always] {
        let pulled = case.runtime().pull_image_with_policy(&reference, policy, None).await;
        let named = |error: &AgentError| {
            let kind = matches!(error, AgentError::PullFailed { .. } | AgentError::NotFound { .. });
            kind && error.to_string().contains(&reference)
        };
        refused(&format!("a pull with {policy:?} of an unknown tag"), pulled, named)?;
    }
    equal("whether it is listed", &info(&case, &reference).await?, &None)
}

fn basic(username: &str, password: &str) -> RegistryAuth {
    let (username, password) = (username.to_owned(), password.to_owned());
    RegistryAuth { username, password, auth_type: RegistryAuthType::Basic }
}

/// `conformance:open sesame`.
const BASIC: &str = "Basic Y29uZm9ybWFuY2U6b3BlbiBzZXNhbWU=";

async fn credentials(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let open = registry.push(&case, "open", &Image::new("for all "));
    registry.pull(&case, &open, PullPolicy::Always, None).await?;
    let closed = registry.push(&case, "closed", &Image::new("for some "));
    registry.want(Some(BASIC));
    let wrong = basic("conformance", "wrong");
    let pulled = case.runtime().pull_image_with_policy(&closed, PullPolicy::Always, Some(&wrong)).await;
    refused("a pull with a wrong password", pulled, |error| matches!(error, AgentError::PullFailed { .. }))?;
    let right = basic("conformance", "open sesame");
    registry.pull(&case, &closed, PullPolicy::Always, Some(&right)).await?;
    is_whole(&case, &closed).await
}

async fn anonymous(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let reference = registry.push(&case, "1", &Image::new("anonymous "));
    registry.pull(&case, &reference, PullPolicy::Always, None).await?;
    equal("what was said where nothing is wanted", &registry.told(), &Vec::new())?;
    registry.want(Some(BASIC));
    let pulled = case.runtime().pull_image_with_policy(&reference, PullPolicy::Always, None).await;
    refused("a pull without credentials", pulled, |error| matches!(error, AgentError::PullFailed { .. }))?;
    equal("what was said where credentials are wanted", &registry.told(), &Vec::new())
}

async fn token(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let reference = registry.push(&case, "1", &Image::new("token "));
    registry.want(Some("Bearer conformance-token"));
    let (username, password) = (String::new(), "conformance-token".to_owned());
    let auth = RegistryAuth { username, password, auth_type: RegistryAuthType::Token };
    registry.pull(&case, &reference, PullPolicy::Always, Some(&auth)).await?;
    is_whole(&case, &reference).await
}

async fn redacted(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let known = registry.push(&case, "known", &Image::new("redacted "));
    registry.pull(&case, &known, PullPolicy::IfNotPresent, None).await?;
    registry.want(Some(BASIC));
    let secret = basic("conformance", "do-not-show-me");
    let pulled = case.runtime().pull_image_with_policy(&known, PullPolicy::Always, Some(&secret)).await;
    let shows = |error: &AgentError| format!("{error} {error:?}").contains("do-not-show-me");
    refused("a wrong password", pulled, |error| !shows(error))
}

async fn dropped(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let known = registry.push(&case, "known", &Image::new("dropped, known "));
    registry.pull(&case, &known, PullPolicy::IfNotPresent, None).await?;
    let reference = registry.push(&case, "1", &Image::new("dropped "));
    registry.hold_back(true);
    let begun = case.until("no layer was asked for", || async { Ok((registry.held_back() > 0).then_some(())) });
    tokio::select! {
        pulled = case.runtime().pull_image(&reference) => {
            return Err(Stop::Failed(format!("half of a layer is held back, and the pull answers {pulled:?}")));
        }
        begun = begun => begun?,
    }
    let created = case.runtime().create_container(&case.id(), &container_of(&reference)).await;
    refused("a create of what was pulled by half", created, |_| true)?;
    registry.hold_back(false);
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    is_whole(&case, &reference).await
}

async fn together(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let known = registry.push(&case, "known", &Image::new("together, known "));
    registry.pull(&case, &known, PullPolicy::IfNotPresent, None).await?;
    let reference = registry.push(&case, "1", &Image::new("together "));
    let pulls = (0..4).map(|_| registry.pull(&case, &reference, PullPolicy::IfNotPresent, None));
    futures_util::future::try_join_all(pulls).await?;
    is_whole(&case, &reference).await
}

async fn remove_digest(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let image = Image::new("removed by digest ");
    let reference = registry.push(&case, "1", &image);
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    let other = case.image_name("1");
    case.runtime().tag_image(&reference, &other).await.or_unsupported("tag_image")?;
    case.runtime().remove_image(&image.digest, true).await.or_unsupported("remove_image by digest")?;
    let left = case.runtime().list_images().await.or_unsupported("list_images")?;
    let left: Vec<_> = left.iter().filter(|one| one.digest.as_ref() == Some(&image.digest)).collect();
    ensure(left.is_empty(), || format!("the list has {left:?}"))?;
    for name in [&reference, &other] {
        let pulled = case.runtime().pull_image_with_policy(name, PullPolicy::Never, None).await;
        refused(&format!("{name}, removed,"), pulled, |_| true)?;
    }
    let again = case.runtime().remove_image(&image.digest, false).await;
    refused("removing it again", again, |error| matches!(error, AgentError::NotFound { .. }))
}

async fn shared_layer(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let one = registry.push(&case, "one", &Image::with_layer_of("shared ", "one"));
    let other = registry.push(&case, "other", &Image::with_layer_of("shared ", "other"));
    for reference in [&one, &other] {
        registry.pull(&case, reference, PullPolicy::IfNotPresent, None).await?;
    }
    case.runtime().remove_image(&one, false).await.or_unsupported("remove_image")?;
    is_whole(&case, &other).await
}
