//! What a node does for one request of a client: `Group::propose_as` and `Group::read_barrier` of
//! `coordinator/src/raft/group.rs`, as a state machine. Keep them alike.

use std::rc::Rc;
use trireme_coordinator::raft::member::Answered;
use trireme_coordinator::raft::types::{Index, MemberId};
use trireme_coordinator::state::Proposal;

/// Names one call in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// One try of a call; what belongs to an earlier one is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt(pub u64);

#[derive(Clone)]
pub enum Asked {
    Write(Rc<Proposal>),
    /// A linearizable read: everything up to `floor` was acknowledged before it began.
    Read {
        floor: Index,
    },
}

/// Where a call is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody took it; tried again soon.
    Waiting,
    /// In this node's member.
    Here,
    /// On its way to that member and back.
    Away(MemberId),
    /// Applied; the answer waits for this node's replica.
    Certain(Answered),
}

pub struct Call {
    pub client: usize,
    pub asked: Asked,
    pub attempt: Attempt,
    pub phase: Phase,
    /// It may have entered a log.
    pub sent: bool,
    /// `sent` before the try that is under way.
    pub sent_before: bool,
    /// Who was last said to lead by somebody else.
    pub hint: Option<MemberId>,
}

impl Call {
    pub fn new(client: usize, asked: Asked) -> Self {
        Self {
            client,
            asked,
            attempt: Attempt(0),
            phase: Phase::Waiting,
            sent: false,
            sent_before: false,
            hint: None,
        }
    }

    /// Begins the next try.
    pub fn next(&mut self, phase: Phase) -> Attempt {
        self.attempt.0 += 1;
        self.sent_before = self.sent;
        self.sent |= matches!(phase, Phase::Here | Phase::Away(_));
        self.phase = phase;
        self.attempt
    }

    /// The try under way is known to have entered no log.
    pub fn refused(&mut self) {
        self.sent = self.sent_before;
        self.phase = Phase::Waiting;
    }
}

/// What a client hears.
#[derive(Clone, Debug)]
pub enum Heard {
    Applied(Answered),
    /// The read may look at the node's state now.
    Read,
    /// Nothing was changed.
    NoLeader,
    InDoubt,
    /// The node is down, or went down with the call.
    Gone,
}
