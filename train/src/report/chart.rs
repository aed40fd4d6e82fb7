//! Line charts as inline SVG.

use std::fmt::Write;

use super::html::{escape, short};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 24.0;
/// Points of a curve at most; more points are averaged in bins, and each bin's range is drawn as a band.
const BINS: usize = 200;

/// Scale of the vertical axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Linear, from the smallest value to the largest.
    Linear,
    /// Linear, from 0.
    FromZero,
    /// Linear, shares shown as percent.
    Percent,
    /// Linear from 0, shares shown as percent.
    PercentFromZero,
    /// Logarithmic, with ticks at powers of ten.
    Log,
}

/// One curve of a chart, with its name and points.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    /// (step, value), in the order of the steps; all values are finite.
    pub(super) points: Vec<(f64, f64)>,
    /// Whether each point gets a dot.
    pub(super) marked: bool,
}

/// A figure with a few curves over the same steps.
#[derive(Debug, Clone)]
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) series: Vec<Series>,
    pub(super) scale: Scale,
}

/// Mean and range of the points in one bin.
struct Bin {
    x: f64,
    mean: f64,
    low: f64,
    high: f64,
}

/// Maps a range of values to positions on the drawing.
struct Axis {
    low: f64,
    high: f64,
    start: f64,
    length: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let span = if self.high > self.low { self.high - self.low } else { 1.0 };
        self.start + self.length * (value - self.low) / span
    }
}

impl Chart<'_> {
    /// The figure as HTML: title, legend with last values, drawing.
    pub(super) fn html(&self) -> String {
        let mut legend = String::new();
        for (i, series) in self.series.iter().enumerate() {
            let last = series.points.last().map_or(0.0, |p| self.unit() * p.1);
            let key = if self.series.len() > 1 {
                format!("<i class=\"s{i}\"></i>{} ", escape(&series.name))
            } else {
                String::new()
            };
            let _ = write!(legend, "<span>{key}<b>{}</b></span>", short(last));
        }
        let title = escape(self.title);
        format!(
            "<figure>\n<figcaption>{title}<span class=\"legend\">{legend}</span></figcaption>\n{}</figure>",
            self.svg()
        )
    }

    /// The values in words, where every curve is constant: its range is below a thousandth of its value, or it has one point.
    pub(super) fn constant(&self) -> Option<String> {
        let flat = |series: &Series| {
            let values = || series.points.iter().map(|p| p.1);
            let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
            series.points.len() < 2 || high - low <= 1e-3 * high.abs().max(low.abs())
        };
        if !self.series.iter().all(flat) {
            return None;
        }
        let value = |s: &Series| {
            let value = short(self.unit() * s.points.last().map_or(0.0, |p| p.1));
            if self.series.len() > 1 { format!("{value} ({})", escape(&s.name)) } else { value }
        };
        Some(self.series.iter().map(value).collect::<Vec<_>>().join(", "))
    }

    fn unit(&self) -> f64 {
        if matches!(self.scale, Scale::Percent | Scale::PercentFromZero) { 100.0 } else { 1.0 }
    }

    /// A value on the scale of the axis, before it is mapped to the drawing.
    fn place(&self, value: f64) -> f64 {
        if self.scale == Scale::Log { value.max(1e-12).log10() } else { self.unit() * value }
    }

    fn svg(&self) -> String {
        let last_step = self.series.iter().filter_map(|s| s.points.last()).map(|p| p.0).fold(0.0, f64::max);
        let x = Axis { low: 0.0, high: last_step.max(1.0), start: LEFT, length: WIDTH - LEFT - RIGHT };
        let (low, high) = self.range();
        let y = Axis { low, high, start: HEIGHT - BOTTOM, length: -(HEIGHT - TOP - BOTTOM) };
        let mut out =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n", escape(self.title));
        self.grid(&mut out, &x, &y);
        for (i, series) in self.series.iter().enumerate() {
            self.line(&mut out, series, i, &x, &y);
        }
        out.push_str("</svg>\n");
        out
    }

    /// Lowest and highest value on the scale, with a margin.
    fn range(&self) -> (f64, f64) {
        let places = || self.series.iter().flat_map(|s| &s.points).map(|p| self.place(p.1));
        let (low, high) = (places().fold(f64::INFINITY, f64::min), places().fold(f64::NEG_INFINITY, f64::max));
        let low = if matches!(self.scale, Scale::FromZero | Scale::PercentFromZero) { low.min(0.0) } else { low };
        let air = if high > low { 0.05 * (high - low) } else { (0.05 * high.abs()).max(1e-9) };
        (if low == 0.0 { 0.0 } else { low - air }, high + air)
    }

    fn grid(&self, out: &mut String, x: &Axis, y: &Axis) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, text) in self.ticks(y) {
            let at = y.at(value);
            let _ = writeln!(out, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
            let _ = writeln!(out, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", LEFT - 6.0, at + 4.0);
        }
        for value in nice_ticks(x.low, x.high, 4) {
            let anchor = if value == 0.0 { "start" } else { "middle" };
            let at = x.at(value);
            // A label near the right edge is aligned to the edge.
            let (at, anchor) = if at > right - 16.0 { (right, "end") } else { (at, anchor) };
            let text = if value == 0.0 { "step 0".into() } else { short(value) };
            let _ = writeln!(out, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{text}</text>", bottom + 17.0);
        }
    }

    fn ticks(&self, y: &Axis) -> Vec<(f64, String)> {
        if self.scale != Scale::Log {
            return nice_ticks(y.low, y.high, 4).into_iter().map(|v| (v, short(v))).collect();
        }
        let decades = (y.low.floor() as i32)..=(y.high.ceil() as i32);
        // Within one or two decades, 2 and 5 are ticks as well.
        let steps: &[f64] = if y.high - y.low < 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let values = decades.flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
        let ticks = values.map(|v| (v.log10(), short(v))).filter(|(at, _)| (y.low..=y.high).contains(at));
        let ticks: Vec<_> = ticks.collect();
        let every = ticks.len().div_ceil(6).max(1);
        ticks.into_iter().step_by(every).collect()
    }

    fn line(&self, out: &mut String, series: &Series, number: usize, x: &Axis, y: &Axis) {
        let bins = bins(&series.points, BINS);
        let at = |bin: &Bin, value: f64| format!("{:.1},{:.1}", x.at(bin.x), y.at(self.place(value)));
        if bins.iter().any(|b| b.high > b.low) {
            let upper = bins.iter().map(|b| at(b, b.high));
            let lower = bins.iter().rev().map(|b| at(b, b.low));
            let outline: Vec<String> = upper.chain(lower).collect();
            let _ = writeln!(out, "<polygon class=\"s{number}\" points=\"{}\"/>", outline.join(" "));
        }
        let line: Vec<String> = bins.iter().map(|b| at(b, b.mean)).collect();
        let _ = writeln!(out, "<polyline class=\"s{number}\" points=\"{}\"/>", line.join(" "));
        if series.marked || bins.len() == 1 {
            for bin in bins {
                let (cx, cy) = (x.at(bin.x), y.at(self.place(bin.mean)));
                let text = format!("step {}: {}", bin.x.round(), short(self.unit() * bin.mean));
                let _ = writeln!(
                    out,
                    "<circle class=\"s{number}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\"><title>{text}</title></circle>"
                );
            }
        }
    }
}

/// At most `count` bins of about as many neighbouring points each.
fn bins(points: &[(f64, f64)], count: usize) -> Vec<Bin> {
    let size = points.len().div_ceil(count).max(1);
    points
        .chunks(size)
        .map(|part| {
            let n = part.len() as f64;
            Bin {
                x: part.iter().map(|p| p.0).sum::<f64>() / n,
                mean: part.iter().map(|p| p.1).sum::<f64>() / n,
                low: part.iter().map(|p| p.1).fold(f64::INFINITY, f64::min),
                high: part.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max),
            }
        })
        .collect()
}

/// Multiples of 1, 2 or 5 times a power of ten inside [low, high]; about `count` of them.
pub(super) fn nice_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    if !(rough > 0.0 && rough.is_finite()) {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough * 0.999).unwrap_or(10.0 * power);
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(nice_ticks(0.0, 1000.0, 4), [0.0, 500.0, 1000.0]);
        assert_eq!(nice_ticks(0.13, 0.92, 4), [0.2, 0.4, 0.6000000000000001, 0.8]);
        assert_eq!(nice_ticks(3.0, 3.0, 4), [3.0]);
    }

    #[test]
    fn many_points_become_bins_with_their_range() {
        let points: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), f64::from(i % 10))).collect();
        let bins = bins(&points, 100);
        assert_eq!(bins.len(), 100);
        assert!(bins.iter().all(|b| (b.mean, b.low, b.high) == (4.5, 0.0, 9.0)));
        assert_eq!((bins[0].x, bins[99].x), (4.5, 994.5));
    }

    #[test]
    fn any_values_give_a_finite_drawing() {
        for scale in [Scale::Linear, Scale::FromZero, Scale::Percent, Scale::PercentFromZero, Scale::Log] {
            for values in [vec![0.0], vec![1.0, 1.0], vec![0.0, 1e-9, 1e9], vec![-5.0, 5.0]] {
                let points = values.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect();
                let series = vec![Series { name: "x".into(), points, marked: true }];
                let text = Chart { title: "t", series, scale }.html();
                assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
            }
        }
    }
}
