//! `macrl-serve label-folders`: copies labelled images into a folder for each label, as `macrl-train` reads them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use macrl_bundle::answer;
use serde_json::Value;

use crate::client::Client;
use crate::image_folder::{Labels, read_image_folder};
use crate::keys;

/// Copy labelled images into a folder for each label, which `macrl-train finetune --data` reads.
///
/// The images are those of the folder that was ingested; the labels are those given on the search page or with POST /labels.
#[derive(Debug, Args)]
pub struct LabelFoldersArgs {
    /// A running server, for instance http://127.0.0.1:8080.
    #[arg(long)]
    url: String,
    /// The server's key [or environment MACRL_API_KEY, which does not show in `ps`].
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// The folder that was ingested.
    #[arg(long, value_name = "FOLDER")]
    images: PathBuf,
    /// Also copy images without a label whose most probable one has at least this probability.
    #[arg(long, value_name = "PROBABILITY")]
    guesses: Option<f64>,
    /// An empty or new folder.
    to: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A server that does not answer, an image folder that cannot be read, or a target that is not empty.
pub fn label_folders(args: &LabelFoldersArgs) -> Result<()> {
    check_target(&args.to)?;
    let client = Client::new(&args.url, keys::single(args.api_key.as_deref())?);
    client.wait_until_ready(Duration::from_secs(30), false)?;
    let list = client.get(&format!("/labels?guesses={}", args.guesses.is_some()))?;
    let chosen = chosen(&list, args.guesses)?;
    ensure!(!chosen.is_empty(), "expected labelled items, found none: label some at {}", args.url);
    let found = read_image_folder(&args.images, &args.images, Labels::None)?.images;
    let paths: HashMap<&str, &Path> = found.iter().map(|image| (image.id.as_str(), image.path.as_path())).collect();
    let (mut copied, mut missing) = (0, Vec::new());
    for (id, label) in &chosen {
        match paths.get(id.as_str()) {
            Some(path) => {
                copy(path, id, label, &args.to)?;
                copied += 1;
            }
            None => missing.push(id),
        }
    }
    if let (0, Some(first)) = (copied, missing.first()) {
        bail!("{} holds none of the {} labelled items, such as `{first}`", args.images.display(), missing.len());
    }
    let left_out =
        if missing.is_empty() { String::new() } else { format!("; {} are not in the folder", missing.len()) };
    answer!("{copied} images in {}{left_out}", args.to.display());
    Ok(())
}

fn check_target(to: &Path) -> Result<()> {
    let empty = match std::fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    };
    ensure!(empty, "{} must be an empty or new folder", to.display());
    Ok(())
}

/// Ids and labels of the items that are copied.
fn chosen(list: &Value, least: Option<f64>) -> Result<Vec<(String, String)>> {
    let entries = |name: &str| list[name].as_array().cloned().unwrap_or_default();
    let sure = entries("guesses").into_iter().filter(|g| least.is_some_and(|p| g["score"].as_f64() >= Some(p)));
    let pair = |entry: Value| {
        let text =
            |name: &str| entry[name].as_str().map(String::from).with_context(|| format!("/labels gave no {name}"));
        Ok((text("id")?, text("label")?))
    };
    entries("labels").into_iter().chain(sure).map(pair).collect()
}

/// Copies an image under a name that its id makes unique.
fn copy(from: &Path, id: &str, label: &str, to: &Path) -> Result<()> {
    let folder = to.join(folder_name(label));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let place = folder.join(id.replace('%', "%25").replace('/', "%2F"));
    std::fs::copy(from, &place).with_context(|| format!("cannot copy {} to {}", from.display(), place.display()))?;
    Ok(())
}

/// A label as the name of a folder: hidden folders and slashes are none.
fn folder_name(label: &str) -> String {
    let name = label.replace('%', "%25").replace('/', "%2F");
    if name.starts_with('.') { name.replacen('.', "%2E", 1) } else { name }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_become_folders_and_sure_guesses_are_added() {
        assert_eq!(
            (folder_name("a/b"), folder_name(".."), folder_name("50%")),
            ("a%2Fb".into(), "%2E.".into(), "50%25".into())
        );
        let list = json!({ "labels": [{ "id": "a", "label": "x" }],
            "guesses": [{ "id": "b", "label": "y", "score": 0.95 }, { "id": "c", "label": "y", "score": 0.5 }] });
        let pair = |id: &str, label: &str| (id.to_string(), label.to_string());
        assert_eq!(chosen(&list, None).unwrap(), [pair("a", "x")]);
        assert_eq!(chosen(&list, Some(0.9)).unwrap(), [pair("a", "x"), pair("b", "y")]);
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from.png");
        std::fs::write(&from, "picture").unwrap();
        let to = dir.path().join("to");
        check_target(&to).unwrap();
        copy(&from, "cats/1.png", "cat", &to).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("cat/cats%2F1.png")).unwrap(), "picture");
        assert!(check_target(&to).unwrap_err().to_string().contains("must be an empty or new folder"));
    }
}
