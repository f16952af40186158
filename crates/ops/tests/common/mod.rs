//! A real store in a folder of its own, and a procedure whose effects are files there: they survive a process, and
//! can be looked at by whoever comes after.
#![allow(dead_code)] // Each test file uses its own selection.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use homeostat_journal::*;
use homeostat_model::{OperationId, ProcedureName, ServiceName, StepName, Term};
use homeostat_ops::*;
use homeostat_store::{EmbeddedConfig, EmbeddedStore, Store};
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast};

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Room {
    pub folder: tempfile::TempDir,
    pub store: Arc<dyn Store>,
}

impl Room {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path()).await;
        Self { folder, store }
    }

    pub async fn executor(&self, term: u64) -> Executor {
        Executor::open(self.store.clone(), Term(term), Arc::new(SystemClock))
            .await
            .unwrap()
    }

    pub fn hands(&self, faults: &[(&str, Fault)]) -> Arc<Hands> {
        Hands::new(self.folder.path(), faults)
    }

    /// The steps whose effect is there.
    pub fn effects(&self) -> Vec<String> {
        effects(self.folder.path())
    }
}

pub async fn open_store(folder: &Path) -> Arc<dyn Store> {
    let config = EmbeddedConfig {
        keep_revisions: EmbeddedConfig::KEEP_REVISIONS,
    };
    Arc::new(
        EmbeddedStore::open(folder.join("store.redb"), config)
            .await
            .unwrap(),
    )
}

pub fn effects(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            entry
                .unwrap()
                .file_name()
                .into_string()
                .unwrap()
                .strip_suffix(".effect")
                .map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

/// What befalls a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    FailsOnce,
    FailsAlways,
    PanicsOnce,
    /// Does its work and then does not come back, until told to stop.
    Hangs,
    /// Hangs in its first attempt only.
    HangsOnce,
    UndoFailsAlways,
    /// Succeeds without an effect, once.
    NoEffectOnce,
}

pub struct Hands {
    name: ProcedureName,
    folder: PathBuf,
    faults: BTreeMap<String, Fault>,
    /// What was called, in order: `run start`, `undo start`.
    pub calls: Mutex<Vec<String>>,
    /// A step that hangs has begun to.
    pub hanging: Notify,
}

impl Hands {
    pub fn new(folder: &Path, faults: &[(&str, Fault)]) -> Arc<Self> {
        Arc::new(Self {
            name: procedure(),
            folder: folder.to_owned(),
            faults: faults
                .iter()
                .map(|(step, fault)| ((*step).to_owned(), *fault))
                .collect(),
            calls: Mutex::default(),
            hanging: Notify::new(),
        })
    }

    pub fn called(&self, what: &str) -> usize {
        self.calls
            .lock()
            .unwrap()
            .iter()
            .filter(|call| *call == what)
            .count()
    }

    fn effect(&self, step: &StepPlan) -> PathBuf {
        self.folder.join(format!("{}.effect", step.name))
    }
}

#[async_trait::async_trait]
impl Procedure for Hands {
    fn name(&self) -> &ProcedureName {
        &self.name
    }

    fn version(&self) -> u32 {
        1
    }

    async fn run(&self, step: &StepPlan, context: &StepContext) -> Result<Value, StepError> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("run {}", step.name));
        let first = context.attempt == Attempt(1);
        let fault = self.faults.get(step.name.as_str());
        match fault {
            Some(Fault::FailsOnce) if first => return Err(StepError::retryable("no answer")),
            Some(Fault::PanicsOnce) if first => panic!("what a mess"),
            Some(Fault::NoEffectOnce) if first => return Ok(Value::Null),
            _ => {}
        }
        std::fs::write(self.effect(step), "").unwrap();
        let hangs = fault == Some(&Fault::Hangs) || fault == Some(&Fault::HangsOnce) && first;
        if hangs {
            self.hanging.notify_one();
            context.cancellation.cancelled().await;
            return Err(StepError::retryable("told to stop"));
        }
        if fault == Some(&Fault::FailsAlways) {
            // Partly run: its effect is there.
            return Err(StepError::retryable("no answer"));
        }
        Ok(json!({ "after": context.outputs.len() }))
    }

    async fn verify(&self, step: &StepPlan, context: &StepContext) -> Result<(), Evidence> {
        assert!(
            context.outputs.contains_key(&step.name),
            "what is verified has run"
        );
        if self.effect(step).exists() {
            Ok(())
        } else {
            Err("its file is not there".into())
        }
    }

    async fn undo(&self, step: &StepPlan, _: &StepContext) -> Result<(), StepError> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("undo {}", step.name));
        if self.faults.get(step.name.as_str()) == Some(&Fault::UndoFailsAlways) {
            return Err(StepError::retryable("it sticks"));
        }
        match std::fs::remove_file(self.effect(step)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StepError::from_error(&error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

pub fn procedure() -> ProcedureName {
    ProcedureName::new("turnup").unwrap()
}

pub fn step(name: &str) -> StepPlan {
    StepPlan {
        name: StepName::new(name).unwrap(),
        about: format!("do {name}"),
        parameters: Value::Null,
        manual: None,
        retry: Retry {
            max_attempts: 2,
            first: Duration::from_millis(5),
            longest: Duration::from_millis(10),
        },
        timeout: Duration::from_secs(20),
        undo: Undo::ByProcedure,
    }
}

pub fn draft() -> Draft {
    Draft {
        procedure: procedure(),
        version: 1,
        scope: BTreeSet::from([Touched::Service(ServiceName::new("shop-db").unwrap())]),
        asked_by: Asker::Person(alice()),
        why: "first start of the cell".into(),
        approval: Approval::NotNeeded,
        on_failure: OnFailure::Undo,
        steps: vec![step("place"), step("start"), step("open")],
    }
}

pub fn alice() -> Person {
    Person("alice".into())
}

pub fn by_alice() -> Asker {
    Asker::Person(alice())
}

pub fn id(n: u64) -> OperationId {
    OperationId::new(format!("turnup-{n}")).unwrap()
}

/// The records in words.
pub async fn story(executor: &Executor, id: &OperationId) -> String {
    let view = executor.get(id).await.unwrap();
    view.log
        .iter()
        .map(|record| describe(view.operation.plan(), record) + "\n")
        .collect()
}

/// Waits for a record with such an event.
pub async fn until(
    progress: &mut broadcast::Receiver<Progress>,
    wanted: impl Fn(&Event) -> bool,
) -> Progress {
    let wait = async {
        loop {
            let seen = progress.recv().await.unwrap();
            if wanted(&seen.record.event) {
                return seen;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("it never happened")
}

/// Runs in the background.
pub fn spawn(
    executor: &Executor,
    id: &OperationId,
    hands: &Arc<Hands>,
) -> tokio::task::JoinHandle<Result<Outcome, OpsError>> {
    let (executor, id, hands) = (executor.clone(), id.clone(), hands.clone());
    tokio::spawn(async move { executor.run(&id, hands).await })
}

pub async fn ended(
    run: tokio::task::JoinHandle<Result<Outcome, OpsError>>,
) -> Result<Outcome, OpsError> {
    tokio::time::timeout(PATIENCE, run)
        .await
        .expect("it never ended")
        .unwrap()
}
