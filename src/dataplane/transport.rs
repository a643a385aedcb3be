//! How messages travel, and which connection they travel on.

use core::fmt;
use core::num::NonZeroU32;

/// A transport of RFC 3261 18.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams.
    #[default]
    Udp,
    /// A stream of octets.
    Tcp,
    /// The same, sealed.
    Tls,
    /// Frames of a WebSocket (RFC 7118).
    Ws,
    /// The same, sealed.
    Wss,
}

impl Transport {
    /// Whether messages follow one another in a stream and have to be told apart.
    pub const fn is_stream(self) -> bool {
        !matches!(self, Transport::Udp)
    }

    /// Whether what goes over it is sealed.
    pub const fn is_tls(self) -> bool {
        matches!(self, Transport::Tls | Transport::Wss)
    }

    /// Whether messages are frames of a WebSocket.
    pub const fn is_websocket(self) -> bool {
        matches!(self, Transport::Ws | Transport::Wss)
    }

    /// As the parameter `transport` of a URI names it: a WebSocket is `ws` in either case (RFC 7118 5.2.3).
    pub const fn param(self) -> &'static str {
        match self {
            Transport::Wss => Transport::Ws.word(),
            _ => self.word(),
        }
    }

    /// The port that stands for none (RFC 3261 19.1.2, 18.2.2).
    pub const fn default_port(self) -> u16 {
        match self {
            Transport::Udp | Transport::Tcp => 5060,
            Transport::Tls => 5061,
            Transport::Ws => 80,
            Transport::Wss => 443,
        }
    }

    /// What the kernel calls it.
    pub const fn protocol(self) -> &'static str {
        if self.is_stream() { "tcp" } else { "udp" }
    }

    /// As a Via names it (RFC 3261 25.1).
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Ws => "WS",
            Transport::Wss => "WSS",
        }
    }

    /// As URIs and configurations name it.
    pub const fn word(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::Ws => "ws",
            Transport::Wss => "wss",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Bits of a slot's number; the rest of 32 are the shard's.
const SLOT_BITS: u32 = 22;

/// Connections that a shard can have open at a time: as many as a [`StreamId`] can tell apart.
pub const SLOTS_MAX: usize = 1 << SLOT_BITS;

/// A connection: its shard, its place there, and which of those that had the place it is. Travels in tokens.
///
/// The generation is what keeps a token that has outlived its connection, or the process, from naming another client's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId {
    /// The shard, and behind it the slot.
    place: u32,
    generation: NonZeroU32,
}

impl StreamId {
    /// Octets of an id in a token.
    pub const LEN: usize = 8;

    /// The connection in `slot` of shard number `shard`. `None` if a number is too large for an id, or the generation 0.
    pub fn new(shard: usize, slot: usize, generation: u32) -> Option<StreamId> {
        let fits = shard < 1 << (32 - SLOT_BITS) && slot < SLOTS_MAX;
        let place = (shard as u32) << SLOT_BITS | slot as u32;
        NonZeroU32::new(generation).filter(|_| fits).map(|generation| StreamId { place, generation })
    }

    /// The id that a token holds.
    pub fn from_octets([a, b, c, d, generation @ ..]: [u8; StreamId::LEN]) -> Option<StreamId> {
        let generation = NonZeroU32::new(u32::from_be_bytes(generation))?;
        Some(StreamId { place: u32::from_be_bytes([a, b, c, d]), generation })
    }

    /// What a token holds.
    pub fn octets(self) -> [u8; StreamId::LEN] {
        (u64::from(self.place) << 32 | u64::from(self.generation.get())).to_be_bytes()
    }

    /// The number of the shard.
    pub const fn shard(self) -> usize {
        (self.place >> SLOT_BITS) as usize
    }

    /// The place of the connection there.
    pub const fn slot(self) -> usize {
        self.place as usize & (SLOTS_MAX - 1)
    }

    /// Which of those that had the place.
    pub const fn generation(self) -> u32 {
        self.generation.get()
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.shard(), self.slot(), self.generation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_back_from_its_octets() {
        for (shard, slot, generation) in [(0, 0, 1), (1, 7, u32::MAX), (1023, SLOTS_MAX - 1, 12)] {
            let id = StreamId::new(shard, slot, generation).unwrap();
            assert_eq!((id.shard(), id.slot(), id.generation()), (shard, slot, generation));
            assert_eq!(StreamId::from_octets(id.octets()), Some(id));
        }
        assert_eq!(StreamId::new(1024, 0, 1), None);
        assert_eq!(StreamId::new(0, SLOTS_MAX, 1), None);
        assert_eq!(StreamId::new(0, 0, 0), None);
        assert_eq!(StreamId::from_octets([0; 8]), None);
        assert_eq!(StreamId::from_octets([1, 1, 1, 1, 0, 0, 0, 0]), None);
    }
}
