//! Writing to the terminal: the answer on stdout, everything about the way there on stderr.
//!
//! A closed pipe (`cluster status | head`) ends output quietly. Colours only on a terminal.

use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, presets};
use indicatif::ProgressBar;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// One line of the answer.
pub fn out(line: impl Display) {
    part(format_args!("{line}\n"));
}

/// A piece of the answer, without a line's end; shown at once.
pub fn part(text: impl Display) {
    let mut stdout = std::io::stdout().lock();
    if write!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .is_err()
    {
        // The reader of our pipe has left: nobody is there to be told.
        std::process::exit(0);
    }
}

/// One line beside the answer: progress, warnings, errors.
pub fn err(line: impl Display) {
    // Nothing can be done where even stderr is gone.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// `value` as indented JSON on stdout.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    out(serde_json::to_string_pretty(value)?);
    Ok(())
}

pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// `text` in bold on a terminal, plain elsewhere.
pub fn bold(text: &str) -> String {
    styled(text, "1")
}

/// `text` dimmed on a terminal, plain elsewhere.
pub fn dim(text: &str) -> String {
    styled(text, "2")
}

fn styled(text: &str, code: &str) -> String {
    if is_terminal() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Tells what is done meanwhile, on a terminal.
pub fn spinner() -> ProgressBar {
    let spinner = match std::io::stderr().is_terminal() {
        true => ProgressBar::new_spinner(),
        false => ProgressBar::hidden(),
    };
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// A plain, aligned table. Columns whose header starts with `>` hold numbers and align right.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    let align = |title: &str| match title.starts_with('>') {
        true => CellAlignment::Right,
        false => CellAlignment::Left,
    };
    table.set_header(header.iter().map(|title| {
        Cell::new(title.trim_start_matches('>'))
            .set_alignment(align(title))
            .add_attribute(Attribute::Dim)
    }));
    for row in rows {
        table.add_row(
            row.iter()
                .zip(header)
                .map(|(text, title)| Cell::new(text).set_alignment(align(title))),
        );
    }
    for column in table.column_iter_mut() {
        column.set_padding((1, 1));
    }
    table
        .lines()
        .map(|line| format!(" {}", line.trim_end()))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_align_right_and_words_left() {
        let text = super::table(
            &["worker", ">tok/s"],
            vec![
                vec!["w1".into(), "9.5".into()],
                vec!["w2".into(), "110.0".into()],
            ],
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1], "  w1        9.5");
        assert_eq!(lines[2], "  w2      110.0");
    }
}
