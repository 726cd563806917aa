//! Parameters by name: burn's module traversal with Hugging Face's dotted paths.
//!
//! A path is made of field names and indices. Enum variants do not appear in it, and a field named after a Rust keyword
//! carries a trailing underscore that its path does not (`self_` is `self`), so that
//! `encoder.layer.0.attention.self.query.weight` is both the path in the module and the tensor's name in the file.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};

use crate::Error;
use crate::error::nearest;

/// Sees every float parameter of a module with its path.
pub trait Visitor {
    /// Called once for each parameter, in field order.
    fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>);
}

/// Rewrites every float parameter of a module, given its path.
pub trait Mapper {
    /// Called once for each parameter, in field order.
    fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Shows every float parameter of `module` to `visitor`. Lazy parameters stay lazy.
pub fn visit<M: Module>(module: &M, visitor: &mut impl Visitor) {
    module.visit(&mut Walk { path: Path::default(), inner: visitor });
}

/// Passes every float parameter of `module` through `mapper`.
pub fn map<M: Module>(module: M, mapper: &mut impl Mapper) -> M {
    module.map(&mut Walk { path: Path::default(), inner: mapper })
}

/// What is known of a parameter without reading its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The dotted path.
    pub path: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// Whether it trains.
    pub trainable: bool,
}

impl Entry {
    /// How many values it has.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Lists every float parameter of `module`, in field order, without initialising lazy ones.
pub fn list<M: Module>(module: &M) -> Vec<Entry> {
    struct List(Vec<Entry>);
    impl Visitor for List {
        fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            self.0.push(Entry { path: path.into(), shape: param.lazy_shape().to_vec(), trainable: trains(param) });
        }
    }
    let mut list = List(Vec::new());
    visit(module, &mut list);
    list.0
}

/// Whether a parameter trains. A lazy one stays lazy.
pub fn trains<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    match param.is_initialized() {
        true => param.is_require_grad(),
        false => emptied(param.clone()).is_require_grad(),
    }
}

/// The parameter without its values, of which there are none any more. It keeps its device and whether it trains; a lazy one
/// never gets what it would have begun with.
pub fn emptied<const D: usize>(param: Param<Tensor<D>>) -> Param<Tensor<D>> {
    let (id, device) = (param.id, param.lazy_device());
    let dtype = if param.is_initialized() { param.dtype() } else { DType::F32 };
    param.transform_for_load(Tensor::zeros([0; D], (&device, dtype)), id)
}

/// Gives every lazy parameter whose path is `wanted` its value now.
pub fn realise<M: Module>(module: &M, wanted: impl Fn(&str) -> bool) {
    struct Realise<F>(F);
    impl<F: Fn(&str) -> bool> Visitor for Realise<F> {
        fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if (self.0)(path) {
                param.val();
            }
        }
    }
    visit(module, &mut Realise(wanted));
}

/// Sets which parameters train: those for whose path `trains` says so. Lazy parameters stay lazy.
pub fn set_trainable<M: Module>(module: M, trains: impl Fn(&str) -> bool) -> M {
    struct Set<F>(F);
    impl<F: Fn(&str) -> bool> Mapper for Set<F> {
        fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.set_require_grad((self.0)(path))
        }
    }
    map(module, &mut Set(trains))
}

/// A parameter's values on the host, in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// The shape.
    pub shape: Vec<usize>,
    /// As many values as the shape says.
    pub data: Vec<f32>,
}

/// A parameter whose values are copied to the host each time that they are asked for.
pub struct Deferred {
    /// The shape.
    pub shape: Vec<usize>,
    read: Box<dyn Fn() -> Result<Vec<f32>, Error>>,
}

impl Deferred {
    /// A parameter of that shape whose values `read` copies.
    pub fn new(shape: Vec<usize>, read: impl Fn() -> Result<Vec<f32>, Error> + 'static) -> Self {
        Self { shape, read: Box::new(read) }
    }

    /// Copies the values.
    ///
    /// # Errors
    ///
    /// When a device fails.
    pub fn read(&self) -> Result<Values, Error> {
        Ok(Values { shape: self.shape.clone(), data: (self.read)()? })
    }
}

impl From<Values> for Deferred {
    fn from(Values { shape, data }: Values) -> Self {
        Self::new(shape, move || Ok(data.clone()))
    }
}

/// The parameters for whose path `wanted` says so, by path, to be copied to the host one at a time.
pub fn deferred<M: Module>(module: &M, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, Deferred> {
    struct Defer<F>(F, BTreeMap<String, Deferred>);
    impl<F: Fn(&str) -> bool> Visitor for Defer<F> {
        fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if (self.0)(path) {
                let (tensor, name) = (param.val(), path.to_owned());
                let failed = move |failed| Error::Device { path: name.clone(), failed };
                let read = move || temper_device::values(tensor.clone()).map_err(&failed);
                self.1.insert(path.into(), Deferred::new(param.lazy_shape().to_vec(), read));
            }
        }
    }
    let mut defer = Defer(wanted, BTreeMap::new());
    visit(module, &mut defer);
    defer.1
}

/// Copies the parameters for whose path `wanted` says so to the host, as f32, by path.
///
/// # Errors
///
/// When a device fails.
pub fn read<M: Module>(module: &M, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Values>, Error> {
    deferred(module, wanted).into_iter().map(|(path, values)| Ok((path, values.read()?))).collect()
}

/// Replaces parameters, by path. Each keeps its device and whether it trains.
///
/// # Errors
///
/// When a name is not a parameter of `module`, or a shape differs.
pub fn write<M: Module>(module: M, values: BTreeMap<String, Values>) -> Result<M, Error> {
    let entries = list(&module);
    for (path, given) in &values {
        let Some(entry) = entries.iter().find(|entry| entry.path == *path) else {
            let nearest = nearest(path, entries.iter().map(|entry| entry.path.as_str()));
            return Err(Error::NoSuchParameter { path: path.clone(), nearest });
        };
        if entry.shape != given.shape {
            let (expected, found) = (entry.shape.clone(), given.shape.clone());
            return Err(Error::Shape { path: path.clone(), expected, found });
        }
    }
    struct Write(BTreeMap<String, Values>);
    impl Mapper for Write {
        fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match self.0.remove(path) {
                Some(values) => assign(param, values.data),
                None => param,
            }
        }
    }
    Ok(map(module, &mut Write(values)))
}

/// Gives a parameter new values (as many as it has), on the device and with the training state that it has.
pub fn assign<const D: usize>(param: Param<Tensor<D>>, values: Vec<f32>) -> Param<Tensor<D>> {
    let (id, device, shape) = (param.id, param.lazy_device(), param.lazy_shape());
    let tensor = Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32));
    param.transform_for_load(tensor, id)
}

/// Replaces the value of a trainable parameter by a function of it, both without a graph. The new value is a leaf of its own:
/// it keeps the device, the checkpointing strategy and the parameter's identity, and nothing of the old graph.
pub fn replace<const D: usize>(
    param: Param<Tensor<D>>,
    change: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    let (id, value, mapper) = param.consume();
    let strategy = value.gradient_checkpointing_strategy();
    let value = change(value.inner());
    let value = match strategy {
        Some(strategy) => value.autodiff().with_gradient_checkpointing_strategy(strategy).require_grad(),
        None => value,
    };
    Param::from_mapped_value(id, value, mapper)
}

/// All values in one row.
pub fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let count = tensor.shape().num_elements();
    tensor.reshape([count])
}

/// The layer that a parameter is of, if it is of one: what its path has before the number of the layer, and the number.
pub fn layer_of(path: &str) -> Option<(String, usize)> {
    let mut stem = String::new();
    for name in path.split('.') {
        if let Ok(number) = name.parse() {
            return Some((stem, number));
        }
        stem = stem + name + ".";
    }
    None
}

#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        if !container.starts_with("Enum") {
            self.0.push(name.trim_end_matches('_').to_owned());
        }
    }

    fn exit(&mut self, container: &str) {
        if !container.starts_with("Enum") {
            self.0.pop();
        }
    }

    fn dotted(&self) -> String {
        self.0.join(".")
    }
}

struct Walk<'a, T> {
    path: Path,
    inner: &'a mut T,
}

impl<T: Visitor> ModuleVisitor for Walk<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.inner.visit(&self.path.dotted(), param);
    }
}

impl<T: Mapper> ModuleMapper for Walk<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.dotted();
        self.inner.map(&path, param)
    }
}
