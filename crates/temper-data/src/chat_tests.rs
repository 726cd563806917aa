//! Chat templates and what is learned, against Transformers (`fixtures/chat.py`) and against marks made by hand
//! (`fixtures/marked.txt`).

use std::{ops::Range, sync::LazyLock};

use serde_json::Value;

use crate::{
    ChatColumns, ChatTemplate, Message, Tokenizer, TrainOn, message,
    turns::{Conversation, Turns},
};

static FIXTURE: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../fixtures/chat.json")).unwrap());
const MARKED: &str = include_str!("../fixtures/marked.txt");

/// The fixture's tokenizer, and one of the templates.
pub(crate) struct Chat {
    directory: tempfile::TempDir,
    pub tokenizer: Tokenizer,
}

impl Chat {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in FIXTURE["files"].as_object().unwrap() {
            std::fs::write(directory.path().join(name), content.as_str().unwrap()).unwrap();
        }
        let tokenizer = Tokenizer::from_dir(directory.path()).unwrap();
        Self { directory, tokenizer }
    }

    fn template(&self, name: &str) -> ChatTemplate {
        let path = format!("{}/fixtures/templates/{name}.jinja", env!("CARGO_MANIFEST_DIR"));
        ChatTemplate::open(self.directory.path(), Some(&path)).unwrap().on("2026-07-06").unwrap()
    }

    pub(crate) fn turns(
        &self,
        template: &ChatTemplate,
        (messages, tools): &(Vec<Message>, Option<Value>),
        train_on: TrainOn,
    ) -> Result<Turns, String> {
        let conversation =
            Conversation { template, tokenizer: &self.tokenizer, messages, tools: tools.as_ref(), first: 0 };
        conversation.turns(train_on)
    }
}

fn conversation(name: &str) -> (Vec<Message>, Option<Value>) {
    let found = &FIXTURE["conversations"][name];
    let tools = found["tools"].is_array().then(|| found["tools"].clone());
    (message::messages(found["messages"].clone(), &ChatColumns::default()).unwrap(), tools)
}

#[test]
fn renderings_and_ids_equal_transformers() {
    let chat = Chat::new();
    let (mut equal, mut refused) = (0, 0);
    for case in FIXTURE["cases"].as_array().unwrap() {
        let template = chat.template(case["template"].as_str().unwrap());
        let template = template.with_variables(case["variables"].as_object().unwrap());
        let (messages, tools) = conversation(case["conversation"].as_str().unwrap());
        let rendered = template.render(&messages, tools.as_ref(), case["prompt"].as_bool().unwrap());
        let what = format!("{} {} {}", case["template"], case["conversation"], case["prompt"]);
        match case["text"].as_str() {
            Some(text) => {
                let rendered = rendered.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(rendered, text, "{what}");
                assert_eq!(serde_json::json!(chat.tokenizer.encode_spans(text).unwrap().0), case["ids"], "{what}");
                equal += 1;
            }
            None => {
                let error = rendered.err().map(|e| e.to_string());
                let error = error.unwrap_or_else(|| panic!("{what}: Transformers says {}", case["error"]));
                // Python's own errors have other words.
                let said = case["error"].as_str().unwrap();
                assert!(said.contains("attribute") || error.contains(said), "{what}: {error}");
                refused += 1;
            }
        }
    }
    assert!(equal > 300 && refused > 20, "{equal} {refused}");
}

/// Text without marks, and the marked bytes.
fn marks(marked: &str) -> (String, Vec<Range<usize>>) {
    let (mut text, mut spans) = (String::new(), Vec::new());
    for part in marked.split('⟧') {
        let (before, learned) = part.split_once('⟦').unwrap_or((part, ""));
        text.push_str(before);
        if part.contains('⟦') {
            spans.push(text.len()..text.len() + learned.len());
        }
        text.push_str(learned);
    }
    (text, spans)
}

#[test]
fn what_is_learned_equals_the_marks_made_by_hand() {
    let chat = Chat::new();
    let mut styles = std::collections::HashSet::new();
    for section in MARKED.split("=== ").skip(1) {
        let (title, marked) = section.split_once('\n').unwrap();
        let (style, name) = title.split_once(' ').unwrap();
        let (text, spans) = marks(marked.strip_suffix('\n').unwrap());
        let template = chat.template(style);
        let given = conversation(name);
        let turns = chat.turns(&template, &given, TrainOn::Assistant).unwrap_or_else(|e| panic!("{title}: {e}"));
        assert_eq!(turns.text, text, "{title}");
        let said = |spans: &[Range<usize>]| spans.iter().map(|span| text[span.clone()].to_owned()).collect::<Vec<_>>();
        assert_eq!(said(&turns.spans), said(&spans), "{title}");
        assert_eq!(turns.spans, spans, "{title}");
        let answers = given.0.iter().filter(|message| message.is_assistant()).count();
        assert_eq!(turns.rewritten as usize, answers - spans.len(), "{title}");
        assert_eq!(turns.misprompted, if style == "deepseek" { 2 } else { 0 }, "{title}");
        let last = chat.turns(&template, &given, TrainOn::Last).unwrap();
        assert_eq!(last.spans, spans[spans.len() - 1..], "{title}");
        assert_eq!(chat.turns(&template, &given, TrainOn::All).unwrap().spans, [0..text.len()], "{title}");
        styles.insert(style);
    }
    assert_eq!(styles.len(), 10);
}

/// A template may say something of its own before the first message, which no answer is.
#[test]
fn what_a_template_says_by_itself_is_not_learned() {
    let chat = Chat::new();
    let path = chat.directory.path().join("own.jinja");
    let turn = "{{ '<|' + message.role + '|>' + message.content + '</s>' }}";
    let own = "{% if messages and messages[0].role != 'system' %}<|system|>You are kind.</s>{% endif %}";
    let prompt = "{% if add_generation_prompt %}<|assistant|>{% endif %}";
    let last = "{% if loop.last and add_generation_prompt %}<|assistant|>{% endif %}";
    for source in [
        format!("{own}{{% for message in messages %}}{turn}{{% endfor %}}{prompt}"),
        format!("<s>{{% for message in messages %}}{turn}{last}{{% endfor %}}"),
    ] {
        std::fs::write(&path, source).unwrap();
        let template = ChatTemplate::open(chat.directory.path(), path.to_str()).unwrap();
        let messages = [("assistant", "I begin."), ("user", "Well."), ("assistant", "Yes.")];
        let messages = messages.map(|(role, content)| Message::new(role, content)).to_vec();
        let turns = chat.turns(&template, &(messages, None), TrainOn::Assistant).unwrap();
        let said: Vec<&str> = turns.spans.iter().map(|span| &turns.text[span.clone()]).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("I begin.") && said[1].starts_with("Yes."), "{said:?}");
    }
}

/// As Jinja, whatever ends the lines of its file.
#[test]
fn a_template_has_the_line_ends_of_unix() {
    let chat = Chat::new();
    let path = chat.directory.path().join("crlf.jinja");
    let source = "{% for message in messages %}\n<{{ message.role }}>\n{{ message.content }}</s>\n{% endfor %}";
    let rendered = [source.to_owned(), source.replace('\n', "\r\n"), source.replace('\n', "\r")].map(|source| {
        std::fs::write(&path, source).unwrap();
        let template = ChatTemplate::open(chat.directory.path(), path.to_str()).unwrap();
        template.render(&[Message::new("user", "a\r\nb")], None, false).unwrap()
    });
    assert!(rendered.iter().all(|text| *text == rendered[0]), "{rendered:?}");
    assert_eq!(rendered[0].matches('\r').count(), 1);
}

#[test]
fn a_template_that_changes_what_came_before_is_refused() {
    let chat = Chat::new();
    // The system message stands beside the last question, so an answer takes it away.
    let error = chat.turns(&chat.template("mistral"), &conversation("talk"), TrainOn::Assistant).err().unwrap();
    assert!(error.contains("changes what comes before message 3"), "{error}");
    let error = chat.turns(&chat.template("gemma3"), &conversation("chain"), TrainOn::Assistant).err().unwrap();
    assert!(error.contains("must take turns"), "{error}");
}
