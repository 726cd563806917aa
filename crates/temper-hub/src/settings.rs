//! Where the hub is, where its cache lies, and who asks: the environment, read once.
//!
//! The variables and their order are those of Python's `huggingface_hub`
//! (<https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>), so that both find the same
//! cache and the same token. Every value remembers where it came from, for `temper env`.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use url::{Host, Url};

use crate::{Error, Result, Token};

/// The public hub.
pub const PUBLIC_HUB: &str = "https://huggingface.co";

/// The variable that forbids to send a token that nobody gave for the request at hand. No command of temper takes one, so
/// that none is sent.
pub(crate) const IMPLICIT_TOKEN: &str = "HF_HUB_DISABLE_IMPLICIT_TOKEN";

/// All that decides where files come from and go to. After it is made, nothing in this crate reads the environment
/// (but the operating system's proxy settings).
#[derive(Debug, Clone)]
pub struct Settings {
    /// The hub's origin, such as `https://huggingface.co`, without a `/` at its end.
    pub endpoint: Setting<String>,
    /// The access token, if there is one.
    pub token: Setting<Option<Token>>,
    /// Where a login is written, and read from when no variable has a token.
    pub token_file: Setting<PathBuf>,
    /// The cache, shared with Python's client.
    pub cache: Setting<PathBuf>,
    /// The Xet client's cache of what it has uploaded.
    pub xet_cache: Setting<PathBuf>,
    /// Use only what is in the cache.
    pub offline: Setting<bool>,
    /// Upload through Xet when the hub offers it.
    pub xet: Setting<bool>,
    /// How often and how long to try.
    pub patience: Patience,
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said otherwise.
    Default,
    /// The environment variable of this name.
    Variable(&'static str),
    /// This file.
    File(PathBuf),
    /// The program gave it.
    Given,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Given => f.write_str("given"),
        }
    }
}

/// How often and how long a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Tries of one request, the first included. Raised: longer outages are survived.
    pub tries: u32,
    /// Wait after the first failure; it doubles with each, up to 16 times this.
    pub first_wait: Duration,
    /// The longest wait that a `Retry-After` of the hub may ask for; a longer one is an error that names it.
    pub longest_wait: Duration,
    /// How long a connection may take to be made.
    pub connect: Duration,
    /// How long the hub may be silent within an answer.
    pub silence: Duration,
    /// How long to look for a commit that was sent but not confirmed, before it is sent again.
    pub settle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 5,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(120),
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(60),
            settle: Duration::from_secs(75),
        }
    }
}

impl Settings {
    /// The settings that the environment and the token file give.
    ///
    /// # Errors
    /// When the endpoint is no http(s) origin, or when the token file cannot be read.
    pub fn from_env() -> Result<Self> {
        Self::resolve(&|name| std::env::var(name).ok())
    }

    /// The settings that `variable` (in place of the environment) and the token file give.
    ///
    /// # Errors
    /// As for [`Settings::from_env`].
    pub fn resolve(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &'static str| variable(name).filter(|value| !value.is_empty()).map(|value| (name, value));
        let paths = Paths { variable };
        let text = |found: Option<(&'static str, String)>, default: String| match found {
            Some((name, value)) => Setting { value, origin: Origin::Variable(name) },
            None => Setting { value: default, origin: Origin::Default },
        };
        let switch = |names: &[&'static str]| {
            let on = |value: &str| ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str());
            match names.iter().find_map(|name| set(name)) {
                Some((name, value)) => Setting { value: on(&value), origin: Origin::Variable(name) },
                None => Setting { value: false, origin: Origin::Default },
            }
        };
        let endpoint = text(set("HF_ENDPOINT"), PUBLIC_HUB.into()).try_map(|text| origin_of(&text))?;
        let user_cache = || paths.home().join(".cache");
        let home = match (set("HF_HOME"), set("XDG_CACHE_HOME")) {
            (Some((_, home)), _) => paths.expand(&home),
            (None, Some((_, cache))) => paths.expand(&cache).join("huggingface"),
            (None, None) => user_cache().join("huggingface"),
        };
        let below = |names: &[&'static str], name: &str| match names.iter().find_map(|name| set(name)) {
            Some((name, value)) => Setting { value: paths.expand(&value), origin: Origin::Variable(name) },
            None => {
                let from = ["HF_HOME", "XDG_CACHE_HOME"].into_iter().find(|name| set(name).is_some());
                Setting { value: home.join(name), origin: from.map_or(Origin::Default, Origin::Variable) }
            }
        };
        let token_file = below(&["HF_TOKEN_PATH"], "token");
        let token = find_token(set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")), &token_file.value)?;
        let token = if switch(&[IMPLICIT_TOKEN]).value {
            Setting { value: None, origin: Origin::Variable(IMPLICIT_TOKEN) }
        } else {
            token
        };
        let no_xet = switch(&["HF_HUB_DISABLE_XET"]);
        Ok(Self {
            endpoint,
            token,
            token_file,
            cache: below(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"], "hub"),
            xet_cache: below(&["HF_XET_CACHE"], "xet"),
            offline: switch(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]),
            xet: Setting { value: !no_xet.value, origin: no_xet.origin },
            patience: Patience::default(),
        })
    }

    /// Settings for a hub at `endpoint` with everything that is kept here below `home`, without a look at the
    /// environment.
    ///
    /// # Errors
    /// When the endpoint is no http(s) origin.
    pub fn given(endpoint: &str, token: Option<Token>, home: &Path) -> Result<Self> {
        fn given<T>(value: T) -> Setting<T> {
            Setting { value, origin: Origin::Given }
        }
        Ok(Self {
            endpoint: given(origin_of(endpoint)?),
            token: given(token),
            token_file: given(home.join("token")),
            cache: given(home.join("hub")),
            xet_cache: given(home.join("xet")),
            offline: given(false),
            xet: given(true),
            patience: Patience::default(),
        })
    }

    /// Name, value and origin of every setting, the token masked: what `temper env` prints.
    pub fn describe(&self) -> Vec<(&'static str, String, String)> {
        fn row<T>(
            name: &'static str,
            setting: &Setting<T>,
            show: impl Fn(&T) -> String,
        ) -> (&'static str, String, String) {
            (name, show(&setting.value), setting.origin.to_string())
        }
        let path = |path: &PathBuf| path.display().to_string();
        let yes = |value: &bool| String::from(if *value { "yes" } else { "no" });
        let token = |token: &Option<Token>| token.as_ref().map_or_else(|| "none".into(), Token::to_string);
        vec![
            row("endpoint", &self.endpoint, String::clone),
            row("token", &self.token, token),
            row("token file", &self.token_file, path),
            row("cache", &self.cache, path),
            row("xet cache", &self.xet_cache, path),
            row("offline", &self.offline, yes),
            row("xet", &self.xet, yes),
            ("telemetry", "none is sent".into(), "always".into()),
        ]
    }

    /// The endpoint when it is not the public hub: a run's header prints it.
    pub fn unusual_endpoint(&self) -> Option<&str> {
        (self.endpoint.value != PUBLIC_HUB).then_some(&self.endpoint.value)
    }
}

impl<T> Setting<T> {
    fn try_map<U>(self, change: impl FnOnce(T) -> Result<U>) -> Result<Setting<U>> {
        Ok(Setting { value: change(self.value)?, origin: self.origin })
    }
}

/// Python's `expanduser` and `expandvars`.
struct Paths<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Paths<'_> {
    fn home(&self) -> PathBuf {
        let home = (self.variable)("HOME").or_else(|| (self.variable)("USERPROFILE"));
        home.map_or_else(std::env::temp_dir, PathBuf::from)
    }

    /// `~/` and `$NAME` or `${NAME}` replaced; a variable that is not set stays as it is written.
    fn expand(&self, text: &str) -> PathBuf {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let tail = &rest[at + 1..];
            let braced = tail.strip_prefix('{').and_then(|tail| tail.split_once('}'));
            let plain = tail.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(tail.len());
            let (name, length) = braced.map_or((&tail[..plain], plain), |(name, _)| (name, name.len() + 2));
            match (self.variable)(name).filter(|_| !name.is_empty()) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[at..at + 1 + length]),
            }
            rest = &tail[length..];
        }
        out.push_str(rest);
        out.strip_prefix("~/").map_or_else(|| PathBuf::from(&out), |tail| self.home().join(tail))
    }
}

fn find_token(variable: Option<(&'static str, String)>, file: &Path) -> Result<Setting<Option<Token>>> {
    if let Some((name, value)) = variable {
        let reason =
            "it holds blanks or characters that no token has; copy it again from the hub's page of access tokens";
        let token = Token::new(&value).ok_or(Error::Setting { name, value: "…".into(), reason: reason.into() })?;
        return Ok(Setting { value: Some(token), origin: Origin::Variable(name) });
    }
    match fs::read_to_string(file) {
        Ok(text) => Ok(Setting { value: Token::new(&text), origin: Origin::File(file.into()) }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(Setting { value: None, origin: Origin::Default })
        }
        Err(error) => Err(Error::io("read the token file", file)(error)),
    }
}

/// `text` as an origin (scheme, host, port and perhaps a path below which the hub lives), without a `/` at its end.
fn origin_of(text: &str) -> Result<String> {
    let wrong =
        |reason: &str| Error::Setting { name: "HF_ENDPOINT", value: without_query(text), reason: reason.into() };
    let url = Url::parse(text).map_err(|_| wrong("write a URL such as https://huggingface.co"))?;
    if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
        return Err(wrong("it is no http:// or https:// URL"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("a user, a password, a query or a fragment has no place in it"));
    }
    Ok(url.as_str().trim_end_matches('/').into())
}

/// A URL as an error may show it: without user, query and fragment.
pub(crate) fn without_query(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return text.split(['?', '#']).next().unwrap_or_default().into() };
    url.set_query(None);
    url.set_fragment(None);
    // Fails only for a URL that has no host, which has no user either.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// Whether the URL's host is this machine: then plain http keeps a secret.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "settings_tests.rs"]
mod tests;
