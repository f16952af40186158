//! Reading in another process, with a real one. This test is its own child: started with a path in the environment it
//! answers for that path, which the usual test harness could not do without writing to the same output.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use homeostat_cellfile::{ProblemKind, answer, load, load_apart};

const ANSWER_FOR: &str = "HOMEOSTAT_TEST_ANSWER_FOR";

fn main() {
    if let Some(path) = std::env::var_os(ANSWER_FOR) {
        answer(Path::new(&path), std::io::stdout().lock()).unwrap();
        return;
    }
    both_ways_read_the_same_cell();
    problems_come_back_whole();
    a_primitive_that_eats_all_memory_is_survived();
    a_child_that_says_nothing_is_a_problem();
    println!("test result: ok. 4 passed");
}

fn apart(path: &Path) -> Result<homeostat_model::CellSpec, homeostat_cellfile::CellFileError> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.env(ANSWER_FOR, path);
    load_apart(child, path)
}

fn write(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("cell.star");
    std::fs::write(&path, text).unwrap();
    path
}

fn both_ways_read_the_same_cell() {
    let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop/cell.star");
    assert_eq!(apart(&shop).unwrap(), load(&shop).unwrap());
}

fn problems_come_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(
        folder.path(),
        "cell(\"a\")\nmachine(\"m1\", cpu = 0)\njob(1)\n",
    );
    let (there, here) = (apart(&path).unwrap_err(), load(&path).unwrap_err());
    assert_eq!(there, here);
    assert!(there.problems.len() > 2);
}

fn a_primitive_that_eats_all_memory_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(
        folder.path(),
        "x = \"x\" * 2000000000 + \"y\" * 2000000000\n",
    );
    let error = apart(&path).unwrap_err();
    assert_eq!(error.problems.len(), 1);
    assert_eq!(error.problems[0].kind, ProblemKind::Declared);
    assert!(
        error.problems[0]
            .message
            .contains("too much memory or time"),
        "{error}"
    );
}

fn a_child_that_says_nothing_is_a_problem() {
    let error = load_apart(Command::new("/bin/true"), Path::new("cell.star")).unwrap_err();
    assert_eq!(error.problems.len(), 1);
    let error = load_apart(Command::new("/no/such/program"), Path::new("cell.star")).unwrap_err();
    assert_eq!(error.problems[0].kind, ProblemKind::Environment);
}
