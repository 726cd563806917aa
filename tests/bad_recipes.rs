//! Every broken recipe in `bad_recipes/cases` and what `temper` says about it, letter for letter.
//!
//! A line `# --set key=value` in a case is passed as an override. `TEMPER_BLESS=1` rewrites what is expected.

use std::fs;
use std::path::{Path, PathBuf};

use temper::recipe::Recipe;

const CASES: &str = "tests/bad_recipes/cases";

/// Paths in messages are those of a user in the root of the repository; every test of this binary runs there.
fn at_root() {
    std::env::set_current_dir(crate::root()).unwrap();
}

fn refusal(path: &Path, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    match Recipe::load(path, &overrides) {
        Ok(_) => panic!("{} {overrides:?} was accepted", path.display()),
        Err(diagnostics) => format!("{diagnostics}\n"),
    }
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = fs::read_dir(CASES).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
    cases.sort();
    cases
}

#[test]
fn each_broken_recipe_is_refused_in_these_words() {
    at_root();
    let cases = cases();
    assert!(cases.len() >= 35, "only {} cases", cases.len());
    let mut differ = Vec::new();
    for case in cases {
        let text = fs::read_to_string(&case).unwrap();
        let overrides: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# --set ")).collect();
        let found = refusal(&case, &overrides);
        let expected = case.with_extension("txt");
        if std::env::var_os("TEMPER_BLESS").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        let wanted = fs::read_to_string(&expected).unwrap_or_default();
        if found != wanted {
            differ.push(format!("{}\n--- expected\n{wanted}--- found\n{found}", case.display()));
        }
    }
    assert!(differ.is_empty(), "{}\nTEMPER_BLESS=1 accepts what was found", differ.join("\n"));
}

#[test]
fn files_that_cannot_be_recipes() {
    at_root();
    let path = |name: &str| format!("tests/bad_recipes/{name}");
    let refuse = |name: &str| refusal(Path::new(&path(name)), &[]);
    assert_eq!(
        refuse("godo.toml"),
        "error: there is no recipe at `tests/bad_recipes/godo.toml`\n   = help: did you mean `tests/bad_recipes/good.toml`?\n"
    );
    assert_eq!(
        refuse("nowhere/a.toml"),
        "error: there is no recipe at `tests/bad_recipes/nowhere/a.toml`\n   = help: there is no directory `tests/bad_recipes/nowhere`\n"
    );
    assert_eq!(
        refusal(Path::new("tests/bad_recipes"), &[]),
        "error: `tests/bad_recipes` is a directory, not a recipe\n   = help: it holds `good.toml`\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let latin = dir.path().join("latin1.toml");
    fs::write(&latin, b"[run]\nname = \"caf\xe9\"\n").unwrap();
    let refused = refusal(&latin, &[]).replace(&latin.display().to_string(), "latin1.toml");
    let expected = "error: the recipe is not UTF-8\n --> latin1.toml:2:12\n  |\n2 | name = \"caf\u{fffd}\"\n  |            ^ byte 0xe9\n  = help: save the file as UTF-8\n";
    assert_eq!(refused, expected);
    let large = dir.path().join("large.toml");
    fs::write(&large, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(refusal(&large, &[]).contains("larger than 1 MiB"));
}

#[test]
fn a_good_recipe_loads_and_overrides_win() {
    at_root();
    let overrides = ["train.lr=1e-4", "data.label=mood", "adapter.rank_pattern={query=4}", "train.lr=3e-4"];
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    let recipe = Recipe::load(Path::new("tests/bad_recipes/good.toml"), &overrides).unwrap();
    assert_eq!(recipe.train.lr, 3e-4);
    assert_eq!(recipe.train.global_batch, 16);
    assert_eq!(recipe.adapter.rank_pattern["query"], 4);
    assert_eq!(serde_json::to_value(&recipe.data.label).unwrap(), "mood");
    assert_eq!((recipe.name().as_str(), recipe.run_dir()), ("good", PathBuf::from("runs/good")));
    assert!(recipe.source.wrote("data.label") && !recipe.source.wrote("train.seed"));
    let spot = recipe.source.at("data.label");
    assert_eq!((spot.line, spot.text.as_str(), spot.column, spot.width), (None, "data.label=mood", 11, 4));
    assert_eq!(recipe.source.at("data.text").line, Some(14));
}

#[test]
fn an_override_puts_its_rival_in_the_file_aside() {
    at_root();
    let path = Path::new("tests/bad_recipes/good.toml");
    let recipe = Recipe::load(path, &["train.max_steps=10".into(), "schedule.warmup_ratio=0.1".into()]).unwrap();
    assert_eq!((recipe.train.epochs, recipe.train.max_steps), (None, Some(10)));
    assert_eq!((recipe.schedule.warmup_steps, recipe.schedule.warmup_ratio), (None, Some(0.1)));
}

#[test]
fn no_mutilated_recipe_panics() {
    at_root();
    let good = fs::read_to_string("tests/bad_recipes/good.toml").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    for (at, letter) in good.char_indices().step_by(3) {
        let rest = &good[at + letter.len_utf8()..];
        for broken in [good[..at].to_string(), good[..at].to_string() + rest, format!("{}é{rest}", &good[..at])] {
            fs::write(&path, &broken).unwrap();
            let refused = refusal(&path, &["train.lr=fast"]);
            assert!(refused.starts_with("error: ") && refused.contains("--> "), "{refused}");
        }
    }
}
