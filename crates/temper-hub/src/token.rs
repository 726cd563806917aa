//! An access token, which nothing prints.

use std::fmt;

/// A hub access token. `Debug` and `Display` show at most its last four characters, and only of a long one.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token from what was read: blanks and line ends around it are cut. `None` when nothing is left or when it holds
    /// a character that no HTTP header may carry.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())).then(|| Self(text.into()))
    }

    /// The secret itself: for the `Authorization` header and the token file only.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            20.. => write!(f, "…{}", &self.0[self.0.len() - 4..]),
            _ => f.write_str("…"),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({self})")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_shows_its_last_four_characters() {
        let token = Token::new(" hf_abcdefghijklmnopqrstuvWXYZ\n").unwrap();
        assert_eq!(token.secret(), "hf_abcdefghijklmnopqrstuvWXYZ");
        assert_eq!(format!("{token} {token:?}"), "…WXYZ Token(…WXYZ)");
        assert_eq!(Token::new("short").unwrap().to_string(), "…");
        assert_eq!(Token::new(" \n"), None);
        assert_eq!(Token::new("a\nb"), None);
    }
}
