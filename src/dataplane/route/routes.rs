//! The Route header as a list: its values over all rows, and the edits that take values out of it.
//!
//! RFC 3261 7.3.1 and 20.34: values may share a row, separated by commas, or stand in rows of their own with other
//! headers between them, folded, with display names that hold `,` `<` and `;`.

use crate::dataplane::limits::ROUTE_VALUES_MAX;
use crate::dataplane::rewrite::edit::Edits;
use crate::dataplane::scan::{Row, Scan, Span, rows};
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::name_addr;
use crate::dataplane::sip::uri::{self, Uri};
use smallvec::SmallVec;

/// One value of the list.
#[derive(Clone, Copy, Debug)]
pub struct RouteValue {
    /// The row it stands in.
    pub row: Row,
    /// The value without white space round it.
    pub whole: Span,
    /// Its URI.
    pub uri: Uri,
    /// Whether the value was taken out.
    taken: bool,
}

/// The list, in order.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    values: SmallVec<[RouteValue; ROUTE_VALUES_MAX]>,
}

impl Routes {
    /// Reads all values. `None` if one of them does not follow the grammar, or if there are too many; or if a URI has headers,
    /// which it must not have there (RFC 3261 19.1.1, table 1): what stands in them is not read, and a value may have to stand in the start line.
    pub fn read(message: &[u8], scan: &Scan) -> Option<Routes> {
        let mut routes = Routes::default();
        for row in rows(message, scan, HeaderKind::Route) {
            let mut rest = row.span();
            loop {
                let value = name_addr::parse(message, rest)?;
                if routes.values.len() == ROUTE_VALUES_MAX {
                    return None;
                }
                let uri = uri::parse(message, value.uri).filter(|uri| !uri.has_headers)?;
                routes.values.push(RouteValue { row, whole: value.whole, uri, taken: false });
                if value.comma == 0 {
                    break;
                }
                rest = Span { start: value.comma + 1, end: rest.end };
            }
        }
        Some(routes)
    }

    /// The first value left.
    pub fn first(&self) -> Option<&RouteValue> {
        self.values.iter().find(|value| !value.taken)
    }

    /// Takes the first value out.
    pub fn take_first(&mut self) -> Option<RouteValue> {
        let value = self.values.iter_mut().find(|value| !value.taken)?;
        value.taken = true;
        Some(*value)
    }

    /// Takes the last value out.
    pub fn take_last(&mut self) -> Option<RouteValue> {
        let value = self.values.iter_mut().rev().find(|value| !value.taken)?;
        value.taken = true;
        Some(*value)
    }

    /// Edits the message so that it holds the values left, and behind them `<appended>`, if given.
    ///
    /// A row that lost a value is written anew from the values it keeps; a row that lost all is cut. Other rows are not
    /// touched.
    pub fn write(&self, message: &[u8], edits: &mut Edits, appended: Option<Span>) {
        let mut at = 0;
        while at < self.values.len() {
            let row = self.values[at].row;
            let count = self.values[at..].iter().take_while(|value| value.row == row).count();
            let in_row = &self.values[at..at + count];
            at += count;
            let appended = appended.filter(|_| at == self.values.len());
            if appended.is_none() && in_row.iter().all(|value| !value.taken) {
                continue;
            }
            let mut kept = in_row.iter().filter(|value| !value.taken).peekable();
            if kept.peek().is_none() && appended.is_none() {
                // The row and its line end, which is CRLF: anything else is refused before.
                edits.cut(Span { start: row.start, end: row.end + 2 });
                continue;
            }
            edits.replace(row.span(), |text| {
                let mut separator: &[u8] = b" ";
                for value in kept {
                    text.put(separator).put(value.whole.of(message));
                    separator = b", ";
                }
                if let Some(uri) = appended {
                    text.put(separator).put(b"<").put(uri.of(message)).put(b">");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::scan::scalar;
    use crate::dataplane::text::Text;

    fn edited(headers: &str, change: impl FnOnce(&mut Routes) -> Option<Span>) -> String {
        let message = format!("BYE sip:x SIP/2.0\r\n{headers}\r\n");
        let mut scan = Scan::default();
        scalar::scan(message.as_bytes(), &mut scan);
        let mut routes = Routes::read(message.as_bytes(), &scan).unwrap();
        let appended = change(&mut routes);
        let mut edits = Edits::default();
        routes.write(message.as_bytes(), &mut edits, appended);
        let mut room = [0; 4096];
        let mut out = Text::new(&mut room);
        let tail = edits.apply(message.as_bytes(), scan.headers as usize, &mut out);
        let mut result = String::from_utf8(out.finish().unwrap().to_vec()).unwrap();
        result.push_str(&message[tail..message.len() - 2]);
        result
    }

    #[test]
    fn values_leave_their_rows_and_the_rest_stays_as_it_was() {
        let take_one = |routes: &mut Routes| {
            routes.take_first();
            None
        };
        assert_eq!(edited("Route: <sip:a;lr>\r\nX: 1\r\n", take_one), "X: 1\r\n");
        assert_eq!(
            edited("Route: <sip:a;lr> , \"b,\" <sip:b>;p\r\nX: 1\r\n", take_one),
            "Route: \"b,\" <sip:b>;p\r\nX: 1\r\n"
        );
        assert_eq!(
            edited("X: 1\r\nRoute: <sip:a>\r\nY: 2\r\nROUTE:<sip:b>\r\n", take_one),
            "X: 1\r\nY: 2\r\nROUTE:<sip:b>\r\n"
        );
        let take_two = |routes: &mut Routes| {
            routes.take_first();
            routes.take_first();
            None
        };
        assert_eq!(edited("Route: <sip:a>,<sip:b>\r\nRoute: <sip:c>\r\n", take_two), "Route: <sip:c>\r\n");
        assert_eq!(edited("Route: <sip:a>\r\nRoute: <sip:b>, <sip:c>\r\n", take_two), "Route: <sip:c>\r\n");
    }

    #[test]
    fn a_strict_hop_gets_the_request_uri_at_the_end_of_the_list() {
        let uri = Some(Span::new(4, 9));
        assert_eq!(
            edited("Route: <sip:a>, <sip:b>\r\n", |routes| {
                routes.take_first();
                uri
            }),
            "Route: <sip:b>, <sip:x>\r\n"
        );
        assert_eq!(
            edited("Route: <sip:a>\r\n", |routes| {
                routes.take_first();
                uri
            }),
            "Route: <sip:x>\r\n"
        );
    }
}
