//! Images -> features: admission, decoding, resizing, inference.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use futures_util::future::join_all;
use image::imageops::FilterType;
use image::{ImageFormat, RgbImage};
use macrl_bundle::bundle::Bundle;
use macrl_bundle::decode::{announced_pixels, decode};
use sha2::{Digest, Sha256};

use crate::engine::Pixels;
use crate::error::{ApiError, Failure};
use crate::index::ContentHash;
use crate::pool::Share;
use crate::state::{App, Model};

/// Longest edge of a stored picture, pixels.
const THUMBNAIL: u32 = 96;

/// Above so many pixels an image is decoded in the slow lane: a few of them must not keep the small ones waiting.
const LARGE: u64 = 4_000_000;

/// Up to so many pixels and bytes an image is decoded by the thread that infers it: a tenth of a millisecond, and some 20 ms
/// for a file made to take long.
const SMALL: u64 = 128 * 128;
const SMALL_FILE: usize = 16 << 10;

/// What became of one image.
#[derive(Debug, Clone)]
pub struct Feature {
    /// (D), as the encoder pools it: not normalised.
    pub raw: Vec<f32>,
    /// A small PNG, where it was asked for.
    pub thumbnail: Option<Arc<[u8]>>,
    /// Of the file, where a thumbnail was asked for.
    pub hash: Option<ContentHash>,
}

/// The features of a request's images, each with its own outcome.
///
/// # Errors
/// What concerns the request as a whole: too many images, a full queue, no answer in time.
pub async fn each(
    app: &Arc<App>,
    model: &Arc<Model>,
    images: Vec<Bytes>,
    thumbnails: bool,
) -> Result<Vec<Result<Feature, ApiError>>, ApiError> {
    let room = app.admit(images.len())?;
    admitted(app, model, images, thumbnails, room).await
}

async fn admitted(
    app: &Arc<App>,
    model: &Arc<Model>,
    images: Vec<Bytes>,
    thumbnails: bool,
    _room: Share,
) -> Result<Vec<Result<Feature, ApiError>>, ApiError> {
    let limit = app.settings.limits.request_timeout;
    let all = join_all(images.into_iter().map(|bytes| one(app, model, bytes, thumbnails)));
    tokio::time::timeout(limit, all).await.map_err(|_| ApiError::Timeout(limit.as_secs()))
}

/// [`each`], where one bad image fails the request and is named by its index.
///
/// # Errors
/// The first of any kind.
pub async fn all(app: &Arc<App>, model: &Arc<Model>, images: Vec<Bytes>) -> Result<Vec<Feature>, Failure> {
    let outcomes = each(app, model, images, false).await?;
    outcomes.into_iter().enumerate().map(|(i, outcome)| outcome.map_err(|e| e.at(i))).collect()
}

/// [`all`] of more images than one request may otherwise have: so many at a time, each time with the whole time of a request.
///
/// # Errors
/// The first of any kind.
pub async fn all_in_steps(app: &Arc<App>, model: &Arc<Model>, images: Vec<Bytes>) -> Result<Vec<Feature>, Failure> {
    let step = app.settings.limits.images;
    let mut features = Vec::with_capacity(images.len());
    for part in images.chunks(step) {
        let first = features.len();
        // Whoever is let in at all is served to the end: only the first step is refused where the queue is full.
        let room = if first == 0 { app.admit(part.len())? } else { app.admit_later(part.len()).await? };
        let outcomes = admitted(app, model, part.to_vec(), false, room).await?;
        for (i, outcome) in outcomes.into_iter().enumerate() {
            features.push(outcome.map_err(|e| e.at(first + i))?);
        }
    }
    Ok(features)
}

async fn one(app: &Arc<App>, model: &Arc<Model>, bytes: Bytes, thumbnail: bool) -> Result<Feature, ApiError> {
    let announced = announced_pixels(&bytes);
    let (decoder, preparing) = (app.clone(), model.clone());
    let small = bytes.len() <= SMALL_FILE && announced.is_some_and(|pixels| pixels <= SMALL);
    let large = announced.is_some_and(|pixels| pixels > LARGE);
    if small && !thumbnail && model.engine.prepares() {
        let prepare = Box::new(move || Ok(decoded(&decoder, &preparing.bundle, &bytes)?.0));
        let raw = model.engine.embed(Pixels::Deferred(prepare)).await?;
        return Ok(Feature { raw, thumbnail: None, hash: None });
    }
    let prepare = move || {
        let (pixels, image) = decoded(&decoder, &preparing.bundle, &bytes)?;
        let kept = if thumbnail { Some((encode_thumbnail(&image)?, Sha256::digest(&bytes).into())) } else { None };
        Ok((pixels, kept))
    };
    let prepared = if large { app.slow_lane.run(prepare).await } else { app.pool.run(prepare).await };
    let (pixels, kept) = prepared?;
    let raw = model.engine.embed(Pixels::Ready(pixels)).await?;
    let (thumbnail, hash) = kept.unzip();
    Ok(Feature { raw, thumbnail, hash })
}

/// The encoder's pixels (S, S, 3) u8 and the image they were taken from.
fn decoded(app: &App, bundle: &Bundle, bytes: &[u8]) -> Result<(Vec<u8>, RgbImage), ApiError> {
    let started = Instant::now();
    let image = decode(bytes, &app.settings.limits.decode)?;
    let pixels = bundle.preprocess.fit(&image).into_raw();
    app.metrics.decode_seconds.time(started.elapsed());
    Ok((pixels, image))
}

/// The picture that an item keeps.
///
/// # Errors
/// [`ApiError::Internal`] where PNG cannot be written.
pub fn encode_thumbnail(image: &RgbImage) -> Result<Arc<[u8]>, ApiError> {
    let (width, height) = image.dimensions();
    let scale = f64::from(THUMBNAIL) / f64::from(width.max(height).max(1));
    let mut png = Vec::new();
    let write = |image: &RgbImage, png: &mut Vec<u8>| image.write_to(&mut Cursor::new(png), ImageFormat::Png);
    let written = if scale < 1.0 {
        let edge = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
        write(&image::imageops::resize(image, edge(width), edge(height), FilterType::Triangle), &mut png)
    } else {
        write(image, &mut png)
    };
    written.map_err(|e| ApiError::Internal(e.to_string()))?;
    Ok(png.into())
}
