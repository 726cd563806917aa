//! The laws of several ranks, which are threads here.

use burn::module::Module;
use temper_kernels::Checkpoints;
use temper_peft::Lender;
use temper_peft::parameters::{Mapper, map};

use super::*;

/// What each rank of `ranks` comes to on the rows of [`steps`], in micro-batches of `8 / micro` rows, and the events that
/// rank 0 saw.
fn together<M: Objective<Batch = Rows>>(
    make: impl Fn() -> M + Sync,
    ranks: usize,
    plan: &FitPlan,
    dir: &Path,
    micro: usize,
) -> Vec<(M, Vec<Event>)> {
    in_threads(ranks, |world| {
        let (stop, mut events) = (Stop::default(), Vec::new());
        let own = |from| {
            let every = |step: Result<Vec<Rows>, BoxError>| Ok(deal(step?, &world));
            steps(from, micro).map(every)
        };
        let mut evaluate = |_: &M, _| Ok(Scores(BTreeMap::from([("loss".into(), 0.0)])));
        let site = Site { dir, world: &world, stop: &stop };
        let outcome = fit(make(), plan, &site, own, &mut evaluate, &mut |event| events.push(event.clone()));
        (outcome.unwrap().model, events)
    })
}

/// The micro-batches of this rank.
fn deal(batches: Vec<Rows>, world: &World) -> Vec<Rows> {
    batches.into_iter().skip(world.rank()).step_by(world.size()).collect()
}

/// The largest difference of two models' parameters.
fn difference(a: &Net, b: &Net) -> f32 {
    let values = |net: &Net| -> Vec<f32> {
        read(net).into_iter().flat_map(|(_, data)| data.iter::<f32>().collect::<Vec<_>>()).collect()
    };
    values(a).into_iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn losses_of(events: &[Event]) -> Vec<f64> {
    let loss = |event: &Event| match event {
        Event::Step { loss, .. } => Some(*loss),
        _ => None,
    };
    events.iter().filter_map(loss).collect()
}

#[test]
fn many_ranks_are_one() {
    for kind in [OptimKind::Adamw, OptimKind::Adamw8bit, OptimKind::Adafactor, OptimKind::Lion] {
        // Three ranks have three, three and two of eight micro-batches, five ranks none in some rounds.
        for (ranks, micro) in [(2, 8), (3, 8), (5, 4)] {
            for shard in [Shard::None, Shard::Optimizer, Shard::Gradients, Shard::Parameters] {
                let mut plan = plan(6);
                plan.optim.kind = kind;
                plan.sharing = Sharing { shard, bucket_bytes: 64, check_every: 2 };
                let [one, many] = [(); 2].map(|()| tempfile::tempdir().unwrap());
                let (alone, events) = run(&plan, one.path(), micro, &[0.0]);
                let found = together(Net::new, ranks, &plan, many.path(), micro);
                let alone = alone.unwrap().model;
                for (net, _) in &found {
                    assert_eq!(net.bits(), found[0].0.bits(), "all ranks have one model");
                }
                let most = difference(&found[0].0, &alone);
                assert!(most < 2e-6, "{kind:?} {shard:?} on {ranks}: {most}");
                for (a, b) in losses_of(&events).iter().zip(losses_of(&found[0].1)) {
                    assert!((a / b - 1.0).abs() < 1e-5, "{a} {b}");
                }
                // What is saved is whole, whoever owned it.
                assert_eq!(names_in(one.path(), 6), names_in(many.path(), 6));
            }
        }
    }
}

/// The tensors of a checkpoint.
fn names_in(dir: &Path, step: u64) -> Vec<String> {
    let bytes = file(dir, step, "optimizer.safetensors");
    let mut names: Vec<String> =
        safetensors::SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn a_run_goes_on_with_more_or_fewer_ranks() {
    let whole = tempfile::tempdir().unwrap();
    let alone = run(&plan(9), whole.path(), 4, &[0.0]).0.unwrap().model;
    for shard in [Shard::None, Shard::Optimizer, Shard::Gradients, Shard::Parameters] {
        let dir = tempfile::tempdir().unwrap();
        let with = |steps| FitPlan { sharing: Sharing { shard, ..Sharing::default() }, ..plan(steps) };
        together(Net::new, 2, &with(3), dir.path(), 4);
        together(Net::new, 3, &with(6), dir.path(), 4);
        let found = together(Net::new, 1, &with(9), dir.path(), 4).remove(0);
        assert!(matches!(found.1[0], Event::Resumed { step: 6, .. }));
        assert!(difference(&found.0, &alone) < 2e-6, "{shard:?}");
    }
}

#[test]
fn ranks_that_no_longer_have_one_model_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let plan = FitPlan { sharing: Sharing { check_every: 2, ..Sharing::default() }, ..plan(6) };
    let errors = in_threads(3, |world| {
        let (stop, model) = (Stop::default(), Net::new());
        let site = Site { dir: dir.path(), world: &world, stop: &stop };
        let own = |from| steps(from, 4).map(|step: Result<Vec<Rows>, BoxError>| Ok(deal(step?, &world)));
        // Rank 2 begins elsewhere.
        let mut values: BTreeMap<_, _> = read(&model).into_iter().collect();
        if world.rank() == 2 {
            let bias = TensorData::from([0.5_f32; HIDDEN].as_slice());
            values.insert("bias".into(), bias);
        }
        let model = weights::write(model, values);
        let mut evaluate = |_: &Net, _| Ok(Scores::default());
        fit(model, &plan, &site, own, &mut evaluate, &mut |_| {}).unwrap_err().to_string()
    });
    assert!(errors[2].contains("its parameters are not those of the other ranks at step 0"), "{errors:?}");
    assert!(errors[..2].iter().all(|error| error.contains("another rank failed")), "{errors:?}");
}

#[test]
fn ranks_of_which_one_would_wait_for_nobody_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let sharing = Sharing { bucket_bytes: 1 << 10, ..Sharing::default() };
    let others = [
        FitPlan { save_every: Some(2), ..plan(6) },
        FitPlan { sharing, ..plan(6) },
        FitPlan { max_wall: Some(Duration::ZERO), ..plan(6) },
    ];
    for other in others {
        let errors = in_threads(3, |world| {
            let stop = Stop::default();
            let site = Site { dir: dir.path(), world: &world, stop: &stop };
            let own = |from| steps(from, 4).map(|step: Result<Vec<Rows>, BoxError>| Ok(deal(step?, &world)));
            let plan = if world.rank() == 1 { other.clone() } else { plan(6) };
            let mut evaluate = |_: &Net, _| Ok(Scores::default());
            fit(Net::new(), &plan, &site, own, &mut evaluate, &mut |_| {}).unwrap_err().to_string()
        });
        assert!(errors[1].contains("`save_every` or `max_wall` are not those of the other ranks"), "{errors:?}");
    }
}

#[test]
fn whoever_is_asked_to_stop_all_stop_after_the_same_step() {
    let dir = tempfile::tempdir().unwrap();
    let steps_done = in_threads(3, |world| {
        let stop = Stop::default();
        let site = Site { dir: dir.path(), world: &world, stop: &stop };
        let asked = stop.clone();
        let rank = world.rank();
        let own = |from| {
            steps(from, 4).enumerate().map(|(at, step): (usize, Result<Vec<Rows>, BoxError>)| {
                if (rank, at) == (1, 3) {
                    asked.request_stop();
                }
                Ok(deal(step?, &world))
            })
        };
        let mut evaluate = |_: &Net, _| Ok(Scores::default());
        let outcome = fit(Net::new(), &plan(9), &site, own, &mut evaluate, &mut |_| {}).unwrap();
        assert_eq!(outcome.reason, StopReason::Interrupted);
        outcome.step
    });
    assert_eq!(steps_done, [4, 4, 4]);
}

#[test]
fn the_rank_with_the_bad_rows_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let errors = in_threads(2, |world| {
        let stop = Stop::default();
        let site = Site { dir: dir.path(), world: &world, stop: &stop };
        let own = |from| {
            steps(from, 4).map(|step: Result<Vec<Rows>, BoxError>| {
                let mut batches = deal(step?, &world);
                if world.rank() == 1 {
                    batches[1].0[0].1[0] = f32::NAN;
                }
                Ok(batches)
            })
        };
        let mut evaluate = |_: &Net, _| Ok(Scores::default());
        fit(Net::new(), &plan(9), &site, own, &mut evaluate, &mut |_| {}).unwrap_err().to_string()
    });
    assert!(errors[0].contains("another rank failed at step 1"), "{errors:?}");
    // Rank 1 has the second and the fourth pair of rows of the step.
    assert!(errors[1].contains("the loss is not finite") && errors[1].contains("(rows 906, 907)"), "{errors:?}");
}

/// `tanh` layers between [`IN`] inputs and a sum; each is computed again in the backward pass. `out` trains outside of them.
#[derive(Module, Debug)]
struct Deep {
    layers: Vec<Layer>,
    out: Param<Tensor<2>>,
}

#[derive(Module, Debug)]
struct Layer {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl Deep {
    fn new() -> Self {
        let device = testing::device().autodiff();
        let matrix = |shape: [usize; 2], salt| {
            let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| noise(i as u32, salt)).collect();
            let values = Tensor::from_data(TensorData::new(values, shape), &device);
            Param::initialized(ParamId::new(), values.require_grad())
        };
        let bias = || Param::initialized(ParamId::new(), Tensor::zeros([IN], &device).require_grad());
        let layer = |salt| Layer { weight: matrix([IN, IN], salt), bias: bias() };
        Self { layers: (0..12).map(layer).collect(), out: matrix([IN, 1], 99) }
    }
}

impl Layer {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        x.clone() + (x.matmul(self.weight.val()) + self.bias.val().reshape([1, IN])).tanh()
    }
}

impl Objective for Deep {
    type Batch = Rows;

    fn loss(&self, batch: &Rows, Mode { lender, .. }: Mode) -> Loss {
        let checkpoints = Checkpoints::new(false);
        let fill = |layer: &Layer, lender: &Option<Lender>, learns| match lender {
            Some(lender) => lender.fill(layer.clone(), learns),
            None => layer.clone(),
        };
        let layers = self.layers.iter().map(|layer| {
            let (own, lent, plain) = (layer.clone(), lender.clone(), fill(layer, &lender, false).valid());
            (move |x| plain.forward(x), move |x| fill(&own, &lent, true).forward(x))
        });
        let x = checkpoints.run(batch.inputs(&self.out.device()), layers).matmul(self.out.val());
        let targets = batch.0.iter().filter(|row| row.2.is_some()).count();
        let sum = if targets == 0 { x.square().sum() * 0.0 } else { (x - 0.3).square().sum() };
        Loss { checkpoints: Some(checkpoints), ..Loss::new(sum, targets as f64) }
    }

    fn rows(batch: &Rows) -> Vec<u32> {
        Net::rows(batch)
    }

    fn tokens(batch: &Rows) -> u64 {
        Net::tokens(batch)
    }
}

#[test]
fn parameters_that_are_lent_learn_as_if_they_stayed() {
    for kind in [OptimKind::Adamw, OptimKind::Adafactor] {
        // Three ranks have three, three and two of eight micro-batches; five have none in some rounds, or one without targets.
        for (ranks, micro) in [(1, 8), (2, 8), (3, 8), (5, 4)] {
            let with = |shard| {
                let mut plan = plan(6);
                plan.optim.kind = kind;
                plan.sharing = Sharing { shard, bucket_bytes: 64, check_every: 2 };
                FitPlan { eval_every: Some(3), save_every: Some(2), ..plan }
            };
            let [kept, lent] = [Shard::Gradients, Shard::Parameters].map(|shard| {
                let dir = tempfile::tempdir().unwrap();
                let mut found = together(Deep::new, ranks, &with(shard), dir.path(), micro);
                let saved = ["trainable", "optimizer"].map(|name| file(dir.path(), 6, &format!("{name}.safetensors")));
                // Each rank ends with its part of what was best.
                let whole = crate::read_trained(&dir.path().join("checkpoints/step-000003")).unwrap();
                for (path, data) in found.iter().flat_map(|(net, _)| read(net)) {
                    assert!([0, whole[&path].num_elements()].contains(&data.num_elements()));
                    assert!(data.num_elements() == 0 || data.as_bytes() == whole[&path].as_bytes(), "{path}");
                }
                (losses_of(&found.remove(0).1), saved)
            });
            assert_eq!(kept, lent, "{kind:?} on {ranks}");
        }
    }
}

#[test]
fn lent_parameters_go_on_with_more_or_fewer_ranks() {
    let sharing = Sharing { shard: Shard::Parameters, ..Sharing::default() };
    let with = |steps| FitPlan { sharing: sharing.clone(), ..plan(steps) };
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    together(Deep::new, 2, &with(9), whole.path(), 4);
    for (ranks, steps) in [(2, 3), (3, 6), (1, 7), (5, 9)] {
        let (_, events) = together(Deep::new, ranks, &with(steps), parts.path(), 4).remove(0);
        assert!(steps == 3 || matches!(events[0], Event::Resumed { .. }));
    }
    let [whole, parts] =
        [whole, parts].map(|dir| crate::read_trained(&dir.path().join("checkpoints/step-000009")).unwrap());
    assert_eq!(whole.len(), 12 * 2 + 1);
    for (path, data) in whole {
        let pairs = data.iter::<f32>().zip(parts[&path].iter::<f32>());
        assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 2e-6, "{path}");
    }
}

#[test]
fn a_rank_reads_and_keeps_the_layers_that_it_owns() {
    let sharing = Sharing { shard: Shard::Parameters, ..Sharing::default() };
    let counts = in_threads(3, |world| {
        let shared = crate::shared::Shared::new(&world, weights::held(&Deep::new()).unwrap(), &sharing);
        // What others alone keep never has a value here.
        struct Later(std::collections::BTreeSet<String>);
        impl Mapper for Later {
            fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                if !self.0.contains(path) {
                    return param;
                }
                let (id, shape) = (param.id, param.shape());
                let never = |_: &Device, _| panic!("it is asked for its value");
                Param::uninitialized(id, never, param.device(), true, shape)
            }
        }
        let model = map(Deep::new(), &mut Later(crate::elsewhere(&Deep::new(), &sharing, world.place()).unwrap()));
        let held = weights::held(&model).unwrap();
        assert!(held.iter().all(|(path, held)| held.shape == shared.parameters[path].shape));
        read(&shared.divide(model)).iter().map(|(_, data)| data.num_elements()).sum::<usize>()
    });
    // `out` stays, and each of twelve layers has IN² + IN.
    assert_eq!(counts.iter().sum::<usize>(), 3 * IN + 12 * (IN * IN + IN));
    assert!(counts.iter().all(|&count| count < IN + 5 * (IN * IN + IN)), "{counts:?}");
}

#[test]
fn ranks_measure_with_layers_that_are_lent() {
    let plan =
        FitPlan { sharing: Sharing { shard: Shard::Parameters, ..Sharing::default() }, eval_every: Some(2), ..plan(4) };
    let dir = tempfile::tempdir().unwrap();
    let found = in_threads(3, |world| {
        let (stop, measured) = (Stop::default(), std::cell::RefCell::new(Vec::new()));
        let own = |from| steps(from, 8).map(|step: Result<Vec<Rows>, BoxError>| Ok(deal(step?, &world)));
        // Rank 0 makes no pass, rank 1 one, rank 2 two.
        let mut evaluate = |model: &Deep, lender: Option<Lender>| {
            let lender = lender.unwrap();
            for _ in 0..world.rank() {
                let x = Rows(vec![row(7)]).inputs(&model.out.device());
                lender.0.begin();
                let forward = |x, layer: &Layer| lender.fill(layer.clone(), false).forward(x);
                let x = model.layers.iter().fold(x, forward).matmul(model.out.val());
                measured.borrow_mut().push(x.sum().into_scalar::<f32>());
            }
            lender.0.rest()?;
            Ok(Scores(BTreeMap::from([("loss".into(), 0.0)])))
        };
        let site = Site { dir: dir.path(), world: &world, stop: &stop };
        fit(Deep::new(), &plan, &site, own, &mut evaluate, &mut |_| {}).unwrap();
        measured.into_inner()
    });
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [0, 2, 4]);
    assert_eq!(found[2], [found[1][0], found[1][0], found[1][1], found[1][1]], "all see one model");
    assert_ne!(found[1][0], found[1][1], "which learns");
}
