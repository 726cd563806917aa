//! Progress on standard error: one redrawn line on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::Instant;

use temper_engine::{Event, StopReason};

use crate::{logs, units};

/// Shows a run to whoever watches. On a terminal the last line is a bar, drawn again at each report, and evaluations,
/// checkpoints and the end stand above it; elsewhere every event is a line of its own, without control characters.
#[derive(Debug)]
pub struct Progress<W: Write> {
    out: W,
    look: Look,
    clock: Option<(Instant, u64)>,
    deadline: Option<Instant>,
}

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Redraw one line; otherwise plain lines.
    pub terminal: bool,
    /// Use colours.
    pub color: bool,
    /// Columns of the terminal; `None` asks the terminal at each drawing.
    pub columns: Option<usize>,
}

impl Progress<io::Stderr> {
    /// Progress on standard error: a bar where that is a terminal, in colours unless `NO_COLOR` is set.
    pub fn stderr() -> Self {
        let terminal = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::new(io::stderr(), Look { terminal, color, columns: None })
    }
}

impl<W: Write> Progress<W> {
    /// Progress on `out`.
    pub fn new(out: W, look: Look) -> Self {
        Self { out, look, clock: None, deadline: None }
    }

    /// The same of a run that ends at `deadline` in any case.
    pub fn until(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Shows `event`. What cannot be written is lost: nobody watches, and training goes on.
    pub fn on(&mut self, event: &Event) {
        let begin = |step| Some((Instant::now(), step));
        match event {
            // What came before it has taken a part of the time that there was.
            Event::Resumed { step, .. } => (self.clock, self.deadline) = (begin(*step), None),
            // A fresh run: how long the steps before the first report took is not known, so time starts here.
            Event::Step { step, .. } if self.clock.is_none() => self.clock = begin(*step),
            _ => {}
        }
        let line = match event {
            Event::Step { .. } => self.step(event),
            Event::Refused { path, reason } => Some(format!("refused {}: {reason}", path.display())),
            Event::Resumed { step, path } => {
                Some(format!("resumed at step {} from {}", units::grouped(*step), path.display()))
            }
            Event::Evaluated { step, scores, best, ms } => Some(evaluation(*step, &scores.0, *best, *ms, self.look)),
            Event::Saved { step, path, .. } => {
                Some(format!("step {}  saved {}", units::grouped(*step), path.display()))
            }
            Event::Stopped { step, reason, seconds } => Some(format!(
                "{} at step {} after {}",
                reason_words(*reason),
                units::grouped(*step),
                units::seconds(*seconds)
            )),
        };
        let clear = if self.look.terminal { "\r\x1b[2K" } else { "" };
        if let Some(line) = line {
            let _ = writeln!(self.out, "{clear}{line}");
        }
        let _ = self.out.flush();
    }

    /// Draws the bar, or gives the plain line.
    fn step(&mut self, event: &Event) -> Option<String> {
        let status = Status::new(event, self.clock, self.deadline)?;
        if !self.look.terminal {
            return Some(status.plain());
        }
        let columns = self.look.columns.unwrap_or_else(columns);
        // The cursor goes back to the start, so that a log line of somebody else covers the bar and does not follow it.
        let _ = write!(self.out, "\r\x1b[2K{}\r", status.bar(columns, self.look.color));
        None
    }
}

impl<W: Write> Drop for Progress<W> {
    /// Leaves no bar behind.
    fn drop(&mut self) {
        if self.look.terminal {
            let _ = write!(self.out, "\r\x1b[2K");
            let _ = self.out.flush();
        }
    }
}

/// Shows a transfer in bytes: a line that is redrawn on a terminal, and one line when it is done.
#[derive(Debug)]
pub struct Transfer {
    what: String,
    terminal: bool,
    begun: Instant,
    /// When it was last drawn, and the bytes that were there at the start.
    drawn: Mutex<Option<(Instant, u64)>>,
}

/// Seconds between two drawings of a transfer.
const REDRAW: f64 = 0.1;

impl Transfer {
    /// A transfer of `what`, shown on standard error.
    pub fn stderr(what: &str) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { what: what.into(), terminal, begun: Instant::now(), drawn: Mutex::default() }
    }

    /// Takes note of progress.
    pub fn on(&self, progress: temper_hub::Progress) {
        let Ok(mut drawn) = self.drawn.lock() else { return };
        if drawn.is_none_or(|(at, _)| at.elapsed().as_secs_f64() >= REDRAW) {
            let first = drawn.map_or(progress.bytes, |(_, first)| first);
            *drawn = Some((Instant::now(), first));
            if self.terminal && progress.bytes > first {
                let _ = write!(io::stderr(), "\r\x1b[2K{}\r", self.line(&progress));
            }
        }
    }

    fn line(&self, progress: &temper_hub::Progress) -> String {
        let temper_hub::Progress { bytes, total, files, of_files } = *progress;
        let [bytes, total] = [bytes, total].map(units::bytes);
        let files = if of_files > 0 { format!(", {files} of {of_files} files") } else { String::new() };
        format!("{}: {bytes} of {total}{files}", self.what)
    }

    /// Says what went over the network, if anything did.
    pub fn done(self, bytes: u64) {
        if bytes > 0 && logs::for_programs() {
            tracing::info!(bytes, seconds = self.begun.elapsed().as_secs_f64(), "{}", self.what);
        } else if bytes > 0 {
            let seconds = units::seconds(self.begun.elapsed().as_secs_f64());
            let clear = if self.terminal { "\r\x1b[2K" } else { "" };
            let _ = writeln!(io::stderr(), "{clear}{}: {} in {seconds}", self.what, units::bytes(bytes));
        }
    }
}

impl Drop for Transfer {
    /// Leaves no half line behind.
    fn drop(&mut self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

/// What a report says, in words.
#[derive(Debug, Clone, PartialEq)]
struct Status {
    step: u64,
    steps: u64,
    /// The same words in the same order as on the bar; the first are the last to go when the terminal is narrow.
    words: Vec<String>,
}

impl Status {
    /// `clock` is when the process took its first step and which one that was, `deadline` when it ends at the latest.
    fn new(event: &Event, clock: Option<(Instant, u64)>, deadline: Option<Instant>) -> Option<Self> {
        let &Event::Step { step, steps, epoch, loss, lr, tokens_per_second, step_ms, skipped, .. } = event else {
            return None;
        };
        let measured = clock.filter(|(_, first)| step > *first);
        let per_step =
            measured.map_or(step_ms / 1e3, |(begin, first)| begin.elapsed().as_secs_f64() / (step - first) as f64);
        let left = per_step * steps.saturating_sub(step) as f64;
        let left = deadline.map_or(left, |end| left.min(end.saturating_duration_since(Instant::now()).as_secs_f64()));
        let mut words = vec![
            format!("{}/{}", units::grouped(step), units::grouped(steps)),
            format!("loss {}", units::number(loss)),
            format!("ETA {}", units::seconds(left)),
            format!("epoch {epoch:.2}"),
            format!("lr {}", units::number(lr)),
            format!("{} tok/s", units::short(tokens_per_second)),
        ];
        words.extend(skipped.filter(|count| *count > 0).map(|count| format!("{count} skipped")));
        words.extend(resident().map(units::bytes));
        Some(Self { step, steps, words })
    }

    /// One line for logs.
    fn plain(&self) -> String {
        format!("step {}", self.words.join("  "))
    }

    /// One line of at most `columns - 1` columns (a full line would wrap on some terminals).
    fn bar(&self, columns: usize, color: bool) -> String {
        let room = columns.saturating_sub(1);
        let least = if room < 48 { 0 } else { 12 };
        let mut words = String::new();
        for word in &self.words {
            if words.len() + word.len() + 2 > room - least {
                break;
            }
            words.push_str("  ");
            words.push_str(word);
        }
        let width = (room - words.len()).min(32);
        if least == 0 {
            return words.trim_start().to_owned();
        }
        let share = if self.steps == 0 { 0.0 } else { (self.step as f64 / self.steps as f64).min(1.0) };
        let full = (share * width as f64).round() as usize;
        let (done, left) = ("━".repeat(full), "━".repeat(width - full));
        if color {
            format!("\x1b[34m{done}\x1b[90m{left}\x1b[0m{words}")
        } else {
            format!("{done}{}{words}", " ".repeat(width - full))
        }
    }
}

/// The line of an evaluation, such as `step 400  accuracy 0.9125  loss 0.2811  (1.2s)  best so far`.
fn evaluation(step: u64, scores: &std::collections::BTreeMap<String, f64>, best: bool, ms: f64, look: Look) -> String {
    let mut line = format!("step {}", units::grouped(step));
    for (metric, score) in scores {
        line.push_str(&format!("  {metric} {}", units::number(*score)));
    }
    line.push_str(&format!("  ({})", units::seconds(ms / 1e3)));
    match (best, look.color) {
        (true, true) => line.push_str("  \x1b[32mbest so far\x1b[0m"),
        (true, false) => line.push_str("  best so far"),
        _ => {}
    }
    line
}

/// Why training ended, as the start of a sentence.
pub fn reason_words(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Finished => "finished",
        StopReason::EarlyStopped => "stopped early",
        StopReason::WallClock => "stopped by the time limit",
        StopReason::Interrupted => "interrupted",
    }
}

/// Columns of the terminal: as the terminal says, else `COLUMNS`, else 80.
fn columns() -> usize {
    let asked = terminal_size::terminal_size_of(io::stderr()).map(|(width, _)| usize::from(width.0));
    asked.or_else(|| std::env::var("COLUMNS").ok()?.parse().ok()).filter(|&columns| columns > 0).unwrap_or(80)
}

/// Bytes of this process in memory now, as Linux says it in `/proc/self/status`; `None` elsewhere.
fn resident() -> Option<u64> {
    parse_resident(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_resident(status: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const PLAIN: Look = Look { terminal: false, color: false, columns: None };
    const BAR: Look = Look { terminal: true, color: false, columns: Some(80) };

    fn step(step: u64) -> Event {
        Event::Step {
            step,
            steps: 3000,
            epoch: 0.4,
            loss: 0.412_34,
            lr: 1.84e-4,
            grad_norm: Some(1.0),
            loss_scale: None,
            skipped: None,
            tokens: 1,
            tokens_per_second: 12_345.0,
            step_ms: 27.7,
            communication_ms: None,
            communication_bytes: None,
        }
    }

    fn evaluated() -> Event {
        let scores = BTreeMap::from([("loss".to_owned(), 0.28), ("accuracy".to_owned(), 0.9125)]);
        Event::Evaluated { step: 1200, scores: temper_engine::Scores(scores), best: true, ms: 1234.0 }
    }

    fn shown(look: Look, events: &[Event]) -> String {
        let mut out = Vec::new();
        let mut progress = Progress::new(&mut out, look);
        events.iter().for_each(|event| progress.on(event));
        drop(progress);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn without_a_terminal_there_are_plain_lines() {
        let stopped = Event::Stopped { step: 1200, reason: StopReason::WallClock, seconds: 83.0 };
        let text = shown(PLAIN, &[step(10), evaluated(), stopped]);
        let lines: Vec<_> = text.lines().collect();
        // 2,990 steps of 27.7 ms are 83 seconds.
        let begin = "step 10/3,000  loss 0.4123  ETA 1m 23s  epoch 0.40  lr 1.84e-4  12.3k tok/s";
        assert!(lines[0].starts_with(begin), "{}", lines[0]);
        assert_eq!(lines[1], "step 1,200  accuracy 0.9125  loss 0.28  (1.2s)  best so far");
        assert_eq!(lines[2], "stopped by the time limit at step 1,200 after 1m 23s");
        assert!(!text.contains(['\x1b', '\r']));
    }

    #[test]
    fn on_a_terminal_evaluations_stand_above_the_bar() {
        let text = shown(BAR, &[step(10), evaluated(), step(20)]);
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.contains("\r\x1b[2Kstep 1,200  accuracy 0.9125"), "{text:?}");
        assert!(text.ends_with("\r\x1b[2K"), "the bar goes when the run ends: {text:?}");
    }

    #[test]
    fn the_bar_fits_the_terminal() {
        let status = Status::new(&step(1500), None, None).unwrap();
        for columns in 1..200 {
            let bar = status.bar(columns, false);
            assert!(bar.chars().count() < columns.max(1) + usize::from(bar.is_empty()), "{columns}: {bar}");
        }
        assert_eq!(status.bar(30, false), "1,500/3,000  loss 0.4123");
        assert!(status.bar(50, false).starts_with("━━━━━━"), "the bar comes before the last words");
        let wide = status.bar(120, false);
        let full = wide.chars().filter(|&c| c == '━').count();
        assert!(wide.contains("tok/s") && full == 16, "half of 32 columns: {wide}");
    }

    #[test]
    fn a_run_with_a_time_limit_lasts_no_longer() {
        let now = Instant::now();
        let status = Status::new(&step(1500), None, Some(now)).unwrap();
        assert_eq!(status.words[2], "ETA 0.0s");
        let status = Status::new(&step(1500), None, Some(now + std::time::Duration::from_secs(3600))).unwrap();
        assert_eq!(status.words[2], "ETA 42s");
    }

    #[test]
    fn memory_is_read_from_proc() {
        let status = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!(parse_resident(status), Some(1 << 20));
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }
}
