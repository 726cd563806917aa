//! A language model, opened to be used: for `generate`, `chat`, `eval` and `merge`.

use std::path::Path;

use burn::tensor::Device;
use serde_json::Value;
use temper_data::{ChatTemplate, DataConfig, Dataset, Encoded, Examples, Message, Target, TokenBatch, Tokenizer};
use temper_device::Failed;
use temper_nn::Pass;
use temper_tasks::{Causal, CausalLm, Evaluation, Generation, Metric, Ranks, Sampling, Task, input};

use crate::build;
use crate::failure::{Context, Failure, Kind};
use crate::opened::Opened;
use crate::plan::{CausalPlan, TaskPlan};
use crate::provenance::Answers;
use crate::resolve::stop_ids;

/// Rows per forward pass in evaluation.
const ROWS: usize = 16;
/// Tokens that are decoded with what follows: some tokenizers drop the space before the first word.
const OVERLAP: usize = 16;
/// The most tokens more of a character's bytes.
const LONGEST: usize = 8;
/// What a decoder writes for bytes that are no character.
const BROKEN: char = char::REPLACEMENT_CHARACTER;

/// A decoder with its tokenizer and chat template.
pub struct LanguageModel {
    opened: Opened,
    task: CausalPlan,
    answers: Answers,
    model: CausalLm,
    template: Result<ChatTemplate, String>,
}

/// What is asked of a model.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The most tokens of an answer.
    pub max_new_tokens: usize,
    /// Texts that end an answer, and are not part of it.
    pub stop: Vec<String>,
    /// How each token is chosen.
    pub sampling: Sampling,
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// What it says.
    pub text: String,
    /// How many tokens that took.
    pub tokens: usize,
    /// Whether it came to an end of its own, by a token or a text.
    pub ended: bool,
}

impl LanguageModel {
    /// Makes a model of what was opened. `template` is a file or a name, see [`ChatTemplate::open`]; by default the
    /// tokenizer's own.
    ///
    /// # Errors
    /// When it is an encoder, or a tensor is missing, or there is no such template.
    pub fn new(opened: Opened, template: Option<&str>, device: &Device) -> Result<Self, Failure> {
        let (config, shown) = (&opened.config, opened.dir.display());
        if !config.is_decoder() {
            let message =
                format!("error: {shown} holds an encoder (`{}`), which generates no text", config.model_type());
            return Err(Failure::new(Kind::Data, message));
        }
        let class = opened.class();
        if class.ends_with("Classification") || class.ends_with("QuestionAnswering") {
            let message = format!("error: {shown} holds a {class}, which generates no text");
            return Err(Failure::new(Kind::Data, message));
        }
        let answers: Answers =
            opened.provenance.as_ref().and_then(|provenance| provenance.answers.clone()).unwrap_or_default();
        let Answers { metrics, answer, max_new_tokens } = answers.clone();
        let task = CausalPlan {
            tied: config.tied(),
            label_smoothing: 0.0,
            z_loss: 0.0,
            metrics,
            answer,
            samples: 0,
            max_new_tokens,
            end_ids: stop_ids(config, &opened.tokenizer, opened.generation_dir()).into_iter().collect(),
            best_by: Metric::Loss,
        };
        let model = build::language_model(config, &task, device);
        let model = opened.restore(model, &TaskPlan::CausalLm(task.clone()))?;
        let template = match (ChatTemplate::open(opened.tokenizer.directory(), template), template) {
            (Err(error), Some(_)) => return Err(Failure::new(Kind::Recipe, format!("error: {error}"))),
            (found, _) => {
                let variables = opened.columns().template_variables;
                found.map(|template| template.with_variables(&variables)).map_err(|error| error.to_string())
            }
        };
        Ok(Self { opened, task, answers, model, template })
    }

    /// What it was made of.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// The tokens of a text that is to go on.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, Failure> {
        let ids = self.opened.tokenizer.encode_prompt(text).context(Kind::Data, "failed to read the prompt")?;
        if ids.is_empty() {
            return Err(Failure::new(
                Kind::Data,
                "error: the prompt is empty, and the model has no token to begin with",
            ));
        }
        self.fits(ids)
    }

    /// The tokens of a conversation that the assistant is to answer, with the tools that it may call.
    pub fn conversation(&self, messages: &[Message], tools: Option<&Value>) -> Result<Vec<u32>, Failure> {
        let template = self.template.as_ref().map_err(|error| Failure::new(Kind::Data, format!("error: {error}")))?;
        let text = template.render(messages, tools, true).context(Kind::Data, "failed to render the conversation")?;
        let ids = self.opened.tokenizer.encode_rendered(&text);
        self.fits(ids.context(Kind::Data, "failed to read the conversation")?)
    }

    fn fits(&self, ids: Vec<u32>) -> Result<Vec<u32>, Failure> {
        let (most, rows) = (self.opened.config.max_positions(), self.opened.config.vocab_size());
        let stranger = ids.iter().find(|id| **id as usize >= rows);
        let message = match stranger {
            Some(id) => format!(
                "error: the tokenizer gives token {id}, and the model embeds {rows}: they do not belong together"
            ),
            None if ids.len() < most => return Ok(ids),
            None => format!("error: the prompt has {} tokens, the model holds {most} with its answer", ids.len()),
        };
        Err(Failure::new(Kind::Data, message))
    }

    /// Answers each of `prompts`, of which the first is number `first` of all. `on_text` hears of each piece of an answer as it
    /// comes, with the number of its prompt among these.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        first: usize,
        asked: &Asked,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<Answer>, Failure> {
        let tokenizer = &self.opened.tokenizer;
        let mut how = Generation {
            max_new_tokens: asked.max_new_tokens,
            sampling: asked.sampling.clone(),
            first,
            ..build::judge(&self.opened.config, &self.task).generation
        };
        // Special tokens are in no text.
        let special = |stop: &String| tokenizer.token_id(stop).filter(|id| tokenizer.is_special(*id));
        how.end_ids.extend(asked.stop.iter().filter_map(special));
        let mut streams: Vec<Stream> =
            prompts.iter().map(|prompt| Stream::new(prompt, &asked.stop, tokenizer)).collect();
        let generated = self
            .model
            .generate(prompts, &how, &Pass::eval(), &mut |row, id| streams[row].push(id, |text| on_text(row, text)));
        let generated = generated.map_err(|error| {
            let kind =
                if let temper_models::Error::Device(failed) = &error { Kind::of_device(failed) } else { Kind::Data };
            Failure::new(kind, format!("error: failed to generate: {error}"))
        })?;
        let finished = streams.into_iter().zip(generated).enumerate().map(|(row, (mut stream, generated))| {
            stream.finish(|text| on_text(row, text));
            Answer { ended: generated.ended || stream.stopped, tokens: generated.ids.len(), text: stream.text }
        });
        Ok(finished.collect())
    }

    /// Reads the rows of a file as training would.
    pub fn rows(&self, data: &DataConfig) -> Result<Dataset, Failure> {
        let opened = &self.opened;
        let target = Target::Causal { vocab_size: Some(opened.config.vocab_size()), positions: None };
        let dataset = opened.rows(&DataConfig { packing: false, ..data.clone() }, target)?;
        // Rows that training would refuse; only of long ones the beginning is measured.
        Opened::tell(&dataset.report, |code| code != "long-rows")?;
        Ok(dataset)
    }

    /// Measures the model on rows. Metrics that say nothing on them are left out.
    pub fn evaluate(&self, examples: &Examples) -> Result<Evaluation, Failure> {
        let tokenizer = self.opened.tokenizer.clone();
        let mut judge = build::judge(&self.opened.config, &self.task);
        let expected = self.answers.expected(examples, &tokenizer);
        judge.metrics.retain(|metric| {
            let why = expected.unmeasured(*metric);
            why.iter().for_each(|why| tracing::warn!("`{}` {why}; it is left out", metric.name()));
            why.is_none()
        });
        expected.warn();
        let causal = Causal { pad_id: tokenizer.pad_id(), tokenizer, judge };
        Ok(self.model.evaluate(&Ranks::alone(), &causal, examples, ROWS)?)
    }

    /// Adds the adapter into the weights, proves that nothing changed on `probe` texts, and writes the model into `out`.
    /// Returns the largest difference of the last layer's states.
    pub fn merge(self, out: &Path, probe: &[String]) -> Result<f32, Failure> {
        let prompts: Vec<Vec<u32>> = probe.iter().map(|text| self.prompt(text)).collect::<Result<_, _>>()?;
        let outputs = |model: &CausalLm| {
            let all = prompts.iter().map(|ids| states(model, ids)).collect::<Result<Vec<_>, _>>();
            Ok(all.map_err(temper_tasks::Error::from)?.concat())
        };
        self.opened.merge(self.model, &TaskPlan::CausalLm(self.task), outputs, out)
    }
}

/// The last layer's states of a text.
fn states(model: &CausalLm, ids: &[u32]) -> Result<Vec<f32>, Failed> {
    let device = model.backbone.word_embeddings().device();
    let text = Encoded { ids: ids.to_vec(), type_ids: vec![0; ids.len()], full_length: ids.len() };
    let input = input(&TokenBatch::from_encoded(&[text], 0), &device);
    temper_device::values(model.backbone.forward(&input, &Pass::eval()))
}

/// The text of an answer as its tokens come.
struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    stop: &'a [String],
    /// The last tokens of what is settled (of the prompt, then of the answer), and those after it.
    ids: Vec<u32>,
    /// The text that the former make.
    before: String,
    /// How many of `ids` `text` comes from; those behind them are a part of a character.
    whole: usize,
    text: String,
    /// Bytes of `text` that are settled: whole characters.
    settled: usize,
    /// Bytes of `text` that were handed out.
    shown: usize,
    stopped: bool,
}

impl<'a> Stream<'a> {
    fn new(prompt: &[u32], stop: &'a [String], tokenizer: &'a Tokenizer) -> Self {
        let (ids, before, text) = (prompt.to_vec(), String::new(), String::new());
        let mut stream = Self { tokenizer, stop, ids, before, whole: 0, text, settled: 0, shown: 0, stopped: false };
        stream.settle();
        stream
    }

    fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids).unwrap_or_default()
    }

    /// From here on only the last tokens are decoded again: from where they say the same without those before them, which
    /// bytes of a character do not.
    fn settle(&mut self) {
        let (all, most) = (self.decode(&self.ids), self.ids.len().saturating_sub(OVERLAP));
        let says = |cut: &usize| {
            let tail = self.decode(&self.ids[*cut..]);
            all.ends_with(&tail) && !tail.starts_with(BROKEN)
        };
        let cut = (most.saturating_sub(LONGEST)..=most).rev().find(says).unwrap_or(most);
        self.ids.drain(..cut);
        self.before = self.decode(&self.ids);
        (self.whole, self.settled) = (self.ids.len(), self.text.len());
    }

    /// Takes a token; false if it completes a text that ends the answer.
    fn push(&mut self, id: u32, on_text: impl FnMut(&str)) -> bool {
        self.ids.push(id);
        let all = self.decode(&self.ids);
        if all.ends_with(BROKEN) && self.ids.len() < self.whole + LONGEST {
            return true; // a character of which tokens are missing
        }
        let said = self.text.get(self.settled..self.shown).unwrap_or_default();
        if let Some(new) = all.strip_prefix(&self.before).filter(|new| new.starts_with(said)) {
            self.text.truncate(self.settled);
            self.text.push_str(new);
            self.whole = self.ids.len();
            if self.whole >= 2 * OVERLAP {
                self.settle();
            }
        } else {
            // What came before reads otherwise now: bytes were no character. What was said stays.
            self.take_rest();
        }
        // What may have become a stop was not shown.
        let new = self.text.get(self.shown..).unwrap_or_default();
        if let Some(end) = self.stop.iter().filter_map(|stop| new.find(stop)).min() {
            self.text.truncate(self.shown + end);
            self.stopped = true;
        }
        // What may become the end waits.
        let held = if self.stopped { 0 } else { beginning(&self.text, self.stop) };
        self.show(self.text.len() - held, on_text);
        !self.stopped
    }

    /// Takes the tokens that are in no text yet for themselves.
    fn take_rest(&mut self) {
        let rest = self.decode(&self.ids[self.whole..]);
        self.text.push_str(&rest);
        self.settle();
    }

    fn finish(&mut self, on_text: impl FnMut(&str)) {
        if self.whole < self.ids.len() && !self.stopped {
            self.take_rest();
        }
        self.show(self.text.len(), on_text);
    }

    fn show(&mut self, end: usize, mut on_text: impl FnMut(&str)) {
        if let Some(new) = self.text.get(self.shown..end).filter(|new| !new.is_empty()) {
            on_text(new);
            self.shown = end;
        }
    }
}

/// Bytes at the end of `text` that begin one of `stops`.
fn beginning(text: &str, stops: &[String]) -> usize {
    let begins = |stop: &String| {
        let ends = stop.char_indices().map(|(at, _)| at).rev();
        ends.filter(|&at| at > 0).find(|&at| text.ends_with(&stop[..at])).unwrap_or(0)
    };
    stops.iter().map(begins).max().unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_decoded_by_its_end_and_says_the_same() {
        let decoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/decoder");
        let tokenizer = Tokenizer::from_dir(&decoder).unwrap();
        let text = "Grüße an die 猫 🐈: 1,000.5 don't ##! ".repeat(40);
        let ids = tokenizer.encode_prompt(&text).unwrap();
        let whole = tokenizer.decode(&ids).unwrap();
        let before = |end: usize| tokenizer.decode(&ids[..end]).unwrap();
        // Prompts end between two characters.
        for (prompt, answer) in (0..50).filter(|&end| whole.starts_with(&before(end))).map(|end| ids.split_at(end)) {
            let mut said = String::new();
            let mut stream = Stream::new(prompt, &[], &tokenizer);
            for &id in answer {
                assert!(stream.push(id, |new| said.push_str(new)));
                assert!(stream.ids.len() < 2 * OVERLAP + 8, "{} tokens are decoded again", stream.ids.len());
            }
            stream.finish(|new| said.push_str(new));
            let expected = &whole[before(prompt.len()).len()..];
            assert_eq!((said.as_str(), stream.text.as_str()), (expected, expected));
        }
        let stop = ["猫 🐈: 1".to_owned()];
        let (mut stream, mut said) = (Stream::new(&ids[..2], &stop, &tokenizer), String::new());
        assert!(!ids[2..].iter().all(|&id| stream.push(id, |new| said.push_str(new))));
        assert!(said.ends_with("an die ") && stream.text == said, "{said}");
    }

    /// A tokenizer that spells what it does not know in bytes, as Llama's: `<0x00>` is token 3.
    fn of_bytes() -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        let names = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
        let names =
            names.chain((0..256).map(|byte| format!("<0x{byte:02X}>"))).chain(["▁", "a", "▁a"].map(str::to_owned));
        let vocab: serde_json::Map<String, serde_json::Value> = names.zip((0..).map(Into::into)).collect();
        let model = serde_json::json!({
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": [["▁", "a"]],
        });
        let replace = |pattern: &str, content: &str| serde_json::json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content });
        let decoders = serde_json::json!([
            replace("▁", " "), { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ]);
        let normalizers = serde_json::json!([{ "type": "Prepend", "prepend": "▁" }, replace(" ", "▁")]);
        let whole = serde_json::json!({
            "version": "1.0", "added_tokens": [], "model": model,
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "decoder": { "type": "Sequence", "decoders": decoders },
        });
        std::fs::write(dir.path().join("tokenizer.json"), whole.to_string()).unwrap();
        Tokenizer::from_dir(dir.path()).unwrap()
    }

    #[test]
    fn characters_that_are_spelled_in_bytes_come_whole() {
        let tokenizer = of_bytes();
        let bytes = |text: &[u8]| text.iter().map(|&byte| u32::from(byte) + 3).collect::<Vec<_>>();
        let (prompt, answer) = ("🐈鬱🐈鬱🐈鬱a".repeat(3), "🐈鬱é猫".repeat(20) + " a 🐈");
        let ids = tokenizer.encode_prompt(&answer).unwrap();
        for prompt in ["a", "", "猫猫猫猫🐈", &prompt] {
            let mut prompt = tokenizer.encode_prompt(prompt).unwrap();
            prompt.extend(bytes("鬱".as_bytes()));
            let (mut stream, mut said) = (Stream::new(&prompt, &[], &tokenizer), String::new());
            for &id in &ids {
                assert!(stream.push(id, |new| {
                    assert!(!new.contains(BROKEN), "{new}");
                    said.push_str(new);
                }));
                assert!(stream.ids.len() < 2 * OVERLAP + 2 * LONGEST, "{} tokens are decoded again", stream.ids.len());
            }
            stream.finish(|new| said.push_str(new));
            assert_eq!((said.trim_start(), stream.text.trim_start()), (answer.as_str(), answer.as_str()));
        }
        // Bytes that are no character are said to be none, once, and what was said before stays.
        for (broken, after) in
            [(&b"\xf0\x9f"[..], "a"), (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "a"), (b"\xe7", "")]
        {
            let after_ids = after.bytes().map(|_| 260).collect();
            let ids = [bytes("🐈".as_bytes()), bytes(broken), after_ids].concat();
            let (mut stream, mut said) = (Stream::new(&[1], &[], &tokenizer), String::new());
            ids.iter().for_each(|&id| assert!(stream.push(id, |new| said.push_str(new))));
            stream.finish(|new| said.push_str(new));
            assert_eq!(said, stream.text);
            let wrong = said.strip_prefix('🐈').unwrap().strip_suffix(after).unwrap();
            assert!(!wrong.is_empty() && wrong.chars().all(|c| c == BROKEN), "{said}");
        }
    }

    #[test]
    fn what_may_become_a_stop_waits() {
        let stops = ["\nUser:".to_owned(), "##".to_owned()];
        assert_eq!(beginning("hello", &stops), 0);
        assert_eq!(beginning("hello\nUs", &stops), 3);
        assert_eq!(beginning("hello #", &stops), 1);
        assert_eq!(beginning("", &stops), 0);
    }
}
