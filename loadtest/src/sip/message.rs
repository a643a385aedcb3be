//! A SIP message as rows of a datagram.

use memchr::memchr;

/// Header rows of one message that are looked at. A usual request has 15, one through ten proxies 35.
pub const ROWS_MAX: usize = 256;

/// The header fields a load generator cares about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named as the header field it stands for")]
pub enum Name {
    Authorization,
    CallId,
    Contact,
    ContentLength,
    ContentType,
    CSeq,
    Event,
    Expires,
    From,
    MaxForwards,
    ProxyAuthenticate,
    ProxyAuthorization,
    RecordRoute,
    RetryAfter,
    Route,
    SubscriptionState,
    To,
    UserAgent,
    Via,
    WwwAuthenticate,
    /// Our own: what the sender says about itself, see [`seal`](crate::seal).
    XLoad,
    Other,
}

/// One header field: name, value, and where they are. Folded lines are one row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which field it is.
    pub name: Name,
    // start < value <= end <= octets of the datagram
    start: u16,
    value: u16,
    end: u16,
}

/// Room for the rows of one message, used again for each.
#[derive(Debug)]
pub struct Rows {
    rows: Vec<Row>,
    /// For each name the number of its first row, counted from 1; 0 where there is none.
    first: [u16; NAMES],
}

/// How many names there are.
const NAMES: usize = Name::Other as usize + 1;

impl Default for Rows {
    fn default() -> Rows {
        Rows { rows: Vec::with_capacity(ROWS_MAX), first: [0; NAMES] }
    }
}

impl Rows {
    fn clear(&mut self) {
        self.rows.clear();
        self.first = [0; NAMES];
    }

    #[inline]
    fn push(&mut self, row: Row) {
        self.rows.push(row);
        let first = &mut self.first[row.name as usize];
        if *first == 0 {
            *first = self.rows.len() as u16;
        }
    }
}

/// The methods there are scenarios for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is named as the method it stands for")]
pub enum Method {
    Ack,
    Bye,
    Cancel,
    Info,
    Invite,
    Message,
    Notify,
    Options,
    Prack,
    Publish,
    Refer,
    Register,
    Subscribe,
    Update,
    Other,
}

/// What the first line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start<'a> {
    /// A request and its Request-URI.
    Request(Method, &'a [u8]),
    /// A response and its status code.
    Response(u16),
}

/// Why a datagram is no SIP message to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Nothing but line ends and zeros: a keep-alive.
    KeepAlive,
    /// Content-Length is no number, or says more than has come.
    Length,
    /// A header line without a colon, or with a name that is none.
    Line,
    /// No empty line after the headers.
    NoEnd,
    /// The first line is neither a request's nor a response's.
    StartLine,
    /// More than [`ROWS_MAX`] rows.
    TooLong,
}

/// A message that has been read.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    octets: &'a [u8],
    /// The first line.
    pub start: Start<'a>,
    rows: &'a Rows,
    /// What follows the empty line, as long as Content-Length says.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads one datagram.
    pub fn read(octets: &'a [u8], rows: &'a mut Rows) -> Result<Message<'a>, Malformed> {
        rows.clear();
        if octets.iter().all(|octet| matches!(octet, b'\r' | b'\n' | 0)) {
            return Err(Malformed::KeepAlive);
        }
        if octets.len() > usize::from(u16::MAX) {
            return Err(Malformed::TooLong);
        }
        let first = memchr(b'\n', octets).ok_or(Malformed::StartLine)?;
        let start = start_line(trim_cr(&octets[..first])).ok_or(Malformed::StartLine)?;
        let headers_end = read_rows(octets, first + 1, rows)?;
        let rest = &octets[headers_end..];
        let mut message = Message { octets, start, rows, body: rest };
        if let Some(length) = message.value(Name::ContentLength) {
            let length = value_of_number(length).ok_or(Malformed::Length)?;
            //= RFC 3261 section 18.3
            //# If the transport packet ends before the end of the message body, this is considered an error.
            message.body = rest.get(..length as usize).ok_or(Malformed::Length)?;
        }
        Ok(message)
    }

    /// All octets of the datagram.
    pub fn octets(&self) -> &'a [u8] {
        self.octets
    }

    /// The value of the first field of this name.
    #[inline]
    pub fn value(&self, name: Name) -> Option<&'a [u8]> {
        let first = usize::from(self.rows.first[name as usize]);
        self.rows.rows.get(first.wrapping_sub(1)).map(|row| self.row_value(row))
    }

    /// The values of all fields of this name, in order.
    pub fn values(&self, name: Name) -> impl DoubleEndedIterator<Item = &'a [u8]> + Clone + use<'a> {
        let message = *self;
        let first = usize::from(self.rows.first[name as usize]);
        // Without one, from behind the last.
        let rest = self.rows.rows.get(first.wrapping_sub(1)..).unwrap_or_default();
        rest.iter().filter(move |row| row.name == name).map(move |row| message.row_value(row))
    }

    /// All rows: the field, and its whole line without the line end.
    pub fn lines(&self) -> impl Iterator<Item = (Name, &'a [u8])> + use<'a> {
        let octets = self.octets;
        self.rows.rows.iter().map(move |row| (row.name, &octets[usize::from(row.start)..usize::from(row.end)]))
    }

    /// The value of a field we have no name for.
    pub fn value_of_other(&self, name: &str) -> Option<&'a [u8]> {
        self.rows.rows.iter().filter(|row| row.name == Name::Other).find_map(|row| {
            let line = &self.octets[usize::from(row.start)..usize::from(row.end)];
            let colon = memchr(b':', line)?;
            line[..colon].trim_ascii_end().eq_ignore_ascii_case(name.as_bytes()).then(|| self.row_value(row))
        })
    }

    #[inline]
    fn row_value(&self, row: &Row) -> &'a [u8] {
        trim_lws(&self.octets[usize::from(row.value)..usize::from(row.end)])
    }
}

impl Method {
    /// The method of this name. RFC 3261 7.1: method names are case-sensitive.
    pub fn read(name: &[u8]) -> Method {
        match name {
            b"ACK" => Method::Ack,
            b"BYE" => Method::Bye,
            b"CANCEL" => Method::Cancel,
            b"INFO" => Method::Info,
            b"INVITE" => Method::Invite,
            b"MESSAGE" => Method::Message,
            b"NOTIFY" => Method::Notify,
            b"OPTIONS" => Method::Options,
            b"PRACK" => Method::Prack,
            b"PUBLISH" => Method::Publish,
            b"REFER" => Method::Refer,
            b"REGISTER" => Method::Register,
            b"SUBSCRIBE" => Method::Subscribe,
            b"UPDATE" => Method::Update,
            _ => Method::Other,
        }
    }

    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Ack => "ACK",
            Method::Bye => "BYE",
            Method::Cancel => "CANCEL",
            Method::Info => "INFO",
            Method::Invite => "INVITE",
            Method::Message => "MESSAGE",
            Method::Notify => "NOTIFY",
            Method::Options => "OPTIONS",
            Method::Prack => "PRACK",
            Method::Publish => "PUBLISH",
            Method::Refer => "REFER",
            Method::Register => "REGISTER",
            Method::Subscribe => "SUBSCRIBE",
            Method::Update => "UPDATE",
            Method::Other => "(other)",
        }
    }
}

/// Reads header rows from `at` and says where the body begins.
fn read_rows(octets: &[u8], mut at: usize, rows: &mut Rows) -> Result<usize, Malformed> {
    loop {
        let end = at + memchr(b'\n', &octets[at..]).ok_or(Malformed::NoEnd)?;
        let line = trim_cr(&octets[at..end]);
        match line.first() {
            None => return Ok(end + 1),
            //= RFC 3261 section 7.3.1
            //# Header fields can be extended over multiple lines by preceding each extra line with at least one SP or
            //# horizontal tab (HT).
            Some(b' ' | b'\t') => rows.rows.last_mut().ok_or(Malformed::Line)?.end = (at + line.len()) as u16,
            Some(_) => {
                if rows.rows.len() == ROWS_MAX {
                    return Err(Malformed::TooLong);
                }
                let colon = memchr(b':', line).ok_or(Malformed::Line)?;
                let name = line[..colon].trim_ascii_end();
                let known = if name.is_empty() { Name::Other } else { name_of(name) };
                // One that is known is one.
                if known == Name::Other && (name.is_empty() || !name.iter().all(|octet| octet.is_ascii_graphic())) {
                    return Err(Malformed::Line);
                }
                rows.push(Row {
                    name: known,
                    start: at as u16,
                    value: (at + colon + 1) as u16,
                    end: (at + line.len()) as u16,
                });
            }
        }
        at = end + 1;
    }
}

fn start_line(line: &[u8]) -> Option<Start<'_>> {
    if let Some(rest) = line.strip_prefix(b"SIP/2.0 ") {
        let code = rest.get(..3)?;
        let ends = rest.get(3).is_none_or(|octet| *octet == b' ');
        let code = value_of_number(code).filter(|code| ends && (100..700).contains(code))?;
        return Some(Start::Response(code as u16));
    }
    let (method, rest) = line.split_at(memchr(b' ', line)?);
    let rest = &rest[1..];
    let uri = rest.strip_suffix(b" SIP/2.0")?;
    let proper = !method.is_empty() && !uri.is_empty() && uri.iter().all(u8::is_ascii_graphic);
    proper.then(|| Start::Request(Method::read(method), uri))
}

/// The field of this name, long or compact (RFC 3261 7.3.3), in any case.
fn name_of(name: &[u8]) -> Name {
    // One length and one letter leave at most one candidate each, so a wrong row costs one comparison at most.
    let is = |long: &str, field: Name| if name.eq_ignore_ascii_case(long.as_bytes()) { field } else { Name::Other };
    match (name.len(), name[0] | 0x20) {
        (1, b'v') => Name::Via,
        (1, b'f') => Name::From,
        (1, b't') => Name::To,
        (1, b'i') => Name::CallId,
        (1, b'm') => Name::Contact,
        (1, b'l') => Name::ContentLength,
        (1, b'c') => Name::ContentType,
        (1, b'o') => Name::Event,
        (2, b't') => is("To", Name::To),
        (3, b'v') => is("Via", Name::Via),
        (4, b'f') => is("From", Name::From),
        (4, b'c') => is("CSeq", Name::CSeq),
        (5, b'r') => is("Route", Name::Route),
        (5, b'e') => is("Event", Name::Event),
        (6, b'x') => is("X-Load", Name::XLoad),
        (7, b'c') if name[4] == b'-' => is("Call-ID", Name::CallId),
        (7, b'c') => is("Contact", Name::Contact),
        (7, b'e') => is("Expires", Name::Expires),
        (10, b'u') => is("User-Agent", Name::UserAgent),
        (11, b'r') => is("Retry-After", Name::RetryAfter),
        (12, b'm') => is("Max-Forwards", Name::MaxForwards),
        (12, b'r') => is("Record-Route", Name::RecordRoute),
        (12, b'c') => is("Content-Type", Name::ContentType),
        (13, b'a') => is("Authorization", Name::Authorization),
        (14, b'c') => is("Content-Length", Name::ContentLength),
        (16, b'w') => is("WWW-Authenticate", Name::WwwAuthenticate),
        (18, b'p') => is("Proxy-Authenticate", Name::ProxyAuthenticate),
        (18, b's') => is("Subscription-State", Name::SubscriptionState),
        (19, b'p') => is("Proxy-Authorization", Name::ProxyAuthorization),
        _ => Name::Other,
    }
}

fn trim_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Without the linear white space around it (RFC 3261 25.1), which also holds the line ends of folded rows. No other octet
/// is white space to SIP, a form feed in particular is not.
#[inline]
fn trim_lws(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t' | b'\r' | b'\n'] = value {
        value = rest;
    }
    value
}

/// A decimal number and nothing else. `None` beyond 32 bits.
fn value_of_number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || text.len() > 10 {
        return None;
    }
    let mut number = 0u64;
    for &digit in text {
        number = number * 10 + u64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INVITE: &[u8] = b"INVITE sip:bob@example.net SIP/2.0\r\n\
        v: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1\r\n\
        Via: SIP/2.0/UDP 192.0.2.2:5060;branch=z9hG4bK2\r\n\
        FROM : Alice\r\n <sip:alice@example.net>;tag=1\r\n\
        To: <sip:bob@example.net>\r\n\
        i:abc@192.0.2.1\r\n\
        CSeq: 7 INVITE\r\n\
        X-Other: yes\r\n\
        Content-Length: 4\r\n\
        \r\n\
        bodyand more";

    #[test]
    fn a_request_is_read_with_its_folded_and_compact_rows() {
        let mut rows = Rows::default();
        let message = Message::read(INVITE, &mut rows).unwrap();
        assert_eq!(message.start, Start::Request(Method::Invite, b"sip:bob@example.net"));
        assert_eq!(message.values(Name::Via).count(), 2);
        assert_eq!(message.value(Name::From), Some(&b"Alice\r\n <sip:alice@example.net>;tag=1"[..]));
        assert_eq!(message.value(Name::CallId), Some(&b"abc@192.0.2.1"[..]));
        assert_eq!(message.value_of_other("x-other"), Some(&b"yes"[..]));
        assert_eq!(message.body, b"body", "octets beyond Content-Length are not the message's (RFC 3261 18.3)");
        assert_eq!(message.lines().last().unwrap(), (Name::ContentLength, &b"Content-Length: 4"[..]));
    }

    #[test]
    fn a_response_is_read_with_or_without_its_reason() {
        for (line, code) in
            [("SIP/2.0 200 OK", 200), ("SIP/2.0 486 Busy Here", 486), ("SIP/2.0 100", 100), ("SIP/2.0 180 ", 180)]
        {
            let text = format!("{line}\r\nVia: x\r\n\r\n");
            let mut rows = Rows::default();
            assert_eq!(Message::read(text.as_bytes(), &mut rows).unwrap().start, Start::Response(code));
        }
    }

    #[test]
    fn what_is_no_message_is_said_to_be_none() {
        for (text, why) in [
            ("", Malformed::KeepAlive),
            ("\r\n\r\n", Malformed::KeepAlive),
            ("\0\0\0\0", Malformed::KeepAlive),
            ("hello", Malformed::StartLine),
            ("hello world\r\n\r\n", Malformed::StartLine),
            ("SIP/2.0 99 Low\r\n\r\n", Malformed::StartLine),
            ("SIP/2.0 2000 OK\r\n\r\n", Malformed::StartLine),
            ("INVITE sip:b SIP/2.0\r\n", Malformed::NoEnd),
            ("INVITE sip:b SIP/2.0\r\nVia: x\r\n", Malformed::NoEnd),
            ("INVITE sip:b SIP/2.0\r\nVia\r\n\r\n", Malformed::Line),
            ("INVITE sip:b SIP/2.0\r\n: x\r\n\r\n", Malformed::Line),
            ("INVITE sip:b SIP/2.0\r\n folded\r\n\r\n", Malformed::Line),
            ("INVITE sip:b SIP/2.0\r\nl: 5\r\n\r\nbody", Malformed::Length),
            ("INVITE sip:b SIP/2.0\r\nContent-Length: -1\r\n\r\n", Malformed::Length),
            ("INVITE sip:b SIP/2.0\r\nContent-Length: 99999999999\r\n\r\n", Malformed::Length),
        ] {
            let mut rows = Rows::default();
            assert_eq!(Message::read(text.as_bytes(), &mut rows).err(), Some(why), "{text:?}");
        }
    }

    #[test]
    fn any_octets_are_read_without_a_panic() {
        // Every prefix, and every octet changed in turn into a few that matter to a parser.
        let mut rows = Rows::default();
        for len in 0..INVITE.len() {
            let _ = Message::read(&INVITE[..len], &mut rows).map(|message| message.lines().count());
        }
        let mut changed = INVITE.to_vec();
        for at in 0..INVITE.len() {
            for octet in [0, b'\n', b'\r', b' ', b':', b'"', b'<', b',', b';', 0xff] {
                changed[at] = octet;
                if let Ok(message) = Message::read(&changed, &mut rows) {
                    crate::sip::value::tests::look_at_everything(&message);
                }
            }
            changed[at] = INVITE[at];
        }
    }
}
