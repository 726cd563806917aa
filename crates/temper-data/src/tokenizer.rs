//! Text to token ids as `tokenizer.json` says it, with `truncation=True`. Transformers 5 builds the tokenizers of [`Class`]es anew from
//! their vocabulary, and may give other ids.
//!
//! Padding and truncation stored in `tokenizer.json` are switched off (they are left-overs of whoever saved the file);
//! a row is cut here, and padded in its batch.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use tokenizers::TruncationDirection;

use crate::{
    classes::Class,
    error::{Error, Result},
    frame::Frame,
    template, vocabulary,
    words::Words,
};

/// Files that make up a tokenizer, and that an export copies.
const FILES: [&str; 9] = [
    "tokenizer.json",
    "chat_template.jinja",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// A tokenizer, as Hugging Face saves them.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    as_written: bool,
    words: Option<Words>,
    /// Of one text, of a pair.
    frames: [Frame; 2],
    directory: PathBuf,
    files: Vec<PathBuf>,
    direction: TruncationDirection,
    special: HashSet<u32>,
    special_texts: Vec<String>,
    pad: u32,
    mask: Option<u32>,
    unknown: Option<u32>,
    eos: Option<u32>,
}

/// The bytes of a text that each of its tokens stands for: from, to.
pub(crate) type Offsets = Vec<(usize, usize)>;

/// One row in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, special tokens included, at most `max_length`.
    pub ids: Vec<u32>,
    /// 0 for the first text, 1 for the second (BERT's segments; RoBERTa has only 0).
    pub type_ids: Vec<u8>,
    /// Length in tokens before cutting.
    pub full_length: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`; else `vocab.txt` (BERT's WordPiece, lower-casing as `do_lower_case` says in
    /// `tokenizer_config.json`); else `vocab.json` and `merges.txt` (byte-level BPE as RoBERTa's and GPT-2's). To the vocabularies are
    /// added the tokens of `added_tokens.json`; to all, those of `added_tokens_decoder` in `tokenizer_config.json`.
    ///
    /// # Errors
    /// When none of these files is there, or one is damaged.
    pub fn from_dir(directory: &Path) -> Result<Self> {
        let fail = |path: &Path, message: String| Error::Tokenizer { path: path.to_owned(), message };
        let files = FILES.iter().map(|name| directory.join(name)).filter(|path| path.is_file());
        let files: Vec<PathBuf> = files.chain(template::named(directory)).collect();
        let has = |name: &str| files.iter().any(|path| path.ends_with(name));
        let settings = vocabulary::settings(directory)?;
        let (mut inner, as_written) = if has("tokenizer.json") {
            let path = directory.join("tokenizer.json");
            let failed = |error: tokenizers::Error| fail(&path, error.to_string());
            let mut inner = tokenizers::Tokenizer::from_file(&path).map_err(failed)?;
            let overruled = vocabulary::overrule(&mut inner, &settings).map_err(failed)?;
            (inner, !overruled)
        } else if has("vocab.txt") || has("vocab.json") && has("merges.txt") {
            (vocabulary::read(directory, &settings)?, false)
        } else {
            let message = "no tokenizer.json, vocab.txt, or vocab.json with merges.txt is there".into();
            return Err(fail(directory, message));
        };
        vocabulary::complete(&mut inner, &settings)
            .map_err(|message| fail(&directory.join("tokenizer_config.json"), message))?;

        let stored_pad = inner.get_padding().map(|p| p.pad_id);
        let stored_direction = inner.get_truncation().map(|t| t.direction);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| fail(directory, e.to_string()))?;
        let words = Words::for_tokenizer(&inner);
        let learn = |pair| Frame::learn(&inner, pair).map_err(|e| fail(directory, e.to_string()));
        let mut frames = [learn(false)?, learn(true)?];
        let segments = match settings["model_input_names"].as_array() {
            Some(names) => names.iter().any(|name| name == "token_type_ids"),
            // What these classes of Transformers 5 mean by default.
            None => {
                let class = &settings["tokenizer_class"];
                class != "TokenizersBackend" && Class::named(class).is_none()
            }
        };
        if !segments {
            // The network gets none, so all is one segment to it.
            frames = frames.map(Frame::in_one_segment);
        }
        let direction = match settings["truncation_side"].as_str() {
            Some("left") => TruncationDirection::Left,
            Some(_) => TruncationDirection::Right,
            None => stored_direction.unwrap_or(TruncationDirection::Right),
        };
        let token = |key: &str, usual: [&str; 2]| match vocabulary::content(&settings[key]) {
            Some(token) => inner.token_to_id(token),
            None => usual.into_iter().find_map(|token| inner.token_to_id(token)),
        };
        let pad = token("pad_token", ["[PAD]", "<pad>"]).or(stored_pad).unwrap_or(0);
        let mask = token("mask_token", ["[MASK]", "<mask>"]);
        let eos = token("eos_token", ["</s>", "<|endoftext|>"]);
        // Byte-level vocabularies name their end so, and know everything.
        let unknown = token("unk_token", ["[UNK]", "<unk>"]).filter(|unknown| Some(*unknown) != eos);
        let mut special: HashSet<u32> =
            inner.get_added_tokens_decoder().iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        for key in vocabulary::SPECIAL {
            special.extend(vocabulary::content(&settings[key]).and_then(|token| inner.token_to_id(token)));
        }
        Ok(Self {
            special_texts: special.iter().filter_map(|&id| inner.id_to_token(id)).collect(),
            inner,
            as_written,
            words,
            frames,
            directory: directory.to_owned(),
            files,
            direction,
            special,
            pad,
            mask,
            unknown,
            eos,
        })
    }

    /// Tokens of a text or of a pair, with special tokens, cut to `max_length` tokens. Of a pair the longer text is cut
    /// first (Transformers' `truncation=True`); special tokens always stay.
    ///
    /// # Errors
    /// When the tokenizer itself fails, such as a WordLevel vocabulary without an unknown token.
    pub fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoded> {
        let first = self.ids(text)?;
        let second = pair.map_or(Ok(Vec::new()), |pair| self.ids(pair))?;
        let frame = &self.frames[usize::from(pair.is_some())];
        let kept = cut((first.len(), second.len()), max_length.saturating_sub(frame.added()));
        let keep = |ids: &[u32], kept: usize| match self.direction {
            TruncationDirection::Right => 0..kept,
            TruncationDirection::Left => ids.len() - kept..ids.len(),
        };
        let (ids, type_ids) = frame.apply([&first[keep(&first, kept.0)], &second[keep(&second, kept.1)]]);
        Ok(Encoded { ids, type_ids, full_length: first.len() + second.len() + frame.added() })
    }

    /// The text of a `tokenizer.json` that says all of it.
    ///
    /// # Errors
    /// When the tokenizer cannot be written.
    pub fn to_json(&self) -> Result<String> {
        self.inner
            .to_string(true)
            .map_err(|e| Error::Tokenizer { path: self.directory.clone(), message: e.to_string() })
    }

    /// The settings by which Transformers' BERT classes make the same normaliser, if it is theirs.
    #[must_use]
    pub fn bert_settings(&self) -> Vec<(&'static str, serde_json::Value)> {
        match self.inner.get_normalizer() {
            Some(tokenizers::NormalizerWrapper::BertNormalizer(own)) => vec![
                ("do_lower_case", own.lowercase.into()),
                ("strip_accents", own.strip_accents.into()),
                ("tokenize_chinese_chars", own.handle_chinese_chars.into()),
            ],
            _ => Vec::new(),
        }
    }

    /// Whether `tokenizer.json` says all of it.
    #[must_use]
    pub fn is_as_written(&self) -> bool {
        self.as_written
    }

    /// Whether the second text of a pair is another segment than the first, as BERT's is.
    pub fn marks_pairs(&self) -> bool {
        self.frames[1].apply([&[0], &[0]]).1.contains(&1)
    }

    /// Ids of a text without special tokens.
    fn ids(&self, text: &str) -> Result<Vec<u32>> {
        match &self.words {
            Some(words) => words.encode(&self.inner, text),
            None => self.inner.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()),
        }
        .map_err(|e| Error::Tokenizer { path: self.directory.clone(), message: e.to_string() })
    }

    /// Tokens of a text without added special tokens, and the bytes of the text that each stands for.
    pub(crate) fn encode_spans(&self, text: &str) -> Result<(Vec<u32>, Offsets)> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|e| Error::Tokenizer { path: self.directory.clone(), message: e.to_string() })?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// Tokens of a text that is to go on: what the tokenizer puts before texts, but not what it puts behind them.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let [before, _] = self.around();
        Ok([before, self.ids(text)?].concat())
    }

    /// Tokens of a rendered conversation, which holds its special tokens already.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_spans(text)?.0)
    }

    /// Whether a token is none that texts are made of.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Whether a special token ends the text.
    pub(crate) fn ends_with_special(&self, text: &str) -> bool {
        self.special_texts.iter().any(|token| text.ends_with(token))
    }

    /// Where the last special token of the text ends.
    pub(crate) fn last_special_end(&self, text: &str) -> Option<usize> {
        self.special_texts.iter().filter_map(|token| text.rfind(token).map(|at| at + token.len())).max()
    }

    /// The tokens that the tokenizer puts before a text, and behind it.
    pub(crate) fn around(&self) -> [Vec<u32>; 2] {
        self.frames[0].around()
    }

    /// Special tokens that a text (or a pair) gains.
    #[must_use]
    pub fn added_tokens(&self, pair: bool) -> usize {
        self.frames[usize::from(pair)].added()
    }

    /// The text of some tokens, special tokens left out.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|e| Error::Tokenizer { path: self.directory.clone(), message: e.to_string() })
    }

    /// The text that each token adds to those before it, special tokens included. Of a character that several tokens
    /// make, the last one has it.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>> {
        let mut stream = self.inner.decode_stream(false);
        ids.iter()
            .map(|&id| stream.step(id).map(Option::unwrap_or_default))
            .collect::<Result<_, _>>()
            .map_err(|e| Error::Tokenizer { path: self.directory.clone(), message: e.to_string() })
    }

    /// Number of tokens, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of a token.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Id that fills rows up to their batch's length; 0 where the tokenizer names none (padding is masked anyway).
    #[must_use]
    pub fn pad_id(&self) -> u32 {
        self.pad
    }

    /// Id of the mask token, for masked language models.
    #[must_use]
    pub fn mask_id(&self) -> Option<u32> {
        self.mask
    }

    /// Id of the token that ends a text; that of `</s>` or `<|endoftext|>` where the configuration names none. There is none where it
    /// names what is no token.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The largest id of any token.
    #[must_use]
    pub fn largest_id(&self) -> Option<u32> {
        self.inner.get_vocab(true).into_values().max()
    }

    /// The directory it was read from.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Id of the unknown token; byte-level vocabularies have none.
    #[must_use]
    pub fn unknown_id(&self) -> Option<u32> {
        self.unknown
    }

    /// Ids of all special tokens.
    #[must_use]
    pub fn special_ids(&self) -> HashSet<u32> {
        self.special.clone()
    }

    /// The files it was read from and those that belong to it: what an export copies.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// How many tokens of each text stay when both together may have `room` (`longest_first` of the tokenizers library).
fn cut((a, b): (usize, usize), room: usize) -> (usize, usize) {
    if a + b <= room {
        return (a, b);
    }
    if b == 0 {
        return (room, 0);
    }
    let (short, long) = (a.min(b), a.max(b));
    let (short, long) = match room.checked_sub(short) {
        Some(rest) if rest >= short => (short, rest.min(long)),
        _ => (room / 2, room - room / 2),
    };
    if a <= b { (short, long) } else { (long, short) }
}

/// A small WordPiece tokenizer for tests.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) fn fixture(cased: bool) -> Tokenizer {
    let directory = tempfile::tempdir().unwrap();
    let words = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog hello good bad ok , ! . ##s a b c d e f g h";
    std::fs::write(directory.path().join("vocab.txt"), words.replace(' ', "\n")).unwrap();
    let config = format!(r#"{{"do_lower_case": {}, "pad_token": {{"content": "[PAD]"}}}}"#, !cased);
    std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::from_dir(directory.path()).unwrap()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_longer_text_is_cut_first() {
        assert_eq!(cut((3, 4), 7), (3, 4));
        assert_eq!(cut((3, 9), 7), (3, 4));
        assert_eq!(cut((9, 3), 7), (4, 3));
        assert_eq!(cut((9, 9), 7), (3, 4));
        assert_eq!(cut((10, 9), 7), (4, 3));
        assert_eq!(cut((9, 0), 7), (7, 0));
        assert_eq!(cut((9, 9), 0), (0, 0));
        assert_eq!(cut((1, 9), 1), (0, 1));
    }

    #[test]
    fn a_vocabulary_file_is_enough() {
        let tokenizer = fixture(false);
        let encoded = tokenizer.encode("Hello, the CAT!", None, 64).unwrap();
        assert_eq!(tokenizer.decode(&encoded.ids).unwrap(), "hello, the cat!");
        assert_eq!(encoded.ids.first(), tokenizer.token_id("[CLS]").as_ref());
        assert_eq!(encoded.ids.last(), tokenizer.token_id("[SEP]").as_ref());
        assert_eq!(encoded.ids.len(), encoded.full_length);
        let pair = tokenizer.encode("the cat", Some("hello hello hello"), 7).unwrap();
        assert_eq!((pair.ids.len(), pair.full_length), (7, 8));
        assert_eq!(pair.type_ids, [0, 0, 0, 0, 1, 1, 1]);
        assert_eq!(tokenizer.encode("", None, 64).unwrap().ids.len(), 2);
        assert_eq!(tokenizer.encode("the cat", None, 2).unwrap().ids.len(), 2);
        assert_eq!((tokenizer.pad_id(), tokenizer.mask_id()), (0, Some(4)));
        assert_eq!(tokenizer.special_ids().len(), 5);
    }

    #[test]
    fn the_left_is_cut_where_the_configuration_says_so() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc").unwrap();
        std::fs::write(directory.path().join("tokenizer_config.json"), r#"{"truncation_side": "left"}"#).unwrap();
        let tokenizer = Tokenizer::from_dir(directory.path()).unwrap();
        assert_eq!(tokenizer.encode("a b c", None, 4).unwrap().ids, [2, 6, 7, 3]);
    }

    #[test]
    fn case_is_kept_where_the_configuration_says_so() {
        let unknown = fixture(true).encode("CAT", None, 64).unwrap().ids[1];
        assert_eq!(unknown, 1);
    }

    #[test]
    fn the_configuration_is_above_the_file_as_in_transformers() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        std::fs::write(place("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\nCAT").unwrap();
        let ids = |config: &str| {
            std::fs::write(place("tokenizer_config.json"), config).unwrap();
            let tokenizer = Tokenizer::from_dir(directory.path()).unwrap();
            let ids = tokenizer.encode("CAT", None, 8).unwrap().ids;
            (tokenizer, ids)
        };
        let (lower, of_vocabulary) = ids("{}");
        lower.inner.save(place("tokenizer.json"), false).unwrap();
        assert_eq!((of_vocabulary, ids("{}").1), (vec![2, 5, 3], vec![2, 5, 3]));
        assert_eq!(ids(r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": false}"#).1, [2, 6, 3]);
        assert_eq!(ids(r#"{"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": false}"#).1, [2, 5, 3]);
    }

    /// As Transformers: tokens that only the configuration has, and what swallows the space before it.
    #[test]
    fn tokens_of_the_configuration_are_added() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        std::fs::write(place("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb").unwrap();
        let open = |config: &str| {
            std::fs::write(place("tokenizer_config.json"), config).unwrap();
            Tokenizer::from_dir(directory.path())
        };
        // To a bare vocabulary, too.
        let new = r#"{"added_tokens_decoder": {"7": {"content": "<new>"}}}"#;
        assert_eq!(open(new).unwrap().encode("a <new> b", None, 8).unwrap().ids, [2, 5, 7, 6, 3]);
        std::fs::write(place("added_tokens.json"), r#"{"<2>": 8, "<1>": 7}"#).unwrap();
        assert_eq!(open("{}").unwrap().encode("a<2>", None, 8).unwrap().ids, [2, 5, 8, 3]);
        std::fs::write(place("added_tokens.json"), r#"{"<1>": 70}"#).unwrap();
        assert!(open("{}").err().unwrap().to_string().contains("`<1>` cannot be token 70"));
        std::fs::remove_file(place("added_tokens.json")).unwrap();
        assert!(open(r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#).is_ok());
        let other = open(r#"{"tokenizer_class": "BertJapaneseTokenizer"}"#).err().unwrap().to_string();
        assert!(other.contains("a BertJapaneseTokenizer is read from its tokenizer.json alone"), "{other}");
        std::fs::write(place("tokenizer.json"), open("{}").unwrap().to_json().unwrap()).unwrap();
        let added =
            open(r#"{"added_tokens_decoder": {"7": {"content": "<new>", "special": true}}, "eos_token": "<new>"}"#);
        let added = added.unwrap();
        assert_eq!(added.encode("a <new> b", None, 8).unwrap().ids, [2, 5, 7, 6, 3]);
        assert_eq!((added.eos_id(), added.is_special(7), added.vocab_size()), (Some(7), true, 8));
        let wrong = open(r#"{"added_tokens_decoder": {"9": {"content": "<new>"}}}"#);
        assert!(wrong.err().unwrap().to_string().contains("has `<new>` as 9, and in the vocabulary it is token 7"));

        // A token of the vocabulary that has a part is found in the middle of a word.
        let ends = open(r#"{"eos_token": "b"}"#).unwrap();
        assert_eq!(ends.encode("ab", None, 8).unwrap().ids, [2, 5, 6, 3]);
        assert_eq!(open("{}").unwrap().encode("ab", None, 8).unwrap().ids, [2, 1, 3]);
        let split = open(r#"{"split_special_tokens": true}"#).err().unwrap().to_string();
        assert!(split.contains("`split_special_tokens` is true"), "{split}");

        // A name that is no token stands for no other, and what ends texts is not unknown.
        let slip = open(r#"{"eos_token": "[SPE]", "mask_token": "[MAKS]"}"#).unwrap();
        assert_eq!((slip.eos_id(), slip.mask_id(), slip.unknown_id()), (None, None, Some(1)));
        assert_eq!(open(r#"{"eos_token": "[UNK]"}"#).unwrap().unknown_id(), None);

        // Without segments among the inputs there are none.
        let pair = |config: &str| open(config).unwrap().encode("a", Some("b"), 8).unwrap().type_ids;
        assert_eq!(pair("{}"), [0, 0, 0, 1, 1]);
        assert_eq!(pair(r#"{"model_input_names": ["input_ids", "attention_mask"]}"#), [0; 5]);
        assert_eq!(pair(r#"{"tokenizer_class": "TokenizersBackend"}"#), [0; 5]);
    }

    /// `fixtures/tokenizers.py` made the cases with Transformers.
    #[test]
    fn ids_equal_transformers() {
        let fixture: Value = serde_json::from_str(include_str!("../fixtures/tokenizers.json")).unwrap();
        let (mut cases, mut cut) = (0, 0);
        for tokenizer in fixture.as_array().unwrap() {
            let directory = tempfile::tempdir().unwrap();
            for (name, content) in tokenizer["files"].as_object().unwrap() {
                std::fs::write(directory.path().join(name), content.as_str().unwrap()).unwrap();
            }
            let name = &tokenizer["name"];
            let ours = Tokenizer::from_dir(directory.path()).unwrap();
            assert_eq!(u64::from(ours.pad_id()), tokenizer["pad_id"].as_u64().unwrap(), "{name}");
            assert_eq!(ours.mask_id().map(u64::from), tokenizer["mask_id"].as_u64(), "{name}");
            assert_eq!(ours.vocab_size() as u64, tokenizer["vocab_size"].as_u64().unwrap(), "{name}");
            for case in tokenizer["cases"].as_array().unwrap() {
                let (text, pair) = (case["text"].as_str().unwrap(), case["pair"].as_str());
                let encoded = ours.encode(text, pair, case["max_length"].as_u64().unwrap() as usize).unwrap();
                assert_eq!(serde_json::json!(encoded.ids), case["ids"], "{name} {text:?} {pair:?}");
                assert_eq!(serde_json::json!(encoded.type_ids), case["type_ids"], "{name} {text:?} {pair:?}");
                assert_eq!(encoded.full_length as u64, case["full_length"].as_u64().unwrap(), "{name} {text:?}");
                cases += 1;
                cut += usize::from(encoded.full_length > encoded.ids.len());
            }
        }
        assert!(cases > 200 && cut > 50, "{cases} {cut}");
    }

    #[test]
    fn a_directory_without_a_tokenizer_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let Err(error) = Tokenizer::from_dir(directory.path()) else { panic!("read nothing") };
        assert!(error.to_string().contains("no tokenizer.json"));
        std::fs::write(directory.path().join("tokenizer.json"), "{").unwrap();
        assert!(Tokenizer::from_dir(directory.path()).is_err());
    }
}
