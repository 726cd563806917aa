//! From a checkpoint's tensors to a module's parameters, by name.

use std::collections::BTreeSet;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use safetensors::Dtype;
use temper_nn::Format;
use temper_peft::init::normal;
use temper_peft::parameters::{Entry, Mapper, assign, list, map};

use crate::{Backbone, Error, Weights};

/// What fits and what does not, sorted by path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadReport {
    /// Parameter path and tensor name.
    pub loaded: Vec<(String, String)>,
    /// Parameters that the checkpoint does not hold.
    pub missing: Vec<String>,
    /// Tensors that the model does not use.
    pub unexpected: Vec<String>,
    /// Parameters whose tensor has another shape.
    pub wrong_shape: Vec<WrongShape>,
    /// Tensors of a dtype that is not read.
    pub wrong_dtype: Vec<String>,
}

/// A tensor that does not fit its parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongShape {
    /// The parameter.
    pub path: String,
    /// The tensor.
    pub name: String,
    /// The parameter's shape.
    pub expected: Vec<usize>,
    /// The tensor's shape.
    pub found: Vec<usize>,
}

/// How missing parameters begin: zeros for biases, norms so that they scale by one, else a normal distribution with mean
/// 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Init {
    /// A parameter's values depend on this and on its path alone.
    pub seed: u64,
    /// The standard deviation; see [`Config::initializer_range`](crate::Config::initializer_range).
    pub range: f64,
}

/// The names under which checkpoints hold the backbone's parameter at `path`: with the class prefix or without, and with
/// the norms' names of TensorFlow's time (`gamma`, `beta`).
pub fn candidates(prefix: &str, path: &str) -> Vec<String> {
    let old = match path.strip_suffix("LayerNorm.weight") {
        Some(module) => Some(format!("{module}LayerNorm.gamma")),
        None => path.strip_suffix("LayerNorm.bias").map(|module| format!("{module}LayerNorm.beta")),
    };
    let names = [Some(path.to_owned()), old].into_iter().flatten();
    names.flat_map(|name| [format!("{prefix}.{name}"), name]).collect()
}

/// Compares parameters with a checkpoint by its headers; reads no values. `names` gives the names of a parameter, the
/// first that exists is taken; with no names it counts as missing. Adapters are left out.
pub fn check(entries: &[Entry], weights: &Weights, names: impl Fn(&str) -> Vec<String>) -> LoadReport {
    let mut report = LoadReport::default();
    let mut used = BTreeSet::new();
    for entry in entries.iter().filter(|entry| !is_adapter(&entry.path)) {
        let path = entry.path.clone();
        let found = names(&path).into_iter().find_map(|name| weights.shape(&name).map(|shape| (name, shape.to_vec())));
        match found {
            None => report.missing.push(path),
            Some((name, shape)) => {
                used.insert(name.clone());
                if weights.dtype(&name).is_some_and(|dtype| !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)) {
                    report.wrong_dtype.push(name.clone());
                }
                match shape == entry.shape {
                    true => report.loaded.push((path, name)),
                    false => {
                        let expected = entry.shape.clone();
                        report.wrong_shape.push(WrongShape { path, name, expected, found: shape });
                    }
                }
            }
        }
    }
    let unexpected = weights.names().filter(|name| !used.contains(*name) && !is_buffer(name));
    report.unexpected = unexpected.map(str::to_owned).collect();
    report.missing.sort();
    report.loaded.sort();
    report
}

/// Fills a module's parameters from a checkpoint, as [`check`] matches them, and the missing ones by `init`. Each
/// parameter keeps its device and whether it trains. Adapters are left as they are.
///
/// # Errors
///
/// When a tensor has another shape than its parameter, a dtype that is not read, or a value that is not finite.
pub fn load<M: Module>(
    module: M,
    weights: &Weights,
    names: impl Fn(&str) -> Vec<String>,
    init: &Init,
) -> Result<(M, LoadReport), Error> {
    load_part(module, weights, names, init, |_| true)
}

/// The same of those parameters whose path is `wanted`; the others stay lazy.
///
/// # Errors
///
/// As of [`load`].
pub fn load_part<M: Module>(
    module: M,
    weights: &Weights,
    names: impl Fn(&str) -> Vec<String>,
    init: &Init,
    wanted: impl Fn(&str) -> bool,
) -> Result<(M, LoadReport), Error> {
    let report = check(&list(&module), weights, names);
    if !report.wrong_shape.is_empty() {
        return Err(Error::Shapes { path: weights.directory().into(), tensors: report.wrong_shape });
    }
    let mut fill = Fill { weights, report: &report, init, wanted, error: None };
    let module = map(module, &mut fill);
    match fill.error {
        Some(error) => Err(error),
        None => Ok((module, report)),
    }
}

/// Freezes the linear layers of `backbone` whose weights `frozen` names (`[path].weight`) in few bits, one after the other, so
/// that no more than one of them is ever whole. They are no parameters then; [`load`] fills the others. Returns how many
/// there are.
///
/// # Errors
///
/// When a tensor cannot be read, or has a value that is not finite.
pub fn quantize(
    backbone: &mut Backbone,
    weights: &Weights,
    names: impl Fn(&str) -> Vec<String>,
    frozen: impl Fn(&str) -> bool,
    format: Format,
) -> Result<usize, Error> {
    let mut count = 0;
    for (path, linear) in backbone.linears() {
        let path = format!("{path}.weight");
        let found = names(&path).into_iter().find(|name| weights.shape(name).is_some());
        if let Some(name) = found.filter(|_| frozen(&path)) {
            linear.quantize(weights.read(&name)?, format);
            count += 1;
        }
    }
    Ok(count)
}

/// Gives every parameter of `module` whose path is `wanted` a value drawn or set by `init`: training from scratch.
pub fn initialise<M: Module>(module: M, init: &Init, wanted: impl Fn(&str) -> bool) -> M {
    struct Fresh<'a, F>(&'a Init, F);
    impl<F: Fn(&str) -> bool> Mapper for Fresh<'_, F> {
        fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if (self.1)(path) { self.0.fill(path, param) } else { param }
        }
    }
    map(module, &mut Fresh(init, wanted))
}

struct Fill<'a, F> {
    weights: &'a Weights,
    report: &'a LoadReport,
    init: &'a Init,
    wanted: F,
    error: Option<Error>,
}

impl<F: Fn(&str) -> bool> Mapper for Fill<'_, F> {
    fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if is_adapter(path) || !(self.wanted)(path) || self.error.is_some() {
            return param;
        }
        let loaded = &self.report.loaded;
        match loaded.binary_search_by(|(other, _)| other.as_str().cmp(path)) {
            Err(_) => self.init.fill(path, param),
            Ok(found) => match self.weights.read(&loaded[found].1) {
                Ok(values) => assign(param, values),
                Err(error) => {
                    self.error = Some(error);
                    param
                }
            },
        }
    }
}

impl std::fmt::Display for WrongShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` should have shape {:?} but has {:?}", self.name, self.expected, self.found)
    }
}

impl Init {
    fn fill<const D: usize>(&self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let module = path.rsplit('.').nth(1).unwrap_or_default().to_lowercase().replace('_', "");
        let count = param.lazy_shape().num_elements();
        if path.ends_with(".bias") {
            assign(param, vec![0.0; count])
        } else if module.ends_with("norm") || ["ln1", "ln2", "lnf"].contains(&module.as_str()) {
            param.val(); // what its layer was made with
            param
        } else {
            assign(param, normal(self.seed, path, count, self.range))
        }
    }
}

/// Masks and frequencies that old versions of Transformers saved, and that follow from the configuration.
fn is_buffer(name: &str) -> bool {
    [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", ".position_ids"].iter().any(|end| name.ends_with(end))
}

fn is_adapter(path: &str) -> bool {
    path.contains(".adapter.")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use temper_device::testing;
    use temper_nn::lazy;

    #[test]
    fn candidates_cover_prefix_and_old_names() {
        assert_eq!(candidates("bert", "pooler.dense.bias"), ["bert.pooler.dense.bias", "pooler.dense.bias"]);
        let names = candidates("bert", "embeddings.LayerNorm.weight");
        assert!(names.contains(&"bert.embeddings.LayerNorm.gamma".to_owned()), "{names:?}");
    }

    #[test]
    fn missing_parameters_begin_by_their_kind() {
        let device = testing::device();
        let init = Init { seed: 1, range: 0.02 };
        let values =
            |path: &str, param: Param<Tensor<1>>| init.fill(path, param).val().try_into_vec_as::<f32>().unwrap();
        assert_eq!(values("a.dense.bias", lazy([2], 5.0, &device)), [0.0, 0.0]);
        for norm in ["a.LayerNorm", "a.sa_layer_norm", "h.0.ln_1", "ln_f", "norm", "layers.0.input_layernorm"] {
            assert_eq!(values(&format!("{norm}.weight"), lazy([2], 5.0, &device)), [5.0, 5.0]);
        }
        let weight = values("a.dense.weight", lazy([1000], 0.0, &device));
        assert!(weight.iter().any(|v| *v != 0.0) && weight.iter().all(|v| v.abs() < 0.1));
    }
}
