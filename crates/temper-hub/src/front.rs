//! The YAML front matter of a repository's `README.md`, read with bounds: it comes from strangers.

use serde_json::Value;

/// The front matter of a card as JSON; null when there is none.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn matter(readme: &str) -> Result<Value, String> {
    match front(readme).filter(|front| !front.trim().is_empty()) {
        Some(front) => serde_saphyr::from_str(front).map_err(|error| error.to_string()),
        None => Ok(Value::Null),
    }
}

/// What stands between the two `---` that a card begins with.
fn front(readme: &str) -> Option<&str> {
    let text = readme.trim_start_matches('\u{feff}').trim_start();
    let rest = text.strip_prefix("---")?.trim_start_matches([' ', '\t', '\r']).strip_prefix('\n')?;
    let mut end = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&rest[..end]);
        }
        end += line.len();
    }
    None
}

/// The strings of a value that is a string or a list of strings.
pub(crate) fn strings(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) => items.iter().filter_map(|item| item.as_str().map(String::from)).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn front_matter() {
        let text = "---\ntags:\n- a\n- b\nlicense: cc-by-nc-4.0\n---\n# x\n---\n";
        for text in [text.to_owned(), text.replace('\n', "\r\n")] {
            let value = matter(&text).unwrap();
            assert_eq!(
                (strings(value.get("license")), strings(value.get("tags"))),
                (vec!["cc-by-nc-4.0".into()], vec!["a".into(), "b".into()])
            );
        }
        for text in ["", "# x", "---\n---\n", "---\na: b\n", "x\n---\na: b\n---\n"] {
            assert_eq!(matter(text), Ok(Value::Null), "{text:?}");
        }
        assert!(matter("---\n- [\n---\n").is_err() && matter("---\na: b: c\n---\n").is_err());
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let mut bomb = String::from("---\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        assert!(matter(&(bomb + "---\n")).is_err());
    }
}
