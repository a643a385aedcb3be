//! What is written in a scenario file, and how it becomes a [`Scenario`] or the parts of a mix.

use super::{Body, PARTS_MAX, Pause, Problem, Receive, STEPS_MAX, Scenario, Send, Step};
use crate::clock;
use crate::sip::message::Method;
use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Deserialize;
use std::ops::Range;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Box<str>,
    #[serde(default)]
    about: Box<str>,
    callee: Option<Spanned<Box<str>>>,
    step: Option<Vec<Spanned<FileStep>>>,
    part: Option<Vec<Spanned<FilePart>>>,
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
    #[serde(default)]
    challenge: bool,
    cancel: Option<Spanned<Box<str>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileBody {
    None,
    Sdp,
    Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePart {
    scenario: Spanned<Box<str>>,
    weight: Spanned<f64>,
}

/// What a file turned out to be.
pub(super) enum Content {
    Mix(Vec<(Scenario, f64)>),
    Scenario(Scenario),
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

/// Reads a file. `find` knows the scenarios that a mix names.
pub(super) fn read(
    origin: &str,
    text: &str,
    find: impl Fn(&str) -> Result<Scenario, String>,
) -> Result<Content, Problem> {
    let file: File = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        problem(origin, text, span, error.message())
    })?;
    let read = match (&file.step, &file.part) {
        (Some(steps), None) => read_scenario(&file, steps).map(Content::Scenario),
        (None, Some(parts)) => read_mix(&file, parts, find).map(Content::Mix),
        _ => {
            Err((0..0, "a scenario has [[step]] entries, a mix of scenarios [[part]] entries; no file has both".into()))
        }
    };
    read.map_err(|(span, what)| problem(origin, text, span, &what))
}

fn read_mix(
    file: &File,
    parts: &[Spanned<FilePart>],
    find: impl Fn(&str) -> Result<Scenario, String>,
) -> Result<Vec<(Scenario, f64)>, Wrong> {
    if let Some(callee) = &file.callee {
        return Err((callee.span(), "a mix has no callee; each of its scenarios has one".to_owned()));
    }
    if parts.is_empty() || parts.len() > PARTS_MAX {
        return Err((0..0, format!("a mix has 1 to {PARTS_MAX} parts, this one {}", parts.len())));
    }
    let mut read = Vec::new();
    for part in parts {
        let FilePart { scenario, weight } = part.get_ref();
        if !weight.get_ref().is_finite() || *weight.get_ref() < 0.0 {
            return Err((weight.span(), "a weight is a number that is not below 0".to_owned()));
        }
        read.push((find(scenario.get_ref()).map_err(|why| (scenario.span(), why))?, *weight.get_ref()));
    }
    if read.iter().all(|(_, weight)| *weight == 0.0) {
        return Err((0..0, "no part has a weight above 0".to_owned()));
    }
    Ok(read)
}

fn read_scenario(file: &File, file_steps: &[Spanned<FileStep>]) -> Result<Scenario, Wrong> {
    if file_steps.is_empty() || file_steps.len() > STEPS_MAX {
        return Err((0..0, format!("a scenario has 1 to {STEPS_MAX} steps, this one {}", file_steps.len())));
    }
    let callee = file.callee.as_ref().map_or("callee", |callee| callee.get_ref());
    if callee.is_empty() || !callee.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_.+".contains(&octet)) {
        let span = file.callee.as_ref().map_or(0..0, Spanned::span);
        return Err((span, "the user part of a callee is letters, digits and -_.+".to_owned()));
    }
    let mut steps = Vec::new();
    for step in file_steps {
        let span = step.span();
        let step = step.get_ref();
        let of_send = step.expect.is_some()
            || step.body.is_some()
            || step.cancel.is_some()
            || step.expires.is_some()
            || step.challenge;
        let read = match (&step.send, &step.pause, &step.receive) {
            (Some(_), None, None) if step.within.is_none() => read_send(step).map(Step::Send),
            (None, Some(pause), None) if !of_send && step.within.is_none() => read_pause(pause).map(Step::Pause),
            (None, None, Some(receive)) if !of_send => read_receive(step, receive).map(Step::Receive),
            _ => Err((span, "a step has either `send`, or `receive`, or `pause`, and what belongs to it".to_owned())),
        };
        steps.push(read?);
    }
    let is_bye = |step: &Step| match step {
        Step::Pause(_) => false,
        Step::Receive(receive) => receive.method == Method::Bye,
        Step::Send(send) => send.method == Method::Bye,
    };
    let after_bye = steps.iter().zip(file_steps).skip_while(|(step, _)| !is_bye(step));
    let again = |(step, _): &(&Step, _)| matches!(step, Step::Send(send) if send.method == Method::Invite);
    if let Some((_, place)) = after_bye.into_iter().find(again) {
        // RFC 3261 8.1.1.4: it would need a Call-ID of its own, and a scenario has one.
        return Err((
            place.span(),
            "after its BYE a call is over; another INVITE is another call, and another scenario".into(),
        ));
    }
    if !matches!(steps.first(), Some(Step::Send(_))) {
        return Err((file_steps[0].span(), "the first step is a request".to_owned()));
    }
    Ok(Scenario { name: file.name.clone(), about: file.about.clone(), callee: callee.into(), steps })
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
    Ok(Send { name, method, expect, body, cancel_ns, expires: step.expires, challenge: step.challenge })
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
/// error[scenario]: `INVIT` is not a request a caller sends; these are: …
///  --> call.toml:5:8
///   |
/// 5 | send = "INVIT"
///   |        ^^^^^^^
/// ```
fn problem(origin: &str, text: &str, span: Range<usize>, what: &str) -> Problem {
    let end = span.end.min(text.len());
    let mark = AnnotationKind::Primary.span(span.start.min(end)..end);
    let snippet = Snippet::source(text).path(origin).annotation(mark);
    let report = Level::ERROR.primary_title(what).id("scenario").element(snippet);
    Problem(Renderer::plain().decor_style(DecorStyle::Ascii).render(&[report]).to_string())
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
            ("send = \"BYE\"\n[[step]]\nsend = \"INVITE\"", "another call", ":5:1:"),
            ("send = \"INVITE\"\n[[step]]\nreceive = \"BYE\"\n[[step]]\nsend = \"INVITE\"", "another call", ":7:1:"),
            ("receive = \"NOTIFY\"\nbody = \"sdp\"", "either", ":3:1:"),
            ("send = \"INVITE\"\nbody = \"json\"", "unknown variant `json`", ":5:8:"),
            ("pause = \"hold\"\nchallenge = true", "either", ":3:1:"),
        ] {
            let text = format!("name = \"x\"\n\n[[step]]\n{steps}\n");
            assert_points(&text, said, place);
        }
        for text in ["name = \"x\"\nstep = []", "name = \"x\"", "name = \"x", "", "name = \"x\"\npart = []"] {
            assert!(read("x.toml", text, find).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mix_is_scenarios_and_weights() {
        let part = |scenario: &str, weight: &str| format!("[[part]]\nscenario = \"{scenario}\"\nweight = {weight}\n");
        let text = format!("name = \"x\"\n{}{}", part("call", "8"), part("options", "0.5"));
        let Ok(Content::Mix(parts)) = read("x.toml", &text, find) else { panic!("{text}") };
        let parts: Vec<(&str, f64)> = parts.iter().map(|(scenario, weight)| (&*scenario.name, *weight)).collect();
        assert_eq!(parts, [("call", 8.0), ("options", 0.5)]);

        assert_points(&format!("name = \"x\"\n{}", part("cal", "1")), "`cal`", ":3:12:");
        assert_points(&format!("name = \"x\"\n{}", part("call", "-1")), "not below 0", ":4:10:");
        assert_points(&format!("name = \"x\"\n{}", part("call", "0")), "above 0", ":1:1:");
        assert_points(&format!("name = \"x\"\ncallee = \"a\"\n{}", part("call", "1")), "no callee", ":2:10:");
        assert_points(&format!("name = \"x\"\n[[step]]\nsend = \"BYE\"\n{}", part("call", "1")), "both", ":1:1:");
    }

    /// The text is refused, with these words, and the place is shown.
    fn assert_points(text: &str, said: &str, place: &str) {
        let problem = read("x.toml", text, find).err().unwrap().to_string();
        assert!(problem.contains(said), "{text}: {problem}");
        assert!(problem.contains(&format!(" --> x.toml{}\n", place.trim_end_matches(':'))), "{text}: {problem}");
        assert!(problem.contains('^'), "{problem}");
    }

    fn find(name: &str) -> Result<Scenario, String> {
        Scenario::built_in(name).ok_or_else(|| format!("there is no `{name}`"))
    }
}
