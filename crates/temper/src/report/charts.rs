//! Line charts and histograms as SVG. Colours come from the classes of `page.css`.

use super::Bin;
use super::page::escape;
use super::scale::Axis;
use crate::units;

/// Size of a chart in its own units; the page scales it.
pub const WIDTH: f64 = 540.0;
/// Height of a chart.
pub const HEIGHT: f64 = 250.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 528.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 212.0;

/// A chart over the steps.
#[derive(Debug, Default)]
pub struct Chart<'a> {
    /// What stands above the y axis: quantity and unit.
    pub y_label: &'a str,
    /// Lines, first drawn first.
    pub lines: Vec<Line>,
    /// Where epochs end: step and number.
    pub epochs: Vec<(f64, u64)>,
    /// A value to compare with, and its name.
    pub baseline: Option<(f64, &'a str)>,
    /// Whether the y axis must begin at 0.
    pub from_zero: bool,
    /// The best point.
    pub best: Option<(f64, f64)>,
}

/// A line of a chart.
#[derive(Debug)]
pub struct Line {
    /// Class of the line in `page.css`.
    pub class: &'static str,
    /// Whether each point has a dot.
    pub dots: bool,
    /// Steps and values.
    pub points: Vec<(f64, f64)>,
    /// What the tooltip of each point says; empty where the line has none.
    pub hover: Vec<String>,
}

impl Chart<'_> {
    /// The chart as an SVG element of [`WIDTH`] by [`HEIGHT`], with `title` for those who do not see it.
    pub fn svg(&self, title: &str) -> String {
        let hover: Vec<String> = self
            .lines
            .iter()
            .flat_map(|line| line.points.iter().zip(&line.hover))
            .map(|(&(step, value), text)| {
                let (x_axis, y_axis) = self.axes();
                format!("{:.1} {:.1} {}", x(&x_axis, step), y(&y_axis, value), escape(text))
            })
            .collect();
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" data-hover=\"{}\">{}</svg>",
            escape(title),
            hover.join("&#10;"),
            self.body()
        )
    }

    /// What is inside the element.
    pub fn body(&self) -> String {
        let (x_axis, y_axis) = self.axes();
        let mut svg = frame(&x_axis, &y_axis, "step", self.y_label);
        for &(step, number) in self.epochs.iter().filter(|(step, _)| x_axis.place(*step) < 0.985) {
            let at = x(&x_axis, step);
            svg += &format!("<path class=\"epoch\" d=\"M{at:.1} {TOP}V{BOTTOM}\"/>");
            let above = TOP - 5.0;
            svg += &format!(
                "<text class=\"note\" x=\"{at:.1}\" y=\"{above}\" text-anchor=\"middle\">epoch {number}</text>"
            );
        }
        if let Some((value, name)) = self.baseline {
            let at = y(&y_axis, value);
            svg += &format!("<path class=\"baseline\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>");
            let name = format!("{} {}", escape(name), units::number(value));
            svg +=
                &format!("<text class=\"note\" x=\"{RIGHT}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", at - 5.0);
        }
        for line in &self.lines {
            let points: Vec<String> = line
                .points
                .iter()
                .map(|&(step, value)| format!("{:.1} {:.1}", x(&x_axis, step), y(&y_axis, value)))
                .collect();
            if points.len() > 1 {
                svg += &format!("<path class=\"{}\" d=\"M{}\"/>", line.class, points.join("L"));
            }
            for (point, text) in points.iter().zip(&line.hover).filter(|_| line.dots || points.len() == 1) {
                let (class, text) = (line.class, escape(text));
                svg += &format!("<path class=\"{class} dot\" d=\"M{point}h0\"><title>{text}</title></path>");
            }
        }
        if let Some((step, value)) = self.best {
            let (at_x, at_y) = (x(&x_axis, step), y(&y_axis, value));
            svg += &format!("<circle class=\"best\" cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"6\"/>");
            // The label leans away from the edges.
            let (anchor, shift) = if at_x > RIGHT - 60.0 {
                ("end", 4.0)
            } else if at_x < LEFT + 60.0 {
                ("start", -4.0)
            } else {
                ("middle", 0.0)
            };
            let above = if at_y < TOP + 26.0 { 20.0 } else { -12.0 };
            svg += &format!(
                "<text class=\"best-label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                at_x + shift,
                at_y + above,
                units::number(value)
            );
        }
        svg
    }

    fn axes(&self) -> (Axis, Axis) {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let last = points().map(|&(step, _)| step).fold(0.0, f64::max);
        let values = points().map(|&(_, value)| value).chain(self.baseline.map(|(value, _)| value));
        let values = values.chain(self.from_zero.then_some(0.0));
        (Axis::of_steps(last as u64, 6), Axis::enclosing(values, 5))
    }
}

/// A histogram of token counts as an SVG element.
pub fn histogram(bins: &[Bin], title: &str) -> String {
    let last = bins.last().map_or(1, |bin| bin.to);
    let x_axis = Axis::of_steps(last, 6);
    let y_axis = Axis::enclosing(bins.iter().map(|bin| bin.count as f64).chain([0.0]), 4);
    let mut svg = frame(&x_axis, &y_axis, "tokens", "rows");
    for bin in bins.iter().filter(|bin| bin.count > 0) {
        let (left, right) = (x(&x_axis, bin.from as f64), x(&x_axis, bin.to as f64));
        let top = y(&y_axis, bin.count as f64);
        let range = if bin.to - bin.from > 1 { format!("{}–{}", bin.from, bin.to - 1) } else { bin.from.to_string() };
        svg += &format!(
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{range} tokens: {} rows</title></rect>",
            left + 0.75,
            (right - left - 1.5).max(0.5),
            BOTTOM - top,
            units::grouped(bin.count)
        );
    }
    format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">{svg}</svg>", escape(title))
}

/// Grid lines, ticks and the names of the axes.
fn frame(x_axis: &Axis, y_axis: &Axis, x_label: &str, y_label: &str) -> String {
    let mut svg = String::new();
    for (index, &tick) in y_axis.ticks.iter().enumerate() {
        let (at, class) = (y(y_axis, tick), if index == 0 { "axis" } else { "grid" });
        svg += &format!("<path class=\"{class}\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>");
        let label = y_axis.label(tick);
        svg += &format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, at + 4.0);
    }
    for &tick in &x_axis.ticks {
        let (at, label) = (x(x_axis, tick), x_axis.label(tick));
        svg += &format!("<path class=\"axis\" d=\"M{at:.1} {BOTTOM}v4\"/>");
        svg += &format!("<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", BOTTOM + 18.0);
    }
    svg += &format!("<text class=\"name\" x=\"0\" y=\"12\">{}</text>", escape(y_label));
    svg += &format!(
        "<text class=\"name\" x=\"{:.0}\" y=\"{}\" text-anchor=\"middle\">{x_label}</text>",
        (LEFT + RIGHT) / 2.0,
        HEIGHT - 4.0
    );
    svg
}

fn x(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.place(value) * (RIGHT - LEFT)
}

fn y(axis: &Axis, value: f64) -> f64 {
    BOTTOM - axis.place(value) * (BOTTOM - TOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: Vec<(f64, f64)>) -> Line {
        Line { class: "eval", dots: true, hover: points.iter().map(|point| format!("<{}>", point.0)).collect(), points }
    }

    #[test]
    fn points_stand_where_the_axes_say() {
        let chart = Chart { lines: vec![line(vec![(0.0, 0.0), (50.0, 1.0), (100.0, 0.5)])], ..Default::default() };
        assert!(chart.body().contains("d=\"M52.0 212.0L290.0 34.0L528.0 123.0\""), "{}", chart.body());
    }

    #[test]
    fn hover_texts_are_escaped() {
        let svg = Chart { lines: vec![line(vec![(7.0, 1.0)])], ..Default::default() }.svg("a \"b\" <c>");
        assert!(svg.contains("&lt;7&gt;") && !svg.contains("<7>"), "{svg}");
        assert!(svg.contains("aria-label=\"a &quot;b&quot; &lt;c&gt;\""), "{svg}");
    }

    #[test]
    fn nothing_to_draw_draws_axes() {
        let svg = Chart { y_label: "loss", ..Default::default() }.body();
        assert!(svg.contains(">loss</text>") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn bars_reach_from_the_axis_to_their_count() {
        let svg = histogram(&[Bin { from: 0, to: 5, count: 2 }, Bin { from: 5, to: 10, count: 4 }], "lengths");
        assert!(svg.contains("y=\"123.0\" width=\"236.5\" height=\"89.0\"><title>0–4 tokens: 2 rows"), "{svg}");
    }
}
