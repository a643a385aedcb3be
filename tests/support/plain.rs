//! A reader of messages that takes its time: it splits text, and has nothing in common with the data plane's scanner and
//! parsers but RFC 3261.
//!
//! It reads what viahop forwards or writes, so it is as strict as that has to be: CRLF alone ends a line.

/// A message in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The first line, without its line end.
    pub start_line: &'a [u8],
    /// The header rows, in order.
    pub rows: Vec<Row<'a>>,
    /// What is behind the empty line.
    pub body: &'a [u8],
}

/// A header row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The name in lower case and in full: `via` for `v`.
    pub name: String,
    /// The row as it stands, with folded lines and all line ends.
    pub text: &'a [u8],
    /// What is behind the colon, without white space round it.
    pub value: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads `octets`; `None` for a CR or LF alone in the header section, a line without a name and a colon, or a
    /// header section that does not end.
    pub fn read(octets: &'a [u8]) -> Option<Message<'a>> {
        let mut rest = octets;
        while let Some(behind) = rest.strip_prefix(b"\r\n") {
            rest = behind;
        }
        let (start_line, mut rest) = take_line(rest)?;
        let mut rows: Vec<Row<'a>> = Vec::new();
        loop {
            let from = rest;
            let (line, behind) = take_line(rest)?;
            rest = behind;
            if line.is_empty() {
                return Some(Message { start_line, rows, body: rest });
            }
            let with_end = &from[..from.len() - rest.len()];
            if is_blank(line[0]) {
                let row = rows.last_mut()?;
                let start = offset_in(octets, row.text);
                let end = offset_in(octets, with_end) + with_end.len();
                row.text = &octets[start..end];
                row.value = value_of(row.text)?;
            } else {
                let colon = line.iter().position(|&octet| octet == b':')?;
                rows.push(Row { name: full_name(&line[..colon]), text: with_end, value: value_of(with_end)? });
            }
        }
    }

    /// The values of all rows called `name`, in order: rows are split at their commas.
    pub fn values(&self, name: &str) -> Vec<&'a [u8]> {
        self.rows.iter().filter(|row| row.name == name).flat_map(|row| split(row.value, b',')).collect()
    }

    /// The first row called `name`.
    pub fn row(&self, name: &str) -> Option<&Row<'a>> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// The body, as long as Content-Length says it is.
    pub fn announced_body(&self) -> &'a [u8] {
        let announced = self.row("content-length").map(|row| number(row.value).expect("digits, in what was accepted"));
        &self.body[..announced.map_or(self.body.len(), |len| len as usize)]
    }
}

/// A value with parameters: `head *( ";" name [ "=" value ] )`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameterized<'a> {
    /// What is before the first semicolon.
    pub head: &'a [u8],
    /// The parameters: names in lower case, values as they are.
    pub params: Vec<(String, Option<&'a [u8]>)>,
}

impl<'a> Parameterized<'a> {
    /// Takes `value` apart.
    pub fn read(value: &'a [u8]) -> Parameterized<'a> {
        let mut parts = split(value, b';').into_iter();
        let head = parts.next().unwrap_or_default();
        let params = parts.map(|part| match part.iter().position(|&octet| octet == b'=') {
            None => (lower(part), None),
            Some(at) => (lower(trim(&part[..at])), Some(trim(&part[at + 1..]))),
        });
        Parameterized { head, params: params.collect() }
    }

    /// The value of the parameter `name`, if it is there: `Some(None)` if it has none.
    pub fn param(&self, name: &str) -> Option<Option<&'a [u8]>> {
        self.params.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    /// All parameters but these.
    pub fn without(&self, names: &[&str]) -> Vec<&(String, Option<&'a [u8]>)> {
        self.params.iter().filter(|(name, _)| !names.contains(&name.as_str())).collect()
    }
}

/// The parts of `value` between `separator`s that stand neither in quotes nor in angle brackets, trimmed.
pub fn split(value: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut in_quotes, mut in_brackets, mut escaped) = (false, false, false);
    for (at, &octet) in value.iter().enumerate() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if in_quotes => escaped = true,
            b'"' if !in_brackets => in_quotes = !in_quotes,
            b'<' if !in_quotes => in_brackets = true,
            b'>' if !in_quotes => in_brackets = false,
            _ if octet == separator && !in_quotes && !in_brackets => {
                parts.push(trim(&value[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(trim(&value[start..]));
    parts
}

/// `text` without white space and line ends round it.
pub fn trim(text: &[u8]) -> &[u8] {
    let is_space = |octet: &u8| b" \t\r\n".contains(octet);
    let start = text.iter().position(|octet| !is_space(octet)).unwrap_or(text.len());
    let end = text.iter().rposition(|octet| !is_space(octet)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// Digits as a number.
pub fn number(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| all_digits)?.parse().ok()
}

/// `text` in lower case, for names and for messages to people.
pub fn lower(text: &[u8]) -> String {
    String::from_utf8_lossy(text).to_ascii_lowercase()
}

/// The octets up to the next CRLF, and those behind it. `None` if a CR or an LF stands alone before it.
fn take_line(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = octets.iter().position(|&octet| octet == b'\r' || octet == b'\n')?;
    octets[end..].strip_prefix(b"\r\n").map(|rest| (&octets[..end], rest))
}

/// The whole of what is behind the colon of a row.
fn value_of(row: &[u8]) -> Option<&[u8]> {
    let colon = row.iter().position(|&octet| octet == b':')?;
    Some(trim(&row[colon + 1..]))
}

/// Compact forms in full (RFC 3261 7.3.3), as far as the data plane has an eye on them.
fn full_name(name: &[u8]) -> String {
    let name = lower(trim(name));
    match name.as_str() {
        "f" => "from".into(),
        "i" => "call-id".into(),
        "k" => "supported".into(),
        "l" => "content-length".into(),
        "t" => "to".into(),
        "v" => "via".into(),
        _ => name,
    }
}

fn is_blank(octet: u8) -> bool {
    octet == b' ' || octet == b'\t'
}

/// Where in `whole` its part `part` begins.
fn offset_in(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}
