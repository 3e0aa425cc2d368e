//! What a tenant used, summed: by hour or day of UTC, by model, by key.

use super::cursor::Bound;
use super::dates::{self, DAY_S, HOUR_S};
use super::params::Params;
use super::{Question, dates::month_begins_s};
use crate::gateway::error::ApiError;
use crate::gateway::openapi::Refused;
use crate::gateway::server::GatewayState;
use crate::gateway::view;
use crate::state::UsageTotals;
use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use trireme_shared::api::{UsagePage, UsageRow};
use trireme_shared::ids::KeyId;
use trireme_shared::limits;

/// Names of its parameters.
pub const PARAMS: [&str; 5] = ["from", "to", "group_by", "limit", "cursor"];

/// Usage by `from` (inclusive), `to` (exclusive) and `group_by`; this month by day where nothing is said.
#[utoipa::path(get, path = "/billing/v1/usage", tag = "billing", security(("key" = [])),
    params(
        ("from" = Option<String>, Query, description = "A day (`2026-11-01`) or a whole hour (RFC 3339)"),
        ("to" = Option<String>, Query, description = "The first day or whole hour after it"),
        ("group_by" = Option<String>, Query, description = "Of `hour` or `day`, `model`, `key`, with commas"),
        ("limit" = Option<u64>, Query, description = "Rows of a page"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = UsagePage), Refused))]
pub async fn own(
    State(gateway): State<GatewayState>,
    request: Request,
) -> Result<Json<UsagePage>, ApiError> {
    let (question, _) = Question::own(&gateway, &request, &PARAMS).await?;
    question.answer(|q| page(q).map(Json)).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Slot {
    Hour,
    Day,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Wanted {
    /// Seconds since 1970, whole hours.
    from: u64,
    to: u64,
    slot: Option<Slot>,
    model: bool,
    key: bool,
}

/// What a row stands for; `None` where it is not grouped by that.
type Group = (Option<u64>, Option<String>, Option<KeyId>);

impl Wanted {
    fn of(params: &Params, now_ms: u64) -> Result<Self, ApiError> {
        let (slot, model, key) = match params.text("group_by") {
            None => (Some(Slot::Day), false, false),
            Some(text) => groups(text)?,
        };
        let time = |name: &str| {
            let Some(text) = params.text(name) else {
                return Ok(None);
            };
            let at = dates::parse_moment(name, text)?;
            match at % HOUR_S {
                0 => Ok(Some(at)),
                _ => Err(ApiError::value(
                    name,
                    format!("'{name}' must be a whole hour: usage is summed by the hour."),
                )),
            }
        };
        let month = dates::month_of(now_ms / 1_000);
        let from = time("from")?;
        let to = match time("to")? {
            Some(to) => to,
            None => month_begins_s(month + 1),
        };
        let from = match from {
            Some(from) => from,
            // The month that the last hour before `to` lies in.
            None => month_begins_s(dates::month_of(to.saturating_sub(1))),
        };
        let wanted = Self {
            from,
            to,
            slot,
            model,
            key,
        };
        wanted.check(now_ms)?;
        Ok(wanted)
    }

    fn check(&self, now_ms: u64) -> Result<(), ApiError> {
        if self.from >= self.to {
            return Err(ApiError::value("to", "'to' must be later than 'from'."));
        }
        let days_max = limits::USAGE_DAYS_ASKED_MAX;
        if self.to - self.from > days_max * DAY_S {
            let words = format!("At most {days_max} days can be asked for at once.");
            return Err(ApiError::value("from", words));
        }
        let oldest = (now_ms / 1_000 / HOUR_S).saturating_sub(limits::USAGE_HOURS_KEPT) * HOUR_S;
        if self.by_hour() && self.from < oldest {
            return Err(ApiError::value(
                "from",
                format!(
                    "Usage by the hour is kept for {} days only: ask for whole days, and not by hour.",
                    limits::USAGE_HOURS_KEPT / 24
                ),
            ));
        }
        Ok(())
    }

    /// Whether it takes the sums by hour.
    fn by_hour(&self) -> bool {
        let whole_days = self.from.is_multiple_of(DAY_S) && self.to.is_multiple_of(DAY_S);
        self.slot == Some(Slot::Hour) || !whole_days
    }

    fn group_by(&self) -> Vec<String> {
        let slot = self.slot.map(|slot| match slot {
            Slot::Hour => "hour",
            Slot::Day => "day",
        });
        let model = self.model.then_some("model");
        let key = self.key.then_some("key");
        let all = slot.into_iter().chain(model).chain(key);
        all.map(str::to_owned).collect()
    }
}

fn groups(text: &str) -> Result<(Option<Slot>, bool, bool), ApiError> {
    let (mut slot, mut model, mut key) = (None, false, false);
    for name in text.split(',') {
        let twice = match name {
            "hour" => slot.replace(Slot::Hour).is_some(),
            "day" => slot.replace(Slot::Day).is_some(),
            "model" => std::mem::replace(&mut model, true),
            "key" => std::mem::replace(&mut key, true),
            _ => true,
        };
        if twice {
            return Err(ApiError::value(
                "group_by",
                "'group_by' is one of 'hour' and 'day', 'model' and 'key', each once, with commas between.",
            ));
        }
    }
    Ok((slot, model, key))
}

/// One page of what is asked for.
pub fn page(question: &Question) -> Result<UsagePage, ApiError> {
    let wanted = Wanted::of(&question.params, question.now_ms)?;
    let limit = question
        .params
        .number("limit", 1..=limits::BILLING_PAGE_ROWS_MAX)?;
    let limit = limit.unwrap_or(limits::BILLING_PAGE_ROWS) as usize;
    let bound = Bound::to(question.tenant, &("usage", &wanted))?;
    let after: Option<Group> = bound.position(question.params.text("cursor"))?;
    let (sums, total) = sum(question, &wanted);
    let newer = match after {
        Some(after) => sums.range((Excluded(after), Unbounded)),
        None => sums.range(..),
    };
    let mut rows: Vec<(&Group, &UsageTotals)> = newer.take(limit + 1).collect();
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = match rows.last() {
        Some((group, _)) if more => Some(bound.cursor(group)?),
        _ => None,
    };
    Ok(UsagePage {
        from_at: wanted.from,
        to_at: wanted.to,
        group_by: wanted.group_by(),
        rows: rows.into_iter().map(|(g, t)| row(g, t)).collect(),
        total: view::sums(&total),
        next_cursor,
    })
}

fn sum(question: &Question, wanted: &Wanted) -> (BTreeMap<Group, UsageTotals>, UsageTotals) {
    let mut sums = BTreeMap::<Group, UsageTotals>::new();
    let mut total = UsageTotals::default();
    let slot_s = if wanted.by_hour() { HOUR_S } else { DAY_S };
    let slots = wanted.from / slot_s..=(wanted.to - 1) / slot_s;
    let mut add = |(of, totals): (&crate::state::UsageKey, &UsageTotals)| {
        let begins_at = wanted.slot.map(|slot| match slot {
            Slot::Hour => of.slot * slot_s,
            Slot::Day => of.slot * slot_s / DAY_S * DAY_S,
        });
        let group = (
            begins_at,
            wanted.model.then(|| of.model.clone()),
            wanted.key.then_some(of.key),
        );
        let sum = sums.entry(group).or_default();
        *sum = sum.plus(*totals);
        total = total.plus(*totals);
    };
    let (state, tenant) = (&question.state, question.tenant);
    match wanted.by_hour() {
        true => state.usage_by_hour(tenant, slots).for_each(&mut add),
        false => state.usage_by_day(tenant, slots).for_each(&mut add),
    }
    (sums, total)
}

fn row((begins_at, model, key): &Group, totals: &UsageTotals) -> UsageRow {
    let sums = view::sums(totals);
    UsageRow {
        begins_at: *begins_at,
        model: model.clone(),
        key: *key,
        requests: sums.requests,
        prompt_tokens: sums.prompt_tokens,
        cached_tokens: sums.cached_tokens,
        completion_tokens: sums.completion_tokens,
        cost_nano_usd: sums.cost_nano_usd,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-27T10:00:00Z
    const NOW_MS: u64 = 1_795_773_600_000;

    fn wanted(query: &str) -> Result<Wanted, ApiError> {
        let uri = format!("/u?{query}").parse().unwrap();
        Wanted::of(&Params::of(&uri, &PARAMS).unwrap(), NOW_MS)
    }

    #[test]
    fn without_a_word_it_is_this_month_by_day() {
        let wanted = wanted("").unwrap();
        assert_eq!(dates::moment(wanted.from), "2026-11-01T00:00:00Z");
        assert_eq!(dates::moment(wanted.to), "2026-12-01T00:00:00Z");
        assert_eq!(wanted.group_by(), ["day"]);
        assert!(!wanted.by_hour());
    }

    #[test]
    fn hours_are_taken_where_days_do_not_do() {
        assert!(wanted("group_by=hour").unwrap().by_hour());
        let parts = wanted("from=2026-11-26T03:00:00Z&to=2026-11-27&group_by=key,model").unwrap();
        assert!(parts.by_hour());
        assert_eq!(parts.group_by(), ["model", "key"]);
        let only_to = wanted("to=2026-11-01&group_by=model").unwrap();
        assert_eq!(dates::moment(only_to.from), "2026-10-01T00:00:00Z");
    }

    #[test]
    fn what_cannot_be_answered_is_refused() {
        for (query, param) in [
            ("from=2026-11-26T03:30:00Z", "from"),
            ("from=2026-11-27&to=2026-11-27", "to"),
            ("from=1990-01-01", "from"),
            ("from=2026-01-01&group_by=hour", "from"),
            ("from=2026-01-01T01:00:00Z", "from"),
            ("group_by=hour,day", "group_by"),
            ("group_by=model,model", "group_by"),
            ("group_by=tenant", "group_by"),
            ("group_by=", "group_by"),
        ] {
            let error = wanted(query).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.param.as_deref()),
                (400, Some(param)),
                "{query}"
            );
        }
    }
}
