//! Pulls as they go: Unsupported is an answer.

use futures_util::StreamExt;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal, within};
use super::pull::is_whole;
use super::registry::{Image, Registry};
use super::{Check, check};
use crate::{AgentError, LayerPhase, PullEvent, PullEventStream, PullPolicy, Result};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("pull_stream.told", "the manifest and its layers, each layer as it comes, and Done last", told),
        check!("pull_stream.here", "of what is here only Done, and no registry is asked", here),
        check!("pull_stream.fails", "the error of the pull is the last item", fails),
        check!("pull_stream.dropped", "dropped, the pull is stopped, and can be begun again", dropped),
    ]
}

async fn begin(case: &Case, reference: &str, policy: PullPolicy) -> Verdict<PullEventStream> {
    case.runtime().pull_image_stream(reference, policy, None).await.or_unsupported("pull_image_stream")
}

/// All that is told of a pull.
async fn pulled(case: &Case, reference: &str, policy: PullPolicy) -> Verdict<Vec<Result<PullEvent>>> {
    let stream = begin(case, reference, policy).await?;
    within(&format!("a pull of {reference}"), 3 * case.soon(), stream.collect()).await
}

async fn told(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let image = Image::new("told as it goes ");
    let reference = registry.push(&case, "1", &image);
    let events = pulled(&case, &reference, PullPolicy::Always).await?;
    let digest = image.digest.clone();
    let layers: Vec<(String, u64)> =
        image.layer_digests().into_iter().map(|digest| (digest, image.layer_bytes())).collect();
    let resolved = Ok(PullEvent::Resolved { digest: digest.clone(), layers: layers.clone() });
    equal("what is told first", &events.first(), &Some(&resolved))?;
    let done = Ok(PullEvent::Done { digest });
    equal("what is told last", &events.last(), &Some(&done))?;
    equal("how often it is done", &events.iter().filter(|event| **event == done).count(), &1)?;
    let (digest, total) = layers[0].clone();
    let unpacked = Ok(PullEvent::Layer { digest, phase: LayerPhase::Unpacked, bytes: total, total });
    ensure(events.contains(&unpacked), || format!("the layer is never whole: {events:?}"))?;
    let mut last = 0;
    for event in &events {
        let Ok(PullEvent::Layer { bytes, total, .. }) = event else { continue };
        ensure(last <= *bytes && bytes <= total, || format!("{bytes} bytes of {total} come after {last}"))?;
        last = *bytes;
    }
    is_whole(&case, &reference).await
}

async fn here(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let image = Image::new("told, and here ");
    let reference = registry.push(&case, "1", &image);
    pulled(&case, &reference, PullPolicy::IfNotPresent).await?;
    let asked = registry.connections();
    let done = vec![Ok(PullEvent::Done { digest: image.digest.clone() })];
    for policy in [PullPolicy::IfNotPresent, PullPolicy::Never] {
        equal(&format!("what is told with {policy:?}"), &pulled(&case, &reference, policy).await?, &done)?;
    }
    equal("the number of connections to the registry", &registry.connections(), &asked)
}

async fn fails(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let known = registry.push(&case, "known", &Image::new("told, and known "));
    let events = pulled(&case, &known, PullPolicy::Always).await?;
    ensure(events.iter().all(Result::is_ok), || format!("of what is there is told {events:?}"))?;
    let absent = registry.reference(&case, "absent");
    for policy in [PullPolicy::Always, PullPolicy::Never] {
        let events = pulled(&case, &absent, policy).await?;
        let errors = events.iter().filter(|event| event.is_err()).count();
        let is_last = matches!(events.last(), Some(Err(AgentError::PullFailed { .. } | AgentError::NotFound { .. })));
        ensure(errors == 1 && is_last, || format!("of what is not there is told with {policy:?} {events:?}"))?;
    }
    Ok(())
}

async fn dropped(case: Case) -> Verdict {
    let registry = Registry::start().await?;
    let reference = registry.push(&case, "1", &Image::new("told, and dropped "));
    registry.hold_back(true);
    let mut stream = begin(&case, &reference, PullPolicy::Always).await?;
    let read = async { while stream.next().await.is_some() {} };
    tokio::select! {
        () = read => return Err(Stop::Failed("half of a layer is held back, and the stream ends".to_owned())),
        begun = case.until("no layer was asked for", || async { Ok((registry.held_back() > 0).then_some(())) }) => begun?,
    }
    equal("how many transfers are given up before", &registry.given_up(), &0)?;
    drop(stream);
    case.until("the transfer is not given up", || async { Ok((registry.given_up() > 0).then_some(())) }).await?;
    registry.hold_back(false);
    let events = pulled(&case, &reference, PullPolicy::IfNotPresent).await?;
    ensure(matches!(events.last(), Some(Ok(PullEvent::Done { .. }))), || format!("begun again, it tells {events:?}"))?;
    is_whole(&case, &reference).await
}
