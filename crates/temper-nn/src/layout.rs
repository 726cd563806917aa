//! Where the tokens of a batch stand, and which of them may look at which.

use temper_kernels::Sight;

/// The places of a batch's queries among their keys: those of the past, then one for each query.
///
/// A segment is a text of its own: positions count from its beginning, and nothing looks out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// How many keys stand before the first query.
    past: usize,
    /// How many queries a row has.
    queries: usize,
    /// The key at which each query's segment begins, for each row; one row if all are alike.
    starts: Vec<Vec<usize>>,
}

impl Layout {
    /// Rows of `sequence` tokens that hold segments of these lengths, one after the other. What follows them is padding,
    /// which counts as the last segment's end: causal layers never see it.
    ///
    /// # Panics
    ///
    /// When the segments of a row are longer than the row.
    pub fn packed(segments: &[Vec<usize>], sequence: usize) -> Self {
        let row = |lengths: &Vec<usize>| {
            let mut starts = Vec::with_capacity(sequence);
            for &length in lengths {
                starts.resize(starts.len() + length, starts.len());
            }
            assert!(starts.len() <= sequence, "segments of {} tokens in a row of {sequence}", starts.len());
            starts.resize(sequence, starts.last().copied().unwrap_or(0));
            starts
        };
        Self::new(0, sequence, segments.iter().map(row).collect())
    }

    /// `queries` more tokens for rows that hold `past` already, of which the first `pads[b]` are padding.
    pub fn continued(pads: &[usize], past: usize, queries: usize) -> Self {
        Self::new(past, queries, pads.iter().map(|pad| vec![*pad; queries]).collect())
    }

    fn new(past: usize, queries: usize, mut starts: Vec<Vec<usize>>) -> Self {
        if starts.windows(2).all(|pair| pair[0] == pair[1]) {
            starts.truncate(1);
        }
        Self { past, queries, starts }
    }

    /// How many keys a row has.
    pub fn keys(&self) -> usize {
        self.past + self.queries
    }

    /// The position of each query in its segment, `[B, S]`, or `[1, S]` if all rows are alike. 0 on padding at the left.
    pub fn positions(&self) -> Vec<Vec<usize>> {
        let row =
            |starts: &Vec<usize>| (self.past..).zip(starts).map(|(key, start)| key.saturating_sub(*start)).collect();
        self.starts.iter().map(row).collect()
    }

    /// What the queries of a causal layer see: the keys at or before them in their segment, less than `window` tokens away.
    pub fn sight(&self, window: Option<usize>) -> Sight {
        let window = window.unwrap_or(usize::MAX);
        let row = |starts: &Vec<usize>| {
            let range = |(own, start): (usize, &usize)| (*start).max((own + 1).saturating_sub(window))..own + 1;
            (self.past..).zip(starts).map(range).map(|keys| keys.start as u32..keys.end as u32).collect::<Vec<_>>()
        };
        Sight::new(self.starts.iter().flat_map(row).collect(), self.queries)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ops::Range;

    use super::*;

    /// What is seen as text: `x` where a key is.
    fn text(layout: &Layout, window: Option<usize>) -> Vec<String> {
        let line = |range: &Range<u32>| {
            (0..layout.keys() as u32).map(|key| if range.contains(&key) { 'x' } else { '.' }).collect()
        };
        layout.sight(window).ranges().iter().map(line).collect()
    }

    #[test]
    fn segments_do_not_see_each_other_and_count_from_zero() {
        let layout = Layout::packed(&[vec![2, 1]], 4);
        assert_eq!(layout.positions(), [[0, 1, 0, 1]]);
        assert_eq!(text(&layout, None), ["x...", "xx..", "..x.", "..xx"]);
    }

    #[test]
    fn unpacked_rows_of_any_length_share_one_mask() {
        let layout = Layout::packed(&[vec![2], vec![3]], 3);
        assert_eq!(layout, Layout::packed(&[vec![3]], 3));
        assert_eq!(text(&layout, Some(2)), ["x..", "xx.", ".xx"]);
    }

    #[test]
    fn padding_at_the_left_is_hidden_and_does_not_count() {
        let layout = Layout::continued(&[0, 2], 3, 1);
        assert_eq!(layout.positions(), [[3], [1]]);
        assert_eq!(text(&layout, None), ["xxxx", "..xx"]);
        assert_eq!(text(&layout, Some(1)), ["...x", "...x"]);
        assert_eq!(text(&Layout::continued(&[1], 0, 2), None), ["..", ".x"]);
        assert_eq!(text(&Layout::continued(&[0, 0], 3, 1), Some(4)), ["xxxx"]);
    }
}
