//! What listens, as the kernel says it (`diag`), or lists it in `/proc/net`.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::diag::{Family, listeners};
use super::{LocalError, LocalProbe, Subject, finish, trouble};
use crate::call::{Args, CallError};
use crate::wants::{Facts, Wants};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port {
    number: u16,
    protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// Over either family.
    TcpAny,
    Tcp,
    Tcp6,
    Udp,
    Udp6,
}

/// The table of the kernel, and the state in it that means listening (`include/net/tcp_states.h`).
type Table = (&'static str, &'static str);

const TCP: Table = ("tcp", "0A");
const TCP6: Table = ("tcp6", "0A");
/// Without connections there is only CLOSE.
const UDP: Table = ("udp", "07");
const UDP6: Table = ("udp6", "07");

pub(super) fn from_args(args: &Args<'_>) -> Result<LocalProbe, CallError> {
    let words = [
        ("tcp", Protocol::Tcp),
        ("tcp6", Protocol::Tcp6),
        ("udp", Protocol::Udp),
        ("udp6", Protocol::Udp6),
    ];
    let port = Port {
        number: match args.whole_number("port")? {
            Some(0) | None => return args.refuse("port", "0 is no port"),
            Some(number) => number,
        },
        protocol: args.word("protocol", &words)?.unwrap_or(Protocol::TcpAny),
    };
    let mut wants = Wants::default();
    if let Some(matcher) = args.set_matcher("ip")? {
        wants.push("ip", matcher);
    }
    finish(args, "listening", Subject::Port(port), wants)
}

pub(super) fn facts(port: &Port) -> Result<Option<Facts>, LocalError> {
    let number = port.number;
    let mut found = match port.protocol {
        Protocol::TcpAny => [tcp(Family::V4, number)?, tcp(Family::V6, number)?].concat(),
        Protocol::Tcp => tcp(Family::V4, number)?,
        Protocol::Tcp6 => tcp(Family::V6, number)?,
        Protocol::Udp => listed(UDP, number)?,
        Protocol::Udp6 => listed(UDP6, number)?,
    };
    found.sort();
    found.dedup();
    let ips: Vec<_> = found.iter().map(IpAddr::to_string).collect();
    Ok((!found.is_empty()).then(|| Facts::from([("ip", ips.into())])))
}

/// By the fast way where the kernel has it.
fn tcp(family: Family, number: u16) -> Result<Vec<IpAddr>, LocalError> {
    listeners(family, number).or_else(|_| {
        let table = match family {
            Family::V4 => TCP,
            Family::V6 => TCP6,
        };
        listed(table, number)
    })
}

fn listed((table, listening): Table, number: u16) -> Result<Vec<IpAddr>, LocalError> {
    let text = match fs::read_to_string(format!("/proc/net/{table}")) {
        Ok(text) => text,
        // A kernel without IPv6 has no such table.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(trouble(format!("read /proc/net/{table}"))(error)),
    };
    let lines = text.lines().skip(1);
    let ours = |line| local_address(line, number, listening);
    Ok(lines.filter_map(ours).collect())
}

/// `  sl: ADDRESS:PORT REMOTE:PORT STATE …`, all hex.
fn local_address(line: &str, port: u16, listening: &str) -> Option<IpAddr> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, number) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    if state != listening || u16::from_str_radix(number, 16).ok()? != port {
        return None;
    }
    // In words of 32 bits, each in the byte order of the machine.
    let words: Option<Vec<u8>> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok())
        .map(|word| word.map(u32::to_ne_bytes))
        .collect::<Option<Vec<_>>>()
        .map(|words| words.concat());
    let words = words?;
    if let Ok(v4) = <[u8; 4]>::try_from(words.as_slice()) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(words.as_slice()).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::TcpAny | Protocol::Tcp => "tcp",
            Protocol::Tcp6 => "tcp6",
            Protocol::Udp => "udp",
            Protocol::Udp6 => "udp6",
        };
        write!(f, "{protocol} port {}", self.number)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_see_the_same() {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = v4.local_addr().unwrap().port();
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(listed(TCP, number).unwrap(), [loopback]);
        // A kernel without it says so, and the other way is taken.
        if let Ok(found) = listeners(Family::V4, number) {
            assert_eq!(found, [loopback]);
            assert_eq!(listeners(Family::V6, number).unwrap(), Vec::<IpAddr>::new());
        }
        let Ok(v6) = std::net::TcpListener::bind("[::1]:0") else {
            return;
        };
        let number = v6.local_addr().unwrap().port();
        let loopback: IpAddr = "::1".parse().unwrap();
        assert_eq!(listed(TCP6, number).unwrap(), [loopback]);
        if let Ok(found) = listeners(Family::V6, number) {
            assert_eq!(found, [loopback]);
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_read_in_the_kernels_order() {
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        assert_eq!(
            local_address(v4, 8080, "0A"),
            Some("127.0.0.1".parse().unwrap())
        );
        assert_eq!(local_address(v4, 8081, "0A"), None);
        assert_eq!(local_address(v4, 8080, "01"), None);
        let v6 = "   1: 00000000000000000000000001000000:0016 0:0 0A";
        assert_eq!(local_address(v6, 22, "0A"), Some("::1".parse().unwrap()));
        assert_eq!(local_address("garbage", 22, "0A"), None);
    }
}
