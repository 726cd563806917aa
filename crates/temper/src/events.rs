//! `events.jsonl`: every event of a run, one JSON object a line, with the wall-clock time.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use temper_engine::Event;

/// One line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it happened: RFC 3339, UTC, milliseconds.
    pub time: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Record {
    /// `event`, which happened now.
    pub fn now(event: &Event) -> Self {
        Self { time: timestamp(SystemTime::now()), event: event.clone() }
    }

    /// Its line, with the line break.
    pub fn line(&self) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

/// Appends events to a file. The first event decides what happens to lines that an earlier process left there:
/// [`Event::Resumed`] cuts off what comes after its step (those steps run again), anything else starts the file anew;
/// [`Event::Refused`] comes before either and waits for it. So the file holds each step once, however often the run was
/// killed.
#[derive(Debug)]
pub struct JsonlWriter {
    path: PathBuf,
    file: File,
    begun: bool,
    /// Bytes of whole lines.
    length: u64,
    /// What is not in the file yet.
    waiting: VecDeque<Record>,
}

impl JsonlWriter {
    /// Opens or creates the file; nothing in it changes before the first event.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let file = file.map_err(|error| failed("open", path, error))?;
        Ok(Self { path: path.to_owned(), file, begun: false, length: 0, waiting: VecDeque::new() })
    }

    /// Appends `event` with the time of now; the line is in the operating system's hands when this returns.
    pub fn on(&mut self, event: &Event) -> io::Result<()> {
        self.append(event).map_err(|error| failed("write", &self.path, error))
    }

    fn append(&mut self, event: &Event) -> io::Result<()> {
        self.waiting.push_back(Record::now(event));
        if !self.begun {
            let kept = match event {
                Event::Refused { .. } => return Ok(()),
                Event::Resumed { step, .. } => bytes_until(&self.file, *step)?,
                _ => 0,
            };
            self.length = kept;
            self.begun = true;
        }
        // What a write that failed has left goes, and what it was to write is written with the next event.
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        while let Some(record) = self.waiting.front() {
            let line = record.line()?;
            self.file.write_all(&line)?;
            self.length += line.len() as u64;
            self.waiting.pop_front();
        }
        Ok(())
    }
}

/// Reads the events of a run, oldest first. A last line that was torn by a kill is left out; any other bad line is an
/// error that says which.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let Known { records, bad, .. } = read_known(path)?;
    match bad {
        None => Ok(records),
        Some(message) => {
            let message = format!("failed to read {}: {message}", path.display());
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
    }
}

/// What can be known of a file of events, whatever ails it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    /// The events that could be read, oldest first.
    pub records: Vec<Record>,
    /// The first line that is no event, and why.
    pub bad: Option<String>,
    /// Whether the last line was torn by a kill, or is being written.
    pub torn: bool,
}

/// Reads the events of a run and leaves out what is damaged.
pub fn read_known(path: &Path) -> io::Result<Known> {
    let text = std::fs::read(path).map_err(|error| failed("read", path, error))?;
    let mut known = Known::default();
    for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        match serde_json::from_slice(line) {
            Ok(record) => known.records.push(record),
            Err(_) if !line.ends_with(b"\n") => known.torn = true,
            Err(error) => known.bad = known.bad.or_else(|| Some(format!("line {}: {error}", index + 1))),
        }
    }
    Ok(known)
}

/// How many bytes from the start hold whole lines up to the events of `step`.
fn bytes_until(file: &File, step: u64) -> io::Result<u64> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(0))?;
    let (mut kept, mut line) = (0, Vec::new());
    while reader.read_until(b'\n', &mut line)? > 0 {
        if !line.ends_with(b"\n") {
            break;
        }
        // A line that is no event says nothing of those behind it.
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap_or_default();
        if value["step"].as_u64().is_some_and(|logged| logged > step) {
            break;
        }
        kept += line.len() as u64;
        line.clear();
    }
    Ok(kept)
}

/// `time` as RFC 3339 in UTC with milliseconds, such as `2026-02-03T04:05:06.007Z`.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar.
/// Howard Hinnant, "chrono-compatible low-level date algorithms": years begin in March, so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

fn failed(verb: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to {verb} {}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn step(step: u64) -> Event {
        Event::Step {
            step,
            steps: 9,
            epoch: 0.5,
            loss: 0.25,
            lr: 1e-4,
            grad_norm: Some(1.5),
            loss_scale: None,
            skipped: None,
            tokens: 512,
            tokens_per_second: 2e3,
            step_ms: 256.0,
            communication_ms: None,
            communication_bytes: None,
        }
    }

    fn evaluated(step: u64) -> Event {
        Event::Evaluated {
            step,
            scores: temper_engine::Scores(BTreeMap::from([("accuracy".into(), 0.5)])),
            best: true,
            ms: 3.0,
        }
    }

    fn resumed(step: u64) -> Event {
        Event::Resumed { step, path: "checkpoints/1".into() }
    }

    fn write(path: &Path, events: &[Event]) {
        let mut writer = JsonlWriter::open(path).unwrap();
        events.iter().for_each(|event| writer.on(event).unwrap());
    }

    fn events(path: &Path) -> Vec<Event> {
        read(path).unwrap().into_iter().map(|record| record.event).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let all = [step(1), evaluated(1), Event::Saved { step: 1, path: "checkpoints/1".into(), ms: 1.0 }];
        write(&path, &all);
        assert_eq!(events(&path), all);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\"time\":\"20"), "{text}");
    }

    #[test]
    fn a_bad_line_takes_no_other_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        write(&path, &[step(1)]);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"time\":\"2026-0{\"ti\n").unwrap();
        let more: Vec<u8> = [step(2), step(3)].iter().flat_map(|event| Record::now(event).line().unwrap()).collect();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&more).unwrap();
        write(&path, &[resumed(2), step(3)]);
        let known = read_known(&path).unwrap();
        let found: Vec<Event> = known.records.into_iter().map(|record| record.event).collect();
        assert_eq!(found, [step(1), step(2), resumed(2), step(3)]);
        assert!(known.bad.is_some_and(|bad| bad.contains("line 2")));
    }

    #[test]
    fn resume_cuts_the_steps_that_run_again_and_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        write(&path, &[step(1), evaluated(1), step(2), step(3)]);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"time\":\"2026-0").unwrap();
        assert_eq!(events(&path).len(), 4, "a torn last line is no event");
        write(&path, &[resumed(1), step(2)]);
        assert_eq!(events(&path), [step(1), evaluated(1), resumed(1), step(2)]);
        write(&path, &[resumed(2), step(3)]);
        assert_eq!(events(&path), [step(1), evaluated(1), resumed(1), step(2), resumed(2), step(3)]);
    }

    #[test]
    fn a_torn_line_that_parses_is_still_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        write(&path, &[step(1), step(2)]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        write(&path, &[resumed(2), step(3)]);
        assert_eq!(events(&path), [step(1), resumed(2), step(3)]);
    }

    #[test]
    fn a_run_from_the_start_begins_the_file_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        write(&path, &[step(1), step(2)]);
        write(&path, &[step(1)]);
        assert_eq!(events(&path), [step(1)]);
    }

    #[test]
    fn a_refused_checkpoint_does_not_start_the_file_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        write(&path, &[step(1), step(2)]);
        let refused = Event::Refused { path: "checkpoints/2".into(), reason: "torn".into() };
        write(&path, &[refused.clone(), resumed(1), step(2)]);
        assert_eq!(events(&path), [step(1), refused, resumed(1), step(2)]);
    }

    #[test]
    fn a_bad_line_in_the_middle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        write(&path, &[step(1)]);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"nonsense\n{}\n").unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"time\"").unwrap();
        let known = read_known(&path).unwrap();
        assert_eq!((known.records.len(), known.torn), (1, true));
        assert!(known.bad.unwrap().starts_with("line 2: "));
    }

    #[test]
    fn timestamps_follow_the_calendar() {
        let at = |seconds, millis| timestamp(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399, 0), "2000-02-28T23:59:59.000Z");
        assert_eq!(at(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_767_225_599, 999), "2025-12-31T23:59:59.999Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }
}
