//! The command line: a file that ends in `.onnx`, or the word `bundle` and a folder.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use macrl_bundle::device::Device;
use macrl_nn::device;

use crate::graph::Element;

/// Turns a training run into files that other programs read.
///
/// Each export is checked before it is written: the run's held-out images pass through the trained network and through the
/// exported graph, and if their outputs differ, nothing is written.
#[derive(Debug, Parser)]
#[command(name = "macrl-export", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(override_usage = "macrl-export <FILE.onnx> --run <DIR> [--checkpoint <WHICH>]\n       \
                            macrl-export bundle <DIR> --run <DIR> [--checkpoint <WHICH>]\n       \
                            macrl-export upgrade <DIR> [--probe <PATH>]\n       \
                            macrl-export quantize <DIR> --data <FOLDER>")]
pub struct Cli {
    /// Where the encoder alone is written, as ONNX
    #[arg(value_name = "FILE.onnx", required = true, value_parser = onnx_file)]
    pub file: Option<PathBuf>,

    /// The run to export.
    #[command(flatten)]
    pub run: Option<RunArgs>,

    /// The command, if more than the encoder is exported.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Commands that export more than the encoder.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everything that serving needs: weights, ONNX in three precisions, preprocessing, probe, evaluation, parity check
    #[command(
        override_usage = "macrl-export bundle <DIR> --run <DIR> [--checkpoint <WHICH>] [--weights f32|f16] [--notes <FILE.md>]"
    )]
    Bundle {
        /// Folder to write; an older bundle there is replaced
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Options of the bundle.
        #[command(flatten)]
        options: BundleArgs,
        /// The run to export.
        #[command(flatten)]
        run: RunArgs,
    },
    /// Gives a bundle of an earlier version what other programs load it by (docs/clients.md); its features stay the same
    Upgrade {
        /// The bundle's folder
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Another classifier: a folder that `macrl-train probe --out` wrote, or a probe.safetensors
        #[arg(long, value_name = "PATH")]
        probe: Option<PathBuf>,
    },
    /// Adds the 8-bit graph, onnx/model_quantized.onnx, to a bundle of an earlier version
    Quantize {
        /// The bundle's folder
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Images in class sub-folders to prove it by: a training and a test split, or one whole (docs/data.md)
        #[arg(long, value_name = "FOLDER")]
        data: PathBuf,
    },
}

/// Options of a bundle.
#[derive(Debug, Clone, Args)]
pub struct BundleArgs {
    /// Precision of the weights in model.safetensors and model.onnx: f32, or f16 for half the size
    #[arg(long, value_name = "PRECISION", default_value = "f32", value_parser = precision)]
    pub weights: Element,

    /// Markdown for the end of the model card: the data's licence, and what else readers must know
    #[arg(long, value_name = "FILE.md")]
    pub notes: Option<PathBuf>,
}

/// The run, its checkpoint, and the device.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The training run's folder, runs/NAME
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,

    /// `best`, `last`, `finetuned` (with its own head) or a file [default: the one that was evaluated, else best, else last]
    #[arg(long, value_name = "WHICH")]
    pub checkpoint: Option<String>,

    /// Device of the trained network in the parity check: auto (a GPU where one works), cpu or cuda
    #[arg(long, default_value = "auto", value_parser = device::parse)]
    pub device: Device,
}

/// The export that was asked for.
#[derive(Debug, Clone)]
pub enum Job {
    /// The encoder alone, to this file.
    Encoder(PathBuf, RunArgs),
    /// The bundle, to this folder.
    Bundle(PathBuf, RunArgs, BundleArgs),
    /// Today's layout, for this bundle, perhaps with this probe.
    Upgrade(PathBuf, Option<PathBuf>),
    /// The 8-bit graph, into this bundle, proven by the images of that folder.
    Quantize(PathBuf, PathBuf),
}

impl Cli {
    /// The export that the arguments ask for; clap makes sure that there is one.
    pub fn job(self) -> Option<Job> {
        match (self.command, self.file, self.run) {
            (Some(Command::Bundle { dir, options, run }), ..) => Some(Job::Bundle(dir, run, options)),
            (Some(Command::Upgrade { dir, probe }), ..) => Some(Job::Upgrade(dir, probe)),
            (Some(Command::Quantize { dir, data }), ..) => Some(Job::Quantize(dir, data)),
            (None, Some(file), Some(run)) => Some(Job::Encoder(file, run)),
            _ => None,
        }
    }
}

fn precision(text: &str) -> Result<Element, String> {
    match text {
        "f32" => Ok(Element::F32),
        "f16" => Ok(Element::F16),
        _ => Err("expected f32 or f16".into()),
    }
}

fn onnx_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.extension().is_some_and(|e| e == "onnx") {
        return Ok(path);
    }
    Err("expected a file name that ends in .onnx, or `bundle DIR`".into())
}

/// clap's message in one line, without the usage.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\nUsage:").next().unwrap_or_default().split("\n\nFor more").next().unwrap_or_default();
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
