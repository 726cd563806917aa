//! Data of causal language models, through [`load`].

mod packs;

use std::{collections::HashMap, fs, path::PathBuf};

use crate::{chat_tests::Chat, *};

/// A folder of files, and the tokenizer of the chat fixture.
struct Folder {
    chat: Chat,
    directory: tempfile::TempDir,
}

const HI: &str = r#"{"messages":[{"role":"user","content":"What is 2+2?"},{"role":"assistant","content":"Four."}]}"#;

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self { chat: Chat::new(), directory: tempfile::tempdir().unwrap() };
        files.iter().for_each(|(name, content)| fs::write(folder.path(name), content).unwrap());
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, name: &str) -> DataConfig {
        let template = Some("chatml".into());
        DataConfig { train: Files::one(name), eval_fraction: Some(0.0), template, packing: false, ..Default::default() }
    }

    fn load_with(&self, config: &DataConfig, max_length: usize) -> Result<Dataset> {
        let target = Target::Causal { vocab_size: None, positions: None };
        load(config, self.directory.path(), target, &self.chat.tokenizer, max_length, 1)
    }

    fn load(&self, name: &str) -> Dataset {
        self.load_with(&self.config(name), 256).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn failure(&self, name: &str) -> String {
        match self.load_with(&self.config(name), 256) {
            Ok(_) => panic!("{name} was read"),
            Err(error) => error.to_string(),
        }
    }

    /// The rows, what is learned of each between `⟦` and `⟧`.
    fn shown(&self, examples: &Examples) -> Vec<String> {
        let rows = preview(examples, &self.chat.tokenizer, usize::MAX).unwrap();
        rows.iter().map(|row| row.display(false).to_string()).collect()
    }
}

fn codes(data: &Dataset) -> Vec<(Severity, &str)> {
    data.report.findings.iter().map(|finding| (finding.severity, finding.code)).collect()
}

fn message(data: &Dataset, code: &str) -> String {
    data.report.findings.iter().find(|finding| finding.code == code).unwrap().message.clone()
}

#[test]
fn every_format_says_the_same() {
    let folder = Folder::with(&[
        ("chat.jsonl", HI),
        (
            "sharegpt.jsonl",
            r#"{"conversations":[{"from":"human","value":"What is 2+2?"},{"from":"gpt","value":"Four."}]}"#,
        ),
        (
            "mixed.jsonl",
            r#"{"id":7,"conversations":[{"role":"user","content":"What is 2+2?"},{"role":"assistant","content":"Four."}]}"#,
        ),
        ("alpaca.jsonl", r#"{"instruction":"What is 2+2?","input":"","output":"Four."}"#),
        (
            "pc.jsonl",
            r#"{"prompt":[{"role":"user","content":"What is 2+2?"}],"completion":[{"role":"assistant","content":"Four."}]}"#,
        ),
        (
            "text.csv",
            "messages\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"What is 2+2?\"\"}, {\"\"role\"\": \"\"assistant\"\", \"\"content\"\": \"\"Four.\"\"}]\"\n",
        ),
        ("alpaca.tsv", "instruction\tinput\toutput\nWhat is 2+2?\t\tFour.\n"),
        (
            "null.jsonl",
            r#"{"text":null,"messages":[{"role":"user","content":"What is 2+2?","tool_calls":null},{"role":"assistant","content":"Four."}]}"#,
        ),
    ]);
    let expected = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n⟦Four.<|im_end|>⟧\n\n";
    let names = [
        "chat.jsonl",
        "sharegpt.jsonl",
        "mixed.jsonl",
        "alpaca.jsonl",
        "pc.jsonl",
        "text.csv",
        "alpaca.tsv",
        "null.jsonl",
    ];
    for name in names {
        let data = folder.load(name);
        let line = if name.ends_with("sv") { 2 } else { 1 };
        assert_eq!(folder.shown(&data.train), [format!("── {name} line {line} ──\n{expected}")]);
        let parquet = folder.path(&format!("{name}.parquet"));
        let input = [folder.path(name)];
        to_parquet(&input, &columns_of(&input).unwrap(), &parquet, |_| None).unwrap();
        let name = parquet.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(folder.shown(&folder.load(&name).train), [format!("── {name} row 1 ──\n{expected}")]);
    }
}

#[test]
fn systems_tools_inputs_and_renamed_columns() {
    let folder = Folder::with(&[
        ("a.jsonl", r#"{"q":"Add.","input":"1 and 2","output":"3","sys":"Be brief."}"#),
        (
            "b.jsonl",
            r#"{"dialogue":[{"who":"human","says":"Add."},{"who":"function_call","says":"{\"name\":\"add\",\"arguments\":{\"a\":1}}"},{"who":"observation","says":"3"},{"who":"gpt","says":"Three."}],"tools":"[{\"name\":\"add\"}]"}"#,
        ),
    ]);
    let mut config = folder.config("a.jsonl");
    config.columns = ChatColumns { instruction: Some("q".into()), system: Some("sys".into()), ..Default::default() };
    let shown = folder.shown(&folder.load_with(&config, 256).unwrap().train);
    assert_eq!(
        shown[0].split_once('\n').unwrap().1,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAdd.\n\n1 and 2<|im_end|>\n<|im_start|>assistant\n⟦3<|im_end|>⟧\n\n"
    );
    let mut config = folder.config("b.jsonl");
    config.template = Some(format!("{}/fixtures/templates/qwen25.jinja", env!("CARGO_MANIFEST_DIR")));
    config.columns = ChatColumns {
        conversations: Some("dialogue".into()),
        role: Some("who".into()),
        content: Some("says".into()),
        ..Default::default()
    };
    let data = folder.load_with(&config, 1024).unwrap();
    let shown = folder.shown(&data.train);
    assert!(shown[0].contains(r#"{"type": "function", "function": {"name": "add"}}"#), "{}", shown[0]);
    assert!(
        shown[0].contains("⟦<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call><|im_end|>⟧\n")
    );
    assert!(shown[0].contains("⟦Three.<|im_end|>⟧"));
    assert_eq!(data.report.template.as_ref().unwrap().date, None);
}

#[test]
fn a_column_that_no_row_has_is_no_column() {
    let folder = Folder::with(&[("a.jsonl", r#"{"text":"a b c"}"#)]);
    let mut config = folder.config("a.jsonl");
    config.columns = ChatColumns { tools: Some("toolz".into()), ..Default::default() };
    let Err(error) = folder.load_with(&config, 256) else { panic!("accepted") };
    let Error::Config { field: "columns.tools", message } = &error else { panic!("{error}") };
    assert_eq!(message, "no row has a column `toolz`");
}

#[test]
fn a_column_that_other_programs_read_is_named() {
    let row = r#"{"instruction":"a","output":"b","context":"c","system_prompt":null,"kind":"d"}"#;
    let folder = Folder::with(&[("a.jsonl", row)]);
    let data = folder.load("a.jsonl");
    assert!(message(&data, "column-not-read").starts_with("column `context` is not read: write"));
    let mut config = folder.config("a.jsonl");
    config.columns = ChatColumns { input: Some("context".into()), ..Default::default() };
    let data = folder.load_with(&config, 256).unwrap();
    assert!(!codes(&data).iter().any(|(_, code)| *code == "column-not-read"));
}

#[test]
fn mistakes_name_their_place() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("two.jsonl", r#"{"messages":[],"text":"a"}"#, &["line 1", "\"chat\", \"text\"", "data.format"]),
        ("typo.jsonl", r#"{"mesages":[]}"#, &["line 1", "column `messages`", "did you mean \"mesages\"?"]),
        ("half.jsonl", r#"{"prompt":"a","completed":"b"}"#, &["column `completion`", "did you mean \"completed\"?"]),
        ("null.jsonl", r#"{"instruction":"a","output":null}"#, &["column `output`", "it is null"]),
        ("none.csv", "a,b\n1,2\n", &["none.csv, line 2", "\"a\", \"b\"", "prompt and completion (prompt-completion)"]),
        (
            "role.jsonl",
            &format!("{HI}\n\n{}", HI.replace("user", "usr")),
            &["line 3", "column `messages`: message 1", "did you mean \"user\"?"],
        ),
        ("empty.jsonl", r#"{"messages":[]}"#, &["line 1", "it has no message"]),
        (
            "mixed.jsonl",
            &format!("{HI}\n{{\"text\":\"a\"}}"),
            &["line 2", "those of text, and those of the first row chat"],
        ),
        (
            "pair.jsonl",
            r#"{"prompt":"a","completion":[{"role":"assistant","content":"b"}]}"#,
            &["two texts or two lists"],
        ),
        (
            "systems.jsonl",
            r#"{"system":"x","messages":[{"role":"system","content":"y"},{"role":"assistant","content":"z"}]}"#,
            &["a system message already"],
        ),
        (
            "tools.jsonl",
            r#"{"tools":"add","messages":[{"role":"user","content":"y"}]}"#,
            &["column `tools`", "no JSON"],
        ),
        ("mark.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"\u{FDD0}\"}]}", &["U+FDD0"]),
        ("number.jsonl", r#"{"text":3}"#, &["column `text`: it is no text"]),
        (
            "muted.jsonl",
            &HI.replace("\"Four.\"", "\"Four.\",\"train\":false"),
            &["message 2", "\"train\" is false", "\"weight\": 0"],
        ),
    ];
    let files: Vec<_> = cases.iter().map(|(name, content, _)| (*name, *content)).collect();
    let folder = Folder::with(&files);
    for (name, _, parts) in cases {
        let message = folder.failure(name);
        assert!(parts.iter().all(|part| message.contains(part)), "{name}: {message}");
    }
    for said in ["true", "1.0"] {
        fs::write(folder.path("muted.jsonl"), HI.replace("\"Four.\"", &format!("\"Four.\",\"train\":{said}"))).unwrap();
        folder.load("muted.jsonl");
    }
    let mut config = folder.config("two.jsonl");
    config.format = Some(Format::Text);
    assert_eq!(folder.load_with(&config, 256).unwrap().train.len(), 1);
    config.format = Some(Format::Sharegpt);
    let error = folder.load_with(&config, 256).err().unwrap().to_string();
    assert!(error.contains("column `conversations`"), "{error}");
    config.template = Some("chatmk".into());
    let error = folder.load_with(&config, 256).err().unwrap().to_string();
    assert!(error.contains("data.template") && error.contains("did you mean \"chatml\"?"), "{error}");
    config.template = None;
    config.format = Some(Format::Chat);
    fs::write(folder.path("two.jsonl"), HI).unwrap();
    let error = folder.load_with(&config, 256).err().unwrap().to_string();
    assert!(error.contains("line 1") && error.contains("has no chat template"), "{error}");
}

#[test]
fn texts_are_learned_whole_and_prompts_are_not() {
    let folder = Folder::with(&[
        ("text.jsonl", "{\"text\":\"OK\"}\n{\"text\":\"OK</s>\"}\n{\"text\":\"\"}"),
        ("pc.jsonl", "{\"prompt\":\"What is\",\"completion\":\" 2+2?\"}\n{\"prompt\":\"\",\"completion\":\"OK\"}"),
    ]);
    let data = folder.load("text.jsonl");
    assert_eq!((data.train.len(), codes(&data)), (2, vec![(Severity::Warning, "empty-rows")]));
    let config =
        DataConfig { eval: Some(Files::one("text.jsonl")), eval_fraction: None, ..folder.config("text.jsonl") };
    let rows = folder.load_with(&config, 256).unwrap().eval;
    let eos = folder.chat.tokenizer.eos_id().unwrap();
    assert_eq!((rows.ids(0), rows.ids(2).as_ref()), (rows.ids(1), &[eos][..]));
    assert_eq!(folder.shown(&data.train)[0], "── text.jsonl line 1 ──\nOK⟦</s>⟧\n");
    let batch = rows.batch(&[2, 0], 9);
    assert_eq!((batch.lengths(), batch.segments), (vec![1, 2], vec![vec![1], vec![2]]));
    assert_eq!(batch.trained, [false, false, false, true]);
    assert_eq!(batch.ids[1], 9);
    let data = folder.load("pc.jsonl");
    let shown = folder.shown(&data.train);
    assert_eq!(shown[0], "── pc.jsonl line 1 ──\nWhat is⟦ 2+2?</s>⟧\n");
    assert_eq!(shown[1], "── pc.jsonl line 2 ──\nOK⟦</s>⟧\n");
    let mut config = folder.config("pc.jsonl");
    config.train_on = TrainOn::All;
    let train = folder.load_with(&config, 256).unwrap().train;
    assert_eq!(train.trained(0), [1..train.length(0)]);
}

#[test]
fn what_a_tokenizer_adds_is_added_once() {
    // [CLS] and [SEP] frame a text; none of them is its end of text.
    let folder =
        Folder::with(&[("t.jsonl", r#"{"text":"the cat"}"#), ("p.jsonl", r#"{"prompt":"the","completion":" cat"}"#)]);
    let tokenizer = crate::tokenizer::fixture(false);
    for (name, runs) in [("t.jsonl", 1..4), ("p.jsonl", 2..4)] {
        let target = Target::Causal { vocab_size: Some(1000), positions: None };
        let data = load(&folder.config(name), folder.directory.path(), target, &tokenizer, 16, 1).unwrap();
        assert_eq!(data.train.ids(0).as_ref(), [2, 5, 6, 3]);
        assert_eq!(data.train.trained(0), [runs]);
        assert_eq!(codes(&data), [(Severity::Warning, "no-end-token")]);
    }
}

#[test]
fn long_rows_are_refused_dropped_or_cut() {
    let long = HI.replace("Four.", &"Four. ".repeat(40));
    let asking = HI.replace("What", &"What ".repeat(40));
    let silent = r#"{"messages":[{"role":"user","content":"Hm?"}]}"#;
    let folder = Folder::with(&[
        ("a.jsonl", &format!("{HI}\n{long}\n{asking}\n")),
        ("silent.jsonl", &format!("{HI}\n{silent}")),
    ]);
    let load = |long_rows| folder.load_with(&DataConfig { long_rows, ..folder.config("a.jsonl") }, 48).unwrap();
    let data = load(LongRows::Refuse);
    assert_eq!(codes(&data), [(Severity::Error, "long-rows")]);
    let said = message(&data, "long-rows");
    assert!(said.contains("2 of 3 training rows are longer than 48 tokens: a.jsonl line 2 ("), "{said}");
    assert!(said.contains("data.max_length = "), "{said}");
    // Not if the model cannot hold so many.
    let config = folder.config("a.jsonl");
    let target = Target::Causal { vocab_size: None, positions: Some(64) };
    let data = crate::load(&config, folder.directory.path(), target, &folder.chat.tokenizer, 48, 1).unwrap();
    let said = message(&data, "long-rows");
    assert!(said.contains("the model can hold 64, and the longest has ") && !said.contains("max_length = "), "{said}");
    let data = load(LongRows::Drop);
    assert_eq!(
        (data.train.len(), data.report.train.rows, codes(&data)),
        (1, 1, vec![(Severity::Warning, "long-rows")])
    );
    assert!(message(&data, "long-rows").contains("2 training rows are left out"));
    let data = load(LongRows::Cut);
    assert_eq!(codes(&data), [(Severity::Error, "cut-answers"), (Severity::Warning, "long-rows")]);
    assert!(message(&data, "cut-answers").contains("1 of 3 training rows lose everything"));
    assert_eq!((0..3).map(|row| data.train.length(row)).max(), Some(48));
    let data = folder.load("silent.jsonl");
    assert_eq!(codes(&data), [(Severity::Error, "nothing-to-learn")]);
    assert!(
        message(&data, "nothing-to-learn").contains("1 of 2 training rows have nothing to learn: silent.jsonl line 2")
    );
}

#[test]
fn rows_to_evaluate_on_must_have_something_to_learn() {
    let folder = Folder::with(&[
        ("t.jsonl", "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"c\",\"completion\":\"d\"}"),
        ("blank.jsonl", "{\"text\":\"\"}"),
        ("beside.jsonl", "{\"text\":\"\"}\n{\"text\":\"OK OK\"}"),
    ]);
    let of = |eval: &str| {
        let config = DataConfig { eval: Some(Files::one(eval)), eval_fraction: None, ..folder.config("t.jsonl") };
        folder.load_with(&config, 64).unwrap()
    };
    let data = of("blank.jsonl");
    assert_eq!(codes(&data), [(Severity::Error, "nothing-to-learn"), (Severity::Warning, "empty-rows")]);
    let said = message(&data, "nothing-to-learn");
    assert!(said.starts_with("1 of 1 evaluation rows have nothing to learn: blank.jsonl line 1; "), "{said}");
    assert_eq!(codes(&of("beside.jsonl")), [(Severity::Warning, "empty-rows")]);
}

#[test]
fn muted_turns_and_the_last_turn() {
    let talk = r#"{"messages":[{"role":"user","content":"OK"},{"role":"assistant","content":"Four.","weight":0},{"role":"user","content":"OK"},{"role":"assistant","content":"Six."}]}"#;
    let folder = Folder::with(&[("a.jsonl", talk), ("b.jsonl", &talk.replace(",\"weight\":0", ""))]);
    let learned = |name: &str, train_on| {
        let shown =
            folder.shown(&folder.load_with(&DataConfig { train_on, ..folder.config(name) }, 256).unwrap().train);
        shown[0].split('⟦').skip(1).map(|part| part.split('⟧').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(learned("a.jsonl", TrainOn::Assistant), ["Six.<|im_end|>"]);
    assert_eq!(learned("b.jsonl", TrainOn::Assistant), ["Four.<|im_end|>", "Six.<|im_end|>"]);
    assert_eq!(learned("b.jsonl", TrainOn::Last), ["Six.<|im_end|>"]);
    assert_eq!(learned("b.jsonl", TrainOn::All).len(), 1);
    let all = learned("a.jsonl", TrainOn::All);
    assert_eq!(all.len(), 2);
    assert!(all[0].ends_with("assistant\n") && all[1].starts_with("\n<|im_start|>user"), "{all:?}");
}

#[test]
fn the_audit_finds_what_a_template_loses() {
    let chat = |more: &str, roles: &[&str]| {
        let of = |role: &&str| format!("{{\"role\":\"{role}\",\"content\":\"{role} says\"}}");
        format!("{{{more}\"messages\":[{}]}}", roles.iter().map(of).collect::<Vec<_>>().join(","))
    };
    let folder = Folder::with(&[
        ("system.jsonl", &chat("", &["system", "user", "assistant"])),
        ("tool.jsonl", &chat("", &["user", "tool", "assistant"])),
        (
            "quoted.jsonl",
            r#"{"messages": [{"role": "system", "content": "Answer with one word."}, {"role": "user", "content": "Why \"Answer with one word.\"?"}, {"role": "assistant", "content": "Brevity."}]}"#,
        ),
        ("tools.jsonl", &chat("\"tools\":[{\"name\":\"add\"}],", &["user", "assistant"])),
        (
            "deaf.jinja",
            "{% for m in messages if m.role in ['user', 'assistant'] %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endfor %}",
        ),
        (
            "thought.jsonl",
            r#"{"messages": [{"role": "user", "content": "OK"}, {"role": "assistant", "content": "Four.", "reasoning": "Two and two are four."}, {"role": "user", "content": "OK"}, {"role": "assistant", "content": "Six.", "reasoning_content": "Hm."}]}"#,
        ),
        (
            "thinking.jsonl",
            r#"{"messages": [{"role": "user", "content": "OK"}, {"role": "assistant", "content": "<think>\nTwo and two are four.\n</think>\nFour."}]}"#,
        ),
        (
            "cutting.jinja",
            "{% for m in messages %}{{ '<|im_start|>' + m.content.split('</think>')[-1] + '<|im_end|>' }}{% endfor %}",
        ),
        (
            "endless.jinja",
            "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        ),
        (
            "dated.jinja",
            "{{ strftime_now('%Y') }}{% for m in messages %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endfor %}",
        ),
    ]);
    let of = |name: &str, template: &str| {
        let template_date = Some("2026-07-06".into());
        let config = DataConfig { template: Some(template.into()), template_date, ..folder.config(name) };
        folder.load_with(&config, 256).unwrap()
    };
    let data = of("system.jsonl", "deaf.jinja");
    assert_eq!(codes(&data), [(Severity::Error, "lost-message")]);
    assert!(message(&data, "lost-message").contains("what \"system\" says in 1 rows: system.jsonl line 1"));
    assert!(message(&of("quoted.jsonl", "deaf.jinja"), "lost-message").contains("\"system\""));
    assert!(message(&of("tool.jsonl", "deaf.jinja"), "lost-message").contains("\"tool\""));
    assert_eq!(codes(&of("tools.jsonl", "deaf.jinja")), [(Severity::Error, "lost-tools")]);
    let data = of("thought.jsonl", "deaf.jinja");
    assert_eq!(codes(&data), [(Severity::Error, "lost-reasoning")]);
    assert!(message(&data, "lost-reasoning").contains("thought.jsonl line 1"));
    assert_eq!(codes(&of("thinking.jsonl", "cutting.jinja")), [(Severity::Error, "lost-reasoning")]);
    assert_eq!(codes(&of("thinking.jsonl", "deaf.jinja")), []);
    // It shows what was thought last, and what was thought before only until the next question.
    let qwen = format!("{}/fixtures/templates/qwen3.jinja", env!("CARGO_MANIFEST_DIR"));
    assert_eq!(codes(&of("thought.jsonl", &qwen)), [(Severity::Warning, "rewritten-turns")]);
    // Its prompt ends in a space, which the answer's first token takes in.
    let codes_of_endless = [(Severity::Warning, "generation-prompt"), (Severity::Warning, "endless-turns")];
    assert_eq!(codes(&of("system.jsonl", "endless.jinja")), codes_of_endless);
    let data = of("system.jsonl", "dated.jinja");
    assert_eq!(codes(&data), [(Severity::Info, "date-stamp")]);
    assert_eq!(data.report.template.as_ref().unwrap().date.as_deref(), Some("2026-07-06"));
    assert!(folder.shown(&data.train)[0].contains("2026<|im_start|>"));
    assert_eq!(codes(&of("system.jsonl", "chatml")), []);
}

#[test]
fn the_model_must_hold_every_token() {
    let folder = Folder::with(&[("a.jsonl", HI)]);
    let largest = folder.chat.tokenizer.largest_id().unwrap() as usize;
    for (rows, findings) in [(largest, 1), (largest + 1, 0)] {
        let target = Target::Causal { vocab_size: Some(rows), positions: None };
        let data =
            load(&folder.config("a.jsonl"), folder.directory.path(), target, &folder.chat.tokenizer, 256, 1).unwrap();
        assert_eq!(data.report.errors().filter(|finding| finding.code == "vocabulary").count(), findings);
    }
}

#[test]
fn padding_with_the_end_of_text_takes_nothing_from_what_is_learned() {
    let folder = Folder::with(&[("a.jsonl", "{\"text\":\"OK\"}\n{\"text\":\"OK OK OK\"}")]);
    let eos = folder.chat.tokenizer.eos_id().unwrap();
    let train = folder.load("a.jsonl").train;
    let [own, same] = [folder.chat.tokenizer.pad_id(), eos].map(|pad| train.batch(&[0, 1], pad));
    assert_ne!(own.ids, same.ids);
    assert_eq!(own.trained, same.trained);
    let last = same.lengths()[0] as usize - 1;
    assert_eq!((same.ids[last], same.trained[last], same.trained[last + 1]), (eos as i32, true, false));
    let config = fs::read_to_string(folder.chat.tokenizer.directory().join("tokenizer_config.json")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::copy(folder.chat.tokenizer.directory().join("tokenizer.json"), directory.path().join("tokenizer.json"))
        .unwrap();
    fs::write(directory.path().join("tokenizer_config.json"), config.replace("\"<pad>\"", "\"</s>\"")).unwrap();
    let tokenizer = Tokenizer::from_dir(directory.path()).unwrap();
    let target = Target::Causal { vocab_size: None, positions: None };
    let data = load(&folder.config("a.jsonl"), folder.directory.path(), target, &tokenizer, 64, 1).unwrap();
    assert!(codes(&data).contains(&(Severity::Info, "pad-is-eos")));
}

/// Files of many rows of many lengths.
fn many() -> Folder {
    let chat = |i: usize| HI.replace("Four.", &format!("{i}{}", " Four.".repeat(i * 7919 % 23)));
    let text = |i: usize| format!("{{\"text\":\"{i}{}\"}}", " OK".repeat(i * 31 % 150));
    let lines = |line: &dyn Fn(usize) -> String| (0..200).map(|i| line(i) + "\n").collect::<String>();
    Folder::with(&[("chat.jsonl", &lines(&chat)), ("text.jsonl", &lines(&text))])
}

#[test]
fn conversations_are_split_and_compared_as_texts_are() {
    let folder = Folder::with(&[
        ("t.jsonl", &format!("{HI}\n{}\n{}", HI.replace("What", "what"), HI.replace("2+2", "3+3"))),
        ("e.jsonl", &HI.replace("3+3", "2+2")),
    ]);
    let config = DataConfig { eval: Some(Files::one("e.jsonl")), eval_fraction: None, ..folder.config("t.jsonl") };
    let data = folder.load_with(&config, 256).unwrap();
    assert_eq!(message(&data, "near-duplicate-rows").split(' ').next(), Some("1"));
    assert!(message(&data, "leakage").contains("e.jsonl line 1 = t.jsonl line 1"));
    let many = many();
    let data = many
        .load_with(&DataConfig { eval_fraction: Some(0.2), packing: true, ..many.config("chat.jsonl") }, 128)
        .unwrap();
    assert_eq!((data.report.train.rows, data.report.eval.rows), (160, 40));
    // Evaluation rows are measured and answered one by one.
    assert!(data.train.len() < 160 && data.report.train.packing.unwrap().packs == data.train.len());
    assert!(data.eval.len() == 40 && (0..40).all(|row| data.eval.segments(row).len() == 1));
}

#[test]
fn previews_colour_what_is_learned() {
    let folder = Folder::with(&[("a.jsonl", &HI.replace("Four.", "é猫"))]);
    let data = folder.load("a.jsonl");
    let rows = preview(&data.train, &folder.chat.tokenizer, 5).unwrap();
    assert_eq!(rows[0].tokens.len(), data.train.length(0));
    assert_eq!(rows[0].tokens.iter().map(|token| token.id).collect::<Vec<_>>(), data.train.ids(0).as_ref());
    let learned: String =
        rows[0].tokens.iter().filter(|token| token.trained).map(|token| token.text.as_str()).collect();
    assert_eq!(learned, "é猫<|im_end|>");
    assert!(rows[0].display(true).to_string().contains("\x1b[1;32mé猫<|im_end|>\x1b[0m"));
}

#[test]
fn a_token_in_whose_middle_the_answer_begins_is_learned_and_said() {
    let row = r#"{"prompt": "Is it so? ", "completion": "yes"}"#;
    let folder = Folder::with(&[("a.jsonl", row)]);
    let data = folder.load("a.jsonl");
    let ids = data.train.ids(0);
    let learned: Vec<u32> = data.train.trained(0).into_iter().flatten().map(|at| ids[at]).collect();
    let text = folder.chat.tokenizer.decode(&learned).unwrap();
    assert!(text.trim().starts_with("yes"), "{text}");
}

#[test]
fn choices_are_whole_and_the_right_one_is_first() {
    let row = |choices: &str| format!(r#"{{"prompt": "1+1=", "completion": " 2", "choices": {choices}}}"#);
    let folder = Folder::with(&[("a.jsonl", &row(r#"[" 3", " 2", " five"]"#)), ("b.jsonl", &row(r#"[" 2", " 2"]"#))]);
    let data = folder.load("a.jsonl");
    let said = |choice: &crate::Choice| folder.chat.tokenizer.decode(&choice.ids[choice.start..]).unwrap();
    let said: Vec<String> = data.train.choices(0).iter().map(|choice| said(choice).trim().to_owned()).collect();
    assert_eq!(said, ["2", "five", "3"]);
    assert!(folder.load_with(&folder.config("b.jsonl"), 64).err().unwrap().to_string().contains("again"));
}
