//! Docker's rules for ENTRYPOINT and CMD.

use super::case::{Case, Stop, Verdict, equal, refused};
use super::{Check, EchoImage, check};
use crate::spec::CommandSpec;
use crate::{AgentError, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![check!(
        "command.matrix",
        "entrypoint set drops CMD; only args keep ENTRYPOINT; neither: both; nothing: InvalidSpec",
        matrix
    )]
}

async fn matrix(case: Case) -> Verdict {
    let images = case.backend().echo_images();
    if images.is_empty() {
        return Err(Stop::Unsupported("the backend names no images for this".to_owned()));
    }
    for image in &images {
        for entrypoint in [None, Some(vec![image.program.clone(), "E".to_owned()])] {
            // With no program before them, the args have to name it.
            let program = (entrypoint.is_none() && image.entrypoint.is_empty()).then(|| image.program.clone());
            let words = ["a".to_owned(), "b c".to_owned()];
            let with_args: Vec<String> = program.into_iter().chain(words).collect();
            for args in [None, Some(with_args)] {
                combination(&case, image, CommandSpec { entrypoint: entrypoint.clone(), args, workdir: None }).await?;
            }
        }
    }
    Ok(())
}

async fn combination(case: &Case, image: &EchoImage, command: CommandSpec) -> Verdict {
    let wanted = resolve(image, &command);
    let what = format!("{} with {:?} and {:?}", image.reference, command.entrypoint, command.args);
    let spec = ServiceSpec { command, ..ServiceSpec::new(&image.reference) };
    let Some((_, words)) = wanted.split_first() else {
        let created = case.runtime().create_container(&case.id(), &spec).await;
        return refused(&what, created, |error| matches!(error, AgentError::InvalidSpec(_)));
    };
    let (code, lines) = case.output(&spec, 1).await?;
    equal(&what, &(code, lines), &(0, vec![words.join(" ")]))
}

/// The command that results, by Docker's rules.
fn resolve(image: &EchoImage, command: &CommandSpec) -> Vec<String> {
    let (entrypoint, args) = match (&command.entrypoint, &command.args) {
        (Some(entrypoint), args) => (entrypoint.clone(), args.clone().unwrap_or_default()),
        (None, Some(args)) => (image.entrypoint.clone(), args.clone()),
        (None, None) => (image.entrypoint.clone(), image.cmd.clone()),
    };
    [entrypoint, args].concat()
}
