//! The evaluation as aligned text.

use macrl_bundle::evaluation::{Evaluation, Row};

/// One line per row: accuracies in percent with one decimal, columns aligned.
pub fn table(evaluation: &Evaluation) -> String {
    let k = format!("kNN k={}", evaluation.protocol.k);
    let heads = ["features", "dim", &k, "kNN k=1", "whitened", "linear", "10-shot", "rank"].map(String::from);
    let lines: Vec<[String; 8]> = std::iter::once(heads).chain(evaluation.rows.iter().map(cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<String> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, &width))| if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") })
            .collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn cells(row: &Row) -> [String; 8] {
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    [
        row.features.clone(),
        row.dim.to_string(),
        percent(row.knn),
        percent(row.knn1),
        or_dash(row.knn_whitened.map(percent)),
        percent(row.linear),
        or_dash(row.few_shot.map(percent)),
        or_dash(row.rank.map(|r| format!("{r:.1}"))),
    ]
}
