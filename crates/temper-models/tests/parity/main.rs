//! Parity with Transformers and PEFT on tiny random models; `fixtures/generate.py` says what the fixtures hold.
#![allow(clippy::unwrap_used, missing_docs)]

mod decoders;
mod fixture;

use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;
use temper_device::testing;
use temper_models::{Backbone, Config, Init, Input, Weights, candidates, load};
use temper_nn::{Format, Pass};
use temper_peft::file::{self, PeftConfig};
use temper_peft::parameters::{self, Visitor};
use temper_peft::{AdapterConfig, Held, Method, targets};

use fixture::{Fixture, fixtures, relative};

#[test]
fn full_training_equals_transformers() {
    let device = testing::device().autodiff();
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
    let device = testing::device().autodiff();
    for fixture in fixtures() {
        for adapter in ["lora", "dora"] {
            let backbone = fixture.adapted(adapter, &device);
            let (hidden, gradient) = fixture.compare(&backbone, &format!("{adapter}."), &device);
            println!("{:12} {adapter}  hidden {hidden:.1e}  gradients {gradient:.1e}", fixture.name);
        }
    }
}

/// QLoRA: hidden states and all gradients with a base in few bits are those with its decoded weights.
#[test]
fn a_base_in_few_bits_trains_like_its_decoded_weights() {
    let device = testing::device().autodiff();
    for fixture in fixtures() {
        for (adapter, format) in [("lora", Format::Nf4), ("dora", Format::Nf4), ("lora", Format::Int8)] {
            let found = |decoded: bool| {
                let mut backbone = fixture.adapted(adapter, &device);
                for (_, linear) in backbone.linears() {
                    let Held::Dense(weight) = &linear.weight else { panic!("a dense weight") };
                    linear.quantize(weight.val().try_into_vec_as().unwrap(), format);
                    if decoded {
                        let weight = linear.matrix().dense();
                        let weight = if linear.fan_in_fan_out { weight.transpose() } else { weight };
                        linear.weight = Held::Dense(Param::from_tensor(weight).set_require_grad(false));
                    }
                }
                let hidden = backbone.forward(&fixture.input(&device), &Pass::train(0));
                let all = fixture::gradients(&backbone, &hidden.clone().square().sum().backward());
                (hidden.inner().try_into_vec_as::<f32>().unwrap(), all)
            };
            let ((hidden, gradients), (hidden_of_decoded, of_decoded)) = (found(false), found(true));
            assert!(relative(&hidden, &hidden_of_decoded) < testing::tolerance(1e-6), "{} {format:?}", fixture.name);
            assert_eq!(gradients.keys().collect::<Vec<_>>(), of_decoded.keys().collect::<Vec<_>>());
            assert!(!gradients.is_empty());
            for (path, values) in &gradients {
                let error = relative(values, &of_decoded[path]);
                assert!(error < testing::tolerance(2e-6), "{} {format:?} {path}: {error}", fixture.name);
            }
        }
    }
}

#[test]
fn merged_equals_unmerged() {
    let device = testing::device();
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
    let device = testing::device();
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
            let mut backbone = Backbone::new(&fixture.config, &testing::device());
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
    let device = testing::device().autodiff();
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
        let backbone = Backbone::new(&fixture.config, &testing::device());
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
    let backbone = Backbone::new(&fixture.config, &testing::device());
    let message = load(backbone, &weights, swapped, &init).unwrap_err().to_string();
    assert!(message.contains("encoder.layer.0.output.dense.weight"), "{message}");
    assert!(message.contains("[48, 32]") && message.contains("[32, 48]"), "{message}");

    let without = |path: &str| if path.contains("pooler") { vec![] } else { candidates("bert", path) };
    let (backbone, report) =
        load(Backbone::new(&fixture.config, &testing::device()), &weights, without, &init).unwrap();
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
    let device = testing::device();
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
            assert!((found - expected).abs() < testing::tolerance(1e-4), "{found} is not {expected}");
        }
    }
    let cosine = |a: usize, b: usize| (0..384).map(|i| unit[a * 384 + i] * unit[b * 384 + i]).sum::<f32>();
    for (found, expected) in [(cosine(0, 1), 0.68883), (cosine(0, 2), 0.00883), (cosine(1, 2), -0.02319)] {
        assert!((found - expected).abs() < testing::tolerance(1e-4), "{found} is not {expected}");
    }
}
