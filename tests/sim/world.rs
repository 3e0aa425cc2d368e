//! The world: virtual time, its queue of events, and all that lives in it. One thread, one source of
//! chance: the same seed is the same history, byte for byte.

use crate::call::{Attempt, CallId};
use crate::chance::{Chance, Fingerprint};
use crate::client::Client;
use crate::disk::SimDisk;
use crate::invariants::{Checked, Oracle, Violation, violation};
use crate::network::Network;
use crate::node::{Answer, Job, Node, Process};
use crate::scenario::Plan;
use crate::storm::{Storm, Undo};
use crate::traffic::{Packet, Transfer};
use crate::workload::START_MS;
use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::time::Duration;
use trireme_coordinator::raft::member::{Input, ReadId};
use trireme_coordinator::raft::types::MemberId;
use trireme_coordinator::state::{ClusterId, Command, Outcome, Proposal, ProposalId, State, apply};
use trireme_shared::ids::CoordinatorId;

/// Virtual time since the world began.
pub type Moment = Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransferId(pub u64);

pub enum Event {
    /// A process has something to do.
    Wake(MemberId, u64),
    /// A turn is over: who waited hears of it.
    TurnOver {
        node: MemberId,
        life: u64,
        answers: Vec<(ProposalId, Answer)>,
        reads: Vec<ReadId>,
    },
    Arrive {
        from: MemberId,
        to: MemberId,
        packet: Packet,
    },
    /// The connection to a peer was seen to be broken.
    Broken(MemberId, MemberId),
    /// The thread that writes a snapshot goes on.
    WriteSnapshot(MemberId, u64),
    /// The sender of a snapshot goes on.
    Transfer(TransferId),
    /// Given up if no more than so many pieces arrived.
    Stalled(TransferId, usize),
    /// A call is tried (again).
    Try(MemberId, CallId, Attempt),
    /// A call's deadline.
    Expire(MemberId, CallId),
    Client(usize),
    /// A client waits no longer for that call.
    HangUp(MemberId, CallId),
    Restart(MemberId),
    Stop(MemberId, u64),
    Flap(MemberId, u64),
    /// Another one tells it that it was removed.
    Expel(MemberId),
    Storm,
    Undo(Undo),
}

struct Scheduled {
    at: Moment,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

pub struct World {
    pub now: Moment,
    queue: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    pub chance: Chance,
    pub fingerprint: Rc<Cell<Fingerprint>>,
    pub trace: bool,
    pub nodes: BTreeMap<MemberId, Node>,
    pub network: Network,
    pub transfers: BTreeMap<TransferId, Transfer>,
    pub clients: Vec<Client>,
    pub oracle: Oracle,
    pub storm: Storm,
    /// The newest number given to a call or a transfer.
    pub last_id: u64,
    pub counts: Counts,
}

/// What happened, to see that a run was worth it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub events: u64,
    pub messages: u64,
    pub crashes: u64,
    pub snapshots_written: u64,
    pub snapshots_installed: u64,
    pub leaders: u64,
    pub acknowledged: u64,
    pub doubtful: u64,
    pub reads: u64,
    pub joined: u64,
    pub retired: u64,
}

/// One line of a trace, if one is wanted.
#[macro_export]
macro_rules! told {
    ($world:expr, $($text:tt)+) => {
        if $world.trace {
            eprintln!("{:>12.6} {}", $world.now.as_secs_f64(), format_args!($($text)+));
        }
    };
}

/// Ten times what a seed takes: nobody may talk himself into a loop.
const EVENTS_MAX: u64 = 3_000_000;

/// Any PEM will do: nothing in the simulation speaks TLS.
const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

impl World {
    /// A world with coordinator 1, which is a group of its own.
    pub fn new(seed: u64, plan: &Plan) -> Result<Self, Violation> {
        let mut chance = Chance::new(seed);
        let fingerprint = Rc::new(Cell::new(Fingerprint::default()));
        let mut state = State::default();
        let bootstrap = Proposal {
            id: ProposalId(chance.bytes()),
            base: 0,
            at_ms: START_MS,
            origin: None,
            command: Command::Bootstrap {
                name: "sim".into(),
                cluster: ClusterId(chance.bytes()),
                authority_pem: AUTHORITY.into(),
                admin_key_hash: chance.bytes(),
            },
        };
        let put = Proposal {
            id: ProposalId(chance.bytes()),
            command: put_coordinator(1),
            ..bootstrap.clone()
        };
        for proposal in [&bootstrap, &put] {
            let outcome = apply(&mut state, proposal).outcome;
            if let Outcome::Refused(why) = outcome {
                return violation(format!("a new cluster is refused: {why}"));
            }
        }
        let node = Node::new(1, SimDisk::new(&fingerprint), &mut chance);
        let founded = node.found(&state);
        founded.map_err(|e| Violation(format!("a group cannot be founded: {e}")))?;
        let storm = Storm::new(&mut chance);
        let mut world = Self {
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            sequence: 0,
            chance,
            fingerprint,
            trace: plan.trace,
            nodes: BTreeMap::from([(1, node)]),
            network: Network::default(),
            transfers: BTreeMap::new(),
            clients: Vec::new(),
            oracle: Oracle::new(&state, plan.bug, plan.digest_every),
            storm,
            last_id: 0,
            counts: Counts::default(),
        };
        world.start(1)?;
        Ok(world)
    }

    pub fn at(&mut self, at: Moment, event: Event) {
        self.sequence += 1;
        let sequence = self.sequence;
        let at = at.max(self.now);
        self.queue.push(Reverse(Scheduled {
            at,
            sequence,
            event,
        }));
    }

    pub fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    pub fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub fn mark(&self, values: &[u64]) {
        let mut fingerprint = self.fingerprint.get();
        for value in values {
            fingerprint.number(*value);
        }
        self.fingerprint.set(fingerprint);
    }

    /// Lets time go by until `done`, at most until `end`; tells whether it was done.
    pub fn run_until(
        &mut self,
        end: Moment,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<bool, Violation> {
        loop {
            if done(self) {
                return Ok(true);
            }
            match self.queue.peek() {
                Some(Reverse(next)) if next.at <= end => {}
                _ => {
                    self.now = self.now.max(end);
                    return Ok(false);
                }
            }
            let Some(Reverse(next)) = self.queue.pop() else {
                return Ok(false);
            };
            self.now = next.at;
            self.counts.events += 1;
            if self.counts.events > EVENTS_MAX {
                return violation("events without end");
            }
            self.mark(&[self.now.as_nanos() as u64, next.sequence]);
            self.handle(next.event)?;
        }
    }

    pub fn run_for(&mut self, time: Duration) -> Checked {
        let end = self.now + time;
        self.run_until(end, |_| false).map(|_| ())
    }

    fn handle(&mut self, event: Event) -> Checked {
        match event {
            Event::Wake(id, life) => {
                let now = self.now;
                let process = self.process(id, life);
                if process.is_some_and(|p| p.wake_at == Some(now)) {
                    return self.turn(id, false);
                }
                Ok(())
            }
            Event::TurnOver {
                node,
                life,
                answers,
                reads,
            } => self.turn_over(node, life, answers, reads),
            Event::Arrive { from, to, packet } => self.arrive(from, to, packet),
            Event::Broken(id, peer) => {
                self.tell(id, Input::Unreachable(peer));
                Ok(())
            }
            Event::WriteSnapshot(id, life) => {
                self.write_snapshot(id, life);
                Ok(())
            }
            Event::Transfer(id) => {
                self.go_on(id);
                Ok(())
            }
            Event::Stalled(id, arrived) => {
                self.give_up(id, arrived);
                Ok(())
            }
            Event::Try(node, call, attempt) => self.try_call(node, call, attempt),
            Event::Expire(node, call) => self.expire(node, call),
            Event::Client(client) => self.act(client),
            Event::HangUp(node, call) => self.hang_up(node, call),
            Event::Restart(id) => self.start(id),
            Event::Stop(id, life) => {
                if self.process(id, life).is_some() {
                    self.die(id, "stopped")?;
                    let pause = self.chance.millis(50, 1_500);
                    self.after(pause, Event::Restart(id));
                }
                Ok(())
            }
            Event::Flap(id, times) => self.flap(id, times),
            Event::Expel(id) => {
                self.tell(id, Input::Expelled);
                Ok(())
            }
            Event::Storm => self.blow(),
            Event::Undo(undo) => {
                self.undo(undo);
                Ok(())
            }
        }
    }

    pub fn process(&mut self, id: MemberId, life: u64) -> Option<&mut Process> {
        let node = self.nodes.get_mut(&id)?;
        (node.life == life).then_some(node.process.as_mut())?
    }

    /// A running node's process.
    pub fn running(&mut self, id: MemberId) -> Option<&mut Process> {
        self.nodes.get_mut(&id)?.process.as_mut()
    }

    pub fn life(&self, id: MemberId) -> u64 {
        self.nodes.get(&id).map_or(0, |n| n.life)
    }

    /// Gives a member an input, if it runs.
    pub fn tell(&mut self, id: MemberId, input: Input) {
        self.queue_job(id, Job::Input(input));
    }

    pub fn queue_job(&mut self, id: MemberId, job: Job) {
        if let Some(process) = self.running(id) {
            process.inbox.push(job);
            self.wake(id);
        }
    }

    /// Sees to it that the process has its next turn.
    pub fn wake(&mut self, id: MemberId) {
        let (now, life) = (self.now, self.life(id));
        let Some(process) = self.running(id) else {
            return;
        };
        let due = process.due(now);
        if process.wake_at.is_none_or(|at| at > due) {
            process.wake_at = Some(due);
            self.at(due, Event::Wake(id, life));
        }
    }
}

pub fn put_coordinator(id: u32) -> Command {
    Command::PutCoordinator {
        id: CoordinatorId(id),
        http: format!("http://192.0.2.{id}:80"),
        control: format!("192.0.2.{id}:443"),
        version: "sim".into(),
    }
}
