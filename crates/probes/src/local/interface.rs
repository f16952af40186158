//! Network interfaces.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::{LocalError, LocalProbe, Subject, finish, is_missing, trouble};
use crate::call::{Args, CallError};
use crate::matcher::Matcher;
use crate::wants::{Facts, Wants};

pub(super) fn from_args(args: &Args<'_>) -> Result<LocalProbe, CallError> {
    let name = args.need("name")?;
    if name.contains('/') || name.starts_with('.') {
        return args.refuse("name", format!("'{name}' is no interface"));
    }
    let mut wants = Wants::default();
    if let Some(up) = args.bool("up") {
        wants.push("up", Matcher::equals(up));
    }
    if let Some(matcher) = args.set_matcher("addresses")? {
        wants.push("addresses", matcher);
    }
    if let Some(matcher) = args.matcher("mtu")? {
        wants.push("mtu", matcher);
    }
    finish(args, "exists", Subject::Interface(name), wants)
}

pub(super) fn facts(name: &str, wants: &Wants) -> Result<Option<Facts>, LocalError> {
    let folder = PathBuf::from("/sys/class/net").join(name);
    let read = |file: &str| fs::read_to_string(folder.join(file));
    let flags = match read("flags") {
        Ok(flags) => flags,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(trouble(format!("look at interface {name}"))(error)),
    };
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or_default();
    let mtu = read("mtu").map_err(trouble(format!("look at interface {name}")))?;
    let mut facts = Facts::from([
        ("up", (flags & libc::IFF_UP.cast_unsigned() != 0).into()),
        ("mtu", mtu.trim().parse::<u32>().unwrap_or_default().into()),
    ]);
    if wants.asks("addresses") {
        let addresses = addresses(name).map_err(trouble("list the addresses"))?;
        facts.insert("addresses", addresses.into());
    }
    Ok(Some(facts))
}

fn addresses(name: &str) -> std::io::Result<Vec<String>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: the call sets the pointer, or says that it did not.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: entries of the list, which is freed only below; its names end with zero.
        let (entry, entry_name) = unsafe {
            let entry = &*next;
            (entry, std::ffi::CStr::from_ptr(entry.ifa_name))
        };
        if entry_name.to_bytes() == name.as_bytes() {
            // SAFETY: both point to addresses of the family that they name, or are null.
            let pair = unsafe { (bits(entry.ifa_addr), bits(entry.ifa_netmask)) };
            if let (Some(address), Some(mask)) = pair {
                found.push(format!("{}/{}", address.text(), mask.ones()));
            }
        }
        next = entry.ifa_next;
    }
    // SAFETY: made by getifaddrs above, and nothing of it is used any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

enum Bits {
    V4(u32),
    V6(u128),
}

impl Bits {
    fn text(&self) -> String {
        match self {
            Bits::V4(bits) => Ipv4Addr::from_bits(*bits).to_string(),
            Bits::V6(bits) => Ipv6Addr::from_bits(*bits).to_string(),
        }
    }

    fn ones(&self) -> u32 {
        match self {
            Bits::V4(bits) => bits.count_ones(),
            Bits::V6(bits) => bits.count_ones(),
        }
    }
}

/// # Safety
/// `address` is null or points to an address of the family that it names.
unsafe fn bits(address: *const libc::sockaddr) -> Option<Bits> {
    if address.is_null() {
        return None;
    }
    // SAFETY: the caller says so.
    match i32::from(unsafe { (*address).sa_family }) {
        libc::AF_INET => {
            // SAFETY: the family says that it is this one.
            let v4 = unsafe { &*address.cast::<libc::sockaddr_in>() };
            Some(Bits::V4(u32::from_be(v4.sin_addr.s_addr)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that it is this one.
            let v6 = unsafe { &*address.cast::<libc::sockaddr_in6>() };
            Some(Bits::V6(u128::from_be_bytes(v6.sin6_addr.s6_addr)))
        }
        _ => None,
    }
}
