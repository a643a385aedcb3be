//! What the values of header fields hold: tags, branches, URIs, numbers.

use memchr::{memchr, memchr2};
use std::net::SocketAddr;

/// The `tag` of a From or To.
pub fn tag(value: &[u8]) -> Option<&[u8]> {
    param(params_of_name_addr(value), b"tag")
}

/// The URI of a From, To, Contact, Route or Record-Route value, without its angle brackets.
pub fn uri(value: &[u8]) -> &[u8] {
    match find_outside_quotes(value, b'<') {
        Some(open) => {
            let inside = &value[open + 1..];
            &inside[..memchr(b'>', inside).unwrap_or(inside.len())]
        }
        //= RFC 3261 section 20
        // Without angle brackets what follows a semicolon belongs to the header field and not to the URI.
        None => value[..memchr(b';', value).unwrap_or(value.len())].trim_ascii(),
    }
}

/// A parameter of a Via, Contact, or any value that is not a name-addr: `;name=value`, `None` where it is absent, empty
/// where it has no value.
pub fn param<'a>(value: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    find_param(value, name).map(|(_, value)| value)
}

/// The same, and where in `value` the parameter begins: behind its semicolon.
pub fn find_param<'a>(value: &'a [u8], name: &[u8]) -> Option<(usize, &'a [u8])> {
    let mut at = find_outside_quotes(value, b';')? + 1;
    loop {
        let rest = &value[at..];
        let next = find_outside_quotes(rest, b';');
        let param = &rest[..next.unwrap_or(rest.len())];
        let (left, right) = match memchr(b'=', param) {
            Some(equals) => (&param[..equals], &param[equals + 1..]),
            None => (param, &param[param.len()..]),
        };
        if left.trim_ascii().eq_ignore_ascii_case(name) {
            return Some((at, right.trim_ascii()));
        }
        at += next? + 1;
    }
}

/// Whether the parameters of a Via of ours are what they were, `;branch=…;rport`, but for what hops fill in (RFC 3581 4): a
/// value for `rport`, and `received`. In which order they write them is up to them.
pub fn are_params_as_sent(params: &[u8], branch: &[u8]) -> bool {
    // Mostly they come as they were sent, with a port and nothing else, or with an address behind it.
    let filled_in = params.strip_prefix(b";branch=").and_then(|rest| rest.strip_prefix(branch));
    if let Some(rest) = filled_in.and_then(|rest| rest.strip_prefix(b";rport=")) {
        let digits = rest.iter().take_while(|octet| octet.is_ascii_digit()).count();
        if digits > 0 && (rest.len() == digits || is_received(&rest[digits..])) {
            return true;
        }
    }
    let Some(params) = params.strip_prefix(b";") else { return false };
    let (mut rports, mut branches) = (0, 0);
    let known = params.split(|octet| *octet == b';').all(|param| {
        let (name, value) = match memchr(b'=', param) {
            Some(equals) => (&param[..equals], Some(&param[equals + 1..])),
            None => (param, None),
        };
        let plain = value.is_none_or(|value| !value.is_empty() && !value.iter().any(|octet| b", \t\"".contains(octet)));
        let is = |wanted: &[u8]| name.trim_ascii().eq_ignore_ascii_case(wanted);
        rports += usize::from(is(b"rport"));
        branches += usize::from(is(b"branch") && value == Some(branch));
        plain && (is(b"rport") || is(b"branch") || is(b"received"))
    });
    known && rports == 1 && branches == 1
}

/// Whether this is `;received=` and an address, and nothing else.
fn is_received(param: &[u8]) -> bool {
    let address = param.strip_prefix(b";received=").unwrap_or_default();
    !address.is_empty() && address.iter().all(|octet| octet.is_ascii_hexdigit() || b".:[]".contains(octet))
}

/// Number and method of a CSeq.
pub fn cseq(value: &[u8]) -> Option<(u32, &[u8])> {
    let space = value.iter().position(|octet| matches!(octet, b' ' | b'\t'))?;
    Some((number(&value[..space])?, value[space..].trim_ascii()))
}

/// A decimal number of 32 bits and nothing else.
pub fn number(text: &[u8]) -> Option<u32> {
    let text = text.trim_ascii();
    let digits = (1..=10).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    let number = digits.then(|| text.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0')))?;
    u32::try_from(number).ok()
}

/// Takes the first of several values that commas separate: the first, and the rest if there is any.
pub fn split_first(values: &[u8]) -> (&[u8], Option<&[u8]>) {
    match find_comma(values) {
        Some(comma) => (values[..comma].trim_ascii(), Some(values[comma + 1..].trim_ascii())),
        None => (values.trim_ascii(), None),
    }
}

/// The values that commas separate, in order.
pub fn split(values: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let mut rest = Some(values);
    std::iter::from_fn(move || {
        let (first, after) = split_first(rest?);
        rest = after;
        Some(first)
    })
    .filter(|value| !value.is_empty())
}

/// Sent-by of a Via value: `SIP/2.0/UDP HOST:PORT;...`, host and port.
pub fn sent_by(via: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let head = &via[..memchr(b';', via).unwrap_or(via.len())];
    let space = head.iter().position(|octet| matches!(octet, b' ' | b'\t'))?;
    host_port(head[space..].trim_ascii())
}

/// Host and port of a SIP URI.
pub fn uri_host_port(uri: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let colon = memchr(b':', uri)?;
    if !uri[..colon].eq_ignore_ascii_case(b"sip") && !uri[..colon].eq_ignore_ascii_case(b"sips") {
        return None;
    }
    let rest = &uri[colon + 1..];
    let after_user = memchr(b'@', rest).map_or(rest, |at| &rest[at + 1..]);
    let end = after_user.iter().position(|octet| matches!(octet, b';' | b'?' | b'>')).unwrap_or(after_user.len());
    host_port(&after_user[..end])
}

/// The user part of a SIP URI, empty where there is none.
pub fn uri_user(uri: &[u8]) -> &[u8] {
    let rest = memchr(b':', uri).map_or(uri, |colon| &uri[colon + 1..]);
    let Some(at) = memchr(b'@', rest) else { return &[] };
    let user = &rest[..at];
    &user[..user.iter().position(|octet| matches!(octet, b':' | b';')).unwrap_or(user.len())]
}

/// The host of a From or To at this address: without port, which Table 1 of RFC 3261 19.1.1 does not allow there. PJSIP, and so
/// Asterisk, answers without it, and the answer would have another From than the request.
pub fn domain(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    }
}

/// The address a host and port stand for, if the host is an IP address.
pub fn address(host: &[u8], port: Option<u16>) -> Option<SocketAddr> {
    let host =
        std::str::from_utf8(host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")).unwrap_or(host)).ok()?;
    Some(SocketAddr::new(host.parse().ok()?, port.unwrap_or(crate::endpoint::SIP_PORT)))
}

/// A parameter of a challenge or of credentials: `name="value"` among commas, quotes taken off.
pub fn auth_param<'a>(value: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let scheme_end = value.iter().position(|octet| matches!(octet, b' ' | b'\t'))?;
    split(&value[scheme_end..]).find_map(|pair| {
        let equals = memchr(b'=', pair)?;
        let right = pair[equals + 1..].trim_ascii();
        let bare = right.strip_prefix(b"\"").and_then(|right| right.strip_suffix(b"\"")).unwrap_or(right);
        pair[..equals].trim_ascii().eq_ignore_ascii_case(name).then_some(bare)
    })
}

fn host_port(text: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let after_bracket = if text.first() == Some(&b'[') { memchr(b']', text)? } else { 0 };
    let (host, port) = match memchr(b':', &text[after_bracket..]) {
        Some(colon) => {
            let port = number(&text[after_bracket + colon + 1..]).and_then(|port| u16::try_from(port).ok())?;
            (&text[..after_bracket + colon], Some(port))
        }
        None => (text, None),
    };
    let host = host.trim_ascii();
    (!host.is_empty()).then_some((host, port))
}

/// What follows the URI of a name-addr, where its own parameters are.
fn params_of_name_addr(value: &[u8]) -> &[u8] {
    match find_outside_quotes(value, b'<') {
        Some(open) => memchr(b'>', &value[open..]).map_or(&[][..], |close| &value[open + close + 1..]),
        None => value,
    }
}

fn find_outside_quotes(text: &[u8], wanted: u8) -> Option<usize> {
    let mut at = memchr2(wanted, b'"', text)?;
    if text[at] == wanted {
        return Some(at);
    }
    let mut quoted = false;
    while let Some(&octet) = text.get(at) {
        match octet {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            _ if octet == wanted && !quoted => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// A comma that separates values: outside of quotes and of angle brackets.
fn find_comma(text: &[u8]) -> Option<usize> {
    memchr(b',', text)?;
    let (mut quoted, mut bracketed, mut at) = (false, false, 0);
    while let Some(&octet) = text.get(at) {
        match octet {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b'<' if !quoted => bracketed = true,
            b'>' if !quoted => bracketed = false,
            b',' if !quoted && !bracketed => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sip::message::{Message, Name};

    /// Calls every reader here on every value: none of them may panic, whatever the value is.
    pub fn look_at_everything(message: &Message<'_>) {
        for (name, line) in message.lines() {
            let mut found = 0;
            for value in split(line).chain([line]) {
                found += tag(value).map_or(0, <[u8]>::len) + uri(value).len() + uri_user(uri(value)).len();
                found +=
                    param(value, b"branch").map_or(0, <[u8]>::len) + auth_param(value, b"nonce").map_or(0, <[u8]>::len);
                found += usize::from(cseq(value).is_some()) + usize::from(number(value).is_some());
                found += usize::from(sent_by(value).is_some()) + usize::from(uri_host_port(value).is_some());
            }
            std::hint::black_box((name == Name::Via, found));
        }
    }

    #[test]
    fn a_tag_is_the_header_fields_and_not_the_uris() {
        assert_eq!(tag(b"<sip:a@b;tag=no>;tag=yes"), Some(&b"yes"[..]));
        assert_eq!(tag(b"\"<;tag=no>\" <sip:a@b>;x=1 ; TAG = yes ;y"), Some(&b"yes"[..]));
        assert_eq!(tag(b"sip:a@b;tag=yes"), Some(&b"yes"[..]));
        assert_eq!(tag(b"<sip:a@b>"), None);
        assert_eq!(tag(b"<sip:a@b"), None);
    }

    #[test]
    fn a_uri_is_what_the_brackets_hold() {
        assert_eq!(uri(b"\"A <b>\" <sip:a@b;lr>;tag=1"), b"sip:a@b;lr");
        assert_eq!(uri(b"sip:a@b;tag=1"), b"sip:a@b");
        assert_eq!(uri_user(b"sip:alice:secret@b"), b"alice");
        assert_eq!(uri_user(b"sip:b"), b"");
        assert_eq!(uri_host_port(b"sip:a@[::1]:5061;lr"), Some((&b"[::1]"[..], Some(5061))));
        assert_eq!(uri_host_port(b"sip:example.net"), Some((&b"example.net"[..], None)));
        assert_eq!(uri_host_port(b"tel:+1"), None);
        assert_eq!(uri_host_port(b"sip:a:99999"), None);
        assert_eq!(address(b"[::1]", Some(7)), Some("[::1]:7".parse().unwrap()));
        assert_eq!(address(b"example.net", None), None);
    }

    #[test]
    fn values_are_split_at_their_own_commas_only() {
        let vias: Vec<&[u8]> = split(b"SIP/2.0/UDP a;x=\"1,2\" , SIP/2.0/UDP b,<sip:c,d>").collect();
        assert_eq!(vias, [&b"SIP/2.0/UDP a;x=\"1,2\""[..], b"SIP/2.0/UDP b", b"<sip:c,d>"]);
    }

    #[test]
    fn via_parameters_and_sent_by_are_found() {
        let via = b"SIP/2.0/UDP 192.0.2.1:5060 ;branch=z9hG4bK1;rport;received=192.0.2.9";
        assert_eq!(sent_by(via), Some((&b"192.0.2.1"[..], Some(5060))));
        assert_eq!(param(via, b"branch"), Some(&b"z9hG4bK1"[..]));
        assert_eq!(param(via, b"rport"), Some(&b""[..]));
        assert_eq!(param(via, b"ttl"), None);
    }

    #[test]
    fn hops_may_fill_in_rport_and_received_and_nothing_else() {
        for params in [
            ";branch=z1;rport",
            ";branch=z1;rport=5060",
            ";received=192.0.2.1;branch=z1;rport=5060",
            ";rport=1;received=[::1];branch=z1",
        ] {
            assert!(are_params_as_sent(params.as_bytes(), b"z1"), "{params}");
        }
        for params in [
            "",
            ";rport",
            ";branch=z1",
            ";branch=z2;rport",
            ";branch=z1;rport;rport",
            ";branch=z1;rport;x=1",
            ";branch=z1;rport, SIP/2.0/UDP b",
            "branch=z1;rport",
            ";branch=z1;rport=",
        ] {
            assert!(!are_params_as_sent(params.as_bytes(), b"z1"), "{params}");
        }
    }

    #[test]
    fn cseq_and_challenges_are_read() {
        assert_eq!(cseq(b"4711  INVITE"), Some((4711, &b"INVITE"[..])));
        assert_eq!(cseq(b"4711INVITE"), None);
        assert_eq!(cseq(b"99999999999 INVITE"), None);
        let challenge = b"Digest realm=\"a, b\", nonce=\"n=1\",algorithm=MD5, qop=\"auth,auth-int\"";
        assert_eq!(auth_param(challenge, b"realm"), Some(&b"a, b"[..]));
        assert_eq!(auth_param(challenge, b"NONCE"), Some(&b"n=1"[..]));
        assert_eq!(auth_param(challenge, b"algorithm"), Some(&b"MD5"[..]));
        assert_eq!(auth_param(challenge, b"qop"), Some(&b"auth,auth-int"[..]));
        assert_eq!(auth_param(challenge, b"stale"), None);
    }
}
