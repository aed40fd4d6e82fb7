//! Errors in a configuration.

/// Why a configuration was refused; the user can correct each of these.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message shows its fields")]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {cause}")]
    Read { path: String, cause: std::io::Error },
    /// A file or a `--set` argument is not TOML.
    #[error("{origin} is not valid TOML: {message}")]
    Syntax {
        /// File name, or the `--set` argument.
        origin: String,
        /// The parser's message as one line.
        message: String,
    },
    /// A key does not exist.
    #[error("unknown key `{key}` in {origin}; {hint}")]
    UnknownKey {
        key: String,
        origin: String,
        /// Suggestion with the most similar keys.
        hint: String,
    },
    /// A value has the wrong type or is out of range.
    #[error("`{key}` {expected}, found {found}")]
    Value {
        key: String,
        /// The accepted values, as text.
        expected: String,
        found: String,
    },
}

/// An error if `holds` is false.
pub(super) fn require(holds: bool, key: &str, expected: &str, found: impl ToString) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Value { key: key.into(), expected: expected.into(), found: found.to_string() })
}
