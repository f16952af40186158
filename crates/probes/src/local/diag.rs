//! Listening TCP sockets, asked of the kernel by port (sock_diag(7)).
//!
//! `/proc/net/tcp` shows them too, but to write it the kernel walks through the table of all connections, which takes
//! milliseconds on a machine with much memory, however few connections there are. A suite with a hundred ports would do
//! little else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Of `include/uapi/linux/netlink.h` and `sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_AND_DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const LISTENING: u32 = 1 << 10;
const TCP: u8 = 6;
const HEADER: usize = 16;
/// The beginning of `inet_diag_msg`, up to its source address, and that.
const ADDRESS_AT: usize = HEADER + 8;
/// More listeners on one port there are not.
const BUFFER: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// The addresses on which something listens on a port.
///
/// # Errors
/// When the kernel has no such interface, among others.
pub(super) fn listeners(family: Family, port: u16) -> io::Result<Vec<IpAddr>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    // Without an address it goes to the kernel.
    send(&socket, &request(family, port), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let (count, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..count];
        while rest.len() >= HEADER {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let message = rest
                .get(..length.max(HEADER))
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            match u16::from_ne_bytes([message[4], message[5]]) {
                DONE => return Ok(found),
                ERROR => return Err(refusal(message)),
                SOCK_DIAG_BY_FAMILY => found.extend(address(family, message)),
                _ => {}
            }
            // Messages begin at multiples of four.
            rest = rest
                .get(message.len().next_multiple_of(4)..)
                .unwrap_or_default();
        }
    }
}

/// `nlmsghdr` and `inet_diag_req_v2`.
fn request(family: Family, port: u16) -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes[0..4].copy_from_slice(&72_u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_AND_DUMP.to_ne_bytes());
    let family = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    bytes[16] = family.as_raw().to_ne_bytes()[0];
    bytes[17] = TCP;
    bytes[20..24].copy_from_slice(&LISTENING.to_ne_bytes());
    bytes[24..26].copy_from_slice(&port.to_be_bytes());
    bytes
}

fn refusal(message: &[u8]) -> io::Error {
    match message.get(HEADER..HEADER + 4) {
        Some(&[a, b, c, d]) => io::Error::from_raw_os_error(-i32::from_ne_bytes([a, b, c, d])),
        Some(_) | None => io::ErrorKind::UnexpectedEof.into(),
    }
}

fn address(family: Family, message: &[u8]) -> Option<IpAddr> {
    let bytes: [u8; 16] = message.get(ADDRESS_AT..ADDRESS_AT + 16)?.try_into().ok()?;
    Some(match family {
        Family::V4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        Family::V6 => Ipv6Addr::from(bytes).into(),
    })
}
