//! How items of a request are parsed, embedded and stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use serde_json::value::RawValue;

use super::parse;
use super::search::check_vector;
use crate::api::bounded::Numbers;
use crate::api::items::{ItemBody, PutParams};
use crate::body::RequestBody;
use crate::error::{ApiError, Failure};
use crate::features::{self, Feature};
use crate::form::Part;
use crate::index::{Item, Metadata, check_id, normalized};
use crate::limits::Limits;
use crate::state::{App, AppState, Model};

/// What an item's vector is made from.
enum ItemContent {
    Image(Bytes),
    Vector(Numbers),
}

/// An item that is not embedded yet.
pub(super) struct Draft {
    id: String,
    content: ItemContent,
    metadata: Metadata,
}

/// The item of a JSON body; `path_id` is the id in the path, if there is one.
pub(super) fn json_draft(body: ItemBody, path_id: Option<&str>, limits: &Limits) -> Result<Draft, ApiError> {
    let id = match (path_id, body.id) {
        (Some(path), Some(id)) if path != id => {
            return Err(ApiError::malformed(format!("the path names item `{path}`, the body `{id}`")));
        }
        (Some(path), _) => path.to_string(),
        (None, Some(id)) => id,
        (None, None) => return Err(ApiError::malformed("an item needs an `id`")),
    };
    check_id(&id).map_err(ApiError::Malformed)?;
    let content = match (body.image, body.vector) {
        (Some(image), None) => ItemContent::Image(parse::image(&image)?),
        (None, Some(vector)) => ItemContent::Vector(vector),
        _ => return Err(ApiError::malformed("expected exactly one of `image` and `vector`")),
    };
    Ok(Draft { id, content, metadata: parse::metadata(body.metadata.text(), limits)? })
}

/// The item of a body that is one image, with its metadata in the query.
pub(super) fn raw_draft(id: String, body: &RequestBody, app: &App) -> Result<Draft, ApiError> {
    let params: PutParams = parse::query(&body.parts.uri)?;
    let parse = |text: String| parse::metadata(&text, &app.settings.limits);
    let metadata = params.metadata.map(parse).transpose()?.unwrap_or_default();
    Ok(Draft { id, content: ItemContent::Image(body.bytes.clone()), metadata })
}

/// The item of a form with one image.
pub(super) async fn form_draft(id: String, body: &RequestBody, app: &App) -> Result<Draft, ApiError> {
    let (mut images, metadata) = split_form(body.form(app).await?)?;
    let parse = |part: Part| parse::metadata(part.text()?, &app.settings.limits);
    let metadata = metadata.map(parse).transpose()?.unwrap_or_default();
    match (images.pop(), images.is_empty()) {
        (Some(image), true) => Ok(Draft { id, content: ItemContent::Image(image.bytes), metadata }),
        _ => Err(ApiError::malformed("expected exactly one image in the form")),
    }
}

/// The items of a form whose image parts are named by their file names.
pub(super) fn form_drafts(parts: Vec<Part>, limits: &Limits) -> Result<Vec<Result<Draft, ApiError>>, ApiError> {
    let (images, metadata) = split_form(parts)?;
    let mut metadata = metadata.map(|part| parse_by_file_name(&part, limits)).transpose()?.unwrap_or_default();
    let mut draft = |part: Part| {
        let id = part.file_name.unwrap_or_default();
        check_id(&id).map_err(|e| ApiError::malformed(format!("a part's file name is its id: {e}")))?;
        let metadata = match metadata.remove(&id) {
            None => Metadata::default(),
            Some(raw) if raw.get().starts_with('{') => parse::metadata(raw.get(), limits)?,
            Some(_) => return Err(ApiError::malformed(format!("the metadata of `{id}` must be a JSON object"))),
        };
        Ok(Draft { id, content: ItemContent::Image(part.bytes), metadata })
    };
    Ok(images.into_iter().map(&mut draft).collect())
}

/// The image parts of a form, and the part with their metadata.
fn split_form(parts: Vec<Part>) -> Result<(Vec<Part>, Option<Part>), ApiError> {
    let (mut images, mut metadata) = (Vec::new(), None);
    for part in parts {
        match part.name.as_str() {
            _ if part.is_image => images.push(part),
            // A part of JSON beside images is their metadata, whatever its field's name.
            "metadata" => metadata = Some(part),
            _ if part.is_json => metadata = Some(part),
            other => return Err(ApiError::malformed(format!("the form has an unknown field `{other}`"))),
        }
    }
    Ok((images, metadata))
}

/// The metadata of each image of a form, by file name; not parsed yet.
fn parse_by_file_name(part: &Part, limits: &Limits) -> Result<BTreeMap<String, Box<RawValue>>, ApiError> {
    let (limit, found) = (limits.images.saturating_mul(4 * limits.metadata_bytes), part.bytes.len());
    if found > limit {
        return Err(ApiError::malformed(format!("metadata must be at most {limit} bytes of JSON, found {found}")));
    }
    serde_json::from_str(part.text()?).map_err(|e| ApiError::malformed(format!("metadata must be a JSON object: {e}")))
}

/// Embeds and stores the valid drafts.  Each draft's result is its id and whether it is new.
pub(super) async fn store(
    app: &AppState,
    model: &Arc<Model>,
    drafts: Vec<Result<Draft, ApiError>>,
) -> Result<Vec<Result<(String, bool), ApiError>>, Failure> {
    let limit = app.settings.limits.images;
    if drafts.len() > limit {
        return Err(ApiError::TooManyImages { limit, found: drafts.len() }.into());
    }
    let images: Vec<Bytes> = drafts.iter().flatten().filter_map(|d| d.content.image().cloned()).collect();
    let mut features = features::each(app, model, images, true).await?.into_iter();
    let mut items = Vec::new();
    let mut outcomes: Vec<Result<String, ApiError>> = Vec::new();
    for draft in drafts {
        let item = draft.and_then(|d| finish(d, &mut features, model));
        outcomes.push(item.as_ref().map(|i| i.id.clone()).map_err(Clone::clone));
        items.extend(item);
    }
    let stored = app.index.put(&model.encoder(), items).await?;
    let mut stored = stored.into_iter();
    let mut next = || stored.next().unwrap_or(Ok(false)).map_err(ApiError::from);
    Ok(outcomes.into_iter().map(|o| o.and_then(|id| Ok((id, next()?)))).collect())
}

impl Draft {
    /// The draft, whose image keeps the reservation of the body that it came in.
    pub(super) fn holding(self, body: &RequestBody) -> Self {
        let content = match self.content {
            ItemContent::Image(bytes) => ItemContent::Image(body.hold(bytes)),
            vector => vector,
        };
        Self { content, ..self }
    }
}

impl ItemContent {
    fn image(&self) -> Option<&Bytes> {
        match self {
            Self::Image(bytes) => Some(bytes),
            Self::Vector(_) => None,
        }
    }
}

/// The item of a draft; the drafts with images take one feature each.
fn finish(
    draft: Draft,
    features: &mut impl Iterator<Item = Result<Feature, ApiError>>,
    model: &Model,
) -> Result<Item, ApiError> {
    let Draft { id, content, metadata } = draft;
    match content {
        ItemContent::Vector(vector) => {
            let vector = check_vector(vector, model)?;
            Ok(Item { id, vector, metadata, image: None, has_image: false, hash: None })
        }
        ItemContent::Image(_) => {
            let feature = features.next().unwrap_or(Err(ApiError::Internal("no feature".into())))?;
            let vector = normalized(feature.raw).map_err(ApiError::Internal)?;
            Ok(Item { id, vector, metadata, image: feature.thumbnail, has_image: true, hash: feature.hash })
        }
    }
}
