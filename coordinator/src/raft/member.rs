//! One member of the group, without I/O of its own: raft-rs's core, the log on a [`Disk`], and the
//! state that the log makes. Inputs go in, outputs come out; the network, the clock and the threads
//! are `group`'s and `peers`'s, or the simulator's.
//!
//! What it keeps true:
//! - what is answered or acknowledged to a peer is on disk first, with one sync for all that came in
//!   together;
//! - a command is applied once, in log order, on every member alike, and answered by its id;
//! - only what is committed changes the state; only what the state says changes the members;
//! - randomness is a function of (seed, id, term, time), so that a simulation replays exactly.
//!
//! Source of the algorithm: Ongaro, "Consensus: Bridging Theory and Practice" (2014), as in raft-rs.

use super::codec::{
    MemberChange, PeerMessage, RaftCodecError, conf_change, decode_changes, decode_proposals,
    encode_changes, encode_proposals, log_entry, membership, raft_entry,
};
use super::roster;
use super::storage::{Batch, Disk, Recovered, SnapshotRef, StorageError, Wal};
use super::types::{Ballot, Index, MemberId, Membership, SnapshotMeta, Term};
use super::view::LogView;
use crate::planted::{self, Bug};
use crate::state::codec::{self as state_codec, CodecError};
use crate::state::{Effect, Outcome, Proposal, ProposalId, State, apply};
use raft::eraftpb::{Entry, EntryType};
use raft::{Config, ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use std::collections::{BTreeMap, VecDeque};
use trireme_shared::limits;
use wincode::{SchemaRead, SchemaWrite};

/// Names a read that waits for its turn. Unique among the reads of this member since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// What happened.
pub enum Input {
    /// `limits::RAFT_TICK` went by.
    Tick,
    Message(PeerMessage),
    /// Commands to be made durable together, in this order.
    Propose(Vec<Proposal>),
    /// Asks for [`Output::ReadReady`] once the state holds all that was acknowledged before now.
    Read(ReadId),
    /// A whole snapshot came from a peer; `message` announced it.
    SnapshotArrived {
        message: PeerMessage,
        file: SnapshotRef,
        state: Box<State>,
    },
    /// A snapshot that this member sent has arrived, or has not.
    SnapshotSent {
        to: MemberId,
        arrived: bool,
    },
    /// [`Output::WriteSnapshot`] was done; `None` where it failed.
    SnapshotWritten(Option<SnapshotRef>),
    /// Messages to this peer are being lost.
    Unreachable(MemberId),
    /// This member is about to stop: someone else should lead.
    StepDown,
    /// Another member says that this one was removed.
    Expelled,
}

/// What to do.
pub enum Output {
    Send(PeerMessage),
    /// Send this file with its announcement, and report [`Input::SnapshotSent`].
    SendSnapshot {
        message: PeerMessage,
        file: SnapshotRef,
    },
    /// What became of a proposal.
    Answer(ProposalId, Result<Answered, NotProposed>),
    ReadReady(ReadId),
    /// Committed commands had these effects on the state.
    Effects(Vec<Effect>),
    /// The state is a new one altogether: a snapshot was installed.
    Installed,
    /// Write this state to a snapshot file, in another thread, and report it.
    WriteSnapshot(SnapshotMeta, Box<State>),
    /// This member is none any more.
    Removed,
}

/// A proposal that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub outcome: Outcome,
    /// The entry it is in.
    pub index: Index,
}

/// Why a proposal was not applied here. It may be proposed again with the same id, anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotProposed {
    /// It never entered the log: this member does not lead.
    NotLeader,
    /// It never entered the log: too much is under way.
    Busy,
    /// It entered the log of a leader that lost its office; it may still be applied.
    InDoubt,
}

/// Why a member stops. It must not go on: what it knows and what its disk holds may differ.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("entry {index} of the command log cannot be read: {source}")]
    Entry {
        index: Index,
        source: RaftCodecError,
    },
    #[error("a message could not be made: {0}")]
    Codec(#[from] RaftCodecError),
    #[error("a command could not be made: {0}")]
    Command(#[from] CodecError),
    #[error("its thread cannot start: {0}")]
    Thread(std::io::Error),
    #[error("the replicated log refused to go on: {0}")]
    Raft(#[from] raft::Error),
}

/// Who leads, as far as this member knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Office {
    pub term: Term,
    /// 0 is nobody.
    pub leader: MemberId,
    /// This member leads, and its state holds everything that was ever acknowledged.
    pub leads: bool,
}

/// How far another member is, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Follower {
    pub id: MemberId,
    pub matched: Index,
    /// Heard of within the last election timeout.
    pub active: bool,
    pub receives_snapshot: bool,
}

/// A member at a glance.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct MemberStatus {
    pub id: MemberId,
    pub office: Office,
    pub first: Index,
    pub last: Index,
    pub commit: Index,
    pub applied: Index,
    pub snapshot: Index,
    pub members: Membership,
    /// On the leader only.
    pub followers: Vec<Follower>,
}

/// How a member is set up.
#[derive(Clone, Copy, Debug)]
pub struct MemberConfig {
    pub id: MemberId,
    /// Another one at each start: it also tells this start's reads from those of an earlier one.
    pub seed: u64,
    /// Bytes of log between snapshots.
    pub snapshot_log_bytes: u64,
    /// Bytes of log kept behind a snapshot for followers that are a little behind.
    pub keep_log_bytes: usize,
}

/// The member.
pub struct Member<D: Disk> {
    config: MemberConfig,
    raw: RawNode<LogView>,
    wal: Wal<D>,
    state: State,
    members: Membership,
    applied: Index,
    ticks: u64,
    /// Proposals made here and not answered yet, by the entry they were put in.
    waiting: BTreeMap<ProposalId, ()>,
    /// For a planted bug: the order they came in.
    waiting_order: VecDeque<ProposalId>,
    /// For a planted bug: the state before the newest entry.
    state_before: State,
    /// Reads whose index is known, until it is applied.
    reads: Vec<(Index, ReadId)>,
    office: Office,
    /// A received snapshot on its way through raft-rs.
    arriving: Option<(SnapshotRef, Box<State>)>,
    current: Option<SnapshotRef>,
    /// Snapshots on their way to others, which must stay until they have arrived.
    sending: BTreeMap<MemberId, SnapshotRef>,
    writing_snapshot: bool,
    /// The tick at which it ends, once it was removed.
    leaves_at: Option<u64>,
    ballot_written: Ballot,
    /// When (in ticks) each other member was last heard.
    heard: BTreeMap<MemberId, u64>,
}

impl<D: Disk + Clone> Member<D> {
    /// Writes the first snapshot of a new group into an empty log: equal on all its `voters`, usually
    /// one. Its index is 1, so that whoever joins gets it (and the members) as a snapshot and never from
    /// entry 1.
    pub fn found(wal: &mut Wal<D>, voters: &[MemberId], state: &State) -> Result<(), MemberError> {
        let meta = SnapshotMeta {
            index: 1,
            term: 1,
            members: Membership {
                voters: voters.to_vec(),
                ..Membership::default()
            },
        };
        let file = super::snapshots::write(wal.disk().clone(), &meta, state)?;
        let ballot = Ballot {
            term: 1,
            vote: 0,
            commit: 1,
        };
        Ok(wal.install(file, ballot)?)
    }

    /// Takes up what the disk holds. `state` is that of `recovered.snapshot` (empty without one).
    pub fn new(
        config: MemberConfig,
        wal: Wal<D>,
        recovered: Recovered,
        state: State,
    ) -> Result<Self, MemberError> {
        let meta = recovered
            .snapshot
            .as_ref()
            .map(|s| s.meta.clone())
            .unwrap_or_default();
        let mut entries: Vec<Entry> = recovered.entries.into_iter().map(raft_entry).collect();
        let mut before = (meta.index, meta.term);
        if entries.first().is_some_and(|e| e.index <= meta.index) {
            let first = entries.remove(0);
            before = (first.index, first.term);
        }
        let mut ballot = recovered.ballot;
        ballot.commit = ballot.commit.max(meta.index);
        let members = meta.members.clone();
        let view = LogView::new(ballot, meta.clone(), before, entries);
        let pre_vote = !planted::is(Bug::SkipPreVote);
        let election_tick = limits::RAFT_ELECTION_TICKS;
        let raft_config = Config {
            id: config.id,
            election_tick,
            heartbeat_tick: limits::RAFT_HEARTBEAT_TICKS,
            min_election_tick: election_tick,
            max_election_tick: 2 * election_tick,
            applied: meta.index,
            max_size_per_msg: limits::RAFT_MESSAGE_BYTES_MAX as u64 / 4,
            max_inflight_msgs: limits::RAFT_INFLIGHT_MAX,
            check_quorum: true,
            pre_vote,
            read_only_option: match planted::is(Bug::ReadWithoutQuorum) {
                true => ReadOnlyOption::LeaseBased,
                false => ReadOnlyOption::Safe,
            },
            max_uncommitted_size: limits::RAFT_UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: limits::RAFT_MESSAGE_BYTES_MAX as u64,
            ..Config::default()
        };
        let raw = RawNode::new(&raft_config, view, &super::logger::logger(config.id))?;
        let mut member = Self {
            config,
            raw,
            wal,
            state,
            members,
            applied: meta.index,
            ticks: 0,
            waiting: BTreeMap::new(),
            waiting_order: VecDeque::new(),
            state_before: State::default(),
            reads: Vec::new(),
            office: Office::default(),
            arriving: None,
            current: recovered.snapshot,
            sending: BTreeMap::new(),
            writing_snapshot: false,
            leaves_at: None,
            ballot_written: ballot,
            heard: BTreeMap::new(),
        };
        member.set_election_timeout();
        Ok(member)
    }

    /// Nobody else votes: no need to wait for an election timeout.
    pub fn campaign_if_alone(&mut self, out: &mut impl FnMut(Output)) -> Result<(), MemberError> {
        if self.members.voters == [self.config.id] && self.members.voters_outgoing.is_empty() {
            self.raw.campaign()?;
            self.drain(out)?;
        }
        Ok(())
    }

    /// Takes in `inputs` and does what follows, with one disk sync for all of them. Messages that need
    /// no sync of this member's go out before it.
    pub fn step(
        &mut self,
        inputs: impl IntoIterator<Item = Input>,
        out: &mut impl FnMut(Output),
    ) -> Result<(), MemberError> {
        for input in inputs {
            self.take(input, out)?;
            self.set_election_timeout();
        }
        self.drain(out)?;
        self.set_election_timeout();
        self.look_at_office(out);
        self.maybe_snapshot(out);
        // Also where the change that removed it was begun before its last start.
        if self.applied > 0 && !self.counts_among_members() {
            self.leave();
        }
        if self.leaves_at.is_some_and(|at| self.ticks >= at) {
            out(Output::Removed);
        }
        Ok(())
    }

    /// It is no member any more, and ends in a while.
    fn leave(&mut self) {
        let at = self.ticks + limits::RAFT_REMOVED_TICKS;
        self.leaves_at.get_or_insert(at);
        if self.raw.raft.state == StateRole::Leader && !self.counts_among_members() {
            // A leader that is no member has no progress of its own, and raft-rs panics for the lack.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
    }

    fn take(&mut self, input: Input, out: &mut impl FnMut(Output)) -> Result<(), MemberError> {
        match input {
            Input::Tick => {
                self.ticks += 1;
                self.raw.tick();
                if self.ticks.is_multiple_of(limits::RAFT_ROSTER_TICKS) {
                    self.adjust_members()?;
                }
            }
            Input::Message(message) => self.receive(message),
            Input::Propose(proposals) => self.propose(proposals, out)?,
            Input::Read(id) => {
                let name = self.read_name(id);
                self.raw.read_index(name);
            }
            Input::SnapshotArrived {
                message,
                file,
                state,
            } => {
                self.arriving = Some((file, state));
                self.receive(message);
                if self.raw.raft.snap().is_none() {
                    // Not wanted (any more).
                    self.drop_arriving();
                }
            }
            Input::SnapshotSent { to, arrived } => {
                if let Some(file) = self.sending.remove(&to) {
                    self.wal.release(&file.file)?;
                }
                let status = match arrived {
                    true => SnapshotStatus::Finish,
                    false => SnapshotStatus::Failure,
                };
                self.raw.report_snapshot(to, status);
            }
            Input::SnapshotWritten(file) => {
                self.writing_snapshot = false;
                if let Some(file) = file {
                    self.checkpoint(file)?;
                }
            }
            Input::Unreachable(peer) => self.raw.report_unreachable(peer),
            Input::Expelled => self.leave(),
            Input::StepDown => {
                if let Some(heir) = self.heir() {
                    self.raw.transfer_leader(heir);
                }
            }
        }
        Ok(())
    }

    /// A message that is refused is lost, as any message may be.
    fn receive(&mut self, message: PeerMessage) {
        if message.to != self.config.id {
            return;
        }
        self.heard.insert(message.from, self.ticks);
        let last = self.raw.raft.raft_log.last_index();
        match message.into_raft(last) {
            Ok(message) => {
                if let Err(error) = self.raw.step(message) {
                    tracing::debug!(%error, "a message was not stepped");
                }
            }
            Err(error) => tracing::warn!(%error, "a message of another member was refused"),
        }
    }

    fn propose(
        &mut self,
        proposals: Vec<Proposal>,
        out: &mut impl FnMut(Output),
    ) -> Result<(), MemberError> {
        if self.raw.raft.state != StateRole::Leader {
            for proposal in proposals {
                out(Output::Answer(proposal.id, Err(NotProposed::NotLeader)));
            }
            return Ok(());
        }
        let mut chunk = Vec::new();
        let mut ids = Vec::new();
        let mut bytes = 0;
        for proposal in proposals {
            let encoded = state_codec::encode(&proposal)?;
            if bytes + encoded.len() > limits::RAFT_ENTRY_BYTES_MAX && !chunk.is_empty() {
                self.append(std::mem::take(&mut chunk), std::mem::take(&mut ids), out)?;
                bytes = 0;
            }
            bytes += encoded.len();
            chunk.push(encoded);
            ids.push(proposal.id);
        }
        if !chunk.is_empty() {
            self.append(chunk, ids, out)?;
        }
        Ok(())
    }

    fn append(
        &mut self,
        chunk: Vec<Vec<u8>>,
        ids: Vec<ProposalId>,
        out: &mut impl FnMut(Output),
    ) -> Result<(), MemberError> {
        let data = encode_proposals(&chunk)?;
        match self.raw.propose(Vec::new(), data) {
            Ok(()) => {
                for id in ids {
                    self.waiting.insert(id, ());
                    if planted::is(Bug::AnswerByPosition) {
                        self.waiting_order.push_back(id);
                    }
                }
            }
            // Leadership is being handed over, or too much is uncommitted.
            Err(_) => {
                for id in ids {
                    out(Output::Answer(id, Err(NotProposed::Busy)));
                }
            }
        }
        Ok(())
    }

    /// raft-rs draws election timeouts from a global generator; ours are a function of what is known,
    /// the same in every replay.
    fn set_election_timeout(&mut self) {
        let base = limits::RAFT_ELECTION_TICKS;
        let window = self.ticks / (2 * base as u64);
        let mut hash = self.config.seed ^ self.config.id.rotate_left(32);
        for value in [self.raw.raft.term, window] {
            hash = mix(hash ^ value);
        }
        let timeout = base + (hash % base as u64) as usize;
        self.raw.raft.set_randomized_election_timeout(timeout);
    }

    fn drain(&mut self, out: &mut impl FnMut(Output)) -> Result<(), MemberError> {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            let changes = |entries: &[Entry]| {
                let mut kinds = entries.iter().map(Entry::get_entry_type);
                kinds.any(|kind| kind != EntryType::EntryNormal)
            };
            // That the members changed is told once this member will not forget it.
            let mut late = Vec::new();
            match changes(ready.committed_entries()) {
                true => late = ready.take_messages(),
                false => self.send(ready.take_messages(), out),
            }
            if ready.snapshot().get_metadata().index != 0 {
                self.install(out)?;
            }
            let hard = ready.hs().cloned();
            if let Some(hard) = &hard {
                let ballot = &mut self.raw.mut_store().ballot;
                *ballot = Ballot {
                    term: hard.term,
                    vote: hard.vote,
                    commit: hard.commit,
                };
            }
            let entries = ready.take_entries();
            if planted::is(Bug::AckBeforeSync) {
                self.send(ready.take_persisted_messages(), out);
            }
            if ready.must_sync() {
                self.write(entries)?;
            } else if hard.is_some() {
                // What only moves the commit index forward goes with the next record that is written:
                // a restart that forgets it learns it again.
                self.wal.note(self.raw.store().ballot);
            }
            self.send(ready.take_persisted_messages(), out);
            for read in ready.take_read_states() {
                self.read_ready(&read.request_ctx, read.index, out);
            }
            // Applied after raft-rs knows what is on disk: an entry that removes this leader takes its
            // own progress away, and raft-rs counts a leader's writes in there.
            let committed = ready.take_committed_entries();
            let mut light = self.raw.advance_append(ready);
            if let Some(commit) = light.commit_index() {
                self.raw.mut_store().ballot.commit = commit;
            }
            late.extend(light.take_messages());
            self.apply(committed, out)?;
            self.apply(light.take_committed_entries(), out)?;
            self.send(late, out);
            self.raw.advance_apply();
        }
        Ok(())
    }

    fn write(&mut self, entries: Vec<Entry>) -> Result<(), MemberError> {
        let mut ballot = self.raw.store().ballot;
        if planted::is(Bug::LoseHardState) {
            ballot = self.ballot_written;
        }
        let batch = Batch {
            ballot: Some(ballot),
            entries: entries.iter().map(log_entry).collect(),
        };
        self.wal.append(&batch)?;
        self.ballot_written = ballot;
        self.raw.mut_store().append(entries);
        Ok(())
    }

    fn send(&mut self, messages: Vec<raft::eraftpb::Message>, out: &mut impl FnMut(Output)) {
        for message in messages {
            let Some(message) = PeerMessage::from_raft(message) else {
                continue;
            };
            // raft-rs passes a read on that came to a leader of before. Peers take nothing in another
            // one's name; whoever reads asks again.
            if message.from != self.config.id {
                continue;
            }
            if message.snapshot.is_none() {
                out(Output::Send(message));
                continue;
            }
            match &self.current {
                Some(file) if Some(&file.meta) == message.snapshot.as_ref() => {
                    let file = file.clone();
                    self.wal.hold(&file.file);
                    self.sending.insert(message.to, file.clone());
                    out(Output::SendSnapshot { message, file });
                }
                _ => self
                    .raw
                    .report_snapshot(message.to, SnapshotStatus::Failure),
            }
        }
    }

    fn install(&mut self, out: &mut impl FnMut(Output)) -> Result<(), MemberError> {
        // raft-rs only restores the snapshot that was stepped into it, and that came with its state.
        let Some((file, state)) = self.arriving.take() else {
            return Err(RaftCodecError::Invalid("a snapshot without its state".into()).into());
        };
        let meta = file.meta.clone();
        self.raw.mut_store().install(meta.clone());
        let ballot = self.raw.store().ballot;
        self.wal.install(file.clone(), ballot)?;
        self.ballot_written = ballot;
        self.current = Some(file);
        self.state = *state;
        self.members = meta.members;
        self.applied = meta.index;
        out(Output::Installed);
        Ok(())
    }

    /// Not while this member writes one of its own: that may be the same one, under the same name, and the
    /// log is about to name it. What is left then goes at the next start.
    fn drop_arriving(&mut self) {
        if let Some((file, _)) = self.arriving.take()
            && self.current.as_ref() != Some(&file)
            && !self.writing_snapshot
        {
            self.discard(&file);
        }
    }

    /// A file that is left only takes room.
    fn discard(&mut self, file: &SnapshotRef) {
        if let Err(error) = self.wal.disk_mut().remove(&file.file) {
            tracing::warn!(%error, file = file.file, "an unwanted snapshot was not removed");
        }
    }

    fn read_ready(&mut self, context: &[u8], index: Index, out: &mut impl FnMut(Output)) {
        // A read is given out once its index is applied; raft-rs has applied it by then on a leader,
        // and a follower is told of an index it may not hold yet.
        let Some((_, id)) = context.split_last_chunk::<8>() else {
            return;
        };
        let id = ReadId(u64::from_le_bytes(*id));
        if context == self.read_name(id) {
            self.reads.push((index, id));
            self.give_reads(out);
        }
    }

    /// A read as the group knows it. Another start of this member counts its reads from the beginning
    /// again, and an answer to one of before must not be taken for one of now.
    fn read_name(&self, ReadId(id): ReadId) -> Vec<u8> {
        let start = match planted::is(Bug::ReadNameReused) {
            true => 0,
            false => mix(self.config.seed),
        };
        [self.config.id, start, id].map(u64::to_le_bytes).concat()
    }

    fn give_reads(&mut self, out: &mut impl FnMut(Output)) {
        let applied = self.applied;
        self.reads.retain(|(index, id)| {
            let ready = *index <= applied;
            if ready {
                out(Output::ReadReady(*id));
            }
            !ready
        });
    }

    fn apply(
        &mut self,
        entries: Vec<Entry>,
        out: &mut impl FnMut(Output),
    ) -> Result<(), MemberError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut effects = Vec::new();
        let mut changed = false;
        for entry in entries {
            let entry = log_entry(&entry);
            let index = entry.index;
            let unreadable = |source| MemberError::Entry { index, source };
            if planted::is(Bug::SnapshotWithoutLastEntry) {
                self.state_before = self.state.clone();
            }
            match entry.kind {
                super::types::EntryKind::Commands => {
                    for proposal in decode_proposals(&entry.data).map_err(unreadable)? {
                        let applied = apply(&mut self.state, &proposal);
                        effects.extend(applied.effects);
                        self.answer(proposal.id, applied.outcome, index, out);
                    }
                }
                super::types::EntryKind::Members => {
                    let changes = decode_changes(&entry.data).map_err(unreadable)?;
                    let conf = self.raw.apply_conf_change(&conf_change(&changes))?;
                    self.members = membership(&conf);
                    effects.push(Effect::Members);
                    changed = true;
                }
            }
            self.applied = index;
        }
        if changed {
            self.keep_commit()?;
        }
        if !effects.is_empty() {
            out(Output::Effects(effects));
        }
        self.give_reads(out);
        Ok(())
    }

    /// Commit indices are forgotten by a restart and learned again, but for this one: who forgot that the
    /// members changed would ask the old ones for their votes, and they may be gone for good.
    fn keep_commit(&mut self) -> Result<(), MemberError> {
        let mut ballot = self.raw.store().ballot;
        ballot.commit = ballot.commit.max(self.applied);
        self.raw.mut_store().ballot = ballot;
        if planted::is(Bug::ForgetMembers) {
            return Ok(());
        }
        self.wal.append(&Batch {
            ballot: Some(ballot),
            entries: Vec::new(),
        })?;
        self.ballot_written = ballot;
        Ok(())
    }

    fn answer(
        &mut self,
        id: ProposalId,
        outcome: Outcome,
        index: Index,
        out: &mut impl FnMut(Output),
    ) {
        let id = match planted::is(Bug::AnswerByPosition) {
            true => match self.waiting_order.pop_front() {
                Some(first) => first,
                None => return,
            },
            false => id,
        };
        if self.waiting.remove(&id).is_some() {
            out(Output::Answer(id, Ok(Answered { outcome, index })));
        }
    }

    fn counts_among_members(&self) -> bool {
        let id = &self.config.id;
        let m = &self.members;
        m.voters.contains(id) || m.learners.contains(id) || m.voters_outgoing.contains(id)
    }

    /// Tells those who wait for a leader that lost its office.
    fn look_at_office(&mut self, out: &mut impl FnMut(Output)) {
        let raft = &self.raw.raft;
        let office = Office {
            term: raft.term,
            leader: raft.leader_id,
            leads: raft.state == StateRole::Leader && raft.apply_to_current_term(),
        };
        // What an earlier term's leader took may or may not survive, even if it leads again.
        let lost = raft.state != StateRole::Leader || raft.term != self.office.term;
        if lost && !self.waiting.is_empty() {
            self.waiting_order.clear();
            let why = match planted::is(Bug::DoubtDenied) {
                true => NotProposed::NotLeader,
                false => NotProposed::InDoubt,
            };
            for id in std::mem::take(&mut self.waiting).into_keys() {
                out(Output::Answer(id, Err(why)));
            }
        }
        self.office = office;
    }

    fn maybe_snapshot(&mut self, out: &mut impl FnMut(Output)) {
        let wanted = self.raw.store().take_wanted()
            || self.wal.bytes_since_checkpoint() >= self.config.snapshot_log_bytes;
        let newest = self.raw.store().snapshot_meta().index;
        if !wanted || self.writing_snapshot || self.applied <= newest {
            return;
        }
        let Some(term) = self.raw.store().term_of(self.applied) else {
            return;
        };
        let meta = SnapshotMeta {
            index: self.applied,
            term,
            members: self.members.clone(),
        };
        self.writing_snapshot = true;
        let state = match planted::is(Bug::SnapshotWithoutLastEntry) {
            true => self.state_before.clone(),
            false => self.state.clone(),
        };
        out(Output::WriteSnapshot(meta, Box::new(state)));
    }

    fn checkpoint(&mut self, file: SnapshotRef) -> Result<(), MemberError> {
        let meta = file.meta.clone();
        if meta.index <= self.raw.store().snapshot_meta().index {
            // A newer one was installed meanwhile.
            if self.current.as_ref() != Some(&file) {
                self.discard(&file);
            }
            return Ok(());
        }
        // A snapshot that is on its way to somebody is followed by the entries after it.
        let sending = self.raw.raft.prs().iter().filter_map(|(_, progress)| {
            (progress.state == ProgressState::Snapshot).then_some(progress.pending_snapshot + 1)
        });
        let keep_from = sending.min().unwrap_or(Index::MAX);
        let keep_bytes = self.config.keep_log_bytes;
        self.raw.mut_store().compact(meta, keep_bytes, keep_from);
        let first = self.raw.store().first();
        self.wal.checkpoint(file.clone(), first)?;
        self.current = Some(file);
        Ok(())
    }

    /// The leader makes the members what the state says they should be.
    fn adjust_members(&mut self) -> Result<(), MemberError> {
        if !self.office.leads || self.raw.raft.has_pending_conf() {
            return Ok(());
        }
        let last = self.raw.raft.raft_log.last_index();
        let caught_up = |id: MemberId| {
            self.raw.raft.prs().get(id).is_some_and(|p| {
                p.recent_active && p.matched + limits::RAFT_LEARNER_LAG_MAX >= last
            })
        };
        let Some(mut changes) = roster::next_changes(&self.state, &self.members, caught_up) else {
            return Ok(());
        };
        let own = MemberChange::Remove(self.config.id);
        if changes.contains(&own) {
            // Whoever leads next removes this one; where nobody stays that could, the others come first.
            if let Some(heir) = self.heir() {
                self.raw.transfer_leader(heir);
                return Ok(());
            }
            changes.retain(|change| *change != own);
            if changes.is_empty() {
                return Ok(());
            }
        }
        tracing::info!(?changes, "changing the group's members");
        let context = encode_changes(&changes)?;
        if let Err(error) = self.raw.propose_conf_change(context, conf_change(&changes)) {
            tracing::debug!(%error, "a change of the members has to wait");
        }
        Ok(())
    }

    /// The voter that is furthest and lives.
    fn heir(&self) -> Option<MemberId> {
        if self.raw.raft.state != StateRole::Leader {
            return None;
        }
        let voters = &self.members.voters;
        let removed = |id: MemberId| roster::is_removed(&self.state, id);
        let others = self.raw.raft.prs().iter().filter(|(id, progress)| {
            **id != self.config.id
                && voters.contains(id)
                && progress.recent_active
                && !removed(**id)
        });
        let best = others.max_by_key(|(id, progress)| (progress.matched, **id));
        best.map(|(id, _)| *id)
    }

    pub fn id(&self) -> MemberId {
        self.config.id
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// The newest entry that is in the state.
    pub fn applied(&self) -> Index {
        self.applied
    }

    pub fn office(&self) -> Office {
        self.office
    }

    pub fn members(&self) -> &Membership {
        &self.members
    }

    /// Term of an entry that this member holds.
    pub fn term_of(&self, index: Index) -> Option<Term> {
        self.raw.store().term_of(index)
    }

    /// An entry that this member holds, for the simulator.
    #[cfg(feature = "planted-bugs")]
    pub fn entry(&self, index: Index) -> Option<super::types::LogEntry> {
        self.raw.store().entry(index).map(log_entry)
    }

    /// Whether raft-rs calls this member a leader, with or without its first entry committed.
    pub fn is_elected(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub fn status(&self) -> MemberStatus {
        let raft = &self.raw.raft;
        let mut followers: Vec<Follower> = match raft.state {
            StateRole::Leader => raft
                .prs()
                .iter()
                .filter(|(id, _)| **id != self.config.id)
                .map(|(id, progress)| Follower {
                    id: *id,
                    matched: progress.matched,
                    // raft-rs's own mark is taken back at each of its looks.
                    active: self.heard_lately(*id),
                    receives_snapshot: progress.state == ProgressState::Snapshot,
                })
                .collect(),
            _ => Vec::new(),
        };
        followers.sort_by_key(|f| f.id);
        MemberStatus {
            id: self.config.id,
            office: self.office,
            first: self.raw.store().first(),
            last: raft.raft_log.last_index(),
            commit: raft.raft_log.committed,
            applied: self.applied,
            snapshot: self.raw.store().snapshot_meta().index,
            members: self.members.clone(),
            followers,
        }
    }

    fn heard_lately(&self, id: MemberId) -> bool {
        let patience = limits::RAFT_ELECTION_TICKS as u64;
        let at = self.heard.get(&id);
        at.is_some_and(|at| at + patience >= self.ticks)
    }

    /// The disk, for the writer of snapshots.
    pub fn disk(&self) -> &D {
        self.wal.disk()
    }

    pub fn disk_mut(&mut self) -> &mut D {
        self.wal.disk_mut()
    }
}

/// Finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
