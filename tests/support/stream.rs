//! A reader of a stream that is fed piece by piece, as a connection is.

use viahop::dataplane::frame::{Broken, Frame, Framer, LINE_END, PING};
use viahop::dataplane::scan::{Scan, Scanner};

/// What a reader makes of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    pub frames: Vec<(Frame, Vec<u8>)>,
    /// What is no frame yet.
    pub rest: Vec<u8>,
}

#[derive(Clone, Default)]
pub struct Reader {
    framer: Framer,
    scan: Scan,
    is_broken: bool,
    pub read: Read,
}

impl Reader {
    pub fn feed(&mut self, piece: &[u8]) {
        let scanner = Scanner::best();
        self.read.rest.extend_from_slice(piece);
        while !self.is_broken {
            let frame = self.framer.next(&scanner, &mut self.scan, &self.read.rest);
            let len = match frame {
                Frame::Partial => return,
                Frame::LineEnd => LINE_END,
                Frame::Ping => PING,
                Frame::Message(len) => len,
                Frame::Broken(Broken { head, .. }) => {
                    self.is_broken = true;
                    head
                }
            };
            let rest = self.read.rest.split_off(len);
            self.read.frames.push((frame, std::mem::replace(&mut self.read.rest, rest)));
        }
        // What comes behind a broken frame is not looked at.
        self.read.rest.clear();
    }
}

/// What is made of a stream that comes in these pieces.
pub fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let mut reader = Reader::default();
    pieces.into_iter().for_each(|piece| reader.feed(piece));
    reader.read
}
