//! Where things are in the store.
//!
//! ```text
//! /ops/<id>/plan            the plan, written once
//! /ops/<id>/log/<8 digits>  one record each, written once
//! /ops-lock/<kind>/<name>   the operation that holds this thing
//! /ops-next/<procedure>     the number of the procedure's next operation
//! /ops-fence                the term of the executor that may write
//! /cell/freeze              there: automation stands still; the value says why
//! ```

use homeostat_journal::{LogSeq, Touched};
use homeostat_model::{OperationId, ProcedureName};

pub(crate) const OPERATIONS: &str = "/ops/";
pub(crate) const LOCKS: &str = "/ops-lock/";
pub(crate) const FENCE: &str = "/ops-fence";
pub(crate) const FREEZE: &str = "/cell/freeze";

pub(crate) fn operation(id: &OperationId) -> String {
    format!("{OPERATIONS}{id}/")
}

pub(crate) fn plan(id: &OperationId) -> String {
    format!("{OPERATIONS}{id}/plan")
}

pub(crate) fn record(id: &OperationId, seq: LogSeq) -> String {
    format!("{OPERATIONS}{id}/log/{:08}", seq.0)
}

pub(crate) fn lock(touched: &Touched) -> String {
    format!("{LOCKS}{touched}")
}

pub(crate) fn next_number(procedure: &ProcedureName) -> String {
    format!("/ops-next/{procedure}")
}

/// The operation's id and the rest of the key.
pub(crate) fn split(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(OPERATIONS)?.split_once('/')
}
