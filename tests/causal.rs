//! Causal language models through the front door: a tiny decoder that learns a few answers, and everything that is done with it.

mod refused;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::corridor::{kill_after, losses};
use crate::golden::{plan_of, same};
use crate::{command, temper, text};

/// What the model learns to say.
const ANSWERS: [(&str, &str); 4] =
    [("the sky", "blue"), ("grass", "green"), ("a lemon", "yellow"), ("snow", "white, of course")];
const SYSTEM: &str = "Name the colour.";
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A place for a test, emptied; it lies in the build directory.
fn place(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("causal").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn message(role: &str, content: impl Into<String>) -> Value {
    json!({ "role": role, "content": content.into() })
}

/// A question and its answer.
fn turn(of: usize) -> [Value; 2] {
    let (thing, colour) = ANSWERS[of % ANSWERS.len()];
    [message("user", format!("{thing}?")), message("assistant", colour)]
}

/// Forty conversations of one or two turns, half of them with a system message.
fn conversations() -> Vec<Vec<Value>> {
    let system = |i: usize| (i % 8 < 4).then(|| message("system", SYSTEM));
    let second = |i: usize| if i < 8 { vec![] } else { turn(i / 4 + i / 16).to_vec() };
    (0..40).map(|i| system(i).into_iter().chain(turn(i)).chain(second(i)).collect()).collect()
}

fn write_rows(path: &Path, rows: impl IntoIterator<Item = Vec<Value>>) {
    let lines: String = rows.into_iter().map(|messages| format!("{}\n", json!({ "messages": messages }))).collect();
    fs::write(path, lines).unwrap();
}

/// A Llama of two layers, its tokenizer of bytes, conversations, and a recipe that trains it from random weights.
fn write_house(dir: &Path) {
    let mut letters: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    letters.sort();
    let vocabulary: Map<String, Value> = letters.iter().enumerate().map(|(id, c)| (c.clone(), json!(id))).collect();
    let special = ["<|im_start|>", "<|im_end|>", "<|pad|>"];
    let flags = json!({ "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let added = special.iter().enumerate().map(|(i, content)| {
        let mut token = json!({ "id": 256 + i, "content": content });
        token.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        token
    });
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    let model = json!({ "type": "BPE", "vocab": vocabulary, "merges": [] });
    let tokenizer = json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "normalizer": null, "pre_tokenizer": bytes,
        "post_processor": null, "decoder": bytes, "model": model,
    });
    let settings = json!({ "eos_token": "<|im_end|>", "pad_token": "<|pad|>", "chat_template": CHATML });
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 259, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 512, "tie_word_embeddings": true, "initializer_range": 0.1, "eos_token_id": 257,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    });
    for (name, value) in
        [("tokenizer.json", &tokenizer), ("tokenizer_config.json", &settings), ("config.json", &config)]
    {
        fs::write(dir.join(name), value.to_string()).unwrap();
    }
    write_rows(&dir.join("train.jsonl"), conversations());
    write_rows(&dir.join("eval.jsonl"), (0..4).map(|i| turn(i).to_vec()));
    let recipe = |model: &str, adapter: &str| {
        format!(
            "[model]\n{model}\n[task]\nkind = \"causal-lm\"\n[data]\ntrain = \"train.jsonl\"\n\
             eval = \"eval.jsonl\"\n[adapter]\n{adapter}\n[train]\nmax_steps = 4\nglobal_batch = 4\nlr = 1e-2\nlog_every = 1\n"
        )
    };
    let full = recipe("config = \"config.json\"\ntokenizer = \".\"", "method = \"full\"");
    fs::write(dir.join("full.toml"), full).unwrap();
    fs::write(dir.join("lora.toml"), recipe("base = \"full/export\"", "rank = 4")).unwrap();
}

/// The arguments that run a recipe of `dir`.
fn arguments(dir: &Path, recipe: &str, name: &str, set: &[&str]) -> Vec<String> {
    let (recipe, run) = (dir.join(recipe), format!("run.dir={}", dir.join(name).display()));
    let mut arguments = vec!["train".to_owned(), "--recipe".into(), recipe.display().to_string()];
    arguments.extend(set.iter().chain([&run.as_str()]).flat_map(|value| ["--set".to_owned(), (*value).to_owned()]));
    arguments
}

fn call(arguments: &[String]) -> Output {
    temper(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Runs a recipe of `dir` into the directory `name` there.
fn train(dir: &Path, recipe: &str, name: &str, set: &[&str]) -> PathBuf {
    let out = call(&arguments(dir, recipe, name, set));
    assert!(out.status.success(), "{set:?}: {}", text(&out.stderr));
    dir.join(name)
}

/// What `temper` says on stdout.
fn said(arguments: &[&str]) -> String {
    let out = temper(arguments);
    assert!(out.status.success(), "{arguments:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

/// A house with a model in `full` that has learned its answers by heart.
static TRAINED: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = place("trained");
    write_house(&dir);
    let set = ["train.max_steps=150", "task.metrics=[\"exact_match\"]", "task.samples=4", "data.packing=false"];
    train(&dir, "full.toml", "full", &set);
    dir
});

fn model(name: &str) -> String {
    TRAINED.join(name).display().to_string()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The evaluation of what a run ships.
fn evaluated(run: &Path) -> Value {
    let events = lines(&fs::read_to_string(run.join("events.jsonl")).unwrap());
    events.into_iter().rfind(|event| event["event"] == "evaluated" && event["best"] == true).unwrap()["scores"].clone()
}

/// A copy of the export of `full`.
fn copied(name: &str) -> PathBuf {
    let dir = place(name);
    for entry in fs::read_dir(TRAINED.join("full/export")).unwrap().flatten() {
        fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    dir
}

fn eval(model: &Path, data: &Path) -> Value {
    let out = said(&["eval", model.to_str().unwrap(), "--data", data.to_str().unwrap(), "--json"]);
    serde_json::from_str::<Value>(&out).unwrap()["scores"].clone()
}

fn close(a: &Value, b: &Value, most: f64) {
    let [x, y] = [a, b].map(|value| value.as_f64().unwrap());
    assert!((x - y).abs() <= most, "{x} {y}");
}

#[test]
fn a_run_leaves_a_model_that_answers_and_pages_that_show_it() {
    let run = TRAINED.join("full");
    for file in ["model.safetensors", "generation_config.json", "config.json", "tokenizer.json", "README.md"] {
        assert!(run.join("export").join(file).is_file(), "{file} is missing");
    }
    let settings: Value =
        serde_json::from_str(&fs::read_to_string(run.join("export/generation_config.json")).unwrap()).unwrap();
    assert_eq!(settings["eos_token_id"], json!([257]));
    let scores = evaluated(&run);
    assert_eq!(scores["exact_match"], 1.0, "{scores}");
    close(&scores["perplexity"], &json!(scores["loss"].as_f64().unwrap().exp()), 1e-9);

    let samples = lines(&fs::read_to_string(run.join("samples.jsonl")).unwrap());
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("<h2>What it says</h2>"));
    let last = samples.iter().map(|sample| sample["step"].as_u64().unwrap()).max().unwrap();
    let last: Vec<&Value> = samples.iter().filter(|sample| sample["step"] == last).collect();
    assert_eq!(last.len(), 4);
    for (sample, (thing, colour)) in last.iter().zip(ANSWERS) {
        assert!(sample["prompt"].as_str().unwrap().contains(thing), "{sample}");
        assert_eq!((sample["expected"].as_str(), sample["answer"].as_str()), (Some(colour), Some(colour)));
        let cell = format!("<td class=\"text\">{colour}</td>");
        assert!(page.contains(&cell.repeat(2)), "{cell}");
    }
    let card = fs::read_to_string(run.join("export/README.md")).unwrap();
    assert!(card.contains("pipeline_tag: text-generation") && card.contains("temper chat DIR"), "{card}");
}

#[test]
fn eval_measures_what_the_run_measured() {
    let dir = place("eval");
    write_house(&dir);
    let loud = CHATML.replace("<|im_start|>assistant", "{% if loud %}<|im_start|>assistant{% endif %}");
    fs::write(dir.join("loud.jinja"), loud).unwrap();
    let long = [message("user", "grass? ".repeat(80)), message("assistant", "green")].to_vec();
    write_rows(&dir.join("eval.jsonl"), (0..4).map(|i| turn(i).to_vec()).chain([long]));
    // Terms that only training has, a template with variables, rows that are left out: all is the same away from the recipe.
    let set = [
        "task.label_smoothing=0.2",
        "task.z_loss=0.01",
        "data.template=loud.jinja",
        "data.template_variables={loud=true}",
        "data.long_rows=drop",
    ];
    let run = train(&dir, "full.toml", "full", &set);
    for (run, dir) in [(TRAINED.join("full"), &*TRAINED), (run, &dir)] {
        let (there, here) = (evaluated(&run), eval(&run, &dir.join("eval.jsonl")));
        close(&there["loss"], &here["loss"], 1e-6);
        close(&here["perplexity"], &json!(here["loss"].as_f64().unwrap().exp()), 1e-6);
        assert_eq!(there["exact_match"], here["exact_match"]);
    }
}

#[test]
fn prompts_go_on_alone_and_together() {
    let full = model("full");
    let chat = |prompt: &str, more: &[&str]| said(&[&["generate", &full, "--chat", prompt], more].concat());
    assert_eq!(chat("grass?", &[]), "green\n");
    assert_eq!(chat("grass?", &["--system", SYSTEM]), "green\n");
    assert_eq!(chat("grass?", &["--max-new-tokens", "2"]), "gr\n");
    // The text that ends an answer is no part of it, though it comes in several tokens.
    assert_eq!(chat("snow?", &["--stop", ", of"]), "white\n");
    assert_eq!(chat("snow?", &["--stop", "zzz", "--stop", "e,"]), "whit\n");

    let prompts = ["the sky?", "snow?", "grass?"];
    let together = lines(&said(&[&["generate", &full, "--chat", "--batch", "2"], &prompts[..]].concat()));
    for (answer, (prompt, text, tokens)) in
        together.iter().zip([("the sky?", "blue", 4), ("snow?", "white, of course", 16), ("grass?", "green", 5)])
    {
        assert_eq!(*answer, json!({ "prompt": prompt, "text": text, "tokens": tokens, "ended": true }));
    }
    let file = TRAINED.join("prompts.txt");
    fs::write(&file, prompts.join("\n")).unwrap();
    let from_file = lines(&said(&["generate", &full, "--chat", "--file", file.to_str().unwrap()]));
    assert_eq!(from_file, together);
    let rows = TRAINED.join("prompts.jsonl");
    fs::write(
        &rows,
        prompts.map(|said| json!({ "messages": [{ "role": "user", "content": said }] }).to_string()).join("\n"),
    )
    .unwrap();
    let from_rows = lines(&said(&["generate", &full, "--file", rows.to_str().unwrap()]));
    for (row, whole) in from_rows.iter().zip(&together) {
        assert_eq!(row["prompt"][0]["content"], whole["prompt"]);
        assert_eq!(row["text"], whole["text"]);
    }
    assert_eq!(from_rows.len(), together.len());
    let table = TRAINED.join("prompts.csv");
    fs::write(&table, format!("question\n{}\n", prompts.join("\n"))).unwrap();
    let columns = ["generate", &full, "--chat", "--text", "question", "--file", table.to_str().unwrap()];
    assert_eq!(lines(&said(&columns)), together);
    let plain = said(&["generate", &full, "<|im_start|>user\na lemon?<|im_end|>\n<|im_start|>assistant\n"]);
    assert_eq!(plain, "yellow\n");
}

#[test]
fn draws_repeat_with_their_seed() {
    let full = model("full");
    let draw = |seed: &str| {
        let sampling = ["--temperature", "3", "--max-new-tokens", "24", "--seed", seed];
        said(&[&["generate", &full, "--chat", "grass?"], &sampling[..]].concat())
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
    let one = ["--temperature", "3", "--top-k", "1"];
    assert_eq!(said(&[&["generate", &full, "--chat", "grass?"], &one[..]].concat()), "green\n");
}

#[test]
fn a_chat_remembers_what_was_said() {
    let chat = |model: &str, lines: &str| {
        let mut child = command(&["chat", model]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        text(&out.stdout)
    };
    assert_eq!(chat(&model("full"), "grass?\n\nthe sky?\n"), "green\nblue\n");

    // A template that shows the first message alone: if the chat kept it, it is answered again.
    let dir = copied("chat");
    let first = CHATML.replace("message in messages", "message in messages[:1]");
    fs::write(dir.join("chat_template.jinja"), first).unwrap();
    assert_eq!(chat(dir.to_str().unwrap(), "grass?\nthe sky?\n"), "green\ngreen\n");
}

#[test]
fn a_merged_adapter_says_the_same() {
    let run = train(&TRAINED, "lora.toml", "lora", &["train.lr=1e-3"]);
    let data = TRAINED.join("eval.jsonl");
    let merged = TRAINED.join("merged");
    let out = said(&["merge", run.to_str().unwrap(), "--out", merged.to_str().unwrap()]);
    assert!(out.contains("largest difference of states"), "{out}");
    let [base, adapted, whole] = [&TRAINED.join("full"), &run, &merged].map(|model| eval(model, &data));
    close(&adapted["loss"], &whole["loss"], 1e-5);
    let card = fs::read_to_string(merged.join("README.md")).unwrap();
    assert!(card.contains("pipeline_tag: text-generation") && merged.join("generation_config.json").is_file());
    assert_ne!(base["loss"], adapted["loss"]);
    // Transformers would give a decoder segments that it refuses.
    for dir in [run.join("export"), merged.clone()] {
        let settings = fs::read_to_string(dir.join("tokenizer_config.json")).unwrap();
        assert!(!settings.contains("token_type_ids"), "{settings}");
    }
    let answer = |model: &Path| said(&["generate", model.to_str().unwrap(), "--chat", "snow?"]);
    assert_eq!(answer(&run), answer(&merged));
}

#[test]
fn what_the_base_says_of_generation_and_its_other_templates_ship() {
    let base = copied("settled");
    let own =
        json!({ "eos_token_id": 258, "pad_token_id": 258, "repetition_penalty": 1.5, "transformers_version": "5.0" });
    fs::write(base.join("generation_config.json"), own.to_string()).unwrap();
    fs::create_dir_all(base.join("additional_chat_templates")).unwrap();
    let brief = CHATML.replace("user", "asked");
    fs::write(base.join("additional_chat_templates/brief.jinja"), &brief).unwrap();
    let model = format!("model.base={}", base.display());
    let set = [model.as_str(), "train.max_steps=1"];
    let run = train(&TRAINED, "lora.toml", "settled-run", &set);
    let merged = TRAINED.join("settled-merged");
    said(&["merge", run.to_str().unwrap(), "--out", merged.to_str().unwrap()]);
    for dir in [run.join("export"), merged] {
        let settings = fs::read_to_string(dir.join("generation_config.json")).unwrap();
        let settings: Value = serde_json::from_str(&settings).unwrap();
        let ends = json!([257, 258]);
        assert_eq!(
            settings,
            json!({ "eos_token_id": ends, "pad_token_id": 258, "repetition_penalty": 1.5, "bos_token_id": null })
        );
        assert_eq!(fs::read_to_string(dir.join("additional_chat_templates/brief.jinja")).unwrap(), brief);
    }
    // What was trained with one template is asked with that alone.
    let run = train(&TRAINED, "lora.toml", "brief-run", &[set[0], set[1], "data.template=brief"]);
    assert_eq!(fs::read_to_string(run.join("export/chat_template.jinja")).unwrap(), brief);
    assert!(!run.join("export/additional_chat_templates").exists());
}

#[test]
fn a_preview_marks_what_the_assistant_says() {
    let recipe = TRAINED.join("full.toml");
    let arguments = ["data", "preview", "--recipe", recipe.to_str().unwrap(), "--set", "data.packing=false"];
    let rows = lines(&said(&[&arguments[..], &["--rows", "40", "--json"]].concat()));
    assert_eq!(rows.len(), 40);
    for (row, messages) in rows.iter().zip(conversations()) {
        let parts = row["text"].as_array().unwrap().iter().zip(row["learned"].as_array().unwrap());
        let learned: String =
            parts.filter(|(_, learned)| **learned == true).map(|(text, _)| text.as_str().unwrap()).collect();
        let assistant = messages.iter().filter(|message| message["role"] == "assistant");
        let expected: String =
            assistant.map(|message| format!("{}<|im_end|>", message["content"].as_str().unwrap())).collect();
        assert_eq!(learned, expected);
    }
    let text = said(&[&arguments[..], &["--eval", "--rows", "1"]].concat());
    assert!(text.contains("blue") && !text.contains("\u{1b}"), "{text}");
}

#[test]
fn a_plan_says_what_is_learned_and_how_it_is_packed() {
    let dir = place("plan");
    write_house(&dir);
    let recipe = dir.join("full.toml");
    let plan = plan_of(recipe.to_str().unwrap());
    same("plan_causal.txt", &plan.replace(dir.to_str().unwrap(), "DIR"));
}

#[test]
fn a_killed_run_on_packs_goes_on_bit_for_bit() {
    let dir = place("killed");
    write_house(&dir);
    let set =
        ["train.max_steps=10", "train.global_batch=2", "train.save_every=1", "data.max_length=160", "eval.every=5"];
    let whole = train(&dir, "full.toml", "whole", &set);
    for step in [2, 5, 8] {
        let arguments = arguments(&dir, "full.toml", "killed", &set);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        kill_after(
            command(&arguments).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap(),
            &dir.join("killed"),
            step,
        );
    }
    let killed = train(&dir, "full.toml", "killed", &set);
    assert_eq!(losses(&whole).len(), 10);
    assert_eq!(losses(&whole), losses(&killed));
    let [a, b] = [whole, killed].map(|run| fs::read(run.join("export/model.safetensors")).unwrap());
    assert!(a == b, "the weights differ");
}

#[test]
fn the_cut_into_micro_batches_changes_nothing() {
    let dir = place("micro");
    write_house(&dir);
    let run = |name: &str, micro: &str| {
        let set = ["data.packing=false", "train.max_steps=6", micro];
        losses(&train(&dir, "full.toml", name, &set))
    };
    let whole = run("whole", "train.micro_batch=4");
    assert_eq!(whole.len(), 6);
    for (name, micro) in [("single", "train.micro_batch=1"), ("tokens", "train.micro_batch_tokens=150")] {
        for ((_, a), (_, b)) in whole.iter().zip(run(name, micro)) {
            assert!((a - b).abs() < 1e-4, "{micro}: {a} {b}");
        }
    }
}

#[test]
fn packs_teach_what_their_rows_teach() {
    let dir = place("packs");
    write_house(&dir);
    write_rows(&dir.join("train.jsonl"), (0..4).map(|i| turn(i).to_vec()));
    let packed = train(&dir, "full.toml", "packed", &["train.global_batch=1", "data.max_length=512"]);
    let apart = train(&dir, "full.toml", "apart", &["data.packing=false"]);
    let (packed, apart) = (losses(&packed), losses(&apart));
    assert_eq!(packed.len(), 4);
    // Each step sees all four rows, in one pack or apart, so that not only the first loss is the same.
    for ((_, a), (_, b)) in packed.into_iter().zip(apart) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn the_carried_decoder_learns_from_the_carried_conversations() {
    let dir = place("carried");
    let run = dir.join("run");
    let recipe = crate::root().join("recipes/chat.toml");
    let set = ["train.max_steps=12", "train.log_every=4", "eval.every=\"never\"", "task.metrics=[]", "task.samples=1"];
    let mut arguments = vec!["train", "--recipe", recipe.to_str().unwrap(), "--fresh"];
    let place_of_run = format!("run.dir={}", json!(run));
    let without_epochs = ["--set", &place_of_run];
    arguments.extend(set.iter().flat_map(|value| ["--set", value]).chain(without_epochs));
    let output = temper(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let losses = losses(&run);
    assert!(losses.last().unwrap().1 < 0.7 * losses[0].1, "{losses:?}");
    let output = temper(&["generate", run.to_str().unwrap(), "Turn on the light.", "--chat", "--max-new-tokens", "8"]);
    assert!(output.status.success() && !text(&output.stdout).trim().is_empty(), "{}", text(&output.stderr));
}
