//! An event as it is sent: Standard Webhooks 1.0, whose headers name, date and sign a JSON body of
//! `type`, `timestamp` and `data`.
//!
//! Keeps true: an event's id and body are the same at each try; what is signed is `id.timestamp.body`, with
//! the time of the try, so that a receiver can refuse what is old.

use crate::state::month_name;
use crate::state::webhooks::{Event, Secret, Tells};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// One try's headers and body.
pub struct Letter {
    /// `webhook-id`
    pub id: String,
    /// `webhook-timestamp`: seconds since 1970.
    pub at: u64,
    /// `webhook-signature`
    pub signature: String,
    pub body: String,
}

impl Letter {
    /// `name`: the tenant's.
    pub fn of(event: &Event, name: &str, secret: &Secret, at: u64) -> Self {
        let (id, body) = (event.id(), body(event, name));
        Self {
            signature: signature(secret, &id, at, &body),
            id,
            at,
            body,
        }
    }
}

/// A secret as it is shown to the tenant.
pub fn shown(secret: &Secret) -> String {
    format!("whsec_{}", STANDARD.encode(secret))
}

/// HMAC-SHA256 of `id.at.body`.
fn signature(secret: &[u8], id: &str, at: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signed = hmac::sign(&key, format!("{id}.{at}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(signed))
}

fn body(event: &Event, name: &str) -> String {
    let second = i64::try_from(event.made_at_ms / 1_000).unwrap_or(i64::MAX);
    let made = OffsetDateTime::from_unix_timestamp(second).ok();
    let made = made.and_then(|made| made.format(&Rfc3339).ok());
    let (kind, about) = match &event.tells {
        Tells::Budget {
            month,
            percent,
            spent,
            budget,
        } => (
            "budget.threshold",
            json!({"month": month_name(*month), "percent": percent, "spent_nano_usd": spent,
                   "budget_nano_usd": budget}),
        ),
        Tells::Statement {
            month,
            charges,
            closing,
        } => {
            let month = month_name(*month);
            let at = format!("/billing/v1/statements/{month}");
            (
                "statement.ready",
                json!({"month": month, "charges_nano_usd": charges, "closing_nano_usd": closing,
                       "statement": at}),
            )
        }
        Tells::Test => ("webhook.test", json!({})),
    };
    let mut data = json!({"tenant_id": event.tenant, "tenant": name});
    if let (Value::Object(data), Value::Object(about)) = (&mut data, about) {
        data.extend(about);
    }
    json!({"id": event.id(), "type": kind, "timestamp": made, "data": data}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::ids::{EventSeq, NanoUsd, TenantId};

    /// The example that libraries of Standard Webhooks verify.
    #[test]
    fn the_signature_is_that_of_the_standard() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "{\"test\": 2432232314}");
        let signed = signature(&secret, id, 1_614_265_330, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    fn event(tells: Tells) -> Event {
        Event {
            seq: EventSeq(3),
            tenant: TenantId(7),
            made_at_ms: 1_780_000_000_999,
            tells,
            failures: 0,
            due_at_ms: 0,
        }
    }

    #[test]
    fn a_letter_says_what_it_tells_and_only_its_time_changes() {
        let told = event(Tells::Budget {
            month: 682,
            percent: 80,
            spent: NanoUsd(81),
            budget: NanoUsd(100),
        });
        let letter = Letter::of(&told, "acme", &[1; 32], 5);
        let body: Value = serde_json::from_str(&letter.body).unwrap();
        let expected = json!({
            "id": "budget-t7-2026-11-80", "type": "budget.threshold",
            "timestamp": "2026-05-28T20:26:40Z",
            "data": {"tenant_id": 7, "tenant": "acme", "month": "2026-11", "percent": 80,
                     "spent_nano_usd": 81, "budget_nano_usd": 100},
        });
        assert_eq!(body, expected);
        let later = Letter::of(&told, "acme", &[1; 32], 6);
        assert_eq!((&letter.id, &letter.body), (&later.id, &later.body));
        assert_ne!(letter.signature, later.signature);
        assert_ne!(
            letter.signature,
            Letter::of(&told, "acme", &[2; 32], 5).signature
        );
        let statement = event(Tells::Statement {
            month: 683,
            charges: NanoUsd(4),
            closing: NanoUsd(-4),
        });
        let body: Value =
            serde_json::from_str(&Letter::of(&statement, "acme", &[1; 32], 5).body).unwrap();
        assert_eq!(body["id"], "statement-t7-2026-12");
        assert_eq!(body["data"]["statement"], "/billing/v1/statements/2026-12");
        let test = Letter::of(&event(Tells::Test), "acme", &[1; 32], 5);
        assert_eq!(test.id, "test-t7-3");
    }
}
