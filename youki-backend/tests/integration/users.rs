//! Who a container runs as: the image's user and the spec's, by name and by number, never root by accident.

use futures_util::StreamExt;
use runtime_core::{ContainerState, ExecEvent, ExecOptions};

use crate::support::Case;
use crate::support::case::{IDLE, words};
use crate::support::image::Image;

crate::tests![
    root_unless_told_otherwise,
    the_specs_user_by_name_and_number,
    the_images_user_and_the_specs_instead_of_it,
    an_unknown_name_or_a_number_too_large_is_an_error_and_never_root,
    the_primary_group_is_among_the_supplementary_ones,
    a_user_owns_no_capability,
    home_is_the_users,
];

async fn root_unless_told_otherwise(case: Case) {
    assert_eq!(case.lines_of("id -u; id -g").await, ["0", "0"]);
}

async fn the_specs_user_by_name_and_number(case: Case) {
    for (user, uid, gid, groups) in [
        ("app", "1000", "1000", "10 29 1000"),
        // A number that passwd knows has that entry's groups, as with docker.
        ("1000", "1000", "1000", "10 29 1000"),
        ("app:audio", "1000", "29", "29"),
        ("1000:1000", "1000", "1000", "1000"),
        ("4242", "4242", "0", "0"),
        ("4242:4343", "4242", "4343", "4343"),
        ("nobody", "65534", "65534", "65534"),
        ("0", "0", "0", "0"),
        ("2147483647:2147483647", "2147483647", "2147483647", "2147483647"),
    ] {
        let mut spec = case.script("id -u; id -g; id -G").await;
        spec.user = Some(user.into());
        let lines = case.run(&spec).await.succeeded();
        assert_eq!(lines[..2], [uid, gid], "user {user}");
        let mut have: Vec<u64> = lines[2].split(' ').map(|id| id.parse().unwrap()).collect();
        have.sort_unstable();
        have.dedup();
        let want: Vec<u64> = groups.split(' ').map(|id| id.parse().unwrap()).collect();
        assert_eq!(have, want, "groups of user {user}");
    }
}

async fn the_images_user_and_the_specs_instead_of_it(case: Case) {
    let reference = case.push("app", &Image::busybox().with("User", "app".into())).await;
    let mut spec = case.script("id -un").await;
    spec.image.name = reference;
    assert_eq!(case.run(&spec).await.succeeded(), ["app"]);
    spec.user = Some("nobody".into());
    assert_eq!(case.run(&spec).await.succeeded(), ["nobody"]);
    // As by `-u "$UNSET"`.
    spec.user = Some(String::new());
    assert_eq!(case.run(&spec).await.succeeded(), ["app"]);
    spec.command = case.script(IDLE).await.command;
    let id = case.start(&spec).await;
    let options = ExecOptions { user: Some(String::new()), ..ExecOptions::default() };
    let said = case.runtime.exec_with(&id, &words(&["id", "-un"]), &options, None).await.unwrap();
    let said: Vec<_> = said.collect().await;
    assert!(said.iter().any(|event| matches!(event, ExecEvent::Stdout(text) if text == "app\n")), "{said:?}");
}

async fn an_unknown_name_or_a_number_too_large_is_an_error_and_never_root(case: Case) {
    for user in
        [":", ":app", "nosuch", "app:nosuch", "nosuch:app", "4294967296", "99999999999999999999", "-1", "0:4294967296"]
    {
        let mut spec = case.script("id -u").await;
        spec.user = Some(user.into());
        let id = case.id();
        match case.try_start(&id, &spec).await {
            Err(error) => {
                assert!(matches!(error, runtime_core::AgentError::InvalidSpec(_)), "{user}: {error:?}");
                let code = if user.contains("nosuch") { "user.not_found" } else { "spec.invalid" };
                assert_eq!(error.code(), code, "{error}");
                let named = user.split(':').any(|part| part.len() > 2 && error.to_string().contains(part));
                assert!(named || user.len() < 5, "{user} is not named: {error}");
            }
            Ok(()) => panic!("user {user} ran: {:?}", case.finish(&id).await),
        }
        if let Ok(state) = case.runtime.container_state(&id).await {
            assert!(!matches!(state, ContainerState::Running | ContainerState::Exited { .. }), "{user}: {state:?}");
        }
    }
    let reference = case.push("nosuch", &Image::busybox().with("User", "nosuch".into())).await;
    let mut spec = case.script("id -u").await;
    spec.image.name = reference;
    assert!(case.try_start(&case.id(), &spec).await.is_err(), "an image's unknown user ran");
}

/// CVE-2022-36109: a set-group-ID program must not be a way out of the primary group.
async fn the_primary_group_is_among_the_supplementary_ones(case: Case) {
    for (user, gid) in [("app", "1000"), ("app:audio", "29"), ("4242:4343", "4343"), ("4242", "0"), ("0", "0")] {
        let mut spec = case.script(&format!("grep ^Groups: /proc/self/status; {}", crate::support::case::IDLE)).await;
        spec.user = Some(user.into());
        let id = case.start(&spec).await;
        let from_exec = case.exec_ok(&id, "grep ^Groups: /proc/self/status").await;
        case.until_logged(&id, from_exec.trim_end_matches('\n')).await;
        assert!(from_exec.split_whitespace().skip(1).any(|group| group == gid), "{user}: {from_exec:?}");
    }
}

async fn a_user_owns_no_capability(case: Case) {
    let mut spec = case.script("grep -E '^Cap(Eff|Prm|Amb)' /proc/self/status | cut -f2").await;
    spec.user = Some("app".into());
    assert_eq!(case.run(&spec).await.succeeded(), ["0000000000000000"; 3]);
}

async fn home_is_the_users(case: Case) {
    assert_eq!(case.lines_of("echo $HOME").await, ["/root"]);
    let mut spec = case.script("echo $HOME").await;
    spec.user = Some("app".into());
    assert_eq!(case.run(&spec).await.succeeded(), ["/home"]);
}
