//! A suite in a folder of its own, and how to run it.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use homeostat_checks::{
    Chosen, Doing, Ended, Event, LockFolder, NothingChosen, ProofBook, Report, Reporter,
    RunOptions, Selection, Suite, judge,
};
use homeostat_model::CheckName;
use homeostat_prodtest::Rounds;

/// `{dir}` in its text is its folder.
pub struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    pub fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = text.replace("{dir}", folder.path().to_str().unwrap());
        std::fs::write(folder.path().join("site.star"), text).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn suite(&self) -> Suite {
        let site = homeostat_cellfile::load_site(&self.path("site.star"), BTreeMap::new(), judge);
        let site = site.unwrap_or_else(|error| panic!("{error}"));
        Suite::from_site(site, &ProofBook::default()).unwrap()
    }

    /// Its first check, again and again: a chain, and as many beside it as fill the number.
    pub fn many(&self, count: usize, chain: usize) -> Chosen {
        let first = self.suite().items[0].clone();
        let name = |n: usize| CheckName::new(format!("n{n}")).unwrap();
        let items = (0..count).map(|n| {
            let mut item = first.clone();
            item.name = name(n);
            item.after = if n > 0 && n < chain {
                vec![name(n - 1)]
            } else {
                Vec::new()
            };
            item
        });
        let suite = Suite::new(items.collect(), Vec::new()).unwrap();
        Selection::default().choose(suite).unwrap()
    }

    pub async fn run(&self, doing: Doing) -> Ended {
        self.run_until(doing, std::future::pending()).await
    }

    pub async fn run_until(&self, doing: Doing, stop: impl Future<Output = ()>) -> Ended {
        let chosen = Selection::default().choose(self.suite()).unwrap();
        run(&chosen, doing, Rounds::One, self.locks(), None, stop).await
    }

    /// Remembers from run to run.
    pub async fn run_again(&self, doing: Doing) -> Ended {
        let chosen = Selection::default().choose(self.suite()).unwrap();
        let history = Some(self.path("history.json"));
        let stop = std::future::pending();
        run(&chosen, doing, Rounds::One, self.locks(), history, stop).await
    }

    fn locks(&self) -> LockFolder {
        LockFolder::at(self.path(".locks"))
    }

    pub async fn watch(&self, doing: Doing, stop: impl Future<Output = ()>) -> Ended {
        let chosen = Selection::default().choose(self.suite()).unwrap();
        run(&chosen, doing, Rounds::Endless, self.locks(), None, stop).await
    }

    pub async fn run_chosen(&self, chosen: &Chosen, doing: Doing) -> Ended {
        run(
            chosen,
            doing,
            Rounds::One,
            self.locks(),
            None,
            std::future::pending(),
        )
        .await
    }

    pub async fn run_only(&self, doing: Doing, names: &[&str]) -> Result<Ended, NothingChosen> {
        let selection = Selection {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Selection::default()
        };
        let chosen = selection.choose(self.suite())?;
        Ok(run(
            &chosen,
            doing,
            Rounds::One,
            self.locks(),
            None,
            std::future::pending(),
        )
        .await)
    }
}

async fn run(
    chosen: &Chosen,
    doing: Doing,
    rounds: Rounds,
    locks: LockFolder,
    history: Option<PathBuf>,
    stop: impl Future<Output = ()>,
) -> Ended {
    let mut options = RunOptions::usual(doing, rounds, 1);
    options.locks = locks;
    options.back_off = Duration::from_millis(50);
    options.retry = Duration::from_millis(50);
    options.history = history;
    homeostat_checks::run(chosen, &options, &mut Nobody, stop)
        .await
        .unwrap()
}

struct Nobody;

impl Reporter for Nobody {
    fn event(&mut self, _: &Event<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// `base fail, mid blocked`.
pub fn words(report: &Report) -> String {
    let words = report
        .checks
        .iter()
        .map(|row| format!("{} {}", row.name, row.verdict));
    words.collect::<Vec<_>>().join(", ")
}

/// Whether no process has this command line any more. One that was killed takes a moment to be gone.
pub async fn ends(command: &str) -> bool {
    let gone = async {
        while runs(command) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(2), gone)
        .await
        .is_ok()
}

fn runs(command: &str) -> bool {
    let wanted = command.replace(' ', "\0");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).trim_end_matches('\0') == wanted)
}
