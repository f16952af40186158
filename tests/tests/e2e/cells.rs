//! Cell files of plain jobs.

use homeostat_tests::shop;

/// Three machines in three racks, and the packages that the jobs below use.
pub fn head(name: &str) -> String {
    format!(
        r#"cell(name = "{name}", kind = "sandbox")
for n in [1, 2, 3]:
    machine("m%d" % n, rack = "r%d" % n)
package("sh", host = "/bin/sh")
package("shop", host = "{}")
"#,
        shop().display()
    )
}

/// Tasks that say hello and sleep. Each has a child, so that what is killed is a family.
pub fn sleeper(name: &str, tasks: u32) -> String {
    format!(
        r#"
job(
    "{name}",
    tasks = {tasks},
    package = "sh",
    command = ["${{package}}", "-c", "echo hello from ${{task}} on ${{machine}}; sleep 100000 & exec sleep 100001"],
    env = {{"E2E_TASK": "${{task}}", "E2E_DIR": "${{dir}}"}},
    grace = "2s",
)
"#
    )
}

/// A small HTTP service with an endpoint and a check: the shop's load generator, told to place no orders, answers
/// `/report`. `version` only makes one declaration differ from another.
pub fn web(name: &str, tasks: u32, version: &str) -> String {
    format!(
        r#"
job(
    "{name}",
    tasks = {tasks},
    package = "shop",
    command = [
        "${{package}}", "load", "--to", "127.0.0.1:9", "--rate", "0", "--connections", "1",
        "--log", "${{dir}}/orders.log", "--listen", "${{address}}:${{port.http}}",
    ],
    env = {{"E2E_TASK": "${{task}}", "E2E_DIR": "${{dir}}", "E2E_VERSION": "{version}"}},
    ports = ["http"],
    endpoint = "http",
    grace = "5s",
)
check(
    "{name}/answers",
    about = "{name}",
    probe = http(path = "/report", status = 200),
    every = "500ms",
)
"#
    )
}

/// The usual cell.
pub fn plain() -> String {
    head("plain") + &sleeper("sleeper", 2) + &web("web", 2, "1")
}

/// A check that never passes: nobody listens at port 9.
pub const NEVER: &str = r#"
check("never", about = "cell", probe = tcp(at = "127.0.0.1:9"), every = "500ms")
"#;
