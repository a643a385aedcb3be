//! `name-addr` and `addr-spec`: what From, To, Route and Record-Route hold.

use super::cursor::{Cursor, next_param};
use super::grammar;
use crate::dataplane::scan::Span;

/// One value: `( name-addr / addr-spec ) *( SEMI generic-param )`. What is not there is [`Span::ABSENT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameAddr {
    /// The value from its first octet to its last, without white space round it.
    pub whole: Span,
    /// The URI, without angle brackets.
    pub uri: Span,
    /// The value of the header parameter `tag` (RFC 3261 19.3). A `tag` inside the URI or the display name is none (RFC
    /// 8217).
    pub tag: Span,
    /// The offset of the comma behind the value, if another value follows in the same row; else 0.
    pub comma: u32,
}

/// Reads the first value of `span`. `None` if it does not follow the grammar.
#[inline(always)]
pub fn parse(message: &[u8], span: Span) -> Option<NameAddr> {
    let mut value = NameAddr::default();
    value.read(message, span).then_some(value)
}

impl NameAddr {
    /// [`parse`] in place: a struct that is returned is copied, and a copy of what was just written has to wait for it.
    #[inline(always)]
    pub fn read(&mut self, message: &[u8], span: Span) -> bool {
        self.everyday(message, span).is_some() || self.by_grammar(message, span)
    }

    /// Reads a value as practically all are written: one space in front, a quoted display name or none, angle brackets,
    /// and a tag as the only parameter, if any. `None` says only that it is not such a value.
    #[inline(always)]
    fn everyday(&mut self, message: &[u8], span: Span) -> Option<()> {
        let mut cursor = Cursor::new(message, span);
        if !cursor.take(b' ') {
            return None;
        }
        if cursor.peek() == Some(b'"') {
            cursor.take_quoted()?;
            if !cursor.take(b' ') {
                return None;
            }
        }
        if !cursor.take(b'<') {
            return None;
        }
        let uri = cursor.take_through(b'>')?;
        *self = NameAddr { whole: Span { start: span.start + 1, end: span.end }, uri, tag: Span::ABSENT, comma: 0 };
        if cursor.take_text(b";tag=") {
            self.tag = cursor.take_until([b';', b',', b'"', b'<', b'>']);
            if self.tag.is_empty() {
                return None;
            }
        }
        (cursor.is_done() && !uri.is_empty()).then_some(())
    }

    /// Reads any value that the grammar allows.
    #[cold]
    fn by_grammar(&mut self, message: &[u8], span: Span) -> bool {
        by_grammar(message, span).map(|value| *self = value).is_some()
    }
}

/// Reads any value that the grammar allows.
fn by_grammar(message: &[u8], span: Span) -> Option<NameAddr> {
    let mut cursor = Cursor::new(message, span);
    cursor.skip_lws();
    let start = cursor.at();
    let uri = uri(&mut cursor)?;
    let mut value = NameAddr { whole: Span::new(start, cursor.at()), uri, ..NameAddr::default() };
    while let Some(param) = next_param(&mut cursor).ok()? {
        value.whole.end = param.whole.end;
        if param.is(message, b"tag") && !value.tag.is_present() {
            value.tag = param.value.unwrap_or_default();
        }
    }
    cursor.skip_lws();
    match cursor.peek() {
        None => {}
        Some(b',') => value.comma = cursor.at() as u32,
        Some(_) => return None,
    }
    Some(value)
}

/// `name-addr = [ display-name ] LAQUOT addr-spec RAQUOT`, `display-name = *(token LWS) / quoted-string`
///
/// The cursor is left behind the URI and its bracket.
fn uri(cursor: &mut Cursor<'_>) -> Option<Span> {
    if cursor.peek() == Some(b'"') {
        cursor.take_quoted()?;
        cursor.skip_lws();
        return in_brackets(cursor);
    }
    let before_name = cursor.clone();
    loop {
        let word = cursor.take_while(grammar::DISPLAY_NAME);
        cursor.skip_lws();
        if cursor.peek() == Some(b'<') {
            return in_brackets(cursor);
        }
        if word.is_empty() {
            break;
        }
    }
    *cursor = before_name;
    let bare = cursor.take_while(grammar::BARE_URI);
    (!bare.is_empty()).then_some(bare)
}

fn in_brackets(cursor: &mut Cursor<'_>) -> Option<Span> {
    if !cursor.take(b'<') {
        return None;
    }
    cursor.take_through(b'>').filter(|uri| !uri.is_empty())
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
            (
                r#""LB, main \"<sip:fake;lr>\"" <sip:192.0.2.100;LR;x="a,b">;hp=1"#,
                r#"sip:192.0.2.100;LR;x="a,b""#,
                None,
            ),
            ("sip:a@b;tag=1", "sip:a@b", Some("1")),
            ("tel:+49;tag=2", "tel:+49", Some("2")),
            ("<sip:a@b>;tag=1;tag=2", "sip:a@b", Some("1")),
            ("caller<sip:caller@example.com>;tag=323", "sip:caller@example.com", Some("323")),
            ("J\u{f6}rg <sip:j@example.net>", "sip:j@example.net", None),
            ("\r\n \"\" \r\n <sip:j@example.net>", "sip:j@example.net", None),
        ] {
            let value = read(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(of(text, value.uri), uri, "{text}");
            assert_eq!(value.tag.is_present().then(|| of(text, value.tag)), tag, "{text}");
            assert_eq!(value.comma, 0);
        }
    }

    /// The short way says nothing that the long way does not say.
    #[test]
    fn everyday_values_are_read_as_the_grammar_reads_them() {
        let pieces = [
            "",
            " ",
            "\"",
            "\\",
            "<",
            ">",
            ";",
            ";tag=1",
            ";tag=",
            ";tag",
            ";TAG=2",
            ";x=1",
            ";x=\"<\"",
            ",",
            "sip:a@b",
            "Bob",
            "\r\n ",
            "\"Bob\" ",
            "<sip:a@b>",
            "<>",
            "\t",
            "\"a\\\"b\"",
        ];
        let mut everyday_count = 0;
        for first in pieces {
            for second in pieces {
                for third in pieces {
                    for fourth in pieces {
                        let text = format!(" {first}{second}{third}{fourth}");
                        let mut value = NameAddr::default();
                        if value.everyday(text.as_bytes(), Span::new(0, text.len())).is_some() {
                            assert_eq!(Some(value), by_grammar(text.as_bytes(), Span::new(0, text.len())), "{text}");
                            everyday_count += 1;
                        }
                    }
                }
            }
        }
        assert!(everyday_count > 100, "{everyday_count}");
    }

    #[test]
    fn a_comma_outside_quotes_and_brackets_ends_the_value() {
        let text = r#""a,b" <sip:x?h=a,b>;p="c,d" , <sip:y>"#;
        let value = read(text).unwrap();
        assert_eq!(of(text, value.uri), "sip:x?h=a,b");
        assert_eq!(of(text, value.whole), r#""a,b" <sip:x?h=a,b>;p="c,d""#);
        assert_eq!(&text[value.comma as usize..], ", <sip:y>");
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_refused() {
        for text in [
            "",
            "\"Mr. J. User <sip:j@example.com>",
            "<sip:a@b",
            "<>",
            "a <sip:x> b",
            "<sip:x>;;tag=1",
            "<sip:x>;tag=\"1",
        ] {
            assert!(read(text).is_none(), "{text}");
        }
    }
}
