//! What can only be done. Each says by which probe it is seen to have worked.

use super::ArgType::{Bool, Command, Map, Matcher, Text};
use super::{Arg, Kind, Role};

const fn fix(name: &'static str, args: &'static [Arg], summary: &'static str) -> Kind {
    Kind {
        name,
        role: Role::Fix,
        args,
        summary,
    }
}

pub(super) const KINDS: &[Kind] = &[
    fix(
        "service_restarted",
        &[Arg::required(
            "name",
            Text,
            "Of the systemd unit; `.service` may be left out.",
        )],
        "Restarts a systemd service. Its check: the service runs.",
    ),
    fix(
        "run",
        &[
            Arg::required(
                "command",
                Command,
                "What to run, as a list or as a text for the shell.",
            ),
            Arg::required(
                "unless",
                Command,
                "What ends with code 0 when there is nothing to do.",
            ),
            Arg::optional("dir", Text, "Where both run. Default `/`."),
            Arg::optional(
                "env",
                Map,
                "Variables beside PATH and LANG, which is all they have.",
            ),
            Arg::optional("user", Text, "Whom both run as."),
            Arg::optional(
                "resource",
                Text,
                "What it must have for itself. Default: the command.",
            ),
        ],
        "Runs a command, unless another one says that there is nothing to do. Its check: the other one.",
    ),
    fix(
        "http_call",
        &[
            Arg::required("url", Text, "`http://host:port/path`."),
            Arg::optional("method", Text, "Default `POST`."),
            Arg::optional("request_headers", Map, "What to send."),
            Arg::optional("request_body", Text, "What to send."),
            Arg::optional("username", Text, "For basic authentication."),
            Arg::optional("password", Text, "For basic authentication."),
            Arg::optional(
                "redirects",
                Bool,
                "Whether to follow them, ten at most. Default False.",
            ),
            Arg::optional("status", Matcher, "Of the status. Default: 200 to 299."),
            Arg::optional(
                "resource",
                Text,
                "What it must have for itself. Default: host and port of the URL.",
            ),
        ],
        "Makes an HTTP request. It brings no check: the check that it fixes must have a probe.",
    ),
];
