//! Parameters by name: burn's module traversal with Hugging Face's dotted paths.
//!
//! A path is made of field names and indices. Enum variants do not appear in it, and a field named after a Rust keyword
//! carries a trailing underscore that its path does not (`self_` is `self`), so that
//! `encoder.layer.0.attention.self.query.weight` is both the path in the module and the tensor's name in the file.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

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
    /// Whether it trains; false for a lazy parameter.
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
            let shape = param.lazy_shape().to_vec();
            self.0.push(Entry { path: path.into(), shape, trainable: param.is_initialized() && param.is_require_grad() });
        }
    }
    let mut list = List(Vec::new());
    visit(module, &mut list);
    list.0
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
