//! Files of checks: what they become, and what a person sees for each kind of mistake.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use homeostat_cellfile::{BadCall, CallUse, CellFileError, SiteSpec, load_site};
use homeostat_model::library::Call;

/// Stands for the probes, which know more than the table does.
fn judge(call: &Call, call_use: CallUse) -> Result<(), BadCall> {
    let path = call.args.get("path").and_then(|path| path.as_str());
    match (call_use, path) {
        (_, Some(path)) if !path.starts_with('/') => Err(BadCall {
            argument: Some("path".to_owned()),
            problem: format!("'{path}' is not an absolute path"),
            hint: Some(format!("write '/{path}'")),
        }),
        (CallUse::FixAndProbe, _) if call.kind == "http_call" => Err(BadCall {
            argument: None,
            problem: "http_call brings no check of its own".to_owned(),
            hint: None,
        }),
        (CallUse::Probe | CallUse::Fix | CallUse::FixAndProbe, _) => Ok(()),
    }
}

fn read_with(
    files: &[(&str, &str)],
    parameters: &[(&str, &str)],
) -> (Result<SiteSpec, CellFileError>, String) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let parameters: BTreeMap<String, String> = parameters
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let result = load_site(&folder.path().join("site.star"), parameters, judge);
    (result, format!("{}/", folder.path().display()))
}

fn accepted(text: &str) -> SiteSpec {
    let (result, _) = read_with(&[("site.star", text)], &[]);
    result.unwrap_or_else(|error| panic!("{error}"))
}

fn errors(text: &str) -> String {
    let (result, folder) = read_with(&[("site.star", text)], &[]);
    let error = result.expect_err("the file was accepted");
    error.to_string().replace(&folder, "")
}

fn shown(site: &SiteSpec) -> String {
    let lines = site.checks.iter().map(|check| {
        let call = |call: &Option<Call>| match call {
            None => "-".to_owned(),
            Some(call) => format!("{}{}", call.kind, serde_json::json!(call.args)),
        };
        let after: Vec<&str> = check.after.iter().map(|name| name.as_str()).collect();
        format!(
            "{} probe {} fix {} after {after:?}",
            check.name,
            call(&check.probe),
            call(&check.fix)
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn checks_are_values_and_loops_make_many() {
    let site = accepted(
        r#"
DNS = "127.0.0.53"

def answers(name, want):
    return check("dns/" + name, probe = dns(name + ".internal", server = DNS, want = [want]), owner = "net-team", tags = ["net"])

names = [answers(name, "127.77.1.%d" % n) for n, name in enumerate(["shop", "pay"])]
check("web", probe = http("http://127.0.0.1/", status = {"less": 500}), after = names, confirm = 3, settle = "20s", attempts = 1, every = "1m", timeout = "3s")
check("accounts/kim", fix = user("kim", groups = ["ops"]), after = ["dns/shop"])
file("/etc/motd", content = "hello\n", mode = "0644")
"#,
    );
    insta::assert_snapshot!(shown(&site));
    assert_eq!(site.checks[0].owner.as_deref(), Some("net-team"));
    assert_eq!(site.checks[0].tags, ["net"]);
    let web = &site.checks[2];
    assert_eq!((web.confirm, web.attempts), (3, 1));
    assert_eq!(web.settle.as_secs(), 20);
    assert_eq!((web.every.as_secs(), web.timeout.as_secs()), (60, 3));
}

/// One mistake each.
const MISTAKES: &[&str] = &[
    "check(\"a\", probe = dsn(\"shop\"))\n",
    "check(\"a\", probe = dns(\"shop\", srever = \"127.0.0.1\"))\n",
    "check(\"a\", probe = dns())\n",
    "check(\"a\", probe = file(\n    \"/etc/hosts\",\n    mode = [1],\n))\n",
    "check(\"a\", probe = clock(5))\n",
    "check(\"a\", fix = user(\"kim\", groups = \"ops\"))\n",
    "check(\"a\", probe = file(\"etc/hosts\"))\n",
    "check(\"a\", probe = service_restarted(\"web\"))\n",
    "check(\"a\", probe = file(\"/a\"), fix = dns(\"a\"))\n",
    "check(\"a\")\n",
    "check(\"a\", probe = \"x\", confirm = 0)\n",
    "dns(\"shop.internal\")\n",
    "check(\"A b\", probe = file(\"/a\"))\n",
    "",
    "for name in []:\n    file(name)\n",
    "check(\"a\", probe = file(\"/a\"))\ncheck(\"a\", probe = file(\"/b\"))\n",
    "user(\"kim\")\nuser(\"kim\")\n",
    "check(\"base\", probe = file(\"/a\"))\ncheck(\"b\", probe = file(\"/b\"), after = [\"bsae\"])\n",
    "check(\"a\", probe = file(\"/a\"), after = [\"c\"])\ncheck(\"b\", probe = file(\"/a\"), after = [\"a\"])\ncheck(\"c\", probe = file(\"/a\"), after = [\"b\"])\n",
    "x = parameter(\"zone\")\n",
    "load(\"../lib.star\", \"web\")\n",
];

#[test]
fn mistakes_point_at_what_is_wrong() {
    let shown = MISTAKES.iter().map(|text| errors(text));
    insta::assert_snapshot!(shown.collect::<Vec<_>>().join("\n\n----\n\n"));
}

#[test]
fn parameters_come_from_outside_in_the_type_of_their_default() {
    let text = "web = parameter(\"web\", 80)\nfor host in parameter(\"hosts\", [\"localhost\"]):\n    check(\"web/\" + host, probe = tcp(host + \":%d\" % web))\n";
    let (site, _) = read_with(&[("site.star", text)], &[("web", "8080"), ("hosts", "a,b")]);
    insta::assert_snapshot!(shown(&site.unwrap()));
    let wrong = |parameters| {
        let (result, folder) = read_with(&[("site.star", text)], parameters);
        result.unwrap_err().to_string().replace(&folder, "")
    };
    let wrong = [wrong(&[("web", "http")]), wrong(&[("wbe", "80")])];
    insta::assert_snapshot!(wrong.join("\n\n----\n\n"));
}

#[test]
fn files_beside_it_are_loaded_and_others_are_not() {
    let lib = "def web(name):\n    check(\"web/\" + name, probe = tcp(name + \":80\", tmieout = \"1s\"))\n";
    let main = "load(\"lib.star\", \"web\")\nweb(\"shop\")\n";
    let (result, folder) = read_with(&[("lib.star", lib), ("site.star", main)], &[]);
    insta::assert_snapshot!(result.unwrap_err().to_string().replace(&folder, ""));
}

#[test]
fn many_checks_and_a_long_chain_are_read() {
    let text = "
for n in range(10000):
    check(\"many/n%d\" % n, probe = tcp(\"127.0.0.1:%d\" % n), after = [\"many/n%d\" % (n - 1)] if n else [])
";
    assert_eq!(accepted(text).checks.len(), 10_000);
}
