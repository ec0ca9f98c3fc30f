//! TensorBoard event files, written by hand: a record is length, checksum, an `Event` message, checksum.
//!
//! Of the `Event` message three forms are used: the file version that opens a file, and scalars
//! (`Summary.Value { tag, simple_value }`).

use super::Sink;
use super::growing::GrowingFile;
use crate::{Event, Named};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What every event file starts with.
const VERSION: &str = "brain.Event:2";
/// Beginning of the file's name: what TensorBoard looks for.
const PREFIX: &str = "events.out.tfevents.";

/// Writes scalars for TensorBoard: `loss/*`, `metric/*`, `lr/*`, `momentum/*`, `grad_norm`, `score/*`, `speed/*`.
#[derive(Debug)]
pub struct TensorBoardSink {
    file: GrowingFile,
}

impl TensorBoardSink {
    /// Goes on with the event file in `folder`, or makes one.
    ///
    /// # Errors
    /// The folder cannot be read or the file not opened.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let path = match existing(folder)? {
            Some(path) => path,
            None => folder.join(format!("{PREFIX}{:010}.occlude", now() as u64)),
        };
        let mut sink = Self { file: GrowingFile::open(&path)? };
        if sink.file.is_empty() {
            sink.write_version()?;
        }
        Ok(sink)
    }

    fn write_version(&mut self) -> io::Result<()> {
        let mut event = Message::default();
        event.double(1, now()).bytes(3, VERSION.as_bytes());
        self.file.append(&framed(&event.0))
    }

    fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> io::Result<()> {
        let mut summary = Message::default();
        for (tag, number) in scalars {
            let mut value = Message::default();
            value.bytes(1, tag.as_bytes()).float(2, *number as f32);
            summary.bytes(1, &value.0);
        }
        let mut event = Message::default();
        event.double(1, now()).varint(2, step).bytes(5, &summary.0);
        self.file.append(&framed(&event.0))
    }
}

impl Sink for TensorBoardSink {
    fn name(&self) -> &str {
        "tensorboard"
    }

    fn record(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Step { row, timing, logged: true } => {
                let groups =
                    [("loss", &row.losses), ("metric", &row.metrics), ("lr", &row.lr), ("momentum", &row.momentum)];
                let mut scalars: Vec<_> = groups.into_iter().flat_map(|(group, named)| tagged(group, named)).collect();
                scalars.extend(row.grad_norm.map(|norm| ("grad_norm".to_owned(), norm)));
                scalars.push(("speed/images_per_second".to_owned(), timing.images_per_second));
                scalars.push(("speed/wait_share".to_owned(), timing.wait_share));
                self.scalars(row.step, &scalars)
            }
            Event::Probed(row) => self.scalars(row.step, &tagged("score", &row.scores)),
            _ => Ok(()),
        }
    }

    fn position(&mut self) -> io::Result<Option<u64>> {
        self.file.position().map(Some)
    }

    fn rewind(&mut self, position: u64) -> io::Result<()> {
        self.file.rewind(position)?;
        if self.file.is_empty() { self.write_version() } else { Ok(()) }
    }
}

fn existing(folder: &Path) -> io::Result<Option<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    Ok(paths.into_iter().filter(ours).max())
}

fn tagged(group: &str, named: &Named) -> Vec<(String, f64)> {
    named.0.iter().map(|(name, value)| (format!("{group}/{name}"), *value)).collect()
}

/// Seconds since 1970.
fn now() -> f64 {
    // A clock set before 1970 spoils an axis, nothing else.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u8, kind: u8) -> &mut Self {
        self.0.push(field << 3 | kind);
        self
    }

    fn raw_varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn varint(&mut self, field: u8, value: u64) -> &mut Self {
        self.key(field, 0).raw_varint(value)
    }

    fn double(&mut self, field: u8, value: f64) -> &mut Self {
        self.key(field, 1).0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(&mut self, field: u8, value: &[u8]) -> &mut Self {
        self.key(field, 2).raw_varint(value.len() as u64).0.extend_from_slice(value);
        self
    }

    fn float(&mut self, field: u8, value: f32) -> &mut Self {
        self.key(field, 5).0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

/// A record of the event file.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend_from_slice(&masked_checksum(&length).to_le_bytes());
    record.extend_from_slice(message);
    record.extend_from_slice(&masked_checksum(message).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted: a checksum of bytes that hold checksums would be weak otherwise.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
