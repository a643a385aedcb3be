//! `name-addr` and `addr-spec`: what From, To, Route and Record-Route hold.

use super::cursor::{Cursor, next_param};
use super::grammar;
use crate::dataplane::scan::Span;

/// One value: `( name-addr / addr-spec ) *( SEMI generic-param )`.
#[derive(Clone, Copy, Debug)]
pub struct NameAddr {
    /// The URI, without angle brackets.
    pub uri: Span,
    /// The value of the header parameter `tag` (RFC 3261 19.3). A `tag` inside the URI or the display name is none (RFC
    /// 8217).
    pub tag: Option<Span>,
    /// The value from its first octet to its last, without white space round it.
    pub whole: Span,
    /// Whether a comma follows, and with it another value in the same row; then its offset.
    pub comma: Option<u32>,
}

/// Reads the first value of `span`. `None` if it does not follow the grammar.
#[inline(always)]
pub fn parse(message: &[u8], span: Span) -> Option<NameAddr> {
    let mut cursor = Cursor::new(message, span);
    cursor.skip_lws();
    let start = cursor.at();
    let uri = uri(&mut cursor)?;
    let mut end = cursor.at();
    let mut tag = None;
    while let Some(param) = next_param(&mut cursor).ok()? {
        end = param.whole.end as usize;
        if param.name.end - param.name.start == 3 && param.is(message, b"tag") {
            tag = tag.or(param.value);
        }
    }
    cursor.skip_lws();
    let comma = match cursor.peek() {
        None => None,
        Some(b',') => Some(cursor.at() as u32),
        Some(_) => return None,
    };
    Some(NameAddr { uri, tag, whole: Span::new(start, end), comma })
}

/// `name-addr = [ display-name ] LAQUOT addr-spec RAQUOT`, `display-name = *(token LWS) / quoted-string`
///
/// The cursor is left behind the URI and its bracket.
#[inline(always)]
fn uri(cursor: &mut Cursor<'_>) -> Option<Span> {
    if cursor.peek() == Some(b'"') {
        cursor.take_quoted()?;
        cursor.skip_lws();
        return in_brackets(cursor);
    }
    if cursor.peek() == Some(b'<') {
        return in_brackets(cursor);
    }
    let before_name = cursor.clone();
    loop {
        let word = cursor.take_while(grammar::DISPLAY_NAME);
        cursor.skip_lws();
        if cursor.peek() == Some(b'<') {
            return in_brackets(cursor);
        }
        if word.start == word.end {
            break;
        }
    }
    *cursor = before_name;
    let bare = cursor.take_while(grammar::BARE_URI);
    (bare.start != bare.end).then_some(bare)
}

#[inline(always)]
fn in_brackets(cursor: &mut Cursor<'_>) -> Option<Span> {
    if !cursor.take(b'<') {
        return None;
    }
    cursor.take_through(b'>').filter(|uri| uri.start != uri.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<NameAddr> {
        parse(text.as_bytes(), Span::new(0, text.len()))
    }

    fn of(text: &str, span: Span) -> &str {
        core::str::from_utf8(span.of(text.as_bytes())).unwrap()
    }

    #[test]
    fn uri_and_tag_are_found_in_every_form() {
        for (text, uri, tag) in [
            (r#""Alice" <sip:alice@example.net>;tag=a1"#, "sip:alice@example.net", Some("a1")),
            ("Alice  B. <sip:alice@example.net> ; x ; TAG = a1 ", "sip:alice@example.net", Some("a1")),
            ("<sip:bob@example.net;tag=notatag>", "sip:bob@example.net;tag=notatag", None),
            (r#""x;tag=q" <sip:bob@example.net>"#, "sip:bob@example.net", None),
            (r#""LB, main \"<sip:fake;lr>\"" <sip:192.0.2.100;LR;x="a,b">;hp=1"#, r#"sip:192.0.2.100;LR;x="a,b""#, None),
            ("sip:a@b;tag=1", "sip:a@b", Some("1")),
            ("tel:+49;tag=2", "tel:+49", Some("2")),
            ("caller<sip:caller@example.com>;tag=323", "sip:caller@example.com", Some("323")),
            ("J\u{f6}rg <sip:j@example.net>", "sip:j@example.net", None),
            ("\r\n \"\" \r\n <sip:j@example.net>", "sip:j@example.net", None),
        ] {
            let value = read(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(of(text, value.uri), uri, "{text}");
            assert_eq!(value.tag.map(|tag| of(text, tag)), tag, "{text}");
            assert!(value.comma.is_none());
        }
    }

    #[test]
    fn a_comma_outside_quotes_and_brackets_ends_the_value() {
        let text = r#""a,b" <sip:x?h=a,b>;p="c,d" , <sip:y>"#;
        let value = read(text).unwrap();
        assert_eq!(of(text, value.uri), "sip:x?h=a,b");
        assert_eq!(of(text, value.whole), r#""a,b" <sip:x?h=a,b>;p="c,d""#);
        assert_eq!(value.comma.map(|at| &text[at as usize..]), Some(", <sip:y>"));
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_refused() {
        for text in ["", "\"Mr. J. User <sip:j@example.com>", "<sip:a@b", "<>", "a <sip:x> b", "<sip:x>;;tag=1", "<sip:x>;tag=\"1"] {
            assert!(read(text).is_none(), "{text}");
        }
    }
}
