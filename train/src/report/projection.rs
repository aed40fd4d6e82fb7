//! Features in two dimensions: principal components of the L2-normalised features, coloured by class where there are
//! labels.

use std::fmt::Write;

use macrl_kernels::projection::{Projection, project};

use super::html::{class_name, escape};
use crate::evaluate::Features;
use crate::evaluate::nearest::normalised;

const EDGE: f64 = 600.0;
const MARGIN: f64 = 12.0;
/// Number of points at most.
const POINTS: usize = 3000;
/// Classes with a colour of their own; with more classes, hues are spaced evenly.
const COLOURS: usize = 10;

/// The scatter plot and its legend; one colour where the images have no labels.
pub(super) fn section(features: &Features, labels: &[String], labelled: bool) -> String {
    if features.len() < 3 {
        return String::new();
    }
    let Projection { points, explained } = project(&normalised(&features.values, features.dim), features.dim);
    let classes = features.classes();
    let mut svg =
        format!("<svg viewBox=\"0 0 {EDGE} {EDGE}\" class=\"scatter\" role=\"img\" aria-label=\"projection\">\n");
    let place = |at: f32| EDGE / 2.0 + (EDGE / 2.0 - MARGIN) * f64::from(at);
    let every = features.len().div_ceil(POINTS);
    for (point, label) in points.iter().zip(&features.labels).step_by(every) {
        let (x, y) = (place(point[0]), EDGE - place(point[1]));
        let (style, title) = match labelled {
            true => (
                colour(*label as usize, classes),
                format!("<title>{}</title>", escape(&class_name(labels, *label as usize))),
            ),
            false => ("class=\"s0\"".to_string(), String::new()),
        };
        let _ = writeln!(svg, "<circle {style} cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\">{title}</circle>");
    }
    svg.push_str("</svg>\n");
    let (coloured, overlap) = match labelled {
        true => (", coloured by class", " Classes that overlap here may still be apart in the other directions."),
        false => ("", " Images that lie together here may still be apart in the other directions."),
    };
    let note = format!(
        "<p class=\"note\">The two directions in which the features of {} held-out images vary most ({:.0} and {:.0} % \
         of their variance){coloured}.{overlap}</p>",
        features.len(),
        100.0 * explained[0],
        100.0 * explained[1]
    );
    let legend = if labelled { legend(labels, classes) } else { String::new() };
    let body = format!("<div class=\"projection\">{svg}<div>{note}{legend}</div></div>");
    super::html::section("projection", "Features in two dimensions", &body)
}

fn legend(labels: &[String], classes: usize) -> String {
    if classes > 30 {
        return String::new();
    }
    let entries: String = (0..classes)
        .map(|i| {
            format!(
                "<li><svg viewBox=\"0 0 10 10\"><circle {} cx=\"5\" cy=\"5\" r=\"5\"/></svg>{}</li>",
                colour(i, classes),
                escape(&class_name(labels, i))
            )
        })
        .collect();
    format!("<ul>{entries}</ul>")
}

fn colour(label: usize, classes: usize) -> String {
    if classes <= COLOURS {
        return format!("class=\"c{label}\"");
    }
    let hue = 360.0 * label as f64 / classes as f64;
    format!("style=\"fill:oklch(0.65 0.16 {hue:.0})\"")
}

#[cfg(test)]
mod tests {
    use macrl_kernels::projection::principal_components;

    use super::*;
    use crate::evaluate::testing::draws;

    // x = draws(50 * 6, 9).reshape(50, 6) * [1, 2, 3, 4, 5, 6]                               # see evaluate/testing.rs
    // x /= np.linalg.norm(x, axis=1, keepdims=True); x -= x.mean(0); u, s, v = np.linalg.svd(x, full_matrices=False)
    // v *= np.sign(v[range(6), abs(v).argmax(1)])[:, None]; (x @ v.T)[0, :2], (s ** 2 / (s ** 2).sum())[:2]
    #[test]
    fn components_equal_numpy() {
        let x: Vec<f32> = draws(300, 9).iter().enumerate().map(|(i, x)| x * (i % 6 + 1) as f32).collect();
        let (points, shares) = principal_components(&normalised(&x, 6), 6);
        for (found, expected) in points[0].iter().chain(&shares).zip(EXPECTED) {
            assert!((found - expected).abs() < 1e-5, "{:?} {shares:?}", points[0]);
        }
    }
    const EXPECTED: [f64; 4] = [0.8883535, -0.3992142, 0.3631211, 0.2761605];

    #[test]
    fn collapsed_features_still_draw() {
        let features = Features { values: vec![1.0; 30], labels: vec![0; 10], dim: 3 };
        let text = section(&features, &[], true);
        assert!(text.contains("<circle") && !text.contains("NaN"));
    }

    #[test]
    fn without_labels_nothing_is_named_after_a_class() {
        let features = Features { values: draws(40, 2), labels: vec![0; 10], dim: 4 };
        let text = section(&features, &[], false);
        assert!(text.matches("<circle").count() == 10 && !text.contains("<title>") && !text.contains("<ul>"));
        assert!(!text.contains("class by") && !text.contains("coloured") && !text.contains("Classes"), "{text}");
    }
}
