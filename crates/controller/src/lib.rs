//! homeostat controller
