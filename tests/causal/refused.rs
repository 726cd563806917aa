//! What a decoder is not trained on, asked for or measured by.

use super::*;

/// Runs a command that must be refused, and gives its exit code and what it says.
fn refused(arguments: &[String]) -> (i32, String) {
    let out = call(arguments);
    let said = text(&out.stderr);
    assert!(!out.status.success() && !said.contains("panicked"), "{arguments:?}: {said}");
    (out.status.code().unwrap(), said)
}

#[test]
fn keys_that_change_nothing_are_refused() {
    let dir = place("idle");
    write_house(&dir);
    train(&dir, "full.toml", "full", &["train.max_steps=1"]);
    let rows: String = (0..8).map(|n| format!("{{\"text\": \"line {n}\"}}\n")).collect();
    fs::write(dir.join("texts.jsonl"), rows).unwrap();
    let texts = ["data.train=texts.jsonl", "data.eval=texts.jsonl"];
    let of_texts = |key| [texts[0], texts[1], key];
    let cases: [(&[&str], &str); 8] = [
        (&["data.text=line"], "no row has a column `line`"),
        (&["data.template_variables={enable_thinkin=false}"], "because the chat template does not read it"),
        (&["data.template_date=\"2026-01-01\""], "because the chat template writes no date"),
        (&["adapter.bias=all"], "because there are no such biases in this model"),
        (&of_texts("data.template=chatml"), "because no row is a conversation"),
        (&of_texts("data.template_variables={a=1}"), "because no row is a conversation"),
        (&of_texts("data.train_on=all"), "because each row is a text, which is learned whole"),
        (&of_texts("data.long_rows=cut"), "because each row is a text, which is learned whole"),
    ];
    for (set, words) in cases {
        let (code, said) = refused(&arguments(&dir, "lora.toml", "run", set));
        assert!(said.contains(words) && code == 2, "{set:?}: {code} {said}");
    }
    train(&dir, "lora.toml", "texts", &texts);
}

#[test]
fn recipes_that_do_not_fit_their_model_are_refused() {
    let dir = place("refused");
    write_house(&dir);
    train(&dir, "full.toml", "full", &["train.max_steps=1", "task.untie=true"]);
    train(&dir, "full.toml", "tied", &["train.max_steps=1"]);
    let encoder = format!("model.base={}", crate::root().join("examples/encoder").display());
    let tied = format!("model.base={}", dir.join("tied/export").display());
    let cases: &[(&[&str], i32, &str)] = &[
        (&[&encoder], 2, "`bert` is an encoder, and sees what it would have to predict"),
        (
            &["task.kind=sequence-classification"],
            2,
            "`llama` is a decoder; temper teaches it `kind = \"causal-lm\"` alone",
        ),
        (&["task.kind=masked-lm"], 2, "`llama` is a decoder"),
        (&["task.untie=true"], 2, "`untie` has no effect: the model's output layer has weights of its own"),
        (&[&tied, "task.untie=true"], 2, "stays a copy: write `modules_to_save = [\"lm_head\"]`"),
        (
            &[&tied, "adapter.modules_to_save=[\"embed_tokens\"]"],
            2,
            "`model.embed_tokens.weight` and the output layer are one weight in this model; `untie = true`",
        ),
        // As PEFT takes names: whatever ends so.
        (&[&tied, "adapter.modules_to_save=[\"tokens\"]"], 2, "`model.embed_tokens.weight` and the output layer"),
        (
            &[&tied, "adapter.modules_to_save=[\"lm_head\"]"],
            2,
            "`lm_head` and the embeddings are one weight in this model",
        ),
        (&["data.max_length=513"], 2, "512"),
        (&["eval.metric=accuracy"], 2, "this task does not measure `accuracy` (it can measure loss, perplexity)"),
        (&["data.template=chatlm"], 2, "did you mean \"chatml\"?"),
    ];
    for (set, code, words) in cases {
        let (found, said) = refused(&arguments(&dir, "lora.toml", "run", set));
        assert!(said.contains(words) && found == *code, "{set:?}: {found} {said}");
        assert!(!dir.join("run/export").exists());
    }
    // Two tensors that the configuration calls one.
    let export = dir.join("tied/export");
    let file = export.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let table = tensors.tensor("model.embed_tokens.weight").unwrap();
    for (head, code) in [(table.data().to_vec(), 0), (vec![0; table.data().len()], 3)] {
        let head = safetensors::tensor::TensorView::new(table.dtype(), table.shape().to_vec(), &head).unwrap();
        let all = tensors.tensors().into_iter().chain([("lm_head.weight".to_owned(), head)]);
        safetensors::serialize_to_file(all, None, &file).unwrap();
        let out = crate::temper(&["generate", export.to_str().unwrap(), "a"]);
        assert_eq!(out.status.code(), Some(code), "{}", text(&out.stderr));
        assert_eq!(
            text(&out.stderr).contains("`lm_head.weight` and `model.embed_tokens.weight` are not the same"),
            code > 0
        );
    }
    fs::write(&file, &bytes).unwrap();
    // An output layer of its own that was loaded trains where it is asked for, and only there.
    let names = |run: &str| {
        let bytes = fs::read(dir.join(run).join("export/adapter_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors.names().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    train(&dir, "lora.toml", "plain", &["train.max_steps=1"]);
    assert!(names("plain").iter().all(|name| name.contains("lora_")), "{:?}", names("plain"));
    // What is refused above is accepted where it fits.
    train(&dir, "lora.toml", "untied", &[&tied, "task.untie=true", "adapter.modules_to_save=[\"lm_head\"]"]);
    train(&dir, "lora.toml", "saved", &["adapter.modules_to_save=[\"lm_head\", \"embed_tokens\"]"]);
    assert!(names("saved").iter().any(|name| name.contains("lm_head")), "{:?}", names("saved"));
    // An adapter of PEFT's that brings embeddings for a model in which they are the output layer.
    let adapter = dir.join("saved/export");
    for name in ["config.json", "temper.json"] {
        fs::remove_file(adapter.join(name)).unwrap();
    }
    let file = adapter.join("adapter_config.json");
    let mut settings: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    settings["base_model_name_or_path"] = json!(dir.join("tied/export"));
    fs::write(&file, settings.to_string()).unwrap();
    let out = temper(&["generate", adapter.to_str().unwrap(), "a"]);
    let message = "the adapter brings `model.embed_tokens.weight`, and PEFT leaves the output layer as it was";
    assert!(text(&out.stderr).contains(message) && out.status.code() == Some(3), "{}", text(&out.stderr));
}

/// A decoder that another program made a classifier.
#[test]
fn a_decoder_that_classifies_is_no_language_model_and_not_known() {
    let dir = copied("classifier");
    let file = dir.join("config.json");
    let config = fs::read_to_string(&file).unwrap().replace("LlamaForCausalLM", "LlamaForSequenceClassification");
    fs::write(&file, config).unwrap();
    for (verb, message) in [
        ("predict", "temper classifies with encoders alone"),
        ("generate", "holds a LlamaForSequenceClassification, which generates no text"),
    ] {
        let out = temper(&[verb, dir.to_str().unwrap(), "a"]);
        assert!(text(&out.stderr).contains(message) && out.status.code() == Some(3), "{}", text(&out.stderr));
    }
}

#[test]
fn a_run_does_not_go_on_with_another_template() {
    let dir = place("templates");
    write_house(&dir);
    let template = dir.join("t.jinja");
    let run = || call(&arguments(&dir, "full.toml", "run", &["train.max_steps=1", "data.template=t.jinja"]));
    fs::write(&template, CHATML).unwrap();
    assert!(run().status.success());
    // As many tokens, and others.
    fs::write(&template, CHATML.replace("message.role", "message.role[::-1]")).unwrap();
    let out = run();
    assert!(text(&out.stderr).contains("of another plan (different: data.files"), "{}", text(&out.stderr));
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn metrics_that_say_nothing_on_rows_are_left_out() {
    let rows = TRAINED.join("plain.jsonl");
    fs::write(&rows, "{\"text\": \"grass is green\"}\n{\"text\": \"snow is white\"}\n").unwrap();
    let out = temper(&["eval", &model("full"), "--data", rows.to_str().unwrap(), "--json"]);
    assert!(
        text(&out.stderr).contains("`exact_match` needs evaluation rows that ask something"),
        "{}",
        text(&out.stderr)
    );
    let scores = &serde_json::from_str::<Value>(&text(&out.stdout)).unwrap()["scores"];
    assert!(scores["exact_match"].is_null() && scores["loss"].is_f64(), "{scores}");
}

#[test]
fn an_output_that_is_no_number_is_no_answer() {
    let dir = place("overflow");
    let export = dir.join("export");
    fs::create_dir_all(&export).unwrap();
    for entry in fs::read_dir(TRAINED.join("full/export")).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), export.join(entry.file_name())).unwrap();
    }
    let file = export.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("model.norm.weight").unwrap().data().as_ptr_range();
    let [start, end] = [data.start, data.end].map(|at| at as usize - bytes.as_ptr() as usize);
    bytes[start..end].chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&3e38_f32.to_le_bytes()));
    fs::write(&file, bytes).unwrap();
    let out = temper(&["generate", export.to_str().unwrap(), "grass?"]);
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stdout));
    assert!(text(&out.stderr).contains("the network's output is not finite"), "{}", text(&out.stderr));
}

#[test]
fn rows_that_teach_nothing_or_lose_something_are_refused() {
    let dir = place("rows");
    write_house(&dir);
    let silent = dir.join("silent.jsonl");
    write_rows(&silent, [turn(0).to_vec(), vec![message("user", "grass?")]]);
    let system = dir.join("system.jsonl");
    write_rows(&system, [[vec![message("system", SYSTEM)], turn(0).to_vec()].concat(), turn(1).to_vec()]);
    let long = dir.join("long.jsonl");
    write_rows(&long, [turn(0).to_vec(), vec![message("user", "grass? ".repeat(80)), message("assistant", "green")]]);
    fs::write(
        dir.join("deaf.jinja"),
        CHATML.replace("{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"),
    )
    .unwrap();
    let cases: &[(&Path, &[&str], &str)] = &[
        (&silent, &[], "silent.jsonl line 2"),
        (
            &system,
            &["data.template=deaf.jinja"],
            "the chat template leaves out what \"system\" says in 1 rows: system.jsonl line 1",
        ),
        (&long, &[], "are longer than 512 tokens: long.jsonl line 2"),
    ];
    for (file, set, words) in cases {
        let file = format!("data.train={}", file.display());
        let (code, said) = refused(&arguments(&dir, "full.toml", "run", &[&[file.as_str()], *set].concat()));
        assert!(said.contains(words) && code == 3, "{file}: {code} {said}");
    }
    // What training refuses is no measure either.
    let (code, said) = refused(&["eval", &model("full"), "--data", silent.to_str().unwrap()].map(str::to_owned));
    assert!(said.contains("silent.jsonl line 2") && code == 3, "{code} {said}");
}

#[test]
fn prompts_that_cannot_be_answered_are_refused() {
    let (full, encoder) = (model("full"), "examples/encoder".to_owned());
    let long = "grass? ".repeat(100);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["generate", &encoder, "a text"], 3, "holds an encoder (`bert`), which generates no text"),
        (&["chat", &encoder], 3, "holds an encoder"),
        (&["generate", &full, &long], 3, "the prompt has 700 tokens, the model holds 512 with its answer"),
        (&["generate", &full, ""], 3, "the prompt is empty"),
        (
            &["generate", &full, "a", "--top-k", "4"],
            2,
            "--top-k has no effect because the likeliest token is taken; set --temperature",
        ),
        (&["generate", &full, "a", "--seed", "4"], 2, "--seed has no effect"),
        (&["generate", &full, "a", "--temperature", "-1"], 2, "--temperature must be at least 0"),
        (&["generate", &full, "a", "--temperature", "1", "--top-p", "0"], 2, "--top-p must be in (0, 1]"),
        (&["generate", &full, "a", "--stop", ""], 2, "--stop is empty"),
        (&["generate", &full, "a", "--system", "b"], 2, "--chat"),
        (&["predict", &full, "a"], 3, "holds a LlamaForCausalLM, and this command is for sequence classification"),
        (&["eval", &full, "--data", "examples/reviews/eval.jsonl", "--label", "label"], 2, "leave out --label"),
    ];
    for (arguments, code, words) in cases {
        let (found, said) = refused(&arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
        assert!(said.contains(words) && found == *code, "{arguments:?}: {found} {said}");
    }
}

#[test]
fn weights_that_overflow_end_a_run_whose_evaluation_generates() {
    let dir = place("overflowed");
    write_house(&dir);
    let set = [
        "train.lr=1e12",
        "schedule.kind=constant",
        "schedule.warmup_steps=0",
        "train.max_grad_norm=0",
        "train.max_steps=1",
    ];
    let set = [&set[..], &["task.metrics=[\"exact_match\"]"]].concat();
    let (code, said) = refused(&arguments(&dir, "full.toml", "run", &set));
    assert!(code == 6 && said.contains("the loss of the evaluation"), "{code} {said}");
}
