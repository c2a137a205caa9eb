//! Files into a container.

use std::path::PathBuf;

/// How files are copied into a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopyInOptions {
    /// In place of the tar's first name component.
    pub rename: Option<PathBuf>,
    /// Whom they belong to.
    pub owner: Owner,
}

/// Whom copied files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owner {
    /// Whom the tar names.
    #[default]
    Kept,
    /// One for all.
    #[allow(missing_docs)] // each field is its name
    Always { uid: u32, gid: u32 },
}
