//! Broken data and broken models, and what `temper` says about each, letter for letter: `golden/bad_data.txt` and
//! `golden/bad_models.txt`. `TEMPER_BLESS=1` rewrites them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::golden::same;
use crate::{root, temper, text};

/// Runs `plan` (or `train`) on the short recipe; what it says, without the directory's name and its length in carets.
fn refusal(verb: &str, dir: &Path, overrides: &[String]) -> String {
    let run = format!("run.dir={}", dir.join("run").display());
    let set = overrides.iter().map(String::as_str).chain([run.as_str()]).flat_map(|value| ["--set", value]);
    let arguments: Vec<&str> = [verb, "--recipe", "tests/recipes/short.toml"].into_iter().chain(set).collect();
    let out = temper(&arguments);
    let said = text(&out.stderr);
    assert!(!out.status.success() && !said.contains("panicked"), "{overrides:?}: {said}");
    assert!(!dir.join("run/export").exists(), "{overrides:?} left an export");
    let mut said = said.replace(&dir.display().to_string(), "DIR");
    while said.contains("^^") {
        said = said.replace("^^", "^");
    }
    format!("exit {}\n{said}", out.status.code().unwrap())
}

/// A file of rows, and settings that point at it.
fn data_case(name: &str, bytes: &[u8], set: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    let mut overrides = vec![format!("data.train={}", path.display()), "data.eval_fraction=0.25".into()];
    overrides.extend(set.iter().map(|set| set.replace("DIR", &dir.path().display().to_string())));
    refusal("plan", dir.path(), &overrides)
}

/// `n` rows of alternating labels as JSON lines, with `line` in place of the third.
fn rows(n: usize, line: &str) -> Vec<u8> {
    let row = |i: usize| {
        json!({"text": format!("row {i} of many"), "label": (if i.is_multiple_of(2) { "no" } else { "yes" })})
            .to_string()
    };
    let lines: Vec<String> = (0..n).map(|i| if i == 2 { line.into() } else { row(i) }).collect();
    (lines.join("\n") + "\n").into_bytes()
}

#[test]
fn each_broken_data_file_is_refused_in_these_words() {
    let utf16: Vec<u8> = [0xFF, 0xFE].into_iter().chain("{}\n".bytes().flat_map(|byte| [byte, 0])).collect();
    let one_label = "{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"b\", \"label\": \"x\"}\n".repeat(8);
    let same_text = "{\"text\": \"\", \"label\": \"x\"}\n{\"text\": \"\", \"label\": \"y\"}\n".repeat(8);
    let csv = |third: &str| format!("text,label\none,no\ntwo,yes\n{third}\nfour,yes\n").into_bytes();
    let regression: &[&str] = &["task.problem=regression", "data.label=label"];
    let cases: &[(&str, &str, Vec<u8>, &[&str])] = &[
        ("a name with a slip", "rows.jsonl", rows(8, "{}"), &["data.train=DIR/rosw.jsonl"]),
        ("a directory that is not there", "rows.jsonl", rows(8, "{}"), &["data.train=DIR/data/rows.jsonl"]),
        ("a directory", "rows.jsonl", rows(8, "{}"), &["data.train=DIR"]),
        ("an empty file", "rows.jsonl", vec![], &[]),
        ("nothing but blank lines", "rows.jsonl", b"\n\n \n".to_vec(), &[]),
        ("an unknown extension", "rows.xlsx", rows(8, "{}"), &[]),
        ("a compressed file", "rows.jsonl.gz", vec![0x1f, 0x8b, 8], &[]),
        ("a line that is no JSON", "rows.jsonl", rows(8, "{\"text\": \"cut of"), &[]),
        ("a line with a second object", "rows.jsonl", rows(8, "{\"text\": \"a\", \"label\": \"no\"} {}"), &[]),
        ("a line that is a number", "rows.jsonl", rows(8, "17"), &[]),
        ("a JSON array", "rows.json", b"[{\"text\": \"a\", \"label\": \"no\"}]".to_vec(), &[]),
        ("a pretty-printed object", "rows.json", b"{\n  \"text\": \"a\"\n}\n".to_vec(), &[]),
        ("a column with a slip", "rows.jsonl", rows(8, "{\"txt\": \"a\", \"label\": \"no\"}"), &[]),
        ("a column that another tool uses", "rows.csv", b"sentence,label\na,no\nb,yes\n".to_vec(), &[]),
        ("a text that is null", "rows.jsonl", rows(8, "{\"text\": null, \"label\": \"no\"}"), &[]),
        ("a text that is a number", "rows.jsonl", rows(8, "{\"text\": 4, \"label\": \"no\"}"), &[]),
        ("a key twice", "rows.jsonl", rows(8, "{\"text\": \"a\", \"text\": \"b\", \"label\": \"no\"}"), &[]),
        ("a label that is null", "rows.jsonl", rows(8, "{\"text\": \"a\", \"label\": null}"), &[]),
        ("a label that is a list", "rows.jsonl", rows(8, "{\"text\": \"a\", \"label\": [\"no\"]}"), &[]),
        (
            "a label nobody named",
            "rows.jsonl",
            rows(8, "{\"text\": \"a\", \"label\": \"yse\"}"),
            &["task.labels=[\"no\", \"yes\"]"],
        ),
        ("bytes that are not UTF-8", "rows.jsonl", b"{\"text\": \"caf\xe9\", \"label\": \"no\"}\n".to_vec(), &[]),
        ("UTF-16", "rows.jsonl", utf16, &[]),
        ("a row with too few cells", "rows.csv", csv("three"), &[]),
        ("a quote that is never closed", "rows.csv", csv("\"three,no"), &[]),
        ("a header with a column twice", "rows.csv", b"text,text,label\na,b,no\n".to_vec(), &[]),
        ("a header alone", "rows.csv", b"text,label\n".to_vec(), &[]),
        ("a text file that calls itself Parquet", "rows.parquet", b"text,label\na,no\n".to_vec(), &[]),
        ("a text file that calls itself Arrow", "rows.arrow", b"text,label\na,no\n".to_vec(), &[]),
        ("Feather of version 1", "rows.feather", b"FEA1 and more".to_vec(), &[]),
        ("one label for all rows", "rows.jsonl", one_label.into_bytes(), &[]),
        ("texts without a word", "rows.jsonl", same_text.into_bytes(), &[]),
        ("a single row", "rows.jsonl", rows(1, ""), &[]),
        ("a score that is a word", "rows.jsonl", rows(8, "{\"text\": \"a\", \"label\": 1}"), regression),
        ("a score that is not finite", "rows.csv", b"text,label\na,1\nb,nan\nc,2\n".to_vec(), regression),
        (
            "several labels in a column of 7",
            "rows.csv",
            b"text,a,b\nx,0,1\ny,7,0\n".to_vec(),
            &["task.problem=multi-label", "data.label=[\"a\", \"b\"]"],
        ),
        ("a second text that is not there", "rows.jsonl", rows(8, "{}"), &["data.text_pair=hypothesis"]),
        ("more positions than the model has", "rows.jsonl", rows(8, "{}"), &["data.max_length=4096"]),
    ];
    let mut said = String::new();
    for (what, name, bytes, set) in cases {
        said += &format!("# {what}\n{}\n", data_case(name, bytes, set));
    }
    same("bad_data.txt", &said);
}

/// A copy of the carried encoder, to be broken.
struct Model(tempfile::TempDir);

impl Model {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(root().join("examples/encoder").join(name), dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.0.path().join(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.path().join(name)).unwrap()
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.0.path().join(name)).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.0.path().join(from), self.0.path().join(to)).unwrap();
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        let mut config: Value = serde_json::from_slice(&self.read("config.json")).unwrap();
        change(&mut config);
        self.write("config.json", config.to_string());
    }

    /// Changes the header of the weights.
    fn header(&self, change: impl FnOnce(&mut Value)) {
        let bytes = self.read("model.safetensors");
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
        change(&mut header);
        let header = header.to_string();
        let length = (header.len() as u64).to_le_bytes();
        self.write("model.safetensors", [&length[..], header.as_bytes(), &bytes[end..]].concat());
    }

    fn weights(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.read("model.safetensors");
        change(&mut bytes);
        self.write("model.safetensors", bytes);
    }

    fn rename_tensor(&self, from: &str, to: Option<&str>) {
        self.header(|header| {
            let tensor = header.as_object_mut().unwrap().remove(from).unwrap();
            if let Some(to) = to {
                header[to] = tensor;
            }
        });
    }
}

const QUERY: &str = "bert.encoder.layer.2.attention.self.query.weight";

#[test]
fn each_broken_model_is_refused_in_these_words() {
    type Break = fn(&Model);
    let cases: &[(&str, &str, Break)] = &[
        ("no config.json", "plan", |m| m.remove("config.json")),
        ("a config.json that is cut off", "plan", |m| m.write("config.json", "{\"model_type\": \"be")),
        ("a config.json that is a list", "plan", |m| m.write("config.json", "[]")),
        ("no model_type", "plan", |m| m.config(|c| drop(c.as_object_mut().unwrap().remove("model_type")))),
        ("a model_type with a slip", "plan", |m| m.config(|c| c["model_type"] = json!("bret"))),
        ("an architecture that temper does not know", "plan", |m| m.config(|c| c["model_type"] = json!("t5"))),
        ("no hidden_size", "plan", |m| m.config(|c| drop(c.as_object_mut().unwrap().remove("hidden_size")))),
        ("a hidden_size that is a text", "plan", |m| m.config(|c| c["hidden_size"] = json!("192"))),
        ("a width that the heads do not divide", "plan", |m| m.config(|c| c["num_attention_heads"] = json!(5))),
        ("an activation that temper does not know", "plan", |m| m.config(|c| c["hidden_act"] = json!("gleu"))),
        ("more layers than the weights have", "plan", |m| m.config(|c| c["num_hidden_layers"] = json!(6))),
        ("another width than the weights have", "plan", |m| m.config(|c| c["hidden_size"] = json!(384))),
        ("code of its own", "plan", |m| m.config(|c| c["auto_map"] = json!({"AutoModel": "modeling.Mine"}))),
        ("no weights", "plan", |m| m.remove("model.safetensors")),
        ("a pickle in place of safetensors", "plan", |m| m.rename("model.safetensors", "pytorch_model.bin")),
        ("weights that are cut off", "plan", |m| m.weights(|w| w.truncate(w.len() / 2))),
        ("weights that are empty", "plan", |m| m.weights(Vec::clear)),
        ("a header longer than the file", "plan", |m| m.weights(|w| w[..8].fill(0x7f))),
        ("a header that is no JSON", "plan", |m| m.weights(|w| w[8] = b'?')),
        ("a page of HTML in place of weights", "plan", |m| m.write("model.safetensors", "<html>404 Not Found</html>")),
        ("a tensor that is missing", "plan", |m| m.rename_tensor(QUERY, None)),
        ("a tensor under another name", "plan", |m| {
            m.rename_tensor(QUERY, Some("bert.encoder.layer.2.attention.self.q.weight"))
        }),
        ("a tensor of another shape", "plan", |m| m.header(|h| h[QUERY]["shape"] = json!([96, 384]))),
        ("a tensor of integers", "plan", |m| m.header(|h| h[QUERY]["dtype"] = json!("I16"))),
        ("a tensor that lies outside the file", "plan", |m| {
            m.header(|h| h[QUERY]["data_offsets"] = json!([1, 99999999]))
        }),
        ("a value that is not a number", "train", |m| {
            m.weights(|w| {
                let end = w.len();
                w[end - 512..].fill(0xff);
            })
        }),
        ("an index without its shard", "plan", |m| {
            m.remove("model.safetensors");
            m.write(
                "model.safetensors.index.json",
                json!({"weight_map": {QUERY: "model-00001-of-00002.safetensors"}}).to_string(),
            );
        }),
        ("an index that leads out of the directory", "plan", |m| {
            m.remove("model.safetensors");
            m.write("model.safetensors.index.json", json!({"weight_map": {QUERY: "../model.safetensors"}}).to_string());
        }),
        ("no tokenizer", "plan", |m| m.remove("tokenizer.json")),
        ("a tokenizer that is cut off", "plan", |m| m.write("tokenizer.json", "{\"version\": \"1.0\", \"model\"")),
        ("more classes than can be counted", "plan", |m| m.config(|c| c["num_labels"] = json!(1_000_000_000_000_u64))),
        ("more layers than can be counted", "plan", |m| m.config(|c| c["num_hidden_layers"] = json!(100_000_000))),
        ("no kind of segment", "plan", |m| m.config(|c| c["type_vocab_size"] = json!(0))),
        ("fewer embeddings than tokens", "plan", |m| {
            m.config(|c| c["vocab_size"] = json!(7000));
        }),
    ];
    let mut said = String::new();
    for (what, verb, damage) in cases {
        let model = Model::new();
        damage(&model);
        let base = format!("model.base={}", model.0.path().display());
        said += &format!("# {what}\n{}\n", refusal(verb, model.0.path(), &[base]));
    }
    same("bad_models.txt", &said);
}
