//! The HTTP interface's types: what is described in the OpenAPI document is what is parsed and sent.

pub(crate) mod bounded;
pub(crate) mod errors;
pub(crate) mod images;
pub(crate) mod items;
pub(crate) mod labels;
pub(crate) mod openai;
pub(crate) mod openai_input;
pub(crate) mod search;
pub(crate) mod server;

/// Version of the HTTP interface; see docs/formats.md.
pub(crate) const FORMAT: u32 = 1;
