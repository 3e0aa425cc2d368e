//! What goes from node to node: Raft's messages as bytes, forwarded proposals, and snapshots piece by
//! piece (`coordinator/src/raft/peers.rs` and `forward.rs`).

use crate::call::{Attempt, CallId};
use crate::chance::hash_of;
use crate::invariants::{Checked, Violation, violation};
use crate::node::{Answer, Asker, Job};
use crate::told;
use crate::world::{Event, TransferId, World};
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;
use trireme_coordinator::raft::codec::{PeerMessage, decode_message, encode_message};
use trireme_coordinator::raft::member::Input;
use trireme_coordinator::raft::snapshots;
use trireme_coordinator::raft::storage::{SnapshotReceiver, SnapshotRef, SnapshotSource};
use trireme_coordinator::raft::types::MemberId;
use trireme_coordinator::state::Proposal;
use trireme_shared::identity::NodeId;
use trireme_shared::ids::CoordinatorId;

#[derive(Clone)]
pub enum Packet {
    Raft(Rc<[u8]>),
    Forward(CallId, Attempt, Rc<Proposal>),
    /// With who leads, as far as is known there.
    Forwarded(CallId, Attempt, Answer, MemberId),
    /// The next bytes of a snapshot, and whether they are the last.
    Piece(TransferId, usize, bool),
    Taken(TransferId, bool),
}

/// A snapshot on its way.
pub struct Transfer {
    from: MemberId,
    from_life: u64,
    to: MemberId,
    /// The receiving process, from the first piece on.
    to_life: Option<u64>,
    message: PeerMessage,
    file: SnapshotRef,
    pieces: Option<Vec<Vec<u8>>>,
    arrived: usize,
}

/// Nothing came for so long: the connection is dead.
const SILENCE: Duration = Duration::from_millis(2_500);

impl World {
    pub fn send(&mut self, from: MemberId, to: MemberId, after: Duration, packet: &Packet) -> bool {
        let copies = match packet {
            // A stream's bytes come once, in order, or not at all.
            Packet::Raft(_) => self.network.carry(&mut self.chance, from, to),
            _ => self
                .network
                .carry(&mut self.chance, from, to)
                .into_iter()
                .take(1)
                .collect(),
        };
        for delay in &copies {
            let packet = packet.clone();
            self.after(after + *delay, Event::Arrive { from, to, packet });
        }
        !copies.is_empty()
    }

    pub fn send_raft(&mut self, message: PeerMessage, after: Duration) -> Checked {
        self.oracle.said(&message, self.life(message.from))?;
        let bytes = encode_message(&message)
            .map_err(|e| Violation(format!("a message cannot be encoded: {e}")))?;
        self.mark(&[message.from, message.to, hash_of(&bytes)]);
        told!(
            self,
            "{} -> {} {:?} term {} index {} ({} entries) commit {}{}",
            message.from,
            message.to,
            message.kind,
            message.term,
            message.index,
            message.entries.len(),
            message.commit,
            if message.reject { " no" } else { "" }
        );
        self.counts.messages += 1;
        let (from, to) = (message.from, message.to);
        let sent = self.send(from, to, after, &Packet::Raft(bytes.into()));
        if !sent && self.chance.happens(300) {
            let pause = self.chance.millis(1, 200);
            self.after(pause, Event::Broken(from, to));
        }
        Ok(())
    }

    pub fn arrive(&mut self, from: MemberId, to: MemberId, packet: Packet) -> Checked {
        let Some(node) = self.nodes.get_mut(&to) else {
            return Ok(());
        };
        let Some(process) = &mut node.process else {
            if matches!(packet, Packet::Raft(_)) && self.chance.happens(300) {
                self.after(Duration::from_millis(1), Event::Broken(from, to));
            }
            return Ok(());
        };
        // A removed coordinator is refused, as soon as it is no member of the log's group either.
        let peer = u32::try_from(from)
            .map(CoordinatorId)
            .map(NodeId::Coordinator);
        let members = process.member.members();
        let counts = [&members.voters, &members.learners, &members.voters_outgoing]
            .iter()
            .any(|list| list.contains(&from));
        if !counts && peer.is_ok_and(|peer| process.member.state().is_removed(peer)) {
            // It is told so, if it hears.
            if !self.network.is_cut(to, from) && self.chance.happens(300) {
                self.after(Duration::from_millis(1), Event::Expel(from));
            }
            return Ok(());
        }
        match packet {
            Packet::Raft(bytes) => {
                let message = decode_message(&bytes)
                    .map_err(|e| Violation(format!("a message cannot be decoded: {e}")))?;
                self.tell(to, Input::Message(message));
                Ok(())
            }
            Packet::Forward(call, attempt, proposal) => {
                let asker = Asker::Peer(from, call, attempt);
                self.queue_job(to, Job::Propose(proposal, asker));
                Ok(())
            }
            Packet::Forwarded(call, attempt, answer, leader) => {
                self.answered(to, call, attempt, answer, Some(leader))
            }
            Packet::Piece(transfer, piece, last) => self.piece(transfer, piece, last),
            Packet::Taken(transfer, taken) => {
                self.transferred(transfer, taken);
                Ok(())
            }
        }
    }

    pub fn answer_peer(
        &mut self,
        id: MemberId,
        to: MemberId,
        call: CallId,
        attempt: Attempt,
        answer: Answer,
    ) {
        let leader = self.running(id).map_or(0, |p| p.office.leader);
        let packet = Packet::Forwarded(call, attempt, answer, leader);
        self.send(id, to, Duration::ZERO, &packet);
    }

    pub fn send_snapshot(&mut self, message: PeerMessage, file: SnapshotRef) -> Checked {
        self.oracle.said(&message, self.life(message.from))?;
        let id = TransferId(self.next_id());
        told!(
            self,
            "{} -> {} snapshot {}",
            message.from,
            message.to,
            message_index(&message)
        );
        let transfer = Transfer {
            from: message.from,
            from_life: self.life(message.from),
            to: message.to,
            to_life: None,
            message,
            file,
            pieces: None,
            arrived: 0,
        };
        self.transfers.insert(id, transfer);
        // The connection is made.
        let pause = self.chance.millis(0, 30);
        self.after(pause, Event::Transfer(id));
        Ok(())
    }

    /// The sender's next piece.
    pub fn go_on(&mut self, id: TransferId) {
        let Some(transfer) = self.transfers.get_mut(&id) else {
            return;
        };
        let (from, to, arrived) = (transfer.from, transfer.to, transfer.arrived);
        let sender = self
            .nodes
            .get(&from)
            .filter(|n| n.life == transfer.from_life);
        let Some(disk) = sender
            .filter(|n| n.process.is_some())
            .map(|n| n.disk.clone())
        else {
            // The connection ended with its process.
            self.transferred(id, false);
            return;
        };
        if transfer.pieces.is_none() {
            let mut bytes = Vec::new();
            let source = SnapshotSource::open(disk, &transfer.file);
            let read = source.ok().and_then(|mut s| s.read_to_end(&mut bytes).ok());
            if read.is_none() {
                self.transferred(id, false);
                return;
            }
            let size = self.chance.range(1 << 10, 16 << 10) as usize;
            transfer.pieces = Some(bytes.chunks(size).map(<[u8]>::to_vec).collect());
        }
        let last = transfer
            .pieces
            .as_ref()
            .is_some_and(|all| arrived + 1 >= all.len());
        let sent = self.send(from, to, Duration::ZERO, &Packet::Piece(id, arrived, last));
        if !sent && !self.network.is_cut(from, to) && self.chance.happens(900) {
            // QUIC sends lost bytes again.
            self.after(Duration::from_millis(30), Event::Transfer(id));
            return;
        }
        self.after(SILENCE, Event::Stalled(id, arrived));
    }

    fn piece(&mut self, id: TransferId, piece: usize, last: bool) -> Checked {
        let Some(transfer) = self.transfers.get_mut(&id) else {
            return Ok(());
        };
        let to = transfer.to;
        let Some(node) = self.nodes.get_mut(&to) else {
            return Ok(());
        };
        let (disk, life) = (node.disk.clone(), node.life);
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        if piece != transfer.arrived {
            return Ok(());
        }
        if piece == 0 {
            let meta = transfer.message.snapshot.clone().unwrap_or_default();
            if !process.receiving.is_empty() {
                // One at a time: this one waits.
                let (from, packet) = (transfer.from, Packet::Piece(id, piece, last));
                self.after(
                    Duration::from_millis(50),
                    Event::Arrive { from, to, packet },
                );
                return Ok(());
            }
            transfer.to_life = Some(life);
            match SnapshotReceiver::create(disk.clone(), meta) {
                Ok(receiver) => process.receiving.insert(id, receiver),
                Err(_) => return self.refuse(id),
            };
        }
        if transfer.to_life != Some(life) {
            return self.refuse(id);
        }
        let bytes = transfer.pieces.as_ref().and_then(|all| all.get(piece));
        let (Some(bytes), Some(receiver)) = (bytes, process.receiving.get_mut(&id)) else {
            return self.refuse(id);
        };
        if let Err(error) = receiver.write(bytes) {
            let faulty = disk.faulty.get();
            process.receiving.remove(&id);
            if !faulty {
                return violation(format!("{to} does not take a snapshot's piece: {error}"));
            }
            return self.refuse(id);
        }
        transfer.arrived += 1;
        if !last {
            let pause = self.chance.micros(100, 8_000);
            self.after(pause, Event::Transfer(id));
            return Ok(());
        }
        let message = transfer.message.clone();
        let Some(receiver) = process.receiving.remove(&id) else {
            return Ok(());
        };
        let taken = receiver
            .finish()
            .map_err(|e| e.to_string())
            .and_then(|file| {
                let state = snapshots::read(&disk, &file).map_err(|e| e.to_string())?;
                Ok((file, state))
            });
        match taken {
            Ok((file, state)) => {
                let state = Box::new(state);
                self.tell(
                    to,
                    Input::SnapshotArrived {
                        message,
                        file,
                        state,
                    },
                );
                self.answer_transfer(id, true);
                Ok(())
            }
            Err(error) if !disk.faulty.get() => violation(format!(
                "{to} cannot use a snapshot that it received: {error}"
            )),
            Err(_) => self.refuse(id),
        }
    }

    fn refuse(&mut self, id: TransferId) -> Checked {
        self.answer_transfer(id, false);
        Ok(())
    }

    fn answer_transfer(&mut self, id: TransferId, taken: bool) {
        if let Some(transfer) = self.transfers.get(&id) {
            let (from, to, arrived) = (transfer.from, transfer.to, transfer.arrived);
            self.send(to, from, Duration::ZERO, &Packet::Taken(id, taken));
            self.after(SILENCE, Event::Stalled(id, arrived));
        }
    }

    /// Ends a transfer that did not get further since.
    pub fn give_up(&mut self, id: TransferId, arrived: usize) {
        if self
            .transfers
            .get(&id)
            .is_some_and(|t| t.arrived == arrived)
        {
            self.transferred(id, false);
        }
    }

    /// The sender knows how it went.
    fn transferred(&mut self, id: TransferId, arrived: bool) {
        let Some(transfer) = self.transfers.remove(&id) else {
            return;
        };
        told!(
            self,
            "{} -> {} snapshot over: {arrived}",
            transfer.from,
            transfer.to
        );
        if let Some(life) = transfer.to_life
            && let Some(process) = self.process(transfer.to, life)
            && let Some(receiver) = process.receiving.remove(&id)
        {
            let _ = receiver.discard();
        }
        let (from, to) = (transfer.from, transfer.to);
        if self.process(from, transfer.from_life).is_some() {
            self.tell(from, Input::SnapshotSent { to, arrived });
        }
    }
}

fn message_index(message: &PeerMessage) -> u64 {
    message.snapshot.as_ref().map_or(0, |s| s.index)
}
