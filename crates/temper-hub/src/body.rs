//! The card's Markdown: a section for each thing that a reader asks, each left out when there is nothing to say.

use std::fmt::Write as _;

use crate::{
    Card, Commit, Head, Pipeline, Relation,
    card::{Confusion, Evaluation, hub_id},
    names::wrong_with_path,
};

/// The whole body, from the heading to the device.
pub(crate) fn markdown(card: &Card) -> String {
    let mut sections = vec![format!("# {}", line(&card.title)), about(card)];
    sections.extend(results(card));
    sections.extend(sources(card));
    sections.extend(data(card));
    sections.push(usage(card));
    sections.extend(procedure(card));
    sections.extend(card.confusion.as_ref().map(confusion));
    sections.push(limitations(card));
    sections.extend(license(card));
    sections.extend(environment(card));
    sections.join("\n\n") + "\n"
}

fn about(card: &Card) -> String {
    let kind = match card.relation {
        Relation::Adapter => "An adapter in PEFT's format for",
        Relation::Finetune => "Full weights, fine-tuned from",
    };
    let base = match hub_id(&card.base_model) {
        Some(id) => format!("[{id}]({}/{id})", card.endpoint),
        None if card.base_model.is_empty() => "a base model that the run did not name".into(),
        None => format!("the local model `{}`", last(&card.base_model)),
    };
    let commit = card.base_revision.as_deref().and_then(Commit::new);
    let at = commit.map(|commit| format!(" at `{commit}`")).unwrap_or_default();
    let made = format!("{kind} {base}{at}, made with temper (Rust, on burn).");
    if card.summary.is_empty() { made } else { format!("{}\n\n{made}", card.summary.trim()) }
}

fn results(card: &Card) -> Option<String> {
    let mut rows = Vec::new();
    for evaluation in card.evaluations.iter().filter_map(Evaluation::measured) {
        let dataset = evaluation.dataset;
        for metric in evaluation.metrics {
            let split = dataset.split.clone().unwrap_or_default();
            let name = if metric.name.is_empty() { metric.kind } else { metric.name };
            rows.push(vec![dataset.name.clone(), split, name, format!("{:.4}", metric.value)]);
        }
    }
    (!rows.is_empty()).then(|| section("Results", &table(&["data set", "split", "metric", "value"], &rows)))
}

fn sources(card: &Card) -> Option<String> {
    let row = |source: &crate::DataSource| {
        let id = hub_id(&source.id)?;
        let link = format!("[{id}]({}/datasets/{id})", card.endpoint);
        let commit = Commit::new(&source.revision).map(|commit| format!("`{commit}`")).unwrap_or_default();
        let license = source.license.clone().unwrap_or_else(|| "not stated".into());
        Some(vec![link, source.config.clone(), source.splits.join(", "), commit, license])
    };
    let rows: Vec<_> = card.sources.iter().filter_map(row).collect();
    let header = ["data set", "configuration", "splits", "commit", "licence"];
    (!rows.is_empty()).then(|| section("Data sets", &table(&header, &rows)))
}

fn data(card: &Card) -> Option<String> {
    let row = |file: &crate::DataFile| {
        vec![file.split.clone(), file.name.clone(), file.rows.to_string(), format!("`{}`", file.sha256)]
    };
    let rows: Vec<_> = card.files.iter().map(row).collect();
    (!rows.is_empty()).then(|| section("Training data", &table(&["split", "file", "rows", "sha256"], &rows)))
}

fn usage(card: &Card) -> String {
    let mut text = String::new();
    if !card.command.is_empty() {
        let _ = write!(text, "With temper:\n\n{}\n\n", fence("sh", &card.command));
    }
    let library = match card.relation {
        Relation::Adapter => "Transformers and PEFT",
        Relation::Finetune => "Transformers",
    };
    let _ = write!(text, "With {library}, where `here` is this repository or a copy of it:\n\n");
    text += &fence("python", &python(card));
    section("How to use it", &text)
}

fn python(card: &Card) -> String {
    let class = match card.pipeline {
        Pipeline::TextClassification => "AutoModelForSequenceClassification",
        Pipeline::TextGeneration => "AutoModelForCausalLM",
        Pipeline::FillMask => "AutoModelForMaskedLM",
        Pipeline::FeatureExtraction => "AutoModel",
    };
    let peft = if card.relation == Relation::Adapter { "from peft import PeftModel\n" } else { "" };
    // Else an adapter's answers would end where its base's do.
    let (import, ends) = match (card.relation, card.pipeline) {
        (Relation::Adapter, Pipeline::TextGeneration) => {
            (", GenerationConfig", "\nmodel.generation_config = GenerationConfig.from_pretrained(here)")
        }
        _ => ("", ""),
    };
    let names: Vec<_> = card.labels.iter().map(literal).collect();
    let dtype = if card.half { ", dtype=torch.float32" } else { "" };
    let load = match (card.relation, card.pipeline) {
        (Relation::Finetune, _) => format!("model = {class}.from_pretrained(here{dtype}).eval()"),
        (Relation::Adapter, pipeline) => {
            let base = literal(hub_id(&card.base_model).unwrap_or("path/to/the/base"));
            let classes = match (pipeline, card.head) {
                (Pipeline::TextClassification, Head::Score) => ", num_labels=1",
                (Pipeline::TextClassification, Head::Class | Head::Labels) => ", num_labels=len(labels)",
                (Pipeline::TextGeneration | Pipeline::FillMask | Pipeline::FeatureExtraction, _) => "",
            };
            let revision = card.base_revision.as_deref().and_then(Commit::new);
            let revision =
                revision.map(|commit| format!(", revision={}", literal(commit.as_str()))).unwrap_or_default();
            format!(
                "base = {class}.from_pretrained({base}{revision}{classes}{dtype})\nmodel = PeftModel.from_pretrained(base, here).eval(){ends}"
            )
        }
    };
    let (before, after) = match card.pipeline {
        Pipeline::TextClassification => {
            let labels = format!("labels = [{}]\n", names.join(", "));
            let (labels, said) = match card.head {
                Head::Class => (labels, "labels[logits.argmax().item()]"),
                Head::Labels => (labels, "[label for label, logit in zip(labels, logits) if logit > 0]"),
                Head::Score => (String::new(), "logits.item()"),
            };
            let second = if card.pairs { "\"Your second text here\", " } else { "" };
            let run = format!(
                "inputs = tokenizer(\"Your text here\", {second}return_tensors=\"pt\")\n\
                 with torch.no_grad():\n    logits = model(**inputs).logits[0]\n\
                 print({said})"
            );
            (labels, run)
        }
        Pipeline::TextGeneration => (
            String::new(),
            "prompt, chats = \"Your text here\", tokenizer.chat_template is not None\n\
             if chats:\n    messages = [{\"role\": \"user\", \"content\": prompt}]\n    \
             prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)\n\
             inputs = tokenizer(prompt, return_tensors=\"pt\", add_special_tokens=not chats)\n\
             with torch.no_grad():\n    output = model.generate(**inputs, max_new_tokens=64)\n\
             print(tokenizer.decode(output[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))"
                .into(),
        ),
        Pipeline::FillMask => (
            String::new(),
            "inputs = tokenizer(f\"Your {tokenizer.mask_token} here\", return_tensors=\"pt\")\n\
             with torch.no_grad():\n    logits = model(**inputs).logits\n\
             masked = inputs.input_ids == tokenizer.mask_token_id\n\
             print(tokenizer.convert_ids_to_tokens(logits[masked].argmax(-1)))"
                .into(),
        ),
        Pipeline::FeatureExtraction => (
            String::new(),
            "inputs = tokenizer(\"Your text here\", return_tensors=\"pt\")\n\
             with torch.no_grad():\n    print(model(**inputs).last_hidden_state.shape)"
                .into(),
        ),
    };
    format!(
        "import torch\n{peft}from transformers import {class}, AutoTokenizer{import}\n\n\
         here = \".\"\n{before}tokenizer = AutoTokenizer.from_pretrained(here)\n{load}\n\n{after}"
    )
}

fn procedure(card: &Card) -> Option<String> {
    let mut parts = Vec::new();
    if !card.hyperparameters.is_empty() {
        parts.push(pairs(&["hyper-parameter", "value"], &card.hyperparameters));
    }
    if let Some(history) = card.history.as_ref().filter(|history| !history.rows.is_empty()) {
        let header: Vec<&str> = history.columns.iter().map(String::as_str).collect();
        parts.push(table(&header, &history.rows));
    }
    // An image beside the card; a name with a scheme or a way out would load it from elsewhere.
    if let Some(curves) = card.curves.as_deref().filter(|name| wrong_with_path(name).is_none()) {
        parts.push(format!("![Training curves]({})", curves.replace(' ', "%20").replace(')', "%29")));
    }
    if !card.recipe.trim().is_empty() {
        parts.push(format!("The recipe:\n\n{}", fence("toml", card.recipe.trim_end())));
    }
    (!parts.is_empty()).then(|| section("Training procedure", &parts.join("\n\n")))
}

fn confusion(confusion: &Confusion) -> String {
    let mut header = vec![String::from("actual \\ predicted")];
    header.extend(confusion.labels.iter().cloned());
    let row = |(label, counts): (&String, &Vec<usize>)| {
        std::iter::once(label.clone()).chain(counts.iter().map(usize::to_string)).collect()
    };
    let rows: Vec<Vec<String>> = confusion.labels.iter().zip(&confusion.counts).map(row).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    section("Evaluation", &format!("Examples of the evaluation data by class:\n\n{}", table(&header, &rows)))
}

fn limitations(card: &Card) -> String {
    let mut evaluated: Vec<String> = Vec::new();
    for evaluation in card.evaluations.iter().filter_map(Evaluation::measured) {
        let metrics: Vec<_> = evaluation.metrics.iter().map(|metric| metric.kind.as_str()).collect();
        let split = evaluation.dataset.split.map(|split| format!(" ({split})")).unwrap_or_default();
        evaluated.push(format!("{} on {}{split}.", metrics.join(", "), evaluation.dataset.name));
    }
    evaluated.extend(card.evaluated.iter().cloned());
    if evaluated.is_empty() {
        evaluated.push("Nothing.".into());
    }
    let mut missing = card.not_evaluated.clone();
    missing.push("Any other data, language or domain than those named above.".into());
    missing.push("Bias, fairness, robustness to hostile input, and calibration.".into());
    let text = format!("Evaluated:\n\n{}\n\nNot evaluated:\n\n{}", list(&evaluated), list(&missing));
    section("Limitations", &text)
}

fn license(card: &Card) -> Option<String> {
    let missing =
        "No licence is given: neither the author nor the base model's card stated one. Ask the author before use.";
    let mut notes: Vec<String> = card.license_notes.clone();
    if card.license.is_none() {
        notes.insert(0, missing.into());
    }
    match &notes[..] {
        [] => None,
        [only] => Some(section("Licence", &line(only))),
        several => Some(section("Licence", &list(several))),
    }
}

fn environment(card: &Card) -> Option<String> {
    let mut rows = card.versions.clone();
    if !card.device.is_empty() {
        rows.push(("device".into(), card.device.clone()));
    }
    (!rows.is_empty()).then(|| section("Versions and device", &pairs(&["what", "which"], &rows)))
}

pub(crate) fn section(heading: &str, text: &str) -> String {
    format!("## {heading}\n\n{text}")
}

fn pairs(header: &[&str], rows: &[(String, String)]) -> String {
    table(header, &rows.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect::<Vec<_>>())
}

pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let row = |cells: &mut dyn Iterator<Item = String>| format!("| {} |", cells.collect::<Vec<_>>().join(" | "));
    let mut lines = vec![row(&mut header.iter().map(|text| cell(text))), row(&mut header.iter().map(|_| "---".into()))];
    lines.extend(rows.iter().map(|cells| row(&mut cells.iter().map(|text| cell(text)))));
    lines.join("\n")
}

pub(crate) fn list(items: &[String]) -> String {
    items.iter().map(|item| format!("- {}", line(item))).collect::<Vec<_>>().join("\n")
}

/// A table's cell: one line, its bars escaped.
fn cell(text: &str) -> String {
    line(text).replace('|', "\\|")
}

pub(crate) fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A code block whose fence is longer than any run of backticks in it.
fn fence(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let ticks = "`".repeat(3.max(longest + 1));
    format!("{ticks}{language}\n{text}\n{ticks}")
}

/// JSON strings are Python literals too.
fn literal(text: impl AsRef<str>) -> String {
    serde_json::Value::from(text.as_ref()).to_string()
}

/// The last component of a path, whichever way its slashes lean.
fn last(path: &str) -> &str {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default()
}
