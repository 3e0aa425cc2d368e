//! Logs: one place decides where they go and how they look. Everything else calls `tracing`.
//!
//! Logs go to standard error, so that a command's answer on standard output can be piped.

use std::io::IsTerminal;
use std::str::FromStr;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One compact line for a person.
    #[default]
    Human,
    /// One JSON object a line, fields flattened.
    Json,
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(TelemetryError::Format(other.to_owned())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("'{0}' is not a log format: use 'human' or 'json'")]
    Format(String),
    #[error(
        "'{filter}' is not a log filter ({reason}): use e.g. 'info' or 'warn,trireme_worker=debug'"
    )]
    Filter { filter: String, reason: String },
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Sets the process's logging up; call once, first. `filter` is a level (`info`) or a list of
/// `target=level` pairs.
pub fn init(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    subscriber(format, filter, std::io::stderr)?
        .try_init()
        .map_err(|_| TelemetryError::AlreadySet)
}

fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let parsed = EnvFilter::try_new(filter).map_err(|error| TelemetryError::Filter {
        filter: filter.to_owned(),
        reason: error.to_string(),
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        // Log files hold text, not colours.
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(writer);
    Ok(match format {
        LogFormat::Human => Box::new(builder.compact().with_target(false).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(format, filter, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(request = "req_1", "heard");
            tracing::debug!("not wanted at info");
        });
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_is_one_object_a_line_and_the_filter_holds() {
        let text = logged(LogFormat::Json, "info");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(line["message"], "heard");
        assert_eq!(line["request"], "req_1");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn human_lines_name_level_message_and_fields() {
        let text = logged(LogFormat::Human, "info");
        assert!(text.contains("INFO") && text.contains("heard") && text.contains("req_1"));
        assert_eq!(logged(LogFormat::Human, "off"), "");
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        assert!(init(LogFormat::Human, "no=such=filter").is_err());
        assert!("yaml".parse::<LogFormat>().is_err());
    }
}
