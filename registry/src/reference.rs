//! Image references in Docker's grammar: `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`.

use std::fmt;

use crate::error::{Error, Result};

/// Where Docker Hub's registry really is; `docker.io` answers no registry requests.
const DOCKER_HUB_ENDPOINT: &str = "registry-1.docker.io";
const DOCKER_HUB: &str = "docker.io";
/// Longest name of a repository, as in Docker.
const MAX_REPOSITORY_BYTES: usize = 255;

/// A complete reference: registry, repository, and a tag or a digest or both.
///
/// ```
/// use registry::Reference;
/// let reference = Reference::parse("busybox")?;
/// assert_eq!(reference.to_string(), "docker.io/library/busybox:latest");
/// # Ok::<(), registry::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Parses `text`, completing Docker's short forms. Digests other than sha256 are refused.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: &str| Error::InvalidReference { reference: shortened(text), reason: reason.to_owned() };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_sha256(digest)) {
            return Err(invalid("the digest is not sha256: with 64 lower-case hex digits"));
        }
        // A colon behind the last slash begins the tag; one before it is a port's.
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("a tag has letters, digits, `_`, `.` and `-`, 128 at most"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host == "localhost" || host.contains(['.', ':']) || host.starts_with('[') => {
                (host, path)
            }
            _ => (DOCKER_HUB, name),
        };
        let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
        if !is_host(registry) {
            return Err(invalid("the registry is no HOST[:PORT]"));
        }
        let official = registry == DOCKER_HUB && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        if repository.len() > MAX_REPOSITORY_BYTES || !repository.split('/').all(is_component) {
            return Err(invalid("the name has lower-case letters and digits, with `.`, `_`, `__` or `-` between them"));
        }
        // A digest alone names the content: no tag is made up beside it.
        let tag = tag.or(if digest.is_none() { Some("latest") } else { None });
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag: owned(tag), digest: owned(digest) })
    }

    /// Host and port as written; `docker.io` for Docker Hub. Credentials and configuration go by this name.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository, such as `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one: `sha256:…`.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// Whether `text` means this one: all of it, where it has a tag or a digest, else any of its repository. What is no
    /// reference means none.
    #[must_use]
    pub fn is_meant_by(&self, text: &str) -> bool {
        let Ok(wanted) = Self::parse(text) else { return false };
        if text.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) {
            return *self == wanted;
        }
        self.registry == wanted.registry && self.repository == wanted.repository
    }

    /// Host and port that are connected to.
    pub(crate) fn endpoint(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_ENDPOINT } else { &self.registry }
    }

    /// What is asked for in a manifest request: the digest where there is one.
    pub(crate) fn manifest_key(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether `text` is `sha256:` and 64 lower-case hex digits: safe as a file name, too.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex64)
}

fn is_hex64(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128 && tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Words of lower-case letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separators = component.split(word).filter(|separator| !separator.is_empty());
    component.starts_with(word)
        && component.ends_with(word)
        && separators.all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("", port),
        Some(_) => return false,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    port && (host.is_empty() && text.starts_with('[') || text.len() <= 255 && host.split('.').all(label))
}

/// Enough of a text for a message: a hostile one may be megabytes long.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(300).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_text_means_all_of_it_or_a_repository() {
        let stored = Reference::parse("docker.io/library/busybox:1.36").unwrap();
        for text in ["busybox", "library/busybox", "docker.io/busybox", "index.docker.io/busybox", "busybox:1.36"] {
            assert!(stored.is_meant_by(text), "{text}");
        }
        for text in
            ["busybox:latest", "box", "quay.io/busybox", "a/busybox", "", "no name", &format!("busybox@sha256:{HEX}")]
        {
            assert!(!stored.is_meant_by(text), "{text}");
        }
    }

    #[test]
    fn references_complete_to_dockers_full_form() {
        let with_digest = format!("a.example:5000/x@sha256:{HEX}");
        let with_both = format!("a.example/x/y:v1@sha256:{HEX}");
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("grafana/loki", "docker.io/grafana/loki:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("ghcr.io/a/b_c-d.e:T.1-x_", "ghcr.io/a/b_c-d.e:T.1-x_"),
            (&with_digest, &with_digest),
            (&with_both, &with_both),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), full, "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_by_code() {
        let long = "a/".repeat(200) + "a";
        let huge = "a".repeat(5_000_000);
        let upper = format!("a@sha256:{}", HEX.to_uppercase());
        let sha512 = format!("a@sha512:{HEX}{HEX}");
        for text in [
            "",
            ":",
            "@",
            "/",
            "a:",
            "a@",
            "A",
            "a//b",
            "a/../b",
            "../a",
            "a b",
            "a:b:c",
            "a\n",
            "a\0",
            "-a",
            "a-",
            "http://a/b",
            "a@sha256:abc",
            "[::1/a",
            "[zz]:1/a",
            "[::1]:99999/a",
            &long,
            &huge,
            &upper,
            &sha512,
        ] {
            let error = Reference::parse(text).expect_err(&shortened(text));
            assert_eq!(error.code(), "image.invalid_reference", "{}", shortened(text));
            assert!(error.to_string().len() < 3_000);
        }
    }

    #[test]
    fn the_grammar_is_that_of_oci_client() {
        for text in [
            "busybox",
            "a/b:c",
            "localhost/x",
            "localhost:5000/x:y",
            "a.b:1/c/d:e",
            "a__b/c",
            "a___b",
            "a..b/c",
            "a--b",
            "a.b-/c",
            "x:-t",
            "x:_t",
            "-a.b/c",
            "a.b",
            "a.b:5/",
            "docker.io/a",
            "a_/b",
            "9/9",
            "x:y.z",
        ] {
            let ours = Reference::parse(text);
            match text.parse::<oci_client::Reference>() {
                Ok(theirs) => {
                    let ours = ours.expect(text);
                    let parts = (ours.registry(), ours.repository(), ours.manifest_key(), ours.digest());
                    let theirs_key = theirs.digest().or(theirs.tag()).unwrap_or("latest");
                    assert_eq!(parts, (theirs.registry(), theirs.repository(), theirs_key, theirs.digest()), "{text}");
                }
                Err(_) => assert!(ours.is_err(), "{text}"),
            }
        }
    }

    #[test]
    fn docker_hub_is_asked_at_its_real_host() {
        assert_eq!(Reference::parse("busybox").unwrap().endpoint(), "registry-1.docker.io");
        assert_eq!(Reference::parse("localhost:1/x").unwrap().endpoint(), "localhost:1");
    }
}
