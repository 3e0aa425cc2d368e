//! Clients. Each does one thing after another: it asks some node for a write or a linearizable read,
//! and when that node dies, or does not know, it asks another one, for the same proposal under the
//! same id, until it loses patience. One of them is the administrator, who changes the members.

use crate::call::{Asked, CallId, Heard};
use crate::disk::SimDisk;
use crate::invariants::Checked;
use crate::node::Node;
use crate::told;
use crate::workload::{self, Knowledge};
use crate::world::{Event, Moment, World, put_coordinator};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use trireme_coordinator::raft::types::MemberId;
use trireme_coordinator::state::{Command, Outcome, Proposal, TokenRole};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{CoordinatorId, TokenRecordId};

#[derive(Default)]
pub struct Client {
    /// Asks for what it has been told to only; others keep asking while there is load.
    admin: bool,
    pub intents: VecDeque<Intent>,
    knowledge: Knowledge,
    pub doing: Option<Doing>,
    /// Waits for nothing but its own pause.
    asleep: bool,
    /// The node it asked last.
    node: MemberId,
    /// What it had acknowledged since the load began.
    pub done: u64,
}

pub struct Doing {
    asked: Asked,
    intent: Option<Intent>,
    patience: Moment,
    /// It may have entered a log.
    doubt: bool,
}

/// What the administrator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    Add {
        role: TokenRole,
    },
    Join {
        token: TokenRecordId,
        secret: [u8; 32],
    },
    Announce {
        id: CoordinatorId,
    },
    Promote {
        id: CoordinatorId,
    },
    Remove {
        id: CoordinatorId,
    },
}

/// How long a client goes on asking for one thing, most of the time.
const PATIENCE: Duration = Duration::from_secs(14);

impl World {
    /// The administrator is client 0.
    pub fn add_clients(&mut self, load: usize) {
        for number in 0..=load {
            self.clients.push(Client {
                admin: number == 0,
                asleep: true,
                ..Client::default()
            });
            let pause = self.chance.millis(0, 50);
            self.after(pause, Event::Client(number));
        }
    }

    /// Tells the administrator what to do next.
    pub fn intend(&mut self, intent: Intent) {
        told!(self, "the administrator shall {intent:?}");
        self.clients[0].intents.push_back(intent);
        self.rouse(0);
    }

    /// A client that sleeps acts again soon.
    pub fn rouse(&mut self, client: usize) {
        if self.clients[client].doing.is_none() {
            self.after(Duration::ZERO, Event::Client(client));
        }
    }

    pub fn act(&mut self, number: usize) -> Checked {
        if self.clients[number]
            .doing
            .as_ref()
            .is_some_and(|_| !self.clients[number].asleep)
        {
            return Ok(());
        }
        let mut nodes: Vec<MemberId> = self.nodes.keys().copied().collect();
        nodes.retain(|id| self.serves(*id));
        // Now and then it asks one that is down.
        if !self.chance.happens(30) {
            let nodes_of = &self.nodes;
            nodes.retain(|id| nodes_of.get(id).is_some_and(|n| n.process.is_some()));
        }
        let mut node = self.chance.pick(&nodes).unwrap_or(1);
        let before = self.clients[number].node;
        if self.clients[number].doing.is_some()
            && nodes.contains(&before)
            && self.chance.happens(400)
        {
            // It dials the same one again.
            node = before;
        }
        self.clients[number].node = node;
        if self.clients[number].doing.is_none() {
            match self.choose(number, node) {
                Some(doing) => self.clients[number].doing = Some(doing),
                None => return Ok(()),
            }
        } else {
            self.renew(number, node);
        }
        self.clients[number].asleep = false;
        let Some(doing) = &self.clients[number].doing else {
            return Ok(());
        };
        let asked = doing.asked.clone();
        let call = CallId(self.next_id());
        let patience = self.chance.millis(50, 6_000);
        self.after(patience, Event::HangUp(node, call));
        self.call(node, number, call, asked)
    }

    /// Whether clients are told of that one.
    fn serves(&self, id: MemberId) -> bool {
        let id = u32::try_from(id).map(CoordinatorId);
        let record = id.ok().and_then(|id| self.oracle.state().coordinator(id));
        record.is_some_and(|c| !c.control.is_empty())
    }

    /// Whether the group has that one removed, by what was ever applied.
    pub fn is_removed(&self, id: MemberId) -> bool {
        let id = u32::try_from(id)
            .map(CoordinatorId)
            .map(NodeId::Coordinator);
        id.is_ok_and(|id| self.oracle.state().is_removed(id))
    }

    /// The next thing to do; a node that is down cannot say what its state is.
    fn choose(&mut self, number: usize, node: MemberId) -> Option<Doing> {
        let client = &mut self.clients[number];
        if !client.admin && !self.storm.load {
            return None;
        }
        let intent = match client.admin {
            true => Some(client.intents.pop_front()?),
            false => None,
        };
        let patience = match !client.admin && self.chance.happens(300) {
            true => self.now + self.chance.millis(10, 1_500),
            false => self.now + PATIENCE,
        };
        let now_ms = self.now.as_millis() as u64;
        let node = self.nodes.get(&node)?;
        let fallback;
        let state = match &node.process {
            Some(process) => process.member.state(),
            None => {
                fallback = trireme_coordinator::state::State::default();
                &fallback
            }
        };
        let chance = &mut self.chance;
        if intent.is_none() && chance.happens(self.storm.reads) {
            let floor = self.oracle.newest;
            return Some(Doing {
                asked: Asked::Read { floor },
                intent,
                patience,
                doubt: false,
            });
        }
        let command = match &intent {
            None => client.knowledge.next(chance, state),
            Some(Intent::Add { role }) => Command::CreateToken {
                secret_hash: chance.bytes(),
                role: *role,
                provider: None,
                uses: 1,
                expires_at: u64::MAX,
            },
            Some(Intent::Join { token, secret }) => Command::JoinCoordinator {
                token: *token,
                secret_hash: *secret,
            },
            Some(Intent::Announce { id }) => put_coordinator(id.0),
            Some(Intent::Promote { id }) => Command::PromoteCoordinator { id: *id },
            Some(Intent::Remove { id }) => Command::RemoveCoordinator { id: *id },
        };
        let proposal = workload::propose(chance, command, state, now_ms, node.clock_ms);
        Some(Doing {
            asked: Asked::Write(Rc::new(proposal)),
            intent,
            patience,
            doubt: false,
        })
    }

    /// Another node is asked for the same: it makes a proposal of its own, with the same id.
    fn renew(&mut self, number: usize, node: MemberId) {
        let Some(node) = self.nodes.get(&node) else {
            return;
        };
        let Some(process) = &node.process else {
            return;
        };
        let base = process.member.state().commands();
        if let Some(doing) = &mut self.clients[number].doing
            && let Asked::Write(proposal) = &doing.asked
            && self.chance.happens(500)
        {
            doing.asked = Asked::Write(Rc::new(Proposal {
                base: base.max(proposal.base),
                ..Proposal::clone(proposal)
            }));
        }
    }

    /// A node told the client what came of its call.
    pub fn hear(&mut self, number: usize, node: MemberId, heard: Heard) -> Checked {
        let now = self.now;
        let client = &mut self.clients[number];
        let Some(doing) = &mut client.doing else {
            return Ok(());
        };
        match (&heard, &doing.asked) {
            (Heard::Applied(answered), Asked::Write(proposal)) => {
                self.oracle.acknowledged(proposal, answered)?;
                self.counts.acknowledged += 1;
                client.done += 1;
                client.knowledge.learn(&answered.outcome);
                let (proposal, outcome) = (proposal.clone(), answered.outcome.clone());
                let intent = doing.intent.take();
                client.doing = None;
                if let Some(intent) = intent {
                    self.achieved(intent, &proposal, outcome)?;
                }
            }
            (Heard::Read, Asked::Read { floor }) => {
                let floor = *floor;
                client.doing = None;
                client.done += 1;
                self.counts.reads += 1;
                if let Some(process) = self.nodes.get(&node).and_then(|n| n.process.as_ref()) {
                    self.oracle.read(&process.member, floor)?;
                }
            }
            (_, asked) => {
                let writes = matches!(asked, Asked::Write(_));
                doing.doubt |= writes && matches!(heard, Heard::InDoubt | Heard::Gone);
                let impatient = matches!(heard, Heard::NoLeader) && self.chance.happens(300);
                if now < doing.patience && !impatient {
                    client.asleep = true;
                    let pause = self.chance.millis(1, 60);
                    self.after(pause, Event::Client(number));
                    return Ok(());
                }
                if let Some(done) = client.doing.take() {
                    self.forget(number, done)?;
                }
            }
        }
        let client = &mut self.clients[number];
        client.asleep = true;
        let pause = match (client.admin, self.chance.below(10)) {
            (true, _) => self.chance.millis(1, 20),
            (_, 0) => self.chance.millis(20, 200),
            _ => self.chance.millis(1, 25),
        };
        self.after(pause, Event::Client(number));
        Ok(())
    }

    /// The client has lost its patience.
    fn forget(&mut self, number: usize, doing: Doing) -> Checked {
        self.counts.doubtful += u64::from(doing.doubt);
        if let (Asked::Write(proposal), false) = (&doing.asked, doing.doubt) {
            self.oracle.denied(proposal.id)?;
        }
        if let Some(intent) = doing.intent {
            // All of them may be wished twice; a number given to nobody stays without a node.
            self.clients[number].intents.push_front(intent);
        }
        Ok(())
    }

    fn achieved(&mut self, intent: Intent, asked: &Proposal, outcome: Outcome) -> Checked {
        told!(self, "the administrator's {intent:?}: {outcome:?}");
        let next = match (intent, outcome, &asked.command) {
            (
                Intent::Add { .. },
                Outcome::Token(token),
                Command::CreateToken { secret_hash, .. },
            ) => Intent::Join {
                token,
                secret: *secret_hash,
            },
            (Intent::Join { .. }, Outcome::Coordinator(id), _) => {
                let member = u64::from(id.0);
                let node = Node::new(member, SimDisk::new(&self.fingerprint), &mut self.chance);
                self.nodes.insert(member, node);
                self.counts.joined += 1;
                self.start(member)?;
                Intent::Announce { id }
            }
            _ => return Ok(()),
        };
        self.clients[0].intents.push_front(next);
        Ok(())
    }
}
