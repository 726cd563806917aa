//! Several rows side by side in one: best-fit decreasing into bins of `max_length` tokens (Johnson 1974), as TRL's `bfd`.
//!
//! The longest piece comes first, each into the fullest pack that has room for it. No row sees another: a pack knows the
//! lengths of its segments, and attention and targets stop at their borders.

use std::collections::BTreeMap;

use crate::{
    examples::{Examples, Rows},
    random::Random,
};

/// Tokens `from..to` of a row of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub row: u32,
    pub from: u32,
    pub to: u32,
}

impl Part {
    pub(crate) fn len(&self) -> usize {
        (self.to - self.from) as usize
    }
}

/// Rows made of parts.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Packs {
    /// The parts of pack p end here.
    pub ends: Vec<u32>,
    pub parts: Vec<Part>,
}

impl Packs {
    pub(crate) fn push(&mut self, parts: &[Part]) {
        self.parts.extend_from_slice(parts);
        self.ends.push(self.parts.len() as u32);
    }
}

impl Examples {
    /// The same rows in packs of at most `max_length` tokens. Which rows share a pack depends on `seed`; rows of files of
    /// different weights never do. Rows longer than `max_length` are cut into consecutive pieces.
    #[must_use]
    pub fn packed(&self, max_length: usize, seed: u64) -> Self {
        let mut packs = Packs::default();
        for run in self.pieces(max_length).chunk_by(|a, b| self.store.weight(a.row) == self.store.weight(b.row)) {
            for pack in best_fit(run, max_length, seed) {
                packs.push(&pack);
            }
        }
        self.with_rows(Rows::Packs(packs))
    }

    /// The same rows, those longer than `max_length` as several.
    #[must_use]
    pub(crate) fn in_pieces(&self, max_length: usize) -> Self {
        if (0..self.len()).all(|row| self.length(row) <= max_length) {
            return self.clone();
        }
        let mut packs = Packs::default();
        self.pieces(max_length).iter().for_each(|piece| packs.push(&[*piece]));
        self.with_rows(Rows::Packs(packs))
    }

    fn pieces(&self, max_length: usize) -> Vec<Part> {
        let size = max_length.max(1);
        let cut = |part: Part| {
            let ends = (part.from as usize..part.to as usize).step_by(size);
            ends.map(move |from| Part { from: from as u32, to: part.to.min((from + size) as u32), ..part })
        };
        (0..self.len()).flat_map(|row| self.parts(row)).flat_map(cut).collect()
    }
}

fn best_fit(pieces: &[Part], max_length: usize, seed: u64) -> Vec<Vec<Part>> {
    let mut order = pieces.to_vec();
    Random::new(seed, u64::MAX).shuffle(&mut order);
    order.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
    let mut packs: Vec<Vec<Part>> = Vec::new();
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for piece in order {
        let fullest = by_room.range_mut(piece.len()..).next().and_then(|(&room, open)| Some((room, open.pop()?)));
        let (room, pack) = fullest.unwrap_or_else(|| {
            packs.push(Vec::new());
            (max_length.max(1), packs.len() - 1)
        });
        if by_room.get(&room).is_some_and(Vec::is_empty) {
            by_room.remove(&room);
        }
        packs[pack].push(piece);
        let left = room - piece.len();
        if left > 0 {
            by_room.entry(left).or_default().push(pack);
        }
    }
    for pack in &mut packs {
        pack.sort_by_key(|piece| (piece.row, piece.from));
    }
    packs.sort_by_key(|pack| (pack[0].row, pack[0].from));
    packs
}
