//! The SQL service against real keepers and servers, through the contract alone.

#![allow(clippy::unwrap_used)]

mod cell;
mod hang;
mod rebuild;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cell::{Controller, PATIENCE, RUN_DIR, SERVICE, TestCell};
use homeostat_api::grpc::RemoteAdmin;
use homeostat_api::v1::*;
use homeostat_api::{AdminServer, RefusalKind, uds};
use homeostat_model::{
    Bytes, Durability, Flavor, MilliCpu, Profile, Reads, Resources, ServiceKind, ServiceName,
    ServiceSpec, SqlSpec, TaskState,
};
use homeostat_sql::SqlServer;
use homeostat_sql::service::{ClusterView, Copying, Role, serve_service};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};

/// Not a test: the process that a cell starts for each of its keepers.
#[test]
fn keeper_process() {
    if let Some(run_dir) = std::env::var_os(RUN_DIR) {
        homeostat_sql::keeper::keep(Path::new(&run_dir)).unwrap();
    }
}

const CELL_SOCKET: &str = "HOMEOSTAT_TEST_CELL";
const ADMIN_SOCKET: &str = "HOMEOSTAT_TEST_ADMIN";

/// Not a test: the process of a service that is none of the controller's.
#[test]
fn service_process() {
    if let (Some(cell), Some(admin)) = (
        std::env::var_os(CELL_SOCKET),
        std::env::var_os(ADMIN_SOCKET),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime
            .block_on(serve_service(
                Path::new(&cell),
                Path::new(&admin),
                service(),
            ))
            .unwrap();
    }
}

fn service() -> ServiceName {
    ServiceName::new(SERVICE).unwrap()
}

fn spec() -> ServiceSpec {
    let sql = SqlSpec {
        members: 3,
        flavor: Flavor::MariaDb,
        database: "shop".into(),
        resources: Resources {
            cpu: MilliCpu(500),
            memory: Bytes::mib(512),
        },
        profile: Profile::Steady,
        reads: Reads::Bounded,
        durability: Durability::Power,
        cold_wait: Duration::from_secs(60),
        settings: BTreeMap::new(),
    };
    ServiceSpec {
        name: service(),
        owner: "team".into(),
        needs: Vec::new(),
        kind: ServiceKind::Sql(sql),
    }
}

fn server(cell: &TestCell) -> SqlServer {
    SqlServer::new(service(), Arc::new(cell.clone()))
}

async fn up(cell: &TestCell, server: &dyn AdminServer) {
    up_as(cell, server, &spec()).await;
}

async fn up_as(cell: &TestCell, server: &dyn AdminServer, spec: &ServiceSpec) {
    let spec_json = serde_json::to_string(spec).unwrap();
    let request = TurnupRequest {
        service: SERVICE.into(),
        spec_json,
        term: cell.term(),
    };
    let begun = Instant::now();
    match tokio::time::timeout(PATIENCE, server.turnup(request)).await {
        Ok(answer) => drop(answer.unwrap()),
        Err(_) => panic!(
            "not up: {:?}\n{}",
            inspect(server).await,
            cell.notes().join("\n")
        ),
    }
    println!(
        "  up after {:.0} ms",
        begun.elapsed().as_secs_f64() * 1000.0
    );
}

async fn inspect(server: &dyn AdminServer) -> (ServiceState, String, ClusterView) {
    let reply = server
        .inspect(InspectRequest {
            service: SERVICE.into(),
        })
        .await
        .unwrap();
    let view = serde_json::from_str(&reply.detail_json).unwrap();
    (
        ServiceState::try_from(reply.state).unwrap(),
        reply.waits_for,
        view,
    )
}

/// Looks again and again until the cluster is as wanted.
async fn until(
    cell: &TestCell,
    server: &dyn AdminServer,
    wanted: impl Fn(ServiceState, &ClusterView) -> bool,
) -> ClusterView {
    let begun = Instant::now();
    loop {
        let (state, waits, view) = inspect(server).await;
        if wanted(state, &view) {
            return view;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{state:?}, waits for {waits}: {view:#?}\n{}",
            cell.notes().join("\n")
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn act(
    server: &dyn AdminServer,
    verb: &str,
    arguments: &[(&str, &str)],
) -> Result<ActReply, homeostat_api::Refusal> {
    let arguments = arguments
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    server
        .act(ActRequest {
            by: String::new(),
            service: SERVICE.into(),
            verb: verb.into(),
            arguments,
        })
        .await
}

/// Connects where the endpoint leads, as the application.
async fn app(cell: &TestCell) -> Conn {
    let mut endpoint = cell.endpoint();
    let target = tokio::time::timeout(
        PATIENCE,
        endpoint.wait_for(|target| {
            target
                .as_ref()
                .is_some_and(|target| !target.targets.is_empty())
        }),
    );
    let target = target.await.unwrap().unwrap().clone().unwrap();
    let (host, port) = target.targets[0].split_once(':').unwrap();
    let opts = OptsBuilder::default()
        .ip_or_hostname(host.to_owned())
        .tcp_port(port.parse().unwrap())
        .user(Some("app"))
        .pass(cell.value("secret/app-password"))
        .db_name(Some("shop"))
        .prefer_socket(false);
    Conn::new(opts).await.unwrap()
}

async fn fill(conn: &mut Conn, rows: std::ops::Range<u32>) {
    conn.query_drop("CREATE TABLE IF NOT EXISTS t (id INT PRIMARY KEY)")
        .await
        .unwrap();
    for row in rows {
        conn.query_drop(format!("INSERT INTO t VALUES ({row})"))
            .await
            .unwrap();
    }
}

async fn count(conn: &mut Conn) -> u32 {
    conn.query_first("SELECT COUNT(*) FROM t")
        .await
        .unwrap()
        .unwrap()
}

fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn pid_of(view: &ClusterView, task: &str) -> u32 {
    view.members
        .iter()
        .find(|member| member.task == task)
        .and_then(|member| member.pid)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_replaced_and_nothing_is_lost() {
    let cell = TestCell::new(1);
    let server = server(&cell);
    up(&cell, &server).await;
    let (_, waits, view) = inspect(&server).await;
    assert_eq!(waits, "");
    assert_eq!(
        (view.epoch, view.phase.as_str(), view.primary.as_deref()),
        (1, "serving", Some("db-0"))
    );
    let roles: Vec<_> = view
        .members
        .iter()
        .map(|member| (member.role, member.acker, member.state.as_str()))
        .collect();
    assert_eq!(
        roles,
        [
            (Role::Primary, Copying::None, "well"),
            (Role::Replica, Copying::Acker, "well"),
            (Role::Replica, Copying::Acker, "well")
        ]
    );
    let dsn = cell.value("secret/dsn").unwrap();
    assert!(
        dsn.starts_with("mysql://app:") && dsn.ends_with("@${endpoint.db}/shop"),
        "{dsn}"
    );

    let mut conn = app(&cell).await;
    fill(&mut conn, 0..100).await;
    let begun = Instant::now();
    let mut endpoint = cell.endpoint();
    kill(pid_of(&view, "db-0"));
    endpoint
        .wait_for(|target| {
            target
                .as_ref()
                .is_some_and(|target| target.epoch == 2 && target.targets.is_empty())
        })
        .await
        .unwrap();
    println!(
        "  endpoints hold after {:.1} ms",
        begun.elapsed().as_secs_f64() * 1000.0
    );
    endpoint
        .wait_for(|target| {
            target
                .as_ref()
                .is_some_and(|target| !target.targets.is_empty())
        })
        .await
        .unwrap();
    println!(
        "  open again after {:.1} ms",
        begun.elapsed().as_secs_f64() * 1000.0
    );
    let mut conn = app(&cell).await;
    assert_eq!(count(&mut conn).await, 100);
    fill(&mut conn, 100..110).await;

    let view = until(&cell, &server, |state, view| {
        state == ServiceState::Up && view.epoch == 2
    })
    .await;
    println!(
        "  all well again after {:.0} ms",
        begun.elapsed().as_secs_f64() * 1000.0
    );
    assert_ne!(view.primary.as_deref(), Some("db-0"));
    assert_eq!(cell.starts("db-0"), 1, "the keeper outlives its server");
    let explained = act(&server, "explain", &[]).await.unwrap();
    println!("{}", explained.text);
    let last: serde_json::Value = serde_json::from_str(&explained.detail_json).unwrap();
    assert_eq!(last["primary_before"], "db-0");
    assert_eq!(last["primary"], view.primary.unwrap());
    assert!(last["took_us"].as_u64().is_some_and(|took| took > 0));
    assert_eq!(
        last["earlier"].as_array().map(Vec::len),
        Some(1),
        "the first start"
    );
    assert_eq!(cell.endpoints_refused(), 0);
    println!("{}", cell.notes().join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_role_is_moved_on_request() {
    let cell = TestCell::new(2);
    let server = server(&cell);
    assert_eq!(
        act(&server, "switchover", &[]).await.unwrap_err().kind,
        RefusalKind::NotNow
    );
    up(&cell, &server).await;
    fill(&mut app(&cell).await, 0..10).await;

    let moved = act(&server, "switchover", &[("to", "db-2")]).await.unwrap();
    println!("  {}", moved.text);
    assert!(
        moved
            .text
            .starts_with("the primary role of db went from db-0 to db-2 in "),
        "{}",
        moved.text
    );
    let view = until(&cell, &server, |state, _| state == ServiceState::Up).await;
    assert_eq!((view.epoch, view.primary.as_deref()), (2, Some("db-2")));
    assert_eq!(count(&mut app(&cell).await).await, 10);

    for wrong in [
        &[("to", "db-2")],
        &[("to", "db-7")],
        &[("to", "Not a name")],
    ] {
        assert!(
            act(&server, "switchover", wrong).await.is_err(),
            "{wrong:?} was accepted"
        );
    }
    let evict = |task: &str| PrepareEvictionRequest {
        service: SERVICE.into(),
        task: task.into(),
    };
    server.prepare_eviction(evict("db-0")).await.unwrap();
    assert_eq!(
        inspect(&server).await.2.epoch,
        2,
        "a replica may go as it is"
    );
    server.prepare_eviction(evict("db-2")).await.unwrap();
    let view = until(&cell, &server, |state, _| state == ServiceState::Up).await;
    assert_eq!(view.epoch, 3);
    assert_ne!(view.primary.as_deref(), Some("db-2"));

    // The keeper dies, and its server with it.
    let primary = view.primary.unwrap();
    kill(cell.keeper_pid(&primary));
    let view = until(&cell, &server, |state, view| {
        state == ServiceState::Up && view.epoch == 4
    })
    .await;
    println!(
        "  the keeper of {primary} was killed; {} is primary now",
        view.primary.unwrap()
    );
    assert_eq!(cell.starts(&primary), 2);
    let mut conn = app(&cell).await;
    assert_eq!(count(&mut conn).await, 10);
    fill(&mut conn, 10..20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_turned_down_and_comes_back_under_a_new_leader() {
    let cell = TestCell::new(3);
    let first = server(&cell);
    up(&cell, &first).await;
    fill(&mut app(&cell).await, 0..10).await;
    let told = cell.endpoint().borrow().clone().unwrap();

    // Another controller: its own server takes over what runs, and no client notices.
    let mut conn = app(&cell).await;
    let term = cell.new_leader();
    let second = server(&cell);
    drop(first);
    up(&cell, &second).await;
    let (_, _, view) = inspect(&second).await;
    assert_eq!(view.epoch, 1);
    let now = cell.endpoint().borrow().clone().unwrap();
    assert_eq!((now.epoch, &now.targets), (told.epoch, &told.targets));
    fill(&mut conn, 10..20).await;
    let spec_json = serde_json::to_string(&spec()).unwrap();
    let stale = TurnupRequest {
        service: SERVICE.into(),
        spec_json,
        term: term - 1,
    };
    assert_eq!(
        second.turnup(stale).await.unwrap_err().kind,
        RefusalKind::Stale
    );

    let begun = Instant::now();
    second
        .turndown(TurndownRequest {
            service: SERVICE.into(),
            term,
        })
        .await
        .unwrap();
    println!(
        "  down after {:.0} ms",
        begun.elapsed().as_secs_f64() * 1000.0
    );
    assert!(
        cell.states()
            .iter()
            .all(|state| matches!(state, TaskState::Exited { .. })),
        "{:?}",
        cell.states()
    );
    for task in ["db-0", "db-1", "db-2"] {
        assert!(
            cell.log(task).contains("Shutdown complete"),
            "{task} was not shut down in order"
        );
    }
    assert_eq!(
        cell.endpoint().borrow().clone().unwrap().targets,
        Vec::<String>::new()
    );
    let (state, _, view) = inspect(&second).await;
    assert_eq!(state, ServiceState::Down);
    assert!(
        view.members
            .iter()
            .all(|member| member.role == Role::Down && member.pid.is_none()),
        "{view:?}"
    );
    // Once more changes nothing.
    second
        .turndown(TurndownRequest {
            service: SERVICE.into(),
            term,
        })
        .await
        .unwrap();

    up(&cell, &second).await;
    assert_eq!(count(&mut app(&cell).await).await, 20);
    assert_eq!(inspect(&second).await.2.epoch, 2);
    assert_eq!(cell.endpoints_refused(), 0);

    // A turndown that is called back before it is done.
    let (down, again) = tokio::join!(
        second.turndown(TurndownRequest {
            service: SERVICE.into(),
            term
        }),
        async {
            until(&cell, &second, |state, _| state == ServiceState::Stopping).await;
            up(&cell, &second).await;
        }
    );
    assert_eq!(down.unwrap_err().kind, RefusalKind::NotNow);
    let () = again;
    assert_eq!(count(&mut app(&cell).await).await, 20);
}

struct ServiceProcess(std::process::Child);

impl ServiceProcess {
    async fn start(cell: &Path, admin: &Path) -> Self {
        drop(std::fs::remove_file(admin));
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "service_process", "--nocapture"])
            .env(CELL_SOCKET, cell)
            .env(ADMIN_SOCKET, admin)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while tokio::net::UnixStream::connect(admin).await.is_err() {
            assert!(
                begun.elapsed() < PATIENCE,
                "the service's process does not listen"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self(child)
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_runs_in_a_process_of_its_own() {
    let cell = TestCell::new(4);
    let (cell_socket, admin_socket) = (cell.folder().join("cell"), cell.folder().join("admin"));
    let process = ServiceProcess::start(&cell_socket, &admin_socket).await;
    let admin = RemoteAdmin::new(uds::channel(&admin_socket));
    let controller = Controller::serve(&cell, &cell_socket);
    up(&cell, &admin).await;
    fill(&mut app(&cell).await, 0..10).await;

    // It dies with its decider; the next one takes the cluster up again, unasked, and is obeyed.
    drop(process);
    let _process = ServiceProcess::start(&cell_socket, &admin_socket).await;
    let view = until(&cell, &admin, |state, _| state == ServiceState::Up).await;
    assert_eq!(view.epoch, 1);
    kill(pid_of(&view, "db-0"));
    let view = until(&cell, &admin, |state, view| {
        state == ServiceState::Up && view.epoch == 2
    })
    .await;
    assert_eq!(count(&mut app(&cell).await).await, 10);

    // The controller dies, and the primary with nobody there to notice.
    drop(controller);
    kill(pid_of(&view, view.primary.as_ref().unwrap()));
    cell.new_leader();
    let _controller = Controller::serve(&cell, &cell_socket);
    until(&cell, &admin, |state, view| {
        state == ServiceState::Up && view.epoch == 3
    })
    .await;
    up(&cell, &admin).await;
    let moved = act(&admin, "switchover", &[]).await.unwrap();
    println!("  {}", moved.text);
    let mut conn = app(&cell).await;
    assert_eq!(count(&mut conn).await, 10);
    fill(&mut conn, 10..20).await;
    let told = act(&admin, "explain", &[]).await.unwrap();
    let last: serde_json::Value = serde_json::from_str(&told.detail_json).unwrap();
    assert_eq!(last["epoch"], 4);
    assert!(
        last["earlier"]
            .as_array()
            .unwrap()
            .iter()
            .any(|change| change["epoch"] == 1),
        "the first process's story"
    );
}
