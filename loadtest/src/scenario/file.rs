//! What is written in a scenario file, and how it becomes a [`Scenario`].

use super::{Body, Pause, Problem, Receive, STEPS_MAX, Scenario, Send, Step};
use crate::clock;
use crate::sip::message::Method;
use serde::Deserialize;
use std::ops::Range;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Box<str>,
    #[serde(default)]
    about: Box<str>,
    #[serde(default = "callee")]
    callee: Spanned<Box<str>>,
    step: Vec<Spanned<FileStep>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStep {
    send: Option<Spanned<Box<str>>>,
    pause: Option<Spanned<Box<str>>>,
    receive: Option<Spanned<Box<str>>>,
    within: Option<Spanned<Box<str>>>,
    expires: Option<u32>,
    name: Option<Box<str>>,
    body: Option<FileBody>,
    expect: Option<Spanned<u16>>,
    cancel: Option<Spanned<Box<str>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileBody {
    None,
    Sdp,
    Text,
}

fn callee() -> Spanned<Box<str>> {
    Spanned::new(0..0, "callee".into())
}

/// Methods a caller may be told to send. ACK and CANCEL belong to an INVITE and are sent with it.
const METHODS: [Method; 10] = [
    Method::Bye,
    Method::Info,
    Method::Invite,
    Method::Message,
    Method::Options,
    Method::Publish,
    Method::Register,
    Method::Subscribe,
    Method::Update,
    Method::Refer,
];

pub(super) fn read(origin: &str, text: &str) -> Result<Scenario, Problem> {
    let file: File = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        problem(origin, text, span, error.message())
    })?;
    let wrong = |span: Range<usize>, what: &str| Err(problem(origin, text, span, what));
    if file.step.is_empty() || file.step.len() > STEPS_MAX {
        return wrong(0..0, &format!("a scenario has 1 to {STEPS_MAX} steps, this one {}", file.step.len()));
    }
    let user = file.callee.get_ref();
    if user.is_empty() || !user.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_.+".contains(&octet)) {
        return wrong(file.callee.span(), "the user part of a callee is letters, digits and -_.+");
    }
    let mut steps = Vec::new();
    for step in &file.step {
        let span = step.span();
        let step = step.get_ref();
        let of_send = step.expect.is_some() || step.body.is_some() || step.cancel.is_some() || step.expires.is_some();
        let read = match (&step.send, &step.pause, &step.receive) {
            (Some(_), None, None) if step.within.is_none() => read_send(step).map(Step::Send),
            (None, Some(pause), None) if !of_send && step.within.is_none() => read_pause(pause).map(Step::Pause),
            (None, None, Some(receive)) if !of_send => read_receive(step, receive).map(Step::Receive),
            _ => Err((span, "a step has either `send`, or `receive`, or `pause`, and what belongs to it".to_owned())),
        };
        steps.push(read.map_err(|(span, what)| problem(origin, text, span, &what))?);
    }
    if !matches!(steps.first(), Some(Step::Send(_))) {
        return wrong(file.step[0].span(), "the first step is a request");
    }
    Ok(Scenario { name: file.name, about: file.about, callee: file.callee.into_inner(), steps })
}

type Wrong = (Range<usize>, String);

fn read_send(step: &FileStep) -> Result<Send, Wrong> {
    let send = step.send.as_ref().expect("the caller has seen it");
    let Some(method) = METHODS.into_iter().find(|method| method.name() == &**send.get_ref()) else {
        let names: Vec<&str> = METHODS.iter().map(|method| method.name()).collect();
        let what = match &**send.get_ref() {
            "ACK" | "CANCEL" => {
                "ACK and CANCEL are sent with their INVITE; for the latter write `cancel = \"10ms\"`".to_owned()
            }
            other => format!("`{other}` is not a request a caller sends; these are: {}", names.join(", ")),
        };
        return Err((send.span(), what));
    };
    let expect = step.expect.as_ref().map_or(200, |expect| *expect.get_ref());
    if !(200..700).contains(&expect) {
        let span = step.expect.as_ref().map_or(0..0, Spanned::span);
        return Err((span, format!("{expect} is not a final status code (200 to 699)")));
    }
    if let Some(cancel) = &step.cancel
        && method != Method::Invite
    {
        return Err((cancel.span(), "only an INVITE can be cancelled (RFC 3261 9.1)".to_owned()));
    }
    let cancel_ns = step.cancel.as_ref().map(read_duration).transpose()?;
    let body = match step.body {
        None | Some(FileBody::None) => Body::None,
        Some(FileBody::Sdp) => Body::Sdp,
        Some(FileBody::Text) => Body::Text,
    };
    let name = step.name.clone().unwrap_or_else(|| method.name().into());
    Ok(Send { name, method, expect, body, cancel_ns, expires: step.expires })
}

fn read_receive(step: &FileStep, receive: &Spanned<Box<str>>) -> Result<Receive, Wrong> {
    let methods = [Method::Notify, Method::Bye, Method::Info, Method::Options, Method::Message, Method::Update];
    let Some(method) = methods.into_iter().find(|method| method.name() == &**receive.get_ref()) else {
        let names: Vec<&str> = methods.iter().map(|method| method.name()).collect();
        let what = format!("`{}` is not a request to wait for; these are: {}", receive.get_ref(), names.join(", "));
        return Err((receive.span(), what));
    };
    let within_ns = step.within.as_ref().map_or(Ok(clock::SECOND_NS), read_duration)?;
    Ok(Receive { name: step.name.clone().unwrap_or_else(|| method.name().into()), method, within_ns })
}

fn read_pause(pause: &Spanned<Box<str>>) -> Result<Pause, Wrong> {
    match &**pause.get_ref() {
        "hold" => Ok(Pause::Hold),
        _ => read_duration(pause).map(Pause::Fixed),
    }
}

fn read_duration(text: &Spanned<Box<str>>) -> Result<u64, Wrong> {
    match humantime::parse_duration(text.get_ref()) {
        Ok(duration) => Ok(clock::ns(duration)),
        Err(error) => Err((text.span(), format!("{error}; write 10ms, 2s or 1m30s"))),
    }
}

/// ```text
/// call.toml:5:8: `INVIT` is not a request a caller sends; these are: …
///   5 | send = "INVIT"
///     |        ^^^^^^^
/// ```
fn problem(origin: &str, text: &str, span: Range<usize>, what: &str) -> Problem {
    let start = span.start.min(text.len());
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let number = text[..start].matches('\n').count() + 1;
    let column = text[line_start..start].chars().count() + 1;
    let width = text.get(span.clone()).unwrap_or_default().lines().next().unwrap_or_default().chars().count().max(1);
    let (gutter, gap, carets) = (format!("{number:>4}"), " ".repeat(column - 1), "^".repeat(width));
    Problem(format!("{origin}:{number}:{column}: {what}\n{gutter} | {line}\n     | {gap}{carets}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_line_and_caret() {
        for (steps, said, place) in [
            ("send = \"INVIT\"", "not a request", ":4:8:"),
            ("send = \"CANCEL\"", "with their INVITE", ":4:8:"),
            ("send = \"INVITE\"\nexpect = 180", "not a final", ":5:10:"),
            ("send = \"BYE\"\ncancel = \"1s\"", "only an INVITE", ":5:10:"),
            ("send = \"INVITE\"\ncancel = \"soon\"", "10ms", ":5:10:"),
            ("send = \"INVITE\"\nexpects = 200", "unknown field `expects`", ":5:1:"),
            ("pause = \"1s\"", "first step", ":3:1:"),
            ("pause = \"1s\"\nsend = \"BYE\"", "either", ":3:1:"),
            ("receive = \"ACK\"", "wait for", ":4:11:"),
            ("receive = \"NOTIFY\"\nbody = \"sdp\"", "either", ":3:1:"),
            ("send = \"INVITE\"\nbody = \"json\"", "unknown variant `json`", ":5:8:"),
        ] {
            let text = format!("name = \"x\"\n\n[[step]]\n{steps}\n");
            let problem = read("x.toml", &text).unwrap_err().to_string();
            assert!(problem.contains(said), "{steps}: {problem}");
            assert!(problem.starts_with(&format!("x.toml{place}")), "{steps}: {problem}");
            assert!(problem.contains('^'));
        }
        assert!(read("x.toml", "name = \"x\"\nstep = []").is_err());
        assert!(read("x.toml", "name = \"x").is_err());
        assert!(read("x.toml", "").is_err());
    }
}
