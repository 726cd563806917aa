//! Parity with Transformers and PEFT on tiny random models; `fixtures/generate.py` says what the fixtures hold.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use safetensors::SafeTensors;
use temper_models::{Backbone, Config, Init, Input, LoadReport, MODEL_TYPES, Weights, candidates, load};
use temper_nn::{Pass, matmul};
use temper_peft::file::{self, PeftConfig};
use temper_peft::parameters::{self, Values, Visitor};
use temper_peft::{AdapterConfig, Method, targets};

/// Largest difference relative to the largest value, in f32.
const HIDDEN: f32 = 1e-5;
const GRADIENT: f32 = 1e-4;
/// Largest difference of a loss relative to the loss.
const LOSS: f32 = 1e-5;

struct Fixture {
    name: &'static str,
    directory: PathBuf,
    config: Config,
    io: BTreeMap<String, Values>,
}

/// Every architecture in one fixture or several.
fn fixtures() -> Vec<Fixture> {
    let variants = ["llama-llama3", "llama-yarn"];
    MODEL_TYPES.iter().map(|(name, _)| *name).chain(variants).map(Fixture::open).collect()
}

fn decoders() -> Vec<Fixture> {
    fixtures().into_iter().filter(|fixture| fixture.config.is_decoder()).collect()
}

impl Fixture {
    fn open(name: &'static str) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        let bytes = fs::read(directory.join("io.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let values = |view: &safetensors::tensor::TensorView| match view.dtype() {
            safetensors::Dtype::I64 => {
                view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect()
            }
            dtype => file::to_f32(dtype, view.data()).unwrap(),
        };
        let io = tensors.iter().map(|(n, v)| (n.to_owned(), Values { shape: v.shape().to_vec(), data: values(&v) }));
        Self { name, config: Config::read(&directory).unwrap(), io: io.collect(), directory }
    }

    /// The backbone with the fixture's weights.
    fn backbone(&self, device: &Device, trains: bool) -> (Backbone, LoadReport) {
        let backbone = parameters::set_trainable(Backbone::new(&self.config, device), |_| trains);
        let weights = Weights::open(&self.directory).unwrap();
        let names = |path: &str| candidates(self.config.prefix(), path);
        load(backbone, &weights, names, &Init { seed: 0, range: 0.1 }).unwrap()
    }

    /// The backbone with a frozen base and the adapter that PEFT made, its parameters training.
    fn adapted(&self, adapter: &str, device: &Device) -> Backbone {
        self.with_adapter(&self.directory.join(adapter), device)
    }

    fn with_adapter(&self, directory: &Path, device: &Device) -> Backbone {
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

    fn input(&self, device: &Device) -> Input {
        let ids = |name: &str| {
            let values = &self.io[name];
            let data: Vec<i64> = values.data.iter().map(|v| *v as i64).collect();
            Tensor::<2, Int>::from_data(TensorData::new(data, values.shape.clone()), device)
        };
        let segments = self.io["lengths"].data.iter().map(|v| vec![*v as usize]).collect();
        Input { ids: ids("ids"), type_ids: (self.config.type_vocab_size() > 0).then(|| ids("type_ids")), segments }
    }

    fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let values = &self.io[name];
        Tensor::from_data(TensorData::new(values.data.clone(), values.shape.clone()), device)
    }

    /// What the fixture's gradients are of. For a decoder it is the mean loss, which is compared.
    fn objective(&self, backbone: &Backbone, hidden: Tensor<3>, case: &str, device: &Device) -> Tensor<1> {
        if !self.config.is_decoder() {
            return (hidden * self.tensor("probe", device)).sum();
        }
        let loss = self.loss(backbone, &self.input(device), hidden);
        let (found, expected) = (loss.clone().into_scalar::<f32>(), self.io[&format!("{case}loss")].data[0]);
        assert!((found - expected).abs() < LOSS * expected, "{} {case} loss {found} is not {expected}", self.name);
        loss
    }

    /// The mean loss of all tokens that follow another in their segment.
    fn loss(&self, backbone: &Backbone, input: &Input, hidden: Tensor<3>) -> Tensor<1> {
        let [batch, sequence, model] = hidden.dims();
        let embeddings = backbone.word_embeddings();
        let head = if self.config.tied() { embeddings } else { self.head(&hidden.device()) };
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

    /// The weight of the language-model head of a decoder that is not tied.
    fn head(&self, device: &Device) -> Tensor<2> {
        let weights = Weights::open(&self.directory).unwrap();
        let shape = weights.shape("lm_head.weight").unwrap().to_vec();
        Tensor::from_data(TensorData::new(weights.read("lm_head.weight").unwrap(), shape), device)
    }

    /// Compares hidden states where there is no padding, and then the objective's gradients.
    fn compare(&self, backbone: &Backbone, case: &str, device: &Device) -> (f32, f32) {
        let hidden = backbone.forward(&self.input(device), &Pass::train(0));
        let error = self.hidden_error(hidden.clone(), &format!("{case}hidden"), device);
        let grads = self.objective(backbone, hidden, case, device).backward();
        let found = gradients(backbone, &grads);
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
        assert!(worst.0 < GRADIENT, "{} {case} gradient of {}: {}", self.name, worst.1, worst.0);
        (error, worst.0)
    }

    fn hidden_error(&self, hidden: Tensor<3>, expected: &str, device: &Device) -> f32 {
        let [_, sequence, model] = hidden.dims();
        let lengths = &self.io["lengths"].data;
        let [found, expected] = [hidden.inner(), self.tensor(expected, device).inner()].map(|tensor| {
            let values = tensor.try_into_vec_as::<f32>().unwrap();
            let rows = values.chunks(sequence * model).zip(lengths);
            rows.flat_map(|(row, length)| row[..*length as usize * model].to_vec()).collect::<Vec<_>>()
        });
        let error = relative(&found, &expected);
        assert!(error < HIDDEN, "{} hidden states: {error}", self.name);
        error
    }
}

fn relative(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let difference = found.iter().zip(expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    // The key's bias has no effect on a softmax: its gradient is rounding error on both sides.
    if scale < 1e-4 { difference } else { difference / scale }
}

fn gradients(backbone: &Backbone, grads: &Gradients) -> BTreeMap<String, Vec<f32>> {
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

#[test]
fn full_training_equals_transformers() {
    let device = Device::flex().autodiff();
    for fixture in fixtures() {
        let (backbone, report) = fixture.backbone(&device, true);
        assert_eq!(report.missing, Vec::<String>::new(), "{}", fixture.name);
        let head = |name: &String| name.contains("classifier") || name == "lm_head.weight";
        assert!(report.unexpected.iter().all(head), "{:?}", report.unexpected);
        assert_eq!(report.unexpected.is_empty(), fixture.config.is_decoder() && fixture.config.tied());
        let (hidden, gradient) = fixture.compare(&backbone, "", &device);
        println!("{:12} full  hidden {hidden:.1e}  gradients {gradient:.1e}", fixture.name);
    }
}

#[test]
fn adapters_equal_peft_and_leave_frozen_weights_without_gradient() {
    let device = Device::flex().autodiff();
    for fixture in fixtures() {
        for adapter in ["lora", "dora"] {
            let backbone = fixture.adapted(adapter, &device);
            let (hidden, gradient) = fixture.compare(&backbone, &format!("{adapter}."), &device);
            println!("{:12} {adapter}  hidden {hidden:.1e}  gradients {gradient:.1e}", fixture.name);
        }
    }
}

#[test]
fn merged_equals_unmerged() {
    let device = Device::flex();
    for fixture in fixtures() {
        for adapter in ["lora", "dora"] {
            let mut backbone = fixture.adapted(adapter, &device);
            backbone.merge();
            assert!(parameters::list(&backbone).iter().all(|entry| !entry.path.contains("adapter")));
            let hidden = backbone.forward(&fixture.input(&device), &Pass::eval());
            fixture.hidden_error(hidden, &format!("{adapter}.hidden"), &device);
        }
    }
}

#[test]
fn a_new_adapter_changes_nothing() {
    let device = Device::flex();
    for fixture in fixtures() {
        for method in [Method::Lora, Method::Dora] {
            let (mut backbone, _) = fixture.backbone(&device, false);
            let table = AdapterConfig { method, ..Default::default() };
            let prefix = fixture.config.prefix();
            let linears: Vec<_> = backbone.linears().into_iter().map(|(path, _)| format!("{prefix}.{path}")).collect();
            let matches = targets::find(&table, fixture.config.default_targets(), &linears).unwrap();
            assert_eq!(matches.len(), fixture.config.layers() * fixture.config.default_targets().len());
            backbone.adapt(&matches, &table, prefix, 1).unwrap();
            let hidden = backbone.forward(&fixture.input(&device), &Pass::eval());
            fixture.hidden_error(hidden, "hidden", &device);
        }
    }
}

#[test]
fn targets_and_patterns_choose_what_peft_chose() {
    for fixture in fixtures() {
        for adapter in ["lora", "dora"] {
            let file = file::open(&fixture.directory.join(adapter)).unwrap();
            let prefix = fixture.config.prefix();
            let mut backbone = Backbone::new(&fixture.config, &Device::flex());
            let linears: Vec<_> = backbone.linears().into_iter().map(|(path, _)| format!("{prefix}.{path}")).collect();
            let mut found = targets::find(&file.config.table(), &[], &linears).unwrap();
            found.sort_by(|a, b| a.path.cmp(&b.path));
            let mut expected = file.modules;
            expected.sort_by(|a, b| a.path.cmp(&b.path));
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn an_adapter_written_and_read_again_computes_the_same() {
    let device = Device::flex().autodiff();
    for fixture in fixtures() {
        for adapter in ["lora", "dora"] {
            let backbone = fixture.adapted(adapter, &device);
            let prefix = fixture.config.prefix();
            let entries = parameters::list(&backbone);
            let trains = |path: &str| entries.iter().any(|entry| entry.path == path && entry.trainable);
            let values = parameters::read(&backbone, trains).unwrap();
            let tensors =
                values.into_iter().map(|(path, values)| (file::to_peft(prefix, &path, true), values)).collect();
            let source = file::open(&fixture.directory.join(adapter)).unwrap().config;
            let table = source.table();
            let names = targets::target_modules(&table, &[], &[]);
            let config = PeftConfig { task_type: source.task_type, ..PeftConfig::new(&table, &names, &[]) };
            let directory = tempfile::tempdir().unwrap();
            file::save(directory.path(), &config, &tensors).unwrap();
            let backbone = fixture.with_adapter(directory.path(), &device);
            let hidden = backbone.forward(&fixture.input(&device), &Pass::eval());
            fixture.hidden_error(hidden, &format!("{adapter}.hidden"), &device);
        }
    }
}

#[test]
fn a_backbone_can_be_listed_without_values() {
    for fixture in fixtures() {
        let backbone = Backbone::new(&fixture.config, &Device::flex());
        let weights = Weights::open(&fixture.directory).unwrap();
        let entries = parameters::list(&backbone);
        let prefix = fixture.config.prefix();
        let report = temper_models::check(&entries, &weights, |path| candidates(prefix, path));
        assert_eq!((report.loaded.len(), report.missing.len()), (entries.len(), 0));
        struct Lazy;
        impl Visitor for Lazy {
            fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
                assert!(!param.is_initialized(), "{path}");
            }
        }
        parameters::visit(&backbone, &mut Lazy);
    }
}

#[test]
fn wrong_shapes_are_named_and_missing_parameters_begin_anew() {
    let fixture = Fixture::open("bert");
    let weights = Weights::open(&fixture.directory).unwrap();
    let init = Init { seed: 1, range: 0.1 };
    let swapped = |path: &str| candidates("bert", &path.replace("intermediate.dense.weight", "output.dense.weight"));
    let backbone = Backbone::new(&fixture.config, &Device::flex());
    let message = load(backbone, &weights, swapped, &init).unwrap_err().to_string();
    assert!(message.contains("encoder.layer.0.output.dense.weight"), "{message}");
    assert!(message.contains("[48, 32]") && message.contains("[32, 48]"), "{message}");

    let without = |path: &str| if path.contains("pooler") { vec![] } else { candidates("bert", path) };
    let (backbone, report) = load(Backbone::new(&fixture.config, &Device::flex()), &weights, without, &init).unwrap();
    assert_eq!(report.missing, ["pooler.dense.bias", "pooler.dense.weight"]);
    let values = parameters::read(&backbone, |path| path.contains("pooler")).unwrap();
    assert!(values["pooler.dense.bias"].data.iter().all(|v| *v == 0.0));
    assert!(values["pooler.dense.weight"].data.iter().any(|v| v.abs() > 0.1));
}

/// all-MiniLM-L6-v2 with mean pooling and L2 norm, against the published values. Runs where TEMPER_ASSETS is set.
#[test]
fn minilm_embeddings_equal_the_published_ones() {
    let Some(assets) = std::env::var_os("TEMPER_ASSETS") else {
        eprintln!("skipped: TEMPER_ASSETS is not set");
        return;
    };
    let device = Device::flex();
    let directory = Path::new(&assets).join("all-minilm-l6-v2");
    let config = Config::read(&directory).unwrap();
    let weights = Weights::open(&directory).unwrap();
    let names = |path: &str| candidates(config.prefix(), path);
    let init = Init { seed: 0, range: 0.02 };
    let (backbone, report) = load(Backbone::new(&config, &device), &weights, names, &init).unwrap();
    assert_eq!(report.missing, Vec::<String>::new());
    // One row is longer, so that the first three are padded.
    let rows: [[i64; 10]; 4] = [
        [101, 1037, 2158, 2003, 5983, 2833, 1012, 102, 0, 0],
        [101, 2619, 2003, 2383, 1037, 7954, 1012, 102, 0, 0],
        [101, 1996, 4518, 3006, 8007, 2651, 1012, 102, 0, 0],
        [101, 1996, 4518, 3006, 8007, 2651, 1012, 1012, 1012, 102],
    ];
    let input = Input {
        ids: Tensor::from_data(rows, &device),
        type_ids: None,
        segments: [8, 8, 8, 10].map(|n| vec![n]).into(),
    };
    let hidden = backbone.forward(&input, &Pass::eval());
    let mean = hidden.narrow(1, 0, 8).mean_dim(1).reshape([4, 384]);
    let norm = mean.clone().square().sum_dim(1).sqrt();
    let unit: Vec<f32> = (mean / norm).try_into_vec_as().unwrap();
    let expected = [
        [0.03324, 0.00441, -0.00628, 0.04838, -0.13870, -0.03362],
        [-0.00524, 0.02856, -0.02286, 0.01282, -0.12179, -0.02440],
        [0.05514, -0.02745, 0.03695, 0.04660, -0.00155, -0.00457],
    ];
    for (row, expected) in unit.chunks(384).zip(expected) {
        for (found, expected) in row.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
        }
    }
    let cosine = |a: usize, b: usize| (0..384).map(|i| unit[a * 384 + i] * unit[b * 384 + i]).sum::<f32>();
    for (found, expected) in [(cosine(0, 1), 0.68883), (cosine(0, 2), 0.00883), (cosine(1, 2), -0.02319)] {
        assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
    }
}
