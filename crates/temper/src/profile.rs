//! Where the time of a run goes: the spans of the loop and of its layers, with the target `profile`.
//!
//! On a GPU a span lasts as long as the host takes to queue its work; what the device needs longer shows in `wait`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::failure::{Failure, Kind};
use crate::run_dir::write_json;

/// The target of spans that are collected.
pub const TARGET: &str = "profile";

/// What was collected so far. Clones share it.
#[derive(Debug, Clone)]
pub struct Profile {
    began: Instant,
    slices: Arc<Mutex<Vec<Slice>>>,
}

/// A span, once it is over.
#[derive(Debug, Clone)]
pub struct Slice {
    /// The names of the spans around it and its own, the outermost first, with their numbers.
    pub path: Vec<String>,
    /// Seconds from the beginning of the profile.
    pub start: f64,
    /// Seconds.
    pub length: f64,
    thread: u64,
}

impl Profile {
    /// Nothing yet; time counts from now.
    pub fn new() -> Self {
        Self { began: Instant::now(), slices: Arc::default() }
    }

    /// Every span that is over, in the order in which they ended.
    pub fn slices(&self) -> Vec<Slice> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a trace can be written there, as far as can be told before there is one.
    ///
    /// # Errors
    /// When it is a directory, or in none.
    pub fn check(path: &Path) -> Result<(), Failure> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let what = if path.is_dir() {
            "it is a directory"
        } else if parent.is_some_and(|parent| !parent.is_dir()) {
            "there is no such directory"
        } else {
            return Ok(());
        };
        Err(Failure::new(Kind::Recipe, format!("error: no trace can be written to {}: {what}", path.display())))
    }

    /// Writes a trace in Chrome's format, which Perfetto (ui.perfetto.dev) opens.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_trace(&self, path: &Path) -> Result<(), Failure> {
        let event = |slice: &Slice| {
            let micros = |seconds: f64| (seconds * 1e9).round() / 1e3;
            json!({
                "name": slice.path.last(), "cat": slice.path.join("/"), "ph": "X", "pid": 1, "tid": slice.thread,
                "ts": micros(slice.start), "dur": micros(slice.length),
            })
        };
        let events: Vec<Value> = self.slices().iter().map(event).collect();
        write_json(path, &json!({ "traceEvents": events, "displayTimeUnit": "ms" }))
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self::new()
    }
}

/// A span's name with its number, and when it was entered.
struct Open {
    name: String,
    entered: Instant,
}

/// The one field that spans have: a number.
struct Number(Option<u64>);

impl Visit for Number {
    fn record_u64(&mut self, _: &Field, value: u64) {
        self.0 = Some(value);
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Profile {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut number = Number(None);
        attributes.record(&mut number);
        let name = attributes.metadata().name();
        let name = number.0.map_or_else(|| name.to_owned(), |number| format!("{name} {number}"));
        span.extensions_mut().insert(Open { name, entered: Instant::now() });
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            open.entered = Instant::now();
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let now = Instant::now();
        let Some(span) = context.span(id) else { return };
        let names = span.scope().from_root().filter_map(|span| Some(span.extensions().get::<Open>()?.name.clone()));
        let path: Vec<String> = names.collect();
        let entered = span.extensions().get::<Open>().map_or(now, |open| open.entered);
        let slice = Slice {
            path,
            start: (entered - self.began).as_secs_f64(),
            length: (now - entered).as_secs_f64(),
            thread: thread_number(),
        };
        self.slices.lock().unwrap_or_else(PoisonError::into_inner).push(slice);
    }
}

/// A small number for this thread.
fn thread_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
    NUMBER.with(|number| *number)
}

/// The parts of a step by their paths below it, in the order in which they first began, and the seconds that each took in each
/// of the steps after `warmup`; the whole step has the empty path.
pub fn by_part(slices: &[Slice], warmup: u64) -> Vec<(String, Vec<f64>)> {
    let mut parts: Vec<(String, f64, BTreeMap<u64, f64>)> = Vec::new();
    for slice in slices {
        let number = slice.path.first().and_then(|name| name.strip_prefix("step ")?.parse::<u64>().ok());
        let Some(step) = number.filter(|step| *step > warmup) else { continue };
        let name = slice.path[1..].join("/");
        let known = parts.iter().position(|(part, ..)| *part == name);
        let at = known.unwrap_or_else(|| {
            parts.push((name, slice.start, BTreeMap::new()));
            parts.len() - 1
        });
        parts[at].1 = parts[at].1.min(slice.start);
        *parts[at].2.entry(step).or_default() += slice.length;
    }
    parts.sort_by(|a, b| a.1.total_cmp(&b.1));
    parts.into_iter().map(|(part, _, steps)| (part, steps.into_values().collect())).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tracing::trace_span;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn spans_are_collected_by_step_and_written_as_a_trace() {
        let profile = Profile::new();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(profile.clone()), || {
            for step in 1..=3_u64 {
                let _step = trace_span!(target: TARGET, "step", step).entered();
                for layer in 0..2_u64 {
                    trace_span!(target: TARGET, "layer", layer).in_scope(|| {
                        std::thread::sleep(std::time::Duration::from_millis(step));
                    });
                }
            }
        });
        let parts = by_part(&profile.slices(), 1);
        assert_eq!(parts.iter().map(|(part, _)| part.as_str()).collect::<Vec<_>>(), ["", "layer 0", "layer 1"]);
        let [(_, step), (_, first), (_, second)] = &parts[..] else { panic!("three parts") };
        assert!([step, first, second].iter().all(|seconds| seconds.len() == 2));
        assert!(first[0] >= 2e-3 && step[1] >= first[1] + second[1]);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        profile.write_trace(&path).unwrap();
        let trace: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 9);
        let step = events.iter().find(|event| event["name"] == "step 2").unwrap();
        let layer = events.iter().find(|event| event["cat"] == "step 2/layer 1").unwrap();
        let end = |event: &Value| event["ts"].as_f64().unwrap() + event["dur"].as_f64().unwrap();
        assert!(layer["ts"].as_f64() >= step["ts"].as_f64() && end(layer) <= end(step) + 1e-3);
    }
}
