//! What is wrong with a configuration, and how that is told: what, where, why, what to do.

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

/// What a problem is about, which decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// What is written. Exit code 3.
    Config,
    /// What the machine allows. Exit code 4.
    Environment,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// viahop does not start with this.
    Error,
    /// It does, and may not do what is meant.
    Warning,
    /// Nothing is wrong; it is good to know.
    Note,
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What it is about.
    pub subject: Subject,
    /// How bad it is.
    pub severity: Severity,
    /// What, in a sentence without a full stop.
    pub title: String,
    /// Where in the source, in octets.
    pub at: Option<Range<usize>>,
    /// The text that is a place in, if it is another than the report's: a file that the configuration names.
    pub source: Option<Arc<Source>>,
    /// Why, beside the place.
    pub label: String,
    /// A second place that has to do with it.
    pub beside: Option<Box<Mark>>,
    /// What to do.
    pub help: Option<String>,
}

/// A place, and what it has to do with the problem.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where, in octets.
    pub at: Range<usize>,
    /// In which text, if it is another than the report's.
    pub source: Option<Arc<Source>>,
    /// What is there.
    pub label: String,
}

impl Problem {
    /// An error at a place.
    pub fn error(at: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> Problem {
        Problem {
            subject: Subject::Config,
            severity: Severity::Error,
            title: title.into(),
            at: Some(at),
            source: None,
            label: label.into(),
            beside: None,
            help: None,
        }
    }

    /// A warning at a place.
    pub fn warning(at: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> Problem {
        Problem { severity: Severity::Warning, ..Problem::error(at, title, label) }
    }

    /// A note at a place.
    pub fn note(at: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> Problem {
        Problem { severity: Severity::Note, ..Problem::error(at, title, label) }
    }

    /// An error of the machine, at no place.
    pub fn environment(title: impl Into<String>) -> Problem {
        let subject = Subject::Environment;
        Problem { subject, at: None, ..Problem::error(0..0, title, "") }
    }

    /// The same, with what to do.
    pub fn help(self, help: impl Into<String>) -> Problem {
        Problem { help: Some(help.into()), ..self }
    }

    /// The same, at a place.
    pub fn at(self, at: Range<usize>, label: impl Into<String>) -> Problem {
        Problem { at: Some(at), label: label.into(), ..self }
    }

    /// The same, in another text than the report's.
    pub fn within(self, source: Option<Arc<Source>>) -> Problem {
        Problem { source, ..self }
    }

    /// The same, with a second place.
    pub fn beside(self, at: Range<usize>, source: Option<Arc<Source>>, label: impl Into<String>) -> Problem {
        Problem { beside: Some(Box::new(Mark { at, source, label: label.into() })), ..self }
    }
}

/// What a configuration was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// A path, or `command line`.
    pub name: String,
    /// What stands there.
    pub text: String,
}

impl Source {
    /// The line and column of an octet, both from 1 on, as editors count them.
    pub fn line_and_column(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(at)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// Problems and the text they are about.
#[derive(Clone, Debug)]
pub struct Report {
    /// The text.
    pub source: Source,
    /// What is wrong with it; never empty in an error.
    pub problems: Vec<Problem>,
}

/// A problem for machines.
#[derive(Debug, Serialize)]
struct Row<'a> {
    severity: Severity,
    subject: Subject,
    file: &'a str,
    line: Option<usize>,
    column: Option<usize>,
    message: &'a str,
    label: &'a str,
    help: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beside: Option<Beside<'a>>,
}

/// A second place for machines.
#[derive(Debug, Serialize)]
struct Beside<'a> {
    file: &'a str,
    line: usize,
    column: usize,
    label: &'a str,
}

impl Report {
    /// The problems in the order in which a reader comes upon their places; in each text, those without a place last. Other texts
    /// than the report's come after it, in the order in which they were read.
    pub fn in_order(source: Source, mut problems: Vec<Problem>) -> Report {
        let mut texts: Vec<Arc<Source>> = Vec::new();
        for text in problems.iter().filter_map(|problem| problem.source.as_ref()) {
            if !texts.iter().any(|known| Arc::ptr_eq(known, text)) {
                texts.push(text.clone());
            }
        }
        problems.sort_by_key(|Problem { source, at, .. }| {
            let text = source.as_ref().map(|source| texts.iter().position(|text| Arc::ptr_eq(text, source)));
            (text, at.is_none(), at.as_ref().map(|at| at.start))
        });
        Report { source, problems }
    }

    /// Whether there is an error among the problems.
    pub fn is_error(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// The exit code that goes with it: 3, or 4 if nothing is wrong but the machine.
    pub fn exit_code(&self) -> u8 {
        let mut errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error);
        if errors.all(|problem| problem.subject == Subject::Environment) { 4 } else { 3 }
    }

    /// The first error in one line, with its place: `viahop.toml:12:44: this is a string`.
    pub fn summary(&self) -> Option<String> {
        let first = self.problems.iter().find(|problem| problem.severity == Severity::Error)?;
        let Some(at) = &first.at else { return Some(first.title.clone()) };
        let source = self.source_of(&first.source);
        let (line, column) = source.line_and_column(at.start);
        Some(format!("{}:{line}:{column}: {}", source.name, first.title))
    }

    /// Writes the problems, if there are any, to standard error. If that cannot be written to, nobody is told and that is all:
    /// a disk that is full must not end a viahop that carries calls.
    pub fn tell(&self, colors: bool) {
        if !self.problems.is_empty() {
            writeln!(io::stderr(), "{}", self.render(colors)).ok();
        }
    }

    /// The problems as a terminal shows them.
    pub fn render(&self, colors: bool) -> String {
        let renderer = if colors { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let rendered: Vec<String> =
            self.problems.iter().map(|problem| renderer.render(&[self.group(problem)])).collect();
        rendered.join("\n\n")
    }

    fn group<'a>(&'a self, problem: &'a Problem) -> Group<'a> {
        let level = match problem.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let id = match problem.subject {
            Subject::Config => "config",
            Subject::Environment => "environment",
        };
        let title = level.primary_title(&problem.title).id(id);
        let mut group = match &problem.at {
            None => Group::with_title(title),
            Some(at) => {
                let source = self.source_of(&problem.source);
                let first = (AnnotationKind::Primary, at, &problem.label[..]);
                match &problem.beside {
                    None => title.element(snippet(source, &[first])),
                    Some(beside) => {
                        let second = (AnnotationKind::Context, &beside.at, &beside.label[..]);
                        match self.source_of(&beside.source) {
                            other if other == source => title.element(snippet(source, &[first, second])),
                            other => title.element(snippet(source, &[first])).element(snippet(other, &[second])),
                        }
                    }
                }
            }
        };
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(help));
        }
        group
    }

    fn source_of<'a>(&'a self, source: &'a Option<Arc<Source>>) -> &'a Source {
        source.as_deref().unwrap_or(&self.source)
    }

    /// The problems as a JSON array.
    pub fn json(&self) -> String {
        let rows: Vec<Row<'_>> = self.problems.iter().map(|problem| self.row(problem)).collect();
        serde_json::to_string_pretty(&rows).unwrap_or_default()
    }

    fn row<'a>(&'a self, problem: &'a Problem) -> Row<'a> {
        let source = self.source_of(&problem.source);
        let place = problem.at.as_ref().map(|at| source.line_and_column(at.start));
        let beside = problem.beside.as_ref().map(|mark| {
            let source = self.source_of(&mark.source);
            let (line, column) = source.line_and_column(mark.at.start);
            Beside { file: &source.name, line, column, label: &mark.label }
        });
        Row {
            severity: problem.severity,
            subject: problem.subject,
            file: &source.name,
            line: place.map(|place| place.0),
            column: place.map(|place| place.1),
            message: &problem.title,
            label: &problem.label,
            help: problem.help.as_deref(),
            beside,
        }
    }
}

/// The lines of `source` that `marks` stand in. Of a long list each line may have a problem, and to draw one costs as much as the
/// text it is given.
fn snippet<'a>(source: &'a Source, marks: &[(AnnotationKind, &Range<usize>, &'a str)]) -> Snippet<'a, Annotation<'a>> {
    let spans = marks.iter().map(|(_, at, _)| inside(source, at));
    let start = spans.clone().map(|span| span.start).min().unwrap_or_default();
    let end = spans.clone().map(|span| span.end).max().unwrap_or_default();
    let first = source.text[..start].rfind('\n').map_or(0, |at| at + 1);
    let last = source.text[end..].find('\n').map_or(source.text.len(), |at| end + at + 1);
    let number = source.text[..first].matches('\n').count() + 1;
    let marks =
        spans.zip(marks).map(|(span, (kind, _, label))| kind.span(span.start - first..span.end - first).label(*label));
    Snippet::source(&source.text[first..last]).line_start(number).path(&source.name).annotations(marks)
}

/// A span at the end of the text is pulled back to the last octet there is, and none cuts a letter of several octets.
fn inside(source: &Source, at: &Range<usize>) -> Range<usize> {
    let end = source.text.ceil_char_boundary(at.end);
    source.text.floor_char_boundary(at.start.min(end))..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let source = Source { name: "a.toml".into(), text: "[x]\nbad = 1\n".into() };
        let problem = Problem::error(4..7, "unknown key `bad`", "not a key of `[x]`").help("there are none");
        Report { source, problems: vec![problem] }
    }

    #[test]
    fn a_problem_shows_file_line_column_and_remedy() {
        let text = report().render(false);
        for part in ["error[config]: unknown key `bad`", "--> a.toml:2:1", "^^^ not a key", "help: there are none"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn problems_stand_in_the_order_of_their_lines_and_those_of_another_text_behind() {
        let list = Arc::new(Source { name: "b.list".into(), text: "1 sip:a\n2 sip:b\n".into() });
        let at = |start: usize, title: &str| Problem::error(start..start + 1, title, "");
        let problems = vec![
            at(3, "in the list").within(Some(list)),
            Problem { at: None, ..at(0, "nowhere") },
            at(8, "below"),
            at(4, "above, first told"),
            at(4, "above, then told"),
        ];
        let report = Report::in_order(report().source, problems);
        let titles: Vec<&str> = report.problems.iter().map(|problem| &problem.title[..]).collect();
        assert_eq!(titles, ["above, first told", "above, then told", "below", "nowhere", "in the list"]);
    }

    #[test]
    fn a_summary_is_the_first_error_with_its_place_in_the_file_it_is_in() {
        let mut report = report();
        report.problems.insert(0, Problem::warning(0..1, "strange", ""));
        assert_eq!(report.summary().unwrap(), "a.toml:2:1: unknown key `bad`");
        let list = Arc::new(Source { name: "b.list".into(), text: "1 sip:a\n2 sip:b\n".into() });
        report.problems[1] = Problem::error(10..15, "no such host", "").within(Some(list));
        assert_eq!(report.summary().unwrap(), "b.list:2:3: no such host");
        report.problems[1].at = None;
        assert_eq!(report.summary().unwrap(), "no such host");
        assert_eq!(Report { problems: Vec::new(), ..report }.summary(), None);
    }

    #[test]
    fn json_has_the_same_facts() {
        let rows: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!((&rows[0]["line"], &rows[0]["column"]), (&2.into(), &1.into()));
        assert_eq!(rows[0]["message"], "unknown key `bad`");
    }

    #[test]
    fn two_places_are_both_shown_in_one_text_and_in_two() {
        let other = Arc::new(Source { name: "b.list".into(), text: "1 sip:a\n2 sip:b\n".into() });
        let mut report = report();
        let problem = report.problems[0].clone().beside(1..2, None, "the first");
        report.problems = vec![problem.clone(), problem.beside(10..15, Some(other), "in the list")];
        let text = report.render(false);
        for part in ["the first", "b.list:2:3", "in the list"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let rows: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&rows[1]["beside"]["file"], &rows[1]["beside"]["line"]), (&"b.list".into(), &2.into()));
    }

    #[test]
    fn only_the_machine_gives_exit_code_4() {
        let mut report = report();
        assert_eq!(report.exit_code(), 3);
        report.problems = vec![Problem::environment("no io_uring")];
        assert_eq!(report.exit_code(), 4);
    }
}
