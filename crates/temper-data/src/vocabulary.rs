//! Tokenizers from bare vocabularies, for models that ship no `tokenizer.json`.

use std::path::Path;

use serde_json::Value;
use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, Tokenizer,
    decoders::wordpiece::WordPiece as WordPieceDecoder,
    models::{bpe::BPE, wordpiece::WordPiece},
    normalizers::bert::BertNormalizer,
    pre_tokenizers::{bert::BertPreTokenizer, byte_level::ByteLevel},
    processors::{bert::BertProcessing, roberta::RobertaProcessing},
};

use crate::classes::Class;
use crate::error::{Error, Result};

/// What settings call tokens that have a part.
pub(crate) const SPECIAL: [&str; 7] =
    ["pad_token", "mask_token", "unk_token", "cls_token", "sep_token", "bos_token", "eos_token"];

fn fail(path: &Path, message: impl ToString) -> Error {
    Error::Tokenizer { path: path.to_owned(), message: message.to_string() }
}

/// A JSON file; an empty object where there is none.
pub(crate) fn json(path: &Path) -> Result<Value> {
    if !path.is_file() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let bytes = std::fs::read(path).map_err(|e| fail(path, e))?;
    match serde_json::from_slice(&bytes).map_err(|e| fail(path, e))? {
        Value::Object(settings) => Ok(Value::Object(settings)),
        other => Err(fail(path, format!("it must be an object, found `{other}`"))),
    }
}

/// `tokenizer_config.json`, completed by `special_tokens_map.json`, then by what its class knows.
pub(crate) fn settings(directory: &Path) -> Result<Value> {
    let mut settings = json(&directory.join("tokenizer_config.json"))?;
    let class = Class::named(&settings["tokenizer_class"]);
    if let (Value::Object(to), Value::Object(from)) = (&mut settings, json(&directory.join("special_tokens_map.json"))?)
    {
        for (key, value) in from {
            to.entry(key).or_insert(value);
        }
        for (key, token) in class.into_iter().flat_map(|class| class.tokens) {
            to.entry(*key).or_insert_with(|| (*token).into());
        }
    }
    Ok(settings)
}

/// Settings that Transformers' classes of BERT, RoBERTa and GPT-2 hold above what `tokenizer.json` says of the same; whether they say
/// anything else.
pub(crate) fn overrule(tokenizer: &mut Tokenizer, settings: &Value) -> tokenizers::Result<bool> {
    let class = settings["tokenizer_class"].as_str().unwrap_or_default();
    if ["PreTrainedTokenizerFast", "TokenizersBackend"].contains(&class) {
        return Ok(false);
    }
    let mut other = false;
    let flag = |key: &str| settings[key].as_bool();
    if let Some(NormalizerWrapper::BertNormalizer(own)) = tokenizer.get_normalizer() {
        let accents = if settings.get("strip_accents").is_some() { flag("strip_accents") } else { own.strip_accents };
        let chinese = flag("tokenize_chinese_chars").unwrap_or(own.handle_chinese_chars);
        let lower = flag("do_lower_case").unwrap_or(own.lowercase);
        other |= (chinese, accents, lower) != (own.handle_chinese_chars, own.strip_accents, own.lowercase);
        let normalizer = BertNormalizer::new(own.clean_text, chinese, accents, lower);
        tokenizer.with_normalizer(Some(normalizer))?;
    }
    if let (Some(PreTokenizerWrapper::ByteLevel(own)), Some(prefix)) =
        (tokenizer.get_pre_tokenizer(), flag("add_prefix_space"))
    {
        other |= own.add_prefix_space != prefix;
        let splitter = own.add_prefix_space(prefix);
        tokenizer.with_pre_tokenizer(Some(splitter));
    }
    Ok(other)
}

/// Adds the tokens of `added_tokens_decoder`, as Transformers does: those that `tokenizer.json` lacks, and how others take the space
/// around them. Tokens of the vocabulary that have a part, such as `eos_token`, are found in texts as they are.
pub(crate) fn complete(tokenizer: &mut Tokenizer, settings: &Value) -> Result<(), String> {
    let listed = settings["added_tokens_decoder"].as_object();
    let mut listed: Vec<(u32, &Value)> =
        listed.into_iter().flatten().filter_map(|(id, token)| Some((id.parse().ok()?, token))).collect();
    listed.sort_by_key(|(id, _)| *id);
    for (id, token) in listed {
        let Some(text) = content(token) else { continue };
        let flag = |key: &str, default: bool| token[key].as_bool().unwrap_or(default);
        let special = flag("special", false);
        let added = AddedToken::from(text, special)
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .single_word(flag("single_word", false))
            .normalized(flag("normalized", !special));
        tokenizer.add_tokens([added]).map_err(|error| error.to_string())?;
        let found = tokenizer.token_to_id(text);
        if found != Some(id) {
            let found = found.map_or_else(|| "no token".to_owned(), |id| format!("token {id}"));
            return Err(format!("added_tokens_decoder has `{text}` as {id}, and in the vocabulary it is {found}"));
        }
    }
    if settings["split_special_tokens"] == true {
        return Err("`split_special_tokens` is true, and temper finds special tokens in texts; remove it".into());
    }
    let listed = settings["additional_special_tokens"].as_array().into_iter().flatten();
    let named = SPECIAL.iter().map(|key| &settings[*key]).chain(listed).filter_map(content);
    let added = tokenizer.get_added_tokens_decoder();
    let new = |text: &&str| tokenizer.token_to_id(text).is_some_and(|id| !added.contains_key(&id));
    let new: Vec<AddedToken> = named.filter(new).map(|text| AddedToken::from(text, true)).collect();
    tokenizer.add_special_tokens(new).map_err(|error| error.to_string())?;
    Ok(())
}

/// A token in a configuration: `"[PAD]"` or `{"content": "[PAD]", …}`.
pub(crate) fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// The classes of Transformers that [`read`] knows the pipeline of.
const WORD_PIECE: [&str; 4] = ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast"];
const BYTE_LEVEL: [&str; 4] = ["GPT2Tokenizer", "GPT2TokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast"];

/// From `vocab.txt`, or else `vocab.json` and `merges.txt`, with the tokens that were added to them.
pub(crate) fn read(directory: &Path, settings: &Value) -> Result<Tokenizer> {
    let word_pieces = directory.join("vocab.txt").is_file();
    let known = if word_pieces { WORD_PIECE } else { BYTE_LEVEL };
    // That of exports of ours, once.
    let known = |class: &&str| known.contains(class) || *class == "PreTrainedTokenizerFast";
    if let Some(class) = settings["tokenizer_class"].as_str().filter(|class| !known(class)) {
        let message = format!(
            "a {class} is read from its tokenizer.json alone, and there is none: write it with Transformers' save_pretrained"
        );
        return Err(fail(directory, message));
    }
    let mut tokenizer = match word_pieces {
        true => word_piece(&directory.join("vocab.txt"), settings)?,
        false => byte_level_bpe(directory, settings)?,
    };
    let path = directory.join("added_tokens.json");
    let Value::Object(added) = json(&path)? else { return Ok(tokenizer) };
    let mut added: Vec<(&String, u64)> = added.iter().filter_map(|(token, id)| Some((token, id.as_u64()?))).collect();
    added.sort_by_key(|(_, id)| *id);
    for (token, id) in added {
        tokenizer.add_tokens([AddedToken::from(token.as_str(), false)]).map_err(|e| fail(&path, e))?;
        if tokenizer.token_to_id(token).map(u64::from) != Some(id) {
            return Err(fail(&path, format!("`{token}` cannot be token {id} of this vocabulary")));
        }
    }
    Ok(tokenizer)
}

/// BERT's WordPiece from `vocab.txt`, one token a line (Devlin et al. 2018, arXiv:1810.04805).
fn word_piece(path: &Path, settings: &Value) -> Result<Tokenizer> {
    let name = |key: &str, usual: &'static str| content(&settings[key]).unwrap_or(usual).to_owned();
    let flag = |key: &str| settings[key].as_bool();
    let [unknown, cls, sep] = [name("unk_token", "[UNK]"), name("cls_token", "[CLS]"), name("sep_token", "[SEP]")];
    let model = WordPiece::from_file(&path.to_string_lossy())
        .unk_token(unknown.clone())
        .max_input_chars_per_word(100)
        .build()
        .map_err(|e| fail(path, e))?;
    let mut tokenizer = Tokenizer::new(model);
    let lower = flag("do_lower_case").unwrap_or(true);
    let chinese = flag("tokenize_chinese_chars").unwrap_or(true);
    let normalizer = BertNormalizer::new(true, chinese, flag("strip_accents"), lower);
    tokenizer.with_normalizer(Some(normalizer)).map_err(|e| fail(path, e))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(WordPieceDecoder::new("##".into(), true)));
    let processor = BertProcessing::new(known(&tokenizer, path, sep.clone())?, known(&tokenizer, path, cls.clone())?);
    tokenizer.with_post_processor(Some(processor));
    add(&mut tokenizer, path, [unknown, cls, sep, name("pad_token", "[PAD]"), name("mask_token", "[MASK]")])?;
    Ok(tokenizer)
}

/// Byte-level BPE from `vocab.json` and `merges.txt`, with RoBERTa's `<s> … </s>` where the vocabulary has them
/// (Liu et al. 2019, arXiv:1907.11692).
fn byte_level_bpe(directory: &Path, settings: &Value) -> Result<Tokenizer> {
    let (vocab, merges) = (directory.join("vocab.json"), directory.join("merges.txt"));
    let model =
        BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy()).build().map_err(|e| fail(directory, e))?;
    let mut tokenizer = Tokenizer::new(model);
    let prefix = settings["add_prefix_space"].as_bool().unwrap_or(false);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(prefix, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(prefix, true, true)));
    if tokenizer.token_to_id("<s>").is_some() {
        let name = |key: &str, usual: &'static str| content(&settings[key]).unwrap_or(usual).to_owned();
        let [cls, sep] = [name("cls_token", "<s>"), name("sep_token", "</s>")];
        let processor =
            RobertaProcessing::new(known(&tokenizer, &vocab, sep.clone())?, known(&tokenizer, &vocab, cls.clone())?)
                .add_prefix_space(prefix);
        tokenizer.with_post_processor(Some(processor));
        add(&mut tokenizer, &vocab, [cls, sep, name("unk_token", "<unk>"), name("pad_token", "<pad>")])?;
        // RoBERTa's mask swallows the space before it.
        let mask = AddedToken::from(name("mask_token", "<mask>"), true).lstrip(true);
        if tokenizer.token_to_id(&mask.content).is_some() {
            tokenizer.add_special_tokens([mask]).map_err(|e| fail(&vocab, e))?;
        }
    } else {
        add(&mut tokenizer, &vocab, ["<|endoftext|>".to_owned()])?;
    }
    Ok(tokenizer)
}

fn known(tokenizer: &Tokenizer, path: &Path, token: String) -> Result<(String, u32)> {
    match tokenizer.token_to_id(&token) {
        Some(id) => Ok((token, id)),
        None => Err(fail(path, format!("the vocabulary has no {token}"))),
    }
}

/// Marks as special those tokens that the vocabulary has; adds none to it.
fn add<const N: usize>(tokenizer: &mut Tokenizer, path: &Path, tokens: [String; N]) -> Result<()> {
    let known: Vec<_> = tokens.into_iter().filter(|token| tokenizer.token_to_id(token).is_some()).collect();
    tokenizer.add_special_tokens(known.into_iter().map(|t| AddedToken::from(t, true))).map_err(|e| fail(path, e))?;
    Ok(())
}
