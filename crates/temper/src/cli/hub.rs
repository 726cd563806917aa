//! The verbs of the hub: `push`, `hub …` and `env`.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use temper_hub::{Facts, Found, PullOptions, Reference, Search, Settings, Token, license_of, login, logout};
use temper_models::MODEL_TYPES;

use super::{print, writeln};
use crate::failure::{Context, Failure, Kind};
use crate::fetch::{Source, bring, failure, hub};
use crate::push::{licence, push_run};
use crate::recipe::{self, ExportConfig, PushWhat};
use crate::units;

#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// A finished run.
    run: PathBuf,
    /// Where to, in place of the recipe's `push_to`: `you/name`.
    #[arg(long, value_name = "REPOSITORY")]
    to: Option<String>,
    /// Push the merged weights in place of the adapter.
    #[arg(long)]
    merged: bool,
    /// Let everybody see it. Default: as in the recipe, which is private unless it says otherwise.
    #[arg(long)]
    public: bool,
    /// The branch.
    #[arg(long)]
    branch: Option<String>,
    /// A tag for the commit. A pull request is tagged by whoever merges it.
    #[arg(long, conflicts_with = "pull_request")]
    tag: Option<String>,
    /// Open a pull request.
    #[arg(long)]
    pull_request: bool,
    /// The licence of the result. Default: as in the recipe, or the base's.
    #[arg(long, value_parser = recipe::licence)]
    license: Option<String>,
    /// Why the result may be published, where the licences do not say so themselves.
    #[arg(long, value_name = "REASON")]
    licence_override: Option<String>,
    /// The commit's first line.
    #[arg(long, value_parser = recipe::first_line)]
    message: Option<String>,
    /// Push what was exported though the run has gone on since.
    #[arg(long)]
    earlier: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum HubVerb {
    /// Find models: the most downloaded first.
    Search(SearchArgs),
    /// The facts of a model or data set: what it is, its licence, how large, whether temper can load it.
    Info(RepoArgs),
    /// The files of a repository.
    Files(RepoArgs),
    /// Fetch a model, or the files of a repository that match a pattern, into the cache; prints where it lies.
    Download(DownloadArgs),
    /// Say who the token belongs to.
    Whoami,
    /// Keep a token that is given on standard input.
    Login,
    /// Forget the token.
    Logout,
}

#[derive(Debug, Args)]
pub(super) struct SearchArgs {
    /// Words to look for.
    text: Vec<String>,
    /// Only models for this task, such as `text-classification`.
    #[arg(long)]
    task: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RepoArgs {
    /// `organisation/name`, `organisation/name@revision` or `hf://datasets/organisation/name`.
    name: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DownloadArgs {
    /// `organisation/name`, `organisation/name@revision` or `hf://datasets/organisation/name`.
    name: String,
    /// Files to fetch, as globs. Default: what temper needs of a model, all of a data set.
    files: Vec<String>,
}

impl PushArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let path = self.run.join("plan.json");
        let text = std::fs::read_to_string(&path)
            .context(Kind::Data, format!("{} is no run directory: failed to read plan.json", self.run.display()))?;
        let plan: Value = serde_json::from_str(&text).context(Kind::Data, "failed to understand plan.json")?;
        let planned: ExportConfig =
            serde_json::from_value(plan["export"].clone()).context(Kind::Data, "failed to understand plan.json")?;
        let export = ExportConfig {
            push_to: self.to.or(planned.push_to),
            push: if self.merged { PushWhat::Merged } else { planned.push },
            private: planned.private && !self.public,
            branch: self.branch.or(planned.branch),
            tag: self.tag.or(planned.tag),
            pull_request: self.pull_request || planned.pull_request,
            commit_message: self.message.or(planned.commit_message),
            license: self.license.or(planned.license),
            licence_override: self.licence_override.or(planned.licence_override),
            ..planned
        };
        if export.push_to.is_none() {
            let message = "error: the recipe names no `push_to`: say where to with `--to you/name`";
            return Err(Failure::new(Kind::Recipe, message));
        }
        let hub = hub()?;
        let sources: Result<Vec<Source>, _> = serde_json::from_value(plan["sources"].clone());
        let sources = sources.context(Kind::Data, "failed to understand plan.json")?;
        let adapted = plan["adapter"]["modules"].as_array().is_some_and(|modules| !modules.is_empty());
        let licence = licence(&hub, &export, &sources, license_of(&self.run.join("export")), adapted)?;
        let fingerprint = plan["fingerprint"].as_str().unwrap_or_default();
        let pushed = push_run(&hub, &self.run, &export, &licence, fingerprint, self.earlier)?;
        let sent = if pushed.was_there { "was there".into() } else { format!("sent {}", units::bytes(pushed.sent)) };
        writeln(&format!("{} ({sent}, commit {})", pushed.pull_request.unwrap_or(pushed.url), pushed.commit))
    }
}

impl HubVerb {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Search(args) => args.run(),
            Self::Info(args) => args.info(),
            Self::Files(args) => args.files(),
            Self::Download(args) => args.run(),
            Self::Whoami => {
                let account = hub()?.whoami().map_err(failure)?;
                let role = if account.role.is_empty() { "unknown" } else { &account.role };
                writeln(&format!("{} (token: {role})", account.name))?;
                account.organisations.iter().try_for_each(|organisation| writeln(&format!("  {organisation}")))
            }
            Self::Login => keep_token(),
            Self::Logout => {
                let there = logout(&Settings::from_env().map_err(failure)?).map_err(failure)?;
                writeln(if there { "logged out" } else { "there was no token" })
            }
        }
    }
}

/// Takes a token from standard input, so that no shell keeps it in its history.
fn keep_token() -> Result<(), Failure> {
    let input = std::io::stdin();
    if input.is_terminal() {
        say!("paste a token (it is shown) and press return:");
    }
    let mut line = String::new();
    input.lock().read_line(&mut line).context(Kind::Other, "failed to read the token")?;
    let token = Token::new(line.trim());
    let token = token.ok_or_else(|| Failure::new(Kind::Recipe, "error: that is no token: one begins with hf_"))?;
    let account = login(&Settings::from_env().map_err(failure)?, token).map_err(failure)?;
    writeln(&format!("logged in as {}", account.name))
}

impl SearchArgs {
    fn run(self) -> Result<(), Failure> {
        let search = Search { text: self.text.join(" "), task: self.task, limit: self.limit };
        let found = hub()?.search(&search).map_err(failure)?;
        if self.json {
            return print(&found.iter().map(json_of_found).collect());
        }
        found.iter().try_for_each(|found| {
            let marks = [(found.gated, "gated"), (!found.safetensors, "no safetensors")];
            let marks = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| (*mark).to_owned());
            let words = [found.task.clone(), found.license.clone()].into_iter().flatten().chain(marks);
            let words: Vec<String> = words.collect();
            let downloads = found.downloads.map_or(String::new(), |n| format!("{} downloads", units::grouped(n)));
            writeln(&format!("{:<50} {downloads:>24}  {}", found.repo.to_string(), words.join(", ")))
        })
    }
}

fn json_of_found(found: &Found) -> Value {
    json!({
        "id": found.repo.id(), "task": found.task, "license": found.license, "downloads": found.downloads,
        "gated": found.gated, "safetensors": found.safetensors,
    })
}

impl RepoArgs {
    fn reference(&self) -> Result<Reference, Failure> {
        self.name.parse().map_err(failure)
    }

    fn info(self) -> Result<(), Failure> {
        let facts = hub()?.facts(&self.reference()?).map_err(failure)?;
        if self.json {
            return print(&json_of_facts(&facts));
        }
        let unknown = || "unknown".to_owned();
        let parameters = facts.parameters.map_or_else(unknown, units::grouped);
        let rows = [
            ("commit", facts.pinned.commit.to_string()),
            ("task", facts.task.clone().unwrap_or_else(unknown)),
            ("architecture", facts.model_type.clone().unwrap_or_else(unknown)),
            ("temper", loads(&facts)),
            (
                "licence",
                facts.license_name.clone().or_else(|| facts.license.clone()).unwrap_or_else(|| "none stated".into()),
            ),
            (
                "seen by",
                if facts.private {
                    "its owners"
                } else if facts.gated {
                    "whoever accepts its terms"
                } else {
                    "everybody"
                }
                .into(),
            ),
            ("parameters", parameters),
            ("safetensors", units::bytes(facts.safetensors)),
            ("all files", format!("{} in {} files", units::bytes(facts.bytes), facts.files)),
        ];
        writeln(&facts.pinned.repo.to_string())?;
        rows.iter().try_for_each(|(name, value)| writeln(&format!("  {name:<13} {value}")))
    }

    fn files(self) -> Result<(), Failure> {
        let hub = hub()?;
        let listing = hub.pin(&self.reference()?).and_then(|pinned| hub.list(&pinned)).map_err(failure)?;
        if self.json {
            let file =
                |file: &temper_hub::TreeFile| json!({"path": file.path, "size": file.size, "sha256": file.sha256});
            return print(&listing.files.iter().map(file).collect());
        }
        listing.files.iter().try_for_each(|file| writeln(&format!("{:>15}  {}", units::grouped(file.size), file.path)))
    }
}

/// Whether temper can load it, and why not.
fn loads(facts: &Facts) -> String {
    let known = |name: &str| MODEL_TYPES.iter().any(|(known, _)| *known == name);
    match facts.model_type.as_deref() {
        _ if facts.remote_code => "cannot load it: it asks for code of its own".into(),
        Some(name) if !known(name) => format!("cannot load it: it knows no {name}"),
        Some(_) if facts.safetensors == 0 => "cannot load it: it has no safetensors".into(),
        Some(_) => "can load it".into(),
        None => "unknown: no config.json was read".into(),
    }
}

fn json_of_facts(facts: &Facts) -> Value {
    json!({
        "id": facts.pinned.repo.id(), "commit": facts.pinned.commit.as_str(), "task": facts.task,
        "model_type": facts.model_type, "license": facts.license, "license_name": facts.license_name,
        "private": facts.private, "gated": facts.gated, "parameters": facts.parameters,
        "safetensors_bytes": facts.safetensors, "bytes": facts.bytes, "files": facts.files,
        "remote_code": facts.remote_code,
    })
}

impl DownloadArgs {
    fn run(self) -> Result<(), Failure> {
        let hub = hub()?;
        let reference: Reference = self.name.parse().map_err(failure)?;
        let pinned = hub.pin(&reference).map_err(failure)?;
        let patterns: Vec<&str> = reference.path.iter().chain(&self.files).map(String::as_str).collect();
        let snapshot = if patterns.is_empty() && pinned.repo.kind() == temper_hub::RepoKind::Model {
            let model = hub.model_files(&pinned, &PullOptions::default());
            model.and_then(|model| bring(&hub, &model.listing, &model.files))
        } else {
            let listing = hub.list(&pinned);
            listing.and_then(|listing| bring(&hub, &listing, &listing.select(&patterns, &[])?))
        };
        let snapshot = snapshot.map_err(failure)?;
        writeln(&snapshot.dir.display().to_string())
    }
}

/// What of the environment decides where files come from and go to.
pub(super) fn env() -> Result<(), Failure> {
    let settings = Settings::from_env().map_err(failure)?;
    settings.describe().iter().try_for_each(|(name, value, origin)| writeln(&format!("{name:<16} {value}  ({origin})")))
}
