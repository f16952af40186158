//! From what was declared to what the contract carries, and a short name for it.

use homeostat_api::v1::{Launch, Resources, Supervision};
use homeostat_model::{JobSpec, TaskUser};
use sha2::{Digest, Sha256};

pub(crate) fn launch(spec: &JobSpec) -> Launch {
    let task = &spec.task;
    Launch {
        package: task.package.to_string(),
        command: task.command.clone(),
        env: task
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        files: task
            .files
            .iter()
            .map(|file| {
                (
                    file.path.to_string_lossy().into_owned(),
                    file.content.clone(),
                )
            })
            .collect(),
        ports: task
            .ports
            .iter()
            .map(|(name, port)| (name.to_string(), port.map_or(0, u32::from)))
            .collect(),
        resources: Some(resources(spec)),
        user: match &task.user {
            TaskUser::Cell => "cell".to_owned(),
            TaskUser::Root => "root".to_owned(),
            TaskUser::Named(name) => name.clone(),
        },
        grace_ms: u64::try_from(task.grace.as_millis()).unwrap_or(u64::MAX),
        supervision: Supervision::Plain as i32,
        keeper_json: String::new(),
    }
}

pub(crate) fn resources(spec: &JobSpec) -> Resources {
    Resources {
        cpu_milli: spec.task.resources.cpu.0,
        memory_bytes: spec.task.resources.memory.0,
    }
}

/// Names what a task was started from: two tasks with the same fingerprint need no replacement. `package` is the
/// content hash of the package, so that a new build under the same name is seen.
pub(crate) fn fingerprint(spec: &JobSpec, package: &str) -> String {
    let text = serde_json::to_vec(&spec.task).unwrap_or_default();
    let digest = Sha256::new()
        .chain_update(&text)
        .chain_update(package.as_bytes())
        .finalize();
    digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
