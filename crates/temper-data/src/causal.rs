//! From a row to the tokens of a causal language model, and which of them are learned.

use std::{
    iter::once,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::{Map, Value};

use crate::{
    config::{DataConfig, TrainOn},
    error::{Error, Result},
    examples::Choice,
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
    variables: Map<String, Value>,
    /// Whether any row needed the template.
    rendered: AtomicBool,
    /// Whether any row has something that is not learned.
    asks: AtomicBool,
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
    /// The completions to choose between, the right one first.
    pub choices: Vec<Choice>,
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
    /// Reasoning does not show.
    pub thoughtless: bool,
    /// The tools do not show.
    pub toolless: bool,
    /// A turn is learned, but not that it ends: no special token is behind it.
    pub endless: bool,
}

impl Seen {
    /// Whether there is nothing to say.
    pub(crate) fn is_nothing(&self) -> bool {
        self.rewritten == 0
            && self.misprompted == 0
            && self.lost.is_empty()
            && !self.thoughtless
            && !self.toolless
            && !self.endless
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
        let (variables, train_on) = (config.template_variables.clone(), config.train_on);
        let [rendered, asks] = [const { AtomicBool::new(false) }; 2];
        Ok(Self { tokenizer, template, date, variables, rendered, asks, train_on, max_length })
    }

    /// The template that conversations were rendered with; none where there was no conversation.
    pub(crate) fn template_report(&self) -> Option<TemplateReport> {
        let template = self.template.as_ref().ok().filter(|_| self.rendered.load(Ordering::Relaxed))?;
        let date = template.is_dated().then(|| self.date.clone());
        let (origin, unread) = (template.origin().display().to_string(), template.unread(&self.variables));
        Some(TemplateReport { origin, date, unread })
    }

    /// Whether each row was a text, learned whole.
    pub(crate) fn is_plain(&self) -> bool {
        !self.asks.load(Ordering::Relaxed)
    }

    /// The tokens of a row; the error is a message without its place.
    pub(crate) fn encode(&self, sample: &Sample) -> Result<Tokenised, String> {
        if !matches!(sample, Sample::Text(_)) {
            self.asks.store(true, Ordering::Relaxed);
        }
        match sample {
            Sample::Text(text) => self.text(text),
            Sample::Completion { prompt, completion, others } => {
                let row = self.completion(prompt, completion)?;
                let all = others.iter().chain((!others.is_empty()).then_some(completion));
                let choices = all.rev().map(|text| self.choice(prompt, text)).collect::<Result<_, _>>()?;
                Ok(Tokenised { choices, ..row })
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
            choices: Vec::new(),
        })
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Tokenised, String> {
        let (Choice { mut ids, start }, torn) = self.continuation(prompt, completion)?;
        let start = if self.train_on == TrainOn::All { 0 } else { start };
        let [_, behind] = self.tokenizer.around();
        ids.extend(behind);
        self.end(&mut ids);
        let mut hash = RowHash::new(prompt, Some(completion));
        hash.blank = completion.trim().is_empty();
        let learned = start as u32..ids.len() as u32;
        Ok(self.cut(ids, Vec::from([learned]), hash, Seen { misprompted: u32::from(torn), ..Seen::default() }))
    }

    /// The tokens of a prompt with what follows, where that begins, and whether in the middle of a token: such a token is a
    /// part of what follows, or the model would be told the answer.
    fn continuation(&self, prompt: &str, completion: &str) -> Result<(Choice, bool), String> {
        let (tokens, offsets) =
            self.tokenizer.encode_spans(&format!("{prompt}{completion}")).map_err(|e| e.to_string())?;
        let [before, _] = self.tokenizer.around();
        let asked = offsets.partition_point(|(_, to)| *to <= prompt.len());
        let torn = offsets.get(asked).is_some_and(|(from, _)| *from < prompt.len());
        let start = before.len() + asked;
        Ok((Choice { ids: [before, tokens].concat(), start }, torn))
    }

    /// A completion to choose.
    fn choice(&self, prompt: &str, completion: &str) -> Result<Choice, String> {
        let (choice, _) = self.continuation(prompt, completion)?;
        let (length, most) = (choice.ids.len(), self.max_length);
        match length {
            _ if length > most => {
                Err(format!("with \"{completion}\" it has {length} tokens, and data.max_length is {most}"))
            }
            _ if length <= choice.start => Err(format!("the choice \"{completion}\" has no token of its own")),
            _ => Ok(choice),
        }
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
        let torn = turns.spans.iter().filter(|span| torn(&offsets, span.start)).count() as u32;
        let mut hash = RowHash::new(&turns.text, None);
        let silent = |m: &&Message| m.content().is_none_or(|said| said.trim().is_empty()) && !m.has_calls();
        let answers: Vec<&Message> = messages.iter().filter(|message| message.is_assistant()).collect();
        hash.blank = !answers.is_empty() && answers.iter().all(silent);
        let lost = conversation.lost(&turns.text);
        let endless = self.train_on != TrainOn::All
            && trained.iter().any(|run| !self.tokenizer.is_special(ids[run.end as usize - 1]));
        let seen = Seen {
            rewritten: turns.rewritten,
            misprompted: turns.misprompted + torn,
            lost: lost.messages.into_iter().map(|i| messages[i].role().to_owned()).collect(),
            thoughtless: lost.reasoning,
            toolless: lost.tools,
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
        Tokenised { ids, trained, full_length, hash, seen, choices: Vec::new() }
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

/// Whether a token holds what is before and behind `at`.
fn torn(offsets: &[(usize, usize)], at: usize) -> bool {
    let first = offsets.partition_point(|(_, to)| *to <= at);
    offsets.get(first).is_some_and(|(from, _)| *from < at)
}

/// Tokens that begin or lie within `span` and end there; those of a text come in order. A token in whose middle the span
/// begins is one of them: taken for context, it would tell the model the answer.
fn within(offsets: &[(usize, usize)], span: &Range<usize>) -> Range<u32> {
    let start = offsets.partition_point(|(_, to)| *to <= span.start);
    let end = offsets.partition_point(|(_, to)| *to <= span.end);
    start as u32..end.max(start) as u32
}
