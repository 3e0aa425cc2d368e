//! The document as one page to read: no script, and nothing that it loads. Pure.

use crate::gateway::billing::statement_html::escape;
use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:60rem;\
    margin:2rem auto;padding:0 1rem}h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:\
    1px solid #ddd}h3{font:600 1rem ui-monospace,monospace;margin:1.5rem 0 .25rem}code{font-family:\
    ui-monospace,monospace;font-size:.9em}table{border-collapse:collapse;width:100%}td,th{padding:.2rem .5rem;\
    text-align:left;vertical-align:top;border-bottom:1px solid #eee}td:first-child{white-space:nowrap}\
    details{margin:.25rem 0}.m{display:inline-block;min-width:4rem;color:#1d4ed8}nav a{margin-right:1rem}\
    @media(prefers-color-scheme:dark){body{color:#e5e5e5;background:#111}td,th,h2{border-color:#333}\
    a,.m{color:#93c5fd}}";

/// Names of the methods that an operation can have, in the order they are shown in.
const METHODS: [&str; 4] = ["get", "put", "post", "delete"];

/// A page of an OpenAPI document.
pub fn write(document: &Value) -> String {
    let title = text(&document["info"]["title"]);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}: HTTP API</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title} {}: HTTP API</h1>\n<p>{}</p>\n\
         <p><a href=\"openapi.json\">openapi.json</a></p>\n<nav>",
        text(&document["info"]["version"]),
        prose(&document["info"]["description"]),
    );
    let tags = document["tags"].as_array().map(Vec::as_slice);
    let tags = tags.unwrap_or_default();
    for tag in tags {
        let name = text(&tag["name"]);
        page += &format!("<a href=\"#{name}\">{name}</a>");
    }
    page.push_str("<a href=\"#schemas\">schemas</a></nav>\n");
    for tag in tags {
        let name = text(&tag["name"]);
        let about = prose(&tag["description"]);
        line(
            &mut page,
            format_args!("<h2 id=\"{name}\">{name}</h2>\n<p>{about}</p>"),
        );
        operations(&mut page, document, &tag["name"]);
    }
    schemas(&mut page, &document["components"]["schemas"]);
    page.push_str("</body>\n</html>\n");
    page
}

/// Writing to a string does not fail.
fn line(page: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = writeln!(page, "{what}");
}

fn operations(page: &mut String, document: &Value, tag: &Value) {
    let paths = document["paths"].as_object();
    for (path, item) in paths.into_iter().flatten() {
        for method in METHODS {
            let operation = &item[method];
            let tagged = operation["tags"].as_array();
            if tagged.is_some_and(|tags| tags.contains(tag)) {
                one(page, method, path, operation);
            }
        }
    }
}

fn one(page: &mut String, method: &str, path: &str, of: &Value) {
    let (method, path) = (method.to_uppercase(), escape(path));
    line(
        page,
        format_args!("<h3><span class=\"m\">{method}</span> {path}</h3>"),
    );
    let words = [&of["summary"], &of["description"]];
    for words in words.into_iter().filter(|w| w.is_string()) {
        line(page, format_args!("<p>{}</p>", prose(words)));
    }
    let parameters = of["parameters"].as_array();
    if let Some(parameters) = parameters.filter(|p| !p.is_empty()) {
        page.push_str("<table>\n");
        for parameter in parameters {
            let (name, place) = (text(&parameter["name"]), text(&parameter["in"]));
            let about = prose(&parameter["description"]);
            line(
                page,
                format_args!("<tr><td><code>{name}</code> ({place})</td><td>{about}</td></tr>"),
            );
        }
        page.push_str("</table>\n");
    }
    if let Some(content) = of["requestBody"]["content"].as_object() {
        for (media, body) in content {
            let (media, kind) = (escape(media), kind(&body["schema"]));
            line(
                page,
                format_args!("<p>Body: {kind} as <code>{media}</code></p>"),
            );
        }
    }
    page.push_str("<details><summary>Answers</summary>\n<table>\n");
    let answers = of["responses"].as_object();
    for (status, answer) in answers.into_iter().flatten() {
        let about = prose(&answer["description"]);
        let content = answer["content"].as_object().into_iter().flatten();
        let kinds: Vec<String> = content
            .map(|(media, body)| {
                format!(
                    "{} as <code>{}</code>",
                    kind(&body["schema"]),
                    escape(media)
                )
            })
            .collect();
        let (status, kinds) = (escape(status), kinds.join(", "));
        line(
            page,
            format_args!("<tr><td>{status}</td><td>{about}</td><td>{kinds}</td></tr>"),
        );
    }
    page.push_str("</table></details>\n");
}

fn schemas(page: &mut String, schemas: &Value) {
    page.push_str("<h2 id=\"schemas\">schemas</h2>\n");
    for (name, schema) in schemas.as_object().into_iter().flatten() {
        let name = escape(name);
        line(page, format_args!("<h3 id=\"schema-{name}\">{name}</h3>"));
        line(
            page,
            format_args!("<p>{}</p>", prose(&schema["description"])),
        );
        match schema["properties"].as_object() {
            Some(fields) => {
                page.push_str("<table>\n");
                for (field, of) in fields {
                    let (field, kind, about) = (escape(field), kind(of), prose(&of["description"]));
                    line(
                        page,
                        format_args!(
                            "<tr><td><code>{field}</code></td><td>{kind}</td><td>{about}</td></tr>"
                        ),
                    );
                }
                page.push_str("</table>\n");
            }
            None => line(page, format_args!("<p>{}</p>", kind(schema))),
        }
    }
}

/// A schema in a few words, with links to those it names.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        let name = escape(name.rsplit('/').next().unwrap_or_default());
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    for (several, between) in [("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")] {
        if let Some(parts) = schema[several].as_array() {
            let parts: Vec<String> = parts.iter().map(kind).collect();
            return parts.join(between);
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        let values = values.iter().filter_map(Value::as_str);
        let values: Vec<String> = values
            .map(|v| format!("<code>{}</code>", escape(v)))
            .collect();
        return values.join(", ");
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => vec!["anything"],
    };
    if types.contains(&"array") {
        return format!("list of {}", kind(&schema["items"]));
    }
    escape(&types.join(" or "))
}

fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

/// Words in which backquotes mark code.
fn prose(value: &Value) -> String {
    let words = value.as_str().unwrap_or_default();
    let mut out = String::new();
    for (at, part) in words.split('`').enumerate() {
        let part = escape(part);
        match at % 2 {
            0 => out.push_str(&part),
            _ => out.push_str(&format!("<code>{part}</code>")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_tells_every_operation_and_escapes_what_it_tells() {
        let document = json!({
            "info": {"title": "T<i>", "version": "1", "description": "has `code` & more"},
            "tags": [{"name": "a", "description": "first"}],
            "paths": {
                "/x/{id}": {"get": {
                    "tags": ["a"], "summary": "Looks \"up\"",
                    "parameters": [{"name": "id", "in": "path", "description": "<its> name"}],
                    "responses": {"200": {"description": "ok", "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/X"}}}}}
                }},
                "/y": {"delete": {"tags": ["b"], "responses": {}}}
            },
            "components": {"schemas": {"X": {"type": "object", "properties": {
                "n": {"type": ["integer", "null"], "description": "a number"},
                "l": {"type": "array", "items": {"type": "string"}}}}}}
        });
        let page = write(&document);
        for part in [
            "T&lt;i&gt;",
            "has <code>code</code> &amp; more",
            "<span class=\"m\">GET</span> /x/{id}",
            "Looks &quot;up&quot;",
            "&lt;its&gt; name",
            "<a href=\"#schema-X\">X</a> as <code>application/json</code>",
            "integer or null",
            "list of string",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("/y"), "no tag of its own");
        for banned in ["<script", "http://", "https://", "<i>"] {
            assert!(!page.contains(banned), "{banned}");
        }
    }
}
