//! A tiny random model of Transformers, and what it computes; `fixtures/generate.py` says what the files hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use safetensors::SafeTensors;
use temper_device::testing;
use temper_models::{Backbone, Config, Init, Input, LoadReport, MODEL_TYPES, Weights, candidates, load};
use temper_nn::{Activations, Pass, matmul};
use temper_peft::file;
use temper_peft::parameters::{self, Values, Visitor};
use temper_peft::{AdapterConfig, targets};

/// Largest difference relative to the largest value, in f32.
const HIDDEN: f32 = 1e-5;
const GRADIENT: f32 = 1e-4;
/// Largest difference of a loss relative to the loss.
const LOSS: f32 = 1e-5;

pub struct Fixture {
    pub name: &'static str,
    pub directory: PathBuf,
    pub config: Config,
    pub io: BTreeMap<String, Values>,
}

/// Every architecture in one fixture or several.
pub fn fixtures() -> Vec<Fixture> {
    let variants = ["llama-llama3", "llama-yarn"];
    MODEL_TYPES.iter().map(|(name, _)| *name).chain(variants).map(Fixture::open).collect()
}

/// The decoders among them.
pub fn decoders() -> Vec<Fixture> {
    fixtures().into_iter().filter(|fixture| fixture.config.is_decoder()).collect()
}

impl Fixture {
    pub fn open(name: &'static str) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        let io = tensors(&directory.join("io.safetensors"));
        Self { name, config: Config::read(&directory).unwrap(), io, directory }
    }

    /// The backbone with the fixture's weights.
    pub fn backbone(&self, device: &Device, trains: bool) -> (Backbone, LoadReport) {
        let backbone = parameters::set_trainable(Backbone::new(&self.config, device), |_| trains);
        let weights = Weights::open(&self.directory).unwrap();
        let names = |path: &str| candidates(self.config.prefix(), path);
        load(backbone, &weights, names, &Init { seed: 0, range: 0.1 }).unwrap()
    }

    /// The backbone with a frozen base and the adapter that PEFT made, its parameters training.
    pub fn adapted(&self, adapter: &str, device: &Device) -> Backbone {
        self.with_adapter(&self.directory.join(adapter), device)
    }

    pub fn with_adapter(&self, directory: &Path, device: &Device) -> Backbone {
        let (mut backbone, _) = self.backbone(device, false);
        let file = file::open(directory).unwrap();
        assert_eq!(file.ignored, Vec::<String>::new());
        let table = file.config.table();
        let prefix = self.config.prefix();
        backbone.adapt(&file.modules, &table, prefix, 0).unwrap();
        let rule =
            targets::Trainable::new(&AdapterConfig { modules_to_save: vec![], ..table }, &file.modules, &[]).unwrap();
        let backbone = parameters::set_trainable(backbone, |path| rule.trains(&format!("{prefix}.{path}")));
        let values =
            file.tensors.into_iter().filter_map(|(name, values)| Some((file::from_peft(prefix, &name)?, values)));
        parameters::write(backbone, values.collect()).unwrap()
    }

    pub fn input(&self, device: &Device) -> Input {
        let ids = |name: &str| {
            let values = &self.io[name];
            let data: Vec<i64> = values.data.iter().map(|v| *v as i64).collect();
            Tensor::<2, Int>::from_data(TensorData::new(data, values.shape.clone()), device)
        };
        let segments = self.io["lengths"].data.iter().map(|v| vec![*v as usize]).collect();
        Input { ids: ids("ids"), type_ids: (self.config.type_vocab_size() > 0).then(|| ids("type_ids")), segments }
    }

    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let values = &self.io[name];
        Tensor::from_data(TensorData::new(values.data.clone(), values.shape.clone()), device)
    }

    /// What the fixture's gradients are of. For a decoder it is the mean loss, which is compared.
    pub fn objective(&self, backbone: &Backbone, hidden: Tensor<3>, case: &str, device: &Device) -> Tensor<1> {
        if !self.config.is_decoder() {
            return (hidden * self.tensor("probe", device)).sum();
        }
        let loss = self.loss(backbone, &self.input(device), hidden);
        let (found, expected) = (loss.clone().into_scalar::<f32>(), self.io[&format!("{case}loss")].data[0]);
        assert!(
            (found - expected).abs() < testing::tolerance(LOSS) * expected,
            "{} {case} loss {found} is not {expected}",
            self.name
        );
        loss
    }

    /// The mean loss of all tokens that follow another in their segment.
    pub fn loss(&self, backbone: &Backbone, input: &Input, hidden: Tensor<3>) -> Tensor<1> {
        let [batch, sequence, model] = hidden.dims();
        let embeddings = backbone.word_embeddings();
        let head = if self.config.tied() {
            embeddings
        } else {
            head(&Weights::open(&self.directory).unwrap(), &hidden.device())
        };
        let logits = matmul(hidden.reshape([batch * sequence, model]), head.transpose());
        let logits = match self.config.final_logit_softcap() {
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            None => logits,
        };
        let ends: Vec<usize> = (0..batch)
            .flat_map(|row| {
                let mut end = row * sequence;
                let ranges: Vec<_> = input.segments[row]
                    .iter()
                    .map(|length| {
                        end += length;
                        end - length..end - 1
                    })
                    .collect();
                ranges.into_iter().flatten()
            })
            .collect();
        let places = Tensor::<1, Int>::from_ints(
            TensorData::from(&ends.iter().map(|i| *i as i64).collect::<Vec<_>>()[..]),
            &input.ids.device(),
        );
        let labels = input.ids.clone().reshape([batch * sequence]).select(0, places.clone().add_scalar(1));
        let scores = log_softmax(logits.select(0, places), 1);
        scores.gather(1, labels.unsqueeze_dim(1)).mean().neg()
    }

    /// Compares hidden states where there is no padding, and then the objective's gradients.
    pub fn compare(&self, backbone: &Backbone, case: &str, device: &Device) -> (f32, f32) {
        let hidden = backbone.forward(&self.input(device), &Pass::train(0));
        let error = self.hidden_error(hidden.clone(), &format!("{case}hidden"), device);
        let grads = self.objective(backbone, hidden, case, device).backward();
        let found = gradients(backbone, &grads);
        for activations in [Activations::Recompute, Activations::Offload] {
            let again = self.recomputed(backbone, case, activations, device);
            assert!(found == again, "{} {case}: {activations:?}", self.name);
        }
        let prefix = format!("{case}grad.");
        let expected: Vec<_> =
            self.io.iter().filter_map(|(name, values)| Some((name.strip_prefix(&prefix)?, values))).collect();
        let names: Vec<_> = expected.iter().map(|(name, _)| *name).collect();
        assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), names, "{} {case}", self.name);
        let worst = expected.iter().map(|(name, values)| {
            let (found, values) = (&found[*name], &values.data);
            (relative(found, values), *name)
        });
        let worst = worst.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        assert!(worst.0 < testing::tolerance(GRADIENT), "{} {case} gradient of {}: {}", self.name, worst.1, worst.0);
        (error, worst.0)
    }

    /// The gradients of the objective where layers keep what `activations` says.
    fn recomputed(
        &self,
        backbone: &Backbone,
        case: &str,
        activations: Activations,
        device: &Device,
    ) -> BTreeMap<String, Vec<f32>> {
        let pass = Pass::train(0).with_activations(activations);
        let loss = self.objective(backbone, backbone.forward(&self.input(device), &pass), case, device);
        let mut all = BTreeMap::<String, Vec<f32>>::new();
        pass.into_checkpoints().unwrap().backward(loss, |part| {
            for (path, values) in gradients(backbone, &part) {
                match all.get_mut(&path) {
                    None => drop(all.insert(path, values)),
                    Some(sum) => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
                }
            }
        });
        all
    }

    pub fn hidden_error(&self, hidden: Tensor<3>, expected: &str, device: &Device) -> f32 {
        let [_, sequence, model] = hidden.dims();
        let lengths = &self.io["lengths"].data;
        let [found, expected] = [hidden.inner(), self.tensor(expected, device).inner()].map(|tensor| {
            let values = tensor.try_into_vec_as::<f32>().unwrap();
            let rows = values.chunks(sequence * model).zip(lengths);
            rows.flat_map(|(row, length)| row[..*length as usize * model].to_vec()).collect::<Vec<_>>()
        });
        let error = relative(&found, &expected);
        assert!(error < testing::tolerance(HIDDEN), "{} hidden states: {error}", self.name);
        error
    }
}

/// The tensors of a file, by name.
pub fn tensors(path: &Path) -> BTreeMap<String, Values> {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &safetensors::tensor::TensorView| match view.dtype() {
        safetensors::Dtype::I64 => {
            view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect()
        }
        dtype => file::to_f32(dtype, view.data()).unwrap(),
    };
    let named = tensors.iter().map(|(n, v)| (n.to_owned(), Values { shape: v.shape().to_vec(), data: values(&v) }));
    named.collect()
}

/// The weight of the language-model head of a decoder that is not tied.
pub fn head(weights: &Weights, device: &Device) -> Tensor<2> {
    let shape = weights.shape("lm_head.weight").unwrap().to_vec();
    Tensor::from_data(TensorData::new(weights.read("lm_head.weight").unwrap(), shape), device)
}

pub fn relative(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let difference = found.iter().zip(expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    // The key's bias has no effect on a softmax: its gradient is rounding error on both sides.
    if scale < 1e-4 { difference } else { difference / scale }
}

pub fn gradients(backbone: &Backbone, grads: &Gradients) -> BTreeMap<String, Vec<f32>> {
    struct Collect<'a>(&'a Gradients, BTreeMap<String, Vec<f32>>);
    impl Visitor for Collect<'_> {
        fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            let gradient = param.val().grad(self.0);
            assert!(gradient.is_none() || param.is_require_grad(), "the frozen `{path}` has a gradient");
            if let Some(gradient) = gradient {
                self.1.insert(path.into(), gradient.try_into_vec_as().unwrap());
            }
        }
    }
    let mut collect = Collect(grads, BTreeMap::new());
    parameters::visit(backbone, &mut collect);
    collect.1
}
