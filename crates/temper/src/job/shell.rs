//! Strings of a user in a batch script, or in a command that a user is shown.

/// `text` as one word of a POSIX shell.
pub fn word(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(safe) { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// `text` as the value of an `#SBATCH` directive, which is no shell: quotes and backslashes count there, and nothing else.
/// It has no line break, for values are refused that have one.
pub(super) fn directive(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_stay_plain() {
        for plain in ["recipes/a-b_c.toml", "train.lr=1e-4", "user@host:/a,b", "--set"] {
            assert_eq!(word(plain), plain);
        }
    }

    #[test]
    fn a_shell_reads_what_was_meant() {
        for nasty in
            ["", " ", "a b", "it's", "''", "$(rm x)`y`\\", "a\n#!b", "\"", "*", "~", "!", "é;&|<>", "-n", "a=\"b\""]
        {
            let script = format!("printf %s {}", word(nasty));
            let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), nasty, "{script}");
        }
    }

    #[test]
    fn a_directive_escapes_its_quotes() {
        assert_eq!(directive(r#"a "b" \c#"#), r#""a \"b\" \\c#""#);
    }
}
