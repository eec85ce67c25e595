//! Keeps the last warnings and errors for the status page.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::recent_problems;

/// Keeps the warnings and errors of this program; those of libraries mean nothing to annotators.
pub(super) struct ProblemLayer;

impl<S: Subscriber> Layer<S> for ProblemLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN || !metadata.target().starts_with("groundling") {
            return;
        }
        let mut message = Message::default();
        event.record(&mut message);
        let mut text = message.text;
        if !message.fields.is_empty() {
            text = format!("{text} ({})", message.fields);
        }
        recent_problems::add(*metadata.level() == Level::ERROR, &text);
    }
}

/// The message of an event, and its other fields as `name=value`.
#[derive(Default)]
struct Message {
    text: String,
    fields: String,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // writing to a string does not fail
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => {
                let comma = if self.fields.is_empty() { "" } else { ", " };
                write!(self.fields, "{comma}{name}={value:?}")
            }
        };
    }
}
