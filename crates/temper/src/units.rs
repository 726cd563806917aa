//! Numbers as people read them.

use std::time::Duration;

/// Four significant digits, without a tail of zeros: `0.4123`, `12.35`, `2e-4`.
pub fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".into() } else { value.to_string() };
    }
    let exponent = value.abs().log10().floor() as i32;
    if !(-3..9).contains(&exponent) {
        let text = format!("{value:.2e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", trimmed(mantissa));
    }
    trimmed(&format!("{value:.*}", (3 - exponent).max(0) as usize)).to_owned()
}

/// A count with a suffix, three significant digits: `840`, `12.3k`, `22.7M`, `1.5G`.
pub fn short(value: f64) -> String {
    scaled(value, &["", "k", "M", "G", "T"])
}

/// Bytes in powers of 1000: `412 MB`, `1.53 GB`.
pub fn bytes(value: u64) -> String {
    scaled(value as f64, &[" B", " kB", " MB", " GB", " TB"])
}

/// A whole number with a comma between thousands: `12,345`.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A length of time in its two largest units: `0.8s`, `45s`, `1m 23s`, `2h 05m`, `3d 04h`.
pub fn duration(time: Duration) -> String {
    if time < Duration::from_millis(9_950) {
        return format!("{:.1}s", time.as_secs_f64());
    }
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `seconds` as [`duration`]; what is no length of time is 0.
pub fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// The middle of finite `values`, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    let upper = *values.get(half)?;
    Some(if values.len().is_multiple_of(2) { values[half - 1].midpoint(upper) } else { upper })
}

/// A share in percent with one digit: `87.5%`.
pub fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

fn scaled(value: f64, suffixes: &[&str]) -> String {
    let mut value = value;
    for (index, suffix) in suffixes.iter().enumerate() {
        // 999.5 rounds to 1000: the next suffix has it.
        if value < 999.5 || index + 1 == suffixes.len() {
            let decimals = match value {
                _ if index == 0 || value >= 99.95 => 0,
                _ if value >= 9.995 => 1,
                _ => 2,
            };
            let text = format!("{value:.decimals$}");
            return format!("{}{suffix}", if decimals > 0 { trimmed(&text) } else { &text });
        }
        value /= 1000.0;
    }
    String::new()
}

/// Without zeros at the end of the decimals.
fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.412_349, "0.4123"),
            (12.345_6, "12.35"),
            (1234.56, "1235"),
            (0.5, "0.5"),
            (0.002, "0.002"),
            (0.0002, "2e-4"),
            (1.84e-5, "1.84e-5"),
            (-0.25, "-0.25"),
            (120.0, "120"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn counts_and_bytes_have_suffixes() {
        for (value, text) in
            [(0.0, "0"), (840.4, "840"), (999.6, "1k"), (12_345.0, "12.3k"), (22_713_216.0, "22.7M"), (1e6, "1M")]
        {
            assert_eq!(short(value), text);
        }
        assert_eq!(bytes(412_300_000), "412 MB");
        assert_eq!(bytes(1_530_000_000), "1.53 GB");
        assert_eq!(bytes(17), "17 B");
    }

    #[test]
    fn the_median_of_an_even_number_is_between_two() {
        assert_eq!(median(vec![3.0, f64::NAN, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![f64::NAN]), None);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }

    #[test]
    fn durations_have_two_units() {
        for (value, text) in [
            (0.84, "0.8s"),
            (9.97, "10s"),
            (59.4, "59s"),
            (59.6, "1m 00s"),
            (83.0, "1m 23s"),
            (7_500.0, "2h 05m"),
            (273_600.0, "3d 04h"),
            (-1.0, "0.0s"),
        ] {
            assert_eq!(seconds(value), text);
        }
        assert_eq!(percent(0.8754), "87.5%");
    }
}
