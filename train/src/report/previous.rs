//! The run before, whose numbers stand beside this run's.

use std::path::Path;
use std::time::SystemTime;

use macrl_bundle::evaluation::{Evaluation, Row};

/// Another run, evaluated before.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Previous {
    /// Name of its folder.
    pub(super) name: String,
    /// The numbers of its encoder.
    pub(super) row: Row,
}

/// The last run beside this one that was evaluated before it, in the same way and on the same data.  Folders that cannot be
/// read are no such runs: a report must not fail because of another run.
pub(super) fn previous(run: &Path, evaluation: &Evaluation) -> Option<Previous> {
    let run = run.canonicalize().ok()?;
    let (data, own) = (data(&run)?, evaluated(&run)?);
    let others = std::fs::read_dir(run.parent()?).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let comparable = others.filter(|other| *other != run).filter_map(|other| {
        let time = evaluated(&other).filter(|time| *time <= own)?;
        let found = Evaluation::read(&other.join("evaluation.json")).ok()?;
        let same = self::data(&other)? == data && same_way(&found, evaluation);
        let row = found.row("macrl").filter(|_| same)?.clone();
        Some((time, Previous { name: other.file_name()?.to_string_lossy().into_owned(), row }))
    });
    comparable.max_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name))).map(|(_, previous)| previous)
}

/// Where the images of a run are.
fn data(run: &Path) -> Option<Vec<u8>> {
    std::fs::read(run.join("data.txt")).ok().map(|bytes| bytes.trim_ascii_end().to_vec())
}

fn evaluated(run: &Path) -> Option<SystemTime> {
    std::fs::metadata(run.join("evaluation.json")).ok()?.modified().ok()
}

/// Whether two runs were evaluated on as many images of one split, by the same rule.
fn same_way(a: &Evaluation, b: &Evaluation) -> bool {
    let key = |e: &Evaluation| (e.protocol.k, e.protocol.train_images, e.protocol.test_images, e.labels.len());
    key(a) == key(b) && a.protocol.split == b.protocol.split && a.protocol.temperature == b.protocol.temperature
}
