//! Platforms: `OS/ARCH[/VARIANT]`, and which entry of an index fits.

use std::fmt;

use crate::error::{Error, Result};

/// Operating system, architecture, variant, in the words of Go and of the image specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// The machine this runs on.
    pub(crate) fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.map(Into::into) }
    }

    /// Parses `linux/amd64`, `linux/arm/v7`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(word) => {
                let mut platform = Self {
                    os: (*os).to_lowercase(),
                    architecture: (*architecture).to_lowercase(),
                    variant: variant.first().map(|variant| variant.to_lowercase()),
                };
                platform.normalise();
                Ok(platform)
            }
            _ => Err(Error::InvalidPlatform { platform: text.chars().take(100).collect() }),
        }
    }

    /// Other words for the same machine.
    fn normalise(&mut self) {
        match self.architecture.as_str() {
            "x86_64" | "x86-64" => self.architecture = "amd64".into(),
            "aarch64" => self.architecture = "arm64".into(),
            "i386" | "i686" => self.architecture = "386".into(),
            "armhf" => (self.architecture, self.variant) = ("arm".into(), Some("v7".into())),
            "armel" => (self.architecture, self.variant) = ("arm".into(), Some("v6".into())),
            _ => {}
        }
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", None | Some("8")) => self.variant = Some("v8".into()),
            ("arm", None | Some("7")) => self.variant = Some("v7".into()),
            ("arm", Some(v @ ("5" | "6"))) => self.variant = Some(format!("v{v}")),
            ("amd64", Some("v1")) => self.variant = None,
            _ => {}
        }
    }

    /// How well `offered` runs on this platform: higher is better, `None` not at all. An older arm runs on a newer one.
    pub(crate) fn rank(&self, offered: &Self) -> Option<u32> {
        let mut wanted = self.clone();
        let mut offered = offered.clone();
        wanted.normalise();
        offered.normalise();
        if wanted.os != offered.os {
            return None;
        }
        let level = |variant: &Option<String>| {
            variant.as_deref().map_or(Some(1), |variant| variant.strip_prefix('v').and_then(|v| v.parse::<u32>().ok()))
        };
        if wanted.architecture == offered.architecture {
            if wanted.variant == offered.variant {
                return Some(1_000);
            }
            let (wanted, offered) = (level(&wanted.variant)?, level(&offered.variant)?);
            return (offered <= wanted).then_some(100 + offered);
        }
        None
    }

    /// Whether this host can be expected to run `offered`, though nobody asked for that very platform. Of variants it is
    /// not known which a host has, and some architectures run the programs of an older one.
    pub(crate) fn runs(&self, offered: &Self) -> bool {
        let mut offered = offered.clone();
        offered.normalise();
        let older = [("amd64", "386"), ("arm64", "arm")];
        // Old tools left the fields empty.
        let same = |ours: &str, theirs: &str| theirs.is_empty() || ours == theirs;
        same(&self.os, &offered.os)
            && (same(&self.architecture, &offered.architecture)
                || older.contains(&(self.architecture.as_str(), offered.architecture.as_str())))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_fitting_platform_ranks_highest() {
        for (wanted, better, worse) in [
            ("linux/arm/v7", "linux/arm/v7", Some("linux/arm/v6")),
            ("linux/arm/v7", "linux/arm/v6", Some("linux/arm/v5")),
            ("linux/arm/v6", "linux/arm/v5", Some("linux/arm/v7")),
            ("linux/arm64", "linux/arm64/v8", Some("linux/amd64")),
            ("linux/amd64", "linux/amd64", Some("linux/amd64/v3")),
            ("linux/amd64/v3", "linux/amd64/v2", Some("linux/amd64")),
            ("linux/x86_64", "linux/amd64", Some("windows/amd64")),
        ] {
            let rank = |text: &str| Platform::parse(wanted).unwrap().rank(&Platform::parse(text).unwrap());
            assert!(rank(better) > worse.and_then(rank), "{wanted}: {better} before {worse:?}");
            assert!(rank(better).is_some(), "{wanted} takes {better}");
        }
    }

    #[test]
    fn a_host_runs_its_architecture_in_any_variant_and_the_older_one() {
        for (host, offered, runs) in [
            ("linux/amd64", "linux/x86_64", true),
            ("linux/amd64", "linux/amd64/v3", true),
            ("linux/amd64", "linux/386", true),
            ("linux/arm64", "linux/arm/v7", true),
            ("linux/386", "linux/amd64", false),
            ("linux/amd64", "linux/s390x", false),
            ("linux/amd64", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
        ] {
            let [host, offered] = [host, offered].map(|text| Platform::parse(text).unwrap());
            assert_eq!(host.runs(&offered), runs, "{offered} on {host}");
        }
        let unsaid = Platform { os: String::new(), architecture: String::new(), variant: None };
        assert!(Platform::host().runs(&unsaid));
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/a b", "linux/am\nd"] {
            assert!(Platform::parse(text).is_err(), "{text:?}");
        }
    }
}
