//! The replicated log: a sans-IO member around raft-rs, its storage, and what connects it to the
//! other members and to this process.

pub mod storage;
pub mod types;
