//! What is wrong with a configuration, and how that is told: what, where, why, what to do.

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;
use std::ops::Range;

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
    /// Why, beside the place.
    pub label: String,
    /// What to do.
    pub help: Option<String>,
}

impl Problem {
    /// An error at a place.
    pub fn error(at: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> Problem {
        Problem {
            subject: Subject::Config,
            severity: Severity::Error,
            title: title.into(),
            at: Some(at),
            label: label.into(),
            help: None,
        }
    }

    /// A warning at a place.
    pub fn warning(at: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> Problem {
        Problem { severity: Severity::Warning, ..Problem::error(at, title, label) }
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
}

/// What a configuration was read from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// A path, or `command line`.
    pub name: String,
    /// What stands there.
    pub text: String,
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
}

impl Report {
    /// Whether there is an error among the problems.
    pub fn is_error(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// The exit code that goes with it: 3, or 4 if nothing is wrong but the machine.
    pub fn exit_code(&self) -> u8 {
        let mut errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error);
        if errors.all(|problem| problem.subject == Subject::Environment) { 4 } else { 3 }
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
        let (level, id) = match (problem.severity, problem.subject) {
            (Severity::Error, Subject::Config) => (Level::ERROR, "config"),
            (Severity::Error, Subject::Environment) => (Level::ERROR, "environment"),
            (Severity::Warning, Subject::Config) => (Level::WARNING, "config"),
            (Severity::Warning, Subject::Environment) => (Level::WARNING, "environment"),
        };
        let title = level.primary_title(&problem.title).id(id);
        let mut group = match &problem.at {
            None => Group::with_title(title),
            Some(at) => {
                // A span at the end of the text is pulled back to the last octet there is.
                let end = at.end.min(self.source.text.len());
                let at = at.start.min(end)..end;
                let mark = AnnotationKind::Primary.span(at).label(&problem.label);
                let snippet = Snippet::source(&self.source.text).path(&self.source.name).annotation(mark);
                title.element(snippet)
            }
        };
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(help));
        }
        group
    }

    /// The problems as a JSON array.
    pub fn json(&self) -> String {
        let rows: Vec<Row<'_>> = self.problems.iter().map(|problem| self.row(problem)).collect();
        serde_json::to_string_pretty(&rows).unwrap_or_default()
    }

    fn row<'a>(&'a self, problem: &'a Problem) -> Row<'a> {
        let place = problem.at.as_ref().map(|at| {
            let before = self.source.text.get(..at.start).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
        });
        Row {
            severity: problem.severity,
            subject: problem.subject,
            file: &self.source.name,
            line: place.map(|place| place.0),
            column: place.map(|place| place.1),
            message: &problem.title,
            label: &problem.label,
            help: problem.help.as_deref(),
        }
    }
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
    fn json_has_the_same_facts() {
        let rows: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!((&rows[0]["line"], &rows[0]["column"]), (&2.into(), &1.into()));
        assert_eq!(rows[0]["message"], "unknown key `bad`");
    }

    #[test]
    fn only_the_machine_gives_exit_code_4() {
        let mut report = report();
        assert_eq!(report.exit_code(), 3);
        report.problems = vec![Problem::environment("no io_uring")];
        assert_eq!(report.exit_code(), 4);
    }
}
