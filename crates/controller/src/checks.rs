//! Runs the cell's production tests: the engine decides what to look at and what to believe, probes look.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use homeostat_api::v1::{InspectRequest, ServiceState};
use homeostat_api::{Refusal, RefusalKind};
use homeostat_model::{
    CheckName, CheckSpec, CheckTarget, FileTemplate, MachineName, ProbeSpec, ServiceName, Template,
    Variable,
};
use homeostat_probes::{CommandProbe, HttpProbe, Probe, Prober, RunAs, SqlProbe, SqlUrl, TcpProbe};
use homeostat_prodtest::{
    Change, Engine, EngineConfig, Fence, Moment, Observation, Outcome, Rounds, Run, Suite, Unknown,
    Verdict,
};
use homeostat_supervisor::beneath;
use homeostat_supervisor::launch::UserIds;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::core::{Applied, Core};
use crate::services::Services;
use crate::values::{endpoint_on, secret};

const MOST_AT_ONCE: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not zero");
/// Pause before an unconfirmed failure is looked at again.
const RETRY: Duration = Duration::from_millis(250);
const QUEUE: usize = 1024;

/// A verdict as shown to people.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CheckView {
    pub name: CheckName,
    pub about: String,
    pub verdict: &'static str,
    pub expected: String,
    pub seen: String,
    pub blocked_by: Vec<CheckName>,
    pub took_ms: u64,
    /// Milliseconds since the last probe reported; absent when none did.
    pub age_ms: Option<u64>,
}

/// The checks of the cell as applied; replaced whole when another specification is applied.
#[derive(Default)]
pub(crate) struct Checks {
    views: Mutex<Vec<CheckView>>,
    /// When the probe of each check's last verdict began.
    begun: Mutex<BTreeMap<CheckName, Instant>>,
    running: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Checks {
    pub(crate) fn views(&self) -> Vec<CheckView> {
        self.views
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// When the probe of each check's last verdict began. To be read before the views: then it is never the younger.
    pub(crate) fn begun(&self) -> BTreeMap<CheckName, Instant> {
        self.begun
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Starts the checks of `applied`, ending those that ran before.
    pub(crate) fn start(
        self: &Arc<Self>,
        core: Arc<Core>,
        services: Arc<Services>,
        applied: &Applied,
    ) {
        let specs = applied.spec.checks.clone();
        let checks = Arc::clone(self);
        self.stop();
        let task = tokio::spawn(async move { run(&checks, core, services, specs).await });
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Whether they are being run.
    pub(crate) fn run(&self) -> bool {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    pub(crate) fn stop(&self) {
        if let Some(before) = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            before.abort();
        }
        self.views
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

async fn run(checks: &Checks, core: Arc<Core>, services: Arc<Services>, specs: Vec<CheckSpec>) {
    let suite = match Suite::new(specs.iter().map(Into::into).collect()) {
        Ok(suite) => suite,
        Err(error) => {
            core.events.add(
                "checks",
                "cell",
                format!("the checks cannot be run: {error}"),
            );
            return;
        }
    };
    let specs: BTreeMap<CheckName, Arc<CheckSpec>> = specs
        .into_iter()
        .map(|spec| (spec.name.clone(), Arc::new(spec)))
        .collect();
    let began = Instant::now();
    let now =
        || Moment::from_millis(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    let mut engine = Engine::new(
        suite,
        EngineConfig {
            most_at_once: MOST_AT_ONCE,
            most_per_target: MOST_AT_ONCE,
            most_fixes_at_once: NonZeroUsize::MIN,
            retry: RETRY,
            back_off: RETRY,
            longest_back_off: RETRY,
            rounds: Rounds::Endless,
            seed: 0,
            fence: Fence(0),
        },
        now(),
    );
    let eyes = Arc::new(Eyes {
        core: Arc::clone(&core),
        services,
        prober: Prober::new(),
    });
    let (reports, mut reported) = mpsc::channel::<(Run, Observation)>(QUEUE);
    let mut changes = core.hub.changes();
    let mut probing: Vec<(Run, tokio::task::AbortHandle)> = Vec::new();
    // Probes end with this loop.
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let due = engine.due(now());
        tell(&core, &engine, &due.changes);
        for run in due.given_up {
            probing.retain(|(other, handle)| {
                let same = *other == run;
                if same {
                    handle.abort();
                }
                !same
            });
        }
        for run in due.runs {
            let Some(spec) = specs.get(engine.suite().name(run.check)).cloned() else {
                continue;
            };
            let (eyes, reports, asked) = (Arc::clone(&eyes), reports.clone(), run.clone());
            let handle = tasks.spawn(async move {
                let observation = eyes.look(&spec, asked.timeout).await;
                drop(reports.send((asked, observation)).await);
            });
            probing.push((run, handle));
        }
        publish(checks, &engine, &specs, now());
        let wake = engine
            .wake_at()
            .map(|at| began + Duration::from_millis(at.as_millis()));
        tokio::select! {
            report = reported.recv() => {
                let Some((run, observation)) = report else { return };
                probing.retain(|(other, _)| *other != run);
                match engine.finished(&run, observation, now()) {
                    Ok(news) => tell(&core, &engine, &news),
                    Err(stale) => eprintln!("{stale}"),
                }
            }
            Some(_) = tasks.join_next() => {}
            // Something happened to a task or an endpoint: what is about it is worth a look.
            Ok(()) = changes.changed() => look_again(&mut engine, now()),
            () = until(wake) => {}
        }
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Only what does not pass: events come often, and a passing check has its turn soon enough.
fn look_again(engine: &mut Engine, now: Moment) {
    let worth: Vec<_> = engine
        .verdicts()
        .filter(|(_, verdict)| !verdict.passes())
        .map(|(check, _)| check)
        .collect();
    for check in worth {
        engine.look_again(check, now);
    }
}

fn tell(core: &Core, engine: &Engine, changes: &[Change]) {
    for change in changes {
        let name = engine.suite().name(change.check);
        let text = match &change.is {
            // A turn that has come and gone is no news to people.
            Verdict::Unknown(Unknown::Due | Unknown::Waiting) => continue,
            Verdict::Unknown(why @ (Unknown::NotRun { .. } | Unknown::Lost { .. })) => {
                format!("unknown: {why}")
            }
            Verdict::Pass(_) => "passes".to_owned(),
            Verdict::Flaky { .. } => "passes, and is flaky".to_owned(),
            Verdict::Fail(evidence) => format!(
                "fails: expected {}, seen {}",
                evidence.expected, evidence.seen
            ),
            Verdict::Fixing(repair) => format!("fails, and {}", repair.stage),
            Verdict::GaveUp(repair) => format!("fails after {} fixes", repair.applied),
            Verdict::Blocked(roots) => {
                let names: Vec<&str> = roots
                    .named()
                    .iter()
                    .map(|id| engine.suite().name(*id).as_str())
                    .collect();
                format!("blocked by {}", names.join(", "))
            }
        };
        core.events.add("check", name.as_str(), text);
    }
    if !changes.is_empty() {
        core.hub.touch();
    }
}

fn publish(
    checks: &Checks,
    engine: &Engine,
    specs: &BTreeMap<CheckName, Arc<CheckSpec>>,
    now: Moment,
) {
    let mut views: Vec<CheckView> = engine
        .verdicts()
        .map(|(id, verdict)| {
            let name = engine.suite().name(id).clone();
            let evidence = verdict.evidence();
            let (seen, blocked_by) = match verdict {
                Verdict::Unknown(why) => (why.to_string(), engine.waits_for(id)),
                Verdict::Blocked(roots) => (String::new(), roots.named().to_vec()),
                Verdict::Pass(evidence)
                | Verdict::Flaky { evidence, .. }
                | Verdict::Fail(evidence) => (evidence.seen.clone(), Vec::new()),
                Verdict::Fixing(repair) | Verdict::GaveUp(repair) => {
                    (repair.evidence.seen.clone(), Vec::new())
                }
            };
            CheckView {
                about: specs
                    .get(&name)
                    .map(|spec| about(&spec.about))
                    .unwrap_or_default(),
                verdict: verdict.word(),
                expected: evidence
                    .map(|evidence| evidence.expected.clone())
                    .unwrap_or_default(),
                seen,
                blocked_by: blocked_by
                    .iter()
                    .map(|id| engine.suite().name(*id).clone())
                    .collect(),
                took_ms: evidence.map_or(0, |evidence| {
                    u64::try_from(evidence.took.as_millis()).unwrap_or(u64::MAX)
                }),
                age_ms: evidence.map(|evidence| {
                    u64::try_from(now.since(evidence.at).as_millis()).unwrap_or(u64::MAX)
                }),
                name,
            }
        })
        .collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    *checks.views.lock().unwrap_or_else(PoisonError::into_inner) = views;
    let begun = engine.verdicts().filter_map(|(id, verdict)| {
        let evidence = verdict.evidence()?;
        let began = Instant::now().checked_sub(now.since(evidence.at) + evidence.took)?;
        Some((engine.suite().name(id).clone(), began))
    });
    *checks.begun.lock().unwrap_or_else(PoisonError::into_inner) = begun.collect();
}

fn mentions_secret(text: &str) -> Result<bool, Refusal> {
    let template =
        Template::parse(text).map_err(|error| Refusal::bad_request(error.to_string()))?;
    Ok(template
        .variables()
        .any(|variable| matches!(variable, Variable::Secret { .. })))
}

fn about(target: &CheckTarget) -> String {
    match target {
        CheckTarget::Service(name) => name.to_string(),
        CheckTarget::Machine(name) => name.to_string(),
        CheckTarget::Cell => "cell".to_owned(),
    }
}

/// What probes need of the cell.
struct Eyes {
    core: Arc<Core>,
    services: Arc<Services>,
    prober: Prober,
}

impl Eyes {
    async fn look(&self, spec: &CheckSpec, within: Duration) -> Observation {
        let began = Instant::now();
        let failed = |outcome, seen: String| Observation {
            outcome,
            expected: "the check can be carried out".to_owned(),
            seen,
            took: began.elapsed(),
        };
        if let ProbeSpec::Tasks { service } = &spec.probe {
            return self.tasks(service, began).await;
        }
        match self.resolve(spec).await {
            Ok(probe) => self.prober.run(&probe, within).await,
            // What is not there yet fails the check; what could not be found out says nothing.
            Err(refusal) => match refusal.kind {
                RefusalKind::NotNow | RefusalKind::NotFound | RefusalKind::BadRequest => {
                    failed(Outcome::Failed, refusal.message)
                }
                RefusalKind::Stale | RefusalKind::Unknown | RefusalKind::Internal => {
                    failed(Outcome::NotRun, refusal.message)
                }
            },
        }
    }

    /// The service's own word on whether all of it is there.
    async fn tasks(&self, service: &ServiceName, began: Instant) -> Observation {
        let expected = "every task of it runs".to_owned();
        let answer = match self.services.admin(service) {
            Some(admin) => {
                admin
                    .inspect(InspectRequest {
                        service: service.to_string(),
                    })
                    .await
            }
            None => Err(Refusal::not_found(format!(
                "{service} is not a service of this cell"
            ))),
        };
        let (outcome, seen) = match answer {
            Ok(reply) if reply.state == ServiceState::Up as i32 => {
                (Outcome::Passed, "all run".to_owned())
            }
            // It must pass while tasks wait to be replaced: that is what their replacement waits for.
            Ok(reply) if reply.state == ServiceState::Updating as i32 => (
                Outcome::Passed,
                "all run, some are to be replaced".to_owned(),
            ),
            Ok(reply) => (Outcome::Failed, format!("waits for {}", reply.waits_for)),
            Err(refusal) => (Outcome::NotRun, refusal.message),
        };
        Observation {
            outcome,
            expected,
            seen,
            took: began.elapsed(),
        }
    }

    /// Where probes look from.
    fn machine(&self) -> Result<MachineName, Refusal> {
        self.core
            .vantage()
            .ok_or_else(|| Refusal::not_now("the cell has no machine"))
    }

    /// Fills a check's template in. `dir` is the check's own folder, where its files are.
    async fn fill(&self, text: &str, dir: &Path, package: Option<&str>) -> Result<String, Refusal> {
        let machine = self.machine()?;
        let template =
            Template::parse(text).map_err(|error| Refusal::bad_request(error.to_string()))?;
        let mut values = BTreeMap::new();
        for variable in template.variables() {
            let value = match variable {
                Variable::Endpoint(of) => endpoint_on(&self.core, of, &machine)?,
                Variable::Secret { service, name } => {
                    secret(&self.core, service, name, &machine).await?
                }
                Variable::DirOf(task) => {
                    let place = self.core.placements.of(task);
                    let place = place
                        .ok_or_else(|| Refusal::not_now(format!("{task} has no place yet")))?;
                    self.core
                        .layout
                        .machine(&place.machine)
                        .task_data(task)
                        .display()
                        .to_string()
                }
                Variable::Machine => machine.to_string(),
                Variable::Dir => dir.display().to_string(),
                Variable::Package => package
                    .ok_or_else(|| Refusal::bad_request("this check names no package"))?
                    .to_owned(),
                Variable::Address | Variable::Port(_) | Variable::Task => {
                    return Err(Refusal::bad_request(format!("a check has no {variable}")));
                }
            };
            values.insert(variable.clone(), value);
        }
        template.render(|variable| {
            values
                .get(variable)
                .cloned()
                .ok_or_else(|| Refusal::internal(format!("{variable} was not resolved")))
        })
    }

    async fn resolve(&self, spec: &CheckSpec) -> Result<Probe, Refusal> {
        let dir = self
            .core
            .layout
            .state
            .join("checks")
            .join(spec.name.as_str().replace('/', "."));
        match &spec.probe {
            ProbeSpec::Tcp { at } => {
                Ok(Probe::Tcp(TcpProbe::new(self.fill(at, &dir, None).await?)))
            }
            ProbeSpec::Http(http) => Ok(Probe::Http(HttpProbe::get(
                self.fill(&http.at, &dir, None).await?,
                http.path.clone(),
                http.status,
                http.contains.clone(),
            ))),
            ProbeSpec::Sql {
                service,
                query,
                want,
            } => {
                let url = secret(&self.core, service, "dsn", &self.machine()?).await?;
                Ok(Probe::Sql(SqlProbe::single(
                    SqlUrl::new(url),
                    query.clone(),
                    want.clone(),
                )))
            }
            ProbeSpec::Command {
                package,
                command,
                files,
            } => {
                let path = match package {
                    Some(name) => Some(
                        self.core
                            .applied()
                            .and_then(|applied| {
                                applied
                                    .builds
                                    .get(name)
                                    .map(|build| build.path.display().to_string())
                            })
                            .ok_or_else(|| {
                                Refusal::not_now(format!("package {name} is not installed yet"))
                            })?,
                    ),
                    None => None,
                };
                self.prepare(&dir, files).await?;
                let mut argv = Vec::new();
                for word in command {
                    // Anybody on the machine can read a command line.
                    if mentions_secret(word)? {
                        return Err(Refusal::bad_request(format!(
                            "'{word}': a secret may stand in a file only"
                        )));
                    }
                    argv.push(self.fill(word, &dir, path.as_deref()).await?);
                }
                Ok(Probe::Command(CommandProbe {
                    run_as: self
                        .run_as()
                        .map(|UserIds { uid, gid }| RunAs::Ids { uid, gid }),
                    dir,
                    ..CommandProbe::new(argv)
                }))
            }
            ProbeSpec::Tasks { service } => Err(Refusal::internal(format!(
                "the tasks of {service} are not looked at by a probe"
            ))),
        }
    }

    fn run_as(&self) -> Option<UserIds> {
        let user = self
            .core
            .identity
            .task_user
            .filter(|_| rustix::process::geteuid().is_root());
        user.map(|id| UserIds { uid: id, gid: id })
    }

    /// Makes the check's own folder, with its files.
    async fn prepare(&self, dir: &Path, files: &[FileTemplate]) -> Result<(), Refusal> {
        let fail = |error: std::io::Error| {
            Refusal::internal(format!("cannot prepare {}: {error}", dir.display()))
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(fail)?;
        let user = self.run_as();
        if let Some(user) = user {
            std::os::unix::fs::chown(dir, Some(user.uid), Some(user.gid)).map_err(fail)?;
        }
        for file in files {
            let content = self.fill(&file.content, dir, None).await?;
            beneath::write(dir, &file.path, content.as_bytes(), user).map_err(fail)?;
        }
        Ok(())
    }
}
