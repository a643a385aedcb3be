//! Many datagrams in one system call: `recvmmsg` and `sendmmsg`.
//!
//! A batch owns the arrays that the kernel reads and writes; they are filled with pointers once, where pointers do not
//! change, and per call otherwise. Neither call ever blocks: sockets are non-blocking, and `recvmmsg`'s own timeout is
//! broken by design (it is looked at only when a datagram arrives).

mod receive;
mod send;

pub use receive::{ReceiveBatch, Received};
pub use send::{Outgoing, SendBatch, is_dropped, is_full, may_be_of_source};

use super::address::RawAddress;
use std::mem::{MaybeUninit, size_of};

/// Octets of control messages per datagram: room for one `in6_pktinfo` and one `UDP_SEGMENT` with their headers.
const CONTROL: usize = 64;

/// Control messages, aligned as the kernel lays them out.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// `CMSG_SPACE` of the two: their sizes and those of the headers before them, each rounded up to eight.
const _: () = assert!(
    CONTROL
        >= 2 * size_of::<libc::cmsghdr>().next_multiple_of(8)
            + size_of::<libc::in6_pktinfo>().next_multiple_of(8)
            + size_of::<u16>().next_multiple_of(8)
);

/// A header that points to these two, and to no octets yet.
fn header(name: &mut RawAddress, control: &mut Control) -> libc::mmsghdr {
    // SAFETY: a C struct of integers and pointers; zero is a value of each.
    let mut header: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_hdr.msg_name = name.as_mut_ptr();
    header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{Options, UdpSocket};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::AsRawFd;

    const OPTIONS: Options =
        Options { shared_port: false, receive_buffer: 1 << 20, send_buffer: 1 << 20, errors: false, tell_local: true };

    fn bind(address: &str) -> UdpSocket {
        UdpSocket::bind(address.parse().unwrap(), &OPTIONS).unwrap()
    }

    #[test]
    fn datagrams_of_every_size_arrive_whole_in_order_and_in_two_parts() {
        let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let payload: Vec<u8> = (0..65_507).map(|i| i as u8).collect();
        let lengths = [0, 1, 2, 900, 1500, 65_507];
        let outgoing: Vec<_> = lengths
            .iter()
            .map(|&len| Outgoing {
                to: b.address(),
                parts: [&payload[..len / 3], &payload[len / 3..len]],
                from: None,
                pads: false,
            })
            .collect();
        assert_eq!(SendBatch::new(8).send(a.as_raw_fd(), &outgoing).unwrap(), lengths.len());
        let mut batch = ReceiveBatch::new(4, 65_535);
        let mut seen = Vec::new();
        loop {
            let count = batch.receive(b.as_raw_fd(), false).unwrap();
            for index in 0..count {
                let datagram = batch.datagram(index);
                assert_eq!(datagram.from, Some(a.address()));
                assert_eq!(datagram.octets, &payload[..datagram.octets.len()]);
                assert!(!datagram.truncated && datagram.local.is_none());
                seen.push(datagram.octets.len());
            }
            if count == 0 {
                break;
            }
        }
        assert_eq!(seen, lengths);
    }

    #[test]
    fn a_datagram_larger_than_its_slot_is_marked() {
        let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let outgoing = [Outgoing { to: b.address(), parts: [&[1; 600], &[2; 600]], from: None, pads: false }];
        SendBatch::new(1).send(a.as_raw_fd(), &outgoing).unwrap();
        let mut batch = ReceiveBatch::new(1, 1000);
        assert_eq!(batch.receive(b.as_raw_fd(), false).unwrap(), 1);
        assert!(batch.datagram(0).truncated);
        assert_eq!(batch.datagram(0).octets.len(), 1000);
    }

    #[test]
    fn a_wildcard_socket_tells_where_to_and_sends_from_there() {
        for (wildcard, local, other) in [("0.0.0.0:0", "127.0.0.3", "127.0.0.1:0"), ("[::]:0", "::1", "[::1]:0")] {
            let (server, client) = (bind(wildcard), bind(other));
            let to = SocketAddr::new(local.parse().unwrap(), server.address().port());
            let outgoing = [Outgoing { to, parts: [b"ping", b""], from: None, pads: false }];
            SendBatch::new(1).send(client.as_raw_fd(), &outgoing).unwrap();
            let mut batch = ReceiveBatch::new(1, 100);
            assert_eq!(batch.receive(server.as_raw_fd(), true).unwrap(), 1);
            assert_eq!(batch.datagram(0).local, Some(to.ip()));

            let answer = [Outgoing { to: client.address(), parts: [b"pong", b""], from: Some(to.ip()), pads: false }];
            SendBatch::new(1).send(server.as_raw_fd(), &answer).unwrap();
            assert_eq!(batch.receive(client.as_raw_fd(), false).unwrap(), 1);
            assert_eq!(batch.datagram(0).from, Some(to));
        }
    }

    /// Sends datagrams of these lengths, each with its number in front, and says what comes: lengths and numbers.
    fn send_and_receive(
        batch: &mut SendBatch,
        server: &UdpSocket,
        local: Option<IpAddr>,
        lengths: &[usize],
    ) -> Vec<(usize, u8)> {
        let to = bind(if server.address().is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" });
        let texts: Vec<Vec<u8>> =
            lengths.iter().zip(0..).map(|(&len, number)| [vec![number], vec![7; len - 1]].concat()).collect();
        let outgoing: Vec<_> = texts
            .iter()
            .map(|text| Outgoing {
                to: to.address(),
                parts: [&text[..len_of_head(text)], &text[len_of_head(text)..]],
                from: local,
                pads: false,
            })
            .collect();
        let mut sent = 0;
        while sent < lengths.len() {
            sent += batch.send(server.as_raw_fd(), &outgoing[sent..]).unwrap();
        }
        let mut received = ReceiveBatch::new(lengths.len(), 2000);
        assert_eq!(received.receive(to.as_raw_fd(), false).unwrap(), lengths.len());
        let from = SocketAddr::new(local.unwrap_or(server.address().ip()), server.address().port());
        (0..lengths.len())
            .map(|index| {
                let datagram = received.datagram(index);
                assert_eq!(datagram.from, Some(from));
                (datagram.octets.len(), datagram.octets[0])
            })
            .collect()
    }

    fn len_of_head(text: &[u8]) -> usize {
        text.len() / 3
    }

    #[test]
    fn what_goes_as_a_run_arrives_one_by_one_and_from_where_it_should() {
        let lengths = [900, 900, 900, 40, 40, 900, 1452, 1452];
        let expected: Vec<_> = lengths.into_iter().zip(0..).collect();
        for (server, local) in
            [("127.0.0.1:0", None), ("[::1]:0", None), ("0.0.0.0:0", Some("127.0.0.3")), ("[::]:0", Some("::1"))]
        {
            let local = local.map(|local| local.parse().unwrap());
            assert_eq!(send_and_receive(&mut SendBatch::with_runs(8), &bind(server), local, &lengths), expected);
        }
    }

    #[test]
    fn what_is_padded_arrives_with_line_ends_behind_it_and_the_last_of_a_run_without() {
        let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let text = [b'x'; 200];
        let lengths = [100, 103, 110, 101, 90, 200];
        let outgoing = lengths.map(|len| {
            let (head, tail) = text[..len].split_at(len / 3);
            Outgoing { to: client.address(), parts: [head, tail], from: None, pads: true }
        });
        assert_eq!(SendBatch::with_runs(8).send(server.as_raw_fd(), &outgoing).unwrap(), lengths.len());
        let mut received = ReceiveBatch::new(8, 2000);
        assert_eq!(received.receive(client.as_raw_fd(), false).unwrap(), lengths.len());
        let padding: [&[u8]; 6] = [b"\r\n\r\n\r\n\r\n\r\n", b"\n\r\n\r\n\r\n", b"", b"\n\r\n\r\n\r\n\r\n", b"", b""];
        for (index, (&len, padding)) in lengths.iter().zip(padding).enumerate() {
            let octets = &*received.datagram(index).octets;
            assert_eq!(octets.split_at(len), (&text[..len], padding), "{index}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Each arrives once, in order, whole, and with nothing behind it but line ends it may have.
        #[test]
        fn whatever_goes_in_runs_arrives(
            datagrams in vec((prop_oneof![1..1500usize, 850..950usize], any::<bool>(), any::<bool>()), 1..32)
        ) {
            let (server, clients) = (bind("127.0.0.1:0"), [bind("127.0.0.1:0"), bind("127.0.0.1:0")]);
            let text: Vec<u8> = (0..1600).map(|at| b'a' + (at % 26) as u8).collect();
            let outgoing: Vec<_> = datagrams.iter().zip(0..).map(|(&(len, second, pads), number)| {
                let (head, tail) = text[number..number + len].split_at(len / 3);
                Outgoing { to: clients[usize::from(second)].address(), parts: [head, tail], from: None, pads }
            }).collect();
            let (mut batch, mut sent) = (SendBatch::with_runs(32), 0);
            while sent < outgoing.len() {
                sent += batch.send(server.as_raw_fd(), &outgoing[sent..]).unwrap();
            }
            for client in &clients {
                let expected: Vec<_> = outgoing.iter().filter(|one| one.to == client.address()).collect();
                let mut received = ReceiveBatch::new(33, 2000);
                prop_assert_eq!(received.receive(client.as_raw_fd(), false).unwrap(), expected.len());
                for (index, one) in expected.iter().enumerate() {
                    let octets = &*received.datagram(index).octets;
                    let (message, behind) = octets.split_at(one.parts.concat().len());
                    prop_assert_eq!(message, one.parts.concat());
                    prop_assert!(behind.is_empty() || one.pads && behind.len() <= 64);
                    prop_assert!(behind.iter().all(|octet| b"\r\n".contains(octet)));
                }
            }
        }
    }

    #[test]
    fn where_the_kernel_makes_no_runs_each_goes_by_itself_and_none_is_lost() {
        let server = bind("127.0.0.1:0");
        // A socket without checksums is refused runs.
        crate::sys::socket::set(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        let mut batch = SendBatch::with_runs(8);
        let lengths = [300, 700, 700, 700, 200, 200, 699, 699];
        let expected: Vec<_> = lengths.into_iter().zip(0..).collect();
        for _ in 0..2 {
            assert_eq!(send_and_receive(&mut batch, &server, None, &lengths), expected);
        }
    }

    #[test]
    fn word_of_shorter_packets_on_one_way_breaks_no_run_on_another() {
        let Ok(router) =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::ICMPV4))
        else {
            return println!("skipped: this process may not play a router");
        };
        let server = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &Options { errors: true, ..OPTIONS }).unwrap();
        let client = bind("127.0.0.1:0");
        let text = [b'x'; 200];
        let outgoing = [Outgoing { to: client.address(), parts: [&text, b""], from: None, pads: false }; 8];
        let mut batch = SendBatch::with_runs(8);
        // "Fragmentation needed", packets of 1,300 octets, of a datagram to 127.0.0.9: its headers.
        let mut icmp = vec![3, 4, 0, 0, 0, 0, 0x05, 0x14];
        icmp.extend([0x45, 0, 0x05, 0x78, 0, 0, 0x40, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 9]);
        icmp.extend([server.address().port().to_be_bytes(), [0, 9], [0, 8], [0, 0]].concat());
        let sum: u32 = icmp.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        icmp[2..4].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        router.send_to(&icmp, &SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        assert_eq!(batch.send(server.as_raw_fd(), &outgoing).unwrap(), 8);
        assert_eq!(batch.fill(&outgoing), 1, "they go as a run still");
        assert!(crate::sys::errors::next(server.as_raw_fd()).is_some_and(|report| !report.is_of_destination()));
    }

    #[test]
    fn what_cannot_go_in_a_run_nor_by_itself_breaks_no_run() {
        let (server, client) = (bind("[::]:0"), bind("[::1]:0"));
        let text = [b'x'; 200];
        let outgoing = [Outgoing { to: client.address(), parts: [&text, b""], from: None, pads: false }; 8];
        let mut batch = SendBatch::with_runs(8);
        // An address that another node has taken over.
        let gone = Some("2001:db8::1".parse().unwrap());
        let error = batch.send(server.as_raw_fd(), &outgoing.map(|one| Outgoing { from: gone, ..one })).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(batch.fill(&outgoing), 1, "they go as a run still");
    }

    #[test]
    fn an_empty_socket_gives_nothing_and_an_error_names_the_first_datagram() {
        let socket = bind("127.0.0.1:0");
        let mut batch = ReceiveBatch::new(2, 100);
        assert_eq!(batch.receive(socket.as_raw_fd(), false).unwrap(), 0);
        let too_large = vec![0; 65_508];
        let outgoing = [Outgoing { to: socket.address(), parts: [&too_large, b""], from: None, pads: false }];
        let error = SendBatch::new(1).send(socket.as_raw_fd(), &outgoing).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }
}
