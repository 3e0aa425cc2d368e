//! How the command line fails: what happened, every cause, and what to do next. No backtraces.

use std::fmt;
use std::process::ExitCode;
use trireme_coordinator::CoordinatorError;
use trireme_worker::WorkerError;

/// Exit code of a wrong command line; clap uses the same.
const USAGE: u8 = 2;
/// Exit code of a node that was removed from its cluster: starting it again is of no use.
pub const REMOVED: u8 = 3;

/// An error that knows what its reader should do.
#[derive(Debug)]
pub struct Failure {
    what: String,
    next: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    usage: bool,
}

impl Failure {
    /// Something went wrong in the world; `next` is advice in one sentence.
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            next: next.into(),
            source: None,
            usage: false,
        }
    }

    /// The command line itself asks for something impossible (exit code 2).
    pub fn usage(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            usage: true,
            ..Self::new(what, next)
        }
    }

    pub fn because(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> anyhow::Error {
        self.source = Some(source.into());
        self.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}

/// The text a person reads: the error, its causes one a line, then what to do.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for (depth, cause) in error.chain().enumerate() {
        let said = cause.to_string();
        // Some libraries repeat their source in their own text; say nothing twice.
        if depth == 0 {
            text.push_str(&format!("error: {said}\n"));
        } else if !last.contains(&said) {
            text.push_str(&format!("  because: {said}\n"));
        }
        last = said;
    }
    let next = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Failure>())
        .map(|failure| failure.next.as_str())
        .find(|next| !next.is_empty());
    if let Some(next) = next {
        text.push_str(&format!("  next: {}\n", next.replace('\n', "\n        ")));
    }
    text
}

/// Tells the user on stderr and gives the exit code: 1, or 2 where the command line was at fault, or 3
/// where this node was removed from its cluster.
pub fn report(error: &anyhow::Error) -> ExitCode {
    crate::term::err(describe(error).trim_end());
    let usage = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Failure>())
        .any(|failure| failure.usage);
    match (usage, is_removal(error)) {
        (true, _) => ExitCode::from(USAGE),
        (_, true) => ExitCode::from(REMOVED),
        _ => ExitCode::FAILURE,
    }
}

fn is_removal(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let coordinator = cause.downcast_ref::<CoordinatorError>();
        let worker = cause.downcast_ref::<WorkerError>();
        matches!(coordinator, Some(CoordinatorError::Removed))
            || worker.is_some_and(WorkerError::is_removal)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_shows_its_chain_once_and_the_next_step() {
        let refused = std::io::Error::other("connection refused");
        let error: anyhow::Error = Failure::new(
            "cannot reach the coordinator",
            "start one with `cluster up`",
        )
        .because(refused);
        let error = Err::<(), _>(error).context("no status").unwrap_err();
        assert_eq!(
            describe(&error),
            "error: no status\n  because: cannot reach the coordinator\n  \
             because: connection refused\n  next: start one with `cluster up`\n"
        );
    }

    #[test]
    fn a_cause_that_only_repeats_is_left_out() {
        let error = anyhow::anyhow!("disk full").context("cannot write: disk full");
        assert_eq!(describe(&error), "error: cannot write: disk full\n");
    }
}
