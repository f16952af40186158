//! What can be looked at and made so.

use super::ArgType::{Bool, Command, Map, Matcher, Text, Texts};
use super::{Arg, Kind, Role};

const fn state(name: &'static str, args: &'static [Arg], summary: &'static str) -> Kind {
    Kind {
        name,
        role: Role::State,
        args,
        summary,
    }
}

const PATH: Arg = Arg::required("path", Text, "The absolute path.");
const OWNER: Arg = Arg::optional("owner", Text, "Name or number of the user it belongs to.");
const GROUP: Arg = Arg::optional("group", Text, "Name or number of the group it belongs to.");
const URL: Arg = Arg::required(
    "url",
    Text,
    "Of an administrator: `mysql://user:password@host:port/`, or `file:/path` of a file that holds it.",
);
const SQL_HOST: Arg = Arg::optional("host", Text, "From where the user comes. Default `%`.");

pub(super) const KINDS: &[Kind] = &[
    state(
        "file",
        &[
            PATH,
            Arg::optional("content", Text, "Exactly what is in it."),
            Arg::optional(
                "mode",
                Text,
                "The permission bits: \"0644\", which a new file has by default.",
            ),
            OWNER,
            GROUP,
            Arg::looking("contents", Matcher, "Of the text in it."),
            Arg::looking("size", Matcher, "Of its size in bytes."),
            Arg::looking("sha256", Text, "Its checksum, in lower-case hex."),
        ],
        "A file is there, with the right content, mode and owner. Written whole or not at all: beside it, synced, then renamed.",
    ),
    state(
        "directory",
        &[
            PATH,
            Arg::optional(
                "mode",
                Text,
                "The permission bits: \"0755\", which a new folder has by default.",
            ),
            OWNER,
            GROUP,
        ],
        "A folder is there; missing ones above it are made with mode 0755.",
    ),
    state(
        "symlink",
        &[
            PATH,
            Arg::required(
                "target",
                Text,
                "Where it leads, as it is written in the link.",
            ),
        ],
        "A symbolic link is there and leads to the right place.",
    ),
    state(
        "absent",
        &[
            PATH,
            Arg::repairing(
                "recursive",
                Bool,
                "Whether a folder may go with all that is in it. Default False: only an empty one.",
            ),
        ],
        "Nothing is at a path.",
    ),
    state(
        "package",
        &[
            Arg::required("name", Text, "Of the package."),
            Arg::looking("version", Matcher, "Of the installed version."),
            Arg::looking(
                "versions",
                Matcher,
                "Of the list of all installed versions: rpm allows several.",
            ),
        ],
        "A package is installed (dpkg, rpm or apk).",
    ),
    state(
        "package_absent",
        &[Arg::required("name", Text, "Of the package.")],
        "A package is not installed; its configuration files are left alone.",
    ),
    state(
        "service",
        &[
            Arg::required(
                "name",
                Text,
                "Of the systemd unit; `.service` may be left out.",
            ),
            Arg::optional(
                "running",
                Bool,
                "Default: True if `enabled` is not given, else either.",
            ),
            Arg::optional(
                "enabled",
                Bool,
                "Whether it starts with the machine. Default: either.",
            ),
        ],
        "A systemd service runs, or does not.",
    ),
    state(
        "user",
        &[
            Arg::required("name", Text, "The login name."),
            Arg::optional(
                "uid",
                Matcher,
                "Its number. A fix takes a plain one, and gives it to a new user only: changing it would leave files behind.",
            ),
            Arg::optional("group", Text, "Its primary group, which must exist."),
            Arg::optional(
                "groups",
                Texts,
                "Groups it must be in; it is left in others.",
            ),
            Arg::optional(
                "only_groups",
                Texts,
                "Supplementary groups: these and no others.",
            ),
            Arg::optional(
                "home",
                Matcher,
                "Its home folder. A fix takes a plain text, here and below.",
            ),
            Arg::optional("shell", Matcher, "Its login shell."),
            Arg::optional("comment", Matcher, "Its full name (GECOS)."),
            Arg::looking("gid", Matcher, "Of the number of its primary group."),
            Arg::looking("all_groups", Matcher, "Of the list of all its groups."),
            Arg::optional(
                "keys",
                Texts,
                "Lines of `~/.ssh/authorized_keys`: these and no others. An empty list takes all access by key away.",
            ),
            Arg::repairing(
                "system",
                Bool,
                "Whether a new user is a system user. Default False.",
            ),
        ],
        "A user account is there, in its groups, with its ssh keys.",
    ),
    state(
        "user_absent",
        &[
            Arg::required("name", Text, "The login name."),
            Arg::repairing(
                "remove_home",
                Bool,
                "Whether its home folder goes too. Default False.",
            ),
        ],
        "No such user: not in passwd or shadow, in no group, without a crontab, without ssh keys in the home it had. The fix ends its processes.",
    ),
    state(
        "group",
        &[
            Arg::required("name", Text, "Of the group."),
            Arg::optional(
                "gid",
                Matcher,
                "Its number. A fix takes a plain one, and gives it to a new group only.",
            ),
        ],
        "A group is there.",
    ),
    state(
        "group_absent",
        &[Arg::required("name", Text, "Of the group.")],
        "No such group.",
    ),
    state(
        "kernel_param",
        &[
            Arg::required("name", Text, "With dots: `net.ipv4.ip_forward`."),
            Arg::required(
                "value",
                Matcher,
                "What it is. As a fix a plain value; white space between several is one tab.",
            ),
            Arg::optional(
                "persist",
                Bool,
                "Whether a file of ours in `/etc/sysctl.d` says the same, for the next boot. Default False.",
            ),
        ],
        "A kernel parameter (sysctl) has its value.",
    ),
    state(
        "cron",
        &[
            Arg::required(
                "name",
                Text,
                "Of the file in `/etc/cron.d`: letters, digits, `_` and `-`.",
            ),
            Arg::required("schedule", Text, "Five fields, or `@daily` and the like."),
            Arg::required("command", Text, "One line."),
            Arg::optional("user", Text, "Whom it runs as. Default `root`."),
        ],
        "A command runs on schedule, from a file of its own in `/etc/cron.d`.",
    ),
    state(
        "sql_database",
        &[
            URL,
            Arg::required("name", Text, "Of the database."),
            Arg::optional("charset", Text, "Such as `utf8mb4`."),
            Arg::optional("collation", Text, "Such as `utf8mb4_unicode_ci`."),
        ],
        "A database is there. Nothing in it is ever changed, and it is never dropped.",
    ),
    state(
        "sql_user",
        &[
            URL,
            Arg::required("name", Text, "Of the user."),
            SQL_HOST,
            Arg::optional(
                "password",
                Text,
                "Its password, or `file:/path` of a file that holds it. Whether it is right is seen by logging in, which the server must allow from here.",
            ),
        ],
        "A SQL user is there, with its password.",
    ),
    state(
        "sql_user_absent",
        &[URL, Arg::required("name", Text, "Of the user."), SQL_HOST],
        "No such SQL user.",
    ),
    state(
        "sql_grant",
        &[
            URL,
            Arg::required("user", Text, "Who gets it; must exist."),
            Arg::required(
                "privileges",
                Texts,
                "Such as `SELECT`, `INSERT`, or `ALL PRIVILEGES`.",
            ),
            Arg::required("on", Text, "`database.*`, `database.table` or `*.*`."),
            SQL_HOST,
        ],
        "A SQL user has at least these privileges.",
    ),
    state(
        "program",
        &[
            Arg::required(
                "command",
                Command,
                "The program, which speaks the JSON protocol.",
            ),
            Arg::optional("parameters", Map, "Handed to it."),
            Arg::optional(
                "resource",
                Text,
                "What its fix must have for itself. Default: the program with its parameters.",
            ),
            Arg::optional("dir", Text, "Where it runs. Default `/`."),
            Arg::optional("env", Map, "Variables beside PATH and LANG."),
            Arg::optional("user", Text, "Whom it runs as."),
        ],
        "A probe, or a fix, that is a program in any language.",
    ),
];
