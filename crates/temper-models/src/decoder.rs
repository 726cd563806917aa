//! What the layers of a decoder share in one pass: places, masks, and the keys and values of earlier passes.

use std::cell::RefCell;
use std::rc::Rc;

use burn::module::Module;
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
            let room = Tensor::zeros([batch, length.next_power_of_two(), heads, size], (&new.device(), new.dtype()));
            held.into_iter().fold(room, |room, held| room.slice_assign(part(0, start), held.narrow(1, 0, start)))
        }
    };
    let whole = whole.slice_assign(part(start, length), new);
    seen.insert(whole).clone().narrow(1, 0, length)
}

/// What all layers of a pass see alike.
#[derive(Clone)]
struct Surroundings {
    layout: Layout,
    /// The rotations of queries and of keys, for each kind of layer.
    rotations: Vec<[Rotation; 2]>,
    /// What queries see, by window, as far as it was asked.
    sights: RefCell<Vec<(Option<usize>, Sight)>>,
}

/// One pass through a decoder.
pub(crate) struct Context<'a> {
    shared: Rc<Surroundings>,
    pub pass: &'a Pass,
    device: Device,
    cache: Option<&'a mut Cache>,
}

/// Where a layer stands, and the shape of what it sees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub layer: usize,
    pub batch: usize,
    pub sequence: usize,
}

/// A layer of a decoder.
pub(crate) trait Block: Module + 'static {
    /// # Shapes
    ///
    /// - x, result: `[T, D]`
    fn forward(&self, x: Tensor<2>, place: Place, context: &mut Context<'_>) -> Tensor<2>;
}

impl<'a> Context<'a> {
    /// A pass over whole rows.
    pub fn whole(input: &Input, pass: &'a Pass) -> Self {
        let [batch, sequence] = input.ids.dims();
        assert_eq!(input.segments.len(), batch, "segments are given for {} rows of {batch}", input.segments.len());
        Self::new(Layout::packed(&input.segments, sequence), pass, &input.ids, None)
    }

    fn new(layout: Layout, pass: &'a Pass, ids: &Tensor<2, Int>, cache: Option<&'a mut Cache>) -> Self {
        let shared = Surroundings { layout, rotations: Vec::new(), sights: RefCell::default() };
        Self { shared: Rc::new(shared), pass, device: ids.device().inner(), cache }
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
        Ok(Self::new(layout, pass, ids, Some(cache)))
    }

    /// The position of each token in its segment, `[1 or B, S]`.
    pub fn positions(&self) -> Vec<Vec<usize>> {
        self.shared.layout.positions()
    }

    /// Adds a kind of rotations: of queries, which are also multiplied by `scale`, and of keys.
    pub fn turn(&mut self, rotary: &Rotary, scale: f64) {
        let positions = self.positions();
        let rotations = [scale, 1.0].map(|scale| rotary.at(&positions, scale, &self.device));
        Rc::make_mut(&mut self.shared).rotations.push(rotations);
    }

    /// Turns query and key by the rotations of a kind.
    pub fn turned(&self, kind: usize, query: Tensor<4>, key: Tensor<4>) -> [Tensor<4>; 2] {
        let [of_query, of_key] = &self.shared.rotations[kind];
        [of_query.forward(query), of_key.forward(key)]
    }

    /// All layers, one after the other. Between them the states are `[T, D]`, so that no product sees a batch.
    ///
    /// # Shapes
    ///
    /// - embedded, result: `[B, S, D]`
    pub fn walk<L: Block>(&mut self, layers: &[L], embedded: Tensor<3>) -> Tensor<3> {
        let [batch, sequence, model] = embedded.dims();
        let states = embedded.reshape([batch * sequence, model]);
        let place = move |layer| Place { layer, batch, sequence };
        let states = if self.cache.is_some() {
            let pass = self.pass;
            pass.through(states, layers, |i, block, states| block.forward(states, place(i), self))
        } else {
            let (shared, device) = (self.shared.clone(), self.device.clone());
            self.pass.layers(states, layers, move |i, block, x, pass| {
                let mut context = Context { shared: shared.clone(), pass, device: device.clone(), cache: None };
                block.forward(x, place(i), &mut context)
            })
        };
        states.reshape([batch, sequence, model])
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
        let window = window.filter(|window| *window < self.shared.layout.keys());
        let mut sights = self.shared.sights.borrow_mut();
        let known = sights.iter().position(|(other, _)| *other == window).unwrap_or_else(|| {
            sights.push((window, self.shared.layout.sight(window)));
            sights.len() - 1
        });
        attention.forward([query, key, value], &sights[known].1, self.pass)
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
