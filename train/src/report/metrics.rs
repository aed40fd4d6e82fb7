//! The curves in `metrics.jsonl`, and their charts.

use std::collections::BTreeMap;

use serde_json::Value;

use super::chart::{Chart, Scale, Series};
use super::html::escape;
use crate::losses::Chart as TermChart;
use crate::method::TERMS;

/// The lines of a metrics.jsonl, by kind.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Lines of kind `step`, by step.  A resumed run logs some steps again: the later line counts.
    steps: BTreeMap<u64, Value>,
    /// Lines of kind `eval`, by step.
    evals: BTreeMap<u64, Value>,
    /// Lines that aren't JSON with a kind and a step, such as one cut off by a power failure.
    pub(super) unreadable: usize,
}

/// One chart of the page.
struct Plan {
    title: &'static str,
    /// Whether its numbers stand in lines of kind `eval`, not `step`.
    eval: bool,
    /// Key and name of each curve.
    curves: Vec<(&'static str, &'static str)>,
    scale: Scale,
}

impl Plan {
    fn new(title: &'static str, eval: bool, curves: &[(&'static str, &'static str)], scale: Scale) -> Self {
        Plan { title, eval, curves: curves.to_vec(), scale }
    }

    fn of(chart: &TermChart) -> Self {
        let curves = chart.numbers.iter().map(|number| (number.key, number.curve)).collect();
        Plan { title: chart.title, eval: false, curves, scale: Scale::Linear }
    }
}

/// All charts: the loss, the loss of each term, the online kNN, the other numbers of each term, and the rest.
fn plans() -> Vec<Plan> {
    let losses = TERMS.iter().filter_map(|term| term.charts.first());
    let companions = TERMS.iter().flat_map(|term| term.charts.iter().skip(1));
    let knn =
        Plan::new("Online kNN: training images classified by others (%)", true, &[("knn", "kNN")], Scale::Percent);
    let parts = [
        ("grad_norm", "all"),
        ("grad_norm_encoder", "encoder"),
        ("grad_norm_decoder", "decoders"),
        ("grad_norm_projector", "projector"),
    ];
    let age = [("bank_age", "mean"), ("bank_age_oldest", "oldest")];
    let rest = [
        Plan::new("Age of the bank's keys (steps)", false, &age, Scale::FromZero),
        Plan::new("Length of the bank's keys", false, &[("bank_norm", "mean")], Scale::FromZero),
        Plan::new("Effective rank of the features", true, &[("rank", "RankMe")], Scale::Linear),
        Plan::new("Feature spread (1 isotropic, 0 collapsed)", true, &[("feature_std", "std · √D")], Scale::Linear),
        Plan::new("Gradient norm", false, &parts, Scale::Log),
        Plan::new("Learning rate", false, &[("lr", "lr")], Scale::FromZero),
        Plan::new("Images per second", false, &[("images_per_second", "images/s")], Scale::FromZero),
        Plan::new("Time spent waiting for data (%)", false, &[("waiting", "waiting")], Scale::PercentFromZero),
    ];
    let mut plans = vec![Plan::new("Loss", false, &[("loss", "loss")], Scale::Linear)];
    plans.extend(losses.map(Plan::of));
    plans.push(knn);
    plans.extend(companions.map(Plan::of));
    plans.extend(rest);
    plans
}

impl Metrics {
    pub(super) fn parse(text: &str) -> Self {
        let mut metrics = Metrics::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let value: Value = serde_json::from_str(line).unwrap_or_default();
            let kind = value["kind"].as_str().map(str::to_string);
            match (kind.as_deref(), value["step"].as_u64()) {
                (Some("step"), Some(step)) => drop(metrics.steps.insert(step, value)),
                (Some("eval"), Some(step)) => drop(metrics.evals.insert(step, value)),
                // Lines of kinds that this version does not know are skipped.
                (Some(_), _) => {}
                (None, _) => metrics.unreadable += 1,
            }
        }
        metrics
    }

    /// The last value of a key among lines of kind `step`.
    pub(super) fn last(&self, key: &str) -> Option<f64> {
        self.steps.values().rev().find_map(|line| line[key].as_f64())
    }

    /// The last value of a key among lines of kind `eval`.
    pub(super) fn last_check(&self, key: &str) -> Option<f64> {
        self.evals.values().rev().find_map(|line| line[key].as_f64())
    }

    /// The last step that was logged.
    pub(super) fn last_step(&self) -> Option<u64> {
        self.steps.keys().chain(self.evals.keys()).max().copied()
    }

    pub(super) fn series(&self, eval: bool, key: &str, name: &str) -> Series {
        let lines = if eval { &self.evals } else { &self.steps };
        let points = lines.iter().filter_map(|(step, line)| Some((*step as f64, line[key].as_f64()?)));
        Series { name: name.into(), points: points.collect(), marked: eval }
    }

    /// A chart for everything that changes, and one line of text for what is constant.
    pub(super) fn charts(&self) -> String {
        let (mut charts, mut constants) = (Vec::new(), Vec::new());
        for Plan { title, eval, curves, scale } in plans() {
            let mut series: Vec<Series> = curves.iter().map(|(key, name)| self.series(eval, key, name)).collect();
            series.retain(|s| !s.points.is_empty());
            if series.is_empty() {
                continue;
            }
            let chart = Chart { title, series, scale };
            match chart.constant() {
                Some(values) => constants.push(format!("{} {values}", escape(title))),
                None => charts.push(chart.html()),
            }
        }
        let constants = match constants.is_empty() {
            true => String::new(),
            false => format!(
                "<p class=\"note\">Without a curve, because one value is all there is: {}.</p>",
                constants.join("; ")
            ),
        };
        grid(&charts) + &constants
    }
}

/// Charts in rows of three where the page is wide enough; the first ones are wider where that fills the last row.
pub(super) fn grid(charts: &[String]) -> String {
    let wide = match charts.len() % 3 {
        0 => 0,
        1 => 4,
        _ => 2,
    };
    let class = match (charts.len(), charts.len() % 2) {
        (0, _) => return String::new(),
        (1, _) => "charts one",
        (_, 1) => "charts odd",
        _ => "charts",
    };
    let charts: Vec<String> = charts
        .iter()
        .enumerate()
        .map(
            |(i, chart)| {
                if i < wide { chart.replacen("<figure>", "<figure class=\"wide\">", 1) } else { chart.clone() }
            },
        )
        .collect();
    format!("<div class=\"{class}\">\n{}\n</div>", charts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_gets_a_line_and_no_chart() {
        let line = |i: u32| {
            let (loss, rate) = (5.0 - f64::from(i) / 10.0, 2.5e-4);
            format!(r#"{{"kind":"step","step":{i},"loss":{loss},"lr":{rate},"bank_norm":1.0000{}}}"#, i % 3)
        };
        let text: Vec<String> = (1..=20).map(line).collect();
        let mut metrics = Metrics::parse(&text.join("\n"));
        let page = metrics.charts();
        assert_eq!(page.matches("<figure").count(), 1, "{page}");
        assert!(page.contains("Learning rate 2.5e-4") && page.contains("Length of the bank&#39;s keys 1;"), "{page}");
        // A single evaluation is no curve either.
        metrics.evals.insert(20, serde_json::json!({"knn": 0.5, "rank": 12.5}));
        let page = metrics.charts();
        assert!(
            page.matches("<figure").count() == 1 && page.contains("others (%) 50") && page.contains("12.5"),
            "{page}"
        );
        assert_eq!(Metrics::default().charts(), "");
    }

    #[test]
    fn rows_of_charts_have_no_gap() {
        for count in 1..=13usize {
            let page = grid(&vec!["<figure>x</figure>".to_string(); count]);
            let wide = page.matches("class=\"wide\"").count();
            // In sixths of a row: a wide one takes three, the others two.
            assert!(count == 1 || (3 * wide + 2 * (count - wide)).is_multiple_of(6), "{count}: {wide}");
            assert_eq!(page.contains("odd"), count > 1 && count % 2 == 1);
        }
    }
}
