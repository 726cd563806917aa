//! Layers whose parameters are elsewhere but for as long as they compute (ZeRO-3: Rajbhandari et al. 2020, arXiv:1910.02054).

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Gradients, Shape, Tensor};

use crate::parameters::{Mapper, Visitor, flat, map, replace, visit};

/// Takes the gradient of a parameter, flat, from those of a backward pass.
pub type OnTape = Box<dyn FnOnce(&mut Gradients) -> Option<Tensor<1>>>;

/// Who brings the values of a layer's parameters.
pub trait Lend {
    /// Whether a parameter is one of those that may have to be brought.
    fn lends(&self, id: ParamId) -> bool;

    /// The shapes and the values, flat, of these parameters of a layer.
    fn bring(&self, layer: BTreeSet<ParamId>) -> BTreeMap<ParamId, (Shape, Tensor<1>)>;

    /// Takes note of how the gradient of a parameter will be found.
    fn note(&self, id: ParamId, gradient: OnTape);

    /// Before a pass that measures, without gradients: every layer will come once.
    fn begin(&self);

    /// After the last pass that measures on this rank: takes part in those that other ranks still make.
    ///
    /// # Errors
    /// What went wrong since the first of them.
    fn rest(&self) -> Result<(), String>;
}

/// Lends layers their parameters. A clone is the same one.
#[derive(Clone)]
pub struct Lender(pub Rc<dyn Lend>);

impl std::fmt::Debug for Lender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lender")
    }
}

impl Lender {
    /// The layer with the values of all its parameters. If it `learns`, their gradients will be asked for.
    pub fn fill<M: Module>(&self, layer: M, learns: bool) -> M {
        struct Lent<'a>(BTreeSet<ParamId>, &'a dyn Lend);
        impl Visitor for Lent<'_> {
            fn visit<const D: usize>(&mut self, _path: &str, param: &Param<Tensor<D>>) {
                if self.1.lends(param.id) {
                    self.0.insert(param.id);
                }
            }
        }
        struct Fill<'a> {
            brought: BTreeMap<ParamId, (Shape, Tensor<1>)>,
            notes: Option<&'a dyn Lend>,
        }
        impl Mapper for Fill<'_> {
            fn map<const D: usize>(&mut self, _path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let Some((shape, values)) = self.brought.remove(&param.id) else { return param };
                let param = replace(param, |_| values.reshape(shape));
                if let Some(lender) = self.notes {
                    let leaf = param.val();
                    lender.note(param.id, Box::new(move |tape| leaf.grad_remove(tape).map(flat)));
                }
                param
            }
        }
        let mut lent = Lent(BTreeSet::new(), &*self.0);
        visit(&layer, &mut lent);
        if lent.0.is_empty() {
            return layer;
        }
        map(layer, &mut Fill { brought: self.0.bring(lent.0), notes: learns.then_some(&*self.0) })
    }
}
