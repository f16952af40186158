//! homeostat sql
