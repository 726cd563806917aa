//! Rules about causal language models: `[task]` with `kind = "causal-lm"`, and the keys of `[data]` that only it reads.

use regex::Regex;
use temper_data::Format;
use temper_tasks::{CausalLmConfig, Metric, TaskConfig};

use super::once;
use crate::recipe::Recipe;
use crate::recipe::rules::Rules;

pub(super) fn task(rules: &mut Rules<'_>, task: &CausalLmConfig) {
    once(rules, "task.metrics", &task.metrics);
    for (i, metric) in task.metrics.iter().enumerate() {
        let message = match metric {
            Metric::ChoiceAccuracy | Metric::ExactMatch | Metric::RegexMatch => continue,
            Metric::Loss | Metric::Perplexity => format!("`{}` is always measured", metric.name()),
            _ => format!("a language model is not measured by `{}`", metric.name()),
        };
        rules.wrong(&format!("task.metrics.{i}"), &message, "write `exact_match`, `regex_match` or `choice_accuracy`");
    }
    let generates = |metric: &Metric| matches!(metric, Metric::ExactMatch | Metric::RegexMatch);
    if !task.metrics.iter().any(generates) && task.samples == 0 {
        rules.idle(&["task.max_new_tokens"], "nothing is generated: no metric asks for it, and `samples` is 0", "");
    }
    match (&task.answer, task.metrics.contains(&Metric::RegexMatch)) {
        (None, true) => {
            let message = "`regex_match` needs `answer` in [task], which says what of an answer counts";
            rules.wrong("task.metrics", message, "write `answer = '#### (-?[0-9.,]+)'`, say");
        }
        (Some(_), false) => rules.idle(&["task.answer"], "`regex_match` is not among the metrics", "task.metrics"),
        (Some(answer), true) => {
            if let Err(error) = Regex::new(answer) {
                // The last line says what; those before draw the place, which the diagnostic does too.
                let error = error.to_string();
                let what = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                rules.wrong("task.answer", &format!("`answer` in [task] is no regular expression: {what}"), "");
            }
        }
        (None, false) => {}
    }
}

/// The keys of `[data]` that say how a causal language model reads its rows.
pub(super) fn data(rules: &mut Rules<'_>, recipe: &Recipe) {
    const CAUSAL: [&str; 8] = [
        "data.format",
        "data.columns",
        "data.template",
        "data.template_variables",
        "data.template_date",
        "data.train_on",
        "data.long_rows",
        "data.packing",
    ];
    for (name, value) in &recipe.data.template_variables {
        let key = format!("data.template_variables.{name}");
        if ["messages", "tools", "documents", "add_generation_prompt"].contains(&name.as_str()) {
            rules.wrong(&key, &format!("every row gives the template its own `{name}`"), "");
        }
        if value.to_string().contains("$__toml_private_datetime") {
            rules.wrong(&key, &format!("`{name}` is a date, which no template knows"), "write it as a text, in quotes");
        }
    }
    if !matches!(recipe.task, TaskConfig::CausalLm(_)) {
        rules.idle(&CAUSAL, "only `kind = \"causal-lm\"` reads conversations", "task.kind");
        return;
    }
    const CHAT: [&str; 3] = ["data.template", "data.template_variables", "data.template_date"];
    if recipe.data.format == Some(Format::Text) {
        rules.idle(&CHAT, "texts have no turns", "data.format");
        rules.idle(&["data.train_on", "data.long_rows"], "texts are learned whole, in pieces", "data.format");
    }
    rules.not_empty("data.template");
}
