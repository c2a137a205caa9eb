//! What becomes of the settings in an image's config.

use super::case::{Case, OrStop, Stop, Verdict, equal, within};
use super::{Check, ConfiguredImage, Workload, check};
use crate::ServiceSpec;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("configured.env", "the image's ENV is the process's, and the spec's goes before it", env),
        check!("configured.workdir", "the process runs in the image's WORKDIR unless the spec has one", workdir),
        check!("configured.user", "the process is the image's USER unless the spec has one", user),
        check!("configured.stop_signal", "the image's STOPSIGNAL is sent unless the spec has one", stop_signal),
        check!("configured.volume", "the image's VOLUME becomes an anonymous volume, which dies with it", volume),
    ]
}

fn image(case: &Case) -> Verdict<ConfiguredImage> {
    let image = case.backend().configured_image();
    image.ok_or_else(|| Stop::Unsupported("the backend names no image with settings".to_owned()))
}

fn spec(case: &Case, script: &str) -> Verdict<(ConfiguredImage, ServiceSpec)> {
    let (image, mut spec) = (image(case)?, case.script(script)?);
    spec.image.name.clone_from(&image.reference);
    Ok((image, spec))
}

async fn env(case: Case) -> Verdict {
    let (name, value) = image(&case)?.env;
    let (_, mut spec) = spec(&case, &format!("echo \"${name}\""))?;
    equal("the image's variable", &case.answer(&spec).await?, &value)?;
    spec.env.insert(name, "the spec's".to_owned());
    equal("the spec's variable", &case.answer(&spec).await?.as_str(), &"the spec's")
}

async fn workdir(case: Case) -> Verdict {
    let (image, mut spec) = spec(&case, "pwd")?;
    equal("the image's directory", &case.answer(&spec).await?, &image.workdir)?;
    spec.command.workdir = Some("/".to_owned());
    equal("the spec's directory", &case.answer(&spec).await?.as_str(), &"/")
}

async fn user(case: Case) -> Verdict {
    let (image, mut spec) = spec(&case, "id -u")?;
    equal("the image's user", &case.answer(&spec).await?, &image.uid.to_string())?;
    spec.user = Some("0".to_owned());
    equal("the spec's user", &case.answer(&spec).await?.as_str(), &"0")
}

async fn stop_signal(case: Case) -> Verdict {
    let signal = image(&case)?.stop_signal;
    let (_, spec) = spec(&case, &Workload::ExitOn { signal, code: 11 }.to_string())?;
    let id = case.start_spec_ready(&spec).await?;
    within("stop", case.soon(), case.runtime().stop_container(&id, case.soon())).await?.or_fail("stop_container")?;
    equal("the exit code", &case.wait(&id).await?, &11)
}

async fn volume(case: Case) -> Verdict {
    let target = image(&case)?.volume;
    let script = format!("echo written >> {target}/f; wc -l < {target}/f | tr -d ' '");
    let (_, mut spec) = spec(&case, &script)?;
    spec.read_only = true; // what can be written is no part of the root
    let id = case.id();
    for container in ["the first container", "the next one of that name"] {
        case.runtime().create_container(&id, &spec).await.or_unsupported("create_container")?;
        case.runtime().start_container(&id).await.or_fail("start_container")?;
        case.wait(&id).await?;
        let logs = case.logs(&id, 1).await?;
        let lines: Vec<&str> = logs.iter().map(|entry| entry.message.as_str()).collect();
        equal(&format!("the number of lines that {container} finds"), &lines, &vec!["1"])?;
        case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    }
    Ok(())
}
