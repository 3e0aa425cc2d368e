//! raft-rs logs by slog; this hands its lines to `tracing`.

use slog::{Drain, Level, Logger, OwnedKVList, Record, o};

struct ToTracing(u64);

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), slog::Never> {
        let member = self.0;
        let message = record.msg();
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", member, "{message}"),
            Level::Warning => tracing::warn!(target: "raft", member, "{message}"),
            // An election is news; the rest is for whoever debugs it.
            Level::Info | Level::Debug => tracing::debug!(target: "raft", member, "{message}"),
            Level::Trace => tracing::trace!(target: "raft", member, "{message}"),
        }
        Ok(())
    }
}

pub(super) fn logger(member: u64) -> Logger {
    Logger::root(ToTracing(member), o!())
}
