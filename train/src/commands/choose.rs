//! A configuration for data that came without one: from the number and size of the images, and from what a step costs here.
//!
//! All values are ours.  The two networks are those of configs/cifar10-cpu.toml and configs/folder.toml; of the second, smaller
//! ones are tried until the time allows enough epochs.

use std::time::Duration;

use anyhow::Result;
use candle_core::Device;
use macrl_bundle::config::Config;
use macrl_bundle::output::duration;
use macrl_bundle::say;

use super::enough::smaller;
use super::estimate::seconds_per_step;
use crate::data::{Data, Dataset};

/// Minutes of a run for which no time was given.
pub(super) const MINUTES: f64 = 30.0;
/// Share of the time that steps may take; evaluations, checkpoints and start-up take the rest.
const FOR_STEPS: f64 = 0.85;
/// Epochs below which a smaller network is preferred.
const ENOUGH_EPOCHS: u64 = 20;
/// Epochs at most; a small set is seen more often.
const MOST_EPOCHS: [(usize, u64); 2] = [(5_000, 400), (usize::MAX, 200)];
/// Images whose size is looked at.
const LOOKED_AT: usize = 9;
/// Shorter edge in pixels up to which images count as small.
const SMALL_EDGE: u32 = 48;

/// A chosen configuration, and why it was chosen.
pub(super) struct Choice {
    /// The whole configuration.
    pub(super) config: Config,
    /// One sentence for each decision.
    pub(super) why: Vec<String>,
}

/// A network and what goes with it.
struct Candidate {
    name: &'static str,
    text: String,
}

fn candidates(edge: u32) -> Vec<Candidate> {
    if edge <= SMALL_EDGE {
        let text = "[encoder]\nimage_size = 32\npatch_size = 4\nwidth = 192\ndepth = 4\nheads = 6\n\
                    [decoder]\nwidth = 64\ndepth = 1\nheads = 2\n[projector]\nhidden = 256\ndim = 64\n\
                    [views.strong]\nmask_ratio = 0.625\n[views.weak]\nmask_ratio = 0.625\n\
                    [contrast]\nkey_mask = \"none\"\n[train]\noptimizer = \"muon\"\nlr = 6e-3\n";
        return vec![Candidate { name: "4 blocks of width 192 on 32 x 32 pixels", text: text.into() }];
    }
    let photographs = |name, size: u32, patch: u32, depth: u32, blur: f64| Candidate {
        name,
        text: format!(
            "[encoder]\nimage_size = {size}\npatch_size = {patch}\nwidth = 192\ndepth = {depth}\nheads = 3\n\
             [decoder]\nwidth = 96\ndepth = 2\nheads = 3\n\
             [views.strong]\nmask_ratio = 0.75\nblur = {blur:.1}\n[train]\nlr = 2e-3\n"
        ),
    };
    vec![
        photographs("12 blocks of width 192 on 128 x 128 pixels", 128, 16, 12, 0.5),
        photographs("6 blocks of width 192 on 128 x 128 pixels", 128, 16, 6, 0.5),
        photographs("4 blocks of width 192 on 64 x 64 pixels", 64, 8, 4, 0.5),
    ]
}

/// Chooses for these images and minutes; `set` overrides single keys and is never overridden.
///
/// # Errors
/// An override that is not valid, or images that cannot be read.
pub(super) fn choose(data: &Data, minutes: f64, set: &[String], device: &Device) -> Result<Choice> {
    let (images, edge) = (data.train.len(), typical_edge(data.train.as_ref()));
    let (batch, bank) = sizes(images, if edge <= SMALL_EDGE { 64 } else { 32 });
    say!("choosing a configuration: a few steps of each candidate are measured");
    let mut why = vec![format!(
        "{images} training images, about {edge} pixels on the shorter edge: {}",
        if edge <= SMALL_EDGE { "small images" } else { "photographs" }
    )];
    let common = |candidate: &Candidate, epochs: u64| -> Result<Config> {
        let mut keys = vec![
            format!("train.batch_size={batch}"),
            format!("contrast.bank_size={bank}"),
            format!("train.epochs={epochs}"),
            format!("train.warmup_epochs={:.2}", 0.05 * epochs as f64),
            format!("evaluate.every_epochs={}", (epochs / 5).max(1)),
        ];
        keys.extend_from_slice(set);
        Ok(Config::parse(&candidate.text, "the chosen configuration", &keys)?)
    };
    let all = candidates(edge);
    let mut chosen = None;
    for (i, candidate) in all.iter().enumerate() {
        let config = common(candidate, 1)?;
        let per_epoch = (images / config.train.batch_size).max(1) as u64;
        let Some(seconds) = seconds_per_step(&config, data, device)? else {
            // Nothing was measured on a GPU: the time is not known, the largest network is.
            why.push(format!("{}: a GPU is there; 100 epochs", candidate.name));
            chosen = Some(common(candidate, 100)?);
            break;
        };
        let possible = (minutes * 60.0 * FOR_STEPS / seconds) as u64 / per_epoch;
        let last = i + 1 == all.len();
        if possible >= ENOUGH_EPOCHS || last {
            let most = MOST_EPOCHS.iter().find(|(up_to, _)| images <= *up_to).map_or(ENOUGH_EPOCHS, |(_, most)| *most);
            let epochs = possible.clamp(1, most);
            let config = common(candidate, epochs)?;
            let asked = config.train.epochs as u64;
            if asked == epochs {
                why.push(reason(candidate.name, seconds, minutes, possible, epochs));
                chosen = Some(config);
            } else {
                why.push(format!("{}: {seconds:.2} s a step; {asked} epochs, as --set says", candidate.name));
                chosen = Some(common(candidate, asked)?); // the warm-up follows the length
            }
            break;
        }
        why.push(format!(
            "not {}: {seconds:.2} s a step, and {} allow only {possible} epochs",
            candidate.name,
            allowed(minutes)
        ));
    }
    why.push(format!("batches of {batch} and a bank of {bank} keys, so that an image's own keys do not fill the bank"));
    let config = chosen.unwrap_or_default();
    Ok(Choice { config, why })
}

fn reason(name: &str, seconds: f64, minutes: f64, possible: u64, epochs: u64) -> String {
    let allowed = allowed(minutes);
    match possible {
        0 => format!("{name}: {seconds:.2} s a step; {allowed} do not suffice for one epoch, which is the least"),
        _ if possible > epochs => {
            format!("{name}: {seconds:.2} s a step; {epochs} epochs, more would not help so few images")
        }
        _ => format!("{name}: {seconds:.2} s a step; {allowed} allow {epochs} epochs"),
    }
}

fn allowed(minutes: f64) -> String {
    duration(Duration::from_secs_f64((minutes * 60.0).clamp(0.0, 1e9)))
}

/// Batch (of at most `most`) and bank for so many images: an epoch has at least four steps, and a key stays in the bank for an eighth of an epoch.
fn sizes(images: usize, most: usize) -> (usize, usize) {
    let batch = smaller(images / 4).clamp(8, most);
    (batch, (images / 8 / batch * batch).min(4096))
}

/// The median of the shorter edges of a few images.  Large photographs are decoded at a part of their size, which is still large.
fn typical_edge(data: &dyn Dataset) -> u32 {
    let count = LOOKED_AT.min(data.len());
    let edges = (0..count).filter_map(|i| data.image(i * data.len() / count).ok());
    let mut edges: Vec<u32> = edges.map(|image| image.width().min(image.height())).collect();
    edges.sort_unstable();
    edges.get(edges.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use image::{Rgb, RgbImage};

    use super::*;
    use crate::data::memory::Memory;

    fn images(count: u32, edge: u32) -> Data {
        let image = |i: u32| RgbImage::from_fn(edge, edge + 9, |x, y| Rgb([(x * i) as u8, y as u8, (x + y) as u8]));
        let images = (0..count).map(image).collect();
        Data::unlabelled(Arc::new(Memory::new("train", images, vec![None; count as usize])), "test")
    }

    #[test]
    fn small_sets_get_small_batches_and_banks() {
        let all = [8, 35, 270, 9_000, 1_000_000].map(|images| sizes(images, 64));
        assert_eq!(all, [(8, 0), (8, 0), (64, 0), (64, 1088), (64, 4096)]);
        assert_eq!(sizes(270, 32), (32, 32));
    }

    #[test]
    fn every_candidate_is_a_configuration() {
        for candidate in candidates(32).into_iter().chain(candidates(500)) {
            let config = Config::parse(&candidate.text, candidate.name, &[]).unwrap();
            let (size, depth) = (config.encoder.image_size, config.encoder.depth);
            assert!(candidate.name.starts_with(&format!("{depth} blocks")), "{}", candidate.name);
            assert!(candidate.name.ends_with(&format!("on {size} x {size} pixels")), "{}", candidate.name);
        }
    }

    #[test]
    fn the_choice_fits_the_images_and_overrides_win() {
        let (data, set) = (images(40, 28), vec!["train.epochs=3".to_string(), "encoder.depth=1".into()]);
        let Choice { config, why } = choose(&data, 0.5, &set, &Device::Cpu).unwrap();
        assert_eq!((config.encoder.image_size, config.encoder.depth, config.train.epochs), (32, 1, 3));
        assert_eq!((config.train.batch_size, config.contrast.bank_size), (8, 0));
        assert!(why[0].contains("40 training images, about 28 pixels"), "{why:?}");
        assert!(choose(&data, 0.5, &["train.epoch=3".to_string()], &Device::Cpu).is_err());
    }
}
