//! What the Raft room stores and sends, in our own types: raft-rs's are protobuf's, and no byte from
//! a disk or a peer may reach that parser (RUSTSEC-2024-0437). Written in bincode's format by
//! `wincode`, like everything else that Trireme stores or sends.

use wincode::{SchemaRead, SchemaWrite};

/// A position in the log, from 1.
pub type Index = u64;
/// A term of office, from 1.
pub type Term = u64;
/// A member: the number of its `CoordinatorId`.
pub type MemberId = u64;

/// What an entry of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum EntryKind {
    /// `data` is a batch of proposals (`raft::codec`); empty for a new leader's first entry.
    Commands,
    /// `data` is a change of the members (`raft::codec`); empty to leave a joint configuration.
    Members,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct LogEntry {
    pub index: Index,
    pub term: Term,
    pub kind: EntryKind,
    pub data: Vec<u8>,
}

/// What a member must never forget (Raft's hard state). `vote` 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Ballot {
    pub term: Term,
    pub vote: MemberId,
    pub commit: Index,
}

/// Who votes and who only listens, in the middle of a change too (joint consensus).
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Membership {
    pub voters: Vec<MemberId>,
    pub learners: Vec<MemberId>,
    pub voters_outgoing: Vec<MemberId>,
    pub learners_next: Vec<MemberId>,
    pub auto_leave: bool,
}

/// Which state a snapshot is: that after the entry at `index`.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct SnapshotMeta {
    pub index: Index,
    pub term: Term,
    pub members: Membership,
}
