//! Any file that temper reads as Parquet, with all of its columns: how a data set is pushed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Metadata, Schema, SchemaRef};
use arrow::json::reader::infer_json_schema;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use crate::delimited::Records;
use crate::error::{Error, Result};
use crate::jsonl;
use crate::source::{Kind, Place, SourceFile, twice};
use crate::table::{Batches, open_arrow};

/// Rows of a batch.
const BATCH: usize = 4096;
/// From here on an f64 has not every integer.
const EXACT: u64 = 1 << 53;

/// What a Parquet file came to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// Columns as (name, type as the library `datasets` calls it: `string`, `int64`, `float64`, `bool`, …); empty if one of
    /// them is nested.
    pub columns: Vec<(String, String)>,
    /// Rows.
    pub rows: u64,
}

/// A column of a file.
struct Column {
    field: Field,
    /// Its values are text, whatever type they were found to have.
    written: bool,
}

impl Column {
    /// That of two files, if one can hold both: texts where what is written as integers in one is not in the other.
    fn with(self, other: &Self) -> Option<Self> {
        let [own, others] = [&self, other].map(|column| column.field.data_type().clone());
        let texts = |column: &Self| column.written || column.field.data_type() == &DataType::Utf8;
        let kind = match () {
            () if own == others => own,
            () if texts(&self) && texts(other) => DataType::Utf8,
            () => return None,
        };
        let nullable = self.field.is_nullable() || other.field.is_nullable();
        let field = self.field.with_data_type(kind).with_nullable(nullable);
        Some(Self { field, written: self.written && other.written })
    }
}

/// The columns of files that are to be one data set. What is text stays as it is written: of CSV a column is one of integers only
/// if all its cells are written as integers are.
///
/// # Errors
/// When a file cannot be read, has other columns than the first, or numbers that no column of numbers holds.
pub fn columns_of(inputs: &[PathBuf]) -> Result<SchemaRef> {
    let mut all: Option<(Vec<Column>, _)> = None;
    for input in inputs {
        let (found, metadata) = columns_of_one(&SourceFile::find(input.clone())?)?;
        let names: Vec<&String> = found.iter().map(|column| column.field.name()).collect();
        if let Some((_, name)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return Err(twice(input, name));
        }
        let Some((known, _)) = &mut all else {
            all = Some((found, metadata));
            continue;
        };
        let names = |columns: &[Column]| {
            let shown = columns.iter().map(|Column { field, .. }| format!("{} {}", field.name(), field.data_type()));
            shown.collect::<Vec<_>>().join(", ")
        };
        let message = format!("its columns are {}, and those of the first file {}", names(&found), names(known));
        let same = known.len() == found.len();
        let with = |known: Column| {
            let own = found.iter().find(|column| column.field.name() == known.field.name())?;
            known.with(own)
        };
        let merged = std::mem::take(known).into_iter().map(with).collect();
        let other = || Error::file(input, message);
        *known = Option::filter(merged, |_| same).ok_or_else(other)?;
    }
    let (columns, metadata) =
        all.ok_or_else(|| Error::Config { field: "train", message: "it names no file".into() })?;
    let fields: Vec<Field> = columns.into_iter().map(|column| column.field).collect();
    Ok(Arc::new(Schema::new_with_metadata(fields, metadata)))
}

/// Writes the rows of `inputs`, one file after the other, into the Parquet file `output` (Zstandard, level 3), with the columns that
/// [`columns_of`] found in all files of the data set.
///
/// # Errors
/// When a file cannot be read, or has a text that `refused` gives a reason against.
pub fn to_parquet(
    inputs: &[PathBuf],
    columns: &SchemaRef,
    output: &Path,
    refused: impl Fn(&str) -> Option<&'static str>,
) -> Result<Converted> {
    let level = ZstdLevel::try_new(3).map_err(|error| Error::file(output, error))?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
    let file = File::create(output).map_err(|error| Error::file(output, error))?;
    let mut writer =
        ArrowWriter::try_new(file, columns.clone(), Some(properties)).map_err(|error| Error::file(output, error))?;
    let mut rows = 0;
    for input in inputs {
        for batch in open(&SourceFile::find(input.clone())?, columns)? {
            let batch = batch?;
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                if let Some(reason) = find_text(column, &refused) {
                    let place = format!(
                        "column `{}`, between rows {} and {}",
                        field.name(),
                        rows + 1,
                        rows + batch.num_rows() as u64
                    );
                    return Err(Error::file(input, format!("{place}: {reason}")));
                }
            }
            rows += batch.num_rows() as u64;
            writer.write(&batch).map_err(|error| Error::file(output, error))?;
        }
    }
    writer.close().map_err(|error| Error::file(output, error))?;
    let columns = columns.fields().iter().map(|field| Some((field.name().clone(), dataset_type(field.data_type())?)));
    Ok(Converted { columns: columns.collect::<Option<Vec<_>>>().unwrap_or_default(), rows })
}

/// What the first text of an array, or of what is nested in it, comes to that comes to something.
fn find_text<T>(array: &dyn Array, of: &impl Fn(&str) -> Option<T>) -> Option<T> {
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().iter().flatten().find_map(of),
        DataType::LargeUtf8 => array.as_string::<i64>().iter().flatten().find_map(of),
        DataType::Utf8View => array.as_string_view().iter().flatten().find_map(of),
        DataType::List(_) => find_text(array.as_list::<i32>().values(), of),
        DataType::LargeList(_) => find_text(array.as_list::<i64>().values(), of),
        DataType::Struct(_) => array.as_struct().columns().iter().find_map(|column| find_text(column, of)),
        DataType::Dictionary(_, _) => find_text(array.as_any_dictionary().values(), of),
        _ => None,
    }
}

/// The columns of a file, and what else it says of them.
fn columns_of_one(source: &SourceFile) -> Result<(Vec<Column>, Metadata)> {
    let path = source.path.as_path();
    let file = || File::open(path).map_err(|error| Error::file(path, error));
    let plain = |schema: &Schema| {
        let columns = schema.fields().iter().map(|field| Column { field: field.as_ref().clone(), written: false });
        (columns.collect(), schema.metadata().clone())
    };
    match source.kind {
        Kind::Jsonl => {
            let mut seen = BTreeMap::new();
            jsonl::objects(path, file()?, |place, object| {
                object.iter().try_for_each(|(key, value)| look(&mut seen, key, value, place))
            })?;
            let (schema, _) = infer_json_schema(after_mark(file()?).map_err(|error| Error::file(path, error))?, None)
                .map_err(|error| Error::file(path, error))?;
            Ok(plain(&schema))
        }
        Kind::Csv | Kind::Tsv => {
            let mut records = Records::open(path, file()?, delimiter(source.kind))?;
            let mut integers = vec![true; records.header.len()];
            while let Some(record) = records.next()? {
                for (integers, cell) in integers.iter_mut().zip(&record) {
                    *integers &= cell.parse::<i64>().is_ok_and(|number| number.to_string() == cell);
                }
            }
            let kind = |integers: bool| if integers { DataType::Int64 } else { DataType::Utf8 };
            let columns = records.header.iter().zip(integers);
            let column = |(name, integers)| Column { field: Field::new(name, kind(integers), true), written: true };
            Ok((columns.map(column).collect(), Metadata::default()))
        }
        Kind::Parquet => {
            let builder =
                ParquetRecordBatchReaderBuilder::try_new(file()?).map_err(|error| Error::file(path, error))?;
            Ok(plain(builder.schema()))
        }
        Kind::Arrow => Ok(plain(&open_arrow(path, file()?)?.0)),
    }
}

/// What kind of values a key has, and which of its numbers a column of floats would change.
#[derive(Default)]
struct Seen {
    kind: Option<&'static str>,
    float: bool,
    long: bool,
}

/// Looks at a value: whether its column can hold it beside those before.
fn look(seen: &mut BTreeMap<String, Seen>, path: &str, value: &Value, place: &Place<'_>) -> Result<()> {
    let kind = match value {
        Value::Null => return Ok(()),
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let entry = seen.entry(path.to_owned()).or_default();
    let before = *entry.kind.get_or_insert(kind);
    if before != kind {
        return Err(place.error(format!("`{path}` is {kind}, and {before} in a line before")));
    }
    if let Value::Number(number) = value {
        let long = number.as_i64().is_some_and(|number| number.unsigned_abs() > EXACT);
        entry.float |= number.as_i64().is_none();
        entry.long |= long;
        let beyond = number.as_i64().is_none() && number.as_f64().is_none_or(|number| number.abs() >= i64::MAX as f64);
        if beyond || entry.float && entry.long {
            return Err(place.error(format!("`{path}` has numbers such as {number}, whose digits are lost in a column of numbers; write them as texts")));
        }
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| look(seen, &format!("{path}[]"), item, place)),
        Value::Object(map) => {
            map.iter().try_for_each(|(key, value)| look(seen, &format!("{path}.{key}"), value, place))
        }
        _ => Ok(()),
    }
}

/// A file from behind the mark of its encoding, if it has one.
fn after_mark(mut file: File) -> std::io::Result<BufReader<File>> {
    let mut start = [0; 3];
    let marked = file.read(&mut start)? == 3 && start == *b"\xEF\xBB\xBF";
    if !marked {
        file.rewind()?;
    }
    Ok(BufReader::new(file))
}

fn delimiter(kind: Kind) -> u8 {
    if kind == Kind::Tsv { b'\t' } else { b',' }
}

type Rows = Box<dyn Iterator<Item = Result<RecordBatch>>>;

/// The rows of a file with these columns.
fn open(source: &SourceFile, columns: &SchemaRef) -> Result<Rows> {
    let path = source.path.as_path();
    let (schema, file) = (columns.clone(), File::open(path).map_err(|error| Error::file(path, error))?);
    let batches: Batches = match source.kind {
        Kind::Csv | Kind::Tsv => {
            let mut records = Records::open(path, file, delimiter(source.kind))?;
            return Ok(Box::new(std::iter::from_fn(move || written(&mut records, &schema).transpose())));
        }
        Kind::Jsonl => {
            let reader = after_mark(file).map_err(|error| Error::file(path, error))?;
            Box::new(
                arrow::json::ReaderBuilder::new(schema.clone())
                    .build(reader)
                    .map_err(|error| Error::file(path, error))?,
            )
        }
        Kind::Parquet => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| Error::file(path, error))?;
            Box::new(builder.build().map_err(|error| Error::file(path, error))?)
        }
        Kind::Arrow => open_arrow(path, file)?.1,
    };
    let path = path.to_owned();
    Ok(Box::new(batches.map(move |batch| {
        let named = |batch: RecordBatch| {
            let columns = schema.fields().iter().filter_map(|field| batch.column_by_name(field.name()).cloned());
            RecordBatch::try_new(schema.clone(), columns.collect())
        };
        let batch = batch.and_then(named);
        batch.map_err(|error| Error::file(&path, error))
    })))
}

/// The next rows of a text file.
fn written(records: &mut Records, schema: &SchemaRef) -> Result<Option<RecordBatch>> {
    let place = |field: &Arc<Field>| records.header.iter().position(|name| name == field.name());
    let places: Vec<Option<usize>> = schema.fields().iter().map(place).collect();
    let mut columns: Vec<_> = places.iter().map(|_| StringBuilder::new()).collect();
    let mut rows = 0;
    while rows < BATCH
        && let Some(record) = records.next()?
    {
        let cells = places.iter().map(|place| place.and_then(|place| record.get(place)));
        columns.iter_mut().zip(cells).for_each(|(column, cell)| column.append_option(cell));
        rows += 1;
    }
    let columns = columns.into_iter().zip(schema.fields()).map(|(mut cells, field)| -> ArrayRef {
        let cells = cells.finish();
        match field.data_type() {
            DataType::Int64 => Arc::new(cells.iter().map(|cell| cell?.parse().ok()).collect::<Int64Array>()),
            _ => Arc::new(cells),
        }
    });
    let batch = RecordBatch::try_new(schema.clone(), columns.collect());
    batch.map(|batch| (rows > 0).then_some(batch)).map_err(|error| records.place().error(error.to_string()))
}

/// What `datasets` calls a type of a plain column.
fn dataset_type(kind: &DataType) -> Option<String> {
    let name = match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string",
        DataType::Boolean => "bool",
        DataType::Float32 => "float32",
        DataType::Float64 => "float64",
        DataType::Int8 => "int8",
        DataType::Int16 => "int16",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::UInt8 => "uint8",
        DataType::UInt16 => "uint16",
        DataType::UInt32 => "uint32",
        DataType::UInt64 => "uint64",
        DataType::Null => "null",
        _ => return None,
    };
    Some(name.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    /// The files as one data set.
    fn to_parquet(
        inputs: &[PathBuf],
        output: &Path,
        refused: impl Fn(&str) -> Option<&'static str>,
    ) -> Result<Converted> {
        super::to_parquet(inputs, &columns_of(inputs)?, output, refused)
    }

    #[test]
    fn text_files_become_parquet_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a.jsonl"), "{\"text\":\"é\",\"label\":1,\"x\":0.5}\n{\"text\":\"b\",\"label\":null}\n")
            .unwrap();
        fs::write(path("b.csv"), "text,label\n\"a, b\",1\nc,2\n").unwrap();
        fs::write(path("c.tsv"), "text\tlabel\n\"a\t1\n").unwrap();
        let columns =
            |converted: &Converted| converted.columns.iter().map(|(n, t)| format!("{n} {t}")).collect::<Vec<_>>();
        let a = to_parquet(&[path("a.jsonl")], &path("a.parquet"), |_| None).unwrap();
        assert_eq!((a.rows, columns(&a)), (2, vec!["text string".into(), "label int64".into(), "x float64".into()]));
        let b = to_parquet(&[path("b.csv"), path("b.csv")], &path("b.parquet"), |_| None).unwrap();
        assert_eq!((b.rows, columns(&b)), (4, vec!["text string".into(), "label int64".into()]));
        let c = to_parquet(&[path("c.tsv")], &path("c.parquet"), |_| None).unwrap();
        assert_eq!(c.rows, 1);
        let again = to_parquet(&[path("b.parquet")], &path("d.parquet"), |_| None).unwrap();
        assert_eq!(again, b);
        assert_eq!(
            fs::read(path("b.parquet")).unwrap(),
            fs::read(path("d.parquet")).unwrap(),
            "the same rows, other bytes"
        );
        let message =
            to_parquet(&[path("b.csv"), path("a.jsonl")], &path("e.parquet"), |_| None).unwrap_err().to_string();
        assert!(message.contains("a.jsonl") && message.contains("x Float64"), "{message}");

        // What is written otherwise than a number is not taken for one, in none of the files of a data set.
        for (file, text, expected) in [
            ("z.csv", "id,label\n007,1\n8,2\n", ["id string", "label int64"]),
            ("y.csv", "id,label\n7,1.0\n8,\n", ["id int64", "label string"]),
            ("x.tsv", "id\tlabel\n-7\ta\n+8\tb\n", ["id string", "label string"]),
        ] {
            fs::write(path(file), text).unwrap();
            assert_eq!(columns(&to_parquet(&[path(file)], &path("z.parquet"), |_| None).unwrap()), expected, "{file}");
        }
        let both = columns_of(&[path("y.csv"), path("z.csv")]).unwrap();
        assert!(both.fields().iter().all(|field| field.data_type() == &DataType::Utf8));
        super::to_parquet(&[path("y.csv")], &both, &path("y.parquet"), |_| None).unwrap();
        let batch = open(&SourceFile::find(path("y.parquet")).unwrap(), &both).unwrap().next().unwrap().unwrap();
        let cells: Vec<_> = batch.columns().iter().map(|cells| cells.as_string::<i32>().value(1).to_owned()).collect();
        assert_eq!(cells, ["8", ""]);

        // Numbers whose digits would be lost, keys that come twice and columns of several types are refused with their line.
        for (text, expected) in [
            ("{\"a\":1}\n{\"a\":18446744073709551615}", "line 2: `a` has numbers such as 18446744073709551615"),
            ("{\"a\":[{\"b\":9007199254740993}]}\n{\"a\":[{\"b\":0.5}]}", "line 2: `a[].b` has numbers such as 0.5"),
            ("{\"a\":1,\"a\":2}", "the key \"a\" comes twice"),
            ("{\"a\":1}\n\n{\"a\":\"b\"}", "line 3: `a` is a text, and a number in a line before"),
        ] {
            fs::write(path("w.jsonl"), text).unwrap();
            let message = columns_of(&[path("w.jsonl")]).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        fs::write(path("x.csv"), "a,a\n1,2\n").unwrap();
        assert!(columns_of(&[path("x.csv")]).unwrap_err().to_string().contains("two columns called `a`"));
        // Columns may lie in another order.
        fs::write(path("v.csv"), "label,id\na,1\n").unwrap();
        fs::write(path("v.jsonl"), "{\"label\":\"b\",\"id\":2}\n{\"id\":3,\"label\":\"c\"}\n").unwrap();
        fs::write(path("u.jsonl"), "{\"id\":4,\"label\":\"d\"}\n").unwrap();
        let all = [path("u.jsonl"), path("v.csv"), path("v.jsonl")];
        assert_eq!(columns(&to_parquet(&all, &path("v.parquet"), |_| None).unwrap()), ["id int64", "label string"]);
        let again = to_parquet(&[path("v.csv"), path("v.parquet")], &path("u.parquet"), |_| None).unwrap();
        assert_eq!((again.rows, columns(&again)), (5, vec!["label string".into(), "id int64".into()]));

        fs::write(path("w.jsonl"), "\u{feff}{\"a\":1}\n").unwrap();
        assert_eq!(to_parquet(&[path("w.jsonl")], &path("w.parquet"), |_| None).unwrap().rows, 1);

        // A text is refused wherever it stands.
        let rows = "{\"chat\":[{\"content\":\"a\"},{\"content\":\"secret\"}],\"n\":1}\n";
        fs::write(path("n.jsonl"), rows).unwrap();
        to_parquet(&[path("n.jsonl")], &path("n.parquet"), |_| None).unwrap();
        for file in ["n.jsonl", "n.parquet"] {
            let refuse = |text: &str| (text == "secret").then_some("no");
            let message = to_parquet(&[path(file)], &path("o.parquet"), refuse).unwrap_err().to_string();
            assert!(message.contains(file) && message.contains("column `chat`, between rows 1 and 1: no"), "{message}");
        }
    }
}
