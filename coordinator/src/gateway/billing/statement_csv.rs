//! A statement as CSV (RFC 4180): a header, and a line a sum. Texts that a spreadsheet would take for a
//! formula are told as text, with an apostrophe before them. Pure.

use trireme_shared::api::{Statement, UsageSums};
use trireme_shared::ids::NanoUsd;

const HEADER: &str = "tenant,month,provisional,line,name,requests,prompt_tokens,cached_tokens,\
                      completion_tokens,amount_nano_usd,amount_usd\r\n";

/// The lines `opening`, `model` (each), `key` (each), `charges`, `credits`, `refunds`, `closing`. Amounts
/// are signed as they move the balance, but those of models and keys, which `charges` sums.
pub fn write(of: &Statement) -> String {
    let mut out = HEADER.to_owned();
    let mut line = |kind: &str, name: &str, usage: Option<&UsageSums>, amount: NanoUsd| {
        let counts = usage.map_or(",,,".to_owned(), |u| {
            let (requests, prompt) = (u.requests, u.prompt_tokens);
            let (cached, completion) = (u.cached_tokens, u.completion_tokens);
            format!("{requests},{prompt},{cached},{completion}")
        });
        let (tenant, name) = (text(&of.tenant_name), text(name));
        let (month, provisional, dollars) = (&of.month, of.provisional, amount.dollars());
        let nano = amount.0;
        out.push_str(&format!(
            "{tenant},{month},{provisional},{kind},{name},{counts},{nano},{dollars}\r\n"
        ));
    };
    line("opening", "", None, of.opening_nano_usd);
    for one in &of.models {
        let usage = &one.usage;
        line("model", &one.model, Some(usage), usage.cost_nano_usd);
    }
    for one in &of.keys {
        let (usage, name) = (&one.usage, format!("{} {}", one.key, one.name));
        line("key", name.trim_end(), Some(usage), usage.cost_nano_usd);
    }
    let charges = NanoUsd(of.charges_nano_usd.0.wrapping_neg());
    line("charges", "", None, charges);
    line("credits", "", None, of.credits_nano_usd);
    line("refunds", "", None, of.refunds_nano_usd);
    line("closing", "", None, of.closing_nano_usd);
    out
}

/// Somebody's words as one field.
fn text(words: &str) -> String {
    // Behind spaces too: spreadsheets take those off.
    let first = words.trim_start().chars().next();
    let formula =
        matches!(first, Some('=' | '+' | '-' | '@')) || words.starts_with(['\t', '\r', '\n']);
    let guard = if formula { "'" } else { "" };
    let plain = !formula && !words.contains(['"', ',', '\r', '\n']);
    match plain {
        true => words.to_owned(),
        false => format!("\"{guard}{}\"", words.replace('"', "\"\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_and_formulas_are_words() {
        for (words, field) in [
            ("", ""),
            ("acme", "acme"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("two\r\nlines", "\"two\r\nlines\""),
            ("=1+1", "\"'=1+1\""),
            ("+1", "\"'+1\""),
            ("-1", "\"'-1\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            (" =cmd|' /C calc'!A0", "\"' =cmd|' /C calc'!A0\""),
            ("\t=1", "\"'\t=1\""),
            ("org/model-1", "org/model-1"),
        ] {
            assert_eq!(text(words), field, "{words:?}");
        }
    }
}
