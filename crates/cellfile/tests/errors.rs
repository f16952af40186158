//! What a person sees for each kind of mistake. The text is the interface, so it is golden.
#![allow(clippy::unwrap_used)]

use homeostat_cellfile::{CellFileError, ProblemKind, load};
use homeostat_model::CellSpec;

/// What every case begins with; its lines are counted by the errors.
const HEAD: &str = "cell(\"shop\")
machine(\"m1\", cpu = 2, memory = \"1GiB\")
package(\"app\", host = \"/bin/app\")
";

fn read(files: &[(&str, &str)]) -> (Result<CellSpec, CellFileError>, String) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let result = load(&folder.path().join("cell.star"));
    (result, format!("{}/", folder.path().display()))
}

fn errors_of(files: &[(&str, &str)]) -> String {
    let (result, folder) = read(files);
    let error = result.expect_err("the file was accepted");
    assert!(!error.problems.is_empty());
    for problem in &error.problems {
        assert_eq!(problem.kind, ProblemKind::Declared, "{problem}");
    }
    error.to_string().replace(&folder, "")
}

/// The errors of the head and what follows it.
fn errors(rest: &str) -> String {
    errors_of(&[("cell.star", &format!("{HEAD}{rest}"))])
}

fn accepted(rest: &str) -> CellSpec {
    let (result, _) = read(&[("cell.star", &format!("{HEAD}{rest}"))]);
    result.unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn syntax() {
    insta::assert_snapshot!(errors("job(\"web\", package = \"app\"\nx = 1\n"), @r"
    cell.star:5:1: parse error: unexpected identifier 'x', expected symbol ')'
       |
     5 | x = 1
       | ^
    ");
    insta::assert_snapshot!(errors("def f():\nreturn 1\n"), @r"
    cell.star:5:1: parse error: unexpected keyword 'return', expected new indentation block
       |
     5 | return 1
       | ^^^^^^
    ");
}

#[test]
fn nested_too_deeply() {
    insta::assert_snapshot!(errors(&format!("x = {}\n", "[".repeat(300))), @r"
    cell.star:4:204: this expression is nested too deeply
       |
     4 | [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[
       |                                         ^
    ");
}

#[test]
fn unknown_variable_and_failure_in_a_function() {
    insta::assert_snapshot!(errors("jbo(\"web\")\n"), @r#"
    cell.star:4:1: variable 'jbo' not found
       |
     4 | jbo("web")
       | ^^^

    hint: did you mean 'job'?
    "#);
    insta::assert_snapshot!(errors("def f(n):\n    fail(\"no \" + n)\n\nf(\"way\")\n"), @r#"
    cell.star:5:5: no way
       |
     5 |     fail("no " + n)
       |     ^^^^^^^^^^^^^^^
      called from cell.star:7:1
    "#);
}

#[test]
fn wrong_types_are_reported_together() {
    insta::assert_snapshot!(errors("job(
    \"web\",
    package = \"app\",
    command = \"app\",
    tasks = \"two\",
    cpu = \"a lot\",
    memory = 512,
    grace = 10,
    env = {\"A\": 1},
    ports = {\"http\": 70000},
)
"), @r#"
    cell.star:7:15: 'command' must be a list of strings, not a string
       |
     7 |     command = "app",
       |               ^^^^^

    cell.star:8:13: 'tasks' must be a whole number, not a string
       |
     8 |     tasks = "two",
       |             ^^^^^

    cell.star:9:11: 'cpu' must be a number of processors, such as 0.5, not a string
       |
     9 |     cpu = "a lot",
       |           ^^^^^^^

    cell.star:10:14: 'memory' must be a size with a unit, not 512
        |
     10 |     memory = 512,
        |              ^^^

    hint: write '512MiB' or '8GiB'

    cell.star:11:13: 'grace' must be a duration with a unit, not 10
        |
     11 |     grace = 10,
        |             ^^

    hint: write '10s' for seconds

    cell.star:12:12: 'A' in 'env' must be a string, not an int
        |
     12 |     env = {"A": 1},
        |            ^^^

    cell.star:13:14: port 'http' must be from 1 to 65535, not 70000
        |
     13 |     ports = {"http": 70000},
        |              ^^^^^^
    "#);
}

#[test]
fn words_and_units() {
    insta::assert_snapshot!(errors("job(\"web\", package = \"app\", command = [\"a\"], restart = \"alway\", memory = \"64MB\", grace = \"10 s\")\n"), @r#"
    cell.star:4:56: 'restart' must be 'always' or 'on-failure' or 'never', not 'alway'
       |
     4 | job("web", package = "app", command = ["a"], restart = "alway", memory = "64MB", grace = "10 s")
       |                                                        ^^^^^^^

    hint: did you mean 'always'?

    cell.star:4:74: '64MB' is not a size; write '512MiB' or '8GiB'
       |
     4 | job("web", package = "app", command = ["a"], restart = "alway", memory = "64MB", grace = "10 s")
       |                                                                          ^^^^^^

    cell.star:4:90: '10 s' is not a duration; write '5s', '200ms', '1m' or '1m30s'
       |
     4 | job("web", package = "app", command = ["a"], restart = "alway", memory = "64MB", grace = "10 s")
       |                                                                                          ^^^^^^
    "#);
}

#[test]
fn unknown_and_missing_arguments() {
    insta::assert_snapshot!(errors("job(\"web\", packge = \"app\", command = [\"a\"])\n"), @r#"
    cell.star:4:1: job() needs the argument 'package'
       |
     4 | job("web", packge = "app", command = ["a"])
       | ^^^

    cell.star:4:21: job() has no argument 'packge'
       |
     4 | job("web", packge = "app", command = ["a"])
       |                     ^^^^^

    hint: did you mean 'package'?
    "#);
    insta::assert_snapshot!(errors("machine(\"m2\", \"r2\")\n"), @r#"
    cell.star:4:1: machine() takes 1 argument without a name, got 2; name the others
       |
     4 | machine("m2", "r2")
       | ^^^^^^^^^^^^^^^^^^^
    "#);
}

#[test]
fn bad_names() {
    insta::assert_snapshot!(errors("job(\"Web\", package = \"app\", command = [\"a\"])\n"), @r#"
    cell.star:4:5: 'Web' is not a service name: it must begin and end with a lower-case letter or a digit
       |
     4 | job("Web", package = "app", command = ["a"])
       |     ^^^^^
    "#);
}

#[test]
fn unknown_services_and_packages() {
    insta::assert_snapshot!(errors("sql_cluster(\"shop-db\", members = 3)
job(\"web\", package = \"ap\", command = [\"a\"], needs = [\"shop-bd\"])
machine(\"m2\")
machine(\"m3\")
"), @r#"
    cell.star:5:22: unknown package 'ap' in 'web'
       |
     5 | job("web", package = "ap", command = ["a"], needs = ["shop-bd"])
       |                      ^^^^

    hint: did you mean 'app'?

    cell.star:5:54: unknown service 'shop-bd' in the needs of 'web'
       |
     5 | job("web", package = "ap", command = ["a"], needs = ["shop-bd"])
       |                                                      ^^^^^^^^^

    hint: did you mean 'shop-db'?
    "#);
}

#[test]
fn duplicates() {
    insta::assert_snapshot!(errors("job(\"m1\", package = \"app\", command = [\"a\"])
job(\"web\", package = \"app\", command = [\"a\"])
job(\"web\", package = \"app\", command = [\"a\"])
cell(\"again\")
"), @r#"
    cell.star:4:5: the name 'm1' is taken: machine() at cell.star:2:1
       |
     4 | job("m1", package = "app", command = ["a"])
       |     ^^^^

    cell.star:6:5: the name 'web' is taken: job() at cell.star:5:1
       |
     6 | job("web", package = "app", command = ["a"])
       |     ^^^^^

    cell.star:7:1: there is a second cell()
       |
     7 | cell("again")
       | ^^^^
    "#);
}

#[test]
fn an_item_made_by_a_function_says_who_called_it() {
    insta::assert_snapshot!(errors("def worker(n):
    return job(\"worker-%d\" % n, package = \"app\", command = [\"a\"], cpu = n)

for n in [1, 2, 3]:
    worker(n)
"), @r#"
    cell.star:5:73: a task of 'worker-3' needs 3.00 cpu and 64 MiB, which no machine has
       |
     5 |     return job("worker-%d" % n, package = "app", command = ["a"], cpu = n)
       |                                                                         ^
      called from cell.star:8:5

    hint: the most that a machine has is 2.00 cpu and 1 GiB
    "#);
}

#[test]
fn cycles_of_services_and_of_checks() {
    insta::assert_snapshot!(errors("a = {\"package\": \"app\", \"command\": [\"a\"]}
job(\"front\", needs = [\"back\"], **a)
job(\"back\", needs = [\"cache\"], **a)
job(\"cache\", needs = [\"front\"], **a)
"), @r#"
    cell.star:5:23: services need each other: front -> back -> cache -> front
       |
     5 | job("front", needs = ["back"], **a)
       |                       ^^^^^^

    hint: a service is turned up after all it needs; leave out the need that may come later
    "#);
    insta::assert_snapshot!(errors("job(\"web\", package = \"app\", command = [\"a\"])
check(\"web/one\", after = [\"web/two\"], probe = tasks(\"web\"))
check(\"web/two\", after = [\"web/one\"], probe = tasks(\"web\"))
"), @r#"
    cell.star:5:27: checks come after each other: web/one -> web/two -> web/one
       |
     5 | check("web/one", after = ["web/two"], probe = tasks("web"))
       |                           ^^^^^^^^^

    hint: a check about a service comes after its 'tasks' check unless 'after' says otherwise
    "#);
}

#[test]
fn impossible_resources() {
    insta::assert_snapshot!(errors("job(\"big\", package = \"app\", command = [\"a\"], cpu = 3)
sql_cluster(\"db\", members = 3)
job(\"proxy\", tasks = 2, package = \"app\", command = [\"a\"], ports = {\"http\": 80})
"), @r#"
    cell.star:4:52: a task of 'big' needs 3.00 cpu and 64 MiB, which no machine has
       |
     4 | job("big", package = "app", command = ["a"], cpu = 3)
       |                                                    ^

    hint: the most that a machine has is 2.00 cpu and 1 GiB

    cell.star:5:29: 'db' has 3 members, never two on a machine, and 1 machine with room for one
       |
     5 | sql_cluster("db", members = 3)
       |                             ^

    hint: declare more machines

    cell.star:6:68: 'proxy' has 2 tasks that all want port 80, and 1 machine with room for one
       |
     6 | job("proxy", tasks = 2, package = "app", command = ["a"], ports = {"http": 80})
       |                                                                    ^^^^^^

    hint: let the machine pick the port: ports = ["http"]
    "#);
    insta::assert_snapshot!(errors("job(\"many\", tasks = 30, package = \"app\", command = [\"a\"])\n"), @r#"
    cell.star:1:1: all tasks together need 3.00 cpu, and the machines have 2.00
       |
     1 | cell("shop")
       | ^^^^
    "#);
}

#[test]
fn members() {
    insta::assert_snapshot!(errors("sql_cluster(\"db\", members = 2)\n"), @r#"
    cell.star:4:29: 'members' must be 3, 5, 7 or 9, not 2
       |
     4 | sql_cluster("db", members = 2)
       |                             ^

    hint: with fewer than 3 the loss of one member stops writes
    "#);
    insta::assert_snapshot!(errors("sql_cluster(\"db\", members = 4)\n"), @r#"
    cell.star:4:29: 'members' must be 3, 5, 7 or 9, not 4
       |
     4 | sql_cluster("db", members = 4)
       |                             ^

    hint: an even number costs a machine more and survives no more losses
    "#);
}

#[test]
fn reserved_settings() {
    insta::assert_snapshot!(errors("sql_cluster(\"db\", database = \"mysql\", flavor = \"mysql\", settings = {
    \"max_connections\": 100,
    \"sync-binlog\": 0,
    \"loose-rpl-semi-sync-master-timeout\": 1,
    \"sync_relay_log\": 0,
})
machine(\"m2\")
machine(\"m3\")
"), @r#"
    cell.star:4:30: the database 'mysql' belongs to the server
       |
     4 | sql_cluster("db", database = "mysql", flavor = "mysql", settings = {
       |                              ^^^^^^^

    cell.star:4:48: the flavor 'mysql' is specified, but not built yet
       |
     4 | sql_cluster("db", database = "mysql", flavor = "mysql", settings = {
       |                                                ^^^^^^^

    hint: use 'mariadb'

    cell.star:6:5: the setting 'sync-binlog' is reserved (as 'sync_binlog'): the safety of failover depends on it
       |
     6 |     "sync-binlog": 0,
       |     ^^^^^^^^^^^^^

    cell.star:7:5: the setting 'loose-rpl-semi-sync-master-timeout' is reserved (as 'rpl_semi_sync_'): the safety of failover depends on it
       |
     7 |     "loose-rpl-semi-sync-master-timeout": 1,
       |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

    cell.star:8:5: the setting 'sync_relay_log' is reserved: the safety of failover depends on it
       |
     8 |     "sync_relay_log": 0,
       |     ^^^^^^^^^^^^^^^^

    hint: say durability = "process" for 0, "power" for 1
    "#);
}

#[test]
fn templates() {
    insta::assert_snapshot!(errors("machine(\"m2\")
machine(\"m3\")
sql_cluster(\"db\")
job(\"quiet\", package = \"app\", command = [\"a\"])
job(
    \"web\",
    package = \"app\",
    command = [\"${package}\", \"${adress}:${port.http}\", \"${secret.db.dsn}\", \"${dir.quiet-0}\"],
    env = {\"A\": \"${endpoint.db}\", \"B\": \"${endpoint.quiet}\", \"C\": \"${endpoint.web}\", \"D\": \"${\"},
    files = {\"f\": \"${secret.db.password} $${not.one}\"},
    ports = [\"htpp\"],
    needs = [\"db\", \"quiet\"],
)
job(\"other\", package = \"app\", command = [\"${endpoint.web}\"])
"), @r#"
    cell.star:11:31: unknown variable '${adress}'
        |
     11 |     command = ["${package}", "${adress}:${port.http}", "${secret.db.dsn}", "${dir.quiet-0}"],
        |                               ^^^^^^^^^

    hint: did you mean '${address}'?

    cell.star:11:56: the secret '${secret.db.dsn}' cannot stand in a command, where every user of the machine could read it
        |
     11 |     command = ["${package}", "${adress}:${port.http}", "${secret.db.dsn}", "${dir.quiet-0}"],
        |                                                        ^^^^^^^^^^^^^^^^^^

    hint: put it into a file: files = {"secret": "${secret.db.dsn}"}, and name ${dir}/secret

    cell.star:11:76: '${dir.quiet-0}' is allowed only in the command of a check
        |
     11 |     command = ["${package}", "${adress}:${port.http}", "${secret.db.dsn}", "${dir.quiet-0}"],
        |                                                                            ^^^^^^^^^^^^^^^^

    cell.star:12:40: '${endpoint.quiet}': 'quiet' has no endpoint
        |
     12 |     env = {"A": "${endpoint.db}", "B": "${endpoint.quiet}", "C": "${endpoint.web}", "D": "${"},
        |                                        ^^^^^^^^^^^^^^^^^^^

    hint: give 'quiet' an endpoint: endpoint = "PORT"

    cell.star:12:66: '${endpoint.web}' is of 'web' itself
        |
     12 |     env = {"A": "${endpoint.db}", "B": "${endpoint.quiet}", "C": "${endpoint.web}", "D": "${"},
        |                                                                  ^^^^^^^^^^^^^^^^^

    hint: a task reaches itself at ${address}:${port.NAME}

    cell.star:12:90: '${' is not closed by a '}'
        |
     12 |     env = {"A": "${endpoint.db}", "B": "${endpoint.quiet}", "C": "${endpoint.web}", "D": "${"},
        |                                                                                          ^^^^

    hint: write '$${' for the characters '${' themselves

    cell.star:13:20: '${secret.db.password}': 'db' has no secret 'password'
        |
     13 |     files = {"f": "${secret.db.password} $${not.one}"},
        |                    ^^^^^^^^^^^^^^^^^^^^^

    hint: a SQL cluster has: dsn

    cell.star:17:42: '${endpoint.web}': 'other' does not need 'web'
        |
     17 | job("other", package = "app", command = ["${endpoint.web}"])
        |                                          ^^^^^^^^^^^^^^^^^

    hint: add 'web' to its needs
    "#);
}

#[test]
fn checks_and_probes() {
    insta::assert_snapshot!(errors("job(\"web\", package = \"app\", command = [\"a\"])
check(\"web/up\", about = \"wbe\", probe = tcp(at = \"${endpoint.web}\"))
check(\"alone\", probe = tasks(\"web\"))
check(\"web/late\", after = [\"web/taks\"], probe = sql(\"web\", \"SELECT 1\"))
check(\"m1/here\", probe = http(path = \"x\"))
check(\"cell/kept\", probe = command(command = [\"${package}\", \"${dir.web-7}\", \"${task}\"]))
check(\"web/none\", probe = \"tcp\")
tcp(at = \"127.0.0.1:80\")
"), @r#"
    cell.star:5:25: 'about' names 'wbe', which is no service and no machine
       |
     5 | check("web/up", about = "wbe", probe = tcp(at = "${endpoint.web}"))
       |                         ^^^^^

    hint: did you mean 'web'?

    cell.star:5:49: '${endpoint.web}': 'web' has no endpoint
       |
     5 | check("web/up", about = "wbe", probe = tcp(at = "${endpoint.web}"))
       |                                                 ^^^^^^^^^^^^^^^^^

    hint: give 'web' an endpoint: endpoint = "PORT"

    cell.star:6:7: what is 'alone' about?
       |
     6 | check("alone", probe = tasks("web"))
       |       ^^^^^^^

    hint: add about = a service, a machine or "cell"; or begin its name with one: "shop-web/healthz"

    cell.star:7:28: unknown check 'web/taks' in 'after' of 'web/late'
       |
     7 | check("web/late", after = ["web/taks"], probe = sql("web", "SELECT 1"))
       |                            ^^^^^^^^^^

    hint: did you mean 'web/tasks'?

    cell.star:7:53: 'web' is a job, not a SQL cluster
       |
     7 | check("web/late", after = ["web/taks"], probe = sql("web", "SELECT 1"))
       |                                                     ^^^^^

    cell.star:8:26: http() needs the argument 'at'
       |
     8 | check("m1/here", probe = http(path = "x"))
       |                          ^^^^

    hint: only for a check about a service it may be left out

    cell.star:8:38: 'path' must begin with '/' and have no blanks in it, not 'x'
       |
     8 | check("m1/here", probe = http(path = "x"))
       |                                      ^^^

    cell.star:9:47: '${package}' has no value: this command() has no 'package'
       |
     9 | check("cell/kept", probe = command(command = ["${package}", "${dir.web-7}", "${task}"]))
       |                                               ^^^^^^^^^^^^

    hint: add package = "…"

    cell.star:9:61: '${dir.web-7}': unknown task 'web-7'
       |
     9 | check("cell/kept", probe = command(command = ["${package}", "${dir.web-7}", "${task}"]))
       |                                                             ^^^^^^^^^^^^^^

    hint: did you mean 'web-0'?

    cell.star:9:77: '${task}' is of a task, and a check is none
       |
     9 | check("cell/kept", probe = command(command = ["${package}", "${dir.web-7}", "${task}"]))
       |                                                                             ^^^^^^^^^

    cell.star:10:27: 'probe' must be a probe, not a string
        |
     10 | check("web/none", probe = "tcp")
        |                           ^^^^^

    hint: probes are tcp(), http(), sql(), command() and tasks()

    cell.star:11:1: this tcp() is a probe that no check uses
        |
     11 | tcp(at = "127.0.0.1:80")
        | ^^^

    hint: give it to a check: check("…", probe = tcp(…))
    "#);
}

#[test]
fn an_empty_file() {
    insta::assert_snapshot!(errors_of(&[("cell.star", "# nothing\n")]), @r#"
    cell.star: there is no cell()

    hint: begin with cell(name = "…", kind = "sandbox")

    cell.star: there is no machine()

    hint: add machine("m1")

    cell.star: there is no service

    hint: add a job() or a sql_cluster()
    "#);
}

#[test]
fn loading_other_files() {
    let cell = "load(\"lib.star\", \"web\")\nweb(\"web-a\")\n";
    let lib = "def web(name):\n    job(name, package = \"app\", command = [\"a\"], cpu = 99)\n";
    insta::assert_snapshot!(errors_of(&[("cell.star", &format!("{HEAD}{cell}")), ("lib.star", lib)]), @r#"
    lib.star:2:55: a task of 'web-a' needs 99.00 cpu and 64 MiB, which no machine has
       |
     2 |     job(name, package = "app", command = ["a"], cpu = 99)
       |                                                       ^^
      called from cell.star:5:1

    hint: the most that a machine has is 2.00 cpu and 1 GiB
    "#);
    insta::assert_snapshot!(errors("load(\"../x.star\", \"x\")\n"), @r#"
    cell.star:4:6: '../x.star' is not the name of a .star file in the folder of the cell file
       |
     4 | load("../x.star", "x")
       |      ^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(errors_of(&[
        ("cell.star", "load(\"a.star\", \"a\")\n"),
        ("a.star", "load(\"b.star\", \"b\")\na = b\n"),
        ("b.star", "load(\"a.star\", \"a\")\nb = a\n"),
    ]), @r#"
    b.star:1:6: files load each other: a.star -> b.star -> a.star
       |
     1 | load("a.star", "a")
       |      ^^^^^^^^
    "#);
    insta::assert_snapshot!(errors_of(&[("cell.star", "load(\"a.star\", \"b\")\n"), ("a.star", "a = 1\n")]), @r#"
    cell.star:1:16: module has no symbol 'b'
       |
     1 | load("a.star", "b")
       |                ^^^

    hint: did you mean 'a'?
    "#);
}

#[test]
fn a_file_that_cannot_be_read() {
    let error = load(std::path::Path::new("no/such/cell.star")).unwrap_err();
    assert_eq!(error.problems[0].kind, ProblemKind::Environment);
    insta::assert_snapshot!(error.to_string(), @"no/such/cell.star: cannot open it: No such file or directory (os error 2)");
    let large = format!("{HEAD}#{}", " ".repeat(1024 * 1024));
    insta::assert_snapshot!(errors_of(&[("cell.star", &large)]), @"cell.star: it is larger than 1048576 bytes");
}

#[test]
fn long_lines_and_tabs_are_shown_well() {
    insta::assert_snapshot!(errors(&format!("x = [{}jbo(1)]\n", "1, ".repeat(100))), @r"
    cell.star:4:306: variable 'jbo' not found
       |
     4 |  1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, jbo(1)]
       |                                         ^^^

    hint: did you mean 'job'?
    ");
    insta::assert_snapshot!(errors("job(\n  \"web\",\tpackage = \"app\",\tcommand = [\"a\"], tasks = 0)\n"), @r#"
    cell.star:5:9: parse error: tabs are not allowed
       |
     5 |   "web",	package = "app",	command = ["a"], tasks = 0)
       |         ^
    "#);
}

#[test]
fn names_that_builders_answer_can_be_used_as_names() {
    let cell = accepted("
app = package(\"other\", host = \"/bin/other\")
back = job(\"back\", package = app, command = [\"a\"], ports = {\"http\": None}, endpoint = \"http\")
job(\"front\", package = app, command = [\"a\", \"${endpoint.back}\"], needs = [back])
");
    assert_eq!(cell.services[1].needs[0].as_str(), "back");
    assert_eq!(cell.services[1].owner, "shop");
}
