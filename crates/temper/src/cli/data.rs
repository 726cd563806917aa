//! `temper data`: rows as the model will see them; files as a data set of the hub, in Parquet, with a card.

use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;
use temper_hub::{DataCard, DataSplit, Error, Hub, Push, PushFile, Reference, RepoId, Target, has_token, render_data};
use temper_world::Place;

use super::writeln;
use crate::failure::{Context, Failure, Kind};
use crate::fetch::{failure, fetch, hub};
use crate::plan::TaskPlan;
use crate::push::send;
use crate::recipe;
use crate::resolve::resolve;
use crate::run_dir::write_atomically;
use crate::units;

#[derive(Debug, Subcommand)]
pub(super) enum DataVerb {
    /// Show rows of a recipe as tokens, with those that are learned marked.
    Preview(PreviewArgs),
    /// Push files as a data set: Parquet and a card, in one commit.
    Push(DataPushArgs),
}

#[derive(Debug, Args)]
pub(super) struct DataPushArgs {
    /// Files as `SPLIT=FILE`, such as `train=reviews.jsonl`; a split may have several, of the same columns.
    #[arg(required = true, value_name = "SPLIT=FILE")]
    files: Vec<String>,
    /// The data set, `you/name`; it is made if it is not there.
    #[arg(long, value_name = "REPOSITORY")]
    to: String,
    /// Its licence, as the hub calls it, such as `cc-by-4.0`. Default: none is stated.
    #[arg(long, value_parser = recipe::licence)]
    license: Option<String>,
    /// What it is and where it comes from, for the card.
    #[arg(long, default_value = "")]
    summary: String,
    /// Its language, an ISO 639 code.
    #[arg(long, value_parser = recipe::language)]
    language: Option<String>,
    /// What it is for, such as `text-classification`.
    #[arg(long, value_parser = category)]
    task: Option<String>,
    /// Let everybody see it. Default: private.
    #[arg(long)]
    public: bool,
    /// The branch.
    #[arg(long, default_value = "main")]
    branch: String,
    /// A tag for the commit. A pull request is tagged by whoever merges it.
    #[arg(long, conflicts_with = "pull_request")]
    tag: Option<String>,
    /// Open a pull request.
    #[arg(long)]
    pull_request: bool,
    /// Delete the splits that are there and not here, and replace a card that states a licence by one that does not. In a pull
    /// request that is for whoever merges it to decide.
    #[arg(long, conflicts_with = "pull_request")]
    replace: bool,
}

impl DataVerb {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Preview(args) => args.run(),
            Self::Push(args) => args.run(),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct PreviewArgs {
    #[command(flatten)]
    recipe: super::RecipeArgs,
    /// How many rows, or packs of them.
    #[arg(long, default_value_t = 3, value_name = "N")]
    rows: usize,
    /// Evaluation rows in place of training rows.
    #[arg(long)]
    eval: bool,
    /// Print JSON: for each row its ids, pieces of text, and whether each is learned.
    #[arg(long)]
    json: bool,
}

impl PreviewArgs {
    fn run(self) -> Result<(), Failure> {
        let mut recipe = self.recipe.load()?;
        fetch(&mut recipe, false)?;
        let (plan, inputs) = resolve(&recipe, &Place::alone())?;
        if !matches!(plan.task, TaskPlan::CausalLm(_)) {
            let message =
                "error: only `kind = \"causal-lm\"` learns tokens; the rows of other tasks are learned by their labels";
            return Err(Failure::new(Kind::Recipe, message));
        }
        let rows = if self.eval { &inputs.dataset.eval } else { &inputs.dataset.train };
        let rows = temper_data::preview(rows, &inputs.tokenizer, self.rows);
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        for row in rows.context(Kind::Data, "failed to decode the rows")? {
            let tokens = || row.tokens.iter();
            let json = || {
                json!({
                    "sources": row.sources,
                    "ids": tokens().map(|token| token.id).collect::<Vec<_>>(),
                    "text": tokens().map(|token| token.text.as_str()).collect::<Vec<_>>(),
                    "learned": tokens().map(|token| token.trained).collect::<Vec<_>>(),
                })
            };
            let shown = if self.json { json().to_string() } else { row.display(colour).to_string() };
            writeln(shown.trim_end_matches('\n'))?;
        }
        Ok(())
    }
}

/// A category of tasks as the hub calls it.
fn category(text: &str) -> Result<String, String> {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    match text.split('-').all(|word| !word.is_empty() && word.bytes().all(letter)) {
        true => Ok(text.into()),
        false => Err("a task is written as the hub calls it, such as `text-classification`".into()),
    }
}

/// A text of a row that must not be pushed: the file that is made of the rows is compressed.
fn secret(text: &str) -> Option<&'static str> {
    has_token(text).then_some("it holds a hub access token; take it out, a pushed secret has to be revoked")
}

impl DataPushArgs {
    fn run(self) -> Result<(), Failure> {
        let repo = RepoId::dataset(&self.to).map_err(failure)?;
        let splits = self.splits()?;
        let dir = tempfile::tempdir().context(Kind::Other, "failed to make a temporary directory")?;
        let mut card = DataCard {
            title: repo.id().rsplit('/').next().unwrap_or_default().to_owned(),
            summary: self.summary,
            language: self.language.into_iter().collect(),
            license: self.license,
            tasks: self.task.into_iter().collect(),
            ..DataCard::default()
        };
        let mut files = Vec::new();
        // Readers take all splits to have the same columns.
        let all: Vec<PathBuf> = splits.values().flatten().cloned().collect();
        let columns = temper_data::columns_of(&all).context(Kind::Data, "failed to read the data")?;
        for (split, inputs) in splits {
            let name = format!("data/{split}-00000-of-00001.parquet");
            let local = dir.path().join(format!("{split}.parquet"));
            let converted = temper_data::to_parquet(&inputs, &columns, &local, secret);
            let converted = converted.context(Kind::Data, "failed to convert the data")?;
            let bytes = fs::metadata(&local).map(|metadata| metadata.len()).unwrap_or_default();
            card.splits.push(DataSplit { name: split, files: name.clone(), rows: converted.rows, bytes });
            card.columns = converted.columns;
            files.push(PushFile { path: name, local });
        }
        let readme = dir.path().join("README.md");
        write_atomically(&readme, render_data(&card).as_bytes())?;
        files.push(PushFile { path: "README.md".into(), local: readme });
        let push = Push {
            target: Target { repo, branch: self.branch, private: !self.public, pull_request: self.pull_request },
            message: "Upload data with temper".into(),
            run: "data".into(),
            step: 0,
            files,
            replace: vec!["data/".into()],
            tags: self.tag.into_iter().collect(),
            journal: None,
        };
        let hub = hub()?;
        if !push.target.pull_request && !self.replace {
            spare(&hub, &push, card.license.is_some())?;
        }
        let pushed = send(&hub, &push)?;
        let rows: u64 = card.splits.iter().map(|split| split.rows).sum();
        let page = pushed.pull_request.unwrap_or(pushed.url);
        writeln(&format!("{page} ({} rows, commit {})", units::grouped(rows), pushed.commit))
    }

    /// The files of each split.
    fn splits(&self) -> Result<BTreeMap<String, Vec<PathBuf>>, Failure> {
        let mut splits: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for file in &self.files {
            let named = file.split_once('=').filter(|(split, path)| is_word(split) && !path.is_empty());
            let Some((split, path)) = named else {
                let message = format!("error: write `SPLIT=FILE`, such as `train=rows.jsonl`: found `{file}`");
                return Err(Failure::new(Kind::Recipe, message));
            };
            splits.entry(split.into()).or_default().push(path.into());
        }
        Ok(splits)
    }
}

/// Refuses a push that would take something from a data set that is there.
fn spare(hub: &Hub, push: &Push, licensed: bool) -> Result<(), Failure> {
    let Target { repo, branch, .. } = &push.target;
    let there = Reference { repo: repo.clone(), revision: branch.clone(), path: None };
    let license = match hub.facts(&there) {
        Err(Error::RepoMissing { .. } | Error::RevisionMissing { .. }) => return Ok(()),
        facts => facts.map_err(failure)?.license,
    };
    let refuse = |message: String| Err(Failure::new(Kind::Recipe, format!("error: {message}")));
    let deleted = hub.deletes(push).map_err(failure)?;
    if !deleted.is_empty() {
        let deleted = deleted.join(", ");
        return refuse(format!(
            "{repo} has {deleted}, which this push would delete: push these splits too, or add --replace"
        ));
    }
    match license.filter(|_| !licensed) {
        Some(license) => refuse(format!(
            "{repo} is under {license}, and its new card would state no licence: add --license {license}, or --replace"
        )),
        None => Ok(()),
    }
}

fn is_word(split: &str) -> bool {
    !split.is_empty() && split.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
