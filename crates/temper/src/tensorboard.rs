//! Event files that TensorBoard opens: scalars of training and evaluation over the steps.
//!
//! A file is a sequence of TFRecords (`tensorflow/core/lib/io/record_writer.h`), each an `Event` message
//! (`tensorflow/core/util/event.proto`). Both formats are small and frozen, so they are written here by hand.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use temper_engine::Event;

/// Writes `train/loss`, `train/lr`, `train/grad_norm`, `train/tokens_per_second` and `eval/<metric>`.
///
/// Every process begins a file of its own; TensorBoard reads all files of a directory as one run. The first record tells
/// it to forget what an earlier process logged about steps that run again.
#[derive(Debug)]
pub struct TensorBoardWriter {
    path: PathBuf,
    file: File,
    begun: bool,
}

impl TensorBoardWriter {
    /// Creates `dir` where it is missing, and in it `events.out.tfevents.<seconds since 1970>.temper`.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let seconds = seconds_now() as u64;
        fs::create_dir_all(dir).map_err(|error| failed("create", dir, error))?;
        let mut path = dir.join(format!("events.out.tfevents.{seconds:010}.temper"));
        let mut attempt = 1;
        let file = loop {
            match File::create_new(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    path = dir.join(format!("events.out.tfevents.{seconds:010}.temper.{attempt}"));
                    attempt += 1;
                }
                created => break created.map_err(|error| failed("create", &path, error))?,
            }
        };
        let mut writer = Self { path, file, begun: false };
        writer.record(&message(seconds_now(), 0, |event| event.text(FILE_VERSION, "brain.Event:2")))?;
        Ok(writer)
    }

    /// Writes the scalars of `event`.
    pub fn on(&mut self, event: &Event) -> io::Result<()> {
        if !self.begun && !matches!(event, Event::Refused { .. }) {
            self.begun = true;
            let first = if let Event::Resumed { step, .. } = event { step + 1 } else { 0 };
            self.record(&message(seconds_now(), first, |event| {
                event.nested(SESSION_LOG, |log| log.varint(1, SESSION_START));
            }))?;
        }
        match event {
            Event::Step { step, loss, lr, grad_norm, tokens_per_second, .. } => self.scalars(
                *step,
                [
                    ("train/loss", *loss),
                    ("train/lr", *lr),
                    ("train/grad_norm", grad_norm.unwrap_or(f64::INFINITY)),
                    ("train/tokens_per_second", *tokens_per_second),
                ],
            ),
            Event::Evaluated { step, scores, .. } => {
                self.scalars(*step, scores.0.iter().map(|(metric, score)| (format!("eval/{metric}"), *score)))
            }
            Event::Refused { .. } | Event::Resumed { .. } | Event::Saved { .. } | Event::Stopped { .. } => Ok(()),
        }
    }

    fn scalars<T: AsRef<str>>(&mut self, step: u64, values: impl IntoIterator<Item = (T, f64)>) -> io::Result<()> {
        self.record(&message(seconds_now(), step, |event| {
            event.nested(SUMMARY, |summary| {
                for (tag, value) in values {
                    summary.nested(1, |entry| {
                        entry.text(1, tag.as_ref());
                        entry.fixed32(2, (value as f32).to_le_bytes());
                    });
                }
            });
        }))
    }

    fn record(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(&frame(data)).map_err(|error| failed("write", &self.path, error))
    }
}

/// Field numbers of `Event`; 1 is `wall_time` and 2 is `step`.
const FILE_VERSION: u32 = 3;
const SUMMARY: u32 = 5;
const SESSION_LOG: u32 = 7;

/// `SessionLog.SessionStatus.START`: TensorBoard drops what it knows from this step on.
const SESSION_START: u64 = 1;

/// An `Event` message: time in seconds since 1970, step, and one more field.
fn message(wall_time: f64, step: u64, what: impl FnOnce(&mut Proto)) -> Vec<u8> {
    let mut event = Proto::default();
    event.fixed64(1, wall_time.to_le_bytes());
    event.varint(2, step);
    what(&mut event);
    event.0
}

/// A protobuf message under construction; each method appends one field.
#[derive(Debug, Default)]
struct Proto(Vec<u8>);

impl Proto {
    fn varint(&mut self, field: u32, value: u64) {
        self.raw_varint(u64::from(field << 3));
        self.raw_varint(value);
    }

    fn fixed64(&mut self, field: u32, bytes: [u8; 8]) {
        self.raw_varint(u64::from(field << 3 | 1));
        self.0.extend(bytes);
    }

    fn fixed32(&mut self, field: u32, bytes: [u8; 4]) {
        self.raw_varint(u64::from(field << 3 | 5));
        self.0.extend(bytes);
    }

    fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn nested(&mut self, field: u32, what: impl FnOnce(&mut Proto)) {
        let mut inner = Proto::default();
        what(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.raw_varint(u64::from(field << 3 | 2));
        self.raw_varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A TFRecord: length, masked CRC of the length, data, masked CRC of the data; integers are little endian.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(crc32c(&length)).to_le_bytes(), data, &masked(crc32c(data)).to_le_bytes()].concat()
}

/// Rotated and shifted, so that the CRC of data that holds CRCs is no trouble (`tensorflow/core/lib/hash/crc32c.h`).
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), RFC 3720 appendix B.4: reflected polynomial 0x82f63b78.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut crc, mut bit) = (byte as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn failed(verb: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to {verb} {}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_gives_the_vectors_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    /// The bytes that `tensorboard.summary.writer.record_writer.RecordWriter` writes for `b"temper"`.
    #[test]
    fn a_record_has_tensorboards_bytes() {
        let hex: String = frame(b"temper").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "06000000000000007369d53774656d7065724cc6a58d");
    }

    /// The bytes of `Event(wall_time=1.5, step=300, summary=[eval/f1: 0.5]).SerializeToString()`.
    #[test]
    fn a_scalar_has_protobufs_bytes() {
        let event = message(1.5, 300, |event| {
            event.nested(SUMMARY, |summary| {
                summary.nested(1, |value| {
                    value.text(1, "eval/f1");
                    value.fixed32(2, 0.5f32.to_le_bytes());
                });
            });
        });
        let hex: String = event.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "09000000000000f83f10ac022a100a0e0a076576616c2f6631150000003f");
    }

    #[test]
    fn two_writers_in_one_second_have_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let writers: Vec<_> = (0..3).map(|_| TensorBoardWriter::create(dir.path()).unwrap()).collect();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), writers.len());
    }
}
