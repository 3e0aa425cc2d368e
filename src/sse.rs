//! Server-sent events (WHATWG HTML, "Server-sent events"), as far as OpenAI-compatible servers use
//! them: `data:` fields, comments, blank lines between events.

/// Collects lines into events.
#[derive(Debug, Default)]
pub struct SseParser {
    data: Option<String>,
}

impl SseParser {
    /// Takes one line without its line end; gives an event's data when the line completes it.
    pub fn line(&mut self, line: &str) -> Option<String> {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return self.data.take();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        // Comments (empty field), event names, ids and retry times mean nothing here.
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Vec<String> {
        let mut parser = SseParser::default();
        text.split('\n').filter_map(|l| parser.line(l)).collect()
    }

    #[test]
    fn events_end_at_blank_lines() {
        assert_eq!(
            events("data: {\"a\":1}\n\ndata:[DONE]\r\n\r\n"),
            ["{\"a\":1}", "[DONE]"]
        );
    }

    #[test]
    fn comments_and_other_fields_are_passed_over() {
        assert_eq!(
            events(": keep-alive\n\nevent: x\nid: 3\ndata: y\n\n"),
            ["y"]
        );
    }

    #[test]
    fn several_data_lines_are_one_event_and_a_cut_event_is_none() {
        assert_eq!(events("data: a\ndata:  b\n\ndata: cut"), ["a\n b"]);
    }
}
