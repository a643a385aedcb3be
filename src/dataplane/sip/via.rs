//! One Via hop: sent-by, branch, received, rport, and the parameter that is ours.

use super::cursor::{Cursor, Param, next_param};
use super::grammar;
use crate::dataplane::scan::Span;

/// The name of the parameter in which our own Via carries its token, lower-case.
pub const TOKEN_PARAM: &[u8] = b"vh";

/// `z9hG4bK`: a branch that begins with it is unique to its transaction (RFC 3261 8.1.1.7). Compared without regard to
/// case, as tokens are (7.3.1).
pub const COOKIE: &[u8] = b"z9hG4bK";

/// The first value of a Via row.
///
/// `via-parm = sent-protocol LWS sent-by *( SEMI via-params )`, `sent-by = host [ COLON port ]`
#[derive(Clone, Copy, Debug)]
pub struct Via {
    /// The transport token of sent-protocol, such as `UDP`.
    pub transport: Span,
    /// The host of sent-by, with the brackets of an IPv6 reference.
    pub host: Span,
    /// The port of sent-by, if written.
    pub port: Option<u16>,
    /// The whole of sent-by.
    pub sent_by: Span,
    /// The value of `branch`.
    pub branch: Option<Span>,
    /// `received`: the address a server saw the message come from (18.2.1).
    pub received: Option<Param>,
    /// `rport`: the port likewise (RFC 3581).
    pub rport: Option<Param>,
    /// The value of our own parameter.
    pub token: Option<Span>,
    /// The value from its first octet to its last, without white space round it.
    pub whole: Span,
    /// Whether a comma follows, and with it another value in the same row; then its offset.
    pub comma: Option<u32>,
}


/// Reads the first value of `span`, the value of a Via row. `None` if it does not follow the grammar; a parameter that
/// may stand once and stands twice does not.
#[inline(always)]
pub fn parse(message: &[u8], span: Span) -> Option<Via> {
    let mut cursor = Cursor::new(message, span);
    cursor.skip_lws();
    let start = cursor.at();
    // What everybody writes, at once; what the grammar allows besides, token by token.
    if !cursor.take_text(b"sip/2.0/") {
        for _ in 0..2 {
            take_token(&mut cursor)?;
            if !cursor.take_separator(b'/') {
                return None;
            }
        }
    }
    let transport = take_token(&mut cursor)?;
    if !cursor.peek().is_some_and(grammar::is_lws) {
        return None;
    }
    cursor.skip_lws();
    let host = take_host(&mut cursor)?;
    let mut port = None;
    if cursor.take(b':') || cursor.take_separator(b':') {
        port = Some(u16::try_from(grammar::number(cursor.take_while(grammar::DIGIT).of(message))?).ok()?);
    }
    let mut via = Via {
        transport,
        host,
        port,
        sent_by: Span { start: host.start, end: if port.is_some() { cursor.at() as u32 } else { host.end } },
        branch: None,
        received: None,
        rport: None,
        token: None,
        whole: Span::new(start, cursor.at()),
        comma: None,
    };
    while let Some(param) = next_param(&mut cursor).ok()? {
        via.whole.end = param.whole.end;
        via.keep(message, param)?;
    }
    cursor.skip_lws();
    match cursor.peek() {
        None => {}
        Some(b',') => via.comma = Some(cursor.at() as u32),
        Some(_) => return None,
    }
    Some(via)
}

#[inline(always)]
fn take_token(cursor: &mut Cursor<'_>) -> Option<Span> {
    let token = cursor.take_while(grammar::TOKEN);
    (token.start != token.end).then_some(token)
}

#[inline(always)]
fn take_host(cursor: &mut Cursor<'_>) -> Option<Span> {
    if cursor.peek() == Some(b'[') {
        let start = cursor.at();
        cursor.take_through(b']')?;
        return Some(Span::new(start, cursor.at()));
    }
    let host = cursor.take_while(grammar::HOST);
    (host.start != host.end).then_some(host)
}

impl Via {
    /// Keeps a parameter we know; `None` if it stands there a second time, or needs a value and has none.
    #[inline(always)]
    fn keep(&mut self, message: &[u8], param: Param) -> Option<()> {
        match param.name.end - param.name.start {
            2 if param.is(message, TOKEN_PARAM) => set(&mut self.token, param.value?),
            5 if param.is(message, b"rport") => set(&mut self.rport, param),
            6 if param.is(message, b"branch") => set(&mut self.branch, param.value?),
            8 if param.is(message, b"received") => set(&mut self.received, param),
            _ => Some(()),
        }
    }

    /// The branch, if it is one that RFC 3261 promises to be unique: the cookie and something behind it.
    #[inline(always)]
    pub fn unique_branch<'a>(&self, message: &'a [u8]) -> Option<&'a [u8]> {
        let branch = self.branch?.of(message);
        let (cookie, rest) = branch.split_at_checked(COOKIE.len())?;
        (cookie.eq_ignore_ascii_case(COOKIE) && !rest.is_empty()).then_some(branch)
    }

    /// The port a response without `rport` goes to (RFC 3261 18.2.2).
    pub const fn port_or_default(&self) -> u16 {
        match self.port {
            Some(port) => port,
            None => 5060,
        }
    }
}

#[inline(always)]
fn set<T>(place: &mut Option<T>, value: T) -> Option<()> {
    match place {
        Some(_) => None,
        None => {
            *place = Some(value);
            Some(())
        }
    }
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
        let text = " SIP/2.0/UDP 198.51.100.7:5062;branch=z9hG4bK-1;rport ";
        let via = read(text).unwrap();
        assert_eq!(of(text, via.transport), "UDP");
        assert_eq!(of(text, via.host), "198.51.100.7");
        assert_eq!(via.port, Some(5062));
        assert_eq!(of(text, via.branch.unwrap()), "z9hG4bK-1");
        assert!(via.rport.unwrap().value.is_none());
        assert_eq!(of(text, via.rport.unwrap().whole), ";rport");
        assert_eq!(of(text, via.whole), text.trim());
        assert!(via.comma.is_none());
    }

    #[test]
    fn folds_and_blanks_may_stand_wherever_the_grammar_has_them() {
        let text = "  SIP  / 2.0\r\n /UDP\r\n    192.0.2.2 : 5060 ; branch = 390skdjuw ,";
        let via = read(text).unwrap();
        assert_eq!(of(text, via.host), "192.0.2.2");
        assert_eq!(via.port, Some(5060));
        assert_eq!(of(text, via.branch.unwrap()), "390skdjuw");
        assert!(via.comma.is_some());
    }

    #[test]
    fn quoted_values_hide_commas_and_semicolons() {
        for (text, branch) in [
            (r#"SIP/2.0/UDP a;x="q,b;c\"d";branch=z9hG4bK-1;rport, SIP/2.0/TCP b"#, "z9hG4bK-1"),
            (r#"SIP/2.0/UDP a;oc;oc-algo="loss,rate";branch=z9hG4bK-2"#, "z9hG4bK-2"),
        ] {
            assert_eq!(of(text, read(text).unwrap().branch.unwrap()), branch);
        }
    }

    #[test]
    fn ipv6_references_are_hosts() {
        let text = "SIP/2.0/UDP [2001:db8::9:1]:6050;received=2001:db8::9:255;branch=z9hG4bKas3-111";
        let via = read(text).unwrap();
        assert_eq!(of(text, via.host), "[2001:db8::9:1]");
        assert_eq!(via.port, Some(6050));
        assert_eq!(of(text, via.received.unwrap().value.unwrap()), "2001:db8::9:255");
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_refused() {
        for text in [
            "",
            "SIP/2.0/UDP",
            "SIP/2.0/UDP ",
            "SIP/2.0 UDP a",
            "SIP/2.0/UDP a;;branch=1",
            "SIP/2.0/UDP 192.0.2.15;;,;,,",
            "SIP/2.0/UDP a:port",
            "SIP/2.0/UDP a:99999",
            "SIP/2.0/UDP [::1",
            "SIP/2.0/UDP a b",
            "SIP/2.0/UDP a;x=\"open",
            "SIP/2.0/UDP a;branch=1;branch=2",
            "SIP/2.0/UDP a;branch",
        ] {
            assert!(read(text).is_none(), "{text}");
        }
    }

    #[test]
    fn only_a_cookie_with_something_behind_it_makes_a_branch_unique() {
        for (text, unique) in
            [("z9hG4bK-1", true), ("Z9HG4BKabc", true), ("z9hG4bK", false), ("1", false), ("9hG4bK-z", false)]
        {
            let via = format!("SIP/2.0/UDP a;branch={text}");
            assert_eq!(read(&via).unwrap().unique_branch(via.as_bytes()).is_some(), unique, "{text}");
        }
    }
}
