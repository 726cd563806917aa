//! Trains a byte-level BPE tokenizer on the `text` of JSON lines, for a decoder: `tokenizer.json` and `tokenizer_config.json`
//! with a token that ends texts, and those of ChatML.
//!
//! ```text
//! cargo run --release --example train_bpe_tokenizer -- 8192 corpus.jsonl tokenizer
//! ```

use std::error::Error;
use std::fs;
use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::Sequence;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

const SETTINGS: &str = r#"{
  "tokenizer_class": "PreTrainedTokenizerFast",
  "eos_token": "<|endoftext|>",
  "pad_token": "<|pad|>",
  "clean_up_tokenization_spaces": false
}
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [size, corpus, out] = arguments.as_slice() else {
        return Err("usage: train_bpe_tokenizer VOCAB_SIZE CORPUS.jsonl DIRECTORY".into());
    };
    let mut texts = Vec::new();
    for line in fs::read_to_string(corpus)?.lines() {
        let row: serde_json::Value = serde_json::from_str(line)?;
        texts.push(row["text"].as_str().ok_or("a line has no `text`")?.to_owned());
    }

    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"];
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(size.parse()?)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special.map(|token| AddedToken::from(token, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::<BPE, Sequence, ByteLevel, ByteLevel, ByteLevelDecoder>::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(bytes))
        .with_post_processor(None)
        .with_decoder(Some(ByteLevelDecoder::default()))
        .build()
        .map_err(|error| error.to_string())?;
    tokenizer.train(&mut trainer, texts.iter()).map_err(|error| error.to_string())?;
    fs::create_dir_all(out)?;
    tokenizer.save(Path::new(out).join("tokenizer.json"), false).map_err(|error| error.to_string())?;
    fs::write(Path::new(out).join("tokenizer_config.json"), SETTINGS)?;
    println!("{out}: {} tokens", tokenizer.get_vocab_size(true));
    Ok(())
}
