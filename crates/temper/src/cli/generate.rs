//! `temper generate` and `temper chat`.

use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use temper_data::{DataConfig, Format, Message, Prompt, Prompts};
use temper_tasks::Sampling;

use super::{told, write, writeln};
use crate::device::DeviceArgs;
use crate::failure::{Context, Failure, Kind};
use crate::language::{Answer, Asked, LanguageModel};
use crate::opened::Opened;

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// A run directory, an export, or a model: a directory or a name on the hub.
    model: PathBuf,
    /// Texts to go on with. One is written as it comes; of several, or of FILE or stdin, one JSON object a line.
    prompts: Vec<String>,
    /// A table or JSON lines (.csv, .tsv, .parquet, .arrow, .jsonl) with the columns of training, or any other file of lines, each a
    /// text or a JSON object. Answers at the end of its conversations, completions and outputs are left out.
    #[arg(long, value_name = "FILE", conflicts_with = "prompts")]
    file: Option<PathBuf>,
    /// The column of the texts in FILE or stdin, where it is none of training's.
    #[arg(long, value_name = "COLUMN", conflicts_with = "prompts")]
    text: Option<String>,
    /// Each text is what a user says, in the model's chat template. Conversations always are in it.
    #[arg(long)]
    chat: bool,
    /// What the template is told first.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// The chat template: a file, `chatml`, `plain`, or a name that the tokenizer knows. Default: the model's own.
    #[arg(long, value_name = "TEMPLATE", requires = "chat")]
    template: Option<String>,
    /// Prompts at a time.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    /// A run directory, an export, or a model: a directory or a name on the hub.
    model: PathBuf,
    /// What the model is told first.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The chat template: a file, `chatml`, `plain`, or a name that the tokenizer knows. Default: the model's own.
    #[arg(long, value_name = "TEMPLATE")]
    template: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Args)]
struct SamplingArgs {
    /// The most tokens of an answer.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Divides the logits; 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the K likeliest tokens alone; 0: all.
    #[arg(long, default_value_t = 0, value_name = "K", allow_negative_numbers = true)]
    top_k: usize,
    /// Draw from the likeliest tokens that together have probability P.
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_negative_numbers = true)]
    top_p: f64,
    /// Draw from tokens at least this share as likely as the likeliest.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", allow_negative_numbers = true)]
    min_p: f64,
    /// Makes tokens that were there before less likely, above 1.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// A text that ends the answer; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    fn asked(&self) -> Result<Asked, Failure> {
        let Self { max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, ref stop, seed } = *self;
        let sampling = Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed };
        if let Some((name, rule)) = sampling.wrong() {
            return Err(Failure::new(Kind::Recipe, format!("error: --{name} must be {rule}")));
        }
        let draws = [("top-k", top_k != 0), ("top-p", top_p != 1.0), ("min-p", min_p != 0.0), ("seed", seed != 0)];
        if let Some((name, _)) = draws.into_iter().find(|(_, given)| *given && temperature == 0.0) {
            let message =
                format!("error: --{name} has no effect because the likeliest token is taken; set --temperature");
            return Err(Failure::new(Kind::Recipe, message));
        }
        if stop.iter().any(String::is_empty) {
            return Err(Failure::new(Kind::Recipe, "error: --stop is empty: it would end every answer at once"));
        }
        Ok(Asked { max_new_tokens: max_new_tokens as usize, stop: stop.clone(), sampling })
    }
}

impl GenerateArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let asked = self.sampling.asked()?;
        let model = LanguageModel::new(Opened::open(&self.model)?, self.template.as_deref(), &self.device.open()?)?;
        let tokens = |prompt: &Prompt| match prompt {
            Prompt::Text(text) if !self.chat => model.prompt(text),
            Prompt::Text(text) => self.conversation(&model, vec![Message::new("user", text)], None),
            Prompt::Conversation(messages, tools) => self.conversation(&model, messages.clone(), tools.as_ref()),
        };
        if let [prompt] = self.prompts.as_slice() {
            let began = Instant::now();
            let prompt = tokens(&Prompt::Text(prompt.clone()))?;
            let answers = model.generate(&[prompt], 0, &asked, &mut |_, text| say(text))?;
            say("\n");
            report(&answers, began);
            return Ok(());
        }
        let (from, prompts) = self.prompts(model.opened().columns())?;
        let of = |(number, prompt)| tokens(prompt).map_err(|failure| failure.at(format!("{from}prompt {number}")));
        let ids: Vec<Vec<u32>> = (1..).zip(&prompts).map(of).collect::<Result<_, _>>()?;
        let (began, batch, mut all) = (Instant::now(), usize::from(self.batch), Vec::new());
        for (ids, prompts) in ids.chunks(batch).zip(prompts.chunks(batch)) {
            let answers = model.generate(ids, all.len(), &asked, &mut |_, _| {})?;
            for (prompt, Answer { text, tokens, ended }) in prompts.iter().zip(&answers) {
                let prompt = match prompt {
                    Prompt::Text(text) => json!(text),
                    Prompt::Conversation(messages, _) => json!(messages),
                };
                writeln(&json!({ "prompt": prompt, "text": text, "tokens": tokens, "ended": ended }).to_string())?;
            }
            all.extend(answers);
        }
        report(&all, began);
        Ok(())
    }

    /// The tokens of a conversation, with the system message that was given.
    fn conversation(
        &self,
        model: &LanguageModel,
        mut messages: Vec<Message>,
        tools: Option<&Value>,
    ) -> Result<Vec<u32>, Failure> {
        if let Some(system) = &self.system {
            if messages[0].role() == "system" {
                let message = "error: the conversation has a system message already; leave out --system";
                return Err(Failure::new(Kind::Data, message));
            }
            messages.insert(0, Message::new("system", system));
        }
        model.conversation(&messages, tools)
    }

    /// All prompts, and where they are from, for errors.
    fn prompts(&self, columns: DataConfig) -> Result<(String, Vec<Prompt>), Failure> {
        if !self.prompts.is_empty() {
            return Ok((String::new(), self.prompts.iter().cloned().map(Prompt::Text).collect()));
        }
        let rows = Prompts::new(&match &self.text {
            Some(text) => DataConfig { format: Some(Format::Text), text: text.clone(), ..columns },
            None => columns,
        })
        .of_column(self.text.clone());
        let path = self.file.as_deref().unwrap_or(Path::new("stdin"));
        let mut prompts = Vec::new();
        let mut keep = |prompt| {
            prompts.push(prompt);
            true
        };
        told(match &self.file {
            Some(path) => rows.read(path, &mut keep),
            None => rows.lines(path, std::io::stdin().lock(), &mut keep),
        })?;
        Ok((format!("{}, ", path.display()), prompts))
    }
}

impl ChatArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let asked = self.sampling.asked()?;
        let model = LanguageModel::new(Opened::open(&self.model)?, self.template.as_deref(), &self.device.open()?)?;
        let mut messages: Vec<Message> = self.system.iter().map(|text| Message::new("system", text)).collect();
        let terminal = std::io::stdin().is_terminal();
        loop {
            if terminal {
                eprint!("> ");
            }
            let mut line = String::new();
            if std::io::stdin().lock().read_line(&mut line).context(Kind::Data, "failed to read stdin")? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                continue;
            }
            messages.push(Message::new("user", line.trim()));
            let prompt = model.conversation(&messages, None)?;
            let answers = model.generate(&[prompt], 0, &asked, &mut |_, text| say(text))?;
            say("\n");
            messages.extend(answers.into_iter().map(|answer| Message::new("assistant", answer.text)));
        }
    }
}

/// A piece of text on stdout. One that cannot be written ends the process: whoever hands on pieces takes no error.
fn say(text: &str) {
    if let Err(failure) = write(text) {
        eprintln!("{failure}");
        std::process::exit(failure.kind as i32);
    }
}

/// How fast it went, for people at a terminal.
fn report(answers: &[Answer], began: Instant) {
    let tokens: usize = answers.iter().map(|answer| answer.tokens).sum();
    let seconds = began.elapsed().as_secs_f64();
    if std::io::stderr().is_terminal() {
        say!("{tokens} tokens, {:.1} tokens/s with the prompt", tokens as f64 / seconds);
    }
}
