//! Which curves a report shows, and what their points say.

use super::charts::{Chart, HEIGHT, Line, WIDTH};
use super::page::escape;
use super::scale::{downsample, smooth};
use super::{EvaluationPoint, ReportData, StepPoint};
use crate::units;

/// Points of a line: about one for each pixel of a chart.
const POINTS: usize = 600;

/// Loss and metric side by side as an SVG file for model cards.
pub fn render_svg_curves(data: &ReportData) -> String {
    let width = WIDTH + 40.0;
    let plots: Vec<(String, Chart)> =
        [loss_chart(data), metric_charts(data).into_iter().next()].into_iter().flatten().collect();
    let total = width * plots.len().max(1) as f64;
    let bodies: String = plots
        .iter()
        .enumerate()
        .map(|(index, (title, chart))| {
            let left = width * index as f64 + 20.0;
            let title = escape(title);
            format!(
                "<g transform=\"translate({left} 48)\"><text class=\"title\" y=\"-14\">{title}</text>{}{}</g>\n",
                svg_legend(chart),
                chart.body()
            )
        })
        .collect();
    let height = HEIGHT + 64.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {total} {height}\" width=\"{total}\" height=\"{height}\" role=\"img\">\n\
         <title>{} · training curves</title>\n<style>\n{}</style>\n<rect class=\"ground\" width=\"100%\" height=\"100%\" rx=\"10\"/>\n{bodies}</svg>\n",
        escape(&data.name),
        include_str!("colors.css"),
    )
}

/// A figure for each quantity that was logged.
pub fn figures(data: &ReportData) -> String {
    let mut charts: Vec<(String, Chart)> = loss_chart(data).into_iter().chain(metric_charts(data)).collect();
    if !data.steps.is_empty() {
        charts.push(("Learning rate".into(), step_chart(data, "rate", false, |point| point.lr)));
        charts.push(("Gradient norm".into(), step_chart(data, "norm before clipping", true, |point| point.grad_norm)));
        charts.push(("Speed".into(), step_chart(data, "tokens per second", true, |point| point.tokens_per_second)));
    }
    if charts.is_empty() {
        return String::new();
    }
    let figure = |(title, chart): &(String, Chart)| {
        let legend: String = chart.lines.iter().filter(|_| chart.lines.len() > 1).map(legend).collect();
        let title = escape(title);
        format!("<figure class=\"card\"><figcaption>{title}{legend}</figcaption>{}</figure>\n", chart.svg(&title))
    };
    format!("<div class=\"charts\">{}</div>", charts.iter().map(figure).collect::<String>())
}

fn legend(line: &Line) -> String {
    let (class, name) = (line.class, legend_name(line));
    format!("<span class=\"key\"><svg viewBox=\"0 0 16 8\"><path class=\"{class}\" d=\"M1 4H15\"/></svg>{name}</span>")
}

fn legend_name(line: &Line) -> &'static str {
    match line.class {
        "raw" => "training",
        "smooth" => "training, smoothed",
        "faint" => "each report",
        "plain" => "smoothed",
        _ => "evaluation",
    }
}

/// The legend of a chart that stands alone, right-aligned above it; widths of words are about 6 a letter.
fn svg_legend(chart: &Chart) -> String {
    let mut right = WIDTH - 12.0;
    let mut svg = String::new();
    for line in chart.lines.iter().rev().filter(|_| chart.lines.len() > 1) {
        let name = legend_name(line);
        let left = right - 6.2 * name.len() as f64;
        svg += &format!("<path class=\"{}\" d=\"M{:.0} -19h14\"/>", line.class, left - 20.0);
        svg += &format!("<text x=\"{left:.0}\" y=\"-15\">{name}</text>");
        right = left - 34.0;
    }
    svg
}

/// The training loss, as logged and smoothed, and the loss on the evaluation rows where there is one.
pub(super) fn loss_chart(data: &ReportData) -> Option<(String, Chart<'_>)> {
    let losses: Vec<f64> = data.steps.iter().map(|point| point.loss).collect();
    let last = data.steps.last()?;
    let smoothed = smooth(&losses, half_life(&losses));
    let kept = downsample(&losses, POINTS);
    let points = |values: &[f64]| kept.iter().map(|&index| (data.steps[index].step as f64, values[index])).collect();
    let hover = kept.iter().map(|&index| {
        let StepPoint { step, epoch, loss, .. } = data.steps[index];
        let (step, loss, smoothed) = (units::grouped(step), units::number(loss), units::number(smoothed[index]));
        format!("step {step} · epoch {epoch:.2} · loss {loss} · smoothed {smoothed}")
    });
    let mut lines = vec![
        Line { class: "raw", dots: false, points: points(&losses), hover: hover.collect() },
        Line { class: "smooth", dots: false, points: points(&smoothed), hover: Vec::new() },
    ];
    lines.extend(metric_line(&data.evaluations, "loss"));
    let best = lines.get(2).and_then(|line| best_point(data, line));
    Some((
        if lines.len() > 2 { "Loss" } else { "Training loss" }.to_owned(),
        Chart { y_label: "loss per target", lines, epochs: epochs(last), best, ..Default::default() },
    ))
}

/// A chart for every metric but the loss, the one that decides first.
fn metric_charts(data: &ReportData) -> Vec<(String, Chart<'_>)> {
    let mut metrics: Vec<&String> = data.evaluations.iter().flat_map(|evaluation| evaluation.scores.keys()).collect();
    metrics.sort_by_key(|metric| (**metric != data.metric, *metric));
    metrics.dedup();
    // Without training reports there is no chart of the loss that shows the evaluations'.
    metrics.retain(|metric| *metric != "loss" || data.steps.is_empty());
    let chart = |metric: &'_ String| {
        let lines: Vec<Line> = metric_line(&data.evaluations, metric).into_iter().collect();
        let best = lines.first().and_then(|line| best_point(data, line));
        let baseline = data.baseline.as_ref().filter(|_| *metric == data.metric);
        let baseline = baseline.map(|baseline| (baseline.value, baseline.name.as_str()));
        let epochs = data.steps.last().map(epochs).unwrap_or_default();
        let title = format!("Evaluation: {}", metric.replace('_', " "));
        (title, Chart { y_label: "score on the evaluation rows", lines, epochs, baseline, best, from_zero: false })
    };
    metrics.into_iter().map(chart).collect()
}

pub(super) fn metric_line(evaluations: &[EvaluationPoint], metric: &str) -> Option<Line> {
    let scores = evaluations.iter().filter_map(|evaluation| Some((evaluation.step, *evaluation.scores.get(metric)?)));
    let scores: Vec<(u64, f64)> = scores.filter(|(_, score)| score.is_finite()).collect();
    let kept = downsample(&scores.iter().map(|&(_, score)| score).collect::<Vec<_>>(), POINTS);
    let points: Vec<(f64, f64)> = kept.iter().map(|&index| (scores[index].0 as f64, scores[index].1)).collect();
    let hover = kept.iter().map(|&index| {
        let (step, score) = scores[index];
        format!("step {} · {} {}", units::grouped(step), metric.replace('_', " "), units::number(score))
    });
    let line = Line { class: "eval", dots: kept.len() <= 60, hover: hover.collect(), points };
    (!line.points.is_empty()).then_some(line)
}

/// The point of the best evaluation on `line`.
fn best_point(data: &ReportData, line: &Line) -> Option<(f64, f64)> {
    line.points.iter().copied().find(|&(step, _)| Some(step as u64) == data.best_step)
}

/// A quantity of the training reports, and where it is `noisy` its course without the noise.
pub(super) fn step_chart<'a>(
    data: &'a ReportData,
    y_label: &'a str,
    noisy: bool,
    value: impl Fn(&StepPoint) -> f64,
) -> Chart<'a> {
    let measured = data.steps.iter().map(|point| (point.step, value(point))).filter(|(_, value)| value.is_finite());
    let (steps, values): (Vec<u64>, Vec<f64>) = measured.unzip();
    let kept = downsample(&values, POINTS);
    let points = |values: &[f64]| kept.iter().map(|&index| (steps[index] as f64, values[index])).collect();
    let hover = kept
        .iter()
        .map(|&index| format!("step {} · {y_label} {}", units::grouped(steps[index]), units::number(values[index])));
    let class = if noisy { "faint" } else { "plain" };
    let mut lines = vec![Line { class, dots: false, points: points(&values), hover: hover.collect() }];
    if noisy {
        let smoothed = smooth(&values, half_life(&values));
        lines.push(Line { class: "plain", dots: false, points: points(&smoothed), hover: Vec::new() });
    }
    let epochs = data.steps.last().map(epochs).unwrap_or_default();
    Chart { y_label, lines, epochs, from_zero: true, ..Default::default() }
}

/// How many reports halve the weight of one in a smoothed line: a fortieth of them.
fn half_life(values: &[f64]) -> f64 {
    (values.len() as f64 / 40.0).max(1.0)
}

/// Where epochs ended; nothing where there are too many to tell apart.
fn epochs(last: &StepPoint) -> Vec<(f64, u64)> {
    let passes = last.epoch.floor() as u64;
    if passes > 10 {
        return Vec::new();
    }
    (1..=passes).map(|pass| (last.step as f64 * pass as f64 / last.epoch, pass)).collect()
}
