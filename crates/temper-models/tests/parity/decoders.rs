//! What holds of every decoder: rows of several texts, and texts that grow.

use burn::tensor::{Device, Int, Tensor, TensorData};
use temper_device::testing;
use temper_models::{Backbone, Cache, Config, Init, Input, Weights, candidates, load};
use temper_nn::{Pass, matmul};
use temper_peft::parameters;

use crate::fixture::{Fixture, decoders, fixtures, gradients, head, relative, tensors};

/// Largest difference relative to the largest value between two ways of computing the same.
const SAME: f32 = 1e-5;

fn ids(rows: &[Vec<i64>], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), rows[0].len()]), device)
}

/// A text of `length` tokens, none of them padding.
fn text(length: usize, start: usize) -> Vec<i64> {
    (0..length).map(|i| 3 + ((start + i) * 17 % 61) as i64).collect()
}

/// `text` with `pad` in front of or behind it.
fn padded(text: &[i64], before: usize, after: usize) -> Vec<i64> {
    [&vec![0; before][..], text, &vec![0; after][..]].concat()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().try_into_vec_as().unwrap()
}

/// The states of a text alone, `[S·D]`.
fn alone(fixture: &Fixture, text: &[i64], device: &Device) -> Vec<f32> {
    let (backbone, _) = fixture.backbone(device, false);
    let input = Input { ids: ids(&[text.to_vec()], device), type_ids: None, segments: vec![vec![text.len()]] };
    values(backbone.forward(&input, &Pass::eval()))
}

#[test]
fn packed_rows_equal_padded_rows() {
    let device = testing::device().autodiff();
    let texts = [text(6, 0), text(3, 20), text(5, 40)];
    let packed = Input {
        ids: ids(&[[&texts[0][..], &texts[1][..]].concat(), padded(&texts[2], 0, 4)], &device),
        type_ids: None,
        segments: vec![vec![6, 3], vec![5]],
    };
    let padded = Input {
        ids: ids(&texts.clone().map(|text| padded(&text, 0, 6 - text.len())), &device),
        type_ids: None,
        segments: texts.iter().map(|text| vec![text.len()]).collect(),
    };
    for fixture in decoders() {
        let results = [&packed, &padded].map(|input| {
            let (backbone, _) = fixture.backbone(&device, true);
            let hidden = backbone.forward(input, &Pass::train(0));
            let loss = fixture.loss(&backbone, input, hidden.clone());
            (values(hidden), gradients(&backbone, &loss.backward()))
        });
        let [(one, packed), (other, padded)] = results;
        let width = fixture.config.hidden_size();
        let states = |values: &[f32], token: usize, count: usize| values[token * width..][..count * width].to_vec();
        for (at, place, count) in [(0, 0, 6), (6, 6, 3), (9, 12, 5)] {
            assert!(
                relative(&states(&one, at, count), &states(&other, place, count)) < testing::tolerance(SAME),
                "{}",
                fixture.name
            );
        }
        assert_eq!(packed.len(), padded.len());
        let worst = packed.iter().map(|(path, gradient)| relative(gradient, &padded[path])).fold(0.0, f32::max);
        println!("{:12} packed, gradients {worst:.1e}", fixture.name);
        assert!(worst < testing::tolerance(SAME), "{}: {worst}", fixture.name);
    }
}

#[test]
fn a_text_token_by_token_equals_the_whole_text() {
    let device = testing::device();
    let texts = [text(12, 0), text(9, 30)];
    for fixture in decoders() {
        let (backbone, _) = fixture.backbone(&device, false);
        let rows = [texts[0].clone(), padded(&texts[1], 3, 0)];
        let mut cache = Cache::new(vec![0, 3]);
        let mut states = vec![Vec::new(), Vec::new()];
        for (from, to) in [(0, 5), (5, 7), (7, 8), (8, 9), (9, 10), (10, 11), (11, 12)] {
            let part = rows.clone().map(|row| row[from..to].to_vec());
            let hidden = values(backbone.extend(ids(&part, &device), &mut cache, &Pass::eval()).unwrap());
            let rows = hidden.chunks(hidden.len() / 2).zip(&mut states);
            rows.for_each(|(row, states)| states.extend_from_slice(row));
        }
        assert_eq!((cache.len(), cache.is_empty()), (12, false));
        let width = fixture.config.hidden_size();
        for (row, (text, pad)) in texts.iter().zip([0, 3]).enumerate() {
            let error = relative(&states[row][pad * width..], &alone(&fixture, text, &device));
            println!("{:12} token by token, pad {pad}: {error:.1e}", fixture.name);
            assert!(error < testing::tolerance(SAME), "{} row {row}: {error}", fixture.name);
        }
    }
}

#[test]
fn rows_that_have_ended_can_be_dropped() {
    let device = testing::device();
    let texts = [text(6, 0), text(4, 10), text(6, 20)];
    for fixture in decoders() {
        let (backbone, _) = fixture.backbone(&device, false);
        let rows = [texts[0].clone(), padded(&texts[1], 2, 0), texts[2].clone()].map(|row| row[..5].to_vec());
        let mut cache = Cache::new(vec![0, 2, 0]);
        backbone.extend(ids(&rows, &device), &mut cache, &Pass::eval()).unwrap();
        cache.select(&[2, 1]);
        let last = [vec![texts[2][5]], vec![texts[1][3]]];
        let hidden = values(backbone.extend(ids(&last, &device), &mut cache, &Pass::eval()).unwrap());
        let expected = [&texts[2], &texts[1]].map(|text| {
            let states = alone(&fixture, text, &device);
            states[states.len() - fixture.config.hidden_size()..].to_vec()
        });
        assert!(relative(&hidden, &expected.concat()) < testing::tolerance(SAME), "{}", fixture.name);
    }
}

#[test]
fn the_class_is_the_one_that_transformers_wrote() {
    for fixture in decoders() {
        assert_eq!(fixture.config.raw["architectures"][0], fixture.config.class("ForCausalLM"));
    }
}

#[test]
fn what_cannot_go_on_is_refused() {
    let device = testing::device();
    for fixture in fixtures() {
        let (backbone, _) = fixture.backbone(&device, false);
        let mut cache = Cache::new(vec![0]);
        let mut extend = |rows: &[Vec<i64>]| backbone.extend(ids(rows, &device), &mut cache, &Pass::eval());
        match (fixture.name, fixture.config.is_decoder()) {
            (_, false) => assert!(extend(&[text(2, 0)]).unwrap_err().to_string().contains("encoder")),
            (name, true) => {
                let message = extend(&[text(2, 0), text(2, 0)]).unwrap_err().to_string();
                assert!(message.contains("2 rows"), "{message}");
                let long = extend(&[text(33, 0)]).map(|_| ()).map_err(|error| error.to_string());
                assert_eq!(long.is_err(), name == "gpt2", "{long:?}");
            }
        }
    }
}

#[test]
fn new_decoders_begin_with_norms_that_scale_by_one() {
    let device = testing::device();
    for fixture in decoders() {
        let backbone = Backbone::new(&fixture.config, &device);
        let backbone = temper_models::initialise(backbone, &Init { seed: 1, range: 0.02 }, |_| true);
        let expected = if fixture.config.model_type() == "gemma3_text" { 0.0 } else { 1.0 };
        let norm = |path: &str| path.contains("norm.weight") || path.contains("ln_") && path.ends_with("weight");
        let norms = parameters::read(&backbone, norm).unwrap();
        assert!(norms.len() >= 5, "{}: {:?}", fixture.name, norms.keys());
        assert!(norms.values().all(|values| values.data.iter().all(|value| *value == expected)), "{}", fixture.name);
        let all = parameters::read(&backbone, |path| path.ends_with("weight") && !norm(path)).unwrap();
        assert!(all.values().all(|values| values.data.iter().any(|value| *value != 0.0)), "{}", fixture.name);
    }
}

/// Real weights against Transformers: logits, and 100 tokens chosen greedily. Runs where TEMPER_ASSETS holds the models
/// and TEMPER_REFERENCE a file for each that `fixtures/reference.py` wrote.
#[test]
fn real_weights_equal_transformers() {
    let [Some(assets), Some(reference)] = ["TEMPER_ASSETS", "TEMPER_REFERENCE"].map(std::env::var_os) else {
        eprintln!("skipped: TEMPER_ASSETS or TEMPER_REFERENCE is not set");
        return;
    };
    let device = testing::device();
    for entry in std::fs::read_dir(reference).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let (config, backbone, head) = real(&std::path::Path::new(&assets).join(&name), &device);
        let io = tensors(&file);
        let shape = io["ids"].shape.clone();
        let integers = |name: &str| io[name].data.iter().map(|value| *value as i64).collect::<Vec<_>>();
        let mut next = Tensor::<2, Int>::from_data(TensorData::new(integers("ids"), shape.clone()), &device);
        let mut cache = Cache::new(integers("pads").into_iter().map(|pad| pad as usize).collect());
        let (mut chosen, start) = (Vec::new(), std::time::Instant::now());
        for step in 0..100 {
            let hidden = backbone.extend(next, &mut cache, &Pass::eval()).unwrap();
            let [batch, sequence, model] = hidden.dims();
            let last = hidden.narrow(1, sequence - 1, 1).reshape([batch, model]);
            let logits = matmul(last, head.clone().transpose());
            if step == 0 {
                let expected = &io["logits"].data;
                let found = values(logits.clone());
                let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                println!("{name}: largest difference of a logit {worst:.1e}");
                assert!(worst < testing::tolerance(1e-3), "{worst}");
            }
            next = logits.argmax(1);
            chosen.push(next.clone().try_into_vec_as::<i64>().unwrap());
        }
        println!("{name} ({}): {:.2} s for 100 steps", config.model_type(), start.elapsed().as_secs_f64());
        let expected = integers("greedy");
        let found: Vec<i64> = (0..shape[0]).flat_map(|row| chosen.iter().map(move |step| step[row])).collect();
        assert_eq!(found, expected, "{name}");
    }
}

/// A decoder with the weights in `directory`, and its head's weight.
fn real(directory: &std::path::Path, device: &Device) -> (Config, Backbone, Tensor<2>) {
    let config = Config::read(directory).unwrap();
    let weights = Weights::open(directory).unwrap();
    let names = |path: &str| candidates(config.prefix(), path);
    let init = Init { seed: 0, range: 0.02 };
    let (backbone, report) = load(Backbone::new(&config, device), &weights, names, &init).unwrap();
    assert_eq!(report.missing, Vec::<String>::new());
    let head = match config.tied() {
        true => backbone.word_embeddings(),
        false => head(&weights, device),
    };
    (config, backbone, head)
}
