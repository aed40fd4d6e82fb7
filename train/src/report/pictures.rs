//! Images in the page: reconstructions and nearest neighbours.

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ImageFormat, RgbImage, imageops};

use super::html::{class_name, escape, section};
use super::{Reconstruction, Samples};
use crate::evaluate::knn;

/// Larger images are shown smaller, so that the page stays small.
const LARGEST: u32 = 112;
/// Rows of neighbours, and neighbours in each.
const QUERIES: usize = 10;
const NEIGHBOURS: usize = 8;

/// Input, what the encoder sees, and what the decoder makes of it, in both branches.
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
    let note = "<p class=\"note\">In each group: the decoder's target, what the encoder sees (removed patches greyed out), \
                what the decoder makes of it (patches that it was shown are put back where only the removed ones are \
                judged). Left the strong branch, right the weak one.</p>";
    section("reconstructions", "Reconstructions of both branches", &format!("{note}<div class=\"pairs\">{rows}</div>"))
}

fn triple(branch: &str, images: Option<&Reconstruction>) -> String {
    let Some(images) = images else { return String::new() };
    let parts = [("target", &images.input), ("seen", &images.corrupted), ("reconstructed", &images.reconstructed)];
    let tags: String = parts.iter().map(|(name, image)| tag(image, &format!("{branch}: {name}"), "")).collect();
    format!("<div class=\"triple\">{tags}</div>")
}

/// Images and those that are nearest to them, other classes marked.
pub(super) fn neighbours(samples: &Samples, labels: &[String]) -> String {
    let Samples { images, features } = samples;
    // Each image's nearest is itself.
    let found = knn::neighbours(&features.values, &features.values, features.dim, NEIGHBOURS + 1);
    let rows: String = spread(features.labels.as_slice(), QUERIES)
        .into_iter()
        .filter(|&i| i < images.len())
        .map(|i| {
            let name = |j: usize| class_name(labels, features.labels[j] as usize);
            let query = tag(&images[i], &name(i), "");
            let others = found[i].iter().filter(|n| n.index as usize != i).take(NEIGHBOURS);
            let near: String = others
                .filter_map(|n| {
                    let j = n.index as usize;
                    let class = if features.labels[i] == features.labels[j] { "same" } else { "other" };
                    Some(tag(images.get(j)?, &format!("{}, cosine {:.3}", name(j), n.similarity), class))
                })
                .collect();
            format!("<div class=\"near\"><div>{query}<span>{}</span></div><div>{near}</div></div>", escape(&name(i)))
        })
        .collect();
    let note = format!(
        "<p class=\"note\">Left the query, right the nearest of {} held-out images by cosine, nearest first. \
         Another class than the query's is outlined in red.</p>",
        images.len()
    );
    section("neighbours", "Nearest neighbours", &format!("{note}{rows}"))
}

/// At most `count` image numbers, one of each class before a second of any.
fn spread(labels: &[u32], count: usize) -> Vec<usize> {
    let mut seen = std::collections::HashMap::new();
    let mut order: Vec<(usize, usize)> = labels
        .iter()
        .enumerate()
        .map(|(i, label)| {
            let rank = seen.entry(*label).and_modify(|n| *n += 1).or_insert(0usize);
            (*rank, i)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().take(count).map(|(_, i)| i).collect()
}

/// An image as part of the page.
fn tag(image: &RgbImage, text: &str, class: &str) -> String {
    let edge = image.width().max(image.height()).max(1);
    let small;
    let shown = if edge > LARGEST {
        let scaled = |x: u32| (x * LARGEST / edge).max(1);
        small = imageops::thumbnail(image, scaled(image.width()), scaled(image.height()));
        &small
    } else {
        image
    };
    let mut bytes = std::io::Cursor::new(Vec::new());
    if shown.write_to(&mut bytes, ImageFormat::Png).is_err() {
        // Only an image without pixels can't be written.
        return String::new();
    }
    let text = escape(text);
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let data = STANDARD.encode(bytes.into_inner());
    format!("<img{class} alt=\"{text}\" title=\"{text}\" src=\"data:image/png;base64,{data}\">")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_comes_before_a_second_of_any() {
        assert_eq!(spread(&[0, 0, 0, 1, 2, 1], 4), [0, 3, 4, 1]);
    }

    #[test]
    fn large_images_are_shown_smaller() {
        let big = tag(&RgbImage::new(448, 224), "a \"b\"", "same");
        let bytes = STANDARD.decode(big.split("base64,").nth(1).unwrap().trim_end_matches("\">")).unwrap();
        let read = image::load_from_memory(&bytes).unwrap();
        assert_eq!((read.width(), read.height()), (112, 56));
        assert!(big.contains("alt=\"a &quot;b&quot;\""));
    }
}
