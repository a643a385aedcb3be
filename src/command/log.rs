//! Log lines of `run`: to standard error, a line, a fact, a stable `event=`; and the same for whoever asks later.

use serde_json::{Map, Value};
use std::io::IsTerminal;
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};
use viahop::control::config::{Log, LogFormat};
use viahop::control::events::Events;

/// Begins to write what `log` asks for, and to keep what is worth it in `events`, whatever the level.
pub fn start(log: &Log, events: &Arc<Events>) {
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(ansi);
    let level = LevelFilter::from_level(log.level);
    let kept = Keeper(events.clone()).with_filter(LevelFilter::INFO);
    let registry = registry().with(kept);
    match log.format {
        LogFormat::Text => registry.with(lines.with_filter(level)).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_filter(level)).init(),
    }
}

/// Keeps what has an `event`.
struct Keeper(Arc<Events>);

impl<S: Subscriber> Layer<S> for Keeper {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Some(Value::String(name)) = fields.0.remove("event") else { return };
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            _ => "info",
        };
        self.0.add(level, name, fields.0);
    }
}

/// What a line says, as JSON.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_an_event_are_kept_with_what_they_say() {
        let events = Arc::new(Events::default());
        let subscriber = registry().with(Keeper(events.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(event = "backend_down", backend = %"a:1", slots = 7, "no word more");
            tracing::info!("no event");
        });
        let kept = events.last();
        assert_eq!((kept.len(), kept[0].level, &kept[0].event[..]), (1, "warn", "backend_down"));
        assert_eq!((&kept[0].fields["backend"], &kept[0].fields["slots"]), (&"a:1".into(), &7.into()));
    }
}
