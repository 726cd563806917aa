//! What schedulers accept as a value. Each function is a parser of the command line: its error ends the sentence
//! "invalid value for `--option`: …".

use std::fmt;

/// The longest DNS label.
pub(super) const LABEL: usize = 63;

/// A time limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeLimit {
    text: String,
    /// How long it is.
    pub seconds: u64,
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `HH:MM:SS` or `D-HH:MM:SS`. Slurm reads `4:00` as minutes, so that shorter forms are refused.
pub(super) fn time(text: &str) -> Result<TimeLimit, String> {
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let number = |part: &str| {
        let digits = !part.is_empty() && part.len() <= 4 && part.bytes().all(|byte| byte.is_ascii_digit());
        if digits { part.parse::<u64>().ok() } else { None }
    };
    let parts: Option<Vec<u64>> = std::iter::once(days).chain(clock.split(':')).map(number).collect();
    let nearest = match parts.as_deref() {
        Some(&[days, hours, minutes, seconds]) if minutes < 60 && seconds < 60 => {
            let seconds = ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
            if seconds > 0 {
                return Ok(TimeLimit { text: text.into(), seconds });
            }
            "04:00:00".into()
        }
        Some(&[0, hours, minutes]) => format!("{hours:02}:{minutes:02}:00"),
        Some(&[0, hours]) => format!("{hours:02}:00:00"),
        _ => "04:00:00".into(),
    };
    Err(format!("write hours, minutes and seconds, such as `{nearest}`; days before them, as in `2-12:00:00`"))
}

/// Memory of a node as Slurm reads it: a number, and K, M, G or T. Without a letter Slurm means MB, which few do.
pub(super) fn slurm_memory(text: &str) -> Result<String, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let number = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    match number {
        Some(1..) if text.len() == digits.len() + 1 => Ok(text.into()),
        Some(number @ 1..) => Err(format!("write one unit, such as `{number}G`")),
        _ => Err("write a number and K, M, G or T, such as `64G`".into()),
    }
}

/// Cores as Kubernetes reads them: `4`, `0.5`, `500m`.
pub(super) fn cores(text: &str) -> Result<String, String> {
    quantity(text, &["", "m"], "write a number of cores, or of thousandths, such as `4` or `500m`")
}

/// Memory as Kubernetes reads it: `16Gi`. Without a unit it would be bytes, and `m` thousandths of one.
pub(super) fn memory(text: &str) -> Result<String, String> {
    let units = ["Gi", "Mi", "Ki", "Ti", "Pi", "Ei", "k", "M", "G", "T", "P", "E"];
    quantity(text, &units, "write a number and a unit, such as `16Gi`")
}

fn quantity(text: &str, units: &[&str], shape: &str) -> Result<String, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    let digits = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let counts = digits && number.parse::<f64>().is_ok_and(|number| number > 0.0);
    if counts && units.contains(&unit) {
        return Ok(text.into());
    }
    let begins = |known: &&&str| unit.get(..known.len()).is_some_and(|start| start.eq_ignore_ascii_case(known));
    let near = units.iter().filter(|known| !known.is_empty()).filter(begins).max_by_key(|known| known.len());
    Err(match near {
        Some(near) if counts => format!("did you mean `{number}{near}`?"),
        _ => shape.into(),
    })
}

/// The name of an object of the cluster: lower-case letters, digits, `-` and `.`, a letter or digit at both ends.
pub(super) fn object(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let fits = !text.is_empty() && text.len() <= 253 && text.chars().all(inner);
    if fits && !text.starts_with(['-', '.']) && !text.ends_with(['-', '.']) {
        return Ok(text.into());
    }
    let rule = "names in Kubernetes are lower-case letters, digits, `-` and `.`";
    Err(to_label(text, LABEL).filter(|near| near != text).map_or(rule.into(), |near| format!("{rule}: `{near}`")))
}

/// A name as Kubernetes accepts it for what has an address: lower-case letters, digits and `-`, at most 63.
pub(super) fn label(text: &str) -> Result<String, String> {
    let near = to_label(text, LABEL);
    match near {
        Some(near) if near == text => Ok(near),
        Some(near) => {
            Err(format!("names in Kubernetes are lower-case letters, digits and `-`, at most {LABEL}: `{near}`"))
        }
        None => Err(format!("names in Kubernetes are lower-case letters, digits and `-`, at most {LABEL}")),
    }
}

/// The name that is nearest to `text`, if one is.
pub(super) fn to_label(text: &str, longest: usize) -> Option<String> {
    let sign = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = text.chars().map(sign).collect();
    let name: String = name.trim_start_matches(|c: char| !c.is_ascii_lowercase()).chars().take(longest).collect();
    let name = name.trim_end_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

/// A value that stands on a line of its own.
pub(super) fn line(text: &str) -> Result<String, String> {
    match text {
        "" => Err("it is empty".into()),
        text if text.chars().any(char::is_control) => Err("it has a line break or another control character".into()),
        text => Ok(text.into()),
    }
}

/// A value of one word: an image, a partition.
pub(super) fn word(text: &str) -> Result<String, String> {
    match line(text)? {
        text if text.contains(char::is_whitespace) => Err("it has a blank in it".into()),
        text => Ok(text),
    }
}

/// An absolute path inside a container.
pub(super) fn mount(text: &str) -> Result<String, String> {
    match line(text)? {
        text if !text.starts_with('/') => Err(format!("write an absolute path, such as `/{text}`")),
        text if text.contains(':') || text.trim_end_matches('/').is_empty() => {
            Err("write a directory other than `/`, without `:`".into())
        }
        text => Ok(text.trim_end_matches('/').into()),
    }
}

/// An option of `sbatch`, written with its value: `--account=me`.
pub(super) fn option(text: &str) -> Result<String, String> {
    match line(text)? {
        text if text.starts_with("--") && text.len() > 2 && !text.contains(char::is_whitespace) => Ok(text),
        text => Err(format!("write the whole option, such as `--sbatch=--account=me`, not `{text}`")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_hours_minutes_and_seconds() {
        for (text, seconds) in
            [("04:00:00", 14_400), ("2-12:00:59", 216_059), ("100:00:00", 360_000), ("0:59:59", 3599)]
        {
            assert_eq!(time(text).unwrap().seconds, seconds, "{text}");
        }
        for (text, nearest) in [("4:00", "04:00:00"), ("4", "04:00:00"), ("4h", "04:00:00"), ("12:30", "12:30:00")] {
            assert!(time(text).unwrap_err().contains(nearest), "{text}");
        }
        for wrong in ["", "00:00:00", "01:60:00", "01:00:60", "1:2:3:4", "-1:00:00", "a-1:00:00", "1:+2:3", "99999:0:0"]
        {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_has_a_unit() {
        assert_eq!(slurm_memory("64G").unwrap(), "64G");
        assert!(slurm_memory("64").unwrap_err().contains("`64G`"));
        for wrong in ["", "G", "64GB", "+6G", "6GG", "1.5G", "0G"] {
            assert!(slurm_memory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn quantities_are_those_of_kubernetes() {
        assert!(["4", "0.5", "500m"].iter().all(|right| cores(right).as_deref() == Ok(right)));
        assert!(["16Gi", "1G", "0.5Ti", "2k"].iter().all(|right| memory(right).as_deref() == Ok(right)));
        for (wrong, near) in [("16GB", "16G"), ("16gi", "16Gi"), ("16GiB", "16Gi"), ("2K", "2k"), ("16m", "16M")] {
            assert!(memory(wrong).unwrap_err().contains(&format!("`{near}`")), "{wrong}: {:?}", memory(wrong));
        }
        for wrong in ["", "Gi", "-1", "0", "1e3x", "1 Gi", ".", "0Gi"] {
            assert!(cores(wrong).is_err() && memory(wrong).is_err(), "{wrong}");
        }
        assert!(memory("16").is_err() && cores("4Gi").is_err());
    }

    #[test]
    fn names_are_those_of_objects() {
        assert!(["2024-team", "a.b", "x"].iter().all(|right| object(right).as_deref() == Ok(right)));
        for (wrong, near) in [("My_Claim", "my-claim"), ("-a-", "a"), ("a/b", "a-b")] {
            assert!(object(wrong).unwrap_err().ends_with(&format!("`{near}`")), "{wrong}");
        }
        assert!(object("").is_err() && object(&"a".repeat(254)).is_err());
    }

    #[test]
    fn labels_are_those_of_dns() {
        assert_eq!(label("sst2-lora").err(), None);
        for (wrong, near) in [("My_Run", "my-run"), ("-a-", "a"), ("a.b c", "a-b-c"), ("4ever", "ever")] {
            assert!(label(wrong).unwrap_err().ends_with(&format!("`{near}`")), "{wrong}");
        }
        assert!(label("").is_err() && label("___").is_err() && label(&"a".repeat(64)).is_err());
        assert_eq!(to_label("äh", 63).as_deref(), Some("h"));
    }

    #[test]
    fn values_stand_on_one_line() {
        assert!(line("a b").is_ok() && line("a\nb").is_err() && line("").is_err());
        assert!(word("a/b:1").is_ok() && word("a b").is_err());
        assert!(option("--account=me").is_ok() && option("account").is_err() && option("--a b").is_err());
        assert_eq!(mount("/work/").as_deref(), Ok("/work"));
        assert!(mount("work").is_err() && mount("/").is_err() && mount("/a:b").is_err());
    }
}
