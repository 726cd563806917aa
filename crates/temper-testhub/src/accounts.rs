//! Who asks: users, organisations, and what their tokens allow.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What a token allows, within what its user may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// To read all that the user may read.
    Read,
    /// To read and write all that the user may.
    Write,
    /// Only what is granted; public repositories are always readable.
    FineGrained(Vec<Grant>),
}

/// One permission of a fine-grained token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// A user or organisation, or one repository `org/name`.
    pub scope: String,
    /// To write, not only to read.
    pub write: bool,
}

#[derive(Debug, Clone)]
struct Token {
    user: String,
    role: Role,
    expires: Option<SystemTime>,
    /// Requests that it is still good for.
    left: Option<u64>,
}

/// A user whose token was accepted.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) user: String,
    role: Role,
}

impl Caller {
    /// Whether the token, not the user, reaches the repository `id`.
    pub(crate) fn reaches(&self, id: &str, write: bool) -> bool {
        let namespace = id.split('/').next().unwrap_or(id);
        let granted = |grant: &Grant| (grant.scope == id || grant.scope == namespace) && (grant.write || !write);
        match &self.role {
            Role::Read => !write,
            Role::Write => true,
            Role::FineGrained(grants) => grants.iter().any(granted),
        }
    }
}

/// All users, organisations and tokens.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    users: BTreeSet<String>,
    /// Members of each organisation, and whether they may write.
    orgs: BTreeMap<String, BTreeMap<String, bool>>,
    tokens: HashMap<String, Token>,
    issued: u64,
}

impl Accounts {
    pub(crate) fn add_user(&mut self, name: &str) {
        self.users.insert(name.to_owned());
    }

    pub(crate) fn add_member(&mut self, org: &str, user: &str, write: bool) {
        self.add_user(user);
        self.orgs.entry(org.to_owned()).or_default().insert(user.to_owned(), write);
    }

    /// Whether `name` may own repositories.
    pub(crate) fn owns(&self, name: &str) -> bool {
        self.users.contains(name) || self.orgs.contains_key(name)
    }

    /// Makes an organisation of a name that nobody has.
    pub(crate) fn ensure_owner(&mut self, name: &str) {
        if !self.owns(name) {
            self.orgs.insert(name.to_owned(), BTreeMap::new());
        }
    }

    /// A new token that looks like the hub's, made of nothing secret.
    pub(crate) fn issue(&mut self, user: &str, role: Role, expires: Option<SystemTime>) -> String {
        self.add_user(user);
        self.issued += 1;
        let digest = Sha256::digest(format!("testhub {user} {}", self.issued));
        let letters = digest.iter().cycle().take(34).enumerate();
        let letter = |(index, byte): (usize, &u8)| char::from(b'a' + (usize::from(*byte) + index) as u8 % 26);
        let token = format!("hf_{}", letters.map(letter).collect::<String>());
        self.tokens.insert(token.clone(), Token { user: user.to_owned(), role, expires, left: None });
        token
    }

    /// Lets `token` live for `requests` more requests.
    pub(crate) fn limit(&mut self, token: &str, requests: u64) -> bool {
        self.tokens.get_mut(token).map(|token| token.left = Some(requests)).is_some()
    }

    /// The user behind a token that is known and not expired; counts as one use.
    pub(crate) fn accept(&mut self, token: &str) -> Option<Caller> {
        let token = self.tokens.get_mut(token)?;
        if token.expires.is_some_and(|end| end <= SystemTime::now()) || token.left == Some(0) {
            return None;
        }
        token.left = token.left.map(|left| left - 1);
        Some(Caller { user: token.user.clone(), role: token.role.clone() })
    }

    /// Whether `user` is, or belongs to, `namespace`; and may write there.
    fn belongs(&self, user: &str, namespace: &str) -> Option<bool> {
        if user == namespace {
            return Some(true);
        }
        self.orgs.get(namespace)?.get(user).copied()
    }

    /// Whether `caller` may see private things of the owner of `id`.
    pub(crate) fn may_read(&self, caller: Option<&Caller>, id: &str) -> bool {
        let namespace = id.split('/').next().unwrap_or(id);
        caller.is_some_and(|caller| caller.reaches(id, false) && self.belongs(&caller.user, namespace).is_some())
    }

    pub(crate) fn may_write(&self, caller: Option<&Caller>, id: &str) -> bool {
        let namespace = id.split('/').next().unwrap_or(id);
        let allowed = |caller: &Caller| self.belongs(&caller.user, namespace) == Some(true);
        caller.is_some_and(|caller| caller.reaches(id, true) && allowed(caller))
    }

    /// The answer of `whoami-v2`.
    pub(crate) fn whoami(&self, caller: &Caller) -> Value {
        let user = &caller.user;
        let membership = |(org, members): (&String, &BTreeMap<String, bool>)| {
            let role = if *members.get(user)? { "write" } else { "read" };
            Some(json!({ "type": "org", "id": identity(org), "name": org, "fullname": org, "roleInOrg": role }))
        };
        let orgs: Vec<Value> = self.orgs.iter().filter_map(membership).collect();
        let mut token = json!({ "displayName": "test", "role": "fineGrained" });
        match &caller.role {
            Role::Read => token["role"] = json!("read"),
            Role::Write => token["role"] = json!("write"),
            Role::FineGrained(grants) => token["fineGrained"] = json!({ "global": [], "scoped": scopes(self, grants) }),
        }
        json!({
            "type": "user", "id": identity(user), "name": user, "fullname": user, "isPro": false, "orgs": orgs,
            "auth": { "type": "access_token", "accessToken": token },
        })
    }
}

fn scopes(accounts: &Accounts, grants: &[Grant]) -> Vec<Value> {
    let scope = |grant: &Grant| {
        let kind = match (grant.scope.contains('/'), accounts.users.contains(&grant.scope)) {
            (true, _) => "model",
            (false, true) => "user",
            (false, false) => "org",
        };
        let mut permissions = vec!["repo.content.read"];
        permissions.extend(grant.write.then_some("repo.write"));
        json!({ "entity": { "_id": identity(&grant.scope), "type": kind, "name": grant.scope }, "permissions": permissions })
    };
    grants.iter().map(scope).collect()
}

/// 24 hexadecimal digits, as the hub's data base numbers things.
pub(crate) fn identity(name: &str) -> String {
    Sha256::digest(name).iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tokens_allow_no_more_than_their_users() {
        let mut accounts = Accounts::default();
        accounts.add_member("lab", "ann", true);
        accounts.add_member("lab", "bob", false);
        let mut caller = |user: &str, role: Role| {
            let token = accounts.issue(user, role, None);
            accounts.accept(&token).unwrap()
        };
        let (ann, reader, bob) = (caller("ann", Role::Write), caller("ann", Role::Read), caller("bob", Role::Write));
        let fine = caller("ann", Role::FineGrained(vec![Grant { scope: "lab/one".into(), write: true }]));
        assert!(accounts.may_write(Some(&ann), "lab/one") && !accounts.may_write(Some(&reader), "lab/one"));
        assert!(!accounts.may_write(Some(&bob), "lab/one") && accounts.may_read(Some(&bob), "lab/one"));
        assert!(accounts.may_write(Some(&fine), "lab/one") && !accounts.may_write(Some(&fine), "lab/two"));
        assert!(!accounts.may_read(None, "lab/one"));
    }

    #[test]
    fn tokens_end() {
        let mut accounts = Accounts::default();
        let old = accounts.issue("ann", Role::Read, Some(SystemTime::UNIX_EPOCH));
        assert!(accounts.accept(&old).is_none());
        let token = accounts.issue("ann", Role::Read, None);
        assert!(accounts.limit(&token, 1) && accounts.accept(&token).is_some() && accounts.accept(&token).is_none());
    }
}
