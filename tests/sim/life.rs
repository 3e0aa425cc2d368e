//! The life of nodes in the world: their processes start, take turns, answer, and end.

use crate::call::Heard;
use crate::invariants::{Checked, violation};
use crate::node::{Answer, Asker, Writing};
use crate::told;
use crate::world::{Event, World};
use trireme_coordinator::raft::member::{Input, Output, ReadId};
use trireme_coordinator::raft::types::MemberId;
use trireme_coordinator::state::ProposalId;

impl World {
    /// Starts a node's process; where its disk does not let it, it is tried again later.
    pub fn start(&mut self, id: MemberId) -> Checked {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else {
            return Ok(());
        };
        if node.retired || node.process.is_some() {
            return Ok(());
        }
        if let Err(error) = node.start(now, &mut self.chance) {
            if !node.disk.faulty.get() {
                return violation(format!("coordinator {id} does not start: {error}"));
            }
            told!(self, "{id} does not start: {error}");
            self.power(id);
            let pause = self.chance.millis(100, 1_000);
            self.after(pause, Event::Restart(id));
            return Ok(());
        }
        told!(self, "{id} starts, life {}", node.life);
        if let Some(process) = &node.process {
            self.oracle.started(&process.member)?;
        }
        self.turn(id, true)
    }

    pub fn turn(&mut self, id: MemberId, first: bool) -> Checked {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else {
            return Ok(());
        };
        let (disk, life) = (node.disk.clone(), node.life);
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        process.wake_at = None;
        let (before, old) = (process.member.applied(), process.office);
        let turn = process.turn(&disk, now, first);
        let office = process.office;
        let (mut answers, mut reads) = (Vec::new(), Vec::new());
        let (mut installed, mut removed) = (false, false);
        for (after, output) in turn.outputs {
            match output {
                Output::Send(message) if message.from != id => {
                    let from = message.from;
                    return violation(format!("member {id} speaks in the name of {from}"));
                }
                Output::Send(message) => self.send_raft(message, after)?,
                Output::SendSnapshot { message, file } => self.send_snapshot(message, file)?,
                Output::Answer(id, answer) => answers.push((id, answer)),
                Output::ReadReady(id) => reads.push(id),
                Output::Effects(_) => {}
                Output::Installed => installed = true,
                Output::WriteSnapshot(meta, state) => {
                    let pause = after + self.chance.millis(1, 80);
                    if let Some(process) = self.running(id) {
                        process.writing = Some(Writing::Asked(meta, state));
                    }
                    self.after(pause, Event::WriteSnapshot(id, life));
                }
                Output::Removed => removed = true,
            }
        }
        if let Err(error) = turn.result {
            return self.failed(id, &error.to_string());
        }
        if let Some(process) = self.nodes.get(&id).and_then(|n| n.process.as_ref()) {
            self.oracle.observe(&process.member, before, installed)?;
        }
        self.counts.snapshots_installed += u64::from(installed);
        if office != old {
            told!(
                self,
                "{id} knows term {}, leader {}",
                office.term,
                office.leader
            );
            self.counts.leaders += u64::from(office.leads && !old.leads);
        }
        if !answers.is_empty() || !reads.is_empty() {
            let over = Event::TurnOver {
                node: id,
                life,
                answers,
                reads,
            };
            self.after(turn.spent, over);
        }
        self.after_turn(id, (old.term, old.leader) != (office.term, office.leader))?;
        if removed {
            return self.retire(id);
        }
        self.wake(id);
        Ok(())
    }

    pub fn turn_over(
        &mut self,
        id: MemberId,
        life: u64,
        answers: Vec<(ProposalId, Answer)>,
        reads: Vec<ReadId>,
    ) -> Checked {
        for read in reads {
            let Some(process) = self.process(id, life) else {
                return Ok(());
            };
            for (call, attempt) in process.readers(read) {
                self.read_ready(id, call, attempt)?;
            }
        }
        for (proposal, answer) in answers {
            let Some(process) = self.process(id, life) else {
                return Ok(());
            };
            for asker in process.askers(proposal) {
                match asker {
                    Asker::Here(call, attempt) => {
                        self.answered(id, call, attempt, answer.clone(), None)?;
                    }
                    Asker::Peer(from, call, attempt) => {
                        self.answer_peer(id, from, call, attempt, answer.clone());
                    }
                }
            }
        }
        Ok(())
    }

    /// A member gave an error: its process ends. Only a disk may be the cause.
    fn failed(&mut self, id: MemberId, error: &str) -> Checked {
        told!(self, "{id} fails: {error}");
        let Some(node) = self.nodes.get(&id) else {
            return Ok(());
        };
        if !node.disk.faulty.get() {
            return violation(format!("member {id} failed: {error}"));
        }
        self.die(id, "its disk failed")?;
        self.power(id);
        let pause = self.chance.millis(20, 2_000);
        self.after(pause, Event::Restart(id));
        Ok(())
    }

    /// After a fault of its disk: the machine restarts too, or only the process.
    fn power(&mut self, id: MemberId) {
        let power = self.chance.happens(700);
        if let Some(node) = self.nodes.get(&id) {
            match power {
                true => node.disk.crash(&mut self.chance),
                false => node.disk.heal(),
            }
        }
    }

    /// It learned that it is no member any more: it ends, and never starts again.
    pub fn retire(&mut self, id: MemberId) -> Checked {
        if let Some(node) = self.nodes.get_mut(&id).filter(|n| !n.retired) {
            told!(self, "{id} was removed from the group and ends");
            node.retired = true;
            self.counts.retired += 1;
        }
        self.die(id, "removed")
    }

    /// Ends a node's process on the spot.
    pub fn die(&mut self, id: MemberId, why: &str) -> Checked {
        let process = match self.nodes.get_mut(&id) {
            Some(node) => node.process.take(),
            None => None,
        };
        let Some(process) = process else {
            return Ok(());
        };
        told!(self, "{id} ends: {why}");
        self.counts.crashes += 1;
        for (_, call) in process.calls {
            self.hear(call.client, id, Heard::Gone)?;
        }
        Ok(())
    }

    pub fn write_snapshot(&mut self, id: MemberId, life: u64) {
        let disk = match self.nodes.get(&id) {
            Some(node) => node.disk.clone(),
            None => return,
        };
        let Some(process) = self.process(id, life) else {
            return;
        };
        match process.write_snapshot(&disk) {
            Some(file) => {
                self.counts.snapshots_written += u64::from(file.is_some());
                self.tell(id, Input::SnapshotWritten(file));
            }
            None => {
                let pause = self.chance.millis(1, 100);
                self.after(pause, Event::WriteSnapshot(id, life));
            }
        }
    }
}
