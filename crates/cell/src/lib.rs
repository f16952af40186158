//! homeostat cell
