//! Dates and months of UTC in the billing API. Months are counted from January 1970, as the state does.

use crate::gateway::error::ApiError;
pub use crate::state::month_name;
use time::format_description::well_known::Rfc3339;
use time::{Date, Month, OffsetDateTime, Time};

pub const HOUR_S: u64 = 3_600;
pub const DAY_S: u64 = 86_400;

/// Last month that a date can be told of: December 9999.
const LAST_MONTH: u64 = (9_999 - 1_970) * 12 + 11;

/// The reverse of `month_name`, and no other spelling.
pub fn parse_month(text: &str) -> Option<u64> {
    let (year, of_year) = text.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if year.len() != 4 || of_year.len() != 2 || !digits(year) || !digits(of_year) {
        return None;
    }
    let (year, of_year): (u64, u64) = (year.parse().ok()?, of_year.parse().ok()?);
    let known = year >= 1_970 && (1..=12).contains(&of_year);
    known.then(|| (year - 1_970) * 12 + of_year - 1)
}

/// The month's first second since 1970.
pub fn month_begins_s(month: u64) -> u64 {
    let month = month.min(LAST_MONTH + 1);
    let year = i32::try_from(1_970 + month / 12).unwrap_or(i32::MAX);
    let of_year = u8::try_from(month % 12 + 1).ok();
    let of_year = of_year.and_then(|m| Month::try_from(m).ok());
    let date = of_year.and_then(|m| Date::from_calendar_date(year, m, 1).ok());
    // The year 10000 is beyond this calendar: its first second is that after the last it has.
    date.map_or(253_402_300_800, |date| {
        seconds(date.midnight().assume_utc())
    })
}

/// The month of a second since 1970.
pub fn month_of(second: u64) -> u64 {
    let at = at(second);
    let year = u64::try_from(at.year() - 1_970).unwrap_or_default();
    year * 12 + u64::from(u8::from(at.month())) - 1
}

/// `2026-11-27` of a day since 1970.
pub fn day_name(day: u64) -> String {
    let date = at(day.saturating_mul(DAY_S)).date();
    let (year, month, day) = date.to_calendar_date();
    format!("{year:04}-{:02}-{day:02}", u8::from(month))
}

/// A second since 1970 as RFC 3339 has it.
#[cfg(test)]
pub fn moment(second: u64) -> String {
    at(second).format(&Rfc3339).unwrap_or_default()
}

/// A parameter that is RFC 3339, or a day (`2026-11-27`, its first second in UTC), as a second since 1970.
pub fn parse_moment(name: &str, text: &str) -> Result<u64, ApiError> {
    let wrong = || {
        ApiError::value(
            name,
            format!(
                "'{name}' is a day such as 2026-11-27 or a time such as 2026-11-27T10:00:00Z, from 1970 \
                 on, without fractions of a second."
            ),
        )
    };
    let day = || {
        let (month, day) = text.rsplit_once('-')?;
        let month = parse_month(month)?;
        let two = day.len() == 2 && day.bytes().all(|b| b.is_ascii_digit());
        let day: u8 = day.parse().ok().filter(|_| two)?;
        let date = at(month_begins_s(month)).date().replace_day(day).ok()?;
        Some(date.midnight().assume_utc())
    };
    let parsed = day().or_else(|| OffsetDateTime::parse(text, &Rfc3339).ok());
    let parsed = parsed.filter(|at| at.nanosecond() == 0 && at.unix_timestamp() >= 0);
    parsed.map(seconds).ok_or_else(wrong)
}

fn at(second: u64) -> OffsetDateTime {
    let second = i64::try_from(second).unwrap_or(i64::MAX);
    let last = || Date::MAX.with_time(Time::MAX).assume_utc();
    OffsetDateTime::from_unix_timestamp(second).unwrap_or_else(|_| last())
}

fn seconds(at: OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_named_and_found() {
        for (month, name, begins) in [
            (0, "1970-01", 0),
            (1, "1970-02", 31 * DAY_S),
            (682, "2026-11", 1_793_491_200),
            (683, "2026-12", 1_796_083_200),
            (361, "2000-02", 949_363_200),
            (LAST_MONTH, "9999-12", 253_399_622_400),
        ] {
            assert_eq!(month_name(month), name);
            assert_eq!(parse_month(name), Some(month));
            assert_eq!(month_begins_s(month), begins, "{name}");
            assert_eq!(month_of(begins), month);
            assert_eq!(month_of(month_begins_s(month + 1) - 1), month);
        }
        for wrong in [
            "",
            "2026",
            "2026-1",
            "2026-13",
            "2026-00",
            "1969-12",
            "+026-11",
            "2026-11-01",
        ] {
            assert_eq!(parse_month(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn moments_are_days_or_rfc_3339() {
        let read = |text| parse_moment("from", text);
        assert_eq!(read("1970-01-02").unwrap(), DAY_S);
        assert_eq!(read("1970-01-02T01:00:00Z").unwrap(), DAY_S + HOUR_S);
        assert_eq!(read("1970-01-02T01:00:00+01:00").unwrap(), DAY_S);
        assert_eq!(moment(DAY_S), "1970-01-02T00:00:00Z");
        assert_eq!(day_name(20_000), "2024-10-04");
        for wrong in [
            "",
            "now",
            "1969-12-31",
            "2026-02-30",
            "1970-01-02T01:00:00",
            "1970-01-02T00:00:00.5Z",
            "20261127",
            "1970-01-02T01:00:00 01:00",
        ] {
            let error = read(wrong).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("from"), "{wrong}");
        }
    }
}
