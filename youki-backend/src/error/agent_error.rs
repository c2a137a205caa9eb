//! [`Error`] as the trait tells it: an [`AgentError`], by what was asked, with the hint and the code in its reason.

use runtime_core::AgentError;

use super::Error;

impl Error {
    /// The chain, the hint and the code, as [`AgentError::hint`] and [`AgentError::code`] take them apart.
    fn reason(&self) -> String {
        let hint = self.hint().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
        format!("{}{hint} [{}]", self.chain(), self.code())
    }

    /// Whether it is that something is not built, or not possible here, whichever crate says so.
    fn is_unsupported(&self) -> bool {
        matches!(self.code(), "unsupported.here" | "unsupported" | "volume.unsupported")
    }

    /// As the error of a create.
    pub(crate) fn into_create(self, id: &str, image: &str) -> AgentError {
        match self {
            Self::InvalidSpec { .. } | Self::UnknownUser { .. } | Self::InvalidId(_) | Self::NoSuchContainer { .. } => {
                self.into()
            }
            _ if self.is_unsupported() => self.into(),
            Self::Image(registry::Error::InvalidPlatform { .. })
            | Self::Volume(volumes_s3::Error::InvalidName { .. }) => self.into(),
            Self::Image(_) => self.into_pull(image),
            _ => AgentError::CreateFailed { id: id.to_owned(), reason: self.reason() },
        }
    }

    /// As the error of a start.
    pub(crate) fn into_start(self, id: &str) -> AgentError {
        match self {
            Self::NoSuchContainer { .. } | Self::InvalidId(_) => self.into(),
            _ if self.is_unsupported() => self.into(),
            _ => AgentError::StartFailed { id: id.to_owned(), reason: self.reason() },
        }
    }

    /// As the error of a pull.
    pub(crate) fn into_pull(self, image: &str) -> AgentError {
        if self.is_unsupported() {
            return self.into();
        }
        AgentError::PullFailed { image: image.to_owned(), reason: self.reason() }
    }
}

impl From<Error> for AgentError {
    fn from(error: Error) -> Self {
        let reason = error.reason();
        match error {
            _ if error.is_unsupported() => Self::Unsupported(reason),
            Error::NoSuchContainer { id: what }
            | Error::NoSuchPath { id: what, .. }
            | Error::Image(registry::Error::NotFound { what, .. } | registry::Error::NotPresent(what))
            | Error::Volume(volumes_s3::Error::NotFound { name: what })
            | Error::OneVolume { source: volumes_s3::Error::NotFound { name: what }, .. } => {
                Self::NotFound { container: what, reason }
            }
            Error::InvalidId(_)
            | Error::InvalidSpec { .. }
            | Error::UnknownUser { .. }
            | Error::Image(registry::Error::InvalidPlatform { .. })
            | Error::Volume(volumes_s3::Error::InvalidName { .. }) => Self::InvalidSpec(reason),
            Error::Configuration { .. }
            | Error::NotRoot
            | Error::IncompatibleRoot { .. }
            | Error::HelperMissing { .. }
            | Error::Volume(volumes_s3::Error::Configuration { .. }) => Self::Configuration(reason),
            Error::Network { .. }
            | Error::SubnetExhausted { .. }
            | Error::NoSuchNetwork { .. }
            | Error::NetworkExists { .. }
            | Error::NetworkInUse { .. }
            | Error::SubnetOverlap { .. }
            | Error::PortTaken { .. } => Self::Network(reason),
            _ => Self::Internal(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_is_unsupported_whichever_crate_says_so_and_whenever() {
        let mirrors = || Error::from(registry::Error::Unsupported("mirrors".into()));
        let size = || volumes_s3::Error::Unsupported { what: "a size".into() };
        let errors = || {
            let one = Error::OneVolume { name: "v".into(), source: size() };
            [Error::Unsupported { what: "x".into() }, mirrors(), size().into(), one]
        };
        for error in errors() {
            assert!(matches!(error.into_create("id", "image"), AgentError::Unsupported(_)));
        }
        for error in errors() {
            assert!(matches!(error.into_start("id"), AgentError::Unsupported(_)));
        }
        for error in errors() {
            assert!(matches!(AgentError::from(error), AgentError::Unsupported(_)));
        }
        assert!(matches!(mirrors().into_pull("image"), AgentError::Unsupported(_)));
    }
}
