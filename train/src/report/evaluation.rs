//! The evaluation in the report: headline, table and confusions.

use macrl_bundle::evaluation::{Evaluation, Row};

use super::confusion::confusions;
use super::html::{escape, percent, section, short};
use super::metrics::Metrics;
use super::previous::Previous;
use crate::evaluate::unlabelled;

/// Name of a column and the number it shows.
type Column = (&'static str, fn(&Row) -> Option<f64>);

/// Title and the numbers that matter most.
pub(super) fn headline(
    name: &str,
    evaluation: Option<&Evaluation>,
    previous: Option<&Previous>,
    metrics: &Metrics,
) -> String {
    let mut tiles = String::new();
    let mut tile = |label: &str, value: String, note: String| {
        tiles.push_str(&format!("<div><span>{label}</span><b>{value}</b><small>{note}</small></div>"));
    };
    if let Some((macrl, evaluation)) = evaluation.and_then(|e| Some((e.row("macrl")?, e))) {
        let beside = |value: fn(&Row) -> f64| {
            let random = evaluation.row("random").map(|r| format!("untrained encoder {}", percent(value(r))));
            let pixels = evaluation.row("pixels").map(|r| format!("pixels {}", percent(value(r))));
            let before = previous.map(|p| format!("run {} {}", escape(&p.name), percent(value(&p.row))));
            before.into_iter().chain(random).chain(pixels).collect::<Vec<_>>().join(" · ")
        };
        tile("kNN on test images", format!("{} %", percent(macrl.knn)), beside(|r| r.knn));
        tile("Linear probe", format!("{} %", percent(macrl.linear)), beside(|r| r.linear));
    }
    let spread = evaluation.map(unlabelled::rows).unwrap_or_default();
    if let Some((_, dim, std, rank)) = spread.iter().find(|row| row.0 == "macrl") {
        let random = spread.iter().find(|row| row.0 == "random");
        let beside = |value: fn(&unlabelled::Row) -> f64| {
            random.map_or_else(String::new, |row| format!("untrained encoder {}", short(value(row))))
        };
        tile("Spread of the features", short(*std), beside(|row| row.2));
        tile("Effective rank", format!("{} of {dim}", short(*rank)), beside(|row| row.3));
    }
    let finetuned = |start: &str| {
        let rows = evaluation?.extra.get(crate::finetune::result::KEY)?["rows"].as_array()?;
        rows.iter().find(|row| row["features"] == start)?["accuracy"].as_f64()
    };
    if let Some(accuracy) = finetuned("macrl") {
        let random = finetuned("random").map_or_else(String::new, |r| format!("from random weights {}", percent(r)));
        tile("Fine-tuned", format!("{} %", percent(accuracy)), random);
    }
    if let Some(step) = metrics.last_step() {
        let epochs = metrics.last("epoch").map_or_else(String::new, |e| format!("epoch {}", short(e)));
        tile("Steps", step.to_string(), epochs);
    }
    if let Some(loss) = metrics.last("loss") {
        tile("Loss", short(loss), "last step".into());
    }
    format!("<header>\n<h1>{}</h1>\n<div class=\"tiles\">{tiles}</div>\n</header>", escape(name))
}

/// The table, the confusions and the protocol; without labels, spread and rank instead.  `run` is the run's folder.
pub(super) fn sections(
    evaluation: Option<&Evaluation>,
    previous: Option<&Previous>,
    run: &str,
    metrics: &Metrics,
    unlabelled: bool,
) -> String {
    let Some(evaluation) = evaluation else {
        let command = format!("<code>macrl-train evaluate --run {}</code>", escape(run));
        let hint = match unlabelled {
            true => format!(
                "<p>No image has a label, so there is no accuracy to measure. {command} measures the spread of the \
                 features, and that of an untrained encoder for comparison.</p>"
            ),
            false => format!("<p>Not evaluated yet: {command} measures kNN and linear probe.</p>"),
        };
        return section("evaluation", "Evaluation", &hint);
    };
    let spread = unlabelled::rows(evaluation);
    if !spread.is_empty() {
        return section("evaluation", "Evaluation without labels", &spread_table(&spread, evaluation));
    }
    let body = format!(
        "<div class=\"beside\"><div>{}{}</div>{}</div>",
        table(evaluation, previous),
        two_numbers(evaluation, metrics),
        protocol(evaluation)
    );
    let confusions = evaluation.row("macrl").map_or_else(String::new, |row| confusions(row, &evaluation.labels));
    section("evaluation", "Evaluation", &body)
        + &section("confusion", "Which classes the linear probe confuses", &confusions)
}

/// Explains why the online kNN of the curve differs from the table's kNN.
fn two_numbers(evaluation: &Evaluation, metrics: &Metrics) -> String {
    let Some(online) = metrics.last_check("knn") else { return String::new() };
    let accuracy = evaluation.row("macrl").map_or_else(String::new, |row| format!(" ({} %)", percent(row.knn)));
    format!(
        "<p class=\"note\">There are two kNN accuracies. The one here{accuracy} is that of the test images, with all training images as the look-up \
         set. The online kNN in the curve below (last {} %) uses only some training images, as queries and as look-up set; the \
         best checkpoint was chosen by it, without any test image. Its look-up set is smaller, so it is usually lower.</p>",
        percent(online)
    )
}

/// Spread and rank of the features, for images without labels.
fn spread_table(rows: &[unlabelled::Row], evaluation: &Evaluation) -> String {
    let lines: String = rows
        .iter()
        .map(|(name, dim, std, rank)| {
            let name = escape(described(name));
            format!("<tr><th>{name}</th><td>{dim}</td><td>{}</td><td>{}</td></tr>", short(*std), short(*rank))
        })
        .collect();
    format!(
        "<div class=\"beside\"><div class=\"scroll\"><table><thead><tr><th>features</th><th>values</th><th>spread</th>\
         <th>effective rank</th></tr></thead><tbody>{lines}</tbody></table></div>\
         <p class=\"note\">No image has a label, so there is no accuracy to measure. Spread is the mean standard deviation of \
         the normalised features, 1 where they fill the sphere evenly, 0 where all images look alike; effective rank is the \
         number of directions that they use. Both of {} held-out images. The nearest neighbours are shown below. \
         Sub-folders with the names of classes would give labels.</p></div>",
        evaluation.protocol.test_images
    )
}

fn table(evaluation: &Evaluation, previous: Option<&Previous>) -> String {
    let name = |row: &Row| escape(described(&row.features));
    let mut rows: Vec<(String, &Row)> = evaluation.rows.iter().map(|row| (name(row), row)).collect();
    if let Some(previous) = previous {
        rows.insert(1.min(rows.len()), (format!("MACRL, run {}", escape(&previous.name)), &previous.row));
    }
    let columns: [Column; 5] = [
        ("kNN", |r| Some(r.knn)),
        ("1-NN", |r| Some(r.knn1)),
        ("kNN, whitened", |r| r.knn_whitened),
        ("linear", |r| Some(r.linear)),
        ("10-shot", |r| r.few_shot),
    ];
    // A column that nothing was measured for is left out: an older evaluation has fewer.
    let shown = columns.into_iter().filter(|(_, value)| rows.iter().any(|(_, row)| value(row).is_some()));
    let columns: Vec<Column> = shown.collect();
    let best = |value: fn(&Row) -> Option<f64>| rows.iter().filter_map(|(_, row)| value(row)).fold(0.0, f64::max);
    let mut out =
        String::from("<div class=\"scroll\"><table><thead><tr><th>features</th><th class=\"wide-screen\">values</th>");
    columns.iter().for_each(|(name, _)| out.push_str(&format!("<th>{name}</th>")));
    out.push_str("<th class=\"wide-screen\">rank</th></tr></thead><tbody>");
    for (name, row) in &rows {
        out.push_str(&format!("<tr><th>{name}</th><td class=\"wide-screen\">{}</td>", row.dim));
        for (_, value) in &columns {
            let class = if value(row) == Some(best(*value)) { " class=\"best\"" } else { "" };
            out.push_str(&format!("<td{class}>{}</td>", value(row).map_or_else(|| "–".into(), percent)));
        }
        out.push_str(&format!("<td class=\"wide-screen\">{}</td></tr>", row.rank.map_or_else(|| "–".into(), short)));
    }
    out + "</tbody></table></div>"
}

fn described(features: &str) -> &str {
    match features {
        "macrl" => "MACRL",
        "random" => "untrained",
        "pixels" => "raw pixels",
        other => other,
    }
}

fn protocol(evaluation: &Evaluation) -> String {
    let p = &evaluation.protocol;
    let pooling = format!("{:?}", p.pooling).to_lowercase();
    let text = |key: &str| p.extra.get(key).and_then(|v| v.as_str()).unwrap_or_default();
    let lines = [
        ("accuracy", format!("in percent on {} images; {} to look up in and to fit on", p.test_images, p.train_images)),
        ("split", p.split.clone()),
        ("pooling", pooling),
        ("kNN", format!("k = {}, temperature {}; {}", p.k, p.temperature, text("knn")).trim_end_matches("; ").into()),
        ("kNN, whitened", text("knn_whitened").into()),
        ("linear", p.linear.clone()),
        ("10-shot", text("few_shot").into()),
        ("pixels", text("pixels").into()),
    ];
    let lines: String = lines
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("<dt>{key}</dt><dd>{}</dd>", escape(value)))
        .collect();
    format!("<dl class=\"note\">{lines}</dl>")
}
