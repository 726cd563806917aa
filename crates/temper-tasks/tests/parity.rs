//! Parity of the tasks with Transformers and torch on tiny random models; `fixtures/tasks.py` says what the fixtures hold.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;
use temper_data::{Label, TokenBatch};
use temper_device::testing;
use temper_engine::Mode;
use temper_models::{Backbone, Config, Init, Weights, candidates, initialise, load};
use temper_nn::{Activations, Pass};
use temper_peft::file::to_f32;
use temper_peft::parameters::{self, Visitor};
use temper_tasks::causal_lm::{CausalBatch, Terms};
use temper_tasks::distillation::Teacher;
use temper_tasks::masked_lm::MaskedBatch;
use temper_tasks::sequence_classification::{ClassificationBatch, Objectives};
use temper_tasks::{
    CausalLm, Distillation, Generated, Generation, MaskedLm, Problem, Sampling, SequenceClassifier, Task,
    checkpoint_names, hugging_face_name,
};

/// Largest difference relative to the largest value, in f32.
const LOGITS: f32 = 1e-4;
const LOSS: f32 = 1e-5;
const GRADIENT: f32 = 1e-3;

#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    kind: String,
    ids: Vec<Vec<i32>>,
    type_ids: Vec<Vec<i32>>,
    lengths: Vec<u32>,
    loss: f64,
    targets: f64,
    #[serde(default)]
    logits: Vec<Vec<f32>>,
    #[serde(default)]
    labels: Value,
    #[serde(default)]
    class_weights: Vec<f32>,
    #[serde(default)]
    label_smoothing: f32,
    #[serde(default)]
    positions: Vec<i32>,
    #[serde(default)]
    tokens: Vec<i32>,
    #[serde(default)]
    trained: Vec<Vec<bool>>,
    #[serde(default)]
    z_loss: f64,
    #[serde(default)]
    prompts: Vec<Vec<u32>>,
    #[serde(default)]
    greedy: Vec<Vec<u32>>,
    #[serde(default)]
    penalised: Vec<Vec<u32>>,
    #[serde(default)]
    penalty: f64,
    #[serde(default)]
    teacher: String,
    #[serde(default)]
    teacher_ids: Vec<i32>,
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tasks").join(name)
}

fn cases(kinds: &[&str]) -> Vec<Case> {
    let all: Vec<Case> = serde_json::from_slice(&fs::read(directory("cases.json")).unwrap()).unwrap();
    all.into_iter().filter(|case| kinds.contains(&case.kind.as_str())).collect()
}

impl Case {
    fn config(&self) -> Config {
        Config::read(&directory(&self.model)).unwrap()
    }

    fn batch(&self) -> TokenBatch {
        TokenBatch {
            rows: (0..self.ids.len() as u32).collect(),
            batch: self.ids.len(),
            seq: self.ids[0].len(),
            ids: self.ids.concat(),
            type_ids: self.type_ids.concat(),
            segments: self.lengths.iter().map(|&length| vec![length]).collect(),
            trained: self.trained.concat(),
        }
    }

    /// The rows of the batch side by side in one.
    fn packed(&self) -> TokenBatch {
        fn join<T: Clone>(rows: &[Vec<T>], lengths: &[u32]) -> Vec<T> {
            rows.iter().zip(lengths).flat_map(|(row, &length)| row[..length as usize].to_vec()).collect()
        }
        let ids = join(&self.ids, &self.lengths);
        TokenBatch {
            rows: vec![0],
            batch: 1,
            seq: ids.len(),
            type_ids: vec![0; ids.len()],
            segments: vec![self.lengths.clone()],
            trained: join(&self.trained, &self.lengths),
            ids,
        }
    }

    fn causal_lm(&self, device: &Device) -> CausalLm {
        let terms = Terms { label_smoothing: self.label_smoothing.into(), z_loss: self.z_loss, softcap: None };
        self.load(CausalLm::new(&self.config(), self.config().tied(), terms, device))
    }

    fn problem(&self) -> Problem {
        serde_json::from_value(self.kind.clone().into()).unwrap()
    }

    fn labels(&self) -> Vec<Label> {
        let label = |value: &Value| match self.problem() {
            Problem::SingleLabel => Label::Class(value.as_u64().unwrap() as u32),
            Problem::MultiLabel => {
                Label::Multi(value.as_array().unwrap().iter().map(|y| y.as_f64() == Some(1.0)).collect())
            }
            Problem::Regression => Label::Score(value.as_f64().unwrap() as f32),
        };
        self.labels.as_array().unwrap().iter().map(label).collect()
    }

    /// The model with the fixture's weights, every parameter training: what `temper`'s `build.rs` does with a plan.
    fn load<T: Task>(&self, model: T) -> T {
        let (config, weights) = (self.config(), Weights::open(&directory(&self.model)).unwrap());
        let names = |path: &str| checkpoint_names(config.prefix(), path);
        let (model, report) = load(model, &weights, names, &Init { seed: 0, range: 0.1 }).unwrap();
        assert_eq!((report.missing, report.unexpected), (vec![], vec![]), "{} {}", self.model, self.name);
        let model = parameters::set_trainable(model, |_| true);
        parameters::realise(&model, |_| true);
        model
    }

    /// Compares the loss and the gradients of its mean; gives the largest errors of both.
    fn compare<T: Task>(&self, model: &T, batch: &T::Batch) -> (f64, f64) {
        let loss = model.loss(batch, Mode { seed: 7, activations: Activations::Keep, lender: None });
        assert!((loss.targets - self.targets).abs() < 1e-6, "{} {}: {} targets", self.model, self.name, loss.targets);
        let mean = loss.sum / loss.targets;
        let loss = (mean.clone().into_scalar::<f64>() / self.loss - 1.0).abs();
        assert!(loss < testing::tolerance(LOSS).into(), "{} {} loss: {loss}", self.model, self.name);

        let prefix = self.config().prefix();
        let found = gradients(model, &mean.backward(), prefix);
        let bytes = fs::read(directory(&self.model).join(format!("{}.safetensors", self.name))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let expected: BTreeMap<String, Vec<f32>> =
            tensors.iter().map(|(name, view)| (name.to_owned(), to_f32(view.dtype(), view.data()).unwrap())).collect();
        let names = |gradients: &BTreeMap<String, Vec<f32>>| gradients.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{} {}", self.model, self.name);
        let errors = expected.iter().map(|(name, expected)| (relative(&found[name], expected), name));
        let (worst, name) = errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        assert!(
            worst < testing::tolerance(GRADIENT).into(),
            "{} {} gradient of {name}: {worst}",
            self.model,
            self.name
        );
        (loss, worst)
    }

    fn compare_logits(&self, logits: Tensor<2>) -> f64 {
        let rows = self.logits.len();
        assert_eq!(logits.dims(), [rows, self.logits[0].len()]);
        let error = relative(&logits.inner().try_into_vec_as::<f32>().unwrap(), &self.logits.concat());
        assert!(error < testing::tolerance(LOGITS).into(), "{} {} logits: {error}", self.model, self.name);
        error
    }
}

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let difference = found.iter().zip(expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    // The key's bias has no effect on a softmax: in f64 its gradient is as good as zero, in f32 it is rounding error.
    f64::from(if scale < 1e-12 { difference } else { difference / scale })
}

/// By Transformers' name.
fn gradients<T: Task>(model: &T, grads: &Gradients, prefix: &str) -> BTreeMap<String, Vec<f32>> {
    struct Collect<'a>(&'a Gradients, &'a str, BTreeMap<String, Vec<f32>>);
    impl Visitor for Collect<'_> {
        fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.0) {
                self.2.insert(hugging_face_name(self.1, path), gradient.try_into_vec_as().unwrap());
            }
        }
    }
    let mut collect = Collect(grads, prefix, BTreeMap::new());
    parameters::visit(model, &mut collect);
    collect.2
}

#[test]
fn sequence_classification_equals_transformers() {
    let device = testing::device().autodiff();
    let cases = cases(&["single-label", "multi-label", "regression"]);
    assert_eq!(cases.len(), 7);
    for case in cases {
        let objective = Objectives {
            problem: case.problem(),
            class_weights: case.class_weights.clone(),
            label_smoothing: case.label_smoothing,
            metrics: vec![],
        };
        let outputs = case.class_weights.len();
        let model = case.load(SequenceClassifier::new(&case.config(), outputs, objective, &device));
        let logits = case.compare_logits(model.logits(&case.batch(), &Pass::train(7)));
        let predicted =
            relative(&model.predict_batch(&case.batch(), &Pass::eval()).unwrap().concat(), &case.logits.concat());
        assert!(predicted < testing::tolerance(LOGITS).into(), "{predicted}");
        let batch = ClassificationBatch { tokens: case.batch(), labels: case.labels() };
        let (loss, gradient) = case.compare(&model, &batch);
        println!("{:18} {:21} logits {logits:.1e} loss {loss:.1e} gradients {gradient:.1e}", case.model, case.name);
    }
}

#[test]
fn masked_lm_equals_transformers() {
    let device = testing::device().autodiff();
    let cases = cases(&["masked-lm"]);
    assert_eq!(cases.len(), 3);
    for case in cases {
        let model = case.load(MaskedLm::new(&case.config(), &device));
        let batch =
            MaskedBatch { tokens: case.batch(), positions: case.positions.clone(), targets: case.tokens.clone() };
        let logits = case.compare_logits(model.logits(&batch, &Pass::train(7)));
        let (loss, gradient) = case.compare(&model, &batch);
        println!("{:40} logits {logits:.1e} loss {loss:.1e} gradients {gradient:.1e}", case.model);
    }
}

#[test]
fn a_batch_with_nothing_hidden_counts_for_nothing() {
    let case = cases(&["masked-lm"]).remove(0);
    let model = initialise(MaskedLm::new(&case.config(), &testing::device()), &Init { seed: 0, range: 0.1 }, |_| true);
    let loss = temper_engine::Objective::loss(
        &model,
        &MaskedBatch { tokens: case.batch(), positions: vec![], targets: vec![] },
        Mode { seed: 0, activations: Activations::Keep, lender: None },
    );
    assert_eq!((loss.sum.into_scalar::<f64>(), loss.targets), (0.0, 0.0));
}

#[test]
fn distillation_equals_torch() {
    let device = testing::device().autodiff();
    let cases = cases(&["distillation"]);
    assert_eq!(cases.len(), 1);
    for case in cases {
        let config = Config::read(&directory(&case.teacher)).unwrap();
        let backbone = Backbone::new(&config, &testing::device()).without_pooler();
        let weights = Weights::open(&directory(&case.teacher)).unwrap();
        let names = |path: &str| candidates(config.prefix(), path);
        let (backbone, report) = load(backbone, &weights, names, &Init { seed: 0, range: 0.0 }).unwrap();
        assert_eq!(report.missing, Vec::<String>::new());
        let teacher = Teacher { backbone: Arc::new(backbone), ids: case.teacher_ids.clone().into() };
        let model = case.load(Distillation::new(&case.config(), config.hidden_size(), Some(teacher), &device));
        let (loss, gradient) = case.compare(&model, &case.batch());
        println!("{:40} loss {loss:.1e} gradients {gradient:.1e}", case.model);
    }
}

#[test]
fn causal_lm_equals_transformers_padded_and_packed() {
    let device = testing::device().autodiff();
    let cases = cases(&["causal-lm"]);
    assert_eq!(cases.iter().map(|case| case.config().tied()).collect::<Vec<_>>(), [true, true, false, false]);
    for case in cases {
        let model = case.causal_lm(&device);
        for (what, tokens) in [("padded", case.batch()), ("packed", case.packed())] {
            let (loss, gradient) = case.compare(&model, &CausalBatch::new(tokens));
            println!("{:16} {:16} {what} loss {loss:.1e} gradients {gradient:.1e}", case.model, case.name);
        }
    }
}

#[test]
fn generation_equals_transformers() {
    for case in cases(&["causal-lm"]) {
        let model = case.causal_lm(&testing::device());
        let generate = |how: &Generation| model.generate(&case.prompts, how, &Pass::eval(), &mut |_, _| true).unwrap();
        let ids = |how: &Generation| generate(how).into_iter().map(|answer| answer.ids).collect::<Vec<_>>();
        let sampling = Sampling::default();
        let greedy = Generation { max_new_tokens: 12, end_ids: vec![], sampling, max_positions: 32, first: 0 };
        assert_eq!(ids(&greedy), case.greedy, "{}", case.model);
        let sampling = Sampling { repetition_penalty: case.penalty, ..Sampling::default() };
        assert_eq!(ids(&Generation { sampling, ..greedy.clone() }), case.penalised, "{}", case.model);

        // Rows end by a token, by the network's size, or by whoever listens, each without disturbing the others.
        let end = case.greedy[1][4];
        let found = generate(&Generation { end_ids: vec![end], ..greedy.clone() });
        let cut = |ids: &Vec<u32>| {
            let at = ids.iter().position(|&id| id == end);
            Generated { ids: ids[..at.unwrap_or(ids.len())].to_vec(), ended: at.is_some() }
        };
        assert_eq!(found, case.greedy.iter().map(cut).collect::<Vec<_>>());
        let found = ids(&Generation { max_positions: 8, ..greedy.clone() });
        let room = case.greedy.iter().zip(&case.prompts).map(|(ids, prompt)| ids[..8 - prompt.len()].to_vec());
        assert_eq!(found, room.collect::<Vec<_>>());
        let mut heard = vec![Vec::new(); 3];
        let mut listen = |row: usize, id: u32| {
            heard[row].push(id);
            heard[row].len() < 2 + 3 * row
        };
        let found = model.generate(&case.prompts, &greedy, &Pass::eval(), &mut listen).unwrap();
        assert_eq!(found.iter().map(|answer| answer.ids.len()).collect::<Vec<_>>(), [2, 5, 8]);
        assert!(found.iter().zip(&heard).zip(&case.greedy).all(|((a, b), c)| a.ids == *b && c.starts_with(b)));
    }
}
