//! Packages: found, hashed and copied into the cell under their content hash, so that what a task runs does not change
//! beneath it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use homeostat_model::{CellLayout, CellSpec, PackageName, PackageSource, PackageSpec};
use sha2::{Digest, Sha256};

use crate::ControllerError;
use crate::core::Build;

/// Installs every package of a cell. Blocking; idempotent.
pub(crate) fn install(
    spec: &CellSpec,
    layout: &CellLayout,
) -> Result<BTreeMap<PackageName, Build>, ControllerError> {
    spec.packages
        .iter()
        .map(|package| Ok((package.name.clone(), one(package, layout)?)))
        .collect()
}

fn one(package: &PackageSpec, layout: &CellLayout) -> Result<Build, ControllerError> {
    let name = &package.name;
    match &package.source {
        PackageSource::Host { path } => {
            let hash = hash(path).map_err(|error| missing(name, path, &error))?;
            Ok(Build {
                hash,
                path: path.clone(),
            })
        }
        PackageSource::Path { candidates } => {
            let found = candidates
                .iter()
                .find(|path| path.exists())
                .ok_or_else(|| {
                    let tried: Vec<String> = candidates
                        .iter()
                        .map(|path| path.display().to_string())
                        .collect();
                    ControllerError::Package(format!(
                        "package {name}: there is nothing at {}; build it first (make build)",
                        tried.join(" or ")
                    ))
                })?;
            let hash = hash(found).map_err(|error| missing(name, found, &error))?;
            let short: String = hash.chars().take(16).collect();
            let target = layout.packages().join(format!("{name}-{short}"));
            let file = target.join(found.file_name().unwrap_or(std::ffi::OsStr::new("program")));
            if !file.exists() {
                copy(found, &target, &file).map_err(|error| {
                    ControllerError::Package(format!(
                        "package {name}: cannot install it at {}: {error}",
                        file.display()
                    ))
                })?;
            }
            Ok(Build { hash, path: file })
        }
    }
}

fn missing(name: &PackageName, path: &Path, error: &std::io::Error) -> ControllerError {
    ControllerError::Package(format!(
        "package {name}: cannot read {}: {error}",
        path.display()
    ))
}

/// SHA-256 over the relative names, modes and contents of a file or folder.
fn hash(path: &Path) -> std::io::Result<String> {
    let mut digest = Sha256::new();
    add(&mut digest, path, Path::new(""))?;
    Ok(digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn add(digest: &mut Sha256, path: &Path, name: &Path) -> std::io::Result<()> {
    let metadata = fs::metadata(path)?;
    digest.update(name.as_os_str().as_encoded_bytes());
    digest.update([0]);
    if metadata.is_dir() {
        for entry in entries(path)? {
            add(
                digest,
                &entry,
                &name.join(entry.file_name().unwrap_or_default()),
            )?;
        }
        return Ok(());
    }
    digest.update((metadata.permissions().mode() & 0o111).to_le_bytes());
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => digest.update(&buffer[..n]),
        }
    }
}

fn entries(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut entries = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

/// Copies beside the target and renames, so that a folder with the right name is whole.
fn copy(from: &Path, target: &Path, file: &Path) -> std::io::Result<()> {
    let mut temporary = target.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    drop(fs::remove_dir_all(&temporary));
    fs::create_dir_all(&temporary)?;
    copy_all(from, &temporary.join(file.file_name().unwrap_or_default()))?;
    drop(fs::remove_dir_all(target));
    fs::rename(&temporary, target)
}

fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    if !fs::metadata(from)?.is_dir() {
        fs::copy(from, to)?;
        // Readable by the tasks' user.
        let executable = fs::metadata(from)?.permissions().mode() & 0o111 != 0;
        return fs::set_permissions(
            to,
            fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }),
        );
    }
    fs::create_dir_all(to)?;
    for entry in entries(from)? {
        copy_all(&entry, &to.join(entry.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use homeostat_model::PackageName;

    fn package(path: &Path) -> PackageSpec {
        PackageSpec {
            name: PackageName::new("app").unwrap(),
            version: "1".into(),
            source: PackageSource::Path {
                candidates: vec!["/nonexistent/app".into(), path.to_owned()],
            },
        }
    }

    #[test]
    fn a_package_is_copied_once_under_its_hash_and_a_change_gets_another() {
        let folder = tempfile::tempdir().unwrap();
        let layout = CellLayout::new(folder.path().join("state"), folder.path().join("run"));
        let program = folder.path().join("app");
        fs::write(&program, "one").unwrap();
        let first = one(&package(&program), &layout).unwrap();
        assert_eq!(fs::read_to_string(&first.path).unwrap(), "one");
        assert_eq!(one(&package(&program), &layout).unwrap(), first);
        fs::write(&program, "two").unwrap();
        let second = one(&package(&program), &layout).unwrap();
        assert_ne!(second.path, first.path);
        assert_eq!(
            fs::read_to_string(&first.path).unwrap(),
            "one",
            "what runs does not change"
        );
    }

    #[test]
    fn what_is_missing_is_named_with_everything_tried() {
        let folder = tempfile::tempdir().unwrap();
        let layout = CellLayout::new(folder.path(), folder.path());
        let error = one(&package(&folder.path().join("nothing")), &layout)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent/app or ") && error.contains("make build"),
            "{error}"
        );
    }
}
