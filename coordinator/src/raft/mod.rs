//! The replicated log: what makes every coordinator hold the same state.
//!
//! `member` is the core without I/O (raft-rs, the log, the state); `roster` says who should be a member;
//! `view`, `codec` and `logger` are its sides towards raft-rs; `storage` is its disk, `snapshots` puts
//! the state on it. `group` runs a member in a thread and is what the rest of the process holds;
//! `peers` carries messages and snapshots, `forward` proposals, `book` knows where everyone is; `leisure` is
//! for what may take long.

pub mod bench;
mod book;
pub mod codec;
mod forward;
pub mod group;
mod leisure;
mod logger;
pub mod member;
mod peers;
mod roster;
pub mod snapshots;
pub mod storage;
pub mod types;
mod view;

// What the fuzz targets decode.
pub use forward::{Answer, Question};
pub use peers::Opening;
