//! Shows how far `up` is: bars on a terminal, plain lines elsewhere. Everything goes to stderr, so
//! that stdout carries only the answer.

use crate::{size, term};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use trireme_shared::ids::WorkerId;

/// Width of the first column.
const TITLE: usize = 12;
/// How often a waiting step says where it is where there are no bars.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
const SPINNER_INTERVAL: Duration = Duration::from_millis(100);

/// The steps of one start.
pub struct Steps {
    bars: Option<MultiProgress>,
    started: Instant,
}

/// The step under way.
pub struct Step {
    title: &'static str,
    bars: Option<MultiProgress>,
    bar: Option<ProgressBar>,
    started: Instant,
    plain: Mutex<Instant>,
}

/// A bar for each worker's bytes.
pub struct WorkerBars {
    bars: Option<MultiProgress>,
    by_worker: BTreeMap<WorkerId, ProgressBar>,
}

impl Steps {
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            bars: terminal.then(MultiProgress::new),
            started: Instant::now(),
        }
    }

    /// A way to write lines above the bars, for other threads.
    pub fn say(&self) -> super::children::Say {
        let bars = self.bars.clone();
        Arc::new(move |line| match &bars {
            Some(bars) => bars.suspend(|| term::err(line)),
            None => term::err(line),
        })
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn begin(&self, title: &'static str, doing: &str) -> Step {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::no_length());
            bar.set_style(style("  {prefix:12} {spinner} {msg}"));
            bar.set_prefix(title);
            bar.set_message(doing.to_owned());
            bar.enable_steady_tick(SPINNER_INTERVAL);
            bar
        });
        Step {
            title,
            bars: self.bars.clone(),
            bar,
            started: Instant::now(),
            plain: Mutex::new(Instant::now()),
        }
    }

    pub fn worker_bars(&self) -> WorkerBars {
        WorkerBars {
            bars: self.bars.clone(),
            by_worker: BTreeMap::new(),
        }
    }
}

impl Step {
    /// Says what is being waited for.
    pub fn doing(&self, what: &str) {
        match &self.bar {
            Some(bar) if bar.message() != what => bar.set_message(what.to_owned()),
            Some(_) => {}
            None => self.plainly(what),
        }
    }

    /// Shows bytes on their way. `total` 0 is unknown.
    pub fn bytes(&self, doing: &str, done: u64, total: u64) {
        let Some(bar) = &self.bar else {
            return self.plainly(&format!(
                "{doing} {}",
                match total {
                    0 => size::bytes(done),
                    _ => format!("{} of {}", size::bytes(done), size::bytes(total)),
                }
            ));
        };
        if total > 0 && bar.length() != Some(total) {
            bar.set_length(total);
            bar.set_style(style(BYTES_STYLE));
        }
        bar.set_position(done);
        if bar.message() != doing {
            bar.set_message(doing.to_owned());
        }
    }

    fn plainly(&self, what: &str) {
        let mut last = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= PLAIN_INTERVAL {
            *last = Instant::now();
            term::err(format!("  {:TITLE$} {what} ...", self.title));
        }
    }

    /// Ends the step with its result.
    pub fn done(self, result: &str) {
        let line = format!(
            "  {:TITLE$} {result}  ({})",
            self.title,
            size::duration(self.started.elapsed())
        );
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        match &self.bars {
            Some(bars) => bars.suspend(|| term::err(line)),
            None => term::err(line),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        // A step that failed leaves no spinner behind.
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl WorkerBars {
    /// Shows what a worker is doing; `total` 0 is unknown.
    pub fn set(&mut self, worker: WorkerId, doing: &str, done: u64, total: u64) {
        let Some(bars) = &self.bars else { return };
        let bar = self.by_worker.entry(worker).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(total.max(1)));
            bar.set_style(style(BYTES_STYLE));
            bar.set_prefix(format!("  {worker}"));
            bar
        });
        if total > 0 {
            bar.set_length(total);
            bar.set_position(done);
        }
        if bar.message() != doing {
            bar.set_message(doing.to_owned());
        }
    }
}

impl Drop for WorkerBars {
    fn drop(&mut self) {
        for bar in self.by_worker.values() {
            bar.finish_and_clear();
        }
    }
}

/// Fits 80 columns.
const BYTES_STYLE: &str =
    "  {prefix:12} [{bar:24}] {decimal_bytes:>9} of {decimal_total_bytes:9} {msg}";

fn style(template: &str) -> ProgressStyle {
    // The templates are constants above; a wrong one falls back to plain.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .tick_chars("-\\|/ ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_templates_are_valid() {
        for template in [super::BYTES_STYLE, "  {prefix:12} {spinner} {msg}"] {
            indicatif::ProgressStyle::with_template(template).unwrap();
        }
    }
}
