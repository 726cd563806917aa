//! Any file that temper reads as Parquet, with all of its columns: how a data set is pushed.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::json::reader::infer_json_schema_from_seekable;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::error::{Error, Result};
use crate::source::{Kind, SourceFile};
use crate::table::{Batches, open_arrow};

/// What a Parquet file came to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// Columns as (name, type as the library `datasets` calls it: `string`, `int64`, `float64`, `bool`, …); empty if one of
    /// them is nested.
    pub columns: Vec<(String, String)>,
    /// Rows.
    pub rows: u64,
}

/// Writes the rows of `inputs`, one file after the other, into the Parquet file `output` (Zstandard, level 3).
///
/// # Errors
/// When a file cannot be read, has other columns than the first, or a text that `refused` gives a reason against.
pub fn to_parquet(
    inputs: &[PathBuf],
    output: &Path,
    refused: impl Fn(&str) -> Option<&'static str>,
) -> Result<Converted> {
    let fail =
        |path: &Path, error: &dyn std::fmt::Display| Error::File { path: path.into(), message: error.to_string() };
    let mut writer: Option<ArrowWriter<File>> = None;
    let mut schema: Option<SchemaRef> = None;
    let mut rows = 0;
    for input in inputs {
        let (found, batches) = open(&SourceFile::find(input.clone())?)?;
        let wanted = schema.get_or_insert_with(|| found.clone());
        if *wanted != found {
            let names = |schema: &SchemaRef| {
                schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect::<Vec<_>>().join(", ")
            };
            let message = format!("its columns are {}, and those of the first file {}", names(&found), names(wanted));
            return Err(Error::File { path: input.clone(), message });
        }
        let writer = match &mut writer {
            Some(writer) => writer,
            None => {
                let level = ZstdLevel::try_new(3).map_err(|error| fail(output, &error))?;
                let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
                let file = File::create(output).map_err(|error| fail(output, &error))?;
                let opened = ArrowWriter::try_new(file, found, Some(properties));
                writer.insert(opened.map_err(|error| fail(output, &error))?)
            }
        };
        for batch in batches {
            let batch = batch.map_err(|error| fail(input, &error))?;
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                if let Some(reason) = find_text(column, &refused) {
                    let place = format!(
                        "column `{}`, between rows {} and {}",
                        field.name(),
                        rows + 1,
                        rows + batch.num_rows() as u64
                    );
                    return Err(Error::File { path: input.clone(), message: format!("{place}: {reason}") });
                }
            }
            rows += batch.num_rows() as u64;
            writer.write(&batch).map_err(|error| fail(output, &error))?;
        }
    }
    let (Some(writer), Some(schema)) = (writer, schema) else {
        return Err(Error::Config { field: "train", message: "it names no file".into() });
    };
    writer.close().map_err(|error| fail(output, &error))?;
    let columns = schema.fields().iter().map(|field| Some((field.name().clone(), dataset_type(field.data_type())?)));
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

/// The columns of a file and its rows.
fn open(source: &SourceFile) -> Result<(SchemaRef, Batches)> {
    let path = &source.path;
    let fail = |error: &dyn std::fmt::Display| Error::File { path: path.clone(), message: error.to_string() };
    let mut file = File::open(path).map_err(|error| fail(&error))?;
    match source.kind {
        Kind::Jsonl => {
            let mut reader = BufReader::new(file);
            let (schema, _) = infer_json_schema_from_seekable(&mut reader, None).map_err(|error| fail(&error))?;
            let schema = Arc::new(schema);
            let rows = arrow::json::ReaderBuilder::new(schema.clone()).build(reader).map_err(|error| fail(&error))?;
            Ok((schema, Box::new(rows)))
        }
        Kind::Csv | Kind::Tsv => {
            let tab = source.kind == Kind::Tsv;
            let format = Format::default().with_header(true).with_delimiter(if tab { b'\t' } else { b',' });
            // A tab-separated file knows no quotes: none of its bytes is NUL.
            let format = if tab { format.with_quote(0) } else { format };
            let (schema, _) = format.infer_schema(&mut file, None).map_err(|error| fail(&error))?;
            file.rewind().map_err(|error| fail(&error))?;
            let schema = Arc::new(schema);
            let rows = arrow::csv::ReaderBuilder::new(schema.clone()).with_format(format).build(file);
            Ok((schema, Box::new(rows.map_err(|error| fail(&error))?)))
        }
        Kind::Parquet => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| fail(&error))?;
            let schema = builder.schema().clone();
            Ok((schema, Box::new(builder.build().map_err(|error| fail(&error))?)))
        }
        Kind::Arrow => open_arrow(path, file),
    }
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
