//! Where the programs under test are: beside the test's own binary, as cargo lays them out.

use std::path::PathBuf;

/// The program under test.
pub fn homeostat() -> PathBuf {
    built("homeostat")
}

/// The example, which plain cells use too: as a small HTTP service.
pub fn shop() -> PathBuf {
    built("shop")
}

fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    // target/PROFILE/deps/e2e-HASH
    let folder = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("cargo puts tests two folders deep");
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing; build it with: cargo build -p homeostat -p shop",
        path.display()
    );
    path
}
