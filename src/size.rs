//! Amounts as people write and read them: bytes (`2GiB`), money (nano-dollars), durations.

use std::time::Duration;

/// Parses a byte count: a number, optionally with a fraction, and a unit (`B`, `kB`, `MB`, `GB`,
/// `TB` by thousands; `KiB`, `MiB`, `GiB`, `TiB` or just `K`, `M`, `G`, `T` by 1,024).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a byte count; write it like 1500000000, 1.5GB or 2GiB");
    let text_trimmed = text.trim();
    let split = text_trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
        .unwrap_or(text_trimmed.len());
    let (number, unit) = text_trimmed.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let number = number.replace('_', "");
    let bytes = if number.contains('.') {
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = number * factor as f64;
        if bytes >= u64::MAX as f64 {
            return Err(wrong());
        }
        bytes as u64
    } else {
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(factor).ok_or_else(wrong)?
    };
    match bytes {
        0 => Err("the byte count must be more than 0".into()),
        bytes => Ok(bytes),
    }
}

/// `98.4 MB`: by thousands, as download sizes are usually given.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// Nano-dollars as dollars, exactly: `$0.0000042`, `$1.50`.
pub fn usd(nano: i64) -> String {
    let sign = if nano < 0 { "-" } else { "" };
    let nano = nano.unsigned_abs();
    let fraction = format!("{:09}", nano % 1_000_000_000);
    let kept = fraction.trim_end_matches('0').len().max(2);
    format!("{sign}${}.{}", nano / 1_000_000_000, &fraction[..kept])
}

/// `0.8 ms`, `42 ms`, `1.35 s`, `12.3 s`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 0.01 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.2} s"),
        s => format!("{s:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("1", 1),
            ("1500000000", 1_500_000_000),
            ("2GiB", 2 << 30),
            ("2 gib", 2 << 30),
            ("512m", 512 << 20),
            ("1.5GB", 1_500_000_000),
            ("0.5K", 512),
            ("1_000kB", 1_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "GiB",
            "-1",
            "2XB",
            "1.2.3",
            "0",
            "99999999999T",
            "1e30",
            "NaN",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_are_written_short_and_exact() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(98_362_432), "98.4 MB");
        assert_eq!(bytes(999_960_000), "1.0 GB");
        assert_eq!(usd(4_200), "$0.0000042");
        assert_eq!(usd(1_500_000_000), "$1.50");
        assert_eq!(usd(0), "$0.00");
        assert_eq!(usd(-10_000_000), "-$0.01");
        assert_eq!(duration(Duration::from_micros(800)), "0.8 ms");
        assert_eq!(duration(Duration::from_millis(1_350)), "1.35 s");
    }
}
