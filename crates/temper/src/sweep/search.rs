//! What a sweep tries: every combination of some values, or random draws.
//!
//! A draw is a pure function of the seed and its number: the first trials of a longer search are those of a shorter one.

use std::collections::BTreeSet;

use temper_data::Random;

use crate::diagnostic::{Diagnostic, Diagnostics, Spot};

/// A key of the recipe and a value, each as `--set` takes it.
pub type Setting = (String, String);

/// The most trials of a sweep.
const MOST: usize = 10_000;

/// Below it each whole number has an f64 of its own.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Draws for each trial that is asked for, after which new combinations are taken to be used up.
const PATIENCE: usize = 1000;

/// What a sweep tries, as the command line says it.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// `KEY=V1,V2,…`: all combinations of these values.
    pub grid: Vec<String>,
    /// How many random trials.
    pub random: usize,
    /// `KEY=LOW..HIGH[:log]`: drawn between these.
    pub range: Vec<String>,
    /// `KEY=A,B,…`: drawn from these.
    pub choice: Vec<String>,
    /// Where draws come from.
    pub seed: u64,
}

/// Where the values of a key come from.
#[derive(Debug, Clone, PartialEq)]
enum Values {
    /// One of these.
    List(Vec<String>),
    /// A number between these, uniform or, with `log`, uniform in its logarithm; a whole one if both are.
    Range { low: f64, high: f64, log: bool, whole: bool },
}

/// A key with where its values come from.
#[derive(Debug)]
struct Varied {
    key: String,
    values: Values,
    spot: Spot,
}

impl Asked {
    /// The settings of each trial. `fixed` are the overrides that all trials share.
    ///
    /// # Errors
    /// Everything that is wrong with what was asked.
    pub fn trials(&self, fixed: &[String]) -> Result<Vec<Vec<Setting>>, Diagnostics> {
        let mut wrong = Diagnostics::default();
        let mut varied = Vec::new();
        for (flag, texts) in [("grid", &self.grid), ("range", &self.range), ("choice", &self.choice)] {
            for text in texts {
                match parse(flag, text) {
                    Ok(one) => varied.push(one),
                    Err(diagnostic) => wrong.0.push(diagnostic),
                }
            }
        }
        wrong.0.extend(clashes(&varied, fixed));
        wrong.into_result()?;
        if self.random == 0 { grid(&varied) } else { self.draw(&varied) }.map_err(Diagnostics::from)
    }

    fn draw(&self, varied: &[Varied]) -> Result<Vec<Vec<Setting>>, Diagnostic> {
        if self.random > MOST {
            return Err(Diagnostic::new(format!("--random {}: a sweep has at most {MOST} trials", self.random)));
        }
        let (mut seen, mut trials) = (BTreeSet::new(), Vec::new());
        for stream in 0..self.random * PATIENCE {
            let mut random = Random::new(self.seed, stream as u64);
            let trial: Vec<Setting> =
                varied.iter().map(|varied| (varied.key.clone(), varied.values.draw(&mut random))).collect();
            if seen.insert(trial.clone()) {
                trials.push(trial);
            }
            if trials.len() == self.random {
                return Ok(trials);
            }
        }
        let found = trials.len();
        let message = format!("--random {}: there are only {found} different combinations", self.random);
        Err(Diagnostic::new(message).help(format!("write `--random {found}`, or `--grid` for all combinations")))
    }
}

/// Every combination, the last key varied fastest.
fn grid(varied: &[Varied]) -> Result<Vec<Vec<Setting>>, Diagnostic> {
    let mut trials = vec![Vec::new()];
    for Varied { key, values, .. } in varied {
        let Values::List(values) = values else { continue };
        if trials.len() * values.len() > MOST {
            return Err(Diagnostic::new(format!("the grid has more than {MOST} combinations")));
        }
        let with = |trial: &Vec<Setting>, value: &String| {
            trial.iter().cloned().chain([(key.clone(), value.clone())]).collect::<Vec<_>>()
        };
        trials = trials.iter().flat_map(|trial| values.iter().map(move |value| with(trial, value))).collect();
    }
    Ok(trials)
}

impl Values {
    fn draw(&self, random: &mut Random) -> String {
        match self {
            Self::List(values) => values[random.below(values.len())].clone(),
            &Self::Range { low, high, log: false, whole: true } => {
                (low + random.below((high - low) as usize + 1) as f64).to_string()
            }
            &Self::Range { low, high, log, whole } => {
                let unit = random.unit();
                let value = if log { (low.ln() + unit * (high / low).ln()).exp() } else { low + unit * (high - low) };
                if whole { value.round().clamp(low, high).to_string() } else { written(value).clamp_text(low, high) }
            }
        }
    }
}

/// A number in four significant digits, as TOML has it.
struct Written(String);

fn written(value: f64) -> Written {
    let text = format!("{value:.3e}");
    let rounded: f64 = text.parse().unwrap_or(value);
    Written(if (1e-3..1e6).contains(&rounded.abs()) || rounded == 0.0 {
        format!("{rounded:?}")
    } else {
        format!("{rounded:e}")
    })
}

impl Written {
    /// The bound itself where rounding has left the range.
    fn clamp_text(self, low: f64, high: f64) -> String {
        match self.0.parse::<f64>() {
            Ok(value) if value < low => format!("{low:?}"),
            Ok(value) if value > high => format!("{high:?}"),
            _ => self.0,
        }
    }
}

/// A key that is set twice, or by the sweep.
fn clashes(varied: &[Varied], fixed: &[String]) -> Vec<Diagnostic> {
    let set: Vec<Vec<String>> =
        fixed.iter().filter_map(|text| Some(names(&text[..*outside(text, '=').first()?]))).collect();
    let varied: Vec<(Vec<String>, &Spot)> = varied.iter().map(|one| (names(&one.key), &one.spot)).collect();
    let mut wrong = Vec::new();
    if set.iter().any(|key| *key == ["run", "dir"]) {
        let message = "`--set run.dir`: each trial of a sweep has a directory of its own";
        wrong.push(Diagnostic::new(message).help("`--dir DIR` says where all of them go"));
    }
    for (index, (key, spot)) in varied.iter().enumerate() {
        let within = |other: &&Vec<String>| other.starts_with(key);
        let shown = |other: &Vec<String>| if other == key { "it".into() } else { format!("`{}`", other.join(".")) };
        let twice =
            varied[..index].iter().map(|(other, _)| other).find(|other| within(other) || key.starts_with(other));
        let why = if let Some(other) = twice {
            if other == key { "is varied twice".into() } else { format!("is varied, and so is {}", shown(other)) }
        } else if let Some(other) = set.iter().find(within) {
            format!("is varied, and `--set` gives {} one value", shown(other))
        } else if *key == ["run"] || *key == ["run", "dir"] || *key == ["run", "name"] {
            "is what the sweep sets: each trial has its own".into()
        } else {
            continue;
        };
        wrong.push(Diagnostic::new(format!("`{}` {why}", key.join("."))).at((*spot).clone(), ""));
    }
    wrong
}

/// The names on the way to a key, however it is written.
fn names(key: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut value = toml::from_str(&format!("{key} = 0")).ok();
    while let Some((name, inner)) = value.and_then(|table: toml::Table| table.into_iter().next()) {
        names.push(name);
        value = if let toml::Value::Table(table) = inner { Some(table) } else { None };
    }
    // What is no key is what the recipe says it is.
    if names.is_empty() { vec![key.to_owned()] } else { names }
}

fn parse(flag: &str, text: &str) -> Result<Varied, Diagnostic> {
    let shape = if flag == "range" { "KEY=LOW..HIGH" } else { "KEY=V1,V2" };
    let Some(equals) = outside(text, '=').first().copied() else {
        let message = format!("--{flag} needs a key, `=` and values");
        return Err(Diagnostic::new(message).at(spot(flag, text, 0, text.len()), format!("write `{shape}`")));
    };
    let (key, values) = (text[..equals].trim(), &text[equals + 1..]);
    let start = equals + 1;
    if key.is_empty() {
        return Err(Diagnostic::new("no key before `=`").at(spot(flag, text, 0, start), format!("write `{shape}`")));
    }
    let values = if flag == "range" { range(text, start)? } else { list(flag, text, start, values)? };
    Ok(Varied { key: key.to_owned(), values, spot: spot(flag, text, 0, equals) })
}

/// Values between commas; those within brackets and quotes divide nothing.
fn list(flag: &str, text: &str, start: usize, values: &str) -> Result<Values, Diagnostic> {
    let mut found: Vec<String> = Vec::new();
    let mut begin = 0;
    for end in outside(values, ',').into_iter().chain([values.len()]) {
        let value = values[begin..end].trim();
        let place = || spot(flag, text, start + begin, start + end.max(begin + 1));
        if value.is_empty() {
            return Err(Diagnostic::new("a value is missing").at(place(), ""));
        }
        let number = |text: &str| text.replace('_', "").parse::<f64>().ok();
        let same = |other: &String| other == value || number(other).is_some_and(|other| number(value) == Some(other));
        if found.iter().any(same) {
            return Err(Diagnostic::new(format!("`{value}` is there twice")).at(place(), ""));
        }
        found.push(value.to_owned());
        begin = end + 1;
    }
    Ok(Values::List(found))
}

/// `LOW..HIGH` or `LOW..HIGH:log`.
fn range(text: &str, start: usize) -> Result<Values, Diagnostic> {
    let wrong = |message: String, label: &str| {
        Err(Diagnostic::new(message).at(spot("range", text, start, text.len().max(start + 1)), label))
    };
    let (bounds, scale) =
        text[start..].split_once(':').map_or((&text[start..], None), |(b, scale)| (b, Some(scale.trim())));
    if let Some(scale) = scale.filter(|scale| *scale != "log") {
        return wrong(format!("unknown scale `{scale}`"), "write `:log`, or nothing for a uniform draw");
    }
    let Some((low, high)) = bounds.split_once("..") else {
        return wrong("a range is `LOW..HIGH`".into(), "such as `1e-5..1e-3:log`");
    };
    let number = |text: &str| text.trim().replace('_', "").parse::<f64>().ok().filter(|value| value.is_finite());
    let (Some(a), Some(b)) = (number(low), number(high)) else {
        let bad = if number(low).is_none() { low } else { high };
        return wrong(format!("`{}` is no number", bad.trim()), "");
    };
    let log = scale.is_some();
    if a >= b {
        return wrong(format!("the range is empty: {} is not below {}", low.trim(), high.trim()), "");
    }
    if log && a <= 0.0 {
        return wrong("a logarithmic range is above 0".into(), "");
    }
    let whole = [low, high].iter().all(|text| text.trim().replace('_', "").parse::<i128>().is_ok());
    if whole && a.abs().max(b.abs()) >= EXACT {
        return wrong("whole numbers are drawn below 2^53".into(), "");
    }
    Ok(Values::Range { low: a, high: b, log, whole })
}

/// Where `wanted` stands in `text` outside of quotes and brackets, in bytes.
fn outside(text: &str, wanted: char) -> Vec<usize> {
    let (mut found, mut depth, mut quote, mut escaped) = (Vec::new(), 0usize, None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some('"'), _) if escaped => escaped = false,
            (Some('"'), '\\') => escaped = true,
            (Some(open), _) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, c) if c == wanted && depth == 0 => found.push(at),
            (None, _) => {}
        }
    }
    found
}

/// The bytes `from..to` of what stands behind a flag.
fn spot(flag: &str, text: &str, from: usize, to: usize) -> Spot {
    let characters = |to: usize| text.get(..to.min(text.len())).map_or(0, |part| part.chars().count());
    let (column, end) = (characters(from), characters(to));
    Spot { origin: format!("--{flag} {text}"), line: None, text: text.into(), column, width: (end - column).max(1) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn asked(grid: &[&str]) -> Asked {
        Asked { grid: grid.iter().map(|text| (*text).to_owned()).collect(), ..Asked::default() }
    }

    fn random(trials: usize, ranges: &[&str], choices: &[&str], seed: u64) -> Asked {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Asked { random: trials, range: owned(ranges), choice: owned(choices), seed, ..Asked::default() }
    }

    fn shown(trials: &[Vec<Setting>]) -> Vec<String> {
        let setting = |(key, value): &Setting| format!("{key}={value}");
        trials.iter().map(|trial| trial.iter().map(setting).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn trials_do_not_share_a_directory() {
        let wrong = asked(&["a=1,2"]).trials(&["run.dir=here".into()]).unwrap_err().to_string();
        assert!(wrong.contains("--dir DIR"), "{wrong}");
        asked(&["a=1,2"]).trials(&["run.name=here".into()]).unwrap();
    }

    fn refused(asked: &Asked) -> String {
        asked.trials(&["train.epochs=2".into()]).unwrap_err().to_string()
    }

    #[test]
    fn a_grid_is_every_combination() {
        let trials = asked(&["a.b=1,2", "c=x,[\"p,q\", 3],'y,z'"]).trials(&[]).unwrap();
        let expected = [
            "a.b=1 c=x",
            "a.b=1 c=[\"p,q\", 3]",
            "a.b=1 c='y,z'",
            "a.b=2 c=x",
            "a.b=2 c=[\"p,q\", 3]",
            "a.b=2 c='y,z'",
        ];
        assert_eq!(shown(&trials), expected);
    }

    #[test]
    fn draws_depend_on_the_seed_alone_and_are_all_different() {
        let search =
            |trials, seed| random(trials, &["a=1e-5..1e-2:log", "n=4..64"], &["c=x,y"], seed).trials(&[]).unwrap();
        let (few, many) = (search(3, 7), search(200, 7));
        assert_eq!(few, many[..3], "a longer search begins with the shorter");
        assert_eq!(shown(&few), shown(&search(3, 7)));
        assert_ne!(few, search(3, 8));
        assert_eq!(many.iter().collect::<BTreeSet<_>>().len(), 200);
        let values = |key: &str| -> Vec<f64> {
            let of = |trial: &Vec<Setting>| trial.iter().find(|(name, _)| name == key).unwrap().1.parse().unwrap();
            many.iter().map(of).collect()
        };
        let rates = values("a");
        assert!(rates.iter().all(|value| (1e-5..=1e-2).contains(value)));
        // A third of a logarithmic range over three powers of ten is one of them.
        let low = rates.iter().filter(|value| **value < 1e-4).count();
        assert!((40..95).contains(&low), "{low} of 200");
        let whole = values("n");
        assert!(whole.iter().all(|value| value.fract() == 0.0 && (4.0..=64.0).contains(value)));
    }

    /// So that no version draws other values for the same seed.
    #[test]
    fn these_are_the_draws_of_seed_0() {
        let trials = random(3, &["train.lr=1e-5..1e-3:log", "adapter.dropout=0.0..0.5"], &[], 0).trials(&[]).unwrap();
        let expected = [
            "train.lr=8.754e-4 adapter.dropout=0.1389",
            "train.lr=2.025e-4 adapter.dropout=0.2891",
            "train.lr=2.236e-5 adapter.dropout=0.1223",
        ];
        assert_eq!(shown(&trials), expected);
    }

    #[test]
    fn numbers_are_toml() {
        for (value, text) in
            [(0.000_123_456, "1.235e-4"), (0.5, "0.5"), (3.0, "3.0"), (-12.345_6, "-12.35"), (0.0, "0.0")]
        {
            assert_eq!(written(value).0, text);
        }
        assert_eq!(written(0.999_99).clamp_text(0.0, 0.9999), "0.9999");
    }

    #[test]
    fn what_cannot_be_understood_is_pointed_at() {
        let expected =
            "error: `1e-3` is there twice\n  --> --grid train.lr=1e-3,1e-4,1e-3\n                                ^^^^";
        assert_eq!(refused(&asked(&["train.lr=1e-3,1e-4,1e-3"])), expected);
        for (asked, message) in [
            (asked(&["lr"]), "needs a key, `=` and values"),
            (asked(&["=1"]), "no key before `=`"),
            (asked(&["a=1,,2"]), "a value is missing"),
            (asked(&["a="]), "a value is missing"),
            (asked(&["a=1,2", "a=3"]), "`a` is varied twice"),
            (asked(&["train . epochs=1,2"]), "`train.epochs` is varied, and `--set` gives it one value"),
            (asked(&["train.\"epochs\"=1,2"]), "`train.epochs` is varied, and `--set` gives it one value"),
            (asked(&["train={epochs=1},{epochs=3}"]), "`train` is varied, and `--set` gives `train.epochs` one value"),
            (asked(&["a.b=1,2", "a={b=3},{b=4}"]), "`a` is varied, and so is `a.b`"),
            (asked(&["a={b=3},{b=4}", "a.b=1,2"]), "`a.b` is varied, and so is `a`"),
            (asked(&["run.dir=a,b"]), "each trial has its own"),
            (random(2, &["a=1..9007199254740993"], &[], 0), "whole numbers are drawn below 2^53"),
            (random(2, &["a=1"], &[], 0), "a range is `LOW..HIGH`"),
            (random(2, &["a=1..x"], &[], 0), "`x` is no number"),
            (random(2, &["a=2..1"], &[], 0), "the range is empty: 2 is not below 1"),
            (random(2, &["a=0..1:log"], &[], 0), "a logarithmic range is above 0"),
            (random(2, &["a=1..2:ln"], &[], 0), "unknown scale `ln`"),
            (random(9, &[], &["a=x,y", "b=1,2"], 0), "there are only 4 different combinations"),
        ] {
            let found = refused(&asked);
            assert!(found.contains(message), "{found}");
        }
        let many: Vec<String> = (0..5).map(|i| format!("k{i}=1,2,3,4,5,6,7")).collect();
        assert!(refused(&Asked { grid: many, ..Asked::default() }).contains("more than 10000 combinations"));
    }
}
