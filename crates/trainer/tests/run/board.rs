//! The TensorBoard event file, taken apart byte by byte as its format says.

use crate::common::{Breaker, train, trainer};
use occlude_checkpoint::RunDir;
use occlude_trainer::{StepRow, TensorBoardSink, Trainer};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn with_board(run: &RunDir) -> Trainer<'_> {
    let mut trainer = trainer(run);
    trainer.sinks.push(Box::new(TensorBoardSink::open(run.path()).unwrap()));
    trainer
}

fn event_files(run: &RunDir) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(run.path()).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents.")).collect()
}

/// A protobuf field: its number, and the value by wire type.
#[derive(Debug, PartialEq)]
enum Field {
    Varint(u64, u64),
    Double(u64, f64),
    Bytes(u64, Vec<u8>),
    Float(u64, f32),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a varint of more than ten bytes");
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, rest) = bytes.split_at(count);
    *bytes = rest;
    head
}

fn fields(mut bytes: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let number = key >> 3;
        fields.push(match key & 7 {
            0 => Field::Varint(number, varint(&mut bytes)),
            1 => Field::Double(number, f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes) as usize;
                Field::Bytes(number, take(&mut bytes, length).to_vec())
            }
            5 => Field::Float(number, f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
            kind => panic!("wire type {kind}"),
        });
    }
    fields
}

/// CRC-32C bit by bit, then masked: written from the definition, apart from the code under test.
fn masked_checksum(bytes: &[u8]) -> u32 {
    let crc = !bytes
        .iter()
        .fold(!0_u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))));
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The messages of an event file, with both checksums of each checked.
fn messages(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while !file.is_empty() {
        let length = take(&mut file, 8);
        assert_eq!(take(&mut file, 4), masked_checksum(length).to_le_bytes());
        let message = take(&mut file, u64::from_le_bytes(length.try_into().unwrap()) as usize);
        assert_eq!(take(&mut file, 4), masked_checksum(message).to_le_bytes());
        messages.push(message.to_vec());
    }
    messages
}

fn scalar(value: &[u8]) -> (String, f32) {
    match &fields(value)[..] {
        [Field::Bytes(1, tag), Field::Float(2, number)] => (String::from_utf8(tag.clone()).unwrap(), *number),
        other => panic!("{other:?}"),
    }
}

/// Scalars by tag, as (step, value).
type Scalars = BTreeMap<String, Vec<(u64, f32)>>;

/// Versions and scalars of the one event file.
fn read(run: &RunDir) -> (Vec<String>, Scalars) {
    let files = event_files(run);
    assert_eq!(files.len(), 1, "a resumed run goes on with its file");
    let (mut versions, mut scalars) = (Vec::new(), Scalars::new());
    for message in messages(&std::fs::read(&files[0]).unwrap()) {
        match &fields(&message)[..] {
            [Field::Double(1, time), Field::Bytes(3, version)] if *time > 1.6e9 => {
                versions.push(String::from_utf8(version.clone()).unwrap());
            }
            [Field::Double(1, time), Field::Varint(2, step), Field::Bytes(5, summary)] if *time > 1.6e9 => {
                for value in fields(summary) {
                    let Field::Bytes(1, value) = value else { panic!("{value:?}") };
                    let (tag, number) = scalar(&value);
                    scalars.entry(tag).or_default().push((*step, number));
                }
            }
            other => panic!("{other:?}"),
        }
    }
    (versions, scalars)
}

#[test]
fn the_checksum_of_this_test_is_crc_32c() {
    // The check value of the CRC catalogue, before masking.
    assert_eq!(masked_checksum(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
}

#[test]
fn every_scalar_is_found_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let mut first = with_board(&run);
    first.sinks.push(Box::new(Breaker(13)));
    train(first).unwrap_err();
    train(with_board(&run)).unwrap();

    let (versions, scalars) = read(&run);
    assert_eq!(versions, ["brain.Event:2"]);
    let metrics = std::fs::read_to_string(run.metrics_file()).unwrap();
    let rows = metrics.lines().filter(|line| line.contains("losses"));
    let losses: Vec<(u64, f32)> = rows
        .map(|line| serde_json::from_str::<StepRow>(line).unwrap())
        .map(|row| (row.step, row.losses.get("square").unwrap() as f32))
        .collect();
    assert_eq!(scalars["loss/square"], losses);
    assert_eq!(scalars["score/knn"].iter().map(|(step, _)| *step).collect::<Vec<_>>(), [4, 8, 12, 16, 20]);
    assert_eq!(scalars["lr/student"], losses.iter().map(|(step, _)| (*step, 0.02)).collect::<Vec<_>>());
    for tag in ["metric/noise", "momentum/student", "grad_norm", "speed/images_per_second", "speed/wait_share"] {
        assert_eq!(scalars[tag].len(), losses.len(), "{tag}");
    }
}

#[test]
fn a_fresh_start_begins_the_file_anew() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    train(with_board(&run)).unwrap();
    let mut again = with_board(&run);
    again.fresh = true;
    train(again).unwrap();
    let (versions, scalars) = read(&run);
    assert_eq!((versions.len(), scalars["score/knn_random_weights"].len()), (1, 1));
}
