//! TensorBoard's event files, with the numbers of metrics.jsonl.
//!
//! No crate for it is needed: the format is two small messages (`tensorflow/core/util/event.proto`) in a sequence of records
//! (`tensorflow/core/lib/io/record_writer.h`), encoded with prost and crc32c.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use prost::Message;
use serde_json::Value;

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1 January 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    Session(Session),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    value: f32,
}

#[derive(Clone, PartialEq, Message)]
struct Session {
    /// 1 (start): TensorBoard drops what earlier files hold of this step and later ones.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// First record of every event file.
const VERSION: &str = "brain.Event:2";
const START: i32 = 1;

/// Writes one event file.
pub struct Board {
    file: File,
}

impl Board {
    /// Creates a file in `dir` for a run that has done `step` steps.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(dir: &Path, step: u64) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // TensorBoard reads files in the order of their names.
        let name = format!("events.out.tfevents.{:020}.{}", (now() * 1e6) as u64, std::process::id());
        let path = dir.join(name);
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut board = Board { file };
        board.put(0, What::FileVersion(VERSION.into()))?;
        board.put(step + 1, What::Session(Session { status: START }))?;
        Ok(board)
    }

    /// Writes every number of a line of metrics.jsonl, under `KIND/KEY`.
    ///
    /// # Errors
    /// The file cannot be written, because the disk is full for instance.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        let kind = line["kind"].as_str().unwrap_or("step");
        let numbers = line.as_object().into_iter().flatten().filter(|(key, _)| *key != "step");
        let scalar = |(key, value): (&String, &Value)| {
            Some(Scalar { tag: format!("{kind}/{key}"), value: value.as_f64()? as f32 })
        };
        let values = numbers.filter_map(scalar).collect();
        self.put(line["step"].as_u64().unwrap_or_default(), What::Summary(Summary { values }))
    }

    fn put(&mut self, step: u64, what: What) -> Result<()> {
        let event = Event { wall_time: now(), step: step as i64, what: Some(what) };
        self.file.write_all(&record(&event.encode_to_vec())).context("cannot write TensorBoard's event file")
    }
}

/// A record: length (u64), its checksum, the bytes, their checksum; all little-endian.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), bytes, &masked(bytes)].concat()
}

/// TensorFlow's masked CRC-32C: rotated, plus a constant.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// from tensorboard.compat.proto.event_pb2 import Event
    /// from tensorboard.summary.writer.record_writer import RecordWriter
    /// event = Event(wall_time=1.5, step=7)
    /// event.summary.value.add(tag="step/loss", simple_value=0.25)
    /// RecordWriter(file).write(event.SerializeToString())
    /// ```
    #[test]
    fn records_are_tensorboards_own() {
        let summary = Summary { values: vec![Scalar { tag: "step/loss".into(), value: 0.25 }] };
        let event = Event { wall_time: 1.5, step: 7, what: Some(What::Summary(summary)) };
        let found: String = record(&event.encode_to_vec()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, REFERENCE);
    }

    #[test]
    fn numbers_become_scalars_and_words_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = Board::create(&dir.path().join("tensorboard"), 3).unwrap();
        let line = serde_json::json!({"kind": "eval", "step": 4, "knn": 0.5, "note": "words"});
        board.write(&line).unwrap();
        let file = std::fs::read_dir(dir.path().join("tensorboard")).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(file).unwrap();
        let (mut events, mut rest) = (Vec::new(), bytes.as_slice());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[..12 + length + 4], record(&rest[12..12 + length]));
            events.push(Event::decode(&rest[12..12 + length]).unwrap());
            rest = &rest[12 + length + 4..];
        }
        assert_eq!(events[0].what, Some(What::FileVersion(VERSION.into())));
        assert_eq!((events[1].step, events[1].what.clone()), (4, Some(What::Session(Session { status: START }))));
        let knn = Scalar { tag: "eval/knn".into(), value: 0.5 };
        assert_eq!((events[2].step, events[2].what.clone()), (4, Some(What::Summary(Summary { values: vec![knn] }))));
    }

    const REFERENCE: &str =
        "1f00000000000000514b441809000000000000f83f10072a120a100a09737465702f6c6f7373150000803e19f210f6";
}
