//! homeostat cellfile
