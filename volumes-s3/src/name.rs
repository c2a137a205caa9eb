//! What a volume may be called. A name becomes a directory and a part of an object's key, never a path.

use crate::error::{Error, Result};

/// Longest name of a volume, in bytes: that of a container.
pub const NAME_LIMIT: usize = 200;

/// Checks `name` against `[A-Za-z0-9][A-Za-z0-9_.-]{0,199}`.
///
/// # Errors
/// [`Error::InvalidName`].
pub fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let valid = name.len() <= NAME_LIMIT
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if valid { Ok(()) } else { Err(Error::InvalidName { name: name.chars().take(NAME_LIMIT).collect() }) }
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn a_name_is_never_a_path() {
        for good in ["a", "db", "A9_.-x", &"x".repeat(200)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "-a", "_a", "a b", "ä", "a\0", &"x".repeat(201)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
