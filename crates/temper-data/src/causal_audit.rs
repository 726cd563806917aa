//! The audit of what a causal language model learns: nothing that is silently not learned, and nothing silently lost.

use crate::{
    audit::{Audit, Cases, Split, long},
    causal::Seen,
    config::{DataConfig, LongRows},
    layout::Layout,
    report::{Finding, Severity, TemplateReport},
    tokenizer::Tokenizer,
};

/// Findings about rows of a causal language model, added to those about any rows.
pub(crate) struct CausalAudit {
    audit: Audit,
    long_rows: LongRows,
    max_length: usize,
    positions: Option<usize>,
}

impl CausalAudit {
    pub(crate) fn new(
        findings: Vec<Finding>,
        config: &DataConfig,
        max_length: usize,
        positions: Option<usize>,
    ) -> Self {
        Self { audit: Audit(findings), long_rows: config.long_rows, max_length, positions }
    }

    pub(crate) fn findings(self) -> Vec<Finding> {
        self.audit.sorted()
    }

    pub(crate) fn tokenizer(&mut self, tokenizer: &Tokenizer, vocab_size: Option<usize>) {
        if let (Some(largest), Some(rows)) = (tokenizer.largest_id(), vocab_size)
            && largest as usize >= rows
        {
            let token = tokenizer.token(largest).unwrap_or_default();
            let message = format!(
                "the tokenizer has the token \"{token}\" with id {largest}, and the model's embedding only {rows} rows"
            );
            self.audit.add(Severity::Error, "vocabulary", message);
        }
        match tokenizer.eos_id() {
            Some(eos) if eos == tokenizer.pad_id() => {
                let message = "padding and the end of a text are one token; padding is told apart by its place, so the end \
                               is learned";
                self.audit.add(Severity::Info, "pad-is-eos", message);
            }
            Some(_) => {}
            None => {
                let message = "the tokenizer has no eos_token, or names what is no token: nothing ends a text or a completion, \
                               and a model that learned from them does not stop";
                self.audit.add(Severity::Warning, "no-end-token", message);
            }
        }
    }

    /// Columns that nothing reads and other programs do.
    pub(crate) fn columns(&mut self, layout: &Layout) {
        for (column, advice) in layout.unread() {
            self.audit.add(Severity::Warning, "column-not-read", format!("column `{column}` is not read: {advice}"));
        }
    }

    /// What the template did to the rows.
    pub(crate) fn template(&mut self, observed: &[(String, Seen)], template: Option<&TemplateReport>) {
        if let Some(date) = template.and_then(|template| template.date.as_ref()) {
            let message = format!("the chat template writes the day into every row: {date} (data.template_date)");
            self.audit.add(Severity::Info, "date-stamp", message);
        }
        let rows = |is: &dyn Fn(&Seen) -> bool| {
            let mut cases = Cases::default();
            observed.iter().filter(|(_, seen)| is(seen)).for_each(|(place, _)| cases.add(|| place.clone()));
            cases
        };
        for role in ["system", "developer", "user", "assistant", "tool"] {
            let lost = rows(&|seen| seen.lost.iter().any(|lost| lost == role));
            if lost.count > 0 {
                let message = format!(
                    "the chat template leaves out what \"{role}\" says in {} rows: {}; name another one (data.template)",
                    lost.count,
                    lost.shown()
                );
                self.audit.add(Severity::Error, "lost-message", message);
            }
        }
        let mut told = |is: &dyn Fn(&Seen) -> bool, severity, code, what: &str| {
            let cases = rows(is);
            if cases.count > 0 {
                self.audit.add(severity, code, format!("{} rows {what}: {}", cases.count, cases.shown()));
            }
        };
        let what = "have tools that the chat template does not show; name another one (data.template)";
        told(&|seen| seen.toolless, Severity::Error, "lost-tools", what);
        let what = "have reasoning, within <think> say, that the chat template does not show; name another one \
                    (data.template), or take the reasoning out";
        told(&|seen| seen.thoughtless, Severity::Error, "lost-reasoning", what);
        let what = "have turns of the assistant that the chat template shows otherwise once others follow, as where earlier \
                    thinking is left out; these turns are not learned";
        told(&|seen| seen.rewritten > 0, Severity::Warning, "rewritten-turns", what);
        let what = "have turns that do not begin as the generation prompt ends: the model will be asked otherwise than it \
                    learned";
        told(&|seen| seen.misprompted > 0, Severity::Warning, "generation-prompt", what);
        let what = "have turns behind which no special token is learned: the model may not learn to stop";
        told(&|seen| seen.endless, Severity::Warning, "endless-turns", what);
    }

    /// Rows that are too long, and rows without anything to learn.
    pub(crate) fn rows(&mut self, split: &Split) {
        let (name, examples, max_length) = (split.name, &split.examples, self.max_length);
        let (mut cut, mut beheaded, mut untrained, mut longest) =
            (Cases::default(), Cases::default(), Cases::default(), 0);
        // Blank rows do no harm beside others; alone they leave no loss to measure.
        let learned = (0..examples.len()).any(|row| !examples.trained(row).is_empty());
        for row in 0..examples.len() {
            let lost = examples.lost(row);
            if lost > 0 {
                cut.add(|| long(examples, row));
                longest = longest.max(examples.length(row) + lost);
            }
            if examples.trained(row).is_empty() {
                match lost {
                    0 if learned && split.is_blank(row) => {}
                    0 => untrained.add(|| examples.source(row).to_string()),
                    _ => beheaded.add(|| long(examples, row)),
                }
            }
        }
        let counted = |cases: &Cases| format!("{} of {} {name} rows", cases.count, examples.len());
        if cut.count > 0 {
            let all = match self.positions {
                Some(most) if most < longest => format!("the model can hold {most}, and the longest has {longest}"),
                _ => format!("data.max_length = {longest} holds all of them"),
            };
            let (severity, done) = match self.long_rows {
                LongRows::Refuse => (
                    Severity::Error,
                    format!("; {all}; data.long_rows = \"drop\" leaves them out, \"cut\" cuts their end off"),
                ),
                LongRows::Drop | LongRows::Cut => (Severity::Warning, "; their end is cut off".into()),
            };
            let message = format!("{} are longer than {max_length} tokens: {}{done}", counted(&cut), cut.shown());
            self.audit.add(severity, "long-rows", message);
        }
        if split.dropped.count > 0 {
            let message = format!(
                "{} {name} rows are left out, being longer than {max_length} tokens: {}",
                split.dropped.count,
                split.dropped.shown()
            );
            self.audit.add(Severity::Warning, "long-rows", message);
        }
        if beheaded.count > 0 && self.long_rows == LongRows::Cut {
            let message = format!(
                "{} lose everything that would be learned to the cut at {max_length} tokens: {}; raise data.max_length or \
                 write data.long_rows = \"drop\"",
                counted(&beheaded),
                beheaded.shown()
            );
            self.audit.add(Severity::Error, "cut-answers", message);
        }
        if untrained.count > 0 {
            let message = format!(
                "{} have nothing to learn: {}; they have no text, or no turn of the assistant that is learned: leave them \
                 out",
                counted(&untrained),
                untrained.shown()
            );
            self.audit.add(Severity::Error, "nothing-to-learn", message);
        }
    }
}
