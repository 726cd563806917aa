//! What the user may have meant.

use strsim::{damerau_levenshtein, jaro_winkler};

/// The candidate that is most like `name`, if any is like it.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', ' '], "_");
    let name = plain(name);
    let alike = |candidate: &str| {
        let candidate = plain(candidate);
        let likeness = jaro_winkler(&name, &candidate);
        let near = likeness >= 0.84 || damerau_levenshtein(&name, &candidate) <= 1 && candidate.len() > 2;
        near.then_some(likeness)
    };
    candidates
        .into_iter()
        .filter_map(|candidate| Some((alike(candidate)?, candidate)))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// What a key of another tool (Transformers, PEFT, Axolotl, LLaMA-Factory) is called here.
pub(super) fn foreign_key(name: &str) -> Option<&'static str> {
    Some(match name {
        "learning_rate" => "the learning rate is `lr` in [train]",
        "num_train_epochs" | "num_epochs" | "n_epochs" => "the number of epochs is `epochs` in [train]",
        "steps" | "total_steps" | "num_steps" => "the number of optimizer steps is `max_steps` in [train]",
        "batch_size" | "train_batch_size" | "per_device_train_batch_size" | "micro_batch_size" => {
            "rows per optimizer step are `global_batch`, rows per forward pass are `micro_batch`, both in [train]"
        }
        "gradient_accumulation_steps" | "gradient_accumulation" | "grad_accum" => {
            "gradients accumulate by themselves when `micro_batch` is below `global_batch` in [train]"
        }
        "eval_batch_size" | "per_device_eval_batch_size" => "rows per forward pass in evaluation are `batch` in [eval]",
        "grad_clip" | "clip_grad_norm" | "gradient_clipping" | "clip" => {
            "the norm at which gradients are clipped is `max_grad_norm` in [train]"
        }
        "lora_r" | "r" | "lora_rank" => "the rank is `rank` in [adapter]",
        "lora_alpha" => "alpha is `alpha` in [adapter]",
        "lora_dropout" => "the adapter's dropout is `dropout` in [adapter]",
        "target_modules" | "lora_target_modules" | "lora_target" => "the adapted modules are `targets` in [adapter]",
        "lora_target_linear" => "every linear layer is `targets = \"all-linear\"` in [adapter]",
        "use_rslora" => "rank-stabilised scaling is `rslora` in [adapter]",
        "use_dora" => "DoRA is `method = \"dora\"` in [adapter]",
        "optimizer" | "optim_type" | "optim" => "the optimizer is `kind` in [optim]",
        "lr_scheduler" | "lr_scheduler_type" | "scheduler" => "the schedule is `kind` in [schedule]",
        "model_name_or_path" | "base_model" | "model_id" | "pretrained_model_name_or_path" => {
            "the model is `base` in [model]"
        }
        "max_seq_length" | "max_seq_len" | "sequence_len" | "cutoff_len" | "max_len" => {
            "the longest sequence is `max_length` in [data]"
        }
        "val_set_size" | "validation_split" => "the part kept for evaluation is `eval_fraction` in [data]",
        "sample_packing" | "pack" => "rows are packed with `packing` in [data]",
        "train_on_inputs" | "assistant_only_loss" | "completion_only_loss" => {
            "which tokens are learned is `train_on` in [data]"
        }
        "chat_template" => "the chat template is `template` in [data]",
        "streaming" => "rows are read one by one, and tokens beyond 64 MiB lie on the disk, by themselves",
        "special_tokens" | "eos_token" | "pad_token" | "bos_token" => {
            "special tokens are those of the tokenizer's files"
        }
        "trust_remote_code" => "no code of a repository is run",
        "revision" => "a revision is a part of the name: `org/name@revision`",
        "output_dir" => "the run's directory is `dir` in [run]",
        "logging_steps" => "steps between reports are `log_every` in [train]",
        "save_total_limit" => "how many checkpoints stay is `keep_last` in [train]",
        "load_best_model_at_end" => "the best checkpoint is what ships, by `metric` in [eval]",
        "resume_from_checkpoint" => "the same command goes on from the last checkpoint",
        "evals_per_epoch" => "how often to evaluate is `every` in [eval]: steps, or `epoch`",
        "saves_per_epoch" => "steps between checkpoints are `save_every` in [train]",
        "report_to" | "use_wandb" | "wandb_project" => {
            "what happens is written into events.jsonl, and for TensorBoard with `tensorboard` in [run]"
        }
        "push_to_hub" | "hub_model_id" => "where to push is `push_to` in [export]",
        "adam_beta1" | "adam_beta2" => "both are `betas` in [optim]",
        "adam_epsilon" => "it is `eps` in [optim]",
        "attn_implementation" | "flash_attention" | "use_flash_attention_2" => {
            "attention never holds the scores of all tokens; there is nothing to choose"
        }
        "save_steps" | "save_strategy" => "steps between checkpoints are `save_every` in [train]",
        "eval_steps" | "evaluation_strategy" | "eval_strategy" | "strategy" | "do_eval" => {
            "how often to evaluate is `every` in [eval]"
        }
        "early_stopping_patience" | "early_stopping" => "early stopping is `patience` in [eval]",
        "metric_for_best_model" => "the metric is `metric` in [eval]",
        "load_in_4bit" | "load_in_8bit" | "bnb_4bit_quant_type" | "quantization" | "quantization_config" => {
            "a base in few bits is `frozen_dtype` in [model]"
        }
        "fp16" | "bf16" | "dtype" | "torch_dtype" | "mixed_precision" => "the precision is `precision` in [device]",
        "group_by_length" | "length_grouping" => "rows of like length share batches by `bucket` in [data]",
        "neftune_noise_alpha" => "temper adds no noise to embeddings",
        "dataset_text_field" | "text_field" | "text_column" => "the column of texts is `text` in [data]",
        "label_smoothing_factor" => "it is `label_smoothing` in [task]",
        "greater_is_better" => "the `metric` in [eval] says it",
        "dataloader_num_workers" | "num_workers" => "who makes batches beside training are `workers` in [data]",
        "num_labels" | "id2label" | "label2id" => "classes come from the data; `labels` in [task] orders them",
        "problem_type" => "it is `problem` in [task]",
        "datasets" | "dataset" | "train_file" | "dataset_name" => "rows are `train` and `eval` in [data]",
        "validation" | "val" | "dev" | "test" | "validation_file" => "rows to evaluate on are `eval` in [data]",
        "split" => "a split belongs to its file: `train = { path = \"hf://datasets/org/name\", split = \"train\" }`",
        "max_samples" | "max_train_samples" => {
            "a file's `weight` says how much of it is seen: `{ path = …, weight = 0.1 }`"
        }
        "tf32" | "torch_compile" => "there is nothing to choose",
        "use_cpu" | "no_cuda" | "device_map" => "the device is `use` in [device]",
        "layers_to_transform" | "exclude_modules" => "which layers is a pattern in `targets` in [adapter]",
        "remove_unused_columns" => "columns that no key names are not read",
        "deepspeed" | "zero_stage" | "zero_optimization" | "fsdp" | "sharding_strategy" => {
            "what each rank keeps only its part of is `shard` in [distributed]"
        }
        "ddp_backend" | "dist_backend" | "distributed_backend" => {
            "what carries tensors between ranks is `backend` in [distributed]"
        }
        "ranks" | "world_size" | "nproc" | "nproc_per_node" | "num_processes" => {
            "how many ranks there are is the launcher's to say: `temper launch --nproc N`, `mpirun` or `srun`"
        }
        _ => return None,
    })
}

/// Why a value that other tools, or later builds, know is refused at `path`.
pub(super) fn foreign_value(path: &str, value: &str) -> Option<&'static str> {
    Some(match (path, value) {
        ("device.precision", "fp16" | "float16" | "half") => "did you mean `f16`?",
        ("device.precision", "f64" | "tf32" | "fp8") => "temper computes in f32, bf16 and f16",
        ("device.precision", "bfloat16") => "did you mean `bf16`?",
        ("device.precision", "fp32" | "float32" | "float") => "did you mean `f32`?",
        ("optim.kind", "adam" | "paged_adamw_32bit" | "adamw_torch" | "adamw_hf" | "adamw_torch_fused") => {
            "did you mean `adamw`?"
        }
        ("optim.kind", "adamw_8bit" | "adamw_bnb_8bit" | "paged_adamw_8bit" | "adamw-8bit") => {
            "did you mean `adamw8bit`?"
        }
        ("model.frozen_dtype", "bfloat16") => "did you mean `bf16`?",
        ("model.frozen_dtype", "4bit" | "int4" | "fp4") => "did you mean `nf4`?",
        ("model.frozen_dtype", "8bit") => "did you mean `int8`?",
        ("schedule.kind", "cosine_with_min_lr") => "write `cosine` and set `min_ratio`",
        ("schedule.kind", "constant_with_warmup") => "write `constant`; warmup is `warmup_steps` or `warmup_ratio`",
        ("schedule.kind", "warmup_stable_decay") => "did you mean `wsd`?",
        ("adapter.method", "none" | "sft" | "fft") => "did you mean `full`?",
        ("adapter.method", "freeze" | "linear-probe") => "did you mean `frozen`?",
        ("adapter.method", "qlora") => "write `lora`, and `frozen_dtype = \"nf4\"` in [model]",
        ("adapter.method", "rslora") => "write `lora` and `rslora = true`",
        ("task.kind", "classification" | "text-classification" | "text_classification" | "sentiment") => {
            "did you mean `sequence-classification`?"
        }
        ("task.kind", "sft" | "clm" | "text-generation") => "did you mean `causal-lm`?",
        ("data.format", "alpaca") => "did you mean `instruction`?",
        ("task.kind", "mlm" | "fill-mask") => "did you mean `masked-lm`?",
        ("distributed.backend", "gloo" | "ccl") => "did you mean `auto`?",
        ("distributed.shard", "ddp") => "did you mean `none`?",
        ("distributed.shard", "zero1" | "zero-1") => "did you mean `optimizer`?",
        ("distributed.shard", "zero2" | "zero-2" | "shard_grad_op") => "did you mean `gradients`?",
        ("distributed.shard", "zero3" | "zero-3" | "fsdp" | "full_shard") => "did you mean `parameters`?",
        ("eval.every", "no" | "none" | "off") => "did you mean `never`?",
        ("eval.every", "steps") => "write the number of steps, such as `every = 100`",
        ("eval.every", "epochs") => "did you mean `epoch`?",
        _ => return None,
    })
}

/// How to write, as a string, the number or date `written` at `path`.
pub(super) fn as_string(path: &str, written: &str) -> String {
    match path {
        "train.max_wall" | "distributed.silence" | "distributed.patience" => match written.parse::<u64>() {
            Ok(seconds @ 1..) => format!("write `\"{seconds}s\"` for seconds"),
            _ => "write a time such as `\"90s\"`, `\"15m\"` or `\"2h30m\"`".into(),
        },
        _ => format!("write `\"{written}\"`"),
    }
}

/// What to write where the required `path` is missing.
pub(super) fn example(path: &str) -> Option<&'static str> {
    Some(match path {
        "model" => "[model]\nbase = \"path/to/model\"",
        "model.base" => "base = \"path/to/model\"",
        "task" => "[task]\nkind = \"sequence-classification\"",
        "task.kind" => "kind = \"sequence-classification\"",
        "data" => "[data]\ntrain = \"train.csv\"",
        "data.train" => "train = \"train.csv\"",
        _ => return None,
    })
}

/// `a`, `b` or `c`, each in backticks; `last` is the word before the last.
pub fn list<'n>(names: impl IntoIterator<Item = &'n str>, last: &str) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        Some((end, rest)) if !rest.is_empty() => format!("{} {last} {end}", rest.join(", ")),
        _ => names.join(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAPTER: [&str; 7] = ["method", "rank", "alpha", "dropout", "rslora", "targets", "rank_pattern"];

    #[test]
    fn slips_of_the_hand_find_their_name() {
        for (wrong, right) in [
            ("rnak", "rank"),
            ("rnk", "rank"),
            ("aplha", "alpha"),
            ("dropuot", "dropout"),
            ("target", "targets"),
            ("Rank", "rank"),
            ("rank-pattern", "rank_pattern"),
            ("methd", "method"),
            ("rs_lora", "rslora"),
        ] {
            assert_eq!(nearest(wrong, ADAPTER), Some(right), "{wrong}");
        }
    }

    #[test]
    fn a_name_like_no_other_finds_none() {
        for wrong in ["foo", "x", "bias_correction", "quantization", ""] {
            assert_eq!(nearest(wrong, ADAPTER), None, "{wrong}");
        }
    }

    #[test]
    fn lists_read_as_english() {
        assert_eq!(list(["a"], "or"), "`a`");
        assert_eq!(list(["a", "b", "c"], "or"), "`a`, `b` or `c`");
    }
}
