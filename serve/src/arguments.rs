//! Command-line arguments that several commands share, and the error for arguments that contradict each other.

use std::ffi::OsStr;

use clap::Arg;
use clap::builder::{TypedValueParser, ValueParserFactory};
use clap::error::ErrorKind;
use macrl_bundle::device::{Device, UnknownDevice};

use crate::index::Location;

/// A mistake in the arguments that was found after parsing: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// [`UsageError`] with this message.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// Parses `--device`.
pub(crate) fn parse_device(text: &str) -> Result<Device, String> {
    text.parse().map_err(|e: UnknownDevice| e.to_string())
}

/// Parses `--index`.  Clap's own message would repeat the value, and an address may hold a password.
#[derive(Debug, Clone)]
pub struct LocationParser;

impl TypedValueParser for LocationParser {
    type Value = Location;

    fn parse_ref(&self, command: &clap::Command, _: Option<&Arg>, value: &OsStr) -> Result<Location, clap::Error> {
        let text = value.to_str().ok_or_else(|| "expected UTF-8".to_string());
        let location = text.and_then(str::parse);
        location.map_err(|cause| command.clone().error(ErrorKind::ValueValidation, format!("--index: {cause}")))
    }
}

impl ValueParserFactory for Location {
    type Parser = LocationParser;

    fn value_parser() -> LocationParser {
        LocationParser
    }
}
