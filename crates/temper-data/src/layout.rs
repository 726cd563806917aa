//! From the columns of a row to what a causal language model learns.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::{
    config::{ChatColumns, DEFAULT_TEXT, DataConfig, Format},
    error::{listed, nearest},
    message::{self, Message},
    texts::Prompt,
};

/// A row, read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Sample {
    /// A conversation; messages before `first` are not learned.
    Chat { messages: Vec<Message>, tools: Option<Value>, first: usize },
    /// A text and what goes on from it; `others` would be wrong.
    Completion { prompt: String, completion: String, others: Vec<String> },
    /// A text.
    Text(String),
}

/// The columns of every format.
#[derive(Debug)]
pub(crate) struct Layout {
    format: Option<Format>,
    columns: ChatColumns,
    /// By [`Slot`], and behind them those of [`FOREIGN`].
    names: Vec<String>,
    /// What is learned need not be there.
    asking: bool,
    /// The bits of slots that a row had something in.
    seen: AtomicU32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Slot {
    Messages,
    Conversations,
    Instruction,
    Output,
    Prompt,
    Completion,
    Text,
    Tools,
    System,
    Input,
    Choices,
}

/// Each column of its own in `[data.columns]`: its key, which ends in its usual name, and what the recipe says.
fn written(columns: &ChatColumns) -> [(Slot, &'static str, &Option<String>); 10] {
    [
        (Slot::Messages, "columns.messages", &columns.messages),
        (Slot::Conversations, "columns.conversations", &columns.conversations),
        (Slot::Instruction, "columns.instruction", &columns.instruction),
        (Slot::Output, "columns.output", &columns.output),
        (Slot::Prompt, "columns.prompt", &columns.prompt),
        (Slot::Completion, "columns.completion", &columns.completion),
        (Slot::Tools, "columns.tools", &columns.tools),
        (Slot::System, "columns.system", &columns.system),
        (Slot::Input, "columns.input", &columns.input),
        (Slot::Choices, "columns.choices", &columns.choices),
    ]
}

/// What each format cannot do without.
const NEEDED: [(Format, &str, &[Slot]); 5] = [
    (Format::Chat, "chat", &[Slot::Messages]),
    (Format::Sharegpt, "sharegpt", &[Slot::Conversations]),
    (Format::Instruction, "instruction", &[Slot::Instruction, Slot::Output]),
    (Format::PromptCompletion, "prompt-completion", &[Slot::Prompt, Slot::Completion]),
    (Format::Text, "text", &[Slot::Text]),
];

/// What other programs read in columns of these names, and temper only where the recipe says so.
const FOREIGN: [(&str, &str); 4] = [
    ("system_prompt", "write `columns = { system = \"system_prompt\" }` in [data] if it is the system message"),
    ("context", "write `columns = { input = \"context\" }` in [data] if it belongs to the instruction"),
    ("functions", "write `columns = { tools = \"functions\" }` in [data] if they are tools"),
    ("history", "earlier turns are read from `messages` alone"),
];

/// A format as recipes write it.
pub(crate) fn name(format: Format) -> &'static str {
    NEEDED.iter().find(|(known, ..)| *known == format).map_or("", |(_, name, _)| name)
}

/// Cells in the order of [`Layout::names`]; none where the row has no such column, or null.
pub(crate) type Cells = Vec<Option<Value>>;

impl Layout {
    pub(crate) fn new(config: &DataConfig) -> Self {
        let mut names = vec![config.text.clone(); Slot::Choices as usize + 1];
        for (slot, key, written) in written(&config.columns) {
            names[slot as usize] = written.clone().unwrap_or_else(|| key.trim_start_matches("columns.").to_owned());
        }
        let foreign = FOREIGN.iter().map(|(name, _)| (*name).to_owned());
        let unnamed: Vec<String> = foreign.filter(|name| !names.contains(name)).collect();
        names.extend(unnamed);
        Self { format: config.format, columns: config.columns.clone(), names, asking: false, seen: AtomicU32::new(0) }
    }

    /// The same for rows of which the [prompt](Self::prompt) is read alone.
    pub(crate) fn asking(self) -> Self {
        Self { asking: true, ..self }
    }

    /// Takes note of what a row has.
    pub(crate) fn note(&self, cells: &Cells) {
        let bits = (0..cells.len()).filter(|&slot| cells[slot].is_some()).fold(0, |bits, slot| bits | 1 << slot);
        self.seen.fetch_or(bits, Ordering::Relaxed);
    }

    /// A column that the recipe names and that no row had, by its key in `[data]`.
    pub(crate) fn unseen(&self) -> Option<(&'static str, &str)> {
        let seen = self.seen.load(Ordering::Relaxed);
        let named =
            written(&self.columns).into_iter().filter_map(|(slot, key, name)| Some((slot, key, name.as_deref()?)));
        let text = Some(self.name(Slot::Text)).filter(|name| *name != DEFAULT_TEXT);
        let mut all = named.chain(text.map(|name| (Slot::Text, "text", name)));
        all.find(|(slot, ..)| seen & (1 << *slot as u32) == 0).map(|(_, key, name)| (key, name))
    }

    /// Columns that rows of turns had and that nothing reads although other programs do, and what to write.
    pub(crate) fn unread(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let seen = self.seen.load(Ordering::Relaxed);
        let turns = [Slot::Messages, Slot::Conversations, Slot::Instruction]
            .into_iter()
            .any(|slot| seen & (1 << slot as u32) > 0);
        let had = move |name: &str| {
            let place = self.names.iter().position(|own| own == name);
            place.is_some_and(|place| place > Slot::Choices as usize && seen & (1 << place) > 0)
        };
        FOREIGN.into_iter().filter(move |(name, _)| turns && had(name))
    }

    /// Every column that a row may have.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    /// What each format cannot do without in these rows.
    fn needed(&self) -> impl Iterator<Item = (Format, &'static str, &'static [Slot])> {
        // The last of two is what is learned.
        NEEDED.into_iter().map(|(format, name, slots)| (format, name, if self.asking { &slots[..1] } else { slots }))
    }

    fn name(&self, slot: Slot) -> &str {
        &self.names[slot as usize]
    }

    /// The format of a row that has these `cells` among the columns `there`. The error is a column and what is wrong.
    pub(crate) fn format(
        &self,
        cells: &Cells,
        there: impl FnOnce() -> Vec<String>,
    ) -> Result<Format, (String, String)> {
        let absent = |slots: &[Slot]| slots.iter().copied().find(|slot| cells[*slot as usize].is_none());
        if let Some(wanted) = self.format {
            let slots = self.needed().find(|(format, ..)| *format == wanted).map_or(&[][..], |(.., slots)| slots);
            return absent(slots).map_or(Ok(wanted), |slot| Err(self.missing(self.name(slot), &there())));
        }
        let fits: Vec<_> = self.needed().filter(|(.., slots)| absent(slots).is_none()).collect();
        match fits.as_slice() {
            [(format, ..)] => Ok(*format),
            [] => Err(self.unknown(cells, &there())),
            [(.., first), ..] => {
                let names = listed(fits.iter().map(|(_, name, _)| *name));
                let message =
                    format!("the columns fit more than one format: {names}; say which one is meant (data.format)");
                Err((self.name(first[0]).to_owned(), message))
            }
        }
    }

    fn missing(&self, wanted: &str, there: &[String]) -> (String, String) {
        let there = || there.iter().map(String::as_str);
        let message = if there().any(|name| name == wanted) {
            "it is null".into()
        } else {
            format!("the columns are {}{}", listed(there()), nearest(wanted, there()))
        };
        (wanted.to_owned(), message)
    }

    /// No format fits: what is nearest to one.
    fn unknown(&self, cells: &Cells, there: &[String]) -> (String, String) {
        for (.., slots) in self.needed() {
            let absent: Vec<Slot> = slots.iter().copied().filter(|slot| cells[*slot as usize].is_none()).collect();
            if let ([slot], true) = (absent.as_slice(), slots.len() > 1) {
                return self.missing(self.name(*slot), there);
            }
        }
        let needed: Vec<String> = self
            .needed()
            .map(|(_, name, slots)| {
                let columns: Vec<&str> = slots.iter().map(|slot| self.name(*slot)).collect();
                format!("{} ({name})", columns.join(" and "))
            })
            .collect();
        let close = |name: &str| !nearest(name, there.iter().map(String::as_str)).is_empty();
        let wanted = self.needed().flat_map(|(.., slots)| slots).map(|slot| self.name(*slot)).find(|name| close(name));
        let wanted = wanted.unwrap_or_else(|| self.name(Slot::Messages));
        let (column, message) = self.missing(wanted, there);
        (column, format!("{message}; a row needs {}", needed.join(", or ")))
    }

    /// The row that the cells of a record of `format` make; the error is a message without its place.
    pub(crate) fn sample(&self, format: Format, mut cells: Cells) -> Result<Sample, String> {
        let mut take = |slot: Slot| cells[slot as usize].take();
        let at = |slot: Slot, e: String| format!("column `{}`: {e}", self.name(slot));
        let text = |slot: Slot, value: Option<Value>| match value {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(at(slot, "it is no text".into())),
            None => Ok(String::new()),
        };
        let list = |slot: Slot, value: Option<Value>| {
            message::messages(value.unwrap_or_default(), &self.columns).map_err(|e| at(slot, e))
        };
        let (tools, system) = (take(Slot::Tools), text(Slot::System, take(Slot::System)));
        let tools = || tools.map_or(Ok(None), message::tools).map_err(|e| at(Slot::Tools, e));
        let with_system = |mut messages: Vec<Message>, system: String| {
            if system.trim().is_empty() {
                return Ok(messages);
            }
            if messages[0].role() == "system" {
                return Err(at(Slot::System, "the conversation has a system message already".into()));
            }
            messages.insert(0, Message::new("system", system));
            Ok(messages)
        };
        // No template shows them in a text.
        let untold = |system: String, tools: Option<Value>| match (system.trim(), tools) {
            ("", None) => Ok(()),
            ("", Some(_)) => Err(at(Slot::Tools, "only conversations have tools".into())),
            _ => Err(at(Slot::System, "only conversations have a system message".into())),
        };
        match format {
            Format::Text => {
                untold(system?, tools()?)?;
                Ok(Sample::Text(text(Slot::Text, take(Slot::Text))?))
            }
            Format::Chat => {
                let messages = with_system(list(Slot::Messages, take(Slot::Messages))?, system?)?;
                Ok(Sample::Chat { messages, tools: tools()?, first: 0 })
            }
            Format::Sharegpt => {
                let messages = with_system(list(Slot::Conversations, take(Slot::Conversations))?, system?)?;
                Ok(Sample::Chat { messages, tools: tools()?.map(declared), first: 0 })
            }
            Format::Instruction => {
                let mut asked = text(Slot::Instruction, take(Slot::Instruction))?;
                let input = text(Slot::Input, take(Slot::Input))?;
                if !input.trim().is_empty() {
                    asked = format!("{asked}\n\n{input}");
                }
                let answer = text(Slot::Output, take(Slot::Output))?;
                let messages = vec![Message::new("user", asked), Message::new("assistant", answer)];
                Ok(Sample::Chat { messages: with_system(messages, system?)?, tools: tools()?, first: 0 })
            }
            Format::PromptCompletion => match (take(Slot::Prompt), take(Slot::Completion)) {
                (Some(Value::String(prompt)), Some(Value::String(completion))) => {
                    untold(system?, tools()?)?;
                    let others = take(Slot::Choices).map_or(Ok(Vec::new()), |choices| others(choices, &completion));
                    Ok(Sample::Completion { prompt, completion, others: others.map_err(|e| at(Slot::Choices, e))? })
                }
                (prompt @ Some(Value::Array(_)), completion @ Some(Value::Array(_))) => {
                    let mut messages = with_system(list(Slot::Prompt, prompt)?, system?)?;
                    let first = messages.len();
                    messages.extend(list(Slot::Completion, completion)?);
                    Ok(Sample::Chat { messages, tools: tools()?, first })
                }
                _ => Err(at(Slot::Prompt, "it and the completion must be two texts or two lists of messages".into())),
            },
        }
    }

    /// What the cells of a record of `format` ask; the error is a message without its place.
    pub(crate) fn prompt(&self, format: Format, mut cells: Cells) -> Result<Prompt, String> {
        if format == Format::PromptCompletion {
            // It is left out, whatever it says.
            cells[Slot::Completion as usize] = cells[Slot::Prompt as usize].clone();
            cells[Slot::Choices as usize] = None;
        }
        match self.sample(format, cells)? {
            Sample::Text(text) | Sample::Completion { prompt: text, .. } => Ok(Prompt::Text(text)),
            Sample::Chat { mut messages, tools, first } => {
                let answered = messages.last().is_some_and(Message::is_assistant);
                messages.truncate(if first == 0 { messages.len() - usize::from(answered) } else { first });
                match messages.is_empty() {
                    true => Err("the conversation is an answer alone".into()),
                    false => Ok(Prompt::Conversation(messages, tools)),
                }
            }
        }
    }
}

/// The choices but for the right one, which must be among them.
fn others(choices: Value, right: &str) -> Result<Vec<String>, String> {
    let texts: Option<Vec<String>> = match choices {
        Value::Array(choices) => choices.iter().map(|choice| choice.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    let mut texts = texts.ok_or("it is no list of texts")?;
    let found = texts.iter().position(|text| text == right);
    if let Some((i, twice)) = texts.iter().enumerate().find(|(i, text)| texts[..*i].contains(text)) {
        return Err(format!("choice {} says \"{twice}\" again", i + 1));
    }
    texts.remove(found.ok_or_else(|| {
        format!("the completion \"{right}\" is none of {}", listed(texts.iter().map(String::as_str)))
    })?);
    match texts.is_empty() {
        true => Err("there is nothing to choose between".into()),
        false => Ok(texts),
    }
}

/// ShareGPT's tools, as JSON schemas of functions.
fn declared(tools: Value) -> Value {
    let Value::Array(tools) = tools else { return tools };
    let wrap = |tool: Value| match tool.get("name") {
        Some(_) => serde_json::json!({"type": "function", "function": tool}),
        None => tool,
    };
    Value::Array(tools.into_iter().map(wrap).collect())
}
