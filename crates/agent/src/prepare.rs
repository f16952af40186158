//! Turns an order to start a task into a launch file: resolves templates, picks ports, makes folders, writes files.
//!
//! Everything is idempotent: preparing a task twice leaves the same files and the same ports.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use homeostat_api::v1::{Launch, StartTask, Supervision};
use homeostat_model::{
    Bytes, CellIdentity, Generation, LocalMachine, MachineLayout, PortName, ServiceName, TaskName,
    Template, Variable,
};
use homeostat_supervisor::beneath;
use homeostat_supervisor::launch::{FORMAT, LaunchFile, UserIds};
use homeostat_supervisor::run::{ExitFile, RunError};

use crate::looking::keep_exit;
use crate::{AgentError, users};

/// Where picked ports come from: below Linux's default range for outgoing connections (32768).
const PORTS: (u16, u16) = (20_000, 29_999);

pub(crate) struct Preparing<'a> {
    pub cell: &'a CellIdentity,
    pub machine: &'a LocalMachine,
    pub layout: &'a MachineLayout,
    pub shared: &'a Path,
    /// Ports that other tasks of this machine hold.
    pub taken: Vec<u16>,
}

impl Preparing<'_> {
    /// Prepares `order` and writes its launch file.
    ///
    /// # Errors
    /// When the launch makes no sense, a port is taken, or a folder or file cannot be written.
    pub(crate) fn prepare(&self, order: &StartTask) -> Result<LaunchFile, AgentError> {
        let bad = |error: homeostat_model::BadName| AgentError::BadOrder(error.to_string());
        let task = TaskName::new(order.task.clone()).map_err(bad)?;
        let service = ServiceName::new(order.service.clone()).map_err(bad)?;
        let launch = order.launch.as_ref().ok_or_else(|| AgentError::BadLaunch {
            task: task.clone(),
            why: "nothing to launch".into(),
        })?;
        let user = users::resolve(&task, &launch.user, self.cell.task_user)?;
        let ports = self.ports(&task, launch)?;

        let run = self.layout.task_run(&task);
        let data = self.layout.task_data(&task);
        let logs = self.layout.task_logs(&task);
        make_folder(&run, 0o711)?;
        make_folder(&logs, 0o700)?;
        make_folder(&data, 0o700)?;
        if let Some(user) = user {
            give(&data, user)?;
        }

        let values = Values {
            task: &task,
            order,
            machine: self.machine,
            ports: &ports,
            data: &data,
        };
        let mut launch_file = LaunchFile {
            format: FORMAT,
            task: task.clone(),
            service,
            machine: self.machine.spec.name.clone(),
            generation: Generation(order.generation),
            argv: launch
                .command
                .iter()
                .map(|word| values.fill(word))
                .collect::<Result<_, _>>()?,
            env: launch
                .env
                .iter()
                .map(|(name, value)| Ok((name.clone(), values.fill(value)?)))
                .collect::<Result<_, AgentError>>()?,
            data: data.clone(),
            run: run.clone(),
            logs,
            shared: self.shared.to_owned(),
            user,
            grace_ms: launch.grace_ms,
            memory_limit: launch
                .resources
                .as_ref()
                .map(|r| Bytes(r.memory_bytes))
                .filter(|bytes| bytes.0 > 0),
            address: self.machine.address.clone(),
            ports: ports.clone(),
            keeper: None,
        };
        if launch.supervision == Supervision::Keeper as i32 {
            let text = values.fill(&launch.keeper_json)?;
            let config = serde_json::from_str(&text).map_err(|error| AgentError::BadLaunch {
                task: task.clone(),
                why: format!("its keeper's configuration is not JSON: {error}"),
            })?;
            launch_file.keeper = Some(config);
        }
        for (path, content) in &launch.files {
            let content = values.fill(content)?;
            beneath::write(&data, Path::new(path), content.as_bytes(), user).map_err(|error| {
                let why = format!("cannot write file '{path}' in the task's folder: {error}");
                AgentError::BadLaunch {
                    task: task.clone(),
                    why,
                }
            })?;
        }
        // What is left of an earlier run must not be taken for the end of this one.
        let fail = |error: RunError| AgentError::BadLaunch {
            task: task.clone(),
            why: error.to_string(),
        };
        keep_exit(&run).map_err(fail)?;
        ExitFile::remove(&run).map_err(fail)?;
        launch_file.store().map_err(fail)?;
        Ok(launch_file)
    }

    /// Fixed ports must be free; picked ones are kept from the last time where they still are.
    fn ports(
        &self,
        task: &TaskName,
        launch: &Launch,
    ) -> Result<BTreeMap<PortName, u16>, AgentError> {
        let path = self.layout.task_ports(task);
        let before: BTreeMap<PortName, u16> = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let mut ports = BTreeMap::new();
        for (name, wanted) in &launch.ports {
            let name = PortName::new(name.clone()).map_err(|error| AgentError::BadLaunch {
                task: task.clone(),
                why: error.to_string(),
            })?;
            let port = match u16::try_from(*wanted) {
                Err(_) => {
                    let why = format!("{wanted} is not a port");
                    return Err(AgentError::BadLaunch {
                        task: task.clone(),
                        why,
                    });
                }
                Ok(0) => self.pick(task, before.get(&name).copied(), &ports)?,
                Ok(fixed) if self.free(fixed) => fixed,
                Ok(port) => {
                    let address = self.machine.address.clone();
                    return Err(AgentError::PortTaken {
                        task: task.clone(),
                        address,
                        port,
                    });
                }
            };
            ports.insert(name, port);
        }
        if ports != before {
            let text = serde_json::to_vec(&ports).map_err(|error| AgentError::BadLaunch {
                task: task.clone(),
                why: error.to_string(),
            })?;
            make_folder(path.parent().unwrap_or(&path), 0o700)?;
            write_private(&path, &text)?;
        }
        Ok(ports)
    }

    fn pick(
        &self,
        task: &TaskName,
        before: Option<u16>,
        own: &BTreeMap<PortName, u16>,
    ) -> Result<u16, AgentError> {
        before
            .into_iter()
            .chain(PORTS.0..=PORTS.1)
            .find(|port| {
                !self.taken.contains(port)
                    && !own.values().any(|used| used == port)
                    && self.free(*port)
            })
            .ok_or_else(|| AgentError::NoFreePort {
                task: task.clone(),
                address: self.machine.address.clone(),
                from: PORTS.0,
                to: PORTS.1,
            })
    }

    fn free(&self, port: u16) -> bool {
        TcpListener::bind((self.machine.address.as_str(), port)).is_ok()
    }
}

/// What the variables of one task stand for.
struct Values<'a> {
    task: &'a TaskName,
    order: &'a StartTask,
    machine: &'a LocalMachine,
    ports: &'a BTreeMap<PortName, u16>,
    data: &'a Path,
}

impl Values<'_> {
    fn fill(&self, text: &str) -> Result<String, AgentError> {
        let bad = |why: String| AgentError::BadLaunch {
            task: self.task.clone(),
            why,
        };
        let template = Template::parse(text).map_err(|error| bad(error.to_string()))?;
        template.render(|variable| match variable {
            Variable::Address => Ok(self.machine.address.clone()),
            Variable::Port(name) => self
                .ports
                .get(name)
                .map(u16::to_string)
                .ok_or_else(|| bad(format!("{variable}: it has no port of that name"))),
            Variable::Dir => Ok(self.data.display().to_string()),
            Variable::Task => Ok(self.task.to_string()),
            Variable::Machine => Ok(self.machine.spec.name.to_string()),
            Variable::Package => Ok(self.order.package_path.clone()),
            Variable::Endpoint(_) | Variable::Secret { .. } | Variable::DirOf(_) => self
                .order
                .values
                .get(&variable.to_string())
                .cloned()
                .ok_or_else(|| bad(format!("{variable} is not known to the controller"))),
        })
    }
}

pub(crate) fn make_folder(path: &Path, mode: u32) -> Result<(), AgentError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| AgentError::io("cannot make folder", path, error))
}

/// Replaces a file by one of mode 0600, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), AgentError> {
    let fail = |error| AgentError::io("cannot write", path, error);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(fail)?;
    file.write_all(content).map_err(fail)?;
    drop(file);
    fs::rename(&temporary, path).map_err(fail)
}

fn give(path: &Path, user: UserIds) -> Result<(), AgentError> {
    std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
        .map_err(|error| AgentError::io("cannot hand over", path, error))
}
