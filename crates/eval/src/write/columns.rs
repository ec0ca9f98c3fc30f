//! Features as Parquet, without arrow: the column writers are driven directly.

use super::commit::prepare;
use crate::Result;
use crate::features::FeatureSet;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

const SCHEMA: &str = "message features {
    required int64 index;
    optional int32 label;
    required binary name (UTF8);
    required group features (LIST) { repeated group list { required float element; } }
}";

/// Rows in one group: a reader need not hold more than this at once.
pub(super) const GROUP: usize = 8192;

pub(super) fn write(path: &Path, set: &FeatureSet) -> Result<()> {
    let ready = prepare(path, |file| -> ParquetResult<()> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let mut writer = SerializedFileWriter::new(file, schema, Arc::new(WriterProperties::builder().build()))?;
        for start in (0..set.len()).step_by(GROUP) {
            let mut group = writer.next_row_group()?;
            write_group(&mut group, set, start..(start + GROUP).min(set.len()))?;
            group.close()?;
        }
        writer.close().map(drop)
    })?;
    ready.publish()
}

fn write_group<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    set: &FeatureSet,
    rows: std::ops::Range<usize>,
) -> ParquetResult<()> {
    let index: Vec<i64> = set.indices[rows.clone()].iter().map(|index| *index as i64).collect();
    column::<Int64Type, W>(group, &index, None, None)?;

    let labels = &set.labels[rows.clone()];
    let present: Vec<i32> = labels.iter().flatten().map(|label| *label as i32).collect();
    let defined: Vec<i16> = labels.iter().map(|label| i16::from(label.is_some())).collect();
    column::<Int32Type, W>(group, &present, Some(&defined), None)?;

    let names: Vec<ByteArray> = set.names[rows.clone()].iter().map(|name| ByteArray::from(name.as_str())).collect();
    column::<ByteArrayType, W>(group, &names, None, None)?;

    // A list: every value is there (definition 1), and every one but the first continues its row (repetition 1).
    let values = &set.features[rows.start * set.dim..rows.end * set.dim];
    let defined = vec![1_i16; values.len()];
    let repeated: Vec<i16> = (0..values.len()).map(|place| i16::from(place % set.dim > 0)).collect();
    column::<FloatType, W>(group, values, Some(&defined), Some(&repeated))
}

fn column<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
    defined: Option<&[i16]>,
    repeated: Option<&[i16]>,
) -> ParquetResult<()> {
    let missing = || ParquetError::General("the schema has fewer columns than are written".to_owned());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, defined, repeated)?;
    column.close()
}
