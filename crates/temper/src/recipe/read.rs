//! From a path to a struct: file, TOML, overrides, schema, serde.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::check::{self, OutOfRange};
use super::overrides::Override;
use super::source::Source;
use super::{hints, schema};
use crate::diagnostic::{Diagnostic, Diagnostics};

/// Bytes above which a file is no recipe; the longest that a person wrote has some thousands.
const LARGEST: u64 = 1 << 20;

/// The text of the file at `path`.
pub(super) fn text(path: &Path) -> Result<String, Diagnostic> {
    let shown = path.display();
    if path.is_dir() {
        let recipes = recipes_in(path);
        let diagnostic = Diagnostic::new(format!("`{shown}` is a directory, not a recipe"));
        return Err(match recipes.is_empty() {
            true => diagnostic,
            false => diagnostic.help(format!("it holds {}", hints::list(recipes.iter().map(String::as_str), "and"))),
        });
    }
    if !path.exists() {
        return Err(missing_file(path));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        return Err(Diagnostic::new(format!("failed to read `{shown}`: {error}")));
    }
    if bytes.len() as u64 > LARGEST {
        return Err(Diagnostic::new(format!("`{shown}` is no recipe: it is larger than 1 MiB")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        let byte = error.as_bytes()[position];
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let spot = Source::file(&shown.to_string(), text).spot(position..position + '\u{fffd}'.len_utf8());
        Diagnostic::new("the recipe is not UTF-8").at(spot, format!("byte 0x{byte:02x}")).help("save the file as UTF-8")
    })
}

fn missing_file(path: &Path) -> Diagnostic {
    let diagnostic = Diagnostic::new(format!("there is no recipe at `{}`", path.display()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return diagnostic.help(format!("there is no directory `{}`", folder.display()));
    }
    let recipes = recipes_in(folder);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match hints::nearest(&name, recipes.iter().map(String::as_str)) {
        Some(nearest) => diagnostic.help(format!("did you mean `{}`?", path.with_file_name(nearest).display())),
        None if recipes.is_empty() => diagnostic,
        None => {
            let some = recipes.iter().take(8).map(String::as_str);
            diagnostic.help(format!("in `{}` there is {}", folder.display(), hints::list(some, "and")))
        }
    }
}

/// Names of the TOML files in `folder`, sorted.
fn recipes_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.ends_with(".toml"));
    names.sort();
    names
}

/// Reads `text`, the contents of the file `origin`, with `overrides`, as a `T`; beside it what is out of its range there.
pub(super) fn parse<T: DeserializeOwned + JsonSchema>(
    origin: &str,
    text: String,
    overrides: &[String],
) -> Result<(T, Source, OutOfRange), Diagnostics> {
    let mut source = Source::file(origin, text.clone());
    let starts: Vec<usize> = overrides.iter().map(|text| source.add_override(text)).collect();
    let padded: Vec<String> = overrides.iter().zip(&starts).map(|(text, start)| " ".repeat(*start) + text).collect();

    let mut wrong = Diagnostics::default();
    let mut table = DeTable::parse(&text).map(Spanned::into_inner).unwrap_or_else(|error| {
        wrong.0.push(syntax(&error, &source));
        DeTable::new()
    });
    if wrong.0.is_empty() && table.is_empty() && overrides.is_empty() {
        return Err(empty(&source).into());
    }
    let mut parsed = Vec::new();
    for (text, start) in padded.iter().zip(starts) {
        match Override::parse(text, start, &source) {
            Ok(one) => parsed.push(one),
            Err(diagnostic) => wrong.0.push(diagnostic),
        }
    }
    wrong.into_result()?;
    parsed.iter().for_each(|one| one.drop_rivals(&mut table));
    parsed.into_iter().for_each(|one| one.apply(&mut table));

    source.index("", &table);
    let out_of_range = check::check(&schema::of::<T>(), &table, &source)?;
    let value = T::deserialize(ValueDeserializer::from(Spanned::new(0..0, DeValue::Table(table))));
    match value {
        Ok(value) => Ok((value, source, out_of_range)),
        // The schema says all that serde would; a hand-written `Deserialize` may refuse more.
        Err(error) => Err(syntax(&error, &source).into()),
    }
}

/// What the TOML parser says, at the place where it says it, and what to write where that is plain.
fn syntax(error: &toml::de::Error, source: &Source) -> Diagnostic {
    let diagnostic = Diagnostic::new(format!("invalid TOML: {}", error.message().replace('\n', "; ")));
    let Some(span) = error.span() else { return diagnostic };
    let spot = source.spot(span);
    let label = match spot.text.split_once('=') {
        Some((key, value)) if spot.column > key.chars().count() => {
            let value = value.split('#').next().unwrap_or_default().trim();
            match value.chars().next() {
                None => "a value is missing".into(),
                Some('.') if value[1..].starts_with(|c: char| c.is_ascii_digit()) => format!("write `0{value}`"),
                Some('"' | '\'' | '[' | '{') => String::new(),
                Some(_) => format!("a string needs quotes: `\"{value}\"`"),
            }
        }
        None if spot.text.contains(':') => "this looks like YAML; a recipe is TOML".into(),
        _ => String::new(),
    };
    diagnostic.at(spot, label)
}

fn empty(source: &Source) -> Diagnostic {
    let least =
        ["model", "task", "data"].iter().filter_map(|table| hints::example(table)).collect::<Vec<_>>().join("\n");
    Diagnostic::new("the recipe is empty")
        .at(source.end_of_file(), "")
        .help(format!("the least that a recipe says is\n{least}"))
}
