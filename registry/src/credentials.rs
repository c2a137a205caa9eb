//! Credentials: given with the call, else docker's `config.json`, else none.

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
        match auth.auth_type {
            RegistryAuthType::Basic => {
                Self::Basic { username: auth.username.clone(), password: Secret::new(auth.password.clone()) }
            }
            RegistryAuthType::Token => Self::Bearer(Secret::new(auth.password.clone())),
        }
    }
}

/// The credentials for `registry` (host and port as written in the reference). Reads files: blocking.
pub(crate) fn find(inline: Option<&RegistryAuth>, registry: &str) -> Result<Credentials> {
    if let Some(auth) = inline {
        return Ok(auth.into());
    }
    match config_file() {
        Some(path) => from_file(&path, registry),
        None => Ok(Credentials::Anonymous),
    }
}

/// The first of the places docker and podman look at; one that is named by a variable is final.
fn config_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("REGISTRY_AUTH_FILE")
        .or_else(|| set("DOCKER_CONFIG").map(|directory| directory.join("config.json")))
        .or_else(|| set("HOME").map(|home| home.join(".docker/config.json")))
}

fn from_file(path: &Path, registry: &str) -> Result<Credentials> {
    let mut text = Zeroizing::new(Vec::new());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Credentials::Anonymous),
        Err(error) => return Err(Error::io("opening", path, error)),
    };
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(|e| Error::io("reading", path, e))?;
    let unusable = |reason: String| Error::Credentials { path: path.to_path_buf(), reason };
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(unusable(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    parse(&text, registry).map_err(unusable)
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
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

/// Parses a docker `config.json` and picks the entry of `registry`. An error never quotes the text.
fn parse(text: &[u8], registry: &str) -> std::result::Result<Credentials, String> {
    let config: ConfigFile = serde_json::from_slice(text)
        .map_err(|e| format!("no docker configuration (line {}, column {})", e.line(), e.column()))?;
    let entry = config.auths.iter().find(|(key, _)| host_of(key) == canonical(registry)).map(|(_, entry)| entry);
    if let Some(credentials) = entry.map(credentials_of).transpose()?.flatten() {
        return Ok(credentials);
    }
    let helper = config.helpers.iter().find(|(key, _)| host_of(key) == canonical(registry)).map(|(_, name)| name);
    // `credsStore` holds what `auths` lists by name only; for any other registry there is nothing to ask it for.
    let helper = helper.or(config.store.as_ref().filter(|_| entry.is_some()));
    match helper.filter(|name| !name.is_empty()) {
        Some(name) => Err(format!("{registry} uses the credential helper {name}, which is not supported yet")),
        None => Ok(Credentials::Anonymous),
    }
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

/// Keys are hosts or, for Docker Hub, an URL: `https://index.docker.io/v1/`.
fn host_of(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    canonical(key.split('/').next().unwrap_or(key))
}

fn canonical(host: &str) -> &str {
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, registry: &str) -> String {
        match parse(text.as_bytes(), registry) {
            Ok(Credentials::Anonymous) => "anonymous".into(),
            Ok(Credentials::Basic { username, password }) => format!("{username}:{}", password.expose()),
            Ok(Credentials::Bearer(token)) => format!("bearer {}", token.expose()),
            Ok(Credentials::Identity(token)) => format!("identity {}", token.expose()),
            Err(reason) => format!("error {reason}"),
        }
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
            ("{}".into(), "a", "anonymous"),
            (r#"{"auths":{},"credsStore":"desktop"}"#.into(), "a", "anonymous"),
        ] {
            assert_eq!(shown(&text, registry), result, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_an_error_that_quotes_no_secret() {
        for (text, part) in [
            (r#"{"auths":{"a":{"auth":"hunter2"}}}"#, "base64"),
            (r#"{"auths":{"a":{"auth":5}},"x":"hunter2"}"#, "line 1"),
            (r#"{"credHelpers":{"a":"pass"}}"#, "helper pass"),
            (r#"{"auths":{"a":{}},"credsStore":"desktop"}"#, "helper desktop"),
            ("hunter2", "line 1"),
        ] {
            let error = shown(text, "a");
            assert!(error.starts_with("error ") && error.contains(part) && !error.contains("hunter2"), "{error}");
        }
    }
}
