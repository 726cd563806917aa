//! Columnar files: Parquet, row group by row group, and Arrow IPC (file or stream), batch by batch.

use std::{fs::File, io::BufReader, io::Read, io::Seek, path::Path, sync::Arc};

use arrow::{
    array::{Array, AsArray, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, Field, SchemaRef},
    error::ArrowError,
    ipc::reader::{FileReader, StreamReader},
    json::LineDelimitedWriter,
};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    source::{Columns, LabelSource, Labelled, Place, Raw, Record},
};

type Sink<'a> = &'a mut dyn FnMut(Record) -> Result<()>;

/// Rows, some thousand at a time.
pub(crate) type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// Hands every record of a Parquet file to `sink`.
pub(crate) fn read_parquet(path: &Path, file: File, columns: &Columns, sink: Sink) -> Result<()> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| Error::file(path, e))?;
    let at = locate(path, columns, builder.schema())?;
    let (schema, mask) =
        (builder.schema().clone(), ProjectionMask::roots(builder.parquet_schema(), at.into_iter().flatten()));
    let reader = builder.with_projection(mask).with_batch_size(4096).build().map_err(|e| Error::file(path, e))?;
    read_batches(path, &schema, reader, columns, sink)
}

/// Hands every record of an Arrow IPC file or stream to `sink`.
pub(crate) fn read_arrow(path: &Path, file: File, columns: &Columns, sink: Sink) -> Result<()> {
    let (schema, batches) = open_arrow(path, file)?;
    locate(path, columns, &schema)?;
    read_batches(path, &schema, batches, columns, sink)
}

/// The columns of an Arrow IPC file or stream, and its rows.
pub(crate) fn open_arrow(path: &Path, mut file: File) -> Result<(SchemaRef, Batches)> {
    let mut magic = [0; 6];
    let file_format = file.read(&mut magic).map_err(|e| Error::file(path, e))? == 6 && &magic == b"ARROW1";
    if magic.starts_with(b"FEA1") {
        return Err(Error::file(path, "it is Feather version 1, which Arrow gave up; save it again with version 2"));
    }
    file.rewind().map_err(|e| Error::file(path, e))?;
    let file = BufReader::new(file);
    if file_format {
        let reader = FileReader::try_new(file, None).map_err(|e| Error::file(path, e))?;
        Ok((reader.schema(), Box::new(reader)))
    } else {
        let reader = StreamReader::try_new(file, None)
            .map_err(|e| Error::file(path, format!("it is neither an Arrow file nor an Arrow stream ({e})")))?;
        Ok((reader.schema(), Box::new(reader)))
    }
}

fn locate(path: &Path, columns: &Columns, schema: &SchemaRef) -> Result<Vec<Option<usize>>> {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    columns.locate(path, &names)
}

/// The names of a column's classes, as the library `datasets` notes them (`ClassLabel`, or a list of it).
fn class_names(schema: &SchemaRef, column: &str) -> Option<Arc<[String]>> {
    let noted: Value = serde_json::from_str(schema.metadata().get("huggingface")?).ok()?;
    let feature = &noted["info"]["features"][column];
    let feature = if feature["feature"].is_object() { &feature["feature"] } else { feature };
    let names = feature["names"].as_array().filter(|_| feature["_type"] == "ClassLabel")?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

/// A label of a column whose classes have these names.
fn classed(raw: Raw, names: &Arc<[String]>) -> Raw {
    match raw {
        Raw::Integer(class) => Raw::Class(class, names.clone()),
        Raw::List(items) => Raw::List(items.into_iter().map(|item| classed(item, names)).collect()),
        other => other,
    }
}

fn read_batches(
    path: &Path,
    whole: &SchemaRef,
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    columns: &Columns,
    sink: Sink,
) -> Result<()> {
    let mut done = 0;
    let names = match columns {
        Columns::Labelled(Labelled { label: LabelSource::One(column), .. }) => class_names(whole, column),
        _ => None,
    };
    for batch in batches {
        let batch = batch.map_err(|e| Error::file(path, e))?;
        let at = locate(path, columns, &batch.schema())?;
        let place = |row: usize| Place { path, unit: "row", line: done + row as u64 + 1 };
        match columns {
            Columns::Labelled(labelled) => {
                let cells: Vec<Cells> = at
                    .into_iter()
                    .flatten()
                    .zip(columns.names())
                    .map(|(i, column)| Cells::new(batch.column(i)).map_err(|message| unreadable(path, column, message)))
                    .collect::<Result<_>>()?;
                for row in 0..batch.num_rows() {
                    let mut record =
                        labelled.record(&place(row), cells.iter().map(|column| column.get(row)).collect())?;
                    if let Some(names) = &names {
                        record.label = classed(record.label, names);
                    }
                    sink(record)?;
                }
            }
            Columns::Causal(_) => {
                let schema = batch.schema();
                let there = || schema.fields().iter().map(|field| field.name().clone()).collect();
                for (row, mut object) in
                    objects(path, &batch, at.iter().flatten().copied().collect())?.into_iter().enumerate()
                {
                    let cells = at.iter().map(|i| object.remove(schema.field((*i)?).name())).collect();
                    sink(columns.record(&place(row), cells, there)?)?;
                }
            }
        }
        done += batch.num_rows() as u64;
    }
    Ok(())
}

fn unreadable(path: &Path, column: &str, message: String) -> Error {
    Error::Column { path: path.to_owned(), place: None, column: column.into(), message }
}

/// Rows with the columns `wanted`, as JSON objects without nulls: conversations are lists of structs of anything.
fn objects(path: &Path, batch: &RecordBatch, mut wanted: Vec<usize>) -> Result<Vec<Map<String, Value>>> {
    if wanted.is_empty() {
        return Ok(vec![Map::new(); batch.num_rows()]);
    }
    wanted.sort_unstable();
    wanted.dedup();
    let batch = batch.project(&wanted).map_err(|e| Error::file(path, e))?;
    for field in batch.schema().fields() {
        if let Some(kind) = no_text(field.data_type()).or(Some(field.data_type()).filter(|kind| kind.is_temporal())) {
            let message = format!("it holds {kind}, which is no text; save it as strings");
            return Err(unreadable(path, field.name(), message));
        }
    }
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(&batch).and_then(|()| writer.finish()).map_err(|e| Error::file(path, e))?;
    let lines = writer.into_inner();
    serde_json::Deserializer::from_slice(&lines).into_iter().collect::<Result<_, _>>().map_err(|e| Error::file(path, e))
}

/// Bytes of which nothing says that they are a text, within a type.
fn no_text(kind: &DataType) -> Option<&DataType> {
    match kind {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => Some(kind),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => no_text(field.data_type()),
        DataType::Struct(fields) => fields.iter().find_map(|field| no_text(field.data_type())),
        DataType::Dictionary(_, values) => no_text(values),
        _ => None,
    }
}

/// A column in one of the few types that texts and labels have.
enum Cells {
    Text(StringArray),
    Integer(Int64Array),
    Float(Float64Array),
    Bool(BooleanArray),
    List(ListArray, Box<Cells>),
    Null,
}

impl Cells {
    fn new(array: &dyn Array) -> Result<Self, String> {
        let to = |to: &DataType| {
            cast_with_options(array, to, &CastOptions { safe: false, ..Default::default() })
                .map_err(|e| format!("its type {} cannot be read: {e}", array.data_type()))
        };
        let values = match array.data_type() {
            DataType::Dictionary(_, values) => values.as_ref(),
            other => other,
        };
        Ok(match values {
            DataType::Null => Self::Null,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Self::Text(to(&DataType::Utf8)?.as_string::<i32>().clone())
            }
            DataType::Boolean => Self::Bool(to(&DataType::Boolean)?.as_boolean().clone()),
            t if t.is_integer() => Self::Integer(to(&DataType::Int64)?.as_primitive().clone()),
            t if t.is_floating() => Self::Float(to(&DataType::Float64)?.as_primitive().clone()),
            DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
                let list = DataType::List(Field::new("item", field.data_type().clone(), true).into());
                let list = to(&list)?.as_list::<i32>().clone();
                let items = Self::new(list.values())?;
                Self::List(list, Box::new(items))
            }
            other => return Err(format!("its type is {other}; texts are strings, labels strings, numbers or lists")),
        })
    }

    fn get(&self, row: usize) -> Raw {
        let null = match self {
            Self::Text(a) => a.is_null(row),
            Self::Integer(a) => a.is_null(row),
            Self::Float(a) => a.is_null(row),
            Self::Bool(a) => a.is_null(row),
            Self::List(a, _) => a.is_null(row),
            Self::Null => true,
        };
        match self {
            _ if null => Raw::Null,
            Self::Text(a) => Raw::Text(a.value(row).to_owned()),
            Self::Integer(a) => Raw::Integer(a.value(row)),
            Self::Float(a) => Raw::Float(a.value(row)),
            Self::Bool(a) => Raw::Bool(a.value(row)),
            Self::List(a, items) => {
                let [from, to] = [a.value_offsets()[row], a.value_offsets()[row + 1]];
                Raw::List((from..to).map(|i| items.get(i as usize)).collect())
            }
            Self::Null => Raw::Null,
        }
    }
}
