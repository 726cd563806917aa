//! Files of every kind, whole and damaged, through [`load`].

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray, ListBuilder,
        RecordBatch, StringArray, StringBuilder, StringViewArray,
    },
    datatypes::Int32Type,
    ipc::writer::{FileWriter, StreamWriter},
};
use tempfile::TempDir;

use crate::{tokenizer::fixture, *};

struct Folder(TempDir);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, content)| fs::write(folder.0.path().join(name), content).unwrap());
        folder
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, name: &str, kind: LabelKind) -> Result<Dataset> {
        self.load_with(&DataConfig { train: Files::one(name), eval_fraction: Some(0.0), ..Default::default() }, kind)
    }

    fn load_with(&self, config: &DataConfig, kind: LabelKind) -> Result<Dataset> {
        load(config, self.0.path(), Target::Labels(kind), &fixture(false), 16, 1)
    }

    /// The message of the failure.
    fn failure(&self, name: &str) -> String {
        match self.load(name, LabelKind::Class(None)) {
            Ok(_) => panic!("{name} was read"),
            Err(error) => error.to_string(),
        }
    }
}

/// Text, label and line of every training row.
fn rows(data: &Dataset) -> Vec<(String, Label, u32)> {
    let tokenizer = fixture(false);
    let row =
        |row| (tokenizer.decode(&data.train.ids(row)).unwrap(), data.train.label(row), data.train.source(row).line);
    (0..data.train.len()).map(row).collect()
}

fn codes(data: &Dataset) -> Vec<(Severity, &str)> {
    data.report.findings.iter().map(|finding| (finding.severity, finding.code)).collect()
}

fn expect(text: &str, class: u32, line: u32) -> (String, Label, u32) {
    (text.into(), Label::Class(class), line)
}

#[test]
fn text_files_of_every_kind() {
    let folder = Folder::with(&[
        (
            "a.jsonl",
            "\u{FEFF}{\"text\": \"the cat\", \"x\": {\"y\": [1]}, \"label\": \"b\"}\r\n\r\n{\"label\":\"a\",\"text\":\"dog\"}",
        ),
        ("b.csv", "\u{FEFF}label,text\r\nb,the cat\r\na,\"dog, \"\"ok\"\"\nhello\"\r\nb,good\r\n"),
        ("c.tsv", "text\tlabel\nthe \"cat\tb\n\"dog\ta\n"),
    ]);
    let class = || LabelKind::Class(None);
    let data = folder.load("a.jsonl", class()).unwrap();
    assert_eq!(rows(&data), [expect("the cat", 1, 1), expect("dog", 0, 3)]);
    assert_eq!(data.train.label_names(), ["a", "b"]);
    let data = folder.load("b.csv", class()).unwrap();
    let lines: Vec<_> = rows(&data).into_iter().map(|row| (row.1, row.2)).collect();
    assert_eq!(lines, [(Label::Class(1), 2), (Label::Class(0), 3), (Label::Class(1), 5)]);
    assert!(rows(&data)[1].0.ends_with("hello"));
    let data = folder.load("c.tsv", class()).unwrap();
    assert_eq!(rows(&data).iter().map(|row| row.2).collect::<Vec<_>>(), [2, 3]);
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn write_parquet(path: &Path, batch: &RecordBatch) {
    let properties =
        parquet::file::properties::WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
    let file = fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn columnar_files_of_every_kind_and_type() {
    let texts = ["the cat", "dog", "hello"];
    let expected = [expect("the cat", 1, 1), expect("dog", 0, 2), expect("hello", 1, 3)];
    let text_columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(texts.to_vec())),
        Arc::new(LargeStringArray::from(texts.to_vec())),
        Arc::new(StringViewArray::from(texts.to_vec())),
        Arc::new(texts.into_iter().collect::<DictionaryArray<Int32Type>>()),
    ];
    let label_columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![1, 0, 1])),
        Arc::new(Float64Array::from(vec![1.0, 0.0, 1.0])),
        Arc::new(BooleanArray::from(vec![true, false, true])),
        Arc::new(["b", "a", "b"].into_iter().collect::<DictionaryArray<Int32Type>>()),
    ];
    let folder = Folder::with(&[]);
    for (text, label) in text_columns.into_iter().zip(label_columns) {
        let other: ArrayRef = Arc::new(Int32Array::from(vec![None, Some(1), None]));
        let batch = batch(vec![("other", other), ("label", label), ("text", text)]);
        write_parquet(&folder.path("a.parquet"), &batch);
        let mut file = FileWriter::try_new(fs::File::create(folder.path("b.arrow")).unwrap(), &batch.schema()).unwrap();
        file.write(&batch).unwrap();
        file.finish().unwrap();
        let mut stream =
            StreamWriter::try_new(fs::File::create(folder.path("c.ipc")).unwrap(), &batch.schema()).unwrap();
        stream.write(&batch).unwrap();
        stream.finish().unwrap();
        for name in ["a.parquet", "b.arrow", "c.ipc"] {
            assert_eq!(rows(&folder.load(name, LabelKind::Class(None)).unwrap()), expected, "{name}");
        }
    }
}

#[test]
fn lists_of_labels_in_columnar_files() {
    let mut lists = ListBuilder::new(StringBuilder::new());
    lists.append_value([Some("x"), Some("y")]);
    lists.append_value::<_, &str>([]);
    let text: ArrayRef = Arc::new(StringArray::from(vec!["the cat", "dog"]));
    let folder = Folder::with(&[]);
    write_parquet(&folder.path("a.parquet"), &batch(vec![("text", text), ("label", Arc::new(lists.finish()))]));
    let data = folder.load("a.parquet", LabelKind::Multi(None)).unwrap();
    assert_eq!(data.train.label_names(), ["x", "y"]);
    assert_eq!(data.train.label(0), Label::Multi(vec![true, true]));
    assert_eq!(data.train.label(1), Label::Multi(vec![false, false]));
}

#[test]
fn classes_have_the_names_that_datasets_gave_them() {
    let folder = Folder::with(&[("named.jsonl", "{\"text\":\"ok\",\"label\":\"zzz\"}")]);
    let noted = r#"{"info": {"features": {"label": {"names": ["pos", "neg", "zzz"], "_type": "ClassLabel"}}}}"#;
    let write = |name: &str, labels: Vec<i64>| {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["the cat"; labels.len()]));
        let plain = batch(vec![("text", texts), ("label", Arc::new(Int64Array::from(labels)))]);
        let schema = plain
            .schema()
            .as_ref()
            .clone()
            .with_metadata(HashMap::from([("huggingface".to_owned(), noted.to_owned())]));
        let noted = RecordBatch::try_new(Arc::new(schema), plain.columns().to_vec()).unwrap();
        write_parquet(&folder.path(name), &noted);
    };
    write("a.parquet", vec![1, 0]);
    let data = folder.load("a.parquet", LabelKind::Class(None)).unwrap();
    assert_eq!(data.train.label_names(), ["pos", "neg", "zzz"]);
    assert_eq!((data.train.label(0), data.train.label(1)), (Label::Class(1), Label::Class(0)));
    // Names of the recipe: the same, or as many.
    let names = |names: [&str; 3]| LabelKind::Class(Some(names.map(str::to_owned).to_vec()));
    let first = |kind| folder.load("a.parquet", kind).unwrap().train.label(0);
    assert_eq!(first(names(["zzz", "neg", "pos"])), Label::Class(1));
    assert_eq!(first(names(["good", "bad", "none"])), Label::Class(1));
    assert_eq!(folder.load("a.parquet", LabelKind::Score).unwrap().train.label(0), Label::Score(1.0));
    // Numbers without names are not classes of their own beside them.
    std::fs::write(folder.path("first.jsonl"), "{\"text\":\"ok\",\"label\":1}").unwrap();
    let config = |names: [&str; 2]| DataConfig {
        train: crate::Files::Many(names.map(|name| crate::FileEntry::Path(name.into())).to_vec()),
        eval_fraction: Some(0.0),
        ..DataConfig::default()
    };
    let Err(error) = folder.load_with(&config(["first.jsonl", "a.parquet"]), LabelKind::Class(None)) else {
        panic!("it was read")
    };
    assert!(
        error
            .to_string()
            .contains("names its classes, \"pos\", \"neg\", \"zzz\", which rows before it have as numbers")
    );
    let data = folder.load_with(&config(["a.parquet", "first.jsonl"]), LabelKind::Class(None)).unwrap();
    assert_eq!((data.train.label_names().len(), data.train.label(2)), (3, Label::Class(1)));
    write("b.parquet", vec![0, -1]);
    assert!(folder.failure("b.parquet").contains("row 2: the label is -1, and the file names 3 classes"));
}

/// Where tokens are what is learned.
#[test]
fn rows_without_text_are_left_out() {
    let folder = Folder::with(&[("a.jsonl", "{\"text\":\"the cat\"}\n{\"text\":\" \"}\n{\"text\":\"dog\"}")]);
    let data = folder.load("a.jsonl", LabelKind::None).unwrap();
    assert_eq!((data.train.len(), data.report.train.rows), (2, 2));
    let lines: Vec<u32> = (0..2).map(|row| data.train.source(row).line).collect();
    assert_eq!(lines, [1, 3]);
    let said: Vec<&str> = data.report.findings.iter().map(|finding| finding.message.as_str()).collect();
    assert!(
        said.iter().any(|said| said.starts_with("1 training rows have no text, and nothing is learned from them")),
        "{said:?}"
    );
}

#[test]
fn bytes_are_no_text() {
    let folder = Folder::with(&[]);
    let bytes: ArrayRef = Arc::new(arrow::array::BinaryArray::from(vec![b"the cat".as_slice()]));
    write_parquet(&folder.path("a.parquet"), &batch(vec![("text", bytes)]));
    let config =
        DataConfig { train: crate::Files::one("a.parquet"), eval_fraction: Some(0.0), ..DataConfig::default() };
    let target = || crate::Target::Causal { vocab_size: None, positions: None };
    let loaded = crate::load(&config, &folder.path(""), target(), &crate::tokenizer::fixture(false), 8, 0);
    let said = loaded.err().unwrap().to_string();
    assert!(said.contains("column `text`") && said.contains("it holds Binary, which is no text"), "{said}");
}

#[test]
fn damaged_columnar_files_and_nulls() {
    let folder = Folder::with(&[("not.parquet", "hello"), ("not.arrow", "hello hello"), ("old.feather", "FEA1....")]);
    let text: ArrayRef = Arc::new(StringArray::from(vec![Some("the cat"), None]));
    let label: ArrayRef = Arc::new(Int32Array::from(vec![0, 1]));
    write_parquet(&folder.path("null.parquet"), &batch(vec![("text", text), ("label", label.clone())]));
    assert!(folder.failure("null.parquet").contains("null.parquet, row 2: column `text` is null"));
    write_parquet(&folder.path("number.parquet"), &batch(vec![("text", label.clone()), ("label", label)]));
    assert!(folder.failure("number.parquet").contains("the number 0, text is needed"));
    let whole = fs::read(folder.path("null.parquet")).unwrap();
    for keep in [1, 4, whole.len() / 2, whole.len() - 1] {
        fs::write(folder.path("cut.parquet"), &whole[..keep]).unwrap();
        assert!(folder.failure("cut.parquet").contains("cut.parquet"), "{keep}");
    }
    for name in ["not.parquet", "not.arrow"] {
        assert!(folder.failure(name).contains(name));
    }
    assert!(folder.failure("old.feather").contains("Feather version 1"));
}

#[test]
fn every_mistake_has_its_own_message() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("empty.jsonl", "", &["the file is empty"]),
        ("bad.jsonl", "{\"text\":\"a\",\"label\":1}\n{\"text\": a}\n", &["bad.jsonl, line 2", "bad JSON"]),
        ("cut.jsonl", "{\"text\":\"a\",\"label\":", &["line 1", "EOF"]),
        ("tail.jsonl", "{\"text\":\"a\",\"label\":1} x\n", &["line 1", "trailing"]),
        ("array.json", "[{\"text\":\"a\",\"label\":1}]", &["JSON array", "jq"]),
        ("pretty.json", "{\n \"text\": \"a\"\n}", &["each object must be on one line"]),
        ("number.jsonl", "3\n", &["line 1", "an object such as"]),
        ("typo.jsonl", "{\"txt\":\"a\",\"label\":1}", &["line 1", "read column `text`", "did you mean \"txt\"?"]),
        ("null.jsonl", "{\"text\":null,\"label\":1}", &["line 1", "`text` is null"]),
        ("object.jsonl", "{\"text\":{\"a\":1},\"label\":1}", &["`text` holds an object, text is needed"]),
        ("objects.jsonl", "{\"text\":\"a\",\"label\":{\"a\":1}}", &["the label is an object"]),
        ("fraction.jsonl", "{\"text\":\"a\",\"label\":1.5}", &["the label is 1.5"]),
        ("twice.jsonl", "{\"text\":\"a\",\"text\":\"b\",\"label\":1}", &["line 1", "\"text\" comes twice"]),
        ("deep.jsonl", &"[".repeat(100_000), &["line 1"]),
        ("utf16.jsonl", "PLACEHOLDER", &["UTF-16"]),
        ("latin.jsonl", "PLACEHOLDER", &["line 2", "byte 10 of the line is not UTF-8"]),
        ("latin.csv", "PLACEHOLDER", &["line 2", "cell 1 is not UTF-8"]),
        ("ragged.csv", "text,label\na,b\nc\n", &["ragged.csv, line 3", "1 cells", "header 2"]),
        ("wide.csv", "text,label\nwell, yes,b\n", &["line 2", "3 cells", "quotes"]),
        ("twice.csv", "text,label,text\na,b,c\n", &["two columns called `text`"]),
        ("typo.csv", "Text,label\na,b\n", &["`text`", "\"Text\", \"label\"", "did you mean \"Text\"?"]),
        ("open.csv", "text,label\na,b\n\"c,d\ne,f\ng,h\n", &["line 3"]),
        ("swallow.csv", "label,text\nb,a\nd,\"c\nf,e\nh,g\n", &["line 3", "never closed"]),
        ("swallow_first.csv", "text,label\na,b\n\"c,d\n\"\"e,f\n", &["line 3", "never closed"]),
        ("empty_label.csv", "text,label\na,\n", &["line 2", "the label is empty"]),
        ("blank_lines.csv", "\ntext,label\na,b\n\n\n\"c\nd\",e\n\n\na,\n\nb,c", &["line 10", "the label is empty"]),
        ("blank_crlf.csv", "text,label\r\na,b\r\n\r\n\r\na,\r\n", &["line 5", "the label is empty"]),
        ("blank_end.csv", "text,label\na,b\n\n\na,", &["line 5", "the label is empty"]),
        ("blank_ragged.csv", "text,label\n\na,b\n\n\nc\n", &["line 6", "1 cells", "header 2"]),
        ("crlf_end.csv", "text,label\r\na,b\r\na,", &["line 3", "the label is empty"]),
        ("data.txt", "a", &["\".txt\" is not one of", "\"jsonl\""]),
        ("data.csv.gz", "a", &["compressed", "decompress"]),
    ];
    let files: Vec<_> = cases.iter().map(|(name, content, _)| (*name, *content)).collect();
    let folder = Folder::with(&files);
    fs::write(folder.path("utf16.jsonl"), [0xFF, 0xFE, b'{', 0]).unwrap();
    fs::write(folder.path("latin.jsonl"), b"{\"text\":\"a\",\"label\":1}\n{\"text\":\"\xE9\"}").unwrap();
    fs::write(folder.path("latin.csv"), b"text,label\n\xE9,1\n").unwrap();
    for (name, _, parts) in cases {
        let message = folder.failure(name);
        assert!(message.contains(name) && parts.iter().all(|part| message.contains(part)), "{name}: {message}");
    }
    fs::create_dir(folder.path("folder")).unwrap();
    assert!(folder.failure("folder").contains("it is a directory"));
    assert!(folder.failure("bda.jsonl").contains("there is no such file, did you mean \"bad.jsonl\"?"));
    assert!(folder.failure("nowhere/x.jsonl").contains("there is no directory"));
}

#[test]
fn odd_but_valid_files_are_read() {
    let huge = format!("{{\"text\":\"{}\",\"label\":0}}\n", "the cat ".repeat(200_000));
    let folder = Folder::with(&[
        ("huge.jsonl", &huge),
        ("header.csv", "text,label\n"),
        ("blank.jsonl", "\n\n  \n"),
        (
            "unicode.jsonl",
            "{\"text\":\"猫 \\ud83d\\ude42 \\u0000\",\"label\":\"是\"}\n{\"text\":\"\",\"label\":\"não\"}",
        ),
    ]);
    let data = folder.load("huge.jsonl", LabelKind::None).unwrap();
    assert_eq!((data.train.length(0), data.train.lost(0)), (16, 400_000 - 14));
    for name in ["header.csv", "blank.jsonl"] {
        let data = folder.load(name, LabelKind::Class(None)).unwrap();
        assert_eq!(codes(&data), [(Severity::Error, "no-rows")]);
        let order = Order::new(&data.train, 1, 8, Micro::Rows(8), true);
        assert_eq!(order.steps_per_epoch(), 0);
        assert_eq!(data.train.batch(&[], 0).seq, 0);
    }
    let data = folder.load("unicode.jsonl", LabelKind::Class(None)).unwrap();
    assert_eq!(data.train.label_names(), ["não", "是"]);
    assert_eq!(data.train.length(1), 2);
    assert!(codes(&data).contains(&(Severity::Warning, "empty-rows")));
}

#[test]
fn the_configuration_is_checked() {
    let folder = Folder::with(&[("a.jsonl", "{\"text\":\"a\",\"label\":1}")]);
    let fails = |config: DataConfig, kind, part: &str| {
        let Err(error) = folder.load_with(&config, kind) else { panic!("{part}") };
        assert!(error.to_string().contains(part), "{error}");
    };
    let weighted = |weight| {
        Files::Many(vec![FileEntry::Table(FileTable { path: "a.jsonl".into(), weight, config: None, split: None })])
    };
    fails(DataConfig::default(), LabelKind::None, "names no file");
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        fails(DataConfig { train: weighted(weight), ..Default::default() }, LabelKind::None, "weight");
    }
    let config = DataConfig { train: weighted(1.0), ..Default::default() };
    let Err(error) = load(&config, folder.0.path(), Target::Labels(LabelKind::None), &fixture(false), 2, 1) else {
        panic!()
    };
    assert!(error.to_string().contains("no room for text"));
    let names = LabelKind::Class(Some(vec!["good".into(), "bad".into(), "good".into()]));
    fails(config, names, "comes twice");
}

#[test]
fn labels_of_training_and_evaluation_share_their_names() {
    let folder = Folder::with(&[
        ("t.jsonl", "{\"text\":\"a\",\"label\":\"y\"}\n{\"text\":\"b\",\"label\":\"z\"}"),
        ("e.jsonl", "{\"text\":\"c\",\"label\":\"x\"}\n{\"text\":\"d\",\"label\":\"z\"}"),
    ]);
    let config = DataConfig { train: Files::one("t.jsonl"), eval: Some(Files::one("e.jsonl")), ..Default::default() };
    let data = folder.load_with(&config, LabelKind::Class(None)).unwrap();
    assert_eq!(data.eval.label_names(), ["x", "y", "z"]);
    assert_eq!(
        (data.train.label(0), data.eval.label(0), data.eval.label(1)),
        (Label::Class(1), Label::Class(0), Label::Class(2))
    );
    assert_eq!(
        codes(&data),
        [(Severity::Warning, "class-missing-in-train"), (Severity::Warning, "class-missing-in-eval")]
    );
    std::fs::write(folder.path("e.jsonl"), "{\"text\":\"c\",\"label\":\"Y\"}").unwrap();
    let data = folder.load_with(&config, LabelKind::Class(None)).unwrap();
    let found = codes(&data);
    for code in [(Severity::Error, "other-labels-in-eval"), (Severity::Warning, "labels-alike")] {
        assert!(found.contains(&code), "{found:?}");
    }
    std::fs::write(folder.path("e.jsonl"), "{\"text\":\"c\",\"label\":\"x\"}").unwrap();
    let named = LabelKind::Class(Some(vec!["y".into(), "z".into()]));
    let Err(error) = folder.load_with(&config, named) else { panic!() };
    assert!(error.to_string().contains("e.jsonl, line 1: the label \"x\" is not one of \"y\", \"z\""), "{error}");
}

#[test]
fn the_audit_finds_what_is_wrong() {
    let line = |text: &str, label: &str| format!("{{\"text\":\"{text}\",\"label\":{label}}}\n");
    let folder = Folder::with(&[
        (
            "t.jsonl",
            &[("the cat", "0"), ("The  CAT ", "0"), ("the cat", "1"), ("dog", "1"), ("  ", "0")]
                .map(|(text, label)| line(text, label))
                .concat(),
        ),
        ("e.jsonl", &[line("DOG", "1"), line("good", "0")].concat()),
        ("one.jsonl", &[line("a", "0"), line("b", "0")].concat()),
        ("same.jsonl", &[line("a", "0"), line("A", "1")].concat()),
        ("score.jsonl", &[line("a", "2.5"), line("b", "2.5")].concat()),
        ("long.jsonl", &[line("a", "0"), line(&"b ".repeat(20), "1")].concat()),
        ("strange.jsonl", &[line("zzz", "0"), line("b", "1")].concat()),
        (
            "rare.jsonl",
            &(0..22)
                .map(|i| line(&"a ".repeat(i % 11 + 1 + i / 11), if i == 0 { "0" } else { "1" }))
                .collect::<String>(),
        ),
    ]);
    let config = DataConfig { train: Files::one("t.jsonl"), eval: Some(Files::one("e.jsonl")), ..Default::default() };
    let data = folder.load_with(&config, LabelKind::Class(None)).unwrap();
    let find = |code: &str| data.report.findings.iter().find(|finding| finding.code == code).unwrap().message.clone();
    assert!(find("duplicate-rows").starts_with("1 training rows repeat another one: t.jsonl line 1 = t.jsonl line 3"));
    assert!(find("near-duplicate-rows").starts_with("1 training"));
    assert!(find("conflicting-labels").starts_with("1 texts"));
    assert_eq!(
        find("leakage"),
        "1 of 2 evaluation rows are also training rows, which flatters the evaluation: e.jsonl line 1 = t.jsonl line 4"
    );
    assert!(find("empty-rows").contains("t.jsonl line 5"));
    assert_eq!(data.report.train.labels.iter().map(|count| count.rows).collect::<Vec<_>>(), [3, 2]);

    let of = |name, kind| {
        codes(&folder.load(name, kind).unwrap()).into_iter().map(|(_, code)| code.to_owned()).collect::<Vec<_>>()
    };
    let class = || LabelKind::Class(None);
    assert_eq!(of("one.jsonl", class()), ["one-class"]);
    assert_eq!(of("same.jsonl", class()), ["identical-rows"]);
    assert_eq!(of("score.jsonl", LabelKind::Score), ["constant-score"]);
    assert_eq!(of("long.jsonl", class()), ["truncated-rows"]);
    assert_eq!(of("strange.jsonl", class()), ["unknown-tokens"]);
    assert!(of("rare.jsonl", class()).contains(&"label-imbalance".to_owned()));
    let split = folder.load_with(&DataConfig { train: Files::one("long.jsonl"), ..Default::default() }, class());
    assert!(split.unwrap().report.errors().any(|finding| finding.code == "no-eval-rows"));
}

#[test]
fn batches_are_padded_to_their_longest_row() {
    let folder = Folder::with(&[(
        "p.jsonl",
        "{\"a\":\"the cat\",\"b\":\"dog\"}\n{\"a\":\"\",\"b\":\"\"}\n{\"a\":\"a\",\"b\":\"b c d\"}\n",
    )]);
    let config = DataConfig {
        train: Files::one("p.jsonl"),
        eval: Some(Files::one("p.jsonl")),
        text: "a".into(),
        text_pair: Some("b".into()),
        ..Default::default()
    };
    let data = folder.load_with(&config, LabelKind::None).unwrap();
    let batch = data.eval.batch(&[1, 0], 99);
    assert_eq!((batch.batch, batch.seq, batch.rows.as_slice(), batch.lengths()), (2, 6, &[1, 0][..], vec![3, 6]));
    assert_eq!(batch.ids, [2, 3, 3, 99, 99, 99, 2, 5, 6, 3, 7, 3]);
    assert_eq!(batch.type_ids, [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    assert_eq!((data.eval.boundary(2), data.eval.length(2)), (3, 7));
}

#[test]
fn weights_follow_their_files_through_the_split() {
    let lines = |from: u8, to: u8| (from..to).map(|c| format!("{{\"text\":\"{}\"}}\n", c as char)).collect::<String>();
    let folder = Folder::with(&[("a.jsonl", &lines(b'a', b'k')), ("b.jsonl", &lines(b'k', b'z'))]);
    let train = Files::Many(vec![
        FileEntry::Path("a.jsonl".into()),
        FileEntry::Table(FileTable { path: "b.jsonl".into(), weight: 3.0, config: None, split: None }),
    ]);
    let config = DataConfig { train, eval_fraction: Some(0.2), ..Default::default() };
    let data = folder.load_with(&config, LabelKind::None).unwrap();
    assert_eq!((data.train.len(), data.eval.len()), (20, 5));
    let weight = |row| if data.train.source(row).path.ends_with("a.jsonl") { 1.0 } else { 3.0 };
    assert!((0..20).all(|row| data.train.weight(row) == weight(row)));
    let total: f64 = (0..20).map(weight).sum();
    assert_eq!(Order::new(&data.train, 1, 4, Micro::Rows(2), true).rows_per_epoch(), total as u64);
    // An epoch has whole rows.
    for (weight, severity, seen) in
        [(0.02, Severity::Error, "0 of the 20 from"), (0.07, Severity::Warning, "1 of the 20 from")]
    {
        let file = FileTable { path: "c.jsonl".into(), weight, config: None, split: None };
        let folder = Folder::with(&[("c.jsonl", &lines(b'a', b'u'))]);
        let config = DataConfig { train: Files::Many(vec![FileEntry::Table(file)]), ..config.clone() };
        let findings = folder
            .load_with(&DataConfig { eval_fraction: Some(0.0), ..config }, LabelKind::None)
            .unwrap()
            .report
            .findings;
        let found = findings.iter().find(|finding| finding.code == "rounded-weight").unwrap();
        assert!(found.severity == severity && found.message.contains(seen), "{found:?}");
    }
}

#[test]
fn rows_without_a_token_to_hide_are_refused_where_tokens_are_learned() {
    let folder = Folder::with(&[
        ("t.jsonl", "{\"text\":\"the cat\",\"label\":0}\n{\"text\":\"the dog\",\"label\":1}"),
        ("blank.jsonl", "{\"text\":\" \",\"label\":0}\n{\"text\":\"\",\"label\":1}"),
        ("beside.jsonl", "{\"text\":\"\",\"label\":0}\n{\"text\":\"a cat\",\"label\":1}"),
    ]);
    let found = |eval: &str, kind| {
        let config = DataConfig { train: Files::one("t.jsonl"), eval: Some(Files::one(eval)), ..Default::default() };
        let data = folder.load_with(&config, kind).unwrap();
        data.report.errors().map(|finding| finding.message.clone()).collect::<Vec<_>>()
    };
    let said = found("blank.jsonl", LabelKind::None);
    let expected = "the evaluation rows have no token but special ones, and nothing to learn: blank.jsonl line 1";
    assert!(said.len() == 1 && said[0].starts_with(expected), "{said:?}");
    assert!(found("beside.jsonl", LabelKind::None).is_empty());
    // A label can be learned of anything.
    assert!(found("blank.jsonl", LabelKind::Class(None)).is_empty());
}
