//! Which bytes of a rendered conversation the assistant wrote, found by rendering it up to each of its turns.
//!
//! A turn begins where the conversation before it ends with the generation prompt, and ends behind the last special token
//! that the template puts after what the assistant says (`<|im_end|>`, `</s>`, …): what a model must learn to write. A
//! template may render a turn differently once others follow (Qwen3 drops its thinking). What the whole conversation shows
//! there is not what the model would have written, so it is context and not learned; [`Turns::rewritten`] counts such turns.

use std::ops::Range;

use serde_json::Value;

use crate::{
    config::TrainOn,
    jinja::{GENERATION, MARK},
    message::Message,
    template::ChatTemplate,
    tokenizer::Tokenizer,
};

/// Bytes of a text that is in another by no chance.
const SURE: usize = 16;

/// A conversation as text, and what of it is learned.
pub(crate) struct Turns {
    pub text: String,
    /// Bytes of `text`, ascending and apart.
    pub spans: Vec<Range<usize>>,
    /// Turns that the template shows otherwise than the model would write them.
    pub rewritten: u32,
    /// Turns before which the generation prompt says what the conversation does not.
    pub misprompted: u32,
}

/// A conversation that is being looked at.
pub(crate) struct Conversation<'a> {
    pub template: &'a ChatTemplate,
    pub tokenizer: &'a Tokenizer,
    pub messages: &'a [Message],
    pub tools: Option<&'a Value>,
    /// Messages before this one are not learned.
    pub first: usize,
}

impl Conversation<'_> {
    /// Renders, and finds what `train_on` says.
    ///
    /// # Errors
    /// When the template refuses the conversation, or a beginning of it that ends before or behind one of the
    /// assistant's turns.
    pub(crate) fn turns(&self, train_on: TrainOn) -> Result<Turns, String> {
        let reserved = |text: &str| text.contains([MARK, GENERATION[0], GENERATION[1]]);
        if self.texts().any(reserved) {
            return Err("it holds one of U+FDD0, U+FDD1, U+FDD2, which Unicode reserves for programs".into());
        }
        let (text, said) = unmarked(&self.template.render_marked(self.messages, self.tools, false)?);
        let mut turns = Turns { text, spans: Vec::new(), rewritten: 0, misprompted: 0 };
        let assistant = |i: &usize| self.messages[*i].is_assistant();
        if train_on == TrainOn::All {
            let muted = (0..self.messages.len()).filter(|i| assistant(i) && self.messages[*i].is_muted());
            turns.spans = self.all_but(&muted.collect::<Vec<_>>(), &turns.text, said)?;
            return Ok(turns);
        }
        let mut wanted: Vec<usize> = (self.first..self.messages.len()).filter(assistant).collect();
        if train_on == TrainOn::Last {
            wanted.drain(..wanted.len().saturating_sub(1));
        }
        wanted.retain(|&i| !self.messages[i].is_muted());
        if self.template.has_generation(self.tools) {
            turns.spans = self.generated(&wanted, said)?;
            return Ok(turns);
        }
        for i in wanted {
            let found = self.turn(i, &turns.text)?;
            turns.misprompted += u32::from(found.misprompted);
            match found.span {
                Some(span) => turns.spans.push(span),
                None => turns.rewritten += 1,
            }
        }
        Ok(turns)
    }

    /// The whole text without the turns `muted`.
    fn all_but(&self, muted: &[usize], text: &str, said: Vec<Range<usize>>) -> Result<Vec<Range<usize>>, String> {
        let hidden = match muted {
            [] => Vec::new(),
            _ if self.template.has_generation(self.tools) => self.generated(muted, said)?,
            _ => {
                let untold = |i| format!("message {i} has weight 0, but where the template shows it cannot be told");
                let shown = |&i: &usize| self.turn(i, text)?.span.ok_or_else(|| untold(i + 1));
                muted.iter().map(shown).collect::<Result<_, String>>()?
            }
        };
        let starts = std::iter::once(0).chain(hidden.iter().map(|span| span.end));
        let ends = hidden.iter().map(|span| span.start).chain([text.len()]);
        Ok(starts.zip(ends).map(|(start, end)| start..end).filter(|span| !span.is_empty()).collect())
    }

    /// The generation blocks of the wanted turns.
    fn generated(&self, wanted: &[usize], said: Vec<Range<usize>>) -> Result<Vec<Range<usize>>, String> {
        let all: Vec<usize> = (0..self.messages.len()).filter(|&i| self.messages[i].is_assistant()).collect();
        if wanted.len() == all.len() {
            return Ok(said);
        }
        if said.len() != all.len() {
            let (blocks, turns) = (said.len(), all.len());
            return Err(format!(
                "the template has {blocks} generation blocks for {turns} turns; learn all of them or none"
            ));
        }
        Ok(all.iter().zip(said).filter(|(i, _)| wanted.contains(i)).map(|(_, span)| span).collect())
    }

    /// Message `i` within the `whole` conversation.
    fn turn(&self, i: usize, whole: &str) -> Result<Found, String> {
        let last = i + 1 == self.messages.len();
        let part = |end: usize, prompt| {
            let place = |e| format!("the template does not render its first {end} messages alone: {e}");
            self.template.render_marked(&self.messages[..end], self.tools, prompt).map_err(place)
        };
        let prompt = part(i, true)?;
        // A template may ask after a message alone.
        let unasked = i == 0 && part(i, false).is_ok_and(|unasked| unasked == prompt);
        let through = if last { whole.to_owned() } else { part(i + 1, false)? };
        let misprompted = !through.starts_with(&prompt);
        let found = |span| Found { span, misprompted };
        let start = match misprompted || unasked {
            // Nothing was said before, but the template may say something of its own, which nobody is to learn.
            true if i == 0 => match self.said(&through) {
                Some(said) => said,
                None => return Ok(found(None)),
            },
            true => self.after_prompt(i, &prompt, &through)?,
            false => prompt.len(),
        };
        if whole.starts_with(&through) {
            return Ok(found(Some(start..self.end(&through, start))));
        }
        let Some(mark) = self.mark(&self.messages[..=i], i, &through) else { return Ok(found(None)) };
        let common = common_prefix(whole, &through);
        if common >= mark {
            return Ok(found(Some(start..self.cut_end(&through[..common], mark))));
        }
        // What stands before the turn is another, as where tools go beside the last question: the turn may be the same.
        let Some(there) = self.mark(self.messages, i, whole) else { return Ok(found(None)) };
        let (before, behind) = (&through[start..mark], &through[mark..]);
        if !whole[..there].ends_with(before) {
            return Ok(found(None));
        }
        let common = common_prefix(&whole[there..], behind);
        let end = if common == behind.len() {
            there + self.end(&through, start).max(mark) - mark
        } else {
            self.cut_end(&whole[..there + common], there)
        };
        Ok(found(Some(there - before.len()..end)))
    }

    /// Where what the first message says begins in the rendering of it alone; none where it is not there word for word.
    fn said(&self, through: &str) -> Option<usize> {
        let (mark, content) = (self.mark(&self.messages[..1], 0, through)?, self.messages[0].content()?);
        let before = through[..mark].strip_suffix(content.trim_end()).map(str::len);
        before.or_else(|| through[..mark].strip_suffix(content.trim()).map(str::len))
    }

    /// Where a turn begins when the generation prompt is not what the conversation shows there: behind their common tokens.
    fn after_prompt(&self, i: usize, prompt: &str, through: &str) -> Result<usize, String> {
        let header = self.template.render_marked(&self.messages[..i], self.tools, false)?;
        let common = common_prefix(prompt, through);
        if common < common_prefix(&header, prompt) {
            return Err(format!("the template changes what comes before message {} when that is added", i + 1));
        }
        let (_, tokens) = self.tokenizer.encode_spans(through).map_err(|e| e.to_string())?;
        let torn = tokens.iter().find(|(from, to)| *from < common && common < *to);
        Ok(torn.map_or(common, |(from, _)| *from))
    }

    /// Where what message `i` says ends in `rendered`, the rendering of `messages`; none where the template drops it or
    /// takes a look at it.
    fn mark(&self, messages: &[Message], i: usize, rendered: &str) -> Option<usize> {
        let mut messages = messages.to_vec();
        messages[i] = messages[i].marked(MARK).or_else(|| messages[i].marked_call(MARK))?;
        let marked = self.template.render_marked(&messages, self.tools, false).ok()?;
        let at = marked.find(MARK)?;
        (marked.replace(MARK, "") == rendered).then_some(at)
    }

    /// Where a turn ends that ends a rendering: behind its last special token, if only white space follows that.
    fn end(&self, rendered: &str, start: usize) -> usize {
        let trimmed = rendered.trim_end();
        let special = trimmed.len() > start && self.tokenizer.ends_with_special(trimmed);
        if special { trimmed.len() } else { rendered.len() }
    }

    /// Where a turn ends that says its last at `said`, if what follows `rendered` is another thing each time.
    fn cut_end(&self, rendered: &str, said: usize) -> usize {
        self.tokenizer.last_special_end(&rendered[said..]).map_or(said, |end| said + end)
    }

    /// What does not show in `rendered`, the rendering of all messages.
    pub(crate) fn lost(&self, rendered: &str) -> Lost {
        let all = 0..self.messages.len();
        let hidden =
            |i: usize, marked: Option<Message>, end: usize| marked.is_some_and(|marked| !self.shows(i, marked, end));
        let unseen = |text: Option<&str>| !text.is_some_and(|text| self.is_seen(text, rendered));
        let message = |&i: &usize| {
            let message = &self.messages[i];
            unseen(message.content()) && hidden(i, message.marked(MARK), all.end)
                || hidden(i, message.marked_call(MARK), all.end)
        };
        // Templates may show it until another question follows: that is asked of the model so as well.
        let never = |i: usize, marked: &dyn Fn() -> Option<Message>| {
            [all.end, i + 1].iter().all(|&end| hidden(i, marked(), end))
        };
        let reasoning = |i: usize| {
            let message = &self.messages[i];
            unseen(message.reasoning()) && never(i, &|| message.marked_reasoning(MARK))
        };
        let beginning = |i: usize| {
            let message = &self.messages[i];
            let long = message.content().is_some_and(|said| said.trim().len() >= SURE);
            let asked = message.is_assistant() && long && unseen(message.content());
            asked && never(i, &|| message.marked_start(MARK)) && !never(i, &|| message.marked(MARK))
        };
        let without_tools = || self.template.render_marked(self.messages, None, false);
        Lost {
            messages: all.clone().filter(message).collect(),
            reasoning: all.clone().any(|i| reasoning(i) || beginning(i)),
            tools: self.tools.is_some() && without_tools().is_ok_and(|text| unmarked(&text).0 == rendered),
        }
    }

    /// Whether a text of a message certainly shows: long enough to be no chance, and as often as messages say it, for one
    /// may quote another.
    fn is_seen(&self, text: &str, rendered: &str) -> bool {
        let text = text.trim();
        let saying = || self.texts().filter(|other| other.contains(text)).count();
        text.len() >= SURE && rendered.matches(text).count() >= saying()
    }

    /// What is said and thought.
    fn texts(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().flat_map(|message| message.content().into_iter().chain(message.reasoning()))
    }

    /// Whether the mark in message `i` shows in the first `end` messages.
    fn shows(&self, i: usize, marked: Message, end: usize) -> bool {
        let mut messages = self.messages[..end].to_vec();
        messages[i] = marked;
        self.template.render_marked(&messages, self.tools, false).is_ok_and(|text| text.contains(MARK))
    }
}

/// What a template leaves out.
pub(crate) struct Lost {
    /// Messages of which what is said or called does not show.
    pub messages: Vec<usize>,
    /// The reasoning of a message, or the beginning of what the assistant says, shows neither where it stands nor where it would
    /// be the last.
    pub reasoning: bool,
    /// The tools do not show.
    pub tools: bool,
}

struct Found {
    span: Option<Range<usize>>,
    misprompted: bool,
}

/// A rendering without the marks of generation blocks, and what they enclose.
fn unmarked(marked: &str) -> (String, Vec<Range<usize>>) {
    let (mut text, mut spans, mut start) = (String::with_capacity(marked.len()), Vec::new(), 0);
    for part in marked.split_inclusive(GENERATION) {
        let plain = part.trim_end_matches(GENERATION);
        text.push_str(plain);
        match part[plain.len()..].chars().next() {
            Some(mark) if mark == GENERATION[0] => start = text.len(),
            Some(_) => spans.push(start..text.len()),
            None => {}
        }
    }
    (text, spans)
}

/// Bytes of the longest common beginning that ends between two characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    (0..=same).rev().find(|&i| a.is_char_boundary(i)).unwrap_or(0)
}
