//! What people see, letter for letter. `TEMPER_BLESS=1` rewrites what is expected.

use crate::{root, temper, text};

pub fn same(name: &str, found: &str) {
    let path = root().join("tests/golden").join(name);
    if std::env::var_os("TEMPER_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "--- expected\n{expected}--- found\n{found}TEMPER_BLESS=1 accepts what was found");
}

#[test]
fn help() {
    let verbs: [&[&str]; 6] = [&[], &["train"], &["predict"], &["generate"], &["chat"], &["data", "preview"]];
    let texts = verbs.map(|verb| text(&temper(&[verb, &["--help"]].concat()).stdout));
    same("help.txt", &texts.join("\n"));
}

#[test]
fn plan() {
    let out = temper(&["plan", "--recipe", "tests/recipes/short.toml", "--set", "device.threads=2"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    same("plan.txt", &portable(&text(&out.stdout)));
}

/// A plan without the line that says how much memory there is: that depends on the machine.
pub fn portable(plan: &str) -> String {
    plan.lines().filter(|line| !line.contains("available")).map(|line| format!("{line}\n")).collect()
}
