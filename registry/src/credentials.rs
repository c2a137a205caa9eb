//! Credentials: given with the call, else from docker's and podman's files and their helpers, else none.

mod helper;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use runtime_core::{RegistryAuth, RegistryAuthType, Secret};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Bytes of a credentials file that are read; real ones stay far below.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What a registry is shown.
#[derive(Clone)]
pub(crate) enum Credentials {
    Anonymous,
    Basic {
        username: String,
        password: Secret,
    },
    /// A token that the registry itself accepts.
    Bearer(Secret),
    /// A refresh token, exchanged at the token endpoint (`docker login` of some vendors stores one).
    Identity(Secret),
}

impl Credentials {
    /// Whether nothing is in them, as where the secrets of a CI are unset: a registry that is shown such a pair refuses it,
    /// and gives public images to who shows none.
    fn is_empty(&self) -> bool {
        match self {
            Self::Anonymous => true,
            Self::Basic { username, password } => username.is_empty() && password.expose().is_empty(),
            Self::Bearer(token) | Self::Identity(token) => token.expose().is_empty(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(***)",
            Self::Bearer(_) => "Bearer(***)",
            Self::Identity(_) => "Identity(***)",
        })
    }
}

impl From<&RegistryAuth> for Credentials {
    fn from(auth: &RegistryAuth) -> Self {
        let given = match auth.auth_type {
            RegistryAuthType::Basic => {
                Self::Basic { username: auth.username.clone(), password: Secret::new(auth.password.clone()) }
            }
            RegistryAuthType::Token => Self::Bearer(Secret::new(auth.password.clone())),
        };
        if given.is_empty() { Self::Anonymous } else { given }
    }
}

/// The credentials for `repository` of `registry` (host and port as written in the reference).
pub(crate) async fn find(inline: Option<&RegistryAuth>, registry: &str, repository: &str) -> Result<Credentials> {
    if let Some(auth) = inline {
        return Ok(auth.into());
    }
    let listed =
        tokio::task::spawn_blocking(config_files).await.map_err(|_| Error::Interrupted("reading credentials"))?;
    for path in listed? {
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        let read = {
            let (path, registry) = (path.clone(), registry.clone());
            tokio::task::spawn_blocking(move || from_file(&path, &registry, &repository))
        };
        let found = read.await.map_err(|_| Error::Interrupted("reading credentials"))??;
        let credentials = match found {
            Entered::Credentials(credentials) => Some(credentials),
            Entered::Helper { name, optional } => helper::get(&name, &registry, optional)
                .await
                .map_err(|reason| Error::Credentials { path: path.clone(), reason })?,
            Entered::Nothing => None,
        };
        if let Some(credentials) = credentials {
            return Ok(credentials);
        }
    }
    Ok(Credentials::Anonymous)
}

/// The places docker and podman look at, in order; one that is named by a variable is the only one. Blocking.
fn config_files() -> Result<Vec<PathBuf>> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = set("REGISTRY_AUTH_FILE") {
        // As podman: who names a file wants no anonymous pull for a slip of the pen.
        return match path.metadata() {
            Ok(_) => Ok(vec![path]),
            Err(error) => Err(Error::Credentials { path, reason: format!("REGISTRY_AUTH_FILE names it: {error}") }),
        };
    }
    if let Some(directory) = set("DOCKER_CONFIG") {
        return Ok(vec![directory.join("config.json")]);
    }
    let runtime = set("XDG_RUNTIME_DIR").map_or_else(
        || PathBuf::from(format!("/run/containers/{}", rustix::process::geteuid().as_raw())),
        |directory| directory.join("containers"),
    );
    // A system service has no HOME: then it is the one of the user that runs it.
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    Ok(home.map(|home| home.join(".docker/config.json")).into_iter().chain([runtime.join("auth.json")]).collect())
}

/// What a file says of a registry.
enum Entered {
    Credentials(Credentials),
    /// A helper is to be asked; if it is optional, one that is not installed knows nothing.
    Helper {
        name: String,
        optional: bool,
    },
    Nothing,
}

fn from_file(path: &Path, registry: &str, repository: &str) -> Result<Entered> {
    let mut text = Zeroizing::new(Vec::new());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Entered::Nothing),
        Err(error) => return Err(Error::io("opening", path, error)),
    };
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(|e| Error::io("reading", path, e))?;
    let unusable = |reason: String| Error::Credentials { path: path.to_path_buf(), reason };
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(unusable(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    parse(&text, registry, repository).map_err(unusable)
}

#[derive(Deserialize)]
struct ConfigFile {
    /// Null, as docker writes it, is none.
    auths: Option<HashMap<String, Entry>>,
    #[serde(rename = "credHelpers")]
    helpers: Option<HashMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<Hidden>,
    username: Option<String>,
    password: Option<Hidden>,
    identitytoken: Option<Hidden>,
    registrytoken: Option<Hidden>,
}

/// A text that is wiped when it is dropped.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Hidden(Zeroizing<String>);

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

/// Parses a docker `config.json` or a podman `auth.json` and picks what it has for the repository. An error never quotes
/// the text.
fn parse(text: &[u8], registry: &str, repository: &str) -> std::result::Result<Entered, String> {
    // As docker: an empty one has no entry.
    if text.trim_ascii().is_empty() {
        return Ok(Entered::Nothing);
    }
    let config: ConfigFile = serde_json::from_slice(text)
        .map_err(|e| format!("no docker configuration (line {}, column {})", e.line(), e.column()))?;
    let entry = config
        .auths
        .iter()
        .flatten()
        .filter_map(|(key, entry)| Some((fit(key, registry, repository)?, entry)))
        .max_by_key(|(fit, _)| *fit)
        .map(|(_, entry)| entry);
    let helpers = config.helpers.iter().flatten();
    let helper = helpers.filter_map(|(key, name)| Some((fit(key, registry, "")?, name))).max_by_key(|(fit, _)| *fit);
    let helper = helper.map(|(_, name)| name);
    if let Some(name) = helper.filter(|name| !name.is_empty()) {
        return Ok(Entered::Helper { name: name.clone(), optional: false });
    }
    let entered = entry.map(credentials_of).transpose()?.flatten();
    if let Some(credentials) = entered.filter(|credentials| !credentials.is_empty()) {
        return Ok(Entered::Credentials(credentials));
    }
    match config.store.filter(|name| !name.is_empty()) {
        Some(name) => Ok(Entered::Helper { name, optional: entry.is_none() }),
        None => Ok(Entered::Nothing),
    }
}

/// The greatest fits best.
type Fit<'k> = (usize, Reverse<(bool, usize, &'k str)>);

/// How closely a key fits: first by the repository's part of it, in bytes, then the plainer key, so that it is the same one
/// each time; `None` if it is another's. Keys are hosts, URLs, whose path tells nothing, or, as podman has them, hosts with the
/// beginning of a repository. Of Docker Hub docker itself has one URL, and beside the password of a login by the browser, which
/// that is for, an access and a refresh token, at `https://index.docker.io/v1/access-token` and `…/refresh-token`.
fn fit<'k>(key: &'k str, registry: &str, repository: &str) -> Option<Fit<'k>> {
    let is_url = key.contains("://");
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if canonical(host) != canonical(registry) {
        return None;
    }
    let plainness = Reverse((key != "https://index.docker.io/v1/", key.len(), key));
    let path = path.trim_end_matches('/');
    if is_url && (path.ends_with("/access-token") || path.ends_with("/refresh-token")) {
        return None;
    }
    if is_url || matches!(path, "" | "v1" | "v2") {
        return Some((0, plainness));
    }
    let rest = repository.strip_prefix(path)?;
    (rest.is_empty() || rest.starts_with('/')).then_some((path.len(), plainness))
}

fn credentials_of(entry: &Entry) -> std::result::Result<Option<Credentials>, String> {
    let filled = |text: &Option<Hidden>| text.as_ref().map(|text| text.0.to_string()).filter(|text| !text.is_empty());
    if let Some(token) = filled(&entry.registrytoken) {
        return Ok(Some(Credentials::Bearer(Secret::new(token))));
    }
    if let Some(token) = filled(&entry.identitytoken) {
        return Ok(Some(Credentials::Identity(Secret::new(token))));
    }
    if let Some(auth) = filled(&entry.auth).map(Zeroizing::new) {
        let broken = || "an `auth` entry is not base64 of USER:PASSWORD".to_owned();
        let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).map_err(|_| broken())?;
        let text = Zeroizing::new(String::from_utf8(bytes).map_err(|_| broken())?);
        let (username, password) = text.split_once(':').ok_or_else(broken)?;
        // Some versions of docker padded the decoded text with NUL.
        let password = Secret::new(password.trim_end_matches('\0').to_owned());
        return Ok(Some(Credentials::Basic { username: username.to_owned(), password }));
    }
    Ok(match (&entry.username, filled(&entry.password)) {
        (Some(username), Some(password)) => {
            Some(Credentials::Basic { username: username.clone(), password: Secret::new(password) })
        }
        _ => None,
    })
}

fn canonical(host: &str) -> &str {
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, registry: &str) -> String {
        let (registry, repository) = registry.split_once('/').unwrap_or((registry, "x"));
        match parse(text.as_bytes(), registry, repository) {
            Ok(Entered::Nothing | Entered::Credentials(Credentials::Anonymous)) => "anonymous".into(),
            Ok(Entered::Credentials(Credentials::Basic { username, password })) => {
                format!("{username}:{}", password.expose())
            }
            Ok(Entered::Credentials(Credentials::Bearer(token))) => format!("bearer {}", token.expose()),
            Ok(Entered::Credentials(Credentials::Identity(token))) => format!("identity {}", token.expose()),
            Ok(Entered::Helper { name, optional }) => format!("helper {name} {optional}"),
            Err(reason) => format!("error {reason}"),
        }
    }

    #[test]
    fn the_path_of_a_url_tells_nothing_and_of_the_hub_dockers_own_counts() {
        // dTpw is u:p.
        let with_path = r#"{"auths":{"https://reg.example/artifactory/api/docker":{"auth":"dTpw"}}}"#;
        assert_eq!(shown(with_path, "reg.example/a/b"), "u:p");
        let stale = r#"{"auths":{"docker.io":{"username":"old","password":"p"},
            "https://index.docker.io/v1/":{"auth":"dTpw"}}}"#;
        assert_eq!(shown(stale, "docker.io/library/busybox"), "u:p");
    }

    #[test]
    fn docker_configurations_give_the_entry_of_the_registry() {
        let auths = |key: &str, entry: &str| format!(r#"{{"auths":{{"{key}":{entry}}}}}"#);
        let basic = r#"{"auth":"YmVydGg6czNjOnJldA=="}"#;
        for (text, registry, result) in [
            (auths("a:5000", basic), "a:5000", "berth:s3c:ret"),
            (auths("a:5000", basic), "a:5001", "anonymous"),
            (auths("a:5000", basic), "a", "anonymous"),
            (auths("https://index.docker.io/v1/", basic), "docker.io", "berth:s3c:ret"),
            (auths("https://a:5000/v2/", basic), "a:5000", "berth:s3c:ret"),
            (auths("a", r#"{"username":"u","password":"p"}"#), "a", "u:p"),
            (auths("a", r#"{"registrytoken":"t"}"#), "a", "bearer t"),
            (auths("a", r#"{"auth":"YTo=","identitytoken":"t"}"#), "a", "identity t"),
            (auths("a", "{}"), "a", "anonymous"),
            // `:`, with a NUL behind it as some versions of docker wrote it, too.
            (auths("a", r#"{"auth":"Og=="}"#), "a", "anonymous"),
            (auths("a", r#"{"auth":"OgA="}"#), "a", "anonymous"),
            (auths("a", r#"{"username":"","password":""}"#), "a", "anonymous"),
            (r#"{"auths":{"a":{"auth":"Og=="}},"credsStore":"desktop"}"#.into(), "a", "helper desktop false"),
            // One half alone is for the registry to judge.
            (auths("a", r#"{"auth":"dTo="}"#), "a", "u:"),
            (auths("a", r#"{"auth":"OnA="}"#), "a", ":p"),
            ("{}".into(), "a", "anonymous"),
            ("".into(), "a", "anonymous"),
            ("\n".into(), "a", "anonymous"),
            (r#"{"auths":{},"credsStore":"desktop"}"#.into(), "a", "helper desktop true"),
            (r#"{"auths":{"a":{}},"credsStore":"desktop"}"#.into(), "a", "helper desktop false"),
            (r#"{"auths":null,"credHelpers":null}"#.into(), "a", "anonymous"),
            (r#"{"credHelpers":{"a":"pass"}}"#.into(), "a", "helper pass false"),
            (r#"{"credHelpers":{"a":"pass"}}"#.into(), "b", "anonymous"),
            (auths("a/team", basic), "a/team/app", "berth:s3c:ret"),
            (auths("a/team", basic), "a/teams/app", "anonymous"),
            (
                r#"{"auths":{"a":{"registrytoken":"t"},"a/team":{"username":"u","password":"p"}}}"#.into(),
                "a/team/app",
                "u:p",
            ),
        ] {
            assert_eq!(shown(&text, registry), result, "{text}");
        }
    }

    #[test]
    fn what_is_given_empty_is_nothing() {
        for (username, password, auth_type, result) in [
            ("", "", RegistryAuthType::Basic, "Anonymous"),
            ("", "", RegistryAuthType::Token, "Anonymous"),
            ("u", "", RegistryAuthType::Basic, "Basic(***)"),
            ("", "p", RegistryAuthType::Basic, "Basic(***)"),
            ("", "t", RegistryAuthType::Token, "Bearer(***)"),
        ] {
            let auth = RegistryAuth { username: username.into(), password: password.into(), auth_type };
            assert_eq!(format!("{:?}", Credentials::from(&auth)), result, "{username:?} {password:?} {auth_type:?}");
        }
    }

    /// What `docker login` by the browser writes: two of the three are no passwords.
    #[test]
    fn of_docker_hubs_entries_the_one_that_docker_itself_uses_counts() {
        let hub = r#"{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"},
            "https://index.docker.io/v1/access-token":{"username":"u","password":"access"},
            "https://index.docker.io/v1/refresh-token":{"username":"u","password":"refresh"}}}"#;
        let twice =
            r#"{"auths":{"a":{"username":"u","password":"p"},"https://a/v1/":{"username":"u","password":"q"}}}"#;
        // Each map has an order of its own.
        for _ in 0..20 {
            assert_eq!(shown(hub, "docker.io/library/busybox"), "u:p");
            assert_eq!(shown(twice, "a/x"), "u:p");
        }
    }

    #[test]
    fn what_cannot_be_used_is_an_error_that_quotes_no_secret() {
        for (text, part) in [
            (r#"{"auths":{"a":{"auth":"hunter2"}}}"#, "base64"),
            (r#"{"auths":{"a":{"auth":5}},"x":"hunter2"}"#, "line 1"),
            ("hunter2", "line 1"),
        ] {
            let error = shown(text, "a");
            assert!(error.starts_with("error ") && error.contains(part) && !error.contains("hunter2"), "{error}");
        }
    }
}
