//! Reading and replacing the values of trainable parameters.

use std::collections::BTreeMap;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
pub(crate) use temper_peft::parameters::flat;
use temper_peft::parameters::{self, Mapper, Visitor, map, visit};

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
}

/// Lists the trainable parameters by path.
pub(crate) fn held<M: Module>(model: &M) -> Result<BTreeMap<String, Held>, Error> {
    struct List(BTreeMap<String, Held>);
    impl Visitor for List {
        fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                let (shape, device) = (param.shape().to_vec(), param.device().inner());
                self.0.insert(path.into(), Held { id: param.id, shape, dtype: param.dtype(), device });
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

/// Reads the trainable parameters to the host.
pub(crate) fn read<M: Module>(model: &M) -> Result<Vec<(String, TensorData)>, String> {
    struct Read(Result<Vec<(String, TensorData)>, String>);
    impl Visitor for Read {
        fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if let Ok(read) = &mut self.0
                && param.is_require_grad()
            {
                match param.val().inner().try_into_data() {
                    Ok(data) => read.push((path.into(), data)),
                    Err(error) => self.0 = Err(error.to_string()),
                }
            }
        }
    }
    let mut read = Read(Ok(Vec::new()));
    visit(model, &mut read);
    read.0
}

/// The values of the trainable parameters by path, flat, in f32, without a graph.
pub(crate) fn values<M: Module>(model: &M) -> BTreeMap<String, Tensor<1>> {
    struct Values(BTreeMap<String, Tensor<1>>);
    impl Visitor for Values {
        fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0.insert(path.into(), flat(param.val().inner()).cast(FloatDType::F32));
            }
        }
    }
    let mut values = Values(BTreeMap::new());
    visit(model, &mut values);
    values.0
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
