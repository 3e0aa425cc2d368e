//! A seed's life: a group is built, a storm goes over it, everything heals; then it must serve, agree,
//! and be undisturbed by a member that was away.

use crate::invariants::{Checked, Violation, violation};
use crate::told;
use crate::world::{Counts, Moment, World};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use trireme_coordinator::planted::{self, Bug};
use trireme_coordinator::raft::types::{MemberId, Membership};
use trireme_coordinator::state::{State, TokenRole};

/// How much happens to a seed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub bug: Option<Bug>,
    pub trace: bool,
    pub storm: Duration,
    /// See the oracle.
    pub digest_every: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            bug: None,
            trace: false,
            storm: Duration::from_secs(10),
            digest_every: 8,
        }
    }
}

/// A seed that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub fingerprint: u64,
    pub counts: Counts,
    pub entries: u64,
    /// Requests that were settled.
    pub settled: u64,
    pub time: Moment,
}

/// Lives through one seed. A panic anywhere in it is a violation too.
pub fn live(seed: u64, plan: Plan) -> Result<Report, Violation> {
    planted::plant(plan.bug);
    let lived = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, &plan)?;
        let lived = world.live(plan.storm);
        if plan.trace {
            eprintln!("{:>12.6} {lived:?}", world.now.as_secs_f64());
        }
        lived.map_err(|Violation(what)| {
            let at = world.now.as_secs_f64();
            Violation(format!("{what} (at {at:.6} s)"))
        })?;
        Ok(Report {
            fingerprint: world.fingerprint.get().value(),
            counts: world.counts,
            entries: world.oracle.last(),
            settled: world.oracle.state().requests().count() as u64,
            time: world.now,
        })
    }));
    planted::plant(None);
    lived.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        violation(format!("a panic: {}", text.unwrap_or_default()))
    })
}

/// Virtual time within which a healthy group must have done a thing.
const BUILT_WITHIN: Duration = Duration::from_secs(20);
const PROGRESS_WITHIN: Duration = Duration::from_secs(10);
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

impl World {
    fn live(&mut self, storm: Duration) -> Checked {
        self.build()?;
        self.storm.load = true;
        (1..self.clients.len()).for_each(|c| self.rouse(c));
        self.run_for(Duration::from_millis(500))?;
        self.start_storm();
        self.run_for(storm)?;
        self.heal()?;
        self.progress()?;
        self.settle()?;
        self.quiet()?;
        self.settle()
    }

    fn build(&mut self) -> Checked {
        let size = [3, 3, 5][self.chance.below(3) as usize];
        let load = self.chance.range(3, 9) as usize;
        self.add_clients(load);
        for _ in 1..size {
            self.intend(crate::client::Intent::Add {
                role: TokenRole::Coordinator,
            });
        }
        let end = self.now + BUILT_WITHIN;
        let built = self.run_until(end, |world| {
            world.nodes.len() == size && world.agrees(|m| m.voters.len() == size)
        })?;
        match built {
            true => Ok(()),
            false => violation(format!("no group of {size} came about")),
        }
    }

    /// Every client gets something done.
    fn progress(&mut self) -> Checked {
        let before: Vec<u64> = self.clients.iter().map(|c| c.done).collect();
        let end = self.now + PROGRESS_WITHIN;
        let done = self.run_until(end, |world| {
            let clients = world.clients.iter().zip(&before).skip(1);
            clients
                .into_iter()
                .all(|(client, before)| client.done > before + 2)
        })?;
        match done {
            true => Ok(()),
            false => violation(format!("no progress after healing: {}", self.picture())),
        }
    }

    /// Without load, all members come to the same state, and the members are those it names.
    fn settle(&mut self) -> Checked {
        self.storm.load = false;
        let end = self.now + SETTLED_WITHIN;
        let settled = self.run_until(end, |world| {
            world
                .clients
                .iter()
                .all(|c| c.doing.is_none() && c.intents.is_empty())
                && world.agrees(|_| true)
        })?;
        if !settled {
            return violation(format!("the group does not settle: {}", self.picture()));
        }
        let members: Vec<MemberId> = self
            .oracle
            .state()
            .coordinators()
            .map(|c| u64::from(c.id.0))
            .collect();
        for id in members {
            let Some(process) = self.nodes.get(&id).and_then(|n| n.process.as_ref()) else {
                continue;
            };
            self.oracle
                .observe(&process.member, process.member.applied(), true)?;
            self.oracle.settle(process.member.state())?;
        }
        Ok(())
    }

    /// All members of the newest state hold it, and vote or listen as it says.
    fn agrees(&self, also: impl Fn(&Membership) -> bool) -> bool {
        let state = self.oracle.state();
        let last = self.oracle.last();
        let wanted = wanted(state);
        let mut leaders = 0;
        let all = wanted.voters.iter().chain(&wanted.learners);
        for id in all {
            let Some(process) = self.nodes.get(id).and_then(|n| n.process.as_ref()) else {
                return false;
            };
            let member = &process.member;
            leaders += usize::from(process.office.leads);
            if member.applied() != last || *member.members() != wanted || !also(member.members()) {
                return false;
            }
        }
        leaders == 1
    }

    /// A follower that was cut off for a while disturbs nobody when it comes back.
    fn quiet(&mut self) -> Checked {
        let wanted = wanted(self.oracle.state());
        if wanted.voters.len() < 3 {
            return Ok(());
        }
        self.storm.load = true;
        (1..self.clients.len()).for_each(|c| self.rouse(c));
        // Let leadership settle: a change of members may have handed it over.
        self.run_for(Duration::from_millis(1_500))?;
        let Some(before) = self.leader() else {
            return violation(format!("nobody leads in quiet times: {}", self.picture()));
        };
        let followers: Vec<MemberId> = wanted
            .voters
            .iter()
            .copied()
            .filter(|id| *id != before.1)
            .collect();
        let Some(away) = self.chance.pick(&followers) else {
            return Ok(());
        };
        told!(self, "{away} is cut off in quiet times");
        let all: Vec<MemberId> = self.nodes.keys().copied().collect();
        self.network.split(&all, &[away]);
        let pause = self.chance.millis(2_500, 5_000);
        self.run_for(pause)?;
        self.network.heal();
        self.run_for(Duration::from_millis(2_500))?;
        let after = self.leader();
        if after != Some(before) {
            return violation(format!(
                "member {away} was away for {pause:?}, and term and leader went from {before:?} to \
                 {after:?}"
            ));
        }
        Ok(())
    }

    /// Term and id of the one leader.
    fn leader(&self) -> Option<(u64, MemberId)> {
        let offices = self
            .nodes
            .values()
            .filter_map(|n| n.process.as_ref().map(|p| (n.id, p.office)));
        let mut leaders = offices.filter(|(_, o)| o.leads).map(|(id, o)| (o.term, id));
        let leader = leaders.next_back()?;
        leaders.next().is_none().then_some(leader)
    }

    /// Where everybody is, for whoever looks for the cause.
    fn picture(&self) -> String {
        let mut text = format!("{} entries; ", self.oracle.last());
        text += &format!("the state wants {:?}; ", wanted(self.oracle.state()));
        for node in self.nodes.values() {
            text += &match &node.process {
                Some(process) => format!("{} {:?}; ", node.id, process.member.status()),
                None => format!("{} is down; ", node.id),
            };
        }
        let busy = self.clients.iter().filter(|c| c.doing.is_some()).count();
        text + &format!("{busy} clients wait")
    }
}

/// Who shall vote and listen. A number that was given to nobody stays out.
fn wanted(state: &State) -> Membership {
    let members = || state.coordinators().filter(|c| !c.control.is_empty());
    let ids = |votes: bool| {
        members()
            .filter(|c| c.wants_vote == votes)
            .map(|c| u64::from(c.id.0))
            .collect()
    };
    Membership {
        voters: ids(true),
        learners: ids(false),
        ..Membership::default()
    }
}
