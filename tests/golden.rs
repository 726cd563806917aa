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
    let verbs: [&[&str]; 11] = [
        &[],
        &["train"],
        &["sweep"],
        &["runs"],
        &["runs", "compare"],
        &["predict"],
        &["generate"],
        &["chat"],
        &["data", "preview"],
        &["job", "slurm"],
        &["job", "k8s"],
    ];
    let texts = verbs.map(|verb| text(&temper(&[verb, &["--help"]].concat()).stdout));
    same("help.txt", &texts.join("\n"));
}

#[test]
fn plan() {
    same("plan.txt", &plan_of("tests/recipes/short.toml"));
}

/// The plan of a recipe on two threads of the processor, without the line that says how much memory there is: that
/// depends on the machine.
pub fn plan_of(recipe: &str) -> String {
    let out = temper(&["plan", "--recipe", recipe, "--set", "device.threads=2", "--set", "device.use=cpu"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let plan = text(&out.stdout);
    plan.lines().filter(|line| !line.contains("available")).map(|line| format!("{line}\n")).collect()
}
