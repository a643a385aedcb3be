//! Which octets of a request make it sticky, and their hash.

use crate::dataplane::keys::Keys;
use crate::dataplane::scan::{Scan, Span, find};
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::name_addr::NameAddr;
use crate::dataplane::sip::start_line::Method;
use crate::dataplane::sip::uri::{self, Scheme, Uri};
use crate::dataplane::tables::Affinity;
use crate::dataplane::text::Text;
use crate::dataplane::validate::{self, Request};
use std::net::IpAddr;

/// Octets of the longest key that is put together from parts. A longer one is its first part alone.
const KEY_MAX: usize = 512;

/// The hash of the request's key under `affinity`. `key` is called with the key itself.
#[inline(always)]
pub fn hash(keys: &Keys, affinity: Affinity, message: &[u8], scan: &Scan, request: &Request, source: IpAddr) -> u64 {
    with_key(affinity, message, scan, request, source, |key| keys.route(key))
}

/// Calls `then` with the request's key under `affinity`.
#[inline(always)]
pub fn with_key<T>(
    affinity: Affinity,
    message: &[u8],
    scan: &Scan,
    request: &Request,
    source: IpAddr,
    then: impl FnOnce(&[u8]) -> T,
) -> T {
    match affinity {
        //= RFC 3261 section 20.8
        //# Call-IDs are case-sensitive and are simply compared byte-by-byte.
        Affinity::CallId => then(other_call(message, scan, request.method).unwrap_or(request.call_id).of(message)),
        Affinity::Aor if request.method == Method::Register => {
            with_user_at_host(message, of(message, &request.to), then)
        }
        Affinity::Aor => with_user_at_host(message, Some(request.uri), then),
        Affinity::From => with_user_at_host(message, of(message, &request.from), then),
        Affinity::To => with_user_at_host(message, of(message, &request.to), then),
        Affinity::RuriUser => with_text(then, |text| put_user(text, message, &request.uri)),
        Affinity::Source => with_text(then, |text| {
            text.put_address(source);
        }),
    }
}

fn of(message: &[u8], value: &NameAddr) -> Option<Uri> {
    uri::parse(message, value.uri)
}

/// The user part of a URI; of a `tel:` URI and of any other, everything behind the scheme.
fn user<'a>(message: &'a [u8], uri: &Uri) -> &'a [u8] {
    match uri.scheme {
        Scheme::Sip | Scheme::Sips => {
            let userinfo = uri.userinfo.of(message);
            // `userinfo = ( user / telephone-subscriber ) [ ":" password ] "@"`
            &userinfo[..find(userinfo, 0, userinfo.len(), [b':'])]
        }
        _ => {
            let text = uri.whole.of(message);
            let behind = find(text, 0, text.len(), [b':']) + 1;
            let end = find(text, 0, text.len(), [b';']);
            text.get(behind..end).unwrap_or_default()
        }
    }
}

/// `user@host`, the host in lower case (RFC 3261 19.1.4: the user part compares with regard to case, the host without).
/// Scheme, port and parameters are left out: they differ between the places that name one address of record.
fn with_user_at_host<T>(message: &[u8], uri: Option<Uri>, then: impl FnOnce(&[u8]) -> T) -> T {
    with_text(then, |text| {
        let Some(uri) = uri else { return };
        put_user(text, message, &uri);
        if uri.is_sip() {
            text.put(b"@");
            for octet in uri.host.of(message) {
                text.put(&[octet.to_ascii_lowercase()]);
            }
        }
    })
}

/// Writes the user part of a URI in its canonical form: `%27` and `'` name one user.
//= RFC 3261 section 10.3
//# any escaped characters MUST be converted to their unescaped
//# form.
fn put_user(text: &mut Text<'_>, message: &[u8], uri: &Uri) {
    let user = user(message, uri);
    let mut rest = &user[..user.len().min(KEY_MAX)];
    while let Some(at) = memchr::memchr(b'%', rest) {
        let octet = rest.get(at + 1..at + 3).and_then(escaped);
        text.put(&rest[..at]).put(&[octet.unwrap_or(b'%')]);
        rest = &rest[at + if octet.is_some() { 3 } else { 1 }..];
    }
    text.put(rest);
}

/// The octet that two hexadecimal digits say.
fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |octet: u8| char::from(octet).to_digit(16).map(|digit| digit as u8);
    Some(digit(digits[0])? << 4 | digit(digits[1])?)
}

fn with_text<T>(then: impl FnOnce(&[u8]) -> T, write: impl FnOnce(&mut Text<'_>)) -> T {
    let mut room = [0; KEY_MAX];
    let mut text = Text::new(&mut room);
    write(&mut text);
    let len = text.len();
    then(&room[..len])
}

/// The Call-ID of the call that this request is about, if it is another than its own: an INVITE with `Replaces` (RFC
/// 3891) or `Join` (RFC 3911), a REFER with `Target-Dialog` (RFC 4538) has to reach the server that has that call.
///
/// `Replaces = "Replaces" HCOLON callid *(SEMI replaces-param)`, the others likewise. A request with two of them is
/// malformed for the server that will get it; it stays with its own Call-ID (RFC 3891 3).
#[inline(always)]
pub fn other_call(message: &[u8], scan: &Scan, method: Method) -> Option<Span> {
    let named = match method {
        Method::Invite => [HeaderKind::Replaces, HeaderKind::Join],
        Method::Refer => [HeaderKind::TargetDialog, HeaderKind::TargetDialog],
        _ => return None,
    };
    let [first, second] = named.map(|kind| scan.value(kind));
    let value = match (first, second) {
        (None, None) => return None,
        (Some(a), Some(b)) if a != b => return None,
        (a, b) => a.or(b)?,
    };
    let end = find(message, value.start as usize, value.end as usize, [b';']);
    let call_id = validate::trim(message, Span { end: end as u32, ..value });
    grammar::is_call_id(message, call_id).then_some(call_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::scan::scalar;
    use crate::dataplane::sip::start_line;
    use crate::dataplane::tables::{ForeignRoute, PathPolicy, Policy};

    /// The key of a request with this start, From, To and further rows, whose Call-ID is `own`, from 192.0.2.9.
    fn key(affinity: Affinity, start: &str, from: &str, to: &str, rows: &str) -> String {
        let method = start.split(' ').next().unwrap();
        let message = format!(
            "{start} SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=z9hG4bK-1\r\nFrom: {from}\r\nTo: {to}\r\nCall-ID: own\r\nCSeq: 1 {method}\r\n{rows}\r\n"
        );
        let (message, mut scan, mut request) = (message.as_bytes(), Scan::default(), Request::default());
        scalar::scan(message, &mut scan);
        let policy = Policy {
            foreign_route: ForeignRoute::Ignore,
            record_route: false,
            path: PathPolicy::Off,
            schemes: vec![Scheme::Sip, Scheme::Sips, Scheme::Tel],
            proxy_require: Vec::new(),
            stream_keep_s: 0,
        };
        let line = start_line::parse(message, scan.start_line);
        validate::request(message, &scan, line, &policy, &mut request).unwrap();
        let source = [192, 0, 2, 9].into();
        with_key(affinity, message, &scan, &request, source, |key| String::from_utf8_lossy(key).into_owned())
    }

    #[test]
    fn each_affinity_has_a_key_of_its_own() {
        let (uri, from, to) =
            ("sip:bob@Example.NET:5070;x", "\"A\" <sips:ann:secret@Example.COM>", "<sip:Carol@example.org>");
        let register = format!("REGISTER {uri}");
        let invite = format!("INVITE {uri}");
        for (affinity, start, expected) in [
            (Affinity::CallId, &invite, "own"),
            (Affinity::Aor, &invite, "bob@example.net"),
            (Affinity::Aor, &register, "Carol@example.org"),
            (Affinity::From, &invite, "ann@example.com"),
            (Affinity::To, &invite, "Carol@example.org"),
            (Affinity::RuriUser, &invite, "bob"),
            (Affinity::Source, &invite, "192.0.2.9"),
        ] {
            assert_eq!(key(affinity, start, from, to, ""), expected, "{affinity:?} {start}");
        }
        // What has no host has no `@`.
        assert_eq!(key(Affinity::From, &invite, "<tel:+49;x=1>", to, ""), "+49");
    }

    #[test]
    fn the_call_that_a_request_is_about_is_its_key() {
        for (method, rows, expected) in [
            ("INVITE", "Replaces: other ;to-tag=1\r\n", "other"),
            ("INVITE", "Join: other;to-tag=1\r\n", "other"),
            ("REFER", "Target-Dialog: other;local-tag=1\r\n", "other"),
            // Not both, no other methods, and no Call-ID that is none.
            ("INVITE", "Replaces: other;to-tag=1\r\nJoin: other;to-tag=1\r\n", "own"),
            ("INVITE", "Target-Dialog: other\r\n", "own"),
            ("REFER", "Replaces: other\r\n", "own"),
            ("BYE", "Replaces: other\r\n", "own"),
            ("INVITE", "Replaces: an other;to-tag=1\r\n", "own"),
            ("INVITE", "Replaces: ;to-tag=1\r\n", "own"),
        ] {
            let start = format!("{method} sip:b@example.net");
            assert_eq!(key(Affinity::CallId, &start, "<sip:a>", "<sip:b>", rows), expected, "{method} {rows}");
        }
    }

    #[test]
    fn escapes_of_a_user_are_undone_and_what_is_none_stands_for_itself() {
        for (written, canonical) in [
            ("sip:bob@a", "bob"),
            ("sip:o%27brien@a", "o'brien"),
            ("sip:%2b49%37@a", "+497"),
            ("sip:%@a", "%"),
            ("sip:a%2@a", "a%2"),
            ("sip:%zz%4a@a", "%zzJ"),
            ("sip:%2537@a", "%37"),
            ("tel:+49%2d30;phone-context=a", "+49-30"),
        ] {
            let uri = uri::parse(written.as_bytes(), Span::new(0, written.len())).unwrap();
            let key = with_text(
                |key| String::from_utf8_lossy(key).into_owned(),
                |text| put_user(text, written.as_bytes(), &uri),
            );
            assert_eq!(key, canonical, "{written}");
        }
        // Of a longer one, its first part: not nothing, which many would share.
        let long = format!("sip:{}@a", "x".repeat(2 * KEY_MAX));
        let uri = uri::parse(long.as_bytes(), Span::new(0, long.len())).unwrap();
        assert_eq!(with_text(<[u8]>::len, |text| put_user(text, long.as_bytes(), &uri)), KEY_MAX);
    }
}
