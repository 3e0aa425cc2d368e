//! Money as people write it: dollars with up to nine decimals, to and from whole nano-dollars, exactly.

use crate::ids::NanoUsd;

const DECIMALS: usize = 9;
const NANO: u64 = 1_000_000_000;

impl NanoUsd {
    /// Dollars: `12.50`, `-0.00000042`. At least two decimals, and no more zeros behind them than that.
    pub fn dollars(self) -> String {
        let (whole, nano) = (self.0.unsigned_abs() / NANO, self.0.unsigned_abs() % NANO);
        let mut text = format!("{whole}.{nano:0DECIMALS$}");
        while text.ends_with('0') && !text[..text.len() - 2].ends_with('.') {
            text.pop();
        }
        match self.0 < 0 {
            true => format!("-{text}"),
            false => text,
        }
    }

    /// Reads dollars: digits, perhaps a point and one to nine digits more, perhaps a minus before it.
    /// `None` for anything else, and for what is out of range.
    pub fn from_dollars(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, decimals) = match digits.split_once('.') {
            Some((whole, decimals)) => (whole, decimals),
            None => (digits, "0"),
        };
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !plain(whole) || !plain(decimals) || decimals.len() > DECIMALS {
            return None;
        }
        let nano: i128 = format!("{decimals:0<DECIMALS$}").parse().ok()?;
        let amount = whole.parse::<i128>().ok()?.checked_mul(i128::from(NANO))?;
        let amount = amount.checked_add(nano)?;
        let signed = if negative { -amount } else { amount };
        i64::try_from(signed).ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_written_and_read_exactly() {
        for (nano, text) in [
            (0, "0.00"),
            (12_500_000_000, "12.50"),
            (-12_500_000_000, "-12.50"),
            (1, "0.000000001"),
            (-420, "-0.00000042"),
            (1_234_567_891, "1.234567891"),
            (i64::MAX, "9223372036.854775807"),
            (i64::MIN, "-9223372036.854775808"),
        ] {
            assert_eq!(NanoUsd(nano).dollars(), text);
            assert_eq!(NanoUsd::from_dollars(text), Some(NanoUsd(nano)), "{text}");
        }
        assert_eq!(NanoUsd::from_dollars("7"), Some(NanoUsd(7_000_000_000)));
        assert_eq!(NanoUsd::from_dollars("0.1"), Some(NanoUsd(100_000_000)));
    }

    #[test]
    fn what_is_no_amount_is_not_read() {
        for wrong in [
            "",
            "-",
            ".",
            "1.",
            ".5",
            "+1",
            "1e3",
            "1,5",
            "0x1",
            " 1",
            "1 ",
            "--1",
            "1.-5",
            "0.0000000001",
            "9223372036.854775808",
            "99999999999999999999999999999999999999999",
            "NaN",
            "$1",
            "1.2.3",
            "\u{664}",
        ] {
            assert_eq!(NanoUsd::from_dollars(wrong), None, "{wrong}");
        }
    }
}
