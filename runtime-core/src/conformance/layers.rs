//! What becomes of an image's layers, in images that the suite makes of the backend's own.

use super::case::{Case, OrStop, Verdict, ensure, equal, of_host, within};
use super::registry::{Image, Registry, container_of};
use super::tar::{Member, Sink, archive, members};
use super::tars::untouched;
use super::{Check, Workload, check};
use crate::spec::CommandSpec;
use crate::{ContainerState, PullPolicy, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!(
            "layers.attributes",
            "owner, mode, time, hard links and extended attributes are the layer's",
            attributes
        ),
        check!(
            "layers.deleted",
            "what a layer deletes is gone, and there anew where a later one has it again",
            deleted
        ),
        check!("layers.links", "no link or name of a layer leads out of the container's root", links),
        check!("layers.used", "the layers of a running container stay though its image is removed by force", used),
    ]
}

/// The root of the backend's own image as one layer, so that what is made of it can run.
async fn base(case: &Case) -> Verdict<Vec<u8>> {
    let (id, sink) = (case.start(&Workload::exit(0)).await?, Sink::default());
    case.wait(&id).await?;
    within("export", 3 * case.soon(), case.runtime().export(&id, sink.boxed())).await?.or_unsupported("export")?;
    case.runtime().remove_container(&id).await.or_fail("remove_container")?;
    Ok(sink.taken())
}

/// A spec that runs a script in an image that is here.
fn script_in(case: &Case, reference: &str, script: &str) -> Verdict<ServiceSpec> {
    let entrypoint = Some(case.command(&Workload::Script(script.to_owned()))?);
    Ok(ServiceSpec { command: CommandSpec { entrypoint, ..CommandSpec::default() }, ..container_of(reference) })
}

async fn attributes(case: Case) -> Verdict {
    let base = base(&case).await?;
    let mut owned = Member::file("layers/owned", "content\n").owned_by(1234, 4321).with_mode(0o4751);
    owned.mtime = 1_000_000_000;
    // What `setcap cap_net_bind_service=ep` gives.
    let capability = [&[1, 0, 0, 2, 0, 4, 0, 0][..], &[0; 12]].concat();
    owned.xattrs.insert("security.capability".to_owned(), capability.clone());
    let mut directory = Member::directory("layers").owned_by(5, 6).with_mode(0o1770);
    directory.mtime = 1_100_000_000;
    // A further name says of the file what the first says.
    let further = Member::hard_link("layers/hard", "layers/owned");
    let hard =
        Member { content: Vec::new(), name: further.name, kind: further.kind, target: further.target, ..owned.clone() };
    let top = [directory, owned, hard, Member::symlink("layers/soft", "owned")];
    let registry = Registry::start().await?;
    let reference = registry.push(&case, "1", &Image::of_layers(vec![base, archive(&top)], "attributes"));
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    let script = "cd /layers; stat -c '%u:%g %a %Y %h' . owned; [ owned -ef hard ] && cat soft";
    let id = case.start_spec(&script_in(&case, &reference, script)?).await?;
    case.wait(&id).await?;
    let logs = case.logs(&id, 3).await?;
    let lines: Vec<&str> = logs.iter().map(|entry| entry.message.as_str()).collect();
    let of_directory = lines.first().and_then(|line| line.rsplit_once(' ')).map(|(shown, _)| shown);
    equal("the directory", &of_directory, &Some("5:6 1770 1100000000"))?;
    let of_file = lines.get(1..).unwrap_or_default().to_vec();
    equal("the file, and by its link", &of_file, &vec!["1234:4321 4751 1000000000 2", "content"])?;
    let sink = Sink::default();
    case.runtime().export(&id, sink.boxed()).await.or_unsupported("export")?;
    let all = members(&sink.taken())?;
    let owned = all.iter().find(|one| one.name.starts_with("layers/") && one.kind == '0');
    let found = owned.and_then(|one| one.xattrs.get("security.capability"));
    equal("its capabilities", &found, &Some(&capability))
}

async fn deleted(case: Case) -> Verdict {
    let base = base(&case).await?;
    let old = [
        Member::directory("layers"),
        Member::file("layers/gone", "old\n"),
        Member::file("layers/again", "old\n"),
        Member::hard_link("layers/other", "layers/again"),
        Member::directory("layers/dir"),
        Member::file("layers/dir/old", ""),
        Member::directory("layers/opaque"),
        Member::file("layers/opaque/old", ""),
    ];
    let without = ["layers/.wh.gone", "layers/.wh.again", "layers/.wh.dir"].map(|name| Member::file(name, ""));
    let anew = [
        Member::file("layers/again", "new\n"),
        Member::directory("layers/dir"),
        Member::file("layers/dir/new", ""),
        Member::directory("layers/opaque"),
        Member::file("layers/opaque/.wh..wh..opq", ""),
        Member::file("layers/opaque/new", ""),
    ];
    let layers = vec![base, archive(&old), archive(&without), archive(&anew)];
    let registry = Registry::start().await?;
    let reference = registry.push(&case, "1", &Image::of_layers(layers, "deleted"));
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    let script = "cd /layers; echo $(ls -A); echo $(ls -A dir) $(ls -A opaque); cat again other";
    let (_, lines) = case.output(&script_in(&case, &reference, script)?, 4).await?;
    equal("what is there", &lines, &["again dir opaque other", "new new", "new", "old"].map(str::to_owned).to_vec())
}

async fn links(case: Case) -> Verdict {
    let base = base(&case).await?;
    let directory = case.directory()?;
    let secret = directory.join("secret");
    of_host(&secret, std::fs::write(&secret, "the host's\n"))?;
    let host = directory.display().to_string();
    let inner = host.trim_matches('/');
    let up = "../".repeat(8);
    let registry = Registry::start().await?;
    let hostile: [(&str, Vec<Vec<Member>>); 5] = [
        ("a symbolic link", vec![vec![Member::symlink("out", &host), Member::file("out/put", "")]]),
        ("one of another layer", vec![vec![Member::symlink("out", &host)], vec![Member::file("out/put", "")]]),
        ("its name", vec![vec![Member::file(&format!("{up}{inner}/put"), "")]]),
        ("a hard link", vec![vec![Member::hard_link("stolen", &format!("{up}{inner}/secret"))]]),
        (
            "a hard link by a symbolic one",
            vec![vec![Member::symlink("out", &host), Member::hard_link("stolen", "out/secret")]],
        ),
    ];
    // Where it does not come here at all, it cannot be asked.
    let harmless = registry.push(&case, "harmless", &Image::new("harmless "));
    registry.pull(&case, &harmless, PullPolicy::IfNotPresent, None).await?;
    for (number, (what, above)) in hostile.iter().enumerate() {
        let layers = [base.clone()].into_iter().chain(above.iter().map(|layer| archive(layer)));
        let reference = registry.push(&case, &format!("{number}"), &Image::of_layers(layers.collect(), what));
        let pulled = case.runtime().pull_image_with_policy(&reference, PullPolicy::IfNotPresent, None).await;
        untouched(&secret)?;
        // To refuse such an image is as good.
        let (id, spec) = (case.id(), script_in(&case, &reference, "cat /stolen 2>/dev/null; echo end")?);
        if pulled.is_err() || case.runtime().create_container(&id, &spec).await.is_err() {
            continue;
        }
        if case.runtime().start_container(&id).await.is_ok() {
            case.wait(&id).await?;
            let stolen = case.logs(&id, 1).await?.iter().any(|entry| entry.message.contains("the host's"));
            ensure(!stolen, || format!("by {what} the container reads the host's file"))?;
        }
        untouched(&secret)?;
    }
    Ok(())
}

async fn used(case: Case) -> Verdict {
    let base = base(&case).await?;
    let top = archive(&[Member::file("layers-used", "still here\n")]);
    let registry = Registry::start().await?;
    let reference = registry.push(&case, "1", &Image::of_layers(vec![base, top], "used"));
    registry.pull(&case, &reference, PullPolicy::IfNotPresent, None).await?;
    let spec = script_in(&case, &reference, &Workload::ExitOn { signal: "TERM", code: 5 }.to_string())?;
    let id = case.start_spec_ready(&spec).await?;
    // Its only name.
    case.runtime().remove_image(&reference, true).await.or_unsupported("remove_image with force")?;
    let state = case.runtime().container_state(&id).await.or_fail("container_state")?;
    equal("the container's state", &state, &ContainerState::Running)?;
    equal("what it reads", &case.ask(&id, "cat /layers-used").await?.as_str(), &"still here")?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    equal("its exit code", &case.wait(&id).await?, &5)?;
    // Until it is removed, also for another start.
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    equal("what it reads then", &case.ask(&id, "cat /layers-used").await?.as_str(), &"still here")
}
