//! What several ranks share: sums of gradients, the parameters that each owns, and proofs that they agree.
//!
//! Numbers travel in buckets of whole parameters. Where parameters have owners (ZeRO-1 and ZeRO-2, Rajbhandari et al. 2020,
//! arXiv:1910.02054), a bucket has a part for each rank: gradients are summed to the owner, which updates the parameter and
//! sends it to the others. Whole parameters have one owner, so every optimizer works as on one rank. Of the parameters of
//! layers the others may keep nothing (ZeRO-3): see `lending`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::{Device, FloatDType, Shape, Tensor, TensorData};
use temper_device::Failed;
use temper_peft::parameters::{Mapper, layer_of, map, replace};
use temper_world::{Place, Shard, World};

use crate::checkpoint::{Outline, Outlines, checksum};
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
        let counts = counts(&parameters);
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
        !self.owned || self.owner(path) == self.world.rank()
    }

    /// The rank that owns a parameter; 0 where there are no owners.
    pub fn owner(&self, path: &str) -> usize {
        let all = self.buckets.iter().chain(&self.layers);
        all.flat_map(|bucket| bucket.iter().enumerate())
            .find_map(|(rank, part)| part.iter().any(|name| name == path).then_some(rank))
            .unwrap_or(0)
    }

    /// Whether an owner alone has the values of a parameter.
    pub fn lent(&self, path: &str) -> bool {
        self.layers.iter().flatten().flatten().any(|lent| lent == path)
    }

    /// Whether this rank has the values of a parameter.
    pub fn keeps(&self, path: &str) -> bool {
        !self.lent(path) || self.owns(path)
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
        let reached = temper_device::values::<f32, 1, _>(sum.clone().slice(values..values + part.len()));
        let failed = |failed: Failed| temper_world::Error::collective("sum gradients")(failed.to_string());
        let mut start = 0;
        for (path, reached) in part.iter().zip(reached.map_err(failed)?) {
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
        if !self.owned {
            return Ok(model);
        }
        let (mut here, mut values) = (weights::tensors(&model), BTreeMap::new());
        for parts in &self.buckets {
            let own = self.own(parts).iter().filter_map(|path| Some(here.remove(path)?.cast(FloatDType::F32)));
            values.extend(self.gather_bucket(parts, own.collect())?);
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

    /// Hands `put` on rank 0 each of some tensors, which `read` gives on the rank that `keeper` names. They come one by one, for
    /// all at once would be in memory several times over.
    pub fn each(
        &self,
        tensors: &Outlines,
        keeper: impl Fn(&str) -> usize,
        read: impl Fn(&str) -> Result<TensorData, Error>,
        mut put: impl FnMut(&str, TensorData) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut result = Ok(());
        for (name, Outline { dtype, shape }) in tensors {
            let from = keeper(name);
            let own = if from == self.world.rank() { Some(read(name)?) } else { None };
            let data = match from {
                0 => own,
                _ => {
                    let own = own.map_or_else(Vec::new, |data| data.as_bytes().to_vec());
                    let mut all = self.world.collect(&own)?;
                    let bytes = self.world.leads().then(|| all.swap_remove(from));
                    bytes.map(|bytes| TensorData::from_bytes_vec(bytes, shape.clone(), *dtype))
                }
            };
            // Whatever went wrong, the others are not left to wait.
            if let (Some(data), true) = (data, result.is_ok()) {
                result = put(name, data);
            }
        }
        result
    }

    /// What the optimizer's state of all parameters is.
    pub fn outlines(&self, optimizer: &Optimizer) -> Result<Outlines, Error> {
        let own: Outlines = self.parameters.keys().flat_map(|path| optimizer.outlines(path)).collect();
        Ok(self.world.exchange(own)?.into_iter().flatten().collect())
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

    /// Compares the parameters that all ranks have, bit by bit.
    pub fn agree_on<M: Module>(&self, model: &M, step: u64) -> Result<(), Error> {
        if self.world.is_single() {
            return Ok(());
        }
        let here = weights::tensors(model).into_iter().filter(|(path, _)| !self.lent(path));
        let values = here.map(|(path, tensor)| Ok((path, temper_device::read(tensor)?))).collect::<Result<Vec<_>, _>>();
        let values = values.map_err(|failed| Error::Device { step, failed })?;
        self.agree("its parameters", step, &checksum(&values))
    }
}

/// Those of the parameters of `model` that train whose values the rank at `place` need not have, for another keeps them: lazy,
/// they are as good to [`fit`](crate::fit()).
///
/// # Errors
/// When nothing trains.
pub fn elsewhere<M: Module>(model: &M, sharing: &Sharing, place: &Place) -> Result<BTreeSet<String>, Error> {
    if sharing.shard != Shard::Parameters {
        return Ok(BTreeSet::new());
    }
    let mut parts = owners(&counts(&weights::held(model)?), place.size);
    parts.remove(place.rank);
    Ok(parts.into_iter().flatten().filter(|path| layer_of(path).is_some()).collect())
}

fn counts(parameters: &BTreeMap<String, Held>) -> BTreeMap<String, usize> {
    parameters.iter().map(|(path, held)| (path.clone(), held.count())).collect()
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

/// Cuts what all ranks have into messages of at most `most` values, where no parameter alone has more. Ranks take turns, so that
/// each has about as much of a message.
fn buckets(parts: &[Vec<String>], parameters: &BTreeMap<String, usize>, most: usize) -> Vec<Bucket> {
    let empty = || vec![Vec::new(); parts.len()];
    let (mut buckets, mut filled) = (Vec::new(), 0);
    for turn in 0..parts.iter().map(Vec::len).max().unwrap_or(0) {
        for (rank, path) in parts.iter().enumerate().filter_map(|(rank, part)| Some((rank, part.get(turn)?))) {
            if buckets.is_empty() || (filled > 0 && filled + parameters[path] > most) {
                (filled, _) = (0, buckets.push(empty()));
            }
            filled += parameters[path];
            buckets.last_mut().expect("there is a first")[rank].push(path.clone());
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_has_one_owner_and_one_bucket() {
        assert!(buckets(&owners(&BTreeMap::new(), 2), &BTreeMap::new(), 120).is_empty());
        let parameters: BTreeMap<String, usize> =
            (0..23).map(|i| (format!("layer.{i}"), 1 + (i * 37) % 50)).chain([("big".into(), 400)]).collect();
        for ranks in [1, 2, 3, 7, 40] {
            let parts = owners(&parameters, ranks);
            let buckets = buckets(&parts, &parameters, 120);
            assert!(buckets.iter().all(|bucket| bucket.len() == ranks));
            let all: Vec<&String> = buckets.iter().flatten().flatten().collect();
            assert_eq!(all.len(), parameters.len());
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), parameters.len());
            let size = |part: &Vec<String>| part.iter().map(|path| parameters[path]).sum::<usize>();
            let alone = |bucket: &Bucket| bucket.iter().map(Vec::len).sum::<usize>() == 1;
            assert!(buckets.iter().all(|bucket| bucket.iter().map(size).sum::<usize>() <= 120 || alone(bucket)));
            let loads: Vec<usize> = parts.iter().map(size).collect();
            let total: usize = parameters.values().sum();
            assert!(*loads.iter().max().unwrap_or(&0) <= 400.max(total.div_ceil(ranks) + 50), "{loads:?}");
        }
    }
}
