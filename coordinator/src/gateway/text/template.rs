//! A model's chat template, rendered as transformers renders it.
//!
//! Keeps true: a template comes from a model file, so it is not trusted: it runs without access to
//! anything and with bounded work and output.

use super::TextError;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::collections::BTreeMap;
use std::io;
use trireme_shared::limits;

const NAME: &str = "chat";

pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like, as the template may write them.
    tokens: BTreeMap<&'static str, String>,
}

impl ChatTemplate {
    pub(super) fn new(source: &str) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        // What transformers gives its own templates.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(in_words)?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.set_fuel(Some(limits::CHAT_TEMPLATE_FUEL));
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(in_words)?;
        Ok(Self {
            environment,
            tokens: BTreeMap::new(),
        })
    }

    pub(super) fn name_token(&mut self, variable: &'static str, token: Option<String>) {
        self.tokens.extend(token.map(|token| (variable, token)));
    }

    pub(super) fn render(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, token) in &self.tokens {
            variables.insert(name, Value::from(token.as_str()));
        }
        variables.insert("messages", Value::from(Serde(messages)));
        variables.insert("add_generation_prompt", Value::from(add_generation_prompt));
        variables.insert("tools", Value::from(()));
        variables.insert("documents", Value::from(()));
        let template = self.environment.get_template(NAME).map_err(in_words)?;
        let mut out = Bounded(Vec::new());
        template
            .render_captured_to(variables, &mut out)
            .map_err(in_words)?;
        String::from_utf8(out.0).map_err(|e| TextError::Template(e.to_string()))
    }
}

/// The error and its cause, without minijinja's source excerpt.
fn in_words(error: Error) -> TextError {
    let text = match error.kind() {
        ErrorKind::OutOfFuel => "it does not come to an end".to_owned(),
        _ => match error.detail() {
            Some(detail) => detail.to_owned(),
            None => error.kind().to_string(),
        },
    };
    TextError::Template(match error.line() {
        Some(line) => format!("{text} (line {line} of the template)"),
        None => text,
    })
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Today, as C's `strftime` writes it, in UTC.
fn strftime_now(format: &str) -> Result<String, Error> {
    let wrong = |e: &dyn std::fmt::Display| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"))
    };
    let items = time::format_description::parse_strftime_owned(format).map_err(|e| wrong(&e))?;
    time::OffsetDateTime::now_utc()
        .format(&items)
        .map_err(|e| wrong(&e))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`: minijinja's own escapes HTML.
fn tojson(value: Serde<serde_json::Value>, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Whatever else Python takes changes nothing a template can want.
    let _: Option<Value> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        None => value
            .0
            .serialize(&mut Serializer::with_formatter(&mut out, PythonJson)),
        Some(indent) => {
            let spaces = " ".repeat(indent.min(16));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .0
                .serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
    };
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(
        String::from_utf8_lossy(&out).into_owned(),
    ))
}

/// `", "` and `": "`, as Python separates.
struct PythonJson;

impl Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// Refuses more output than any prompt may have.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > limits::CHAT_TEMPLATE_OUTPUT_BYTES_MAX {
            return Err(io::Error::other("the rendered prompt is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str) -> Result<String, String> {
        let messages = [json!({"role": "user", "content": "<b> & 'ü'"})];
        let template = ChatTemplate::new(source).map_err(|e| e.to_string())?;
        template.render(&messages, true).map_err(|e| e.to_string())
    }

    #[test]
    fn templates_see_what_transformers_shows_them() {
        // Blocks on lines of their own leave no trace; nothing is escaped as HTML.
        let source = "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m['content'].strip() }}|\n    {% endif %}\n{% endfor %}";
        assert_eq!(render(source).unwrap(), "<b> & 'ü'|\n");
        assert_eq!(
            render("{{ messages[0] | tojson }}").unwrap(),
            r#"{"content": "<b> & 'ü'", "role": "user"}"#
        );
        assert_eq!(
            render("{{ [1, 2] | tojson(indent=2) }}").unwrap(),
            "[\n  1,\n  2\n]"
        );
        assert_eq!(render("{{ tools is none }}").unwrap(), "True");
        assert_eq!(
            render("{{ strftime_now('%d %b %Y') | length }}").unwrap(),
            "11"
        );
        assert_eq!(
            render("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}").unwrap(),
            "2"
        );
    }

    #[test]
    fn templates_fail_in_words_and_in_bounds() {
        let raised = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(raised.contains("roles must alternate"), "{raised}");
        assert!(render("{% if %}").is_err());
        let endless =
            "{% for i in range(10000) %}{% for j in range(10000) %}{{ j }}{% endfor %}{% endfor %}";
        let stopped = render(endless).unwrap_err();
        assert!(stopped.contains("come to an end"), "{stopped}");
        let long = "{% for i in range(90) %}{{ 'x' * 1000000 }}{% endfor %}";
        assert!(render(long).is_err());
    }
}
