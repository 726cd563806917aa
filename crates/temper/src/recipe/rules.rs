//! How a rule that a recipe breaks is noted: with its place, and what to do.

use super::Recipe;
use super::source::Source;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::fetch::is_hub_name;

/// The rules that a recipe breaks.
pub(super) struct Rules<'a> {
    pub source: &'a Source,
    /// With the place in the source by which they are sorted.
    broken: Vec<(usize, Diagnostic)>,
}

impl<'a> Rules<'a> {
    pub fn new(source: &'a Source, broken: Vec<(usize, Diagnostic)>) -> Self {
        Self { source, broken }
    }

    /// What was broken, in the order in which it was written.
    pub fn broken(mut self) -> Diagnostics {
        self.broken.sort_by_key(|(place, _)| *place);
        Diagnostics(self.broken.into_iter().map(|(_, diagnostic)| diagnostic).collect())
    }

    pub fn push(&mut self, path: &str, diagnostic: Diagnostic) {
        self.broken.push((self.source.order(path), diagnostic));
    }

    /// The value of `path` must be `range`, such as "above 0".
    pub fn must(&mut self, path: &str, holds: bool, range: &str) {
        if !holds {
            let found = self.source.written(path).unwrap_or("none");
            let message = format!("{} must be {range}, found {found}", super::name(path));
            self.wrong(path, &message, "");
        }
    }

    /// The text at `path`, if the user wrote it, must hold something.
    pub fn not_empty(&mut self, path: &str) {
        if self.source.written(path).is_some_and(|text| text.trim_matches(['"', '\'', ' ']).is_empty()) {
            self.wrong(path, &format!("{} is empty", super::name(path)), "");
        }
    }

    /// `name` must be a directory, or could be a repository of the hub.
    pub fn place(&mut self, path: &str, recipe: &Recipe, name: &str) {
        let dir = recipe.beside(name);
        if dir.is_dir() || is_hub_name(recipe, name) {
            return;
        }
        let diagnostic = Diagnostic::new(format!("there is no directory `{}`", dir.display()));
        let diagnostic = diagnostic.at(self.source.at(path), "");
        let bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let diagnostic = match std::path::absolute(name) {
            Ok(here) if here.is_dir() => {
                diagnostic.help(format!("paths begin at the recipe's directory: the one here is `{}`", here.display()))
            }
            _ if bare => diagnostic.help("a model of the hub is written `organisation/name`"),
            _ => diagnostic,
        };
        self.push(path, diagnostic);
    }

    /// Those of `paths` that are written have no effect `because` of the value of `cause`.
    pub fn idle(&mut self, paths: &[&str], because: &str, cause: &str) {
        for path in paths.iter().filter(|path| self.source.wrote(path)) {
            let message = format!("{} has no effect because {because}", super::name(path));
            let diagnostic = Diagnostic::new(message).at(self.source.key(path), "remove it");
            let diagnostic = match self.source.wrote(cause) {
                true => diagnostic.at(self.source.at(cause), "because of this"),
                false => diagnostic,
            };
            self.push(path, diagnostic);
        }
    }

    pub fn wrong(&mut self, path: &str, message: &str, label: &str) {
        self.push(path, Diagnostic::new(message).at(self.source.at(path), label));
    }
}
