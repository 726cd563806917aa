//! What the layers of a decoder share in one pass: places, masks, and the keys and values of earlier passes.

use burn::tensor::{Device, Int, Tensor, TensorData};
use temper_nn::{Attention, Layout, Linear, Pass, Rotary, Rotation, Sight};

use crate::{Error, Input};

/// The keys and values of the tokens that a decoder has seen, for generation.
///
/// Rows begin together: a prompt that is shorter than the longest is padded on the left.
#[derive(Debug, Clone)]
pub struct Cache {
    /// How many tokens at the beginning of each row are padding.
    pads: Vec<usize>,
    /// How many tokens every row holds, padding included.
    length: usize,
    /// For each layer keys and values, `[B, capacity, K, H]`. They are written in place, which costs a sixteenth of
    /// appending a token to 500 on the CPU, and their capacity doubles when it is used up.
    layers: Vec<[Option<Tensor<4>>; 2]>,
}

impl Cache {
    /// An empty cache for rows of which the first `pads[b]` tokens are padding.
    pub fn new(pads: Vec<usize>) -> Self {
        Self { pads, length: 0, layers: Vec::new() }
    }

    /// How many tokens every row holds, padding included.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Keeps these rows alone, in this order: the others have ended.
    ///
    /// # Panics
    ///
    /// When there is no such row.
    pub fn select(&mut self, rows: &[usize]) {
        self.pads = rows.iter().map(|row| self.pads[*row]).collect();
        let ids: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        for tensor in self.layers.iter_mut().flatten().flatten() {
            let ids = Tensor::<1, Int>::from_data(TensorData::new(ids.clone(), [ids.len()]), &tensor.device());
            *tensor = tensor.clone().select(0, ids);
        }
    }

    /// Writes what a layer computed for the last tokens behind what it has, and gives all of it.
    fn extend(&mut self, layer: usize, [key, value]: [Tensor<4>; 2]) -> [Tensor<4>; 2] {
        if self.layers.len() == layer {
            self.layers.push([None, None]);
        }
        let [keys, values] = &mut self.layers[layer];
        [append(keys, key, self.length), append(values, value, self.length)]
    }
}

/// Writes `new` into `seen` `[B, capacity, K, H]` so that it ends at `length`, and gives what is before that.
fn append(seen: &mut Option<Tensor<4>>, new: Tensor<4>, length: usize) -> Tensor<4> {
    let [batch, sequence, heads, size] = new.dims();
    let start = length - sequence;
    let part = |from, to| [0..batch, from..to, 0..heads, 0..size];
    // Taken out, because what nobody else holds is written in place.
    let whole = match seen.take() {
        Some(whole) if whole.dims()[1] >= length => whole,
        held => {
            let room = Tensor::zeros([batch, length.next_power_of_two(), heads, size], &new.device());
            held.into_iter().fold(room, |room, held| room.slice_assign(part(0, start), held.narrow(1, 0, start)))
        }
    };
    let whole = whole.slice_assign(part(start, length), new);
    seen.insert(whole).clone().narrow(1, 0, length)
}

/// One pass through a decoder.
pub(crate) struct Context<'a> {
    layout: Layout,
    pub pass: &'a Pass,
    device: Device,
    cache: Option<&'a mut Cache>,
    /// What queries see, by window, as far as it was asked.
    sights: Vec<(Option<usize>, Sight)>,
}

impl<'a> Context<'a> {
    /// A pass over whole rows.
    pub fn whole(input: &Input, pass: &'a Pass) -> Self {
        let [batch, sequence] = input.ids.dims();
        assert_eq!(input.segments.len(), batch, "segments are given for {} rows of {batch}", input.segments.len());
        let layout = Layout::packed(&input.segments, sequence);
        Self { layout, pass, device: input.ids.device().inner(), cache: None, sights: Vec::new() }
    }

    /// A pass over the next tokens of the rows in `cache`, which may hold `limit` tokens each, padding aside.
    pub fn continued(
        ids: &Tensor<2, Int>,
        cache: &'a mut Cache,
        limit: Option<usize>,
        pass: &'a Pass,
    ) -> Result<Self, Error> {
        let [batch, sequence] = ids.dims();
        if batch != cache.pads.len() {
            return Err(Error::Input(format!("{batch} rows do not continue the {} of the cache", cache.pads.len())));
        }
        let longest = (cache.length + sequence).saturating_sub(cache.pads.iter().min().copied().unwrap_or(0));
        if let Some(limit) = limit.filter(|limit| longest > *limit) {
            return Err(Error::Input(format!(
                "a row of {longest} tokens is longer than the network's {limit} positions"
            )));
        }
        let layout = Layout::continued(&cache.pads, cache.length, sequence);
        cache.length += sequence;
        Ok(Self { layout, pass, device: ids.device().inner(), cache: Some(cache), sights: Vec::new() })
    }

    /// The position of each token in its segment, `[1 or B, S]`.
    pub fn positions(&self) -> Vec<Vec<usize>> {
        self.layout.positions()
    }

    /// The rotations of queries, which are also multiplied by `scale`, and of keys.
    pub fn rotations(&self, rotary: &Rotary, scale: f64) -> [Rotation; 2] {
        let positions = self.positions();
        [scale, 1.0].map(|scale| rotary.at(&positions, scale, &self.device))
    }

    /// Causal attention of one layer, over the last `window` tokens if it has one.
    ///
    /// # Shapes
    ///
    /// - query `[B, S, N, H]`, key and value `[B, S, K, H]`: those of this pass
    /// - result: `[T, N·H]`
    pub fn attend(
        &mut self,
        layer: usize,
        attention: &Attention,
        window: Option<usize>,
        [query, key, value]: [Tensor<4>; 3],
    ) -> Tensor<2> {
        let [key, value] = match &mut self.cache {
            None => [key, value],
            Some(cache) => cache.extend(layer, [key, value]),
        };
        let window = window.filter(|window| *window < self.layout.keys());
        let known = self.sights.iter().position(|(other, _)| *other == window);
        let known = known.unwrap_or_else(|| {
            self.sights.push((window, self.layout.sight(window)));
            self.sights.len() - 1
        });
        attention.forward([query, key, value], &self.sights[known].1, self.pass)
    }
}

/// The linear layers of layer `i` by their paths in the network.
pub(crate) fn numbered<'a>(
    stem: &'static str,
    i: usize,
    attention: impl IntoIterator<Item = (&'static str, &'a mut Linear)>,
    mlp: impl IntoIterator<Item = (&'static str, &'a mut Linear)>,
) -> impl Iterator<Item = (String, &'a mut Linear)> {
    attention.into_iter().chain(mlp).map(move |(name, linear)| (format!("{stem}.{i}.{name}"), linear))
}
