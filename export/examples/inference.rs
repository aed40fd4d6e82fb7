//! The Rust contender of bench/inference.py: answers its questions about one graph in ONNX Runtime.
//!
//! `inference MODEL.onnx THREADS`, then on stdin a line and, where it names a batch, that many images as raw floats:
//! `outputs BATCH` -> a line with two counts and as many floats; `time BATCH CALLS` -> seconds per call;
//! `memory` -> MB.

use std::io::{BufRead, Read, Write, stdin, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use macrl_bundle::bundle::{HIDDEN, INPUT, POOLED};
use macrl_runtime::{Device, SessionOptions};
use ort::session::Session;
use ort::value::TensorRef;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, threads] = arguments.as_slice() else { bail!("expected MODEL.onnx THREADS") };
    // Spinning is ONNX Runtime's own default, and what the Python contender has.
    let options = SessionOptions { device: Device::Cpu, threads: threads.parse()?, spin: true, ..Default::default() };
    let mut session = macrl_runtime::session(Path::new(model), &options)?.session;
    let size = edge(&session)?;
    let (mut input, mut output) = (stdin().lock(), stdout().lock());
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut read = |batch: &str| -> Result<(Vec<usize>, Vec<f32>)> {
            let shape = vec![batch.parse()?, 3, size, size];
            let mut bytes = vec![0; 4 * shape.iter().product::<usize>()];
            input.read_exact(&mut bytes)?;
            Ok((shape, bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
        };
        match words.as_slice() {
            ["outputs", batch] => {
                let [hidden, pooled] = run(&mut session, &read(batch)?)?;
                writeln!(output, "{} {}", hidden.len(), pooled.len())?;
                for value in hidden.iter().chain(&pooled) {
                    output.write_all(&value.to_le_bytes())?;
                }
            }
            ["time", batch, calls] => writeln!(output, "{}", seconds(&mut session, &read(batch)?, calls.parse()?)?)?,
            ["memory"] => writeln!(output, "{}", peak_megabytes()?)?,
            _ => bail!("expected outputs, time or memory, found {line}"),
        }
        output.flush()?;
        line.clear();
    }
    Ok(())
}

/// S, from the graph's input (batch, 3, S, S).
fn edge(session: &Session) -> Result<usize> {
    let shape = session.inputs().first().and_then(|i| i.dtype().tensor_shape()).context("the graph has no input")?;
    Ok(usize::try_from(*shape.last().context("the input has no shape")?)?)
}

fn run(session: &mut Session, (shape, pixels): &(Vec<usize>, Vec<f32>)) -> Result<[Vec<f32>; 2]> {
    let results =
        session.run(ort::inputs![INPUT => TensorRef::from_array_view((shape.clone(), pixels.as_slice()))?])?;
    let output = |name: &str| anyhow::Ok(results[name].try_extract_tensor::<f32>()?.1.to_vec());
    Ok([output(HIDDEN)?, output(POOLED)?])
}

fn seconds(session: &mut Session, images: &(Vec<usize>, Vec<f32>), calls: u32) -> Result<f64> {
    run(session, images)?;
    let start = Instant::now();
    for _ in 0..calls {
        run(session, images)?;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(calls))
}

/// The process's largest resident size.
fn peak_megabytes() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes / 1024.0)
}
