//! From what the user wrote to what will happen: reads configuration, tensor headers and data, and allocates no tensor.

mod adapter;
mod answers;
mod footprint;
mod task;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use temper_data::{DataConfig, DataReport, Dataset, Files, Finding, LabelColumns, LabelKind, Micro, Target, Tokenizer};
use temper_device::{Api, DeviceName, Found};
use temper_engine::{Checkpointing, Every, EveryName, Schedule, ScheduleKind};
use temper_hub::hex;
use temper_kernels::Nccl;
use temper_models::{Config, Weights};
use temper_peft::Method;
use temper_peft::file::{self, AdapterFile};
use temper_peft::parameters::{self, Entry};
use temper_tasks::{Distillation, MaskedLm, Problem, TaskConfig, hugging_face_name};
use temper_world::{Backend, Place};

use crate::diagnostic::Diagnostic;
use crate::failure::{Context, Failure, Kind};
use crate::plan::{self, DataPlan, DevicePlan, ModelPlan, PinnedFile, Plan, RunPlan, TaskPlan, TrainPlan};
use crate::provenance::Provenance;
use crate::ranks::RanksPlan;
use crate::recipe::{self, FrozenDtype, Precision, Recipe, plain};
use crate::{build, device, memory};
use adapter::{check_weights, resolve_adapter};
use footprint::{Footprint, Halved, Made};
use task::resolve_task;
pub use task::{TeacherInputs, generation_config, stop_ids};

/// What the plan was made from, ready to be built from.
pub struct Inputs {
    /// The architecture.
    pub config: Config,
    /// The pretrained weights; absent when training starts from random ones.
    pub weights: Option<Weights>,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The rows.
    pub dataset: Dataset,
    /// The adapter that training goes on from.
    pub adapter: Option<AdapterFile>,
    /// The network to learn from, in a distillation.
    pub teacher: Option<TeacherInputs>,
    /// Where to compute.
    pub device: Found,
}

/// Decides everything, for the rank at `place`.
///
/// # Errors
/// Whatever is wrong with the recipe, the weights or the data, pointing into the recipe.
pub fn resolve(recipe: &Recipe, place: &Place) -> Result<(Plan, Inputs), Failure> {
    let found =
        device::find(&recipe.device.use_, place).map_err(|error| point(recipe, Kind::Recipe, "device.use", error))?;
    check_device(recipe, &found)?;
    check_backend(recipe, place, &found)?;
    let (config, weights) = read_model(recipe)?;
    let tokenizer = read_tokenizer(recipe, &config)?;
    let max_length = max_length(recipe, &config)?;
    task::check_architecture(recipe, &config)?;
    let dataset = read_data(recipe, &config, &tokenizer, max_length)?;
    let adapter = recipe.adapter.from.as_ref().map(|from| open_adapter(recipe, from)).transpose()?;
    let (task, teacher) = resolve_task(recipe, &config, adapter.as_ref(), &dataset, &tokenizer, max_length)?;

    let lazy = LazyModel::new(&config, &task);
    let checked = weights.as_ref().map(|weights| check_weights(recipe, weights, &config, &task, &lazy)).transpose()?;
    let adapter_plan = resolve_adapter(recipe, &config, &task, &lazy, checked.as_ref(), adapter.as_ref())?;
    let train = resolve_train(recipe, &dataset, place.size)?;
    let distributed = RanksPlan::new(&recipe.distributed, place, recipe.adapter.method.is_adapter());
    let footprint = Footprint {
        made: Made {
            config: &config,
            lazy: &lazy,
            task: &task,
            adapter: &adapter_plan,
            halved: keeps_halves(recipe, &found, &lazy),
        },
        train: &train,
        dataset: &dataset,
        bucket: recipe.data.bucket,
        weights: weights.as_ref(),
        teacher: teacher.as_ref(),
        tokenizer: &tokenizer,
        frozen: recipe.model.frozen_dtype,
        precision: recipe.device.precision,
        merges: recipe.export.merge,
        available: available(&found, place),
        scratch: device::scratch(&found) as u64,
        shard: distributed.shard,
        ranks: place.size as u64,
    };
    let recomputes = matches!(train.config.gradient_checkpointing, Checkpointing::On | Checkpointing::Offload);
    if recomputes && !footprint.made.has_gradients() {
        return Err(idle(recipe, "train.gradient_checkpointing", "no gradient goes through a layer"));
    }
    let memory = footprint.memory();
    let device = DevicePlan {
        name: found.name.to_string(),
        passed: found.passed.clone(),
        threads: recipe.device.threads.unwrap_or_else(|| device::cores(place)),
        precision: recipe.device.precision.name().into(),
    };
    let model = ModelPlan {
        base: recipe.model.base.clone(),
        architecture: config.model_type().into(),
        class: lazy.class.clone(),
        files: recipe.fetched.pin(model_files(recipe, weights.as_ref(), &tokenizer))?,
        adapter: recipe.fetched.pin(adapter_files(recipe))?,
        new_parameters: match &checked {
            Some(report) => report.missing.iter().map(|path| hugging_face_name(config.prefix(), path)).collect(),
            None => Vec::new(),
        },
        unused_tensors: checked.map(|report| report.unexpected).unwrap_or_default(),
        max_positions: config.max_positions(),
        multiplied: footprint.made.multiplied(),
        operations: footprint.operations(),
        frozen_dtype: recipe.model.frozen_dtype,
    };
    // A run that goes on another day sees the same rows.
    let dated = dataset.report.template.as_ref().and_then(|template| template.date.clone());
    let template_date = recipe.data.template_date.clone().or(dated);
    let data = DataPlan {
        config: DataConfig { template_date, ..recipe.data.clone() },
        files: recipe.fetched.pin(data_files(recipe))?,
        max_length,
        report: dataset.report.clone(),
    };
    let run = RunPlan {
        name: recipe.name(),
        dir: recipe.run_dir().display().to_string(),
        tensorboard: recipe.run.tensorboard,
    };
    let mut plan = Plan {
        fingerprint: String::new(),
        export: recipe.export.clone(),
        sources: recipe.fetched.sources.clone(),
        endpoint: recipe.fetched.endpoint.clone(),
        to_come: recipe.fetched.to_come(),
        run,
        model,
        task,
        data,
        adapter: adapter_plan,
        train,
        device,
        distributed,
        memory,
    };
    plan.fingerprint = plan.to_fingerprint()?;
    let tokenizer = Arc::new(tokenizer);
    Ok((plan, Inputs { config, weights, tokenizer, dataset, adapter, teacher, device: found }))
}

impl Inputs {
    /// Opens weights and tokenizer anew where they lie now: a plan can be made before all is fetched.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn reopen(&mut self, recipe: &Recipe) -> Result<(), Failure> {
        self.tokenizer = Arc::new(read_tokenizer(recipe, &self.config)?);
        if self.weights.is_some() {
            self.weights = read_model(recipe)?.1;
        }
        if let (Some(teacher), TaskConfig::Distillation(task)) = (&mut self.teacher, &recipe.task) {
            let weights = Weights::open(&recipe.resolve(&task.teacher));
            teacher.weights = weights.map_err(|error| point(recipe, Kind::Data, "task.teacher", error))?;
        }
        Ok(())
    }
}

/// An error of the floors below, with the place in the recipe that it is about.
pub fn point(recipe: &Recipe, kind: Kind, key: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(kind, Diagnostic::new(error.to_string()).at(recipe.source.at(key), ""))
}

/// The model without a value in it, to ask for names and shapes.
struct LazyModel {
    class: String,
    entries: Vec<Entry>,
    linears: Vec<String>,
    targets: Vec<&'static str>,
    /// Whether weights are stored `[in, out]`.
    fan_in_fan_out: bool,
}

impl LazyModel {
    fn new(config: &Config, task: &TaskPlan) -> Self {
        fn of<T: temper_tasks::Task>(mut model: T, config: &Config) -> LazyModel {
            let entries = parameters::list(&model);
            let prefixed = |path: String| format!("{}.{path}", config.prefix());
            let linears = model.backbone_mut().linears().into_iter().map(|(path, _)| prefixed(path)).collect();
            LazyModel {
                class: config.class(T::CLASS),
                entries,
                linears,
                targets: config.default_targets().to_vec(),
                fan_in_fan_out: config.fan_in_fan_out(),
            }
        }
        let device = temper_device::cpu();
        match task {
            TaskPlan::SequenceClassification(task) => of(build::classifier(config, task, &device), config),
            TaskPlan::CausalLm(task) => of(build::language_model(config, task, &device), config),
            TaskPlan::MaskedLm { .. } => of(MaskedLm::new(config, &device), config),
            TaskPlan::Distillation { width, .. } => of(Distillation::new(config, *width, None, &device), config),
        }
    }
}

fn read_model(recipe: &Recipe) -> Result<(Config, Option<Weights>), Failure> {
    if let Some(path) = &recipe.model.config {
        let config =
            Config::read_file(&recipe.resolve(path)).map_err(|e| point(recipe, Kind::Data, "model.config", e))?;
        return Ok((config, None));
    }
    let base = base_dir(recipe).unwrap_or_default();
    let at_base = |error: temper_models::Error| point(recipe, Kind::Data, "model.base", error);
    Ok((Config::read(&base).map_err(at_base)?, Some(Weights::open(&base).map_err(at_base)?)))
}

fn base_dir(recipe: &Recipe) -> Option<PathBuf> {
    recipe.model.base.as_ref().map(|base| recipe.resolve(base))
}

fn open_adapter(recipe: &Recipe, from: &str) -> Result<AdapterFile, Failure> {
    let dir = recipe.resolve(from);
    if let (Some(provenance), Some(base)) = (Provenance::read(&dir)?, base_dir(recipe)) {
        provenance.check_base(&base, |paths| recipe.fetched.pin(paths))?;
    }
    file::open(&dir).map_err(|error| point(recipe, Kind::Data, "adapter.from", error))
}

fn read_tokenizer(recipe: &Recipe, config: &Config) -> Result<Tokenizer, Failure> {
    let (key, dir) = match (&recipe.model.tokenizer, base_dir(recipe)) {
        (Some(tokenizer), _) => ("model.tokenizer", recipe.resolve(tokenizer)),
        (None, Some(base)) => ("model.base", base),
        (None, None) => {
            return Err(point(recipe, Kind::Recipe, "model.config", "a model from a config needs `tokenizer`"));
        }
    };
    let tokenizer = Tokenizer::from_dir(&dir).map_err(|e| point(recipe, Kind::Data, key, e))?;
    let mut fits = tokens_fit(&tokenizer, config);
    if recipe.data.text_pair.is_some() {
        fits = fits.and_then(|()| segments_fit(&tokenizer, config));
    }
    fits.map_err(|message| point(recipe, Kind::Data, key, message)).map(|()| tokenizer)
}

/// Refuses a tokenizer with tokens that the model does not embed.
pub fn tokens_fit(tokenizer: &Tokenizer, config: &Config) -> Result<(), String> {
    let (tokens, last, rows) = (tokenizer.vocab_size(), tokenizer.largest_id().unwrap_or(0), config.vocab_size());
    match tokens.max(last as usize + 1) > rows {
        true => Err(format!(
            "the tokenizer has {tokens} tokens, the last of them {last}, the model embeds {rows}: they do not belong together"
        )),
        false => Ok(()),
    }
}

/// Refuses a tokenizer that marks second texts for a model that cannot tell.
pub fn segments_fit(tokenizer: &Tokenizer, config: &Config) -> Result<(), String> {
    let message = "the tokenizer marks second texts as segment 1, and the model has no segment but 0 (`type_vocab_size` in \
                   config.json): they do not belong together";
    if config.type_vocab_size() == 1 && tokenizer.marks_pairs() { Err(message.into()) } else { Ok(()) }
}

fn max_length(recipe: &Recipe, config: &Config) -> Result<usize, Failure> {
    let most = config.max_positions();
    match recipe.data.max_length {
        Some(length) if length > most => {
            let message = format!("`max_length` is {length}, the model holds {most} tokens");
            Err(point(recipe, Kind::Recipe, "data.max_length", message))
        }
        Some(length) => Ok(length),
        None => Ok(most.min(512)),
    }
}

fn read_data(recipe: &Recipe, config: &Config, tokenizer: &Tokenizer, max_length: usize) -> Result<Dataset, Failure> {
    let target = match &recipe.task {
        TaskConfig::CausalLm(_) => {
            Target::Causal { vocab_size: Some(config.vocab_size()), positions: Some(config.max_positions()) }
        }
        TaskConfig::SequenceClassification(task) => match task.problem {
            Problem::SingleLabel => Target::Labels(LabelKind::Class(task.labels.clone())),
            Problem::MultiLabel => Target::Labels(LabelKind::Multi(task.labels.clone())),
            Problem::Regression => Target::Labels(LabelKind::Score),
        },
        TaskConfig::MaskedLm(_) | TaskConfig::Distillation(_) => Target::Labels(LabelKind::None),
    };
    let dir = recipe.beside("");
    let dataset = temper_data::load(recipe.local_data(), &dir, target, tokenizer, max_length, recipe.train.seed)
        .map_err(|error| data_failure(recipe, error))?;
    refuse_idle(recipe, &dataset.report)?;
    let errors: Vec<&Finding> = dataset.report.errors().collect();
    if errors.is_empty() {
        return Ok(dataset);
    }
    let of_eval = recipe.data.eval.is_some() && errors.iter().all(|finding| finding.code == "no-eval-rows");
    let messages: Vec<&str> = errors.iter().map(|finding| finding.message.as_str()).collect();
    Err(point(recipe, Kind::Data, if of_eval { "data.eval" } else { "data.train" }, messages.join("; ")))
}

/// Refuses keys of `[data]` that mean what no row has.
fn refuse_idle(recipe: &Recipe, report: &DataReport) -> Result<(), Failure> {
    if !matches!(recipe.task, TaskConfig::CausalLm(_)) {
        return Ok(());
    }
    let mut keys = vec![];
    match &report.template {
        None => {
            let why = "no row is a conversation";
            keys.extend(["template", "template_variables", "template_date"].map(|key| (key.to_owned(), why)));
        }
        Some(template) => {
            let unread = template.unread.iter().map(|name| format!("template_variables.{name}"));
            keys.extend(unread.map(|key| (key, "the chat template does not read it")));
            let undated = template.date.is_none().then_some("the chat template writes no date");
            keys.extend(undated.map(|why| ("template_date".into(), why)));
        }
    }
    if report.plain {
        let why = "each row is a text, which is learned whole, in pieces";
        keys.extend(["train_on", "long_rows"].map(|key| (key.to_owned(), why)));
    }
    let mut keys = keys.into_iter().map(|(key, why)| (format!("data.{key}"), why));
    keys.find(|(key, _)| recipe.source.wrote(key)).map_or(Ok(()), |(key, why)| Err(idle(recipe, &key, why)))
}

/// A key that is written and changes nothing `because` of what was found.
fn idle(recipe: &Recipe, key: &str, because: &str) -> Failure {
    let message = format!("{} has no effect because {because}", recipe::name(key));
    Failure::new(Kind::Recipe, Diagnostic::new(message).at(recipe.source.key(key), "remove it"))
}

/// Points at the key that an error of the data layer is about.
fn data_failure(recipe: &Recipe, error: temper_data::Error) -> Failure {
    use temper_data::Error;
    let data = recipe.local_data();
    let names_file = |path: &Path, files: &Files| files.entries().iter().any(|file| recipe.beside(&file.path) == path);
    let file_key = |path: &Path| match &data.eval {
        Some(files) if names_file(path, files) && !names_file(path, &data.train) => "data.eval",
        _ => "data.train",
    };
    let key_of = |column: &str| match &recipe.data.label {
        _ if column == recipe.data.text => "data.text",
        _ if recipe.data.text_pair.as_deref() == Some(column) => "data.text_pair",
        LabelColumns::One(_) | LabelColumns::Many(_) => "data.label",
    };
    let key = match &error {
        Error::Config { field, .. } => format!("data.{field}"),
        Error::Column { column, .. } => key_of(column).into(),
        Error::File { path, .. } | Error::Row { path, .. } => file_key(path).into(),
        _ => "data.train".into(),
    };
    point(recipe, Kind::of_data(&error), &key, error)
}

fn resolve_train(recipe: &Recipe, dataset: &Dataset, ranks: usize) -> Result<TrainPlan, Failure> {
    let config = recipe.train.clone();
    let micro_batch = config.micro_batch.unwrap_or(config.global_batch.div_ceil(ranks));
    let micro = plan::micro(&config, micro_batch);
    let order = temper_data::Order::new(&dataset.train, config.seed, config.global_batch, micro, recipe.data.bucket);
    let steps_per_epoch = order.steps_per_epoch();
    let steps = match (config.max_steps, config.epochs) {
        (Some(steps), _) => steps,
        (None, epochs) => (epochs.unwrap_or(3.0) * steps_per_epoch as f64).ceil() as u64,
    };
    let schedule = Schedule::new(&recipe.schedule, steps);
    if schedule.warmup_steps >= steps && recipe.source.wrote("schedule.warmup_steps") {
        let message = format!("`warmup_steps` in [schedule] must be below the steps of the run, which are {steps}");
        return Err(point(recipe, Kind::Recipe, "schedule.warmup_steps", message));
    }
    // Both are rounded.
    let overlap = schedule.warmup_steps + schedule.decay_steps() > steps + 1;
    if overlap && recipe.schedule.kind == ScheduleKind::Wsd && recipe.source.wrote("schedule.decay_ratio") {
        let [warmup, decay] = [schedule.warmup_steps, schedule.decay_steps()];
        let message = format!("of {steps} steps {warmup} are warmup, which leaves no room for {decay} of decay");
        return Err(point(recipe, Kind::Recipe, "schedule.decay_ratio", message));
    }
    let eval_every = match recipe.eval.every {
        Every::Steps(steps) => Some(steps),
        Every::Named(EveryName::Epoch) if dataset.eval.is_empty() && !recipe.source.wrote("eval.every") => None,
        Every::Named(EveryName::Epoch) => Some(steps_per_epoch),
        Every::Named(EveryName::Never) => None,
    };
    if eval_every.is_some() && dataset.eval.is_empty() {
        return Err(point(recipe, Kind::Recipe, "eval.every", "there are no evaluation rows, and evaluation is on"));
    }
    // Twice what training takes at a time: nothing is kept for a backward pass.
    let longest = (0..dataset.eval.len()).map(|row| dataset.eval.length(row)).max().unwrap_or(1).max(1);
    let eval_batch = match micro {
        Micro::Tokens(tokens) => (2 * tokens / longest).clamp(1, 2 * micro_batch),
        Micro::Rows(_) => 2 * micro_batch,
    };
    Ok(TrainPlan {
        optim: recipe.optim.clone(),
        schedule: recipe.schedule.clone(),
        eval: recipe.eval.clone(),
        steps,
        steps_per_epoch,
        warmup_steps: schedule.warmup_steps,
        micro_batch,
        eval_every,
        eval_batch: recipe.eval.batch.unwrap_or(eval_batch),
        config,
    })
}

fn model_files(recipe: &Recipe, weights: Option<&Weights>, tokenizer: &Tokenizer) -> Vec<PathBuf> {
    let config = match (&recipe.model.config, base_dir(recipe)) {
        (Some(config), _) => recipe.resolve(config),
        (None, base) => base.unwrap_or_default().join("config.json"),
    };
    let weights = weights.map(Weights::files).unwrap_or_default();
    std::iter::once(config).chain(weights).chain(tokenizer.files().to_vec()).collect()
}

/// The files of the adapter that training goes on from.
fn adapter_files(recipe: &Recipe) -> Vec<PathBuf> {
    let from = recipe.adapter.from.iter().map(|from| recipe.resolve(from));
    from.flat_map(|dir| ["adapter_config.json", "adapter_model.safetensors"].map(|name| dir.join(name))).collect()
}

fn data_files(recipe: &Recipe) -> Vec<PathBuf> {
    let data = recipe.local_data();
    let eval = data.eval.iter().flat_map(Files::entries);
    let files = data.train.entries().into_iter().chain(eval).map(|file| recipe.beside(&file.path));
    let template = recipe.data.template.as_ref();
    let template = template.and_then(|name| [recipe.beside(name), name.into()].into_iter().find(|path| path.is_file()));
    files.chain(template).collect()
}

/// Size and hash of a file.
pub fn pin(path: PathBuf) -> Result<PinnedFile, Failure> {
    let shown = plain(&path).display().to_string();
    let mut hash = Sha256::new();
    let bytes = std::fs::File::open(&path)
        .and_then(|mut file| std::io::copy(&mut file, &mut hash))
        .context(Kind::Data, format!("failed to read {shown}"))?;
    Ok(PinnedFile { path: shown, bytes, sha256: hex(&hash.finalize()) })
}

/// Refuses what would carry tensors between ranks and is not there.
fn check_backend(recipe: &Recipe, place: &Place, found: &Found) -> Result<(), Failure> {
    let (asked, there) = (recipe.distributed.backend, place.backend());
    let error = match (asked, found.name) {
        (Backend::Nccl, DeviceName::Gpu(Api::Cuda, _)) if Nccl::is_present() => return Ok(()),
        (Backend::Nccl, DeviceName::Gpu(Api::Cuda, _)) => {
            "libnccl.so.2 is missing: NVIDIA's package `libnccl2` has it; or write `auto`".into()
        }
        (Backend::Nccl, device) => format!("NCCL joins GPUs by CUDA, and the device is {device}; write `auto`"),
        (Backend::Mpi, _) if place.size > 1 && asked != there => {
            "the ranks meet by TCP, at MASTER_ADDR; unset it where mpirun starts them, or write `auto`".into()
        }
        (Backend::Tcp, _) if place.size > 1 && asked != there => {
            "the ranks meet by MPI; set MASTER_ADDR to the machine of rank 0, or write `auto`".into()
        }
        _ => return Ok(()),
    };
    Err(point(recipe, Kind::Recipe, "distributed.backend", error))
}

/// Refuses what the device does not compute with or keep, or cannot gain from.
fn check_device(recipe: &Recipe, found: &Found) -> Result<(), Failure> {
    if recipe.train.gradient_checkpointing == Checkpointing::Offload && found.name == DeviceName::Cpu {
        let error = "the device is the processor, whose memory is the host's: `offload` saves nothing; write `on`";
        return Err(point(recipe, Kind::Recipe, "train.gradient_checkpointing", error));
    }
    if recipe.model.frozen_dtype == FrozenDtype::Bf16Packed {
        let missing = match recipe.device.precision {
            _ if found.name != DeviceName::Cpu => Some(format!("the device is {}", found.name)),
            Precision::F32 | Precision::F16 => Some("`precision` in [device] is not `bf16`".into()),
            Precision::Bf16 if temper_kernels::has_bf16_products() => None,
            Precision::Bf16 => Some("this processor has neither AMX nor AVX-512 BF16".into()),
        };
        if let Some(missing) = missing {
            let error = format!("`bf16-packed` is for products in bf16 on a processor, and {missing}; write `bf16`");
            return Err(point(recipe, Kind::Recipe, "model.frozen_dtype", error));
        }
    }
    let frozen = (recipe.model.frozen_dtype == FrozenDtype::Bf16).then_some(("model.frozen_dtype", "bf16"));
    let asked = [("device.precision", recipe.device.precision.name())].into_iter().chain(frozen);
    let asked: Vec<_> = asked.filter(|(_, dtype)| *dtype != "f32" && found.name != DeviceName::Cpu).collect();
    if asked.is_empty() {
        return Ok(());
    }
    let device = device::open(found).map_err(|error| point(recipe, Kind::Recipe, "device.use", error))?;
    let known = found.facts(&device).precisions;
    match asked.into_iter().find(|(_, dtype)| !known.contains(dtype)) {
        None => Ok(()),
        Some((key, dtype)) => {
            let error = format!("{} does not compute with `{dtype}`; it does with {}", found.name, known.join(", "));
            Err(point(recipe, Kind::Recipe, key, error))
        }
    }
}

/// What a device keeps as its products round it. A GPU's gates are within one operation where nothing comes between its layers, which
/// are three, without biases.
fn keeps_halves(recipe: &Recipe, device: &Found, model: &LazyModel) -> Halved {
    let (precision, adapter) = (recipe.device.precision, &recipe.adapter);
    let bf16 = precision == Precision::Bf16;
    match device.name {
        DeviceName::Auto | DeviceName::Cpu => {
            let all = bf16 && temper_kernels::has_bf16_products();
            Halved { operands: all, gates: all }
        }
        DeviceName::Gpu(..) => {
            let has = |end| model.entries.iter().any(|entry| entry.path.ends_with(end));
            let as_one = has("gate_proj.weight") && !has("gate_proj.bias");
            let gates = bf16 && as_one && adapter.dropout == 0.0 && adapter.method != Method::Dora;
            Halved { operands: precision != Precision::F32, gates }
        }
    }
}

/// The memory that the device can still give, in bytes, where that is known. The ranks of a machine share its own.
fn available(device: &Found, place: &Place) -> Option<u64> {
    match device.name {
        DeviceName::Gpu(..) => device.memory,
        DeviceName::Auto | DeviceName::Cpu => Some(memory::available()? / place.local_size.max(1) as u64),
    }
}
