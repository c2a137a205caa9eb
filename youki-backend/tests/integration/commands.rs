//! What is run: entrypoint and command, directory, environment, host name; and what happens when it cannot be.

use runtime_core::spec::CommandSpec;
use runtime_core::{AgentError, ContainerState};
use serde_json::json;

use crate::support::Case;
use crate::support::case::{soon, words};
use crate::support::image::{Image, LayerBuilder};

crate::tests![
    entrypoint_and_cmd_follow_dockers_matrix,
    an_empty_string_of_an_argument_is_passed_on,
    nothing_to_run_is_invalid,
    a_missing_program_is_127_at_start,
    a_program_that_cannot_be_executed_is_126_at_start,
    a_program_is_found_in_the_containers_path,
    the_working_directory_is_images_then_specs_and_made_if_missing,
    the_environment_is_the_images_then_the_specs_then_the_agents_where_asked,
    the_host_name_is_the_specs_or_the_containers,
    a_script_without_an_interpreter_is_a_start_error,
];

async fn entrypoint_and_cmd_follow_dockers_matrix(case: Case) {
    // Prints its own arguments, so each row shows what was executed.
    let show = LayerBuilder::new()
        .file("bin/show", 0o755, b"#!/bin/sh\necho \"$0\" \"$@\"\n")
        .file("bin/other", 0o755, b"#!/bin/sh\necho \"$0\" \"$@\"\n")
        .finish();
    let base = Image::busybox().layer(show);
    let both = base.clone().with("Entrypoint", json!(["/bin/show", "e"])).with("Cmd", json!(["c1", "c2"]));
    let cmd_only = base.clone().with("Cmd", json!(["/bin/show", "c"]));
    let entry_only = base.with("Entrypoint", json!(["/bin/show", "e"])).with("Cmd", json!(null));
    let images = [
        ("both", case.push("both", &both).await),
        ("cmd", case.push("cmd", &cmd_only).await),
        ("entry", case.push("entry", &entry_only).await),
    ];
    type Words = Option<&'static [&'static str]>;
    let rows: [(&str, Words, Words, &str); 9] = [
        ("both", None, None, "/bin/show e c1 c2"),
        ("both", None, Some(&["a"]), "/bin/show e a"),
        ("both", Some(&["/bin/other", "x"]), None, "/bin/other x"),
        ("both", Some(&["/bin/other"]), Some(&["a", "b"]), "/bin/other a b"),
        ("cmd", None, None, "/bin/show c"),
        ("cmd", None, Some(&["/bin/other", "a"]), "/bin/other a"),
        ("cmd", Some(&["/bin/other"]), None, "/bin/other"),
        ("entry", None, None, "/bin/show e"),
        ("entry", None, Some(&["a"]), "/bin/show e a"),
    ];
    for (image, entrypoint, args, expected) in rows {
        let mut spec = case.spec(&[]).await;
        spec.image.name = images.iter().find(|(name, _)| *name == image).unwrap().1.clone();
        spec.command = CommandSpec { entrypoint: entrypoint.map(words), args: args.map(words), workdir: None };
        let lines = case.run(&spec).await.succeeded();
        assert_eq!(lines, [expected], "image {image}, entrypoint {entrypoint:?}, args {args:?}");
    }
}

async fn an_empty_string_of_an_argument_is_passed_on(case: Case) {
    let spec = case.spec(&["sh", "-c", "echo $#; echo \"[$2]\"", "x", "", " a  b ", "*"]).await;
    assert_eq!(case.run(&spec).await.succeeded(), ["3", "[ a  b ]"]);
}

async fn nothing_to_run_is_invalid(case: Case) {
    let reference = case.push("nothing", &Image::busybox().with("Cmd", json!(null))).await;
    let mut spec = case.spec(&[]).await;
    spec.image.name = reference;
    spec.command.args = None;
    let id = case.id();
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    let error = case.runtime.create_container(&id, &spec).await.unwrap_err();
    assert!(matches!(error, AgentError::InvalidSpec(_)), "{error:?}");
    assert!(matches!(case.runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
}

async fn a_missing_program_is_127_at_start(case: Case) {
    for program in ["/no/such/program", "nosuchprogram", "/etc/passwd/x"] {
        fails_to_start(&case, program, 127).await;
    }
}

async fn a_program_that_cannot_be_executed_is_126_at_start(case: Case) {
    for program in ["/etc/passwd", "/etc"] {
        fails_to_start(&case, program, 126).await;
    }
}

async fn a_script_without_an_interpreter_is_a_start_error(case: Case) {
    let layer = LayerBuilder::new().file("bin/orphan", 0o755, b"#!/no/such/interpreter\n").finish();
    let reference = case.push("orphan", &Image::busybox().layer(layer)).await;
    let mut spec = case.spec(&["/bin/orphan"]).await;
    spec.image.name = reference;
    let error = case.try_start(&case.id(), &spec).await.unwrap_err();
    assert!(matches!(error, AgentError::StartFailed { .. }), "{error:?}");
}

async fn fails_to_start(case: &Case, program: &str, code: i32) {
    let id = case.id();
    let error = case.try_start(&id, &case.spec(&[program]).await).await.unwrap_err();
    assert!(matches!(error, AgentError::StartFailed { .. }), "{program}: {error:?}");
    assert!(error.to_string().contains(program), "{error}");
    let state = case.runtime.container_state(&id).await.unwrap();
    assert!(matches!(state, ContainerState::Failed { .. }), "{program}: {state:?}");
    // A failed container answers at once.
    assert_eq!(soon("wait", case.runtime.wait_container(&id)).await, Ok(code), "{program}");
    assert_eq!(case.runtime.get_container_pid(&id).await.unwrap(), None);
}

async fn a_program_is_found_in_the_containers_path(case: Case) {
    let layer = LayerBuilder::new().dir("opt", 0o755).file("opt/mine", 0o755, b"#!/bin/sh\necho mine\n").finish();
    let image = Image::busybox().layer(layer).with("Env", json!(["PATH=/opt:/bin"]));
    let mut spec = case.spec(&["mine"]).await;
    spec.image.name = case.push("path", &image).await;
    assert_eq!(case.run(&spec).await.succeeded(), ["mine"]);
}

async fn the_working_directory_is_images_then_specs_and_made_if_missing(case: Case) {
    let mut spec = case.spec(&["pwd"]).await;
    assert_eq!(case.run(&spec).await.succeeded(), ["/"]);
    spec.image.name = case.push("home", &Image::busybox().with("WorkingDir", "/home".into())).await;
    assert_eq!(case.run(&spec).await.succeeded(), ["/home"]);
    spec.command.workdir = Some("/made/for/it".into());
    assert_eq!(case.run(&spec).await.succeeded(), ["/made/for/it"]);
}

async fn the_environment_is_the_images_then_the_specs_then_the_agents_where_asked(case: Case) {
    let image = Image::busybox().with("Env", json!(["PATH=/bin", "FROM=image", "KEPT=yes"]));
    let mut spec =
        case.script("echo $FROM $KEPT; echo \"$ODD\"; echo $AGENT; echo ${AWS_SECRET_ACCESS_KEY-clean}").await;
    spec.image.name = case.push("env", &image).await;
    spec.env.insert("FROM".into(), "spec".into());
    spec.env.insert("ODD".into(), "a=b $c 'd'".into());
    spec.env.insert("AGENT".into(), "$E:BERTH_TEST_FROM_THE_AGENT".into());
    assert_eq!(case.run(&spec).await.succeeded(), ["spec yes", "a=b $c 'd'", "seen", "clean"]);
}

async fn the_host_name_is_the_specs_or_the_containers(case: Case) {
    let mut spec = case.script("hostname; grep -c \"$(hostname)\" /etc/hosts /etc/hostname").await;
    spec.hostname = Some("named".into());
    assert_eq!(case.run(&spec).await.succeeded()[0], "named");
    spec.hostname = None;
    let id = case.start(&spec).await;
    assert_eq!(case.finish(&id).await.stdout[0], id.to_string());
}
