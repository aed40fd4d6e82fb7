//! `/labels` and `/probe`: labels that people give to items, and a classifier that is trained from them at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};

use super::parse;
use super::responses::{BODY, INDEX, KEY, MODEL, error_responses};
use crate::api::labels::{
    ClassCount, Guess, GuessedLabel, HeldOutBody, ItemLabel, LabelsBody, LabelsChanged, LabelsFormat, LabelsList,
    LabelsParams, MAX_LABEL, PastProbeBody, ProbeBody, ProbeReport,
};
use crate::body::{Kind, RequestBody};
use crate::error::{ApiError, ErrorKind, Failure};
use crate::index::{Item, ListQuery, check_id};
use crate::labels::{
    BACKGROUND, Examples, HeldOut, LabelChange, Labelled, Labels, MIN_CLASSES, PastProbe, TrainedProbe, fit,
};
use crate::state::{App, AppState, Model};

/// Items among which the least certain ones are looked for.
const LOOKED_AT: usize = 20_000;
/// Items that are asked of the index at once.
const PAGE: usize = 1000;

const OWN: &[ErrorKind] = &[ErrorKind::NotFound, ErrorKind::Conflict];

error_responses!(LabelErrors, ErrorBody, [KEY, BODY, MODEL, INDEX, OWN]);

/// The server's labels; an error if its index keeps none.
fn labels(app: &App) -> Result<&Labels, ApiError> {
    let missing =
        || ApiError::NotFound("labels need an index in a folder or in memory; this one is in PostgreSQL".into());
    app.labels.as_ref().ok_or_else(missing)
}

/// All labels, as JSON or as CSV; the CSV can have the most probable label of every other item.
#[utoipa::path(
    get,
    path = "/labels",
    tag = "labels",
    params(LabelsParams),
    responses(
        (status = 200, description = "the labels", content((LabelsList = "application/json"), (String = "text/csv"))),
        LabelErrors,
    )
)]
pub(crate) async fn list(State(app): State<AppState>, parts: Parts) -> Result<Response, Failure> {
    let params: LabelsParams = parse::query(&parts.uri)?;
    let store = labels(&app)?.store.clone();
    let found = app.pool.run(move || store.all().map_err(ApiError::from)).await?;
    let guesses = match params.guesses {
        true => Some(guess_rest(&app, &found).await?),
        false => None,
    };
    if params.format.unwrap_or_default() == LabelsFormat::Json {
        let list = found.labels.into_iter().map(|(id, label)| ItemLabel { id, label: Some(label) }).collect();
        return Ok(Json(LabelsList { version: found.version, labels: list, guesses }).into_response());
    }
    let csv = csv(&found, &guesses.unwrap_or_default());
    let name = "attachment; filename=\"labels.csv\"";
    Ok(([(CONTENT_TYPE, "text/csv; charset=utf-8"), (CONTENT_DISPOSITION, name)], csv).into_response())
}

/// The most probable label of every item that has none.
async fn guess_rest(app: &AppState, found: &Labelled) -> Result<Vec<GuessedLabel>, ApiError> {
    let probe = ensure_trained(app).await?;
    let given: HashSet<&str> = found.labels.iter().map(|(id, _)| id.as_str()).collect();
    let (mut guesses, mut cursor) = (Vec::new(), None);
    loop {
        let query = ListQuery { cursor, limit: PAGE, vectors: true, skip_total: true, ..ListQuery::default() };
        let page = app.index.list(query).await?;
        for item in page.items.into_iter().filter(|item| !given.contains(item.id.as_str())) {
            if let Some((label, score)) = probe.classes(&item.vector).first() {
                guesses.push(GuessedLabel { id: item.id, label: label.to_string(), score: (*score).into() });
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(guesses);
        }
    }
}

fn csv(found: &Labelled, guesses: &[GuessedLabel]) -> String {
    let mut text = String::from("id,label,source,score\n");
    for (id, label) in &found.labels {
        text.push_str(&format!("{},{},given,\n", quoted(id), quoted(label)));
    }
    for GuessedLabel { id, label, score } in guesses {
        text.push_str(&format!("{},{},guessed,{score:.4}\n", quoted(id), quoted(label)));
    }
    text
}

/// A field of a CSV file (RFC 4180).
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.into() }
}

/// Labels items, or removes their labels.  All changes are made or none, and they are durable when the answer comes.
#[utoipa::path(
    post,
    path = "/labels",
    tag = "labels",
    request_body(content((LabelsBody = "application/json"))),
    responses((status = 200, description = "the new version, and what undoes the change", body = LabelsChanged), LabelErrors)
)]
pub(crate) async fn change(State(app): State<AppState>, body: RequestBody) -> Result<Json<LabelsChanged>, Failure> {
    let store = labels(&app)?.store.clone();
    let body: LabelsBody = json(body, &app).await?;
    let changes = checked(body, &app).await?;
    let (version, before) = app.pool.run(move || store.change(&changes).map_err(ApiError::from)).await?;
    Ok(Json(LabelsChanged { version, previous: before.into_iter().map(ItemLabel::from).collect() }))
}

async fn json<T: serde::de::DeserializeOwned + Send + 'static>(
    body: RequestBody,
    app: &AppState,
) -> Result<T, Failure> {
    match body.kind {
        Kind::Json => body.json(app).await.map_err(Failure::from),
        _ => Err(ApiError::UnsupportedType("expected a body of the type application/json".into()).into()),
    }
}

async fn checked(body: LabelsBody, app: &App) -> Result<Vec<LabelChange>, ApiError> {
    let (given, kept) = (body.labels.count, body.labels.kept);
    if kept.is_empty() || given > kept.len() {
        return Err(ApiError::malformed(format!(
            "expected 1 to {} labels, found {given}",
            crate::api::bounded::MAX_LIST
        )));
    }
    for ItemLabel { id, label } in &kept {
        check_id(id).map_err(ApiError::Malformed)?;
        let Some(label) = label else { continue };
        let length = label.chars().count();
        if !(1..=MAX_LABEL).contains(&length) || label.trim() != label || label.chars().any(char::is_control) {
            let expected = format!("expected a label of 1 to {MAX_LABEL} characters, without control characters");
            return Err(ApiError::malformed(format!("{expected} and without spaces around it, for the item `{id}`")));
        }
    }
    // A label may be removed from an item that is gone, but not given to it.
    let named = kept.iter().filter(|l| l.label.is_some()).map(|l| l.id.clone()).collect();
    let missing = items(app, named).await?.1;
    match missing.first() {
        Some(id) => Err(ApiError::NotFound(format!("there is no item `{id}`; nothing was labelled"))),
        None => Ok(kept.into_iter().map(LabelChange::from).collect()),
    }
}

/// These items with their vectors, and the ids of those that do not exist.
async fn items(app: &App, ids: Vec<String>) -> Result<(Vec<Item>, Vec<String>), ApiError> {
    let (mut found, mut missing) = (Vec::with_capacity(ids.len()), Vec::new());
    for id in ids {
        match app.index.get(&id).await? {
            // Without the thumbnail: ten thousand of them take memory.
            Some(item) => found.push(Item { image: None, ..item }),
            None => missing.push(id),
        }
    }
    Ok((found, missing))
}

/// The classifier of the present labels, as it was last reported.
#[utoipa::path(
    get,
    path = "/probe",
    tag = "labels",
    responses((status = 200, description = "the classifier", body = ProbeReport), LabelErrors)
)]
pub(crate) async fn get(State(app): State<AppState>) -> Result<Json<ProbeReport>, Failure> {
    let probe = ensure_trained(&app).await?;
    report(&app, &probe, Vec::new(), 0, Vec::new()).await.map(Json).map_err(Failure::from)
}

/// Trains a classifier from the labels, on the stored vectors, and answers how good it is on labelled items that were left
/// out.  Also names the unlabelled items that it is least certain of, and classifies items.
#[utoipa::path(
    post,
    path = "/probe",
    tag = "labels",
    request_body(content((ProbeBody = "application/json"))),
    responses((status = 200, description = "the classifier", body = ProbeReport), LabelErrors)
)]
pub(crate) async fn train(State(app): State<AppState>, body: RequestBody) -> Result<Json<ProbeReport>, Failure> {
    let body: ProbeBody = json(body, &app).await?;
    let uncertain_ones = body.uncertain.unwrap_or(0);
    if uncertain_ones > PAGE {
        return Err(ApiError::malformed(format!("uncertain must be in 0..={PAGE}, found {uncertain_ones}")).into());
    }
    let probe = ensure_trained(&app).await?;
    let (sure, looked_at) = uncertain(&app, &probe, uncertain_ones).await?;
    let asked = body.classify.map_or_else(Vec::new, |list| list.kept);
    let classified = items(&app, asked).await?.0.into_iter().filter_map(|item| guess(item, &probe)).collect();
    report(&app, &probe, sure, looked_at, classified).await.map(Json).map_err(Failure::from)
}

/// The classifier of the present labels; it is trained if need be.
pub(super) async fn ensure_trained(app: &AppState) -> Result<Arc<TrainedProbe>, ApiError> {
    let (model, labels) = (app.model()?, labels(app)?);
    let _turn = labels.training.lock().await;
    let store = labels.store.clone();
    let version = app.pool.run(move || store.version().map_err(ApiError::from)).await?;
    let encoder = encoder_of(&model);
    if let Some(trained) = labels.trained(version, &encoder) {
        return Ok(trained);
    }
    let store = labels.store.clone();
    let found = app.pool.run(move || store.all().map_err(ApiError::from)).await?;
    let version = found.version;
    let examples = examples(app, found).await?;
    if examples.names.len() < MIN_CLASSES {
        let found = examples.names.len();
        return Err(ApiError::Conflict(format!(
            "expected items with at least {MIN_CLASSES} different labels, found {found}"
        )));
    }
    let background: Vec<f32> = app.index.sample(BACKGROUND).await?.into_iter().flat_map(|item| item.vector).collect();
    let (dim, names) = (model.dim(), examples.names.len());
    let counts = (0..names).map(|class| examples.classes.iter().filter(|c| **c == class).count()).collect();
    let (probe, held_out) = app.pool.run(move || Ok::<_, ApiError>(fit(&examples, &background, dim))).await?;
    let trained = Arc::new(TrainedProbe { version, encoder, probe, counts, held_out });
    labels.keep(trained.clone());
    record(app, labels, &trained).await?;
    Ok(trained)
}

fn encoder_of(model: &Model) -> String {
    model.bundle.config.macrl.weights_sha256.clone()
}

/// The labelled items that still exist.
async fn examples(app: &App, found: Labelled) -> Result<Examples, ApiError> {
    let by_id: HashMap<String, String> = found.labels.into_iter().collect();
    let mut ids: Vec<String> = by_id.keys().cloned().collect();
    ids.sort();
    let found = items(app, ids).await?.0;
    let names: BTreeMap<&str, usize> = found.iter().map(|item| (by_id[&item.id].as_str(), 0)).collect();
    let numbers: HashMap<&str, usize> = names.keys().enumerate().map(|(i, name)| (*name, i)).collect();
    let classes = found.iter().map(|item| numbers[by_id[&item.id].as_str()]).collect();
    let names = names.keys().map(|name| name.to_string()).collect();
    Ok(Examples { vectors: found.iter().flat_map(|item| item.vector.iter().copied()).collect(), classes, names })
}

async fn record(app: &AppState, labels: &Labels, trained: &TrainedProbe) -> Result<(), ApiError> {
    let Some(HeldOut { accuracy, judged }) = trained.held_out else { return Ok(()) };
    let past = PastProbe { version: trained.version, labelled: trained.counts.iter().sum(), judged, accuracy };
    let (store, encoder) = (labels.store.clone(), trained.encoder.clone());
    app.pool.run(move || store.record(&encoder, &past).map_err(ApiError::from)).await
}

/// The unlabelled items whose two best classes are nearest to each other, and how many were looked at.
async fn uncertain(app: &AppState, probe: &Arc<TrainedProbe>, count: usize) -> Result<(Vec<Guess>, usize), ApiError> {
    if count == 0 {
        return Ok((Vec::new(), 0));
    }
    let store = labels(app)?.store.clone();
    let labelled = app.pool.run(move || store.all().map_err(ApiError::from)).await?.labels;
    let labelled: HashSet<String> = labelled.into_iter().map(|(id, _)| id).collect();
    let mut found = app.index.sample(LOOKED_AT).await?;
    found.retain(|item| !labelled.contains(&item.id));
    let looked_at = found.len();
    let probe = probe.clone();
    let least = move || {
        let margin = |item: &Item| match probe.classes(&item.vector)[..] {
            [(_, first), (_, second), ..] => first - second,
            _ => 1.0,
        };
        let mut margins: Vec<(f32, Item)> = found.into_iter().map(|item| (margin(&item), item)).collect();
        margins.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.id.cmp(&b.1.id)));
        let least = margins.into_iter().take(count).filter_map(|(_, item)| guess(item, &probe));
        Ok::<_, ApiError>(least.collect())
    };
    Ok((app.pool.run(least).await?, looked_at))
}

fn guess(item: Item, probe: &TrainedProbe) -> Option<Guess> {
    let (label, score) = *probe.classes(&item.vector).first()?;
    let (label, score) = (label.to_string(), score.into());
    Some(Guess { id: item.id, metadata: item.metadata, image: item.has_image, label, score })
}

async fn report(
    app: &AppState,
    probe: &TrainedProbe,
    uncertain: Vec<Guess>,
    looked_at: usize,
    classified: Vec<Guess>,
) -> Result<ProbeReport, ApiError> {
    let (store, encoder) = (labels(app)?.store.clone(), probe.encoder.clone());
    let history = app.pool.run(move || store.history(&encoder).map_err(ApiError::from)).await?;
    let counted = probe.probe.labels.iter().cloned().zip(&probe.counts);
    Ok(ProbeReport {
        version: probe.version,
        encoder: probe.encoder.clone(),
        labelled: probe.counts.iter().sum(),
        classes: counted.map(|(label, labelled)| ClassCount { label, labelled: *labelled }).collect(),
        held_out: probe.held_out.map(|HeldOut { accuracy, judged }| HeldOutBody { accuracy, judged }),
        history: history.into_iter().map(PastProbeBody::from).collect(),
        uncertain,
        looked_at,
        classified,
    })
}
