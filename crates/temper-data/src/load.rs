//! Files to a data set: read, tokenise, number the labels, split, audit, pack.

use std::{path::Path, sync::Arc};

use crate::{
    audit::{self, Split},
    causal::Causal,
    causal_audit::CausalAudit,
    config::{DataConfig, LongRows},
    error::{Error, Result},
    examples::Examples,
    labels::{LabelKind, Labels},
    layout::Layout,
    reader::Reader,
    report::{DataReport, SplitReport},
    source::{Columns, Labelled},
    split,
    tokenizer::Tokenizer,
};

/// Training and evaluation rows, and what an audit says of them.
pub struct Dataset {
    /// Rows to train on.
    pub train: Examples,
    /// Rows to evaluate on; none when `eval_fraction = 0`.
    pub eval: Examples,
    /// Counts, and what looks wrong.
    pub report: DataReport,
}

/// What rows are read for.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Texts with labels, or without: encoders.
    Labels(LabelKind),
    /// Texts and conversations that a causal language model learns to write.
    Causal {
        /// Rows of the model's embedding, where known: a tokenizer with more tokens is refused.
        vocab_size: Option<usize>,
    },
}

/// Reads the files of `config` (relative to `base_dir`) into tokens, at most `max_length` a row.
///
/// The split by `eval_fraction` depends on `seed` and the rows' content only, keeps the share of each class, and keeps
/// duplicates on one side. For [`Target::Causal`] both sides are packed, or cut into pieces, after the split and the audit:
/// the report counts rows as the files have them.
///
/// # Errors
/// When a file, a column, a label, a row or the chat template cannot be read; the message says where. Findings of the
/// audit are not errors here: see [`DataReport::findings`].
pub fn load(
    config: &DataConfig,
    base_dir: &Path,
    target: Target,
    tokenizer: &Tokenizer,
    max_length: usize,
    seed: u64,
) -> Result<Dataset> {
    let fraction = config.resolved_eval_fraction()?;
    let added = tokenizer.added_tokens(config.text_pair.is_some());
    if max_length <= added {
        let message = format!("{max_length} leaves no room for text beside {added} special tokens");
        return Err(Error::Config { field: "max_length", message });
    }
    let (kind, causal) = match &target {
        Target::Labels(kind) => (kind.clone(), None),
        Target::Causal { .. } => (LabelKind::None, Some(Causal::new(config, base_dir, tokenizer, max_length)?)),
    };
    let mut labels = Labels::new(kind, &config.label)?;
    let columns = match causal {
        Some(_) => Columns::Causal(Layout::new(config)),
        None => {
            let (text, pair) = (config.text.clone(), config.text_pair.clone());
            Columns::Labelled(Labelled { text, pair, label: labels.source(&config.label) })
        }
    };
    let reader = Reader { columns: &columns, tokenizer, max_length, causal: causal.as_ref() };
    let mut train = reader.read("train", &config.train, base_dir, &mut labels)?;
    let mut eval = config.eval.as_ref().map(|files| reader.read("eval", files, base_dir, &mut labels)).transpose()?;
    let mut label_columns = vec![&mut train.store.labels];
    label_columns.extend(eval.as_mut().map(|eval| &mut eval.store.labels));
    let names: Arc<[String]> = labels.finish(&mut label_columns).into();

    let (train_rows, mut eval_rows) = split::by_content(&train.hashes, &train.store.labels, fraction, seed);
    let mut observed = std::mem::take(&mut train.observed);
    let store = Arc::new(train.store);
    let (mut eval_store, mut eval_hashes) = (store.clone(), &train.hashes);
    if let Some(eval) = &mut eval {
        observed.extend(std::mem::take(&mut eval.observed));
        eval_rows = (0..eval.hashes.len() as u32).collect();
    }
    let eval = eval.map(|eval| (Arc::new(eval.store), eval.hashes));
    if let Some((store, hashes)) = &eval {
        (eval_store, eval_hashes) = (store.clone(), hashes);
    }
    let dropping = causal.is_some() && config.long_rows == LongRows::Drop;
    let train = Split::new("training", store, train_rows, &train.hashes, &names, dropping);
    let eval = Split::new("evaluation", eval_store, eval_rows, eval_hashes, &names, dropping);

    let mut report = DataReport {
        max_length,
        train: SplitReport::new(&train.examples, tokenizer.unknown_id()),
        eval: SplitReport::new(&eval.examples, tokenizer.unknown_id()),
        template: None,
        findings: Vec::new(),
    };
    let eval_wanted = config.eval.is_some() || fraction > 0.0;
    report.findings = audit::findings(&report, &train, &eval, eval_wanted);
    if let (Some(causal), Target::Causal { vocab_size }) = (&causal, target) {
        report.template = causal.template_report();
        let mut audit = CausalAudit::new(std::mem::take(&mut report.findings), config, max_length);
        audit.tokenizer(tokenizer, vocab_size);
        audit.template(&observed, report.template.as_ref());
        [&train, &eval].into_iter().for_each(|split| audit.rows(split));
        report.findings = audit.findings();
    }
    let (mut train, mut eval) = (train.examples, eval.examples);
    if causal.is_some() {
        let pack =
            |rows: &Examples| if config.packing { rows.packed(max_length, seed) } else { rows.in_pieces(max_length) };
        (train, eval) = (pack(&train), pack(&eval));
        report.train.pack(&train, max_length);
        report.eval.pack(&eval, max_length);
    }
    Ok(Dataset { train, eval, report })
}
