//! Counters and histograms, written in Prometheus' text format by `GET /metrics`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the time histograms, seconds.
const SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];
/// Upper bounds of the batch size histogram, images.
const SIZES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Counts of values at or below fixed bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<AtomicU64>,
    /// Sum in millionths: atomics hold no floats.
    micros: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), micros: AtomicU64::new(0) }
    }

    /// Counts one value.
    pub fn observe(&self, value: f64) {
        let place = self.bounds.iter().position(|b| value <= *b).unwrap_or(self.bounds.len());
        self.counts[place].fetch_add(1, Relaxed);
        self.micros.fetch_add((value * 1e6) as u64, Relaxed);
    }

    /// Counts one duration in seconds.
    pub fn time(&self, elapsed: Duration) {
        self.observe(elapsed.as_secs_f64());
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        for (count, bound) in self.counts.iter().zip(self.bounds.iter().map(f64::to_string).chain(["+Inf".into()])) {
            total += count.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let sum = self.micros.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {total}");
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    /// (route, method, status) -> requests.
    requests: Mutex<BTreeMap<(String, String, u16), u64>>,
    /// Error code -> answers.
    rejections: Mutex<BTreeMap<&'static str, u64>>,
    /// Whole requests, body included, seconds.
    pub request_seconds: Histogram,
    /// Decoding and resizing of one image, seconds.
    pub decode_seconds: Histogram,
    /// An image's wait for its batch, seconds.
    pub queue_seconds: Histogram,
    /// One call of ONNX Runtime, seconds.
    pub inference_seconds: Histogram,
    /// Images per call.
    pub batch_size: Histogram,
    /// Images that got a feature.
    pub images: AtomicU64,
    /// Images whose client had gone before inference.
    pub abandoned: AtomicU64,
    /// Bundles swapped in while serving.
    pub reloads: AtomicU64,
    /// Bundles refused while serving.
    pub failed_reloads: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Mutex::default(),
            rejections: Mutex::default(),
            request_seconds: Histogram::new(&SECONDS),
            decode_seconds: Histogram::new(&SECONDS),
            queue_seconds: Histogram::new(&SECONDS),
            inference_seconds: Histogram::new(&SECONDS),
            batch_size: Histogram::new(&SIZES),
            images: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            reloads: AtomicU64::new(0),
            failed_reloads: AtomicU64::new(0),
        }
    }
}

/// What is true now, beside what was counted.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// Images admitted and not yet answered.
    pub in_flight: usize,
    /// Images waiting for a batch.
    pub queued: usize,
    /// Items in the index.
    pub items: usize,
    /// `cpu` or `cuda`.
    pub device: &'static str,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Metrics {
    /// Counts one answer.
    pub fn request(&self, route: &str, method: &str, status: u16, code: Option<&'static str>, elapsed: Duration) {
        *lock(&self.requests).entry((route.into(), method.into(), status)).or_default() += 1;
        if let Some(code) = code {
            *lock(&self.rejections).entry(code).or_default() += 1;
        }
        self.request_seconds.time(elapsed);
    }

    /// The whole page.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut out = String::new();
        out.push_str(
            "# HELP macrl_requests_total Answers by route, method and status.\n# TYPE macrl_requests_total counter\n",
        );
        for ((route, method, status), count) in lock(&self.requests).iter() {
            let _ = writeln!(
                out,
                "macrl_requests_total{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}} {count}"
            );
        }
        out.push_str("# HELP macrl_rejections_total Errors by cause.\n# TYPE macrl_rejections_total counter\n");
        for (code, count) in lock(&self.rejections).iter() {
            let _ = writeln!(out, "macrl_rejections_total{{code=\"{code}\"}} {count}");
        }
        self.request_seconds.write(&mut out, "macrl_request_seconds", "Time from a request's header to its answer.");
        self.decode_seconds.write(&mut out, "macrl_decode_seconds", "Decoding and resizing of one image.");
        self.queue_seconds.write(&mut out, "macrl_queue_seconds", "An image's wait for its batch.");
        self.inference_seconds.write(&mut out, "macrl_inference_seconds", "One call of ONNX Runtime.");
        self.batch_size.write(&mut out, "macrl_batch_size", "Images per call of ONNX Runtime.");
        for (name, help, value) in [
            ("macrl_images_total", "Images that got a feature.", &self.images),
            ("macrl_abandoned_images_total", "Images whose client had gone before inference.", &self.abandoned),
            ("macrl_reloads_total", "Bundles swapped in while serving.", &self.reloads),
            ("macrl_failed_reloads_total", "Bundles refused while serving.", &self.failed_reloads),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {}", value.load(Relaxed));
        }
        for (name, help, value) in [
            ("macrl_images_in_flight", "Images admitted and not yet answered.", gauges.in_flight as u64),
            ("macrl_queue_depth", "Images waiting for a batch.", gauges.queued as u64),
            ("macrl_index_items", "Items in the index.", gauges.items as u64),
            ("process_resident_memory_bytes", "Resident memory.", resident_bytes()),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        let device = if gauges.device.is_empty() { "none" } else { gauges.device };
        let _ = writeln!(
            out,
            "# HELP macrl_device Where inference runs.\n# TYPE macrl_device gauge\nmacrl_device{{device=\"{device}\"}} 1"
        );
        out
    }
}

/// Resident memory of this process as Linux counts it; 0 elsewhere.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
