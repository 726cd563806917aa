//! Who we are on the hub, and whether we may write: asked before a run begins.

use serde::Deserialize;
use serde_json::json;

use crate::{
    Error, Hub, Origin, RepoId, RepoKind, Result,
    answer::{About, LOGIN},
    http::Request,
    names::check_revision,
    push::Target,
    settings::IMPLICIT_TOKEN,
};

/// The account behind a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The user's name.
    pub name: String,
    /// The organisations that the user belongs to.
    pub organisations: Vec<String>,
    /// What the token may do: `read`, `write`, `fineGrained`, or empty when the hub does not say.
    pub role: String,
}

/// What a check before a run found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Who pushes.
    pub account: Account,
    /// Whether the repository was made just now.
    pub created: bool,
    /// Whether only its owners see it.
    pub private: bool,
}

#[derive(Deserialize)]
struct Whoami {
    name: String,
    #[serde(default)]
    orgs: Vec<Org>,
    #[serde(default)]
    auth: Auth,
}

#[derive(Deserialize)]
struct Org {
    name: String,
}

#[derive(Deserialize, Default)]
struct Auth {
    #[serde(rename = "accessToken", default)]
    token: Option<AccessToken>,
}

#[derive(Deserialize)]
struct AccessToken {
    #[serde(default)]
    role: String,
}

impl Hub {
    /// Who the token belongs to.
    ///
    /// # Errors
    /// Without a token, with a bad one, without a network, or offline.
    pub fn whoami(&self) -> Result<Account> {
        let about = About::doing("ask the hub who we are");
        self.online(about.doing.as_str())?;
        if self.http.token().is_none() {
            let hidden = self.settings().token.origin == Origin::Variable(IMPLICIT_TOKEN);
            let advice = if hidden { "unset HF_HUB_DISABLE_IMPLICIT_TOKEN" } else { LOGIN };
            return Err(Error::NoToken { doing: about.doing, advice });
        }
        let who: Whoami = self.http.json(&Request::get(self.http.url(&["api", "whoami-v2"])), &about)?;
        Ok(Account {
            name: crate::names::printable(&who.name),
            organisations: who.orgs.iter().map(|org| crate::names::printable(&org.name)).collect(),
            role: who.auth.token.map(|token| token.role).unwrap_or_default(),
        })
    }

    /// Checks, before training starts, that a push to `target` will be allowed: the token is valid and may write, the
    /// repository is ours or its name is free (then it is made, private unless asked otherwise). The hub's quota cannot
    /// be known.
    ///
    /// # Errors
    /// What stands against the push. A repository that exists is an error if it is public and the target says private, or the
    /// other way round.
    pub fn prepare(&self, target: &Target) -> Result<Ready> {
        let repo = &target.repo;
        self.online(format!("push to {repo}"))?;
        let wrong = |reason: String| Error::Push { repo: repo.clone(), reason };
        let (Some(owner), _) = repo.parts() else {
            let reason = format!("write whose it is, as in `you/{}`", repo.id());
            return Err(Error::Name { what: "repository to push to", name: repo.id().into(), reason });
        };
        check_revision("branch", &target.branch)?;
        let account = self.whoami()?;
        if account.role == "read" && !target.pull_request {
            let advice = "make a token with the permission to write, then `temper hub login`".into();
            return Err(Error::Forbidden {
                doing: format!("push to {repo}"),
                message: "the token may only read".into(),
                advice,
            });
        }
        let ours = account.name == owner || account.organisations.iter().any(|org| org == owner);
        let created = if ours { self.create(target, owner != account.name)? } else { false };
        // A repository of somebody else may grant us access all the same: what follows finds out.
        let private = self.hf()?.info(&self.http, repo, "main")?.private;
        if !private && target.private && !target.pull_request {
            return Err(wrong(
                "the repository is public; say so in the recipe (private = false) or take another name".into(),
            ));
        }
        if private && !target.private && !created && !target.pull_request {
            return Err(wrong(
                "the repository is private, and a push does not change that: make it public on its page".into(),
            ));
        }
        self.ask_modes(target, "main", &[("README.md", 1, "IwA=")])?;
        Ok(Ready { account, created, private })
    }

    /// Makes the repository; says whether it was not there before.
    fn create(&self, target: &Target, of_organisation: bool) -> Result<bool> {
        let repo = &target.repo;
        let (owner, name) = repo.parts();
        let mut body = json!({"name": name, "type": repo.kind().singular(), "private": target.private});
        if of_organisation {
            body["organization"] = json!(owner);
        }
        let about = About::doing(format!("create {repo}"));
        let made = self.http.send(&Request::post(self.http.url(&["api", "repos", "create"]), body), &about);
        match made {
            Ok(_) => Ok(true),
            Err(Error::Refused { status: 409, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks the hub how it wants files, which it answers only to those who may write.
    pub(crate) fn ask_modes(&self, target: &Target, revision: &str, files: &[(&str, u64, &str)]) -> Result<Vec<Mode>> {
        let repo = &target.repo;
        let about = About::doing(format!("push to {repo}")).repo(repo).revision(revision);
        let url = self.http.api(repo, &["preupload", revision]) + pull_request_query(target);
        let file = |(path, size, sample): &(&str, u64, &str)| json!({"path": path, "size": size, "sample": sample});
        let mut modes = Vec::new();
        for batch in files.chunks(256) {
            let body = json!({"files": batch.iter().map(file).collect::<Vec<_>>()});
            let answer: Modes = self.http.json(&Request::post(url.as_str(), body), &about)?;
            for (path, ..) in batch {
                let mode = answer.files.iter().find(|mode| mode.path == *path).cloned();
                modes.push(
                    mode.ok_or_else(|| self.http.bad_answer(&about, format!("it does not say how it wants {path}")))?,
                );
            }
        }
        Ok(modes)
    }
}

/// How the hub wants a file.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Mode {
    path: String,
    #[serde(rename = "uploadMode")]
    pub(crate) mode: String,
    #[serde(rename = "shouldIgnore", default)]
    pub(crate) ignore: bool,
    /// What it has under that name: a git blob hash, or the sha256 of a large file.
    #[serde(default)]
    pub(crate) oid: Option<String>,
}

#[derive(Deserialize)]
struct Modes {
    files: Vec<Mode>,
}

/// `?create_pr=1` for a pull request.
pub(crate) fn pull_request_query(target: &Target) -> &'static str {
    if target.pull_request { "?create_pr=1" } else { "" }
}

impl Target {
    /// The private `main` of a model repository.
    pub fn model(repo: RepoId) -> Self {
        debug_assert_eq!(repo.kind(), RepoKind::Model);
        Self { repo, branch: "main".into(), private: true, pull_request: false }
    }
}
