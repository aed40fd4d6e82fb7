//! The bundle's README.md: what the model is, its evaluation, its use, and its limits.

use std::fmt::Write;

use macrl_bundle::bundle::{Comparison, Parity};
use macrl_bundle::config::Pooling;
use macrl_bundle::evaluation::{Evaluation, Row};
use macrl_bundle::quantized::{Pair, Quantized};
use serde_json::Value;

use crate::run::TrainedRun;
use crate::usage::{Example, usage};

/// Name of the pooling in the configuration.
pub fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Cls => "cls",
        Pooling::Mean => "mean",
    }
}

/// The model card as Markdown, with the front matter that model hubs read.  The user's notes follow the limits.
pub fn render(source: &TrainedRun, proof: &Parity, notes: Option<&str>) -> String {
    let sections = [
        head(source),
        files(source.probe.is_some(), source.evaluation.is_some(), proof),
        numbers(source.evaluation.as_ref(), source.probe.is_some(), source.finetuned.as_ref()),
        parity(proof),
        usage(&Example::of(source)),
        limits(source),
        notes.map(|text| format!("{}\n", text.trim())).unwrap_or_default(),
        provenance(source),
    ];
    sections.iter().filter(|text| !text.is_empty()).map(String::as_str).collect::<Vec<_>>().join("\n")
}

fn head(source: &TrainedRun) -> String {
    let e = &source.config.encoder;
    format!(
        "---\nlibrary_name: macrl\npipeline_tag: image-feature-extraction\ntags: [self-supervised, vit, onnx, timm, transformers.js]\n---\n\
         # {}\n\n\
         A Vision Transformer that turns an image into {} numbers. It was pretrained without labels by masked \
         contrastive representation learning (MACRL, arXiv 2211.06012): images of {s} x {s} pixels, patches of {p} x {p}, \
         {} blocks of width {}, {} heads. An image's feature is {}.\n",
        source.name,
        e.width,
        e.depth,
        e.width,
        e.heads,
        pooled(source),
        s = e.image_size,
        p = e.patch_size,
    )
}

fn pooled(source: &TrainedRun) -> &'static str {
    match source.config.evaluate.pooling {
        Pooling::Cls => "its class token after the final norm",
        Pooling::Mean => "the mean of its patch tokens after the final norm (the class token is left out)",
    }
}

/// The section about the bundle's files.
pub fn files(probe: bool, evaluation: bool, proof: &Parity) -> String {
    let mut text = String::from(
        "## Files\n\n\
         | file | content |\n| --- | --- |\n\
         | `config.json` | geometry, class names, the run's configuration; entries for timm and transformers.js |\n\
         | `config.0.json` | what transformers reads instead: timm's network in its `TimmWrapper` |\n\
         | `preprocessor_config.json` | the one transform of evaluation and serving |\n\
         | `model.safetensors` | weights under timm's names |\n\
         | `onnx/model.onnx` | `pixel_values` (batch, 3, H, W) -> `last_hidden_state`, `pooler_output`",
    );
    text += if probe { ", `logits`" } else { "" };
    text += "; 32-bit |\n\
             | `onnx/model_fp16.onnx` | the same, half precision inside, 32-bit inputs and outputs; for GPUs |\n";
    if proof.int8.is_some() {
        text += INT8_FILE;
    }
    text += "| `parity.json` | the proof that the graphs compute what was trained |\n";
    if probe {
        text += "| `probe.safetensors` | linear classifier, on standardised features if it is a probe; the same is `head` in `model.safetensors` and \
                 `logits` in the graphs, for features as they are |\n";
    }
    if evaluation {
        text += "| `evaluation.json` | protocol and numbers |\n";
    }
    if proof.weights_fp16.is_some() {
        text += "\nWeights are stored as halves. `model.onnx` widens them and computes in 32 bits; `model_fp16.onnx` takes its \
                 weights from `model.onnx`: keep the two together.\n";
    }
    text
}

/// A card with one section (from its heading to the next) replaced; a card without that heading stays as it is.
pub fn with_section(card: &str, section: &str) -> String {
    let heading = section.lines().next().unwrap_or_default();
    let Some(start) = card.find(&format!("\n{heading}\n")).map(|at| at + 1) else { return card.to_string() };
    let end = card[start..].find("\n## ").map_or(card.len(), |at| start + at);
    format!("{}{section}{}", &card[..start], &card[end..])
}

const INT8_FILE: &str = "| `onnx/model_quantized.onnx` | the same, matrix products in 8 bits; for processors, and transformers.js (`dtype: \"q8\"`) |\n";

/// A card that another export wrote, with the 8-bit graph in its tables.
pub fn with_int8(card: &str, proof: &Parity) -> String {
    let mut text = String::with_capacity(card.len() + 1000);
    let int8 = proof.int8.as_ref();
    let mut file = int8.map(|_| INT8_FILE.to_string());
    let mut numbers = int8.map(|int8| comparison("ONNX Runtime, `model_quantized.onnx`", &int8.features));
    let mut cost = int8.map(|int8| int8_cost(int8) + "\n");
    let of_int8 = ["| `onnx/model_quantized.onnx`", "| ONNX Runtime, `model_quantized.onnx`", "8 bits: "];
    for line in card.lines().filter(|line| !of_int8.iter().any(|start| line.starts_with(start))) {
        if line.starts_with("## Use") {
            text += &cost.take().unwrap_or_default();
        }
        text += line;
        text.push('\n');
        let after = |start: &str, addition: &mut Option<String>| match line.starts_with(start) {
            true => addition.take().unwrap_or_default(),
            false => String::new(),
        };
        text += &after("| `onnx/model_fp16.onnx`", &mut file);
        text += &after("| ONNX Runtime, `model_fp16.onnx`", &mut numbers);
    }
    text
}

/// Accuracies in both, in a sentence; empty where they were not measured.
fn int8_cost(int8: &Quantized) -> String {
    let Some(a) = &int8.accuracy else { return String::new() };
    let pair = |name: &str, p: &Pair| format!("{name} {:.1} % instead of {:.1} %", 100.0 * p.int8, 100.0 * p.f32);
    let linear = a.linear.as_ref().map(|p| format!(", {}", pair("linear probe", p))).unwrap_or_default();
    format!("8 bits: {}{linear} on {} images ({} to look up).\n", pair("kNN", &a.knn), a.query_images, a.lookup_images)
}

fn comparison(name: &str, c: &Comparison) -> String {
    let same = c.argmax_agreement.map_or("no probe".to_string(), |a| format!("{:.1} %", 100.0 * a));
    format!("| {name} | {:.1e} | {:.7} | {same} |\n", c.max_abs_difference, c.min_cosine)
}

/// Heading of the section with the numbers.
const NUMBERS: &str = "## Data, protocol and numbers\n\n";

/// The section about what was measured; `finetuned` are the results of a fine-tuned network.
pub fn numbers(evaluation: Option<&Evaluation>, probe: bool, finetuned: Option<&Value>) -> String {
    if let Some(result) = finetuned {
        return NUMBERS.to_string() + &fine_tuning(result);
    }
    let Some(evaluation) = evaluation else {
        return NUMBERS.to_string()
            + if probe {
                "The classifier came without numbers.\n"
            } else {
                "The run was not evaluated before this export: there are no numbers and no class names here. \
                 `macrl-train evaluate --run RUN` measures them; export again afterwards.\n"
            };
    };
    if evaluation.rows.is_empty() {
        return NUMBERS.to_string()
            + "The run's images have no labels: there is no accuracy to state, and there are no class names here. \
               `evaluation.json` holds what can be said without labels, the spread and the effective rank of the features \
               beside those of an untrained encoder.\n";
    }
    let mut text = protocol(evaluation);
    text += "\n| features | kNN % | 1-NN % | linear probe % |\n| --- | --- | --- | --- |\n";
    for row in &evaluation.rows {
        let [knn, knn1, linear] = [row.knn, row.knn1, row.linear].map(|v| 100.0 * v);
        let _ = writeln!(text, "| {} | {knn:.1} | {knn1:.1} | {linear:.1} |", row_name(row));
    }
    if !probe {
        text += "\nThe run holds no linear probe: this bundle gives features, not classes.\n";
    }
    text
}

/// What `macrl-train finetune` measured; the classifier is the network's own.
fn fine_tuning(result: &Value) -> String {
    let mut text =
        String::from("Fine-tuned on labels, the whole network; the classifier is its own head, not a probe.\n");
    let p = &result["protocol"];
    if let (Some(split), Some(train), Some(test)) =
        (p["split"].as_str(), p["train_images"].as_u64(), p["test_images"].as_u64())
    {
        let _ = writeln!(text, "Data: {split}; {train} images trained on, {test} images judged.");
    }
    let Some(rows) = result["rows"].as_array().filter(|rows| !rows.is_empty()) else { return text };
    text += "\n| start | accuracy after the last epoch % | after the best epoch, which these same images chose % |\n\
             | --- | --- | --- |\n";
    for row in rows {
        let start = if row["features"] == "macrl" { "**pretrained: this model**" } else { "random weights" };
        let [last, best] = ["accuracy", "best"].map(|key| 100.0 * row[key].as_f64().unwrap_or(f64::NAN));
        let _ = writeln!(text, "| {start} | {last:.1} | {best:.1} |");
    }
    text
}

fn row_name(row: &Row) -> &str {
    match row.features.as_str() {
        "macrl" => "**this model**",
        "random" => "the same network, untrained",
        "pixels" => "raw pixels",
        other => other,
    }
}

fn protocol(evaluation: &Evaluation) -> String {
    let p = &evaluation.protocol;
    let mut text = String::from(NUMBERS);
    if !p.split.is_empty() {
        let _ = writeln!(text, "Data: {}.", p.split.trim_end_matches('.'));
    }
    if p.train_images > 0 && p.test_images > 0 {
        let _ = writeln!(text, "{} images to look up and fit on, {} images classified.", p.train_images, p.test_images);
    }
    let _ = writeln!(
        text,
        "kNN: cosine, {} neighbours weighted by exp(cosine / {}); pooling `{}`; frozen features throughout.",
        p.k,
        p.temperature,
        pooling_name(p.pooling)
    );
    if !p.linear.is_empty() {
        let _ = writeln!(text, "Linear probe: {}.", p.linear.trim_end_matches('.'));
    }
    text
}

fn parity(proof: &Parity) -> String {
    let mut text = format!(
        "## Parity\n\nCandle (training) against the exported graphs, {}, {} images:\n\n\
         | implementation | largest difference | smallest cosine | same class |\n| --- | --- | --- | --- |\n",
        proof.source, proof.images
    );
    let int8 = proof.int8.as_ref();
    let rows = [
        ("ONNX Runtime, `model.onnx`", Some(&proof.onnxruntime)),
        ("candle-onnx, `model.onnx`", proof.candle_onnx.as_ref()),
        ("ONNX Runtime, `model_fp16.onnx`", proof.fp16.as_ref()),
        ("ONNX Runtime, `model_quantized.onnx`", int8.map(|int8| &int8.features)),
        ("Candle, `model.safetensors` (halves)", proof.weights_fp16.as_ref()),
    ];
    text.extend(rows.iter().filter_map(|(name, c)| Some(comparison(name, (*c)?))));
    let cost = int8.map(int8_cost).unwrap_or_default();
    if cost.is_empty() { text } else { text + "\n" + &cost }
}

fn limits(source: &TrainedRun) -> String {
    let size = source.config.encoder.image_size;
    let mut text = format!(
        "## Limits\n\n\
         - Everything is seen at {size} x {size} pixels; detail below that is gone before the network looks.\n\
         - The features know what the pretraining images showed. Images of another kind get features too, with no warning.\n"
    );
    if source.probe.is_some() {
        text += "- The probe names one of its own classes for every image, whatever it shows; its scores are not calibrated.\n";
    }
    if source.evaluation.as_ref().is_some_and(|e| !e.rows.is_empty()) {
        text += "- A row above that beats this model's is a reason to use that instead.\n";
    }
    text
}

fn provenance(source: &TrainedRun) -> String {
    format!(
        "## Provenance\n\nRun `{}`, checkpoint `{}` after {} optimiser steps, written by macrl-export {}. The resolved \
         configuration stands in `config.json` under `macrl.config` and in the ONNX files' metadata.\n",
        source.name,
        source.checkpoint,
        source.steps,
        env!("CARGO_PKG_VERSION")
    )
}
