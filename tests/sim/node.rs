//! A node: its disk and its clock, which outlive its processes, and the process that runs at the
//! moment: a `Member` and what `Thread` of `coordinator/src/raft/group.rs` keeps around it. Keep
//! them alike.

use crate::call::{Attempt, Call, CallId};
use crate::chance::Chance;
use crate::disk::SimDisk;
use crate::world::{Moment, TransferId};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use trireme_coordinator::raft::member::{
    Answered, Input, Member, MemberConfig, MemberError, NotProposed, Office, Output, ReadId,
};
use trireme_coordinator::raft::snapshots;
use trireme_coordinator::raft::storage::{
    LogId, SnapshotReceiver, SnapshotRef, SnapshotWriter, Wal,
};
use trireme_coordinator::raft::types::{MemberId, SnapshotMeta};
use trireme_coordinator::state::codec::write_state;
use trireme_coordinator::state::{Proposal, ProposalId, State};
use trireme_shared::limits;

/// Small, so that snapshots, their transfer and the log's compaction happen all the time.
const SNAPSHOT_LOG_BYTES: u64 = 24 << 10;
const KEEP_LOG_BYTES: usize = 8 << 10;
const SEGMENT_BYTES: u64 = 8 << 10;

/// What a turn of the member's thread costs besides the disk.
const TURN: Duration = Duration::from_micros(20);

pub struct Node {
    pub id: MemberId,
    pub disk: SimDisk,
    log: LogId,
    seed: u64,
    /// Counts starts; what belongs to an earlier life is void.
    pub life: u64,
    pub process: Option<Process>,
    /// What its wall clock is off by, milliseconds.
    pub clock_ms: i64,
    /// It learned that it is no member any more, and never starts again.
    pub retired: bool,
}

pub struct Process {
    pub member: Member<SimDisk>,
    pub inbox: Vec<Job>,
    pub wake_at: Option<Moment>,
    pub busy_until: Moment,
    next_tick: Moment,
    answers: BTreeMap<ProposalId, Vec<Asker>>,
    reads: BTreeMap<ReadId, Vec<(CallId, Attempt)>>,
    last_read: u64,
    pub calls: BTreeMap<CallId, Call>,
    pub writing: Option<Writing>,
    pub receiving: BTreeMap<TransferId, SnapshotReceiver<SimDisk>>,
    /// Who leads, as its readers know.
    pub office: Office,
}

/// A snapshot on its way to the disk, in a thread of its own.
#[allow(clippy::large_enum_variant, reason = "a handful live at a time")]
pub enum Writing {
    Asked(SnapshotMeta, Box<State>),
    Half(SnapshotWriter<SimDisk>),
}

#[allow(clippy::large_enum_variant, reason = "a handful live at a time")]
pub enum Job {
    Input(Input),
    Propose(Rc<Proposal>, Asker),
    Read(CallId, Attempt),
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    Here(CallId, Attempt),
    Peer(MemberId, CallId, Attempt),
}

pub type Answer = Result<Answered, NotProposed>;

/// What came of one turn.
pub struct Turn {
    /// Each with the time it took to come to it.
    pub outputs: Vec<(Duration, Output)>,
    pub spent: Duration,
    pub result: Result<(), MemberError>,
}

impl Node {
    pub fn new(id: MemberId, disk: SimDisk, chance: &mut Chance) -> Self {
        Self {
            id,
            disk,
            log: LogId(chance.bytes()),
            seed: chance.next(),
            life: 0,
            process: None,
            clock_ms: 0,
            retired: false,
        }
    }

    /// Writes what the founder of a group starts from.
    pub fn found(&self, state: &State) -> Result<(), MemberError> {
        let (mut wal, _) = Wal::open_with(self.disk.clone(), self.log, SEGMENT_BYTES)?;
        Member::found(&mut wal, &[self.id], state)
    }

    /// Starts a process on what the disk holds.
    pub fn start(&mut self, now: Moment, chance: &mut Chance) -> Result<(), MemberError> {
        self.life += 1;
        let (wal, recovered) = Wal::open_with(self.disk.clone(), self.log, SEGMENT_BYTES)?;
        let state = match &recovered.snapshot {
            Some(file) => snapshots::read(&self.disk, file)?,
            None => State::default(),
        };
        let config = MemberConfig {
            id: self.id,
            seed: self.seed ^ self.life,
            snapshot_log_bytes: SNAPSHOT_LOG_BYTES,
            keep_log_bytes: KEEP_LOG_BYTES,
        };
        let member = Member::new(config, wal, recovered, state)?;
        self.process = Some(Process {
            office: member.office(),
            member,
            inbox: Vec::new(),
            wake_at: None,
            busy_until: now,
            next_tick: now + chance.micros(0, limits::RAFT_TICK.as_micros() as u64),
            answers: BTreeMap::new(),
            reads: BTreeMap::new(),
            last_read: 0,
            calls: BTreeMap::new(),
            writing: None,
            receiving: BTreeMap::new(),
        });
        Ok(())
    }
}

impl Process {
    /// When it next has something to do.
    pub fn due(&self, now: Moment) -> Moment {
        let wanted = match self.inbox.is_empty() {
            true => self.next_tick,
            false => now,
        };
        wanted.max(self.busy_until).max(now)
    }

    /// One step of the member with all that waits.
    pub fn turn(&mut self, disk: &SimDisk, now: Moment, first: bool) -> Turn {
        let inputs = self.sort(now);
        disk.start();
        let mut outputs = Vec::new();
        let mut out = |output| outputs.push((disk.spent(), output));
        let mut result = Ok(());
        if first {
            result = self.member.campaign_if_alone(&mut out);
        }
        if result.is_ok() {
            result = self.member.step(inputs, &mut out);
        }
        let spent = disk.spent() + TURN;
        self.busy_until = now + spent;
        self.office = self.member.office();
        Turn {
            outputs,
            spent,
            result,
        }
    }

    fn sort(&mut self, now: Moment) -> Vec<Input> {
        let (mut inputs, mut proposals, mut readers) = (Vec::new(), Vec::new(), Vec::new());
        if now >= self.next_tick {
            // After a pause one tick is enough, as in `Thread::serve`.
            self.next_tick = now + limits::RAFT_TICK;
            inputs.push(Input::Tick);
        }
        for job in std::mem::take(&mut self.inbox) {
            match job {
                Job::Input(input) => inputs.push(input),
                Job::Propose(proposal, asker) => {
                    let waiting = self.answers.entry(proposal.id).or_default();
                    if waiting.is_empty() {
                        proposals.push(Proposal::clone(&proposal));
                    }
                    waiting.push(asker);
                }
                Job::Read(call, attempt) => readers.push((call, attempt)),
            }
        }
        if !readers.is_empty() {
            self.last_read += 1;
            let id = ReadId(self.last_read);
            let calls = &self.calls;
            self.reads.retain(|_, waiting| {
                let live = |(call, attempt): &(CallId, Attempt)| {
                    calls.get(call).is_some_and(|c| c.attempt == *attempt)
                };
                waiting.iter().any(live)
            });
            self.reads.insert(id, readers);
            inputs.push(Input::Read(id));
        }
        if !proposals.is_empty() {
            inputs.push(Input::Propose(proposals));
        }
        inputs
    }

    pub fn askers(&mut self, id: ProposalId) -> Vec<Asker> {
        self.answers.remove(&id).unwrap_or_default()
    }

    pub fn readers(&mut self, id: ReadId) -> Vec<(CallId, Attempt)> {
        self.reads.remove(&id).unwrap_or_default()
    }

    /// Goes on with the snapshot that is being written; gives what to tell the member at its end.
    pub fn write_snapshot(&mut self, disk: &SimDisk) -> Option<Option<SnapshotRef>> {
        match self.writing.take()? {
            Writing::Asked(meta, state) => {
                // `snapshots::write`, but with time between its halves.
                let writer = SnapshotWriter::create(disk.clone(), meta);
                let written = writer.ok().and_then(|mut writer| {
                    let written = write_state(&state, &mut writer);
                    written.ok().map(|()| writer)
                });
                let Some(writer) = written else {
                    return Some(None);
                };
                self.writing = Some(Writing::Half(writer));
                None
            }
            Writing::Half(writer) => Some(writer.finish().ok()),
        }
    }
}
