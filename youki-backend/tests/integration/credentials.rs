//! Credentials that a helper gives, and a token in the place of a password, at registries that want them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::image::Image;
use crate::support::servers::{REGISTRY_PASSWORD, REGISTRY_USER};
use crate::support::token_service::TokenService;

crate::tests![a_helpers_answer_lets_a_pull_in, an_identity_token_buys_a_token_of_its_service];

/// A credential helper `docker-credential-NAME` in a directory of its own, which is returned as a PATH.
fn helper(dir: &Path, name: &str, script: &str) -> String {
    let file = dir.join(format!("docker-credential-{name}"));
    // This process never has it open for writing: a child of another test that had would make it "text busy".
    let written =
        Command::new("sh").args(["-c", r#"printf '#!/bin/sh\n%s\n' "$0" > "$1""#, script]).arg(&file).status();
    assert!(written.unwrap().success());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default())
}

/// A directory with this in a file.
fn config(case: &Case, word: &str, file: &str, content: &serde_json::Value) -> PathBuf {
    let dir = case.suite.dir.path().join(format!("credentials-{word}"));
    std::fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
    std::fs::write(dir.join(file), content.to_string()).unwrap();
    dir
}

async fn pull(case: &Case, word: &str, reference: &str, environment: &[(&str, &str)]) -> Result<(), String> {
    let mut agent = Agent::start(&case.root(word), environment).await;
    let pulled = agent.ask(&Request::Pull { image: reference.to_owned(), auth: None }).await;
    agent.kill().await;
    pulled
}

async fn a_helpers_answer_lets_a_pull_in(case: Case) {
    let registry = case.suite.registry_auth().await;
    let reference = registry.push("private/helped", "latest", &Image::busybox()).await;
    let host = &registry.host;
    // It knows one registry, by the name that is asked for.
    let knows = |user: &str, secret: &str| {
        format!(
            r#"read -r asked; [ "$1 $asked" = "get {host}" ] || {{ echo credentials not found; exit 1; }}
            echo '{{"ServerURL":"{host}","Username":"{user}","Secret":"{secret}"}}'"#
        )
    };
    let by_host = config(&case, "host", "config.json", &json!({"credHelpers": {host: "berth-test"}}));
    let store = config(&case, "store", "config.json", &json!({"credsStore": "berth-test"}));
    for (word, dir) in [("host", &by_host), ("store", &store)] {
        let path = helper(dir, "berth-test", &knows(REGISTRY_USER, REGISTRY_PASSWORD));
        let docker_config = dir.display().to_string();
        pull(&case, word, &reference, &[("DOCKER_CONFIG", &docker_config), ("PATH", &path)]).await.unwrap();
    }
    let path = helper(&by_host, "berth-test", &knows(REGISTRY_USER, "hunter2"));
    let docker_config = by_host.display().to_string();
    let error =
        pull(&case, "wrong", &reference, &[("DOCKER_CONFIG", &docker_config), ("PATH", &path)]).await.unwrap_err();
    assert!(error.contains("registry.unauthorized") && !error.contains("hunter2"), "{error}");

    // Who has nothing for it leaves it to podman's file, which comes after docker's.
    let home = config(&case, "home", ".docker/config.json", &json!({"credHelpers": {host: "berth-test"}}));
    let path = helper(&home, "berth-test", "echo credentials not found; exit 1");
    let logged_in = json!({"auths": {host: {"username": REGISTRY_USER, "password": REGISTRY_PASSWORD}}});
    let run = config(&case, "run", "containers/auth.json", &logged_in);
    let (home, run) = (home.display().to_string(), run.display().to_string());
    let environment = [("DOCKER_CONFIG", ""), ("HOME", &home), ("XDG_RUNTIME_DIR", &run), ("PATH", &path)];
    pull(&case, "next", &reference, &environment).await.unwrap();
}

async fn an_identity_token_buys_a_token_of_its_service(case: Case) {
    let reference = case.push("bought", &Image::busybox()).await;
    let (host, name) = reference.split_once('/').unwrap();
    let repository = name.split(':').next().unwrap();
    // What a form would change, if it were not encoded.
    let identity = "an identity+token/==&";
    let service = TokenService::before(host, identity, repository).await;
    let there = format!("{}/{name}", service.address());
    let file =
        config(&case, "file", "config.json", &json!({"auths": {service.address(): {"identitytoken": identity}}}));
    let helped = config(&case, "token", "config.json", &json!({"credHelpers": {service.address(): "berth-test"}}));
    let script = format!(r#"echo '{{"Username":"<token>","Secret":"{identity}"}}'"#);
    let path = helper(&helped, "berth-test", &script);
    for (word, dir) in [("file", file), ("token", helped)] {
        let docker_config = dir.display().to_string();
        pull(&case, word, &there, &[("DOCKER_CONFIG", &docker_config), ("PATH", &path)]).await.unwrap();
    }
    let (bought, refused) = service.sold();
    assert!(bought >= 2 && refused.is_empty(), "{bought} tokens, and refused: {refused:?}");

    let other =
        config(&case, "other", "config.json", &json!({"auths": {service.address(): {"identitytoken": "other"}}}));
    let error = pull(&case, "other", &there, &[("DOCKER_CONFIG", &other.display().to_string())]).await.unwrap_err();
    assert!(error.contains("registry.unauthorized"), "{error}");
}
