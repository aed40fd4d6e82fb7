//! `macrl config`: a configuration with every key and what it means.

use anyhow::Result;
use clap::Args;
use macrl_bundle::Config;
use macrl_bundle::output::answer;

use crate::comments::commented;
use crate::programs::Usage;

/// Arguments of `macrl config`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// One of the configurations of configs/, without its ending; or a file.  If not given, the defaults.
    preset: Option<String>,
    /// Overrides one key, for example --set train.epochs=5; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

macro_rules! presets {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("../../configs/", $name, ".toml")))),*] };
}

const PRESETS: [(&str, &str); 8] =
    presets!["demo", "folder", "cifar10-cpu", "cifar10", "cifar100", "imagenette", "imagewoof", "tiny-imagenet"];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let config = resolved(arguments).map_err(|why| Usage(why.to_string()))?;
    answer(&commented(&config));
    Ok(())
}

fn resolved(arguments: &Arguments) -> Result<Config> {
    let Some(name) = &arguments.preset else { return Ok(Config::parse("", "the defaults", &arguments.set)?) };
    if let Some((name, text)) = PRESETS.iter().find(|(preset, _)| preset == name) {
        return Ok(Config::parse(text, name, &arguments.set)?);
    }
    let path = std::path::Path::new(name);
    if path.is_file() {
        return Ok(Config::load(path, &arguments.set)?);
    }
    let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
    anyhow::bail!("expected a file or one of {}, found {name}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_prints_and_reads_back_the_same() {
        for (name, _) in PRESETS {
            let arguments = Arguments { preset: Some(name.into()), set: vec!["train.epochs=7".into()] };
            let config = resolved(&arguments).unwrap();
            assert_eq!(config.train.epochs, 7);
            assert_eq!(Config::parse(&commented(&config), name, &[]).unwrap(), config);
        }
        let wrong = resolved(&Arguments { preset: Some("cifar".into()), set: vec![] }).unwrap_err().to_string();
        assert!(wrong.contains("cifar10-cpu") && wrong.ends_with("found cifar"), "{wrong}");
    }
}
