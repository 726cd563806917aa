//! A table that is printed as lines for a terminal and as a table of a page.

use super::page::escape;

/// A table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// What stands above each column.
    pub heads: Vec<Cell>,
    /// The rows below.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// Whether it is the best of its row or column.
    pub best: bool,
    /// The run whose colour stands before it.
    pub run: Option<usize>,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}

impl Cell {
    /// A cell with the name of the run of that number.
    pub fn run(name: &str, number: usize) -> Self {
        Self { text: name.into(), run: Some(number), ..Self::default() }
    }

    /// As a line of a terminal has it.
    fn plain(&self) -> String {
        if self.best { format!("{} *", self.text) } else { self.text.clone() }
    }
}

impl Table {
    /// The lines of the table: columns two blanks apart, the best cells with a star behind them.
    pub fn lines(&self) -> Vec<String> {
        let rows: Vec<Vec<String>> = std::iter::once(&self.heads)
            .chain(&self.rows)
            .map(|row| row.iter().map(|cell| printable(&cell.plain())).collect())
            .collect();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        rows.iter().map(line).collect()
    }

    /// The table as HTML; `key` draws the colour of a run.
    pub fn html(&self, key: impl Fn(usize) -> String) -> String {
        let cell = |tag: &str, cell: &Cell| {
            let (key, text) = (cell.run.map(&key).unwrap_or_default(), escape(&cell.text));
            let class = if cell.best { " class=\"top\"" } else { "" };
            format!("<{tag}{class}>{key}{text}</{tag}>")
        };
        let heads: String = self.heads.iter().map(|head| cell("th", head)).collect();
        let row = |row: &Vec<Cell>| {
            let cells = row.iter().enumerate().map(|(i, one)| cell(if i == 0 { "th" } else { "td" }, one));
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let rows: String = self.rows.iter().map(row).collect();
        format!(
            "<div class=\"card scroll\"><table class=\"runs\"><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
        )
    }
}

/// `text` on one line, without control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let best = Cell { best: true, ..Cell::from("0.5") };
        let rows = vec![vec![Cell::run("a<b>", 0), best], vec!["longer name".into(), "0.25\n".into()]];
        Table { title: "Runs".into(), heads: vec!["run".into(), "score".into()], rows }
    }

    #[test]
    fn columns_are_aligned_and_the_best_has_a_star() {
        assert_eq!(table().lines(), ["run          score", "a<b>         0.5 *", "longer name  0.25"]);
        assert_eq!(Table::default().lines(), [""]);
    }

    #[test]
    fn cells_are_escaped() {
        let html = table().html(|run| format!("<i>{run}</i>"));
        assert!(html.contains("<tr><th><i>0</i>a&lt;b&gt;</th><td class=\"top\">0.5</td></tr>"), "{html}");
    }
}
