//! Where shared libraries are looked for: beside the running program and in its source tree, never in the working directory.
//!
//! A library that is loaded runs.  In the working directory or in a folder above it (`/tmp`), anybody may have put one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Folder of the libraries that `make setup` fetches.
const DEPS: &str = ".deps";
/// Folders between a build's `target` and its programs: `target/TRIPLE/release/examples`.
const BUILD_DEPTH: usize = 4;

/// The folder of the running program; then each `.deps` beside it, in the source tree whose `target` holds it, and in the source tree
/// that it was built from.  Only those that exist, and that nobody else can have made.
pub fn near_program() -> Vec<PathBuf> {
    let Some(program) = std::env::current_exe().ok() else { return Vec::new() };
    let Some(folder) = program.parent() else { return Vec::new() };
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let trees = source_tree(folder).into_iter().chain(built_from);
    let deps = std::iter::once(folder).chain(trees).map(|place| place.join(DEPS));
    let mut found: Vec<PathBuf> = Vec::new();
    for place in std::iter::once(folder.to_path_buf()).chain(deps) {
        if place.is_dir() && is_trusted(&place, &program) && !found.contains(&place) {
            found.push(place);
        }
    }
    found
}

/// The folder that holds `target`, for a program that Cargo built into it.
fn source_tree(folder: &Path) -> Option<&Path> {
    let target =
        folder.ancestors().take(BUILD_DEPTH).find(|place| place.file_name().is_some_and(|name| name == "target"));
    target?.parent()
}

/// Whether a file or folder belongs to the administrator, to the user of this process, or to the owner of the program, and
/// others cannot write to it.
fn is_trusted(place: &Path, program: &Path) -> bool {
    let owner = |path: &Path| fs::metadata(path).ok().map(|m| m.uid());
    let Ok(metadata) = fs::metadata(place) else { return false };
    let trusted = [Some(0), owner(Path::new("/proc/self")), owner(program)];
    trusted.contains(&Some(metadata.uid())) && metadata.mode() & 0o002 == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_source_tree_of_a_build_is_found() {
        let tree = |folder: &'static str| source_tree(Path::new(folder)).map(|p| p.display().to_string());
        for folder in ["/a/b/target/release", "/a/b/target/release/deps", "/a/b/target/x86_64-linux/release/examples"] {
            assert_eq!(tree(folder).as_deref(), Some("/a/b"), "{folder}");
        }
        assert_eq!((tree("/usr/local/bin"), tree("/tmp/a/target/1/2/3/4")), (None, None));
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        assert!(is_trusted(dir.path(), &program));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!is_trusted(dir.path(), &program) && !is_trusted(&dir.path().join("none"), &program));
        assert!(near_program().contains(&program.parent().unwrap().to_path_buf()));
    }
}
