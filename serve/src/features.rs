//! Computes the features of a request's images: admission, decoding, preprocessing, inference.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use futures_util::future::join_all;
use image::RgbImage;
use macrl_bundle::bundle::Bundle;
use macrl_bundle::decode::{DecodeError, announced_pixels, decode_to};
use sha2::{Digest, Sha256};

use crate::budget::Reservation;
use crate::engine::Pixels;
use crate::error::{ApiError, Failure};
use crate::index::ContentHash;
use crate::state::{App, Model};
use crate::thumbnail;

/// Images with more pixels are decoded by the low-priority pool: a few of them must not delay the small ones.
const LARGE: u64 = 4_000_000;
/// So are files of more than [`DENSE_FILE`] bytes with more bytes a pixel than this.  No photograph has them: a file of 64 x 64 pixels
/// and 7.5 MB took 1.7 s.
const DENSE: u64 = 16;
const DENSE_FILE: u64 = 64 << 10;

/// Images with at most so many pixels and bytes are decoded by the worker that embeds them.  That takes a tenth of a
/// millisecond, and some 20 ms for a file that is made to take long.
const SMALL: u64 = 128 * 128;
const SMALL_FILE: usize = 16 << 10;

/// The feature of one image.
#[derive(Debug, Clone)]
pub struct Feature {
    /// The encoder's pooled output (D), not normalised.
    pub raw: Vec<f32>,
    /// PNG, if thumbnails were asked for.
    pub thumbnail: Option<Arc<[u8]>>,
    /// Hash of the image's file, if thumbnails were asked for.
    pub hash: Option<ContentHash>,
}

/// The features of a request's images; each image has its own result.
///
/// # Errors
/// Errors of the whole request: too many images, a full queue, no result in time.
pub async fn each(
    app: &Arc<App>,
    model: &Arc<Model>,
    images: Vec<Bytes>,
    thumbnails: bool,
) -> Result<Vec<Result<Feature, ApiError>>, ApiError> {
    let reservation = app.admit(images.len())?;
    compute(app, model, images, thumbnails, reservation).await
}

async fn compute(
    app: &Arc<App>,
    model: &Arc<Model>,
    images: Vec<Bytes>,
    thumbnails: bool,
    _reservation: Reservation,
) -> Result<Vec<Result<Feature, ApiError>>, ApiError> {
    let limit = app.settings.limits.request_timeout;
    let all = join_all(images.into_iter().map(|bytes| one(app, model, bytes, thumbnails)));
    tokio::time::timeout(limit, all).await.map_err(|_| ApiError::Timeout(limit.as_secs()))
}

/// As [`each`], but a bad image makes the request fail.
///
/// # Errors
/// The first error; it names the image.
pub async fn all(app: &Arc<App>, model: &Arc<Model>, images: Vec<Bytes>) -> Result<Vec<Feature>, Failure> {
    let outcomes = each(app, model, images, false).await?;
    outcomes.into_iter().enumerate().map(|(i, outcome)| outcome.map_err(|e| e.at(i))).collect()
}

/// As [`all`], for more images than other requests may have.  They are embedded in steps; each step may take the time of a
/// request.
///
/// # Errors
/// The first error; it names the image.
pub async fn all_in_steps(app: &Arc<App>, model: &Arc<Model>, images: Vec<Bytes>) -> Result<Vec<Feature>, Failure> {
    let step = app.settings.limits.images;
    let mut features = Vec::with_capacity(images.len());
    for part in images.chunks(step) {
        let first = features.len();
        // Only the first step is refused when the queue is full: a request that was admitted is served to its end.
        let reservation = if first == 0 { app.admit(part.len())? } else { app.admit_later(part.len()).await? };
        let outcomes = compute(app, model, part.to_vec(), false, reservation).await?;
        for (i, outcome) in outcomes.into_iter().enumerate() {
            features.push(outcome.map_err(|e| e.at(first + i))?);
        }
    }
    Ok(features)
}

async fn one(app: &Arc<App>, model: &Arc<Model>, bytes: Bytes, thumbnails: bool) -> Result<Feature, ApiError> {
    let announced = announced_pixels(&bytes);
    let (decoder, preparing) = (app.clone(), model.clone());
    let small = bytes.len() <= SMALL_FILE && announced.is_some_and(|pixels| pixels <= SMALL);
    let large = announced.is_some_and(|pixels| is_slow(pixels, bytes.len() as u64));
    if small && !thumbnails && model.engine.prepares() {
        let prepare = Box::new(move || Ok(decoded(&decoder, &preparing.bundle, &bytes)?.0));
        let raw = model.engine.embed(Pixels::Deferred(prepare)).await?;
        return Ok(Feature { raw, thumbnail: None, hash: None });
    }
    let prepare = move || {
        let (pixels, image) = decoded(&decoder, &preparing.bundle, &bytes)?;
        let kept = if thumbnails {
            let png = thumbnail::encode(&image).map_err(|e| ApiError::Internal(e.to_string()))?;
            Some((png, Sha256::digest(&bytes).into()))
        } else {
            None
        };
        Ok::<_, ApiError>((pixels, kept))
    };
    let prepared = if large {
        // They take their time: they may take a part of the queue, so that small images find room.
        let _place = app.large_images.reserve(1).ok_or_else(|| app.queue_full())?;
        app.large_image_pool.run(prepare).await
    } else {
        app.pool.run(prepare).await
    };
    let (pixels, kept) = prepared?;
    let raw = model.engine.embed(Pixels::Ready(pixels)).await?;
    let (thumbnail, hash) = kept.unzip();
    Ok(Feature { raw, thumbnail, hash })
}

/// Whether an image may take long to decode, by its pixels and the bytes of its file.
fn is_slow(pixels: u64, bytes: u64) -> bool {
    pixels > LARGE || bytes > DENSE_FILE && bytes > pixels.saturating_mul(DENSE)
}

/// The encoder's input (S, S, 3) u8 and the image that it was made from.
fn decoded(app: &App, bundle: &Bundle, bytes: &[u8]) -> Result<(Vec<u8>, RgbImage), DecodeError> {
    let started = Instant::now();
    let image = decode_to(bytes, &app.settings.limits.decode, bundle.preprocess.shortest())?;
    let pixels = bundle.preprocess.fit(&image).into_raw();
    app.metrics.decode_seconds.time(started.elapsed());
    Ok((pixels, image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_images_and_dense_files_are_slow() {
        for (pixels, bytes, slow) in [
            (4_000_001, 100, true),
            (4_000_000, 30_000_000, false),
            (64 * 64, 7_500_000, true),
            (64 * 64, 64 << 10, false),
            (64 * 64, (64 << 10) + 1, true),
            (640 * 480, 900_000, false),
        ] {
            assert_eq!(is_slow(pixels, bytes), slow, "{pixels} pixels in {bytes} bytes");
        }
    }
}
