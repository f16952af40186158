//! What can only be looked at.

use super::ArgType::{Any, Bool, Command, Duration, Int, Map, Matcher, Size, Text};
use super::{Arg, Kind, Role};

const fn look(name: &'static str, args: &'static [Arg], summary: &'static str) -> Kind {
    Kind {
        name,
        role: Role::Probe,
        args,
        summary,
    }
}

const URL: Arg = Arg::required(
    "url",
    Text,
    "`mysql://user:password@host:port/database`, or `file:/path` of a file that holds it, so that no password stands here.",
);

pub(super) const KINDS: &[Kind] = &[
    look(
        "path",
        &[
            Arg::required("path", Text, "The absolute path."),
            Arg::optional("exists", Bool, "Default True."),
            Arg::optional(
                "type",
                Text,
                "`file`, `directory`, `symlink`, `socket`, `fifo`, `block` or `char`.",
            ),
            Arg::optional(
                "mode",
                Matcher,
                "Of the permission bits as text with four digits: \"0644\".",
            ),
            Arg::optional(
                "owner",
                Matcher,
                "Of the name of the owner; of the number where it has none.",
            ),
            Arg::optional("uid", Matcher, "Of the number of the owner."),
            Arg::optional(
                "group",
                Matcher,
                "Of the name of the group; of the number where it has none.",
            ),
            Arg::optional("gid", Matcher, "Of the number of the group."),
            Arg::optional("size", Matcher, "Of the size in bytes."),
            Arg::optional("target", Matcher, "Of where a symlink leads."),
            Arg::optional("contents", Matcher, "Of the text in the file."),
            Arg::optional(
                "md5",
                Matcher,
                "Of the checksum of the file, in lower-case hex.",
            ),
            Arg::optional(
                "sha256",
                Matcher,
                "Of the checksum of the file, in lower-case hex.",
            ),
            Arg::optional(
                "sha512",
                Matcher,
                "Of the checksum of the file, in lower-case hex.",
            ),
        ],
        "Whatever is at a path: that it is there, of which type, whose, and what is in it.",
    ),
    look(
        "process",
        &[
            Arg::required(
                "name",
                Text,
                "The name of the program, as `ps -o comm` shows it.",
            ),
            Arg::optional("count", Matcher, "Of how many run. Default: at least one."),
            Arg::optional("user", Text, "Count only those of this user."),
            Arg::optional(
                "command",
                Matcher,
                "Count only those whose command line is so.",
            ),
        ],
        "Processes with a name run.",
    ),
    look(
        "port",
        &[
            Arg::required("port", Int, "The number."),
            Arg::optional(
                "protocol",
                Text,
                "`tcp`, `tcp6`, `udp` or `udp6`. Default: `tcp` over either family.",
            ),
            Arg::optional("listening", Bool, "Default True."),
            Arg::optional("ip", Matcher, "Of the list of addresses it listens on."),
        ],
        "Something on this machine listens on a port, or nothing does.",
    ),
    look(
        "tcp",
        &[
            Arg::required("at", Text, "`host:port`."),
            Arg::optional("reachable", Bool, "Default True."),
            Arg::optional("local_address", Text, "The address to connect from."),
        ],
        "A server accepts a connection, or none does.",
    ),
    look(
        "http",
        &[
            Arg::required("url", Text, "`http://host:port/path`."),
            Arg::optional("status", Matcher, "Of the status. Default 200."),
            Arg::optional("method", Text, "Default `GET`."),
            Arg::optional("request_headers", Map, "What to send."),
            Arg::optional("request_body", Text, "What to send."),
            Arg::optional("username", Text, "For basic authentication."),
            Arg::optional("password", Text, "For basic authentication."),
            Arg::optional(
                "redirects",
                Bool,
                "Whether to follow them, ten at most. Default True.",
            ),
            Arg::optional(
                "headers",
                Matcher,
                "Of the answer's headers: a text of lines `Name: value`.",
            ),
            Arg::optional("body", Matcher, "Of the answer's text."),
            Arg::optional("json", Map, "Path to matcher, for an answer in JSON."),
        ],
        "A web server answers as it should.",
    ),
    look(
        "dns",
        &[
            Arg::required("name", Text, "What to ask for."),
            Arg::optional(
                "server",
                Text,
                "Whom to ask: address, or `address:port`. Default: as programs on this machine do, `/etc/hosts` included, for `A` and `AAAA`; else the first server in `/etc/resolv.conf`.",
            ),
            Arg::optional(
                "type",
                Text,
                "`A`, `AAAA`, `CNAME`, `MX`, `NS`, `PTR`, `SRV` or `TXT`. Default: `A` and `AAAA`.",
            ),
            Arg::optional(
                "resolves",
                Bool,
                "Whether there is an answer at all. Default True.",
            ),
            Arg::optional(
                "want",
                Matcher,
                "Of the list of answers; a plain list must be all of them, in any order.",
            ),
        ],
        "A name resolves to what it should.",
    ),
    look(
        "command",
        &[
            Arg::required(
                "command",
                Command,
                "What to run, as a list or as a text for the shell.",
            ),
            Arg::optional("exit", Matcher, "Of the exit code. Default 0."),
            Arg::optional("stdout", Matcher, "Of what it writes."),
            Arg::optional("stderr", Matcher, "Of what it complains."),
            Arg::optional("dir", Text, "Where it runs. Default `/`."),
            Arg::optional(
                "env",
                Map,
                "Variables beside PATH and LANG, which is all it has.",
            ),
            Arg::optional("user", Text, "Whom it runs as."),
        ],
        "A program ends with the right code and says the right things.",
    ),
    look(
        "mount",
        &[
            Arg::required("path", Text, "The mount point."),
            Arg::optional("mounted", Bool, "Default True."),
            Arg::optional("source", Matcher, "Of the device."),
            Arg::optional("filesystem", Matcher, "Of the type of file system."),
            Arg::optional("options", Matcher, "Of the list of options of the mount."),
            Arg::optional(
                "fs_options",
                Matcher,
                "Of the list of options of the file system.",
            ),
            Arg::optional("used_percent", Matcher, "Of how full it is, rounded down."),
        ],
        "A file system is mounted.",
    ),
    look(
        "disk",
        &[
            Arg::required("path", Text, "Any path on it."),
            Arg::optional(
                "free",
                Size,
                "At least so much is free for programs that are not root.",
            ),
            Arg::optional("used_percent", Matcher, "Of how full it is, as `df` says."),
            Arg::optional("inodes_free", Int, "At least so many."),
            Arg::optional(
                "inodes_used_percent",
                Matcher,
                "Of how many inodes are used.",
            ),
        ],
        "A file system has room, in bytes and in inodes.",
    ),
    look(
        "interface",
        &[
            Arg::required("name", Text, "Such as `eth0`."),
            Arg::optional("exists", Bool, "Default True."),
            Arg::optional("up", Bool, "Whether it is switched on."),
            Arg::optional(
                "addresses",
                Matcher,
                "Of the list of addresses as `10.0.0.7/24`.",
            ),
            Arg::optional("mtu", Matcher, "Of the largest packet in bytes."),
        ],
        "A network interface is there.",
    ),
    look(
        "clock",
        &[
            Arg::required("within", Duration, "The largest offset."),
            Arg::optional(
                "server",
                Text,
                "An NTP server to compare with, `host` or `host:port`. Default: what the kernel says of its synchronisation.",
            ),
        ],
        "The clock is right.",
    ),
    look(
        "sql",
        &[
            URL,
            Arg::optional("query", Text, "Default `SELECT 1`."),
            Arg::optional(
                "want",
                Matcher,
                "Of the single value that comes back, as text; `NULL` for null.",
            ),
            Arg::optional(
                "rows",
                Matcher,
                "Of the list of rows, each a list of texts; at most 1000 rows.",
            ),
        ],
        "A SQL server answers a query.",
    ),
    look(
        "sql_replication",
        &[
            URL,
            Arg::optional("lag", Duration, "The most that the replica may be behind."),
        ],
        "A replica replicates: both of its threads run, for every source it has.",
    ),
    look(
        "log",
        &[
            Arg::required("path", Text, "The file."),
            Arg::required(
                "pattern",
                Text,
                "A regular expression; lines that match are counted.",
            ),
            Arg::required("state", Text, "A file that remembers how far it was read."),
            Arg::optional(
                "count",
                Matcher,
                "Of the number of such lines since the last look. Default 0.",
            ),
            Arg::optional(
                "from_start",
                Bool,
                "Whether the first look reads what is there already. Default False.",
            ),
        ],
        "Lines in a log since the last look; a log that was rotated is read to its end first.",
    ),
    look(
        "metric",
        &[
            Arg::required("url", Text, "Of the Prometheus text endpoint."),
            Arg::required("name", Text, "Of the metric."),
            Arg::optional("labels", Map, "Only series that have these."),
            Arg::optional(
                "value",
                Matcher,
                "Of each such series. Default: any, but one must be there.",
            ),
        ],
        "A metric of a Prometheus endpoint is as it should be.",
    ),
    look(
        "grpc_health",
        &[
            Arg::required("at", Text, "`host:port`, without TLS."),
            Arg::optional("service", Text, "Default: the server as a whole."),
        ],
        "A gRPC server says SERVING, by the protocol grpc.health.v1.",
    ),
    look(
        "value",
        &[
            Arg::required(
                "value",
                Any,
                "Anything, such as what a function of the file has worked out.",
            ),
            Arg::required("want", Matcher, "What it must be."),
        ],
        "A value is as it should be.",
    ),
    look(
        "not_run",
        &[Arg::required("why", Text, "For people.")],
        "Stands for a check that cannot be run here: it never is, and says why.",
    ),
];
