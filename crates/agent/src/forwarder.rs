//! The machine's endpoint forwarder, as the agent sees it: started if it is not there, told where services are, found
//! again by the next agent. It goes on when the agent dies.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use homeostat_api::v1::{EndpointTarget, ForwarderReport, OnChange as WireOnChange};
use homeostat_model::{CellLayout, Epoch, LocalMachine, MachineLayout, RecordVersion, ServiceName};
use homeostat_supervisor::endpoint::protocol::{
    Answer, Event, Listening, Message, OnChange, Request, ServiceTarget, Verb,
};
use homeostat_supervisor::endpoint::{EndpointFile, SOCKET};
use tokio::sync::mpsc;

use crate::AgentError;
use crate::prepare::make_folder;
use crate::supervised::detached;
use crate::talk::{Patience, talk};
use crate::wake::Wake;

/// How long open connections may go on after the cell went down.
const DRAIN_MS: u64 = 0;
/// Pause before the forwarder is started again when it could not be.
const AGAIN: Duration = Duration::from_secs(1);

pub(crate) struct Forwarder {
    program: PathBuf,
    run: PathBuf,
    log: PathBuf,
    machine: LocalMachine,
    requests: Option<mpsc::Sender<Request>>,
    pid: u32,
    /// The newest target of each service, told again to a forwarder that was started anew.
    targets: BTreeMap<String, EndpointTarget>,
    errors: BTreeMap<String, String>,
    next_id: u64,
    ending: Ending,
}

/// Whether a forwarder that ends is started again.
#[derive(PartialEq, Eq)]
enum Ending {
    No,
    Yes,
}

impl Forwarder {
    pub(crate) fn new(
        program: PathBuf,
        layout: &MachineLayout,
        cell: &CellLayout,
        machine: &LocalMachine,
    ) -> Self {
        Self {
            program,
            run: layout.endpoint_run(),
            log: cell.log(&format!("endpoint-{}", machine.spec.name)),
            machine: machine.clone(),
            requests: None,
            pid: 0,
            targets: BTreeMap::new(),
            errors: BTreeMap::new(),
            next_id: 0,
            ending: Ending::No,
        }
    }

    /// Starts the forwarder, unless one listens (of two started at once one ends by itself: the run folder is locked), and
    /// talks to it. What fails is tried again after a pause.
    pub(crate) fn start(&mut self, wakes: &mpsc::Sender<Wake>) {
        self.requests = None;
        self.pid = 0;
        if self.ending == Ending::Yes {
            return;
        }
        let socket = self.run.join(SOCKET);
        if UnixStream::connect(&socket).is_err()
            && let Err(error) = self.spawn()
        {
            eprintln!("cannot start the endpoint forwarder: {}", error.line());
            let wakes = wakes.clone();
            tokio::spawn(async move {
                tokio::time::sleep(AGAIN).await;
                // The agent may have ended.
                drop(wakes.send(Wake::ForwarderGone).await);
            });
            return;
        }
        self.requests = Some(talk(
            socket,
            Patience::JustStarted,
            wakes.clone(),
            Wake::Forwarder,
            Wake::ForwarderGone,
        ));
        self.tell(self.targets.values().cloned().collect());
    }

    fn spawn(&self) -> Result<(), AgentError> {
        make_folder(&self.run, 0o700)?;
        EndpointFile::new(self.machine.spec.name.clone()).store(&self.run)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| AgentError::io("cannot open", &self.log, error))?;
        detached(
            &self.program,
            &["forward", &self.run.display().to_string()],
            log,
        )
        .map_err(|error| AgentError::io("cannot start", &self.program, error))
    }

    pub(crate) fn set(&mut self, targets: &[EndpointTarget]) {
        for target in targets {
            let known = self
                .targets
                .get(&target.service)
                .map(|known| (known.epoch, known.version));
            if known.is_none_or(|known| known <= (target.epoch, target.version)) {
                self.targets.insert(target.service.clone(), target.clone());
            }
        }
        self.tell(targets.to_vec());
    }

    fn tell(&mut self, targets: Vec<EndpointTarget>) {
        let targets: Vec<ServiceTarget> = targets
            .iter()
            .filter_map(|target| self.translate(target))
            .collect();
        if targets.is_empty() {
            return;
        }
        self.send(Verb::Set { targets });
    }

    fn send(&mut self, verb: Verb) {
        self.next_id += 1;
        if let Some(requests) = &self.requests
            && requests
                .try_send(Request {
                    id: self.next_id,
                    verb,
                })
                .is_err()
        {
            eprintln!("the endpoint forwarder does not keep up");
            // Ends the conversation; the next one begins with all targets, so none is lost.
            self.requests = None;
        }
    }

    fn translate(&self, target: &EndpointTarget) -> Option<ServiceTarget> {
        let address = |text: &String| text.parse::<SocketAddr>().ok();
        Some(ServiceTarget {
            service: ServiceName::new(target.service.clone()).ok()?,
            listen: format!("{}:{}", self.machine.address, target.port)
                .parse()
                .ok()?,
            epoch: Epoch(target.epoch),
            version: RecordVersion(target.version),
            targets: target.targets.iter().filter_map(address).collect(),
            on_change: if target.on_change == WireOnChange::Close as i32 {
                OnChange::Close
            } else {
                OnChange::Keep
            },
            hold_ms: target.hold_ms,
        })
    }

    /// Takes in a word of the forwarder; answers with what the controller should hear.
    pub(crate) fn heard(&mut self, message: Message) -> Vec<ForwarderReport> {
        match message {
            Message::Hello(hello) => {
                self.pid = hello.forwarder.pid;
                for service in hello.services {
                    match service.listening {
                        Listening::Yes => self.errors.remove(service.target.service.as_str()),
                        Listening::No { why } => {
                            self.errors.insert(service.target.service.to_string(), why)
                        }
                    };
                }
                self.reports()
            }
            Message::Event(Event::ListenFailed {
                service,
                listen,
                why,
            }) => {
                self.errors.insert(
                    service.to_string(),
                    format!("cannot listen on {listen}: {why}"),
                );
                self.reports()
            }
            Message::Event(Event::Listening { service, listen: _ }) => {
                self.errors.remove(service.as_str());
                self.reports()
            }
            Message::Reply {
                id: _,
                answer: Answer::Refused { why },
            } => {
                eprintln!("the endpoint forwarder refused: {why}");
                Vec::new()
            }
            Message::Reply {
                id: _,
                answer: Answer::Accepted | Answer::Taken { .. } | Answer::Status { .. },
            }
            | Message::Event(Event::Drained { .. }) => Vec::new(),
        }
    }

    /// One report per service, and one without a service that says who the forwarder is.
    pub(crate) fn reports(&self) -> Vec<ForwarderReport> {
        let report = |service: &str, port| ForwarderReport {
            service: service.to_owned(),
            pid: self.pid,
            error: self.errors.get(service).cloned().unwrap_or_default(),
            port,
        };
        self.targets
            .iter()
            .map(|(service, target)| report(service, target.port))
            .chain(std::iter::once(report("", 0)))
            .collect()
    }

    /// Ends it with the cell. Says whether there is one to wait for; the order is only on its way.
    pub(crate) fn stop(&mut self) -> bool {
        self.ending = Ending::Yes;
        self.send(Verb::Drain {
            within_ms: DRAIN_MS,
        });
        self.requests
            .as_ref()
            .is_some_and(|requests| !requests.is_closed())
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending == Ending::Yes
    }
}
