//! Image references in Docker's grammar: `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`.

use std::fmt;

use crate::error::{Error, Result};

/// Where Docker Hub's registry really is; `docker.io` answers no registry requests.
const DOCKER_HUB_ENDPOINT: &str = "registry-1.docker.io";

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
        let (text, ipv6) = ipv6_host(text);
        let parsed: oci_client::Reference =
            text.parse().map_err(|e: oci_client::ParseError| invalid(&e.to_string()))?;
        let digest = parsed.digest().map(str::to_owned);
        if digest.as_deref().is_some_and(|digest| !is_sha256(digest)) {
            return Err(invalid("the digest is not sha256: with 64 lower-case hex digits"));
        }
        // A digest alone names the content: no tag is made up beside it.
        let tag = match (parsed.tag(), &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        let registry = ipv6.unwrap_or_else(|| parsed.registry().to_owned());
        Ok(Self { registry, repository: parsed.repository().to_owned(), tag, digest })
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

    /// Host and port that are connected to.
    pub(crate) fn endpoint(&self) -> &str {
        if self.registry == "docker.io" { DOCKER_HUB_ENDPOINT } else { &self.registry }
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

/// The grammar of the parser has no `[::1]:5000`: such a host is set aside and put back.
fn ipv6_host(text: &str) -> (String, Option<String>) {
    let split = text.starts_with('[').then(|| text.split_once('/')).flatten();
    let Some((host, rest)) = split else { return (text.to_owned(), None) };
    let address = host.strip_prefix('[').and_then(|host| host.split_once(']'));
    let valid = address.is_some_and(|(address, port)| {
        address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok()))
    });
    if valid { (format!("ipv6.invalid/{rest}"), Some(host.to_owned())) } else { (text.to_owned(), None) }
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
    fn docker_hub_is_asked_at_its_real_host() {
        assert_eq!(Reference::parse("busybox").unwrap().endpoint(), "registry-1.docker.io");
        assert_eq!(Reference::parse("localhost:1/x").unwrap().endpoint(), "localhost:1");
    }
}
