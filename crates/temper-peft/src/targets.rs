//! Which modules get an adapter, and which parameters train. The rules are PEFT's.
//!
//! Names are whole Hugging Face paths (`bert.encoder.layer.0.attention.self.query`), because PEFT matches those.

use std::collections::BTreeMap;

use regex::Regex;

use crate::error::nearest;
use crate::{AdapterConfig, Bias, Error, Method, Targets};

/// A module that gets an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// The module's path, as given.
    pub path: String,
    /// The rank r.
    pub rank: usize,
    /// Alpha, before it is divided by the rank.
    pub alpha: f64,
}

impl Match {
    /// The factor on the update: alpha/r, or alpha/√r when rank-stabilised.
    pub fn scaling(&self, rslora: bool) -> f64 {
        self.alpha / if rslora { (self.rank as f64).sqrt() } else { self.rank as f64 }
    }

    /// How many parameters the adapter has on a weight `[outputs, inputs]`.
    pub fn parameters(&self, [outputs, inputs]: [usize; 2], dora: bool) -> usize {
        self.rank * (inputs + outputs) + if dora { outputs } else { 0 }
    }
}

/// Finds the linear layers that get an adapter. `linears` are the whole paths of the backbone's linear layers, and
/// `defaults` the names that `targets = "default"` stands for. Without an adapter method the result is empty.
///
/// # Errors
///
/// When a target or a pattern matches nothing, a regular expression is not usable, or a number is out of range.
pub fn find(config: &AdapterConfig, defaults: &[&str], linears: &[String]) -> Result<Vec<Match>, Error> {
    if !config.method.is_adapter() {
        return Ok(Vec::new());
    }
    let chosen = choose(&config.targets, defaults, linears)?;
    let chosen: Vec<&String> = chosen.into_iter().filter(|path| !saved(&config.modules_to_save, path)).collect();
    let ranks = Patterns::new("rank_pattern", &config.rank_pattern)?;
    let alphas = Patterns::new("alpha_pattern", &config.alpha_pattern)?;
    ranks.check_used(&chosen)?;
    alphas.check_used(&chosen)?;
    let matches = chosen.into_iter().map(|path| Match {
        path: path.clone(),
        rank: ranks.get(path).unwrap_or(config.rank),
        alpha: alphas.get(path).unwrap_or(config.alpha),
    });
    matches.map(|found| check_numbers(config, found)).collect()
}

/// PEFT's `target_modules` for the given matches: the names where the recipe names them, whole paths otherwise.
pub fn target_modules(config: &AdapterConfig, defaults: &[&str], matches: &[Match]) -> Vec<String> {
    match &config.targets {
        Targets::Names(names) => names.clone(),
        Targets::Pattern(word) if word == "default" => defaults.iter().map(|name| (*name).to_owned()).collect(),
        Targets::Pattern(_) => matches.iter().map(|found| found.path.clone()).collect(),
    }
}

/// Says of each parameter whether it trains.
#[derive(Debug)]
pub struct Trainable {
    method: Method,
    bias: Bias,
    whole: Vec<String>,
    freeze: Vec<Regex>,
    adapted: Vec<String>,
}

impl Trainable {
    /// The rule of `config`, given the modules that have an adapter and the whole paths of all parameters.
    ///
    /// # Errors
    ///
    /// When a `freeze` pattern is not a usable regular expression, or `freeze` or `modules_to_save` matches nothing.
    pub fn new(config: &AdapterConfig, matches: &[Match], parameters: &[String]) -> Result<Self, Error> {
        for name in &config.modules_to_save {
            if !parameters.iter().any(|path| saved(std::slice::from_ref(name), path)) {
                let names = parameters.iter().flat_map(|path| path.split('.'));
                let nearest = nearest(name, names);
                return Err(Error::NoSuchKey { field: "modules_to_save", key: name.clone(), what: "module", nearest });
            }
            if let Some((outer, inner)) = parameters.iter().find_map(|path| nested(name, path)) {
                let [name, outer, inner] = [name.as_str(), outer, inner].map(str::to_owned);
                return Err(Error::Nested { name, outer, inner });
            }
        }
        let mut freeze = Vec::new();
        for pattern in &config.freeze {
            let regex = compile("freeze", pattern, pattern)?;
            if !parameters.iter().any(|path| regex.is_match(path)) {
                let key = pattern.clone();
                return Err(Error::NoSuchKey { field: "freeze", key, what: "parameter", nearest: None });
            }
            freeze.push(regex);
        }
        Ok(Self {
            method: config.method,
            bias: config.bias,
            whole: config.modules_to_save.clone(),
            freeze,
            adapted: matches.iter().map(|found| found.path.clone()).collect(),
        })
    }

    /// Whether the parameter with this whole path trains.
    pub fn trains(&self, path: &str) -> bool {
        let bias = || match (path.strip_suffix(".bias"), self.bias) {
            (Some(_), Bias::All) => true,
            (Some(module), Bias::LoraOnly) => self.adapted.iter().any(|adapted| adapted == module),
            _ => false,
        };
        match self.method {
            Method::Full => !self.freeze.iter().any(|regex| regex.is_match(path)),
            Method::Frozen => saved(&self.whole, path),
            Method::Lora | Method::Dora => path.contains(".adapter.") || saved(&self.whole, path) || bias(),
        }
    }
}

/// Values by pattern with PEFT's rule: the first key for which `(.*\.)?(KEY)$` matches the whole path.
#[derive(Debug)]
pub(crate) struct Patterns<T> {
    field: &'static str,
    keys: Vec<(String, Regex, T)>,
}

impl<T: Copy> Patterns<T> {
    fn new(field: &'static str, table: &BTreeMap<String, T>) -> Result<Self, Error> {
        Self::in_order(field, table.iter().map(|(key, value)| (key.as_str(), *value)))
    }

    pub(crate) fn in_order<'a>(field: &'static str, table: impl Iterator<Item = (&'a str, T)>) -> Result<Self, Error> {
        let compiled =
            table.map(|(key, value)| Ok((key.to_owned(), compile(field, key, &format!(r"^(.*\.)?({key})$"))?, value)));
        Ok(Self { field, keys: compiled.collect::<Result<_, Error>>()? })
    }

    pub(crate) fn get(&self, path: &str) -> Option<T> {
        self.keys.iter().find(|(_, regex, _)| regex.is_match(path)).map(|(_, _, value)| *value)
    }

    fn check_used(&self, paths: &[&String]) -> Result<(), Error> {
        match self.keys.iter().find(|(_, regex, _)| !paths.iter().any(|path| regex.is_match(path))) {
            None => Ok(()),
            Some((key, _, _)) => {
                let nearest = nearest(key, paths.iter().map(|path| last(path)));
                Err(Error::NoSuchKey { field: self.field, key: key.clone(), what: "module with an adapter", nearest })
            }
        }
    }
}

fn choose<'a>(targets: &Targets, defaults: &[&str], linears: &'a [String]) -> Result<Vec<&'a String>, Error> {
    let named = |names: &[&str]| {
        for name in names {
            if !linears.iter().any(|path| ends_with(path, name)) {
                let nearest = nearest(name, linears.iter().map(|path| last(path)));
                return Err(Error::NoSuchTarget { target: (*name).to_owned(), nearest });
            }
        }
        Ok(linears.iter().filter(|path| names.iter().any(|name| ends_with(path, name))).collect())
    };
    match targets {
        Targets::Names(names) => named(&names.iter().map(String::as_str).collect::<Vec<_>>()),
        Targets::Pattern(word) if word == "default" => named(defaults),
        Targets::Pattern(word) if word == "all-linear" => Ok(linears.iter().collect()),
        Targets::Pattern(pattern) => {
            let regex = compile("targets", pattern, &format!("^(?:{pattern})$"))?;
            let found: Vec<_> = linears.iter().filter(|path| regex.is_match(path)).collect();
            if found.is_empty() {
                let words = linears.iter().map(|path| last(path)).chain(["default", "all-linear"]);
                // A pattern is one of whole paths; a name stands in a list.
                let listed = |word: String| {
                    if linears.iter().any(|path| last(path) == word) { format!("[\"{word}\"]") } else { word }
                };
                let nearest = nearest(pattern, words).map(listed);
                return Err(Error::NoSuchTarget { target: pattern.clone(), nearest });
            }
            Ok(found)
        }
    }
}

fn check_numbers(config: &AdapterConfig, found: Match) -> Result<Match, Error> {
    let fail = |field, value, rule| Err(Error::Range { field, module: found.path.clone(), value, rule });
    if found.rank == 0 {
        return fail("rank", 0.0, "a rank is at least 1");
    }
    if !(found.alpha.is_finite() && found.alpha > 0.0) {
        return fail("alpha", found.alpha, "alpha is a finite number above 0");
    }
    if !(0.0..1.0).contains(&config.dropout) {
        return fail("dropout", config.dropout, "a probability is at least 0 and below 1");
    }
    Ok(found)
}

/// Whether `path` is `name` or ends with `.name`.
fn ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether `path` is, or lies in, a module whose path ends with one of `names`, as PEFT compares: without a dot. `norm` also takes
/// `input_layernorm`, and `classifier` DistilBERT's `pre_classifier`.
fn saved(names: &[String], path: &str) -> bool {
    let modules = || path.match_indices('.').map(|(at, _)| &path[..at]).chain([path]);
    names.iter().any(|name| modules().any(|module| module.ends_with(name.as_str())))
}

/// Two modules of a parameter, one within the other, that one name of `modules_to_save` names.
fn nested<'a>(name: &str, path: &'a str) -> Option<(&'a str, &'a str)> {
    let mut named = path.match_indices('.').map(|(at, _)| &path[..at]).filter(|module| module.ends_with(name));
    Some((named.next()?, named.next()?))
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn compile(field: &'static str, pattern: &str, whole: &str) -> Result<Regex, Error> {
    Regex::new(whole).map_err(|source| Error::Pattern { field, pattern: pattern.into(), source: Box::new(source) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn linears() -> Vec<String> {
        let names = ["attention.self.query", "attention.self.key", "attention.self.value", "output.dense"];
        (0..2).flat_map(|i| names.map(|name| format!("bert.encoder.layer.{i}.{name}"))).collect()
    }

    fn paths(targets: Targets) -> Result<Vec<String>, Error> {
        let config = AdapterConfig { targets, ..Default::default() };
        Ok(find(&config, &["query", "value"], &linears())?.into_iter().map(|found| found.path).collect())
    }

    #[test]
    fn modules_to_save_match_as_in_peft() {
        let names = |name: &str| vec![name.to_owned()];
        let norm = "model.layers.0.input_layernorm.weight";
        assert!(saved(&names("norm"), norm) && saved(&names("norm"), "model.norm.weight"));
        assert!(saved(&names("layers.0"), norm) && saved(&names("layernorm"), norm));
        assert!(
            !saved(&names("layer"), norm) && !saved(&names("input"), norm) && !saved(&names("norm"), "model.lm_head")
        );
        assert!(saved(&names("classifier"), "pre_classifier.weight") && saved(&names("lm_head"), "lm_head"));
    }

    #[test]
    fn targets_match_as_in_peft() {
        let word = |word: &str| Targets::Pattern(word.into());
        assert_eq!(paths(word("default")).unwrap().len(), 4);
        assert_eq!(paths(word("all-linear")).unwrap().len(), 8);
        assert_eq!(paths(word(r".*\.1\..*(query|key)")).unwrap().len(), 2);
        assert_eq!(paths(Targets::Names(vec!["self.key".into()])).unwrap().len(), 2);
        assert!(paths(Targets::Names(vec!["ery".into()])).is_err(), "an ending begins at a dot");
        assert!(paths(word("encoder.*")).is_err(), "an expression matches the whole path");
    }

    #[test]
    fn a_mistyped_target_is_told_the_nearest_name() {
        let message = paths(Targets::Names(vec!["quary".into()])).unwrap_err().to_string();
        assert!(message.contains("`quary`") && message.contains("`query`"), "{message}");
        let message = paths(Targets::Pattern("(?!x).*".into())).unwrap_err().to_string();
        assert!(message.contains("look-around"), "{message}");
    }

    #[test]
    fn patterns_set_rank_and_alpha() {
        let config = AdapterConfig {
            rank: 4,
            rank_pattern: BTreeMap::from([(r"layer\.1\..*query".into(), 2)]),
            alpha_pattern: BTreeMap::from([("value".into(), 3.0)]),
            ..Default::default()
        };
        let found = find(&config, &["query", "value"], &linears()).unwrap();
        assert_eq!(found.iter().map(|f| f.rank).collect::<Vec<_>>(), [4, 4, 2, 4]);
        assert_eq!(found.iter().map(|f| f.alpha).collect::<Vec<_>>(), [16.0, 3.0, 16.0, 3.0]);
        assert_eq!(found[0].scaling(true), 8.0);
        let config = AdapterConfig { rank_pattern: BTreeMap::from([("vallue".into(), 2)]), ..config };
        let message = find(&config, &["query", "value"], &linears()).unwrap_err().to_string();
        assert!(message.contains("rank_pattern") && message.contains("`value`"), "{message}");
    }

    #[test]
    fn what_trains_follows_the_table() {
        let base = "bert.encoder.layer.0.attention.self.query";
        let parameters: Vec<String> =
            [".weight", ".bias", ".adapter.lora_a"].iter().map(|end| format!("{base}{end}")).collect();
        let trains = |config: &AdapterConfig| {
            let matches = find(config, &["query"], &linears()).unwrap();
            let rule = Trainable::new(config, &matches, &parameters).unwrap();
            parameters.iter().map(|path| rule.trains(path)).collect::<Vec<_>>()
        };
        let config = AdapterConfig::default();
        assert_eq!(trains(&config), [false, false, true]);
        assert_eq!(trains(&AdapterConfig { bias: Bias::LoraOnly, ..config.clone() }), [false, true, true]);
        assert_eq!(trains(&AdapterConfig { method: Method::Frozen, ..config.clone() }), [false, false, false]);
        let full = AdapterConfig { method: Method::Full, freeze: vec!["bias$".into()], ..config.clone() };
        assert_eq!(trains(&full), [true, false, true]);
        let whole = AdapterConfig { method: Method::Frozen, modules_to_save: vec!["self".into()], ..config };
        assert_eq!(trains(&whole), [true, true, true]);
    }
}
