//! Results of fine-tuning: a table, and the curves of both starts.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::chart::{Chart, Scale, Series};
use super::files::optional;
use super::html::{escape, percent};
use super::metrics::{Metrics, grid};

/// What fine-tuning started from, in the order of the table, and the names shown.
const STARTS: [(&str, &str); 2] = [("macrl", "pretrained"), ("random", "random weights")];

/// The section; empty where the run was not fine-tuned.
pub(super) fn section(run: &Path) -> Result<String> {
    let path = run.join("finetune.json");
    let Some(text) = optional(&path)? else { return Ok(String::new()) };
    let result: Value = serde_json::from_str(&text).with_context(|| format!("{} is not valid JSON", path.display()))?;
    let mut metrics = Vec::new();
    for (kind, name) in STARTS {
        if let Some(text) = optional(&run.join("finetune").join(kind).join("metrics.jsonl"))? {
            metrics.push((name, Metrics::parse(&text)));
        }
    }
    let head = format!("<div class=\"beside\">{}{}</div>", table(&result), protocol(&result["protocol"]));
    let body = head + &charts(&metrics);
    Ok(super::html::section("finetune", "Fine-tuning on the labels", &body))
}

fn table(result: &Value) -> String {
    let cell = |row: &Value, key: &str| row[key].as_f64().map_or_else(|| "–".into(), percent);
    let line = |row: &Value| {
        let kind = row["features"].as_str().unwrap_or_default();
        let name = STARTS.iter().find(|(start, _)| *start == kind).map_or(kind, |(_, name)| name);
        let epoch = row["best_epoch"].as_u64().unwrap_or_default();
        let (accuracy, best) = (cell(row, "accuracy"), cell(row, "best"));
        format!("<tr><th>{}</th><td>{accuracy}</td><td>{best}</td><td>{epoch}</td></tr>", escape(name))
    };
    let lines: String = result["rows"].as_array().into_iter().flatten().map(line).collect();
    format!(
        "<div class=\"scroll\"><table><thead><tr><th>start</th><th>accuracy</th><th>best</th><th>its epoch</th></tr></thead>\
         <tbody>{lines}</tbody></table></div>"
    )
}

fn charts(metrics: &[(&str, Metrics)]) -> String {
    let chart = |title: &str, eval: bool, key: &str, scale: Scale| {
        let series: Vec<Series> =
            metrics.iter().map(|(name, m)| m.series(eval, key, name)).filter(|s| !s.points.is_empty()).collect();
        let chart = Chart { title, series, scale };
        (!chart.series.is_empty() && chart.constant().is_none()).then(|| chart.html())
    };
    let accuracy = chart("Accuracy on test images (%)", true, "accuracy", Scale::Percent);
    let charts: Vec<String> =
        accuracy.into_iter().chain(chart("Cross-entropy", false, "loss", Scale::Linear)).collect();
    grid(&charts)
}

fn protocol(protocol: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let lines: String = protocol
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("<dt>{}</dt><dd>{}</dd>", escape(&key.replace('_', " ")), escape(&text(value))))
        .collect();
    format!("<dl class=\"note\">{lines}</dl>")
}
