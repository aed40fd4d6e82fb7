//! `multipart/form-data`: parses the parts of a form and tells which of them are images.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use crate::body::RequestBody;
use crate::content_disposition::ContentDisposition;
use crate::error::ApiError;
use crate::state::App;

/// Fields that are options even if they are sent as files.
const OPTIONS: [&str; 7] = ["metadata", "normalize", "top_k", "encoding_format", "filter", "exact", "k"];

/// Fields that are images even if they have neither a type nor a file name.
const IMAGES: [&str; 6] = ["image", "images", "image[]", "images[]", "file", "files"];

/// One part of a form.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// Name of the form field.
    pub name: String,
    /// The file's name, if it was sent as a file.
    pub file_name: Option<String>,
    /// Whether it is an image.
    pub is_image: bool,
    /// Whether its type is JSON.
    pub is_json: bool,
    /// Content of the part, without its headers.
    pub bytes: Bytes,
}

impl Part {
    fn new(headers: &HeaderMap) -> Self {
        let disposition =
            headers.get(CONTENT_DISPOSITION).map(|v| ContentDisposition::parse(v.as_bytes())).unwrap_or_default();
        let ContentDisposition { name, file_name } = disposition;
        let name = name.unwrap_or_default();
        let kind = headers.get(CONTENT_TYPE).map(|v| String::from_utf8_lossy(v.as_bytes()).to_ascii_lowercase());
        let kind = kind.as_deref().and_then(|k| k.split(';').next()).unwrap_or_default().trim();
        let is_json = kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json");
        let untyped = IMAGES.contains(&&*name) || file_name.is_some() && !OPTIONS.contains(&&*name);
        let is_image = kind.starts_with("image/") || !is_json && untyped;
        Self { name, file_name, is_image, is_json, bytes: Bytes::new() }
    }

    /// The content as text.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] if it is not UTF-8.
    pub fn text(&self) -> Result<&str, ApiError> {
        std::str::from_utf8(&self.bytes).map_err(|_| ApiError::malformed(format!("field `{}` is not text", self.name)))
    }

    /// The content as JSON.
    ///
    /// # Errors
    /// [`ApiError::Malformed`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.bytes).map_err(|e| ApiError::malformed(format!("field `{}`: {e}", self.name)))
    }
}

/// Most parts of a form that are not images.
const MAX_FIELDS: usize = 16;
/// Most images of a form that are counted; the count is part of the error for too many.
const MAX_COUNTED: usize = 10_000;

impl RequestBody {
    /// The form's parts, in order, parsed on a blocking thread.
    ///
    /// # Errors
    /// [`ApiError::Malformed`]; [`ApiError::TooManyImages`] if it has more images than a request may have.
    pub async fn form(&self, app: &App) -> Result<Vec<Part>, ApiError> {
        let request = Request::from_parts(self.parts.clone(), Body::from(self.bytes.clone()));
        let (limit, runtime) = (app.settings.limits.images, Handle::current());
        // The body is complete, so the parser never waits.
        let parts = app.pool.run(move || runtime.block_on(parse(request, limit))).await?;
        // They are copies of parts of the body, which is dropped before they are.
        Ok(parts.into_iter().map(|part| Part { bytes: self.hold(part.bytes), ..part }).collect())
    }
}

async fn parse(request: Request, limit: usize) -> Result<Vec<Part>, ApiError> {
    let fault = |e: &dyn std::fmt::Display| ApiError::malformed(format!("the form cannot be read: {e}"));
    let mut form = Multipart::from_request(request, &()).await.map_err(|e| fault(&e.body_text()))?;
    let (mut parts, mut images) = (Vec::new(), 0);
    while let Some(field) = form.next_field().await.map_err(|e| fault(&e.body_text()))? {
        let part = Part::new(field.headers());
        images += usize::from(part.is_image);
        if images > MAX_COUNTED {
            break;
        }
        if part.is_image && images > limit {
            continue; // counted only
        }
        if !part.is_image && parts.len() >= MAX_FIELDS + images {
            return Err(ApiError::malformed(format!("the form has more than {MAX_FIELDS} fields that are no images")));
        }
        let bytes = field.bytes().await.map_err(|e| fault(&e.body_text()))?;
        parts.push(Part { bytes, ..part });
    }
    if images > limit { Err(ApiError::TooManyImages { limit, found: images }) } else { Ok(parts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(disposition: &str, kind: &str) -> Part {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_DISPOSITION, disposition.parse().unwrap());
        if !kind.is_empty() {
            headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        }
        Part::new(&headers)
    }

    #[test]
    fn a_part_is_an_image_by_its_type_its_name_or_its_file_name() {
        for (disposition, kind, image) in [
            ("form-data; name=x; filename=a.png", "image/png", true),
            ("form-data; name=x; filename=a.png", "", true),
            ("form-data; name=x; filename=a.png", "application/octet-stream", true),
            ("form-data; name=x", "image/png", true),
            ("form-data; name=image", "", true),
            ("form-data; name=metadata", "", false),
            ("form-data; name=metadata; filename=m.json", "application/json", false),
            ("form-data; name=metadata; filename=m.json", "application/octet-stream", false),
            ("form-data; name=metadata; filename=m.png", "image/png", true),
            ("form-data; name=file; filename=m.json", "Application/JSON; charset=utf-8", false),
            ("form-data; name=k", "", false),
        ] {
            assert_eq!(part(disposition, kind).is_image, image, "{disposition} {kind}");
        }
    }
}
