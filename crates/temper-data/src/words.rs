//! A memory of words, for BERT's tokenizer: most words come again and again, and the library is slow on each.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};
use xxhash_rust::xxh3::xxh3_64;

/// Parts that are locked each on its own, words remembered in each, and bytes of the longest word remembered.
const SHARDS: usize = 64;
const WORDS: usize = 4096;
const LONGEST: usize = 64;

/// White space that BERT's tokenizer splits at whatever its settings.
const SPACES: [char; 4] = [' ', '\t', '\n', '\r'];

/// Token ids of the words seen so far.
pub(crate) struct Words(Vec<Mutex<Shard>>);

type Shard = HashMap<Box<str>, Box<[u32]>>;

impl Words {
    /// A memory for `tokenizer` if the ids of a text are those of its words, one after the other: BERT's normalizer and
    /// pre-tokenizer look at nothing beyond white space, nor does WordPiece; added tokens must hold no white space.
    pub(crate) fn for_tokenizer(tokenizer: &Tokenizer) -> Option<Self> {
        let bert = matches!(tokenizer.get_normalizer(), Some(NormalizerWrapper::BertNormalizer(_)))
            && matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
            && matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_))
            && !tokenizer.get_added_tokens_decoder().values().any(|token| token.content.contains(char::is_whitespace));
        bert.then(|| Self((0..SHARDS).map(|_| Mutex::default()).collect()))
    }

    /// The ids of a text, without special tokens.
    pub(crate) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> tokenizers::Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 4);
        for word in text.split(SPACES).filter(|word| !word.is_empty()) {
            if word.len() > LONGEST {
                ids.extend_from_slice(tokenizer.encode_fast(word, false)?.get_ids());
                continue;
            }
            let shard = &self.0[xxh3_64(word.as_bytes()) as usize % SHARDS];
            if let Some(known) = shard.lock().unwrap_or_else(PoisonError::into_inner).get(word) {
                ids.extend_from_slice(known);
                continue;
            }
            let encoding = tokenizer.encode_fast(word, false)?;
            ids.extend_from_slice(encoding.get_ids());
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            if shard.len() < WORDS {
                shard.insert(word.into(), encoding.get_ids().into());
            }
        }
        Ok(ids)
    }
}
