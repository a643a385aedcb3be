//! One Via hop: sent-by, branch, received, rport, and the parameter that is ours.

use super::cursor::{Cursor, Param, next_param};
use super::grammar;
use crate::dataplane::scan::{Span, find};
use crate::dataplane::transport::Transport;

/// The name of the parameter in which our own Via carries its token, lower-case.
pub const TOKEN_PARAM: &[u8] = b"vh";

/// `z9hG4bK`: a branch that begins with it is unique to its transaction (RFC 3261 8.1.1.7). Compared without regard to
/// case, as tokens are (7.3.1).
//= RFC 3261 section 8.1.1.7
//# The branch ID inserted by an element compliant with this specification
//# MUST always begin with the characters "z9hG4bK".
pub const COOKIE: &[u8; 7] = b"z9hG4bK";

/// The first value of a Via row. What is not there is [`Span::ABSENT`].
///
/// `via-parm = sent-protocol LWS sent-by *( SEMI via-params )`, `sent-by = host [ COLON port ]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Via {
    /// The value from its first octet to its last, without white space round it.
    pub whole: Span,
    /// The whole of sent-by.
    pub sent_by: Span,
    /// The host of sent-by, with the brackets of an IPv6 reference.
    pub host: Span,
    /// Whether there are blanks in sent-by. They are legal, and have no place in a token.
    pub has_blanks: bool,
    /// The port of sent-by, or the default one (18.2.2).
    pub port: u16,
    /// The value of `branch`.
    pub branch: Span,
    /// Whether it is one that RFC 3261 promises to be unique: the cookie and something behind it.
    pub is_unique: bool,
    /// `received`: the address a server saw the message come from (18.2.1); from its semicolon to its end.
    pub received: Span,
    /// `rport`: the port likewise (RFC 3581).
    pub rport: Span,
    /// The value of our own parameter.
    pub token: Span,
    /// `keep` without a value: who wrote it would send keep-alives (RFC 6223 4.3); from its semicolon to its end.
    pub keep: Span,
    /// Whether there are parameters of overload control: [`Via::overload_params`].
    pub has_overload: bool,
    /// The offset of the comma behind the value, if another value follows in the same row; else 0.
    pub comma: u32,
}

/// What stands for a port that is not written (RFC 3261 18.2.2), of the transport named `transport`.
fn default_port(transport: &[u8]) -> u16 {
    let others = [Transport::Tls, Transport::Ws, Transport::Wss];
    let is_it = |one: &Transport| transport.eq_ignore_ascii_case(one.name().as_bytes());
    others.into_iter().find(is_it).unwrap_or_default().default_port()
}

/// Reads the first value of `span`, the value of a Via row. `None` if it does not follow the grammar; a parameter that
/// may stand once and stands twice does not.
#[inline(always)]
pub fn parse(message: &[u8], span: Span) -> Option<Via> {
    let mut via = Via::default();
    via.read(message, span).then_some(via)
}

/// Reads any value that the grammar allows.
fn by_grammar(message: &[u8], span: Span) -> Option<Via> {
    let mut cursor = Cursor::new(message, span);
    cursor.skip_lws();
    let start = cursor.at();
    for _ in 0..2 {
        take_token(&mut cursor)?;
        if !cursor.take_separator(b'/') {
            return None;
        }
    }
    let transport = take_token(&mut cursor)?;
    if !cursor.peek().is_some_and(grammar::is_lws) {
        return None;
    }
    cursor.skip_lws();
    let host = take_host(&mut cursor)?;
    let mut via = Via { host, sent_by: host, port: default_port(transport.of(message)), ..Via::default() };
    if cursor.take_separator(b':') {
        via.port = cursor.take_port().filter(|&port| port != 0)?;
        via.sent_by.end = cursor.at() as u32;
        via.has_blanks = via.sent_by.of(message).iter().any(|&octet| grammar::is_lws(octet));
    }
    via.whole = Span { start: start as u32, end: via.sent_by.end };
    while let Some(param) = next_param(&mut cursor).ok()? {
        via.whole.end = param.whole.end;
        via.keep(message, param)?;
    }
    cursor.skip_lws();
    match cursor.peek() {
        None => {}
        Some(b',') => via.comma = cursor.at() as u32,
        Some(_) => return None,
    }
    via.note_unique_branch(message);
    Some(via)
}

fn is_overload(message: &[u8], param: &Param) -> bool {
    ["oc", "oc-algo", "oc-validity", "oc-seq"].iter().any(|name| param.is(message, name.as_bytes()))
}

fn take_token(cursor: &mut Cursor<'_>) -> Option<Span> {
    let token = cursor.take_while(grammar::TOKEN);
    (!token.is_empty()).then_some(token)
}

fn take_host(cursor: &mut Cursor<'_>) -> Option<Span> {
    if cursor.peek() == Some(b'[') {
        return cursor.take_bracketed();
    }
    let host = cursor.take_until([b';', b':', b',', b'"', b'[', b'<', b'>']);
    (!host.is_empty()).then_some(host)
}

impl Via {
    /// [`parse`] in place: a struct that is returned is copied, and a copy of what was just written has to wait for it.
    #[inline(always)]
    pub fn read(&mut self, message: &[u8], span: Span) -> bool {
        self.everyday(message, span).is_some_and(|end| end == span.end as usize) || self.by_grammar(message, span)
    }

    /// [`Via::read`] for a value as practically all are written, where it is not known yet where its line ends: that is at the
    /// offset returned, or it is no such value. `span` ends somewhere behind it.
    #[inline(always)]
    pub fn read_line(&mut self, message: &[u8], span: Span) -> Option<usize> {
        let end = self.everyday(message, span)?;
        self.whole.end = end as u32;
        Some(end)
    }

    /// Reads a value as practically all are written: one space in front, `SIP/2.0/UDP`, no other white space, no quotes,
    /// no second value, known parameters in lower case. Returns the offset behind the last parameter, which is the end of the value
    /// if it is one; `None` says only that it is not such a value.
    #[inline(always)]
    fn everyday(&mut self, message: &[u8], span: Span) -> Option<usize> {
        let mut cursor = Cursor::new(message, span);
        let port = match () {
            () if cursor.take_text(b" SIP/2.0/UDP ") || cursor.take_text(b" SIP/2.0/TCP ") => 5060,
            () if cursor.take_text(b" SIP/2.0/TLS ") => 5061,
            () => return None,
        };
        let host = cursor.take_until([b';', b':', b',', b'"', b'[', b'<', b'>']);
        *self =
            Via { whole: Span { start: span.start + 1, end: span.end }, sent_by: host, host, port, ..Via::default() };
        if cursor.take(b':') {
            self.port = cursor.take_port().filter(|&port| port != 0)?;
            self.sent_by.end = cursor.at() as u32;
        }
        loop {
            let start = cursor.at() as u32;
            if !cursor.take(b';') {
                break;
            }
            let param = cursor.take_until([b';', b',', b'"', b'<', b'>']);
            let (place, name) = match param.of(message) {
                [b'b', b'r', b'a', b'n', b'c', b'h', b'=', _, ..] => (&mut self.branch, 8),
                b"rport" | [b'r', b'p', b'o', b'r', b't', b'=', ..] => (&mut self.rport, 0),
                [b'r', b'e', b'c', b'e', b'i', b'v', b'e', b'd', b'=', ..] => (&mut self.received, 0),
                [b'v', b'h', b'=', _, ..] => (&mut self.token, 4),
                b"keep" => (&mut self.keep, 0),
                // Ours as well, and nothing to a parser.
                [b'v', b'l', b'=', ..] => continue,
                // Another parameter, unless it is one of these written otherwise.
                [b'b' | b'B' | b'k' | b'K' | b'o' | b'O' | b'r' | b'R' | b'v' | b'V' | b'=', ..] | [] => return None,
                _ => continue,
            };
            if place.is_present() {
                return None;
            }
            *place = Span { start: start + name, end: param.end };
        }
        self.note_unique_branch(message);
        (!host.is_empty()).then_some(cursor.at())
    }

    /// Reads any value that the grammar allows.
    #[cold]
    fn by_grammar(&mut self, message: &[u8], span: Span) -> bool {
        by_grammar(message, span).map(|via| *self = via).is_some()
    }

    /// Keeps a parameter we know; `None` if it stands there a second time, or needs a value and has none.
    fn keep(&mut self, message: &[u8], param: Param) -> Option<()> {
        let (place, span) = match param.name.len() {
            2 if param.is(message, TOKEN_PARAM) => (&mut self.token, param.value?),
            4 if param.is(message, b"keep") => {
                // Nobody's way home depends on it: twice is no error, and one that has a value is not asked for one.
                if param.value.is_none() && !self.keep.is_present() {
                    self.keep = param.whole;
                }
                return Some(());
            }
            5 if param.is(message, b"rport") => (&mut self.rport, param.whole),
            6 if param.is(message, b"branch") => (&mut self.branch, param.value?),
            8 if param.is(message, b"received") => (&mut self.received, param.whole),
            _ => {
                self.has_overload |= is_overload(message, &param);
                return Some(());
            }
        };
        let is_first = !place.is_present();
        *place = span;
        is_first.then_some(())
    }

    /// The parameters of overload control (RFC 7339 4), each from its semicolon to its end.
    pub fn overload_params(&self, message: &[u8]) -> impl Iterator<Item = Span> {
        let mut cursor = Cursor::new(message, Span { start: self.sent_by.end, end: self.whole.end });
        core::iter::from_fn(move || next_param(&mut cursor).ok().flatten())
            .filter(|param| is_overload(message, param))
            .map(|param| param.whole)
    }

    #[inline(always)]
    fn note_unique_branch(&mut self, message: &[u8]) {
        let branch = self.branch.of(message);
        self.is_unique = branch.len() > COOKIE.len()
            && branch.first_chunk().is_some_and(|start| start == COOKIE || start.eq_ignore_ascii_case(COOKIE));
    }

    /// The value of `received`, if there is one.
    #[inline(always)]
    pub fn received_value<'a>(&self, message: &'a [u8]) -> Option<&'a [u8]> {
        value_of(self.received, message, b";received=")
    }

    /// The value of `rport`, if it has one.
    #[inline(always)]
    pub fn rport_value<'a>(&self, message: &'a [u8]) -> Option<&'a [u8]> {
        value_of(self.rport, message, b";rport=")
    }
}

/// The value of a parameter that fills `whole` from its semicolon on, mostly with `start`, which ends with the equals sign.
#[inline(always)]
fn value_of<'a, const N: usize>(whole: Span, message: &'a [u8], start: &[u8; N]) -> Option<&'a [u8]> {
    if let Some((found, value)) = whole.of(message).split_first_chunk()
        && found == start
    {
        return Some(grammar::trim(value));
    }
    let end = whole.end as usize;
    let equals = find(message, whole.start as usize, end, [b'=']);
    (equals < end).then(|| grammar::trim(&message[equals + 1..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Via> {
        parse(text.as_bytes(), Span::new(0, text.len()))
    }

    fn of(text: &str, span: Span) -> &str {
        core::str::from_utf8(span.of(text.as_bytes())).unwrap()
    }

    #[test]
    fn an_everyday_via_comes_apart() {
        let text = " SIP/2.0/UDP 198.51.100.7:5062;branch=z9hG4bK-1;rport";
        let via = read(text).unwrap();
        assert_eq!(of(text, via.sent_by), "198.51.100.7:5062");
        assert_eq!(of(text, via.host), "198.51.100.7");
        assert_eq!(via.port, 5062);
        assert_eq!(of(text, via.branch), "z9hG4bK-1");
        assert_eq!(of(text, via.rport), ";rport");
        assert_eq!(via.rport_value(text.as_bytes()), None);
        assert_eq!(of(text, via.whole), text.trim());
        assert_eq!(via.comma, 0);
    }

    #[test]
    fn a_via_of_ours_is_an_everyday_one() {
        let text = " SIP/2.0/UDP 192.0.2.1:40001;branch=z9hG4bK0123456789abcdef;vh=00c6336407~a~b;vl=01234567";
        let mut via = Via::default();
        assert_eq!(via.everyday(text.as_bytes(), Span::new(0, text.len())), Some(text.len()));
        assert_eq!(of(text, via.token), "00c6336407~a~b");
    }

    /// The short way says nothing that the long way does not say.
    #[test]
    fn everyday_values_are_read_as_the_grammar_reads_them() {
        let pieces = [
            "",
            ";",
            ";;",
            "=",
            ",",
            ":",
            "\"",
            "[",
            "]",
            "<",
            "/",
            " ",
            "\t",
            "\r\n ",
            "a",
            "host",
            "192.0.2.1",
            "5060",
            "99999",
            ";branch=z9hG4bK-1",
            ";branch=",
            ";branch",
            ";BRANCH=x",
            ";rport",
            ";rport=",
            ";rport=1",
            ";rportx",
            ";Rport",
            ";received=192.0.2.1",
            ";received",
            ";vh=abc",
            ";vh=",
            ";VH=a",
            ";vl=1f",
            ";vl=",
            ";keep",
            ";keep=30",
            ";Keep",
            ";k",
            ";i=1",
            ";x=\"a;b\"",
            ";alias",
            ";oc",
            ";OC=1",
            ";other",
            ";b",
            ";maddr=a",
            "[2001:db8::1]",
            ";r",
            ";v",
        ];
        let mut everyday_count = 0;
        let starts =
            [" SIP/2.0/UDP host", " SIP/2.0/UDP host:5060", " SIP/2.0/UDP ", " SIP/2.0/TCP host", "SIP/2.0/UDP h", ""];
        for start in starts {
            for first in pieces {
                for second in pieces {
                    for third in pieces {
                        let text = format!("{start}{first}{second}{third}");
                        let mut via = Via::default();
                        if via.everyday(text.as_bytes(), Span::new(0, text.len())) == Some(text.len()) {
                            assert_eq!(Some(via), by_grammar(text.as_bytes(), Span::new(0, text.len())), "{text}");
                            everyday_count += 1;
                        }
                    }
                }
            }
        }
        assert!(everyday_count > 1000, "{everyday_count}");
    }

    #[test]
    fn folds_and_blanks_may_stand_wherever_the_grammar_has_them() {
        let text = "  SIP  / 2.0\r\n /UDP\r\n    192.0.2.2 : 5061 ; branch= 390skdjuw ,";
        let via = read(text).unwrap();
        assert_eq!(of(text, via.host), "192.0.2.2");
        assert_eq!(of(text, via.sent_by), "192.0.2.2 : 5061");
        assert_eq!(via.port, 5061);
        assert_eq!(of(text, via.branch), "390skdjuw");
        assert_ne!(via.comma, 0);
    }

    #[test]
    fn quoted_values_hide_commas_and_semicolons() {
        for (text, branch) in [
            (r#" SIP/2.0/UDP a;x="q,b;c\"d";branch=z9hG4bK-1;rport, SIP/2.0/TCP b"#, "z9hG4bK-1"),
            (r#" SIP/2.0/UDP a;oc;oc-algo="loss,rate";branch=z9hG4bK-2"#, "z9hG4bK-2"),
        ] {
            assert_eq!(of(text, read(text).unwrap().branch), branch);
        }
    }

    #[test]
    fn parameters_of_overload_control_are_found_wherever_they_stand() {
        for (text, found) in [
            (r#" SIP/2.0/UDP a;branch=z9hG4bK-1;rport;oc;oc-algo="loss,rate""#, r#";oc ;oc-algo="loss,rate""#),
            (
                "SIP/2.0/UDP a:5060;OC=10;branch=1 ; oc-seq = 7.1;x;oc-validity=500",
                ";OC=10  ; oc-seq = 7.1 ;oc-validity=500",
            ),
            (" SIP/2.0/UDP a;branch=1;oca;oc-x;o=oc", ""),
        ] {
            let via = read(text).unwrap();
            let spans: Vec<&str> = via.overload_params(text.as_bytes()).map(|span| of(text, span)).collect();
            assert_eq!(spans.join(" "), found);
            assert_eq!(via.has_overload, !found.is_empty(), "{text}");
        }
    }

    #[test]
    fn ipv6_references_are_hosts() {
        let text = " SIP/2.0/UDP [2001:db8::9:1]:6050;received=2001:db8::9:255;branch=z9hG4bKas3-111";
        let via = read(text).unwrap();
        assert_eq!(of(text, via.host), "[2001:db8::9:1]");
        assert_eq!(via.port, 6050);
        assert_eq!(via.received_value(text.as_bytes()), Some(&b"2001:db8::9:255"[..]));
    }

    /// As each proxy on the way reads it: a quote or a bracket that no grammar has there begins something for one of them.
    #[test]
    fn nothing_that_quotes_or_brackets_stands_where_it_does_not_belong() {
        for octet in ['"', '<', '>', '[', '\t'] {
            for start in [" SIP/2.0/UDP a", " SIP/2.0/UDP [::1", " SIP/2.0/UDP a;x", " SIP/2.0/UDP a;x=y"] {
                let end = if start.contains('[') { "b]" } else { "b" };
                let text = format!("{start}{octet}{end}");
                let is_harmless = octet == '[' && start.contains(';');
                assert_eq!(read(&text).is_some(), is_harmless, "{text}");
            }
        }
        for octet in [',', ';', '?', '@'] {
            assert!(read(&format!(" SIP/2.0/UDP [::1{octet}b]")).is_none(), "{octet}");
        }
    }

    #[test]
    fn what_a_server_noted_is_read_in_every_spelling() {
        for text in [
            ";received=192.0.2.1;rport=5060",
            " ; Received = 192.0.2.1 ;RPORT= 5060",
            ";received= 192.0.2.1 ;rport=5060",
        ] {
            let text = format!(" SIP/2.0/UDP a{text}");
            let via = read(&text).unwrap();
            assert_eq!(via.received_value(text.as_bytes()), Some(&b"192.0.2.1"[..]), "{text}");
            assert_eq!(via.rport_value(text.as_bytes()), Some(&b"5060"[..]), "{text}");
        }
    }

    #[test]
    fn keep_alives_are_offered_by_the_first_keep_that_has_no_value() {
        for (text, keep) in [
            (" SIP/2.0/UDP a;Test", ""),
            (" SIP/2.0/UDP a;keep=30", ""),
            (" SIP/2.0/UDP a;keep=30;keep;x", ";keep"),
            (" SIP/2.0/UDP a;Keep ;keep", ";Keep"),
        ] {
            assert_eq!(of(text, read(text).unwrap().keep), keep, "{text}");
        }
    }

    #[test]
    fn another_value_may_follow_at_once() {
        let text = "SIP/2.0/UDP sbc-1.example,SIP/2.0/UDP b";
        let via = read(text).unwrap();
        assert_eq!((of(text, via.host), &text[via.comma as usize..]), ("sbc-1.example", ",SIP/2.0/UDP b"));
    }

    #[test]
    fn default_ports_are_those_of_the_transport() {
        for (text, port) in [
            (" SIP/2.0/TCP a", 5060),
            (" SIP/2.0/TLS a", 5061),
            ("SIP/2.0/tls a", 5061),
            ("SIP/2.0/WS a", 80),
            ("SIP/2.0/WSS a", 443),
            ("SIP/2.0/SCTP a", 5060),
            (" SIP/2.0/TLS a:5070", 5070),
        ] {
            assert_eq!(read(text).unwrap().port, port, "{text}");
        }
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_refused() {
        for text in [
            "",
            "SIP/2.0/UDP",
            "SIP/2.0/UDP ",
            "SIP/2.0 UDP a",
            "SIP/2.0/UDP[::1]",
            "SIP//UDP a",
            "/2.0/UDP a",
            "SIP/2.0/ a",
            "SIP/2.0/UDP a;;branch=1",
            "SIP/2.0/UDP 192.0.2.15;;,;,,",
            "SIP/2.0/UDP a:port",
            "SIP/2.0/UDP a:99999",
            "SIP/2.0/UDP [::1",
            "SIP/2.0/UDP [:\x02:1]",
            "SIP/2.0/UDP [::1 ]",
            "SIP/2.0/UDP [a, SIP/2.0/UDP b]",
            "SIP/2.0/UDP [a;branch=1]",
            "SIP/2.0/UDP a b",
            "SIP/2.0/UDP a;x=\"open",
            " SIP/2.0/UDP a;branch=1;branch=2",
            " SIP/2.0/UDP a;branch",
        ] {
            assert!(read(text).is_none(), "{text}");
        }
    }

    #[test]
    fn only_a_cookie_with_something_behind_it_makes_a_branch_unique() {
        for (text, unique) in
            [("z9hG4bK-1", true), ("Z9HG4BKabc", true), ("z9hG4bK", false), ("1", false), ("9hG4bK-z", false)]
        {
            let via = format!(" SIP/2.0/UDP a;branch={text}");
            assert_eq!(read(&via).unwrap().is_unique, unique, "{text}");
        }
    }
}
