//! From a row to the tokens of a causal language model, and which of them are learned.

use std::{
    iter::once,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    config::{DataConfig, TrainOn},
    error::{Error, Result},
    hash::RowHash,
    layout::Sample,
    message::Message,
    report::TemplateReport,
    template::ChatTemplate,
    tokenizer::Tokenizer,
    turns::Conversation,
};

/// How rows become tokens.
pub(crate) struct Causal<'a> {
    tokenizer: &'a Tokenizer,
    /// None where the tokenizer has none, or none that can be read; the error is for the first row that needs one.
    template: Result<ChatTemplate, String>,
    date: String,
    /// Whether any row needed the template.
    rendered: AtomicBool,
    train_on: TrainOn,
    max_length: usize,
}

/// A row in tokens.
pub(crate) struct Tokenised {
    pub ids: Vec<u32>,
    /// Tokens that are learned, ascending and apart.
    pub trained: Vec<Range<u32>>,
    /// Tokens before cutting.
    pub full_length: usize,
    pub hash: RowHash,
    pub seen: Seen,
    /// The tokens of completions that would be wrong.
    pub others: Vec<Vec<u32>>,
}

/// What a row made the template do.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// See [`Turns::rewritten`](crate::turns::Turns::rewritten).
    pub rewritten: u32,
    /// See [`Turns::misprompted`](crate::turns::Turns::misprompted).
    pub misprompted: u32,
    /// Roles of messages that do not show.
    pub lost: Vec<String>,
    /// The tools do not show.
    pub toolless: bool,
    /// A turn is learned, but not that it ends: no special token is behind it.
    pub endless: bool,
}

impl Seen {
    /// Whether there is nothing to say.
    pub(crate) fn is_nothing(&self) -> bool {
        self.rewritten == 0 && self.misprompted == 0 && self.lost.is_empty() && !self.toolless && !self.endless
    }
}

impl<'a> Causal<'a> {
    pub(crate) fn new(
        config: &DataConfig,
        base_dir: &Path,
        tokenizer: &'a Tokenizer,
        max_length: usize,
    ) -> Result<Self> {
        let date = config.template_date.clone().unwrap_or_else(ChatTemplate::today);
        let template = template(config, base_dir, tokenizer, &date)?;
        Ok(Self { tokenizer, template, date, rendered: AtomicBool::new(false), train_on: config.train_on, max_length })
    }

    /// The template that conversations were rendered with; none where there was no conversation.
    pub(crate) fn template_report(&self) -> Option<TemplateReport> {
        let template = self.template.as_ref().ok().filter(|_| self.rendered.load(Ordering::Relaxed))?;
        let date = template.is_dated().then(|| self.date.clone());
        Some(TemplateReport { origin: template.origin().display().to_string(), date })
    }

    /// The tokens of a row; the error is a message without its place.
    pub(crate) fn encode(&self, sample: &Sample) -> Result<Tokenised, String> {
        match sample {
            Sample::Text(text) => self.text(text),
            Sample::Completion { prompt, completion, others } => {
                let row = self.completion(prompt, completion)?;
                let others = others
                    .iter()
                    .map(|other| self.continuation(prompt, other).map(|(ids, start)| ids[start..].to_vec()));
                Ok(Tokenised { others: others.collect::<Result<_, _>>()?, ..row })
            }
            Sample::Chat { .. } => self.chat(sample),
        }
    }

    /// All tokens, framed as the tokenizer does, and the end-of-text token, once. Never cut.
    fn text(&self, text: &str) -> Result<Tokenised, String> {
        let mut ids = self.tokenizer.encode(text, None, usize::MAX).map_err(|e| e.to_string())?.ids;
        self.end(&mut ids);
        let (trained, full_length) = (once(0..ids.len() as u32).collect(), ids.len());
        Ok(Tokenised {
            ids,
            trained,
            full_length,
            hash: RowHash::new(text, None),
            seen: Seen::default(),
            others: Vec::new(),
        })
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Tokenised, String> {
        let (mut ids, start) = self.continuation(prompt, completion)?;
        let start = if self.train_on == TrainOn::All { 0 } else { start };
        let [_, behind] = self.tokenizer.around();
        ids.extend(behind);
        self.end(&mut ids);
        let mut hash = RowHash::new(prompt, Some(completion));
        hash.blank = completion.trim().is_empty();
        let trained = once(start as u32..ids.len() as u32).collect();
        Ok(self.cut(ids, trained, hash, Seen::default()))
    }

    /// The tokens of a prompt with what follows, and where that begins.
    fn continuation(&self, prompt: &str, completion: &str) -> Result<(Vec<u32>, usize), String> {
        let (tokens, offsets) =
            self.tokenizer.encode_spans(&format!("{prompt}{completion}")).map_err(|e| e.to_string())?;
        let [before, _] = self.tokenizer.around();
        let start = before.len() + offsets.iter().take_while(|(from, _)| *from < prompt.len()).count();
        Ok(([before, tokens].concat(), start))
    }

    fn chat(&self, sample: &Sample) -> Result<Tokenised, String> {
        let Sample::Chat { messages, tools, first } = sample else { return Err("it is no conversation".into()) };
        let template = self.template.as_ref().map_err(Clone::clone)?;
        self.rendered.store(true, Ordering::Relaxed);
        let conversation =
            Conversation { template, tokenizer: self.tokenizer, messages, tools: tools.as_ref(), first: *first };
        let turns = conversation.turns(self.train_on)?;
        // Every special token is in the rendering already.
        let (ids, offsets) = self.tokenizer.encode_spans(&turns.text).map_err(|e| e.to_string())?;
        let trained: Vec<Range<u32>> =
            turns.spans.iter().map(|span| within(&offsets, span)).filter(|run| !run.is_empty()).collect();
        let mut hash = RowHash::new(&turns.text, None);
        let silent = |m: &&Message| m.content().is_none_or(|said| said.trim().is_empty()) && !m.has_calls();
        let answers: Vec<&Message> = messages.iter().filter(|message| message.is_assistant()).collect();
        hash.blank = !answers.is_empty() && answers.iter().all(silent);
        let (lost, toolless) = conversation.lost(&turns.text);
        let endless = self.train_on != TrainOn::All
            && trained.iter().any(|run| !self.tokenizer.is_special(ids[run.end as usize - 1]));
        let seen = Seen {
            rewritten: turns.rewritten,
            misprompted: turns.misprompted,
            lost: lost.into_iter().map(|i| messages[i].role().to_owned()).collect(),
            toolless,
            endless,
        };
        Ok(self.cut(ids, trained, hash, seen))
    }

    /// Appends the end-of-text token where it is not there.
    fn end(&self, ids: &mut Vec<u32>) {
        ids.extend(self.tokenizer.eos_id().filter(|eos| ids.last() != Some(eos)));
    }

    fn cut(&self, mut ids: Vec<u32>, mut trained: Vec<Range<u32>>, hash: RowHash, seen: Seen) -> Tokenised {
        let full_length = ids.len();
        ids.truncate(self.max_length);
        let end = ids.len() as u32;
        trained.iter_mut().for_each(|run| *run = run.start.min(end)..run.end.min(end));
        trained.retain(|run| !run.is_empty());
        Tokenised { ids, trained, full_length, hash, seen, others: Vec::new() }
    }
}

/// The template of the recipe or the tokenizer; why there is none is kept for the row that needs it.
fn template(
    config: &DataConfig,
    base_dir: &Path,
    tokenizer: &Tokenizer,
    date: &str,
) -> Result<Result<ChatTemplate, String>> {
    match ChatTemplate::of(config, base_dir, tokenizer).and_then(|template| template.on(date)) {
        Ok(template) => Ok(Ok(template)),
        Err(error) if config.template.is_some() || matches!(error, Error::Config { field: "template_date", .. }) => {
            Err(error)
        }
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// Tokens that lie wholly within `span`; those of a text come in order.
fn within(offsets: &[(usize, usize)], span: &Range<usize>) -> Range<u32> {
    let start = offsets.partition_point(|(from, _)| *from < span.start);
    let end = offsets.partition_point(|(_, to)| *to <= span.end);
    start as u32..end.max(start) as u32
}
