//! The card of a data set that is pushed: front matter by which the Hub and `datasets` find splits and columns.
//!
//! The keys are those of <https://huggingface.co/docs/hub/datasets-cards>.

use serde_json::{Value, json};

use crate::{
    body::{line, section, table},
    private::scrub,
    yaml,
};

/// All that the card of a data set says. Empty fields leave their key and their section out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DataCard {
    /// The name of the data set: the heading.
    pub title: String,
    /// Markdown under the heading: what the data is and where it comes from.
    pub summary: String,
    /// Languages, as ISO 639 codes.
    pub language: Vec<String>,
    /// The licence's Hub id. `None` writes no key, and the card says that no licence is given.
    pub license: Option<String>,
    /// Task categories of the Hub, such as `text-classification`.
    pub tasks: Vec<String>,
    /// Columns as (name, type of `datasets`: `string`, `int64`, `float64`, …).
    pub columns: Vec<(String, String)>,
    /// The splits.
    pub splits: Vec<DataSplit>,
    /// What is known not to hold, a sentence each.
    pub limitations: Vec<String>,
}

/// A split of a [`DataCard`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSplit {
    /// `train`, `validation`, `test`.
    pub name: String,
    /// A path or glob of its files within the repository.
    pub files: String,
    /// Examples.
    pub rows: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// The text of a data set's `README.md`, without a path of this machine or a Hub token.
pub fn render_data(card: &DataCard) -> String {
    scrub(&format!("---\n{}---\n\n{}\n", yaml::document(&metadata(card)), markdown(card)))
}

fn metadata(card: &DataCard) -> Value {
    let mut data = serde_json::Map::new();
    let mut put = |key: &str, value: Value| {
        let empty = value.as_array().is_some_and(Vec::is_empty) || value.is_null();
        if !empty {
            data.insert(key.into(), value);
        }
    };
    put("pretty_name", json!(card.title));
    put("language", json!(card.language));
    put("license", json!(card.license));
    put("task_categories", json!(card.tasks));
    put("tags", json!(["temper"]));
    put("size_categories", json!([size_category(card.splits.iter().map(|split| split.rows).sum())]));
    let files: Vec<_> = card.splits.iter().map(|split| json!({"split": split.name, "path": split.files})).collect();
    if !files.is_empty() {
        put("configs", json!([{"config_name": "default", "data_files": files}]));
    }
    let features: Vec<_> = card.columns.iter().map(|(name, kind)| json!({"name": name, "dtype": kind})).collect();
    let count = |split: &DataSplit| json!({"name": split.name, "num_examples": split.rows, "num_bytes": split.bytes});
    let splits: Vec<_> = card.splits.iter().map(count).collect();
    if !features.is_empty() && !splits.is_empty() {
        put("dataset_info", json!({"features": features, "splits": splits}));
    }
    Value::Object(data)
}

/// The Hub's class for a number of examples.
fn size_category(rows: u64) -> &'static str {
    match rows {
        0..1_000 => "n<1K",
        1_000..10_000 => "1K<n<10K",
        10_000..100_000 => "10K<n<100K",
        100_000..1_000_000 => "100K<n<1M",
        1_000_000..10_000_000 => "1M<n<10M",
        10_000_000..100_000_000 => "10M<n<100M",
        100_000_000..1_000_000_000 => "100M<n<1B",
        _ => "n>1B",
    }
}

fn markdown(card: &DataCard) -> String {
    let mut sections = vec![format!("# {}", line(&card.title))];
    sections.extend((!card.summary.trim().is_empty()).then(|| card.summary.trim().to_string()));
    let row = |split: &DataSplit| {
        vec![split.name.clone(), split.rows.to_string(), split.bytes.to_string(), format!("`{}`", split.files)]
    };
    let rows: Vec<_> = card.splits.iter().map(row).collect();
    if !rows.is_empty() {
        sections.push(section("Splits", &table(&["split", "examples", "bytes", "files"], &rows)));
    }
    let rows: Vec<_> = card.columns.iter().map(|(name, kind)| vec![name.clone(), kind.clone()]).collect();
    if !rows.is_empty() {
        sections.push(section("Columns", &table(&["column", "type"], &rows)));
    }
    let mut limitations = card.limitations.clone();
    limitations.push("Nothing was checked of bias, of personal data, or of duplicates between splits.".into());
    sections.push(section("Limitations", &crate::body::list(&limitations)));
    if card.license.is_none() {
        sections.push(section("Licence", "No licence is given. Ask the author before use."));
    }
    sections.push("Written with temper.".into());
    sections.join("\n\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A data set's card, complete.
    pub(crate) fn reviews() -> DataCard {
        let split = |name: &str, rows, bytes| DataSplit {
            name: name.into(),
            files: format!("data/{name}-*.parquet"),
            rows,
            bytes,
        };
        DataCard {
            title: "Reviews: short".into(),
            summary: "Short reviews from /home/me/reviews.jsonl.".into(),
            language: vec!["en".into()],
            license: Some("cc-by-4.0".into()),
            tasks: vec!["text-classification".into()],
            columns: vec![("text".into(), "string".into()), ("label".into(), "int64".into())],
            splits: vec![split("test", 328, 20_000), split("train", 1310, 90_000)],
            limitations: vec!["English only.".into()],
        }
    }

    #[test]
    fn golden_data_card() {
        assert_eq!(render_data(&reviews()), include_str!("../golden/data.md"), "regenerate: see write_the_cards");
        assert!(!render_data(&reviews()).contains("/home/me"));
    }

    #[test]
    fn an_empty_card_is_still_one() {
        let text = render_data(&DataCard { title: "x".into(), ..DataCard::default() });
        assert!(text.contains("# x") && text.contains("No licence is given") && !text.contains("configs"), "{text}");
    }
}
