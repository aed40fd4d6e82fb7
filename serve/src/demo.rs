//! `macrl-serve demo`: uploads a gallery, sends some queries, checks the form of every answer, and prints and draws the
//! results.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use macrl_bundle::answer;
use macrl_bundle::output::elapsed;
use macrl_bundle::regular;
use serde_json::Value;

use crate::arguments::UsageError;
use crate::client::Client;
use crate::contact_sheet::{Frame, Row, draw};
use crate::image_folder::{ImageFile, Labels, read_image_folder};
use crate::keys;

/// Bytes of a PNG before its second chunk: the magic number and IHDR.
const HEADER: usize = 33;
/// A tEXt chunk, `Software: macrl-serve`, with its length and its checksum (zlib.crc32 of type and text).
const SIGNATURE: &[u8; 32] = b"\0\0\0\x14tEXtSoftware\0macrl-serve\x06\x1d\x95\x91";

/// Send requests to a running server and show its answers.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The server, for instance http://127.0.0.1:8080.
    #[arg(long)]
    url: String,
    /// Images to search with; sub-folders are labels.
    #[arg(long, value_name = "FOLDER")]
    queries: PathBuf,
    /// Images to upload and search among; sub-folders are labels.
    #[arg(long, value_name = "FOLDER")]
    gallery: PathBuf,
    /// Contact sheet of the queries and their neighbours, PNG.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Neighbours of each query.
    #[arg(long, default_value_t = 5)]
    k: usize,
}

/// A hit of `/search`.
struct Neighbour {
    id: String,
    score: f64,
    label: Option<String>,
}

/// The answers for one query.
struct Answer {
    class: Option<(String, f64)>,
    neighbours: Vec<Neighbour>,
}

/// Runs the command.
///
/// # Errors
/// A server that does not answer, or an answer of the wrong form.
pub fn run(args: &DemoArgs) -> Result<()> {
    check_output(&args.out)?;
    let read = |folder: &Path| read_image_folder(folder, folder, Labels::First).map(|found| found.images);
    let (gallery, queries) = (read(&args.gallery)?, read(&args.queries)?);
    let client = Client::new(&args.url, keys::single(None)?);
    client.wait_until_ready(Duration::from_secs(120), true)?;
    let info = client.get("/info")?;
    let dim = info["model"]["dim"].as_u64().context("/info names no dim")? as usize;
    let has_probe = info["model"]["labels"].is_array();
    let since = Instant::now();
    let items: Vec<_> = gallery.iter().map(|image| (image.clone(), image.metadata())).collect();
    let failed = client.upload(&items)?.failed;
    ensure!(
        failed.is_empty(),
        "{} of {} gallery images were refused, first: {:?}",
        failed.len(),
        gallery.len(),
        failed[0]
    );
    let took = since.elapsed();
    answer!(
        "model {} on {}: {} images uploaded in {} ({:.0}/s)",
        info["model"]["name"].as_str().unwrap_or("?"),
        info["device"].as_str().unwrap_or("?"),
        gallery.len(),
        elapsed(took),
        gallery.len() as f64 / took.as_secs_f64().max(1e-9),
    );
    let mut answers = Vec::new();
    for query in &queries {
        let k = args.k.min(gallery.len());
        answers.push(ask(&client, query, k, dim, has_probe).with_context(|| format!("query {}", query.id))?);
    }
    print_table(&queries, &answers);
    draw_contact_sheet(args, &queries, &answers)?;
    answer!("neighbours drawn in {}", args.out.display());
    Ok(())
}

fn ask(client: &Client, query: &ImageFile, k: usize, dim: usize, has_probe: bool) -> Result<Answer> {
    let bytes = regular::read_up_to(&query.path, regular::MAX_IMAGE)?;
    // The server looks at the content; of the type, only `image/` matters.
    let post = |path: &str| client.post(path, "image/png", &bytes);
    let (first, second) = (embedding(&post("/embed")?, dim)?, embedding(&post("/embed")?, dim)?);
    let apart = first.iter().zip(&second).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    ensure!(apart <= 1e-5, "two requests for one image differ by {apart}");
    let class = if has_probe { Some(best_class(&post("/classify?top_k=1")?)?) } else { None };
    let neighbours = neighbours(&post(&format!("/search?k={k}"))?, k)?;
    Ok(Answer { class, neighbours })
}

fn embedding(answer: &Value, dim: usize) -> Result<Vec<f64>> {
    let list = answer["embeddings"][0].as_array().context("/embed gave no embedding")?;
    let values: Vec<f64> = list.iter().filter_map(Value::as_f64).collect();
    ensure!(values.len() == dim, "expected an embedding of {dim} numbers, found {}", values.len());
    let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    ensure!((norm - 1.0).abs() < 1e-3, "expected an embedding of length 1, found {norm}");
    Ok(values)
}

fn best_class(answer: &Value) -> Result<(String, f64)> {
    let best = &answer["predictions"][0][0];
    let label = best["label"].as_str().context("/classify gave no label")?;
    let score = best["score"].as_f64().context("/classify gave no score")?;
    ensure!((0.0..=1.0).contains(&score), "expected a probability, found {score}");
    Ok((label.to_string(), score))
}

fn neighbours(answer: &Value, k: usize) -> Result<Vec<Neighbour>> {
    let hits = answer["hits"].as_array().context("/search gave no hits")?;
    ensure!(hits.len() == k, "expected {k} hits, found {}", hits.len());
    let found: Vec<Neighbour> = hits
        .iter()
        .map(|hit| {
            Ok(Neighbour {
                id: hit["id"].as_str().context("a hit has no id")?.to_string(),
                score: hit["score"].as_f64().context("a hit has no score")?,
                label: hit["metadata"]["label"].as_str().map(str::to_string),
            })
        })
        .collect::<Result<_>>()?;
    ensure!(found.iter().all(|n| (-1.0..=1.0).contains(&n.score)), "a score is no cosine");
    ensure!(found.windows(2).all(|w| w[0].score >= w[1].score), "hits are not sorted by score");
    Ok(found)
}

fn print_table(queries: &[ImageFile], answers: &[Answer]) {
    let text = |label: &Option<String>| label.clone().unwrap_or_else(|| "-".into());
    let mut rows = vec![["query".to_string(), "predicted".into(), "nearest neighbours (cosine)".into()]];
    let (mut right, mut agreeing, mut total) = (0, 0, 0);
    for (query, answer) in queries.iter().zip(answers) {
        let class = answer.class.as_ref().map_or("-".into(), |(label, score)| format!("{label} {score:.2}"));
        let found: Vec<String> =
            answer.neighbours.iter().map(|n| format!("{} {:.2}", text(&n.label), n.score)).collect();
        right += usize::from(query.label.is_some() && answer.class.as_ref().map(|c| &c.0) == query.label.as_ref());
        agreeing += answer.neighbours.iter().filter(|n| n.label.is_some() && n.label == query.label).count();
        total += answer.neighbours.len();
        rows.push([text(&query.label), class, found.join(", ")]);
    }
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    for [query, class, found] in &rows {
        answer!("{query:first$}  {class:second$}  {found}");
    }
    answer!("classes right: {right} of {}; neighbours of the query's class: {agreeing} of {total}", queries.len());
}

fn draw_contact_sheet(args: &DemoArgs, queries: &[ImageFile], answers: &[Answer]) -> Result<()> {
    let mut rows = Vec::new();
    for (query, answer) in queries.iter().zip(answers) {
        let mut cells = vec![(open(&query.path)?, Frame::Query)];
        for neighbour in &answer.neighbours {
            let same = neighbour.label.is_some() && neighbour.label == query.label;
            let frame = if same { Frame::Same } else { Frame::Other };
            cells.push((open(&args.gallery.join(&neighbour.id))?, frame));
        }
        rows.push(Row { cells });
    }
    let mut png = Vec::new();
    draw(&rows).write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)?;
    png.splice(HEADER..HEADER, *SIGNATURE);
    macrl_bundle::atomic::write_file(&args.out, &png).with_context(|| format!("cannot write {}", args.out.display()))
}

/// Only a contact sheet of an earlier call is replaced.
fn check_output(out: &Path) -> Result<()> {
    let ours = match regular::read(out) {
        Ok(png) => png.get(HEADER..).is_some_and(|rest| rest.starts_with(SIGNATURE)),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    };
    if ours {
        return Ok(());
    }
    let said = "is there and `macrl-serve demo` did not draw it: name another file, or move it away";
    Err(UsageError(format!("{} {said}", out.display())).into())
}

fn open(path: &Path) -> Result<image::RgbImage> {
    let bytes =
        regular::read_up_to(path, regular::MAX_IMAGE).with_context(|| format!("cannot read {}", path.display()))?;
    macrl_bundle::decode::decode(&bytes, &Default::default()).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_contact_sheet_is_replaced_and_it_stays_a_valid_png() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.png");
        check_output(&file).unwrap();
        let picture = image::RgbImage::from_pixel(3, 2, image::Rgb([1, 2, 3]));
        picture.save(&file).unwrap();
        let said = check_output(&file).unwrap_err();
        assert!(said.is::<UsageError>() && said.to_string().contains("did not draw it"), "{said}");
        let mut png = std::fs::read(&file).unwrap();
        png.splice(HEADER..HEADER, *SIGNATURE);
        std::fs::write(&file, &png).unwrap();
        check_output(&file).unwrap();
        assert_eq!(image::open(&file).unwrap().to_rgb8(), picture);
        std::fs::write(&file, "x").unwrap();
        assert!(check_output(&file).is_err());
    }
}
