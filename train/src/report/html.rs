//! The HTML page and its sections, and the formatting of numbers.

const STYLE: &str = include_str!("style.css");

/// End of every report's title.
pub(super) const TITLE: &str = " · macrl</title>";

/// A page, section by section.
pub(super) struct Page {
    title: String,
    body: String,
}

impl Page {
    pub(super) fn new(name: &str) -> Self {
        Page { title: escape(name), body: String::new() }
    }

    pub(super) fn push(&mut self, part: String) {
        self.body.push_str(&part);
        self.body.push('\n');
    }

    pub(super) fn finish(self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{}{TITLE}\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}</main>\n</body>\n</html>\n",
            self.title, self.body
        )
    }
}

/// A section with a title; empty where its body is empty.
pub(super) fn section(id: &str, title: &str, body: &str) -> String {
    if body.is_empty() {
        return String::new();
    }
    format!("<section id=\"{id}\">\n<h2>{title}</h2>\n{body}\n</section>")
}

/// Text that is safe between tags and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A share as percent with one decimal.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// A number in about three digits: 0.0312, 4.57, 128, 12.5k, 1.5e-4.
pub(super) fn short(x: f64) -> String {
    let size = x.abs();
    let fixed = |x: f64, digits: usize| {
        let text = format!("{x:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
    };
    match size {
        0.0 => "0".into(),
        s if s >= 1e6 => format!("{}M", fixed(x / 1e6, 2)),
        s if s >= 1e4 => format!("{}k", fixed(x / 1e3, 1)),
        s if s >= 100.0 => fixed(x, 0),
        s if s >= 10.0 => fixed(x, 1),
        s if s >= 1.0 => fixed(x, 2),
        s if s >= 1e-3 => fixed(x, 4),
        _ => format!("{x:.1e}").replace(".0e", "e"),
    }
}

/// A class's name, or its number where there is none.
pub(super) fn class_name(labels: &[String], label: usize) -> String {
    labels.get(label).cloned().unwrap_or_else(|| label.to_string())
}
