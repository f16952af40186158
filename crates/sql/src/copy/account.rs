//! The account with which the backup program reads its server: made for one copy, with a password of its own and no more
//! rights than it takes, and gone after it. A new start of the server removes one that a dead keeper left
//! ([`crate::mariadb::settings::init_file`]), also from a copy, which has it inside.

use crate::keeper::Secret;
use crate::mariadb::{Driver, STATEMENT, SqlError};

pub const USER: &str = "copier";

/// Makes the account anew.
///
/// # Errors
/// When the server refuses, or there is no randomness.
pub(super) async fn make(driver: &mut Driver) -> Result<Secret, SqlError> {
    remove(driver).await?;
    let password = Secret::random()
        .map_err(|error| SqlError::Condition(format!("no password can be drawn: {error}")))?;
    // The password is hexadecimal. Sessions of a keeper log nothing.
    let sql = format!(
        "CREATE USER '{USER}'@'localhost' IDENTIFIED BY '{}'; \
         GRANT RELOAD, PROCESS, LOCK TABLES, BINLOG MONITOR ON *.* TO '{USER}'@'localhost'",
        password.reveal()
    );
    driver
        .run("make the copier's account", &sql, STATEMENT)
        .await?;
    Ok(password)
}

/// Removes it and ends what is connected with it, and with that any lock that a copy held.
///
/// # Errors
/// When the server refuses or does not answer.
pub(super) async fn remove(driver: &mut Driver) -> Result<(), SqlError> {
    let sql = format!("DROP USER IF EXISTS '{USER}'@'localhost'");
    driver
        .run("remove the copier's account", &sql, STATEMENT)
        .await?;
    let sql = format!("KILL HARD CONNECTION USER '{USER}'");
    match driver.run("cut the copier", &sql, STATEMENT).await {
        Ok(_) => Ok(()),
        // Nobody is connected.
        Err(error) if error.code() == Some(1095) || error.code() == Some(1094) => Ok(()),
        Err(error) => Err(error),
    }
}
