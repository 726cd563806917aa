//! The tokenizer that ships: in Python it gives the tokens that the model learned by.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use temper_data::{Class, Tokenizer};
use temper_models::Config;

use super::drop_foreign;
use crate::failure::{Context, Failure, Kind};
use crate::run_dir::{write_atomically, write_json};

/// Copies the tokenizer and notes the longest input.
pub fn write_tokenizer(tokenizer: &Tokenizer, config: &Config, max_length: usize, dir: &Path) -> Result<(), Failure> {
    for from in tokenizer.files() {
        let to = dir.join(from.strip_prefix(tokenizer.directory()).unwrap_or(from));
        let failed = || format!("failed to copy {}", from.display());
        to.parent().map_or(Ok(()), fs::create_dir_all).context(Kind::Other, failed())?;
        write_atomically(&to, &fs::read(from).context(Kind::Other, failed())?)?;
    }
    if !tokenizer.is_as_written() {
        let json = tokenizer.to_json().context(Kind::Other, "failed to write the tokenizer")?;
        write_atomically(&dir.join("tokenizer.json"), json.as_bytes())?;
    }
    let path = dir.join("tokenizer_config.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|_| "{}".into());
    let settings: Result<Map<String, Value>, _> = serde_json::from_str(&text);
    let mut settings = settings.context(Kind::Data, "failed to understand tokenizer_config.json")?;
    drop_foreign(&mut settings);
    settings.insert("model_max_length".into(), json!(max_length));
    complete(&mut settings, tokenizer, config);
    write_json(&path, &settings.into())
}

/// Says what Python needs to read the same tokens. What is said already stays, `null` included.
fn complete(settings: &mut Map<String, Value>, tokenizer: &Tokenizer, config: &Config) {
    // Which takes `tokenizer.json` as it is, and knows nothing else.
    const PLAIN: &str = "PreTrainedTokenizerFast";
    // What Transformers 5 calls the same.
    const NEW_PLAIN: &str = "TokenizersBackend";
    const USUAL: [(&str, [&str; 2]); 5] = [
        ("unk_token", ["[UNK]", "<unk>"]),
        ("cls_token", ["[CLS]", "<s>"]),
        ("sep_token", ["[SEP]", "</s>"]),
        ("pad_token", ["[PAD]", "<pad>"]),
        ("mask_token", ["[MASK]", "<mask>"]),
    ];
    let class = match settings.get("tokenizer_class") {
        Some(named) => Class::named(named),
        None => Class::of_model(config.model_type()),
    };
    if let Some(class) = class {
        for (key, token) in class.tokens.iter().filter(|(_, token)| tokenizer.token_id(token).is_some()) {
            settings.entry(*key).or_insert_with(|| json!(token));
        }
        if class.pads_left {
            settings.entry("padding_side").or_insert_with(|| json!("left"));
        }
        settings.entry("model_input_names").or_insert_with(|| json!(["input_ids", "attention_mask"]));
        settings.insert("tokenizer_class".into(), json!(PLAIN));
        return;
    }
    let class = settings.entry("tokenizer_class").or_insert_with(|| json!(PLAIN));
    if class != PLAIN && class != NEW_PLAIN {
        // Which has its own opinion where it is told nothing.
        for (key, value) in tokenizer.bert_settings() {
            settings.entry(key).or_insert(value);
        }
        return;
    }
    // `<s>` and `</s>` are these only where texts are framed by them.
    let frames = tokenizer.added_tokens(true) > 0;
    for (key, names) in USUAL.iter().filter(|(key, _)| frames || !["cls_token", "sep_token"].contains(key)) {
        if let Some(name) = names.iter().find(|name| tokenizer.token_id(name).is_some()) {
            settings.entry(*key).or_insert_with(|| json!(name));
        }
    }
    // A decoder refuses the segments that it would be given then.
    if config.type_vocab_size() > 0 && tokenizer.marks_pairs() {
        let inputs = json!(["input_ids", "token_type_ids", "attention_mask"]);
        settings.entry("model_input_names").or_insert(inputs);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `tokenizer_config.json` of an export, from that of a base of `files` and `model`.
    fn shipped(model: &Value, files: &[(&str, String)]) -> (Value, tempfile::TempDir) {
        let base = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(base.path().join(name), text).unwrap();
        }
        let tokenizer = Tokenizer::from_dir(base.path()).unwrap();
        let config = Config::parse(model.clone(), Path::new("config.json")).unwrap();
        let to = tempfile::tempdir().unwrap();
        write_tokenizer(&tokenizer, &config, 16, to.path()).unwrap();
        let text = fs::read(to.path().join("tokenizer_config.json")).unwrap();
        (serde_json::from_slice(&text).unwrap(), to)
    }

    fn config(model_type: &str) -> Value {
        json!({"model_type": model_type, "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
            "intermediate_size": 8, "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "type_vocab_size": 2,
            "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16})
    }

    /// Transformers would build these from the vocabulary, and split texts as the class does, not as `tokenizer.json`.
    #[test]
    fn classes_that_are_made_anew_ship_as_files() {
        let whole = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "<|endoftext|>": 3}}});
        let of = |model: &str, settings: Value| {
            let files = [("tokenizer.json", whole.to_string()), ("tokenizer_config.json", settings.to_string())];
            shipped(&config(model), &files).0
        };
        let inputs = json!(["input_ids", "attention_mask"]);
        let plain = "PreTrainedTokenizerFast";
        assert_eq!(
            of("llama", json!({"tokenizer_class": "LlamaTokenizerFast", "eos_token": null})),
            json!({"tokenizer_class": plain, "eos_token": null, "model_max_length": 16, "bos_token": "<s>", "unk_token": "<unk>",
                "padding_side": "left", "model_input_names": inputs})
        );
        assert_eq!(
            of("qwen3", json!({})),
            json!({"model_max_length": 16, "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
                "model_input_names": inputs, "tokenizer_class": plain})
        );
        // Tokens that the vocabulary lacks are none.
        assert_eq!(
            of("roberta", json!({"tokenizer_class": "XLMRobertaTokenizer", "model_input_names": ["input_ids"]})),
            json!({"tokenizer_class": plain, "model_input_names": ["input_ids"], "model_max_length": 16, "bos_token": "<s>",
                "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>"})
        );
        // What no class knows.
        assert_eq!(
            of("llama", json!({})),
            json!({"model_max_length": 16, "tokenizer_class": plain, "unk_token": "<unk>"})
        );
    }

    /// A vocabulary ships with the `tokenizer.json` that it stands for.
    #[test]
    fn what_the_settings_overrule_ships_in_the_file() {
        let vocabulary = ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nA".to_owned());
        let settings = |class: &str| {
            let settings = json!({"tokenizer_class": class, "do_lower_case": false});
            ("tokenizer_config.json", settings.to_string())
        };
        let (told, dir) = shipped(&config("bert"), &[vocabulary.clone(), settings("BertTokenizer")]);
        assert_eq!(
            told,
            json!({"tokenizer_class": "BertTokenizer", "do_lower_case": false, "model_max_length": 16, "strip_accents": null,
                "tokenize_chinese_chars": true})
        );
        let file: Value = serde_json::from_slice(&fs::read(dir.path().join("tokenizer.json")).unwrap()).unwrap();
        assert_eq!(file["normalizer"]["lowercase"], false);
        fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
        assert_eq!(Tokenizer::from_dir(dir.path()).unwrap().encode("A", None, 8).unwrap().ids, [2, 6, 3]);
    }
}
