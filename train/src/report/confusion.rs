//! The confusions of the linear probe.

use macrl_bundle::evaluation::Row;

use super::html::{class_name, escape, percent};

/// With more classes than this, a confusion matrix is too large to read, and only the lists are shown.
const MATRIX: usize = 20;
/// With more columns than this, counts do not fit a narrow screen.
const NUMBERED: usize = 10;
/// Lines of a list beside a matrix, and of one without a matrix.
const BESIDE: usize = 10;
const ALONE: usize = 20;

/// The matrix with the most frequent confusions beside it; without a matrix, these and the classes with the lowest accuracy.
pub(super) fn confusions(row: &Row, labels: &[String]) -> String {
    let classes = row.confusion.len();
    if classes == 0 {
        return String::new();
    }
    let (matrix, lists) = match classes <= MATRIX {
        true => (matrix(row, labels), commonest(row, labels, BESIDE)),
        false => (String::new(), commonest(row, labels, ALONE) + &hardest(row, labels, ALONE)),
    };
    format!("<div class=\"confusions\">{matrix}<div class=\"lists\">{lists}</div></div>")
}

/// The matrix; rows: the true class, columns: the predicted class.
fn matrix(row: &Row, labels: &[String]) -> String {
    let classes = row.confusion.len();
    let heads: String = (0..classes)
        .map(|i| format!("<th scope=\"col\"><span>{}</span></th>", escape(&class_name(labels, i))))
        .collect();
    let kind = if classes > NUMBERED { "matrix many" } else { "matrix" };
    let mut out = format!("<div><table class=\"{kind}\"><thead><tr><td></td>{heads}<th>%</th></tr></thead><tbody>");
    for (i, counts) in row.confusion.iter().enumerate() {
        let all = counts.iter().sum::<u32>().max(1);
        let truth = escape(&class_name(labels, i));
        out.push_str(&format!("<tr><th scope=\"row\" title=\"{truth}\">{truth}</th>"));
        for (j, count) in counts.iter().enumerate() {
            let class = if i == j { "right" } else { "wrong" };
            // The square root keeps rare confusions visible.
            let strength = (f64::from(*count) / f64::from(all)).sqrt();
            let text = if *count == 0 { String::new() } else { count.to_string() };
            let answer = escape(&class_name(labels, j));
            out.push_str(&format!(
                "<td class=\"{class}\" style=\"--v:{strength:.2}\" title=\"{truth}, answered {answer}: {count}\">{text}</td>"
            ));
        }
        out.push_str(&format!("<td>{}</td></tr>", percent(row.per_class.get(i).copied().unwrap_or(0.0))));
    }
    out + "</tbody></table><p class=\"note\">Rows: the true class. Columns: the probe's answer.</p></div>"
}

fn commonest(row: &Row, labels: &[String], lines: usize) -> String {
    let mut pairs: Vec<(u32, usize, usize)> = row
        .confusion
        .iter()
        .enumerate()
        .flat_map(|(i, counts)| counts.iter().enumerate().filter(move |(j, _)| i != *j).map(move |(j, n)| (*n, i, j)))
        .filter(|(count, ..)| *count > 0)
        .collect();
    pairs.sort_by(|a, b| b.cmp(a));
    if pairs.is_empty() {
        return String::new();
    }
    let lines: String = pairs
        .iter()
        .take(lines)
        .map(|(count, i, j)| {
            let (truth, answer) = (escape(&class_name(labels, *i)), escape(&class_name(labels, *j)));
            format!("<tr><td>{count}</td><th>{truth}</th><th>{answer}</th></tr>")
        })
        .collect();
    format!(
        "<div><table class=\"list\"><caption>Most frequent confusions</caption><thead><tr><th>images</th><th>true class</th>\
         <th>answer</th></tr></thead><tbody>{lines}</tbody></table></div>"
    )
}

fn hardest(row: &Row, labels: &[String], lines: usize) -> String {
    let images = |i: usize| row.confusion[i].iter().sum::<u32>();
    let mut classes: Vec<(f64, usize)> = (0..row.confusion.len())
        .filter(|i| images(*i) > 0)
        .map(|i| (row.per_class.get(i).copied().unwrap_or(0.0), i))
        .collect();
    classes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let lines: String = classes
        .iter()
        .take(lines)
        .map(|(share, i)| {
            let name = escape(&class_name(labels, *i));
            format!("<tr><td>{}</td><th>{name}</th><td>{}</td></tr>", percent(*share), images(*i))
        })
        .collect();
    format!(
        "<div><table class=\"list\"><caption>Hardest classes</caption><thead><tr><th>%</th><th>class</th><th>images</th></tr>\
         </thead><tbody>{lines}</tbody></table></div>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(classes: usize) -> Row {
        // Each class is right twice and taken for the next one as often as its number says.
        let line = |i: usize| {
            let mut counts = vec![0; classes];
            counts[i] = 2;
            counts[(i + 1) % classes] += i as u32;
            counts
        };
        let per_class: Vec<f64> = (0..classes).map(|i| 2.0 / (2 + i) as f64).collect();
        let numbers = serde_json::json!({"features": "macrl", "knn": 0.5, "knn1": 0.5, "linear": 0.5,
            "per_class": per_class, "confusion": (0..classes).map(line).collect::<Vec<_>>()});
        serde_json::from_value(numbers).unwrap()
    }

    #[test]
    fn a_matrix_only_where_it_can_be_read() {
        let names = ["<a>".to_string()];
        let text = confusions(&row(3), &names);
        assert!(text.contains("class=\"matrix\"") && text.contains("&lt;a&gt;") && !text.contains("<a>"));
        assert!(confusions(&row(20), &[]).contains("class=\"matrix many\""));
        let text = confusions(&row(21), &[]);
        assert!(!text.contains("matrix") && text.contains("Most frequent"));
        // The commonest confusion and the hardest class come first.
        let first = |caption: &str| text.split(caption).nth(1).unwrap().split("<tbody>").nth(1).unwrap().to_string();
        assert!(first("Most frequent").starts_with("<tr><td>20</td><th>20</th><th>0</th></tr>"));
        assert!(first("Hardest").starts_with("<tr><td>9.1</td><th>20</th><td>22</td></tr>"));
        assert_eq!(confusions(&row(0), &[]), "");
    }
}
