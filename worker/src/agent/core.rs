//! What a worker does about what it hears: a plain state machine without I/O.
//!
//! What it keeps true: at most one rank exists at a time, and a new one starts only when the old one
//! is gone; an order of an older epoch, or of a leader of an older term, changes nothing; once
//! draining, nothing new starts. The driver (`drive`) feeds it events and carries its effects out.

use trireme_shared::ids::{DeploymentId, Epoch, Replica};
use trireme_shared::plan::{Assignment, ReplicaPlan};
use trireme_shared::wire::control::ToWorker;

/// Which replica, and which of its plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankKey {
    pub deployment: DeploymentId,
    pub replica: Replica,
    pub epoch: Epoch,
}

impl RankKey {
    pub fn of(plan: &ReplicaPlan) -> Self {
        Self {
            deployment: plan.deployment,
            replica: plan.replica,
            epoch: plan.epoch,
        }
    }

    fn same_replica(self, other: Self) -> bool {
        (self.deployment, self.replica) == (other.deployment, other.replica)
    }
}

#[derive(Debug)]
pub enum Event {
    /// A coordinator said something.
    Heard(ToWorker),
    /// The rank that `Effect::Stop` ended is gone and its memory free.
    Stopped,
    /// The process was asked to end.
    Shutdown,
    /// No stream runs any more, or they may not run on. Sent only after `Effect::BeginDrain`.
    Drained,
}

#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Start this rank. No other exists.
    Start(Box<Assignment>),
    /// End the rank that runs; answer with `Event::Stopped`.
    Stop,
    /// Send a heartbeat now.
    Report,
    /// Refuse new streams; answer with `Event::Drained`.
    BeginDrain,
    /// Tell the coordinators that this worker leaves.
    SayGoodbye,
    /// The end: nothing runs.
    Exit,
}

#[derive(Debug, Default)]
enum Rank {
    #[default]
    None,
    Running(RankKey),
    Stopping,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Phase {
    #[default]
    Serving,
    Draining,
    Leaving,
    Gone,
}

#[derive(Debug, Default)]
pub struct Core {
    /// The highest Raft term any coordinator told: a lower one's leader leads no more.
    term: u64,
    rank: Rank,
    /// What is to run once the old rank is gone.
    next: Option<Box<Assignment>>,
    phase: Phase,
}

impl Core {
    pub fn on(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Heard(message) => self.heard(message),
            Event::Shutdown => self.drain(),
            Event::Stopped => {
                self.rank = Rank::None;
                let mut effects = vec![Effect::Report];
                effects.extend(self.settle());
                effects
            }
            Event::Drained => self.leave(),
        }
    }

    fn heard(&mut self, message: ToWorker) -> Vec<Effect> {
        let term = match &message {
            ToWorker::Welcome { term, .. }
            | ToWorker::Coordinators { term, .. }
            | ToWorker::Assign { term, .. }
            | ToWorker::Release { term, .. }
            | ToWorker::Drain { term } => *term,
            // Not the leader's alone; the agent sees to them.
            ToWorker::Certificate { .. } | ToWorker::Trust { .. } | ToWorker::Removed { .. } => {
                return Vec::new();
            }
        };
        if term < self.term {
            return Vec::new();
        }
        self.term = term;
        match message {
            ToWorker::Assign { assignment, .. } => self.assign(assignment),
            ToWorker::Release {
                deployment,
                replica,
                epoch,
                ..
            } => self.release(RankKey {
                deployment,
                replica,
                epoch,
            }),
            ToWorker::Drain { .. } => self.drain(),
            _ => Vec::new(),
        }
    }

    /// The rank that runs now, for heartbeats.
    pub fn running(&self) -> Option<RankKey> {
        match self.rank {
            Rank::Running(key) => Some(key),
            Rank::None | Rank::Stopping => None,
        }
    }

    fn assign(&mut self, assignment: Box<Assignment>) -> Vec<Effect> {
        let new = RankKey::of(&assignment.plan);
        if self.phase != Phase::Serving {
            return Vec::new();
        }
        // What the worker is on its way to; a stale message must not lead it back.
        let current = match (&self.next, &self.rank) {
            (Some(next), _) => Some(RankKey::of(&next.plan)),
            (None, Rank::Running(key)) => Some(*key),
            (None, _) => None,
        };
        match current {
            // Said again after a reconnect: it is the plan that runs.
            Some(current) if current == new => return vec![Effect::Report],
            Some(current) if current.same_replica(new) && new.epoch < current.epoch => {
                return Vec::new();
            }
            _ => self.next = Some(assignment),
        }
        self.settle()
    }

    fn release(&mut self, key: RankKey) -> Vec<Effect> {
        let covers = |held: RankKey| held.same_replica(key) && held.epoch <= key.epoch;
        self.next.take_if(|next| covers(RankKey::of(&next.plan)));
        match self.rank {
            Rank::Running(running) if covers(running) => self.stop(),
            _ => Vec::new(),
        }
    }

    fn stop(&mut self) -> Vec<Effect> {
        self.rank = Rank::Stopping;
        vec![Effect::Stop]
    }

    fn drain(&mut self) -> Vec<Effect> {
        if self.phase != Phase::Serving {
            return Vec::new();
        }
        self.phase = Phase::Draining;
        self.next = None;
        vec![Effect::BeginDrain]
    }

    fn leave(&mut self) -> Vec<Effect> {
        if self.phase != Phase::Draining {
            return Vec::new();
        }
        self.phase = Phase::Leaving;
        // Said before the rank stops, so that the coordinator does not take its end for a failure.
        let mut effects = vec![Effect::SayGoodbye];
        effects.extend(match self.rank {
            Rank::Running(_) => self.stop(),
            Rank::None | Rank::Stopping => self.settle(),
        });
        effects
    }

    /// The step that brings what runs closer to what is wanted.
    fn settle(&mut self) -> Vec<Effect> {
        match self.rank {
            Rank::Stopping => Vec::new(),
            Rank::Running(_) if self.next.is_some() => self.stop(),
            Rank::Running(_) => Vec::new(),
            Rank::None if self.phase == Phase::Leaving => {
                self.phase = Phase::Gone;
                vec![Effect::Exit]
            }
            Rank::None => match self.next.take() {
                Some(assignment) => {
                    self.rank = Rank::Running(RankKey::of(&assignment.plan));
                    vec![Effect::Start(assignment)]
                }
                None => Vec::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::model::Precision;
    use trireme_shared::plan::{LinkPolicy, ModelRef};

    fn assignment(replica: u16, epoch: u64) -> Box<Assignment> {
        Box::new(Assignment {
            plan: ReplicaPlan {
                deployment: DeploymentId(1),
                replica: Replica(replica),
                epoch: Epoch(epoch),
                model: ModelRef {
                    name: "m".into(),
                    source: "m.gguf".into(),
                    sha256: None,
                },
                tensor_parallel: 1,
                pipeline_parallel: 1,
                link: LinkPolicy::Auto,
                precision: Precision::default(),
                ranks: Vec::new(),
                kv_pages: 1,
                context: 16,
                nonce: [0; 16],
            },
            index: 0,
        })
    }

    fn assign(replica: u16, epoch: u64) -> Event {
        assign_in(1, replica, epoch)
    }

    fn assign_in(term: u64, replica: u16, epoch: u64) -> Event {
        let assignment = assignment(replica, epoch);
        Event::Heard(ToWorker::Assign { term, assignment })
    }

    fn release(replica: u16, epoch: u64) -> Event {
        Event::Heard(ToWorker::Release {
            term: 1,
            deployment: DeploymentId(1),
            replica: Replica(replica),
            epoch: Epoch(epoch),
        })
    }

    #[test]
    fn a_new_plan_waits_until_the_old_rank_is_gone() {
        let mut core = Core::default();
        assert_eq!(core.on(assign(0, 1)), [Effect::Start(assignment(0, 1))]);
        assert_eq!(core.on(assign(0, 2)), [Effect::Stop]);
        assert_eq!(core.running(), None);
        // A third plan while the first still stops: only the latest is started.
        assert_eq!(core.on(assign(0, 3)), []);
        assert_eq!(
            core.on(Event::Stopped),
            [Effect::Report, Effect::Start(assignment(0, 3))]
        );
        assert_eq!(core.running().unwrap().epoch, Epoch(3));
    }

    #[test]
    fn what_is_stale_or_already_so_changes_nothing() {
        let mut core = Core::default();
        core.on(assign(0, 5));
        assert_eq!(core.on(assign(0, 5)), [Effect::Report]);
        assert_eq!(core.on(assign(0, 4)), []);
        assert_eq!(core.on(release(0, 4)), []);
        assert_eq!(core.on(release(1, 9)), []);
        // Another replica's epochs are counted apart.
        assert_eq!(core.on(assign(1, 1)), [Effect::Stop]);
        // Going back to the plan that is on its way out is a new start, not a confirmation.
        assert_eq!(core.on(assign(0, 6)), []);
        assert_eq!(
            core.on(Event::Stopped),
            [Effect::Report, Effect::Start(assignment(0, 6))]
        );
    }

    #[test]
    fn a_leader_of_an_older_term_is_not_obeyed() {
        let coordinators = |term| {
            let coordinators = Vec::new();
            Event::Heard(ToWorker::Coordinators { term, coordinators })
        };
        let mut core = Core::default();
        core.on(assign_in(2, 0, 5));
        // A partitioned leader still gives orders, even for a newer epoch.
        assert_eq!(core.on(assign_in(1, 0, 6)), []);
        assert_eq!(core.on(release(0, 5)), [], "term 1");
        assert_eq!(core.on(Event::Heard(ToWorker::Drain { term: 1 })), []);
        assert_eq!(core.running().unwrap().epoch, Epoch(5));
        // Hearing of a term is enough, and an older one's word changes nothing.
        core.on(coordinators(4));
        core.on(coordinators(3));
        assert_eq!(core.on(assign_in(3, 0, 7)), []);
        assert_eq!(core.on(assign_in(4, 0, 5)), [Effect::Report]);
        assert_eq!(core.on(assign_in(4, 0, 8)), [Effect::Stop]);
    }

    #[test]
    fn a_release_ends_the_rank_and_what_was_to_follow() {
        let mut core = Core::default();
        core.on(assign(0, 1));
        assert_eq!(core.on(release(0, 1)), [Effect::Stop]);
        assert_eq!(core.on(release(0, 1)), []);
        assert_eq!(core.on(assign(0, 2)), []);
        assert_eq!(core.on(release(0, 2)), []);
        assert_eq!(core.on(Event::Stopped), [Effect::Report]);
        assert_eq!(core.running(), None);
    }

    #[test]
    fn a_drain_lets_streams_end_says_goodbye_and_exits_once() {
        let mut core = Core::default();
        core.on(assign(0, 1));
        assert_eq!(
            core.on(Event::Heard(ToWorker::Drain { term: 1 })),
            [Effect::BeginDrain]
        );
        assert_eq!(core.on(Event::Shutdown), []);
        assert_eq!(core.on(assign(0, 2)), []);
        assert!(core.running().is_some(), "its streams still run");
        assert_eq!(core.on(Event::Drained), [Effect::SayGoodbye, Effect::Stop]);
        assert_eq!(core.on(Event::Drained), []);
        assert_eq!(core.on(Event::Stopped), [Effect::Report, Effect::Exit]);

        let mut idle = Core::default();
        assert_eq!(idle.on(Event::Shutdown), [Effect::BeginDrain]);
        assert_eq!(idle.on(Event::Drained), [Effect::SayGoodbye, Effect::Exit]);
    }

    #[test]
    fn a_drain_during_a_stop_waits_for_it() {
        let mut core = Core::default();
        core.on(assign(0, 1));
        core.on(assign(0, 2));
        assert_eq!(core.on(Event::Shutdown), [Effect::BeginDrain]);
        assert_eq!(core.on(Event::Drained), [Effect::SayGoodbye]);
        assert_eq!(core.on(Event::Stopped), [Effect::Report, Effect::Exit]);
    }
}
