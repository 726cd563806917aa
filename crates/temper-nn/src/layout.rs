//! Where the tokens of a batch stand, and which of them may look at which.

use burn::tensor::{DType, Device, Tensor, TensorData};

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

    /// What a causal layer adds to its scores `[B, N, S, keys]`: 0 where a query sees a key, which is at or before it in
    /// its segment and less than `window` tokens away, else the lowest f32. `None` if all see everything.
    ///
    /// # Shapes
    ///
    /// - result: `[1 or B, 1, S, keys]`
    pub fn causal_mask(&self, window: Option<usize>, device: &Device) -> Option<Tensor<4>> {
        let (keys, window) = (self.keys(), window.unwrap_or(usize::MAX));
        let mut values = vec![f32::MIN; self.starts.len() * self.queries * keys];
        let starts = self.starts.iter().flat_map(|row| (self.past..).zip(row));
        for (row, (own, start)) in values.chunks_mut(keys).zip(starts) {
            let first = (*start).max((own + 1).saturating_sub(window));
            row[first.min(own + 1)..=own].fill(0.0);
        }
        let shape = [self.starts.len(), 1, self.queries, keys];
        let hides = values.contains(&f32::MIN);
        hides.then(|| Tensor::from_data(TensorData::new(values, shape), (device, DType::F32)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use temper_device::testing;

    /// The mask as text: `x` where a key is seen.
    fn text(layout: &Layout, window: Option<usize>) -> Vec<String> {
        let mask = layout.causal_mask(window, &testing::device()).unwrap();
        let values: Vec<f32> = mask.try_into_vec_as().unwrap();
        let rows = values.chunks(layout.keys());
        rows.map(|row| row.iter().map(|v| if *v == 0.0 { 'x' } else { '.' }).collect()).collect()
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
        assert!(Layout::continued(&[0, 0], 3, 1).causal_mask(Some(4), &testing::device()).is_none());
    }
}
