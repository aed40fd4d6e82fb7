//! Counters and histograms, which `GET /metrics` writes in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::process;
pub use crate::process::resident_bytes;

/// Upper bounds of the buckets of durations, seconds.
const SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];
/// Upper bounds of the buckets of batch sizes, images.
const SIZES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// A histogram with fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<AtomicU64>,
    /// Sum in millionths, because there are no atomic floats.
    micros: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), micros: AtomicU64::new(0) }
    }

    /// Counts a value.
    pub fn observe(&self, value: f64) {
        let place = self.bounds.iter().position(|b| value <= *b).unwrap_or(self.bounds.len());
        self.counts[place].fetch_add(1, Relaxed);
        self.micros.fetch_add((value * 1e6) as u64, Relaxed);
    }

    /// Counts a duration, in seconds.
    pub fn time(&self, elapsed: Duration) {
        self.observe(elapsed.as_secs_f64());
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, help, "histogram");
        self.write_series(out, name, "");
    }

    /// Writes the buckets; `labels` is `a="b",` or empty.
    fn write_series(&self, out: &mut String, name: &str, labels: &str) {
        let mut total = 0;
        for (count, bound) in self.counts.iter().zip(self.bounds.iter().map(f64::to_string).chain(["+Inf".into()])) {
            total += count.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}le=\"{bound}\"}} {total}");
        }
        let sum = self.micros.load(Relaxed) as f64 / 1e6;
        let own = labels.trim_end_matches(',');
        let own = if own.is_empty() { String::new() } else { format!("{{{own}}}") };
        let _ = writeln!(out, "{name}_sum{own} {sum}\n{name}_count{own} {total}");
    }
}

/// Requests by route and method.  Both come from fixed lists: a client must not be able to create time series.
#[derive(Debug, Default)]
struct Requests {
    /// Number of answers, by route, method and status.
    answers: BTreeMap<(String, &'static str, u16), u64>,
    seconds: BTreeMap<(String, &'static str), Histogram>,
}

/// An open connection; counted until this is dropped.
#[derive(Debug)]
pub struct OpenConnection(Arc<Metrics>);

impl OpenConnection {
    /// Counts its end; `evicted` if it was closed in favour of another one.
    pub fn ended(self, evicted: bool) {
        self.0.evicted.fetch_add(u64::from(evicted), Relaxed);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// All counters and histograms.
#[derive(Debug)]
pub struct Metrics {
    requests: Mutex<Requests>,
    /// Number of error answers, by code.
    rejections: Mutex<BTreeMap<&'static str, u64>>,
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
    /// Images whose client had disconnected before inference.
    pub abandoned: AtomicU64,
    /// Bundles that were reloaded.
    pub reloads: AtomicU64,
    /// Bundles that could not be reloaded.
    pub failed_reloads: AtomicU64,
    /// Connections that are open.
    connections: AtomicU64,
    /// Connections accepted since the start.
    accepted: AtomicU64,
    /// Idle connections that were closed in favour of others.
    evicted: AtomicU64,
    started: SystemTime,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Mutex::default(),
            rejections: Mutex::default(),
            decode_seconds: Histogram::new(&SECONDS),
            queue_seconds: Histogram::new(&SECONDS),
            inference_seconds: Histogram::new(&SECONDS),
            batch_size: Histogram::new(&SIZES),
            images: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            reloads: AtomicU64::new(0),
            failed_reloads: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            started: SystemTime::now(),
        }
    }
}

/// Current values, beside the counters.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// Images admitted and not yet answered.
    pub in_flight: usize,
    /// How many images may be admitted and not yet answered.
    pub in_flight_limit: usize,
    /// Images waiting for a batch.
    pub queued: usize,
    /// Bytes of bodies in memory.
    pub buffered: usize,
    /// How many bytes of bodies may be buffered at once.
    pub buffered_limit: usize,
    /// Bytes of large responses that are being sent.
    pub responses: usize,
    /// How many bytes of responses may be in memory at once.
    pub responses_limit: usize,
    /// Items in the index; `None` if it does not answer.
    pub items: Option<usize>,
    /// Limit of connections.
    pub connections_limit: usize,
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Name and weights' SHA-256 of the model, once it is loaded.
    pub model: Option<(String, String)>,
    /// Whether `/ready` answers 200.
    pub ready: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn single(out: &mut String, name: &str, help: &str, kind: &str, value: impl Display) {
    head(out, name, help, kind);
    let _ = writeln!(out, "{name} {value}");
}

/// A series whose labels carry the information; its value is 1.
fn info(out: &mut String, name: &str, help: &str, labels: &[(&str, &str)]) {
    head(out, name, help, "gauge");
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    let _ = writeln!(out, "{name}{{{}}} 1", labels.join(","));
}

/// A label's value with the format's escapes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Metrics {
    /// Counts an answer.
    pub fn request(
        &self,
        route: &str,
        method: &'static str,
        status: u16,
        code: Option<&'static str>,
        elapsed: Duration,
    ) {
        {
            let mut requests = lock(&self.requests);
            *requests.answers.entry((route.into(), method, status)).or_default() += 1;
            let seconds = requests.seconds.entry((route.into(), method)).or_insert_with(|| Histogram::new(&SECONDS));
            seconds.time(elapsed);
        }
        if let Some(code) = code {
            *lock(&self.rejections).entry(code).or_default() += 1;
        }
    }

    /// Counts a connection, open until the result is dropped.
    pub fn connection(self: &Arc<Self>) -> OpenConnection {
        self.accepted.fetch_add(1, Relaxed);
        self.connections.fetch_add(1, Relaxed);
        OpenConnection(self.clone())
    }

    /// The page of `/metrics`.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut out = String::new();
        self.render_requests(&mut out);
        self.decode_seconds.write(&mut out, "macrl_decode_seconds", "Decoding and resizing of one image.");
        self.queue_seconds.write(&mut out, "macrl_queue_seconds", "An image's wait for its batch.");
        self.inference_seconds.write(&mut out, "macrl_inference_seconds", "One call of ONNX Runtime.");
        self.batch_size.write(&mut out, "macrl_batch_size", "Images per call of ONNX Runtime.");
        for (name, help, value) in [
            ("macrl_images_total", "Images that got a feature.", &self.images),
            ("macrl_abandoned_images_total", "Images whose client had gone before inference.", &self.abandoned),
            ("macrl_reloads_total", "Bundles swapped in while serving.", &self.reloads),
            ("macrl_failed_reloads_total", "Bundles refused while serving.", &self.failed_reloads),
            ("macrl_connections_accepted_total", "Connections since the start.", &self.accepted),
            ("macrl_connections_evicted_total", "Idle connections closed to make room for others.", &self.evicted),
        ] {
            single(&mut out, name, help, "counter", value.load(Relaxed));
        }
        self.render_gauges(&mut out, gauges);
        self.render_process(&mut out);
        let device = if gauges.device.is_empty() { "none" } else { gauges.device };
        info(&mut out, "macrl_device", "Where inference runs.", &[("device", device)]);
        info(&mut out, "macrl_build_info", "The program.", &[("version", env!("CARGO_PKG_VERSION"))]);
        if let Some((name, weights)) = &gauges.model {
            let labels = [("name", name.as_str()), ("weights_sha256", weights)];
            info(&mut out, "macrl_model_info", "The model in use.", &labels);
        }
        out
    }

    fn render_requests(&self, out: &mut String) {
        let requests = lock(&self.requests);
        head(out, "macrl_requests_total", "Answers by route, method and status.", "counter");
        for ((route, method, status), count) in &requests.answers {
            let labels = format!("route=\"{route}\",method=\"{method}\",status=\"{status}\"");
            let _ = writeln!(out, "macrl_requests_total{{{labels}}} {count}");
        }
        head(
            out,
            "macrl_request_seconds",
            "Time from a request's header to its answer, by route and method.",
            "histogram",
        );
        for ((route, method), seconds) in &requests.seconds {
            seconds.write_series(out, "macrl_request_seconds", &format!("route=\"{route}\",method=\"{method}\","));
        }
        head(out, "macrl_rejections_total", "Errors by cause.", "counter");
        for (code, count) in lock(&self.rejections).iter() {
            let _ = writeln!(out, "macrl_rejections_total{{code=\"{code}\"}} {count}");
        }
    }

    fn render_gauges(&self, out: &mut String, gauges: &Gauges) {
        for (name, help, value) in [
            ("macrl_ready", "Whether /ready answers 200.", u64::from(gauges.ready)),
            ("macrl_images_in_flight", "Images admitted and not yet answered.", gauges.in_flight as u64),
            ("macrl_images_in_flight_limit", "Images admitted at once, at most.", gauges.in_flight_limit as u64),
            ("macrl_queue_depth", "Images waiting for a batch.", gauges.queued as u64),
            ("macrl_buffered_bytes", "Bodies in memory.", gauges.buffered as u64),
            ("macrl_buffered_limit_bytes", "Bodies in memory, at most.", gauges.buffered_limit as u64),
            ("macrl_response_bytes", "Large responses that are being sent.", gauges.responses as u64),
            (
                "macrl_response_limit_bytes",
                "Large responses that are being sent, at most.",
                gauges.responses_limit as u64,
            ),
            ("macrl_index_up", "Whether the index answers.", u64::from(gauges.items.is_some())),
            ("macrl_index_items", "Items in the index; 0 where it does not answer.", gauges.items.unwrap_or(0) as u64),
            ("macrl_connections", "Connections that are open.", self.connections.load(Relaxed)),
            ("macrl_connections_limit", "Connections at once, at most.", gauges.connections_limit as u64),
        ] {
            single(out, name, help, "gauge", value);
        }
    }

    fn render_process(&self, out: &mut String) {
        single(out, "process_resident_memory_bytes", "Resident memory.", "gauge", resident_bytes());
        single(out, "process_open_fds", "Open files.", "gauge", process::open_files());
        if let Some(most) = process::max_files() {
            single(out, "process_max_fds", "Open files, at most.", "gauge", most);
        }
        single(out, "process_cpu_seconds_total", "Processor time.", "counter", process::cpu_seconds());
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        single(out, "process_start_time_seconds", "Start, in seconds since 1970.", "gauge", started);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let model = Some(("a \"b\"\\\n".to_string(), "f00".to_string()));
        let page = Metrics::default().render(&Gauges { model, ..Gauges::default() });
        let line = r#"macrl_model_info{name="a \"b\"\\\n",weights_sha256="f00"} 1"#;
        assert!(page.lines().any(|l| l == line), "{page}");
    }
}
