//! Layers whose parameters are elsewhere but for as long as they compute (ZeRO-3: Rajbhandari et al. 2020, arXiv:1910.02054).

use std::collections::BTreeMap;
use std::rc::Rc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Gradients, Shape, Tensor};

use crate::parameters::{Mapper, Visitor, flat, map, replace, visit};

/// Takes the gradient of a parameter, flat, from those of a backward pass.
pub type OnTape = Box<dyn FnOnce(&mut Gradients) -> Option<Tensor<1>>>;

/// Who brings the values of a layer's parameters.
pub trait Lend {
    /// The shape and the values, flat, of the trainable parameters of a layer. Of each there is what is here, which for those
    /// that are elsewhere is nothing.
    fn bring(&self, here: BTreeMap<ParamId, Tensor<1>>) -> BTreeMap<ParamId, (Shape, Tensor<1>)>;

    /// Takes note of how the gradient of a parameter will be found.
    fn note(&self, id: ParamId, gradient: OnTape);
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
        struct Here(BTreeMap<ParamId, Tensor<1>>);
        impl Visitor for Here {
            fn visit<const D: usize>(&mut self, _path: &str, param: &Param<Tensor<D>>) {
                if param.is_require_grad() {
                    self.0.insert(param.id, flat(param.val().inner()));
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
        let mut here = Here(BTreeMap::new());
        visit(&layer, &mut here);
        if here.0.is_empty() {
            return layer;
        }
        map(layer, &mut Fill { brought: self.0.bring(here.0), notes: learns.then_some(&*self.0) })
    }
}
