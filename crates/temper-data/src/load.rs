//! Files to a data set: read, tokenise, number the labels, split, audit, pack.

use std::{path::Path, sync::Arc};

use crate::{
    audit::{self, Split},
    causal::{Causal, Seen},
    causal_audit::CausalAudit,
    config::{DataConfig, LongRows},
    error::{Error, Result},
    examples::{Examples, Store},
    hash::RowHash,
    labels::{Column, LabelKind, Labels},
    layout::Layout,
    reader::{Reader, Rows},
    report::{DataReport, Severity, SplitReport},
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
        /// Tokens that the model can hold, where known.
        positions: Option<usize>,
    },
}

/// Reads the files of `config` (relative to `base_dir`) into tokens, at most `max_length` a row.
///
/// The split by `eval_fraction` depends on the rows' content only, keeps the share of each class, and keeps duplicates on one
/// side. For [`Target::Causal`] the training rows are packed, by `seed`, and texts cut into pieces, after the split and
/// the audit: the report counts rows as the files have them.
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
    let (kind, [vocab_size, positions], causal) = match target {
        Target::Labels(kind) => (kind, [None, None], None),
        Target::Causal { vocab_size, positions } => {
            let causal = Causal::new(config, base_dir, tokenizer, max_length)?;
            (LabelKind::None, [vocab_size, positions], Some(causal))
        }
    };
    let mut labels = Labels::new(kind, &config.label)?;
    let columns = match causal {
        Some(_) => Columns::Causal(Arc::new(Layout::new(config))),
        None => {
            let (text, pair) = (config.text.clone(), config.text_pair.clone());
            Columns::Labelled(Labelled { text, pair, label: labels.source(&config.label) })
        }
    };
    let reader = Reader { columns: &columns, tokenizer, max_length, causal: causal.as_ref() };
    let mut train = reader.read("train", &config.train, base_dir, &mut labels)?;
    let mut eval = config.eval.as_ref().map(|files| reader.read("eval", files, base_dir, &mut labels)).transpose()?;
    if let Columns::Causal(layout) = &columns
        && let Some((field, name)) = layout.unseen()
    {
        return Err(Error::Config { field, message: format!("no row has a column `{name}`") });
    }
    let mut label_columns = vec![&mut train.store.labels];
    label_columns.extend(eval.as_mut().map(|eval| &mut eval.store.labels));
    let names: Arc<[String]> = labels.finish(&mut label_columns).into();

    let dropping = causal.is_some() && config.long_rows == LongRows::Drop;
    let ([train, eval], observed) =
        sides(train, eval, &names, dropping, |hashes, labels| split::by_content(hashes, labels, fraction));
    let mut report = DataReport {
        max_length,
        train: SplitReport::new(&train.examples, tokenizer.unknown_id()),
        eval: SplitReport::new(&eval.examples, tokenizer.unknown_id()),
        template: None,
        plain: false,
        findings: Vec::new(),
    };
    let eval_wanted = config.eval.is_some() || fraction > 0.0;
    report.findings = audit::findings(&report, &train, &eval, eval_wanted, tokenizer);
    let Some(causal) = causal else {
        let tokens = matches!(train.examples.store.labels, Column::None);
        let rows = train.examples.only(|row| !(tokens && train.is_blank(row)));
        if rows.len() < train.examples.len() {
            report.train = SplitReport::new(&rows, tokenizer.unknown_id());
        }
        report.findings = audit::weights(report.findings, &rows);
        return Ok(Dataset { train: rows, eval: eval.examples, report });
    };
    (report.template, report.plain) = (causal.template_report(), causal.is_plain());
    let mut audit = CausalAudit::new(report.findings, config, max_length, positions);
    audit.tokenizer(tokenizer, vocab_size);
    if let Columns::Causal(layout) = &columns {
        audit.columns(layout);
    }
    audit.template(&observed, report.template.as_ref());
    [&train, &eval].into_iter().for_each(|split| audit.rows(split));
    report.findings = audit.findings();
    let (train, eval) = (train.examples, eval.examples);
    let train = if config.packing { train.packed(max_length, seed) } else { train.in_pieces(max_length) };
    // A text's last piece may have one token. What is refused is shown whole.
    let refused = report.findings.iter().any(|finding| finding.severity == Severity::Error);
    let train = train.only(|row| refused || !train.trained(row).is_empty());
    // Not packed: each row is measured and answered by itself.
    let eval = eval.in_pieces(max_length);
    report.train.pack(&train, max_length);
    report.eval.pack(&eval, max_length);
    report.findings = audit::weights(report.findings, &train);
    Ok(Dataset { train, eval, report })
}

/// What is trained on and what is evaluated on, as files say or else as `split` does, and what was seen of their rows.
fn sides(
    mut train: Rows,
    eval: Option<Rows>,
    names: &Arc<[String]>,
    dropping: bool,
    split: impl FnOnce(&[RowHash], &Column) -> (Vec<u32>, Vec<u32>),
) -> ([Split; 2], Vec<(String, Seen)>) {
    let (train_rows, eval_rows) = split(&train.hashes, &train.store.labels);
    let mut observed = std::mem::take(&mut train.observed);
    let store = Arc::new(train.store);
    let side = |name, store: &Arc<Store>, rows, hashes: &[RowHash]| {
        Split::new(name, store.clone(), rows, hashes, names, dropping)
    };
    let eval = match eval {
        None => side("evaluation", &store, eval_rows, &train.hashes),
        Some(eval) => {
            observed.extend(eval.observed);
            side("evaluation", &Arc::new(eval.store), (0..eval.hashes.len() as u32).collect(), &eval.hashes)
        }
    };
    ([side("training", &store, train_rows, &train.hashes), eval], observed)
}
