//! The wire format of DNS (RFC 1035), as far as a question and its answer need it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    A,
    Aaaa,
    Cname,
    Mx,
    Ns,
    Ptr,
    Srv,
    Txt,
}

pub(super) const TYPES: [(&str, Type); 8] = [
    ("A", Type::A),
    ("AAAA", Type::Aaaa),
    ("CNAME", Type::Cname),
    ("MX", Type::Mx),
    ("NS", Type::Ns),
    ("PTR", Type::Ptr),
    ("SRV", Type::Srv),
    ("TXT", Type::Txt),
];

impl Type {
    fn number(self) -> u16 {
        match self {
            Type::A => 1,
            Type::Ns => 2,
            Type::Cname => 5,
            Type::Ptr => 12,
            Type::Mx => 15,
            Type::Txt => 16,
            Type::Aaaa => 28,
            Type::Srv => 33,
        }
    }

    pub(super) fn word(self) -> &'static str {
        let known = TYPES.iter().find(|(_, kind)| *kind == self);
        known.map_or("", |(word, _)| word)
    }
}

/// Internet.
const CLASS: u16 = 1;
const HEADER: usize = 12;
/// A name that jumps more often jumps in circles.
const MOST_JUMPS: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(super) &'static str);

/// The name under which an address is looked up backwards.
pub(super) fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = format!("{:032x}", address.to_bits());
            let digits: Vec<_> = digits.chars().rev().map(String::from).collect();
            format!("{}.ip6.arpa", digits.join("."))
        }
    }
}

pub(super) fn question(id: u16, name: &str, kind: Type) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_be_bytes());
    // Recursion desired; one question, and one additional record: the EDNS size.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.trim_end_matches('.').split('.') {
        match u8::try_from(label.len()) {
            Ok(length @ 1..=63) => bytes.push(length),
            Ok(_) | Err(_) => return Err(Malformed("is no name: each part has 1 to 63 bytes")),
        }
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    if bytes.len() - HEADER > 255 {
        return Err(Malformed("is no name: it is too long"));
    }
    bytes.extend(kind.number().to_be_bytes());
    bytes.extend(CLASS.to_be_bytes());
    // OPT (RFC 6891): the root, type 41, the size we accept in the place of the class, no flags, no data.
    let size = u16::try_from(super::LARGEST_UDP)
        .unwrap_or(512)
        .to_be_bytes();
    bytes.extend([0, 0, 41, size[0], size[1], 0, 0, 0, 0, 0, 0]);
    Ok(bytes)
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) id: u16,
    pub(super) truncated: bool,
    /// RCODE: 0 is right, 3 means that there is no such name.
    pub(super) code: u8,
    records: Vec<(u16, String)>,
}

impl Reply {
    pub(super) fn parse(bytes: &[u8], asked: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader { bytes, at: 0 };
        let id = reader.u16()?;
        let flags = reader.u16()?;
        if flags & 0x8000 == 0 {
            return Err(Malformed("it is a question"));
        }
        let (questions, answers) = (reader.u16()?, reader.u16()?);
        reader.skip(4)?;
        for _ in 0..questions {
            let name = reader.name()?;
            let rest = reader.take(4)?;
            // The same name and type that we asked for, whatever the case of the letters.
            let mut ours = Reader {
                bytes: asked,
                at: HEADER,
            };
            if !name.eq_ignore_ascii_case(&ours.name()?) || rest != ours.take(4)? {
                return Err(Malformed("it is to another question"));
            }
        }
        let mut records = Vec::new();
        for _ in 0..answers {
            if let Some(record) = reader.record()? {
                records.push(record);
            }
        }
        Ok(Self {
            id,
            truncated: flags & 0x0200 != 0,
            code: (flags & 0x000f) as u8,
            records,
        })
    }

    pub(super) fn answers(self, kind: Type) -> Vec<String> {
        let of_kind = |(number, text)| (number == kind.number()).then_some(text);
        self.records.into_iter().filter_map(of_kind).collect()
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let taken = self.bytes.get(self.at..self.at + count);
        self.at += count;
        taken.ok_or(Malformed("it ends too early"))
    }

    fn skip(&mut self, count: usize) -> Result<(), Malformed> {
        self.take(count).map(drop)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// With a dot at its end, as in zone files.
    fn name(&mut self) -> Result<String, Malformed> {
        let mut name = String::new();
        // Where to go on reading after the first jump.
        let mut after = None;
        let mut jumps = 0;
        loop {
            match self.u8()? {
                0 => break,
                length @ 1..=63 => {
                    let label = self.take(usize::from(length))?;
                    name.push_str(&String::from_utf8_lossy(label));
                    name.push('.');
                }
                high @ 0xc0.. => {
                    let low = self.u8()?;
                    after = after.or(Some(self.at));
                    jumps += 1;
                    if jumps > MOST_JUMPS {
                        return Err(Malformed("a name in it has no end"));
                    }
                    self.at = usize::from(u16::from_be_bytes([high & 0x3f, low]));
                }
                64..=0xbf => return Err(Malformed("a name in it is none")),
            }
            if name.len() > 1024 {
                return Err(Malformed("a name in it is too long"));
            }
        }
        self.at = after.unwrap_or(self.at);
        Ok(if name.is_empty() {
            ".".to_owned()
        } else {
            name
        })
    }

    /// `None`: of a type that nobody asks for.
    fn record(&mut self) -> Result<Option<(u16, String)>, Malformed> {
        self.name()?;
        let kind = self.u16()?;
        self.skip(6)?;
        let length = usize::from(self.u16()?);
        let end = self.at + length;
        let known = TYPES.iter().find(|(_, known)| known.number() == kind);
        let text = match known.map(|(_, kind)| kind) {
            Some(Type::A) => {
                let octets: [u8; 4] = self.array()?;
                Some(Ipv4Addr::from(octets).to_string())
            }
            Some(Type::Aaaa) => {
                let octets: [u8; 16] = self.array()?;
                Some(Ipv6Addr::from(octets).to_string())
            }
            Some(Type::Cname | Type::Ns | Type::Ptr) => Some(self.name()?),
            Some(Type::Mx) => Some(format!("{} {}", self.u16()?, self.name()?)),
            Some(Type::Srv) => {
                let (priority, weight, port) = (self.u16()?, self.u16()?, self.u16()?);
                Some(format!("{priority} {weight} {port} {}", self.name()?))
            }
            Some(Type::Txt) => {
                let mut text = String::new();
                while self.at < end {
                    let length = usize::from(self.u8()?);
                    text.push_str(&String::from_utf8_lossy(self.take(length)?));
                }
                Some(text)
            }
            None => None,
        };
        self.at = end;
        if end > self.bytes.len() {
            return Err(Malformed("it ends too early"));
        }
        Ok(text.map(|text| (kind, text)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| Malformed("it ends too early"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_backwards() {
        assert_eq!(
            reverse("10.1.2.3".parse().unwrap()),
            "3.2.1.10.in-addr.arpa"
        );
        let six = reverse("2001:db8::1".parse().unwrap());
        assert!(
            six.starts_with("1.0.0.0.") && six.ends_with("8.b.d.0.1.0.0.2.ip6.arpa"),
            "{six}"
        );
    }

    #[test]
    fn no_bytes_make_it_panic_or_hang() {
        let asked = question(7, "a.example", Type::Mx).unwrap();
        let mut reply = asked.clone();
        reply[2] |= 0x80;
        reply[7] = 1;
        reply.truncate(reply.len() - 11);
        // An MX whose name points at itself.
        reply.extend([0xc0, 12, 0, 15, 0, 1, 0, 0, 0, 0, 0, 4, 0, 1, 0xc0]);
        reply.push(u8::try_from(reply.len()).unwrap() - 1);
        assert_eq!(
            Reply::parse(&reply, &asked).unwrap_err(),
            Malformed("a name in it has no end")
        );
        for cut in 0..reply.len() {
            assert!(Reply::parse(&reply[..cut], &asked).is_err());
        }
        for at in 0..reply.len() {
            for byte in [0, 1, 63, 64, 0xc0, 0xff] {
                let mut odd = reply.clone();
                odd[at] = byte;
                let _ = Reply::parse(&odd, &asked);
            }
        }
    }
}
