//! Feature files, read back.

use super::{Format, features};
use crate::{Error, FeatureSet};
use candle_core::{Device, Tensor};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, RowAccessor};
use std::path::Path;

fn set() -> FeatureSet {
    let values = (0..7 * 5).map(|i| (i as f32 - 17.0) / 3.0).collect();
    let labels = vec![Some(2), None, Some(0), Some(1), None, Some(2), Some(0)];
    let mut set = FeatureSet::new(values, 5, labels).unwrap();
    set.indices = vec![3, 5, 8, 9, 12, 20, 41];
    set.names = set.indices.iter().map(|index| format!("folder/\u{e9}t\u{e9} \"{index}\".png")).collect();
    set.classes = vec!["cat".into(), "dog".into(), "owl".into()];
    set
}

fn only_file(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn npy_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.npy");
    let written = features(&path, &set(), Format::of(&path).unwrap()).unwrap();
    assert_eq!(written, [path.clone(), folder.path().join("test.labels.npy")]);
    let read = Tensor::read_npy(&path).unwrap();
    assert_eq!(read.dims(), [7, 5]);
    assert_eq!(read.flatten_all().unwrap().to_vec1::<f32>().unwrap(), set().features);
    let labels = Tensor::read_npy(&written[1]).unwrap().to_vec1::<i64>().unwrap();
    assert_eq!(labels, [2, -1, 0, 1, -1, 2, 0]);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!((bytes.len() - 7 * 5 * 4) % 64, 0, "the data is aligned");
    assert_eq!(only_file(folder.path()), 2, "no scratch file is left");
}

#[test]
fn safetensors_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.safetensors");
    features(&path, &set(), Format::of(&path).unwrap()).unwrap();
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    assert_eq!(tensors["features"].dims(), [7, 5]);
    assert_eq!(tensors["features"].flatten_all().unwrap().to_vec1::<f32>().unwrap(), set().features);
    assert_eq!(tensors["index"].to_vec1::<i64>().unwrap(), [3, 5, 8, 9, 12, 20, 41]);
    assert_eq!(tensors["labels"].to_vec1::<i64>().unwrap(), [2, -1, 0, 1, -1, 2, 0]);
    let bytes = std::fs::read(&path).unwrap();
    let (_, about) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about = about.metadata().clone().unwrap();
    assert_eq!(serde_json::from_str::<Vec<String>>(&about["names"]).unwrap(), set().names);
    assert_eq!(serde_json::from_str::<Vec<String>>(&about["classes"]).unwrap(), set().classes);
}

#[test]
fn parquet_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.parquet");
    features(&path, &set(), Format::of(&path).unwrap()).unwrap();
    let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 7);
    for (row, read) in rows.iter().enumerate() {
        let columns: Vec<(&String, &Field)> = read.get_column_iter().collect();
        assert_eq!(
            columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["index", "label", "name", "features"]
        );
        assert_eq!(read.get_long(0).unwrap(), set().indices[row] as i64);
        let label = set().labels[row].map_or(Field::Null, |label| Field::Int(label as i32));
        assert_eq!(*columns[1].1, label);
        assert_eq!(*read.get_string(2).unwrap(), set().names[row]);
        let list = read.get_list(3).unwrap();
        let values: Vec<f32> = list
            .elements()
            .iter()
            .map(|field| match field {
                Field::Float(value) => *value,
                other => panic!("{other:?} in the list"),
            })
            .collect();
        assert_eq!(values, set().row(row));
    }
}

#[test]
fn many_rows_make_many_groups() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.parquet");
    let rows = super::columns::GROUP + 3;
    let many = FeatureSet::new((0..rows * 2).map(|i| i as f32).collect(), 2, vec![Some(1); rows]).unwrap();
    features(&path, &many, Format::Parquet).unwrap();
    let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    assert_eq!(reader.num_row_groups(), 2);
    let last = reader.get_row_iter(None).unwrap().last().unwrap().unwrap();
    assert_eq!(last.get_long(0).unwrap(), rows as i64 - 1);
    let Field::Float(value) = last.get_list(3).unwrap().elements()[1] else { panic!("no float") };
    assert_eq!(value, (rows * 2 - 1) as f32);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.npy");
    std::fs::write(&path, b"old").unwrap();
    let failed = super::commit::prepare(&path, |_| Err::<(), _>(std::io::Error::other("no space left")));
    assert!(failed.unwrap_err().to_string().contains("no space left"));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(only_file(folder.path()), 1);
    let nowhere = folder.path().join("absent/test.npy");
    let refused = features(&nowhere, &set(), Format::Npy).unwrap_err();
    assert!(matches!(refused, Error::Write { path, .. } if path == nowhere));
}

#[test]
fn features_stay_beside_their_own_labels_when_the_labels_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.npy");
    std::fs::write(&path, b"old").unwrap();
    // A folder under the scratch name of the labels: the features can be written, the labels cannot.
    let scratch = folder.path().join(format!(".test.labels.npy.{}.part", std::process::id()));
    std::fs::create_dir(&scratch).unwrap();
    let refused = features(&path, &set(), Format::Npy).unwrap_err();
    assert!(matches!(refused, Error::Write { path, .. } if path.ends_with("test.labels.npy")));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[test]
fn an_unknown_ending_is_refused() {
    let refused = Format::of(Path::new("features.csv")).unwrap_err();
    assert!(refused.to_string().contains(".parquet"), "{refused}");
}
