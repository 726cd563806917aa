//! Makes an untrained student for `[task] kind = "distillation"`: the teacher's tokenizer with the tokens that a corpus
//! uses most, a smaller BERT with random weights, and word embeddings that are a random projection of the teacher's, which
//! keeps their distances (Johnson & Lindenstrauss 1984).
//!
//! ```text
//! cargo run --release --example make_student -- TEACHER_DIR corpus.jsonl configs/encoder-3m/config.json OUT_DIR
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use serde_json::{Value, json};
use temper_data::Tokenizer;
use temper_models::{Backbone, Config, Init, SaveDtype, Weights};
use temper_peft::{init, parameters};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [teacher, corpus, config, out] = arguments.as_slice() else {
        return Err("usage: make_student TEACHER_DIR CORPUS.jsonl CONFIG.json OUT_DIR".into());
    };
    let config = Config::read_file(Path::new(config))?;
    let (size, width) = (config.vocab_size(), config.hidden_size());

    // Special tokens, single characters and their continuations, then whatever the corpus uses most.
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(Path::new(teacher).join("tokenizer.json"))?)?;
    let vocabulary: HashMap<String, u32> = serde_json::from_value(tokenizer["model"]["vocab"].clone())?;
    let theirs = Tokenizer::from_dir(Path::new(teacher))?;
    let mut uses: HashMap<u32, usize> = HashMap::new();
    for line in fs::read_to_string(corpus)?.lines() {
        let row: Value = serde_json::from_str(line)?;
        let ids = theirs.encode(row["text"].as_str().unwrap_or_default(), None, 1 << 20)?.ids;
        ids.into_iter().for_each(|id| *uses.entry(id).or_default() += 1);
    }
    let short = |token: &str| token.is_ascii() && token.trim_start_matches("##").len() == 1;
    let mut kept: BTreeSet<u32> = theirs.special_ids().into_iter().collect();
    kept.extend(vocabulary.iter().filter(|(token, _)| short(token)).map(|(_, id)| *id));
    let mut by_use: Vec<(u32, usize)> = uses.into_iter().collect();
    by_use.sort_by_key(|&(id, uses)| (std::cmp::Reverse(uses), id));
    for (id, _) in by_use {
        if kept.len() < size {
            kept.insert(id);
        }
    }
    // Ids keep their order; padding, the smallest, stays 0.
    let kept: Vec<u32> = kept.into_iter().collect();
    let new_ids: HashMap<u32, usize> = kept.iter().enumerate().map(|(new, &old)| (old, new)).collect();
    let smaller = vocabulary.iter().filter_map(|(token, old)| Some((token.clone(), *new_ids.get(old)?)));
    tokenizer["model"]["vocab"] = json!(smaller.collect::<BTreeMap<_, _>>());
    renumber(&mut tokenizer, &vocabulary, &new_ids);
    tokenizer["truncation"] = Value::Null;
    tokenizer["padding"] = Value::Null;
    fs::create_dir_all(out)?;
    fs::write(Path::new(out).join("tokenizer.json"), tokenizer.to_string())?;
    fs::write(Path::new(out).join("config.json"), serde_json::to_string_pretty(&config.raw)?)?;

    let weights = Weights::open(Path::new(teacher))?;
    let name = "embeddings.word_embeddings.weight";
    let teacher_width = weights.shape(name).ok_or("the teacher has no word embeddings under their usual name")?[1];
    let embeddings = weights.read(name)?;
    let projection = init::normal(1, "projection", teacher_width * width, 1.0 / (width as f64).sqrt());
    let student = temper_models::initialise(
        Backbone::new(&config, &Device::flex()).without_pooler(),
        &Init { seed: 1, range: config.initializer_range() },
        |_| true,
    );
    let mut values = parameters::read(&student, |_| true)?;
    let table = values.get_mut(name).ok_or("the student has no word embeddings")?;
    for (new, old) in kept.iter().enumerate() {
        let row = &embeddings[*old as usize * teacher_width..][..teacher_width];
        for column in 0..width {
            table.data[new * width + column] =
                row.iter().zip(projection[column..].iter().step_by(width)).map(|(x, p)| x * p).sum();
        }
    }
    let values = values.into_iter().map(|(name, values)| (name, values.into())).collect();
    temper_models::save(Path::new(out), &values, SaveDtype::F32)?;
    println!("{out}: {} of {} tokens, {width} of {teacher_width} dimensions", kept.len(), vocabulary.len());
    Ok(())
}

/// Gives added tokens and the template of the post-processor their new ids.
fn renumber(value: &mut Value, vocabulary: &HashMap<String, u32>, new_ids: &HashMap<u32, usize>) {
    let new = |token: &str| vocabulary.get(token).and_then(|old| new_ids.get(old));
    for token in value["added_tokens"].as_array_mut().into_iter().flatten() {
        token["id"] = json!(token["content"].as_str().and_then(new));
    }
    let processor = &mut value["post_processor"];
    for key in ["cls", "sep"] {
        if let Some(id) = processor[key][0].as_str().and_then(new).copied() {
            processor[key][1] = json!(id);
        }
    }
    for (token, settings) in processor["special_tokens"].as_object_mut().into_iter().flatten() {
        settings["ids"] = json!([new(token)]);
    }
}
