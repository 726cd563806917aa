use super::*;

/// A run's card, complete.
fn reviews() -> Card {
    let mut card = Card::new("reviews-minilm", Relation::Adapter, Pipeline::TextClassification);
    card.summary = "Tells whether a short review is positive or negative.".into();
    card.language = vec!["en".into()];
    card.license = Some("apache-2.0".into());
    card.base_model = "sentence-transformers/all-MiniLM-L6-v2".into();
    card.tags = vec!["lora".into()];
    card.files =
        vec![DataFile { split: "train".into(), name: "train.jsonl".into(), rows: 1310, sha256: "ab".repeat(32) }];
    let accuracy = Metric { kind: "accuracy".into(), name: "Accuracy".into(), value: 0.912_345_678 };
    let dataset =
        Dataset { kind: "reviews".into(), name: "Reviews".into(), split: Some("eval".into()), revision: None };
    card.evaluations = vec![Evaluation { dataset, metrics: vec![accuracy] }];
    card.labels = vec!["negative".into(), "positive".into()];
    card.confusion = Some(Confusion { labels: card.labels.clone(), counts: vec![vec![150, 14], vec![15, 149]] });
    card.command = "temper predict runs/reviews --text \"Worth every penny.\"".into();
    card.hyperparameters = vec![("learning rate".into(), "2e-4".into()), ("rank".into(), "8".into())];
    card.recipe = "base = \"/home/me/models/minilm\"\n[train]\nepochs = 3\n".into();
    card.not_evaluated = vec!["Reviews longer than 50 words.".into()];
    card.versions = vec![("temper".into(), "0.1.0".into())];
    card.device = "CPU, 2 threads".into();
    card
}

/// Strings that a YAML writer gets wrong.
const HOSTILE: [&str; 12] = [
    "yes",
    "no",
    "null",
    "1.0",
    "a: b",
    "it's \"quoted\"",
    "---",
    "x\n---\ny",
    "naïve 日本 🙂",
    "# no",
    "~",
    "c\\d\u{85}e",
];

fn hostile() -> Card {
    let mut card = reviews();
    card.title = "yes: a \"model\"\n---\nno".into();
    card.language = vec!["no".into(), "en".into()];
    card.tags = HOSTILE.map(String::from).to_vec();
    let metric = |value: f64| Metric { kind: "loss".into(), name: "1.0".into(), value };
    let dataset = Dataset { kind: "null".into(), name: "n: é\n---".into(), split: Some("off".into()), revision: None };
    card.evaluations.push(Evaluation { dataset, metrics: vec![metric(1e-7), metric(f64::NAN)] });
    card
}

/// A card that uses everything: data of the Hub, curves, a licence of its own.
fn complete() -> Card {
    let mut card = reviews();
    card.license = Some("other".into());
    card.license_name = Some("acme-community".into());
    card.license_notes = vec!["The base asks for a notice.".into(), "The author says: they | agreed.".into()];
    card.base_revision = Some("c".repeat(40));
    card.sources = vec![DataSource {
        id: "lab/reviews".into(),
        config: "en".into(),
        splits: vec!["train".into(), "test".into()],
        revision: "d".repeat(40),
        license: Some("cc-by-4.0".into()),
    }];
    let row = |cells: [&str; 3]| cells.map(String::from).to_vec();
    card.history = Some(History {
        columns: row(["step", "training loss", "accuracy"]),
        rows: vec![row(["100", "0.61", "0.81"]), row(["200", "0.32", "0.91"])],
    });
    card.curves = Some("curves.svg".into());
    card
}

#[test]
fn golden_complete_card() {
    assert_eq!(render(&complete()), include_str!("../golden/complete.md"), "regenerate: see write_the_cards");
}

#[test]
fn curves_and_revisions_are_what_they_seem() {
    let mut card = complete();
    for name in ["https://example.com/x.png", "../x.png", "/tmp/x.png", "javascript:alert(1)"] {
        card.curves = Some(name.into());
        assert!(!render(&card).contains("![Training"), "{name}");
    }
    card.base_revision = Some("main".into());
    assert!(!render(&card).contains(" at `"));
}

#[test]
fn golden_card() {
    assert_eq!(render(&reviews()), include_str!("../golden/reviews.md"), "regenerate: see write_the_cards");
}

/// Writes the cards that the golden test and `golden/check.py` read: `cargo test -p temper-hub -- --ignored`.
#[test]
#[ignore = "rewrites the golden files"]
fn write_the_cards() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    fs::write(golden.join("reviews.md"), render(&reviews())).unwrap();
    fs::write(golden.join("hostile.md"), render(&hostile())).unwrap();
    fs::write(golden.join("complete.md"), render(&complete())).unwrap();
    fs::write(golden.join("data.md"), crate::render_data(&crate::data_card::tests::reviews())).unwrap();
}

#[test]
fn golden_hostile_card_round_trips_in_python() {
    // `golden/check.py` parses this very text with huggingface_hub.
    assert_eq!(render(&hostile()), include_str!("../golden/hostile.md"), "regenerate, then run golden/check.py");
}

#[test]
fn a_local_base_stays_out_of_the_card() {
    for base in ["/home/me/minilm", "../minilm", "./minilm", "a/b/c", "C:\\models\\minilm", "src", "~/m/minilm", ""] {
        assert_eq!(hub_id(base), None, "{base:?}");
        let mut card = reviews();
        card.base_model = base.into();
        let text = render(&card);
        assert!(!text.contains("base_model"), "{base:?} in\n{text}");
        assert!(!text.contains("/home/me") && !text.contains("C:\\"), "{base:?} in\n{text}");
    }
    for id in ["bert-base-uncased", "org/name", "o-r_g/n.1"] {
        assert_eq!(hub_id(id), Some(id));
    }
}

#[test]
fn incomplete_results_are_dropped() {
    let mut card = reviews();
    card.evaluations[0].metrics[0].value = f64::NAN;
    let text = render(&card);
    assert!(!text.contains("model-index") && !text.contains("## Results") && !text.contains("metrics:"), "{text}");
    let mut card = reviews();
    card.evaluations[0].dataset.kind.clear();
    let text = render(&card);
    assert!(!text.contains("model-index") && text.contains("Evaluated:\n\n- Nothing."), "{text}");
}

#[test]
fn without_a_licence_the_card_says_so() {
    let mut card = reviews();
    card.license = None;
    let text = render(&card);
    assert!(!text.contains("\nlicense:") && text.contains("No licence is given"), "{text}");
    assert!(!render(&reviews()).contains("No licence is given"));
}

#[test]
fn the_licence_of_a_base() {
    let dir = std::env::temp_dir().join(format!("temper-hub-licence-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let cases = [
        ("---\nlanguage: en\nlicense: Apache-2.0 # yes\n---\nx", Some("apache-2.0")),
        ("\n---\r\nlicense: \"mit\"\r\n---\r\n", Some("mit")),
        ("---\nlicense:\n- cc-by-4.0\ntags:\n- x\n---\n", Some("cc-by-4.0")),
        ("---\nlicense: [mit]\n---\n", Some("mit")),
        ("---\nlicense:\n  - mit\n  - apache-2.0\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense:\ntags:\n- x\n---\n", None),
        ("---\nmeta:\n  license: mit\n---\n", None),
        ("---\ntags: []\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("", None),
    ];
    for (text, expected) in cases {
        fs::write(dir.join("README.md"), text).unwrap();
        assert_eq!(license_of(&dir).as_deref(), expected, "{text:?}");
    }
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(license_of(&dir), None);
}

#[test]
fn the_code_asks_the_head_that_there_is() {
    let mut card = reviews();
    let code = |card: &Card| render(card).split("```python").nth(1).unwrap_or_default().to_owned();
    let one = code(&card);
    assert!(one.contains("num_labels=len(labels)") && one.contains("argmax") && !one.contains("second"), "{one}");
    (card.head, card.pairs) = (Head::Labels, true);
    let several = code(&card);
    assert!(several.contains("num_labels=len(labels)") && several.contains("if logit > 0"), "{several}");
    assert!(several.contains("tokenizer(\"Your text here\", \"Your second text here\", "), "{several}");
    card.head = Head::Score;
    let score = code(&card);
    assert!(
        score.contains("num_labels=1") && score.contains("logits.item()") && !score.contains("labels ="),
        "{score}"
    );
}

#[test]
fn a_data_file_is_its_name_and_its_hash() {
    let path = std::env::temp_dir().join(format!("temper-hub-{}.jsonl", std::process::id()));
    fs::write(&path, "abc").unwrap();
    let file = DataFile::read(&path, "train", 1).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(file.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(file.name, path.file_name().unwrap().to_str().unwrap());
    let message = DataFile::read(&path, "train", 1).unwrap_err().to_string();
    assert!(message.contains(&*path.to_string_lossy()), "{message}");
}

#[test]
fn code_and_tables_cannot_be_broken_out_of() {
    let mut card = reviews();
    card.recipe = "a = 1\n````\n# heading".into();
    card.hyperparameters = vec![("a|b".into(), "c\nd".into())];
    let text = render(&card);
    assert!(text.contains("`````toml\na = 1\n````\n# heading\n`````"), "{text}");
    assert!(text.contains("| a\\|b | c d |"), "{text}");
}

#[test]
fn labels_and_quotes_stay_what_they_are() {
    let mut card = reviews();
    card.title = "tuned \"/data/models/x\" v2".into();
    card.labels = ["/r/Pets: \"x\"", "/a/x", "/b/x"].map(String::from).to_vec();
    card.confusion = Some(Confusion { labels: card.labels.clone(), counts: vec![vec![1; 3]; 3] });
    let text = render(&card);
    assert!(text.contains(r#"labels = ["/r/Pets: \"x\"", "/a/x", "/b/x"]"#), "{text}");
    assert!(text.contains(r#"name: "tuned \"…/x\" v2""#), "{text}");
    assert!(text.contains("| /r/Pets"), "{text}");
    assert_eq!(card.without_secrets().labels, card.labels);
    assert!(!text.contains("/home/me") && !text.contains("/data/models"), "{text}");
}
