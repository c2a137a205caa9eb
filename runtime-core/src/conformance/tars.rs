//! Files in and out of containers, as tar: Unsupported is an answer.

use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use super::case::{Case, OrStop, Verdict, ensure, equal, of_host, refused, within};
use super::storage::{TARGET, directory_of_the_shell};
use super::tar::{Member, Sink, archive, members};
use super::{Check, Workload, check};
use crate::spec::StorageSpec;
use crate::{AgentError, ContainerId, CopyInOptions, Owner};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("copy.in", "a tar goes into a directory: owners and modes kept, files in the way replaced", copy_in),
        check!("copy.options", "for another owner and under another name, if asked", options),
        check!("copy.out", "what is at a path comes out under its own name, a link or what it leads to", copy_out),
        check!(
            "copy.ended",
            "one that has ended is copied out of and into, and has that at its next start",
            copy_ended
        ),
        check!("copy.missing", "a path that is not there is NotFound; what is no tar is an error", missing),
        check!("copy.links", "no link leads out of the container's root, in or out", links),
        check!("export.root", "an export is the root filesystem, without what is mounted in it", export),
    ]
}

/// A directory of the checks' own in the container.
const PLACE: &str = "/conformance-files";

async fn started(case: &Case) -> Verdict<ContainerId> {
    case.start_ready(&Workload::Script(format!("mkdir -p {PLACE}; {}", Workload::idle()))).await
}

async fn put(case: &Case, id: &ContainerId, members: &[Member], options: &CopyInOptions) -> Verdict {
    let tar = Box::new(Cursor::new(archive(members)));
    case.runtime().copy_in(id, Path::new(PLACE), tar, options).await.or_unsupported("copy_in")
}

async fn take(case: &Case, id: &ContainerId, path: &str, follow: bool) -> Verdict<Vec<Member>> {
    let sink = Sink::default();
    let copied = case.runtime().copy_out(id, Path::new(path), follow, sink.boxed()).await;
    copied.or_unsupported(&format!("copy_out of {path}"))?;
    members(&sink.taken())
}

/// Mode, owner and group, and content of a file there.
async fn seen(case: &Case, id: &ContainerId, name: &str) -> Verdict<String> {
    case.ask(id, &format!("cd {PLACE}; set -- $(ls -ln {name}); echo $1 $3 $4; cat {name}")).await
}

async fn copy_in(case: Case) -> Verdict {
    let id = started(&case).await?;
    let file = |text: &str| Member::file("kept/file", text).owned_by(1000, 1001).with_mode(0o640);
    let all = [Member::directory("kept"), file("as it was"), Member::symlink("kept/link", "file")];
    put(&case, &id, &all, &CopyInOptions::default()).await?;
    equal("what is there", &seen(&case, &id, "kept/file").await?.as_str(), &"-rw-r----- 1000 1001\nas it was")?;
    equal("where the link leads", &case.ask(&id, &format!("readlink {PLACE}/kept/link")).await?.as_str(), &"file")?;
    put(&case, &id, &[file("another")], &CopyInOptions::default()).await?;
    equal("what is there now", &seen(&case, &id, "kept/file").await?.as_str(), &"-rw-r----- 1000 1001\nanother")
}

async fn options(case: Case) -> Verdict {
    let id = started(&case).await?;
    let all = [Member::directory("kept"), Member::file("kept/file", "given").owned_by(1000, 1001)];
    let options = CopyInOptions { rename: Some("renamed".into()), owner: Owner::Always { uid: 7, gid: 8 } };
    put(&case, &id, &all, &options).await?;
    equal("what is there", &seen(&case, &id, "renamed/file").await?.as_str(), &"-rw-r--r-- 7 8\ngiven")?;
    equal("what else there is", &case.ask(&id, &format!("ls {PLACE}")).await?.as_str(), &"renamed")
}

async fn copy_out(case: Case) -> Verdict {
    let id = started(&case).await?;
    let script = "mkdir dir; echo inside > dir/file; chown 5:6 dir/file; chmod 4711 dir/file; ln -s dir/file link";
    case.ask(&id, &format!("cd {PLACE}; {script}")).await?;
    let tree = take(&case, &id, &format!("{PLACE}/dir"), false).await?;
    let shown: Vec<_> = tree.iter().map(|one| (one.name.as_str(), one.kind)).collect();
    equal("a directory with what is in it", &shown, &vec![("dir", '5'), ("dir/file", '0')])?;
    let file = &tree[1];
    equal("owner and mode", &(file.uid, file.gid, file.mode & 0o7777), &(5, 6, 0o4711))?;
    equal("content", &file.text().as_str(), &"inside\n")?;
    let link = take(&case, &id, &format!("{PLACE}/link"), false).await?;
    let shown: Vec<_> = link.iter().map(|one| (one.name.as_str(), one.kind, one.target.as_str())).collect();
    equal("a link", &shown, &vec![("link", '2', "dir/file")])?;
    let followed = take(&case, &id, &format!("{PLACE}/link"), true).await?;
    let shown: Vec<_> = followed.iter().map(|one| (one.kind, one.text())).collect();
    equal("what the link leads to", &shown, &vec![('0', "inside\n".to_owned())])
}

async fn copy_ended(case: Case) -> Verdict {
    let script = format!("mkdir -p {PLACE}; echo written > {PLACE}/written; cat {PLACE}/given 2>/dev/null; exit 3");
    let id = case.start(&Workload::Script(script)).await?;
    equal("the exit code", &case.wait(&id).await?, &3)?;
    let out = take(&case, &id, &format!("{PLACE}/written"), false).await?;
    equal("what comes out", &out.iter().map(Member::text).collect(), &vec!["written\n".to_owned()])?;
    put(&case, &id, &[Member::file("given", "given\n")], &CopyInOptions::default()).await?;
    case.runtime().start_container(&id).await.or_fail("start_container")?;
    case.line(&id, "given").await.map(drop)
}

async fn missing(case: Case) -> Verdict {
    let id = started(&case).await?;
    let is_absent = |error: &AgentError| matches!(error, AgentError::NotFound { .. });
    put(&case, &id, &[Member::file("there", "")], &CopyInOptions::default()).await?;
    let (nowhere, options) = (Path::new("/no/such/conformance"), CopyInOptions::default());
    let out = case.runtime().copy_out(&id, nowhere, false, Sink::default().boxed()).await;
    refused("a copy_out of what is not there", out, is_absent)?;
    let tar = Box::new(Cursor::new(archive(&[Member::file("x", "")])));
    refused("a copy_in to where nothing is", case.runtime().copy_in(&id, nowhere, tar, &options).await, is_absent)?;
    let no_tar = Box::new(Cursor::new(vec![b'x'; 2000]));
    let put = case.runtime().copy_in(&id, Path::new(PLACE), no_tar, &options).await;
    refused("what is no tar", put, |error| !is_absent(error))?;
    equal("what is there", &case.ask(&id, &format!("ls {PLACE}")).await?.as_str(), &"there")
}

async fn links(case: Case) -> Verdict {
    let host = case.directory()?;
    let secret = host.join("secret");
    of_host(&secret, std::fs::write(&secret, "the host's\n"))?;
    let id = started(&case).await?;
    let up = "../".repeat(8);
    let host = host.display().to_string();
    case.ask(&id, &format!("cd {PLACE}; ln -s {host} absolute; ln -s {up}{} relative", host.trim_matches('/'))).await?;
    for link in ["absolute", "relative"] {
        let sink = Sink::default();
        let path = format!("{PLACE}/{link}/secret");
        let out = case.runtime().copy_out(&id, Path::new(&path), false, sink.boxed()).await;
        if let Err(AgentError::Unsupported(_)) = out {
            return out.or_unsupported("copy_out");
        }
        refused(&format!("a copy_out by {link}"), out, |error| matches!(error, AgentError::NotFound { .. }))?;
        let (dir, tar) = (format!("{PLACE}/{link}"), Box::new(Cursor::new(archive(&[Member::file("put", "")]))));
        let put = case.runtime().copy_in(&id, Path::new(&dir), tar, &CopyInOptions::default()).await;
        refused(&format!("a copy_in by {link}"), put, |error| matches!(error, AgentError::NotFound { .. }))?;
        // What comes in has such a link itself, and puts something behind it.
        let through = [Member::symlink("own", &host), Member::file("own/put", "")];
        let tar = Box::new(Cursor::new(archive(&through)));
        let _ = case.runtime().copy_in(&id, Path::new(PLACE), tar, &CopyInOptions::default()).await;
        let above = archive(&[Member::file(&format!("{up}{}/put", host.trim_matches('/')), "")]);
        let _ = case.runtime().copy_in(&id, Path::new(PLACE), Box::new(Cursor::new(above)), &Default::default()).await;
    }
    untouched(&secret)
}

/// Fails unless nothing came to the host's directory with `secret`, or went.
pub(super) fn untouched(secret: &Path) -> Verdict {
    let directory = secret.parent().unwrap_or(secret);
    let listed = of_host(directory, std::fs::read_dir(directory))?.flatten().map(|entry| entry.file_name());
    equal("what is in the host's directory", &listed.collect::<Vec<_>>(), &vec!["secret".into()])?;
    equal("the host's file", &of_host(secret, std::fs::read_to_string(secret))?.as_str(), &"the host's\n")
}

async fn export(case: Case) -> Verdict {
    let shell = directory_of_the_shell(&case).await?;
    let script = format!("mkdir {PLACE}; echo new > {PLACE}/new; echo no > {TARGET}/mounted; {}", Workload::idle());
    let mut spec = case.script(script)?;
    spec.storage = vec![StorageSpec::Tmpfs { target: TARGET.to_owned(), size: None, mode: None }];
    let id = case.start_spec_ready(&spec).await?;
    for what in ["running", "ended"] {
        let sink = Sink::default();
        let exported = case.runtime().export(&id, sink.boxed());
        within("export", 3 * case.soon(), exported).await?.or_unsupported("export")?;
        let all = members(&sink.taken())?;
        let find = |path: &str| all.iter().find(|one| one.name == path.trim_matches('/'));
        let new = find(&format!("{PLACE}/new")).map(Member::text);
        equal(&format!("what it wrote, {what}"), &new.as_deref(), &Some("new\n"))?;
        ensure(find(&format!("{shell}/sh")).is_some(), || format!("of the {what} one {shell}/sh is missing"))?;
        let mounted = find(&format!("{TARGET}/mounted"));
        ensure(mounted.is_none(), || format!("the export of the {what} one has what is mounted in it: {mounted:?}"))?;
        case.runtime().stop_container(&id, Duration::ZERO).await.or_fail("stop_container")?;
    }
    Ok(())
}
