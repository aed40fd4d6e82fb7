//! The command `macrl-train replay`: computes a step that was not finite again.

use anyhow::{Result, bail};
use clap::Args;
use macrl_bundle::answer;

use super::shared::{RunArguments, check_data, open_data};
use crate::replay::{Finding, replay, start};

/// Names and images that are listed at most.
const SHOWN: usize = 10;

/// Arguments of `macrl-train replay`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    source: RunArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let run = arguments.source.run();
    if !run.replay().exists() {
        bail!("nothing to replay: {} does not exist, no non-finite step has stopped this run", run.replay().display());
    }
    let (state, config) = start(&run)?;
    let data = open_data(&arguments.source.data_dir()?, &config)?;
    check_data("replay", &state, &data)?;
    let finding = replay(&run, &data, state, &config)?;
    answer!("step {} of {}: {}", finding.step, run.dir().display(), finding.cause);
    answer!("{}", tell(&finding));
    if !finding.reproduced() {
        bail!("step {} is finite this time: was it computed on another device or by another version?", finding.step);
    }
    Ok(())
}

/// The finding as lines of text.
fn tell(finding: &Finding) -> String {
    let mut text = String::new();
    if !finding.weights.is_empty() {
        text += &format!("weights not finite before the step: {}\n", list(&finding.weights));
        text += &match &finding.broken_by {
            Some(b) => format!(
                "the update after step {} broke them: learning rate {:.3e}, loss {:.4e}, gradient norm {:.3e}\n",
                b.step, b.lr, b.loss, b.norm
            ),
            None => "no update since the last good checkpoint breaks them this time\n".to_string(),
        };
        return text;
    }
    for (name, value) in &finding.losses {
        let mark = if value.is_finite() { "" } else { "   <- not finite" };
        text += &format!("  {name}: {value:.4e}{mark}\n");
    }
    let gradients: Vec<String> =
        finding.gradients.iter().map(|(name, broken, all)| format!("{name} ({broken} of {all} values)")).collect();
    text += &match gradients.is_empty() {
        true => "every gradient is finite".to_string(),
        false => format!("gradients not finite: {}", list(&gradients)),
    };
    text += &format!("; the largest finite one is {:.3e} in {}\n", finding.largest.1, finding.largest.0);
    let images: Vec<String> =
        finding.images.iter().map(|(index, name, what)| format!("{name} (image {index}, its {what})")).collect();
    text += &match images.len() {
        0 => "each image of the batch is finite on its own\n".to_string(),
        n => format!("{n} of {} images are not finite on their own: {}\n", finding.batch, list(&images)),
    };
    text
}

fn list(names: &[String]) -> String {
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
