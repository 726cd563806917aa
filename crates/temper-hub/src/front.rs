//! The YAML front matter of a repository's `README.md`, read with bounds: it comes from strangers.

use serde_json::Value;

/// The front matter of a card as JSON; `None` when there is none, or it cannot be read.
pub(crate) fn matter(readme: &str) -> Option<Value> {
    let text = readme.trim_start_matches('\u{feff}').trim_start();
    let rest = text.strip_prefix("---")?.trim_start_matches([' ', '\t', '\r']).strip_prefix('\n')?;
    let end = rest.lines().scan(0, |at, line| {
        let start = *at;
        *at += line.len() + 1;
        Some((start, line))
    });
    let (end, _) = end.into_iter().find(|(_, line)| line.trim_end() == "---")?;
    serde_saphyr::from_str(rest.get(..end)?).ok()
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
        let value = matter("---\nlicense: mit\r\ntags:\n- a\n- b\n---\n# x\n---\n").unwrap();
        assert_eq!(
            (strings(value.get("license")), strings(value.get("tags"))),
            (vec!["mit".into()], vec!["a".into(), "b".into()])
        );
        for text in ["", "# x", "---\na: b\n", "---\n- [\n---\n", "x\n---\na: b\n---\n"] {
            assert_eq!(matter(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let mut bomb = String::from("---\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        assert_eq!(matter(&(bomb + "---\n")), None);
    }
}
