//! Rows to padded batches, as training has them: read, tokenise, number labels, split, audit; then an epoch of batches.
//!
//! `cargo bench --bench load -- TOKENIZER ROWS.jsonl MAX_LENGTH BATCH` prints one line of JSON.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use temper_data::{DataConfig, LabelKind, Micro, Order, Target, Tokenizer, load, prefetch};

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`; `cargo test` calls this, too, and gives nothing.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [tokenizer, rows, max_length, batch] = &arguments[..] else {
        eprintln!("usage: cargo bench --bench load -- TOKENIZER ROWS.jsonl MAX_LENGTH BATCH");
        return ExitCode::SUCCESS;
    };
    match run(Path::new(tokenizer), rows, max_length, batch) {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run(tokenizer: &Path, rows: &str, max_length: &str, batch: &str) -> Result<String, Box<dyn std::error::Error>> {
    let (max_length, batch) = (max_length.parse()?, batch.parse()?);
    let began = Instant::now();
    let tokenizer = Tokenizer::from_dir(tokenizer)?;
    let config: DataConfig = serde_json::from_value(serde_json::json!({"train": rows, "eval_fraction": 0.0}))?;
    let target = Target::Labels(LabelKind::Class(None));
    let dataset = load(&config, Path::new("."), target, &tokenizer, max_length, 1)?;
    let loaded = began.elapsed();

    let order = Arc::new(Order::new(&dataset.train, 1, batch, Micro::Rows(batch), false));
    let (steps, examples, pad) = (order.steps_per_epoch(), Arc::new(dataset.train), tokenizer.pad_id());
    let rows = examples.len();
    let made = prefetch(config.workers, 4, 0, steps, move |step| {
        order.micro_batches(step).iter().map(|rows| examples.batch(rows, pad)).collect::<Vec<_>>()
    });
    let tokens: u64 = made.flatten().map(|batch| batch.tokens()).sum();
    let [loaded, all] = [loaded, began.elapsed()].map(|time| time.as_secs_f64());
    Ok(serde_json::json!({"rows": rows, "tokens": tokens, "load_s": loaded, "collate_s": all - loaded}).to_string())
}
