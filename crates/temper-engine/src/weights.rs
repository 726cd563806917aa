//! Reading and replacing the values of trainable parameters.

use std::collections::BTreeMap;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
pub(crate) use temper_peft::parameters::flat;
use temper_peft::parameters::{self, Mapper, Visitor, map, trains, visit};

use crate::checkpoint::Outline;
use crate::error::Error;

/// A trainable parameter, without its values.
pub(crate) struct Held {
    pub id: ParamId,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub device: Device,
}

impl Held {
    /// How many values it has.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// What it is in a file.
    pub fn outline(&self) -> Outline {
        Outline { dtype: self.dtype, shape: self.shape.clone() }
    }
}

/// Lists the trainable parameters by path. Lazy ones stay lazy; they will be f32.
pub(crate) fn held<M: Module>(model: &M) -> Result<BTreeMap<String, Held>, Error> {
    struct List(BTreeMap<String, Held>);
    impl Visitor for List {
        fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if trains(param) {
                let (shape, device) = (param.lazy_shape().to_vec(), param.lazy_device().inner());
                let dtype = if param.is_initialized() { param.dtype() } else { DType::F32 };
                self.0.insert(path.into(), Held { id: param.id, shape, dtype, device });
            }
        }
    }
    let mut list = List(BTreeMap::new());
    visit(model, &mut list);
    if list.0.is_empty() {
        return Err(Error::NothingTrains);
    }
    match list.0.iter().find(|(_, held)| !matches!(held.dtype, DType::F32 | DType::F16 | DType::BF16)) {
        Some((path, held)) => Err(Error::UntrainableDtype { path: path.clone(), dtype: format!("{:?}", held.dtype) }),
        None => Ok(list.0),
    }
}

/// The trainable parameters by path, flat, without a graph.
pub(crate) fn tensors<M: Module>(model: &M) -> BTreeMap<String, Tensor<1>> {
    struct Tensors(BTreeMap<String, Tensor<1>>);
    impl Visitor for Tensors {
        fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0.insert(path.into(), flat(param.val().inner()));
            }
        }
    }
    let mut tensors = Tensors(BTreeMap::new());
    visit(model, &mut tensors);
    tensors.0
}

/// Writes values, whose shapes and dtypes have been checked, into parameters.
pub(crate) fn write<M: Module>(model: M, values: BTreeMap<String, TensorData>) -> M {
    struct Write(BTreeMap<String, TensorData>);
    impl Mapper for Write {
        fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match self.0.remove(path) {
                Some(data) => replace(param, |old| upload(data, &old.device())),
                None => param,
            }
        }
    }
    map(model, &mut Write(values))
}

/// Puts host data on a device as a flat tensor that stays.
pub(crate) fn upload(data: TensorData, device: &Device) -> Tensor<1> {
    let (dtype, count) = (data.dtype(), data.num_elements());
    let data = TensorData::from_bytes(data.into_bytes(), [count], dtype);
    device.memory_persistent_allocations(data, |data| Tensor::from_data(data, (device, dtype)))
}

/// Replaces the value of a trainable parameter by a function of it, both flat and without a graph.
pub(crate) fn replace<const D: usize>(
    param: Param<Tensor<D>>,
    change: impl FnOnce(Tensor<1>) -> Tensor<1>,
) -> Param<Tensor<D>> {
    parameters::replace(param, |value| {
        let shape = value.shape();
        change(flat(value)).reshape(shape)
    })
}
