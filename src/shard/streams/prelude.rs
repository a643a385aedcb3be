//! The PROXY header: how HAProxy and others say for whom they opened a connection (`haproxy.org`, "The PROXY protocol",
//! versions 1 and 2).
//!
//! It is asked for where the connection comes from one of the networks of `proxy_protocol`, and read nowhere else: anybody
//! could write one. It stands in front of everything, of TLS too.

use super::Streams;
use super::admit::source_of;
use crate::dataplane::counters::{Ended, StreamCounters};
use crate::shard::outbox::Fates;
use ppp::{HeaderResult, PartialResult, v1, v2};
use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};

/// Octets of the longest header that is read: addresses are 232 at most, and TLVs of who-knows-what fit behind them.
const HEADER_MAX: usize = 1024;

/// Octets of the longest header of version 1, with its line end.
const TEXT_MAX: usize = 107;

/// A header as far as it has come.
#[derive(Debug, Default)]
pub struct Prelude {
    came: Vec<u8>,
}

/// What is known of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// More of it is to come.
    Part,
    /// So many octets are it. The client; `None`: the proxy speaks for itself.
    Whole(usize, Option<SocketAddr>),
    /// It is no header.
    Nothing,
}

fn look(octets: &[u8]) -> Known {
    let is_text = octets.starts_with(b"PROXY");
    if is_text && octets.len() < TEXT_MAX && !octets.contains(&b'\n') {
        return Known::Part;
    }
    let parsed = HeaderResult::parse(octets);
    let is_partial = parsed.is_incomplete() && octets.len() < HEADER_MAX;
    match parsed {
        HeaderResult::V1(Ok(header)) => {
            let client = match header.addresses {
                v1::Addresses::Tcp4(one) => Some((one.source_address, one.source_port).into()),
                v1::Addresses::Tcp6(one) => Some((one.source_address, one.source_port).into()),
                v1::Addresses::Unknown => None,
            };
            Known::Whole(header.header.len(), client)
        }
        HeaderResult::V2(Ok(header)) => {
            let client = match header.addresses {
                _ if header.command == v2::Command::Local => None,
                v2::Addresses::IPv4(one) => Some((one.source_address, one.source_port).into()),
                v2::Addresses::IPv6(one) => Some((one.source_address, one.source_port).into()),
                v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
            };
            Known::Whole(header.len(), client)
        }
        _ if is_partial => Known::Part,
        _ => Known::Nothing,
    }
}

impl Prelude {
    /// Takes from `socket` what is there of the header, and nothing behind it.
    fn read(&mut self, mut socket: &TcpStream) -> io::Result<Known> {
        let before = self.came.len();
        self.came.resize(HEADER_MAX, 0);
        let peeked = socket.peek(&mut self.came[before..]);
        self.came.truncate(before + peeked.as_ref().map_or(0, |&count| count));
        match peeked {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(Known::Part);
            }
            Err(error) => return Err(error),
        }
        let known = look(&self.came);
        if let Known::Whole(len, _) = known {
            self.came.truncate(len);
        }
        // What was looked at is there.
        socket.read_exact(&mut self.came[before..])?;
        Ok(known)
    }
}

impl Streams {
    /// Reads what has come of the header in front of the connection in `slot`, if there is to be one. Returns whether what
    /// follows may be read.
    pub(super) fn is_introduced(
        &mut self,
        slot: usize,
        now_ms: u64,
        counters: &StreamCounters,
        fates: &mut impl Fates,
    ) -> bool {
        let Some(connection) = self.connection(slot) else { return false };
        let Some(prelude) = &mut connection.prelude else { return true };
        let client = match prelude.read(connection.wire.socket()) {
            Ok(Known::Part) => return false,
            Ok(Known::Whole(_, client)) => client,
            Ok(Known::Nothing) | Err(_) => {
                self.end(slot, Ended::ProxyHeader, now_ms, counters, fates);
                return false;
            }
        };
        connection.prelude = None;
        let Some(client) = client else { return true };
        // A proxy that listens on one socket for both families writes IPv4 addresses as that has them: `::ffff:192.0.2.7`.
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let source = Some(source_of(client.ip()));
        (connection.peer, connection.active_ms) = (client, now_ms);
        if let Err(ended) = self.admit_of(source) {
            self.end(slot, ended, now_ms, counters, fates);
            return false;
        }
        self.count(source);
        self.connection(slot).into_iter().for_each(|connection| connection.source = source);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let binary = |command: u8, family: u8, addresses: &[u8]| {
            let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
            header.extend([0x20 | command, family]);
            header.extend((addresses.len() as u16).to_be_bytes());
            header.extend(addresses);
            header
        };
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x13, 0xc4, 0x13, 0xc5];
        let mut v6 = [0; 36];
        (v6[0], v6[1], v6[15], v6[32], v6[33]) = (0x20, 0x01, 9, 0x13, 0xc4);
        let with_tlv = [&v4[..], &[0xee, 0, 3, b'a', b'b', b'c']].concat();
        vec![
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 5060 5061\r\n".to_vec(), Some("192.0.2.7:5060")),
            (b"PROXY TCP6 2001:db8::9 ::1 5060 5061\r\n".to_vec(), Some("[2001:db8::9]:5060")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (binary(1, 0x11, &v4), Some("192.0.2.7:5060")),
            (binary(1, 0x11, &with_tlv), Some("192.0.2.7:5060")),
            (binary(1, 0x21, &v6), Some("[2001::9]:5060")),
            (binary(0, 0, &[]), None),
            (binary(0, 0x11, &v4), None),
        ]
    }

    #[test]
    fn a_header_is_read_wherever_it_is_cut_and_nothing_behind_it() {
        for (header, client) in headers() {
            let client = client.map(|text| text.parse::<SocketAddr>().unwrap());
            for behind in [&b"INVITE"[..], b"\r\n\r\n", b"\x16\x03\x01", b"PROXY "] {
                let octets = [&header, behind].concat();
                assert_eq!(look(&octets), Known::Whole(header.len(), client), "{octets:?}");
            }
            for cut in 1..header.len() {
                assert_eq!(look(&header[..cut]), Known::Part, "{cut} of {header:?}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_known_at_once_and_none_is_read_without_end() {
        for octets in [&b"INVITE sip:bob@example.net SIP/2.0\r\n"[..], b"\r\n\r\nINVITE", b"\x16\x03\x01", b"PROXX"] {
            assert_eq!(look(octets), Known::Nothing, "{octets:?}");
        }
        assert_eq!(look(&[b"PROXY TCP4 ", &[b'1'; TEXT_MAX][..]].concat()), Known::Nothing);
        let mut long = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec();
        long.resize(HEADER_MAX, 0);
        assert_eq!(look(&long), Known::Nothing);
    }

    #[test]
    fn what_stands_behind_the_header_stays_in_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut proxy = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        let mut prelude = Prelude::default();
        proxy.write_all(b"PROXY TCP4 192.0.2.7 ").unwrap();
        assert_eq!(prelude.read(&socket).unwrap(), Known::Part);
        proxy.write_all(b"10.0.0.1 5060 5061\r\nOPTIONS").unwrap();
        let client = "192.0.2.7:5060".parse().unwrap();
        assert_eq!(prelude.read(&socket).unwrap(), Known::Whole(41, Some(client)));
        let mut rest = [0; 7];
        socket.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"OPTIONS");
        drop(proxy);
        assert!(prelude.read(&socket).is_err());
    }
}
