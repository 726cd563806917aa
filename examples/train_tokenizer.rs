//! Trains a BERT tokenizer (lower case, WordPiece) on the `text` of JSON lines and writes it as `tokenizer.json`.
//!
//! ```text
//! cargo run --release --example train_tokenizer -- 8000 corpus.jsonl tokenizer/tokenizer.json
//! ```

use std::error::Error;
use std::fs;
use std::path::Path;

use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, TokenizerBuilder};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [size, corpus, out] = arguments.as_slice() else {
        return Err("usage: train_tokenizer VOCAB_SIZE CORPUS.jsonl TOKENIZER.json".into());
    };
    let mut texts = Vec::new();
    for line in fs::read_to_string(corpus)?.lines() {
        let row: serde_json::Value = serde_json::from_str(line)?;
        texts.push(row["text"].as_str().ok_or("a line has no `text`")?.to_owned());
    }

    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let mut trainer = WordPieceTrainer::builder()
        .vocab_size(size.parse()?)
        .min_frequency(2)
        .show_progress(false)
        .limit_alphabet(200)
        .special_tokens(special.iter().map(|token| AddedToken::from(*token, true)).collect())
        .build();
    let model = WordPiece::builder().unk_token("[UNK]".into()).build().map_err(|error| error.to_string())?;
    let template = TemplateProcessing::builder()
        .try_single("[CLS] $A [SEP]")?
        .try_pair("[CLS] $A [SEP] $B:1 [SEP]:1")?
        .special_tokens(vec![("[CLS]", 2), ("[SEP]", 3)])
        .build()?;
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(model)
        .with_normalizer(Some(BertNormalizer::new(true, true, None, true)))
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(Some(template))
        .with_decoder(Some(WordPieceDecoder::default()))
        .build()
        .map_err(|error| error.to_string())?;
    tokenizer.train(&mut trainer, texts.iter()).map_err(|error| error.to_string())?;
    if let Some(dir) = Path::new(out).parent() {
        fs::create_dir_all(dir)?;
    }
    tokenizer.save(out, false).map_err(|error| error.to_string())?;
    println!("{out}: {} tokens", tokenizer.get_vocab_size(true));
    Ok(())
}
