//! [`AgentError`]: the one error type of the [`Runtime`](crate::Runtime) trait.

use std::time::Duration;

/// Result of every [`Runtime`](crate::Runtime) method.
pub type Result<T> = std::result::Result<T, AgentError>;

/// What a runtime call failed with.
///
/// Backends with richer errors of their own put their message and its causes into `reason`, joined by `: ` and ending
/// in ` [code]`, where `code` is stable (`image.not_found`); [`AgentError::code`] reads it back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// The container, or what else was named, does not exist.
    #[error("{container}: not found: {reason}")]
    NotFound {
        /// What was asked for.
        container: String,
        /// Why it is not there.
        reason: String,
    },
    /// An image could not be pulled.
    #[error("pulling {image} failed: {reason}")]
    PullFailed {
        /// The reference as it was given.
        image: String,
        /// What went wrong.
        reason: String,
    },
    /// A container could not be created.
    #[error("creating {id} failed: {reason}")]
    CreateFailed {
        /// The container.
        id: String,
        /// What went wrong.
        reason: String,
    },
    /// A container could not be started.
    #[error("starting {id} failed: {reason}")]
    StartFailed {
        /// The container.
        id: String,
        /// What went wrong.
        reason: String,
    },
    /// A health check did not pass.
    #[error("health check of {id} failed: {reason}")]
    HealthCheckFailed {
        /// The container.
        id: String,
        /// What went wrong.
        reason: String,
    },
    /// An action to be done before start failed.
    #[error("init action of {id} failed: {reason}")]
    InitActionFailed {
        /// The container.
        id: String,
        /// What went wrong.
        reason: String,
    },
    /// A container ended that should not have.
    #[error("{id} exited unexpectedly with code {code}")]
    UnexpectedExit {
        /// The container.
        id: String,
        /// Its exit code.
        code: i32,
    },
    /// A call took longer than it may.
    #[error("timed out after {timeout:?}")]
    Timeout {
        /// The time it was given.
        timeout: Duration,
    },
    /// A dependency did not come up in time.
    #[error("{service}: dependency {dependency} was not {condition} within {timeout:?}")]
    DependencyTimeout {
        /// The service that waits.
        service: String,
        /// What it waits for.
        dependency: String,
        /// The condition it waits for.
        condition: String,
        /// The time it was given.
        timeout: Duration,
    },
    /// The spec, or an argument, is not acceptable.
    #[error("invalid spec: {0}")]
    InvalidSpec(String),
    /// A network operation failed.
    #[error("network: {0}")]
    Network(String),
    /// The runtime's own configuration is wrong.
    #[error("configuration: {0}")]
    Configuration(String),
    /// Anything that is not the caller's to mend.
    #[error("internal error: {0}")]
    Internal(String),
    /// The backend does not do this.
    #[error("unsupported: {0}")]
    Unsupported(String),
}

impl AgentError {
    /// A stable, dotted name of the failure: the backend's own where the reason ends in ` [code]`, else the variant's.
    ///
    /// ```
    /// use runtime_core::AgentError;
    /// let error = AgentError::PullFailed { image: "a/b".into(), reason: "no such tag [image.not_found]".into() };
    /// assert_eq!(error.code(), "image.not_found");
    /// assert_eq!(AgentError::Unsupported("x".into()).code(), "unsupported");
    /// ```
    #[must_use]
    pub fn code(&self) -> &str {
        self.reason().and_then(trailing_code).unwrap_or(match self {
            Self::NotFound { .. } => "not_found",
            Self::PullFailed { .. } => "pull_failed",
            Self::CreateFailed { .. } => "create_failed",
            Self::StartFailed { .. } => "start_failed",
            Self::HealthCheckFailed { .. } => "health_check_failed",
            Self::InitActionFailed { .. } => "init_action_failed",
            Self::UnexpectedExit { .. } => "unexpected_exit",
            Self::Timeout { .. } => "timeout",
            Self::DependencyTimeout { .. } => "dependency_timeout",
            Self::InvalidSpec(_) => "invalid_spec",
            Self::Network(_) => "network",
            Self::Configuration(_) => "configuration",
            Self::Internal(_) => "internal",
            Self::Unsupported(_) => "unsupported",
        })
    }

    /// What to do about it, where the backend says so: in its reason, before the code, as ` (hint: …)`.
    ///
    /// ```
    /// use runtime_core::AgentError;
    /// let error = AgentError::Network("no address is free (hint: remove containers) [network.exhausted]".into());
    /// assert_eq!(error.hint(), Some("remove containers"));
    /// assert_eq!(AgentError::Network("no (hint: none)".into()).hint(), None);
    /// ```
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        let reason = self.reason()?;
        trailing_code(reason)?;
        Some(reason.rsplit_once(" [")?.0.strip_suffix(')')?.rsplit_once(" (hint: ")?.1)
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::NotFound { reason, .. }
            | Self::PullFailed { reason, .. }
            | Self::CreateFailed { reason, .. }
            | Self::StartFailed { reason, .. }
            | Self::HealthCheckFailed { reason, .. }
            | Self::InitActionFailed { reason, .. } => Some(reason),
            Self::InvalidSpec(text)
            | Self::Network(text)
            | Self::Configuration(text)
            | Self::Internal(text)
            | Self::Unsupported(text) => Some(text),
            Self::UnexpectedExit { .. } | Self::Timeout { .. } | Self::DependencyTimeout { .. } => None,
        }
    }
}

/// The code in a reason that ends in ` [code]`: words of lower-case letters and digits, joined by dots.
fn trailing_code(reason: &str) -> Option<&str> {
    let code = reason.strip_suffix(']')?.rsplit_once(" [")?.1;
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._".contains(&byte);
    let is_code = code.contains('.') && code.starts_with(|first: char| first.is_ascii_lowercase());
    (is_code && code.bytes().all(is_word)).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bracket_that_is_no_code_is_not_read_as_one() {
        for text in ["list [1, 2]", "x [1.2]", "x [Foo.bar]", "[]", "x []", "ipv6 [::1]"] {
            assert_eq!(AgentError::Internal(text.into()).code(), "internal", "{text}");
        }
    }
}
