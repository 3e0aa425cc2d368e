//! Calls of clients at a node, tried until their deadline (`call` is what one call knows).

use crate::call::{Asked, Attempt, Call, CallId, Heard, Phase};
use crate::invariants::Checked;
use crate::node::{Answer, Asker, Job};
use crate::traffic::Packet;
use crate::world::{Event, World};
use std::time::Duration;
use trireme_coordinator::raft::member::NotProposed;
use trireme_coordinator::raft::types::MemberId;
use trireme_shared::limits;

impl World {
    /// A client asks a node. It hears `Gone` at once where that is down.
    pub fn call(&mut self, id: MemberId, client: usize, call: CallId, asked: Asked) -> Checked {
        let patience = match asked {
            // Shorter than they are, so that calls also end without an answer.
            _ if self.chance.happens(400) => self.chance.millis(50, 2_000),
            Asked::Write(_) => limits::PROPOSE_DEADLINE,
            Asked::Read { .. } => limits::READ_BARRIER_DEADLINE,
        };
        let deadline = self.now + patience;
        let Some(process) = self.running(id) else {
            return self.hear(client, id, Heard::Gone);
        };
        process.calls.insert(call, Call::new(client, asked));
        self.at(deadline, Event::Expire(id, call));
        self.try_call(id, call, Attempt(0))
    }

    pub fn try_call(&mut self, id: MemberId, call_id: CallId, attempt: Attempt) -> Checked {
        let candidates = self.candidates(id);
        let chosen = self.chance.pick(&candidates);
        let Some(process) = self.running(id) else {
            return Ok(());
        };
        let leader = process.office.leader;
        let Some(call) = process
            .calls
            .get_mut(&call_id)
            .filter(|c| c.attempt == attempt)
        else {
            return Ok(());
        };
        let proposal = match (&call.asked, &call.phase) {
            (_, Phase::Certain(_)) => return Ok(()),
            (Asked::Read { .. }, _) => {
                let attempt = call.next(Phase::Here);
                self.queue_job(id, Job::Read(call_id, attempt));
                let retry = limits::READ_RETRY_INTERVAL;
                self.after(retry, Event::Try(id, call_id, attempt));
                return Ok(());
            }
            (Asked::Write(proposal), Phase::Waiting | Phase::Away(_)) => proposal.clone(),
            // An answer will come of it.
            (Asked::Write(_), Phase::Here) => return Ok(()),
        };
        if matches!(call.phase, Phase::Away(_)) {
            // Nothing came back in time.
            call.phase = Phase::Waiting;
            return self.again(id, call_id, limits::PROPOSE_RETRY_INTERVAL);
        }
        if leader == id {
            let attempt = call.next(Phase::Here);
            self.queue_job(id, Job::Propose(proposal, Asker::Here(call_id, attempt)));
            return Ok(());
        }
        let known = (leader != 0).then_some(leader).or(call.hint.take());
        let Some(to) = known.filter(|to| *to != id).or(chosen) else {
            return self.again(id, call_id, limits::PROPOSE_RETRY_INTERVAL);
        };
        let attempt = call.next(Phase::Away(to));
        let reached = self.nodes.get(&to).is_some_and(|n| n.process.is_some())
            && !self.network.is_cut(id, to)
            && !self.network.is_cut(to, id);
        if !reached && self.chance.happens(800) {
            // There was no connection, and none could be made.
            if let Some(call) = self.running(id).and_then(|p| p.calls.get_mut(&call_id)) {
                call.refused();
            }
            return self.again(id, call_id, limits::PROPOSE_RETRY_INTERVAL);
        }
        self.send(
            id,
            to,
            Duration::ZERO,
            &Packet::Forward(call_id, attempt, proposal),
        );
        self.after(limits::FORWARD_DEADLINE, Event::Try(id, call_id, attempt));
        Ok(())
    }

    /// Members that may know more: those of this node's state, or those that let it in.
    fn candidates(&self, id: MemberId) -> Vec<MemberId> {
        let process = self.nodes.get(&id).and_then(|n| n.process.as_ref());
        let known = process.map(|p| p.member.state().coordinators().map(|c| u64::from(c.id.0)));
        let mut all: Vec<MemberId> = known.map(Iterator::collect).unwrap_or_default();
        if all.is_empty() {
            all = self.nodes.keys().copied().collect();
        }
        all.retain(|other| *other != id);
        all
    }

    fn again(&mut self, id: MemberId, call: CallId, pause: Duration) -> Checked {
        let known = self.running(id).and_then(|p| p.calls.get(&call));
        if let Some(attempt) = known.map(|c| c.attempt) {
            self.after(pause, Event::Try(id, call, attempt));
        }
        Ok(())
    }

    /// An answer came for a call at this node, from its own member or (`leader`) another one.
    pub fn answered(
        &mut self,
        id: MemberId,
        call_id: CallId,
        attempt: Attempt,
        answer: Answer,
        leader: Option<MemberId>,
    ) -> Checked {
        let Some(process) = self.running(id) else {
            return Ok(());
        };
        let applied = process.member.applied();
        let Some(call) = process
            .calls
            .get_mut(&call_id)
            .filter(|c| c.attempt == attempt)
        else {
            return Ok(());
        };
        match (&call.phase, leader) {
            (Phase::Here, None) | (Phase::Away(_), Some(_)) => {}
            _ => return Ok(()),
        }
        match answer {
            Ok(answered) if answered.index <= applied => {
                self.finish(id, call_id, Heard::Applied(answered))
            }
            Ok(answered) => {
                call.next(Phase::Certain(answered));
                Ok(())
            }
            Err(NotProposed::NotLeader | NotProposed::Busy) => {
                call.refused();
                call.hint = leader.filter(|leader| *leader != 0);
                self.again(id, call_id, limits::PROPOSE_RETRY_INTERVAL)
            }
            Err(NotProposed::InDoubt) => {
                call.phase = Phase::Waiting;
                self.again(id, call_id, limits::PROPOSE_RETRY_INTERVAL)
            }
        }
    }

    /// What waits for a leader or for this replica looks again.
    pub fn after_turn(&mut self, id: MemberId, leader_changed: bool) -> Checked {
        let Some(process) = self.running(id) else {
            return Ok(());
        };
        let applied = process.member.applied();
        let (mut certain, mut tried) = (Vec::new(), Vec::new());
        for (call_id, call) in &mut process.calls {
            match &call.phase {
                Phase::Certain(answered) if answered.index <= applied => {
                    certain.push((*call_id, answered.clone()));
                }
                Phase::Waiting | Phase::Away(_)
                    if leader_changed && matches!(call.asked, Asked::Write(_)) =>
                {
                    call.phase = Phase::Waiting;
                    call.attempt.0 += 1;
                    tried.push((*call_id, call.attempt));
                }
                _ => {}
            }
        }
        for (call, answered) in certain {
            self.finish(id, call, Heard::Applied(answered))?;
        }
        for (call, attempt) in tried {
            self.after(Duration::from_micros(50), Event::Try(id, call, attempt));
        }
        Ok(())
    }

    pub fn read_ready(&mut self, id: MemberId, call: CallId, attempt: Attempt) -> Checked {
        let Some(process) = self.running(id) else {
            return Ok(());
        };
        if process
            .calls
            .get(&call)
            .is_some_and(|c| c.attempt == attempt)
        {
            return self.finish(id, call, Heard::Read);
        }
        Ok(())
    }

    pub fn expire(&mut self, id: MemberId, call_id: CallId) -> Checked {
        let known = self.running(id).and_then(|p| p.calls.get(&call_id));
        let heard = match known {
            None => return Ok(()),
            Some(call) => match &call.phase {
                // A replica that lags that far has its own trouble; the outcome is certain.
                Phase::Certain(answered) => Heard::Applied(answered.clone()),
                _ if call.sent => Heard::InDoubt,
                _ => Heard::NoLeader,
            },
        };
        self.finish(id, call_id, heard)
    }

    /// The client has closed its connection; what it asked for goes on.
    pub fn hang_up(&mut self, id: MemberId, call: CallId) -> Checked {
        self.finish(id, call, Heard::Gone)
    }

    fn finish(&mut self, id: MemberId, call: CallId, heard: Heard) -> Checked {
        let call = self.running(id).and_then(|p| p.calls.remove(&call));
        match call {
            Some(call) => self.hear(call.client, id, heard),
            None => Ok(()),
        }
    }
}
