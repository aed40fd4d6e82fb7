//! Images in the page: reconstructions and nearest neighbours.

use base64::{Engine, engine::general_purpose::STANDARD};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage, imageops};

use super::content::{Neighbourhood, Reconstruction};
use super::html::{class_name, escape, section};

/// Largest edge of reconstructions and of neighbours in the page; larger images are reduced, so that the page stays small.
const RECONSTRUCTION: u32 = 192;
const NEIGHBOUR: u32 = 144;
/// Images up to this edge are stored without loss, since single pixels are visible.
const EXACT: u32 = 64;
const QUALITY: u8 = 88;

/// Target, encoder input and prediction, in both branches.
pub(super) fn reconstructions(strong: &[Reconstruction], weak: &[Reconstruction]) -> String {
    let count = strong.len().max(weak.len());
    let rows: String = (0..count)
        .map(|i| {
            format!("<div class=\"pair\">{}{}</div>", triple("strong", strong.get(i)), triple("weak", weak.get(i)))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let note = "<p class=\"note\">Of three images, the first is the decoder's target, the second what the encoder sees \
                (removed patches greyed out), the third what the decoder makes of it (patches that it was shown are put \
                back where only the removed ones count).</p>";
    section("reconstructions", "Reconstructions of both branches", &format!("{note}<div class=\"pairs\">{rows}</div>"))
}

fn triple(branch: &str, images: Option<&Reconstruction>) -> String {
    let Some(images) = images else { return String::new() };
    let parts = [("target", &images.input), ("seen", &images.corrupted), ("reconstructed", &images.reconstructed)];
    let tags: String =
        parts.iter().map(|(name, image)| tag(image, RECONSTRUCTION, &format!("{branch}: {name}"), "")).collect();
    format!("<div class=\"branch\"><span>{branch}</span><div class=\"triple\">{tags}</div></div>")
}

/// Held-out images and their nearest neighbours; neighbours of another class than the query's are marked.
pub(super) fn neighbours(rows: &[Neighbourhood], gallery: &str, labels: &[String]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let labelled = rows.iter().any(|row| row.label.is_some());
    let name = |label: Option<u32>| label.map_or_else(String::new, |l| class_name(labels, l as usize));
    let body: String = rows
        .iter()
        .map(|row| {
            let near: String = row
                .near
                .iter()
                .map(|near| {
                    let class = match (row.label, near.label) {
                        (Some(own), Some(other)) if own != other => "other",
                        _ => "",
                    };
                    let text = format!("{}, cosine {:.3}", name(near.label), near.similarity);
                    tag(&near.image, NEIGHBOUR, text.trim_start_matches(", "), class)
                })
                .collect();
            let own = name(row.label);
            let caption = if own.is_empty() { String::new() } else { format!("<span>{}</span>", escape(&own)) };
            let text = if own.is_empty() { "query" } else { own.as_str() };
            let query = tag(&row.query, NEIGHBOUR, text, "");
            format!(
                "<div class=\"near\"><div class=\"query\">{query}{caption}</div><div class=\"found\">{near}</div></div>"
            )
        })
        .collect();
    let marked = if labelled { " Another class than the query's is outlined in red." } else { "" };
    let note = format!(
        "<p class=\"note\">Left a held-out image, right the nearest of {} by cosine, nearest first.{marked}</p>",
        escape(gallery)
    );
    section("neighbours", "Nearest neighbours", &format!("{note}{body}"))
}

/// An image as part of the page.
fn tag(image: &RgbImage, largest: u32, text: &str, class: &str) -> String {
    let edge = image.width().max(image.height()).max(1);
    let small;
    let shown = if edge > largest {
        let scaled = |x: u32| (x * largest / edge).max(1);
        small = imageops::thumbnail(image, scaled(image.width()), scaled(image.height()));
        &small
    } else {
        image
    };
    let mut bytes = std::io::Cursor::new(Vec::new());
    let (kind, written) = match edge <= EXACT {
        true => ("png", shown.write_to(&mut bytes, ImageFormat::Png)),
        false => ("jpeg", shown.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY))),
    };
    if written.is_err() {
        // Encoding fails only for an image without pixels.
        return String::new();
    }
    let text = escape(text);
    let exact = if edge <= EXACT { "exact" } else { "" };
    let class = format!("{class} {exact}");
    let class = if class.trim().is_empty() { String::new() } else { format!(" class=\"{}\"", class.trim()) };
    let data = STANDARD.encode(bytes.into_inner());
    format!("<img{class} alt=\"{text}\" title=\"{text}\" src=\"data:image/{kind};base64,{data}\">")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Neighbour;

    #[test]
    fn large_images_are_shown_smaller_and_small_ones_exactly() {
        let decode = |tag: &str| {
            let bytes = STANDARD.decode(tag.split("base64,").nth(1).unwrap().trim_end_matches("\">")).unwrap();
            image::load_from_memory(&bytes).unwrap().to_rgb8()
        };
        let big = tag(&RgbImage::new(448, 224), 112, "a \"b\"", "other");
        assert_eq!(decode(&big).dimensions(), (112, 56));
        assert!(
            big.contains("alt=\"a &quot;b&quot;\"") && big.contains("class=\"other\"") && big.contains("image/jpeg")
        );
        let small = RgbImage::from_fn(32, 32, |x, y| image::Rgb([x as u8 * 8, y as u8 * 8, (x * y) as u8]));
        let text = tag(&small, 112, "x", "");
        assert_eq!(decode(&text), small);
        assert!(text.contains("class=\"exact\""));
    }

    #[test]
    fn only_labels_are_compared() {
        let near = |label| Neighbour { image: RgbImage::new(8, 8), label, similarity: 0.5 };
        let row = |label, others: [Option<u32>; 2]| Neighbourhood {
            query: RgbImage::new(8, 8),
            label,
            near: others.map(near).to_vec(),
        };
        let names = ["cat".to_string(), "dog".to_string()];
        let text = neighbours(&[row(Some(0), [Some(0), Some(1)])], "64 images", &names);
        assert!(
            text.matches("\"other exact\"").count() == 1 && text.contains("outlined") && text.contains("dog, cosine")
        );
        let text = neighbours(&[row(None, [None, None])], "64 images", &[]);
        assert!(!text.contains("other") && !text.contains("outlined") && !text.contains("<span>"), "{text}");
        assert!(text.contains("title=\"cosine 0.500\"") && text.contains("title=\"query\""));
    }
}
