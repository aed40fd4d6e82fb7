//! The command line: a file that ends in `.onnx`, or the word `bundle` and a folder.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use macrl_bundle::device::Device;
use macrl_nn::device;

use crate::graph::Element;

/// Turns a training run into files that other programs read.
///
/// Each export is proven before it appears: the run's own held-out images go through the trained network and through
/// the exported graph, and an export whose outputs differ is not written.
#[derive(Debug, Parser)]
#[command(name = "macrl-export", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(override_usage = "macrl-export <FILE.onnx> --run <DIR> [--checkpoint <WHICH>]\n       \
                            macrl-export bundle <DIR> --run <DIR> [--checkpoint <WHICH>]")]
pub struct Cli {
    /// Where the encoder alone is written, as ONNX
    #[arg(value_name = "FILE.onnx", required = true, value_parser = onnx_file)]
    pub file: Option<PathBuf>,

    /// What is exported with it.
    #[command(flatten)]
    pub run: Option<RunArgs>,

    /// What is exported instead.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Exports of more than the encoder.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everything that serving needs: weights, ONNX in two precisions, preprocessing, probe, numbers, parity proof
    #[command(
        override_usage = "macrl-export bundle <DIR> --run <DIR> [--checkpoint <WHICH>] [--weights f32|f16] [--notes <FILE.md>]"
    )]
    Bundle {
        /// Folder to write; an older bundle there is replaced
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// How it is written.
        #[command(flatten)]
        extras: Extras,
        /// What is exported.
        #[command(flatten)]
        run: RunArgs,
    },
}

/// What a bundle's writer may choose.
#[derive(Debug, Clone, Args)]
pub struct Extras {
    /// Precision of the weights in model.safetensors and model.onnx: f32, or f16 for half the size
    #[arg(long, value_name = "PRECISION", default_value = "f32", value_parser = precision)]
    pub weights: Element,

    /// Markdown that goes into the model card behind the limits: the data's licence, what else a reader must know
    #[arg(long, value_name = "FILE.md")]
    pub notes: Option<PathBuf>,
}

/// The run and the moment of it.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The training run's folder, runs/NAME
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,

    /// `best`, `last` or a file [default: the one that was evaluated, else best, else last]
    #[arg(long, value_name = "WHICH")]
    pub checkpoint: Option<String>,

    /// Where the trained network computes its side of the proof: auto (a GPU where one works), cpu or cuda
    #[arg(long, default_value = "auto", value_parser = device::parse)]
    pub device: Device,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Job {
    /// The encoder alone, to this file.
    Encoder(PathBuf, RunArgs),
    /// The bundle, to this folder.
    Bundle(PathBuf, RunArgs, Extras),
}

impl Cli {
    /// The one thing that was asked for; clap has seen to it that there is one.
    pub fn job(self) -> Option<Job> {
        match (self.command, self.file, self.run) {
            (Some(Command::Bundle { dir, extras, run }), ..) => Some(Job::Bundle(dir, run, extras)),
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

/// clap's message without its drawing: one line.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\nUsage:").next().unwrap_or_default().split("\n\nFor more").next().unwrap_or_default();
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
