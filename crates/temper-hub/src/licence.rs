//! Which licence a result has: its base's, unless somebody takes the responsibility in words.
//!
//! Nothing is guessed. Where a licence forbids, restricts or is not there, the recipe must say why the result may be
//! published, and the card repeats it.

use crate::{Card, Error, Result};

/// What is known of the licence of a base model or of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// Whose terms these are: the repository's id, or a name.
    pub of: String,
    /// The licence's Hub id, such as `apache-2.0`.
    pub id: Option<String>,
    /// The licence's own name, when the id is `other`.
    pub name: Option<String>,
    /// Whether the repository is gated.
    pub gated: bool,
    /// Whether the repository is private.
    pub private: bool,
}

/// What a card says of the licence, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The card's `license`; `None` leaves it out.
    pub license: Option<String>,
    /// The card's `license_name`, of a licence `other`.
    pub license_name: Option<String>,
    /// What the card and the user are told, a sentence each.
    pub notes: Vec<String>,
    /// Whether merged weights may be pushed to a public repository; with a gated base they may not.
    pub public_weights: bool,
    /// Whether the repository should be private: something it is made from is.
    pub private: bool,
    /// The terms of what it is made from, the base's first.
    pub terms: Vec<Terms>,
}

impl Decision {
    /// Has the card say so.
    pub fn tell(&self, card: &mut Card) {
        card.license.clone_from(&self.license);
        card.license_name.clone_from(&self.license_name);
        card.license_notes.clone_from(&self.notes);
    }
}

/// Decides the licence of what is made from `base` with `datasets`; `word` is the recipe's `licence_override`, a reason
/// in words, and `chosen` the licence that the recipe names.
///
/// Inherited as it is: a base with a licence that only asks for attribution or share-alike. Needs a word: a base that is
/// gated, without a licence, with one of its own (`other`, `llama…`, `gemma`, OpenRAIL), non-commercial or
/// no-derivatives; a dataset that is non-commercial or no-derivatives; a chosen licence other than the base's.
///
/// # Errors
/// When a word is needed and there is none.
pub fn decide(base: &Terms, datasets: &[Terms], chosen: Option<&str>, word: Option<&str>) -> Result<Decision> {
    let mut against: Vec<String> = objection(base).into_iter().collect();
    against.extend(datasets.iter().filter_map(data_objection));
    if let (Some(chosen), Some(id)) = (chosen, &base.id)
        && !chosen.eq_ignore_ascii_case(id)
    {
        against.push(format!("the recipe says {chosen}, but {} is under {id}", base.of));
    }
    let word = word.map(str::trim).filter(|word| !word.is_empty());
    if let (false, None) = (against.is_empty(), word) {
        return Err(Error::Licence {
            reason: against.join("; "),
            advice:
                "write licence_override = \"why this may be published\" in [export] (--licence-override of `temper \
                     push`), or push to no hub"
                    .into(),
        });
    }
    let mut notes = against;
    notes.extend(word.filter(|_| !notes.is_empty()).map(|word| format!("The author says: {word}")));
    let data = |terms: &Terms| terms.id.as_ref().map(|id| format!("Data {} is under {id}.", terms.of));
    notes.extend(datasets.iter().filter_map(data));
    Ok(Decision {
        license: chosen.map(String::from).or_else(|| base.id.clone()),
        license_name: base.name.clone().filter(|_| chosen.is_none()),
        notes,
        public_weights: !base.gated,
        private: base.private || datasets.iter().any(|terms| terms.private),
        terms: std::iter::once(base).chain(datasets).cloned().collect(),
    })
}

/// What stands against inheriting the base's licence without a word.
fn objection(base: &Terms) -> Option<String> {
    let of = &base.of;
    let Some(id) = base.id.as_deref().map(str::to_ascii_lowercase).filter(|id| !["", "unknown"].contains(&&**id))
    else {
        return Some(format!("{of} states no licence, so nobody was given the right to pass on what is made from it"));
    };
    let own = ["other", "llama", "gemma", "bigscience", "deepfloyd", "apple-"];
    match restriction(&id) {
        Some(restriction) => Some(format!("{of} is under {id}, which {restriction}")),
        None if base.gated => Some(format!("{of} is gated: its owners want to know who uses it")),
        None if own.iter().any(|prefix| id.starts_with(prefix) || id.contains("openrail")) => {
            let name = base.name.as_deref().unwrap_or(&id);
            Some(format!("{of} is under terms of its own ({name}), which may ask for a name, a notice or a use policy"))
        }
        None => None,
    }
}

fn data_objection(data: &Terms) -> Option<String> {
    let id = data.id.as_deref()?.to_ascii_lowercase();
    restriction(&id).map(|restriction| format!("data {} is under {id}, which {restriction}", data.of))
}

/// What a licence forbids, by its id: the parts `nc` and `nd` of Creative Commons and names like them.
fn restriction(id: &str) -> Option<&'static str> {
    let has = |part: &str| id.split(['-', '_', '.']).any(|piece| piece == part);
    if has("nd") {
        Some("allows no derivatives")
    } else if has("nc") || id.contains("noncommercial") || id.contains("non-commercial") || id.contains("research") {
        Some("allows no commercial use")
    } else {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn terms(id: Option<&str>) -> Terms {
        Terms { of: "org/base".into(), id: id.map(String::from), ..Terms::default() }
    }

    #[test]
    fn what_is_inherited() {
        for id in ["apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "bsd-3-clause", "gpl-3.0"] {
            let decision = decide(&terms(Some(id)), &[], None, None).unwrap();
            assert_eq!((decision.license.as_deref(), decision.notes.len()), (Some(id), 0));
            assert!(decision.public_weights && !decision.private);
            assert_eq!(decide(&terms(Some(id)), &[], Some(id), None).unwrap().license.as_deref(), Some(id));
        }
    }

    #[test]
    fn what_needs_a_word() {
        let gated = Terms { gated: true, ..terms(Some("apache-2.0")) };
        let named = Terms { name: Some("acme-community".into()), ..terms(Some("other")) };
        let cases = [
            (terms(None), "states no licence"),
            (terms(Some("unknown")), "states no licence"),
            (terms(Some("cc-by-nc-4.0")), "no commercial use"),
            (terms(Some("cc-by-nc-nd-4.0")), "no derivatives"),
            (terms(Some("llama3.1")), "terms of its own"),
            (terms(Some("gemma")), "terms of its own"),
            (terms(Some("creativeml-openrail-m")), "terms of its own"),
            (named.clone(), "acme-community"),
            (gated.clone(), "gated"),
        ];
        for (base, reason) in cases {
            let message = decide(&base, &[], None, None).unwrap_err().to_string();
            assert!(message.contains(reason) && message.contains("licence_override"), "{message}");
            assert!(decide(&base, &[], None, Some(" ")).is_err());
            let decision = decide(&base, &[], None, Some("I asked them.")).unwrap();
            assert_eq!(decision.license, base.id);
            assert!(decision.notes[0].contains(reason) && decision.notes[1].contains("I asked them."));
        }
        assert!(!decide(&gated, &[], None, Some("x")).unwrap().public_weights);
        assert_eq!(decide(&named, &[], None, Some("x")).unwrap().license_name.as_deref(), Some("acme-community"));
        let message = decide(&terms(Some("mit")), &[], Some("apache-2.0"), None).unwrap_err().to_string();
        assert!(message.contains("apache-2.0") && message.contains("mit"), "{message}");
    }

    #[test]
    fn data_counts_too() {
        let data = Terms { of: "org/data".into(), private: true, ..terms(Some("cc-by-nc-4.0")) };
        let base = terms(Some("mit"));
        assert!(decide(&base, std::slice::from_ref(&data), None, None).unwrap_err().to_string().contains("org/data"));
        let decision = decide(&base, &[data], None, Some("for research")).unwrap();
        assert!(decision.private && decision.notes.last().unwrap().contains("cc-by-nc-4.0"));
        let open = Terms { of: "org/data".into(), ..terms(Some("cc-by-4.0")) };
        let decision = decide(&base, &[open, terms(None)], None, None).unwrap();
        assert_eq!(decision.notes, ["Data org/data is under cc-by-4.0."]);
    }
}
