//! What is known of an image, and how it gets elsewhere: Unsupported is an answer.

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, of_host, refused};
use super::pull::is_whole;
use super::registry::{Image, Registry};
use super::tar::{Member, Sink, archive, members};
use super::{Check, check};
use crate::{AgentError, PullPolicy, RegistryAuth, RegistryAuthType, Result};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!(
            "images.inspect",
            "digest, id, size, layers and configuration of an image, by each of its names",
            inspect
        ),
        check!("images.history", "the steps of its build, the newest first, with their layers", history),
        check!("images.save_load", "what is saved is loaded under its name, and is the same image", save_load),
        check!(
            "images.load_invalid",
            "what is no archive, or not what its digest says, is an error: no image is new",
            load_invalid
        ),
        check!("images.push", "a push brings what the registry lacks, and answers the digest", push),
        check!(
            "images.push_refused",
            "a push that the registry refuses is an error that shows no password",
            push_refused
        ),
        check!("images.unknown", "an image that is not there is NotFound to each of these, and named", unknown),
    ]
}

/// A registry, and an image of two layers that was pulled from it.
pub(super) async fn pulled(case: &Case, text: &str) -> Verdict<(Registry, String, Image)> {
    let registry = Registry::start().await?;
    let top = archive(&[Member::file("top", text)]);
    let image = Image::of_layers(vec![archive(&[Member::file("bottom", "of two")]), top], text);
    let reference = registry.push(case, "1", &image);
    registry.pull(case, &reference, PullPolicy::IfNotPresent, None).await?;
    Ok((registry, reference, image))
}

async fn inspect(case: Case) -> Verdict {
    let (_registry, reference, image) = pulled(&case, "inspected").await?;
    for name in [&reference, &image.digest, &image.id] {
        let found = case.runtime().inspect_image(name).await.or_unsupported(&format!("inspect_image of {name}"))?;
        equal("its reference", &found.reference, &reference)?;
        equal("its digest", &found.digest, &image.digest)?;
        equal("its id", &found.id, &image.id)?;
        equal("its size", &found.size_bytes, &image.size_bytes())?;
        equal("the number of its layers", &found.layers.len(), &2)?;
        equal("a label", &found.config["config"]["Labels"]["text"].as_str(), &Some("inspected"))?;
    }
    Ok(())
}

async fn history(case: Case) -> Verdict {
    let (_registry, reference, image) = pulled(&case, "with a history").await?;
    let steps = case.runtime().image_history(&reference).await.or_unsupported("image_history")?;
    let layers = image.layer_digests();
    let told: Vec<_> =
        steps.iter().map(|step| (step.created_by.as_deref().unwrap_or_default(), step.layer.as_ref())).collect();
    let of = |number: usize| format!("layer {}", layers[number]);
    let (top, bottom) = (of(1), of(0));
    equal(
        "its steps",
        &told,
        &vec![("no layer", None), (top.as_str(), Some(&layers[1])), (bottom.as_str(), Some(&layers[0]))],
    )?;
    equal("what the builder said", &steps[0].comment.as_deref(), &Some("with a history"))?;
    let bytes: Vec<u64> = steps.iter().map(|step| step.size_bytes).collect();
    equal("the bytes of all steps", &bytes.iter().sum(), &image.layer_bytes())?;
    equal("the bytes of a step without a layer", &bytes[0], &0)
}

pub(super) async fn save(case: &Case, references: &[String]) -> Verdict<Vec<u8>> {
    let sink = Sink::default();
    case.runtime().save_images(references, sink.boxed()).await.or_unsupported("save_images")?;
    Ok(sink.taken())
}

/// The references that are here, of the check's own registry.
async fn here(case: &Case, registry: &Registry) -> Verdict<Vec<String>> {
    let all = case.runtime().list_images().await.or_unsupported("list_images")?;
    Ok(all.into_iter().map(|image| image.reference).filter(|one| one.starts_with(&registry.repository())).collect())
}

async fn save_load(case: Case) -> Verdict {
    let (registry, reference, image) = pulled(&case, "saved").await?;
    let other = registry.reference(&case, "other");
    case.runtime().tag_image(&reference, &other).await.or_unsupported("tag_image")?;
    let saved = save(&case, &[reference.clone(), other.clone()]).await?;
    members(&saved)?;
    let file = case.directory()?.join("saved.tar");
    of_host(&file, std::fs::write(&file, &saved))?;
    for name in [&reference, &other] {
        case.runtime().remove_image(name, true).await.or_unsupported("remove_image")?;
    }
    equal("what is here after the removal", &here(&case, &registry).await?, &Vec::new())?;
    for time in ["first", "second"] {
        let loaded = case.runtime().load_images(&file).await.or_unsupported("load_images")?;
        let mut told: Vec<_> = loaded.iter().map(|one| (&one.reference, one.digest.as_ref())).collect();
        told.sort();
        let wanted = vec![(&reference, Some(&image.digest)), (&other, Some(&image.digest))];
        equal(&format!("what the {time} load tells"), &told, &wanted)?;
    }
    let asked = registry.connections();
    for name in [&reference, &other] {
        is_whole(&case, name).await?;
    }
    equal("the number of connections to the registry", &registry.connections(), &asked)
}

async fn load_invalid(case: Case) -> Verdict {
    let (registry, reference, image) = pulled(&case, "loaded by half").await?;
    let saved = save(&case, std::slice::from_ref(&reference)).await?;
    case.runtime().remove_image(&reference, true).await.or_unsupported("remove_image")?;
    let directory = case.directory()?;
    // One byte of the layer is another.
    let mut damaged = saved.clone();
    let top = b"loaded by half";
    let places = saved.windows(top.len()).enumerate().filter(|(_, bytes)| *bytes == top).map(|(at, _)| at);
    places.for_each(|at| damaged[at] = b'L');
    let cases: [(&str, Vec<u8>); 3] = [
        ("no archive", b"this is no archive".repeat(100)),
        ("half of one", saved[..saved.len() / 2].to_vec()),
        ("a damaged one", damaged),
    ];
    for (what, bytes) in cases {
        let file = directory.join("archive.tar");
        of_host(&file, std::fs::write(&file, bytes))?;
        let loaded = case.runtime().load_images(&file).await;
        if let Err(AgentError::Unsupported(_)) = loaded {
            return loaded.map(drop).or_unsupported("load_images");
        }
        refused(what, loaded, |_| true)?;
        equal(&format!("what is here after {what}"), &here(&case, &registry).await?, &Vec::new())?;
    }
    refused("a file that is not there", case.runtime().load_images(&directory.join("none")).await, |_| true)?;
    // Nothing of it is in the way of the whole one.
    let file = directory.join("whole.tar");
    of_host(&file, std::fs::write(&file, &saved))?;
    let loaded = case.runtime().load_images(&file).await.or_fail("load_images of a whole archive")?;
    equal("its digest", &loaded.iter().map(|one| one.digest.as_ref()).collect(), &vec![Some(&image.digest)])?;
    is_whole(&case, &reference).await
}

fn basic(password: &str) -> RegistryAuth {
    let (username, password) = ("conformance".to_owned(), password.to_owned());
    RegistryAuth { username, password, auth_type: RegistryAuthType::Basic }
}

/// `conformance:open sesame`.
const BASIC: &str = "Basic Y29uZm9ybWFuY2U6b3BlbiBzZXNhbWU=";

async fn push(case: Case) -> Verdict {
    let (_from, reference, image) = pulled(&case, "pushed").await?;
    let registry = Registry::start().await?;
    let target = registry.reference(&case, "pushed");
    case.runtime().tag_image(&reference, &target).await.or_unsupported("tag_image")?;
    registry.want(Some(BASIC));
    let pushed = case.runtime().push_image(&target, Some(&basic("open sesame"))).await;
    equal("the digest that is answered", &pushed.or_unsupported("push_image")?, &image.digest)?;
    equal("what the registry has, if all of it", &registry.has("pushed", &image), &Some(image.digest.clone()))?;
    // What is there already is there again.
    let again = case.runtime().push_image(&target, Some(&basic("open sesame"))).await.or_fail("push_image again")?;
    equal("the digest of a second push", &again, &image.digest)?;
    registry.want(None);
    case.runtime().remove_image(&target, false).await.or_unsupported("remove_image")?;
    registry.pull(&case, &target, PullPolicy::Always, None).await?;
    is_whole(&case, &target).await
}

async fn push_refused(case: Case) -> Verdict {
    let (_from, reference, image) = pulled(&case, "refused").await?;
    let registry = Registry::start().await?;
    let target = registry.reference(&case, "refused");
    case.runtime().tag_image(&reference, &target).await.or_unsupported("tag_image")?;
    registry.want(Some(BASIC));
    let pushed = case.runtime().push_image(&target, Some(&basic("do-not-show-me"))).await;
    if let Err(AgentError::Unsupported(_)) = pushed {
        return pushed.map(drop).or_unsupported("push_image");
    }
    let is_silent = |error: &AgentError| !format!("{error} {error:?}").contains("do-not-show-me");
    refused("a push with a wrong password", pushed, is_silent)?;
    ensure(registry.connections() > 0, || "the registry was not asked".to_owned())?;
    equal("what the registry has", &registry.has("refused", &image), &None)
}

async fn unknown(case: Case) -> Verdict {
    let (runtime, absent) = (case.runtime(), "conformance.invalid/no/such:1");
    let mut wrong = Vec::new();
    let mut asked = 0;
    let mut add = |method: &str, answer: Result<()>| match answer {
        Err(AgentError::Unsupported(_)) => {}
        Err(error @ AgentError::NotFound { .. }) if error.to_string().contains(absent) => asked += 1,
        answer => wrong.push(format!("{method} answers {answer:?}")),
    };
    add("tag_image", runtime.tag_image(absent, &case.image_name("1")).await);
    add("remove_image", runtime.remove_image(absent, true).await);
    add("push_image", runtime.push_image(absent, None).await.map(drop));
    add("save_images", runtime.save_images(&[absent.to_owned()], Box::new(std::io::sink())).await);
    add("image_history", runtime.image_history(absent).await.map(drop));
    add("inspect_image", runtime.inspect_image(absent).await.map(drop));
    ensure(wrong.is_empty(), || wrong.join("; "))?;
    match asked {
        0 => Err(Stop::Unsupported("the backend has none of the methods that take an image".to_owned())),
        _ => Ok(()),
    }
}
