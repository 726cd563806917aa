//! Distillation: a small network learns to say of each token what a larger one says.
//!
//! The loss is the mean squared error between the teacher's last hidden states and a linear map of the student's, over
//! all tokens that are not padding (Romero et al. 2015, arXiv:1412.6550; Jiao et al. 2020, arXiv:1909.10351). The map is
//! thrown away afterwards. The student's vocabulary is a part of the teacher's, so that both read the same tokens.
//!
//! Shapes: B batch, S sequence, D student's width, W teacher's width.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_data::{Examples, TokenBatch};
use temper_engine::{Loss, Mode, Objective};
use temper_models::{Backbone, Config};
use temper_nn::{Linear, Pass};

use crate::metrics::{Metric, Scores};
use crate::{Error, Evaluation, Ranks, Sum, Task, all_by_length, input, training};

/// `[task]` with `kind = "distillation"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DistillationConfig {
    /// The network to learn from: a directory in Hugging Face's layout, or a name on the hub.
    pub teacher: String,
}

/// The network to learn from; it is not a part of the student and never trains.
#[derive(Debug, Clone)]
pub struct Teacher {
    /// Its weights, on a device without autodiff.
    pub backbone: Arc<Backbone>,
    /// The teacher's id of each of the student's tokens.
    pub ids: Arc<[i32]>,
}

/// A student and the map from its hidden states to the teacher's.
#[derive(Module, Debug)]
pub struct Distillation {
    /// The student.
    pub backbone: Backbone,
    /// What is thrown away afterwards.
    pub head: Projection,
    #[module(skip)]
    teacher: Option<Teacher>,
}

/// A linear map `[T, D]` to `[T, W]`.
#[derive(Module, Debug)]
pub struct Projection {
    projection: Linear,
}

impl Distillation {
    /// A student of that architecture. Its parameters are lazy until loaded or initialised; `teacher` may be left out of a
    /// model that is only asked for names and shapes.
    pub fn new(config: &Config, teacher_width: usize, teacher: Option<Teacher>, device: &Device) -> Self {
        let projection = Linear::new(config.hidden_size(), teacher_width, device);
        Self { backbone: Backbone::new(config, device).without_pooler(), head: Projection { projection }, teacher }
    }

    fn loss_in(&self, tokens: &TokenBatch, pass: &Pass) -> Loss {
        let device = self.head.projection.weight.device();
        let wanted = self.wanted(tokens, &device);
        let [rows, seq, width] = wanted.dims();
        let said = self.head.projection.forward(self.backbone.forward(&input(tokens, &device), pass), pass);
        let real =
            tokens.lengths().into_iter().flat_map(|length| (0..seq).map(move |i| f32::from(i < length as usize)));
        let real = Tensor::<3>::from_data(TensorData::new(real.collect::<Vec<_>>(), [rows, seq, 1]), &device);
        let squares = ((said - wanted) * real).square().sum();
        Loss::new(squares.div_scalar(width as f64), tokens.tokens() as f64)
    }

    /// The teacher's hidden states [B, S, W].
    fn wanted(&self, tokens: &TokenBatch, device: &Device) -> Tensor<3> {
        let Some(teacher) = &self.teacher else { unreachable!("a model that trains has its teacher") };
        let ids = tokens.ids.iter().map(|&id| teacher.ids[id as usize]).collect();
        let hidden = teacher
            .backbone
            .forward(&input(&TokenBatch { ids, ..tokens.clone() }, &device.clone().inner()), &Pass::eval());
        if device.is_autodiff() { Tensor::from_inner(hidden) } else { hidden }
    }
}

impl Objective for Distillation {
    type Batch = TokenBatch;

    fn loss(&self, batch: &TokenBatch, mode: Mode) -> Loss {
        training(mode, |pass| self.loss_in(batch, pass))
    }

    fn rows(batch: &TokenBatch) -> Vec<u32> {
        batch.rows.clone()
    }

    fn tokens(batch: &TokenBatch) -> u64 {
        batch.tokens()
    }
}

impl Task for Distillation {
    const CLASS: &'static str = "Model";
    const SHIPS_HEAD: bool = false;

    /// The id of the padding token.
    type Collator = u32;

    fn collate(pad_id: &u32, examples: &Examples, rows: &[u32], _seed: u64) -> TokenBatch {
        examples.batch(rows, *pad_id)
    }

    fn evaluate(&self, ranks: &Ranks, pad_id: &u32, examples: &Examples, rows: usize) -> Result<Evaluation, Error> {
        let loss = |rows: &[u32], pass: &Pass| self.loss_in(&examples.batch(rows, *pad_id), pass);
        let loss = Sum::of(ranks, &all_by_length(examples, rows), loss)?.mean();
        let scores = Scores::from([(Metric::Loss.name().to_owned(), loss)]);
        Ok(Evaluation { scores, ..Evaluation::default() })
    }

    fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    fn backbone_mut(&mut self) -> &mut Backbone {
        &mut self.backbone
    }
}
