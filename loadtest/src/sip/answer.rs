//! The part of an answer that is copied from its request (RFC 3261 8.2.6).

use super::message::{Message, Name};
use super::text::Text;
use super::value::{find_param, param, split_first, tag};
use crate::sys::address::Address;
use std::net::IpAddr;

/// Where an answer to this request goes, `source` being where it came from. `None` without a Via that says so.
pub fn destination(request: &Message<'_>, source: Address) -> Option<Address> {
    let (via, _) = split_first(request.value(Name::Via)?);
    //= RFC 3261 section 18.2.2
    //# the response MUST be sent using
    //# the existing connection to the source of the original request
    //# that created the transaction, if that connection is still open.
    if source.stream() != 0 {
        return Some(source);
    }
    //= RFC 3581 section 4
    //# there is both a
    //# "received" parameter and an "rport" parameter, the response MUST be
    //# sent to the IP address listed in the "received" parameter, and the
    //# port in the "rport" parameter.
    // Both are what `echo` writes there: the source of the request.
    if param(via, b"rport").is_some() {
        return Some(source);
    }
    //= RFC 3261 section 18.2.2
    // Without it, to the source address and the port of sent-by, which is 5060 where none is written.
    let (_, port) = super::value::sent_by(via)?;
    let mut to = source.to_std();
    to.set_port(port.unwrap_or(crate::endpoint::SIP_PORT));
    Some(Address::from(to))
}

/// The reason phrase of a status code (RFC 3261 21), for people who read along.
pub const fn reason(code: u16) -> &'static str {
    match code {
        100 => "Trying",
        180 => "Ringing",
        200 => "OK",
        202 => "Accepted",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        480 => "Temporarily Unavailable",
        481 => "Call/Transaction Does Not Exist",
        486 => "Busy Here",
        487 => "Request Terminated",
        491 => "Request Pending",
        500 => "Server Internal Error",
        503 => "Service Unavailable",
        600 => "Busy Everywhere",
        603 => "Decline",
        _ => "Answer",
    }
}

/// Where [`echo`] wrote the values that identify a request, as offsets into its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echoed {
    /// Of From.
    pub from: Span,
    /// Of To, with the tag that was added.
    pub to: Span,
    /// Of Call-ID.
    pub call_id: Span,
    /// Of CSeq.
    pub cseq: Span,
}

/// A part of a text: `start <= end <= octets of the text`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// The part itself.
    pub fn of(self, text: &[u8]) -> &[u8] {
        text.get(usize::from(self.start)..usize::from(self.end)).unwrap_or_default()
    }
}

/// Writes the rows an answer takes from its request: Via, Record-Route, From, To, Call-ID and CSeq, each as it came but
/// for what RFC 3261 18.2.1 and RFC 3581 4 add to the top Via, and for the tag of the To. Without a tag (a 100), the To
/// stays as it is. Record-Route is copied by whoever opens a dialog.
///
/// `None`: the request lacks one of the rows every request has, so nobody could answer it.
pub fn echo(
    request: &Message<'_>,
    source: Address,
    to_tag: &[u8],
    record_route: bool,
    out: &mut Text<'_>,
) -> Option<Echoed> {
    let mut first = true;
    for via in request.values(Name::Via) {
        out.put(b"Via: ");
        if first {
            put_top_via(via, source, out);
            first = false;
        } else {
            out.put(via);
        }
        out.put(b"\r\n");
    }
    if record_route {
        for route in request.values(Name::RecordRoute) {
            put_row(b"Record-Route: ", &[route], out);
        }
    }
    let (from, to) = (request.value(Name::From)?, request.value(Name::To)?);
    let (call_id, cseq) = (request.value(Name::CallId)?, request.value(Name::CSeq)?);
    let tagged = [to, b";tag=", to_tag];
    let to = if to_tag.is_empty() || tag(to).is_some() { &tagged[..1] } else { &tagged };
    let echoed = Echoed {
        from: put_row(b"From: ", &[from], out),
        to: put_row(b"To: ", to, out),
        call_id: put_row(b"Call-ID: ", &[call_id], out),
        cseq: put_row(b"CSeq: ", &[cseq], out),
    };
    (!first).then_some(echoed)
}

/// Writes a row and says where its value is. A text is no longer than a datagram, so 16 bits hold every offset.
fn put_row(name: &[u8], values: &[&[u8]], out: &mut Text<'_>) -> Span {
    out.put(name);
    let start = out.len() as u16;
    for value in values {
        out.put(value);
    }
    let end = out.len() as u16;
    out.put(b"\r\n");
    Span { start, end }
}

fn put_top_via(values: &[u8], source: Address, out: &mut Text<'_>) {
    let (via, rest) = split_first(values);
    match find_param(via, b"rport") {
        //= RFC 3581 section 4
        //# When a server compliant to this specification (which can be a proxy or UAS) receives a request, it examines
        //# the topmost Via header field value.  If this Via header field value contains an "rport" parameter with no
        //# value, it MUST set the value of the parameter to the source port of the request.
        Some((at, b"")) => {
            let end = at + memchr::memchr(b';', &via[at..]).unwrap_or(via.len() - at);
            out.put(&via[..at]);
            out.put(b"rport=");
            out.put_number(u64::from(source.port()));
            out.put(&via[end..]);
            put_received(source, out);
        }
        Some(_) => out.put(via),
        //= RFC 3261 section 18.2.1
        //# If the host portion of the "sent-by" parameter contains a domain name, or if it contains an IP address that
        //# differs from the packet source address, the server MUST add a "received" parameter to that Via header field
        //# value.
        None => {
            out.put(via);
            let named = super::value::sent_by(via).and_then(|(host, port)| super::value::address(host, port));
            if named.is_none_or(|named| named.ip() != source.to_std().ip()) && param(via, b"received").is_none() {
                put_received(source, out);
            }
        }
    }
    if let Some(rest) = rest {
        out.put(b", ");
        out.put(rest);
    }
}

fn put_received(source: Address, out: &mut Text<'_>) {
    out.put(b";received=");
    match source.to_std().ip() {
        // Of which there is one in every answer; formatting costs several times as much.
        IpAddr::V4(ip) => {
            for (place, octet) in ip.octets().into_iter().enumerate() {
                out.put(if place > 0 { b"." } else { b"" });
                out.put_number(u64::from(octet));
            }
        }
        IpAddr::V6(ip) => out.put(ip.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::message::Rows;

    fn echoed(request: &str, source: &str, to_tag: &str) -> Option<String> {
        let mut rows = Rows::default();
        let message = Message::read(request.as_bytes(), &mut rows).unwrap();
        let mut room = [0; 1024];
        let mut out = Text::new(&mut room);
        let source: std::net::SocketAddr = source.parse().unwrap();
        let whole = echo(&message, Address::from(source), to_tag.as_bytes(), true, &mut out);
        whole.is_some().then(|| String::from_utf8(out.octets().to_vec()).unwrap())
    }

    const REST: &str = "From: <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\nCall-ID: x\r\nCSeq: 1 INVITE\r\n\r\n";

    #[test]
    fn an_answer_carries_all_that_identifies_its_request() {
        let request = format!(
            "INVITE sip:c@d SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=1\r\nRecord-Route: <sip:p;lr>\r\nVia: SIP/2.0/UDP b;branch=2\r\n{REST}"
        );
        assert_eq!(
            echoed(&request, "192.0.2.1:5060", "t").unwrap(),
            "Via: SIP/2.0/UDP 192.0.2.1;branch=1\r\nVia: SIP/2.0/UDP b;branch=2\r\nRecord-Route: <sip:p;lr>\r\n\
             From: <sip:a@b>;tag=1\r\nTo: <sip:c@d>;tag=t\r\nCall-ID: x\r\nCSeq: 1 INVITE\r\n"
        );
    }

    #[test]
    fn the_top_via_learns_where_its_request_came_from() {
        for (via, said) in [
            ("SIP/2.0/UDP h;rport;branch=1", "SIP/2.0/UDP h;rport=7;branch=1;received=192.0.2.9"),
            (
                "SIP/2.0/UDP 192.0.2.9;branch=rport;rport",
                "SIP/2.0/UDP 192.0.2.9;branch=rport;rport=7;received=192.0.2.9",
            ),
            ("SIP/2.0/UDP h;branch=1", "SIP/2.0/UDP h;branch=1;received=192.0.2.9"),
            ("SIP/2.0/UDP 192.0.2.9:5060;branch=1", "SIP/2.0/UDP 192.0.2.9:5060;branch=1"),
            ("SIP/2.0/UDP h ; rport ;branch=1", "SIP/2.0/UDP h ;rport=7;branch=1;received=192.0.2.9"),
            (
                "SIP/2.0/UDP h;rport;branch=1, SIP/2.0/UDP g",
                "SIP/2.0/UDP h;rport=7;branch=1;received=192.0.2.9, SIP/2.0/UDP g",
            ),
        ] {
            let answer = echoed(&format!("INVITE sip:c@d SIP/2.0\r\nVia: {via}\r\n{REST}"), "192.0.2.9:7", "").unwrap();
            assert_eq!(answer.lines().next().unwrap(), format!("Via: {said}"));
            assert!(answer.contains("To: <sip:c@d>\r\n"), "no tag was wanted");
        }
    }

    #[test]
    fn an_answer_goes_where_the_top_via_says() {
        for (via, to) in [
            ("SIP/2.0/UDP h:9;rport;branch=1", "192.0.2.9:7"),
            ("SIP/2.0/UDP h:9;branch=1", "192.0.2.9:9"),
            ("SIP/2.0/UDP h;branch=1, SIP/2.0/UDP g:8;rport", "192.0.2.9:5060"),
        ] {
            let request = format!("INVITE sip:c@d SIP/2.0\r\nVia: {via}\r\n{REST}");
            let mut rows = Rows::default();
            let message = Message::read(request.as_bytes(), &mut rows).unwrap();
            let source: std::net::SocketAddr = "192.0.2.9:7".parse().unwrap();
            assert_eq!(destination(&message, Address::from(source)).unwrap().to_std().to_string(), to);
        }
    }

    #[test]
    fn a_request_without_what_an_answer_needs_has_none() {
        assert!(echoed(&format!("INVITE sip:c@d SIP/2.0\r\n{REST}"), "192.0.2.9:7", "").is_none());
        assert!(echoed("INVITE sip:c@d SIP/2.0\r\nVia: SIP/2.0/UDP h\r\n\r\n", "192.0.2.9:7", "").is_none());
    }

    #[test]
    fn a_tag_that_is_there_stays() {
        let request = format!(
            "BYE sip:c@d SIP/2.0\r\nVia: SIP/2.0/UDP h;rport\r\n{}",
            REST.replace("<sip:c@d>", "<sip:c@d>;tag=old")
        );
        assert!(echoed(&request, "192.0.2.9:7", "new").unwrap().contains("To: <sip:c@d>;tag=old\r\n"));
    }
}
