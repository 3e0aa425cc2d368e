//! The storm: which faults come when, all from the world's one source of chance. Each world has its
//! own mixture, so that rare kinds have worlds in which they are common.

use crate::chance::Chance;
use crate::client::Intent;
use crate::invariants::Checked;
use crate::network::{CALM, Weather};
use crate::told;
use crate::world::{Event, World};
use std::time::Duration;
use trireme_coordinator::raft::member::Input;
use trireme_coordinator::raft::storage::memory::Operation;
use trireme_coordinator::raft::types::MemberId;
use trireme_coordinator::state::TokenRole;
use trireme_shared::ids::CoordinatorId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Weather,
    Isolate,
    OneWay,
    Split,
    /// The power goes between events, or in the middle of a step of the disk.
    Power,
    /// The process alone ends.
    Kill,
    /// It ends and starts a few times in a row.
    Flap,
    /// It stops as it should.
    Stop,
    /// Suspended for a while, and woken.
    Pause,
    SlowDisk,
    DiskError,
    DiskFull,
    Clock,
    HandOver,
    Members,
}

const FAULTS: [Fault; 15] = [
    Fault::Weather,
    Fault::Isolate,
    Fault::OneWay,
    Fault::Split,
    Fault::Power,
    Fault::Kill,
    Fault::Flap,
    Fault::Stop,
    Fault::Pause,
    Fault::SlowDisk,
    Fault::DiskError,
    Fault::DiskFull,
    Fault::Clock,
    Fault::HandOver,
    Fault::Members,
];

/// What ends a fault.
#[derive(Clone, Copy, Debug)]
pub enum Undo {
    Network,
    Disk(MemberId),
}

pub struct Storm {
    mixture: Vec<Fault>,
    /// Longest pause between two faults, milliseconds.
    pause_ms: u64,
    /// All messages may come late.
    ghosts: bool,
    /// Of a thousand things that clients ask for.
    pub reads: u64,
    blows: bool,
    /// Whether clients ask for anything.
    pub load: bool,
}

/// Most nodes of a world at once, the removed not counted.
const NODES_MAX: usize = 6;
/// Fewest that shall vote.
const VOTERS_MIN: usize = 3;

impl Storm {
    pub fn new(chance: &mut Chance) -> Self {
        let mut mixture = Vec::new();
        for fault in FAULTS {
            let weight = [0, 1, 1, 2, 2, 4][chance.below(6) as usize];
            mixture.extend((0..weight).map(|_| fault));
        }
        if mixture.is_empty() {
            mixture.push(Fault::Power);
        }
        let ghosts = chance.happens(150);
        if ghosts {
            // What was said to a process reaches a later one of the same node.
            mixture = vec![Fault::Flap, Fault::Flap, Fault::Kill, Fault::Isolate];
        }
        Self {
            mixture,
            ghosts,
            reads: if ghosts {
                600
            } else {
                [100, 250, 250, 500][chance.below(4) as usize]
            },
            pause_ms: chance.range(150, 900),
            blows: false,
            load: false,
        }
    }
}

impl World {
    pub fn start_storm(&mut self) {
        told!(self, "the storm begins: {:?}", self.storm.mixture);
        self.storm.blows = true;
        if self.storm.ghosts {
            self.network.weather = Weather {
                late: self.chance.range(100, 400),
                ..Weather::late(&mut self.chance)
            };
        }
        self.after(Duration::ZERO, Event::Storm);
    }

    /// Ends all faults, and starts whoever is down.
    pub fn heal(&mut self) -> Checked {
        told!(self, "all heals");
        self.storm.blows = false;
        self.network.heal();
        self.network.weather = CALM;
        self.clients[0]
            .intents
            .retain(|i| matches!(i, Intent::Announce { .. }));
        let all: Vec<MemberId> = self.nodes.keys().copied().collect();
        for id in all {
            self.undo(Undo::Disk(id));
            if self.is_removed(id) && !self.counts(id) {
                // Some go on without a notion of it.
                self.die(id, "nobody needs it")?;
                if self.chance.happens(500) {
                    continue;
                }
            }
            self.start(id)?;
        }
        Ok(())
    }

    /// Whether the group's decisions may need that member, by the newest that is known of it.
    fn counts(&self, id: MemberId) -> bool {
        let members = self
            .nodes
            .values()
            .filter_map(|n| n.process.as_ref())
            .map(|p| &p.member);
        let newest = members.max_by_key(|m| m.applied());
        newest.is_none_or(|m| {
            let m = m.members();
            m.voters.contains(&id) || m.voters_outgoing.contains(&id)
        })
    }

    pub fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Network => self.network.heal(),
            Undo::Disk(id) => {
                if let Some(node) = self.nodes.get(&id) {
                    node.disk.set_sync(Duration::from_micros(300));
                    node.disk.fill(None);
                    node.disk.heal();
                }
            }
        }
    }

    /// The next fault.
    pub fn blow(&mut self) -> Checked {
        if !self.storm.blows {
            return Ok(());
        }
        let pause = self.chance.millis(10, self.storm.pause_ms);
        self.after(pause, Event::Storm);
        let Some(fault) = self.chance.pick(&self.storm.mixture) else {
            return Ok(());
        };
        let running: Vec<MemberId> = self
            .nodes
            .values()
            .filter(|n| n.process.is_some())
            .map(|n| n.id)
            .collect();
        // Every other fault meets the leader, if there is one.
        let leaders: Vec<MemberId> = self
            .nodes
            .values()
            .filter(|n| n.process.as_ref().is_some_and(|p| p.office.leads))
            .map(|n| n.id)
            .collect();
        let leader = self
            .chance
            .pick(&leaders)
            .filter(|_| self.chance.happens(500));
        let Some(id) = leader.or(self.chance.pick(&running)) else {
            return Ok(());
        };
        told!(self, "{fault:?} meets {id}");
        match fault {
            Fault::Weather => self.network.weather = Weather::draw(&mut self.chance),
            Fault::Isolate | Fault::OneWay | Fault::Split => self.part(fault, id, &running),
            Fault::Flap => {
                let times = self.chance.range(2, 5);
                return self.flap(id, times);
            }
            Fault::Power | Fault::Kill | Fault::Stop => return self.strike(fault, id),
            Fault::Pause => {
                let pause = self.chance.millis(100, 2_500);
                let until = self.now + pause;
                if let Some(process) = self.running(id) {
                    process.busy_until = process.busy_until.max(until);
                }
            }
            Fault::SlowDisk | Fault::DiskError | Fault::DiskFull => self.spoil(fault, id),
            Fault::Clock => {
                let far = [10, 10_000, 86_400_000][self.chance.below(3) as usize];
                let jump = self.chance.range(0, 2 * far) as i64 - far as i64;
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.clock_ms += jump;
                }
            }
            Fault::HandOver => self.tell(id, Input::StepDown),
            Fault::Members => self.change_members(),
        }
        Ok(())
    }

    fn part(&mut self, fault: Fault, id: MemberId, running: &[MemberId]) {
        let all: Vec<MemberId> = self.nodes.keys().copied().collect();
        match fault {
            Fault::Isolate => self.network.split(&all, &[id]),
            Fault::OneWay => {
                // It is heard by nobody, or hears nobody, or one pair is cut.
                match self.chance.below(3) {
                    0 => all.iter().for_each(|other| self.network.cut(id, *other)),
                    1 => all.iter().for_each(|other| self.network.cut(*other, id)),
                    _ => {
                        if let Some(other) = self.chance.pick(running) {
                            self.network.cut(id, other);
                        }
                    }
                }
            }
            _ => {
                let some: Vec<MemberId> = all
                    .iter()
                    .copied()
                    .filter(|_| self.chance.happens(400))
                    .collect();
                self.network.split(&all, &some);
            }
        }
        let pause = self.chance.millis(50, 3_500);
        self.after(pause, Event::Undo(Undo::Network));
    }

    fn strike(&mut self, fault: Fault, id: MemberId) -> Checked {
        let life = self.life(id);
        match fault {
            Fault::Power if self.chance.happens(600) => {
                let calls = self.chance.below(12);
                if let Some(node) = self.nodes.get(&id) {
                    node.disk.faulty.set(true);
                    node.disk.torn.cut_power(calls);
                }
                return Ok(());
            }
            Fault::Stop => {
                self.tell(id, Input::StepDown);
                let pause = self.chance.millis(1, 300);
                self.after(pause, Event::Stop(id, life));
                return Ok(());
            }
            Fault::Power => {
                self.die(id, "the power is gone")?;
                if let Some(node) = self.nodes.get(&id) {
                    node.disk.crash(&mut self.chance);
                }
            }
            _ => self.die(id, "killed")?,
        }
        let pause = match self.chance.happens(300) {
            true => self.chance.millis(0, 30),
            false => self.chance.millis(30, 3_000),
        };
        self.after(pause, Event::Restart(id));
        Ok(())
    }

    /// Kills the node so many times, soon after each start.
    pub fn flap(&mut self, id: MemberId, times: u64) -> Checked {
        if times == 0 || !self.storm.blows {
            return Ok(());
        }
        self.die(id, "killed again")?;
        let (down, up) = (self.chance.micros(0, 40_000), self.chance.millis(20, 700));
        self.after(down, Event::Restart(id));
        self.after(down + up, Event::Flap(id, times - 1));
        Ok(())
    }

    fn spoil(&mut self, fault: Fault, id: MemberId) {
        let Some(node) = self.nodes.get(&id) else {
            return;
        };
        match fault {
            Fault::SlowDisk => node.disk.set_sync(self.chance.millis(5, 400)),
            Fault::DiskError => {
                let operations = [
                    Operation::Write,
                    Operation::Sync,
                    Operation::Sync,
                    Operation::Create,
                    Operation::Rename,
                    Operation::Remove,
                ];
                let operation = operations[self.chance.below(6) as usize];
                node.disk.faulty.set(true);
                node.disk.torn.fail(operation, self.chance.below(4));
            }
            _ => node.disk.fill(Some(self.chance.below(6_000))),
        }
        let pause = self.chance.millis(100, 3_000);
        self.after(pause, Event::Undo(Undo::Disk(id)));
    }

    fn change_members(&mut self) {
        if self.clients[0].intents.len() > 3 {
            return;
        }
        let state = self.oracle.state();
        let members: Vec<(CoordinatorId, bool)> = state
            .coordinators()
            .filter(|c| !c.control.is_empty())
            .map(|c| (c.id, c.wants_vote))
            .collect();
        let listed = state.coordinators().count();
        let voters: Vec<CoordinatorId> = members
            .iter()
            .filter(|(_, votes)| *votes)
            .map(|(id, _)| *id)
            .collect();
        let learners: Vec<CoordinatorId> = members
            .iter()
            .filter(|(_, votes)| !*votes)
            .map(|(id, _)| *id)
            .collect();
        let full = listed >= NODES_MAX;
        match self.chance.below(5) {
            0 if !full => self.intend(Intent::Add {
                role: TokenRole::Learner,
            }),
            1 if !full => self.intend(Intent::Add {
                role: TokenRole::Coordinator,
            }),
            // One for another: the old one goes when the new one votes, in one change if both wait.
            2 if !full => {
                self.intend(Intent::Add {
                    role: TokenRole::Coordinator,
                });
                if voters.len() >= VOTERS_MIN
                    && let Some(id) = self.chance.pick(&voters)
                {
                    self.intend(Intent::Remove { id });
                }
            }
            3 => {
                if let Some(id) = self.chance.pick(&learners) {
                    self.intend(Intent::Promote { id });
                }
            }
            _ => {
                let some = match voters.len() > VOTERS_MIN {
                    true => &voters,
                    false => &learners,
                };
                if let Some(id) = self.chance.pick(some) {
                    self.intend(Intent::Remove { id });
                }
            }
        }
    }
}
