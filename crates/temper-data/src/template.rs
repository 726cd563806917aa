//! Chat templates: a conversation as the text that a model was taught to read, equal to Transformers' `apply_chat_template`.

use std::path::{Path, PathBuf};

use chrono::{Local, NaiveDate, NaiveDateTime};
use minijinja::{Environment, Value as Jinja};
use serde_json::{Map, Value};

use crate::{
    config::DataConfig,
    error::{Error, Result, listed, nearest},
    jinja::{self, GENERATION},
    message::Message,
    tokenizer::Tokenizer,
    vocabulary,
};

/// Templates of our own. ChatML is the format of OpenAI's `<|im_start|>` and `<|im_end|>`.
const OURS: [(&str, &str); 2] = [
    (
        "chatml",
        "{% for message in messages %}\n\
         {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n\
         {%- endfor %}\n\
         {%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ),
    (
        "plain",
        "{% for message in messages %}\n\
         {{ message.role | capitalize + ': ' + message.content + (eos_token if message.role == 'assistant' else '') + '\\n' }}\n\
         {%- endfor %}\n\
         {%- if add_generation_prompt %}Assistant:{% endif %}",
    ),
];

/// Names under which a tokenizer may keep several templates.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A chat template, compiled.
pub struct ChatTemplate {
    env: Environment<'static>,
    /// (name, source); the first is the one in use unless there are tools and one for them.
    templates: Vec<(String, String)>,
    origin: PathBuf,
    variables: Map<String, Value>,
}

impl ChatTemplate {
    /// The template of the tokenizer in `directory`: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json`, with those in `additional_chat_templates/` beside it. `wanted` is the name of one of these, a file, or
    /// one of temper's own (`chatml`, `plain`).
    ///
    /// # Errors
    /// When there is none, or it is no Jinja.
    pub fn open(directory: &Path, wanted: Option<&str>) -> Result<Self> {
        let settings = vocabulary::settings(directory)?;
        let (own, origin) = stored(directory, &settings)?;
        let named = |name: &str| own.iter().find(|(known, _)| known == name).cloned();
        let one = |source: &str, origin: PathBuf| (vec![(DEFAULT.into(), source.to_owned())], origin);
        let (templates, origin) = match wanted {
            None if own.is_empty() => {
                let message = "the tokenizer has no chat template; name a file or one of \"chatml\", \"plain\"";
                return Err(Error::Config { field: "template", message: message.into() });
            }
            None => {
                let default = named(DEFAULT).or_else(|| own.first().cloned());
                (default.into_iter().chain(named(TOOL_USE)).collect(), origin)
            }
            Some(name) => match (named(name), OURS.iter().find(|(known, _)| *known == name)) {
                (Some((_, source)), _) => one(&source, origin),
                _ if Path::new(name).is_file() => one(&read(Path::new(name))?, name.into()),
                (None, Some((_, source))) => one(source, name.into()),
                (None, None) => {
                    let names = || own.iter().map(|(name, _)| name.as_str()).chain(OURS.map(|(name, _)| name));
                    let message = format!(
                        "\"{name}\" is neither a file nor one of {}{}",
                        listed(names()),
                        nearest(name, names())
                    );
                    return Err(Error::Config { field: "template", message });
                }
            },
        };
        Self::new(templates, origin, special_tokens(&settings), Local::now().naive_local())
    }

    /// The template that `config` asks for: a file (relative to `base_dir`), a name, or the tokenizer's own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of(config: &DataConfig, base_dir: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let beside = config.template.as_ref().map(|name| base_dir.join(name)).filter(|path| path.is_file());
        let beside = beside.map(|path| path.to_string_lossy().into_owned());
        let template = Self::open(tokenizer.directory(), beside.as_deref().or(config.template.as_deref()))?;
        Ok(template.with_variables(&config.template_variables))
    }

    fn new(
        templates: Vec<(String, String)>,
        origin: PathBuf,
        variables: Map<String, Value>,
        now: NaiveDateTime,
    ) -> Result<Self> {
        let env = jinja::environment(&templates, now)
            .map_err(|e| Error::Template { path: origin.clone(), message: shown(&e) })?;
        Ok(Self { env, templates, origin, variables })
    }

    /// The template with `variables` to read, beside the special tokens (`bos_token`, …).
    #[must_use]
    pub fn with_variables(mut self, variables: &Map<String, Value>) -> Self {
        self.variables.extend(variables.clone());
        self
    }

    /// The template as it renders on the day `date`, such as `2026-11-21`.
    ///
    /// # Errors
    /// When that is no date.
    pub fn on(self, date: &str) -> Result<Self> {
        let Ok(day) = date.parse::<NaiveDate>() else {
            let message = format!("\"{date}\" is no date such as 2026-11-21");
            return Err(Error::Config { field: "template_date", message });
        };
        Self::new(self.templates, self.origin, self.variables, day.and_time(chrono::NaiveTime::MIN))
    }

    /// Today's date, as [`on`](Self::on) takes it.
    #[must_use]
    pub fn today() -> String {
        Local::now().date_naive().to_string()
    }

    /// Where it was read: a file, or the name of one of temper's own.
    #[must_use]
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Its text: what an export writes as `chat_template.jinja`.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.templates[0].1
    }

    /// Whether what it renders depends on the day.
    #[must_use]
    pub fn is_dated(&self) -> bool {
        self.templates.iter().any(|(_, source)| source.contains("strftime_now"))
    }

    /// Those of `variables` that it does not read.
    pub(crate) fn unread(&self, variables: &Map<String, Value>) -> Vec<String> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let reads = |name: &String| {
            self.templates.iter().any(|(_, source)| source.split(|c| !is_word(c)).any(|word| word == name))
        };
        variables.keys().filter(|name| !reads(name)).cloned().collect()
    }

    /// A conversation as text, special tokens included. With `add_generation_prompt` it ends where the assistant begins.
    ///
    /// # Errors
    /// When the template refuses the conversation or uses what Jinja does not know; the message is the template's own.
    pub fn render(&self, messages: &[Message], tools: Option<&Value>, add_generation_prompt: bool) -> Result<String> {
        let rendered = self.render_marked(messages, tools, add_generation_prompt);
        let mut text = rendered.map_err(|message| Error::Template { path: self.origin.clone(), message })?;
        text.retain(|c| !GENERATION.contains(&c));
        Ok(text)
    }

    /// As [`render`](Self::render), with the marks of generation blocks; the error is a message without its place.
    pub(crate) fn render_marked(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        let template = self.env.get_template(self.chosen(tools)).map_err(|e| shown(&e))?;
        let variables = self.variables.iter().map(|(name, value)| (name.as_str(), jinja::value(value)));
        let context = variables.chain([
            ("messages", jinja::messages(messages)),
            ("tools", tools.map_or_else(|| Jinja::from(()), jinja::value)),
            ("documents", Jinja::from(())),
            ("add_generation_prompt", Jinja::from(add_generation_prompt)),
        ]);
        template.render(Jinja::from_iter(context)).map_err(|e| shown(&e))
    }

    /// Whether the template in use says itself what the assistant wrote.
    pub(crate) fn has_generation(&self, tools: Option<&Value>) -> bool {
        let chosen = self.chosen(tools);
        self.templates.iter().any(|(name, source)| name == chosen && jinja::has_generation(source))
    }

    fn chosen(&self, tools: Option<&Value>) -> &str {
        let for_tools = self.templates.iter().find(|(name, _)| tools.is_some() && name == TOOL_USE);
        &for_tools.unwrap_or(&self.templates[0]).0
    }
}

/// What Jinja says, in one line.
fn shown(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    match error.detail() {
        Some(detail) => format!("{detail}{line}"),
        None => format!("{}{line}", error.kind()),
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::Template { path: path.to_owned(), message: e.to_string() })
}

/// The templates that a tokenizer brings, by name, and where the first was read.
fn stored(directory: &Path, settings: &Value) -> Result<(Vec<(String, String)>, PathBuf)> {
    let mut templates: Vec<(String, String)> = Vec::new();
    let mut origin = directory.join("tokenizer_config.json");
    let file = directory.join("chat_template.jinja");
    if file.is_file() {
        templates.push((DEFAULT.into(), read(&file)?));
        origin = file;
    } else {
        match &settings["chat_template"] {
            Value::String(source) => templates.push((DEFAULT.into(), source.clone())),
            Value::Array(named) => templates.extend(named.iter().filter_map(|entry| {
                Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned()))
            })),
            _ => {}
        }
    }
    for path in named(directory) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        templates.retain(|(known, _)| *known != name);
        templates.push((name, read(&path)?));
    }
    Ok((templates, origin))
}

/// The files of the templates that have a name, where Transformers puts them.
pub(crate) fn named(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory.join("additional_chat_templates")).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    paths
}

/// `bos_token`, `eos_token`, … as a template reads them.
fn special_tokens(settings: &Value) -> Map<String, Value> {
    let settings = settings.as_object().into_iter().flatten();
    settings
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| Some((key.clone(), vocabulary::content(value)?.into())))
        .collect()
}
