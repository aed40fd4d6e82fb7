//! `report.html`: one self-contained page about a run.
//!
//! This module reads the text files of the run's folder.  What needs the network (reconstructions, features) is passed as
//! [`ReportContent`], which [`gather`] computes.  Missing parts are left out, so that a report can be written at any time.

mod chart;
mod confusion;
mod content;
mod evaluation;
mod files;
mod finetune;
mod gather;
mod html;
mod metrics;
mod pictures;
mod previous;
mod projection;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use macrl_bundle::evaluation::Evaluation;

pub use content::{Neighbour, Neighbourhood, Reconstruction, ReportContent};
use files::optional;
pub use gather::gather;
use html::{Page, escape, section};
use metrics::Metrics;

/// Bytes at the start of a page that contain its title.
const HEAD: usize = 4096;

/// Writes `report.html` into the run's folder and returns its path.
///
/// # Errors
/// A file of the run that is there but can't be read, or the report that can't be written.
pub fn write(run: &Path, content: &ReportContent) -> Result<PathBuf> {
    let page = render(run, content)?;
    let path = run.join("report.html");
    macrl_bundle::atomic::write_file(&path, page.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Whether a page is one of our reports, of any version.
pub fn is_own(page: &[u8]) -> bool {
    let head = String::from_utf8_lossy(&page[..page.len().min(HEAD)]);
    head.starts_with("<!doctype html>") && head.contains(html::TITLE)
}

/// The page as HTML.
///
/// # Errors
/// A file of the run that is there but can't be read.
pub fn render(run: &Path, content: &ReportContent) -> Result<String> {
    let metrics = match optional(&run.join("metrics.jsonl"))? {
        Some(text) => Metrics::parse(&text),
        None => Metrics::default(),
    };
    let evaluation = match run.join("evaluation.json") {
        path if path.exists() => Some(Evaluation::read(&path)?),
        _ => None,
    };
    let config = optional(&run.join("config.toml"))?.unwrap_or_default();
    let name = run.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
    let mut page = Page::new(&name);
    let previous = evaluation.as_ref().and_then(|evaluation| previous::previous(run, evaluation));
    page.push(evaluation::headline(&name, evaluation.as_ref(), previous.as_ref(), &metrics));
    let folder = run.display().to_string();
    page.push(evaluation::sections(evaluation.as_ref(), previous.as_ref(), &folder, &metrics, content.unlabelled));
    page.push(finetune::section(run)?);
    page.push(section("curves", "Training", &metrics.charts()));
    page.push(pictures::reconstructions(&content.strong, &content.weak));
    page.push(pictures::neighbours(&content.neighbours, &content.gallery, &content.labels));
    if let Some(features) = &content.projected {
        page.push(projection::section(features, &content.labels, !content.unlabelled));
    }
    page.push(provenance(&content.provenance, &metrics));
    if !config.is_empty() {
        let body = format!("<pre class=\"config\"><code>{}</code></pre>", escape(config.trim_end()));
        page.push(section("config", "Configuration, resolved", &body));
    }
    Ok(page.finish())
}

fn provenance(lines: &[(String, String)], metrics: &Metrics) -> String {
    let own = [
        ("macrl".to_string(), env!("CARGO_PKG_VERSION").to_string()),
        ("report written".to_string(), utc(seconds_now())),
    ];
    let skipped = (metrics.unreadable > 0)
        .then(|| ("unreadable metric lines".to_string(), format!("{}, left out", metrics.unreadable)));
    let rows: String = own
        .iter()
        .chain(lines)
        .chain(&skipped)
        .map(|(key, value)| format!("<dt>{}</dt><dd>{}</dd>", escape(key), escape(value)))
        .collect();
    section("provenance", "Provenance", &format!("<dl>{rows}</dl>"))
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// `2026-11-23 02:40 UTC` for seconds since 1970 (the civil calendar of Howard Hinnant's `civil_from_days`).
pub fn utc(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let minutes = seconds / 60 % 1440;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests;
