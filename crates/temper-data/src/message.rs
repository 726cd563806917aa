//! Messages of a conversation, as chat templates see them.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    config::ChatColumns,
    error::{listed, nearest},
};

/// Who speaks, as templates call them.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
/// What others call them.
const ALIASES: [(&str, &str); 12] = [
    ("human", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bot", "assistant"),
    ("model", "assistant"),
    ("ai", "assistant"),
    ("function_call", "assistant"),
    ("function", "tool"),
    ("function_response", "tool"),
    ("tool_response", "tool"),
    ("observation", "tool"),
    ("ipython", "tool"),
];

/// Names of reasoning; all of those that a message has say the same.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message: `role`, `content` and what else the row says of it (`tool_calls`, `reasoning_content`, `name`, …). As in
/// Transformers, keys that are null are not there.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A message of `role`, which is one of `system`, `developer`, `user`, `assistant`, `tool`.
    #[must_use]
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self(Map::from_iter([("role".into(), role.into()), ("content".into(), Value::String(content.into()))]))
    }

    /// All that it says of itself.
    pub(crate) fn parts(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Who speaks.
    #[must_use]
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// What is said; none beside tool calls.
    #[must_use]
    pub fn content(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    pub(crate) fn is_assistant(&self) -> bool {
        self.role() == "assistant"
    }

    pub(crate) fn has_calls(&self) -> bool {
        self.0.contains_key("tool_calls")
    }

    /// Whether OpenAI's `weight` takes it out of training.
    pub(crate) fn is_muted(&self) -> bool {
        self.0.get("weight").and_then(Value::as_f64) == Some(0.0)
    }

    /// The message with `mark` behind what it says, white space aside; none if it says nothing.
    pub(crate) fn marked(&self, mark: char) -> Option<Self> {
        let mut map = self.0.clone();
        map["content"] = marked(self.content()?, mark)?;
        Some(Self(map))
    }

    /// The message with `mark` behind the first word of what it says; none if it says nothing.
    pub(crate) fn marked_start(&self, mark: char) -> Option<Self> {
        let (mut map, said) = (self.0.clone(), self.content()?);
        let word = said.split_whitespace().next()?;
        let (before, behind) = said.split_at(said.find(word)? + word.len());
        map["content"] = Value::String(format!("{before}{mark}{behind}"));
        Some(Self(map))
    }

    /// The message with `mark` behind the name of the first tool that it calls.
    pub(crate) fn marked_call(&self, mark: char) -> Option<Self> {
        let mut map = self.0.clone();
        let name = map.get_mut("tool_calls")?.get_mut(0)?.get_mut("function")?.get_mut("name")?;
        *name = marked(name.as_str()?, mark)?;
        Some(Self(map))
    }

    /// The message with `mark` behind its reasoning, under each of its names.
    pub(crate) fn marked_reasoning(&self, mark: char) -> Option<Self> {
        let mut map = self.0.clone();
        let marked = marked(self.reasoning()?, mark)?;
        for key in REASONING.iter().filter(|key| self.0.contains_key(**key)) {
            map[*key] = marked.clone();
        }
        Some(Self(map))
    }

    /// What was thought before it was said.
    pub(crate) fn reasoning(&self) -> Option<&str> {
        self.0.get(REASONING[0]).and_then(Value::as_str)
    }

    /// A message of a row, with other programs' names for its parts put right.
    pub(crate) fn parse(value: Value, columns: &ChatColumns) -> Result<Self, String> {
        let Value::Object(mut map) = value else {
            return Err("it is no object such as {\"role\": \"user\", \"content\": \"…\"}".into());
        };
        map.retain(|_, value| !value.is_null());
        let mut take = |own: &Option<String>, usual: [&str; 2]| match own {
            Some(key) => map.shift_remove(key),
            None => usual.into_iter().find_map(|key| map.shift_remove(key)),
        };
        let (said_by, content) = (take(&columns.role, ["role", "from"]), take(&columns.content, ["content", "value"]));
        let keys = || map.keys().map(String::as_str);
        let Some(Value::String(said_by)) = said_by else {
            let key = columns.role.as_deref().unwrap_or("role");
            return Err(format!("it has no text \"{key}\"{}", nearest(key, keys())));
        };
        let role = ROLES.into_iter().find(|role| *role == said_by);
        let role = role.or_else(|| ALIASES.iter().find(|(alias, _)| *alias == said_by).map(|(_, role)| *role));
        let Some(role) = role else {
            let known = ROLES.into_iter().chain(ALIASES.map(|(alias, _)| alias));
            return Err(format!("its role \"{said_by}\" is not one of {}{}", listed(ROLES), nearest(&said_by, known)));
        };
        let mut message = Map::from_iter([("role".into(), Value::from(role))]);
        match content.map(plain).transpose()? {
            Some(call) if said_by == "function_call" => {
                message.insert("content".into(), "".into());
                message.insert("tool_calls".into(), called(&call)?);
            }
            Some(content) => {
                message.insert("content".into(), content.into());
            }
            None if map.contains_key("tool_calls") => {}
            None => {
                let key = columns.content.as_deref().unwrap_or("content");
                return Err(format!("it has no \"{key}\"{}", nearest(key, keys())));
            }
        }
        match map.get("weight").map(Value::as_f64) {
            None => {}
            Some(Some(weight)) if (weight == 0.0 || weight == 1.0) && role == "assistant" => {}
            Some(_) => return Err("its weight must be 0 or 1, and the assistant's".into()),
        }
        if role == "assistant"
            && let Some((key, value)) = map.iter().find(|(key, value)| mutes(key, value))
        {
            return Err(format!(
                "its \"{key}\" is {value}, which is not read: write \"weight\": 0 where nothing is to be learned"
            ));
        }
        // What the row itself calls so, beside what the recipe says is it, is not it.
        for (key, value) in map {
            message.entry(key).or_insert(value);
        }
        if let Some(calls) = message.get_mut("tool_calls") {
            arguments(calls)?;
        }
        reasoning(&mut message);
        Ok(Self(message))
    }
}

/// Whether this is how another program would be told not to learn a message.
fn mutes(key: &str, value: &Value) -> bool {
    let on = value.as_bool().or_else(|| value.as_f64().map(|number| number == 1.0));
    match key {
        "train" | "training" | "trainable" | "loss" | "loss_weight" | "weights" => on == Some(false),
        "mask" | "masked" => on == Some(true),
        "train_detail" | "training_detail" => true,
        _ => false,
    }
}

fn marked(text: &str, mark: char) -> Option<Value> {
    let (said, rest) = text.split_at(text.trim_end().len());
    (!said.is_empty()).then(|| Value::String(format!("{said}{mark}{rest}")))
}

/// A conversation: a list of messages, or its JSON text.
pub(crate) fn messages(value: Value, columns: &ChatColumns) -> Result<Vec<Message>, String> {
    let Value::Array(items) = parsed(value)? else { return Err("it is no list of messages".into()) };
    if items.is_empty() {
        return Err("it has no message".into());
    }
    let message = |(i, item)| Message::parse(item, columns).map_err(|e| format!("message {}: {e}", i + 1));
    items.into_iter().enumerate().map(message).collect()
}

/// Tools: a list, or its JSON text; none where that is blank or empty.
pub(crate) fn tools(value: Value) -> Result<Option<Value>, String> {
    if value.as_str().is_some_and(|text| text.trim().is_empty()) {
        return Ok(None);
    }
    match parsed(value)? {
        Value::Array(tools) if tools.iter().all(Value::is_object) => {
            Ok((!tools.is_empty()).then_some(Value::Array(tools)))
        }
        _ => Err("it is no list of JSON objects".into()),
    }
}

/// JSON within a text cell.
fn parsed(value: Value) -> Result<Value, String> {
    match value {
        Value::String(text) => serde_json::from_str(&text).map_err(|e| format!("its text is no JSON: {e}")),
        value => Ok(value),
    }
}

/// Content as one text; it may come in parts.
fn plain(content: Value) -> Result<String, String> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts
            .into_iter()
            .enumerate()
            .map(|(i, part)| match (part.get("type").and_then(Value::as_str), &part["text"]) {
                (None | Some("text"), Value::String(text)) => Ok(text.clone()),
                _ => Err(format!("part {} of its content is no {{\"type\": \"text\", \"text\": \"…\"}}", i + 1)),
            })
            .collect(),
        _ => Err("its content is neither a text nor a list of texts".into()),
    }
}

/// The calls of a `function_call` message: one object with `name` and `arguments`, or several.
fn called(text: &str) -> Result<Value, String> {
    let calls = match serde_json::from_str(text) {
        Ok(Value::Array(calls)) => calls,
        Ok(call @ Value::Object(_)) => vec![call],
        _ => return Err("its function call is no JSON object".into()),
    };
    if calls.iter().any(|call| !call["name"].is_string()) {
        return Err("its function call has no \"name\"".into());
    }
    Ok(calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect())
}

/// OpenAI's arguments are JSON in a text; templates want the object.
fn arguments(calls: &mut Value) -> Result<(), String> {
    let calls = calls.as_array_mut().ok_or("its tool_calls are no list")?;
    for call in calls {
        let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments")) else {
            continue;
        };
        if let Some(object) =
            arguments.as_str().and_then(|text| serde_json::from_str(text).ok()).filter(Value::is_object)
        {
            *arguments = object;
        }
    }
    Ok(())
}

/// Reasoning under every name that templates read it by, as Transformers 5 does.
fn reasoning(message: &mut Map<String, Value>) {
    let found = REASONING.into_iter().find_map(|key| message.get(key)).cloned();
    if let Some(found) = found {
        message.entry("thinking").or_insert_with(|| found.clone());
        message.insert("reasoning_content".into(), found);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(value: Value) -> Result<Value, String> {
        messages(json!([value]), &ChatColumns::default()).map(|messages| json!(messages[0]))
    }

    #[test]
    fn names_of_others_are_put_right() {
        let call = json!({"type": "function", "function": {"name": "add", "arguments": {"a": 1}}});
        for (given, expected) in [
            (json!({"from": "human", "value": "hi"}), json!({"role": "user", "content": "hi"})),
            (json!({"from": "gpt", "value": ""}), json!({"role": "assistant", "content": ""})),
            (json!({"role": "tool", "content": "3", "name": null}), json!({"role": "tool", "content": "3"})),
            (
                json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}),
                json!({"role": "user", "content": "ab"}),
            ),
            (
                json!({"from": "function_call", "value": "{\"name\": \"add\", \"arguments\": {\"a\": 1}}"}),
                json!({"role": "assistant", "content": "", "tool_calls": [call]}),
            ),
            (
                json!({"role": "assistant", "content": null, "tool_calls": [
                    {"type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}}]}),
                json!({"role": "assistant", "tool_calls": [call]}),
            ),
            (
                json!({"role": "assistant", "content": "x", "reasoning": "r"}),
                json!({"role": "assistant", "content": "x", "reasoning": "r", "thinking": "r", "reasoning_content": "r"}),
            ),
        ] {
            assert_eq!(parse(given.clone()), Ok(expected), "{given}");
        }
    }

    #[test]
    fn a_part_that_the_recipe_names_hides_what_is_called_like_it() {
        let named = |key: &str| Some(key.to_owned());
        let columns = ChatColumns { role: named("speaker"), content: named("clean"), ..ChatColumns::default() };
        let given = json!([{"speaker": "human", "role": "admin", "content": "raw", "clean": "said"}]);
        let found = messages(given, &columns).unwrap();
        assert_eq!((found[0].role(), found[0].content()), ("user", Some("said")));
    }

    #[test]
    fn mistakes_say_which_message() {
        for (given, part) in [
            (json!("hi"), "message 1: it is no object"),
            (json!({"content": "a"}), "has no text \"role\""),
            (json!({"role": "usr", "content": "a"}), "did you mean \"user\"?"),
            (json!({"role": "user", "contnt": "a"}), "has no \"content\", did you mean \"contnt\"?"),
            (json!({"role": "user", "content": 3}), "neither a text"),
            (json!({"role": "user", "content": [{"type": "image"}]}), "part 1"),
            (json!({"role": "user", "content": "a", "weight": 1}), "weight"),
            (json!({"role": "assistant", "content": "a", "weight": 0.5}), "weight"),
            (json!({"from": "function_call", "value": "add"}), "no JSON object"),
            (json!({"role": "assistant", "tool_calls": 3}), "no list"),
        ] {
            let error = parse(given.clone()).unwrap_err();
            assert!(error.contains(part), "{given}: {error}");
        }
        assert!(messages(json!([]), &ChatColumns::default()).unwrap_err().contains("no message"));
        assert!(messages(json!("[1"), &ChatColumns::default()).unwrap_err().contains("no JSON"));
    }

    #[test]
    fn marks_go_behind_the_last_word() {
        assert_eq!(Message::new("user", " a b \n").marked('|').unwrap().content(), Some(" a b| \n"));
        assert_eq!(Message::new("assistant", " ").marked('|'), None);
    }
}
