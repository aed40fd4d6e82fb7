//! What the run reached: the headline, the table, the confusions.

use macrl_models::evaluation::{Evaluation, Row};

use super::html::{class_name, escape, percent, section, short};
use super::metrics::Metrics;

/// Above so many classes a confusion matrix can't be read; the commonest confusions are listed instead.
const MATRIX: usize = 20;

/// Name of a column and the number it shows.
type Column = (&'static str, fn(&Row) -> f64);

/// Title and the numbers that matter most.
pub(super) fn headline(name: &str, evaluation: Option<&Evaluation>, metrics: &Metrics) -> String {
    let mut tiles = String::new();
    let mut tile = |label: &str, value: String, note: String| {
        tiles.push_str(&format!("<div><span>{label}</span><b>{value}</b><small>{note}</small></div>"));
    };
    if let Some((macrl, evaluation)) = evaluation.and_then(|e| Some((e.row("macrl")?, e))) {
        let beside = |value: fn(&Row) -> f64| {
            let random = evaluation.row("random").map(|r| format!("untrained encoder {}", percent(value(r))));
            let pixels = evaluation.row("pixels").map(|r| format!("pixels {}", percent(value(r))));
            random.into_iter().chain(pixels).collect::<Vec<_>>().join(" · ")
        };
        tile("kNN", format!("{} %", percent(macrl.knn)), beside(|r| r.knn));
        tile("Linear probe", format!("{} %", percent(macrl.linear)), beside(|r| r.linear));
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

/// The table, the confusions and the protocol.
pub(super) fn sections(evaluation: Option<&Evaluation>) -> String {
    let Some(evaluation) = evaluation else {
        let hint = "<p>Not evaluated yet: <code>macrl-train evaluate</code> writes evaluation.json.</p>";
        return section("evaluation", "Evaluation", hint);
    };
    let table = section("evaluation", "Evaluation", &format!("{}{}", table(evaluation), protocol(evaluation)));
    let confusions = evaluation.row("macrl").map_or_else(String::new, |row| confusions(row, &evaluation.labels));
    table + &section("confusion", "Which classes the linear probe confuses", &confusions)
}

fn table(evaluation: &Evaluation) -> String {
    let best = |value: fn(&Row) -> f64| evaluation.rows.iter().map(value).fold(0.0, f64::max);
    let columns: [Column; 4] = [
        ("kNN", |r| r.knn),
        ("1-NN", |r| r.knn1),
        ("linear", |r| r.linear),
        ("10-shot", |r| r.few_shot.unwrap_or(0.0)),
    ];
    let mut out =
        String::from("<div class=\"scroll\"><table><thead><tr><th>features</th><th class=\"wide\">values</th>");
    columns.iter().for_each(|(name, _)| out.push_str(&format!("<th>{name}</th>")));
    out.push_str("<th class=\"wide\">rank</th></tr></thead><tbody>");
    for row in &evaluation.rows {
        out.push_str(&format!("<tr><th>{}</th><td class=\"wide\">{}</td>", escape(described(&row.features)), row.dim));
        for (_, value) in columns {
            let class = if value(row) == best(value) { " class=\"best\"" } else { "" };
            out.push_str(&format!("<td{class}>{}</td>", percent(value(row))));
        }
        out.push_str(&format!("<td class=\"wide\">{}</td></tr>", row.rank.map_or_else(|| "–".into(), short)));
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

fn confusions(row: &Row, labels: &[String]) -> String {
    match row.confusion.len() {
        0 => String::new(),
        classes if classes <= MATRIX => matrix(row, labels),
        _ => commonest(row, labels),
    }
}

fn matrix(row: &Row, labels: &[String]) -> String {
    let heads: String = (0..row.confusion.len())
        .map(|i| format!("<th scope=\"col\"><span>{}</span></th>", escape(&class_name(labels, i))))
        .collect();
    let mut out = format!(
        "<div class=\"scroll\"><table class=\"matrix\"><thead><tr><td></td>{heads}<th>%</th></tr></thead><tbody>"
    );
    for (i, counts) in row.confusion.iter().enumerate() {
        let all = counts.iter().sum::<u32>().max(1);
        out.push_str(&format!("<tr><th scope=\"row\">{}</th>", escape(&class_name(labels, i))));
        for (j, count) in counts.iter().enumerate() {
            let class = if i == j { "right" } else { "wrong" };
            // The square root keeps rare confusions visible.
            let strength = (f64::from(*count) / f64::from(all)).sqrt();
            let text = if *count == 0 { String::new() } else { count.to_string() };
            out.push_str(&format!("<td class=\"{class}\" style=\"--v:{strength:.2}\">{text}</td>"));
        }
        out.push_str(&format!("<td>{}</td></tr>", percent(row.per_class.get(i).copied().unwrap_or(0.0))));
    }
    out + "</tbody></table></div><p class=\"note\">Rows: the true class. Columns: the probe's answer.</p>"
}

fn commonest(row: &Row, labels: &[String]) -> String {
    let mut pairs: Vec<(u32, usize, usize)> = row
        .confusion
        .iter()
        .enumerate()
        .flat_map(|(i, counts)| counts.iter().enumerate().filter(move |(j, _)| i != *j).map(move |(j, n)| (*n, i, j)))
        .filter(|(count, ..)| *count > 0)
        .collect();
    pairs.sort_by(|a, b| b.cmp(a));
    let lines: String = pairs
        .iter()
        .take(MATRIX)
        .map(|(count, i, j)| {
            let (truth, answer) = (escape(&class_name(labels, *i)), escape(&class_name(labels, *j)));
            format!("<tr><td>{count}</td><th>{truth}</th><th>{answer}</th></tr>")
        })
        .collect();
    format!(
        "<div class=\"scroll\"><table><thead><tr><th>images</th><th>true class</th><th>answer</th></tr></thead>\
         <tbody>{lines}</tbody></table></div>"
    )
}
