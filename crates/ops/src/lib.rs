//! homeostat ops
