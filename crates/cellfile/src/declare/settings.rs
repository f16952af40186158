//! Settings of a SQL server that a cell file may not touch.
//!
//! The failover of a cluster is safe because of some settings (failover.md section 8) and homeostat finds its servers by
//! others. An option file accepts many spellings of one option: `-` for `_`, any unambiguous *beginning* of a name, and
//! prefixes such as `loose-` and `skip-`. All of them are refused.

use std::collections::BTreeMap;

use crate::item::Datum;
use crate::reader::Reader;

const SAFETY: &str = "the safety of failover depends on it";
const REPLICATION: &str = "homeostat runs the replication";
const PLACE: &str = "homeostat decides where a server lives and listens";
const ACCESS: &str = "homeostat manages the accounts and plugins of a server";

/// Options, with why they are reserved. A name that ends with `_` stands for all that begin with it.
const RESERVED: [(&str, &str); 53] = [
    ("sync_binlog", SAFETY),
    ("innodb_flush_log_at_trx_commit", SAFETY),
    ("innodb_doublewrite", SAFETY),
    ("innodb_force_recovery", SAFETY),
    ("innodb_read_only", SAFETY),
    ("sync_relay_log", SAFETY),
    ("sync_relay_log_info", SAFETY),
    ("sync_master_info", SAFETY),
    ("relay_log_recovery", SAFETY),
    ("skip_slave_start", SAFETY),
    ("slave_start", SAFETY),
    ("read_only", SAFETY),
    ("super_read_only", SAFETY),
    ("rpl_semi_sync_", SAFETY),
    ("init_rpl_role", SAFETY),
    ("gtid_", SAFETY),
    ("log_slave_updates", SAFETY),
    ("log_bin", SAFETY),
    ("binlog_format", SAFETY),
    ("binlog_do_db", SAFETY),
    ("binlog_ignore_db", SAFETY),
    ("binlog_row_image", SAFETY),
    ("expire_logs_days", SAFETY),
    ("binlog_expire_logs_seconds", SAFETY),
    ("max_binlog_total_size", SAFETY),
    ("enforce_storage_engine", SAFETY),
    ("default_storage_engine", SAFETY),
    ("slave_parallel_", REPLICATION),
    ("slave_skip_errors", REPLICATION),
    ("slave_exec_mode", REPLICATION),
    ("slave_net_timeout", REPLICATION),
    ("replicate_", REPLICATION),
    ("server_id", REPLICATION),
    ("report_host", REPLICATION),
    ("report_port", REPLICATION),
    ("relay_log", REPLICATION),
    ("relay_log_", REPLICATION),
    ("master_info_file", REPLICATION),
    ("extra_port", PLACE),
    ("extra_max_connections", PLACE),
    ("port", PLACE),
    ("socket", PLACE),
    ("bind_address", PLACE),
    ("networking", PLACE),
    ("datadir", PLACE),
    ("tmpdir", PLACE),
    ("innodb_data_home_dir", PLACE),
    ("innodb_log_group_home_dir", PLACE),
    ("pid_file", PLACE),
    ("user", ACCESS),
    ("grant_tables", ACCESS),
    ("init_file", ACCESS),
    ("plugin_", ACCESS),
];

/// What an option file may put before a name without changing which option it is.
const PREFIXES: [&str; 5] = ["loose_", "skip_", "disable_", "enable_", "maximum_"];

const MOST_SETTINGS: usize = 200;

pub(super) fn settings(reader: &mut Reader<'_, '_, '_>) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for (name, value) in reader.dict("settings").unwrap_or_default() {
        if let Some((option, why)) = reserved_by(name) {
            let message = if option.trim_end_matches('_') == name {
                format!("the setting '{name}' is reserved: {why}")
            } else {
                format!("the setting '{name}' is reserved (as '{option}'): {why}")
            };
            let hint = match option {
                "sync_relay_log" => {
                    Some("say durability = \"process\" for 0, \"power\" for 1".to_owned())
                }
                _ => None,
            };
            reader
                .problems
                .argument(reader.item, "settings", Some(name), message, hint);
            continue;
        }
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(letter) {
            reader.bad(
                "settings",
                Some(name),
                format!("'{name}' is not the name of a setting"),
            );
        }
        let value = match value {
            Datum::Text(text) => text.clone(),
            Datum::Int(number) => number.to_string(),
            Datum::Float(number) => number.to_string(),
            Datum::Bool(true) => "ON".to_owned(),
            Datum::Bool(false) => "OFF".to_owned(),
            Datum::None | Datum::List(_) | Datum::Dict(_) | Datum::Probe(_) | Datum::Other(_) => {
                let message = format!(
                    "the setting '{name}' must be a string, a number or a bool, not {}",
                    value.kind()
                );
                reader.bad("settings", Some(name), message);
                continue;
            }
        };
        if value.chars().any(char::is_control) {
            reader.bad(
                "settings",
                Some(name),
                format!("the setting '{name}' has a control character in it"),
            );
        }
        settings.insert(name.to_owned(), value);
    }
    if settings.len() > MOST_SETTINGS {
        reader.bad(
            "settings",
            None,
            format!("more than {MOST_SETTINGS} settings"),
        );
    }
    settings
}

/// The reserved option that a name stands for, and why it is reserved.
fn reserved_by(name: &str) -> Option<(&'static str, &'static str)> {
    let mut name = name.to_ascii_lowercase().replace('-', "_");
    loop {
        let reserved = RESERVED.iter().find(|(option, _)| {
            // The beginning of a reserved name may stand for it; three letters are enough to be careful about.
            let abbreviates = name.len() >= 3 && option.starts_with(&name);
            let group = option.ends_with('_') && name.starts_with(option);
            *option == name || abbreviates || group
        });
        if let Some(reserved) = reserved {
            return Some(*reserved);
        }
        let rest = PREFIXES
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))?;
        name = rest.to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_reserved_setting_is_refused() {
        for name in [
            "sync_binlog",
            "sync-binlog",
            "SYNC_BINLOG",
            "sync-binl",
            "loose-sync-binlog",
            "skip-log-bin",
            "log-bin",
            "disable_log_slave_updates",
            "loose_skip_log-bin",
            "rpl_semi_sync_master_timeout",
            "rpl-semi-sync",
            "innodb_flush_log_at_trx_commit",
            "innodb_flush_log",
            "init-rpl-role",
            "slave_parallel_mode",
            "slave-parallel-threads",
            "gtid_strict_mode",
            "replicate-do-db",
            "port",
            "skip-networking",
            "skip-grant-tables",
            "skip-slave-start",
            "plugin-load-add",
            "relay_log_purge",
            "read_only",
        ] {
            assert!(reserved_by(name).is_some(), "{name} was accepted");
        }
    }

    #[test]
    fn ordinary_settings_are_accepted() {
        for name in [
            "innodb_buffer_pool_size",
            "max_connections",
            "innodb_flush_method",
            "character-set-server",
            "sql_mode",
            "skip-name-resolve",
            "innodb_log_file_size",
            "event_scheduler",
            "max_allowed_packet",
        ] {
            assert_eq!(reserved_by(name), None, "{name}");
        }
    }
}
