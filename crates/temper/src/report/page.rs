//! The page: head and headline; the sections are those of `curves.rs` and `tables.rs`.

use super::{ReportData, curves, tables};
use crate::units;

/// The page, complete in itself: no other file, no network, and no script needed to read it.
pub fn render(data: &ReportData) -> String {
    let sections = [
        section("Curves", &curves::figures(data)),
        section("Confusion", &data.confusion.as_ref().map(tables::confusion).unwrap_or_default()),
        section("Surest errors", &tables::errors(&data.errors)),
        section("What it says", &tables::samples(&data.samples)),
        section("Data", &data.data.iter().map(tables::split).collect::<String>()),
        section("Plan", &tables::plan(data)),
        section("Recipe", &tables::recipe(&data.recipe)),
    ];
    document(&data.name, &header(data), &sections.concat())
}

/// A page with its styles and its script, complete in itself; `header` and `main` are HTML.
pub(super) fn document(title: &str, header: &str, main: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{} · temper</title>\n<style>\n{}{}</style>\n</head>\n\
         <body>\n{header}\n<main>\n{main}\n</main>\n<footer>temper {}</footer>\n<script>\n{}</script>\n</body>\n</html>\n",
        escape(title),
        include_str!("colors.css"),
        include_str!("page.css"),
        env!("CARGO_PKG_VERSION"),
        include_str!("hover.js"),
    )
}

/// `text` as HTML text or as the value of a quoted attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// A section with a heading; nothing where it would be empty.
pub(super) fn section(title: &str, content: &str) -> String {
    if content.is_empty() { String::new() } else { format!("<section>\n<h2>{title}</h2>\n{content}\n</section>\n") }
}

fn header(data: &ReportData) -> String {
    let time = data.time.get(..16).map(|time| format!("{} UTC", time.replace('T', " ")));
    let ended: Vec<String> = [data.ended.clone()].into_iter().chain(time).filter(|word| !word.is_empty()).collect();
    let ended = escape(&ended.join(" · "));
    let class = if data.ended == "finished" { "chip good" } else { "chip" };
    let chip = if ended.is_empty() { String::new() } else { format!("<span class=\"{class}\">{ended}</span>") };
    format!(
        "<header>\n<div class=\"line\"><h1>{}</h1>{chip}</div>\n<p>{}</p>\n<div class=\"tiles\">{}</div>\n</header>",
        escape(&data.name),
        escape(&data.summary),
        tiles(data)
    )
}

fn tiles(data: &ReportData) -> String {
    let mut tiles = Vec::new();
    if let Some(best) = data.best_score() {
        let step = data.best_step.map(|step| format!("best, at step {}", units::grouped(step))).unwrap_or_default();
        let baseline = data.baseline.as_ref();
        let note = baseline.map_or(step, |b| format!("{}: {}", b.name, units::number(b.value)));
        tiles.push(("best", data.metric.replace('_', " "), units::number(best), note));
    } else if let Some(last) = data.steps.last() {
        tiles.push((
            "best",
            "training loss".into(),
            units::number(last.loss),
            format!("at step {}", units::grouped(last.step)),
        ));
    }
    if data.parameters > 0 {
        let share = units::percent(data.trainable_parameters as f64 / data.parameters as f64);
        let note = format!("{share} of {}", units::short(data.parameters as f64));
        tiles.push(("", "trained parameters".into(), units::short(data.trainable_parameters as f64), note));
    }
    if data.seconds > 0.0 {
        let steps =
            data.steps.last().map(|last| format!("{} steps, {:.2} epochs", units::grouped(last.step), last.epoch));
        tiles.push(("", "time".into(), units::seconds(data.seconds), steps.unwrap_or_default()));
    }
    if let Some(speed) = units::median(data.steps.iter().map(|point| point.tokens_per_second).collect()) {
        let note = format!("median; {} tokens", units::short(data.tokens as f64));
        tiles.push(("", "tokens per second".into(), units::short(speed), note));
    }
    if let Some(peak) = data.peak_memory {
        let since = match data.peak_since {
            0 => String::new(),
            step => format!("since step {}, ", units::grouped(step)),
        };
        tiles.push(("", "peak memory".into(), units::bytes(peak), since + &data.device));
    }
    let tile = |(class, label, value, note): &(&str, String, String, String)| {
        let [label, value, note] = [label, value, note].map(|text| escape(text));
        format!("<div class=\"tile {class}\"><small>{label}</small><b>{value}</b><span>{note}</span></div>")
    };
    tiles.iter().map(tile).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        Baseline, Confusion, EvaluationPoint, Section, Split, StepPoint, WorstError, render_svg_curves,
    };
    use std::collections::BTreeMap;
    use temper_tasks::Sample;

    const EVIL: &str = "<img src=x onerror=\"alert('&')\">";

    fn data() -> ReportData {
        let step =
            |step: u64| StepPoint { step, epoch: step as f64 / 50.0, loss: 1.0 / step as f64, ..Default::default() };
        let evaluation = |step: u64| EvaluationPoint {
            step,
            scores: BTreeMap::from([("accuracy".to_owned(), step as f64 / 200.0), ("loss".to_owned(), 0.5)]),
        };
        ReportData {
            name: "run".into(),
            steps: (1..=100).map(step).collect(),
            evaluations: vec![evaluation(50), evaluation(100)],
            metric: "accuracy".into(),
            best_step: Some(100),
            baseline: Some(Baseline { name: "most frequent label".into(), value: 0.25 }),
            ..Default::default()
        }
    }

    #[test]
    fn every_text_is_escaped() {
        let evil = || EVIL.to_owned();
        let mut data = ReportData {
            name: evil(),
            summary: evil(),
            recipe: format!("{EVIL}\n# {EVIL}\n[{EVIL}]\n{EVIL} = {EVIL}"),
            plan: vec![Section { title: evil(), rows: vec![(evil(), evil())] }],
            data: vec![Split {
                name: evil(),
                lengths: crate::report::bins(&[1, 2]),
                labels: vec![(evil(), 1)],
                ..Default::default()
            }],
            metric: evil(),
            baseline: Some(Baseline { name: evil(), value: 0.5 }),
            confusion: Some(Confusion { labels: vec![evil()], counts: vec![vec![1]] }),
            errors: vec![WorstError { text: evil(), label: evil(), predicted: evil(), probability: 0.5 }],
            samples: vec![Sample { prompt: evil(), expected: evil(), answer: evil() }],
            peak_memory: Some(1),
            device: evil(),
            versions: vec![(evil(), evil())],
            ended: evil(),
            time: evil(),
            ..data()
        };
        data.evaluations[1].scores.insert(evil(), 0.5);
        for text in [render(&data), render_svg_curves(&data)] {
            assert!(text.contains("&lt;img src=x onerror=&quot;alert(&#39;&amp;&#39;)&quot;&gt;"));
            assert!(!text.contains("<img") && !text.contains("alert('"));
        }
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let page = render(&data());
        for outside in ["http:", "https:", "url(", "@import", "<link", " src="] {
            let inside = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!inside.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_best_evaluation_is_named_and_marked() {
        let page = render(&data());
        assert!(page.contains("<small>accuracy</small><b>0.5</b><span>most frequent label: 0.25</span>"));
        assert_eq!(page.matches("<circle class=\"best\"").count(), 2, "on the loss and on the accuracy");
        assert!(page.contains(">epoch 1</text>"));
        let ended = ReportData { ended: "finished".into(), time: "2026-01-02T03:04:05.006Z".into(), ..data() };
        assert!(render(&ended).contains("<span class=\"chip good\">finished · 2026-01-02 03:04 UTC</span>"));
    }

    #[test]
    fn little_data_makes_a_little_page() {
        let mut one = data();
        one.steps.truncate(1);
        one.evaluations.clear();
        for data in [ReportData::default(), one, ReportData { steps: Vec::new(), ..data() }] {
            for text in [render(&data), render_svg_curves(&data)] {
                assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
            }
        }
        let page = render(&ReportData::default());
        assert!(!page.contains("<h2>") && !page.contains("class=\"tile "), "what is empty has no place");
    }

    #[test]
    fn long_runs_make_no_long_page() {
        let point = |step| StepPoint { step, epoch: 1.0, loss: 1.0 / step as f64, ..Default::default() };
        let page = render(&ReportData { steps: (1..=100_000).map(point).collect(), ..data() });
        assert!(page.len() < 400_000, "{}", page.len());
    }
}
