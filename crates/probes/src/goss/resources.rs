//! Each resource type of goss as a call.

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::library::Call;
use serde_json::{Map, Value, json};

use super::matchers::{Default, convert};
use super::yaml::{Data, Node};
use super::{GossError, Skip};

/// What any resource may have, and is only for people or for goss itself.
const COMMON: [&str; 3] = ["title", "meta", "skip"];

/// A resource type: the attribute that may stand in for the key, and all others.
const TYPES: &[(&str, &str, &[&str])] = &[
    (
        "addr",
        "address",
        &["reachable", "timeout", "local-address"],
    ),
    (
        "command",
        "exec",
        &["exit-status", "stdout", "stderr", "timeout"],
    ),
    (
        "dns",
        "resolve",
        &["resolvable", "resolveable", "addrs", "server", "timeout"],
    ),
    (
        "file",
        "path",
        &[
            "exists",
            "mode",
            "size",
            "owner",
            "uid",
            "group",
            "gid",
            "linked-to",
            "filetype",
            "contents",
            "contains",
            "md5",
            "sha256",
            "sha512",
        ],
    ),
    ("group", "groupname", &["exists", "gid"]),
    (
        "http",
        "url",
        &[
            "method",
            "status",
            "allow-insecure",
            "no-follow-redirects",
            "timeout",
            "request-headers",
            "request-body",
            "headers",
            "body",
            "username",
            "password",
            "ca-file",
            "cert-file",
            "key-file",
            "proxy",
        ],
    ),
    ("interface", "name", &["exists", "addrs", "mtu"]),
    ("kernel-param", "name", &["value"]),
    ("matching", "", &["content", "as-reader", "matches"]),
    (
        "mount",
        "mountpoint",
        &[
            "exists",
            "opts",
            "vfs-opts",
            "source",
            "filesystem",
            "usage",
            "timeout",
        ],
    ),
    ("package", "name", &["installed", "versions"]),
    ("port", "port", &["listening", "ip"]),
    ("process", "comm", &["running"]),
    ("service", "name", &["enabled", "running", "runlevels"]),
    (
        "user",
        "username",
        &["exists", "uid", "gid", "groups", "home", "shell"],
    ),
];

pub(super) struct Resource<'a> {
    kind: &'static str,
    /// The key, or the attribute that stands in for it.
    id: String,
    node: &'a Node,
    attributes: &'a [(String, Node)],
}

type Args = BTreeMap<String, Value>;

impl<'a> Resource<'a> {
    pub(super) fn new(section: &str, id: &str, node: &'a Node) -> Result<Self, GossError> {
        if section == "gossfile" {
            return node.error("other gossfiles are not read: use the output of `goss render`");
        }
        let Some((kind, stand_in, known)) = TYPES.iter().find(|(kind, ..)| *kind == section) else {
            return node.error(format!("'{section}' is no resource type of goss for Linux"));
        };
        let attributes: &[(String, Node)] = match &node.data {
            Data::Map(attributes) => attributes,
            Data::Scalar(Value::Null) => &[],
            Data::Scalar(_) | Data::List(_) => {
                return node.error(format!("{section} '{id}' is not a mapping of attributes"));
            }
        };
        for (name, node) in attributes {
            let is = |other: &&str| *other == name;
            if !known.iter().any(is) && !COMMON.iter().any(is) && name != stand_in {
                return node.error(format!("{section} has no attribute '{name}'"));
            }
        }
        let mut resource = Self {
            kind,
            id: id.to_owned(),
            node,
            attributes,
        };
        if let Some(id) = resource.text(stand_in)? {
            resource.id = id;
        }
        Ok(resource)
    }

    fn get(&self, name: &str) -> Option<&'a Node> {
        let found = self.attributes.iter().find(|(known, _)| known == name);
        // What is written without a value is not set.
        found
            .map(|(_, node)| node)
            .filter(|node| node.data != Data::Scalar(Value::Null))
    }

    fn text(&self, name: &str) -> Result<Option<String>, GossError> {
        match self.get(name).map(|node| (node, &node.data)) {
            None => Ok(None),
            Some((_, Data::Scalar(Value::String(text)))) => Ok(Some(text.clone())),
            Some((_, Data::Scalar(value @ (Value::Number(_) | Value::Bool(_))))) => {
                Ok(Some(value.to_string()))
            }
            Some((node, _)) => node.error(format!("'{name}' is a text")),
        }
    }

    fn bool(&self, name: &str) -> Result<Option<bool>, GossError> {
        match self.get(name).map(|node| (node, &node.data)) {
            None => Ok(None),
            Some((_, Data::Scalar(Value::Bool(value)))) => Ok(Some(*value)),
            Some((node, _)) => node.error(format!("'{name}' is true or false")),
        }
    }

    /// An attribute that goss insists on.
    fn need_bool(&self, name: &str) -> Result<bool, GossError> {
        match self.bool(name)? {
            Some(value) => Ok(value),
            None => self
                .node
                .error(format!("{} '{}' does not say '{name}'", self.kind, self.id)),
        }
    }

    fn matcher(
        &self,
        args: &mut Args,
        name: &str,
        arg: &str,
        default: Default,
    ) -> Result<(), GossError> {
        if let Some(node) = self.get(name)
            && node.data != Data::List(Vec::new())
        {
            args.insert(arg.to_owned(), convert(node, default)?);
        }
        Ok(())
    }

    pub(super) fn skip(&self) -> Result<Skip, GossError> {
        Ok(match self.bool("skip")? {
            Some(true) => Skip::Yes,
            Some(false) | None => Skip::No,
        })
    }

    /// In milliseconds, with goss's default for the type.
    fn timeout(&self) -> Result<Option<Duration>, GossError> {
        let default = match self.kind {
            "addr" | "dns" => 500,
            "command" => 10_000,
            "http" => 5_000,
            "mount" => 1_000,
            _ => return Ok(None),
        };
        let given = match self.get("timeout").map(|node| (node, &node.data)) {
            None => 0,
            Some((node, Data::Scalar(Value::Number(number)))) => match number.as_u64() {
                Some(ms) => ms,
                None => return node.error("'timeout' is a number of milliseconds"),
            },
            Some((node, _)) => return node.error("'timeout' is a number of milliseconds"),
        };
        Ok(Some(Duration::from_millis(if given == 0 {
            default
        } else {
            given
        })))
    }

    pub(super) fn convert(&self) -> Result<(Call, Option<Duration>), GossError> {
        let call = match self.kind {
            "addr" => self.addr()?,
            "command" => self.command()?,
            "dns" => self.dns()?,
            "file" => self.file()?,
            "group" => self.account("group", &[("gid", "gid")])?,
            "http" => self.http()?,
            "interface" => self.interface()?,
            "kernel-param" => self.kernel_param()?,
            "matching" => self.matching()?,
            "mount" => self.mount()?,
            "package" => self.package()?,
            "port" => self.port()?,
            "process" => self.process()?,
            "service" => self.service()?,
            _ => {
                let facts = [
                    ("uid", "uid"),
                    ("gid", "gid"),
                    ("groups", "all_groups"),
                    ("home", "home"),
                    ("shell", "shell"),
                ];
                self.account("user", &facts)?
            }
        };
        Ok((call, self.timeout()?))
    }

    fn addr(&self) -> Result<Call, GossError> {
        let at = match self.id.split_once("://") {
            Some(("tcp", at)) => at,
            Some((_, _)) => {
                return Ok(not_run(format!(
                    "{}: only tcp can be seen to answer",
                    self.id
                )));
            }
            None => {
                return self
                    .node
                    .error(format!("'{}' is not tcp://host:port", self.id));
            }
        };
        let mut args = Args::from([("at".into(), at.into())]);
        if !self.need_bool("reachable")? {
            args.insert("reachable".into(), false.into());
        }
        if let Some(from) = self.text("local-address")? {
            args.insert("local_address".into(), from.into());
        }
        Ok(call("tcp", args))
    }

    fn command(&self) -> Result<Call, GossError> {
        let mut args = Args::from([("command".into(), self.id.clone().into())]);
        if self.get("exit-status").is_none() {
            return self
                .node
                .error(format!("command '{}' does not say 'exit-status'", self.id));
        }
        self.matcher(&mut args, "exit-status", "exit", Default::Elements)?;
        self.matcher(&mut args, "stdout", "stdout", Default::Patterns)?;
        self.matcher(&mut args, "stderr", "stderr", Default::Patterns)?;
        if args.get("exit") == Some(&json!(0)) {
            args.remove("exit");
        }
        Ok(call("command", args))
    }

    fn dns(&self) -> Result<Call, GossError> {
        let (kind, name) = match self.id.split_once(':') {
            Some((kind, name)) if kind.chars().all(|c| c.is_ascii_uppercase()) => {
                (Some(kind), name)
            }
            _ => (None, self.id.as_str()),
        };
        if kind == Some("CAA") {
            return Ok(not_run(format!("{}: CAA records are not read", self.id)));
        }
        let mut args = Args::from([("name".into(), name.into())]);
        if let Some(kind) = kind {
            args.insert("type".into(), kind.into());
        }
        if let Some(server) = self.text("server")? {
            args.insert("server".into(), server.into());
        }
        // goss once spelt it so.
        let resolves = match self.bool("resolveable")? {
            Some(value) => value,
            None => self.need_bool("resolvable")?,
        };
        if resolves {
            self.matcher(&mut args, "addrs", "want", Default::Elements)?;
        } else {
            args.insert("resolves".into(), false.into());
        }
        Ok(call("dns", args))
    }

    fn file(&self) -> Result<Call, GossError> {
        let path = Args::from([("path".into(), self.id.clone().into())]);
        if !self.need_bool("exists")? {
            return Ok(call("absent", path));
        }
        let mut args = path;
        for (name, arg) in [
            ("mode", "mode"),
            ("size", "size"),
            ("owner", "owner"),
            ("uid", "uid"),
            ("group", "group"),
            ("gid", "gid"),
            ("linked-to", "target"),
            ("md5", "md5"),
            ("sha256", "sha256"),
            ("sha512", "sha512"),
        ] {
            self.matcher(&mut args, name, arg, Default::Elements)?;
        }
        if let Some(kind) = self.text("filetype")? {
            // Its words for the rest.
            let kind = match kind.as_str() {
                "pipe" => "fifo".to_owned(),
                "block-device" => "block".to_owned(),
                "character-device" => "char".to_owned(),
                _ => kind,
            };
            args.insert("type".into(), kind.into());
        }
        self.matcher(&mut args, "contains", "contents", Default::Patterns)?;
        self.matcher(&mut args, "contents", "contents", Default::Patterns)?;
        Ok(call("path", args))
    }

    fn account(&self, kind: &str, facts: &[(&str, &str)]) -> Result<Call, GossError> {
        let mut args = Args::from([("name".into(), self.id.clone().into())]);
        if !self.need_bool("exists")? {
            let absent = if kind == "user" {
                "user_absent"
            } else {
                "group_absent"
            };
            return Ok(call(absent, args));
        }
        for (name, arg) in facts {
            self.matcher(&mut args, name, arg, Default::Elements)?;
        }
        Ok(call(kind, args))
    }

    fn http(&self) -> Result<Call, GossError> {
        for name in ["ca-file", "cert-file", "key-file", "proxy"] {
            if self.text(name)?.is_some_and(|text| !text.is_empty()) {
                return Ok(not_run(format!("{}: '{name}' is not known here", self.id)));
            }
        }
        if self.id.starts_with("https://") {
            return Ok(not_run(format!("{}: TLS is not built in", self.id)));
        }
        let mut args = Args::from([("url".into(), self.id.clone().into())]);
        if self.get("status").is_none() {
            return self
                .node
                .error(format!("http '{}' does not say 'status'", self.id));
        }
        self.matcher(&mut args, "status", "status", Default::Elements)?;
        self.matcher(&mut args, "headers", "headers", Default::Patterns)?;
        self.matcher(&mut args, "body", "body", Default::Patterns)?;
        for (name, arg) in [
            ("method", "method"),
            ("request-body", "request_body"),
            ("username", "username"),
            ("password", "password"),
        ] {
            if let Some(text) = self.text(name)?.filter(|text| !text.is_empty()) {
                args.insert(arg.into(), text.into());
            }
        }
        if self.bool("no-follow-redirects")? == Some(true) {
            args.insert("redirects".into(), false.into());
        }
        let headers = self.request_headers()?;
        if !headers.is_empty() {
            args.insert("request_headers".into(), headers.into());
        }
        Ok(call("http", args))
    }

    fn request_headers(&self) -> Result<Map<String, Value>, GossError> {
        let Some(node) = self.get("request-headers") else {
            return Ok(Map::new());
        };
        let Data::List(lines) = &node.data else {
            return node.error("'request-headers' is a list of 'Name: value'");
        };
        let lines = lines.iter().map(|line| {
            let value = line.value();
            match value.as_str().and_then(|text| text.split_once(':')) {
                Some((name, value)) => Ok((name.trim().to_owned(), value.trim().into())),
                None => line.error("a header is 'Name: value'"),
            }
        });
        lines.collect()
    }

    fn interface(&self) -> Result<Call, GossError> {
        let mut args = Args::from([("name".into(), self.id.clone().into())]);
        if self.need_bool("exists")? {
            self.matcher(&mut args, "addrs", "addresses", Default::Elements)?;
            self.matcher(&mut args, "mtu", "mtu", Default::Elements)?;
        } else {
            args.insert("exists".into(), false.into());
        }
        Ok(call("interface", args))
    }

    fn kernel_param(&self) -> Result<Call, GossError> {
        let mut args = Args::from([("name".into(), self.id.clone().into())]);
        self.matcher(&mut args, "value", "value", Default::Elements)?;
        Ok(call("kernel_param", args))
    }

    fn matching(&self) -> Result<Call, GossError> {
        let (Some(content), Some(matches)) = (self.get("content"), self.get("matches")) else {
            return self.node.error(format!(
                "matching '{}' needs 'content' and 'matches'",
                self.id
            ));
        };
        let default = match self.bool("as-reader")? {
            Some(true) => Default::Patterns,
            Some(false) | None => Default::Elements,
        };
        let args = Args::from([
            ("value".into(), content.value()),
            ("want".into(), convert(matches, default)?),
        ]);
        Ok(call("value", args))
    }

    fn mount(&self) -> Result<Call, GossError> {
        let mut args = Args::from([("path".into(), self.id.clone().into())]);
        if !self.need_bool("exists")? {
            args.insert("mounted".into(), false.into());
            return Ok(call("mount", args));
        }
        for (name, arg) in [
            ("opts", "options"),
            ("vfs-opts", "fs_options"),
            ("source", "source"),
            ("filesystem", "filesystem"),
            ("usage", "used_percent"),
        ] {
            self.matcher(&mut args, name, arg, Default::Elements)?;
        }
        Ok(call("mount", args))
    }

    fn package(&self) -> Result<Call, GossError> {
        let mut args = Args::from([("name".into(), self.id.clone().into())]);
        if !self.need_bool("installed")? {
            return Ok(call("package_absent", args));
        }
        self.matcher(&mut args, "versions", "versions", Default::Elements)?;
        Ok(call("package", args))
    }

    fn port(&self) -> Result<Call, GossError> {
        let (protocol, number) = self.id.split_once(':').unwrap_or(("tcp", &self.id));
        let Ok(number) = number.parse::<u16>() else {
            return self
                .node
                .error(format!("'{}' is not protocol:port", self.id));
        };
        let mut args = Args::from([
            ("port".into(), number.into()),
            ("protocol".into(), protocol.into()),
        ]);
        if self.need_bool("listening")? {
            self.matcher(&mut args, "ip", "ip", Default::Elements)?;
        } else {
            args.insert("listening".into(), false.into());
        }
        Ok(call("port", args))
    }

    fn process(&self) -> Result<Call, GossError> {
        let mut args = Args::from([("name".into(), self.id.clone().into())]);
        if !self.need_bool("running")? {
            args.insert("count".into(), 0.into());
        }
        Ok(call("process", args))
    }

    fn service(&self) -> Result<Call, GossError> {
        if self
            .get("runlevels")
            .is_some_and(|node| node.data != Data::List(Vec::new()))
        {
            return Ok(not_run(format!("{}: systemd has no run levels", self.id)));
        }
        let mut args = Args::from([("name".into(), self.id.clone().into())]);
        for name in ["enabled", "running"] {
            if let Some(value) = self.bool(name)? {
                args.insert(name.into(), value.into());
            }
        }
        if args.len() == 1 {
            return self.node.error(format!(
                "service '{}' says neither 'enabled' nor 'running'",
                self.id
            ));
        }
        Ok(call("service", args))
    }
}

fn call(kind: &str, args: Args) -> Call {
    Call {
        kind: kind.to_owned(),
        args,
    }
}

fn not_run(why: String) -> Call {
    call("not_run", Args::from([("why".into(), why.into())]))
}
