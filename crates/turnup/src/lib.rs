//! homeostat turnup
