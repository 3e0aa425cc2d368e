//! What members say to each other, and what is inside a log entry, as bytes.
//!
//! What it keeps true: no byte from a disk or a peer reaches raft-rs's protobuf parser
//! (RUSTSEC-2024-0437). Messages and entries are our own types in bincode's format; a change of the
//! members travels in the entry's *context* and its protobuf *data* never leaves this process. Only
//! kinds of message that a peer may send can be expressed at all: a peer cannot propose, and what
//! raft-rs would answer with a panic is refused here.
//!
//! Neighbours: `member` steps what `PeerMessage::into_raft` gives; `peers` frames it.

use super::types::{EntryKind, Index, LogEntry, MemberId, Membership, SnapshotMeta, Term};
use crate::state::Proposal;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry,
    EntryType, Message, MessageType, Snapshot,
};
use trireme_shared::limits;
use wincode::config::Configuration;
use wincode::{SchemaRead, SchemaWrite};

/// Why bytes are not what a member says.
#[derive(Debug, thiserror::Error)]
pub enum RaftCodecError {
    #[error("it cannot be encoded: {0}")]
    Encode(String),
    #[error("it is not valid ({0}): are all coordinators of the same Trireme version?")]
    Invalid(String),
}

/// Kinds of message that one member may send another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum MessageKind {
    Append,
    AppendResponse,
    RequestVote,
    RequestVoteResponse,
    RequestPreVote,
    RequestPreVoteResponse,
    Heartbeat,
    HeartbeatResponse,
    TimeoutNow,
    ReadIndex,
    ReadIndexResponse,
    /// Announces the snapshot whose bytes come with it.
    Snapshot,
}

/// One message. Fields as in Raft's paper and raft-rs; what a kind does not use is zero.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct PeerMessage {
    pub kind: MessageKind,
    pub from: MemberId,
    pub to: MemberId,
    pub term: Term,
    pub log_term: Term,
    pub index: Index,
    pub entries: Vec<LogEntry>,
    pub commit: Index,
    pub commit_term: Term,
    pub request_snapshot: Index,
    pub reject: bool,
    pub reject_hint: Index,
    pub context: Vec<u8>,
    pub snapshot: Option<SnapshotMeta>,
}

impl PeerMessage {
    /// `None` for what raft-rs says to itself only.
    pub(super) fn from_raft(message: Message) -> Option<Self> {
        use MessageType as M;
        let kind = match message.get_msg_type() {
            M::MsgAppend => MessageKind::Append,
            M::MsgAppendResponse => MessageKind::AppendResponse,
            M::MsgRequestVote => MessageKind::RequestVote,
            M::MsgRequestVoteResponse => MessageKind::RequestVoteResponse,
            M::MsgRequestPreVote => MessageKind::RequestPreVote,
            M::MsgRequestPreVoteResponse => MessageKind::RequestPreVoteResponse,
            M::MsgHeartbeat => MessageKind::Heartbeat,
            M::MsgHeartbeatResponse => MessageKind::HeartbeatResponse,
            M::MsgTimeoutNow => MessageKind::TimeoutNow,
            M::MsgReadIndex => MessageKind::ReadIndex,
            M::MsgReadIndexResp => MessageKind::ReadIndexResponse,
            M::MsgSnapshot => MessageKind::Snapshot,
            M::MsgHup
            | M::MsgBeat
            | M::MsgPropose
            | M::MsgUnreachable
            | M::MsgSnapStatus
            | M::MsgCheckQuorum
            | M::MsgTransferLeader => return None,
        };
        let snapshot = (kind == MessageKind::Snapshot)
            .then(|| snapshot_meta(message.get_snapshot().get_metadata()));
        Some(Self {
            kind,
            from: message.from,
            to: message.to,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: message.entries.iter().map(log_entry).collect(),
            commit: message.commit,
            commit_term: message.commit_term,
            request_snapshot: message.request_snapshot,
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context.to_vec(),
            snapshot,
        })
    }

    /// For raft-rs. `last_index` is the receiver's own: a leader never believes a follower to have
    /// more than it acknowledged.
    pub(super) fn into_raft(self, last_index: Index) -> Result<Message, RaftCodecError> {
        use MessageType as M;
        self.check(last_index)?;
        let mut message = Message::default();
        message.set_msg_type(match self.kind {
            MessageKind::Append => M::MsgAppend,
            MessageKind::AppendResponse => M::MsgAppendResponse,
            MessageKind::RequestVote => M::MsgRequestVote,
            MessageKind::RequestVoteResponse => M::MsgRequestVoteResponse,
            MessageKind::RequestPreVote => M::MsgRequestPreVote,
            MessageKind::RequestPreVoteResponse => M::MsgRequestPreVoteResponse,
            MessageKind::Heartbeat => M::MsgHeartbeat,
            MessageKind::HeartbeatResponse => M::MsgHeartbeatResponse,
            MessageKind::TimeoutNow => M::MsgTimeoutNow,
            MessageKind::ReadIndex => M::MsgReadIndex,
            MessageKind::ReadIndexResponse => M::MsgReadIndexResp,
            MessageKind::Snapshot => M::MsgSnapshot,
        });
        message.from = self.from;
        message.to = self.to;
        message.term = self.term;
        message.log_term = self.log_term;
        message.index = self.index;
        message.set_entries(
            self.entries
                .into_iter()
                .map(raft_entry)
                .collect::<Vec<_>>()
                .into(),
        );
        message.commit = self.commit;
        message.commit_term = self.commit_term;
        message.request_snapshot = self.request_snapshot;
        message.reject = self.reject;
        message.reject_hint = self.reject_hint;
        message.context = self.context.into();
        if let Some(meta) = &self.snapshot {
            message.set_snapshot(raft_snapshot(meta));
        }
        Ok(message)
    }

    /// Refuses what no member of this version sends and raft-rs does not expect.
    fn check(&self, last_index: Index) -> Result<(), RaftCodecError> {
        let invalid = |what: &str| Err(RaftCodecError::Invalid(format!("{what}: {:?}", self.kind)));
        if self.from == 0 || self.from == self.to {
            return invalid("from nobody");
        }
        let reads = matches!(
            self.kind,
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse
        );
        if self.term == 0 && !reads {
            return invalid("of no term");
        }
        if (self.kind == MessageKind::Snapshot) != self.snapshot.is_some() {
            return invalid("a snapshot where none belongs, or none where one does");
        }
        match self.kind {
            MessageKind::Append => {
                let mut index = self.index;
                let mut term = self.log_term;
                for entry in &self.entries {
                    if index.checked_add(1) != Some(entry.index)
                        || entry.term < term
                        || entry.term > self.term
                    {
                        return invalid("entries that do not follow each other");
                    }
                    (index, term) = (entry.index, entry.term);
                }
                if index > Index::MAX / 2 {
                    return invalid("an index out of range");
                }
            }
            MessageKind::Heartbeat if self.commit > last_index => {
                return invalid(
                    "more is committed than this member holds: has its log been tampered with?",
                );
            }
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse
                if self.entries.len() != 1 || self.entries[0].kind != EntryKind::Commands =>
            {
                return invalid("a read without its name");
            }
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse => {}
            _ if !self.entries.is_empty() => return invalid("entries where none belong"),
            _ => {}
        }
        Ok(())
    }
}

/// One wish for the members. Several in one change go through joint consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum MemberChange {
    AddLearner(MemberId),
    AddVoter(MemberId),
    Remove(MemberId),
}

/// What raft-rs is given to carry a change out.
pub(super) fn conf_change(changes: &[MemberChange]) -> ConfChangeV2 {
    let singles: Vec<ConfChangeSingle> = changes
        .iter()
        .map(|change| {
            let (kind, id) = match *change {
                MemberChange::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
                MemberChange::AddVoter(id) => (ConfChangeType::AddNode, id),
                MemberChange::Remove(id) => (ConfChangeType::RemoveNode, id),
            };
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = id;
            single
        })
        .collect();
    let mut change = ConfChangeV2::default();
    change.set_transition(ConfChangeTransition::Auto);
    change.set_changes(singles.into());
    change
}

/// Room for the largest entry; what a claimed length may make us allocate at once.
type Format = Configuration<true, { 4 * limits::RAFT_MESSAGE_BYTES_MAX }>;

fn write<T: SchemaWrite<Format, Src = T>>(value: &T) -> Result<Vec<u8>, RaftCodecError> {
    wincode::config::serialize(value, Format::new())
        .map_err(|e| RaftCodecError::Encode(e.to_string()))
}

fn read<'de, T: SchemaRead<'de, Format, Dst = T>>(bytes: &'de [u8]) -> Result<T, RaftCodecError> {
    wincode::config::deserialize_exact(bytes, Format::new())
        .map_err(|e| RaftCodecError::Invalid(e.to_string()))
}

/// The data of a `Commands` entry.
pub(super) fn encode_proposals(proposals: &[Vec<u8>]) -> Result<Vec<u8>, RaftCodecError> {
    write(&proposals.to_vec())
}

/// The proposals in a `Commands` entry; none in a new leader's first entry.
pub fn decode_proposals(data: &[u8]) -> Result<Vec<Proposal>, RaftCodecError> {
    if data.is_empty() {
        return Ok(Vec::new());
    }
    let encoded: Vec<Vec<u8>> = read(data)?;
    encoded
        .iter()
        .map(|bytes| {
            crate::state::codec::decode(bytes).map_err(|e| RaftCodecError::Invalid(e.to_string()))
        })
        .collect()
}

/// The data of a `Members` entry.
pub(super) fn encode_changes(changes: &[MemberChange]) -> Result<Vec<u8>, RaftCodecError> {
    write(&changes.to_vec())
}

/// The changes in a `Members` entry; none in one that leaves a joint configuration.
pub fn decode_changes(data: &[u8]) -> Result<Vec<MemberChange>, RaftCodecError> {
    if data.is_empty() {
        return Ok(Vec::new());
    }
    read(data)
}

/// A message as bytes, and back; `peers` sends frames of `shared::wire::codec` instead, with the same
/// content. For the simulator, the fuzzer and measurements.
pub fn encode_message(message: &PeerMessage) -> Result<Vec<u8>, RaftCodecError> {
    write(message)
}

pub fn decode_message(bytes: &[u8]) -> Result<PeerMessage, RaftCodecError> {
    read(bytes)
}

pub(super) fn log_entry(entry: &Entry) -> LogEntry {
    let (kind, data) = match entry.get_entry_type() {
        EntryType::EntryNormal => (EntryKind::Commands, &entry.data),
        // Its data is protobuf of our own making, or nothing: the context says it all.
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
            (EntryKind::Members, &entry.context)
        }
    };
    LogEntry {
        index: entry.index,
        term: entry.term,
        kind,
        data: data.to_vec(),
    }
}

pub(super) fn raft_entry(entry: LogEntry) -> Entry {
    let mut raft = Entry {
        index: entry.index,
        term: entry.term,
        ..Entry::default()
    };
    match entry.kind {
        EntryKind::Commands => raft.data = entry.data.into(),
        EntryKind::Members => {
            raft.set_entry_type(EntryType::EntryConfChangeV2);
            raft.context = entry.data.into();
        }
    }
    raft
}

pub(super) fn membership(conf: &ConfState) -> Membership {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    Membership {
        voters: sorted(&conf.voters),
        learners: sorted(&conf.learners),
        voters_outgoing: sorted(&conf.voters_outgoing),
        learners_next: sorted(&conf.learners_next),
        auto_leave: conf.auto_leave,
    }
}

pub(super) fn conf_state(members: &Membership) -> ConfState {
    let mut conf = ConfState::default();
    conf.set_voters(members.voters.clone());
    conf.set_learners(members.learners.clone());
    conf.set_voters_outgoing(members.voters_outgoing.clone());
    conf.set_learners_next(members.learners_next.clone());
    conf.auto_leave = members.auto_leave;
    conf
}

pub(super) fn snapshot_meta(meta: &raft::eraftpb::SnapshotMetadata) -> SnapshotMeta {
    SnapshotMeta {
        index: meta.index,
        term: meta.term,
        members: membership(meta.get_conf_state()),
    }
}

pub(super) fn raft_snapshot(meta: &SnapshotMeta) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = meta.index;
    metadata.term = meta.term;
    metadata.set_conf_state(conf_state(&meta.members));
    snapshot
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
