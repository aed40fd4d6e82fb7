//! `/health`, `/ready` and `/admin/reload`.

use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Status {
    pub(crate) status: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Reloaded {
    pub(crate) status: &'static str,
    /// Name of the model that serves from now on.
    pub(crate) model: String,
}
