//! The files of the repository itself: recipes plan offline, data keep their promises.

use std::collections::HashSet;

use crate::{root, temper, text};

#[test]
fn every_recipe_plans() {
    let mut planned = 0;
    for entry in std::fs::read_dir(root().join("recipes")).unwrap() {
        let path = entry.unwrap().path();
        let recipe = std::fs::read_to_string(&path).unwrap();
        assert!(recipe.starts_with("# "), "{} has no header", path.display());
        if recipe.contains("\n# Needs data that the repository does not carry") {
            continue;
        }
        let output = temper(&["plan", "--recipe", path.to_str().unwrap()]);
        assert!(output.status.success(), "{}: {}", path.display(), text(&output.stderr));
        assert!(text(&output.stdout).contains("trainable"), "{}", text(&output.stdout));
        planned += 1;
    }
    assert!(planned >= 1);
}

#[test]
fn the_version_of_burn_in_cards_is_the_one_pinned() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("burn = {{ version = \"={}\"", temper::BURN)), "{}", temper::BURN);
}

#[test]
fn no_sentence_is_in_both_splits_of_the_reviews() {
    let sentences = |name: &str| -> HashSet<String> {
        let path = root().join("examples/reviews").join(name);
        let rows = std::fs::read_to_string(path).unwrap();
        let texts = rows.lines().map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            row["text"].as_str().unwrap().to_lowercase()
        });
        let split = |text: String| text.split(['.', '!', '?']).map(|s| s.trim().to_owned()).collect::<Vec<_>>();
        texts.flat_map(split).filter(|sentence| sentence.split(' ').count() > 2).collect()
    };
    let (train, eval) = (sentences("train.jsonl"), sentences("eval.jsonl"));
    assert!(train.len() >= 1200 && eval.len() >= 300);
    let shared: Vec<_> = train.intersection(&eval).collect();
    assert!(shared.is_empty(), "{shared:?}");
}
