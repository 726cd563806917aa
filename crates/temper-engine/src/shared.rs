//! What several ranks share: sums of gradients, the parameters that each owns, and proofs that they agree.
//!
//! Numbers travel in buckets of whole parameters. Where parameters have owners (ZeRO-1 and ZeRO-2, Rajbhandari et al. 2020,
//! arXiv:1910.02054), a bucket has a part for each rank: gradients are summed to the owner, which updates the parameter and
//! sends it to the others. Whole parameters have one owner, so every optimizer works as on one rank. Of the parameters of
//! layers the others may keep nothing (ZeRO-3): see `lending`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Device, Shape, Tensor, TensorData};
use temper_peft::parameters::{Mapper, layer_of, map, replace};
use temper_world::{Shard, World};

use crate::checkpoint::Values;
use crate::error::Error;
use crate::gradients::Gradients;
use crate::optim::Optimizer;
use crate::plan::Sharing;
use crate::weights::{self, Held};

/// The parameters of one message: where they have owners, those of each rank.
pub(crate) type Bucket = Vec<Vec<String>>;

/// How the ranks of a run share its work.
pub(crate) struct Shared {
    pub world: World,
    /// Trainable parameters, by path.
    pub parameters: BTreeMap<String, Held>,
    /// Those of which every rank has the values, by message.
    buckets: Vec<Bucket>,
    /// Those of which their owner alone has the values, layer by layer.
    pub layers: Vec<Bucket>,
    /// Whether parameters have owners.
    owned: bool,
    /// Whether micro-batches send their gradients to the owners one by one.
    pub each: bool,
    check_every: u64,
    device: Option<Device>,
}

impl Shared {
    /// Divides `parameters`.
    pub fn new(world: &World, parameters: BTreeMap<String, Held>, sharing: &Sharing) -> Self {
        let counts = parameters.iter().map(|(path, held)| (path.clone(), held.count())).collect();
        let owned = sharing.shard.has_owners() && !world.is_single();
        let mut parts = if owned { owners(&counts, world.size()) } else { vec![counts.keys().cloned().collect()] };
        let lent = owned && sharing.shard == Shard::Parameters;
        let layers = if lent { take_layers(&mut parts) } else { Vec::new() };
        Self {
            world: world.clone(),
            buckets: buckets(&parts, &counts, sharing.bucket_bytes / 4),
            layers,
            owned,
            each: owned && sharing.shard != Shard::Optimizer,
            check_every: sharing.check_every.max(1),
            device: parameters.values().next().map(|held| held.device.clone()),
            parameters,
        }
    }

    /// Whether this rank keeps the optimizer's state of a parameter.
    pub fn owns(&self, path: &str) -> bool {
        let own = |bucket: &Bucket| bucket[self.world.rank()].iter().any(|name| name == path);
        !self.owned || self.buckets.iter().chain(&self.layers).any(own)
    }

    /// The sums of the gradients of all ranks; where parameters have owners, of those that this rank owns.
    pub fn reduce(&self, mut gradients: Gradients) -> Result<Gradients, temper_world::Error> {
        if self.world.is_single() {
            return Ok(gradients);
        }
        let mut sums = Gradients::default();
        for parts in &self.buckets {
            self.reduce_bucket(parts, |path| gradients.take(path), &mut sums)?;
        }
        Ok(sums)
    }

    /// The same of one bucket, into `sums`.
    pub fn reduce_bucket(
        &self,
        parts: &[Vec<String>],
        mut gradient: impl FnMut(&str) -> Option<Tensor<1>>,
        sums: &mut Gradients,
    ) -> Result<(), temper_world::Error> {
        let (device, mut all, mut lengths) = (self.device(), Vec::new(), Vec::new());
        for part in parts {
            // Behind the gradients of a part stands, for each, how many ranks have one: a parameter without any stays.
            let mut reached = Vec::with_capacity(part.len());
            for path in part {
                let gradient = gradient(path);
                reached.push(if gradient.is_some() { 1.0_f32 } else { 0.0 });
                all.push(gradient.unwrap_or_else(|| Tensor::zeros([self.count(path)], device)));
            }
            if !reached.is_empty() {
                all.push(Tensor::from_data(TensorData::from(reached.as_slice()), device));
            }
            lengths.push(self.length(part) + part.len());
        }
        let (all, own) = (Tensor::cat(all, 0), self.own(parts));
        let sum = if self.owned { self.world.reduce_scatter(all, &lengths)? } else { self.world.all_reduce(all)? };
        self.split(sum, own, sums)
    }

    /// The squared norm of the whole gradient, from those of what each rank has.
    pub fn norm(&self, squared: &[Option<f64>]) -> Option<f64> {
        match self.owned {
            true => squared.iter().flatten().copied().reduce(|a, b| a + b),
            false => squared[self.world.rank()],
        }
    }

    fn device(&self) -> &Device {
        self.device.as_ref().expect("what is shared has parameters")
    }

    fn count(&self, path: &str) -> usize {
        self.parameters[path].count()
    }

    /// How many values some parameters have.
    fn length(&self, part: &[String]) -> usize {
        part.iter().map(|path| self.count(path)).sum()
    }

    /// The part of a bucket that this rank gets sums of.
    pub fn own<'a>(&self, parts: &'a [Vec<String>]) -> &'a [String] {
        &parts[if self.owned { self.world.rank() } else { 0 }]
    }

    fn split(&self, sum: Tensor<1>, part: &[String], sums: &mut Gradients) -> Result<(), temper_world::Error> {
        let values = self.length(part);
        if part.is_empty() {
            return Ok(());
        }
        let reached = sum.clone().slice(values..values + part.len()).try_into_data();
        let reached = reached
            .map_err(|error| temper_world::Error::Collective { what: "sum gradients", reason: error.to_string() })?;
        let mut start = 0;
        for (path, reached) in part.iter().zip(reached.iter::<f32>()) {
            let end = start + self.count(path);
            if reached != 0.0 {
                sums.put(path, sum.clone().slice(start..end));
            }
            start = end;
        }
        Ok(())
    }

    /// The model with the parameters that each owner has updated, but for those that their owner alone has.
    pub fn spread<M: Module>(&self, model: M) -> Result<M, temper_world::Error> {
        if self.owned { self.gather(model, &self.buckets) } else { Ok(model) }
    }

    /// The model with parameters as their owners have them.
    pub fn gather<M: Module>(&self, model: M, buckets: &[Bucket]) -> Result<M, temper_world::Error> {
        let (mut here, mut values) = (weights::values(&model), BTreeMap::new());
        for parts in buckets {
            let own = self.own(parts).iter().filter_map(|path| here.remove(path)).collect();
            values.extend(self.gather_bucket(parts, own)?);
        }
        struct Put<'a>(BTreeMap<String, Tensor<1>>, &'a BTreeMap<String, Held>);
        impl Mapper for Put<'_> {
            fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                match (self.0.remove(path), self.1.get(path)) {
                    (Some(value), Some(held)) => {
                        replace(param, |old| value.cast(old.dtype()).reshape(Shape::from(held.shape.clone())))
                    }
                    _ => param,
                }
            }
        }
        Ok(map(model, &mut Put(values, &self.parameters)))
    }

    /// The values of a bucket's parameters, of which this rank has its `own`, one after the other.
    pub fn gather_bucket(
        &self,
        parts: &[Vec<String>],
        own: Vec<Tensor<1>>,
    ) -> Result<Vec<(String, Tensor<1>)>, temper_world::Error> {
        let lengths: Vec<usize> = parts.iter().map(|part| self.length(part)).collect();
        let own = if own.is_empty() { Tensor::zeros([0], self.device()) } else { Tensor::cat(own, 0) };
        let all = self.world.all_gather(own, &lengths)?;
        let mut start = 0;
        let paths = parts.iter().flatten().map(|path| {
            let end = start + self.count(path);
            let value = all.clone().slice(start..end);
            start = end;
            (path.clone(), value)
        });
        Ok(paths.collect())
    }

    /// The optimizer's state of all parameters, on rank 0. It comes parameter by parameter, for all of it at once would be in
    /// memory several times over.
    pub fn collect(&self, optimizer: &Optimizer, step: u64) -> Result<Vec<(String, TensorData)>, Error> {
        let mut all = Vec::new();
        for path in self.parameters.keys() {
            let wanted = if self.owned { self.owns(path) } else { self.world.leads() };
            let own = if wanted { optimizer.read(path) } else { Ok(Vec::new()) };
            let own = own.map_err(|reason| Error::Device { step, reason })?;
            if !self.owned {
                all.extend(own);
                continue;
            }
            let own: Vec<Piece> = own.into_iter().map(Piece::of).collect();
            all.extend(self.world.collect(own)?.into_iter().flatten().map(Piece::into_named));
        }
        Ok(all)
    }

    /// Of the optimizer's state of all parameters, that of those that this rank owns.
    pub fn keep_own(&self, state: &mut Values) {
        state.retain(|name, _| self.owns(name.rsplit_once('.').map_or("", |(path, _)| path)));
    }

    /// Compares something of all ranks that must be the same.
    pub fn agree(&self, what: &'static str, step: u64, own: &str) -> Result<(), Error> {
        let all = self.world.exchange(own.to_owned())?;
        let most = all.iter().max_by_key(|value| {
            let held = all.iter().filter(|other| other == value).count();
            (held, Reverse(all.iter().position(|other| other == *value)))
        });
        match most {
            Some(most) if all.iter().all(|value| value == most) => Ok(()),
            Some(most) if most == own => Err(Error::Elsewhere { step }),
            _ => Err(Error::Disagrees { what, step }),
        }
    }

    /// Whether the parameters of all ranks are to be compared after this step.
    pub fn checks(&self, step: u64) -> bool {
        !self.world.is_single() && step.is_multiple_of(self.check_every)
    }

    /// Compares the parameters of all ranks, bit by bit.
    pub fn agree_on<M: Module>(&self, model: &M, step: u64) -> Result<(), Error> {
        if self.world.is_single() {
            return Ok(());
        }
        let values = weights::read(model).map_err(|reason| Error::Device { step, reason })?;
        self.agree("its parameters", step, &crate::checkpoint::checksum(&values))
    }
}

/// A tensor on its way between ranks.
#[derive(serde::Serialize, serde::Deserialize)]
struct Piece {
    name: String,
    shape: Vec<usize>,
    dtype: burn::tensor::DType,
    bytes: Vec<u8>,
}

impl Piece {
    fn of((name, data): (String, TensorData)) -> Self {
        Self { name, shape: data.shape().to_vec(), dtype: data.dtype(), bytes: data.as_bytes().to_vec() }
    }

    fn into_named(self) -> (String, TensorData) {
        (self.name, TensorData::from_bytes_vec(self.bytes, self.shape, self.dtype))
    }
}

/// The parameters of each rank: the largest first, each to the rank that has least.
fn owners(parameters: &BTreeMap<String, usize>, ranks: usize) -> Vec<Vec<String>> {
    let mut largest: Vec<(&String, usize)> = parameters.iter().map(|(path, &count)| (path, count)).collect();
    largest.sort_by_key(|&(path, count)| (Reverse(count), path));
    let (mut parts, mut loads) = (vec![Vec::new(); ranks], vec![0; ranks]);
    for (path, count) in largest {
        let least = (0..ranks).min_by_key(|&rank| loads[rank]).unwrap_or(0);
        loads[least] += count;
        parts[least].push(path.clone());
    }
    parts.iter_mut().for_each(|part| part.sort());
    parts
}

/// Takes the parameters of layers out of the parts of all ranks: a bucket for each layer, in the order of layers.
fn take_layers(parts: &mut [Vec<String>]) -> Vec<Bucket> {
    let mut layers: BTreeMap<_, Bucket> = BTreeMap::new();
    let ranks = parts.len();
    for (rank, part) in parts.iter_mut().enumerate() {
        for path in part.extract_if(.., |path| layer_of(path).is_some()) {
            let layer = layers.entry(layer_of(&path)).or_insert_with(|| vec![Vec::new(); ranks]);
            layer[rank].push(path);
        }
    }
    layers.into_values().collect()
}

/// Cuts what each rank has into messages of at most `most` values, where no parameter alone has more.
fn buckets(parts: &[Vec<String>], parameters: &BTreeMap<String, usize>, most: usize) -> Vec<Bucket> {
    let most = (most / parts.len()).max(1);
    let cut = |part: &Vec<String>| {
        let (mut runs, mut filled) = (vec![Vec::new()], 0);
        for path in part {
            if filled > 0 && filled + parameters[path] > most {
                (filled, _) = (0, runs.push(Vec::new()));
            }
            filled += parameters[path];
            runs.last_mut().expect("there is a first").push(path.clone());
        }
        runs
    };
    let runs: Vec<Vec<Vec<String>>> = parts.iter().map(cut).collect();
    let length = runs.iter().map(Vec::len).max().unwrap_or(0);
    (0..length).map(|i| runs.iter().map(|runs| runs.get(i).cloned().unwrap_or_default()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_parameter_has_one_owner_and_one_bucket() {
        let parameters: BTreeMap<String, usize> =
            (0..23).map(|i| (format!("layer.{i}"), 1 + (i * 37) % 50)).chain([("big".into(), 400)]).collect();
        for ranks in [1, 2, 3, 7, 40] {
            let parts = owners(&parameters, ranks);
            let buckets = buckets(&parts, &parameters, 60 * ranks);
            assert!(buckets.iter().all(|bucket| bucket.len() == ranks));
            let all: Vec<&String> = buckets.iter().flatten().flatten().collect();
            assert_eq!(all.len(), parameters.len());
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), parameters.len());
            let size = |part: &Vec<String>| part.iter().map(|path| parameters[path]).sum::<usize>();
            assert!(buckets.iter().flatten().all(|part| size(part) <= 60 || part.len() == 1));
            let loads: Vec<usize> = parts.iter().map(size).collect();
            let total: usize = parameters.values().sum();
            assert!(*loads.iter().max().unwrap_or(&0) <= 400.max(total.div_ceil(ranks) + 50), "{loads:?}");
        }
    }
}
