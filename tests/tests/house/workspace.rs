//! The workspace as cargo and the file system show it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub struct Package {
    /// From the root: `crates/sql`.
    pub folder: String,
    /// Name, and `normal`, `dev` or `build`.
    pub uses: Vec<(String, String)>,
}

impl Package {
    /// The last part of the folder.
    pub fn room(&self) -> &str {
        self.folder.rsplit('/').next().unwrap_or_default()
    }

    /// The rooms it uses, in tests too.
    pub fn ours(&self) -> BTreeSet<String> {
        let ours = self
            .uses
            .iter()
            .filter_map(|(name, _)| name.strip_prefix("homeostat-"));
        ours.map(str::to_owned).collect()
    }
}

pub fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or("normal").to_owned();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let packages: Vec<Package> = packages
        .map(|package| {
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            let uses = package["dependencies"].as_array().unwrap().iter();
            Package {
                folder: shown(manifest.parent().unwrap()),
                uses: uses
                    .map(|uses| (text(&uses["name"]), text(&uses["kind"])))
                    .collect(),
            }
        })
        .collect();
    assert!(packages.len() > 15, "cargo metadata shows too little");
    packages
}

pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::canonicalize(tests.parent().unwrap()).unwrap()
}

/// From the root.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    files(folder, "rs")
}

pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
        if path.is_dir() && !hidden && !path.ends_with("target") {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}
