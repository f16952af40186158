//! homeostat probes
