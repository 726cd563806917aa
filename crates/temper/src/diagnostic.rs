//! Errors that point at what the user wrote.
//!
//! ```text
//! error: unknown key `rnak` in [adapter]
//!   --> recipes/sentiment.toml:14:1
//!    |
//! 14 | rnak = 8
//!    | ^^^^ did you mean `rank`?
//! ```
//!
//! A [`Diagnostic`] holds the lines that it shows, so it outlives the text that it was made from.

use std::fmt;

/// A place in what the user wrote, with the line that it lies on. [`crate::recipe::Source::at`] makes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// Path of the file, or the whole `--set key=value`.
    pub origin: String,
    /// Line number from 1; `None` in a command-line override, which is its own only line.
    pub line: Option<usize>,
    /// The line, without its end.
    pub text: String,
    /// Where the underlined part begins, in characters from 0.
    pub column: usize,
    /// How much is underlined, in characters, at least 1.
    pub width: usize,
}

/// A [`Spot`] and what is said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    spot: Spot,
    label: String,
}

/// One mistake: what is wrong, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    message: String,
    marks: Vec<Mark>,
    help: Vec<String>,
}

impl Diagnostic {
    /// Says what is wrong, in one line, with `names` in backticks and [tables] in brackets.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), marks: Vec::new(), help: Vec::new() }
    }

    /// Points at `spot` and says `label` beside the underline; an empty label only underlines.
    /// The first call gives the place that the message is about, later calls give places that bear on it.
    #[must_use]
    pub fn at(mut self, spot: Spot, label: impl Into<String>) -> Self {
        self.marks.push(Mark { spot, label: label.into() });
        self
    }

    /// Adds a closing line that says what to do; it may hold several lines.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// What is wrong, in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The place that the message is about.
    pub fn spot(&self) -> Option<&Spot> {
        self.marks.first().map(|mark| &mark.spot)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        let lines = self.marks.iter().filter_map(|mark| mark.spot.line).max().unwrap_or(0);
        let margin = if lines == 0 { 2 } else { lines.to_string().len() };
        let mut marks: Vec<(char, &Mark)> =
            self.marks.iter().enumerate().map(|(i, mark)| (if i == 0 { '^' } else { '-' }, mark)).collect();
        // One snippet for each origin, the origin of the first mark first, lines in the order of the file.
        let rank = |spot: &Spot| self.marks.iter().position(|mark| mark.spot.origin == spot.origin);
        marks.sort_by_key(|(_, mark)| (rank(&mark.spot), mark.spot.line, mark.spot.column));
        for snippet in marks.chunk_by(|(_, a), (_, b)| a.spot.origin == b.spot.origin) {
            write_snippet(f, margin, snippet)?;
        }
        for help in &self.help {
            let mut lines = help.lines();
            write!(f, "\n{:margin$} = help: {}", "", lines.next().unwrap_or_default())?;
            for line in lines {
                write!(f, "\n{:margin$}         {line}", "")?;
            }
        }
        Ok(())
    }
}

/// Writes the marks of one origin below one arrow.
fn write_snippet(f: &mut fmt::Formatter<'_>, margin: usize, marks: &[(char, &Mark)]) -> fmt::Result {
    let Some((_, first)) = marks.iter().find(|(sign, _)| *sign == '^').or(marks.first()) else { return Ok(()) };
    let arrow = format!("{:margin$}--> ", "");
    let spot = &first.spot;
    let Some(line) = spot.line else {
        // An override is its own line: the underlines lie right below the arrow.
        write!(f, "\n{arrow}{}", printable(&spot.origin))?;
        let hidden = spot.origin.chars().count().saturating_sub(spot.text.chars().count());
        for (sign, mark) in marks {
            let gap = format!("{:1$}", "", arrow.chars().count() + hidden);
            write!(f, "\n{gap}{}", underline(*sign, mark))?;
        }
        return Ok(());
    };
    write!(f, "\n{arrow}{}:{line}:{}\n{:margin$} |", printable(&spot.origin), spot.column + 1, "")?;
    let mut shown = None;
    for (sign, mark) in marks {
        let number = mark.spot.line.unwrap_or(line);
        if shown.is_some_and(|last| last + 1 < number) {
            write!(f, "\n{:margin$} :", "")?;
        }
        if shown != Some(number) {
            write!(f, "\n{}", format!("{number:>margin$} | {}", printable(&mark.spot.text)).trim_end())?;
        }
        write!(f, "\n{:margin$} | {}", "", underline(*sign, mark))?;
        shown = Some(number);
    }
    Ok(())
}

/// The line below: blanks (tabs where the line has tabs), the underline, the label.
fn underline(sign: char, mark: &Mark) -> String {
    let mut line: String =
        mark.spot.text.chars().take(mark.spot.column).map(|c| if c == '\t' { c } else { ' ' }).collect();
    let missing = mark.spot.column.saturating_sub(line.chars().count());
    line.extend(std::iter::repeat_n(' ', missing));
    line.extend(std::iter::repeat_n(sign, mark.spot.width.max(1)));
    if !mark.label.is_empty() {
        line.push(' ');
        line.push_str(&mark.label);
    }
    line
}

/// Control characters never reach the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Everything that is wrong, in the order in which it should be read; never empty when it is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// `Err(self)` if anything is wrong.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            write!(f, "{}{diagnostic}", if i == 0 { "" } else { "\n\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

impl std::error::Error for Diagnostics {}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(line: usize, text: &str, column: usize, width: usize) -> Spot {
        Spot { origin: "r.toml".into(), line: Some(line), text: text.into(), column, width }
    }

    #[test]
    fn points_with_a_label() {
        let diagnostic = Diagnostic::new("unknown key `rnak` in [adapter]")
            .at(spot(14, "rnak = 8", 0, 4), "did you mean `rank`?")
            .help("keys are listed by `temper schema`");
        let expected = "error: unknown key `rnak` in [adapter]\n  --> r.toml:14:1\n   |\n14 | rnak = 8\n   \
                        | ^^^^ did you mean `rank`?\n   = help: keys are listed by `temper schema`";
        assert_eq!(diagnostic.to_string(), expected);
    }

    #[test]
    fn tabs_stay_under_tabs_and_wide_line_numbers_widen_the_margin() {
        let diagnostic = Diagnostic::new("m").at(spot(1000, "\tä = x", 5, 1), "");
        assert_eq!(diagnostic.to_string(), "error: m\n    --> r.toml:1000:6\n     |\n1000 | \tä = x\n     | \t    ^");
    }

    #[test]
    fn two_places_share_a_snippet_in_the_order_of_the_file() {
        let diagnostic = Diagnostic::new("m").at(spot(9, "b = 2", 0, 1), "this").at(spot(3, "a = 1", 0, 1), "and this");
        let expected = "error: m\n --> r.toml:9:1\n  |\n3 | a = 1\n  | - and this\n  :\n9 | b = 2\n  | ^ this";
        assert_eq!(diagnostic.to_string(), expected);
    }

    #[test]
    fn control_characters_are_not_printed() {
        let diagnostic = Diagnostic::new("m").at(spot(1, "a\u{1b}[31m", 0, 1), "");
        assert!(!diagnostic.to_string().contains('\u{1b}'));
    }
}
