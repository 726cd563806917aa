//! The curves of several runs over each other, on one page that needs nothing beside itself.

use temper_tasks::Metric;

use super::charts::{Chart, Line};
use super::curves::{loss_chart, metric_line, step_chart};
use super::grid::Table;
use super::page::{document, escape, section};
use super::scale::downsample;
use super::{ReportData, StepPoint};

/// Points of all lines of a chart together, about.
const POINTS: usize = 3600;

/// How the lines of runs look: six colours, then the same dashed, dash by dash.
const LOOKS: [&str; 24] = [
    "run c0",
    "run c1",
    "run c2",
    "run c3",
    "run c4",
    "run c5",
    "run c0 d1",
    "run c1 d1",
    "run c2 d1",
    "run c3 d1",
    "run c4 d1",
    "run c5 d1",
    "run c0 d2",
    "run c1 d2",
    "run c2 d2",
    "run c3 d2",
    "run c4 d2",
    "run c5 d2",
    "run c0 d3",
    "run c1 d3",
    "run c2 d3",
    "run c3 d3",
    "run c4 d3",
    "run c5 d3",
];

/// The page of `runs`: `tables`, and a chart with a line for each run of the training loss, the learning rate and each
/// metric. The colour of a run stands before its name in the tables.
pub fn render_runs(title: &str, runs: &[ReportData], tables: &[Table]) -> String {
    let count = if runs.len() == 1 { "1 run".to_owned() } else { format!("{} runs", runs.len()) };
    let header = format!("<header>\n<h1>{}</h1>\n<p>{count}</p>\n</header>", escape(title));
    let shown: String = tables.iter().map(|table| section(&escape(&table.title), &table.html(key))).collect();
    document(title, &header, &(shown + &section("Curves", &figures(runs))))
}

/// A short line as those of the run in the charts.
fn key(run: usize) -> String {
    format!("<span class=\"key\"><svg viewBox=\"0 0 16 8\"><path class=\"{}\" d=\"M1 4H15\"/></svg></span>", look(run))
}

fn look(run: usize) -> &'static str {
    LOOKS[run % LOOKS.len()]
}

fn figures(runs: &[ReportData]) -> String {
    let loss = |data: &ReportData| {
        let mut lines = loss_chart(data)?.1.lines.into_iter();
        // The course without the noise; what its points say stands with those of the noise.
        let (raw, smooth) = (lines.next()?, lines.next()?);
        Some(Line { hover: raw.hover, ..smooth })
    };
    let rate = |data: &ReportData| step_chart(data, "rate", false, |point: &StepPoint| point.lr).lines.pop();
    let mut charts = vec![
        ("Training loss, smoothed".to_owned(), overlay(runs, "loss per target", false, loss)),
        ("Learning rate".to_owned(), overlay(runs, "rate", true, rate)),
    ];
    for metric in metrics(runs) {
        let mut chart =
            overlay(runs, "score on the evaluation rows", false, |data| metric_line(&data.evaluations, &metric));
        chart.best = best(&chart.lines, &metric);
        charts.push((format!("Evaluation: {}", metric.replace('_', " ")), chart));
    }
    charts.retain(|(_, chart)| chart.lines.iter().any(|line| !line.points.is_empty()));
    let figure = |(title, chart): &(String, Chart)| {
        let title = escape(title);
        format!("<figure class=\"card\"><figcaption>{title}</figcaption>{}</figure>\n", chart.svg(&title))
    };
    let figures: String = charts.iter().map(figure).collect();
    if figures.is_empty() { figures } else { format!("<div class=\"charts\">{figures}</div>") }
}

/// A chart with the line of each run that has one.
fn overlay<'a>(
    runs: &[ReportData],
    y_label: &'a str,
    from_zero: bool,
    line: impl Fn(&ReportData) -> Option<Line>,
) -> Chart<'a> {
    let most = (POINTS / runs.len().max(1)).max(40);
    let lines = runs.iter().enumerate().filter_map(|(run, data)| Some(dressed(line(data)?, run, &data.name, most)));
    Chart { y_label, lines: lines.collect(), from_zero, ..Chart::default() }
}

/// `line` as that of a run: in its colour, each point with its name, of at most `most` points.
fn dressed(line: Line, run: usize, name: &str, most: usize) -> Line {
    let finite: Vec<usize> = (0..line.points.len()).filter(|&index| line.points[index].1.is_finite()).collect();
    let values: Vec<f64> = finite.iter().map(|&index| line.points[index].1).collect();
    let kept: Vec<usize> = downsample(&values, most).into_iter().map(|index| finite[index]).collect();
    let hover = kept.iter().filter_map(|&index| Some(format!("{name} · {}", line.hover.get(index)?)));
    Line { class: look(run), hover: hover.collect(), points: kept.iter().map(|&i| line.points[i]).collect(), ..line }
}

/// Every metric that was measured, those that decide first.
fn metrics(runs: &[ReportData]) -> Vec<String> {
    let measured = runs.iter().flat_map(|data| &data.evaluations).flat_map(|evaluation| evaluation.scores.keys());
    let mut metrics: Vec<&String> = measured.collect();
    metrics.sort_by_key(|metric| (!runs.iter().any(|data| data.metric == **metric), *metric));
    metrics.dedup();
    metrics.into_iter().cloned().collect()
}

/// The best point of all lines, where it is known which way is better.
fn best(lines: &[Line], metric: &str) -> Option<(f64, f64)> {
    let sign = if Metric::from_name(metric)?.higher_is_better() { 1.0 } else { -1.0 };
    let points = lines.iter().flat_map(|line| &line.points);
    // Of equal ones the first.
    points.copied().reduce(|best, point| if sign * point.1 > sign * best.1 { point } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::EvaluationPoint;
    use std::collections::BTreeMap;

    fn run(name: &str, shift: f64, steps: u64) -> ReportData {
        let evaluation = |step: u64| EvaluationPoint {
            step,
            scores: BTreeMap::from([("accuracy".into(), 0.5 + shift), ("loss".into(), 0.5 - shift)]),
        };
        let point =
            |step| StepPoint { step, epoch: 1.0, loss: shift + 1.0 / step as f64, lr: 1e-3, ..Default::default() };
        ReportData {
            name: name.into(),
            metric: "accuracy".into(),
            steps: (1..=steps).map(point).collect(),
            evaluations: vec![evaluation(steps)],
            ..ReportData::default()
        }
    }

    #[test]
    fn each_run_has_a_line_in_each_chart() {
        let runs = [run("a", 0.0, 10), run("<b>", 0.1, 10)];
        let page = render_runs("runs", &runs, &[]);
        assert_eq!(page.matches("<figure").count(), 4, "loss, rate, accuracy, loss of the evaluation rows");
        for look in &LOOKS[..2] {
            assert_eq!(page.matches(&format!("class=\"{look}\" d=\"M")).count(), 2, "{look}: loss and rate");
            assert_eq!(page.matches(&format!("class=\"{look} dot\"")).count(), 2, "{look}: one evaluation is a dot");
        }
        assert!(page.contains("&lt;b&gt; · step 10") && !page.contains("<b> ·"));
        let first = page.find("Evaluation: accuracy").unwrap_or(usize::MAX);
        assert!(first < page.find("Evaluation: loss").unwrap_or(0), "what decides comes first");
        assert_eq!(page.matches("<circle class=\"best\"").count(), 2);
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let page = render_runs("runs", &[run("a", 0.0, 10)], &[]).replace("http://www.w3.org/2000/svg", "");
        for outside in ["http:", "https:", "url(", "@import", "<link", " src="] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_best_point_is_that_of_its_metric() {
        let line = |points: &[(f64, f64)]| Line { class: "", dots: true, points: points.to_vec(), hover: Vec::new() };
        let lines = [line(&[(1.0, 0.5), (2.0, 0.7)]), line(&[(1.0, 0.7), (2.0, 0.1)])];
        assert_eq!(best(&lines, "accuracy"), Some((2.0, 0.7)));
        assert_eq!(best(&lines, "perplexity"), Some((2.0, 0.1)));
        assert_eq!(best(&lines, "unheard of"), None);
    }

    #[test]
    fn many_long_runs_make_no_long_page_and_none_no_chart() {
        let runs: Vec<ReportData> = (0..60).map(|i| run(&format!("run {i}"), f64::from(i), 2_000)).collect();
        let page = render_runs("runs", &runs, &[]);
        assert!(page.len() < 1_500_000, "{}", page.len());
        let empty = render_runs("runs", &[ReportData::default()], &[]);
        assert!(!empty.contains("<figure") && !empty.contains("NaN"));
    }
}
