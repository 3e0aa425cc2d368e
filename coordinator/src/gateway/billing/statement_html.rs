//! A statement as a page to print: one file, without script, that loads nothing. Pure.

use super::dates;
use std::fmt::Write;
use trireme_shared::api::{Statement, UsageSums};
use trireme_shared::ids::NanoUsd;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:52rem;\
    margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem;margin:0}h2{font-size:1rem;margin:2rem 0 .5rem}\
    p{margin:.25rem 0}table{border-collapse:collapse;width:100%}th,td{padding:.3rem .5rem;text-align:left;\
    border-bottom:1px solid #ddd}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
    tr.sum td{font-weight:600;border-top:2px solid #111}.note{border:1px solid #b45309;padding:.5rem;\
    margin:1rem 0}@media print{body{margin:0;max-width:none}h2{break-after:avoid}tr{break-inside:avoid}}";

pub fn write(of: &Statement) -> String {
    let (tenant, cluster) = (escape(&of.tenant_name), escape(&of.cluster));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Statement {tenant} {month}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>Statement {month}</h1>\n<p>Account: <strong>{tenant}</strong> ({id})</p>\n\
         <p>Cluster: {cluster}</p>\n<p>From {from} to {to} (UTC), amounts in US dollars</p>\n",
        month = escape(&of.month),
        id = of.tenant,
        from = dates::day_name(of.begins_at / dates::DAY_S),
        to = dates::day_name(of.ends_at / dates::DAY_S - 1),
    );
    if of.provisional {
        page.push_str(
            "<p class=\"note\"><strong>Provisional.</strong> This month has not ended: more may come.</p>\n",
        );
    }
    page.push_str("<h2>Account</h2>\n<table>\n");
    let charges = NanoUsd(of.charges_nano_usd.0.wrapping_neg());
    for (words, amount) in [
        ("Opening balance", of.opening_nano_usd),
        ("Usage", charges),
        ("Credits", of.credits_nano_usd),
        ("Refunds", of.refunds_nano_usd),
    ] {
        row(&mut page, "", words, amount);
    }
    row(
        &mut page,
        " class=\"sum\"",
        "Closing balance",
        of.closing_nano_usd,
    );
    page.push_str("</table>\n");
    let models = of.models.iter().map(|m| (m.model.clone(), &m.usage));
    usage(&mut page, "Model", models);
    let key = |key: &trireme_shared::api::KeyUsage| format!("{} {}", key.key, key.name);
    let keys = of.keys.iter().map(|k| (key(k), &k.usage));
    usage(&mut page, "Key", keys);
    page.push_str("</body>\n</html>\n");
    page
}

fn row(page: &mut String, class: &str, words: &str, amount: NanoUsd) {
    let amount = amount.dollars();
    // Writing to a string does not fail.
    let _ = writeln!(
        page,
        "<tr{class}><td>{words}</td><td class=\"n\">{amount}</td></tr>"
    );
}

fn usage<'a>(page: &mut String, of: &str, rows: impl Iterator<Item = (String, &'a UsageSums)>) {
    let _ = write!(
        page,
        "<h2>Usage by {}</h2>\n<table>\n<tr><th>{of}</th><th class=\"n\">Requests</th>\
         <th class=\"n\">Prompt tokens</th><th class=\"n\">of them cached</th>\
         <th class=\"n\">Generated tokens</th><th class=\"n\">Amount</th></tr>\n",
        of.to_lowercase()
    );
    for (name, usage) in rows {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escape(&name),
            usage.requests,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            usage.cost_nano_usd.dollars()
        );
    }
    page.push_str("</table>\n");
}

/// Words as text of a page, also inside a quoted attribute.
pub fn escape(words: &str) -> String {
    let mut text = String::with_capacity(words.len());
    for c in words.chars() {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&#39;"),
            other => text.push(other),
        }
    }
    text
}
