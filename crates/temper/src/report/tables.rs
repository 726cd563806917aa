//! The tables of the page: confusion, errors, answers, data, plan and recipe.

use temper_tasks::Sample;

use super::charts;
use super::page::escape;
use super::{Confusion, ReportData, Section, Split, WorstError};
use crate::units;

/// Labels that a confusion matrix and a table of labels show at most.
const LABELS: usize = 20;

/// Counts and row percentages as a heat map: rows are true labels, columns predictions.
pub fn confusion(confusion: &Confusion) -> String {
    let shown = most_confused(confusion);
    let names: Vec<String> =
        shown.iter().map(|&label| escape(confusion.labels.get(label).map_or("", |name| name))).collect();
    let heads: String = names.iter().map(|name| format!("<th scope=\"col\"><span>{name}</span></th>")).collect();
    let rows: String =
        shown.iter().zip(&names).map(|(&label, name)| row(&confusion.counts[label], label, &shown, name)).collect();
    let scores: String = shown.iter().zip(&names).map(|(&label, name)| scores(confusion, label, name)).collect();
    let mut note = "Rows are true labels, columns predictions; percentages are shares of the row.".to_owned();
    if shown.len() < confusion.counts.len() {
        let all = units::grouped(confusion.counts.len() as u64);
        note += &format!(" Shown are the {} labels with the most errors, of {all}.", shown.len());
    }
    let dense = if shown.len() > 8 { " dense" } else { "" };
    format!(
        "<div class=\"card sides\"><div><table class=\"confusion{dense}\">\n<thead><tr><td></td>{heads}\
         <th scope=\"col\" class=\"sum\">rows</th></tr></thead>\n<tbody>{rows}</tbody></table></div>\n\
         <figure><table class=\"scores\"><thead><tr><th>label</th><th>precision</th><th>recall</th><th>F1</th></tr></thead>\n\
         <tbody>{scores}</tbody></table></figure></div><p class=\"aside\">{note}</p>"
    )
}

/// Precision, recall and F1 of a label; a dash where there is nothing to divide by.
fn scores(confusion: &Confusion, label: usize, name: &str) -> String {
    let count = |truth: usize, guess: usize| confusion.counts[truth].get(guess).copied().unwrap_or(0);
    let right = count(label, label);
    let actual: u64 = confusion.counts[label].iter().sum();
    let predicted: u64 = (0..confusion.counts.len()).map(|truth| count(truth, label)).sum();
    let cell = |part: u64, whole: u64| {
        let text = if whole == 0 { "–".to_owned() } else { format!("{:.3}", part as f64 / whole as f64) };
        format!("<td>{text}</td>")
    };
    let cells = [cell(right, predicted), cell(right, actual), cell(2 * right, predicted + actual)].concat();
    format!("<tr><th scope=\"row\">{name}</th>{cells}</tr>\n")
}

fn row(counts: &[u64], label: usize, shown: &[usize], name: &str) -> String {
    let total: u64 = counts.iter().sum();
    let cell = |&column: &usize| {
        let count = counts.get(column).copied().unwrap_or(0);
        let share = if total == 0 { 0.0 } else { count as f64 / total as f64 };
        let class = match (column == label, count) {
            (_, 0) => "zero",
            (true, _) => "right",
            (false, _) => "wrong",
        };
        let strong = if share > 0.7 { " strong" } else { "" };
        let count = units::grouped(count);
        format!(
            "<td class=\"{class}{strong}\" style=\"--share:{share:.3}\"><b>{count}</b><small>{}</small></td>",
            units::percent(share)
        )
    };
    let cells: String = shown.iter().map(cell).collect();
    format!("<tr><th scope=\"row\">{name}</th>{cells}<td class=\"sum\">{}</td></tr>\n", units::grouped(total))
}

/// All labels, or the [`LABELS`] that take part in the most errors, in their own order.
fn most_confused(confusion: &Confusion) -> Vec<usize> {
    let labels = confusion.counts.len();
    let mut errors = vec![0u64; labels];
    for (truth, counts) in confusion.counts.iter().enumerate() {
        for (guess, count) in counts.iter().enumerate().filter(|&(guess, _)| guess != truth && guess < labels) {
            errors[truth] += count;
            errors[guess] += count;
        }
    }
    let mut shown: Vec<usize> = (0..labels).collect();
    shown.sort_by_key(|&label| std::cmp::Reverse(errors[label]));
    shown.truncate(LABELS);
    shown.sort_unstable();
    shown
}

/// The errors of which the model was surest.
pub fn errors(errors: &[WorstError]) -> String {
    if errors.is_empty() {
        return String::new();
    }
    let row = |error: &WorstError| {
        let [label, predicted] = [&error.label, &error.predicted].map(|text| escape(text));
        format!(
            "<tr><td class=\"text\">{}</td><td><span class=\"tag\">{label}</span></td><td><span class=\"tag bad\">{predicted}</span></td>\
             <td class=\"meter\"><i style=\"--share:{:.3}\"></i>{}</td></tr>\n",
            excerpt(&error.text),
            error.probability,
            units::percent(error.probability)
        )
    };
    let rows: String = errors.iter().map(row).collect();
    format!(
        "<div class=\"card scroll\"><table class=\"errors\"><thead><tr><th>text</th><th>true</th><th>predicted</th><th>probability</th></tr></thead>\n\
         <tbody>{rows}</tbody></table></div>"
    )
}

/// What was asked, what the data say, what the model says.
pub fn samples(samples: &[Sample]) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let row = |Sample { prompt, expected, answer }: &Sample| {
        let cells = [prompt, expected, answer].map(|text| format!("<td class=\"text\">{}</td>", excerpt(text)));
        format!("<tr>{}</tr>\n", cells.concat())
    };
    let rows: String = samples.iter().map(row).collect();
    format!(
        "<div class=\"card scroll\"><table class=\"errors\"><thead><tr><th>prompt</th><th>expected</th><th>answer</th></tr></thead>\n\
         <tbody>{rows}</tbody></table></div>"
    )
}

/// A text, folded where it is long.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 220;
    let Some((limit, _)) = text.char_indices().nth(SHOWN) else { return escape(text) };
    // Between words, unless the words are very long.
    let end = text[..limit].rfind(char::is_whitespace).filter(|&end| end > limit / 2).unwrap_or(limit);
    let (begin, rest) = text.split_at(end);
    format!("<details><summary>{}<i> …</i></summary>{}</details>", escape(begin), escape(rest))
}

/// A split: its numbers, how long its rows are, how its labels are spread.
pub fn split(split: &Split) -> String {
    let mean = split.tokens as f64 / split.rows.max(1) as f64;
    let cut = split.truncated as f64 / split.rows.max(1) as f64;
    let facts = [
        ("rows", units::grouped(split.rows)),
        ("tokens", units::short(split.tokens as f64)),
        ("tokens a row", units::number((mean * 10.0).round() / 10.0)),
        ("cut at the greatest length", format!("{} ({})", units::grouped(split.truncated), units::percent(cut))),
    ];
    let facts: String =
        facts.iter().map(|(name, value)| format!("<div><small>{name}</small><b>{value}</b></div>")).collect();
    let name = escape(&split.name);
    let lengths = if split.lengths.is_empty() {
        String::new()
    } else {
        let chart = charts::histogram(&split.lengths, &format!("Lengths of {}", split.name));
        format!("<figure><figcaption>Lengths</figcaption>{chart}</figure>")
    };
    format!(
        "<article class=\"card\"><h3>{name}</h3><div class=\"facts\">{facts}</div><div class=\"charts\">{lengths}{}</div></article>\n",
        labels(&split.labels)
    )
}

/// Bars of the most frequent labels, and one for the others.
fn labels(labels: &[(String, u64)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let total: u64 = labels.iter().map(|(_, count)| count).sum();
    let mut sorted: Vec<(String, u64)> = labels.to_vec();
    if labels.len() > LABELS {
        sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let others: u64 = sorted[LABELS - 1..].iter().map(|(_, count)| count).sum();
        sorted.truncate(LABELS - 1);
        sorted.push((format!("{} others", labels.len() - LABELS + 1), others));
    }
    let most = sorted.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let bar = |(name, count): &(String, u64)| {
        let share = *count as f64 / total.max(1) as f64;
        format!(
            "<tr><th scope=\"row\">{}</th><td class=\"track\"><i style=\"--share:{:.3}\"></i></td><td>{}</td><td class=\"sum\">{}</td></tr>\n",
            escape(name),
            *count as f64 / most as f64,
            units::grouped(*count),
            units::percent(share)
        )
    };
    let bars: String = sorted.iter().map(bar).collect();
    format!("<figure><figcaption>Labels</figcaption><table class=\"bars\"><tbody>{bars}</tbody></table></figure>")
}

/// The tables of the plan, and what it ran on.
pub fn plan(data: &ReportData) -> String {
    let mut environment = data.versions.clone();
    if !data.device.is_empty() {
        environment.insert(0, ("device".into(), data.device.clone()));
    }
    let environment = Section { title: "Environment".into(), rows: environment };
    let card = |section: &Section| {
        let row = |(key, value): &(String, String)| format!("<dt>{}</dt><dd>{}</dd>", escape(key), escape(value));
        let rows: String = section.rows.iter().map(row).collect();
        format!("<article class=\"card\"><h3>{}</h3><dl>{rows}</dl></article>\n", escape(&section.title))
    };
    let cards: String = data.plan.iter().chain([&environment]).filter(|s| !s.rows.is_empty()).map(card).collect();
    if cards.is_empty() { cards } else { format!("<div class=\"plan\">{cards}</div>") }
}

/// The recipe with its tables, keys and comments told apart.
pub fn recipe(recipe: &str) -> String {
    if recipe.is_empty() {
        return String::new();
    }
    let line = |line: &str| {
        let escaped = escape(line);
        match line.trim_start().chars().next() {
            Some('#') => format!("<i>{escaped}</i>"),
            Some('[') => format!("<b>{escaped}</b>"),
            _ => match line.split_once(" = ") {
                Some((key, value)) => format!("<u>{}</u> = {}", escape(key), escape(value)),
                None => escaped,
            },
        }
    };
    let lines: Vec<String> = recipe.lines().map(line).collect();
    format!("<pre class=\"card\"><code>{}</code></pre>", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(labels: usize) -> Confusion {
        let counts =
            (0..labels).map(|truth| (0..labels).map(|guess| u64::from(truth == guess) * 3).collect()).collect();
        Confusion { labels: (0..labels).map(|label| format!("<label {label}>")).collect(), counts }
    }

    #[test]
    fn cells_have_counts_and_shares_of_the_row() {
        let confusion_matrix = Confusion { labels: vec!["a".into(), "b".into()], counts: vec![vec![3, 1], vec![0, 0]] };
        let html = confusion(&confusion_matrix);
        assert!(html.contains("class=\"right strong\" style=\"--share:0.750\"><b>3</b><small>75.0%</small>"), "{html}");
        assert!(html.contains("<tr><th scope=\"row\">a</th><td>1.000</td><td>0.750</td><td>0.857</td></tr>"), "{html}");
        assert!(html.contains("<tr><th scope=\"row\">b</th><td>0.000</td><td>–</td><td>0.000</td></tr>"), "{html}");
    }

    #[test]
    fn a_large_matrix_shows_the_labels_with_errors_and_says_so() {
        let mut large = matrix(1000);
        large.counts[700][3] = 9;
        let shown = most_confused(&large);
        assert!(shown.len() == LABELS && shown.contains(&700) && shown.contains(&3), "{shown:?}");
        let html = confusion(&large);
        assert!(html.contains("the 20 labels with the most errors, of 1,000") && html.contains("&lt;label 700&gt;"));
        assert!(!html.contains("<label"));
    }

    #[test]
    fn a_ragged_matrix_is_no_crash() {
        let html = confusion(&Confusion { labels: vec![], counts: vec![vec![1], vec![2, 3, 4]] });
        assert!(html.contains("<b>3</b>"));
    }

    #[test]
    fn many_labels_end_in_the_others() {
        let counts: Vec<(String, u64)> = (0..1000).map(|label| (format!("label {label}"), label)).collect();
        let html = labels(&counts);
        assert_eq!(html.matches("<tr>").count(), LABELS);
        assert!(html.contains("label 999") && html.contains("981 others"));
    }

    #[test]
    fn long_texts_fold_and_lose_nothing() {
        let text = "ä<".repeat(200);
        let html = excerpt(&text);
        assert!(html.starts_with("<details>"));
        assert_eq!(html.matches('ä').count(), 200);
        assert_eq!(html.matches("&lt;").count(), 200);
    }

    #[test]
    fn answers_stand_beside_what_was_expected() {
        let [prompt, expected, answer] = ["2 + 2?", "4", "<5>"].map(str::to_owned);
        let html = samples(&[Sample { prompt, expected, answer }]);
        let cell = |text: &str| format!("<td class=\"text\">{text}</td>");
        assert!(html.contains(&[cell("2 + 2?"), cell("4"), cell("&lt;5&gt;")].concat()), "{html}");
        assert_eq!(samples(&[]), "");
    }

    #[test]
    fn recipes_are_escaped_whole() {
        let html = recipe("# <c>\n[a]\nkey = \"<v>\"");
        assert!(html.contains("<i># &lt;c&gt;</i>\n<b>[a]</b>\n<u>key</u> = &quot;&lt;v&gt;&quot;"), "{html}");
    }
}
