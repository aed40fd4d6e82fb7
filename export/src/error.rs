//! Why an export failed, and its exit code.

use std::fmt;

use macrl_bundle::output::one_line;

/// The reason why nothing was exported.
#[derive(Debug)]
pub enum Failure {
    /// The arguments name something that is missing or cannot be used (exit code 2).
    Usage(String),
    /// The work failed (exit code 1).
    Work(anyhow::Error),
}

impl Failure {
    /// Exit code of the process.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Work(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    /// Writes one line, with the chain of causes.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Failure::Usage(message) => f.write_str(&message.split_whitespace().collect::<Vec<_>>().join(" ")),
            Failure::Work(error) => f.write_str(&one_line(error.as_ref())),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Work(error)
    }
}
