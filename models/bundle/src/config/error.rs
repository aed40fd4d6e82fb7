//! What is wrong with a configuration.

/// What is wrong with a configuration; always a mistake that its writer can mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {cause}")]
    Read {
        /// The file named by the user.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{origin} is not valid TOML: {message}")]
    Syntax {
        /// File name or `--set` argument.
        origin: String,
        /// The parser's first line.
        message: String,
    },
    /// A key that no configuration has.
    #[error("unknown key `{key}` in {origin}; {hint}")]
    UnknownKey {
        /// Dotted path of the key.
        key: String,
        /// File name or `--set` argument.
        origin: String,
        /// The nearest known key.
        hint: String,
    },
    /// A known key with a value of the wrong type or range.
    #[error("`{key}` {expected}, found {found}")]
    Value {
        /// Dotted path of the key.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What stands there.
        found: String,
    },
}

/// An error where `holds` is false.
pub(super) fn require(holds: bool, key: &str, expected: &str, found: impl ToString) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Value { key: key.into(), expected: expected.into(), found: found.to_string() })
}
