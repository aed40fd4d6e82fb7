//! The page from a run's folder, whole and with pieces missing.

use image::{Rgb, RgbImage};

use super::*;
use crate::evaluate::Features;
use crate::evaluate::testing::draws;

fn metrics_text() -> String {
    let step = |i: u32| {
        format!(
            r#"{{"kind":"step","step":{i},"epoch":{},"loss":{},"lr":0.001,"grad_norm":0.5,"images_per_second":900}}"#,
            f64::from(i) / 100.0,
            4.0 - f64::from(i) / 100.0
        )
    };
    let mut lines: Vec<String> = (1..=200).map(step).collect();
    lines.push(r#"{"kind":"eval","step":100,"epoch":1,"knn":0.5,"feature_std":0.8,"rank":20.5}"#.into());
    lines.push(r#"{"kind":"eval","step":200,"epoch":2,"knn":0.6,"feature_std":0.9,"rank":25.5}"#.into());
    lines.push(r#"{"kind":"step","step":200,"epoch":2,"loss":1.25}"#.into());
    lines.push(r#"{"kind":"step","step":20"#.into());
    lines.join("\n")
}

fn content() -> ReportContent {
    let picture = |shade: u8| RgbImage::from_pixel(8, 8, Rgb([shade, 0, 255 - shade]));
    let triple = Reconstruction { input: picture(0), corrupted: picture(100), reconstructed: picture(200) };
    let labels: Vec<u32> = (0..20).map(|i| i % 3).collect();
    ReportContent {
        strong: vec![triple.clone(); 2],
        weak: vec![triple; 2],
        neighbours: vec![Neighbourhood {
            query: picture(0),
            label: Some(0),
            near: vec![Neighbour { image: picture(10), label: Some(1), similarity: 0.9 }],
        }],
        gallery: "200 training images".into(),
        projected: Some(Features { values: draws(80, 1), labels, dim: 4 }),
        labels: vec!["<script>alert(1)</script>".into(), "b".into(), "c".into()],
        provenance: vec![("device".into(), "cpu".into())],
        ..ReportContent::default()
    }
}

#[test]
fn a_whole_run_gives_a_whole_page() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("my & run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("metrics.jsonl"), metrics_text()).unwrap();
    std::fs::write(run.join("config.toml"), "[train]\nlr = 1\n").unwrap();
    let evaluation = r#"{"protocol": {"k": 20, "temperature": 0.07, "pooling": "mean"}, "labels": ["x<y", "b", "c"],
        "rows": [{"features": "macrl", "knn": 0.71, "knn1": 0.69, "linear": 0.74, "per_class": [0.5, 1, 1],
                  "confusion": [[1, 1, 0], [0, 2, 0], [0, 0, 2]]}],
        "finetune": {"rows": [{"features": "macrl", "accuracy": 0.876, "best": 0.88, "best_epoch": 7}]}}"#;
    std::fs::write(run.join("evaluation.json"), evaluation).unwrap();
    let finetune: serde_json::Value = serde_json::from_str(evaluation).unwrap();
    std::fs::write(run.join("finetune.json"), finetune["finetune"].to_string()).unwrap();
    std::fs::create_dir_all(run.join("finetune/macrl")).unwrap();
    let tuning = [(10, 0.554), (20, 0.654)]
        .map(|(step, accuracy)| format!(r#"{{"kind":"eval","step":{step},"accuracy":{accuracy}}}"#));
    std::fs::write(run.join("finetune/macrl/metrics.jsonl"), tuning.join("\n")).unwrap();
    let page = std::fs::read_to_string(write(&run, &content()).unwrap()).unwrap();
    let sections = "evaluation confusion finetune curves reconstructions neighbours projection provenance config";
    for id in sections.split(' ') {
        assert!(page.contains(&format!("<section id=\"{id}\">")), "{id}");
    }
    assert!(page.contains("<b>87.6 %</b>") && page.contains("<td>88.0</td><td>7</td>") && page.contains("65.4"));
    assert!(page.contains("<h1>my &amp; run</h1>") && page.contains("71.0 %") && page.contains("x&lt;y"));
    // The later of two lines for the same step counts; the one that was cut off is counted.
    assert!(page.contains("<b>1.25</b>") && page.contains("1, left out"));
    // The table's kNN and the curve's are told apart.
    assert!(page.contains("The one here (71.0 %) is that of the test images") && page.contains("last 60.0 %"));
    assert!(page.contains("200 training images") && page.contains("outlined in red"));
    // Self-contained, and nothing that a class name smuggles in.
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("NaN"));
    for tag in ["section", "figure", "svg", "table", "div", "dl", "ul"] {
        assert_eq!(opened_tags(&page, tag), page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

fn opened_tags(page: &str, tag: &str) -> usize {
    page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count()
}

#[test]
fn an_empty_run_gives_a_page_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let page = render(folder.path(), &ReportContent::default()).unwrap();
    assert!(page.contains("Not evaluated yet") && !page.contains("id=\"curves\""));
}

#[test]
fn a_run_without_labels_has_its_own_page() {
    let folder = tempfile::tempdir().unwrap();
    let metrics: Vec<String> = metrics_text().lines().map(|line| line.replace("\"knn\":0.5,", "")).collect();
    std::fs::write(folder.path().join("metrics.jsonl"), metrics.join("\n").replace("\"knn\":0.6,", "")).unwrap();
    let mut content = ReportContent { unlabelled: true, labels: Vec::new(), ..content() };
    content.neighbours[0].label = None;
    content.neighbours[0].near[0].label = None;
    let page = render(folder.path(), &content).unwrap();
    assert!(page.contains("No image has a label") && page.contains("measures the spread of the"));
    let about_labels =
        ["coloured by class", "outlined", "Not evaluated yet", "kNN", "linear probe", "<ul>", "Another class"];
    for words in about_labels {
        assert!(!page.contains(words), "{words}");
    }
    let spread = ["macrl", "random"].map(|features| crate::evaluate::unlabelled::Spread {
        features,
        images: 64,
        dim: 192,
        feature_std: 0.75,
        rank: 20.5,
    });
    let settings = crate::evaluate::Settings {
        k: 20,
        temperature: 0.07,
        pooling: macrl_bundle::config::Pooling::Mean,
        seed: 0,
        split: "test".into(),
        labels: Vec::new(),
        averaged: None,
    };
    let evaluation = crate::evaluate::unlabelled::evaluation(&spread, &settings).to_json();
    std::fs::write(folder.path().join("evaluation.json"), evaluation).unwrap();
    let page = render(folder.path(), &content).unwrap();
    assert!(
        page.contains("Evaluation without labels") && page.contains("20.5 of 192") && page.contains("<td>0.75</td>")
    );
    assert!(!page.contains("id=\"confusion\"") && !page.contains("<td>0.0</td>"));
}

#[test]
fn the_run_before_on_the_same_data_stands_beside() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, knn: f64, data: &str, seconds: u64| {
        let run = folder.path().join(name);
        std::fs::create_dir(&run).unwrap();
        std::fs::write(run.join("data.txt"), data).unwrap();
        let evaluation = format!(
            r#"{{"protocol": {{"k": 20, "temperature": 0.07, "pooling": "mean"}}, "labels": ["a", "b"],
            "rows": [{{"features": "macrl", "knn": {knn}, "knn1": 0.5, "linear": 0.5}}]}}"#
        );
        std::fs::write(run.join("evaluation.json"), evaluation).unwrap();
        let file = std::fs::File::options().write(true).open(run.join("evaluation.json")).unwrap();
        file.set_modified(UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
        run
    };
    run("oldest", 0.111, "/images\n", 1);
    run("older", 0.222, "/images", 2);
    run("other", 0.333, "/more images\n", 3);
    let own = run("own", 0.444, "/images\n", 4);
    run("later", 0.555, "/images\n", 5);
    std::fs::create_dir(folder.path().join("no run")).unwrap();
    let page = render(&own, &ReportContent::default()).unwrap();
    assert!(page.contains("run older 22.2") && page.contains("<th>MACRL, run older</th>"), "{page}");
    assert!(!page.contains("11.1") && !page.contains("33.3") && !page.contains("55.5"));
}

#[test]
fn a_broken_evaluation_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("evaluation.json"), "{").unwrap();
    assert!(render(folder.path(), &ReportContent::default()).unwrap_err().to_string().contains("evaluation.json"));
}

#[test]
fn times_are_civil() {
    // datetime.fromtimestamp(t, UTC) for t in (0, 951782400, 1795401600)
    assert_eq!(utc(0), "1970-01-01 00:00 UTC");
    assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
    assert_eq!(utc(1_795_401_660), "2026-11-23 02:41 UTC");
}
