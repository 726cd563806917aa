//! What a tokenizer puts around texts: `[CLS] a [SEP] b [SEP]`, learned by asking it once.

use tokenizers::{Encoding, Token, Tokenizer};

/// Stand-ins for the two texts; no vocabulary is that large.
const STANDINS: [u32; 2] = [u32::MAX - 1, u32::MAX];

/// Special tokens and texts in their order, each with its segment.
pub(crate) struct Frame(Vec<(Piece, u8)>);

#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Token(u32),
    Text(usize),
}

impl Frame {
    /// The frame of one text, or of a pair.
    ///
    /// # Errors
    /// When the post-processor fails, or does not give each text once and in order.
    pub(crate) fn learn(tokenizer: &Tokenizer, pair: bool) -> tokenizers::Result<Self> {
        let stand_in = |i: usize| Encoding::from_tokens(vec![Token::new(STANDINS[i], String::new(), (0, 0))], i as u32);
        let encoding = tokenizer.post_process(stand_in(0), pair.then(|| stand_in(1)), true)?;
        let piece = |&id: &u32| STANDINS.iter().position(|&s| s == id).map_or(Piece::Token(id), Piece::Text);
        let types = encoding.get_type_ids().iter().map(|&id| id.min(255) as u8);
        let pieces: Vec<_> = encoding.get_ids().iter().map(piece).zip(types).collect();
        let texts = pieces.iter().filter(|(piece, _)| matches!(piece, Piece::Text(_))).map(|(piece, _)| *piece);
        if !texts.eq((0..1 + usize::from(pair)).map(Piece::Text)) {
            return Err("its post-processor does not give each text once and in order".into());
        }
        Ok(Self(pieces))
    }

    /// The same without segments.
    pub(crate) fn in_one_segment(self) -> Self {
        Self(self.0.into_iter().map(|(piece, _)| (piece, 0)).collect())
    }

    /// Special tokens in it.
    pub(crate) fn added(&self) -> usize {
        self.0.iter().filter(|(piece, _)| matches!(piece, Piece::Token(_))).count()
    }

    /// The tokens before a single text, and those behind it.
    pub(crate) fn around(&self) -> [Vec<u32>; 2] {
        let mut sides = self.0.split(|(piece, _)| matches!(piece, Piece::Text(_))).map(|side| {
            side.iter().filter_map(|(piece, _)| if let Piece::Token(id) = piece { Some(*id) } else { None }).collect()
        });
        [sides.next().unwrap_or_default(), sides.next().unwrap_or_default()]
    }

    /// Ids and segments of framed texts.
    pub(crate) fn apply(&self, texts: [&[u32]; 2]) -> (Vec<u32>, Vec<u8>) {
        let length = self.added() + texts[0].len() + texts[1].len();
        let (mut ids, mut types) = (Vec::with_capacity(length), Vec::with_capacity(length));
        for (piece, segment) in &self.0 {
            match piece {
                Piece::Token(id) => ids.push(*id),
                Piece::Text(i) => ids.extend_from_slice(texts[*i]),
            }
            types.resize(ids.len(), *segment);
        }
        (ids, types)
    }
}
