//! The server's settings (failover.md section 8) and what it runs at every start before it lets anybody in.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use homeostat_decider::MemberId;
use homeostat_model::{Bytes, Durability};

use super::accounts;
use super::driver::{USER, quote};
use super::gtid::DOMAIN;
use crate::copy;
use crate::keeper::config::{KeeperConfig, Peer, Secret};

/// What a server uses besides its buffer pool, roughly: code, caches, some connections.
const BESIDES: Bytes = Bytes::mib(96);
const SMALLEST_POOL: Bytes = Bytes::mib(16);
const LARGEST_POOL: Bytes = Bytes::mib(1024 * 1024);

/// Settings that carry the safety of the cluster, or that the keeper computes. A cell file cannot set them.
const RESERVED: &[&str] = &[
    "basedir",
    "bind_address",
    "binlog_checksum",
    "binlog_do_db",
    "binlog_format",
    "binlog_ignore_db",
    "binlog_row_image",
    "datadir",
    "defaults_extra_file",
    "defaults_file",
    "enforce_storage_engine",
    "extra_max_connections",
    "extra_port",
    "gtid_domain_id",
    "gtid_strict_mode",
    "init_file",
    "init_rpl_role",
    "innodb_buffer_pool_size",
    "innodb_buffer_pool_size_max",
    "innodb_data_file_path",
    "innodb_flush_log_at_trx_commit",
    "innodb_log_group_home_dir",
    "innodb_undo_tablespaces",
    "log_bin",
    "log_error",
    "log_slave_updates",
    "lower_case_table_names",
    "master_info_file",
    "old_passwords",
    "pid_file",
    "port",
    "read_only",
    "relay_log",
    "relay_log_index",
    "relay_log_info_file",
    "relay_log_purge",
    "relay_log_recovery",
    "replicate_do_db",
    "replicate_do_table",
    "replicate_ignore_db",
    "replicate_ignore_table",
    "replicate_rewrite_db",
    "replicate_wild_do_table",
    "replicate_wild_ignore_table",
    "rpl_semi_sync_master_enabled",
    "rpl_semi_sync_master_timeout",
    "rpl_semi_sync_master_wait_no_slave",
    "rpl_semi_sync_master_wait_point",
    "rpl_semi_sync_slave_enabled",
    "secure_auth",
    "server_id",
    "skip_grant_tables",
    "skip_name_resolve",
    "skip_networking",
    "skip_slave_start",
    "slave_load_tmpdir",
    "socket",
    "sync_binlog",
    "sync_relay_log",
    "tmpdir",
    "unix_socket",
    "user",
];

/// Why these settings of a cell file cannot be used, naming the first that is at fault.
pub fn refusal(settings: &BTreeMap<String, String>) -> Option<String> {
    for (name, value) in settings {
        let plain =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
        if name.is_empty() || !name.chars().all(plain) {
            return Some(format!(
                "has the setting '{name}', which is no name of a server setting"
            ));
        }
        if value.chars().any(char::is_control) {
            return Some(format!(
                "has a setting '{name}' whose value is more than one line"
            ));
        }
        let name = name.replace('-', "_");
        // The server takes `loose_X`, `maximum_X` and the like for X, and any unambiguous beginning of a name.
        let prefixes = [
            "loose_", "skip_", "disable_", "enable_", "maximum_", "autoset_",
        ];
        let bare = prefixes
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(&name);
        let takes =
            |reserved: &str| reserved == name || reserved == bare || is_beginning(bare, reserved);
        if let Some(reserved) = RESERVED.iter().find(|reserved| takes(reserved)) {
            return Some(format!(
                "sets '{name}', but '{reserved}' is the keeper's to set"
            ));
        }
    }
    None
}

/// Beginnings are accepted by the server; of three letters or fewer none is unambiguous.
fn is_beginning(name: &str, of: &str) -> bool {
    const REAL: [&str; 2] = ["binlog_row", "log"];
    name.len() > 3 && of.starts_with(name) && !REAL.contains(&name)
}

/// Where this server's files are, and how it is reached.
pub struct Place<'a> {
    pub member: &'a MemberId,
    pub host: &'a str,
    pub port: u16,
    /// The data folder.
    pub data: &'a Path,
    /// For temporary tables and files; this server's alone.
    pub temporary: &'a Path,
    pub socket: &'a Path,
    pub pid_file: &'a Path,
    pub init_file: &'a Path,
    pub memory_limit: Option<Bytes>,
}

/// The option file. It holds no secrets.
pub fn option_file(config: &KeeperConfig, place: &Place<'_>) -> String {
    // Every server starts as a receiver; `TakeOver` gives it the id that it writes with.
    let server_id = config
        .members
        .get(place.member)
        .map_or(0, Peer::receiving_id);
    let pool = config
        .buffer_pool
        .unwrap_or_else(|| pool(place.memory_limit));
    let sync_relay_log = match config.durability {
        Durability::Power => "1",
        Durability::Process => "0",
    };
    let mut text = String::from(
        "# Written by the keeper at each start of the server; changes are lost.\n[mariadbd]\n",
    );
    let mut set = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = {value}");
    };
    // Chosen for small servers; a cell file may set others, which is why these come first.
    for (name, value) in [
        ("performance_schema", "OFF"),
        ("innodb_log_file_size", "32M"),
        ("innodb_log_buffer_size", "4M"),
        ("key_buffer_size", "1M"),
        ("aria_pagecache_buffer_size", "4M"),
        ("max_connections", "200"),
        ("max_allowed_packet", "64M"),
        ("table_open_cache", "400"),
        ("slave_parallel_mode", "optimistic"),
        ("slave_parallel_threads", "8"),
        ("slave_net_timeout", "10"),
        // A source reads the binlog in which a reconnecting replica continues from its start: with 115 MB of it
        // the first acknowledged commit came half a second later (measured). A failover must not wait for that.
        ("max_binlog_size", "32M"),
        ("character_set_server", "utf8mb4"),
        ("innodb_buffer_pool_dump_at_shutdown", "OFF"),
        ("innodb_buffer_pool_load_at_startup", "OFF"),
    ] {
        set(name, &value);
    }
    for (name, value) in &config.settings {
        set(name, value);
    }
    for (name, value) in [
        ("sync_binlog", "1"),
        ("innodb_flush_log_at_trx_commit", "1"),
        ("sync_relay_log", sync_relay_log),
        ("relay_log_recovery", "OFF"),
        ("relay_log_purge", "ON"),
        ("skip_slave_start", "ON"),
        ("read_only", "ON"),
        ("rpl_semi_sync_master_enabled", "OFF"),
        ("rpl_semi_sync_slave_enabled", "OFF"),
        ("rpl_semi_sync_master_wait_point", "AFTER_SYNC"),
        ("rpl_semi_sync_master_wait_no_slave", "ON"),
        ("rpl_semi_sync_master_timeout", "31536000000"),
        ("gtid_strict_mode", "ON"),
        ("log_bin", "binlog"),
        ("log_slave_updates", "ON"),
        ("relay_log", "relay"),
        ("binlog_format", "ROW"),
        ("binlog_row_image", "FULL"),
        ("enforce_storage_engine", "InnoDB"),
        ("skip_name_resolve", "ON"),
    ] {
        set(name, &value);
    }
    set("gtid_domain_id", &DOMAIN);
    set("server_id", &server_id);
    set("innodb_buffer_pool_size", &pool.0);
    // Otherwise address space for a pool of 8 TB is reserved.
    set("innodb_buffer_pool_size_max", &pool.0);
    set("datadir", &place.data.display());
    // Never the machine's own: every MariaDB that starts removes the temporary tables of all others from it.
    set("tmpdir", &place.temporary.display());
    set("socket", &place.socket.display());
    set("pid_file", &place.pid_file.display());
    set("init_file", &place.init_file.display());
    set("bind_address", &place.host);
    set("port", &place.port);
    text
}

/// Half of what the limit leaves; a multiple of 8 MiB, the step in which the server resizes it.
fn pool(limit: Option<Bytes>) -> Bytes {
    let half = limit.map_or(0, |limit| limit.0.saturating_sub(BESIDES.0) / 2);
    let step = Bytes::mib(8).0;
    Bytes((half / step * step).clamp(SMALLEST_POOL.0, LARGEST_POOL.0))
}

/// What the server executes before it accepts a connection: the keeper's password of this start, and every replication
/// account, locked. An account that a copy left, here or at the member this one was copied from, goes. Nothing of it is
/// logged.
pub fn init_file(config: &KeeperConfig, password: &Secret) -> String {
    let mut text = String::from("SET SESSION sql_log_bin = 0;\n");
    let password = quote(password.reveal());
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "ALTER USER '{USER}'@'localhost' IDENTIFIED BY {password} ACCOUNT UNLOCK;"
    );
    let _ = writeln!(text, "DROP USER IF EXISTS '{}'@'localhost';", copy::USER);
    for (member, peer) in &config.members {
        let account = accounts::account(member);
        let password = quote(peer.replication_password.reveal());
        let _ = writeln!(text, "CREATE USER IF NOT EXISTS {account} ACCOUNT LOCK;");
        let _ = writeln!(
            text,
            "ALTER USER {account} IDENTIFIED BY {password} ACCOUNT LOCK;"
        );
        let _ = writeln!(text, "GRANT REPLICATION SLAVE ON *.* TO {account};");
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reserved_settings_are_refused_in_every_spelling() {
        let refused =
            |name: &str| refusal(&BTreeMap::from([(name.to_owned(), "1".to_owned())])).is_some();
        for name in [
            "sync_binlog",
            "sync-binlog",
            "loose_read_only",
            "skip-log-bin",
            "init_rpl",
            "rpl_semi_sync_master_time",
            "a\nb",
            "",
            "[client]",
        ] {
            assert!(refused(name), "{name:?} was accepted");
        }
        for name in [
            "max_connections",
            "innodb_log_file_size",
            "sql_mode",
            "slow_query_log",
            "binlog_row_event_max_size",
        ] {
            assert!(!refused(name), "{name:?} was refused");
        }
        assert!(
            refusal(&BTreeMap::from([(
                "sql_mode".to_owned(),
                "a\nb".to_owned()
            )]))
            .is_some()
        );
    }

    #[test]
    fn the_pool_fits_the_limit() {
        assert_eq!(pool(None), SMALLEST_POOL);
        assert_eq!(pool(Some(Bytes::mib(128))), SMALLEST_POOL);
        assert_eq!(pool(Some(Bytes::mib(1120))), Bytes::mib(512));
    }
}
